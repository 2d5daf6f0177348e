// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/model"
)

// unit is what has to change together: all that belongs to one Service, or to one pod's host ports, which are like one. The zero name stands for what belongs to none.
type unit struct {
	service model.Name
	fronts  []frontend
	vips    []netip.Addr
	owners  []owner
}

// units collects what is to be looked at, by Service.
type units map[model.Name]*unit

func (us units) of(n model.Name) *unit {
	u := us[n]
	if u == nil {
		u = &unit{service: n}
		us[n] = u
	}
	return u
}

// service adds all that a version of a Service may have in the table.
func (us units) service(snap *model.Snapshot, svc *model.Service) {
	if svc == nil || svc.Type != model.ClusterIP {
		return
	}
	u := us.of(svc.Name)
	u.vips = append(u.vips, svc.ClusterIPs...)
	snap.Claims(svc, func(k frontend) { u.fronts = append(u.fronts, k) })
	addrs := svc.ClusterIPs
	if svc.Pod != nil {
		addrs = svc.Pod.Addrs
	}
	for _, a := range addrs {
		for _, p := range svc.Ports {
			if o := (owner{svc.Name, familyOf(a), p.Protocol, p.Port}); !slices.Contains(u.owners, o) {
				u.owners = append(u.owners, o)
			}
		}
	}
}

// merge adds what another unit of the same Service has.
func (u *unit) merge(o *unit) {
	u.fronts = union(u.fronts, o.fronts)
	u.vips = union(u.vips, o.vips)
	u.owners = union(u.owners, o.owners)
}

// union has what is in either, each once: a Service that is refused may change for ever.
func union[T comparable](a, b []T) (all []T) {
	seen := make(map[T]struct{}, len(a)+len(b))
	for _, x := range slices.Concat(a, b) {
		if _, again := seen[x]; !again {
			seen[x] = struct{}{}
			all = append(all, x)
		}
	}
	return all
}

// sorted puts them in an order of their own, so that two runs write the same.
func (us units) sorted() []*unit {
	return slices.SortedFunc(maps.Values(us), func(a, b *unit) int { return a.service.Compare(b.service) })
}

// changes are the Services that two snapshots may decide differently about, in both versions.
func changes(from, to *model.Snapshot) units {
	us := make(units)
	for n := range model.Touched(from, to) {
		was, _ := from.Owner(n)
		is, _ := to.Owner(n)
		us.service(to, is)
		if was != is {
			us.service(from, was)
		}
	}
	// Where an endpoint that is leaving leads is for all of its Services to say.
	for _, u := range slices.Collect(maps.Values(us)) {
		for _, k := range u.fronts {
			if owner, ok := to.Frontends.Get(k); ok {
				us.unchanged(to, owner)
			}
		}
	}
	return us
}

// unchanged adds a Service that is not there yet.
func (us units) unchanged(snap *model.Snapshot, n model.Name) {
	if svc, ok := snap.Owner(n); ok && us[n] == nil {
		us.service(snap, svc)
	}
}
