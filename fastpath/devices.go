// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// place brings the program to the devices of this node's pods and to the links, and the maps pods and devices to what is there. What is new in the maps comes
// before the program is on its device, what is gone after it.
func (t *Target) place(s *model.Snapshot, links *nodenet.Links) error {
	found, err := podDevices(s, links)
	if err != nil {
		return err
	}
	want := make(map[int]kind, len(found)+len(links.Plain)+1)
	for _, dev := range found {
		want[dev] = toPod
	}
	for _, dev := range links.Plain {
		want[dev] = toNode
	}
	if links.Tunnel != 0 {
		want[links.Tunnel] = toTunnel
	}
	for dev, a := range t.on {
		if want[dev] == a.kind && attached(a.link) {
			continue
		}
		a.link.Close()
		delete(t.on, dev)
		if err := ignoreMissing(t.objects.Devices.Delete(uint32(dev))); err != nil {
			return fmt.Errorf("write devices: %w", err)
		}
	}
	for addr := range t.pods {
		if _, ok := found[addr]; ok {
			continue
		}
		delete(t.pods, addr)
		if err := ignoreMissing(t.objects.Pods.Delete(addr.As16())); err != nil {
			return fmt.Errorf("write pods: %w", err)
		}
	}
	for addr, dev := range found {
		if t.pods[addr] == dev {
			continue
		}
		if err := t.objects.Pods.Put(addr.As16(), uint32(dev)); err != nil {
			return fmt.Errorf("write pods: %w", err)
		}
		t.pods[addr] = dev
	}
	return t.attach(want)
}

// attach puts the program where it is not yet.
func (t *Target) attach(want map[int]kind) error {
	for dev := range t.left {
		if _, ok := want[dev]; !ok {
			delete(t.left, dev)
		}
	}
	var h *netlink.Handle
	for _, dev := range slices.Sorted(maps.Keys(want)) {
		if _, ok := t.on[dev]; ok {
			continue
		}
		if h == nil {
			var err error
			if h, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
				return fmt.Errorf("open netlink socket: %w", err)
			}
			defer h.Close()
		}
		why, err := unfit(h, dev, want[dev])
		if err != nil {
			return err
		}
		if why != "" {
			t.left[dev] = why
			continue
		}
		delete(t.left, dev)
		if err := t.objects.Devices.Put(uint32(dev), uint32(want[dev])); err != nil {
			return fmt.Errorf("write devices: %w", err)
		}
		l, err := link.AttachTCX(link.TCXOptions{Interface: dev, Program: t.objects.Program, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) && gone(h, dev) {
			continue // it went meanwhile, and will be gone from the next snapshot
		}
		if err != nil {
			return fmt.Errorf("attach eBPF program to device %d: %w", dev, err)
		}
		t.on[dev] = attachment{want[dev], l}
	}
	return nil
}

// podDevices are the devices by which the kernel reaches this node's pods, by the pods' addresses.
func podDevices(s *model.Snapshot, links *nodenet.Links) (map[netip.Addr]int, error) {
	var addrs []netip.Addr
	for _, p := range s.Pods.All() {
		if !p.HostNetwork {
			addrs = append(addrs, p.Addrs...)
		}
	}
	if len(addrs) == 0 {
		return nil, nil
	}
	b, err := linux.NewBatch()
	if err != nil {
		return nil, err
	}
	defer b.Close()
	ways := make([]linux.Found, len(addrs))
	for i, a := range addrs {
		b.RouteGet(a, &ways[i])
	}
	if err := b.Send(); err != nil {
		return nil, fmt.Errorf("look up routes to pods: %w", err)
	}
	found := make(map[netip.Addr]int, len(addrs))
	for i, w := range ways {
		// A pod that is not there any more, or not yet, is reached as anything else is.
		if w.Index > 0 && !w.Local && !w.Via && w.Index != links.Tunnel && !slices.Contains(links.Plain, w.Index) {
			found[addrs[i]] = w.Index
		}
	}
	return found, nil
}

// unfit says why the program is not to be on a device; empty: it is.
func unfit(h *netlink.Handle, dev int, k kind) (why string, err error) {
	l, err := h.LinkByIndex(dev)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return fmt.Sprintf("device %d is gone", dev), nil
	}
	if err != nil {
		return "", fmt.Errorf("look at device %d: %w", dev, err)
	}
	name := l.Attrs().Name
	if k != toPod {
		if l.Attrs().EncapType != "ether" {
			return name + " has no link addresses", nil
		}
		return "", nil
	}
	if l.Type() != "veth" {
		return fmt.Sprintf("%s is no veth but a %s", name, l.Type()), nil
	}
	// What shapes a pod's traffic does so on this device, which the fast path goes past.
	disciplines, err := linux.Dump(func() ([]netlink.Qdisc, error) { return h.QdiscList(l) })
	if err != nil {
		return "", fmt.Errorf("list queueing disciplines of %s: %w", name, err)
	}
	for _, q := range disciplines {
		if q.Type() != "noqueue" {
			return fmt.Sprintf("%s has the queueing discipline %s", name, q.Type()), nil
		}
	}
	return "", nil
}

func gone(h *netlink.Handle, dev int) bool {
	_, err := h.LinkByIndex(dev)
	return errors.As(err, new(netlink.LinkNotFoundError))
}

// attached reports whether a link still is: it loses its device when that is removed.
func attached(l link.Link) bool {
	info, err := l.Info()
	if err != nil {
		return false
	}
	tcx := info.TCX()
	return tcx != nil && tcx.Ifindex != 0
}
