// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// family is everything in which the two address families differ.
type family struct {
	index   int
	suffix  string // in names of sets and chains
	word    string // as the nft tool writes it
	nfproto byte
	size    int    // of an address, bytes
	saddr   uint32 // offset in the IP header
	daddr   uint32
	addr    datatype
	// udata is the nft tool's number of the IP header, and in it of the destination address.
	udata [2]uint32

	loopback netip.Addr
	// ctSource and ctDestination are conntrack's keys of addresses of this family (NFT_CT_SRC_IP, NFT_CT_DST_IP and those of IPv6).
	ctSource, ctDestination uint32
}

var (
	v4       = &family{0, "4", "ip", unix.NFPROTO_IPV4, 4, 12, 16, typeAddr4, [2]uint32{12, 12}, netip.AddrFrom4([4]byte{127, 0, 0, 1}), 19, 20}
	v6       = &family{1, "6", "ip6", unix.NFPROTO_IPV6, 16, 8, 24, typeAddr6, [2]uint32{13, 9}, netip.IPv6Loopback(), 21, 22}
	families = [...]*family{v4, v6}
)

func familyOf(a netip.Addr) *family {
	if a.Is4() {
		return v4
	}
	return v6
}

// frontend is what a client addresses.
type frontend = model.Frontend

func familyOfFrontend(k frontend) *family { return familyOf(k.Addr) }

// dest is where a connection may go. It has no pointers: a node may hold hundreds of thousands, and the garbage
// collector need not look at them.
type dest struct {
	addr [16]byte
	port uint16
}

func destOf(a netip.AddrPort) dest { return dest{a.Addr().As16(), a.Port()} }

func (d dest) addrPort(f *family) netip.AddrPort {
	return netip.AddrPortFrom(f.address(d.addr[16-f.size:]), d.port)
}

// address reads an address in network order.
func (f *family) address(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b[:f.size])
	return a
}

func (f *family) appendAddr(b []byte, a netip.Addr) []byte {
	if f == v4 {
		x := a.As4()
		return append(b, x[:]...)
	}
	x := a.As16()
	return append(b, x[:]...)
}

// Elements are registers in a row. A register has four bytes: an address fills one or four, a protocol, a port
// and an index one each. Protocols and ports are at the register's start, padded with zeros; ports are in network order, numbers in
// the machine's order.

// frontendKey is the key of a frontend: address, protocol, port; or for one at every address of this node protocol, port.
func (f *family) frontendKey(b []byte, k frontend) []byte {
	if !k.Addr.IsUnspecified() {
		b = f.appendAddr(b, k.Addr)
	}
	b = append(b, byte(k.Protocol), 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(b, k.Port), 0, 0)
}

// frontendSet is the map that a frontend is in.
func frontendSet(k frontend) *set {
	of := services
	switch {
	case k.Host && k.Addr.IsUnspecified():
		of = hostports
	case k.Host:
		of = hostportsAt
	case k.IsNodePort():
		of = nodeports
	}
	return sets[of][familyOf(k.Addr).index]
}

// parseFrontend is the reverse of frontendKey.
func (s *set) parseFrontend(b []byte) frontend {
	a := netip.IPv4Unspecified()
	if s.f == v6 {
		a = netip.IPv6Unspecified()
	}
	if s.kind == services || s.kind == hostportsAt {
		a, b = s.f.address(b), b[s.f.size:]
	}
	return frontend{Addr: a, Protocol: model.Protocol(b[0]), Port: binary.BigEndian.Uint16(b[4:]), Host: s.kind == hostports || s.kind == hostportsAt}
}

// pairKey is the key of a group's index: two numbers.
func pairKey(b []byte, x, y uint32) []byte { return appendNumber(appendNumber(b, x), y) }

func parsePair(b []byte) (x, y uint32) { return parseNumber(b), parseNumber(b[4:]) }

func parseNumber(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

// destData is an endpoint's value: address, port.
func (f *family) destData(b []byte, d dest) []byte {
	b = append(b, d.addr[16-f.size:]...)
	return append(binary.BigEndian.AppendUint16(b, d.port), 0, 0)
}

func (f *family) parseDest(b []byte) dest {
	return destOf(netip.AddrPortFrom(f.address(b), binary.BigEndian.Uint16(b[f.size:])))
}

// protoKey is the key of the cluster DNS's set: address, protocol.
func (f *family) protoKey(b []byte, a netip.Addr, p model.Protocol) []byte {
	return append(f.appendAddr(b, a), byte(p), 0, 0, 0)
}

func appendNumber(b []byte, n uint32) []byte { return binary.NativeEndian.AppendUint32(b, n) }

// after is the first address behind a prefix; zero if it ends at the last address there is.
func after(p netip.Prefix) netip.Addr { return model.LastOf(p).Next() }
