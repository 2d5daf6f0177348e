// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
)

// route is a route as this package makes it: a value, so that what is and what should be can be compared.
type route struct {
	kind byte // of unix.RTN_*
	dst  netip.Prefix
	via  netip.Addr // of RTN_UNICAST only
}

// key is what there can be one route for.
type key struct {
	table int
	dst   netip.Prefix
}

func (r route) key() key {
	if r.kind == unix.RTN_LOCAL {
		return key{unix.RT_TABLE_LOCAL, r.dst}
	}
	return key{unix.RT_TABLE_MAIN, r.dst}
}

// wish is a route and for whom it is, in words.
type wish struct {
	route
	who string
}

// desired is every route that a snapshot asks for, in a fixed order, and what it asks for in vain, whatever the kernel says. It is pure.
func desired(s *model.Snapshot) (wishes []wish, problems []string) {
	owner := make(map[netip.Prefix]string)
	for _, vip := range s.DNS {
		wishes = append(wishes, wish{route{unix.RTN_LOCAL, netip.PrefixFrom(vip, vip.BitLen()), netip.Addr{}}, "cluster DNS"})
	}
	if s.Left.Has(model.Network) {
		return wishes, nil
	}
	nodes := make([]*model.Node, 0, s.Nodes.Len())
	for _, n := range s.Nodes.All() {
		nodes = append(nodes, n)
	}
	// This node's own range is its own, and of two other nodes with the same one, the first by name has it.
	slices.SortFunc(nodes, func(a, b *model.Node) int {
		rank := func(n *model.Node) int { return map[bool]int{true: 0, false: 1}[n.Name == s.Self] }
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name, b.Name))
	})
	for _, n := range nodes {
		for _, cidr := range n.PodCIDRs {
			cidr = cidr.Masked()
			if first, taken := owner[cidr]; taken {
				problems = append(problems, fmt.Sprintf("pods of node %s (%s) cannot be reached: node %s has the same range", n.Name, cidr, first))
				continue
			}
			owner[cidr] = n.Name
			via := n.Addr(cidr.Addr())
			switch {
			case n.Name == s.Self:
				wishes = append(wishes, wish{route{unix.RTN_UNREACHABLE, cidr, netip.Addr{}}, "unused pod addresses of this node"})
			case via.IsValid():
				wishes = append(wishes, wish{route{unix.RTN_UNICAST, cidr, via}, "node " + n.Name})
			default:
				problems = append(problems, fmt.Sprintf("pods of node %s (%s) cannot be reached: the node has no address of that family", n.Name, cidr))
			}
		}
	}
	slices.SortFunc(wishes, func(a, b wish) int { return a.compare(b.route) })
	return wishes, problems
}

func (r route) compare(o route) int {
	return cmp.Or(cmp.Compare(r.kind, o.kind), r.dst.Addr().Compare(o.dst.Addr()), cmp.Compare(r.dst.Bits(), o.dst.Bits()))
}

func (r route) problem(who string, err error) string {
	if r.kind == unix.RTN_UNICAST && (errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EINVAL)) {
		return fmt.Sprintf("pods of %s (%s) cannot be reached: its address %s is on no link that this node shares; that needs VXLAN, which a later release brings", who, r.dst, r.via)
	}
	return fmt.Sprintf("route to %s for %s: %v", r.dst, who, err)
}

// handle is a netlink socket in the calling thread's network namespace.
func handle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return h, nil
}

// list reads every route with our protocol number, of all tables and both families.
func list(h *netlink.Handle) ([]netlink.Route, error) {
	filter := &netlink.Route{Protocol: linux.RouteProtocol, Table: unix.RT_TABLE_UNSPEC}
	var all []netlink.Route
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := linux.Dump(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
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
	if k.Dst == nil {
		return route{}, false
	}
	addr, ok := netip.AddrFromSlice(k.Dst.IP)
	bits, _ := k.Dst.Mask.Size()
	r := route{kind: byte(k.Type), dst: netip.PrefixFrom(addr.Unmap(), bits)}
	switch {
	case !ok || k.Table != r.key().table:
		return r, false
	case r.kind == unix.RTN_LOCAL, r.kind == unix.RTN_UNREACHABLE:
		return r, true
	case r.kind == unix.RTN_UNICAST:
		via, routed := netip.AddrFromSlice(k.Gw)
		r.via = via.Unmap()
		return r, routed
	}
	return r, false
}

func (r route) netlink() *netlink.Route {
	k := &netlink.Route{
		Dst:      &net.IPNet{IP: r.dst.Addr().AsSlice(), Mask: net.CIDRMask(r.dst.Bits(), r.dst.Addr().BitLen())},
		Protocol: linux.RouteProtocol,
		Type:     int(r.kind),
		Table:    r.key().table,
	}
	switch r.kind {
	case unix.RTN_UNICAST:
		k.Gw = r.via.AsSlice()
	case unix.RTN_LOCAL:
		k.Scope, k.LinkIndex = netlink.SCOPE_HOST, loopback
	case unix.RTN_UNREACHABLE:
		if r.dst.Addr().Is6() {
			k.LinkIndex = loopback
		}
	}
	return k
}

// loopback is the index of lo, which every network namespace has first.
const loopback = 1

// strangers are the routes to the same destination, in the same table, that are not ours.
func (r route) strangers(h *netlink.Handle) ([]netlink.Route, error) {
	family := netlink.FAMILY_V4
	if r.dst.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	k := r.netlink()
	all, err := linux.Dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, &netlink.Route{Table: k.Table, Dst: k.Dst}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes to %s: %w", r.dst, err)
	}
	return slices.DeleteFunc(all, func(k netlink.Route) bool { return k.Protocol == linux.RouteProtocol }), nil
}

// remove removes a route of ours; one that is gone already, perhaps with its device, is fine.
func (r route) remove(h *netlink.Handle) error {
	if err := h.RouteDel(r.netlink()); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route to %s: %w", r.dst, err)
	}
	return nil
}

// Cleanup removes every route that this package makes from the current network namespace, whoever ran here before.
func Cleanup() error {
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	routes, err := list(h)
	if err != nil {
		return err
	}
	var errs []error
	for i := range routes {
		if r, ours := parse(&routes[i]); ours {
			errs = append(errs, r.remove(h))
		}
	}
	return errors.Join(errs...)
}

// Hop is the way to an address.
type Hop struct {
	// Local is set for an address of this node itself.
	Local bool
	Dev   string
	// Via is the next router; not valid if the address is on the device's own link.
	Via netip.Addr
	// Src is the source address that a process of this node would have.
	Src netip.Addr
	// MTU is in bytes: the route's if it has one, or else the device's.
	MTU int
}

// String is the hop as "ip route get" writes it.
func (h Hop) String() string {
	var b strings.Builder
	if h.Local {
		b.WriteString("local ")
	}
	if h.Via.IsValid() {
		fmt.Fprintf(&b, "via %s ", h.Via)
	}
	fmt.Fprintf(&b, "dev %s src %s mtu %d", h.Dev, h.Src, h.MTU)
	return b.String()
}

// Lookup asks the kernel for the way to an address. That there is none is an error that is EHOSTUNREACH or ENETUNREACH.
func Lookup(dst netip.Addr) (Hop, error) {
	h, err := handle()
	if err != nil {
		return Hop{}, err
	}
	defer h.Close()
	routes, err := h.RouteGet(dst.Unmap().AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return Hop{}, fmt.Errorf("look up route to %s: %w", dst, err)
	}
	r := routes[0]
	link, err := h.LinkByIndex(r.LinkIndex)
	if err != nil {
		return Hop{}, fmt.Errorf("look up device of route to %s: %w", dst, err)
	}
	hop := Hop{Local: r.Type == unix.RTN_LOCAL, Dev: link.Attrs().Name, MTU: link.Attrs().MTU}
	if r.MTU > 0 {
		hop.MTU = r.MTU
	}
	if via, ok := netip.AddrFromSlice(r.Gw); ok {
		hop.Via = via.Unmap()
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		hop.Src = src.Unmap()
	}
	return hop, nil
}

// Dump prints the kernel's routes with our protocol number, those of pods too, sorted.
func Dump() (string, error) {
	h, err := handle()
	if err != nil {
		return "", err
	}
	defer h.Close()
	routes, err := list(h)
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
		if k.Type == unix.RTN_UNICAST {
			if link, err := h.LinkByIndex(k.LinkIndex); err == nil {
				line += " dev " + link.Attrs().Name
			}
		}
		lines = append(lines, line+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), nil
}
