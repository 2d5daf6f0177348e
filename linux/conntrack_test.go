// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

// natWorld is a client and two servers around a router that rewrites the virtual
// address port 53 to the first server's port 5353, in both families and both
// protocols.
type natWorld struct {
	client, router *testnet.Host
	virtual        []netip.AddrPort
	backend        []netip.AddrPort
}

func newNATWorld(t *testing.T) natWorld {
	w := testnet.New(t)
	n := natWorld{client: w.Host("client"), router: w.Host("router")}
	server := w.Host("server")
	w.Cable(n.client, "eth0", n.router, "c")
	w.Cable(server, "eth0", n.router, "s")
	n.client.Addr("eth0", "10.0.0.2/24", "fd00::2/64")
	n.router.Addr("c", "10.0.0.1/24", "fd00::1/64")
	n.router.Addr("s", "10.0.1.1/24", "fd00:1::1/64")
	server.Addr("eth0", "10.0.1.2/24", "fd00:1::2/64")
	n.router.Forward()
	for _, route := range [][2]string{{"0.0.0.0/0", ""}, {"::/0", ""}} {
		v6 := route[0] == "::/0"
		via := map[bool][2]string{false: {"10.0.0.1", "10.0.1.1"}, true: {"fd00::1", "fd00:1::1"}}[v6]
		n.client.Route(route[0], via[0], "eth0")
		server.Route(route[0], via[1], "eth0")
	}
	for i, virtual := range []string{"10.96.0.10:53", "[fd00:96::a]:53"} {
		n.virtual = append(n.virtual, netip.MustParseAddrPort(virtual))
		n.backend = append(n.backend, netip.MustParseAddrPort([]string{"10.0.1.2:5353", "[fd00:1::2]:5353"}[i]))
		server.Echo("udp", n.backend[i].String())
		server.Echo("tcp", n.backend[i].String())
	}
	n.router.Do(func() error { return dnat(n.virtual, n.backend) })
	return n
}

// dnat installs the rewriting in the current namespace.
func dnat(virtual, backend []netip.AddrPort) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "test"})
	chain := conn.AddChain(&nftables.Chain{
		Name: "nat", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	for i, v := range virtual {
		family, offset, size := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
		if v.Addr().Is6() {
			family, offset, size = unix.NFPROTO_IPV6, 24, 16
		}
		port := backend[i].Port()
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: v.Addr().AsSlice()},
			&expr.Immediate{Register: 1, Data: backend[i].Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: []byte{byte(port >> 8), byte(port)}},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: 1, RegProtoMin: 2},
		}})
	}
	return conn.Flush()
}

func (n natWorld) ask(t *testing.T, network string, to netip.AddrPort) {
	t.Helper()
	if _, err := n.client.Ask(network, "", to); err != nil {
		t.Fatalf("%s %s: %v", network, to, err)
	}
}

// remove deletes in the router and wants a number.
func (n natWorld) remove(t *testing.T, what string, want int, matches ...linux.ConntrackMatch) {
	t.Helper()
	n.router.Do(func() error {
		got, err := linux.DeleteConntrack(matches...)
		if got != want {
			t.Errorf("%s: deleted %d, want %d", what, got, want)
		}
		return err
	})
}

func (n natWorld) count(t *testing.T) int {
	t.Helper()
	count := 0
	n.router.Do(func() (err error) {
		count, err = linux.ConntrackCount()
		return err
	})
	return count
}

// TestDeleteConntrack deletes some entries among others and looks that exactly
// those are gone.
func TestDeleteConntrack(t *testing.T) {
	n := newNATWorld(t)
	for i, virtual := range n.virtual {
		for range 3 {
			n.ask(t, "udp", virtual)
		}
		n.ask(t, "udp", n.backend[i]) // the same endpoint, not by the virtual address
		n.ask(t, "tcp", virtual)
	}
	if got := n.count(t); got != 10 {
		t.Fatalf("tracked: %d", got)
	}
	const udp = unix.IPPROTO_UDP
	other := netip.MustParseAddrPort("10.96.0.11:53")
	for i, virtual := range n.virtual {
		n.remove(t, "another port", 0, linux.ConntrackMatch{Proto: udp, OrigDst: netip.AddrPortFrom(virtual.Addr(), 54)})
		n.remove(t, "the virtual address as endpoint", 0, linux.ConntrackMatch{ReplySrc: virtual})
		n.remove(t, "another endpoint", 0, linux.ConntrackMatch{OrigDst: virtual, ReplySrc: netip.AddrPortFrom(virtual.Addr(), 5353)})
		n.remove(t, "virtual address and endpoint, and one that is not used", 3,
			linux.ConntrackMatch{Proto: udp, OrigDst: virtual, ReplySrc: n.backend[i]}, linux.ConntrackMatch{OrigDst: other})
		n.remove(t, "again", 0, linux.ConntrackMatch{Proto: udp, OrigDst: virtual, ReplySrc: n.backend[i]})
		n.remove(t, "endpoint, any port", 1, linux.ConntrackMatch{Proto: udp, ReplySrc: netip.AddrPortFrom(n.backend[i].Addr(), 0)})
	}
	n.remove(t, "both families, any protocol", 2, linux.ConntrackMatch{OrigDst: n.virtual[0]}, linux.ConntrackMatch{OrigDst: n.virtual[1]})
	if got := n.count(t); got != 0 {
		t.Errorf("tracked at the end: %d", got)
	}
}

// TestDeleteConntrackMany uses more matches than are looked for one by one.
func TestDeleteConntrackMany(t *testing.T) {
	n := newNATWorld(t)
	n.ask(t, "udp", n.virtual[0])
	n.ask(t, "tcp", n.virtual[0])
	n.ask(t, "udp", n.virtual[1])
	n.ask(t, "udp", n.backend[0])
	var matches []linux.ConntrackMatch
	for port := range uint16(100) {
		for _, virtual := range n.virtual {
			matches = append(matches, linux.ConntrackMatch{Proto: unix.IPPROTO_UDP, OrigDst: netip.AddrPortFrom(virtual.Addr(), port+1)})
		}
	}
	n.remove(t, "many", 2, matches...)
	if got := n.count(t); got != 2 {
		t.Errorf("tracked at the end: %d", got)
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(n.virtual[0].Addr().As16()), 53)
	n.remove(t, "IPv4 as IPv6", 1, linux.ConntrackMatch{OrigDst: mapped})
}

// TestConntrackAmong finds one entry among thousands of others.
func TestConntrackAmong(t *testing.T) {
	n := newNATWorld(t)
	conn, err := n.client.NS.ListenPacket("udp", "10.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const others = 3000
	for port := 1; port <= others; port++ {
		if _, err := conn.WriteTo(nil, &net.UDPAddr{IP: net.IPv4(10, 0, 1, 3), Port: port}); err != nil {
			t.Fatal(err)
		}
	}
	n.ask(t, "udp", n.virtual[0])
	before := n.count(t)
	if before < others/2 { // some packets may be lost on the way
		t.Fatalf("tracked: %d", before)
	}
	n.remove(t, "one among many", 1, linux.ConntrackMatch{Proto: unix.IPPROTO_UDP, ReplySrc: n.backend[0]})
	if got := n.count(t); got != before-1 {
		t.Errorf("tracked %d, before %d", got, before)
	}
	n.remove(t, "the others", before-1, linux.ConntrackMatch{OrigDst: netip.MustParseAddrPort("10.0.1.3:0")})
}

func TestDeleteConntrackRefuses(t *testing.T) {
	for _, m := range []linux.ConntrackMatch{
		{},
		{Proto: 17},
		{OrigDst: netip.AddrPortFrom(netip.Addr{}, 53)},
		{OrigDst: netip.MustParseAddrPort("10.0.0.1:53"), ReplySrc: netip.MustParseAddrPort("[::1]:53")},
	} {
		if n, err := linux.DeleteConntrack(m); n != 0 || err == nil {
			t.Errorf("%+v: %d, %v", m, n, err)
		}
	}
}
