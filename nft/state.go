// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/model"
)

// entry is what the maps hold for one frontend.
type entry struct {
	// n is the number in the services map; 0 if there is no element.
	n uint32
	// dests are the endpoints by index. In a sound table there are n.
	dests []dest
}

// pick is a pick chain.
type pick struct {
	f *family
	n int
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

// state is what the kernel's table holds, element by element.
type state struct {
	ports map[frontend]entry
	vips  map[netip.Addr]struct{}
	// plains are the elements of the sets in plainSets.
	plains map[*set]map[string]struct{}
	picks  map[pick]struct{}
	strays []stray
}

func newState() *state {
	s := &state{
		ports:  make(map[frontend]entry),
		vips:   make(map[netip.Addr]struct{}),
		plains: make(map[*set]map[string]struct{}),
		picks:  make(map[pick]struct{}),
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

// candidates is what a frontend should lead to. It is a function of the snapshot alone.
func candidates(s *model.Snapshot, k frontend) []model.Backend {
	if !usable(k) {
		return nil
	}
	name, ok := s.VIPs.Get(k.addr.Addr())
	if !ok {
		return nil
	}
	svc, ok := s.Services.Get(name)
	if !ok {
		return nil
	}
	i := slices.IndexFunc(svc.Ports, func(p model.Port) bool { return p.Protocol == k.proto && p.Port == k.addr.Port() })
	if i < 0 {
		return nil
	}
	return s.Candidates(svc, i, k.addr.Addr())
}

// usable refuses what no packet can have; an API may hold it all the same.
func usable(k frontend) bool { return k.addr.Port() != 0 }

// place decides which index each endpoint has, given the present ones: those that stay keep theirs, new ones fill the
// holes, and holes that remain are filled from the end. So a change of one endpoint moves at most one other.
func place(have []dest, want []model.Backend) []dest {
	if same(have, want) {
		return have
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
	ofAll = ofNodes | ofPods | ofDNS
)

// plainSets lists the sets of plain elements by what they come from.
var plainSets = []struct {
	part  part
	kinds []kind
	want  func(*model.Snapshot, func(kind, *family, []byte))
}{
	{ofNodes, []kind{pods, cluster}, wantRanges},
	{ofPods, []kind{hairpin}, wantHairpin},
	{ofDNS, []kind{dnsPorts}, wantDNS},
}

func wantRanges(s *model.Snapshot, add func(kind, *family, []byte)) {
	for _, p := range clusterRanges(s) {
		add(cluster, familyOf(p.Addr()), prefixKey(p))
	}
	if self := s.Node(); self != nil {
		for _, p := range disjoint(self.PodCIDRs) {
			add(pods, familyOf(p.Addr()), prefixKey(p))
		}
	}
}

func wantHairpin(s *model.Snapshot, add func(kind, *family, []byte)) {
	for _, p := range s.Pods.All() {
		for _, a := range p.Addrs {
			f := familyOf(a)
			add(hairpin, f, f.appendAddr(f.appendAddr(nil, a), a))
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
	name, _ := s.VIPs.Get(vip)
	svc, ok := s.Services.Get(name)
	return ok && slices.ContainsFunc(svc.Ports, func(q model.Port) bool { return q.Protocol == p && s.IsDNS(vip, q) })
}

// clusterRanges are the ranges of all pods and the addresses of all nodes.
func clusterRanges(s *model.Snapshot) []netip.Prefix {
	var all []netip.Prefix
	for _, n := range s.Nodes.All() {
		all = append(all, n.PodCIDRs...)
		for _, a := range n.Addrs {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return disjoint(all)
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
