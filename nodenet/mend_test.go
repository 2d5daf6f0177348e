// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

// TestMend: whatever somebody does to the tunnel, Verify brings it back; and it works again.
func TestMend(t *testing.T) {
	testnet.MustRoot(t)
	s := newSite(t, dual, dual)
	for i := range s.members {
		s.set(i, Auto)
	}
	one := s.members[0]
	want := one.dump(t)
	device := func() *netlink.Vxlan {
		link, err := one.Link.LinkByName(Device)
		if err != nil {
			t.Fatal(err)
		}
		return link.(*netlink.Vxlan)
	}
	far := s.members[2].node
	at := macOf(far.Addrs[0])
	conn := func(f func(*nftables.Conn)) error {
		return one.NS.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			f(c)
			return c.Flush()
		})
	}
	right := guard{DefaultPort, one.node.Addrs[0]}
	stray := admission{netip.MustParseAddr("192.0.2.9"), netip.MustParsePrefix("10.9.0.0/16")}
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"device removed", func() error { return one.Link.LinkDel(device()) }},
		{"device down", func() error { return one.Link.LinkSetDown(device()) }},
		{"device of another port", func() error {
			if err := one.Link.LinkDel(device()); err != nil {
				return err
			}
			d := otherDevice(one.node.Addrs[0], netip.Addr{}, VNI, 8472)
			d.Name = Device
			return one.Link.LinkAdd(d)
		}},
		{"device that learns", func() error {
			if err := one.Link.LinkDel(device()); err != nil {
				return err
			}
			d := otherDevice(one.node.Addrs[0], netip.Addr{}, VNI, DefaultPort)
			d.Name, d.Learning = Device, true
			return one.Link.LinkAdd(d)
		}},
		{"another link address", func() error { return one.Link.LinkSetHardwareAddr(device(), net.HardwareAddr{2, 0, 0, 0, 0, 1}) }},
		{"another MTU", func() error { return one.Link.LinkSetMTU(device(), 1500) }},
		{"an address gone", func() error {
			return one.Link.AddrDel(device(), &netlink.Addr{IPNet: ipnet(single(one.node.Addrs[0]))})
		}},
		{"an address too many", func() error {
			return one.Link.AddrAdd(device(), &netlink.Addr{IPNet: ipnet(netip.MustParsePrefix("192.0.2.7/24"))})
		}},
		{"forwarding entry gone", func() error { return one.Link.NeighDel(fdbEntry(device().Index, at, far.Addrs[0])) }},
		{"forwarding entry changed", func() error {
			return one.Link.NeighSet(fdbEntry(device().Index, at, netip.MustParseAddr("192.0.2.9")))
		}},
		{"forwarding entry too many", func() error {
			return one.Link.NeighSet(fdbEntry(device().Index, mac{2, 0, 0, 0, 0, 9}, netip.MustParseAddr("192.0.2.9")))
		}},
		{"neighbour gone", func() error {
			return one.Link.NeighDel(neigh(device().Index, at.gateway(far.PodCIDRs[0]), at))
		}},
		{"neighbour changed", func() error {
			return one.Link.NeighSet(neigh(device().Index, at.gateway(far.PodCIDRs[1]), mac{2, 0, 0, 0, 0, 9}))
		}},
		{"neighbour too many", func() error {
			return one.Link.NeighSet(neigh(device().Index, netip.MustParseAddr("10.9.0.0"), mac{2, 0, 0, 0, 0, 9}))
		}},
		{"rule gone", func() error { return one.Link.RuleDel(podRule(one.node.PodCIDRs[0])) }},
		{"rule too many", func() error { return one.Link.RuleAdd(podRule(netip.MustParsePrefix("10.9.0.0/16"))) }},
		{"route gone", func() error {
			return one.Link.RouteDel(&netlink.Route{Dst: ipnet(far.PodCIDRs[0]), Protocol: linux.RouteProtocol})
		}},
		{"route's MTU changed", func() error {
			r := route{kind: unix.RTN_UNICAST, dst: far.PodCIDRs[1], via: at.gateway(far.PodCIDRs[1]), dev: device().Index, mtu: 1300, src: one.node.Addrs[1]}
			return one.Link.RouteReplace(r.netlink())
		}},
		{"route for pods too many", func() error {
			r := route{kind: unix.RTN_UNICAST, dst: netip.MustParsePrefix("192.0.2.9/32"), via: far.PodCIDRs[0].Addr(), dev: device().Index, mtu: 1450, pods: true}
			return one.Link.RouteAdd(r.netlink())
		}},
		{"table gone", func() error { return conn(func(c *nftables.Conn) { c.DelTable(right.table()) }) }},
		{"a chain's rules gone", func() error {
			return conn(func(c *nftables.Conn) { c.FlushChain(&nftables.Chain{Name: "received", Table: right.table()}) })
		}},
		{"a rule too many", func() error {
			return conn(func(c *nftables.Conn) {
				c.AddRule(&nftables.Rule{Table: right.table(), Chain: &nftables.Chain{Name: "forward"}})
			})
		}},
		{"admissions gone", func() error { return conn(func(c *nftables.Conn) { c.FlushSet(right.set(false)) }) }},
		{"an admission too many", func() error { return one.NS.Do(func() error { return right.write(false, []admission{stray}, nil) }) }},
		{"everything gone", func() error { return one.NS.Do(Cleanup) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			if err := c.do(); err != nil {
				t.Fatal(err)
			}
			if one.dump(t) == want {
				t.Fatal("nothing was seen to change")
			}
			one.Do(func() error { return one.target.Verify(context.Background()) })
			if got := one.dump(t); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			if p := one.target.Problems(); len(p) > 0 {
				t.Errorf("problems %q", p)
			}
			for _, r := range far.PodCIDRs {
				ask(t, "afterwards", one.pod, netip.Addr{}, s.members[2].pod, podAddr(r))
			}
			if n := one.writes(t, func() error { return one.target.Verify(context.Background()) }); len(n) > 0 {
				t.Errorf("verifying what is right wrote %q", n)
			}
		})
	}
}

// TestVerifyKeepsWhatServicesUse: a node that is gone keeps its routes until Prune, whatever is verified in between.
func TestVerifyKeepsWhatServicesUse(t *testing.T) {
	testnet.MustRoot(t)
	s := newSite(t, dual, dual)
	s.set(0, Always)
	one := s.members[0]
	before := one.dump(t)
	next := s.snapshot(0, 2)
	one.Do(func() error { return one.target.Add(context.Background(), next) })
	one.Do(func() error { return one.target.Verify(context.Background()) })
	if got := one.dump(t); got != before {
		t.Errorf("before pruning\n%s", got)
	}
	one.Do(func() error { return one.target.Prune(context.Background(), next) })
	if got := one.dump(t); strings.Contains(got, "10.244.3.0") || strings.Contains(got, "172.31.0.13") || !strings.Contains(got, "10.244.2.0") {
		t.Errorf("after pruning\n%s", got)
	}
}

// TestLastPeer: with the last other node the tunnel goes, also if another agent has made it; and it comes with the first.
func TestLastPeer(t *testing.T) {
	testnet.MustRoot(t)
	s := newSite(t, dual, dual)
	one := s.members[0]
	for _, restart := range []bool{false, true} {
		s.set(0, Always)
		if got := one.dump(t); !strings.Contains(got, "tunnel "+Device) || !strings.Contains(got, "rule from") {
			t.Fatalf("with others\n%s", got)
		}
		if restart {
			one.target = target()
		}
		one.Do(func() error { return one.target.Apply(context.Background(), s.snapshot(0, 1, 2)) })
		if got, want := one.dump(t), "local 10.96.0.10/32\nlocal fd00:96::a/128\npod 10.244.1.5/32 dev fl00000000001\npod fd00:244:0:1::5/128 dev fl00000000001\n"+
			"unreachable 10.244.1.0/24\nunreachable fd00:244:0:1::/64\n"; got != want {
			t.Errorf("alone\n%s", got)
		}
		if p := one.target.Problems(); len(p) > 0 {
			t.Errorf("alone: problems %q", p)
		}
		one.noTable(t)
	}
}

func (m *member) noTable(t *testing.T) {
	t.Helper()
	m.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		if there, err := hasTable(c); there || err != nil {
			t.Errorf("the tunnel's table is there: %t, %v", there, err)
		}
		return nil
	})
}

// TestLeft: where the pod network is left to another program nothing leads to other nodes, and what an agent had made before goes.
func TestLeft(t *testing.T) {
	testnet.MustRoot(t)
	s := newSite(t, dual, dual)
	s.set(0, Always)
	one := s.members[0]
	b := model.NewBuilder(model.Config{Self: "n1", DNS: dnsVIPs, Left: model.Network})
	for _, m := range s.members {
		b.SetNode(m.node)
	}
	tg := New(Options{Mode: Always})
	one.Do(func() error { return tg.Apply(context.Background(), b.Build()) })
	const want = "local 10.96.0.10/32\nlocal fd00:96::a/128\npod 10.244.1.5/32 dev fl00000000001\npod fd00:244:0:1::5/128 dev fl00000000001\n"
	if got := one.dump(t); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if p := tg.Problems(); len(p) > 0 {
		t.Errorf("problems %q", p)
	}
	one.noTable(t)
}

// TestTunnelHistories: wherever nodes that come, go, move and change their ranges lead, in any mode and with restarts in between, everything is as
// after a fresh start.
func TestTunnelHistories(t *testing.T) {
	testnet.MustRoot(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	lived, fresh := newSite(t, dual, dual), newSite(t, dual, dual)
	mode := Auto
	tg := New(Options{})
	self := lived.members[0].node
	tunnelled := 0
	for step := range 80 {
		var nodes []model.Node
		own := self
		switch r.IntN(6) {
		case 0:
			own.Addrs = []netip.Addr{self.Addrs[1], self.Addrs[0]}
		case 1:
			own.Addrs = self.Addrs[:1]
		case 2:
			own.PodCIDRs = self.PodCIDRs[1:]
		case 3: // a range that others may have had
			own.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.245.%d.0/24", r.IntN(3))), self.PodCIDRs[1]}
		}
		nodes = append(nodes, own)
		for n := 2; n < 7; n++ {
			node := nodeN(n)
			if n > 3 {
				node.Addrs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("172.31.0.1%d", n)), netip.MustParseAddr(fmt.Sprintf("fd00:31::1%d", n))}
			}
			switch r.IntN(9) {
			case 0, 1:
				continue
			case 2:
				node.PodCIDRs = node.PodCIDRs[:1]
			case 3:
				node.Addrs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("172.3%d.0.2%d", r.IntN(3), n))}
			case 4:
				slices.Reverse(node.Addrs)
			case 5:
				node.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.245.%d.0/%d", r.IntN(3), 22+r.IntN(3)))}
			}
			nodes = append(nodes, node)
		}
		if r.IntN(3) == 0 {
			mode = Mode(r.IntN(3))
			tg = New(Options{Mode: mode})
		}
		snap := snapshot(1, nodes...)
		for i, h := range []*member{lived.members[0], fresh.members[0]} {
			target := tg
			if i == 1 {
				h.Do(Cleanup)
				target = New(Options{Mode: mode})
			}
			h.Do(func() error { return target.Apply(context.Background(), snap) })
			if r.IntN(2) == 0 {
				h.Do(func() error { return target.Verify(context.Background()) })
			}
			h.target = target
		}
		tunnelled += tg.Reach().Tunnelled
		got, want := lived.members[0].dump(t), fresh.members[0].dump(t)
		if got != want {
			t.Fatalf("step %d, mode %s:\n%sa fresh start has\n%s", step, mode, got, want)
		}
		if got, want := tg.Problems(), fresh.members[0].target.Problems(); !slices.Equal(got, want) {
			t.Fatalf("step %d, mode %s: problems\n%q\na fresh start has\n%q", step, mode, got, want)
		}
	}
	t.Logf("%d ways through the tunnel", tunnelled)
	if tunnelled == 0 {
		t.Error("no way led through the tunnel")
	}
}

// TestResizedRange: a node that has come back at its address with a larger or a smaller range than before, and one that has another one's address and a part of
// its range, are as after a fresh start, and hold up nobody.
func TestResizedRange(t *testing.T) {
	testnet.MustRoot(t)
	lived, fresh := newSite(t, dual, dual), newSite(t, dual, dual)
	at := func(name, addrs string, ranges ...string) model.Node {
		n := model.Node{Name: name}
		for text := range strings.FieldsSeq(addrs) {
			n.Addrs = append(n.Addrs, netip.MustParseAddr(text))
		}
		for _, text := range ranges {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(text))
		}
		return n
	}
	const far = "172.31.0.13 fd00:31::13"
	tg := New(Options{})
	for i, nodes := range [][]model.Node{
		{at("n3", far, "10.244.3.0/24", "fd00:244:0:3::/64")},
		{at("n3", far, "10.244.3.0/25", "fd00:244:0:3::/80")},
		{at("n3", far, "10.244.2.0/23", "fd00:244:0:2::/63")},
		{at("n3", far, "10.244.2.128/25", "fd00:244:0:3:8000::/65")},
		{at("n3", far, "10.244.3.0/24", "fd00:244:0:3::/64"), at("n4", far, "10.244.3.128/25", "fd00:244:0:3:8000::/65")},
		{at("n4", far, "10.244.3.128/25", "fd00:244:0:3:8000::/65")},
		{at("n4", far+" 10.244.2.9", "10.244.2.0/23")},
	} {
		snap := snapshot(1, append(nodes, nodeN(1))...)
		fresh.members[0].Do(Cleanup)
		for m, target := range map[*member]*Target{lived.members[0]: tg, fresh.members[0]: New(Options{})} {
			m.Do(func() error { return target.Apply(context.Background(), snap) })
		}
		if got, want := lived.members[0].dump(t), fresh.members[0].dump(t); got != want {
			t.Errorf("step %d:\n%sa fresh start has\n%s", i, got, want)
		}
	}
}

// TestManyNodes: thousands of nodes come at once, and one more.
func TestManyNodes(t *testing.T) {
	testnet.MustRoot(t)
	const many = 2000
	s := newSite(t, dual, dual)
	one := s.members[0]
	b := model.NewBuilder(model.Config{Self: "n1"})
	b.SetNode(one.node)
	add := func(i int) {
		b.SetNode(model.Node{
			Name:     fmt.Sprintf("m%d", i),
			Addrs:    []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd01::%x", i+1))},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 24), netip.MustParsePrefix(fmt.Sprintf("fd02:0:0:%x::/64", i))},
		})
	}
	for i := range many {
		add(i)
	}
	tg := New(Options{})
	apply := func() string {
		one.Do(func() error { return tg.Apply(context.Background(), b.Build()) })
		if p := tg.Problems(); len(p) > 0 {
			t.Fatalf("problems %q", p[:min(len(p), 5)])
		}
		return one.dump(t)
	}
	if n := strings.Count(apply(), "\nadmit "); n != 4*many {
		t.Errorf("%d admissions, want %d", n, 4*many)
	}
	add(many)
	if n := strings.Count(apply(), "\nadmit "); n != 4*many+4 {
		t.Errorf("with one more: %d admissions, want %d", n, 4*many+4)
	}
	for i := range many {
		b.DeleteNode(fmt.Sprintf("m%d", i))
	}
	if n := strings.Count(apply(), "\nadmit "); n != 4 {
		t.Errorf("with all but that gone: %d admissions, want 4", n)
	}
}

// TestOff: what keeps the tunnel from working is named, for each node that needs it, and everything else goes on.
func TestOff(t *testing.T) {
	testnet.MustRoot(t)
	for _, c := range []struct {
		what string
		mode Mode
		do   func(*site, *Target)
		want []string
	}{
		{"kernel without VXLAN", Auto, func(_ *site, tg *Target) { tg.kind = "fairlead-none" }, []string{
			"pods of node n3 (10.244.3.0/24) cannot be reached: its address 172.31.0.13 is on no link that this node shares, and the tunnel is off: this kernel has no VXLAN; load the module (modprobe vxlan) or use a kernel with CONFIG_VXLAN"}},
		{"kernel without VXLAN, where it should always be used", Always, func(_ *site, tg *Target) { tg.kind = "fairlead-none" }, []string{
			"--tunnel=always cannot be followed: the tunnel is off: this kernel has no VXLAN; load the module (modprobe vxlan) or use a kernel with CONFIG_VXLAN",
			"pods of node n3 (10.244.3.0/24) cannot be reached: its address 172.31.0.13 is on no link that this node shares, and the tunnel is off: this kernel has no VXLAN; load the module (modprobe vxlan) or use a kernel with CONFIG_VXLAN"}},
		{"kernel without VXLAN, and no need", Never, func(_ *site, tg *Target) { tg.kind = "fairlead-none" }, []string{
			"pods of node n3 (10.244.3.0/24) cannot be reached: its address 172.31.0.13 is on no link that this node shares; that needs the tunnel, which --tunnel=never has switched off"}},
		{"another device has the network", Auto, func(s *site, _ *Target) {
			d := otherDevice(s.members[0].node.Addrs[0], netip.Addr{}, VNI, DefaultPort)
			if err := s.members[0].Link.LinkAdd(d); err != nil {
				t.Fatal(err)
			}
		}, []string{"pods of node n3 (10.244.3.0/24) cannot be reached: its address 172.31.0.13 is on no link that this node shares, and the tunnel is off: another device has VNI 170 on port 4789; remove it, or give all nodes another --tunnel-port"}},
		{"another program has the port", Auto, func(s *site, _ *Target) {
			c, err := s.members[0].NS.ListenPacket("udp", "0.0.0.0:4789")
			if err != nil {
				t.Fatal(err)
			}
			s.t.Cleanup(func() { c.Close() })
		}, []string{"pods of node n3 (10.244.3.0/24) cannot be reached: its address 172.31.0.13 is on no link that this node shares, and the tunnel is off: another program has UDP port 4789; end it, or give all nodes another --tunnel-port"}},
		{"something else has the name", Auto, func(s *site, _ *Target) {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = Device
			if err := s.members[0].Link.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
				t.Fatal(err)
			}
		}, []string{"pods of node n3 (10.244.3.0/24) cannot be reached: its address 172.31.0.13 is on no link that this node shares, and the tunnel is off: a device fairlead-vxlan that is no VXLAN device is in the way: remove it"}},
		{"an address that is not this machine's", Auto, func(s *site, _ *Target) {
			s.members[0].node.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.77")}
		}, []string{"pods of node n3 (10.244.3.0/24) cannot be reached: its address 172.31.0.13 is on no link that this node shares, and the tunnel is off: this node's address 192.0.2.77 is on none of its devices"}},
		{"no route", Auto, func(s *site, _ *Target) {
			s.members[2].node.Addrs = []netip.Addr{netip.MustParseAddr("198.51.100.3")}
			s.members[0].Do(func() error {
				return netlink.RouteAdd(&netlink.Route{Dst: ipnet(netip.MustParsePrefix("198.51.100.0/24")), Type: unix.RTN_UNREACHABLE, Protocol: 4})
			})
		}, []string{"pods of node n3 (10.244.3.0/24) cannot be reached: its address 198.51.100.3 is on no link that this node shares, and the tunnel finds no route to 198.51.100.3"}},
		{"another family", Auto, func(s *site, _ *Target) { s.members[2].node.Addrs = []netip.Addr{netip.MustParseAddr("fd00:31::13")} }, []string{
			"pods of node n3 (10.244.3.0/24) cannot be reached: the node has no address of that family, and the tunnel of this node runs over IPv4 and that node's over IPv6: let the first addresses of all nodes be of one family"}},
		{"no address", Auto, func(s *site, _ *Target) { s.members[2].node.Addrs = nil }, []string{
			"pods of node n3 (10.244.3.0/24) cannot be reached: the node has no address of that family, and the tunnel needs an address of that node"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := newSite(t, v4only, v4only)
			one := s.members[0]
			tg := New(Options{Mode: c.mode})
			c.do(s, tg)
			for range 2 {
				one.Do(func() error { return tg.Apply(context.Background(), s.snapshot(0)) })
				if got := tg.Problems(); !slices.Equal(got, c.want) {
					t.Errorf("got  %q\nwant %q", got, c.want)
				}
			}
			if got := one.dump(t); !strings.Contains(got, "node 10.244.2.0/24 via 172.30.0.12 dev eth0\n") || strings.Contains(got, "node 10.244.3.0") {
				t.Errorf("what else there is\n%s", got)
			}
		})
	}
}
