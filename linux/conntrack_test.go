// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux_test

import (
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

// TestTracked: what the client knows of a connection leads to what its server sees, in both families and protocols.
func TestTracked(t *testing.T) {
	n := newNATWorld(t)
	for _, network := range []string{"tcp", "udp"} {
		proto := map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}[network]
		for i, virtual := range n.virtual {
			answer, err := n.client.Ask(network, "", virtual)
			if err != nil {
				t.Fatalf("%s %s: %v", network, virtual, err)
			}
			// Nothing on the way replaces the source: the server saw the client's own address and port.
			client := answer.Client
			n.router.Do(func() error {
				got, ok, err := linux.Tracked(proto, client, virtual)
				if want := (linux.Translation{Server: n.backend[i], Client: client}); !ok || got != want {
					t.Errorf("%s %s to %s: %+v, %t; want %+v", network, client, virtual, got, ok, want)
				}
				for what, ends := range map[string][2]netip.AddrPort{
					"another port":   {netip.AddrPortFrom(client.Addr(), client.Port()^1), virtual},
					"another server": {client, n.backend[i]},
				} {
					if got, ok, err := linux.Tracked(proto, ends[0], ends[1]); ok || err != nil {
						t.Errorf("%s %s: %+v, %v", network, what, got, err)
					}
				}
				return err
			})
		}
	}
	n.router.Do(func() error {
		count, err := linux.ConntrackCount()
		if count != 4 {
			t.Errorf("%d connections tracked, want 4", count)
		}
		return err
	})
}
