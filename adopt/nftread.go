// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// readTries bounds how often a reading is repeated that somebody's change has interrupted.
const readTries = 5

// readTable reads a table of the caller's network namespace; nil if there is none. The kernel is asked, and not the nft tool: the tool is not everywhere,
// and what it prints differs between its versions.
func readTable(family uint8, name string) (*table, error) {
	t := &table{is4: family == unix.NFPROTO_IPV4, chains: make(map[string]*chain), sets: make(map[string]*set)}
	err := dump(family, unix.NFT_MSG_GETCHAIN, nil, func(a attributes) error {
		if a.text(unix.NFTA_CHAIN_TABLE) != name {
			return nil
		}
		c := &chain{name: a.text(unix.NFTA_CHAIN_NAME)}
		if hook, ok := a[unix.NFTA_CHAIN_HOOK]; ok {
			h, err := parse(hook)
			if err != nil {
				return err
			}
			c.base, c.hook, c.priority = true, h.number(unix.NFTA_HOOK_HOOKNUM), int32(h.number(unix.NFTA_HOOK_PRIORITY))
			t.bases = append(t.bases, c)
		}
		t.chains[c.name] = c
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read chains of table %s: %w", name, err)
	}
	if len(t.chains) == 0 {
		return nil, nil
	}
	slices.SortStableFunc(t.bases, func(a, b *chain) int { return cmp.Compare(a.priority, b.priority) })
	of := attribute{unix.NFTA_RULE_TABLE, name}
	err = dump(family, unix.NFT_MSG_GETRULE, []attribute{of}, func(a attributes) error {
		c := t.chains[a.text(unix.NFTA_RULE_CHAIN)]
		if c == nil || a.text(unix.NFTA_RULE_TABLE) != name {
			return nil
		}
		rule, err := expressions(a[unix.NFTA_RULE_EXPRESSIONS])
		c.rules = append(c.rules, rule)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read rules of table %s: %w", name, err)
	}
	err = dump(family, unix.NFT_MSG_GETSET, []attribute{{unix.NFTA_SET_TABLE, name}}, func(a attributes) error {
		flags := a.number(unix.NFTA_SET_FLAGS)
		s := &set{name: a.text(unix.NFTA_SET_NAME), elements: make(map[string]element),
			interval: flags&unix.NFT_SET_INTERVAL != 0, dynamic: flags&unix.NFT_SET_EVAL != 0}
		if b := a[unix.NFTA_SET_TIMEOUT]; len(b) == 8 {
			s.timeout = time.Duration(binary.BigEndian.Uint64(b)) * time.Millisecond
		}
		t.sets[s.name] = s
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read sets of table %s: %w", name, err)
	}
	for _, s := range t.sets {
		if s.dynamic {
			continue // what packets have written says nothing about new clients
		}
		if err := s.read(family, name); err != nil && !errors.Is(err, unix.ENOENT) { // gone meanwhile
			return nil, fmt.Errorf("read set %s of table %s: %w", s.name, name, err)
		}
	}
	return t, nil
}

// read reads the elements.
func (s *set) read(family uint8, table string) error {
	var all []element
	var ends [][]byte
	of := []attribute{{unix.NFTA_SET_ELEM_LIST_TABLE, table}, {unix.NFTA_SET_ELEM_LIST_SET, s.name}}
	err := dump(family, unix.NFT_MSG_GETSETELEM, of, func(a attributes) error {
		return each(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(raw []byte) error {
			x, err := parse(raw)
			if err != nil {
				return err
			}
			e := element{}
			if e.key, _, err = data(x[unix.NFTA_SET_ELEM_KEY]); err != nil {
				return err
			}
			const keyEnd = 10 // NFTA_SET_ELEM_KEY_END
			if last, ok := x[keyEnd]; ok {
				if e.last, _, err = data(last); err != nil {
					return err
				}
			}
			if x.number(unix.NFTA_SET_ELEM_FLAGS)&unix.NFT_SET_ELEM_INTERVAL_END != 0 {
				ends = append(ends, e.key)
				return nil
			}
			if d, ok := x[unix.NFTA_SET_ELEM_DATA]; ok {
				if e.value, e.verdict, err = data(d); err != nil {
					return err
				}
			}
			all = append(all, e)
			return nil
		})
	})
	if err != nil {
		return err
	}
	if !s.interval {
		for _, e := range all {
			s.elements[string(e.key)] = e
		}
		return nil
	}
	for _, e := range all {
		if e.last == nil {
			e.last = bytes.Repeat([]byte{0xff}, len(e.key))
			for _, next := range ends { // the first one behind is where the range has ended
				if bytes.Compare(next, e.key) > 0 && bytes.Compare(next, e.last) <= 0 {
					e.last = before(next)
				}
			}
		}
		s.ranges = append(s.ranges, e)
	}
	return nil
}

// before is the number, in the order of the network, that is one less.
func before(n []byte) []byte {
	n = slices.Clone(n)
	for i := len(n) - 1; i >= 0; i-- {
		if n[i]--; n[i] != 0xff {
			break
		}
	}
	return n
}

// attributes are those of a message or of an attribute, by their types.
type attributes map[uint16][]byte

func (a attributes) text(kind uint16) string { return string(bytes.TrimRight(a[kind], "\x00")) }

func (a attributes) number(kind uint16) uint32 {
	if b := a[kind]; len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

const typeMask = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER

// each yields the values of attributes in their order.
func each(raw []byte, yield func([]byte) error) error {
	return every(raw, func(_ uint16, v []byte) error { return yield(v) })
}

func every(raw []byte, yield func(uint16, []byte) error) error {
	for len(raw) >= unix.SizeofNlAttr {
		size, kind := int(binary.NativeEndian.Uint16(raw)), binary.NativeEndian.Uint16(raw[2:])
		if size < unix.SizeofNlAttr || size > len(raw) {
			return fmt.Errorf("an attribute of %d octets is not whole", size)
		}
		if err := yield(kind&typeMask, raw[unix.SizeofNlAttr:size]); err != nil {
			return err
		}
		raw = raw[min((size+3)&^3, len(raw)):]
	}
	return nil
}

func parse(raw []byte) (attributes, error) {
	a := make(attributes)
	return a, every(raw, func(kind uint16, v []byte) error { a[kind] = v; return nil })
}

// expressions reads a rule.
func expressions(raw []byte) (rule []expression, err error) {
	return rule, each(raw, func(one []byte) error {
		a, err := parse(one)
		if err != nil {
			return err
		}
		inner, err := parse(a[unix.NFTA_EXPR_DATA])
		rule = append(rule, expression{a.text(unix.NFTA_EXPR_NAME), inner})
		return err
	})
}

// data reads a value or a verdict.
func data(raw []byte) ([]byte, *verdict, error) {
	a, err := parse(raw)
	if err != nil {
		return nil, nil, err
	}
	if value, ok := a[unix.NFTA_DATA_VALUE]; ok {
		return value, nil, nil
	}
	nested, ok := a[unix.NFTA_DATA_VERDICT]
	if !ok {
		return nil, nil, errors.New("a datum is neither a value nor a verdict")
	}
	v, err := parse(nested)
	return nil, &verdict{int32(v.number(unix.NFTA_VERDICT_CODE)), v.text(unix.NFTA_VERDICT_CHAIN)}, err
}

// attribute is one of a request.
type attribute struct {
	kind uint16
	text string
}

// dump asks nf_tables for a list, again if somebody's change has interrupted it. What is yielded twice is the same.
func dump(family uint8, kind int, of []attribute, yield func(attributes) error) error {
	for try := 0; ; try++ {
		r := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_DUMP)
		r.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
		for _, a := range of {
			r.AddData(nl.NewRtAttr(int(a.kind), nl.ZeroTerminated(a.text)))
		}
		answers, err := r.Execute(unix.NETLINK_NETFILTER, 0)
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < readTries {
			continue
		}
		if err != nil {
			return err
		}
		for _, m := range answers {
			if len(m) < nl.SizeofNfgenmsg {
				return fmt.Errorf("an answer of %d octets is not whole", len(m))
			}
			a, err := parse(m[nl.SizeofNfgenmsg:])
			if err != nil {
				return err
			}
			if err := yield(a); err != nil {
				return err
			}
		}
		return nil
	}
}
