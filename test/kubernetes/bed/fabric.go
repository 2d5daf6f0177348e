// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
)

// The fabric's networks. The host part of a machine's addresses is the same in both.
var (
	fabric4 = netip.MustParsePrefix("172.30.0.0/24")
	fabric6 = netip.MustParsePrefix("fd00:30::/64")
)

// Host parts of addresses on the fabric.
const (
	gatewayHost = 1
	controlHost = 2
	nodeHost    = 10 // of the first node
)

// addrsOf are a machine's addresses on the fabric.
func addrsOf(host int) []netip.Addr {
	a4, a6 := fabric4.Addr().As4(), fabric6.Addr().As16()
	a4[3], a6[15] = byte(host), byte(host)
	return []netip.Addr{netip.AddrFrom4(a4), netip.AddrFrom16(a6)}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

const (
	switchName = "switch"
	uplink     = "eth0"
)

// settings are those of every machine's network: addresses are usable at once, and nobody else gives out any.
var settings = map[string]string{
	"net/ipv6/conf/default/accept_dad": "0", "net/ipv6/conf/all/accept_dad": "0",
	"net/ipv6/conf/default/accept_ra": "0", "net/ipv6/conf/all/accept_ra": "0",
	"net/ipv4/conf/default/rp_filter": "0", "net/ipv4/conf/all/rp_filter": "0",
}

// nodeSettings are what a node's administrator sets for any pod network.
var nodeSettings = map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}

func (m *Machine) set(settings map[string]string) error {
	return m.NS.Do(func() error {
		for key, value := range settings {
			if err := linux.WriteSysctl(key, value); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("set up %s: %w", m.Name, err)
			}
		}
		return nil
	})
}

// makeSwitch makes the bridge that joins the machines.
func (m *Machine) makeSwitch() error {
	if err := m.set(settings); err != nil {
		return err
	}
	h, err := m.NS.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = switchName
	if err := h.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make switch: %w", err)
	}
	return m.addresses(h, bridge, gatewayHost)
}

func (m *Machine) addresses(h *netlink.Handle, link netlink.Link, host int) error {
	for i, a := range addrsOf(host) {
		p := netip.PrefixFrom(a, []netip.Prefix{fabric4, fabric6}[i].Bits())
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("give %s address %s: %w", m.Name, p, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set interface of %s up: %w", m.Name, err)
	}
	return nil
}

// plugIn plugs a node in, ready for a pod network.
func (n *Node) plugIn(fabric *Machine) error {
	return errors.Join(n.set(nodeSettings), n.join(fabric, nodeHost+n.number-1))
}

// join plugs the machine into the fabric's switch. Its default routes lead there and end there: a program on the machine
// that addresses a Service needs some route before the address is replaced.
func (m *Machine) join(fabric *Machine, host int) error {
	if err := m.set(settings); err != nil {
		return err
	}
	batch, err := fabric.NS.Batch()
	if err != nil {
		return err
	}
	defer batch.Close()
	// A machine that is started again has the same network card.
	batch.VethAdd(linux.VethPair{Name: m.Name, PeerName: uplink, PeerMAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(host)}, PeerNS: m.NS})
	if err := batch.Send(); err != nil {
		return fmt.Errorf("plug in %s: %w", m.Name, err)
	}
	f, err := fabric.NS.Netlink()
	if err != nil {
		return err
	}
	defer f.Close()
	port, err := f.LinkByName(m.Name)
	if err == nil {
		var bridge netlink.Link
		if bridge, err = f.LinkByName(switchName); err == nil {
			err = f.LinkSetMaster(port, bridge)
		}
	}
	if err != nil {
		return fmt.Errorf("plug in %s: %w", m.Name, err)
	}
	h, err := m.NS.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(uplink)
	if err != nil {
		return fmt.Errorf("plug in %s: %w", m.Name, err)
	}
	if err := m.addresses(h, link, host); err != nil {
		return err
	}
	for _, gateway := range addrsOf(gatewayHost) {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}); err != nil {
			return fmt.Errorf("add default route of %s: %w", m.Name, err)
		}
	}
	return nil
}

// awaitUnplugged waits until the kernel has taken away the port of a machine that is gone.
func (m *Machine) awaitUnplugged(ctx context.Context, port string) error {
	h, err := m.NS.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	return until(ctx, time.Minute, "end of the interface of "+port, func(context.Context) error {
		if _, err := h.LinkByName(port); !errors.As(err, new(netlink.LinkNotFoundError)) {
			return errors.Join(errors.New("it is still there"), err)
		}
		return nil
	})
}

// route leads from the machine to a network by another machine's address.
func (m *Machine) route(to netip.Prefix, by netip.Addr) error {
	h, err := m.NS.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: by.AsSlice()}); err != nil {
		return fmt.Errorf("add route of %s to %s: %w", m.Name, to, err)
	}
	return nil
}
