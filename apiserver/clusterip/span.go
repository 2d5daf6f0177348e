// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

const (
	// maxHostBits bounds how much of a large IPv6 range is drawn from, so
	// that offsets are plain numbers. Chosen addresses are not bound by it.
	maxHostBits = 62

	// The size of the part that is left to chosen addresses: a sixteenth of
	// the range within these bounds, nothing in a range that is smaller.
	minChosen = 16
	maxChosen = 256
)

// span is a range of addresses of one family as numbers: offsets from its
// first address. Offset 0 names the network and 1 is default/kubernetes'.
type span struct {
	prefix netip.Prefix
	family corev1.IPFamily
	split  uint64 // where the part for drawn addresses begins
	last   uint64 // the highest offset that is given
}

// newSpan wants a prefix in canonical form with room for drawn addresses.
func newSpan(prefix netip.Prefix) (span, error) {
	switch {
	case !prefix.IsValid() || prefix.Addr().Is4In6() || prefix != prefix.Masked():
		return span{}, fmt.Errorf("service range %s is not a network in canonical form", prefix)
	case prefix.Addr().BitLen()-prefix.Bits() < 2:
		return span{}, fmt.Errorf("service range %s has no room for services", prefix)
	}
	size := uint64(1) << min(prefix.Addr().BitLen()-prefix.Bits(), maxHostBits)
	s := span{prefix: prefix, family: corev1.IPv6Protocol, split: 2, last: size - 1}
	if prefix.Addr().Is4() {
		s.family = corev1.IPv4Protocol
		s.last-- // the broadcast address
	}
	if size > minChosen {
		s.split = 1 + min(max(size/16, minChosen), maxChosen)
	}
	return s, nil
}

// at is the address at an offset.
func (s span) at(offset uint64) netip.Addr {
	if s.prefix.Addr().Is4() {
		b := s.prefix.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(offset))
		return netip.AddrFrom4(b)
	}
	// The host part is all zeros and has less than 64 bits: no carry.
	b := s.prefix.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+offset)
	return netip.AddrFrom16(b)
}

// kubernetes is the address of the Service default/kubernetes.
func (s span) kubernetes() netip.Addr { return s.at(1) }

// holds says whether an address may be a Service's.
func (s span) holds(addr netip.Addr) bool {
	if !s.prefix.Contains(addr) || addr == s.prefix.Addr() {
		return false
	}
	return !addr.Is4() || addr != s.at(s.last+1)
}

// draw is a random address of the upper part. random(n) is below n.
func (s span) draw(random func(uint64) uint64) netip.Addr {
	return s.at(s.split + random(s.last-s.split+1))
}

// free is an address that is not taken: of the upper part, from a random one
// on, and only when that is full of the part for chosen ones.
func (s span) free(taken map[netip.Addr]bool, random func(uint64) uint64) (netip.Addr, bool) {
	for _, part := range [...]struct{ from, to uint64 }{{s.split, s.last}, {2, s.split - 1}} {
		if part.to < part.from {
			continue
		}
		n := part.to - part.from + 1
		// Every step but the last passes a taken address, so this takes at
		// most as many steps as there are taken ones.
		for i, start := uint64(0), random(n); i < n; i++ {
			if addr := s.at(part.from + (start+i)%n); !taken[addr] {
				return addr, true
			}
		}
	}
	return netip.Addr{}, false
}
