// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
)

// way is how the kernel would send to a node's address, whatever leads to its pods.
type way struct {
	dev int
	// near says that the address is on a link of this node where a packet can be handed to it by its link address.
	near bool
	// routed says that a router is asked first.
	routed bool
	mtu    int // bytes
	err    error
}

// device is what there is to know of a device that leads to nodes.
type device struct {
	name string
	near bool // it finds its neighbours by their addresses
	mtu  int  // bytes
}

// ways asks the kernel, once for each address and device until it is emptied. A router may be in between, or a link on which there is no
// telling neighbours apart (a tunnel of another program, say): there, a gateway's address means nothing.
type ways struct {
	addrs   map[netip.Addr]way
	devices map[int]device
}

func newWays() *ways {
	return &ways{addrs: make(map[netip.Addr]way), devices: make(map[int]device)}
}

func (w *ways) find(h *netlink.Handle, to netip.Addr) way {
	if found, ok := w.addrs[to]; ok {
		return found
	}
	found := w.ask(h, to)
	w.addrs[to] = found
	return found
}

func (w *ways) ask(h *netlink.Handle, to netip.Addr) way {
	routes, err := h.RouteGet(to.AsSlice())
	switch {
	case err != nil:
		return way{err: err}
	case len(routes) == 0:
		return way{err: unix.ENETUNREACH}
	case routes[0].Type != unix.RTN_UNICAST:
		return way{err: fmt.Errorf("%s is this node's own address", to)}
	}
	r := routes[0]
	d, ok := w.devices[r.LinkIndex]
	if !ok {
		link, err := h.LinkByIndex(r.LinkIndex)
		if err != nil {
			return way{err: err}
		}
		attrs := link.Attrs()
		d = device{attrs.Name, attrs.RawFlags&unix.IFF_NOARP == 0 && attrs.Flags&net.FlagPointToPoint == 0, attrs.MTU}
		w.devices[r.LinkIndex] = d
	}
	found := way{dev: r.LinkIndex, routed: r.Gw != nil || r.Via != nil, mtu: d.mtu}
	found.near = !found.routed && d.near
	if r.MTU > 0 {
		found.mtu = r.MTU
	}
	return found
}

// loosen has the devices by which near nodes are reached accept what comes from them by the link while this node answers through the tunnel: the two
// ends do not change at the same moment. Only the strict mode of reverse path filtering stands in the way of that.
func (w *ways) loosen() (changed []string, err error) {
	all, err := linux.ReadSysctl("net/ipv4/conf/all/rp_filter")
	if err != nil {
		return nil, err
	}
	done := make(map[int]bool)
	for _, found := range w.addrs {
		if !found.near || done[found.dev] {
			continue
		}
		done[found.dev] = true
		sysctl := "net/ipv4/conf/" + w.devices[found.dev].name + "/rp_filter"
		own, err := linux.ReadSysctl(sysctl)
		if err != nil {
			continue // it has gone meanwhile
		}
		if max(all, own) == "1" { // the kernel goes by the larger one
			if err := linux.WriteSysctl(sysctl, "2"); err != nil {
				return changed, err
			}
			changed = append(changed, w.devices[found.dev].name)
		}
	}
	return changed, nil
}
