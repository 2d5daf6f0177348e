// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
)

// objects is how much of each kind there is in the nftables of a host.
type objects struct{ tables, chains, rules, sets, elements int }

// memories measures what the process holds and what the kernel has, with everything programmed and, in a full run, after the changes of the figure before.
func memories(ctx context.Context, s *suite) error {
	services := pick(s, 10000, 1000)
	at := fmt.Sprintf(" at %d Services", services)
	var held [2]memory
	var made [2]objects
	for i, c := range []contender{fairlead, proxy} {
		r, err := s.start(ctx, c, services, true)
		if err != nil {
			return err
		}
		if _, err := cpuWhenIdle(ctx, r.process.pid()); err != nil {
			return err
		}
		if err := s.rest(ctx); err != nil {
			return err
		}
		if held[i], err = memoryOf(r.process.pid()); err != nil {
			return err
		}
		ruleset, err := output(ctx, r.node, anyCPU, "nft", "-j", "list", "ruleset")
		if err != nil {
			return err
		}
		if made[i], err = countObjects(ruleset); err != nil {
			return err
		}
	}
	s.contrast(figure{Section: "memory", Figure: "proportional memory of the process" + at, Unit: "MiB", Value: held[0].PSS / mib},
		proxy.name, held[1].PSS/mib, share, atMost(0.25))
	s.contrast(figure{Section: "memory", Figure: "resident memory of the process" + at, Unit: "MiB", Value: held[0].RSS / mib},
		proxy.name, held[1].RSS/mib, share, atMost(0.25))
	s.contrast(figure{Section: "memory", Figure: "memory of its own, without its program's pages" + at, Unit: "MiB", Value: held[0].Own / mib},
		proxy.name, held[1].Own/mib, share, nil)
	s.contrast(figure{Section: "memory", Figure: "most memory it ever had" + at, Unit: "MiB", Value: held[0].Peak / mib},
		proxy.name, held[1].Peak/mib, share, atMost(0.25))
	for _, row := range []struct {
		name string
		of   func(objects) int
	}{
		{"chains", func(o objects) int { return o.chains }},
		{"rules", func(o objects) int { return o.rules }},
		{"sets and maps", func(o objects) int { return o.sets }},
		{"elements", func(o objects) int { return o.elements }},
	} {
		s.contrast(figure{Section: "memory", Figure: row.name + " in the kernel" + at, Value: float64(row.of(made[0]))},
			proxy.name, float64(row.of(made[1])), share, nil)
	}
	return nil
}

// countObjects reads what "nft -j list ruleset" prints. Maps inside of rules count as sets, and what is in them as elements, as the kernel keeps them.
func countObjects(ruleset []byte) (o objects, err error) {
	var listing struct {
		Nftables []map[string]json.RawMessage `json:"nftables"`
	}
	if err := json.Unmarshal(ruleset, &listing); err != nil {
		return o, fmt.Errorf("parse ruleset: %w", err)
	}
	for _, object := range listing.Nftables {
		for kind, body := range object {
			switch kind {
			case "table":
				o.tables++
			case "chain":
				o.chains++
			case "rule":
				o.rules++
				var rule any
				if err := json.Unmarshal(body, &rule); err != nil {
					return o, fmt.Errorf("parse rule: %w", err)
				}
				o.addAnonymous(rule)
			case "set", "map":
				o.sets++
				var set struct {
					Elem []json.RawMessage `json:"elem"`
				}
				if err := json.Unmarshal(body, &set); err != nil {
					return o, fmt.Errorf("parse %s: %w", kind, err)
				}
				o.elements += len(set.Elem)
			}
		}
	}
	return o, nil
}

// addAnonymous counts the sets that are written into a rule: {"set": [...]}.
func (o *objects) addAnonymous(v any) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			o.addAnonymous(x)
		}
	case map[string]any:
		for key, x := range v {
			if elements, ok := x.([]any); ok && key == "set" {
				o.sets++
				o.elements += len(elements)
			}
			o.addAnonymous(x)
		}
	}
}
