// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"strings"
	"testing"
)

// decisions are all that a snapshot decides about a Service's frontends, by its name.
func decisions(s *Snapshot) map[Name]string {
	all := make(map[Name]string)
	for svc := range s.Owners {
		var b strings.Builder
		s.Ways(svc, func(f Frontend, w Way) {
			fmt.Fprintf(&b, "%s %s %t %v", f, w.Kind, w.Guarded, w.Ranges)
			for _, scope := range []Scope{w.Inside, w.Outside} {
				c := s.Choose(svc, w.Port, f.Addr.Is4(), scope)
				fmt.Fprintf(&b, " %s", c.Action)
				for _, x := range c.Candidates {
					fmt.Fprintf(&b, " %s", x.AddrPort())
				}
			}
			b.WriteByte('\n')
		})
		all[svc.Name] = b.String()
	}
	return all
}

// TestTouched: in random histories, what is not named is decided as it was; and where nothing changed, nothing is named.
func TestTouched(t *testing.T) {
	r := seeded(t)
	for range 30 {
		w, b := newWorld(), NewBuilder(Config{Self: "n1", PassOn: true})
		last := b.Build()
		before := decisions(last)
		for step := range 60 {
			w.step(r, b)
			snap := b.Build()
			touched, now := Touched(last, snap), decisions(snap)
			for _, names := range []map[Name]string{before, now} {
				for n := range names {
					if _, ok := touched[n]; !ok && before[n] != now[n] {
						t.Fatalf("step %d: %s is not named, but was\n%sand is\n%s", step, n, before[n], now[n])
					}
				}
			}
			if len(Touched(snap, snap)) > 0 {
				t.Fatalf("step %d: a snapshot differs from itself", step)
			}
			last, before = snap, now
		}
	}
}

// TestTouchedByFew: one Service's change names that Service; its frontend that another one gets, that one too; another zone names those with hints.
func TestTouchedByFew(t *testing.T) {
	names := func(touched map[Name]struct{}) string {
		var list []string
		for _, n := range []string{"a", "b", "c"} {
			if _, ok := touched[Name{"x", n}]; ok {
				list = append(list, n)
			}
		}
		if len(list) != len(touched) {
			t.Errorf("others are touched: %v", touched)
		}
		return strings.Join(list, " ")
	}
	b := NewBuilder(Config{Self: "n1"})
	service := func(n, vip string) {
		b.SetService(ServiceSpec{Name: Name{"x", n}, ClusterIPs: addrsOf(vip), Ports: []Port{{Protocol: TCP, Port: 80}}})
	}
	endpoint := func(n, at string, hints *Hints) {
		b.SetSlice(Slice{Name: Name{"x", n}, Service: n, Ports: []Port{{Protocol: TCP, Port: 80}}, Endpoints: []Endpoint{{Addr: addr(at), Ready: true, Serving: true, Hints: hints}}})
	}
	service("a", "10.96.0.1")
	service("b", "10.96.0.1")
	service("c", "10.96.0.3")
	b.SetNode(Node{Name: "n1"})
	last := b.Build()
	for _, tt := range []struct {
		what   string
		change func()
		want   string
	}{
		{"an endpoint", func() { endpoint("c", "10.244.0.1", &Hints{Zones: []string{"z"}}) }, "c"},
		{"a Service whose address another one has too", func() { b.DeleteService(Name{"x", "a"}) }, "a b"},
		{"the zone", func() { b.SetNode(Node{Name: "n1", Zone: "z"}) }, "c"},
		{"another node", func() { b.SetNode(Node{Name: "n2", Zone: "z"}) }, ""},
	} {
		tt.change()
		snap := b.Build()
		if got := names(Touched(last, snap)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
		last = snap
	}
}
