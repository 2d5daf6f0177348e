// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

func nodeN(i int) model.Node {
	return model.Node{
		Name:     fmt.Sprintf("n%d", i),
		Addrs:    []netip.Addr{netip.MustParseAddr(fmt.Sprintf("172.30.0.1%d", i)), netip.MustParseAddr(fmt.Sprintf("fd00:30::1%d", i))},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", i))},
	}
}

var dnsVIPs = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")}

func snapshot(self int, nodes ...model.Node) *model.Snapshot {
	b := model.NewBuilder(fmt.Sprintf("n%d", self), dnsVIPs)
	for _, n := range nodes {
		b.SetNode(n)
	}
	return b.Build()
}

func target() *Target { return New(Options{Logger: slog.New(slog.DiscardHandler)}) }

// apply does both phases in a host's namespace and returns what the kernel has then.
func apply(t *testing.T, h *testnet.Host, target *Target, s *model.Snapshot) (text string) {
	t.Helper()
	h.Do(func() (err error) {
		if err = target.Add(context.Background(), s); err != nil {
			return err
		}
		if err = target.Prune(context.Background(), s); err != nil {
			return err
		}
		text, err = Dump()
		return err
	})
	return text
}

const forN1 = `local 10.96.0.10/32
local fd00:96::a/128
node 10.244.2.0/24 via 172.30.0.12 dev eth0
node 10.244.3.0/24 via 172.30.0.13 dev eth0
node fd00:244:0:2::/64 via fd00:30::12 dev eth0
node fd00:244:0:3::/64 via fd00:30::13 dev eth0
unreachable 10.244.1.0/24
unreachable fd00:244:0:1::/64
`

// fabric makes hosts n1 to n3 on one switch.
func fabric(t *testing.T) [3]*testnet.Host {
	w := testnet.New(t)
	sw := w.Host("fabric")
	var hosts [3]*testnet.Host
	var ports []string
	for i := range hosts {
		h := w.Host(fmt.Sprintf("n%d", i+1))
		w.Cable(h, "eth0", sw, fmt.Sprintf("p%d", i+1))
		h.Addr("eth0", fmt.Sprintf("172.30.0.1%d/24", i+1), fmt.Sprintf("fd00:30::1%d/64", i+1))
		ports = append(ports, fmt.Sprintf("p%d", i+1))
		hosts[i] = h
	}
	sw.Switch("br0", ports...)
	return hosts
}

func TestRoutes(t *testing.T) {
	testnet.MustRoot(t)
	hosts := fabric(t)
	all := snapshot(1, nodeN(1), nodeN(2), nodeN(3))
	tg := target()
	if got := apply(t, hosts[0], tg, all); got != forN1 {
		t.Errorf("got\n%swant\n%s", got, forN1)
	}
	// A pod of n1 talks to a pod of n3 with its own address, both ways through the routers' routes.
	apply(t, hosts[2], target(), snapshot(3, nodeN(1), nodeN(2), nodeN(3)))
	for i, h := range []*testnet.Host{hosts[0], hosts[2]} {
		n := []int{1, 3}[i]
		h.Addr("lo", fmt.Sprintf("10.244.%d.5/32", n), fmt.Sprintf("fd00:244:0:%d::5/128", n))
	}
	for _, pair := range [][2]string{{"10.244.1.5:0", "10.244.3.5:80"}, {"[fd00:244:0:1::5]:0", "[fd00:244:0:3::5]:80"}} {
		for _, network := range []string{"tcp", "udp"} {
			to := hosts[2].Echo(network, pair[1])
			answer, err := hosts[0].Ask(network, pair[0], to)
			if err != nil {
				t.Fatalf("%s %s to %s: %v", network, pair[0], to, err)
			}
			if from := netip.MustParseAddrPort(pair[0]).Addr(); answer.Client.Addr() != from {
				t.Errorf("%s: the receiver sees %s, sent from %s", network, answer.Client, from)
			}
		}
	}
}

// TestAdopt: a start where all is right writes nothing, and one where something differs writes that only. Others' routes stay.
func TestAdopt(t *testing.T) {
	testnet.MustRoot(t)
	h := fabric(t)[0]
	h.Route("10.9.0.0/16", "172.30.0.99", "eth0") // a stranger's
	h.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		_, dst, err := netlinkPrefix("10.244.1.7/32")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Protocol: linux.RouteProtocol}) // a pod's
	})
	all := snapshot(1, nodeN(1), nodeN(2), nodeN(3))
	want := forN1[:strings.Index(forN1, "unreachable")] + "pod 10.244.1.7/32 dev eth0\n" + forN1[strings.Index(forN1, "unreachable"):]
	if got := apply(t, h, target(), all); got != want {
		t.Fatalf("got\n%swant\n%s", got, want)
	}
	second := target()
	changes := watch(t, h)
	if got := apply(t, h, second, all); got != want {
		t.Errorf("after a restart\n%swant\n%s", got, want)
	}
	if n := changes(); n != 0 {
		t.Errorf("a restart with nothing changed made %d changes", n)
	}
	moved := nodeN(3)
	moved.Addrs[0] = netip.MustParseAddr("172.30.0.33")
	got := apply(t, h, target(), snapshot(1, nodeN(1), moved))
	if !strings.Contains(got, "node 10.244.3.0/24 via 172.30.0.33 dev eth0\n") || strings.Contains(got, "10.244.2.0") ||
		strings.Contains(got, "172.30.0.13") || !strings.Contains(got, "pod 10.244.1.7/32") {
		t.Errorf("after a node moved and one went\n%s", got)
	}
	h.Do(func() error {
		if err := Cleanup(); err != nil {
			return err
		}
		text, err := Dump()
		if text != "pod 10.244.1.7/32 dev eth0\n" {
			t.Errorf("after cleanup\n%s", text)
		}
		if hop, err := Lookup(netip.MustParseAddr("10.9.1.1")); err != nil || hop.Via != netip.MustParseAddr("172.30.0.99") || hop.Dev != "eth0" || hop.MTU != 1500 {
			t.Errorf("the stranger's route: %+v, %v", hop, err)
		}
		return err
	})
}

// TestFarNode: one node that shares no link costs the others nothing, is named, and gets its route once it can.
func TestFarNode(t *testing.T) {
	testnet.MustRoot(t)
	h := fabric(t)[0]
	far := nodeN(3)
	far.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.3")}
	s := snapshot(1, nodeN(1), nodeN(2), far)
	tg := target()
	got := apply(t, h, tg, s)
	if !strings.Contains(got, "node 10.244.2.0/24") || strings.Contains(got, "10.244.3.0") {
		t.Errorf("got\n%s", got)
	}
	if p := tg.Problems(); len(p) != 1 || !strings.Contains(p[0], "pods of node n3 (10.244.3.0/24) cannot be reached") {
		t.Errorf("problems %q", p)
	}
	h.Addr("eth0", "192.0.2.1/24")
	if got := apply(t, h, tg, s); !strings.Contains(got, "node 10.244.3.0/24 via 192.0.2.3 dev eth0\n") || len(tg.Problems()) != 0 {
		t.Errorf("with the link there\n%s%q", got, tg.Problems())
	}
}

// TestRandomHistories: wherever a history of clusters leads, also with restarts in between, the routes are those of a fresh start.
func TestRandomHistories(t *testing.T) {
	testnet.MustRoot(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	h, fresh := fabric(t)[0], fabric(t)[0]
	tg := target()
	for i := range 60 {
		nodes := []model.Node{nodeN(1)}
		for n := 2; n < 6; n++ {
			node := nodeN(n)
			switch r.IntN(4) {
			case 0:
				continue
			case 1:
				node.PodCIDRs = node.PodCIDRs[:1]
			case 2:
				node.Addrs[0] = netip.MustParseAddr(fmt.Sprintf("172.30.0.2%d", n))
			}
			nodes = append(nodes, node)
		}
		if r.IntN(4) == 0 {
			tg = target()
		}
		s := snapshot(1, nodes...)
		got := apply(t, h, tg, s)
		fresh.Do(Cleanup)
		if want := apply(t, fresh, target(), s); got != want {
			t.Fatalf("step %d:\n%sa fresh start has\n%s", i, got, want)
		}
	}
}

func netlinkPrefix(s string) (netip.Prefix, *net.IPNet, error) {
	p, err := netip.ParsePrefix(s)
	return p, route{dst: p}.netlink().Dst, err
}

// watch counts the changes of routes in a host from now on.
func watch(t *testing.T, h *testnet.Host) func() int {
	t.Helper()
	updates, done := make(chan netlink.RouteUpdate, 100), make(chan struct{})
	h.Do(func() error { return netlink.RouteSubscribe(updates, done) })
	return func() int {
		// A route of a protocol of its own marks the end: notifications come in order.
		h.Do(func() error {
			_, dst, err := netlinkPrefix("198.51.100.0/24")
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{Dst: dst, Type: 7, Protocol: 99})
		})
		n := 0
		for u := range updates {
			if u.Protocol == 99 {
				break
			}
			n++
		}
		close(done)
		return n
	}
}
