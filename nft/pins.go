// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A pin is a client's seat in a group, written by the client's own packets. It is good as long as the seat is taken: nothing has to be removed when
// an endpoint goes. Only when the whole group goes, its pins must, so that they do not mean another group once its number is given out again.

// cleanPins removes the pins of groups that are gone, and sets their ids free.
func (t *Target) cleanPins() error {
	if len(t.state.left) == 0 {
		return nil
	}
	for _, f := range families {
		if err := t.cleanPinsOf(f); err != nil {
			return fmt.Errorf("remove pins of past groups: %w", err)
		}
	}
	clear(t.state.left)
	return nil
}

func (t *Target) cleanPinsOf(f *family) error {
	left := make(map[uint32]struct{})
	for n := range t.state.left {
		if n.f == f {
			left[n.id] = struct{}{}
		}
	}
	if len(left) == 0 {
		return nil
	}
	s := sets[pins][f.index]
	var past [][]byte
	_, err := t.conn.request(get(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, func(m *message) {
		m.putString(unix.NFTA_SET_ELEM_LIST_TABLE, Table)
		m.putString(unix.NFTA_SET_ELEM_LIST_SET, s.name())
	}), func(data []byte) error {
		return parseElements(s, data, func(key, val []byte, _ bool) {
			if _, ok := left[parseNumber(val)>>lowBits]; ok {
				past = append(past, append([]byte(nil), key...))
			}
		})
	})
	if err != nil {
		return err
	}
	// Each in a transaction of its own: one that has just expired would spoil the others'.
	for _, key := range past {
		b := newBatch()
		var m message
		element(&m, key, nil, false)
		addElements(b, Table, s, unix.NFT_MSG_DELSETELEM, m.buf)
		var refused *errRejected
		switch err := t.conn.commit(b); {
		case errors.As(err, &refused):
			continue // it has expired
		case err != nil:
			return err
		}
		t.stats.Pins++
		t.advance()
	}
	return nil
}
