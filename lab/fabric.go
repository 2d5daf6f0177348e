// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/linux"
)

// fabricBridge is the bridge that joins the nodes. It is in the supervisor's own network namespace, which leads nowhere else.
const fabricBridge = "fabric"

// nodeInterface is the name of a node's interface on the fabric.
const nodeInterface = "eth0"

// seclude makes the mounts of this process its own, and puts a file system of its own under the directory of network namespaces: what is
// mounted there ends with the cluster's last process.
func seclude(dir cluster.Dir) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll(dir.Netns(), 0o700); err != nil {
		return fmt.Errorf("make directory of namespaces: %w", err)
	}
	if err := unix.Mount("tmpfs", dir.Netns(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mount directory of namespaces: %w", err)
	}
	return nil
}

// quiet are the settings of a namespace in which nobody else gives out addresses or routes: an address is usable at once, and replies
// may come from where no route leads, as those through a Service do.
var quiet = map[string]string{
	"net/ipv6/conf/default/accept_dad": "0",
	"net/ipv6/conf/all/accept_dad":     "0",
	"net/ipv6/conf/default/accept_ra":  "0",
	"net/ipv6/conf/all/accept_ra":      "0",
	"net/ipv4/conf/default/rp_filter":  "0",
	"net/ipv4/conf/all/rp_filter":      "0",
}

// setQuiet applies them in the current namespace. A kernel without IPv6 has fewer settings.
func setQuiet() error {
	for key, value := range quiet {
		if err := linux.WriteSysctl(key, value); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// makeFabric makes the bridge in this process's network namespace, with its addresses.
func makeFabric(addrs []netip.Prefix) (*netlink.Bridge, error) {
	if err := setQuiet(); err != nil {
		return nil, err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("set loopback up: %w", err)
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = fabricBridge
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("make bridge: %w", err)
	}
	for _, a := range addrs {
		if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: ipNet(a), Flags: unix.IFA_F_NODAD}); err != nil {
			return nil, fmt.Errorf("give bridge address %s: %w", a, err)
		}
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("set bridge up: %w", err)
	}
	return bridge, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// makeNode makes a node's network namespace, mounts it at path, and joins it to the fabric. Its default route leads to the fabric and
// ends there: it is for processes of the node that address a ClusterIP, which needs some route before it is rewritten.
func makeNode(name, path string, bridge *netlink.Bridge, addrs, gateways []netip.Prefix) (*linux.NetNS, error) {
	ns, err := linux.NewNetNS()
	if err != nil {
		return nil, err
	}
	if err := wireNode(ns, name, path, bridge, addrs, gateways); err != nil {
		ns.Close()
		return nil, fmt.Errorf("make node %s: %w", name, err)
	}
	return ns, nil
}

func wireNode(ns *linux.NetNS, name, path string, bridge *netlink.Bridge, addrs, gateways []netip.Prefix) error {
	if err := ns.Bind(path); err != nil {
		return err
	}
	if err := ns.Do(setQuiet); err != nil {
		return err
	}
	batch, err := linux.NewBatch()
	if err != nil {
		return err
	}
	defer batch.Close()
	batch.VethAdd(linux.VethPair{Name: name, PeerName: nodeInterface, PeerNS: ns})
	if err := batch.Send(); err != nil {
		return err
	}
	port, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find port: %w", err)
	}
	if err := netlink.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("join bridge: %w", err)
	}
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(nodeInterface)
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	for _, a := range addrs {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set interface up: %w", err)
	}
	for _, g := range gateways {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: g.Addr().AsSlice()}); err != nil {
			return fmt.Errorf("add default route via %s: %w", g.Addr(), err)
		}
	}
	return nil
}
