// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// tx is one transaction in the making: elements to delete and to add, and what the state is once it is done.
type tx struct {
	on       *state
	del, add [kinds][2]message
	elements int
	key, val []byte // scratch
	// ports and want are scratch too: of the Service that is being planned.
	ports map[owner]*plannedPort
	want  map[frontend]uint32

	fronts  map[frontend]edit[uint32]
	groups  map[numbered]edit[*group]
	links   map[link]edit[uint32]
	sources map[numbered]edit[[]netip.Prefix]
	vips    map[netip.Addr]bool
	plain   map[plain]bool
	ways    map[wayOf]edit[uint32]
	owned   map[owner]ids
	taken   map[numbered]bool
	avoid   map[numbered]bool // ids that strays have
	last    [2]uint32
	gone    int // strays deleted
	// flows are the UDP frontends whose flows may now lead to the wrong place.
	flows map[frontend]bool
}

// edit is a new value, or none.
type edit[V any] struct {
	value V
	gone  bool
}

func (s *state) begin() *tx {
	x := &tx{on: s, last: s.last}
	for _, y := range s.strays {
		if id, ok := y.id(); ok {
			note(&x.avoid, id, true)
		}
	}
	return x
}

// note records a new value; the map is made when it is first needed, because most transactions need only one of them.
func note[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[k] = v
}

func (x *tx) put(s *set, key, val []byte) {
	element(&x.add[s.kind][s.f.index], key, val, false)
	x.elements++
}

func (x *tx) drop(s *set, key []byte) {
	element(&x.del[s.kind][s.f.index], key, nil, false)
	x.elements++
}

// replace writes an element's number, whatever it was before.
func (x *tx) replace(s *set, key []byte, had bool, now uint32) {
	if had {
		x.drop(s, key)
	}
	x.put(s, key, appendNumber(x.val[:0], now))
}

// setFront makes a frontend lead somewhere.
func (x *tx) setFront(k frontend, code uint32) {
	have, had := x.on.fronts[k]
	if e, ok := x.fronts[k]; ok {
		if !e.gone {
			return
		}
		had = false // another Service's part of this transaction has deleted it
	}
	if had && have == code {
		return
	}
	s := frontendSet(k)
	x.key = s.f.frontendKey(x.key[:0], k)
	x.replace(s, x.key, had, code)
	note(&x.fronts, k, edit[uint32]{value: code})
}

// leaveFront deletes a frontend that the Service of a unit has no more. When another Service has it now, that one's part takes care
// of it, in this transaction or another, unless it leads to what is about to be deleted.
func (x *tx) leaveFront(snap *model.Snapshot, u *unit, k frontend) {
	code, had := x.on.fronts[k]
	if _, done := x.fronts[k]; done || !had {
		return
	}
	if owner, ok := snap.Frontends.Get(k); ok && owner != u.service && !x.leadsIntoUnit(u, familyOf(k.Addr), code) {
		return
	}
	s := frontendSet(k)
	x.key = s.f.frontendKey(x.key[:0], k)
	x.drop(s, x.key)
	note(&x.fronts, k, edit[uint32]{gone: true})
}

func (x *tx) leadsIntoUnit(u *unit, f *family, code uint32) bool {
	id := code >> lowBits
	return id != 0 && slices.ContainsFunc(u.owners, func(o owner) bool {
		mine := x.on.owned[o]
		return o.f == f && slices.Contains(mine[:], id)
	})
}

// setGroup brings a group to the endpoints wanted and returns how many there are.
func (x *tx) setGroup(n numbered, want []model.Backend, stay bool) uint32 {
	have := x.on.groups[n]
	if have == nil {
		have = &group{}
	}
	now := &group{dests: place(have.dests, want)}
	count := uint32(len(now.dests))
	if stay {
		now.sit(have)
	}
	if slices.Equal(have.dests, now.dests) && slices.Equal(have.seats, now.seats) {
		return count
	}
	for i := range max(len(have.dests), len(now.dests)) {
		old, fresh := i < len(have.dests), i < len(now.dests)
		if old && fresh && have.dests[i] == now.dests[i] {
			continue
		}
		x.setIndex(n, uint32(i), have, now, old, fresh)
	}
	if stay {
		x.setSeats(n, have, now)
	}
	note(&x.groups, n, edit[*group]{value: now})
	return count
}

// setIndex writes what is at an index of a group: an endpoint, or the seat of one.
func (x *tx) setIndex(n numbered, i uint32, have, now *group, old, fresh bool) {
	s := sets[endpoints][n.f.index]
	if now.seats != nil || have.seats != nil {
		s = sets[seats][n.f.index]
	}
	x.key = pairKey(x.key[:0], n.id<<lowBits, i)
	if old {
		x.drop(s, x.key)
	}
	switch {
	case !fresh:
	case now.seats != nil:
		x.put(s, x.key, seatKey(n.id, now.seats[i]))
	default:
		x.val = n.f.destData(x.val[:0], now.dests[i])
		x.put(s, x.key, x.val)
	}
}

// setSeats writes who sits where.
func (x *tx) setSeats(n numbered, have, now *group) {
	s, was, is := sets[seated][n.f.index], have.seating(), now.seating()
	for _, seat := range have.seats {
		if is[seat] != was[seat] {
			x.drop(s, seatKey(n.id, seat))
		}
	}
	for _, seat := range now.seats {
		if is[seat] != was[seat] {
			x.val = n.f.destData(x.val[:0], is[seat])
			x.put(s, seatKey(n.id, seat), x.val)
		}
	}
}

// seating is who sits where.
func (g *group) seating() map[uint16]dest {
	m := make(map[uint16]dest, len(g.seats))
	for i, s := range g.seats {
		m[s] = g.dests[i]
	}
	return m
}

// sit gives the endpoints of a group their seats: those they had before, and new ones the next in a circle, so that an empty seat stays
// empty for long. Where that leaves too few, those of endpoints that have just gone are given away at once.
func (g *group) sit(before *group) {
	old := make(map[dest]uint16, len(before.seats))
	g.lastSeat = before.lastSeat
	for i, s := range before.seats {
		old[before.dests[i]] = s
		if before.lastSeat == 0 { // the group was read from the kernel
			g.lastSeat = max(g.lastSeat, s)
		}
	}
	g.seats = make([]uint16, len(g.dests))
	taken := make(map[uint16]struct{}, len(g.dests))
	for i, d := range g.dests {
		if s, ok := old[d]; ok {
			g.seats[i] = s
			taken[s] = struct{}{}
		}
	}
	if fresh := len(g.dests) - len(taken); len(before.seats)+fresh <= maxSeats {
		for _, s := range before.seats {
			taken[s] = struct{}{}
		}
	}
	for i := range g.seats {
		for g.seats[i] == 0 {
			if g.lastSeat++; g.lastSeat > maxSeats {
				g.lastSeat = 1
			}
			if _, sits := taken[g.lastSeat]; !sits {
				g.seats[i] = g.lastSeat
				taken[g.lastSeat] = struct{}{}
			}
		}
	}
}

func seatKey(id uint32, seat uint16) []byte { return appendNumber(nil, id<<lowBits|uint32(seat)) }

// dropGroup deletes a group.
func (x *tx) dropGroup(n numbered) {
	have := x.on.groups[n]
	if have == nil {
		return
	}
	x.setGroupEmpty(n, have)
	note(&x.groups, n, edit[*group]{gone: true})
}

func (x *tx) setGroupEmpty(n numbered, have *group) {
	none := &group{}
	for i := range have.dests {
		x.setIndex(n, uint32(i), have, none, true, false)
	}
	x.setSeats(n, have, none)
}

func (x *tx) setLink(l link, to uint32) {
	have, had := x.on.links[l]
	if had && have == to {
		return
	}
	x.key = appendNumber(x.key[:0], l.code)
	x.replace(l.s, x.key, had, to)
	note(&x.links, l, edit[uint32]{value: to})
}

func (x *tx) dropLink(l link) {
	if _, had := x.on.links[l]; had {
		x.key = appendNumber(x.key[:0], l.code)
		x.drop(l.s, x.key)
		note(&x.links, l, edit[uint32]{gone: true})
	}
}

// setSources says who may pass a junction.
func (x *tx) setSources(n numbered, want []netip.Prefix) {
	have := x.on.sources[n]
	if _, done := x.sources[n]; done || slices.Equal(have, want) {
		return
	}
	note(&x.sources, n, edit[[]netip.Prefix]{value: want, gone: len(want) == 0})
	for _, p := range have {
		if !slices.Contains(want, p) {
			x.setSource(&x.del[sources][n.f.index], n, p)
		}
	}
	for _, p := range want {
		if !slices.Contains(have, p) {
			x.setSource(&x.add[sources][n.f.index], n, p)
		}
	}
}

func (x *tx) setSource(to *message, n numbered, p netip.Prefix) {
	key := sourceKey(n, p)
	rangeElement(to, key[:len(key)/2], key[len(key)/2:])
	x.elements++
}

// sourceKey is the first and the last key of a source's range.
func sourceKey(n numbered, p netip.Prefix) []byte {
	code := n.id<<lowBits | wayGuard
	first := n.f.appendAddr(appendNumber(nil, code), p.Addr())
	return n.f.appendAddr(appendNumber(first, code), model.LastOf(p))
}

// newID gives out an id.
func (x *tx) newID(f *family) uint32 {
	for {
		if x.last[f.index]++; x.last[f.index] > maxID {
			x.last[f.index] = 1
		}
		n := numbered{f, x.last[f.index]}
		_, left := x.on.left[n]
		if !x.on.inUse(n) && !left && !x.taken[n] && !x.avoid[n] {
			note(&x.taken, n, true)
			return n.id
		}
	}
}

// wayNumber is the number of a way, whose chain is made if it is not there.
func (x *tx) wayNumber(w wayOf) uint32 {
	if n, ok := x.on.ways[w]; ok {
		return n
	}
	if e, ok := x.ways[w]; ok {
		return e.value
	}
	n := x.on.freeWay(w.f, x.ways)
	note(&x.ways, w, edit[uint32]{value: n})
	for _, k := range []kind{ways, ends} {
		verdictElement(&x.add[k][w.f.index], appendNumber(nil, n), w.f.chainOf(w.way))
		x.elements++
	}
	return n
}

// freeWay is the lowest number that no way has.
func (s *state) freeWay(f *family, more map[wayOf]edit[uint32]) uint32 {
	taken := make(map[uint32]struct{}, len(s.ways)+len(more))
	for w, n := range s.ways {
		if w.f == f {
			taken[n] = struct{}{}
		}
	}
	for w, e := range more {
		if w.f == f {
			taken[e.value] = struct{}{}
		}
	}
	n := uint32(firstWay)
	for {
		if _, ok := taken[n]; !ok {
			return n
		}
		n++
	}
}

// dropWay removes a way that nothing leads to.
func (x *tx) dropWay(w wayOf) {
	note(&x.ways, w, edit[uint32]{gone: true})
	for _, k := range []kind{ways, ends} {
		x.drop(sets[k][w.f.index], appendNumber(nil, x.on.ways[w]))
	}
}

// needsVIP reports whether an address is a virtual one that the rules would not know as such: those in the ranges are virtual anyway.
func needsVIP(snap *model.Snapshot, a netip.Addr) bool {
	_, virtual := snap.VIPs.Get(a)
	_, foreign := snap.Foreign.Get(a)
	return virtual && (foreign || !snap.InServiceCIDRs(a))
}

// setVIP makes an address a virtual one, or an ordinary one.
func (x *tx) setVIP(snap *model.Snapshot, a netip.Addr) {
	want := needsVIP(snap, a)
	_, have := x.on.vips[a]
	if _, done := x.vips[a]; done || want == have {
		return
	}
	f := familyOf(a)
	note(&x.vips, a, want)
	x.toggle(sets[vips][f.index], f.appendAddr(nil, a), want)
}

func (x *tx) toggle(s *set, key []byte, on bool) {
	if on {
		x.put(s, key, nil)
	} else {
		x.drop(s, key)
	}
}

// setPlains brings the plain sets that come from some parts of the snapshot to what it wants.
func (x *tx) setPlains(snap *model.Snapshot, of part) {
	for _, p := range plainSets {
		if p.part&of == 0 {
			continue
		}
		want := make(map[plain]struct{})
		p.want(snap, func(k kind, f *family, key []byte) { want[plain{sets[k][f.index], string(key)}] = struct{}{} })
		for e := range want {
			if _, ok := x.on.plains[e.s][e.key]; !ok {
				x.setPlain(e, true)
			}
		}
		for _, k := range p.kinds {
			for _, s := range sets[k] {
				for key := range x.on.plains[s] {
					if _, ok := want[plain{s, key}]; !ok {
						x.setPlain(plain{s, key}, false)
					}
				}
			}
		}
	}
}

// setPlain adds or deletes a plain element.
func (x *tx) setPlain(p plain, on bool) {
	note(&x.plain, p, on)
	if !p.s.isInterval() {
		x.toggle(p.s, []byte(p.key), on)
		return
	}
	f := p.s.f
	prefix := parsePrefixKey(f, p.key)
	to := &x.add[p.s.kind][f.index]
	if !on {
		to = &x.del[p.s.kind][f.index]
	}
	element(to, f.appendAddr(nil, prefix.Addr()), nil, false)
	x.elements++
	if end := after(prefix); end.IsValid() {
		element(to, f.appendAddr(nil, end), nil, true)
		x.elements++
	}
}

// dropStrays deletes what cannot be ours.
func (x *tx) dropStrays() {
	for _, s := range x.on.strays {
		n, to := int(s.s.key.len), &x.del[s.s.kind][s.s.f.index]
		if s.s.kind == sources {
			rangeElement(to, []byte(s.key[:n]), []byte(s.key[n:]))
		} else {
			element(to, []byte(s.key[:n]), nil, len(s.key) > n)
		}
		x.elements++
	}
	x.gone = len(x.on.strays)
}

// encode appends the transaction's messages: chains first, because elements name them; deletions before additions, because a
// changed element is deleted and added; chains nothing leads to any more at the end.
func (x *tx) encode(b *batch) {
	for w, e := range x.ways {
		if !e.gone {
			addChain(b, w.f.wayChain(w.way))
		}
	}
	for k := range kinds {
		for i, s := range sets[k] {
			addElements(b, Table, s, unix.NFT_MSG_DELSETELEM, x.del[k][i].buf)
		}
	}
	for k := range kinds {
		for i, s := range sets[k] {
			addElements(b, Table, s, unix.NFT_MSG_NEWSETELEM, x.add[k][i].buf)
		}
	}
	for w, e := range x.ways {
		if e.gone {
			b.add(unix.NFT_MSG_DELCHAIN, 0, func(m *message) {
				m.putString(unix.NFTA_CHAIN_TABLE, Table)
				m.putString(unix.NFTA_CHAIN_NAME, w.f.chainOf(w.way))
			})
		}
	}
}

// done brings the state to what the kernel has after the transaction.
func (x *tx) done() {
	s := x.on
	settle(s.fronts, x.fronts)
	for n, e := range x.groups {
		if was := s.groups[n]; e.gone && was != nil && was.seats != nil {
			s.left[n] = struct{}{}
		}
	}
	settle(s.groups, x.groups)
	settle(s.links, x.links)
	settle(s.ways, x.ways)
	settle(s.sources, x.sources)
	merge(s.vips, x.vips)
	for p, on := range x.plain {
		merge(s.plains[p.s], map[string]bool{p.key: on})
	}
	for o, now := range x.owned {
		if now == (ids{}) {
			delete(s.owned, o)
		} else {
			s.owned[o] = now
		}
	}
	s.last = x.last
	s.strays = s.strays[x.gone:]
}

func settle[K comparable, V any](to map[K]V, changes map[K]edit[V]) {
	for k, e := range changes {
		if e.gone {
			delete(to, k)
		} else {
			to[k] = e.value
		}
	}
}

func merge[K comparable](to map[K]struct{}, changes map[K]bool) {
	for k, on := range changes {
		if on {
			to[k] = struct{}{}
		} else {
			delete(to, k)
		}
	}
}
