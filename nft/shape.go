// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// shape is what the table consists of beside elements.
type shape struct {
	exists  bool
	dormant bool // the kernel calls none of its chains
	layout  string
	chains  map[string][]string // chain → comments of its rules
	bases   map[string]base     // of the chains that the kernel calls
	drops   bool                // one of them drops what it does not decide about
	// refusing are the sets there are whose addresses are refused when nothing else is found for them.
	refusing []*set
}

// sound reports whether the table was made by this version of the program and nobody has changed its rules.
func (s *shape) sound() bool {
	if !s.exists || s.dormant || s.drops || s.layout != tableComment() {
		return false
	}
	bases := make(map[string]base)
	for _, c := range program() {
		if !s.has(c) {
			return false
		}
		if c.base != nil {
			bases[c.name] = *c.base
		}
	}
	return maps.Equal(s.bases, bases)
}

func (s *shape) has(c chain) bool {
	comments, ok := s.chains[c.name]
	return ok && slices.EqualFunc(comments, c.rule, func(comment string, r rule) bool { return comment == r.comment })
}

const (
	tableDormant = 1 // NFT_TABLE_F_DORMANT
	chainDrops   = 0 // NF_DROP
)

// number is an attribute's; 0 if there is none.
func number(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// readShape reads the table's layout, chains and rules.
func (c *conn) readShape() (*shape, error) {
	s := &shape{chains: make(map[string][]string), bases: make(map[string]base)}
	_, err := c.request(get(unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, func(m *message) { m.putString(unix.NFTA_TABLE_NAME, Table) }),
		func(data []byte) error {
			s.exists = true
			s.layout = commentOf(attribute(data, tableUserdata))
			s.dormant = number(attribute(data, unix.NFTA_TABLE_FLAGS))&tableDormant != 0
			return nil
		})
	if errors.Is(err, unix.ENOENT) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read table: %w", err)
	}
	_, err = c.request(get(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, func(*message) {}), func(data []byte) error {
		if cString(attribute(data, unix.NFTA_CHAIN_TABLE)) != Table {
			return nil
		}
		name := cString(attribute(data, unix.NFTA_CHAIN_NAME))
		s.chains[name] = nil
		if hook := attribute(data, unix.NFTA_CHAIN_HOOK); hook != nil {
			s.bases[name] = base{cString(attribute(data, unix.NFTA_CHAIN_TYPE)), number(attribute(hook, unix.NFTA_HOOK_HOOKNUM)),
				int32(number(attribute(hook, unix.NFTA_HOOK_PRIORITY)))}
			s.drops = s.drops || number(attribute(data, unix.NFTA_CHAIN_POLICY)) == chainDrops
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read chains: %w", err)
	}
	_, err = c.request(get(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, func(m *message) { m.putString(unix.NFTA_RULE_TABLE, Table) }),
		func(data []byte) error {
			if cString(attribute(data, unix.NFTA_RULE_TABLE)) == Table {
				name := cString(attribute(data, unix.NFTA_RULE_CHAIN))
				s.chains[name] = append(s.chains[name], commentOf(attribute(data, unix.NFTA_RULE_USERDATA)))
			}
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	_, err = c.request(get(unix.NFT_MSG_GETSET, unix.NLM_F_DUMP, func(m *message) { m.putString(unix.NFTA_SET_TABLE, Table) }),
		func(data []byte) error {
			if cString(attribute(data, unix.NFTA_SET_TABLE)) != Table {
				return nil
			}
			for _, set := range [...]*set{sets[vips][0], sets[vips][1], sets[ranges][0], sets[ranges][1]} {
				if cString(attribute(data, unix.NFTA_SET_NAME)) == set.name() {
					s.refusing = append(s.refusing, set)
				}
			}
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("read sets: %w", err)
	}
	return s, nil
}

func commentOf(userdata []byte) string {
	if len(userdata) < 2 || userdata[0] != 0 || int(userdata[1]) > len(userdata)-2 {
		return ""
	}
	return cString(userdata[2 : 2+int(userdata[1])])
}
