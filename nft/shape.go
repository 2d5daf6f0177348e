// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// shape is what the table consists of beside elements.
type shape struct {
	exists bool
	layout string
	chains map[string][]string // chain → comments of its rules
	// refusing are the sets there are whose addresses are refused when nothing else is found for them.
	refusing []*set
}

// sound reports whether the table was made by this version of the program and nobody has changed its rules.
func (s *shape) sound() bool {
	if !s.exists || s.layout != tableComment() {
		return false
	}
	for _, c := range program() {
		if !s.has(c) {
			return false
		}
	}
	return true
}

func (s *shape) has(c chain) bool {
	comments, ok := s.chains[c.name]
	return ok && slices.EqualFunc(comments, c.rule, func(comment string, r rule) bool { return comment == r.comment })
}

// readShape reads the table's layout, chains and rules.
func (c *conn) readShape() (*shape, error) {
	s := &shape{chains: make(map[string][]string)}
	_, err := c.request(get(unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, func(m *message) { m.putString(unix.NFTA_TABLE_NAME, Table) }),
		func(data []byte) error {
			s.exists = true
			s.layout = commentOf(attribute(data, tableUserdata))
			return nil
		})
	if errors.Is(err, unix.ENOENT) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read table: %w", err)
	}
	_, err = c.request(get(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, func(*message) {}), func(data []byte) error {
		if cString(attribute(data, unix.NFTA_CHAIN_TABLE)) == Table {
			s.chains[cString(attribute(data, unix.NFTA_CHAIN_NAME))] = nil
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
