// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func hostPod(name string, created int64, addrs string, ports ...HostPort) Pod {
	return Pod{Name: Name{"x", name}, Created: time.Unix(created, 0), Addrs: addrsOf(addrs), HostPorts: ports}
}

// owners is who has a host port: at each family's every address, and at one.
func owners(s *Snapshot, proto Protocol, port uint16, at netip.Addr) (who []string) {
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified(), at} {
		n := "-"
		if w, ok := s.Way(Frontend{Addr: a, Protocol: proto, Port: port, Host: true}); ok {
			n = strings.TrimPrefix(w.Service.Name.String(), "x/pod/")
		}
		who = append(who, n)
	}
	return who
}

// A pod's host ports are there while it has an address and has not ended, in the families in which it has one, whatever else is so of it.
func TestHostPortsFollowThePod(t *testing.T) {
	port := HostPort{Protocol: UDP, Port: 53, Target: 5353}
	node := addr("172.30.0.11")
	for _, tt := range []struct {
		name string
		pod  Pod
		want string
	}{
		{"both families", hostPod("p", 0, "10.0.0.1 fd00::1", port), "p p -"},
		{"one family", hostPod("p", 0, "fd00::1", port), "- p -"},
		{"no address yet", hostPod("p", 0, "", port), "- - -"},
		{"no host port", hostPod("p", 0, "10.0.0.1"), "- - -"},
		{"of the node's network", Pod{Name: Name{"x", "p"}, Addrs: addrsOf("172.30.0.11"), HostNetwork: true, HostPorts: []HostPort{port}}, "- - -"},
		{"told to end", Pod{Name: Name{"x", "p"}, Addrs: addrsOf("10.0.0.1"), Terminating: true, HostPorts: []HostPort{port}}, "p - -"},
		{"all of IPv4", hostPod("p", 0, "10.0.0.1 fd00::1", HostPort{Addr: netip.IPv4Unspecified(), Protocol: UDP, Port: 53, Target: 1}), "p - -"},
		{"all of IPv6", hostPod("p", 0, "10.0.0.1 fd00::1", HostPort{Addr: netip.IPv6Unspecified(), Protocol: UDP, Port: 53, Target: 1}), "- p -"},
		{"one address", hostPod("p", 0, "10.0.0.1 fd00::1", HostPort{Addr: node, Protocol: UDP, Port: 53, Target: 1}), "- - p"},
		{"an address of the other family", hostPod("p", 0, "fd00::1", HostPort{Addr: node, Protocol: UDP, Port: 53, Target: 1}), "- - -"},
		{"twice the same", hostPod("p", 0, "10.0.0.1 fd00::1", port, port), "p p -"},
	} {
		b := NewBuilder(Config{Self: "n1"})
		empty := b.Build()
		b.SetPod(tt.pod)
		snap := b.Build()
		if got := strings.Join(owners(snap, UDP, 53, node), " "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
		b.SetPod(tt.pod)
		if b.Build() != snap {
			t.Errorf("%s: the same again is another snapshot", tt.name)
		}
		ended := tt.pod
		ended.Addrs = nil
		for _, end := range []func(){func() { b.SetPod(ended) }, func() { b.DeletePod(tt.pod.Name) }} {
			b.SetPod(tt.pod)
			b.Build()
			end()
			if s := b.Build(); s.Frontends.Len() != empty.Frontends.Len() || s.HostPorts.Len() != 0 {
				t.Errorf("%s: when it is gone, %d frontends and %d pods with host ports are left", tt.name, s.Frontends.Len(), s.HostPorts.Len())
			}
		}
	}
}

// Where the pod network is another's, or nobody asks, there is nothing about host ports in a snapshot.
func TestHostPortsOfOthers(t *testing.T) {
	b := NewBuilder(Config{Self: "n1", Left: Network})
	b.SetPod(hostPod("p", 0, "10.0.0.1", HostPort{Protocol: TCP, Port: 80, Target: 80}))
	if s := b.Build(); s.HostPorts.Len() != 0 || s.Frontends.Len() != 0 {
		t.Errorf("%d pods with host ports, %d frontends", s.HostPorts.Len(), s.Frontends.Len())
	}
}

// Of pods that ask for one port, the oldest has it, then the first by name, in whatever order they come; and when it goes, the next.
func TestHostPortDisputes(t *testing.T) {
	order := []Pod{
		hostPod("z", 1, "10.0.0.1", HostPort{Protocol: TCP, Port: 80, Target: 1}),
		hostPod("a", 2, "10.0.0.2", HostPort{Protocol: TCP, Port: 80, Target: 2}),
		hostPod("b", 2, "10.0.0.3", HostPort{Protocol: TCP, Port: 80, Target: 3}, HostPort{Protocol: TCP, Port: 80, Target: 4}),
		hostPod("c", 3, "10.0.0.4", HostPort{Addr: netip.IPv4Unspecified(), Protocol: TCP, Port: 80, Target: 5}),
	}
	r := seeded(t)
	for range 200 {
		b := NewBuilder(Config{Self: "n1"})
		for _, i := range r.Perm(len(order)) {
			b.SetPod(order[i])
			if r.IntN(2) == 0 {
				b.Build()
			}
		}
		left := slices.Clone(order)
		for len(left) > 0 {
			snap := b.Build()
			w, ok := snap.Way(Frontend{Addr: netip.IPv4Unspecified(), Protocol: TCP, Port: 80, Host: true})
			if !ok || w.Service.Pod.Name != left[0].Name || w.Kind != AtHostPort || w.Service.Backends[w.Port][0].Port != left[0].HostPorts[0].Target {
				t.Fatalf("of %v, %+v has it", left, w)
			}
			i := r.IntN(len(left))
			b.DeletePod(left[i].Name)
			left = slices.Delete(left, i, i+1)
		}
		if n := b.Build().Frontends.Len(); n != 0 {
			t.Fatalf("%d frontends are left", n)
		}
	}
}

// Rivals name who has what instead, and nobody else.
func TestRivals(t *testing.T) {
	b := NewBuilder(Config{Self: "n1", NodePortAddrs: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16")},
		OwnPorts: []Port{{Name: "healthz", Protocol: TCP, Port: 10256}}})
	node := addr("172.30.0.11")
	b.SetNode(Node{Name: "n1", Addrs: []netip.Addr{node}})
	b.SetService(ServiceSpec{Name: Name{"x", "web"}, ClusterIPs: addrsOf("10.96.0.1"), Ports: []Port{{Name: "a", Protocol: TCP, Port: 80, NodePort: 30080}},
		Exposure: &Exposure{ExternalIPs: []netip.Addr{node}}})
	b.SetPod(hostPod("old", 1, "10.0.0.1", HostPort{Protocol: TCP, Port: 8080, Target: 1}, HostPort{Addr: node, Protocol: TCP, Port: 8081, Target: 1}))
	for _, tt := range []struct {
		port HostPort
		want []string
	}{
		{HostPort{Protocol: TCP, Port: 8080, Target: 2}, []string{"hostport4:8080/TCP x/pod/old"}},
		{HostPort{Protocol: UDP, Port: 8080, Target: 2}, nil},
		{HostPort{Addr: node, Protocol: TCP, Port: 8080, Target: 2}, nil}, // it comes before the other's, at this address
		{HostPort{Protocol: TCP, Port: 8081, Target: 2}, []string{"hostport:172.30.0.11:8081/TCP x/pod/old"}},
		{HostPort{Addr: node, Protocol: TCP, Port: 8081, Target: 2}, []string{"hostport:172.30.0.11:8081/TCP x/pod/old"}},
		{HostPort{Addr: addr("172.30.0.12"), Protocol: TCP, Port: 8081, Target: 2}, nil},
		{HostPort{Protocol: TCP, Port: 80, Target: 2}, []string{"172.30.0.11:80/TCP x/web"}},
		{HostPort{Addr: node, Protocol: TCP, Port: 80, Target: 2}, []string{"172.30.0.11:80/TCP x/web"}},
		{HostPort{Protocol: TCP, Port: 30080, Target: 2}, []string{"nodeport4:30080/TCP x/web"}},
		{HostPort{Addr: node, Protocol: TCP, Port: 30080, Target: 2}, []string{"nodeport4:30080/TCP x/web"}},
		{HostPort{Addr: addr("192.0.2.1"), Protocol: TCP, Port: 30080, Target: 2}, nil}, // where node ports are not served
		{HostPort{Protocol: TCP, Port: 10256, Target: 2}, []string{"hostport4:10256/TCP this node's agent (healthz)"}},
		{HostPort{Addr: addr("127.0.0.1"), Protocol: TCP, Port: 10256, Target: 2}, []string{"hostport:127.0.0.1:10256/TCP this node's agent (healthz)"}},
		{HostPort{Protocol: UDP, Port: 10256, Target: 2}, nil},
	} {
		b.SetPod(hostPod("new", 2, "10.0.0.2", tt.port))
		snap := b.Build()
		svc, _ := snap.HostPorts.Get(Name{"x", "pod/new"})
		var got []string
		for _, r := range snap.Rivals(svc) {
			got = append(got, fmt.Sprintf("%s %s", r.At, r.By))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.port, got, tt.want)
		}
	}
	old, _ := b.Build().HostPorts.Get(Name{"x", "pod/old"})
	if r := b.Build().Rivals(old); len(r) > 0 {
		t.Errorf("the older one: %v", r)
	}
}

// A port at which the agent answers a Service's health checks is the agent's, at every address, for as long as there is such a Service.
func TestHealthPortsComeFirst(t *testing.T) {
	b := NewBuilder(Config{Self: "n1"})
	at := addr("192.0.2.1")
	b.SetPod(hostPod("p", 0, "10.0.0.1 fd00::1", HostPort{Protocol: TCP, Port: 32000, Target: 1}, HostPort{Addr: at, Protocol: TCP, Port: 32000, Target: 1},
		HostPort{Protocol: UDP, Port: 32000, Target: 1}))
	spec := func(name string) ServiceSpec {
		return ServiceSpec{Name: Name{"x", name}, ClusterIPs: addrsOf("10.96.0.1"), Exposure: &Exposure{HealthPort: 32000}}
	}
	unproxied := spec("other")
	unproxied.Unproxied = true
	for _, step := range []struct {
		what string
		do   func()
		tcp  string
		who  []string
	}{
		{"at first", func() {}, "[p p p]", nil},
		{"with a Service", func() { b.SetService(spec("b")) }, "[- - -]", []string{"x/b", "x/b", "x/b"}},
		{"with another one", func() { b.SetService(spec("a")) }, "[- - -]", []string{"x/a", "x/a", "x/a"}},
		{"when the first is gone", func() { b.DeleteService(Name{"x", "b"}) }, "[- - -]", []string{"x/a", "x/a", "x/a"}},
		{"when both are", func() { b.DeleteService(Name{"x", "a"}) }, "[p p p]", nil},
		{"with one that another proxy carries", func() { b.SetService(unproxied) }, "[p p p]", nil},
	} {
		step.do()
		snap := b.Build()
		svc, _ := snap.HostPorts.Get(Name{"x", "pod/p"})
		var who []string
		for _, r := range snap.Rivals(svc) {
			who = append(who, strings.TrimSuffix(strings.TrimPrefix(r.By, "this node's agent (health checks of "), ")"))
		}
		if got := fmt.Sprint(owners(snap, TCP, 32000, at)); got != step.tcp || !slices.Equal(who, step.who) {
			t.Errorf("%s: %s, %q; want %s, %q", step.what, got, who, step.tcp, step.who)
		}
		if got := fmt.Sprint(owners(snap, UDP, 32000, at)); got != "[p p -]" {
			t.Errorf("%s, UDP: %s", step.what, got)
		}
	}
}

// The agent's own ports are given to nobody, at no address.
func TestOwnPortsAreNobodys(t *testing.T) {
	b := NewBuilder(Config{Self: "n1", OwnPorts: []Port{{Name: "DNS", Protocol: UDP, Port: 53}}})
	at := addr("192.0.2.1")
	b.SetPod(hostPod("p", 0, "10.0.0.1 fd00::1", HostPort{Protocol: UDP, Port: 53, Target: 53}, HostPort{Addr: at, Protocol: UDP, Port: 53, Target: 53},
		HostPort{Protocol: TCP, Port: 53, Target: 53}))
	snap := b.Build()
	if got := fmt.Sprint(owners(snap, UDP, 53, at), owners(snap, TCP, 53, at)); got != "[- - -] [p p -]" {
		t.Error(got)
	}
}
