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
)

// route is a route as this package makes it: a value, so that what is and what should be can be compared.
type route struct {
	kind byte // of unix.RTN_*
	dst  netip.Prefix
	pods bool // for what comes from this node's pods only: in podTable

	// These are of RTN_UNICAST only.
	via netip.Addr
	dev int
	mtu int        // bytes; 0: the device's
	src netip.Addr // for this node's own processes; not valid: the kernel chooses
}

// key is what there can be one route for.
type key struct {
	table int
	dst   netip.Prefix
}

func (r route) key() key {
	switch {
	case r.kind == unix.RTN_LOCAL:
		return key{unix.RT_TABLE_LOCAL, r.dst}
	case r.pods:
		return key{podTable, r.dst}
	}
	return key{unix.RT_TABLE_MAIN, r.dst}
}

func (r route) compare(o route) int {
	return cmp.Or(cmp.Compare(r.kind, o.kind), cmp.Compare(r.key().table, o.key().table), r.dst.Addr().Compare(o.dst.Addr()), cmp.Compare(r.dst.Bits(), o.dst.Bits()))
}

func (r route) problem(who string, err error) string {
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
	r := route{kind: byte(k.Type), dst: prefixOf(k.Dst), pods: k.Table == podTable}
	switch {
	case k.Table != r.key().table:
		return r, false
	case r.kind == unix.RTN_LOCAL, r.kind == unix.RTN_UNREACHABLE:
		return r, true
	case r.kind == unix.RTN_UNICAST:
		via, routed := netip.AddrFromSlice(k.Gw)
		r.via, r.dev, r.mtu = via.Unmap(), k.LinkIndex, k.MTU
		if src, ok := netip.AddrFromSlice(k.Src); ok {
			r.src = src.Unmap()
		}
		return r, routed
	}
	return r, false
}

func (r route) netlink() *netlink.Route {
	k := &netlink.Route{Dst: ipnet(r.dst), Protocol: linux.RouteProtocol, Type: int(r.kind), Table: r.key().table}
	switch r.kind {
	case unix.RTN_UNICAST:
		k.Gw, k.LinkIndex, k.MTU = r.via.AsSlice(), r.dev, r.mtu
		if r.mtu > 0 {
			k.Flags = int(netlink.FLAG_ONLINK) // the tunnel's gateways are on no link but there
		}
		if r.src.IsValid() {
			k.Src = r.src.AsSlice()
		}
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

// strangers reads the routes that are not ours, where ours may be: the protocol of one for each key.
func strangers(h *netlink.Handle) (map[key]netlink.RouteProtocol, error) {
	all := make(map[key]netlink.RouteProtocol)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := linux.Dump(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, k := range list {
			if k.Dst != nil && k.Protocol != linux.RouteProtocol {
				all[key{k.Table, prefixOf(k.Dst)}] = k.Protocol
			}
		}
	}
	return all, nil
}

// remove removes a route of ours; one that is gone already, perhaps with its device, is fine.
func (r route) remove(h *netlink.Handle) error {
	if err := h.RouteDel(r.netlink()); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route to %s: %w", r.dst, err)
	}
	return nil
}

// Cleanup removes everything that this package makes from the current network namespace, whoever ran here before.
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
	rules, err := listRules(h)
	errs = append(errs, err)
	for pods := range rules {
		errs = append(errs, removeRule(h, pods))
	}
	return errors.Join(append(errs, removeTunnel(h), removeGuard())...)
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
	// Tunnel is the node at the other end, if the way leads through the tunnel.
	Tunnel netip.Addr
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
	if h.Tunnel.IsValid() {
		fmt.Fprintf(&b, " tunnel to %s", h.Tunnel)
	}
	return b.String()
}

// LookupFromPod asks the kernel for the way to an address of what a pod of this node sends: to another node's own address, that may be another way than
// for what the node sends itself. That there is none is an error that is EHOSTUNREACH or ENETUNREACH.
func LookupFromPod(dst netip.Addr) (Hop, error) {
	h, err := handle()
	if err != nil {
		return Hop{}, err
	}
	defer h.Close()
	routes, err := list(h)
	if err != nil {
		return Hop{}, err
	}
	for i := range routes {
		if r, ours := parse(&routes[i]); ours && r.pods && r.dst == single(dst.Unmap()) {
			return hopBy(h, &routes[i])
		}
	}
	return lookup(h, dst)
}

func lookup(h *netlink.Handle, dst netip.Addr) (Hop, error) {
	routes, err := h.RouteGet(dst.Unmap().AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return Hop{}, fmt.Errorf("look up route to %s: %w", dst, err)
	}
	return hopBy(h, &routes[0])
}

func hopBy(h *netlink.Handle, r *netlink.Route) (Hop, error) {
	link, err := h.LinkByIndex(r.LinkIndex)
	if err != nil {
		return Hop{}, fmt.Errorf("look up device of route to %s: %w", r.Dst, err)
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
	if hop.Dev == Device && hop.Via.IsValid() {
		neighs, err := listNeighs(h, r.LinkIndex)
		if err != nil {
			return Hop{}, err
		}
		nodes, err := listFDB(h, r.LinkIndex)
		if err != nil {
			return Hop{}, err
		}
		hop.Tunnel = nodes[neighs[hop.Via]]
	}
	return hop, nil
}

// Dump prints what the kernel has: the routes with our protocol number, those of pods too, sorted, and then the tunnel.
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
		lines = append(lines, dumpRoute(h, &routes[i]))
	}
	slices.Sort(lines)
	tunnel, err := dumpTunnel(h)
	if err != nil {
		return "", err
	}
	return strings.Join(lines, "") + tunnel, nil
}

func dumpRoute(h *netlink.Handle, k *netlink.Route) string {
	line := "pod"
	if r, ours := parse(k); ours {
		line = map[byte]string{unix.RTN_UNICAST: "node", unix.RTN_LOCAL: "local", unix.RTN_UNREACHABLE: "unreachable"}[r.kind]
		if r.pods {
			line = "for pods"
		}
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
	if k.MTU > 0 {
		line += fmt.Sprintf(" mtu %d", k.MTU)
	}
	if k.Src != nil && k.Gw != nil {
		line += " src " + k.Src.String()
	}
	return line + "\n"
}

// dumpTunnel prints the device, then what is on it and around it, sorted.
func dumpTunnel(h *netlink.Handle) (string, error) {
	rules, err := listRules(h)
	if err != nil {
		return "", err
	}
	var lines []string
	for pods := range rules {
		lines = append(lines, fmt.Sprintf("rule from %s for pods\n", pods))
	}
	slices.Sort(lines)
	d, err := ownDevice(h)
	if d == nil || err != nil {
		return strings.Join(lines, ""), err
	}
	over, _ := netip.AddrFromSlice(d.SrcAddr)
	over = over.Unmap()
	neighs, err := listNeighs(h, d.Index)
	if err != nil {
		return "", err
	}
	nodes, err := listFDB(h, d.Index)
	if err != nil {
		return "", err
	}
	have, ok, err := guard{uint16(d.Port), over}.read()
	if err != nil {
		return "", err
	}
	for gateway, at := range neighs {
		lines = append(lines, fmt.Sprintf("neighbour %s at %s\n", gateway, at.hardware()))
	}
	for at, node := range nodes {
		lines = append(lines, fmt.Sprintf("peer %s at %s\n", node, at.hardware()))
	}
	for a := range have {
		lines = append(lines, fmt.Sprintf("admit %s\n", a))
	}
	if !ok {
		lines = append(lines, "admit anything: table inet "+Table+" is not there, or has been changed\n")
	}
	slices.Sort(lines)
	addrs, err := linux.Dump(func() ([]netlink.Addr, error) { return h.AddrList(d, netlink.FAMILY_ALL) })
	if err != nil {
		return "", fmt.Errorf("list addresses of %s: %w", Device, err)
	}
	var own []string
	for _, a := range addrs {
		own = append(own, prefixOf(a.IPNet).Addr().String())
	}
	slices.Sort(own)
	state := map[bool]string{true: "up", false: "down"}[d.Flags&net.FlagUp != 0]
	return fmt.Sprintf("tunnel %s vni %d port %d local %s at %s mtu %d %s addresses %v\n", Device, d.VxlanId, d.Port, over, d.HardwareAddr, d.MTU, state, own) +
		strings.Join(lines, ""), nil
}

func removeRule(h *netlink.Handle, pods netip.Prefix) error {
	if err := h.RuleDel(podRule(pods)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove routing rule of %s: %w", pods, err)
	}
	return nil
}
