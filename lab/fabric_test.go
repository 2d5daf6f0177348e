// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

// TestFabric: every node reaches every other and the fabric, in both families, at once and with its own address; and its routes lead nowhere else.
func TestFabric(t *testing.T) {
	testnet.MustRoot(t)
	params := cluster.DefaultParams()
	params.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}
	params.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/48")}
	params = params.Complete()
	fabric, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer fabric.Close()
	var nodes []*linux.NetNS
	dir := t.TempDir()
	err = fabric.Do(func() error {
		bridge, err := makeFabric(params.FabricAddrs())
		if err != nil {
			return err
		}
		for i, name := range params.NodeNames() {
			path := filepath.Join(dir, name)
			ns, err := makeNode(name, path, bridge, params.NodeAddrs(i), params.FabricAddrs())
			if err != nil {
				return err
			}
			t.Cleanup(func() {
				ns.Close()
				if err := linux.Unbind(path); err != nil {
					t.Error(err)
				}
			})
			nodes = append(nodes, ns)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Each place answers with the address it sees.
	places := append([]*linux.NetNS{fabric}, nodes...)
	addrs := [][]netip.Prefix{params.FabricAddrs()}
	for i := range nodes {
		addrs = append(addrs, params.NodeAddrs(i))
	}
	for i, place := range places {
		for _, a := range addrs[i] {
			l, err := place.Listen("tcp", netip.AddrPortFrom(a.Addr(), 7).String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String())
					c.Close()
				}
			}()
		}
	}
	for from, place := range places {
		for to := range places {
			for family, a := range addrs[to] {
				c, err := place.Dial(t.Context(), "tcp", netip.AddrPortFrom(a.Addr(), 7).String())
				if err != nil {
					t.Errorf("%d to %s: %v", from, a, err)
					continue
				}
				seen, err := io.ReadAll(c)
				c.Close()
				if want := addrs[from][family].Addr().String(); err != nil || string(seen) != want {
					t.Errorf("%d to %s was seen as %q %v, want %s", from, a, seen, err, want)
				}
			}
		}
	}
	for i, ns := range nodes {
		checkNode(t, i, ns, params)
	}
	// The fabric itself leads nowhere.
	h, err := fabric.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, out := range []string{"192.0.2.1", "2001:db8::1"} {
		if r, err := h.RouteGet(net.ParseIP(out)); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("the fabric has a route to %s: %v %v", out, r, err)
		}
	}
}

// checkNode looks at one node's routes and settings.
func checkNode(t *testing.T, i int, ns *linux.NetNS, params cluster.Params) {
	t.Helper()
	h, err := ns.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for family, gw := range params.FabricAddrs() {
		r, err := h.RouteGet(addOne(params.ServiceCIDRs[family]))
		if err != nil || len(r) != 1 || !r[0].Gw.Equal(gw.Addr().AsSlice()) {
			t.Errorf("node %d: route to a ClusterIP: %v %v", i, r, err)
		}
	}
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if n := l.Attrs().Name; n != "lo" && n != nodeInterface || l.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("node %d: interface %s %v", i, n, l.Attrs().Flags)
		}
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("node %d: address %s is not usable yet", i, a)
		}
	}
	err = ns.Do(func() error {
		for key, want := range quiet {
			if got, err := linux.ReadSysctl(key); err != nil || got != want {
				t.Errorf("node %d: %s is %q %v, want %s", i, key, got, err, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func addOne(p netip.Prefix) net.IP { return p.Addr().Next().AsSlice() }
