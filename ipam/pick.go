// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"iter"
	"math"
	"net/netip"
)

// Bounds returns the first and the last address of a range that may be given to
// a pod. Left out are the range's own address (which IPv6 routers also answer
// to), the one after it, which people expect to be a gateway, and for IPv4 the
// last one, the broadcast address. It is an error if nothing remains.
func Bounds(r netip.Prefix) (first, last netip.Addr, err error) {
	spare := 2 // bits that a host part needs for these exceptions and an address
	if !r.IsValid() || r.Addr().BitLen()-r.Bits() < spare {
		return first, last, fmt.Errorf("range %s is too small to give pods addresses from", r)
	}
	first = r.Masked().Addr().Next().Next()
	last = lastOf(r)
	if last.Is4() {
		last = last.Prev()
	}
	return first, last, nil
}

// lastOf sets all host bits.
func lastOf(r netip.Prefix) netip.Addr {
	b := r.Addr().AsSlice()
	for i := r.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// Size returns how many addresses of a range may be given to pods; for more than
// fit in 64 bits the largest number.
func Size(r netip.Prefix) uint64 {
	if _, _, err := Bounds(r); err != nil {
		return 0
	}
	bits := r.Addr().BitLen() - r.Bits()
	switch {
	case bits >= 64:
		return math.MaxUint64
	case r.Addr().Is4():
		return 1<<bits - 3
	default:
		return 1<<bits - 2
	}
}

// Pick chooses a free address of the range: the lowest that is not used, where those that are held count as used and those in freed, which were once; else the
// first of freed, which is in the order of freeing and has none that is held, that is in the range. It returns false when there is none. It looks at no more
// addresses than are used.
func Pick(r netip.Prefix, used func(netip.Addr) bool, freed iter.Seq[netip.Addr]) (netip.Addr, bool) {
	first, last, err := Bounds(r)
	if err != nil {
		return netip.Addr{}, false
	}
	for addr := first; ; addr = addr.Next() {
		if !used(addr) {
			return addr, true
		}
		if addr == last {
			break
		}
	}
	for addr := range freed {
		if !addr.Less(first) && !last.Less(addr) && addr.BitLen() == first.BitLen() {
			return addr, true
		}
	}
	return netip.Addr{}, false
}
