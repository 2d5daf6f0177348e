// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/model"
)

// group is a group of endpoints, of which one is chosen.
type group struct {
	// dests are the endpoints by index.
	dests []dest
	// seats are their seats, if clients stay with theirs; nil if not. lastSeat is the one given out last, if known.
	seats    []uint16
	lastSeat uint16
}

// numbered is an id of a family: of a group or a junction.
type numbered struct {
	f  *family
	id uint32
}

// link is an element of the maps inside and outside: where a junction leads.
type link struct {
	s    *set
	code uint32
}

// wayOf is a way's chain in a family.
type wayOf struct {
	f *family
	way
}

// plain is an element of a set that is small or seldom changes. Its key is the kernel's, or for intervals a prefixKey.
type plain struct {
	s   *set
	key string
}

// stray is an element that cannot be ours.
type stray struct {
	s   *set
	key string
}

// id is the id that a stray's key has, if it has one.
func (x stray) id() (n numbered, ok bool) {
	switch x.s.kind {
	case inside, outside, sources, endpoints, seats, seated:
		return numbered{x.s.f, parseNumber([]byte(x.key)) >> lowBits}, true
	}
	return n, false
}

// state is what the kernel's table holds, element by element.
type state struct {
	fronts map[frontend]uint32
	groups map[numbered]*group
	links  map[link]uint32
	// sources are who may pass a junction, in order.
	sources map[numbered][]netip.Prefix
	vips    map[netip.Addr]struct{}
	// plains are the elements of the sets in plainSets.
	plains map[*set]map[string]struct{}
	ways   map[wayOf]uint32
	strays []stray

	// owned says whose the ids in use are: those of groups and junctions.
	owned map[owner]ids
	// last is the id given out last, of each family: they go round, so that one is not used again soon.
	last [2]uint32
	// left are groups with affinity that are gone, and whose pins may still be there. Their ids must not be used.
	left map[numbered]struct{}
}

func newState() *state {
	s := &state{
		fronts:  make(map[frontend]uint32),
		groups:  make(map[numbered]*group),
		links:   make(map[link]uint32),
		sources: make(map[numbered][]netip.Prefix),
		vips:    make(map[netip.Addr]struct{}),
		plains:  make(map[*set]map[string]struct{}),
		ways:    make(map[wayOf]uint32),
		owned:   make(map[owner]ids),
		left:    make(map[numbered]struct{}),
	}
	for _, p := range plainSets {
		for _, k := range p.kinds {
			for _, set := range sets[k] {
				s.plains[set] = make(map[string]struct{})
			}
		}
	}
	return s
}

// inUse reports whether an id is a group's or a junction's.
func (s *state) inUse(n numbered) bool {
	if _, ok := s.groups[n]; ok {
		return true
	}
	for _, low := range junctionWays[split:] {
		if _, ok := s.links[link{sets[inside][n.f.index], n.id<<lowBits | low}]; ok {
			return true
		}
	}
	return false
}

// expect makes room for some number of Services.
func (s *state) expect(services int) {
	s.fronts = make(map[frontend]uint32, services)
	s.groups = make(map[numbered]*group, services)
	s.owned = make(map[owner]ids, services)
}

// wayNumbers are the ways of a family by number.
func (s *state) wayNumbers(f *family) map[uint32]way {
	all := make(map[uint32]way)
	for w, n := range s.ways {
		if w.f == f {
			all[n] = w.way
		}
	}
	return all
}

// place decides which index each endpoint has, given the present ones: those that stay keep theirs, new ones fill the
// holes, and holes that remain are filled from the end. So a change of one endpoint moves at most one other.
func place(have []dest, want []model.Backend) []dest {
	if same(have, want) {
		return have
	}
	if len(have) == 0 {
		out := make([]dest, len(want))
		for i, b := range want {
			out[i] = destOf(b.AddrPort())
		}
		slices.SortFunc(out, compareDests)
		return slices.Compact(out)
	}
	missing := make(map[dest]struct{}, len(want))
	for _, b := range want {
		missing[destOf(b.AddrPort())] = struct{}{}
	}
	var holes []int
	for i, d := range have {
		if _, ok := missing[d]; ok {
			delete(missing, d) // a second one of the same is a hole
		} else {
			holes = append(holes, i)
		}
	}
	out, fresh := slices.Clone(have), slices.SortedFunc(maps.Keys(missing), compareDests)
	for len(fresh) > 0 && len(holes) > 0 {
		out[holes[0]] = fresh[0]
		holes, fresh = holes[1:], fresh[1:]
	}
	for i := len(holes) - 1; i >= 0; i-- {
		last := len(out) - 1
		out[holes[i]] = out[last]
		out = out[:last]
	}
	return append(out, fresh...)
}

// same reports whether the endpoints are the wanted ones in the wanted order, which is how most are all the time.
func same(have []dest, want []model.Backend) bool {
	return slices.EqualFunc(have, want, func(d dest, b model.Backend) bool { return d == destOf(b.AddrPort()) })
}

func compareDests(a, b dest) int {
	if c := slices.Compare(a.addr[:], b.addr[:]); c != 0 {
		return c
	}
	return int(a.port) - int(b.port)
}

// part says what of the snapshot the plain elements of a set come from.
type part int

const (
	ofNodes part = 1 << iota
	ofPods
	ofDNS
	ofConfig
	ofForeign
	ofAll = ofNodes | ofPods | ofDNS | ofConfig | ofForeign
)

// plainSets lists the sets of plain elements by what they come from.
var plainSets = []struct {
	part  part
	kinds []kind
	want  func(*model.Snapshot, func(kind, *family, []byte))
}{
	{ofNodes | ofPods, []kind{pods, allPods, cluster}, wantRanges},
	{ofPods, []kind{hairpin}, wantHairpin},
	{ofDNS, []kind{dnsPorts}, wantDNS},
	{ofConfig, []kind{ranges, portsOn, portsOff, kept, retrying}, wantConfig},
	{ofForeign | ofConfig, []kind{foreign}, wantForeign},
}

// wantRanges are the pods' ranges and, where another plugin gives out addresses that no Node's range holds, this node's pods' own.
func wantRanges(s *model.Snapshot, add func(kind, *family, []byte)) {
	put := func(k kind, all []netip.Prefix) {
		for _, p := range disjoint(all) {
			add(k, familyOf(p.Addr()), prefixKey(p))
		}
	}
	var own, everyPod, nodes []netip.Prefix
	if self := s.Node(); self != nil {
		own = append(own, self.PodCIDRs...)
		for _, p := range s.Pods.All() {
			for _, a := range p.Addrs {
				if !slices.Contains(self.Addrs, a) {
					own = append(own, netip.PrefixFrom(a, a.BitLen()))
				}
			}
		}
	}
	everyPod = slices.Concat(own, s.PodCIDRs)
	for _, n := range s.Nodes.All() {
		everyPod = append(everyPod, n.PodCIDRs...)
		for _, a := range n.Addrs {
			nodes = append(nodes, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	put(pods, own)
	put(allPods, everyPod)
	put(cluster, append(nodes, everyPod...))
}

func wantConfig(s *model.Snapshot, add func(kind, *family, []byte)) {
	put := func(k kind, all ...netip.Prefix) {
		for _, p := range disjoint(all) {
			add(k, familyOf(p.Addr()), prefixKey(p))
		}
	}
	put(ranges, s.ServiceCIDRs...)
	if s.Left.Has(model.Network) {
		put(kept, everywhere...)
	} else {
		put(kept, s.KeepSource...)
	}
	if s.Left.Has(model.Proxy) {
		return
	}
	if s.RetryRefused {
		put(retrying, everywhere...)
	}
	put(portsOn, s.NodePortAddrs...)
	if len(s.NodePortAddrs) == 0 {
		put(portsOn, everywhere...)
	}
	put(portsOff, netip.PrefixFrom(v6.loopback, 128))
	if !s.LoopbackNodePorts() {
		put(portsOff, netip.PrefixFrom(v4.loopback, 8))
	}
}

var everywhere = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}

func wantHairpin(s *model.Snapshot, add func(kind, *family, []byte)) {
	for _, p := range s.Pods.All() {
		for _, a := range p.Addrs {
			f := familyOf(a)
			add(hairpin, f, f.appendAddr(f.appendAddr(nil, a), a))
		}
	}
}

func wantForeign(s *model.Snapshot, add func(kind, *family, []byte)) {
	for a := range s.Foreign.All() {
		if s.InServiceCIDRs(a) { // or else nothing claims it
			f := familyOf(a)
			add(foreign, f, f.appendAddr(nil, a))
		}
	}
}

func wantDNS(s *model.Snapshot, add func(kind, *family, []byte)) {
	for _, a := range s.DNS {
		for _, p := range []model.Protocol{model.UDP, model.TCP} {
			if answersDNS(s, a, p) {
				f := familyOf(a)
				add(dnsPorts, f, f.protoKey(nil, a, p))
			}
		}
	}
}

func answersDNS(s *model.Snapshot, vip netip.Addr, p model.Protocol) bool {
	name, _ := s.ServiceAt(vip)
	svc, ok := s.Services.Get(name)
	return ok && slices.ContainsFunc(svc.Ports, func(q model.Port) bool { return q.Protocol == p && s.IsDNS(vip, q) })
}

// disjoint drops the prefixes that lie in others: interval sets must not overlap, and of two prefixes that do one holds
// the other.
func disjoint(all []netip.Prefix) []netip.Prefix {
	sorted := make([]netip.Prefix, 0, len(all))
	for _, p := range all {
		if p.IsValid() {
			sorted = append(sorted, p.Masked())
		}
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []netip.Prefix
	for _, p := range sorted {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// prefixKey is a prefix as a plain's key: the address and the number of bits.
func prefixKey(p netip.Prefix) []byte {
	return append(p.Addr().AsSlice(), byte(p.Bits()))
}

func parsePrefixKey(f *family, key string) netip.Prefix {
	return netip.PrefixFrom(f.address([]byte(key)), int(key[f.size]))
}
