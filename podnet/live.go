// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/linux"
)

// unusedAfter is how old a lease that nothing in the kernel speaks for has to be to be taken for a leak: an ADD that is under way gets there much
// sooner, or is dead.
const unusedAfter = 5 * time.Minute

// liveLeases finds in the kernel what is in use on this node: the pods that this plugin has wired, and every other address of the ranges that somebody has,
// such as the pods of the plugin that was here before. Each of those is a lease of its own, whose ID is the address. Ranges leave out another network of the
// same node; without any, only our own pods are found.
func liveLeases(ranges []netip.Prefix) ([]ipam.Lease, error) {
	leases, err := wired(ranges)
	if err != nil || len(ranges) == 0 {
		return leases, err
	}
	taken := map[netip.Addr]bool{} // a pod of ours keeps an address that a stranger has too
	for _, lease := range leases {
		for _, addr := range lease.Addrs {
			taken[addr] = true
		}
	}
	used, err := linux.AddrsInUse()
	if err != nil {
		return nil, err
	}
	for _, u := range used {
		if !inRanges(u.Addr, ranges) || taken[u.Addr] {
			continue
		}
		taken[u.Addr] = true
		if i := slices.IndexFunc(leases, func(l ipam.Lease) bool { return l.ID == u.Link }); i >= 0 {
			leases[i].Addrs = append(leases[i].Addrs, u.Addr) // of a pod of ours that has lost a route
			continue
		}
		id := u.Addr.String()
		if isHostName(u.Link) {
			id = u.Link
		}
		leases = append(leases, ipam.Lease{ID: id, Addrs: []netip.Addr{u.Addr}})
	}
	return leases, nil
}

// wired returns the leases of this plugin's pods: the addresses to which a route of ours leads by an interface with our kind of name.
func wired(ranges []netip.Prefix) (leases []ipam.Lease, err error) {
	ends, err := hostEnds()
	if err != nil {
		return nil, err
	}
	families := []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	if len(ranges) > 0 && ranges[0].Addr().Is6() { // a lease has its addresses in the order of the ranges
		slices.Reverse(families)
	}
	addrs := map[string][]netip.Addr{}
	for _, family := range families {
		routes, err := linux.Dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Protocol: linux.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, route := range routes {
			dst, name := prefixOf(route.Dst), ends[route.LinkIndex]
			if name != "" && dst.IsSingleIP() && (len(ranges) == 0 || inRanges(dst.Addr(), ranges)) {
				addrs[name] = append(addrs[name], dst.Addr())
			}
		}
	}
	for name, list := range addrs {
		leases = append(leases, ipam.Lease{ID: name, Addrs: list})
	}
	return leases, nil
}

func inRanges(addr netip.Addr, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(addr) })
}

// hostEnds returns the names of all interfaces with our kind of name, by index.
func hostEnds() (map[int]string, error) {
	links, err := linux.Dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	ends := map[int]string{}
	for _, link := range links {
		if isHostName(link.Attrs().Name) {
			ends[link.Attrs().Index] = link.Attrs().Name
		}
	}
	return ends, nil
}

// free ends the leases that nobody has any more: of a container whose namespace went away without a DEL, and of a stranger who is gone.
func free(store *ipam.Store, ranges []netip.Prefix) ([]ipam.Lease, error) {
	ends, err := hostEnds()
	if err != nil {
		return nil, err
	}
	live, err := liveLeases(ranges)
	if err != nil {
		return nil, err
	}
	has := map[string]bool{}
	for _, name := range ends {
		has[name] = true
	}
	for _, lease := range live {
		has[lease.ID] = true
	}
	return store.Reconcile(func(l ipam.Lease) bool { return has[l.ID] || time.Since(l.AllocatedAt) < unusedAfter })
}

// Heal puts the leases of a node in order when its agent starts: what is in use and has no lease gets one, and a lease that nobody has any more, unless it is
// so young that an ADD may be about to use it, ends and is returned. dataDir and podCIDRs are those of the plugin's configuration.
func Heal(dataDir string, podCIDRs []netip.Prefix) ([]ipam.Lease, error) {
	store, err := ipam.New(ipam.Config{
		Dir:    dataDir,
		Ranges: podCIDRs,
		Live:   func() ([]ipam.Lease, error) { return liveLeases(podCIDRs) },
	})
	if err != nil {
		return nil, fmt.Errorf("heal leases: %w", err)
	}
	if err := store.Adopt(); err != nil {
		return nil, err
	}
	return free(store, podCIDRs)
}
