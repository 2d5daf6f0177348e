// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
)

// host is a network namespace that can be cabled. It has no name and no way out, and is gone when it is closed and its processes have ended.
type host struct {
	*linux.NetNS
	netlink *netlink.Handle
}

func newHost() (*host, error) {
	ns, err := linux.NewNetNS()
	if err != nil {
		return nil, err
	}
	handle, err := ns.Netlink()
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return &host{ns, handle}, nil
}

func (h *host) close() {
	if h == nil {
		return
	}
	h.netlink.Close()
	h.NetNS.Close()
}

// cable joins two hosts.
func cable(a *host, aName string, b *host, bName string) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: aName},
		PeerName:      bName,
		PeerNamespace: netlink.NsFd(b.Fd()),
	}
	if err := a.netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s: %w", aName, err)
	}
	return errors.Join(a.up(aName), b.up(bName))
}

func (h *host) up(name string) error {
	link, err := h.netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := h.netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// remove takes a link away, if it is there.
func (h *host) remove(name string) {
	if link, err := h.netlink.LinkByName(name); err == nil {
		_ = h.netlink.LinkDel(link)
	}
}

// attach joins a pod to its node as a CNI plugin does, with one address and everything else behind the node.
func (h *host) attach(dev string, pod *host, address string) error {
	if err := cable(h, dev, pod, "eth0"); err != nil {
		return err
	}
	const gateway = "169.254.1.1"
	return errors.Join(
		h.addr(dev, gateway+"/32"),
		h.route(address+"/32", "", dev),
		pod.addr("eth0", address+"/32"),
		pod.route(gateway+"/32", "", "eth0"),
		pod.route("0.0.0.0/0", gateway, "eth0"),
	)
}

// bridge makes a switch whose own port has an address.
func (h *host) bridge(name, address string) error {
	if err := h.netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	return errors.Join(h.up(name), h.addr(name, address))
}

// enslave puts a link on a bridge.
func (h *host) enslave(name, bridge string) error {
	master, err := h.netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	link, err := h.netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := h.netlink.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("put %s on %s: %w", name, bridge, err)
	}
	return nil
}

func (h *host) addr(dev, address string) error {
	link, err := h.netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("find link %s: %w", dev, err)
	}
	parsed, err := netlink.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("parse address %s: %w", address, err)
	}
	if err := h.netlink.AddrAdd(link, parsed); err != nil {
		return fmt.Errorf("add %s to %s: %w", address, dev, err)
	}
	return nil
}

// route leads to a range, through a gateway if there is one.
func (h *host) route(to, via, dev string) error {
	link, err := h.netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("find link %s: %w", dev, err)
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to), Protocol: unix.RTPROT_STATIC}
	if via == "" {
		r.Scope = netlink.SCOPE_LINK
	} else {
		r.Gw = net.ParseIP(via)
	}
	if err := h.netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("add route to %s: %w", to, err)
	}
	return nil
}

// anyIP makes every address of a range the host's own.
func (h *host) anyIP(cidr string) error {
	r := &netlink.Route{LinkIndex: 1, Dst: ipNet(cidr), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
	if err := h.netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("add local range %s: %w", cidr, err)
	}
	return nil
}

// sysctls sets keys to values, given in pairs.
func (h *host) sysctls(pairs ...string) error {
	return h.Do(func() error {
		for i := 0; i < len(pairs); i += 2 {
			if err := linux.WriteSysctl(pairs[i], pairs[i+1]); err != nil {
				return err
			}
		}
		return nil
	})
}

func ipNet(cidr string) *net.IPNet {
	p := netip.MustParsePrefix(cidr)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
