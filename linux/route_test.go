// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

func TestDefaultMTU(t *testing.T) {
	w := testnet.New(t)
	a, b := w.Host("a"), w.Host("b")
	w.Cable(a, "eth0", b, "eth0")
	w.Cable(a, "eth1", b, "eth1")
	a.Addr("eth0", "10.0.0.1/24")
	a.Addr("eth1", "fd00::1/64")
	for dev, mtu := range map[string]int{"eth0": 1450, "eth1": 1400} {
		link, err := a.Link.LinkByName(dev)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Link.LinkSetMTU(link, mtu); err != nil {
			t.Fatal(err)
		}
	}
	want := func(name string, mtu int) {
		t.Helper()
		a.Do(func() error {
			got, err := linux.DefaultMTU()
			if got != mtu {
				t.Errorf("%s: %d, want %d", name, got, mtu)
			}
			return err
		})
	}
	want("no default route", 0)
	a.Route("10.0.0.0/8", "10.0.0.2", "eth0")
	want("only another route", 0)
	a.Route("0.0.0.0/0", "10.0.0.2", "eth0")
	want("IPv4", 1450)
	a.Route("::/0", "fd00::2", "eth1")
	want("smaller of both", 1400)
	all := netip.MustParsePrefix("0.0.0.0/0")
	batch := batch(t, a.NS)
	batch.RouteReplace(linux.Route{Dst: all, Via: netip.MustParseAddr("10.0.0.2"), Index: a.Index("eth0"), MTU: 1300})
	send(t, batch)
	want("of the route", 1300)
	if err := a.Link.RouteReplace(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Type: unix.RTN_UNREACHABLE}); err != nil {
		t.Fatal(err)
	}
	want("IPv4 refuses", 1400)
}
