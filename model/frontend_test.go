// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func addrsOf(list string) (out []netip.Addr) {
	for _, a := range strings.Fields(list) {
		out = append(out, addr(a))
	}
	return out
}

func TestFrontend(t *testing.T) {
	for _, tt := range []struct {
		f        Frontend
		want     string
		nodePort bool
	}{
		{Frontend{Addr: addr("10.96.0.1"), Protocol: TCP, Port: 80}, "10.96.0.1:80/TCP", false},
		{Frontend{Addr: addr("fd00:96::1"), Protocol: UDP, Port: 53}, "[fd00:96::1]:53/UDP", false},
		{Frontend{Addr: netip.IPv4Unspecified(), Protocol: SCTP, Port: 30080}, "nodeport4:30080/SCTP", true},
		{Frontend{Addr: netip.IPv6Unspecified(), Protocol: TCP, Port: 30080}, "nodeport6:30080/TCP", true},
		{Frontend{Addr: netip.IPv4Unspecified(), Protocol: UDP, Port: 53, Host: true}, "hostport4:53/UDP", false},
		{Frontend{Addr: netip.IPv6Unspecified(), Protocol: TCP, Port: 80, Host: true}, "hostport6:80/TCP", false},
		{Frontend{Addr: addr("172.30.0.11"), Protocol: TCP, Port: 80, Host: true}, "hostport:172.30.0.11:80/TCP", false},
		{Frontend{Addr: addr("fd00:30::11"), Protocol: TCP, Port: 80, Host: true}, "hostport:[fd00:30::11]:80/TCP", false},
	} {
		if got := tt.f.String(); got != tt.want || tt.f.IsNodePort() != tt.nodePort {
			t.Errorf("%s, node port %t; want %s, %t", got, tt.f.IsNodePort(), tt.want, tt.nodePort)
		}
	}
	order := []Frontend{{netip.IPv4Unspecified(), TCP, 1, false}, {addr("10.0.0.1"), TCP, 9, false}, {addr("10.0.0.1"), UDP, 1, false}, {addr("10.0.0.1"), UDP, 2, false}, {addr("10.0.0.1"), UDP, 2, true},
		{addr("10.0.0.2"), TCP, 1, false}, {netip.IPv6Unspecified(), TCP, 1, false}, {addr("fd00::1"), TCP, 1, false}}
	for i, a := range order {
		for j, b := range order {
			if got := a.Compare(b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s to %s: %d", a, b, got)
			}
		}
	}
}

// What a Service asks for, by what its object says.
func TestClaims(t *testing.T) {
	http := Port{Name: "http", Protocol: TCP, Port: 80}
	nodePort := Port{Name: "http", Protocol: TCP, Port: 80, NodePort: 30080}
	ready := []Endpoint{{Addr: addr("10.244.1.5"), Ready: true, Serving: true, Leaving: true, Terminating: true}, {Addr: addr("10.244.1.6"), Ready: true}}
	for _, tt := range []struct {
		name   string
		spec   ServiceSpec
		passOn bool
		want   string
	}{
		{"one address", ServiceSpec{ClusterIPs: addrsOf("10.96.0.1"), Ports: []Port{http}}, false, "ClusterIP 10.96.0.1:80/TCP"},
		{"two families", ServiceSpec{ClusterIPs: addrsOf("10.96.0.1 fd00:96::1"), Ports: []Port{nodePort}}, false,
			"ClusterIP 10.96.0.1:80/TCP, ClusterIP [fd00:96::1]:80/TCP, node port nodeport4:30080/TCP, node port nodeport6:30080/TCP"},
		{"addresses of a family that it does not have", ServiceSpec{ClusterIPs: addrsOf("10.96.0.1"), Ports: []Port{http},
			Exposure: &Exposure{Balancers: addrsOf("203.0.113.1 2001:db8::1"), ExternalIPs: addrsOf("2001:db8::2 203.0.113.2")}}, false,
			"ClusterIP 10.96.0.1:80/TCP, load balancer 203.0.113.1:80/TCP, external IP 203.0.113.2:80/TCP"},
		{"an address that is none", ServiceSpec{ClusterIPs: addrsOf("10.96.0.1"), Ports: []Port{http}, Exposure: &Exposure{ExternalIPs: addrsOf("0.0.0.0")}}, false,
			"ClusterIP 10.96.0.1:80/TCP"},
		{"the same address twice", ServiceSpec{ClusterIPs: addrsOf("10.96.0.1"), Ports: []Port{http},
			Exposure: &Exposure{Balancers: addrsOf("10.96.0.1"), ExternalIPs: addrsOf("10.96.0.1")}}, false,
			"ClusterIP 10.96.0.1:80/TCP, load balancer 10.96.0.1:80/TCP, external IP 10.96.0.1:80/TCP"},
		{"port zero", ServiceSpec{ClusterIPs: addrsOf("10.96.0.1"), Ports: []Port{{Protocol: TCP}}}, false, ""},
		{"port zero with a node port", ServiceSpec{ClusterIPs: addrsOf("10.96.0.1"), Ports: []Port{{Protocol: TCP, NodePort: 30080}}}, false, "node port nodeport4:30080/TCP"},
		{"a port twice", ServiceSpec{ClusterIPs: addrsOf("10.96.0.1"), Ports: []Port{http, {Name: "again", Protocol: TCP, Port: 80, NodePort: 30081}, {Protocol: UDP, Port: 80}}}, false,
			"ClusterIP 10.96.0.1:80/TCP, ClusterIP 10.96.0.1:80/UDP"},
		{"headless", ServiceSpec{Type: Headless, Ports: []Port{nodePort}, Exposure: &Exposure{ExternalIPs: addrsOf("203.0.113.1")}}, true, ""},
		{"an alias", ServiceSpec{Type: ExternalName, ClusterIPs: addrsOf("10.96.0.1"), Ports: []Port{nodePort}}, true, ""},
		{"somebody else's", ServiceSpec{Unproxied: true, ClusterIPs: addrsOf("10.96.0.1"), Ports: []Port{nodePort}}, true, ""},
		{"leaving endpoints", ServiceSpec{ClusterIPs: addrsOf("10.96.0.1"), Ports: []Port{http}}, true,
			"ClusterIP 10.96.0.1:80/TCP, leaving endpoint 10.244.1.5:8080/TCP"},
		{"leaving endpoints of the other family", ServiceSpec{ClusterIPs: addrsOf("fd00:96::1"), Ports: []Port{http}}, true, "ClusterIP [fd00:96::1]:80/TCP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			svc := &Service{ServiceSpec: tt.spec, Endpoints: ready, Backends: make([][]Backend, len(tt.spec.Ports))}
			for i := range svc.Backends {
				svc.Backends[i] = []Backend{{&ready[0], 8080}, {&ready[1], 8080}}
			}
			var got []string
			svc.frontends(&Config{PassOn: tt.passOn}, func(f Frontend, k Kind, _ int) { got = append(got, fmt.Sprint(k, " ", f)) })
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
	(*Service)(nil).frontends(&Config{PassOn: true}, func(f Frontend, _ Kind, _ int) { t.Errorf("no Service claims %s", f) })
}

// Who has a frontend that several ask for: the order of the kinds, and then of the names, whoever came first and whoever goes.
func TestDisputes(t *testing.T) {
	port := []Port{{Protocol: TCP, Port: 80}}
	claim := func(b *Builder, k Kind, name string) {
		spec := ServiceSpec{Name: Name{"x", name}, Ports: slices.Clone(port), ClusterIPs: addrsOf("10.96.0." + fmt.Sprint(100+len(name)+int(name[0]))), Exposure: &Exposure{}}
		switch k {
		case AtClusterIP:
			spec.ClusterIPs = addrsOf("10.96.0.1")
		case AtBalancer:
			spec.Exposure.Balancers = addrsOf("10.96.0.1")
		case AtExternalIP:
			spec.Exposure.ExternalIPs = addrsOf("10.96.0.1")
		}
		b.SetService(spec)
		if k == AtLeaving {
			pod := Name{"x", name}
			b.SetPod(Pod{Name: pod, Addrs: addrsOf("10.96.0.1"), Terminating: true})
			b.SetSlice(Slice{Name: pod, Service: name, Ports: port, Endpoints: []Endpoint{{Addr: addr("10.96.0.1"), Node: "n1", Pod: pod, Ready: true, Serving: true}}})
		}
	}
	type claimant struct {
		kind Kind
		name string
	}
	order := []claimant{{AtClusterIP, "p"}, {AtClusterIP, "q"}, {AtBalancer, "g"}, {AtBalancer, "h"}, {AtExternalIP, "c"}, {AtExternalIP, "d"}, {AtLeaving, "a"}}
	r := seeded(t)
	f := Frontend{Addr: addr("10.96.0.1"), Protocol: TCP, Port: 80}
	for range 200 {
		b := NewBuilder(Config{Self: "n1", PassOn: true})
		for _, i := range r.Perm(len(order)) {
			claim(b, order[i].kind, order[i].name)
			if r.IntN(2) == 0 {
				b.Build()
			}
		}
		left := slices.Clone(order)
		for len(left) > 0 {
			snap := b.Build()
			w, ok := snap.Way(f)
			if !ok || w.Service.Name.Name != left[0].name || w.Kind != left[0].kind {
				t.Fatalf("of %v, %v has it as %v", left, w.Service, w.Kind)
			}
			i := r.IntN(len(left))
			b.DeleteService(Name{"x", left[i].name})
			left = slices.Delete(left, i, i+1)
		}
		if w, ok := b.Build().Way(f); ok {
			t.Fatalf("%v has what nobody asks for", w.Service)
		}
	}
}

// Ways of all Services together are the Way of every frontend that is somebody's, and every claim is either had or another's.
func TestWaysAgreeWithWay(t *testing.T) {
	r := seeded(t)
	w, b := newWorld(), NewBuilder(worldConfig)
	kinds := make(map[Kind]int)
	disputed, given := 0, 0
	for step := range 1500 {
		for range 1 + r.IntN(4) {
			w.step(r, b)
		}
		snap := b.Build()
		found := make(map[Frontend]Way)
		for svc := range snap.Owners {
			snap.Ways(svc, func(f Frontend, w Way) {
				if _, twice := found[f]; twice {
					t.Fatalf("step %d: %s comes twice", step, f)
				}
				found[f] = w
				kinds[w.Kind]++
			})
			snap.Claims(svc, func(f Frontend) {
				if owner, ok := snap.Frontends.Get(f); !ok {
					t.Fatalf("step %d: %s is claimed by %s and nobody's", step, f, svc.Name)
				} else if owner != svc.Name {
					disputed++
				}
			})
		}
		checked := 0 // host ports that the agent answers checks at
		for f, owner := range snap.Frontends.All() {
			if _, ok := snap.HealthPorts.Get(f.Port); ok && f.Host && f.Protocol == TCP {
				if w, ok := snap.Way(f); ok {
					t.Fatalf("step %d: %s is %v's, and the agent answers there", step, f, w.Service.Name)
				}
				checked++
				continue
			}
			one, ok := snap.Way(f)
			if !ok || one.Service.Name != owner || fmt.Sprint(one) != fmt.Sprint(found[f]) {
				t.Fatalf("step %d: %s of %s: Way says %v, Ways %v", step, f, owner, one, found[f])
			}
			checkWay(t, f, one)
		}
		if len(found)+checked != snap.Frontends.Len() {
			t.Fatalf("step %d: %d ways, %d frontends", step, len(found), snap.Frontends.Len())
		}
		given += checked
	}
	if given == 0 {
		t.Error("no host port was a health check's in all this")
	}
	for k := AtClusterIP; k <= AtHostPort; k++ {
		if kinds[k] == 0 {
			t.Errorf("no %s in all this", k)
		}
	}
	if disputed == 0 {
		t.Error("no dispute in all this")
	}
}

// checkWay holds a way against what its Service's object says.
func checkWay(t *testing.T, f Frontend, w Way) {
	t.Helper()
	x := w.Service.Exposure
	external := w.Kind == AtBalancer || w.Kind == AtExternalIP || w.Kind == AtNodePort
	for _, bad := range []bool{
		w.Inside == Here && (w.Kind != AtClusterIP || !w.Service.LocalOnly),
		w.Outside == Here && w.Kind == AtClusterIP && !w.Service.LocalOnly,
		w.Outside == Here && external && (x == nil || !x.LocalOnly),
		w.Outside == Everywhere && external && x != nil && x.LocalOnly,
		w.Kind == AtLeaving && (w.Inside == Here || w.Outside == Here),
		w.Guarded != (w.Kind == AtBalancer && len(x.SourceRanges) > 0),
		slices.ContainsFunc(w.Ranges, func(p netip.Prefix) bool { return p.Addr().Is4() != f.Addr.Is4() }),
		(w.Kind == AtNodePort) != f.IsNodePort(),
		(w.Kind == AtHostPort) != f.Host,
		f.Host && (w.Service.Pod == nil || w.Inside == Here || w.Outside == Here),
	} {
		if bad {
			t.Fatalf("%s: %+v of\n%s", f, w, w.Service)
		}
	}
}

// Which endpoints may be chosen, by their conditions, places and hints, as this node (n1, zone a) sees them.
func TestChoose(t *testing.T) {
	const (
		noLocal    = "drop: the Service's traffic policy is Local, and none of its endpoints here is ready"
		noneReady  = "reject: none of the Service's endpoints is ready"
		noEndpoint = "reject: the Service has no endpoint"
		unknown    = "reject: the Service's endpoints are not known yet"
	)
	for _, tt := range []struct {
		name string
		// An endpoint is NUMBER STATE NODE ZONES NODES; "-" is nothing.
		endpoints        string
		everywhere, here string
	}{
		{"none", "", noEndpoint, noEndpoint},
		{"ready", "1 ready n1 - -, 2 ready n2 - -", "1 2", "1"},
		{"ready elsewhere", "2 ready n2 - -", "2", noLocal},
		{"not ready", "1 notready n1 - -, 2 dying n2 - -", noneReady, noneReady},
		{"a ready one before those that drain", "1 draining n1 - -, 2 ready n2 - -", "2", "1"},
		{"only those that drain", "1 draining n1 - -, 2 draining n2 - -, 3 dying n1 - -, 4 notready n1 - -", "1 2", "1"},
		{"draining elsewhere", "1 dying n1 - -, 2 draining n2 - -", "2", noLocal},
		{"ready because published", "1 published n1 - -, 2 ready n2 - -", "1 2", "1"},
		{"zones", "1 ready n1 b -, 2 ready n2 a -, 3 ready n3 a+b -", "2 3", "1"},
		{"zones, one endpoint without", "1 ready n1 b -, 2 ready n2 a -, 3 ready n3 - -", "1 2 3", "1"},
		{"zones, one with nodes only", "2 ready n2 a -, 3 ready n3 - n3", "2 3", noLocal},
		{"zones, none for mine", "2 ready n2 b -, 3 ready n3 c -", "2 3", noLocal},
		{"zones, mine not ready", "2 notready n2 a -, 3 ready n3 b -", "3", noLocal},
		{"zones, one without but not ready", "2 ready n2 a -, 3 ready n3 b -, 4 notready n3 - -, 5 draining n3 - -", "2", noLocal},
		{"zones, nobody ready", "2 draining n2 a -, 3 draining n3 b -", "2 3", noLocal},
		{"nodes before zones", "1 ready n1 b n1, 2 ready n2 a n2, 3 ready n3 b n1+n3", "1 3", "1"},
		{"nodes, none for me", "2 ready n2 a n2, 3 ready n3 b n3", "2", noLocal},
		{"nodes, none for me, no zones", "2 ready n2 - n2, 3 ready n3 - n3", "2 3", noLocal},
		{"nodes, one without", "1 ready n1 a n1, 2 ready n2 a -, 3 ready n3 b n3", "1 2", "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := NewBuilder(Config{Self: "n1"})
			b.SetNode(Node{Name: "n1", Zone: "a"})
			port := []Port{{Protocol: TCP, Port: 80}}
			name := Name{"x", "s"}
			b.SetService(ServiceSpec{Name: name, ClusterIPs: addrsOf("10.96.0.1 fd00:96::1"), Ports: port})
			sl := Slice{Name: name, Service: "s", Ports: port}
			for _, e := range strings.Split(tt.endpoints, ",") {
				if w := strings.Fields(e); len(w) > 0 {
					sl.Endpoints = append(sl.Endpoints, chooseEndpoint(w))
				}
			}
			snap := b.Build()
			svc, _ := snap.Services.Get(name)
			if c := snap.Choose(svc, 0, true, Everywhere); c.Action.String()+": "+c.Why != unknown {
				t.Errorf("before there is a slice: %v", c)
			}
			b.SetSlice(sl)
			snap = b.Build()
			svc, _ = snap.Services.Get(name)
			for scope, want := range map[Scope]string{Everywhere: tt.everywhere, Here: tt.here} {
				c := snap.Choose(svc, 0, true, scope)
				got := c.Action.String() + ": " + c.Why
				if c.Action == Forward {
					var ends []string
					for _, b := range c.Candidates {
						ends = append(ends, strings.TrimPrefix(b.Addr.String(), "10.0.0."))
					}
					got = strings.Join(ends, " ")
				}
				if got != want {
					t.Errorf("scope %d: %s, want %s", scope, got, want)
				}
			}
			if c := snap.Choose(svc, 0, false, Everywhere); c.Action != Reject || len(c.Candidates) > 0 {
				t.Errorf("endpoints of one family serve the other: %v", c)
			}
		})
	}
}

func chooseEndpoint(w []string) Endpoint {
	e := Endpoint{Addr: addr("10.0.0." + w[0]), Node: w[2]}
	switch w[1] {
	case "ready":
		e.Ready, e.Serving = true, true
	case "draining":
		e.Serving, e.Terminating = true, true
	case "dying":
		e.Terminating = true
	case "published":
		e.Ready = true
	}
	if w[3] != "-" || w[4] != "-" {
		e.Hints = &Hints{}
	}
	if w[3] != "-" {
		e.Hints.Zones = strings.Split(w[3], "+")
	}
	if w[4] != "-" {
		e.Hints.Nodes = strings.Split(w[4], "+")
	}
	return e
}

// Hints are for a node and its zone: without a zone those of zones are for nobody, and without a node none is.
func TestHintsWithoutNodeOrZone(t *testing.T) {
	b := NewBuilder(Config{Self: "n1"})
	port := []Port{{Protocol: TCP, Port: 80}}
	b.SetService(ServiceSpec{Name: Name{"x", "s"}, ClusterIPs: addrsOf("10.96.0.1"), Ports: port})
	b.SetSlice(Slice{Name: Name{"x", "s"}, Service: "s", Ports: port, Endpoints: []Endpoint{
		chooseEndpoint(strings.Fields("1 ready n1 a n1")), chooseEndpoint(strings.Fields("2 ready n2 b n2"))}})
	count := func() int {
		snap := b.Build()
		svc, _ := snap.Services.Get(Name{"x", "s"})
		return len(snap.Choose(svc, 0, true, Everywhere).Candidates)
	}
	if n := count(); n != 2 {
		t.Errorf("%d candidates for a node that is not known", n)
	}
	b.SetNode(Node{Name: "n1"})
	if n := count(); n != 1 {
		t.Errorf("%d candidates for a node without zone, want the one meant for the node", n)
	}
	b.SetSlice(Slice{Name: Name{"x", "s"}, Service: "s", Ports: port, Endpoints: []Endpoint{
		chooseEndpoint(strings.Fields("1 ready n1 a -")), chooseEndpoint(strings.Fields("2 ready n2 b -"))}})
	if n := count(); n != 2 {
		t.Errorf("%d candidates by zones for a node without one", n)
	}
}

// An endpoint leaves when its own pod here is told to end, in whatever order the node hears of pod, slice and Service; and when that has ended or is
// gone, until slices say so too or the address is another pod's.
func TestLeaving(t *testing.T) {
	port := []Port{{Name: "http", Protocol: TCP, Port: 80}}
	pod, svc := Name{"x", "p"}, Name{"x", "s"}
	slice := func(node string, of Name) Slice {
		return Slice{Name: svc, Service: "s", Ports: port, Endpoints: []Endpoint{{Addr: addr("10.0.0.1"), Node: node, Pod: of, Ready: true, Serving: true}}}
	}
	for _, tt := range []struct {
		name        string
		pod         Pod
		slice       Slice
		publish     bool
		leaving     bool
		wantedState string
	}{
		{"told to end", Pod{Name: pod, Addrs: addrsOf("10.0.0.1"), Terminating: true}, slice("n1", pod), false, true, "terminating, serving"},
		{"told to end, published", Pod{Name: pod, Addrs: addrsOf("10.0.0.1"), Terminating: true}, slice("n1", pod), true, true, "ready"},
		{"not told", Pod{Name: pod, Addrs: addrsOf("10.0.0.1")}, slice("n1", pod), false, false, "ready"},
		{"second address", Pod{Name: pod, Addrs: addrsOf("fd00::1 10.0.0.1"), Terminating: true}, slice("n1", pod), false, true, "terminating, serving"},
		{"another address", Pod{Name: pod, Addrs: addrsOf("10.0.0.2"), Terminating: true}, slice("n1", pod), false, false, "ready"},
		{"another pod with the address", Pod{Name: pod, Addrs: addrsOf("10.0.0.1"), Terminating: true}, slice("n1", Name{"x", "q"}), false, false, "ready"},
		{"an address of the node", Pod{Name: pod, Addrs: addrsOf("10.0.0.2"), HostNetwork: true}, slice("n1", pod), false, false, "ready"},
		{"told to end, at the node's own address", Pod{Name: pod, Addrs: addrsOf("10.0.0.1"), HostNetwork: true, Terminating: true}, slice("n1", pod), false, false, "terminating, serving"},
		{"no pod", Pod{Name: pod, Addrs: addrsOf("10.0.0.1"), Terminating: true}, slice("n1", Name{}), false, false, "ready"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			events := []func(*Builder){
				func(b *Builder) { b.SetPod(tt.pod) },
				func(b *Builder) { b.SetSlice(tt.slice) },
				func(b *Builder) {
					b.SetService(ServiceSpec{Name: svc, ClusterIPs: addrsOf("10.96.0.1"), Ports: port, PublishNotReady: tt.publish})
				},
			}
			for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
				b := NewBuilder(Config{Self: "n1", PassOn: true})
				for _, i := range order {
					events[i](b)
					b.Build()
				}
				check := func(when string, leaving bool, state string) {
					t.Helper()
					snap := b.Build()
					s, _ := snap.Services.Get(svc)
					if e := s.Endpoints[0]; e.Leaving != leaving || e.State() != state {
						t.Errorf("order %v, %s: leaving %t, %s; want %t, %s", order, when, e.Leaving, e.State(), leaving, state)
					}
					if _, ok := snap.Frontends.Get(Frontend{Addr: addr("10.0.0.1"), Protocol: TCP, Port: 80}); ok != leaving {
						t.Errorf("order %v, %s: its address is a frontend: %t", order, when, ok)
					}
				}
				check("at first", tt.leaving, tt.wantedState)
				ended, gone := tt.pod, "ready"
				ended.Addrs = nil
				its := slices.Contains(tt.pod.Addrs, addr("10.0.0.1")) && tt.slice.Endpoints[0].Pod == pod && !tt.pod.HostNetwork
				if its {
					gone = "terminating"
				}
				b.SetPod(ended)
				check("when the pod has ended", its, gone)
				b.DeletePod(pod)
				check("when the pod is gone", its, gone)
				b.SetPod(Pod{Name: Name{"x", "next"}, Addrs: addrsOf("10.0.0.1")})
				check("when another one has its address", false, "ready")
				b.DeletePod(Name{"x", "next"})
				check("when that one is gone", false, "ready")
				b.SetPod(tt.pod)
				check("when it is back", tt.leaving, tt.wantedState)
				b.DeletePod(pod)
				check("when it is gone again", its, gone)
				empty := tt.slice
				empty.Endpoints = nil
				b.SetSlice(empty)
				b.Build()
				b.SetSlice(tt.slice)
				check("when slices had forgotten it a moment ago", its, gone)
				b.SetSlice(empty)
				for b.Build(); b.Lingers(); b.Build() {
					b.Tick()
				}
				b.SetSlice(tt.slice)
				check("when slices had forgotten it", false, "ready")
			}
		})
	}
}

// Without being asked to, a node takes over nothing at an endpoint's own address.
func TestLeavingIsNoFrontendUnlessAsked(t *testing.T) {
	b := NewBuilder(Config{Self: "n1"})
	port := []Port{{Protocol: TCP, Port: 80}}
	b.SetPod(Pod{Name: Name{"x", "p"}, Addrs: addrsOf("10.0.0.1"), Terminating: true})
	b.SetService(ServiceSpec{Name: Name{"x", "s"}, ClusterIPs: addrsOf("10.96.0.1"), Ports: port})
	b.SetSlice(Slice{Name: Name{"x", "s"}, Service: "s", Ports: port, Endpoints: []Endpoint{{Addr: addr("10.0.0.1"), Node: "n1", Pod: Name{"x", "p"}, Ready: true}}})
	if n := b.Build().Frontends.Len(); n != 1 {
		t.Errorf("%d frontends, want the ClusterIP's", n)
	}
}

// TestDNSOfOtherNodes: while the agent's own socket is closed, questions to the cluster DNS go to the other nodes, also by a Service that prefers the same node,
// as that of a cluster does; its other ports follow the hints.
func TestDNSOfOtherNodes(t *testing.T) {
	for _, tt := range []struct{ name, nodes, dns, other string }{
		{"no hints", "", "172.30.0.12:53 172.30.0.13:53", "172.30.0.11:9153 172.30.0.12:9153 172.30.0.13:9153"},
		{"the same node", "n1 n2 n3", "172.30.0.12:53 172.30.0.13:53", "172.30.0.11:9153"},
		{"a node for others", "n1 n1 n3", "172.30.0.12:53", "172.30.0.11:9153 172.30.0.12:9153"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := NewBuilder(Config{Self: "n1", DNS: addrsOf("10.96.0.10")})
			b.SetNode(Node{Name: "n1", Addrs: addrsOf("172.30.0.11")})
			ports := []Port{{Name: "dns", Protocol: UDP, Port: 53}, {Name: "dns-tcp", Protocol: TCP, Port: 53}, {Name: "metrics", Protocol: TCP, Port: 9153}}
			name := Name{"kube-system", "kube-dns"}
			b.SetService(ServiceSpec{Name: name, ClusterIPs: addrsOf("10.96.0.10"), Ports: ports})
			sl := Slice{Name: name, Service: name.Name, Ports: ports}
			for i, a := range addrsOf("172.30.0.11 172.30.0.12 172.30.0.13") {
				e := Endpoint{Addr: a, Node: fmt.Sprintf("n%d", i+1), Ready: true, Serving: true}
				if hints := strings.Fields(tt.nodes); len(hints) > 0 {
					e.Hints = &Hints{Nodes: hints[i : i+1]}
				}
				sl.Endpoints = append(sl.Endpoints, e)
			}
			b.SetSlice(sl)
			snap := b.Build()
			svc, _ := snap.Services.Get(name)
			for i, want := range []string{tt.dns, tt.dns, tt.other} {
				c := snap.Choose(svc, i, true, Everywhere)
				var got []string
				for _, c := range c.Candidates {
					got = append(got, c.AddrPort().String())
				}
				if strings.Join(got, " ") != want || c.Action != Forward {
					t.Errorf("%s: %v to %v, want %s", ports[i].Name, c.Action, got, want)
				}
			}
		})
	}
}
