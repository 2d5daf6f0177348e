// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"maps"
	"slices"
	"testing"

	"github.com/fairlead/fairlead/model"
)

// A long history of changes, planned without a kernel, leaves exactly what a fresh start makes: no id, group or junction is forgotten.
func TestPlanLeavesNothingBehind(t *testing.T) {
	r := seeded(t)
	for range 40 {
		w, s := newWorld(r), newState()
		last := (&model.Snapshot{})
		for step := range 60 {
			for range 1 + r.IntN(3) {
				w.change()
			}
			snap := w.Build()
			list := changes(last, snap).sorted()
			if !slices.Equal(last.ServiceCIDRs, snap.ServiceCIDRs) { // as applyChanges does
				all := &unit{vips: slices.Collect(maps.Keys(s.vips))}
				for a := range snap.VIPs.All() {
					all.vips = append(all.vips, a)
				}
				list = append(list, all)
			}
			for common := ofAll; common != 0 || len(list) > 0; common = 0 { // in transactions of random size
				n := 0
				if len(list) > 0 {
					n = 1 + r.IntN(len(list))
				}
				x := s.begin()
				x.setPlains(snap, common)
				for _, u := range list[:n] {
					x.plan(snap, u)
				}
				x.done()
				list = list[n:]
			}
			if got, want := s.String(), stateOf(snap); got != want {
				t.Fatalf("step %d: %s", step, differenceOf(got, want))
			}
			checkIDs(t, s, step)
			last = snap
		}
	}
}

// checkIDs wants every id to be owned once, and to be in use exactly if it is owned.
func checkIDs(t *testing.T, s *state, step int) {
	t.Helper()
	owned := make(map[numbered]int)
	for o, list := range s.owned {
		for _, id := range list {
			if id != 0 {
				owned[numbered{o.f, id}]++
			}
		}
	}
	for n, times := range owned {
		if !s.inUse(n) || times != 1 {
			t.Fatalf("step %d: id %d is owned %d times, in use: %t", step, n.id, times, s.inUse(n))
		}
	}
	for l := range s.links {
		if owned[numbered{l.s.f, l.code >> lowBits}] == 0 {
			t.Fatalf("step %d: junction %d is nobody's", step, l.code>>lowBits)
		}
	}
	before := len(s.strays)
	s.sweep()
	if len(s.strays) != before {
		t.Fatalf("step %d: nothing leads to %v", step, s.strays)
	}
	for n := range s.groups {
		if owned[n] == 0 {
			t.Fatalf("step %d: group %d is nobody's", step, n.id)
		}
	}
}

// An endpoint keeps its seat as long as it is in the group, two never share one, and a seat that was left stays empty for a while.
func TestSeats(t *testing.T) {
	r := seeded(t)
	g := &group{}
	left := make(map[uint16]int)
	for step := range 8000 { // which is more than two rounds of the circle
		ends := r.Perm(30)[:r.IntN(12)]
		if step > 100 { // until then the group may be empty; from then on one stays where it is
			ends = append(ends, 30)
		}
		var want []model.Backend
		for _, i := range ends {
			want = append(want, model.Backend{Endpoint: &model.Endpoint{Addr: addr("10.0.0.%d", i)}, Port: 1})
		}
		now := &group{dests: place(g.dests, want)}
		now.sit(g)
		was, is := g.seating(), now.seating()
		if len(is) != len(now.dests) || slices.ContainsFunc(now.seats, func(s uint16) bool { return s == 0 || s > maxSeats }) {
			t.Fatalf("step %d: %v for %d endpoints", step, now.seats, len(now.dests))
		}
		for i, d := range now.dests {
			if j := slices.Index(g.dests, d); j >= 0 && g.seats[j] != now.seats[i] {
				t.Fatalf("step %d: an endpoint moved from seat %d to %d", step, g.seats[j], now.seats[i])
			}
			if at, ok := left[now.seats[i]]; ok && was[now.seats[i]] == (dest{}) && step-at < 10 && len(g.seats) > 0 {
				t.Fatalf("step %d: seat %d was left in step %d", step, now.seats[i], at)
			}
		}
		for s := range was {
			if _, ok := is[s]; !ok {
				left[s] = step
			}
		}
		g = now
	}
}

// Where all endpoints are replaced at once, and there are more than half as many as seats, the new ones get the seats of those that went.
func TestSeatsOfACrowd(t *testing.T) {
	crowd := func(n, net int) (want []model.Backend) {
		for i := range n {
			want = append(want, model.Backend{Endpoint: &model.Endpoint{Addr: addr("10.%d.%d.%d", net, i/256, i%256)}, Port: 1})
		}
		return want
	}
	before := &group{}
	for i, n := range []int{maxSeats/2 + 1, maxSeats/2 + 1, maxSeats, maxSeats} {
		now := &group{dests: place(before.dests, crowd(n, i))}
		now.sit(before)
		if is := now.seating(); len(is) != n || is[0] != (dest{}) {
			t.Fatalf("crowd %d: %d seats for %d endpoints", i, len(is), n)
		}
		before = now
	}
}

// Where new connections to an endpoint that leaves go is for all of its Services to say, also for one that does not have the frontend.
func TestLeavingEndpointOfTwoServices(t *testing.T) {
	ns := newNS(t)
	target := newTarget(t, ns)
	b := model.NewBuilder(model.Config{Self: "n1", PassOn: true})
	b.SetNode(node(1))
	leaving := podAddrs(1, 1)
	b.SetPod(model.Pod{Name: model.Name{Namespace: "default", Name: "p"}, Addrs: leaving[:], Terminating: true})
	here := func(e *model.Endpoint) {
		if slices.Contains(leaving[:], e.Addr) {
			e.Node, e.Pod = "n1", model.Name{Namespace: "default", Name: "p"}
		}
	}
	for i := range 2 {
		b.SetService(clusterIP(1+i, http))
		setEndpointsAs(b, clusterIP(1+i, http), 8080, here, leaving, podAddrs(2, 1))
	}
	for _, tt := range []struct {
		when   string
		change func()
		passed bool
	}{
		{"the same endpoints", func() {}, true},
		{"the second has others", func() { setEndpointsAs(b, clusterIP(2, http), 8080, here, leaving, podAddrs(2, 2)) }, false},
		{"so has the first", func() { setEndpointsAs(b, clusterIP(1, http), 8080, here, leaving, podAddrs(2, 2)) }, true},
		{"the second has no other", func() { setEndpointsAs(b, clusterIP(2, http), 8080, here, leaving) }, false},
		{"the second is gone", func() { b.DeleteService(clusterIP(2).Name) }, true},
	} {
		tt.change()
		apply(t, target, b.Build())
		sameAsFresh(t, ns, b.Build(), tt.when)
		for _, a := range leaving {
			if _, ok, err := Read(Options{NetNS: ns}, frontend{Addr: a, Protocol: model.TCP, Port: 8080}); err != nil || ok != tt.passed {
				t.Errorf("%s: %s is passed on: %t %v", tt.when, a, ok, err)
			}
		}
	}
}
