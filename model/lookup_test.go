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
	b := NewBuilder(Config{Self: "n1", DNS: []netip.Addr{addr("10.96.0.10"), addr("fd00:96::a")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.1.8/29"), netip.MustParsePrefix("10.96.9.0/24")}})
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
	// A second Service claims the address of orders; the first by name has it, but for ports of the other's own.
	b.SetService(ServiceSpec{Name: Name{"shop", "thief"}, ClusterIPs: []netip.Addr{addr("10.96.1.1")}, Ports: []Port{{Name: "x", Protocol: TCP, Port: 99}}})
	b.SetService(ServiceSpec{Name: Name{"shop", "picky"}, ClusterIPs: []netip.Addr{addr("10.96.1.8")}, Ports: []Port{http}, LocalOnly: true})
	b.SetSlice(Slice{Name: Name{"shop", "picky-1"}, Service: "picky", Ports: []Port{http}, Endpoints: []Endpoint{ep("10.244.1.5", "n2", "ready")}})
	b.SetService(ServiceSpec{Name: Name{"shop", "foreign"}, ClusterIPs: []netip.Addr{addr("10.96.1.9")}, Ports: []Port{http}, Unproxied: true})
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
		{TCP, "10.96.1.1:80", "forward: a Service's ClusterIP and port", "10.244.0.5:8080 10.244.1.5:8080"},
		{TCP, "[fd00:96::1:1]:80", "forward: a Service's ClusterIP and port", "[fd00:244:0:1::5]:8080"},
		{UDP, "10.96.1.1:80", "reject: the Service has no such port", ""},
		{TCP, "10.96.1.1:81", "reject: the Service has no such port", ""},
		{TCP, "10.96.1.1:99", "reject: the Service's endpoints are not known yet", ""}, // the other claimant's own port
		{SCTP, "10.96.1.1:80", "reject: the Service has no such port", ""},
		{TCP, "10.96.1.2:80", "forward: a Service's ClusterIP and port", "10.244.0.6:8080"},
		{TCP, "10.96.1.3:80", "reject: none of the Service's endpoints is ready", ""},
		{TCP, "10.96.1.4:80", "reject: the Service has no endpoint", ""},
		{UDP, "10.96.1.5:80", "forward: a Service's ClusterIP and port", "10.244.1.8:8080"},
		{TCP, "10.96.1.6:80", "reject: the Service's endpoints are not known yet", ""},
		{TCP, "10.96.1.7:80", "pass: the destination is no Service's address", ""},
		{TCP, "10.244.1.9:80", "pass: the destination is no Service's address", ""},
		{UDP, "10.96.0.10:53", "local: cluster DNS is answered on this node", "172.30.0.12:8053"},
		{UDP, "[fd00:96::a]:53", "local: cluster DNS is answered on this node", ""},
		{TCP, "10.96.1.8:80", "drop: the Service's traffic policy is Local, and none of its endpoints here is ready", ""},
		{TCP, "10.96.1.9:80", "pass: somebody else carries the traffic of the Service that has this address", ""},
		{TCP, "10.96.9.9:80", "reject: no Service has this address", ""},
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
	if len(seen) != 5 {
		t.Errorf("the table covers the actions %v, not all", seen)
	}
}

func TestMasquerade(t *testing.T) {
	snap := lookupWorld()
	const (
		itself  = "a pod that reaches itself through a Service would answer itself directly"
		inside  = "the destination is inside the cluster and knows the way back"
		outside = "the destination is outside the cluster, where no route leads back to pods"
		direct  = "the destination is the one that the sender knows"
		finds   = "the answer finds this node by itself"
		unknown = "the sender's address is known on this node only"
		here    = "the endpoint is on this node, where the answer passes anyway"
		back    = "the answer must come back through this node, which knows the connection"
	)
	const vip4, vip6 = "10.96.1.1", "fd00:96::1:1"
	for _, tt := range []struct {
		src      string
		fromNode bool
		dst, to  string
		want     bool
		why      string
	}{
		{"10.244.0.5", false, vip4, "10.244.0.5", true, itself},
		{"10.244.0.5", false, vip4, "10.244.0.6", false, inside},
		{"10.244.0.5", false, vip4, "10.244.2.6", false, inside},
		{"10.244.0.5", false, vip4, "172.30.0.12", false, inside},
		{"10.244.0.5", false, vip4, "172.30.0.1", true, outside},
		{"10.244.0.5", false, "10.244.2.6", "10.244.2.6", false, inside},
		{"10.244.0.5", false, "172.30.0.1", "172.30.0.1", true, outside},
		{"10.244.1.5", false, "172.30.0.1", "172.30.0.1", false, direct}, // another node's pod is that node's to masquerade
		{"10.244.1.5", false, vip4, "10.244.1.6", true, back},
		{"10.244.1.5", false, vip4, "10.244.0.5", false, here},
		{"10.244.1.5", false, vip4, "172.30.0.11", false, here},
		{"10.244.1.5", false, vip4, "172.30.0.12", true, back},
		{"10.244.1.5", false, vip4, "10.244.1.5", true, itself}, // through another node
		{"198.51.100.7", false, "172.30.0.11", "10.244.0.5", false, here},
		{"198.51.100.7", false, "172.30.0.11", "10.244.1.5", true, back},
		{"198.51.100.7", false, "10.244.0.5", "10.244.0.5", false, direct},
		{"172.30.0.11", true, "203.0.113.5", "203.0.113.5", false, direct},
		{"172.30.0.11", true, vip4, "10.244.1.5", false, finds},
		{"172.30.0.11", true, vip4, "172.30.0.11", false, finds},
		{"172.30.0.11", true, vip4, "203.0.113.5", false, finds},
		{"127.0.0.1", true, "127.0.0.1", "127.0.0.1", false, direct},
		{"127.0.0.1", true, "127.0.0.1", "10.244.0.5", true, unknown},
		{"192.168.1.1", true, vip4, "10.244.1.5", true, unknown},
		{"fd00:244::5", false, vip6, "fd00:244:0:1::5", false, inside},
		{"fd00:244::5", false, "2001:db8::1", "2001:db8::1", true, outside},
		{"fd00:244::5", false, vip6, "fd00:244::5", true, itself},
		{"fd00:244:0:1::5", false, "2001:db8::1", "2001:db8::1", false, direct},
		{"fd00:244:0:1::5", false, vip6, "fd00:244:0:2::5", true, back},
		{"2001:db8:51::7", false, vip6, "fd00:244::5", false, here},
		{"fd00:30::11", true, vip6, "fd00:244:0:2::5", false, finds},
	} {
		p := Packet{Protocol: TCP, Src: netip.AddrPortFrom(addr(tt.src), 40000), Dst: netip.AddrPortFrom(addr(tt.dst), 80), FromNode: tt.fromNode}
		if got, why := snap.Masquerade(p, addr(tt.to)); got != tt.want || why != tt.why {
			t.Errorf("%s to %s at %s: %t (%s), want %t (%s)", tt.src, tt.dst, tt.to, got, why, tt.want, tt.why)
		}
	}
	p := Packet{Src: netip.MustParseAddrPort("10.244.0.5:1"), Dst: netip.MustParseAddrPort("10.9.9.9:1")}
	if masq, _ := NewBuilder(Config{Self: "n1"}).Build().Masquerade(p, p.Dst.Addr()); masq {
		t.Error("a node that is not known yet masquerades")
	}
}

func TestServesNodePorts(t *testing.T) {
	for _, tt := range []struct {
		ranges, served, not string
	}{
		{"", "172.30.0.11 10.0.0.1 fd00:30::11 2001:db8::1", "127.0.0.1 127.9.9.9 ::1"},
		{"172.30.0.0/24", "172.30.0.11", "172.30.1.11 127.0.0.1 fd00:30::11 ::1"},
		{"172.30.0.0/24 fd00:30::/64", "172.30.0.11 fd00:30::11", "127.0.0.1 10.0.0.1 fd00:31::1"},
		{"0.0.0.0/0 ::/0", "172.30.0.11 fd00:30::11", "127.0.0.1 ::1"},
		{"127.0.0.0/8", "127.0.0.1 127.9.9.9", "172.30.0.11 ::1 fd00:30::11"},
		{"127.0.0.1/32 ::1/128", "127.0.0.1", "127.0.0.2 ::1"},
		{"::1/128", "", "::1 127.0.0.1"},
	} {
		var c Config
		for _, r := range strings.Fields(tt.ranges) {
			c.NodePortAddrs = append(c.NodePortAddrs, netip.MustParsePrefix(r))
		}
		s := &Snapshot{Config: c}
		for want, list := range map[bool]string{true: tt.served, false: tt.not} {
			for _, a := range strings.Fields(list) {
				if s.ServesNodePorts(addr(a)) != want {
					t.Errorf("ranges %q: %s is served: %t", tt.ranges, a, !want)
				}
			}
		}
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
