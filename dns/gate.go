// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

// state is what the query path sees of the world: two views, and a channel that is closed when another state follows.
type state struct {
	announced *View // what has arrived
	published *View // what every target has acknowledged; nil before the first time
	followed  chan struct{}
}

// reason is why an answer has to wait.
type reason uint8

const (
	settled     reason = iota // it has not
	starting                  // nothing has been published yet
	programming               // what was asked for is announced, but not published
	endpoints                 // the Service is so young that its slices may still be on their way
	reasons
)

// String is the reason as a label of the metrics.
func (r reason) String() string { return [...]string{"", "start", "programming", "endpoints"}[r] }

// gate is rule P1.
type gate struct {
	wait, settle time.Duration
	maxWaiting   int64
	now          func() time.Time
	// changed is called when questions are answered from another state; nil: nobody is told.
	changed func(old, now *state)

	writer  sync.Mutex // of Announce and Publish, never taken by queries
	state   atomic.Pointer[state]
	waiting atomic.Int64

	waits, timeouts [reasons]atomic.Uint64
	overflows       atomic.Uint64
}

func (g *gate) set(change func(state) state) {
	g.writer.Lock()
	defer g.writer.Unlock()
	old := g.state.Load()
	s := change(*old)
	s.followed = make(chan struct{})
	g.state.Store(&s)
	if g.changed != nil {
		g.changed(old, &s)
	}
	close(old.followed)
}

// announce takes in a snapshot that is not yet programmed.
func (g *gate) announce(s *model.Snapshot) {
	g.set(func(st state) state {
		st.announced = st.announced.next(s)
		return st
	})
}

// publish takes in a snapshot that is programmed, but for the Services refused.
func (g *gate) publish(s *model.Snapshot, refused []model.Name) {
	g.set(func(st state) state {
		if s == st.announced.snap {
			st.published = st.announced
		} else if st.published == nil {
			st.published = st.announced.next(s)
		} else {
			st.published = st.published.next(s)
		}
		if len(refused) > 0 || len(st.published.refused) > 0 {
			v := *st.published
			v.refused = make(map[model.Name]struct{}, len(refused))
			for _, n := range refused {
				v.refused[n] = struct{}{}
			}
			st.published = &v
		}
		if s.Generation >= st.announced.snap.Generation {
			st.announced = st.published
		}
		return st
	})
}

// answer answers as soon as the answer is a promise, or says that it has to wait.
func (g *gate) answer(t target, name string, qtype uint16) (Answer, bool) {
	a, why, _ := g.state.Load().decide(t, name, qtype, g.now().Add(-g.settle))
	return a, why == settled
}

// await is answer for those that had to wait. It returns when the answer is a promise, or when the time is up with what is true nevertheless.
func (g *gate) await(ctx context.Context, t target, name string, qtype uint16) Answer {
	if g.waiting.Add(1) > g.maxWaiting {
		g.waiting.Add(-1)
		g.overflows.Add(1)
		return Answer{Zone: t.origin, Rcode: mdns.RcodeServerFailure, Code: mdns.ExtendedErrorCodeNotReady, Why: "too many queries wait already"}
	}
	defer g.waiting.Add(-1)
	start := g.now()
	timer := time.NewTimer(g.wait)
	defer timer.Stop()
	counted := settled
	for {
		st := g.state.Load()
		a, why, fallback := st.decide(t, name, qtype, g.now().Add(-g.settle))
		if why == settled {
			return a
		}
		if counted != why {
			g.waits[why].Add(1)
			counted = why
		}
		left := g.wait - g.now().Sub(start)
		if why == endpoints {
			// Not longer than the Service counts as young.
			left = min(left, a.Unsettled.Add(g.settle).Sub(g.now()))
		}
		timer.Reset(max(left, 0))
		select {
		case <-st.followed:
		case <-ctx.Done():
			return fallback
		case <-timer.C:
			if why != endpoints || g.now().Sub(start) >= g.wait {
				g.timeouts[why].Add(1)
			}
			return fallback
		}
	}
}

// decide answers as of this state. When the answer has to wait, it also says what may be said when waiting was in vain. Services that
// arrived after young and have no slice are taken for incomplete.
func (st *state) decide(t target, name string, qtype uint16, young time.Time) (a Answer, why reason, fallback Answer) {
	if st.published == nil {
		return Answer{}, starting, failure(t, 0, "this node has not programmed its first state yet")
	}
	a, why, fallback = st.gated(t, name, qtype)
	if why == settled && a.Unsettled.After(young) {
		// It is not a lie, but the connection would be refused.
		return a, endpoints, a
	}
	return a, why, fallback
}

// gated is the rule. What is in both views is a promise. What only the published one has is gone already. What only the announced one has is
// to come.
func (st *state) gated(t target, name string, qtype uint16) (a Answer, why reason, fallback Answer) {
	if st.announced == st.published || !t.promises() || st.same(t) {
		a = st.published.answer(t, name, qtype)
		return a, settled, a
	}
	a = st.announced.answer(t, name, qtype)
	old := st.published.answer(t, name, qtype)
	missing := without(a.Answer, old.Answer) || without(a.Extra, old.Extra)
	if !missing && (a.Rcode == old.Rcode || len(a.Answer) == 0) {
		if len(a.Answer) > 0 && old.Unsettled.After(a.Unsettled) {
			a.Unsettled = old.Unsettled // the slices have come, but are not programmed either
		}
		return a, settled, a
	}
	if both := common(a, old); len(both.Answer) > 0 && both.Answer[len(both.Answer)-1].Type != mdns.TypeCNAME {
		return a, programming, both
	}
	return a, programming, failure(t, a.Generation, "what was asked for is not programmed on this node yet")
}

func failure(t target, generation uint64, why string) Answer {
	return Answer{Zone: t.origin, Rcode: mdns.RcodeServerFailure, Code: mdns.ExtendedErrorCodeNotReady, Why: why, Generation: generation}
}

// promises reports whether an answer about the target may hold an address or a name that leads to one. The others, such as the zone's own
// records, hold at all times.
func (t target) promises() bool {
	switch t.kind {
	case kindService, kindEndpoint, kindProtocol, kindPort, kindPod, kindAddress:
		return true
	}
	return false
}

// same reports whether it can be seen at once that both views say the same about a target.
func (st *state) same(t target) bool {
	if t.kind == kindPod || t.kind == kindAddress {
		return false
	}
	a, inA := st.announced.snap.Services.Get(t.name)
	b, inB := st.published.snap.Services.Get(t.name)
	return a == b && inA == inB && (!inA || a.Type != model.ExternalName)
}

// without reports whether some of the records are not among others.
func without(records, others []Record) bool {
	if len(records) > len(others) || slices.Equal(records, others) {
		return len(records) > len(others)
	}
	have := make(map[Record]struct{}, len(others))
	for _, r := range others {
		have[r] = struct{}{}
	}
	return slices.ContainsFunc(records, func(r Record) bool { _, ok := have[r]; return !ok })
}

// common is an answer reduced to what another one has too.
func common(a, other Answer) Answer {
	have := make(map[Record]struct{}, len(other.Answer)+len(other.Extra))
	for _, r := range slices.Concat(other.Answer, other.Extra) {
		have[r] = struct{}{}
	}
	gone := func(r Record) bool { _, ok := have[r]; return !ok }
	a.Answer = slices.DeleteFunc(slices.Clone(a.Answer), gone)
	a.Extra = slices.DeleteFunc(slices.Clone(a.Extra), gone)
	return a
}
