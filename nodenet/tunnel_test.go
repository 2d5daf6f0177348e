// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
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

// member is a node of a site, and a pod on it.
type member struct {
	*testnet.Host
	pod    *testnet.Host
	node   model.Node
	target *Target
}

// site is three nodes, the first two on one link and the third behind two routers, which pass only what comes from nodes and goes to nodes.
type site struct {
	t       *testing.T
	world   *testnet.World
	members []*member
	router  *testnet.Host // on the link of the first two
	border  *testnet.Host // on that of the third
	fabric  *testnet.Host // the switch
}

const (
	v4only = 1 << iota
	v6only
	v6first
	dual = v4only | v6only
)

// choose keeps the addresses or ranges of the families, in their order.
func choose[T any](families int, first, second T) []T {
	switch families {
	case v4only:
		return []T{first}
	case v6only:
		return []T{second}
	case v6first:
		return []T{second, first}
	}
	return []T{first, second}
}

// newSite makes nodes with addresses of some families and pods of some.
func newSite(t *testing.T, nodes, pods int) *site {
	t.Helper()
	w := testnet.New(t)
	s := &site{t: t, world: w, router: w.Host("router"), border: w.Host("border"), fabric: w.Host("fabric")}
	w.Cable(s.router, "left", s.fabric, "p0")
	w.Cable(s.router, "right", s.border, "left")
	ports := []string{"p0"}
	for i := 1; i <= 3; i++ {
		h := w.Host(fmt.Sprintf("n%d", i))
		if i < 3 {
			w.Cable(h, "eth0", s.fabric, fmt.Sprintf("p%d", i))
			ports = append(ports, fmt.Sprintf("p%d", i))
		} else {
			w.Cable(h, "eth0", s.border, "right")
		}
		s.members = append(s.members, &member{Host: h, node: s.nodeN(i, nodes, pods)})
	}
	s.fabric.Switch("br0", ports...)
	for _, r := range []*testnet.Host{s.router, s.border} {
		r.Forward()
		r.Sysctl("net/ipv4/conf/left/rp_filter", "1")
		r.Sysctl("net/ipv4/conf/right/rp_filter", "1")
	}
	s.router.Addr("left", choose(nodes, "172.30.0.1/24", "fd00:30::1/64")...)
	s.router.Addr("right", choose(nodes, "172.29.0.1/24", "fd00:29::1/64")...)
	s.border.Addr("left", choose(nodes, "172.29.0.2/24", "fd00:29::2/64")...)
	s.border.Addr("right", choose(nodes, "172.31.0.1/24", "fd00:31::1/64")...)
	for _, to := range choose(nodes, [4]string{"172.31.0.0/24", "172.29.0.2", "172.30.0.0/24", "172.29.0.1"}, [4]string{"fd00:31::/64", "fd00:29::2", "fd00:30::/64", "fd00:29::1"}) {
		s.router.Route(to[0], to[1], "right")
		s.border.Route(to[2], to[3], "left")
	}
	for i, m := range s.members {
		net4, net6 := "172.30.0", "fd00:30"
		if i == 2 {
			net4, net6 = "172.31.0", "fd00:31"
		}
		m.Addr("eth0", choose(nodes, fmt.Sprintf("%s.1%d/24", net4, i+1), fmt.Sprintf("%s::1%d/64", net6, i+1))...)
		for _, all := range choose(nodes, [2]string{"0.0.0.0/0", net4 + ".1"}, [2]string{"::/0", net6 + "::1"}) {
			m.Route(all[0], all[1], "eth0")
		}
		m.pod = s.addPod(m, i+1)
	}
	for _, m := range s.members {
		for _, a := range m.node.Addrs {
			settle(t, m.Host, a.String())
		}
	}
	return s
}

func (s *site) nodeN(i, nodes, pods int) model.Node {
	n := model.Node{Name: fmt.Sprintf("n%d", i)}
	net4, net6 := "172.30.0", "fd00:30"
	if i == 3 {
		net4, net6 = "172.31.0", "fd00:31"
	}
	for _, a := range choose(nodes, fmt.Sprintf("%s.1%d", net4, i), fmt.Sprintf("%s::1%d", net6, i)) {
		n.Addrs = append(n.Addrs, netip.MustParseAddr(a))
	}
	for _, r := range choose(pods, fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:244:0:%d::/64", i)) {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(r))
	}
	return n
}

// podAddr is the fifth address of a range.
func podAddr(r netip.Prefix) netip.Addr { return nth(r, 5) }

// nth is the nth address after a range's first.
func nth(r netip.Prefix, n int) netip.Addr {
	a := r.Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// podDevice is the node's end of its i-th pod's veth pair.
func podDevice(i int) string { return fmt.Sprintf("fl%011x", i) }

// addPod connects a pod as package podnet does.
func (s *site) addPod(m *member, i int) *testnet.Host {
	s.t.Helper()
	pod, dev := s.world.Host(fmt.Sprintf("p%d", i)), podDevice(i)
	s.world.Cable(m.Host, dev, pod, "eth0")
	m.Sysctl("net/ipv4/conf/"+dev+"/rp_filter", "0")
	outer, err := m.Link.LinkByName(dev)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range m.node.PodCIDRs {
		gateway, all := netip.MustParseAddr("169.254.1.1"), netip.MustParsePrefix("0.0.0.0/0")
		if r.Addr().Is6() {
			gateway, all = netip.MustParseAddr("fe80::1"), netip.MustParsePrefix("::/0")
		}
		s.addPodAddr(m, pod, dev, podAddr(r))
		s.wire(pod, func(b *linux.Batch) {
			b.NeighSet(pod.Index("eth0"), gateway, outer.Attrs().HardwareAddr)
			b.RouteAdd(linux.Route{Dst: all, Via: gateway, Index: pod.Index("eth0")})
		})
		settle(s.t, pod, podAddr(r).String())
	}
	return pod
}

// addPodAddr gives a pod an address, and the node the way there.
func (s *site) addPodAddr(m *member, pod *testnet.Host, dev string, a netip.Addr) {
	s.t.Helper()
	inner, err := pod.Link.LinkByName("eth0")
	if err != nil {
		s.t.Fatal(err)
	}
	s.wire(m.Host, func(b *linux.Batch) {
		b.NeighSet(m.Index(dev), a, inner.Attrs().HardwareAddr)
		b.RouteAdd(linux.Route{Dst: single(a), Index: m.Index(dev)})
	})
	s.wire(pod, func(b *linux.Batch) { b.AddrAdd(pod.Index("eth0"), single(a)) })
}

func (s *site) wire(h *testnet.Host, add func(*linux.Batch)) {
	s.t.Helper()
	b, err := h.NS.Batch()
	if err != nil {
		s.t.Fatal(err)
	}
	defer b.Close()
	add(b)
	if err := b.Send(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) snapshot(self int, without ...int) *model.Snapshot {
	b := model.NewBuilder(model.Config{Self: fmt.Sprintf("n%d", self+1), DNS: dnsVIPs})
	for i, m := range s.members {
		if !slices.Contains(without, i) {
			b.SetNode(m.node)
		}
	}
	return b.Build()
}

// set has a node's agent start anew in a mode.
func (s *site) set(i int, mode Mode) {
	s.t.Helper()
	m := s.members[i]
	m.target = New(Options{Mode: mode, Logger: slog.New(slog.DiscardHandler)})
	m.Do(func() error { return m.target.Apply(context.Background(), s.snapshot(i)) })
	if p := m.target.Problems(); len(p) > 0 && mode != Never {
		s.t.Errorf("%s in mode %s: %q", m.Name, mode, p)
	}
}

func (m *member) dump(t *testing.T) (text string) {
	t.Helper()
	m.Do(func() (err error) { text, err = Dump(); return err })
	return text
}

// ask sends over TCP and UDP, and wants the server to see where it came from.
func ask(t *testing.T, what string, from *testnet.Host, source netip.Addr, to *testnet.Host, at netip.Addr) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		server := to.Echo(network, netip.AddrPortFrom(at, 0).String())
		answer, err := from.Ask(network, "", server)
		if err != nil {
			t.Errorf("%s, %s %s: %v", what, network, server, err)
			continue
		}
		if source.IsValid() && answer.Client.Addr() != source {
			t.Errorf("%s, %s %s: the receiver sees %s, not %s", what, network, server, answer.Client, source)
		}
	}
}

// transfer sends n bytes and gets them back, and returns the largest segment that the client may send.
func transfer(t *testing.T, from, to *testnet.Host, at netip.Addr, n int64) (mss int) {
	t.Helper()
	listener, err := to.NS.Listen("tcp", netip.AddrPortFrom(at, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := from.NS.Dial(ctx, "tcp", listener.Addr().String())
	if err != nil {
		t.Errorf("transfer to %s: %v", at, err)
		return 0
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	go func() {
		io.CopyN(c, zeros{}, n)
		c.(*net.TCPConn).CloseWrite()
	}()
	back, err := io.Copy(io.Discard, c)
	if err != nil || back != n {
		t.Errorf("transfer to %s: %d of %d bytes came back: %v", at, back, n, err)
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { mss, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
	if err != nil {
		t.Fatal(err)
	}
	return mss
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// datagram sends one of a size, again if it is lost, as a client of UDP does: the first may be the one by which the path's MTU is learnt.
func datagram(t *testing.T, from, to *testnet.Host, at netip.Addr, size int) {
	t.Helper()
	server := to.Echo("udp", netip.AddrPortFrom(at, 0).String())
	c, err := from.Dial(context.Background(), "udp", "", server)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		if _, err := c.Write(make([]byte, size)); err != nil && !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("send %d bytes to %s: %v", size, at, err)
			return
		}
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Read(make([]byte, 200)); err == nil {
			return
		}
	}
	t.Errorf("a datagram of %d bytes does not get to %s", size, at)
}

var worlds = []struct {
	name        string
	nodes, pods int
}{
	{"IPv4", v4only, v4only},
	{"IPv6", v6only, v6only},
	{"both", dual, dual},
	{"both, nodes IPv6 first", v6first, dual},
	{"pods of both over IPv4", v4only, dual},
	{"pods of both over IPv6", v6only, dual},
	{"pods of IPv4 over IPv6", v6only, v4only},
	{"pods of IPv6 over IPv4", v4only, v6only},
}

// TestTunnel: in every mode and family each pod reaches each other node's pod with its own address, and the node itself too, with little and with much.
func TestTunnel(t *testing.T) {
	testnet.MustRoot(t)
	for _, world := range worlds {
		for _, mode := range []Mode{Auto, Always} {
			t.Run(fmt.Sprintf("%s/%s", world.name, mode), func(t *testing.T) {
				s := newSite(t, world.nodes, world.pods)
				for i := range s.members {
					s.set(i, mode)
				}
				for i, from := range s.members {
					for j, to := range s.members {
						if i != j {
							s.pair(from, to, mode == Always || i == 2 || j == 2)
						}
					}
				}
				for _, m := range s.members {
					if n := m.fragments(t); n != 0 {
						t.Errorf("%s has cut up packets, into %d", m.Name, n)
					}
				}
			})
		}
	}
}

// fragments is how many the node itself has made, of both families.
func (m *member) fragments(t *testing.T) (n int) {
	t.Helper()
	m.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		six, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		lines := strings.Split(string(text), "\n")
		at := slices.Index(strings.Fields(lines[0]), "FragCreates")
		n, err = strconv.Atoi(strings.Fields(lines[1])[at])
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(six)) {
			if f := strings.Fields(line); f[0] == "Ip6FragCreates" {
				more, err := strconv.Atoi(f[1])
				n += more
				return err
			}
		}
		return errors.New("no Ip6FragCreates")
	})
	return n
}

// pair tries what there is between two nodes.
func (s *site) pair(from, to *member, far bool) {
	s.t.Helper()
	for _, r := range to.node.PodCIDRs {
		at := podAddr(r)
		var source netip.Addr
		for _, own := range from.node.PodCIDRs {
			if own.Addr().Is4() == at.Is4() {
				source = podAddr(own)
			}
		}
		tunnelled := far || !to.node.Addr(at).IsValid()
		ask(s.t, fmt.Sprintf("pod of %s to pod of %s", from.Name, to.Name), from.pod, source, to.pod, at)
		if own := from.node.Addr(at); own.IsValid() {
			ask(s.t, fmt.Sprintf("%s to pod of %s", from.Name, to.Name), from.Host, own, to.pod, at)
		}
		if other := to.node.Addr(at); other.IsValid() {
			ask(s.t, fmt.Sprintf("pod of %s to %s", from.Name, to.Name), from.pod, source, to.Host, other)
			from.Do(func() error {
				hop, err := LookupFromPod(other)
				if (hop.Tunnel == to.node.Addrs[0]) != far || (hop.Dev == Device) != far {
					s.t.Errorf("pod of %s to %s: %v", from.Name, other, hop)
				}
				if hop, err := Lookup(other); err != nil || hop.Dev != "eth0" {
					s.t.Errorf("%s to %s: %v, %v", from.Name, other, hop, err)
				}
				return err
			})
		}
		full, header := 1500, 40
		if tunnelled {
			full -= overhead(to.node.Addrs[0])
		}
		if at.Is6() {
			header = 60
		}
		if mss, want := transfer(s.t, from.pod, to.pod, at, 1<<20), full-header-12; mss != want { // 12: timestamps
			s.t.Errorf("pod of %s to pod of %s: segments of %d bytes, want %d", from.Name, to.Name, mss, want)
		}
		datagram(s.t, from.pod, to.pod, at, 1452) // with its headers, 1480 or 1500
		datagram(s.t, from.pod, to.pod, at, 8000)
		from.Do(func() error {
			hop, err := Lookup(at)
			want := Hop{Dev: "eth0", Via: to.node.Addr(at), Src: from.node.Addr(at), MTU: full}
			if tunnelled {
				want.Dev, want.Via, want.Tunnel = Device, macOf(to.node.Addrs[0]).gateway(r), to.node.Addrs[0]
			}
			if !want.Src.IsValid() {
				hop.Src = netip.Addr{}
			}
			if hop != want {
				s.t.Errorf("%s to %s: %v, want %v", from.Name, at, hop, want)
			}
			return err
		})
	}
}

const farFromN1 = `for pods 172.31.0.13/32 via 10.244.3.0 dev fairlead-vxlan mtu 1450
for pods fd00:31::13/128 via fe80::2842:96ff:fe84:672b dev fairlead-vxlan mtu 1450
local 10.96.0.10/32
local fd00:96::a/128
node 10.244.2.0/24 via 172.30.0.12 dev eth0
node 10.244.3.0/24 via 10.244.3.0 dev fairlead-vxlan mtu 1450 src 172.30.0.11
node fd00:244:0:2::/64 via fd00:30::12 dev eth0
node fd00:244:0:3::/64 via fe80::2842:96ff:fe84:672b dev fairlead-vxlan mtu 1450 src fd00:30::11
pod 10.244.1.5/32 dev fl00000000001
pod fd00:244:0:1::5/128 dev fl00000000001
unreachable 10.244.1.0/24
unreachable fd00:244:0:1::/64
tunnel fairlead-vxlan vni 170 port 4789 local 172.30.0.11 at 2a:bf:12:74:3c:e7 mtu 65465 up addresses [172.30.0.11 fd00:30::11]
admit 10.244.2.0/24 from 172.30.0.12
admit 10.244.3.0/24 from 172.31.0.13
admit 172.30.0.12/32 from 172.30.0.12
admit 172.31.0.13/32 from 172.31.0.13
admit fd00:244:0:2::/64 from 172.30.0.12
admit fd00:244:0:3::/64 from 172.31.0.13
admit fd00:30::12/128 from 172.30.0.12
admit fd00:31::13/128 from 172.31.0.13
neighbour 10.244.3.0 at 2a:42:96:84:67:2b
neighbour fe80::2842:96ff:fe84:672b at 2a:42:96:84:67:2b
peer 172.31.0.13 at 2a:42:96:84:67:2b
rule from 10.244.1.0/24 for pods
rule from fd00:244:0:1::/64 for pods
`

// TestTunnelDump: the whole state as text. It is the same after another start, which writes nothing.
func TestTunnelDump(t *testing.T) {
	testnet.MustRoot(t)
	s := newSite(t, dual, dual)
	s.set(0, Auto)
	if got := s.members[0].dump(t); got != farFromN1 {
		t.Errorf("got\n%s", got)
	}
	if got, want := s.members[0].target.Reach(), (Reach{Auto, DefaultPort, 1, 1}); got != want {
		t.Errorf("reach %v, want %v", got, want)
	}
	n := s.members[0].writes(t, func() error {
		again := New(Options{})
		if err := again.Apply(context.Background(), s.snapshot(0)); err != nil {
			return err
		}
		return again.Verify(context.Background())
	})
	if len(n) != 0 {
		t.Errorf("another start wrote: %q", n)
	}
	if got := s.members[0].dump(t); got != farFromN1 {
		t.Errorf("after another start\n%s", got)
	}
	s.members[0].Do(Cleanup)
	if got, want := s.members[0].dump(t), "pod 10.244.1.5/32 dev fl00000000001\npod fd00:244:0:1::5/128 dev fl00000000001\n"; got != want {
		t.Errorf("after cleaning up\n%s", got)
	}
}

// writes returns what a function that should change nothing has changed. The kernel tells of an address once more some time after a change of its
// device; so it is tried until nothing was told.
func (m *member) writes(t *testing.T, f func() error) (changes []string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		told := m.watchAll(t)
		m.Do(f)
		if changes = told(); len(changes) == 0 || time.Now().After(end) {
			return changes
		}
	}
}

// watchAll lists, when called, the changes since: routes, rules, neighbours and forwarding entries, addresses, devices, nftables.
func (m *member) watchAll(t *testing.T) func() []string {
	t.Helper()
	var fd, nft int
	m.Do(func() (err error) {
		open := func(proto int, groups ...int) (int, error) {
			fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
			if err != nil {
				return -1, err
			}
			if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
				return -1, err
			}
			for _, g := range groups {
				if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
					return -1, err
				}
			}
			return fd, nil
		}
		if fd, err = open(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_IFADDR,
			unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE); err != nil {
			return err
		}
		nft, err = open(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
		return err
	})
	return func() (changes []string) {
		defer unix.Close(fd)
		defer unix.Close(nft)
		for i, fd := range []int{fd, nft} {
			buf := make([]byte, 1<<16)
			for {
				n, _, err := unix.Recvfrom(fd, buf, 0)
				if err != nil {
					break // all has been read: notifications are there before the call that caused them returns
				}
				msgs, err := syscall.ParseNetlinkMessage(buf[:n])
				if err != nil {
					t.Fatal(err)
				}
				for _, msg := range msgs {
					if i == 0 && msg.Header.Type == unix.RTM_NEWNEIGH && !permanent(msg.Data) || msg.Header.Type == unix.RTM_DELNEIGH && i == 0 && !permanent(msg.Data) {
						continue // the kernel's own, of the link
					}
					if i == 0 && (msg.Header.Type == unix.RTM_NEWROUTE || msg.Header.Type == unix.RTM_DELROUTE) && msg.Data[5] != linux.RouteProtocol {
						continue
					}
					changes = append(changes, fmt.Sprintf("%d/%d: %x", i, msg.Header.Type, msg.Data))
				}
			}
		}
		return changes
	}
}

// otherDevice is another program's VXLAN device.
func otherDevice(local, remote netip.Addr, vni int, port uint16) *netlink.Vxlan {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "other.1"
	d := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, SrcAddr: local.AsSlice(), Port: int(port)}
	if remote.IsValid() {
		d.Group = remote.AsSlice()
	}
	return d
}

// permanent reads ndm_state.
func permanent(data []byte) bool { return len(data) > 8 && data[8]&unix.NUD_PERMANENT != 0 }
