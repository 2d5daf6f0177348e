// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// datatype is how the nft tool shows a set's key or value, and its length in registers.
type datatype struct {
	magic uint32
	len   uint32
}

// The numbers are nftables' own (include/datatype.h of the tool).
var (
	typeAddr4   = datatype{7, 4}
	typeAddr6   = datatype{8, 16}
	typeProto   = datatype{12, 4}
	typePort    = datatype{13, 4}
	typeNumber  = datatype{4, 4}  // an integer, see typeof
	typeCode    = datatype{23, 4} // a traffic class, see code
	typeVerdict = datatype{unix.NFT_DATA_VERDICT, 16}
)

func concat(types ...datatype) (t datatype) {
	for _, x := range types {
		t.magic = t.magic<<6 | x.magic
		t.len += x.len
	}
	return t
}

// kind names the sets, of which there is one for each family.
type kind int

const (
	services    kind = iota // address, protocol, port → code
	nodeports               // protocol, port → code
	hostports               // protocol, port → code, at every address of this node
	hostportsAt             // address of this node, protocol, port → code
	ways                    // way of a code → chain
	ends                    // the same without junctions: there is one at most on the way, and the kernel allows no loop
	inside                  // code of a junction → code, for clients inside the cluster
	outside                 // code of a junction → code, for clients outside
	sources                 // code of a junction, range of clients that are let through
	endpoints               // group, index → endpoint
	seats                   // group, index → seat
	seated                  // seat → endpoint
	pins                    // group, client → seat; written by packets
	vips                    // virtual addresses outside the ranges
	ranges                  // ranges of virtual addresses
	foreign                 // virtual addresses that somebody else serves
	portsOn                 // ranges of addresses that serve node ports
	portsOff                // of those, ranges that do not
	dnsPorts                // address, protocol of the cluster DNS's port 53
	hairpin                 // address twice, of pods of this node
	pods                    // ranges and addresses of this node's pods
	allPods                 // ranges of all pods
	cluster                 // ranges and addresses of the cluster's pods and nodes
	kept                    // ranges outside that pods reach under their own addresses
	retrying                // ranges of clients whose refused connections are to be tried once more
	refused                 // client, port that has been refused just now; written by packets
	kinds
)

var kindNames = [kinds]string{"services", "nodeports", "hostports", "hostports-at", "ways", "ends", "inside", "outside", "sources", "endpoints", "seats", "seated", "pins",
	"vips", "ranges", "foreign", "nodeports-at", "nodeports-not-at", "dns", "hairpin", "pods", "all-pods", "cluster", "kept", "retrying", "refused"}

// A code is a number that a look-up finds and the next one starts from. Its upper bits are a group of endpoints or a junction, by number, its lower
// bits the way on: which chain, or within a group with affinity the endpoint's seat.
const (
	lowBits  = 14
	lowMask  = 1<<lowBits - 1
	maxID    = 1<<(32-lowBits) - 1
	maxSeats = lowMask // seats are numbered from 1

	// maxWays bounds how many different ways there can be at a time, in each family. A fixed size lets the kernel use its fastest kind of map.
	maxWays = 1 << 12
	// maxPins bounds how many clients of Services with affinity are remembered, in each family; those beyond it are served without.
	maxPins = 1 << 20
	// maxRefused bounds how many refused connections wait for the second attempt, in each family; those beyond it are refused at once.
	maxRefused = 1 << 16
	// refusedFor is how long after the first refusal another one is the same connection's. TCP tries again after a second (RFC 6298, 2.1), or three where it
	// is old (RFC 1122), and then after twice as long: a refusal that has been lost must not be held back again, and again.
	refusedFor = 10 * time.Second
)

// The ways that are always there. Those to groups are numbered from firstWay on as they are needed.
const (
	wayRefuse  = iota // no endpoint
	wayNoLocal        // no endpoint here
	waySplit          // a junction: inside or outside
	wayGuard          // a junction: only some sources, and then inside or outside
	wayOnward         // a junction: not for this node's own
	firstWay   = 16
)

// isJunction reports whether a code leads to a junction.
func isJunction(code uint32) bool {
	low := code & lowMask
	return low == waySplit || low == wayGuard || low == wayOnward
}

// way is how an endpoint of a group is chosen: among how many, and how long a client keeps its one; zero: chosen anew each time.
type way struct {
	n        uint32
	affinity uint32 // seconds
}

// set is a set or map of the table.
type set struct {
	kind    kind
	f       *family
	key     datatype
	fields  []uint32 // lengths, of a concatenation with ranges
	data    datatype // of a map
	flags   uint32
	size    uint32 // most elements; 0: any
	timeout time.Duration
}

// isInterval reports whether the elements are ranges.
func (s *set) isInterval() bool { return s.flags&unix.NFT_SET_INTERVAL != 0 }

const setConcat = 0x80 // NFT_SET_CONCAT

func (s *set) name() string { return kindNames[s.kind] + s.f.suffix }

// sets are indexed by kind and family.
var sets = func() (all [kinds][2]*set) {
	for _, f := range families {
		port := concat(f.addr, typeProto, typePort)
		to := concat(f.addr, typePort)
		for _, s := range []*set{
			{kind: services, key: port, data: typeCode, flags: unix.NFT_SET_MAP},
			{kind: nodeports, key: concat(typeProto, typePort), data: typeCode, flags: unix.NFT_SET_MAP},
			{kind: hostports, key: concat(typeProto, typePort), data: typeCode, flags: unix.NFT_SET_MAP},
			{kind: hostportsAt, key: port, data: typeCode, flags: unix.NFT_SET_MAP},
			{kind: ways, key: typeCode, data: typeVerdict, flags: unix.NFT_SET_MAP, size: maxWays},
			{kind: ends, key: typeCode, data: typeVerdict, flags: unix.NFT_SET_MAP, size: maxWays},
			{kind: inside, key: typeCode, data: typeCode, flags: unix.NFT_SET_MAP},
			{kind: outside, key: typeCode, data: typeCode, flags: unix.NFT_SET_MAP},
			{kind: sources, key: concat(typeCode, f.addr), fields: []uint32{4, uint32(f.size)}, flags: unix.NFT_SET_INTERVAL | setConcat},
			{kind: endpoints, key: concat(typeCode, typeNumber), data: to, flags: unix.NFT_SET_MAP},
			{kind: seats, key: concat(typeCode, typeNumber), data: typeCode, flags: unix.NFT_SET_MAP},
			{kind: seated, key: typeCode, data: to, flags: unix.NFT_SET_MAP},
			{kind: pins, key: concat(typeCode, f.addr), data: typeCode, flags: unix.NFT_SET_MAP | unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT, size: maxPins,
				timeout: 3 * time.Hour},
			{kind: vips, key: f.addr},
			{kind: ranges, key: f.addr, flags: unix.NFT_SET_INTERVAL},
			{kind: foreign, key: f.addr},
			{kind: portsOn, key: f.addr, flags: unix.NFT_SET_INTERVAL},
			{kind: portsOff, key: f.addr, flags: unix.NFT_SET_INTERVAL},
			{kind: dnsPorts, key: concat(f.addr, typeProto)},
			{kind: hairpin, key: concat(f.addr, f.addr)},
			{kind: pods, key: f.addr, flags: unix.NFT_SET_INTERVAL},
			{kind: allPods, key: f.addr, flags: unix.NFT_SET_INTERVAL},
			{kind: cluster, key: f.addr, flags: unix.NFT_SET_INTERVAL},
			{kind: kept, key: f.addr, flags: unix.NFT_SET_INTERVAL},
			{kind: retrying, key: f.addr, flags: unix.NFT_SET_INTERVAL},
			{kind: refused, key: to, flags: unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT, size: maxRefused, timeout: refusedFor},
		} {
			s.f = f
			all[s.kind][f.index] = s
		}
	}
	return all
}()

// setUserdata is NFTA_SET_USERDATA.
const setUserdata = 13

// userdata tells the nft tool how to print: plain numbers are in the machine's order, all else in network order.
func (s *set) userdata() []byte {
	const keyOrder, dataOrder, machine, network = 0, 1, 1, 2
	order := func(t datatype) uint32 {
		if t == typeCode {
			return machine
		}
		return network
	}
	u := tlv32(keyOrder, order(s.key))
	if s.data != (datatype{}) && s.data != typeVerdict {
		u = append(u, tlv32(dataOrder, order(s.data))...)
	}
	if s.kind == endpoints || s.kind == seats {
		u = append(u, s.typeof()...)
	}
	return u
}

// typeof tells the nft tool what a map with an index in its key is made of. For a bare integer it has no type that it would take in
// a map, only the expression that the integer comes from. The numbers are the tool's own (struct udata of expressions and protocols).
func (s *set) typeof() []byte {
	const (
		key, data                       = 3, 4
		concatenation, fromPacket       = 13, 7
		meta, priority, numgen, random  = 9, 2, 23, 1
		transport, transportDestination = 11, 2
	)
	expression := func(kind uint32, about ...[]byte) []byte {
		return slices.Concat(tlv32(0, kind), tlv(1, slices.Concat(about...)))
	}
	of := func(parts ...[]byte) []byte {
		for i, p := range parts {
			parts[i] = tlv(byte(i), p)
		}
		return expression(concatenation, parts...)
	}
	code := expression(meta, tlv32(0, priority))
	index := expression(numgen, tlv32(0, random), tlv32(1, 2), tlv32(2, 0))
	value := code
	if s.kind == endpoints {
		value = of(expression(fromPacket, tlv32(0, s.f.udata[0]), tlv32(1, s.f.udata[1])), expression(fromPacket, tlv32(0, transport), tlv32(1, transportDestination)))
	}
	return append(tlv(key, of(code, index)), tlv(data, value)...)
}

// tlv is an entry of userdata.
func tlv(typ byte, val []byte) []byte { return append([]byte{typ, byte(len(val))}, val...) }

func tlv32(typ byte, v uint32) []byte { return tlv(typ, appendNumber(nil, v)) }

func addSet(b *batch, table string, s *set, id uint32) {
	b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, func(m *message) {
		m.putString(unix.NFTA_SET_TABLE, table)
		m.putString(unix.NFTA_SET_NAME, s.name())
		m.put32(unix.NFTA_SET_FLAGS, s.flags)
		m.put32(unix.NFTA_SET_KEY_TYPE, s.key.magic)
		m.put32(unix.NFTA_SET_KEY_LEN, s.key.len)
		if s.flags&unix.NFT_SET_MAP != 0 {
			m.put32(unix.NFTA_SET_DATA_TYPE, s.data.magic)
			m.put32(unix.NFTA_SET_DATA_LEN, s.data.len)
		}
		if s.size > 0 || s.fields != nil {
			at := m.nest(unix.NFTA_SET_DESC)
			if s.size > 0 {
				m.put32(unix.NFTA_SET_DESC_SIZE, s.size)
			}
			if s.fields != nil {
				m.putFields(s.fields)
			}
			m.close(at)
		}
		if s.timeout > 0 {
			m.put(unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(s.timeout.Milliseconds())))
		}
		m.put32(unix.NFTA_SET_ID, id)
		m.put(setUserdata, s.userdata())
	})
}

// putFields describes the parts of a concatenation's key.
func (m *message) putFields(lengths []uint32) {
	const descConcat, fieldLen = 2, 1 // NFTA_SET_DESC_CONCAT, NFTA_SET_FIELD_LEN
	list := m.nest(descConcat)
	for _, n := range lengths {
		at := m.nest(unix.NFTA_LIST_ELEM)
		m.put32(fieldLen, n)
		m.close(at)
	}
	m.close(list)
}
