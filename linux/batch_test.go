// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

// TestBatchPod wires a pod as the CNI plugin does, in three sends, and reads all
// of it back with another library.
func TestBatchPod(t *testing.T) {
	w := testnet.New(t)
	node, pod := w.Host("node"), w.Host("pod")
	nodeMAC, podMAC := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	addrs := []netip.Addr{netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00:1::5")}
	gateways := []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")}

	onNode, onPod := batch(t, node.NS), batch(t, pod.NS)
	var veth netlink.LinkAttrs
	onNode.VethAdd(linux.VethPair{Name: "fl0", MAC: nodeMAC, PeerName: "eth0", PeerMAC: podMAC, PeerNS: pod.NS, MTU: 1400})
	onNode.LinkGet("fl0", &veth)
	send(t, onNode)
	if veth.Name != "fl0" || veth.MTU != 1400 || veth.Index == 0 || veth.ParentIndex == 0 || veth.HardwareAddr.String() != nodeMAC.String() {
		t.Fatalf("LinkGet: %+v", veth)
	}
	if veth.NumTxQueues != 1 || veth.NumRxQueues != 1 {
		t.Errorf("%d queues to send and %d to receive, want one each", veth.NumTxQueues, veth.NumRxQueues)
	}
	onPod.LinkUp(veth.ParentIndex)
	for i, addr := range addrs {
		onPod.AddrAdd(veth.ParentIndex, netip.PrefixFrom(addr, addr.BitLen()))
		onPod.NeighSet(veth.ParentIndex, gateways[i], nodeMAC)
		all, _ := gateways[i].Prefix(0)
		onPod.RouteAdd(linux.Route{Dst: all, Via: gateways[i], Index: veth.ParentIndex, Src: addr, MTU: 1300})
		onNode.NeighSet(veth.Index, addr, podMAC)
		onNode.RouteAdd(linux.Route{Dst: netip.PrefixFrom(addr, addr.BitLen()), Index: veth.Index})
	}
	send(t, onPod)
	send(t, onNode)

	link, err := pod.Link.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if got := link.Attrs(); got.MTU != 1400 || got.HardwareAddr.String() != podMAC.String() || got.Flags&net.FlagUp == 0 {
		t.Errorf("eth0: %+v", got)
	}
	for i, addr := range addrs {
		family := netlink.FAMILY_V4
		if addr.Is6() {
			family = netlink.FAMILY_V6
		}
		got, err := pod.Link.AddrList(link, family)
		if err != nil || !strings.Contains(fmt.Sprint(got), addr.String()) {
			t.Errorf("addresses: %v, %v", got, err)
		}
		for _, a := range got {
			if a.IP.Equal(addr.AsSlice()) && a.Flags&unix.IFA_F_TENTATIVE != 0 {
				t.Errorf("%s is tentative", a)
			}
		}
		wantRoute(t, pod, family, gateways[i], 0, 1300)
		wantRoute(t, node, family, addr, addr.BitLen(), 0)
		wantNeigh(t, pod, family, gateways[i], nodeMAC)
		wantNeigh(t, node, family, addr, podMAC)
	}

	// twice is once; only a route is exclusive
	for i, addr := range addrs {
		onPod.AddrAdd(veth.ParentIndex, netip.PrefixFrom(addr, addr.BitLen()))
		onPod.NeighSet(veth.ParentIndex, gateways[i], nodeMAC)
		onNode.RouteReplace(linux.Route{Dst: netip.PrefixFrom(addr, addr.BitLen()), Index: veth.Index})
	}
	send(t, onPod)
	send(t, onNode)
	onNode.RouteAdd(linux.Route{Dst: netip.PrefixFrom(addrs[0], 32), Index: veth.Index})
	if err := onNode.Send(); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("second route: %v", err)
	}
	onNode.VethAdd(linux.VethPair{Name: "fl0", PeerName: "eth9", PeerNS: pod.NS})
	if err := onNode.Send(); !errors.Is(err, syscall.EEXIST) || !strings.Contains(err.Error(), "create veth fl0") {
		t.Errorf("second veth: %v", err)
	}

	for _, addr := range addrs {
		onNode.RouteDel(linux.Route{Dst: netip.PrefixFrom(addr, addr.BitLen())})
	}
	onNode.LinkDel("fl0")
	send(t, onNode)
	for _, addr := range addrs { // nothing there: fine
		onNode.RouteDel(linux.Route{Dst: netip.PrefixFrom(addr, addr.BitLen())})
	}
	onNode.LinkDel("fl0")
	send(t, onNode)
	if links, _ := pod.Link.LinkList(); strings.Contains(names(links), "eth0") {
		t.Errorf("interfaces of the pod: %s", names(links))
	}
}

// TestBatchLarge sends more requests than fit into one system call, with some
// that fail, and wants every failure named.
func TestBatchLarge(t *testing.T) {
	w := testnet.New(t)
	host := w.Host("host")
	b := batch(t, host.NS)
	const n = 1000
	for i := range n {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		if i%100 == 50 {
			b.AddrAdd(99, netip.PrefixFrom(addr, 32)) // no such interface
			continue
		}
		b.RouteAdd(linux.Route{Dst: netip.PrefixFrom(addr, 32), Index: 1})
	}
	if b.Len() != n {
		t.Errorf("Len: %d", b.Len())
	}
	err := b.Send()
	for i := 50; i < n; i += 100 {
		want := fmt.Sprintf("add address 10.0.%d.%d/32: ", i>>8, i&255)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if !errors.Is(err, syscall.ENODEV) {
		t.Errorf("error: %v", err)
	}
	routes, err := linux.Dump(func() ([]netlink.Route, error) {
		return host.Link.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: linux.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil || len(routes) != n-n/100 {
		t.Errorf("%d routes, %v", len(routes), err)
	}
}

// TestRouteDelSparesOthers keeps a route that an administrator made.
func TestRouteDelSparesOthers(t *testing.T) {
	w := testnet.New(t)
	host := w.Host("host")
	host.Route("10.9.0.0/24", "", "lo")
	host.Route("fd09::/64", "", "lo")
	b := batch(t, host.NS)
	b.RouteDel(linux.Route{Dst: netip.MustParsePrefix("10.9.0.0/24")})
	b.RouteDel(linux.Route{Dst: netip.MustParsePrefix("fd09::/64")})
	send(t, b)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := host.Link.RouteListFiltered(family, &netlink.Route{Protocol: 4}, netlink.RT_FILTER_PROTOCOL)
		if err != nil || len(routes) != 1 {
			t.Errorf("family %d: %v, %v", family, routes, err)
		}
	}
}

// TestWaitUp sends one packet over each of many new pairs as soon as it may, and
// wants each to arrive.
func TestWaitUp(t *testing.T) {
	w := testnet.New(t)
	a, b := w.Host("a"), w.Host("b")
	onA, onB := batch(t, a.NS), batch(t, b.NS)
	macA, macB := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	for i := range 20 {
		dev := fmt.Sprint("e", i)
		addrA, addrB := netip.AddrFrom4([4]byte{10, 0, byte(i), 1}), netip.AddrFrom4([4]byte{10, 0, byte(i), 2})
		var atA netlink.LinkAttrs
		onA.VethAdd(linux.VethPair{Name: dev, MAC: macA, PeerName: dev, PeerMAC: macB, PeerNS: b.NS})
		onA.LinkGet(dev, &atA)
		send(t, onA)
		onA.AddrAdd(atA.Index, netip.PrefixFrom(addrA, 24))
		onA.NeighSet(atA.Index, addrB, macB)
		send(t, onA)
		onB.AddrAdd(atA.ParentIndex, netip.PrefixFrom(addrB, 24))
		onB.LinkUp(atA.ParentIndex)
		if err := errors.Join(onB.WaitUp(dev), onA.WaitUp(dev)); err != nil {
			t.Fatal(err)
		}
		server, err := b.NS.ListenPacket("udp", netip.AddrPortFrom(addrB, 9).String())
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		client, err := a.Dial(t.Context(), "udp", "", netip.AddrPortFrom(addrB, 9))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := server.SetReadDeadline(time.Now().Add(testnet.AskTimeout)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := server.ReadFrom(make([]byte, 9)); err != nil {
			t.Errorf("pair %d: %v", i, err)
		}
	}
	onA.LinkDel("e0")
	if err := onA.WaitUp("e0"); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("interface gone: %v", err)
	}
}

func TestDump(t *testing.T) {
	calls := 0
	got, err := linux.Dump(func() ([]int, error) {
		if calls++; calls < 3 {
			return nil, netlink.ErrDumpInterrupted
		}
		return []int{calls}, nil
	})
	if err != nil || len(got) != 1 || got[0] != 3 {
		t.Errorf("%v, %v", got, err)
	}
	_, err = linux.Dump(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted })
	if !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("always interrupted: %v", err)
	}
}

func batch(t *testing.T, ns *linux.NetNS) *linux.Batch {
	t.Helper()
	b, err := ns.Batch()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func send(t *testing.T, b *linux.Batch) {
	t.Helper()
	if err := b.Send(); err != nil {
		t.Fatal(err)
	}
}

// wantRoute looks for the route of ours whose gateway (bits 0) or destination is
// addr.
func wantRoute(t *testing.T, host *testnet.Host, family int, addr netip.Addr, bits, mtu int) {
	t.Helper()
	routes, err := host.Link.RouteListFiltered(family, &netlink.Route{Protocol: linux.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(routes) != 1 {
		t.Errorf("routes of %s: %v, %v", host.Name, routes, err)
		return
	}
	r, at := routes[0], routes[0].Gw
	if bits > 0 {
		at = r.Dst.IP
	}
	ones, _ := r.Dst.Mask.Size()
	if !at.Equal(addr.AsSlice()) || ones != bits || r.MTU != mtu {
		t.Errorf("route of %s: %+v", host.Name, r)
	}
}

func wantNeigh(t *testing.T, host *testnet.Host, family int, addr netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	neighs, err := host.Link.NeighList(0, family)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighs {
		if n.IP.Equal(addr.AsSlice()) && n.State == unix.NUD_PERMANENT && n.HardwareAddr.String() == mac.String() {
			return
		}
	}
	t.Errorf("no permanent neighbour %s %s in %v", addr, mac, neighs)
}

func names(links []netlink.Link) string {
	var s []string
	for _, link := range links {
		s = append(s, link.Attrs().Name)
	}
	return strings.Join(s, " ")
}

// TestInterfaceSettings reads back what the batch sets beside addresses and routes, in the kernel's own files.
func TestInterfaceSettings(t *testing.T) {
	w := testnet.New(t)
	a, b := w.Host("a"), w.Host("b")
	for _, key := range []string{"all", "default"} {
		a.Sysctl("net/ipv4/conf/"+key+"/rp_filter", "1")
	}
	settings := batch(t, a.NS)
	settings.VethAdd(linux.VethPair{Name: "eth0", Down: true, PeerName: "eth0", PeerNS: b.NS})
	send(t, settings)
	isUp := func(want bool) {
		t.Helper()
		if link, err := a.Link.LinkByName("eth0"); err != nil || link.Attrs().Flags&net.FlagUp != 0 != want {
			t.Errorf("eth0 is %+v, %v; want it up: %v", link, err, want)
		}
	}
	isUp(false)
	settings.LinkUpBare(a.Index("eth0"), true)
	send(t, settings)
	isUp(true)
	var link netlink.LinkAttrs
	settings.LinkAt(a.Index("eth0"), &link)
	send(t, settings)
	if link.Name != "eth0" {
		t.Errorf("LinkAt: %+v", link)
	}
	a.Do(func() error {
		for key, want := range map[string]string{"net/ipv4/conf/eth0/rp_filter": "0", "net/ipv6/conf/eth0/addr_gen_mode": "1"} {
			if got, err := linux.ReadSysctl(key); err != nil || got != want {
				t.Errorf("%s is %q, %v, want %s", key, got, err, want)
			}
		}
		return nil
	})
	settings.LinkUpBare(1<<20, false)
	if err := settings.Send(); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "interface 1048576 up without rp_filter") {
		t.Errorf("an interface that is not there: %v", err)
	}
	if err := settings.WaitUp("none"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("wait for nothing: %v", err)
	}
}
