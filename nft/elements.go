// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// element is the encoded form of a set's element: key, and for maps a value.
func element(m *message, key, val []byte, end bool) {
	at := m.nest(unix.NFTA_LIST_ELEM)
	k := m.nest(unix.NFTA_SET_ELEM_KEY)
	m.put(unix.NFTA_DATA_VALUE, key)
	m.close(k)
	if val != nil {
		d := m.nest(unix.NFTA_SET_ELEM_DATA)
		m.put(unix.NFTA_DATA_VALUE, val)
		m.close(d)
	}
	if end {
		m.put32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
	}
	m.close(at)
}

// rangeElement is an element of a concatenation whose last part is a range.
func rangeElement(m *message, first, last []byte) {
	const keyEnd = 10 // NFTA_SET_ELEM_KEY_END
	at := m.nest(unix.NFTA_LIST_ELEM)
	for typ, key := range map[uint16][]byte{unix.NFTA_SET_ELEM_KEY: first, keyEnd: last} {
		k := m.nest(typ)
		m.put(unix.NFTA_DATA_VALUE, key)
		m.close(k)
	}
	m.close(at)
}

// verdictElement is an element whose value is "goto chain".
func verdictElement(m *message, key []byte, to string) {
	at := m.nest(unix.NFTA_LIST_ELEM)
	k := m.nest(unix.NFTA_SET_ELEM_KEY)
	m.put(unix.NFTA_DATA_VALUE, key)
	m.close(k)
	d := m.nest(unix.NFTA_SET_ELEM_DATA)
	v := m.nest(unix.NFTA_DATA_VERDICT)
	code := int32(unix.NFT_GOTO)
	m.put(unix.NFTA_VERDICT_CODE, binary.BigEndian.AppendUint32(nil, uint32(code)))
	m.putString(unix.NFTA_VERDICT_CHAIN, to)
	m.close(v)
	m.close(d)
	m.close(at)
}

// addElements appends messages that add (or delete) already encoded elements, splitting between elements.
func addElements(b *batch, table string, s *set, kind int, encoded []byte) {
	for len(encoded) > 0 {
		n := 0
		for n < len(encoded) {
			size := align(int(binary.NativeEndian.Uint16(encoded[n:])))
			if n+size > maxMessage {
				break
			}
			n += size
		}
		flags := uint16(0)
		if kind == unix.NFT_MSG_NEWSETELEM {
			flags = unix.NLM_F_CREATE
		}
		b.add(kind, flags, func(m *message) {
			m.putString(unix.NFTA_SET_ELEM_LIST_TABLE, table)
			m.putString(unix.NFTA_SET_ELEM_LIST_SET, s.name())
			at := m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			m.buf = append(m.buf, encoded[:n]...)
			m.close(at)
		})
		encoded = encoded[n:]
	}
}
