// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/linux"
)

// The gateways of all pods. Nobody has these addresses.
var (
	gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	gateway6 = netip.MustParseAddr("fe80::1")
)

// errTaken says that somebody uses an address which was just allocated, against what the leases say.
var errTaken = errors.New("this address is in use already")

// hostPrefix starts the names of the node's ends.
const hostPrefix = "fl"

// hostName names the node's end of an attachment's veth pair. It is also the ID
// of its lease: whoever knows container and interface finds both, without a file.
func hostName(containerID, ifName string) string {
	sum := sha256.Sum256([]byte(containerID + "/" + ifName)) // a container ID has no slash
	return hostPrefix + hex.EncodeToString(sum[:])[:11]
}

// isHostName recognises such a name.
func isHostName(name string) bool {
	digits, ok := strings.CutPrefix(name, hostPrefix)
	return ok && len(digits) == 11 && strings.Trim(digits, "0123456789abcdef") == ""
}

// mac derives the address of one end: always the same for the same attachment,
// locally administered, and different from all others as far as 46 bits go. Even
// two equal ones would not matter, as no two pairs share a link.
func mac(id, end string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(id + " " + end))
	m := net.HardwareAddr(sum[:6])
	m[0] = m[0]&^1 | 2
	return m
}

// wiring is what ADD makes and CHECK looks at: a pair whose node's end has the lease's ID for a name, and whose pod's end has its IfName.
type wiring struct {
	ns        *linux.NetNS // the pod's
	node, pod *linux.Batch // act on the node and in the pod; CHECK has none
	lease     ipam.Lease
	mtu       int // 0: the kernel's default
}

// mac is that of the pair's end, "host" or "pod".
func (w *wiring) mac(end string) net.HardwareAddr { return mac(w.lease.ID, end) }

// single is the prefix of one address.
func single(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

// gatewayOf returns the gateway and the default destination of an address's family.
func gatewayOf(addr netip.Addr) (gateway netip.Addr, all netip.Prefix) {
	gateway = gateway4
	if addr.Is6() {
		gateway = gateway6
	}
	all, _ = gateway.Prefix(0)
	return gateway, all
}

// make wires the pod. made is false if that was done already and everything is
// right; what is half done or no longer right is made anew. After an error
// nothing of this attachment is left.
func (w *wiring) make() (made bool, err error) {
	veth, ways, err := w.create()
	if errors.Is(err, unix.EEXIST) && veth.Index != 0 { // the node's end is there: an ADD before this one
		if w.check() == nil {
			return false, nil
		}
		w.node.LinkDel(w.lease.ID)
		if err := w.node.Send(); err != nil {
			return false, err
		}
		veth, ways, err = w.create()
	}
	if errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("interface %s is in the pod's network namespace already: %w", w.lease.IfName, err)
	}
	if err == nil {
		err = w.vacant(ways)
	}
	if err == nil {
		if err = w.connect(veth); err == nil {
			return true, nil
		}
	}
	w.node.LinkDel(w.lease.ID)
	return false, errors.Join(err, w.node.Send())
}

// vacant wants that nobody has the addresses. That costs nothing unless the node has a way to one of them that is neither a gateway nor a pod of ours: another
// plugin's bridge or interface, whose pods no lease file of ours knows. Then it looks for the address itself.
func (w *wiring) vacant(ways []linux.Found) error {
	suspect := func(way linux.Found) bool { return way.Local || way.Index != 0 && !way.Via }
	if !slices.ContainsFunc(ways, suspect) {
		return nil
	}
	used, err := linux.AddrsInUse()
	if err != nil {
		return err
	}
	for _, u := range used {
		if slices.Contains(w.lease.Addrs, u.Addr) {
			return fmt.Errorf("%w: %s, at interface %s", errTaken, u.Addr, u.Link)
		}
	}
	return nil
}

// create makes the pair, and reads what the kernel made of it: the index of the
// node's end and, as its parent, that of the pod's. ways are the node's ways to the
// addresses as they were before.
func (w *wiring) create() (veth netlink.LinkAttrs, ways []linux.Found, err error) {
	ways = make([]linux.Found, len(w.lease.Addrs))
	for i, addr := range w.lease.Addrs {
		w.node.RouteGet(addr, &ways[i])
	}
	// The node's end is up only when the pod's is about to be: a kernel that is asked about an interface which is up and leads nowhere first puts its queues
	// away, and waits until nobody uses them any more.
	w.node.VethAdd(linux.VethPair{Name: w.lease.ID, Down: true, MAC: w.mac("host"), PeerName: w.lease.IfName, PeerMAC: w.mac("pod"), PeerNS: w.ns, MTU: w.mtu})
	w.node.LinkGet(w.lease.ID, &veth)
	err = w.node.Send()
	return veth, ways, err
}

// connect gives both ends what they need. The pod's end is set up last.
//
// The reverse path of a pod's packet is the route to the pod, but the filter would also judge what a service address makes of it. The node's end has no use
// for a link-local address of its own, nor for what goes with one.
func (w *wiring) connect(veth netlink.LinkAttrs) error {
	w.node.LinkUpBare(veth.Index, w.has6())
	for _, addr := range w.lease.Addrs {
		w.node.NeighSet(veth.Index, addr, w.mac("pod"))
		w.node.RouteAdd(linux.Route{Dst: single(addr), Index: veth.Index})
	}
	if err := w.node.Send(); err != nil {
		if errors.Is(err, unix.EEXIST) {
			err = fmt.Errorf("%w: the node has a route to it: %w", errTaken, err)
		}
		return err
	}
	if w.has6() {
		if err := linux.WriteSysctl("net/ipv6/conf/"+w.lease.ID+"/accept_ra", "0"); err != nil {
			return err
		}
		if err := w.ns.Do(w.podSysctls); err != nil {
			return err
		}
	}
	index := veth.ParentIndex
	w.pod.LinkUp(index)
	for _, addr := range w.lease.Addrs {
		gateway, all := gatewayOf(addr)
		w.pod.AddrAdd(index, single(addr))
		w.pod.NeighSet(index, gateway, w.mac("host"))
		w.pod.RouteAdd(linux.Route{Dst: all, Via: gateway, Index: index})
	}
	return w.pod.Send()
}

// waitUp waits until both ends can send and the pod has its addresses. What make has asked for, the kernel's workers do in their own time.
func (w *wiring) waitUp() error {
	if err := w.node.WaitUp(w.lease.ID); err != nil {
		return err
	}
	return w.pod.WaitUp(w.lease.IfName, w.lease.Addrs...)
}

// podSysctls: some runtimes start with IPv6 off. Nobody else is on the link, so
// there is nobody to have the same address and no router to wait for.
func (w *wiring) podSysctls() error {
	dir := "net/ipv6/conf/" + w.lease.IfName + "/"
	return errors.Join(
		linux.WriteSysctl(dir+"disable_ipv6", "0"),
		linux.WriteSysctl(dir+"accept_dad", "0"),
		linux.WriteSysctl(dir+"accept_ra", "0"),
	)
}

func (w *wiring) has6() bool {
	for _, addr := range w.lease.Addrs {
		if addr.Is6() {
			return true
		}
	}
	return false
}

// unwire removes the pair, and with it all routes, addresses and neighbours.
func unwire(host string) error {
	node, err := linux.NewBatch()
	if err != nil {
		return err
	}
	defer node.Close()
	node.LinkDel(host)
	return node.Send()
}

// check looks whether everything is as make leaves it, and names the first thing
// that is not.
func (w *wiring) check() error {
	host, err := netlink.LinkByName(w.lease.ID)
	if err != nil {
		return fmt.Errorf("the node's interface %s: %w", w.lease.ID, err)
	}
	peer := host.Attrs().ParentIndex
	if host.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("the node's interface %s is down", w.lease.ID)
	}
	for _, addr := range w.lease.Addrs {
		if err := leadsTo(addr, host.Attrs().Index); err != nil {
			return fmt.Errorf("on the node: %w", err)
		}
		if err := hasNeigh(host.Attrs().Index, addr, w.mac("pod")); err != nil {
			return fmt.Errorf("on the node: %w", err)
		}
	}
	err = w.ns.Do(func() error { return w.checkPod(peer) })
	if err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	return nil
}

// checkPod runs in the pod's namespace. index is what the node's end says of its
// other end.
func (w *wiring) checkPod(index int) error {
	link, err := netlink.LinkByName(w.lease.IfName)
	if err != nil {
		return fmt.Errorf("interface %s: %w", w.lease.IfName, err)
	}
	switch attrs := link.Attrs(); {
	case attrs.Index != index || attrs.HardwareAddr.String() != w.mac("pod").String():
		return fmt.Errorf("interface %s is not the one connected to %s", w.lease.IfName, w.lease.ID)
	case attrs.Flags&net.FlagUp == 0:
		return fmt.Errorf("interface %s is down", w.lease.IfName)
	}
	have, err := linux.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", w.lease.IfName, err)
	}
	for _, addr := range w.lease.Addrs {
		found := false
		for _, a := range have {
			found = found || a.IP.Equal(addr.AsSlice())
		}
		if !found {
			return fmt.Errorf("interface %s does not have address %s", w.lease.IfName, addr)
		}
		gateway, all := gatewayOf(addr)
		if err := hasRoute(all, index, gateway); err != nil {
			return err
		}
		if err := hasNeigh(index, gateway, w.mac("host")); err != nil {
			return err
		}
	}
	return nil
}

// leadsTo asks the kernel where it would send a packet.
func leadsTo(addr netip.Addr, index int) error {
	routes, err := netlink.RouteGet(addr.AsSlice())
	if err != nil {
		return fmt.Errorf("route to %s: %w", addr, err)
	}
	for _, route := range routes {
		if route.LinkIndex != index || route.Gw != nil {
			return fmt.Errorf("route to %s leads elsewhere: %s", addr, route)
		}
	}
	return nil
}

// hasRoute looks for one route in the main table.
func hasRoute(dst netip.Prefix, index int, gateway netip.Addr) error {
	routes, err := linux.Dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(familyOf(dst.Addr()), &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, route := range routes {
		if prefixOf(route.Dst) == dst && route.Gw.Equal(gateway.AsSlice()) {
			return nil
		}
	}
	return fmt.Errorf("no route to %s via %s", dst, gateway)
}

func familyOf(addr netip.Addr) int {
	if addr.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// prefixOf converts a route's destination. The mask tells the family, since an IP
// of either may come in 16 bytes.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, bits := n.Mask.Size()
	addr, _ := netip.AddrFromSlice(n.IP)
	if bits == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, ones)
}

func hasNeigh(index int, addr netip.Addr, mac net.HardwareAddr) error {
	neighs, err := linux.Dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, familyOf(addr)) })
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range neighs {
		if n.IP.Equal(addr.AsSlice()) && n.State == unix.NUD_PERMANENT && n.HardwareAddr.String() == mac.String() {
			return nil
		}
	}
	return fmt.Errorf("no permanent neighbour %s at %s", addr, mac)
}
