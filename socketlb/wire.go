// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package socketlb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/cilium/ebpf"
)

// place is connect.c's: an address, an IPv4 one as ::ffff:a.b.c.d, and a port in the network's order.
type place struct {
	Addr [16]byte
	Port [2]byte
	_    [2]byte
}

func placeOf(a netip.AddrPort) place {
	p := place{Addr: a.Addr().As16()}
	binary.BigEndian.PutUint16(p.Port[:], a.Port())
	return p
}

func (p place) addrPort() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(p.Addr).Unmap(), binary.BigEndian.Uint16(p.Port[:]))
}

// String is "10.96.0.1:80".
func (p place) String() string { return p.addrPort().String() }

// entry is connect.c's struct group.
type entry struct{ Number, Count uint32 }

// seat is connect.c's.
type seat struct{ Group, Index uint32 }

// endpoint is connect.c's.
type endpoint struct {
	Seal  uint64
	Place place
	_     uint32
}

// choice is connect.c's.
type choice struct {
	_        [0]uint64 // as the kernel, the seal is made of words
	service  place
	seat     seat
	endpoint place
}

// seal is connect.c's seal_of.
func (c *choice) seal() uint64 {
	h := uint64(1)
	for _, w := range (*[unsafe.Sizeof(*c) / 8]uint64)(unsafe.Pointer(c)) {
		h = (h ^ w) * 0x9e3779b97f4a7c15
		h ^= h >> 32
	}
	return h
}

// sealed is an endpoint of the Service at an address and port, in a seat of its group.
func sealed(at netip.AddrPort, group uint32, index int, to netip.AddrPort) endpoint {
	c := choice{service: placeOf(at), seat: seat{group, uint32(index)}, endpoint: placeOf(to)}
	return endpoint{Seal: c.seal(), Place: c.endpoint}
}

// read is what the kernel has at a place.
func (o *objects) read(at place) (to []netip.AddrPort, err error) {
	var has entry
	err = o.Services.Lookup(at, &has)
	for i := range has.Count {
		if err != nil {
			break
		}
		var e endpoint
		if err = o.Endpoints.Lookup(seat{has.Number, i}, &e); err == nil {
			to = append(to, e.Place.addrPort())
		}
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("read endpoints of %s: %w", at, err)
	}
	return to, nil
}
