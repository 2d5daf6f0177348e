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

	"github.com/fairlead/fairlead/bpf"
	"github.com/fairlead/fairlead/dns/shortcut"
	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// place brings the programs to the devices of this node's pods and to those that lead to other nodes, and the map pods to what is there: what has changed since the
// last snapshot, or all of it anew. What is new in the map comes before the program is on its device, what is gone before it is off it.
func (t *Target) place(h *netlink.Handle, s *model.Snapshot, links *nodenet.Links, anew bool) error {
	found, err := t.podDevices(s, links, anew)
	if err != nil {
		return err
	}
	wanted := make(map[int]kind)
	for _, dev := range found {
		wanted[dev] = toPod
	}
	for _, dev := range slices.Concat(links.Plain, []int{links.Tunnel}) {
		if dev != 0 {
			wanted[dev] = toNode
		}
	}
	for dev, k := range wanted {
		if _, err := t.device(h, dev, k); err != nil {
			return err
		}
	}
	for dev := range t.devices {
		if _, ok := wanted[dev]; !ok {
			delete(t.devices, dev)
		}
	}
	for addr := range t.pods {
		if dev, ok := found[addr]; ok && t.devices[dev].why == "" {
			continue
		}
		delete(t.pods, addr)
		if err := bpf.IgnoreMissing(t.objects.Pods.Delete(addr.As16())); err != nil {
			return fmt.Errorf("write pods: %w", err)
		}
	}
	for addr, dev := range found {
		if d := t.devices[dev]; d.why == "" {
			if err := t.setPod(addr, pod{t.ranges.what(addr), uint32(dev)}); err != nil {
				return err
			}
		}
	}
	for dev, a := range t.on {
		if d, ok := t.devices[dev]; !ok || d.why != "" || d.kind != a.kind || anew && !attached(a.link) {
			a.link.Close()
			delete(t.on, dev)
		}
	}
	for _, dev := range slices.Sorted(maps.Keys(t.devices)) {
		if _, ok := t.on[dev]; ok || t.devices[dev].why != "" {
			continue
		}
		if err := t.attach(h, dev, t.devices[dev].kind); err != nil {
			return err
		}
	}
	asked := make(map[netip.Addr]struct{}, len(t.pods))
	for addr := range t.pods {
		asked[addr] = struct{}{}
	}
	t.answers.SetPods(asked)
	return nil
}

// covered are the ways through devices that a program can be on: what goes to another node by the fast path is to come back by it too, or conntrack would see
// one direction only.
func (t *Target) covered(h *netlink.Handle, links *nodenet.Links) (map[netip.Prefix]nodenet.Way, error) {
	ways := links.Ways
	for _, dev := range links.Plain {
		d, err := t.device(h, dev, toNode)
		if err != nil {
			return nil, err
		}
		if d.why != "" {
			ways = maps.Clone(ways)
			maps.DeleteFunc(ways, func(_ netip.Prefix, w nodenet.Way) bool { return w.Dev == dev })
		}
	}
	return ways, nil
}

// setPod writes what there is to know of a pod at an address. What was counted of the one that is there goes on.
func (t *Target) setPod(a netip.Addr, p pod) error {
	was, known := t.pods[a]
	if known && was == p {
		return nil
	}
	var entry shortcut.Pod
	if known && was.Dev == p.Dev {
		if err := t.objects.Pods.Lookup(a.As16(), &entry); err != nil {
			return fmt.Errorf("read pods: %w", err)
		}
	}
	entry.What, entry.Dev = p.What, p.Dev
	if err := t.objects.Pods.Put(a.As16(), entry); err != nil {
		return fmt.Errorf("write pods: %w", err)
	}
	t.pods[a] = p
	return nil
}

// attach puts the program on a device.
func (t *Target) attach(h *netlink.Handle, dev int, k kind) error {
	program := t.objects.FromPod
	if k == toNode {
		program = t.objects.FromNode
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: dev, Program: program, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		if _, gone := h.LinkByIndex(dev); errors.As(gone, new(netlink.LinkNotFoundError)) {
			return nil // it went meanwhile
		}
		return fmt.Errorf("attach eBPF program to device %d: %w", dev, err)
	}
	t.on[dev] = attachment{k, l}
	return nil
}

// podDevices are the devices by which the kernel reaches this node's pods, by the pods' addresses. It is asked about those that are not known, or have another
// pod than in the last snapshot; anew about all.
func (t *Target) podDevices(s *model.Snapshot, links *nodenet.Links, anew bool) (map[netip.Addr]int, error) {
	touched := make(map[netip.Addr]struct{})
	if !anew {
		for _, c := range model.Diff(t.last.Pods, s.Pods) {
			for _, p := range []*model.Pod{c.Old, c.New} {
				if p != nil {
					for _, a := range p.Addrs {
						touched[a] = struct{}{}
					}
				}
			}
		}
	}
	found := make(map[netip.Addr]int)
	var ask []netip.Addr
	for _, p := range s.Pods.All() {
		if p.HostNetwork {
			continue
		}
		for _, a := range p.Addrs {
			_, again := touched[a]
			if known, ok := t.pods[a]; ok && !again && !anew {
				found[a] = int(known.Dev)
			} else {
				ask = append(ask, a)
			}
		}
	}
	if len(ask) == 0 {
		return found, nil
	}
	b, err := linux.NewBatch()
	if err != nil {
		return nil, err
	}
	defer b.Close()
	ways := make([]linux.Found, len(ask))
	for i, a := range ask {
		b.RouteGet(a, &ways[i])
	}
	if err := b.Send(); err != nil {
		return nil, fmt.Errorf("look up routes to pods: %w", err)
	}
	for i, w := range ways {
		// A pod that is not there any more, or not yet, is reached as anything else is.
		if w.Index > 0 && !w.Local && !w.Via && w.Index != links.Tunnel && !slices.Contains(links.Plain, w.Index) {
			found[ask[i]] = w.Index
		}
	}
	return found, nil
}

// device is one that a program is to be on.
type device struct {
	kind kind
	why  string // why it is not to be; empty: it is
}

// device is what there is to know of a device, which is looked at if it is not known as that.
func (t *Target) device(h *netlink.Handle, dev int, k kind) (device, error) {
	d, known := t.devices[dev]
	if known && d.kind == k {
		return d, nil
	}
	d, err := look(h, dev, k)
	if err == nil {
		t.devices[dev] = d
	}
	return d, err
}

// look finds out what there is to know of a device.
func look(h *netlink.Handle, dev int, k kind) (device, error) {
	d := device{kind: k}
	l, err := h.LinkByIndex(dev)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		d.why = fmt.Sprintf("device %d is gone", dev)
		return d, nil
	}
	if err != nil {
		return d, fmt.Errorf("look at device %d: %w", dev, err)
	}
	name := l.Attrs().Name
	if k == toNode {
		if l.Attrs().EncapType != "ether" {
			d.why = name + " has no link addresses"
		}
		return d, nil
	}
	if l.Type() != "veth" {
		d.why = fmt.Sprintf("%s is no veth but a %s", name, l.Type())
		return d, nil
	}
	// What shapes a pod's traffic does so on this device, which the fast path goes past.
	disciplines, err := linux.Dump(func() ([]netlink.Qdisc, error) { return h.QdiscList(l) })
	if err != nil {
		return d, fmt.Errorf("list queueing disciplines of %s: %w", name, err)
	}
	for _, q := range disciplines {
		if q.Type() != "noqueue" {
			d.why = fmt.Sprintf("%s has the queueing discipline %s", name, q.Type())
		}
	}
	return d, nil
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
