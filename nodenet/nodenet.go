// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package nodenet leads to the pods of other nodes: for each of a node's pod ranges a plain route by way of that node's
// address (the mode others call host-gw), without encapsulation and without NAT.
//
// It also makes two kinds of route for the node itself: cluster DNS's virtual addresses are delivered locally, to the agent's
// sockets, and what is sent to an address of this node's own range that no pod has is refused here rather than sent
// back to where it came from.
//
// The invariant: every route it makes has the protocol number [linux.RouteProtocol], and of the routes with that number it
// removes only such as it makes; the host routes of pods, which package podnet makes, and other programs' routes are
// never touched. Routes outlive the agent; a start writes only what differs.
//
// The way in is [Target.Add] before Services may lead to a new node's pods, and [Target.Prune] when none leads to a gone one's. Everything works
// in the network namespace of the calling thread.
package nodenet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
)

// Options of a Target.
type Options struct{ Logger *slog.Logger }

// Target is this node's routes. Its methods may be called concurrently.
type Target struct {
	log *slog.Logger

	mu       sync.Mutex
	nodes    model.Table[string, *model.Node]
	current  bool // have holds what the kernel has
	have     map[route]struct{}
	problems map[route]string
}

// route is a route as this package makes it: a value, so that what is and what should be can be compared.
type route struct {
	kind byte // of unix.RTN_*
	dst  netip.Prefix
	via  netip.Addr // of RTN_UNICAST only
}

// New returns a target that has done nothing yet.
func New(o Options) *Target {
	return &Target{log: o.Logger, have: make(map[route]struct{}), problems: make(map[route]string)}
}

// desired is every route a snapshot asks for, in a fixed order, and for whom it is.
func desired(s *model.Snapshot) (routes []route, whose map[route]string) {
	whose = make(map[route]string)
	add := func(r route, who string) {
		if _, twice := whose[r]; !twice {
			routes = append(routes, r)
			whose[r] = who
		}
	}
	for _, vip := range s.DNS {
		add(route{unix.RTN_LOCAL, netip.PrefixFrom(vip, vip.BitLen()), netip.Addr{}}, "cluster DNS")
	}
	for _, n := range s.Nodes.All() {
		for _, cidr := range n.PodCIDRs {
			if n.Name == s.Self {
				add(route{unix.RTN_UNREACHABLE, cidr, netip.Addr{}}, "unused pod addresses of this node")
			} else if via := n.Addr(cidr.Addr()); via.IsValid() {
				add(route{unix.RTN_UNICAST, cidr, via}, "node "+n.Name)
			}
		}
	}
	slices.SortFunc(routes, route.compare)
	return routes, whose
}

func (r route) compare(o route) int {
	if r.kind != o.kind {
		return int(r.kind) - int(o.kind)
	}
	if c := r.dst.Addr().Compare(o.dst.Addr()); c != 0 {
		return c
	}
	return r.dst.Bits() - o.dst.Bits()
}

// Add makes every route of the snapshot that is not there yet. A node that cannot be reached is no error: the
// others get their routes, Problems names it, and it is tried again each time.
func (t *Target) Add(_ context.Context, s *model.Snapshot) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current && t.nodes == s.Nodes && len(t.problems) == 0 {
		return nil
	}
	if !t.current {
		if err := forward(); err != nil {
			return err
		}
		if err := t.read(); err != nil {
			return err
		}
	}
	want, whose := desired(s)
	clear(t.problems)
	for _, r := range want {
		if _, ok := t.have[r]; ok {
			continue
		}
		if err := netlink.RouteReplace(r.netlink()); err != nil {
			t.problems[r] = r.problem(whose[r], err)
			continue
		}
		t.have[r] = struct{}{}
		// A route replaces the one to the same destination, if any.
		for old := range t.have {
			if old != r && old.kind == r.kind && old.dst == r.dst {
				delete(t.have, old)
			}
		}
		t.log.Info("route added", "to", r.dst, "via", r.via, "for", whose[r])
	}
	t.nodes = s.Nodes
	return nil
}

// Prune removes the routes that the snapshot does not ask for.
func (t *Target) Prune(_ context.Context, s *model.Snapshot) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	want, whose := desired(s)
	if len(t.have) == len(want)-len(t.problems) {
		return nil
	}
	var errs []error
	for r := range t.have {
		if _, ok := whose[r]; ok {
			continue
		}
		if err := netlink.RouteDel(r.netlink()); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", r.dst, err))
			continue
		}
		delete(t.have, r)
		t.log.Info("route removed", "to", r.dst, "via", r.via)
	}
	return errors.Join(errs...)
}

// Problems are the routes that could not be made, each a sentence, in a fixed order.
func (t *Target) Problems() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]string, 0, len(t.problems))
	for _, p := range t.problems {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

func (r route) problem(who string, err error) string {
	if r.kind == unix.RTN_UNICAST && (errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EINVAL)) {
		return fmt.Sprintf("pods of %s (%s) cannot be reached: its address %s is on no link that this node shares, and tunnels are not supported yet", who, r.dst, r.via)
	}
	return fmt.Sprintf("route to %s for %s: %v", r.dst, who, err)
}

// read fills have with the kernel's routes.
func (t *Target) read() error {
	routes, err := list()
	if err != nil {
		return err
	}
	clear(t.have)
	for i := range routes {
		if r, ours := parse(&routes[i]); ours {
			t.have[r] = struct{}{}
		}
	}
	t.current = true
	return nil
}

// list reads every route with our protocol number, of all tables and both families.
func list() ([]netlink.Route, error) {
	filter := &netlink.Route{Protocol: linux.RouteProtocol, Table: unix.RT_TABLE_UNSPEC}
	var all []netlink.Route
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := linux.Dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		all = append(all, routes...)
	}
	return all, nil
}

// parse turns a kernel's route into ours; false for one that this package did not make: a pod's, which leads to a device directly.
func parse(k *netlink.Route) (route, bool) {
	r := route{kind: byte(k.Type)}
	if k.Dst == nil {
		return r, false
	}
	addr, ok := netip.AddrFromSlice(k.Dst.IP)
	bits, _ := k.Dst.Mask.Size()
	r.dst = netip.PrefixFrom(addr.Unmap(), bits)
	if r.kind == unix.RTN_UNICAST {
		via, has := netip.AddrFromSlice(k.Gw)
		r.via = via.Unmap()
		ok = ok && has
	}
	return r, ok && (r.kind == unix.RTN_UNICAST || r.kind == unix.RTN_LOCAL || r.kind == unix.RTN_UNREACHABLE)
}

func (r route) netlink() *netlink.Route {
	k := &netlink.Route{
		Dst:      &net.IPNet{IP: r.dst.Addr().AsSlice(), Mask: net.CIDRMask(r.dst.Bits(), r.dst.Addr().BitLen())},
		Protocol: linux.RouteProtocol,
		Type:     int(r.kind),
		Table:    unix.RT_TABLE_MAIN,
	}
	switch r.kind {
	case unix.RTN_UNICAST:
		k.Gw = r.via.AsSlice()
	case unix.RTN_LOCAL:
		k.Table, k.Scope, k.LinkIndex = unix.RT_TABLE_LOCAL, netlink.SCOPE_HOST, loopback
	case unix.RTN_UNREACHABLE:
		if r.dst.Addr().Is6() {
			k.LinkIndex = loopback
		}
	}
	return k
}

// loopback is the index of lo, which every network namespace has first.
const loopback = 1

// forward makes the node a router, which it is for its pods.
func forward() error {
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := linux.WriteSysctl(key, "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Cleanup removes every route that this package makes from the current network namespace, whoever ran here before.
func Cleanup() error {
	routes, err := list()
	if err != nil {
		return err
	}
	var errs []error
	for i := range routes {
		if r, ours := parse(&routes[i]); ours {
			if err := netlink.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove route to %s: %w", r.dst, err))
			}
		}
	}
	return errors.Join(errs...)
}

// Hop is the way to an address.
type Hop struct {
	Dev string
	// Via is the next router; not valid if the address is on the device's own link.
	Via netip.Addr
	// Src is the source address that a process of this node would have.
	Src netip.Addr
	// MTU is in bytes.
	MTU int
}

// Lookup asks the kernel for the way to an address.
func Lookup(dst netip.Addr) (Hop, error) {
	routes, err := netlink.RouteGet(dst.AsSlice())
	if err != nil {
		return Hop{}, fmt.Errorf("look up route to %s: %w", dst, err)
	}
	if len(routes) == 0 {
		return Hop{}, fmt.Errorf("look up route to %s: the kernel names none", dst)
	}
	r := routes[0]
	link, err := netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return Hop{}, fmt.Errorf("look up device of route to %s: %w", dst, err)
	}
	h := Hop{Dev: link.Attrs().Name, MTU: link.Attrs().MTU}
	if r.MTU > 0 {
		h.MTU = r.MTU
	}
	if via, ok := netip.AddrFromSlice(r.Gw); ok {
		h.Via = via.Unmap()
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		h.Src = src.Unmap()
	}
	return h, nil
}

// Dump prints the kernel's routes with our protocol number, those of pods too, sorted.
func Dump() (string, error) {
	routes, err := list()
	if err != nil {
		return "", err
	}
	lines := make([]string, 0, len(routes))
	for i := range routes {
		k := &routes[i]
		line := "pod"
		if r, ours := parse(k); ours {
			line = map[byte]string{unix.RTN_UNICAST: "node", unix.RTN_LOCAL: "local", unix.RTN_UNREACHABLE: "unreachable"}[r.kind]
		}
		line += " " + k.Dst.String()
		if k.Gw != nil {
			line += " via " + k.Gw.String()
		}
		if link, err := netlink.LinkByIndex(k.LinkIndex); err == nil && k.Type == unix.RTN_UNICAST {
			line += " dev " + link.Attrs().Name
		}
		lines = append(lines, line+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), nil
}
