// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
)

// Mode says which nodes are reached through the tunnel.
type Mode uint8

// The modes. In each of them the node accepts what comes through the tunnel: the other end may decide otherwise, or later.
const (
	Auto   Mode = iota // those that share no link with this node
	Always             // all
	Never              // none; one that shares no link is not reached
)

var modeNames = []string{"auto", "always", "never"}

// String is the mode as it is written in settings.
func (m Mode) String() string { return modeNames[m] }

// ParseMode reads "auto", "always" or "never".
func ParseMode(s string) (m Mode, ok bool) {
	i := slices.Index(modeNames, s)
	return Mode(max(i, 0)), i >= 0
}

const (
	// Device is the name of the tunnel's device.
	Device = "fairlead-vxlan"
	// VNI is the number of the tunnel's network in a VXLAN header (RFC 7348). Others use 1 (Flannel), 4096 (Calico) or numbers above that (Docker).
	VNI = 170
	// DefaultPort is the UDP port that IANA has assigned to VXLAN.
	DefaultPort = 4789
)

const (
	// deviceMTU is so large that it never counts: routes have the MTU.
	deviceMTU = 65535 - overhead6
	overhead4 = 20 + 8 + 8 + 14 // of IPv4, UDP, VXLAN and Ethernet, in bytes
	overhead6 = 40 + 8 + 8 + 14
	minMTU6   = 1280 // RFC 8200
)

func overhead(outer netip.Addr) int {
	if outer.Is4() {
		return overhead4
	}
	return overhead6
}

const (
	// podTable is the routing table for what comes from this node's pods.
	podTable = linux.RouteProtocol
	// podPriority is the place of the rules that lead there: before the kernel's own tables and most other programs' rules.
	podPriority = 170
)

// mac is the link address of a node's end of the tunnel.
type mac [6]byte

// macOf derives it from the node's address, so that every node knows every other one's. Locally administered, and different for any two nodes as far as 46 bits go.
func macOf(node netip.Addr) mac {
	sum := sha256.Sum256(node.AsSlice())
	m := mac(sum[:6])
	m[0] = m[0]&^1 | 2
	return m
}

func (m mac) hardware() net.HardwareAddr { return m[:] }

// gateway is an address for what the node of this link address is asked to route: it only names the node, in the family of the route. For IPv6 it is the
// link-local address that goes with the link address (RFC 4291, appendix A). For IPv4 it is the range's first, which no pod gets; for IPv6 the kernel
// would not take that while the range is routed by another device.
func (m mac) gateway(pods netip.Prefix) netip.Addr {
	if pods.Addr().Is4() {
		return pods.Addr()
	}
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// tunnel is this node's end: a value.
type tunnel struct {
	local netip.Addr // the node's first address
	addrs string     // all addresses of the node; a device has them too, see addresses
	port  uint16
}

// tunnelOf is the end that a snapshot asks for; false if there is no node that could send here.
func tunnelOf(s *model.Snapshot, port uint16) (tunnel, bool) {
	self := s.Node()
	if self == nil || len(self.Addrs) == 0 || s.Nodes.Len() < 2 || s.Left.Has(model.Network) {
		return tunnel{}, false
	}
	return tunnel{self.Addrs[0], fmt.Sprint(self.Addrs), port}, true
}

// errForeign says that something else has the device's name.
var errForeign = errors.New("a device " + Device + " that is no VXLAN device is in the way: remove it")

// ensure makes the device, or mends it. made says that it has a new number; why says in words that follow "the tunnel" what keeps it from working.
func (u tunnel) ensure(h *netlink.Handle, kind string, self *model.Node) (index int, made bool, why string) {
	locals, err := ownAddrs(h, self)
	if err != nil {
		return 0, false, fmt.Sprintf("is off: %v", err)
	}
	if !slices.Contains(locals, u.local) {
		return 0, false, fmt.Sprintf("is off: this node's address %s is on none of its devices", u.local)
	}
	old, err := findDevice(h)
	if err != nil {
		return 0, false, fmt.Sprintf("is off: %v", err)
	}
	if old != nil && !u.matches(old) {
		if err := h.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
			return 0, false, fmt.Sprintf("is off: remove device %s to make it anew: %v", Device, err)
		}
		old = nil
	}
	if old == nil {
		made = true
		if err := u.create(h, kind); err != nil {
			return 0, false, u.explain(err)
		}
		if old, err = findDevice(h); err != nil || old == nil {
			return 0, false, fmt.Sprintf("is off: device %s is gone again: %v", Device, err)
		}
	}
	if err := u.mend(h, old, self, locals); err != nil {
		return 0, made, u.explain(err)
	}
	return old.Index, made, ""
}

// findDevice returns nil if there is none.
func findDevice(h *netlink.Handle) (*netlink.Vxlan, error) {
	link, err := h.LinkByName(Device)
	var missing netlink.LinkNotFoundError
	switch v, ok := link.(*netlink.Vxlan); {
	case errors.As(err, &missing):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look up device %s: %w", Device, err)
	case !ok:
		return nil, errForeign
	default:
		return v, nil
	}
}

// ownDevice is findDevice for who leaves alone what only has the device's name.
func ownDevice(h *netlink.Handle) (*netlink.Vxlan, error) {
	d, err := findDevice(h)
	if errors.Is(err, errForeign) {
		return nil, nil
	}
	return d, err
}

// ownAddrs are the node's addresses that are on a device other than the tunnel's.
func ownAddrs(h *netlink.Handle, self *model.Node) ([]netip.Addr, error) {
	tunnelIndex := 0
	if d, err := findDevice(h); err != nil {
		return nil, err
	} else if d != nil {
		tunnelIndex = d.Index
	}
	addrs, err := linux.Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var own []netip.Addr
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && a.LinkIndex != tunnelIndex && slices.Contains(self.Addrs, addr.Unmap()) && !slices.Contains(own, addr.Unmap()) {
			own = append(own, addr.Unmap())
		}
	}
	return own, nil
}

// matches reports whether what cannot be changed on a device is right.
func (u tunnel) matches(d *netlink.Vxlan) bool {
	local, _ := netip.AddrFromSlice(d.SrcAddr)
	return d.VxlanId == VNI && d.Port == int(u.port) && local.Unmap() == u.local && !d.Learning && !d.FlowBased && d.VtepDevIndex == 0 && d.Group == nil
}

// otherKind is for trying what a kernel says to a kind of device that it does not have.
type otherKind struct {
	netlink.Vxlan
	kind string
}

func (o *otherKind) Type() string { return o.kind }

// create makes the device, down. What is learnt from packets would only be what forged ones say. The checksum of the outer UDP header is left
// to the kernel's default: none over IPv4, as RFC 7348 has it, for the inner packet has its own, and one over IPv6.
func (u tunnel) create(h *netlink.Handle, kind string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = Device, deviceMTU, macOf(u.local).hardware()
	d := netlink.Vxlan{LinkAttrs: attrs, VxlanId: VNI, SrcAddr: u.local.AsSlice(), Port: int(u.port)}
	if kind != "vxlan" {
		return h.LinkAdd(&otherKind{d, kind})
	}
	return h.LinkAdd(&d)
}

// mend sets what can be changed on a device while it works.
func (u tunnel) mend(h *netlink.Handle, d *netlink.Vxlan, self *model.Node, locals []netip.Addr) error {
	if want := macOf(u.local).hardware(); !bytes.Equal(d.HardwareAddr, want) {
		if err := h.LinkSetHardwareAddr(d, want); err != nil {
			return fmt.Errorf("set link address of %s: %w", Device, err)
		}
	}
	if d.MTU != deviceMTU {
		if err := h.LinkSetMTU(d, deviceMTU); err != nil {
			return fmt.Errorf("set MTU of %s: %w", Device, err)
		}
	}
	if err := deviceSysctls(self); err != nil {
		return err
	}
	if d.Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(d); err != nil {
			return fmt.Errorf("set %s up: %w", Device, err)
		}
	}
	return addresses(h, d, locals)
}

// deviceSysctls: loose reverse path filtering passes what a node sends through the tunnel that is answered by the link; a link-local address and
// what goes with it are of no use here.
func deviceSysctls(self *model.Node) error {
	if err := linux.WriteSysctl("net/ipv4/conf/"+Device+"/rp_filter", "2"); err != nil {
		return err
	}
	if !slices.ContainsFunc(slices.Concat(self.Addrs, firsts(self.PodCIDRs)), netip.Addr.Is6) {
		return nil
	}
	dir := "net/ipv6/conf/" + Device + "/"
	return errors.Join(
		linux.WriteSysctl(dir+"disable_ipv6", "0"),
		linux.WriteSysctl(dir+"addr_gen_mode", "1"), // none
		linux.WriteSysctl(dir+"accept_ra", "0"),
	)
}

func firsts(ranges []netip.Prefix) (addrs []netip.Addr) {
	for _, r := range ranges {
		addrs = append(addrs, r.Addr())
	}
	return addrs
}

// addresses gives the device the node's own, which it has elsewhere too: so that masquerading, which looks at the device first, and the kernel's own messages
// (ICMP) take them, and not those of just any device; and because the loose filter passes nothing on a device without any.
func addresses(h *netlink.Handle, d *netlink.Vxlan, want []netip.Addr) error {
	have, err := linux.Dump(func() ([]netlink.Addr, error) { return h.AddrList(d, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", Device, err)
	}
	missing := slices.Clone(want)
	for i := range have {
		addr, _ := netip.AddrFromSlice(have[i].IP)
		if at := slices.Index(missing, addr.Unmap()); at >= 0 {
			missing = slices.Delete(missing, at, at+1)
			continue
		}
		if err := h.AddrDel(d, &have[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s from %s: %w", addr, Device, err)
		}
	}
	for _, addr := range missing {
		a := &netlink.Addr{IPNet: ipnet(single(addr)), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
		if addr.Is4() {
			a.Flags = 0
		}
		if err := h.AddrReplace(d, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", addr, Device, err)
		}
	}
	return nil
}

// explain turns the kernel's refusal into what to do, in words that follow "the tunnel".
func (u tunnel) explain(err error) string {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return "is off: this kernel has no VXLAN; load the module (modprobe vxlan) or use a kernel with CONFIG_VXLAN"
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Sprintf("is off: this kernel has no VXLAN over %s: %v", familyName(u.local), err)
	case errors.Is(err, unix.EEXIST):
		return fmt.Sprintf("is off: another device has VNI %d on port %d; remove it, or give all nodes another --tunnel-port", VNI, u.port)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Sprintf("is off: another program has UDP port %d; end it, or give all nodes another --tunnel-port", u.port)
	}
	return fmt.Sprintf("is off: %v", err)
}

// listNeighs reads the device's permanent neighbours.
func listNeighs(h *netlink.Handle, index int) (map[netip.Addr]mac, error) {
	all := make(map[netip.Addr]mac)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := linux.Dump(func() ([]netlink.Neigh, error) { return h.NeighList(index, family) })
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("list neighbours of %s: %w", Device, err)
		}
		for _, n := range list {
			if addr, ok := netip.AddrFromSlice(n.IP); ok && n.State&unix.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 {
				all[addr.Unmap()] = mac(n.HardwareAddr)
			}
		}
	}
	return all, nil
}

// listFDB reads where the device sends what is for a link address.
func listFDB(h *netlink.Handle, index int) (map[mac]netip.Addr, error) {
	list, err := linux.Dump(func() ([]netlink.Neigh, error) { return h.NeighList(index, unix.AF_BRIDGE) })
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries of %s: %w", Device, err)
	}
	all := make(map[mac]netip.Addr, len(list))
	for _, n := range list {
		if addr, ok := netip.AddrFromSlice(n.IP); ok && len(n.HardwareAddr) == 6 {
			all[mac(n.HardwareAddr)] = addr.Unmap()
		}
	}
	return all, nil
}

func neigh(index int, gateway netip.Addr, at mac) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, State: unix.NUD_PERMANENT, IP: gateway.AsSlice(), HardwareAddr: at.hardware()}
}

func fdbEntry(index int, at mac, node netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: unix.NTF_SELF, State: unix.NUD_PERMANENT, IP: node.AsSlice(), HardwareAddr: at.hardware()}
}

// listRules reads which ranges look into podTable.
func listRules(h *netlink.Handle) (map[netip.Prefix]struct{}, error) {
	all := make(map[netip.Prefix]struct{})
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := linux.Dump(func() ([]netlink.Rule, error) { return h.RuleList(family) })
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, fmt.Errorf("list routing rules: %w", err)
		}
		for i := range list {
			if r := &list[i]; r.Protocol == linux.RouteProtocol && r.Table == podTable && r.Src != nil {
				all[prefixOf(r.Src)] = struct{}{}
			}
		}
	}
	return all, nil
}

func podRule(pods netip.Prefix) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Src, r.Table, r.Priority, r.Protocol = netlink.FAMILY_V4, ipnet(pods), podTable, podPriority, linux.RouteProtocol
	if pods.Addr().Is6() {
		r.Family = netlink.FAMILY_V6
	}
	return r
}

// anyTunnel reports whether there is anything for Prune to remove when no tunnel is wanted.
func anyTunnel(h *netlink.Handle) (bool, error) {
	if d, err := ownDevice(h); d != nil || err != nil {
		return d != nil, err
	}
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open netfilter socket: %w", err)
	}
	return hasTable(c)
}

// removeTunnel removes the device and all that is on it.
func removeTunnel(h *netlink.Handle) error {
	d, err := ownDevice(h)
	if d == nil || err != nil {
		return err
	}
	if err := h.LinkDel(d); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove device %s: %w", Device, err)
	}
	return nil
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}
