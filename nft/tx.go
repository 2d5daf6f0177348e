// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// tx is one transaction in the making: elements to delete and to add, and what the state is once it is done.
type tx struct {
	on       *state
	del, add [kinds][2]message
	elements int
	key, val []byte // scratch

	ports map[frontend]entry // new values
	vips  map[netip.Addr]bool
	plain map[plain]bool
	picks map[pick]bool
	gone  int // strays deleted
}

func (s *state) begin() *tx { return &tx{on: s} }

// note records a new value; the map is made when it is first needed, because most transactions need only one of them.
func note[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[k] = v
}

func (x *tx) empty() bool { return x.elements == 0 }

func (x *tx) put(s *set, key, val []byte) {
	element(&x.add[s.kind][s.f.index], key, val, false)
	x.elements++
}

func (x *tx) drop(s *set, key []byte) {
	element(&x.del[s.kind][s.f.index], key, nil, false)
	x.elements++
}

// setPort brings a frontend to what the snapshot wants.
func (x *tx) setPort(snap *model.Snapshot, k frontend) {
	if _, done := x.ports[k]; done {
		return
	}
	f, have := k.family(), x.on.ports[k]
	now := entry{dests: place(have.dests, candidates(snap, k))}
	now.n = uint32(len(now.dests))
	if now.n > 0 {
		x.needPick(pick{f, int(now.n)})
	}
	changed := now.n != have.n
	m := sets[endpoints][f.index]
	for i := range max(len(have.dests), len(now.dests)) {
		old, new := i < len(have.dests), i < len(now.dests)
		if old && new && have.dests[i] == now.dests[i] {
			continue
		}
		changed = true
		x.key = f.endpointKey(x.key[:0], k, i)
		if old {
			x.drop(m, x.key)
		}
		if new {
			x.val = f.destData(x.val[:0], now.dests[i])
			x.put(m, x.key, x.val)
		}
	}
	if !changed {
		return
	}
	if now.n != have.n {
		x.setCount(f, k, have.n, now.n)
	}
	note(&x.ports, k, now)
}

func (x *tx) setCount(f *family, k frontend, have, now uint32) {
	s, key := sets[services][f.index], f.portKey(nil, k)
	if have > 0 {
		x.drop(s, key)
	}
	if now > 0 {
		x.put(s, key, appendNumber(nil, now))
	}
}

func (x *tx) needPick(p pick) {
	if _, ok := x.on.picks[p]; ok || x.picks[p] {
		return
	}
	note(&x.picks, p, true)
	verdictElement(&x.add[picks][p.f.index], appendNumber(nil, uint32(p.n)), p.f.chainPick(p.n))
	x.elements++
}

// dropPick removes a pick chain that nothing uses.
func (x *tx) dropPick(p pick) {
	note(&x.picks, p, false)
	x.drop(sets[picks][p.f.index], appendNumber(nil, uint32(p.n)))
}

// setVIP makes an address a virtual one, or an ordinary one.
func (x *tx) setVIP(snap *model.Snapshot, a netip.Addr) {
	_, want := snap.VIPs.Get(a)
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
	if p.s.flags&unix.NFT_SET_INTERVAL == 0 {
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
		n := int(s.s.key.len)
		element(&x.del[s.s.kind][s.s.f.index], []byte(s.key[:n]), nil, len(s.key) > n)
		x.elements++
	}
	x.gone = len(x.on.strays)
}

// encode appends the transaction's messages: chains first, because elements name them; deletions before additions, because a
// changed element is deleted and added; chains nothing leads to any more at the end.
func (x *tx) encode(b *batch) {
	for p, on := range x.picks {
		if on {
			addChain(b, p.f.pickChain(p.n))
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
	for p, on := range x.picks {
		if !on {
			b.add(unix.NFT_MSG_DELCHAIN, 0, func(m *message) {
				m.putString(unix.NFTA_CHAIN_TABLE, Table)
				m.putString(unix.NFTA_CHAIN_NAME, p.f.chainPick(p.n))
			})
		}
	}
}

// done brings the state to what the kernel has after the transaction.
func (x *tx) done() {
	s := x.on
	for k, e := range x.ports {
		if e.n == 0 {
			delete(s.ports, k)
		} else {
			s.ports[k] = e
		}
	}
	merge(s.vips, x.vips)
	for p, on := range x.plain {
		merge(s.plains[p.s], map[string]bool{p.key: on})
	}
	merge(s.picks, x.picks)
	s.strays = s.strays[x.gone:]
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
