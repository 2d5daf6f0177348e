// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package socketlb

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/bpf"
	"github.com/fairlead/fairlead/model"
)

// group is what the kernel has for one address and port of a Service.
type group struct {
	owner  model.Name
	number uint32
	seats  []netip.AddrPort // the endpoints, in the kernel's order
}

// endpointsOf is where a frontend's connections are led, in order; nothing: they are left to the rules. Those are what knows which endpoint a client had before (affinity),
// what has to be refused or dropped, and what another address of a Service may stand for in a pod that has it too. barred says that it is for an endpoint whose own
// address and port are something to the rules: they decide about a packet once, and would about one that was led there.
func endpointsOf(s *model.Snapshot, f model.Frontend, w model.Way) (to []netip.AddrPort, barred bool) {
	if f.Protocol != model.TCP || w.Kind != model.AtClusterIP || f.Addr.IsLoopback() || w.Service.Affinity > 0 || s.IsDNS(f.Addr, w.Service.Ports[w.Port]) {
		return nil, false
	}
	c := s.Choose(w.Service, w.Port, f.Addr.Is4(), w.Inside)
	if c.Action != model.Forward {
		return nil, false
	}
	for _, b := range c.Candidates {
		if b.Addr.IsLoopback() || b.Addr.IsUnspecified() || b.Addr.IsMulticast() {
			return nil, false // in the pod it would be something else
		}
		if s.Lookup(model.Packet{Protocol: model.TCP, Dst: b.AddrPort(), ToNode: isOwn(s, b.Addr)}).Action != model.Pass {
			return nil, true
		}
		to = append(to, b.AddrPort())
	}
	return to, false
}

func isOwn(s *model.Snapshot, a netip.Addr) bool {
	self := s.Node()
	return self != nil && slices.Contains(self.Addrs, a)
}

// touched are the Services that two snapshots may lead differently: those that they decide differently about, and those with an endpoint whose own address and port they do.
func (t *Target) touched(from, to *model.Snapshot) map[model.Name]struct{} {
	touched := model.Touched(from, to)
	if !slices.Equal(from.ServiceCIDRs, to.ServiceCIDRs) || !slices.Equal(ownAddrs(from), ownAddrs(to)) {
		for svc := range to.Owners {
			touched[svc.Name] = struct{}{}
		}
		return touched
	}
	if from.Frontends == to.Frontends {
		return touched
	}
	at, ports := make(map[netip.AddrPort]struct{}), make(map[uint16]struct{})
	for f := range model.Diff(from.Frontends, to.Frontends) {
		switch {
		case f.Protocol != model.TCP:
		case isLeaving(from, f) && isLeaving(to, f):
			// A pod that is ending is that in all of its Services, which have changed.
		case f.Addr.IsUnspecified():
			ports[f.Port] = struct{}{}
		case !to.InServiceCIDRs(f.Addr):
			at[netip.AddrPortFrom(f.Addr, f.Port)] = struct{}{}
		}
	}
	if len(at)+len(ports) == 0 {
		return touched
	}
	for name := range t.barred {
		touched[name] = struct{}{}
	}
	for _, g := range t.groups {
		for _, endpoint := range g.seats {
			_, same := at[endpoint]
			if _, port := ports[endpoint.Port()]; same || port && isOwn(to, endpoint.Addr()) {
				touched[g.owner] = struct{}{}
				break
			}
		}
	}
	return touched
}

// isLeaving reports whether a frontend is nothing in a snapshot but the address of an endpoint that is ending, if it is there at all.
func isLeaving(s *model.Snapshot, f model.Frontend) bool {
	w, ok := s.Way(f)
	return !ok || w.Kind == model.AtLeaving
}

func ownAddrs(s *model.Snapshot) []netip.Addr {
	if self := s.Node(); self != nil {
		return self.Addrs
	}
	return nil
}

// setService brings the kernel to what a snapshot has of a Service.
func (t *Target) setService(s *model.Snapshot, name model.Name) error {
	var now []netip.AddrPort
	delete(t.barred, name)
	if svc, ok := s.Owner(name); ok {
		var err error
		s.Ways(svc, func(f model.Frontend, w model.Way) {
			to, barred := endpointsOf(s, f, w)
			if barred {
				t.barred[name] = struct{}{}
			}
			if len(to) == 0 || err != nil {
				return
			}
			at := netip.AddrPortFrom(f.Addr, f.Port)
			now = append(now, at)
			err = t.setGroup(at, name, to)
		})
		if err != nil {
			return err
		}
	}
	for _, at := range t.owned[name] {
		if slices.Contains(now, at) {
			continue
		}
		if g := t.groups[at]; g != nil && g.owner == name { // and not another one's by now
			if err := t.dropGroup(at, len(g.seats)); err != nil {
				return err
			}
		}
		if t.crowded[at] == name {
			delete(t.crowded, at)
		}
	}
	if delete(t.owned, name); len(now) > 0 {
		t.owned[name] = now
	}
	return nil
}

// setGroup brings the kernel to what an address and port leads to. While it does, a connection is led to what is there before or after; or it finds an empty seat, and
// is left to the rules.
func (t *Target) setGroup(at netip.AddrPort, owner model.Name, to []netip.AddrPort) error {
	g := t.groups[at]
	if g == nil {
		t.number++
		g = &group{number: t.number}
		t.groups[at] = g
	}
	g.owner = owner
	delete(t.crowded, at)
	seats, before := seated(g.seats, to), g.seats
	g.seats = seats
	err := func() error {
		for i, endpoint := range seats {
			if i < len(before) && before[i] == endpoint {
				continue
			}
			if err := t.objects.Endpoints.Put(seat{g.number, uint32(i)}, sealed(at, g.number, i, endpoint)); err != nil {
				return err
			}
		}
		if len(seats) != len(before) {
			if err := t.objects.Services.Put(placeOf(at), entry{g.number, uint32(len(seats))}); err != nil {
				return err
			}
		}
		return t.empty(g.number, len(seats), len(before))
	}()
	if errors.Is(err, unix.E2BIG) {
		t.crowded[at] = owner
		err = t.dropGroup(at, max(len(seats), len(before)))
	}
	if err != nil {
		return fmt.Errorf("write endpoints of %s: %w", at, err)
	}
	return nil
}

// seated puts endpoints into the seats of those before: who stays keeps the seat, who comes takes one that is free, and the last ones fill what then is empty.
func seated(before, to []netip.AddrPort) []netip.AddrPort {
	come := make(map[netip.AddrPort]struct{}, len(to))
	for _, a := range to {
		come[a] = struct{}{}
	}
	seats := slices.Clone(before)
	var free []int
	for i, a := range seats {
		if _, stays := come[a]; !stays {
			free = append(free, i)
		}
		delete(come, a)
	}
	for _, a := range to { // and not the map's order: two runs write the same
		if _, ok := come[a]; !ok {
			continue
		}
		delete(come, a)
		if len(free) > 0 {
			seats[free[0]], free = a, free[1:]
		} else {
			seats = append(seats, a)
		}
	}
	for _, i := range slices.Backward(free) {
		last := len(seats) - 1
		seats[i] = seats[last]
		seats = seats[:last]
	}
	return seats
}

// dropGroup takes everything at an address and port out of the kernel, the way to it first. seats is how many may be taken.
func (t *Target) dropGroup(at netip.AddrPort, seats int) error {
	g := t.groups[at]
	delete(t.groups, at)
	if err := bpf.IgnoreMissing(t.objects.Services.Delete(placeOf(at))); err != nil {
		return fmt.Errorf("remove %s: %w", at, err)
	}
	return t.empty(g.number, 0, seats)
}

// empty frees the seats of a group from one to before another.
func (t *Target) empty(number uint32, from, to int) error {
	for i := from; i < to; i++ {
		if err := bpf.IgnoreMissing(t.objects.Endpoints.Delete(seat{number, uint32(i)})); err != nil {
			return fmt.Errorf("remove endpoint: %w", err)
		}
	}
	return nil
}
