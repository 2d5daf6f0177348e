// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"maps"
	"net/netip"

	"github.com/fairlead/fairlead/model"
)

// What the map ranges has of an address: what is to be done with the first packet of a connection, and the MTU of the way there through the tunnel, in bytes. See
// forward.c.
const (
	handOn      uint32 = 1
	askServices uint32 = 2
	whatMask    uint32 = 1<<mtuShift - 1
	mtuShift           = 16
)

// ranges are where pods' addresses come from, and those among them at which something answers for a Service: pods that are ending, and what somebody has
// declared an external address.
type ranges struct {
	last    *model.Snapshot
	pods    map[netip.Prefix]uint32 // the ranges, and what is written for them
	answers map[netip.Addr]int      // frontends at an address of a pod
	have    map[netip.Prefix]uint32 // what was said to be written
}

// follow returns what is to be written for a snapshot and the MTUs of the tunnel; 0 stands for what is to go. moved says that the MTUs may be others than before.
func (r *ranges) follow(s *model.Snapshot, mtus map[netip.Prefix]int, moved bool) map[netip.Prefix]uint32 {
	from, changed := r.last, false
	if from == nil || from.Nodes != s.Nodes || moved {
		// Which addresses are pods' says which frontends matter, so those are gone through again.
		from, changed = new(model.Snapshot), true
		r.pods, r.answers = podRanges(s, mtus), make(map[netip.Addr]int)
	}
	r.last = s
	if from.Frontends != s.Frontends {
		for f, c := range model.Diff(from.Frontends, s.Frontends) {
			switch {
			case c.HadOld == c.HasNew || r.rangeOf(f.Addr) == 0:
				continue
			case c.HasNew:
				r.answers[f.Addr]++
			default:
				if r.answers[f.Addr]--; r.answers[f.Addr] == 0 {
					delete(r.answers, f.Addr)
				}
			}
			changed = true
		}
	}
	if !changed {
		return nil
	}
	want := maps.Clone(r.pods)
	for a := range r.answers {
		want[netip.PrefixFrom(a, a.BitLen())] = r.rangeOf(a)&^whatMask | askServices
	}
	write := make(map[netip.Prefix]uint32)
	for p, what := range want {
		if r.have[p] != what {
			write[p] = what
		}
	}
	for p := range r.have {
		if _, ok := want[p]; !ok {
			write[p] = 0
		}
	}
	r.have = want
	return write
}

func podRanges(s *model.Snapshot, mtus map[netip.Prefix]int) map[netip.Prefix]uint32 {
	all := make(map[netip.Prefix]uint32)
	add := func(list []netip.Prefix) {
		for _, p := range list {
			all[p.Masked()] = handOn | uint32(mtus[p.Masked()])<<mtuShift
		}
	}
	for _, n := range s.Nodes.All() {
		add(n.PodCIDRs)
	}
	add(s.PodCIDRs)
	return all
}

// rangeOf is what is written for the smallest range that has an address; 0: none has. It looks for each length of prefix that there may be.
func (r *ranges) rangeOf(a netip.Addr) uint32 {
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, _ := a.Prefix(bits)
		if what := r.pods[p]; what != 0 {
			return what
		}
	}
	return 0
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
