// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// Entry is what the kernel holds for a frontend.
type Entry struct {
	// Guarded says that only clients in Sources are let through.
	Guarded bool
	Sources []netip.Prefix
	// Inside and Outside are for clients inside the cluster and outside.
	Inside, Outside Choice
}

// Choice is what the kernel chooses from.
type Choice struct {
	// Chain is the chain that a packet ends in.
	Chain string
	// Affinity is how long a client keeps its endpoint; zero: no longer than the connection.
	Affinity time.Duration
	Backends []netip.AddrPort
}

// Read asks the kernel what it holds for a frontend: a few look-ups by key, whatever else the table holds. ok is
// false if there is no such entry (or no table). An index without
// an endpoint is an error: it is refused, and [Target.Verify] mends it.
func Read(o Options, k model.Frontend) (e Entry, ok bool, err error) {
	c, err := dial(o.NetNS)
	if err != nil {
		return e, false, err
	}
	defer c.close()
	_, err = c.settled(func() error {
		e, ok, err = c.readEntry(k)
		return err
	})
	if err != nil {
		return Entry{}, false, fmt.Errorf("read frontend %s: %w", k, err)
	}
	return e, ok, nil
}

func (c *conn) readEntry(k frontend) (e Entry, ok bool, err error) {
	f := familyOf(k.Addr)
	code, ok, err := c.find(frontendSet(k), f.frontendKey(nil, k))
	if err != nil || !ok {
		return e, false, err
	}
	if code&lowMask == wayGuard {
		e.Guarded = true
		err = c.elements(sets[sources][f.index], func(key, _ []byte, _ bool) {
			first, last := f.address(key[4:]), f.address(key[len(key)/2+4:])
			if p, ok := prefixBetween(first, last.Next()); ok && parseNumber(key) == code {
				e.Sources = append(e.Sources, p)
			}
		})
	}
	in, out := code, code
	if err == nil && isJunction(code) {
		if in, _, err = c.find(sets[inside][f.index], appendNumber(nil, code)); err == nil && code&lowMask != wayOnward {
			out, _, err = c.find(sets[outside][f.index], appendNumber(nil, code))
		}
	}
	if err != nil {
		return e, false, err
	}
	if e.Inside, err = c.readChoice(f, in); err != nil {
		return e, false, err
	}
	e.Outside, err = c.readChoice(f, out)
	return e, true, err
}

// find reads the number that a map has for a key.
func (c *conn) find(s *set, key []byte) (n uint32, ok bool, err error) {
	err = c.lookup(s, 1, func(b []byte, _ int) []byte { return append(b, key...) }, func(_ int, val []byte) { n, ok = parseNumber(val), true })
	return n, ok, err
}

func (c *conn) readChoice(f *family, code uint32) (x Choice, err error) {
	err = c.lookup(sets[ways][f.index], 1, func(b []byte, _ int) []byte { return appendNumber(b, code&lowMask) },
		func(_ int, val []byte) { x.Chain = cString(val) })
	w, ok := f.parseChain(x.Chain)
	if err != nil || !ok {
		return x, err
	}
	x.Affinity = time.Duration(w.affinity) * time.Second
	group := code &^ lowMask
	add := func(_ int, val []byte) { x.Backends = append(x.Backends, f.parseDest(val).addrPort(f)) }
	index := func(b []byte, i int) []byte { return pairKey(b, group, uint32(i)) }
	if w.affinity == 0 {
		err = c.lookup(sets[endpoints][f.index], int(w.n), index, add)
	} else {
		var taken []uint32
		err = c.lookup(sets[seats][f.index], int(w.n), index, func(_ int, val []byte) { taken = append(taken, parseNumber(val)) })
		if err == nil {
			err = c.lookup(sets[seated][f.index], len(taken), func(b []byte, i int) []byte { return appendNumber(b, taken[i]) }, add)
		}
	}
	if err == nil && len(x.Backends) != int(w.n) {
		err = fmt.Errorf("%d of %d endpoints are missing", int(w.n)-len(x.Backends), w.n)
	}
	slices.SortFunc(x.Backends, netip.AddrPort.Compare)
	return x, err
}

// Dropped counts packets since the table was made: those that got no answer, at a traffic policy Local without an endpoint here, and from clients
// in none of a Service's source ranges; and refusals that were held back for another attempt.
type Dropped struct{ NoLocal, NotAllowed, HeldBack uint64 }

// ReadDropped reads the counters; they are zero if there is no table.
func ReadDropped(o Options) (d Dropped, err error) {
	c, err := dial(o.NetNS)
	if err != nil {
		return d, err
	}
	defer c.close()
	for chain, n := range map[string]*uint64{chainNoLocal: &d.NoLocal, chainNotAllowed: &d.NotAllowed, chainHeldBack: &d.HeldBack} {
		m := get(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, func(m *message) {
			m.putString(unix.NFTA_RULE_TABLE, Table)
			m.putString(unix.NFTA_RULE_CHAIN, chain)
		})
		_, err := c.request(m, func(data []byte) error {
			if cString(attribute(data, unix.NFTA_RULE_TABLE)) != Table || cString(attribute(data, unix.NFTA_RULE_CHAIN)) != chain {
				return nil
			}
			for _, e := range attributes(attribute(data, unix.NFTA_RULE_EXPRESSIONS)) {
				if v := attribute(e, unix.NFTA_EXPR_DATA, unix.NFTA_COUNTER_PACKETS); cString(attribute(e, unix.NFTA_EXPR_NAME)) == "counter" && len(v) == 8 {
					*n += binary.BigEndian.Uint64(v)
				}
			}
			return nil
		})
		if err != nil {
			return d, fmt.Errorf("read counter of chain %s: %w", chain, err)
		}
	}
	return d, nil
}
