// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// The agent with what spares a pod the queries of its search list, and with the fast path beside.
const (
	switchedOn   = "fairlead, switches on"
	switchedFast = "fairlead, switches on, fast path"
)

// switches are those flags.
var switches = []string{"--dns-search-completion=on", "--dns-suppress-aaaa=on"}

// lookupWorkers is how many look up at the same time.
const lookupWorkers = 8

// knownNames is how many names are looked up again and again.
const knownNames = 100

// looked is what a round of lookups led to.
type looked struct {
	lookedUp
	perLookup float64 // the server's processor time, in microseconds
	upstream  float64 // queries that reached the upstream, for each lookup
}

func (r looked) queries() float64 { return float64(r.Queries) / float64(r.All) }

// externalLookups measures names outside the cluster, as a pod looks them up.
func externalLookups(ctx context.Context, s *suite) error {
	names := []string{fairlead.name, coreDNS.name, switchedOn, switchedFast}
	nodes := map[string]*dnsNode{}
	defer func() { closeAll(nodes) }()
	for _, r := range []resolver{fairleadDNS, coreDNS} {
		n, err := s.usualNode(ctx, r)
		if err != nil {
			return err
		}
		nodes[r.name] = n
		// The client is a pod that the API knows.
		if err := n.w.addPod(ctx, "client-"+strconv.Itoa(r.number), "client", fairlead.name, n.podAddr()); err != nil {
			return err
		}
	}
	const threads = lookupWorkers
	// begin starts a program, and has it learn the names that are known.
	begin := func(n *dnsNode) error {
		if err := n.run(ctx, s, serverCPU); err != nil {
			return err
		}
		if _, err := s.lookUp(ctx, n, "-workers", "1", "-n", strconv.Itoa(knownNames), "-names", strconv.Itoa(knownNames), "-warm", "0s", "-count", "1m"); err != nil {
			return fmt.Errorf("look up the known names: %w", err)
		}
		return nil
	}
	runs := ""
	// choose has the right program run, with the right flags: Fairlead's two are one agent of one node.
	choose := func(name string) (*dnsNode, error) {
		n := nodes[name]
		if name == coreDNS.name {
			if n.process == nil {
				return n, begin(n)
			}
			return n, n.process.gone()
		}
		n = nodes[fairlead.name]
		if runs == name {
			return n, n.process.gone()
		}
		switch runs = name; name {
		case fairlead.name:
			n.command = agentCommand()
		case switchedOn:
			n.command = agentCommand(switches...)
		case switchedFast:
			n.command = agentCommand(append(slices.Clone(switches), podFastPath)...)
		}
		if err := begin(n); err != nil || name != switchedFast {
			return n, err
		}
		return n, n.onFastPath(ctx)
	}
	progress("looking up names outside the cluster for the first time")
	fresh := pick(s, 100, 10) // of each thread
	cold := map[string][]looked{}
	for i, name := range names {
		n, err := choose(name)
		if err != nil {
			return err
		}
		got, err := s.lookUp(ctx, n, "-n", strconv.Itoa(fresh), "-names", strconv.Itoa(fresh*threads), "-first", strconv.Itoa((i+1)*10*fresh*threads),
			"-warm", "0s", "-count", "1m", "-workers", strconv.Itoa(threads))
		if err != nil {
			return fmt.Errorf("look up new names by %s: %w", name, err)
		}
		cold[name] = []looked{got}
	}
	progress("looking up the same names again and again")
	taken, err := takeTurns(ctx, pick(s, 8, 3), names, func(name string) (looked, error) {
		n, err := choose(name)
		if err != nil {
			return looked{}, err
		}
		return s.lookUp(ctx, n, "-workers", strconv.Itoa(threads), "-names", strconv.Itoa(knownNames), "-count", pick(s, 1500*time.Millisecond, 300*time.Millisecond).String())
	})
	if err != nil {
		return err
	}
	s.reportLookups("switches off", cold[fairlead.name], cold[coreDNS.name], taken[fairlead.name], taken[coreDNS.name], nil)
	s.reportLookups("switches on", cold[switchedOn], cold[coreDNS.name], taken[switchedOn], taken[coreDNS.name], atLeast(4.5))
	s.reportLookups("switches on, fast path", cold[switchedFast], cold[coreDNS.name], taken[switchedFast], taken[coreDNS.name], atLeast(4.5))
	return nil
}

func (s *suite) reportLookups(with string, ownCold, theirsCold, own, theirs []looked, target *goal) {
	for _, row := range []struct {
		name, unit  string
		own, theirs []looked
		of          func(looked) float64
		ratio       string
		goal        *goal
	}{
		{"external lookups per second", "1/s", own, theirs, func(r looked) float64 { return r.perSecond() }, share, target},
		{"server's CPU of an external lookup", "µs", own, theirs, func(r looked) float64 { return r.perLookup }, timesLess, nil},
		{"queries by the pod for an external lookup", "", own, theirs, looked.queries, timesLess, nil},
		{"queries upstream for an external lookup, known name", "", own, theirs, func(r looked) float64 { return r.upstream }, share, nil},
		{"queries upstream for an external lookup, new name", "", ownCold, theirsCold, func(r looked) float64 { return r.upstream }, share, nil},
	} {
		s.compare(figure{Section: "external", Figure: row.name + ", " + with, Unit: row.unit}, coreDNS.name, each(row.own, row.of), each(row.theirs, row.of),
			row.ratio, row.goal)
	}
}

// lookUp runs the stub resolver in the client pod, with further flags.
func (s *suite) lookUp(ctx context.Context, n *dnsNode, flags ...string) (out looked, err error) {
	before, err := n.upstreamAsked()
	if err != nil {
		return out, err
	}
	used, err := weigh(n.process.pid(), func() (dnsResult, error) {
		bounded, cancel := context.WithTimeout(ctx, awaitLimit)
		defer cancel()
		text, err := output(bounded, n.client, clientCPU, append([]string{s.programs.bench, "lookup", "-to", n.addr.String()}, flags...)...)
		if err == nil {
			err = json.Unmarshal(text, &out.lookedUp)
		}
		switch {
		case err != nil:
		case out.Errors > 0:
			err = errors.New(out.FirstError)
		case out.Lookups == 0:
			err = errors.New("nothing was looked up")
		}
		return dnsResult{All: out.All}, err
	})
	if err != nil {
		return out, err
	}
	after, err := n.upstreamAsked()
	out.perLookup = used.perAnswer
	out.upstream = float64(after-before) / float64(out.All)
	return out, err
}

// upstreamAsked is how many queries the upstream beside a node has had.
func (n *dnsNode) upstreamAsked() (count uint32, err error) {
	q, err := newQuestion(counter, typeA, rcodeSuccess)
	if err != nil {
		return 0, err
	}
	err = n.remote.Do(func() error {
		msg, err := exchangeDNS(upstreamAddr, q.packet, time.Second)
		if err != nil {
			return fmt.Errorf("ask the upstream for its count: %w", err)
		}
		if err := q.echoed(msg); err != nil {
			return fmt.Errorf("read the upstream's count: %w", err)
		}
		count = binary.BigEndian.Uint32(msg[len(msg)-4:])
		return nil
	})
	return count, err
}
