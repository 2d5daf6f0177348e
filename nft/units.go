// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/model"
)

// unit is what has to change together: all that belongs to one Service. The zero name stands for what belongs to none.
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
	for _, a := range svc.ClusterIPs {
		for _, p := range svc.Ports {
			if o := (owner{svc.Name, familyOf(a), p.Protocol, p.Port}); !slices.Contains(u.owners, o) {
				u.owners = append(u.owners, o)
			}
		}
	}
}

// merge adds what another unit of the same Service has.
func (u *unit) merge(o *unit) {
	u.fronts = append(u.fronts, o.fronts...)
	u.vips = append(u.vips, o.vips...)
	for _, x := range o.owners {
		if !slices.Contains(u.owners, x) {
			u.owners = append(u.owners, x)
		}
	}
}

// sorted puts them in an order of their own, so that two runs write the same.
func (us units) sorted() []*unit {
	return slices.SortedFunc(maps.Values(us), func(a, b *unit) int { return a.service.Compare(b.service) })
}

// changes are the Services that two snapshots differ in. A frontend or address that goes from one Service to another concerns both.
func changes(from, to *model.Snapshot) units {
	us := make(units)
	if from.Services != to.Services {
		for _, c := range model.Diff(from.Services, to.Services) {
			us.service(from, c.Old)
			us.service(to, c.New)
		}
	}
	if from.VIPs != to.VIPs {
		for _, c := range model.Diff(from.VIPs, to.VIPs) {
			us.disputed(from, to, c)
		}
	}
	if from.Foreign != to.Foreign {
		for _, c := range model.Diff(from.Foreign, to.Foreign) {
			us.disputed(from, to, c)
		}
	}
	if from.Frontends != to.Frontends {
		for _, c := range model.Diff(from.Frontends, to.Frontends) {
			us.disputed(from, to, c)
		}
	}
	if everyScope(from) == everyScope(to) {
		return us
	}
	// This node has another zone: hints mean something else.
	for _, svc := range to.Services.All() {
		if us[svc.Name] == nil && hasHints(svc) {
			us.service(to, svc)
		}
	}
	return us
}

// disputed adds the Services between which something passed, which may be the same as they were.
func (us units) disputed(from, to *model.Snapshot, c model.Change[model.Name]) {
	if c.Old == c.New {
		return
	}
	for _, side := range []struct {
		snap *model.Snapshot
		name model.Name
	}{{from, c.Old}, {to, c.New}} {
		if svc, ok := side.snap.Services.Get(side.name); ok && us[side.name] == nil {
			us.service(side.snap, svc)
		}
	}
}

// everyScope is what decisions about all Services rest on beside the Services.
func everyScope(s *model.Snapshot) string {
	if self := s.Node(); self != nil {
		return s.Self + "/" + self.Zone
	}
	return ""
}

func hasHints(svc *model.Service) bool {
	return slices.ContainsFunc(svc.Endpoints, func(e model.Endpoint) bool { return e.Hints != nil })
}
