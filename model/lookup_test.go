// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// lookupWorld is small and has every kind of Service once.
func lookupWorld() *Snapshot {
	b := NewBuilder("n1", []netip.Addr{addr("10.96.0.10"), addr("fd00:96::a")})
	for i := range 3 {
		b.SetNode(Node{Name: fmt.Sprintf("n%d", i+1), Ready: true,
			Addrs:    []netip.Addr{addr(fmt.Sprintf("172.30.0.1%d", i+1)), addr(fmt.Sprintf("fd00:30::1%d", i+1))},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", i))}})
	}
	service := func(name string, vips []string, port Port, eps ...Endpoint) {
		spec := ServiceSpec{Name: Name{"shop", name}, Ports: []Port{port}}
		for _, v := range vips {
			spec.ClusterIPs = append(spec.ClusterIPs, addr(v))
		}
		if len(vips) == 0 {
			spec.Type = Headless
		}
		b.SetService(spec)
		target := port
		target.Port += 8000
		b.SetSlice(Slice{Name: Name{"shop", name + "-1"}, Service: name, Ports: []Port{target}, Endpoints: eps})
	}
	ep := func(a, node, state string) Endpoint {
		e := Endpoint{Addr: addr(a), Node: node}
		e.Ready, e.Serving, e.Terminating = state == "ready", state == "ready" || state == "draining", state == "draining" || state == "dying"
		return e
	}
	http := Port{Name: "http", Protocol: TCP, Port: 80}
	service("orders", []string{"10.96.1.1", "fd00:96::1:1"}, http, ep("10.244.0.5", "n1", "ready"), ep("10.244.1.5", "n2", "ready"),
		ep("10.244.2.5", "n3", ""), ep("10.244.2.6", "n3", "draining"), ep("fd00:244:0:1::5", "n2", "ready"))
	service("draining", []string{"10.96.1.2"}, http, ep("10.244.0.6", "n1", "draining"), ep("10.244.1.6", "n2", "dying"))
	service("sick", []string{"10.96.1.3"}, http, ep("10.244.0.7", "n1", ""))
	service("empty", []string{"10.96.1.4"}, http)
	service("ticker", []string{"10.96.1.5"}, Port{Name: "tick", Protocol: UDP, Port: 80}, ep("10.244.1.8", "n2", "ready"))
	service("headless", nil, http, ep("10.244.1.9", "n2", "ready"))
	dns := Port{Name: "dns", Protocol: UDP, Port: 53}
	service("kube-dns", []string{"10.96.0.10", "fd00:96::a"}, dns, ep("172.30.0.11", "n1", "ready"), ep("172.30.0.12", "n2", "ready"))
	b.SetService(ServiceSpec{Name: Name{"shop", "new"}, ClusterIPs: []netip.Addr{addr("10.96.1.6")}, Ports: []Port{http}})
	// A second Service claims the address of orders; the first by name has it.
	b.SetService(ServiceSpec{Name: Name{"shop", "thief"}, ClusterIPs: []netip.Addr{addr("10.96.1.1")}, Ports: []Port{{Name: "x", Protocol: TCP, Port: 99}}})
	return b.Build()
}

func TestLookup(t *testing.T) {
	snap := lookupWorld()
	seen := map[Action]bool{}
	for _, tt := range []struct {
		proto    Protocol
		dst      string
		want     string
		backends string
	}{
		{TCP, "10.96.1.1:80", "forward: a Service's address and port", "10.244.0.5:8080 10.244.1.5:8080"},
		{TCP, "[fd00:96::1:1]:80", "forward: a Service's address and port", "[fd00:244:0:1::5]:8080"},
		{UDP, "10.96.1.1:80", "reject: the Service has no such port", ""},
		{TCP, "10.96.1.1:81", "reject: the Service has no such port", ""},
		{TCP, "10.96.1.1:99", "reject: the Service has no such port", ""},
		{SCTP, "10.96.1.1:80", "reject: the Service has no such port", ""},
		{TCP, "10.96.1.2:80", "forward: a Service's address and port", "10.244.0.6:8080"},
		{TCP, "10.96.1.3:80", "reject: none of the Service's endpoints is ready", ""},
		{TCP, "10.96.1.4:80", "reject: the Service has no endpoint", ""},
		{UDP, "10.96.1.5:80", "forward: a Service's address and port", "10.244.1.8:8080"},
		{TCP, "10.96.1.6:80", "reject: the Service's endpoints are not known yet", ""},
		{TCP, "10.96.1.7:80", "pass: the destination is no Service's address", ""},
		{TCP, "10.244.1.9:80", "pass: the destination is no Service's address", ""},
		{UDP, "10.96.0.10:53", "local: cluster DNS is answered on this node", "172.30.0.12:8053"},
		{UDP, "[fd00:96::a]:53", "local: cluster DNS is answered on this node", ""},
		{UDP, "10.96.0.10:54", "reject: the Service has no such port", ""},
	} {
		v := snap.Lookup(Packet{Protocol: tt.proto, Src: netip.MustParseAddrPort("10.244.0.2:40000"), Dst: netip.MustParseAddrPort(tt.dst)})
		var backends []string
		for _, b := range v.Candidates {
			backends = append(backends, b.AddrPort().String())
		}
		if got := v.Action.String() + ": " + v.Why; got != tt.want || strings.Join(backends, " ") != tt.backends {
			t.Errorf("%s %s: %s %v\nwant %s %s", tt.proto, tt.dst, got, backends, tt.want, tt.backends)
		}
		seen[v.Action] = true
	}
	if len(seen) != 4 {
		t.Errorf("the table covers the actions %v, not all", seen)
	}
}

func TestMasquerade(t *testing.T) {
	snap := lookupWorld()
	for _, tt := range []struct {
		src, dst string
		want     bool
	}{
		{"10.244.0.5", "10.244.0.5", true},        // itself through a Service
		{"10.244.0.5", "10.244.0.6", false},       // a pod of the same node
		{"10.244.0.5", "10.244.2.6", false},       // a pod of another node
		{"10.244.0.5", "172.30.0.12", false},      // a node
		{"10.244.0.5", "172.30.0.1", true},        // outside the cluster
		{"10.244.1.5", "172.30.0.1", false},       // another node's pod is that node's to masquerade
		{"172.30.0.11", "203.0.113.5", false},     // the node itself
		{"fd00:244::5", "fd00:244:0:1::5", false}, // IPv6, inside
		{"fd00:244::5", "2001:db8::1", true},      // IPv6, outside
		{"fd00:244:0:1::5", "2001:db8::1", false}, // IPv6, not of this node
		{"fd00:244:0:1::5", "fd00:244:0:1::5", true},
	} {
		if got, why := snap.Masquerade(addr(tt.src), addr(tt.dst)); got != tt.want || why == "" {
			t.Errorf("%s to %s: %t (%s), want %t", tt.src, tt.dst, got, why, tt.want)
		}
	}
	if masq, _ := NewBuilder("n1", nil).Build().Masquerade(addr("10.244.0.5"), addr("10.9.9.9")); masq {
		t.Error("a node that is not known yet masquerades")
	}
}

func TestSnapshotString(t *testing.T) {
	text := lookupWorld().String()
	for _, want := range []string{
		"node n2 addrs [172.30.0.12 fd00:30::12] podcidrs [10.244.1.0/24 fd00:244:0:1::/64] ready true\n",
		"service shop/orders ClusterIP 10.96.1.1 fd00:96::1:1\n  port \"http\" TCP 80\n    10.244.0.5:8080 ready node n1\n",
		"    10.244.2.6:8080 terminating, serving node n3\n",
		"service shop/new ClusterIP 10.96.1.6 (no slice yet)\n",
		"service shop/headless Headless\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the dump lacks %q:\n%s", want, text)
		}
	}
}

func TestParseProtocol(t *testing.T) {
	for _, p := range []Protocol{TCP, UDP, SCTP} {
		if got, ok := ParseProtocol(p.String()); !ok || got != p {
			t.Errorf("ParseProtocol(%q) = %v, %t", p, got, ok)
		}
	}
	if p, ok := ParseProtocol(""); !ok || p != TCP {
		t.Error("the empty protocol is not TCP")
	}
	if _, ok := ParseProtocol("tcp"); ok {
		t.Error("protocols are written in capitals in the API")
	}
	if Protocol(99).String() != "99" {
		t.Error("an unknown protocol prints as its number")
	}
}
