// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"slices"
	"time"

	"github.com/fairlead/fairlead/model"
)

// owner is a Service's port in one address family: whose ids in the table are.
type owner struct {
	service model.Name
	f       *family
	proto   model.Protocol
	port    uint16
}

// role is what an owner has an id for.
type role int

const (
	toAll   role = iota // the group of endpoints for traffic policy Cluster
	toLocal             // the group for traffic policy Local
	split               // junctions
	guard
	onward
	roles
)

// ids are an owner's, by role; 0: none.
type ids [roles]uint32

// junctionWays are the ways of the roles that are junctions.
var junctionWays = [roles]uint32{split: waySplit, guard: wayGuard, onward: wayOnward}

// roleOf is the role of the group that is chosen from in a scope.
func roleOf(s model.Scope) role {
	if s == model.Here {
		return toLocal
	}
	return toAll
}

// plan puts into a transaction what brings a unit to the snapshot.
func (x *tx) plan(snap *model.Snapshot, u *unit) {
	for _, a := range u.vips {
		x.setVIP(snap, a)
	}
	if x.ports == nil {
		x.ports, x.want = make(map[owner]*plannedPort), make(map[frontend]uint32)
	}
	clear(x.ports)
	clear(x.want)
	p, want := planned{tx: x, snap: snap}, x.want
	if svc, ok := snap.Owner(u.service); ok {
		p.svc = svc
		snap.Ways(svc, func(k frontend, w model.Way) {
			if code, ok := p.code(k, w); ok {
				want[k] = code
			}
		})
	}
	for k, code := range want {
		x.setFront(k, code)
	}
	for _, k := range u.fronts {
		if _, ok := want[k]; !ok {
			x.leaveFront(snap, u, k)
		}
	}
	for _, o := range u.owners {
		p.release(o)
	}
	// Also where nothing is to be written: an endpoint that terminates is no more chosen, but serves its flows until it is gone.
	for _, k := range u.fronts {
		if k.Protocol == model.UDP {
			note(&x.flows, k, true)
		}
	}
}

// planned is a Service's part of a transaction.
type planned struct {
	*tx
	snap *model.Snapshot
	svc  *model.Service
}

// plannedPort is one port in one family: the ids it uses now, and the codes that lead to them.
type plannedPort struct {
	ids   ids
	codes [roles]uint32
	done  [roles]bool
}

// code makes everything behind a frontend and returns the code that leads there; ok is false if the frontend should not be there.
func (p *planned) code(k frontend, w model.Way) (uint32, bool) {
	port := p.svc.Ports[w.Port]
	o := owner{p.svc.Name, familyOf(k.Addr), port.Protocol, port.Port}
	if p.ports[o] == nil {
		p.ports[o] = &plannedPort{}
	}
	if w.Kind == model.AtLeaving {
		if len(p.snap.Onward(k, w)) == 0 {
			return 0, false
		}
		return p.junction(o, onward, p.leaf(o, w.Port, w.Inside)), true
	}
	in, out := p.leaf(o, w.Port, w.Inside), p.leaf(o, w.Port, w.Outside)
	switch {
	case w.Guarded:
		code := p.junction(o, guard, in, out)
		p.setSources(numbered{o.f, code >> lowBits}, disjoint(w.Ranges))
		return code, true
	case w.Outside != w.Inside:
		return p.junction(o, split, in, out), true
	}
	return in, true
}

// leaf is the code of a scope's choice.
func (p *planned) leaf(o owner, port int, scope model.Scope) uint32 {
	r, pp := roleOf(scope), p.ports[o]
	if pp.done[r] {
		return pp.codes[r]
	}
	pp.done[r] = true
	c := p.snap.Choose(p.svc, port, o.f == v4, scope)
	switch c.Action {
	case model.Drop:
		pp.codes[r] = wayNoLocal
	case model.Reject:
		pp.codes[r] = wayRefuse
	default:
		stay := uint32(max(p.svc.Affinity/time.Second, 0))
		if p.svc.Affinity > 0 {
			stay = max(stay, 1)
		}
		pp.ids[r] = p.groupID(o, r, stay > 0)
		n := p.setGroup(numbered{o.f, pp.ids[r]}, c.Candidates, stay > 0)
		pp.codes[r] = pp.ids[r]<<lowBits | p.wayNumber(wayOf{o.f, way{n, stay}})
	}
	return pp.codes[r]
}

// groupID is the id that the role has, or a new one. A group that becomes one with affinity, or ceases to be, is another group: its clients start anew.
func (p *planned) groupID(o owner, r role, stay bool) uint32 {
	if id := p.on.owned[o][r]; id != 0 {
		if g := p.on.groups[numbered{o.f, id}]; g != nil && (g.seats != nil) == stay {
			return id
		}
	}
	return p.newID(o.f)
}

// junction makes a junction and returns its code. It leads where the codes say: of clients inside, and of those outside if it parts them.
func (p *planned) junction(o owner, r role, to ...uint32) uint32 {
	pp := p.ports[o]
	if pp.done[r] {
		return pp.codes[r]
	}
	if pp.ids[r] = p.on.owned[o][r]; pp.ids[r] == 0 {
		pp.ids[r] = p.newID(o.f)
	}
	code := pp.ids[r]<<lowBits | junctionWays[r]
	pp.codes[r], pp.done[r] = code, true
	for i, k := range [...]kind{inside, outside} {
		if l := (link{sets[k][o.f.index], code}); i < len(to) {
			p.setLink(l, to[i])
		} else {
			p.dropLink(l)
		}
	}
	return code
}

// release gives up what an owner has and does not use any more.
func (p *planned) release(o owner) {
	was := p.on.owned[o]
	now := ids{}
	if pp := p.ports[o]; pp != nil {
		now = pp.ids
	}
	for r, id := range was {
		if id != 0 && id != now[r] {
			p.dropID(numbered{o.f, id}, role(r))
		}
	}
	if was != now {
		note(&p.owned, o, now)
	}
}

// dropID deletes everything under an id.
func (x *tx) dropID(n numbered, r role) {
	switch r {
	case toAll, toLocal:
		x.dropGroup(n)
	default:
		code := n.id<<lowBits | junctionWays[r]
		x.dropLink(link{sets[inside][n.f.index], code})
		x.dropLink(link{sets[outside][n.f.index], code})
		if r == guard {
			x.setSources(n, nil)
		}
	}
}

// claimIDs finds out whose the ids are in a table that was read: those that they were known to be before, if that is known, and those that a snapshot's
// frontends lead to, each in its role, are kept. What is left over is nobody's, and deleted.
func (s *state) claimIDs(snap *model.Snapshot, before map[owner]ids) {
	taken := make(map[numbered]struct{})
	claim := func(o owner, r role, id uint32) {
		n := numbered{o.f, id}
		if _, ok := taken[n]; ok || s.owned[o][r] != 0 {
			return
		}
		taken[n] = struct{}{}
		mine := s.owned[o]
		mine[r] = id
		s.owned[o] = mine
	}
	for o, mine := range before {
		for r, id := range mine {
			if id != 0 && s.inUse(numbered{o.f, id}) {
				claim(o, role(r), id)
			}
		}
	}
	leaf := func(o owner, code uint32, scope model.Scope) {
		if code&lowMask >= firstWay {
			claim(o, roleOf(scope), code>>lowBits)
		}
	}
	for svc := range snap.Owners {
		snap.Ways(svc, func(k frontend, w model.Way) {
			code, ok := s.fronts[k]
			if !ok {
				return
			}
			port := svc.Ports[w.Port]
			o := owner{svc.Name, familyOf(k.Addr), port.Protocol, port.Port}
			in, out := sets[inside][o.f.index], sets[outside][o.f.index]
			if !isJunction(code) {
				leaf(o, code, w.Inside)
				return
			}
			claim(o, role(slices.Index(junctionWays[:], code&lowMask)), code>>lowBits)
			leaf(o, s.links[link{in, code}], w.Inside)
			leaf(o, s.links[link{out, code}], w.Outside)
		})
	}
	s.discard(taken)
}

// discard makes strays of what belongs to no id of those taken.
func (s *state) discard(taken map[numbered]struct{}) {
	for n, g := range s.groups {
		if _, ok := taken[n]; ok {
			s.last[n.f.index] = max(s.last[n.f.index], n.id)
			continue
		}
		for i := range g.dests {
			key := string(pairKey(nil, n.id<<lowBits, uint32(i)))
			if g.seats == nil {
				s.strays = append(s.strays, stray{sets[endpoints][n.f.index], key})
				continue
			}
			s.strays = append(s.strays, stray{sets[seats][n.f.index], key}, stray{sets[seated][n.f.index], string(seatKey(n.id, g.seats[i]))})
			s.left[n] = struct{}{}
		}
		delete(s.groups, n)
	}
	for l := range s.links {
		if _, ok := taken[numbered{l.s.f, l.code >> lowBits}]; !ok {
			s.discardLink(l)
		}
	}
	for n := range s.sources {
		if _, ok := taken[n]; !ok {
			s.discardSources(n)
		}
	}
}

// check says why a Service cannot be programmed, if that is known before the kernel is asked.
func (s *state) check(snap *model.Snapshot, name model.Name) error {
	svc, ok := snap.Owner(name)
	if !ok {
		return nil
	}
	for i := range svc.Ports {
		if n := len(svc.Backends[i]); svc.Affinity > 0 && n > maxSeats {
			return fmt.Errorf("port %d has %d endpoints; with session affinity there can be %d", svc.Ports[i].Port, n, maxSeats)
		}
	}
	if used := len(s.groups) + len(s.links) + len(s.left); used+2*int(roles)*len(svc.Ports) > maxID {
		return fmt.Errorf("the table is full: %d groups and junctions", used)
	}
	return nil
}
