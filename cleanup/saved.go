// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"context"
	"errors"
)

// Saved is what one implementation of iptables has in this network namespace.
type Saved struct {
	// Program is iptables-nft, iptables-legacy, ip6tables-nft or ip6tables-legacy.
	Program string
	IPv6    bool
	Tables  []SavedTable
}

// SavedTable is a table as iptables-save prints it.
type SavedTable struct {
	Name   string
	Chains []string
	// Rules are lines that begin with -A.
	Rules []string
}

// Save reads what iptables has, by way of the programs iptables-save and ip6tables-save of both implementations. Those that are not installed, and those
// without any table, are not among what it returns; notes say when the kernel has tables that only a program that is missing could read.
func Save(ctx context.Context) (all []Saved, notes []string, err error) {
	var errs []error
	run := programs{}
	for _, variant := range variants {
		for _, family := range []string{"iptables", "ip6tables"} {
			program, err := find(ctx, run, family, variant)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if program == "" {
				r := &Report{}
				if variant == "legacy" {
					unreadable(r, family)
				} else {
					err = unhandled(family, nil)
				}
				if err != nil {
					notes = append(notes, err.Error())
				}
				notes = append(notes, r.Notes...)
				continue
			}
			text, err := run.run(ctx, "", program+"-save")
			if err != nil {
				errs = append(errs, err)
				continue
			}
			s := Saved{Program: family + "-" + variant, IPv6: family == "ip6tables"}
			for _, t := range parse(text) {
				s.Tables = append(s.Tables, SavedTable{t.name, t.chains, t.rules})
			}
			if len(s.Tables) > 0 {
				all = append(all, s)
			}
		}
	}
	return all, notes, errors.Join(errs...)
}
