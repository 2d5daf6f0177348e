// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// What there is to know of an address: bits of forward.c.
const (
	askServices uint32 = 1 << iota
	tunnel
	services
)

// way is forward.c's struct way: a way to pods of another node. Without a device there is none, which a range of Services has not either.
type way struct {
	What, MTU, Dev, Family uint32
	Hop                    [16]byte // an IPv4 one in the first four
}

func wayOf(w nodenet.Way) (k way) {
	if w.Dev == 0 {
		return k
	}
	k.MTU, k.Dev, k.Family = uint32(w.MTU), uint32(w.Dev), unix.AF_INET
	if w.Via.Is6() {
		k.Family = unix.AF_INET6
	}
	copy(k.Hop[:], w.Via.AsSlice())
	if w.Tunnel {
		k.What = tunnel
	}
	return k
}

// ranges are where pods' addresses come from and the ways there, and those addresses among them at which something answers for a Service: pods that are ending,
// and what somebody has declared an external address. Beside them are the ranges of Services' virtual addresses.
type ranges struct {
	last    *model.Snapshot
	pods    map[netip.Prefix]way
	answers map[netip.Addr]int // frontends at an address of a pod
	have    map[netip.Prefix]way
}

// follow returns what is to be written into the map ranges, and taken out, for a snapshot and the ways to other nodes' ranges. moved says that those may be others
// than before.
func (r *ranges) follow(s *model.Snapshot, ways map[netip.Prefix]nodenet.Way, moved bool) (put map[netip.Prefix]way, gone []netip.Prefix) {
	from, changed := r.last, false
	if from == nil || from.Nodes != s.Nodes || moved {
		// Which addresses are pods' says which frontends matter: if that has changed, they are gone through again.
		if pods := podRanges(s, ways); from == nil || !maps.Equal(pods, r.pods) {
			from, changed = new(model.Snapshot), true
			r.pods, r.answers = pods, make(map[netip.Addr]int)
		}
	}
	changed = changed || !slices.Equal(from.ServiceCIDRs, s.ServiceCIDRs)
	r.last = s
	if from.Frontends != s.Frontends {
		for f, c := range model.Diff(from.Frontends, s.Frontends) {
			if c.HadOld == c.HasNew {
				continue
			}
			if _, isPod := r.rangeOf(f.Addr); !isPod {
				continue
			}
			changed = true
			if c.HasNew {
				r.answers[f.Addr]++
			} else if r.answers[f.Addr]--; r.answers[f.Addr] == 0 {
				delete(r.answers, f.Addr)
			}
		}
	}
	if !changed {
		return nil, nil
	}
	want := make(map[netip.Prefix]way)
	for _, p := range s.ServiceCIDRs {
		want[p.Masked()] = way{What: services}
	}
	maps.Copy(want, r.pods)
	for a := range r.answers {
		w, _ := r.rangeOf(a)
		w.What |= askServices
		want[netip.PrefixFrom(a, a.BitLen())] = w
	}
	put = make(map[netip.Prefix]way)
	for p, w := range want {
		if have, ok := r.have[p]; !ok || have != w {
			put[p] = w
		}
	}
	for p := range r.have {
		if _, ok := want[p]; !ok {
			gone = append(gone, p)
		}
	}
	r.have = want
	return put, gone
}

// what there is to know of an address of a pod of this node.
func (r *ranges) what(a netip.Addr) uint32 {
	if r.answers[a] > 0 {
		return askServices
	}
	return 0
}

func podRanges(s *model.Snapshot, ways map[netip.Prefix]nodenet.Way) map[netip.Prefix]way {
	all := make(map[netip.Prefix]way)
	add := func(list []netip.Prefix) {
		for _, p := range list {
			all[p.Masked()] = wayOf(ways[p.Masked()])
		}
	}
	for _, n := range s.Nodes.All() {
		add(n.PodCIDRs)
	}
	add(s.PodCIDRs)
	return all
}

// rangeOf is what is written for the smallest range that has an address. It looks for each length of prefix that there may be.
func (r *ranges) rangeOf(a netip.Addr) (w way, ok bool) {
	for bits := a.BitLen(); bits >= 0 && !ok; bits-- {
		p, _ := a.Prefix(bits)
		w, ok = r.pods[p]
	}
	return w, ok
}

// rangeKey is a key of the map ranges: IPv4 as ::ffff:a.b.c.d.
type rangeKey struct {
	Bits uint32
	Addr [16]byte
}

func keyOf(p netip.Prefix) rangeKey {
	return rangeKey{uint32(p.Bits() + 128 - p.Addr().BitLen()), p.Addr().As16()}
}

func (k rangeKey) prefix() netip.Prefix {
	a := netip.AddrFrom16(k.Addr).Unmap()
	return netip.PrefixFrom(a, int(k.Bits)-128+a.BitLen())
}

// String is a way as Dump prints it.
func (k way) String() string {
	if k.What&services != 0 {
		return "of services"
	}
	if k.Dev == 0 {
		return "no way"
	}
	hop := netip.AddrFrom16(k.Hop)
	if k.Family == unix.AF_INET {
		hop = netip.AddrFrom4([4]byte(k.Hop[:4]))
	}
	text := "via " + hop.String()
	if k.What&tunnel != 0 {
		text += " through the tunnel"
	}
	return text
}
