// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

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
	b := model.NewBuilder(model.Config{Self: fmt.Sprintf("n%d", self), DNS: dnsVIPs})
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
		text, err = dumpRoutes()
		return err
	})
	return text
}

// dumpRoutes is the part of Dump about routes, but those of this node's pods to other nodes.
func dumpRoutes() (string, error) {
	text, err := Dump()
	var b strings.Builder
	for line := range strings.Lines(text) {
		if word, _, _ := strings.Cut(line, " "); slices.Contains([]string{"node", "local", "unreachable", "pod"}, word) {
			b.WriteString(line)
		}
	}
	return b.String(), err
}

// Lookup is the way of what the node sends itself.
func Lookup(dst netip.Addr) (Hop, error) {
	h, err := handle()
	if err != nil {
		return Hop{}, err
	}
	defer h.Close()
	return lookup(h, dst)
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
	for i, h := range hosts {
		settle(t, h, fmt.Sprintf("fd00:30::1%d", i+1))
	}
	return hosts
}

// settle waits until a host delivers its own address of IPv6 to itself: the kernel makes the route for that later than the address.
func settle(t *testing.T, h *testnet.Host, addr string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := h.Link.RouteGet(net.ParseIP(addr))
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is not this host's: %v, %v", addr, routes, err)
		}
	}
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
		settle(t, h, fmt.Sprintf("fd00:244:0:%d::5", n))
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
		text, err := dumpRoutes()
		if text != "pod 10.244.1.7/32 dev eth0\n" {
			t.Errorf("after cleanup\n%s", text)
		}
		if hop, err := Lookup(netip.MustParseAddr("10.9.1.1")); err != nil || hop.Via != netip.MustParseAddr("172.30.0.99") || hop.Dev != "eth0" || hop.MTU != 1500 {
			t.Errorf("the stranger's route: %+v, %v", hop, err)
		}
		return err
	})
}

// TestFarNode: one node that shares no link costs the others nothing, is named, and gets its route once it can: by the next look at the kernel,
// or when its address changes. No other change looks for ways, of which there may be as many as nodes.
func TestFarNode(t *testing.T) {
	testnet.MustRoot(t)
	h := fabric(t)[0]
	far := nodeN(3)
	far.Addrs, far.PodCIDRs = []netip.Addr{netip.MustParseAddr("192.0.2.3")}, far.PodCIDRs[:1]
	s := snapshot(1, nodeN(1), nodeN(2), far)
	tg := New(Options{Mode: Never})
	got := apply(t, h, tg, s)
	if !strings.Contains(got, "node 10.244.2.0/24") || strings.Contains(got, "10.244.3.0") {
		t.Errorf("got\n%s", got)
	}
	if p := tg.Problems(); len(p) != 1 || !strings.Contains(p[0], "pods of node n3 (10.244.3.0/24) cannot be reached") {
		t.Errorf("problems %q", p)
	}
	moved := far
	moved.Addrs = []netip.Addr{netip.MustParseAddr("172.30.0.13")}
	if got := apply(t, h, tg, snapshot(1, nodeN(1), nodeN(2), moved)); !strings.Contains(got, "node 10.244.3.0/24 via 172.30.0.13 dev eth0\n") || len(tg.Problems()) != 0 {
		t.Errorf("with another address\n%s%q", got, tg.Problems())
	}
	apply(t, h, tg, s)
	h.Addr("eth0", "192.0.2.1/24")
	if got := apply(t, h, tg, snapshot(1, nodeN(1), nodeN(2), far)); strings.Contains(got, "10.244.3.0") || len(tg.Problems()) != 1 {
		t.Errorf("a snapshot with the same nodes looked for ways\n%s%q", got, tg.Problems())
	}
	h.Do(func() error { return tg.Verify(context.Background()) })
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
	return p, ipnet(p), err
}

// watch counts the changes of our routes in a host from now on. The kernel's own change by themselves for some time after a device came up.
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
			if u.Protocol == linux.RouteProtocol {
				n++
			}
		}
		close(done)
		return n
	}
}

// TestStrangersRoute: another program's route to a node's pods stays, and the node is named; once it is gone, ours is made.
func TestStrangersRoute(t *testing.T) {
	testnet.MustRoot(t)
	h := fabric(t)[0]
	h.Route("10.244.2.0/24", "172.30.0.99", "eth0")
	h.Route("fd00:244:0:3::/64", "fd00:30::99", "eth0")
	tg, s := target(), snapshot(1, nodeN(1), nodeN(2), nodeN(3))
	got := apply(t, h, tg, s)
	if strings.Contains(got, "10.244.2.0/24") || strings.Contains(got, "fd00:244:0:3::/64") || !strings.Contains(got, "node 10.244.3.0/24") {
		t.Errorf("beside a stranger's routes\n%s", got)
	}
	if p := tg.Problems(); len(p) != 2 || !strings.Contains(p[0]+p[1], "another program's route (protocol 4) is in the way") {
		t.Errorf("problems %q", p)
	}
	h.Do(func() error {
		hop, err := Lookup(netip.MustParseAddr("10.244.2.5"))
		if hop.Via != netip.MustParseAddr("172.30.0.99") {
			t.Errorf("the stranger's route is %v", hop)
		}
		for _, dst := range []string{"10.244.2.0/24", "fd00:244:0:3::/64"} {
			_, n, _ := netlinkPrefix(dst)
			if err := netlink.RouteDel(&netlink.Route{Dst: n, Protocol: 4}); err != nil {
				return err
			}
		}
		return err
	})
	h.Do(func() error { return tg.Verify(context.Background()) })
	if got := apply(t, h, tg, s); got != forN1 || len(tg.Problems()) != 0 {
		t.Errorf("after the stranger's routes went\n%s%q", got, tg.Problems())
	}
	// A stranger's route beside ours, less preferred, is no obstacle, and survives a change of ours.
	h.Do(func() error {
		_, n, _ := netlinkPrefix("10.244.2.0/24")
		return netlink.RouteAdd(&netlink.Route{Dst: n, Gw: net.ParseIP("172.30.0.99"), Protocol: 4, Priority: 50})
	})
	moved := nodeN(2)
	moved.Addrs = []netip.Addr{netip.MustParseAddr("172.30.0.22"), netip.MustParseAddr("fd00:30::22")}
	if got := apply(t, h, tg, snapshot(1, nodeN(1), moved, nodeN(3))); !strings.Contains(got, "node 10.244.2.0/24 via 172.30.0.22 dev eth0\n") {
		t.Errorf("after a move\n%s", got)
	}
	h.Do(func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: 4}, netlink.RT_FILTER_PROTOCOL)
		if err == nil && len(routes) != 1 {
			err = fmt.Errorf("the stranger's routes are %v", routes)
		}
		return err
	})
}

// TestVerify: a device that was down has lost its routes; they come back, and what was right is not written again.
func TestVerify(t *testing.T) {
	testnet.MustRoot(t)
	h := fabric(t)[0]
	tg, s := target(), snapshot(1, nodeN(1), nodeN(2), nodeN(3))
	apply(t, h, tg, s)
	h.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetDown(link); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	h.Addr("eth0", "fd00:30::11/64") // going down takes away addresses of IPv6
	settle(t, h, "fd00:30::11")
	h.Do(func() error { return tg.Verify(context.Background()) })
	h.Do(func() error {
		text, err := dumpRoutes()
		if text != forN1 {
			t.Errorf("after the device was down\n%s", text)
		}
		return err
	})
	changes := watch(t, h)
	h.Do(func() error { return tg.Verify(context.Background()) })
	if n := changes(); n != 0 {
		t.Errorf("verifying what is right made %d changes", n)
	}
}

// TestPhases: what is new is added before what is gone is removed, and both only when told.
func TestPhases(t *testing.T) {
	testnet.MustRoot(t)
	h := fabric(t)[0]
	tg := target()
	h.Do(func() error { return tg.Prune(context.Background(), snapshot(1)) })
	apply(t, h, tg, snapshot(1, nodeN(1), nodeN(2)))
	next := snapshot(1, nodeN(1), nodeN(3))
	dump := func() (text string) {
		h.Do(func() (err error) { text, err = dumpRoutes(); return err })
		return text
	}
	h.Do(func() error { return tg.Add(context.Background(), next) })
	if got := dump(); got != forN1 {
		t.Errorf("after adding\n%s", got)
	}
	h.Do(func() error { return tg.Prune(context.Background(), next) })
	if got := dump(); strings.Contains(got, "10.244.2.0") || !strings.Contains(got, "10.244.3.0") {
		t.Errorf("after pruning\n%s", got)
	}
	// A new agent that has not added anything prunes nothing.
	h.Do(func() error { return target().Prune(context.Background(), snapshot(1)) })
	if got := dump(); !strings.Contains(got, "10.244.3.0") {
		t.Errorf("an agent that knows nothing pruned\n%s", got)
	}
}

// TestCancelled: what was begun and given up is done as a whole the next time.
func TestCancelled(t *testing.T) {
	testnet.MustRoot(t)
	h := fabric(t)[0]
	tg, s := target(), snapshot(1, nodeN(1), nodeN(2), nodeN(3))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	h.Do(func() error {
		if err := tg.Apply(ctx, s); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		return nil
	})
	if got := apply(t, h, tg, s); got != forN1 {
		t.Errorf("afterwards\n%s", got)
	}
}

// TestDesired: what is asked for in vain is named, and whoever comes first by name has a range.
func TestDesired(t *testing.T) {
	thief, twin, bare := nodeN(2), nodeN(4), nodeN(5)
	thief.PodCIDRs[0] = nodeN(1).PodCIDRs[0]
	twin.PodCIDRs = nodeN(3).PodCIDRs
	bare.Addrs = bare.Addrs[:1]
	w := desired(snapshot(1, nodeN(1), thief, nodeN(3), twin, bare), conditions{mode: Never, off: "is off", way: func(netip.Addr) way { return way{dev: 2, near: true, mtu: 1500} }})
	var got []string
	for _, w := range w.routes {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%d %s %s %s", w.kind, w.dst, w.via, w.who)))
	}
	want := []string{
		"1 10.244.3.0/24 172.30.0.13 node n3", "1 10.244.5.0/24 172.30.0.15 node n5",
		"1 fd00:244:0:2::/64 fd00:30::12 node n2", "1 fd00:244:0:3::/64 fd00:30::13 node n3",
		"2 10.96.0.10/32 invalid IP cluster DNS", "2 fd00:96::a/128 invalid IP cluster DNS",
		"7 10.244.1.0/24 invalid IP unused pod addresses of this node", "7 fd00:244:0:1::/64 invalid IP unused pod addresses of this node",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	wantProblems := []string{
		"pods of node n2 (10.244.1.0/24) cannot be reached: node n1 has the same range",
		"pods of node n4 (10.244.3.0/24) cannot be reached: node n3 has the same range",
		"pods of node n4 (fd00:244:0:3::/64) cannot be reached: node n3 has the same range",
		"pods of node n5 (fd00:244:0:5::/64) cannot be reached: the node has no address of that family",
	}
	if !slices.Equal(w.problems, wantProblems) {
		t.Errorf("problems\n%s", strings.Join(w.problems, "\n"))
	}
	var admitted []string
	for a := range w.admit {
		if !a.inner.IsSingleIP() { // a node's own address
			admitted = append(admitted, a.String())
		}
	}
	slices.Sort(admitted)
	if want := []string{"10.244.3.0/24 from 172.30.0.13", "10.244.5.0/24 from 172.30.0.15", "fd00:244:0:2::/64 from 172.30.0.12",
		"fd00:244:0:3::/64 from 172.30.0.13", "fd00:244:0:5::/64 from 172.30.0.15"}; !slices.Equal(admitted, want) {
		t.Errorf("admitted\n%s", strings.Join(admitted, "\n"))
	}
}

// TestNested: of a range that lies in another node's, both are named; packets go to the node with the longer prefix, also if both are reached through the tunnel and
// begin with the same address. An address that two nodes have leads to the first of them.
func TestNested(t *testing.T) {
	wide, narrow, twin := nodeN(2), nodeN(3), nodeN(4)
	wide.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	narrow.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}
	twin.PodCIDRs = twin.PodCIDRs[:1]
	wide.Addrs, narrow.Addrs = wide.Addrs[:1], narrow.Addrs[:1]
	twin.Addrs = []netip.Addr{netip.MustParseAddr("172.31.0.14"), narrow.Addrs[0], nodeN(1).Addrs[0]}
	w := desired(snapshot(1, nodeN(1), wide, narrow, twin), conditions{mode: Always, dev: 9, way: func(netip.Addr) way { return way{dev: 2, mtu: 1500} }})
	var got []string
	for _, r := range w.routes {
		if r.kind == unix.RTN_UNICAST {
			got = append(got, fmt.Sprintf("%s %t %s", r.dst, r.pods, map[mac]string{macOf(wide.Addrs[0]): "wide", macOf(narrow.Addrs[0]): "narrow", macOf(twin.Addrs[0]): "twin"}[w.neighs[r.via]]))
		}
	}
	if want := []string{"172.30.0.12/32 true wide", "172.30.0.13/32 true narrow", "172.31.0.14/32 true twin",
		"10.244.0.0/16 false wide", "10.244.0.0/24 false narrow", "10.244.4.0/24 false twin"}; !slices.Equal(got, want) {
		t.Errorf("routes\n%s", strings.Join(got, "\n"))
	}
	if want := []string{"pods of node n2 (10.244.0.0/16) with addresses in 10.244.0.0/24 cannot be reached: node n3 has that range"}; !slices.Equal(w.problems, want) {
		t.Errorf("problems\n%s", strings.Join(w.problems, "\n"))
	}
	// On the node with the wide range itself, too.
	w = desired(snapshot(2, nodeN(1), wide), conditions{mode: Auto, dev: 9, way: func(netip.Addr) way { return way{dev: 2, near: true, mtu: 1500} }})
	if want := []string{"pods of node n2 (10.244.0.0/16) with addresses in 10.244.1.0/24 cannot be reached: node n1 has that range"}; !slices.Equal(w.problems, want) {
		t.Errorf("problems on the node itself\n%s", strings.Join(w.problems, "\n"))
	}
}

// TestSysctls: the node forwards, IPv6 only if its pods have it, and then it goes on listening to router advertisements.
func TestSysctls(t *testing.T) {
	testnet.MustRoot(t)
	h := fabric(t)[0]
	read := func(key string) (v string) {
		h.Do(func() (err error) { v, err = linux.ReadSysctl(key); return err })
		return v
	}
	const v4, v6, ra = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/eth0/accept_ra"
	single := nodeN(1)
	single.PodCIDRs = single.PodCIDRs[:1]
	tg := target()
	apply(t, h, tg, snapshot(1, single))
	if read(v4) != "1" || read(v6) != "0" || read(ra) != "1" {
		t.Errorf("single-stack: %s %s %s", read(v4), read(v6), read(ra))
	}
	apply(t, h, tg, snapshot(1, nodeN(1)))
	if read(v4) != "1" || read(v6) != "1" || read(ra) != "2" {
		t.Errorf("dual-stack: %s %s %s", read(v4), read(v6), read(ra))
	}
}

// TestLocalnet: what comes from loopback is routed once a port on loopback leads to a pod, and not before.
func TestLocalnet(t *testing.T) {
	testnet.MustRoot(t)
	plain := model.Pod{Name: model.Name{Namespace: "x", Name: "p"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.5")}}
	port := plain
	port.HostPorts = []model.HostPort{{Protocol: model.TCP, Port: 80, Target: 80}}
	h := fabric(t)[0]
	localnet := func() (v string) {
		h.Do(func() (err error) { v, err = linux.ReadSysctl("net/ipv4/conf/all/route_localnet"); return err })
		return v
	}
	tg, b := target(), model.NewBuilder(model.Config{Self: "n1"})
	b.SetNode(nodeN(1))
	for _, step := range []struct {
		pod  model.Pod
		want string
	}{{plain, "0"}, {port, "1"}, {plain, "1"}} {
		b.SetPod(step.pod)
		apply(t, h, tg, b.Build())
		if got := localnet(); got != step.want {
			t.Errorf("with %v: %s, want %s", step.pod.HostPorts, got, step.want)
		}
	}
	h = fabric(t)[0]
	apply(t, h, target(), model.NewBuilder(model.Config{Self: "n1", NodePortAddrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}).Build())
	if got := localnet(); got != "1" {
		t.Errorf("with node ports on loopback: %s", got)
	}
}

// TestUnusedAddresses: a packet to a pod that does not exist comes to an end, with an answer, and the DNS address is this node's own.
func TestUnusedAddresses(t *testing.T) {
	testnet.MustRoot(t)
	h := fabric(t)[0]
	h.Sysctl("net/ipv4/conf/all/rp_filter", "1")
	h.Route("0.0.0.0/0", "172.30.0.1", "eth0")
	apply(t, h, target(), snapshot(1, nodeN(1), nodeN(2)))
	h.Do(func() error {
		if hop, err := Lookup(netip.MustParseAddr("10.244.1.77")); !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("an unused address: %v, %v", hop, err)
		}
		if hop, err := Lookup(netip.MustParseAddr("fd00:244:0:1::77")); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("an unused address: %v, %v", hop, err)
		}
		for _, vip := range dnsVIPs {
			if hop, err := Lookup(vip); err != nil || !hop.Local {
				t.Errorf("%s: %v, %v", vip, hop, err)
			}
		}
		hop, err := Lookup(netip.MustParseAddr("10.244.2.9"))
		if hop.String() != "via 172.30.0.12 dev eth0 src 172.30.0.11 mtu 1500" {
			t.Errorf("a pod of n2: %v", hop)
		}
		return err
	})
	// A server on the DNS address, which is on no device, is reached by the node's other processes.
	for _, vip := range dnsVIPs {
		h.Do(func() error {
			server, err := (&net.ListenConfig{Control: freebind}).ListenPacket(context.Background(), "udp", netip.AddrPortFrom(vip, 53).String())
			if err != nil {
				return err
			}
			defer server.Close()
			client, err := net.Dial("udp", netip.AddrPortFrom(vip, 53).String())
			if err != nil {
				return err
			}
			defer client.Close()
			buf := make([]byte, 16)
			if _, err := client.Write([]byte("ping")); err != nil {
				return err
			}
			server.SetDeadline(time.Now().Add(10 * time.Second))
			client.SetDeadline(time.Now().Add(10 * time.Second))
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return fmt.Errorf("%s: %w", vip, err)
			}
			if _, err := server.WriteTo(buf[:n], from); err != nil {
				return err
			}
			if n, err = client.Read(buf); string(buf[:n]) != "ping" {
				t.Errorf("%s: %q, %v", vip, buf[:n], err)
			}
			return err
		})
	}
}

// freebind allows an address that is on no device.
func freebind(network, _ string, c syscall.RawConn) (err error) {
	outer := c.Control(func(fd uintptr) {
		if network == "udp6" {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
	})
	return errors.Join(outer, err)
}
