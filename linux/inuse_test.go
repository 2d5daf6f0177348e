// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

// inUse lists the addresses in use around a host as "addr link" words, without loopback and link-local ones.
func inUse(t *testing.T, h *testnet.Host) string {
	t.Helper()
	var lines []string
	h.Do(func() error {
		used, err := linux.AddrsInUse()
		for _, u := range used {
			if !u.Addr.IsLoopback() && !u.Addr.IsLinkLocalUnicast() {
				lines = append(lines, fmt.Sprint(u.Addr, " ", u.Link))
			}
		}
		return err
	})
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

// TestAddrsInUse finds the host's own addresses and those one step away, on whatever interface there, and no others.
func TestAddrsInUse(t *testing.T) {
	w := testnet.New(t)
	node, pod, other, far := w.Host("node"), w.Host("pod"), w.Host("other"), w.Host("far")
	if got := inUse(t, node); got != "" {
		t.Errorf("of an empty host: %s", got)
	}
	w.Cable(node, "veth0", pod, "eth0")
	w.Cable(node, "veth1", other, "eth0")
	w.Cable(other, "eth1", far, "eth0")
	node.Addr("veth1", "10.0.0.1/24")
	pod.Addr("eth0", "10.0.0.2/24", "fd00::2/64")
	other.Addr("eth0", "10.0.0.3/24")
	other.Addr("eth1", "10.0.1.1/24") // another interface of a neighbour
	far.Addr("eth0", "10.0.1.2/24")   // two steps away
	want := "10.0.0.1 veth1, 10.0.0.2 veth0, 10.0.0.3 veth1, 10.0.1.1 veth1, fd00::2 veth0"
	if got := inUse(t, node); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := inUse(t, far); got != "10.0.0.3 eth0, 10.0.1.1 eth0, 10.0.1.2 eth0" {
		t.Errorf("of the far end: %s", got)
	}
	// A pair with both ends here is no way out.
	pair := batch(t, far.NS)
	pair.VethAdd(linux.VethPair{Name: "a", PeerName: "b"})
	send(t, pair)
	far.Addr("b", "10.0.2.1/24")
	if got := inUse(t, far); got != "10.0.0.3 eth0, 10.0.1.1 eth0, 10.0.1.2 eth0, 10.0.2.1 b" {
		t.Errorf("of the far end: %s", got)
	}
}

// TestRouteGet has every kind of way, and none.
func TestRouteGet(t *testing.T) {
	w := testnet.New(t)
	a, b := w.Host("a"), w.Host("b")
	w.Cable(a, "eth0", b, "eth0")
	a.Addr("eth0", "10.0.0.1/24", "fd00::1/64")
	a.Route("10.1.0.0/16", "10.0.0.2", "eth0")
	waiting := batch(t, a.NS)
	if err := waiting.WaitUp("eth0", netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")); err != nil {
		t.Fatal(err)
	}
	a.Route("fd01::/64", "fd00::2", "eth0")
	index := a.Index("eth0")
	asking := batch(t, a.NS)
	for addr, want := range map[string]linux.Found{
		"10.0.0.1": {Index: 1, Local: true},
		"fd00::1":  {Index: 1, Local: true},
		"10.0.0.9": {Index: index},
		"fd00::9":  {Index: index},
		"10.1.2.3": {Index: index, Via: true},
		"fd01::3":  {Index: index, Via: true},
		"10.9.0.1": {},
		"fd09::1":  {},
	} {
		var got linux.Found
		asking.RouteGet(netip.MustParseAddr(addr), &got)
		if err := asking.Send(); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
		if want.Local { // the kernel names the loopback interface, or for IPv6 sometimes the one that has the address
			got.Index = want.Index
		}
		if got != want {
			t.Errorf("%s: %+v, want %+v", addr, got, want)
		}
	}
}
