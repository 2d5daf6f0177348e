// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
)

// NoSkip is the environment variable that turns a skip of [MustRoot] into a
// failure when it is "1": set it on machines that have everything.
const NoSkip = "FAIRLEAD_NO_SKIP"

// MustRoot skips the test, saying why, where it cannot make network namespaces.
func MustRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root to make network namespaces")
	}
	ns, err := linux.NewNetNS()
	if err != nil {
		Skip(t, fmt.Sprintf("needs to make network namespaces: %v", err))
	}
	ns.Close()
}

// Skip skips the test with a reason, or fails it when [NoSkip] is set.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv(NoSkip) == "1" {
		t.Fatalf("%s=1, but: %s", NoSkip, reason)
		return
	}
	t.Skip(reason)
}

// World is the network of one test.
type World struct {
	t testing.TB
}

// New starts an empty network, after [MustRoot] and [NoLeaks].
func New(t testing.TB) *World {
	t.Helper()
	MustRoot(t)
	NoLeaks(t)
	return &World{t: t}
}

// Host is one network namespace. Its methods fail the test on errors and so may
// be called from the goroutine of the test only; [Host.Ask] and [Host.NS] may be
// used from others.
type Host struct {
	Name string
	NS   *linux.NetNS
	Link *netlink.Handle // rtnetlink inside the namespace, for what has no helper
	t    testing.TB
}

// Host makes a host with nothing but a loopback interface.
func (w *World) Host(name string) *Host {
	w.t.Helper()
	ns, err := linux.NewNetNS()
	w.ok(err)
	w.t.Cleanup(func() { ns.Close() })
	link, err := ns.Netlink()
	w.ok(err)
	w.t.Cleanup(link.Close)
	h := &Host{Name: name, NS: ns, Link: link, t: w.t}
	// Link-local addresses would otherwise be unusable for the first second or
	// two, and with them everything that needs neighbour discovery.
	h.Sysctl("net/ipv6/conf/default/accept_dad", "0")
	return h
}

// Cable connects two hosts by a veth pair, both ends up and ready to send.
func (w *World) Cable(a *Host, aDev string, b *Host, bDev string) {
	w.t.Helper()
	batch, err := a.NS.Batch()
	w.ok(err)
	defer batch.Close()
	batch.VethAdd(linux.VethPair{Name: aDev, PeerName: bDev, PeerNS: b.NS})
	w.ok(batch.Send())
	b.Up(bDev)
	w.ok(batch.WaitUp(aDev))
	other := b.batch()
	defer other.Close()
	w.ok(other.WaitUp(bDev))
}

// Switch makes a bridge on the host and puts the given interfaces into it.
func (h *Host) Switch(name string, ports ...string) {
	h.t.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = name
	h.ok(h.Link.LinkAdd(bridge))
	for _, port := range ports {
		link, err := h.Link.LinkByName(port)
		h.ok(err)
		h.ok(h.Link.LinkSetMaster(link, bridge))
	}
	h.Up(name)
}

// Up sets an interface up.
func (h *Host) Up(dev string) {
	h.t.Helper()
	link, err := h.Link.LinkByName(dev)
	h.ok(err)
	h.ok(h.Link.LinkSetUp(link))
}

// Index returns the number of an interface.
func (h *Host) Index(dev string) int {
	h.t.Helper()
	link, err := h.Link.LinkByName(dev)
	h.ok(err)
	return link.Attrs().Index
}

// Addr gives an interface addresses such as "10.0.0.1/24" or "fd00::1/64",
// usable at once (no duplicate address detection).
func (h *Host) Addr(dev string, addrs ...string) {
	h.t.Helper()
	batch := h.batch()
	defer batch.Close()
	index := h.Index(dev)
	for _, addr := range addrs {
		prefix, err := netip.ParsePrefix(addr)
		h.ok(err)
		batch.AddrAdd(index, prefix)
	}
	h.ok(batch.Send())
}

// Route adds a route to dst ("0.0.0.0/0" is the default one) through the
// gateway via, or, if via is empty, directly to the link. The route looks
// like one that an administrator made: it does not have linux.RouteProtocol.
func (h *Host) Route(dst, via, dev string) {
	h.t.Helper()
	prefix, err := netip.ParsePrefix(dst)
	h.ok(err)
	route := &netlink.Route{Dst: ipnet(prefix), LinkIndex: h.Index(dev), Protocol: 4}
	if via != "" {
		gateway, err := netip.ParseAddr(via)
		h.ok(err)
		route.Gw = gateway.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	h.ok(h.Link.RouteReplace(route))
}

// Forward makes the host a router for both families.
func (h *Host) Forward() {
	h.t.Helper()
	h.Sysctl("net/ipv4/ip_forward", "1")
	h.Sysctl("net/ipv6/conf/all/forwarding", "1")
}

// Sysctl sets a net sysctl of the host.
func (h *Host) Sysctl(key, value string) {
	h.t.Helper()
	h.ok(h.NS.Do(func() error { return linux.WriteSysctl(key, value) }))
}

// Do runs f inside the host's namespace and fails the test with its error. f may
// use the test's own Fatal: it ends the test as it would outside.
func (h *Host) Do(f func() error) {
	h.t.Helper()
	h.ok(h.NS.Do(f))
}

// Without runs f as Do does, on a thread that has given up capabilities (unix.CAP_*), and gives them back.
func (h *Host) Without(f func(), capabilities ...int) {
	h.t.Helper()
	h.Do(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var all, some [2]unix.CapUserData
		if err := unix.Capget(&header, &all[0]); err != nil {
			return err
		}
		some = all
		for _, c := range capabilities {
			some[c/32].Effective &^= 1 << (c % 32)
		}
		if err := unix.Capset(&header, &some[0]); err != nil {
			return err
		}
		f()
		return unix.Capset(&header, &all[0]) // the effective ones come back from those permitted
	})
}

func (h *Host) batch() *linux.Batch {
	h.t.Helper()
	batch, err := h.NS.Batch()
	h.ok(err)
	return batch
}

func (h *Host) ok(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("host %s: %v", h.Name, err)
	}
}

func (w *World) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}
