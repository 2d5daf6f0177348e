// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	mdns "github.com/miekg/dns"
)

// Measure is what talkers are compared by.
type Measure uint8

// The measures.
const (
	// Queries are all of them.
	Queries Measure = iota
	// Denials are those answered with NXDOMAIN: search lists and misspelt names show here.
	Denials
	// Upstream are those for which an upstream was asked.
	Upstream
	measures
)

// String is the measure as in a flag.
func (m Measure) String() string { return [...]string{"queries", "denials", "upstream"}[m] }

// counts are a pod's own, exact since the pod was first seen.
type counts [measures]atomic.Uint64

// Talker is one client and how much it asked. Over is how many of the Queries may be somebody else's: none with pods of this node, whose
// numbers are exact.
type Talker struct {
	// Name is the pod's, NAMESPACE/NAME, or an address.
	Name                             string
	Queries, Denials, Upstream, Over uint64
}

func (t *Talker) by(m Measure) uint64 { return [...]uint64{t.Queries, t.Denials, t.Upstream}[m] }

// Count takes in a query that was answered. It costs a pod of this node one to three additions to words of its own, and others a place in a
// table of fixed size.
func (c *Clients) Count(cl Client, a netip.Addr, rcode int, upstream bool) {
	if p := cl.Pod; p != nil {
		p.counts[Queries].Add(1)
		if rcode == mdns.RcodeNameError {
			p.counts[Denials].Add(1)
		}
		if upstream {
			p.counts[Upstream].Add(1)
		}
		return
	}
	var n [measures]uint64
	n[Queries] = 1
	if rcode == mdns.RcodeNameError {
		n[Denials] = 1
	}
	if upstream {
		n[Upstream] = 1
	}
	c.talkers.add(a, n)
}

// Add is Count for so many queries that were answered, denials of them with NXDOMAIN, and no upstream asked.
func (c *Clients) Add(cl Client, a netip.Addr, queries, denials uint64) {
	switch p := cl.Pod; {
	case p != nil:
		p.counts[Queries].Add(queries)
		p.counts[Denials].Add(denials)
	case queries > 0:
		c.talkers.add(a, [measures]uint64{Queries: queries, Denials: denials})
	}
}

// Top are the n clients of which the measure is largest; only of clients that have any. t is the table of the last snapshot.
func (c *Clients) Top(t *Table, n int, m Measure) []Talker {
	out := c.talkers.all()
	for p := range t.Pods {
		out = append(out, Talker{Name: p.Name.String(), Queries: p.counts[Queries].Load(),
			Denials: p.counts[Denials].Load(), Upstream: p.counts[Upstream].Load()})
	}
	out = slices.DeleteFunc(out, func(e Talker) bool { return e.by(m) == 0 })
	slices.SortFunc(out, func(a, b Talker) int { return cmp.Or(cmp.Compare(b.by(m), a.by(m)), cmp.Compare(a.Name, b.Name)) })
	return out[:min(n, len(out))]
}

// The table of talkers: 32 shares of 16.
const (
	talkerShares = 32
	talkerPlaces = 16
)

// talkers keeps the clients without a pod that ask most, by the Space-Saving algorithm (Metwally, Agrawal and El Abbadi, 2005): who has no
// place takes that of the one with the least queries, and their number with it. A client that sends more than a sixteenth of its share's queries
// is always there, and no number of queries is too small, or too large by more than Over says.
type talkers [talkerShares]struct {
	mu     sync.Mutex
	places [talkerPlaces]talker
}

type talker struct {
	addr netip.Addr
	n    [measures]uint64
	over uint64
}

func (t *talkers) add(a netip.Addr, n [measures]uint64) {
	share := &t[keyOf(a).hash()%talkerShares]
	if !share.mu.TryLock() {
		return // somebody else counts here right now: a sample is enough, waiting is not worth it
	}
	defer share.mu.Unlock()
	least := 0
	for i := range share.places {
		p := &share.places[i]
		if p.addr == a {
			for m := range n {
				p.n[m] += n[m]
			}
			return
		}
		if p.n[Queries] < share.places[least].n[Queries] {
			least = i
		}
	}
	p := &share.places[least]
	over := p.n[Queries]
	*p = talker{addr: a, n: n, over: over}
	p.n[Queries] += over
}

func (t *talkers) all() (out []Talker) {
	for i := range t {
		share := &t[i]
		share.mu.Lock()
		for _, p := range share.places {
			if p.addr.IsValid() {
				out = append(out, Talker{p.addr.String(), p.n[Queries], p.n[Denials], p.n[Upstream], p.over})
			}
		}
		share.mu.Unlock()
	}
	return out
}
