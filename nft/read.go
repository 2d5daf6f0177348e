// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// readTries bounds how often a reading is repeated because the ruleset changed meanwhile. Another program may be
// changing tables of its own all the time, and the last reading is as good then.
const readTries = 5

func get(kind int, flags uint16, fill func(*message)) *message {
	m := &message{}
	m.begin(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, unix.NFPROTO_INET, 0)
	fill(m)
	return m
}

// generation is the number of the ruleset of this namespace: every transaction of any program makes it one more.
func (c *conn) generation() (uint32, error) {
	var gen uint32
	_, err := c.request(get(unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, func(*message) {}), func(data []byte) error {
		if v := attribute(data, unix.NFTA_GEN_ID); len(v) == 4 {
			gen = binary.BigEndian.Uint32(v)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read ruleset generation: %w", err)
	}
	return gen, nil
}

// settled repeats a reading until the ruleset did not change during it, and returns the generation it belongs to; 0
// if it never came to rest.
func (c *conn) settled(read func() error) (uint32, error) {
	for try := 0; ; try++ {
		before, err := c.generation()
		if err != nil {
			return 0, err
		}
		if err := read(); err != nil {
			return 0, err
		}
		after, err := c.generation()
		switch {
		case err != nil:
			return 0, err
		case before == after:
			return before, nil
		case try == readTries:
			return 0, nil
		}
	}
}

// count is the number of elements of a set; -1 if the kernel does not tell (before 6.16).
func (c *conn) count(s *set) (n int, err error) {
	n = -1
	m := get(unix.NFT_MSG_GETSET, unix.NLM_F_ACK, func(m *message) {
		m.putString(unix.NFTA_SET_TABLE, Table)
		m.putString(unix.NFTA_SET_NAME, s.name())
	})
	_, err = c.request(m, func(data []byte) error {
		if v := attribute(data, setCount); len(v) == 4 {
			n = int(binary.BigEndian.Uint32(v))
		}
		return nil
	})
	if err != nil {
		return -1, fmt.Errorf("read set %s: %w", s.name(), err)
	}
	return n, nil
}

// setCount is NFTA_SET_COUNT.
const setCount = 20

// elements hands every element of a set to each, once: key (of a range of concatenations the first and the last), value (for verdicts the
// chain's name), and whether it ends an interval.
//
// A reading may miss elements while the kernel resizes its hash table, which it does in the background after many were added. So it is
// repeated until there are as many as the kernel says.
func (c *conn) elements(s *set, each func(key, val []byte, end bool)) error {
	count, err := c.count(s)
	if err != nil {
		return err
	}
	if s.isInterval() {
		count = -1 // a tree, which has no such moments, and counts in its own way
	}
	type seenKey struct {
		key string
		end bool
	}
	seen := make(map[seenKey]struct{}, max(count, 0))
	for try := 0; ; try++ {
		m := get(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, func(m *message) {
			m.putString(unix.NFTA_SET_ELEM_LIST_TABLE, Table)
			m.putString(unix.NFTA_SET_ELEM_LIST_SET, s.name())
		})
		_, err := c.request(m, func(data []byte) error {
			return parseElements(s, data, func(key, val []byte, end bool) {
				k := seenKey{string(key), end}
				if _, again := seen[k]; !again {
					seen[k] = struct{}{}
					each(key, val, end)
				}
			})
		})
		switch {
		case err != nil:
			return fmt.Errorf("read set %s: %w", s.name(), err)
		case count < 0 || len(seen) == count:
			return nil
		case try == readTries:
			return fmt.Errorf("read set %s: %d elements found of %d", s.name(), len(seen), count)
		}
	}
}

func parseElements(s *set, data []byte, each func(key, val []byte, end bool)) error {
	keyLen := int(s.key.len)
	if s.kind == sources {
		keyLen *= 2
	}
	for _, elem := range attributes(attribute(data, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
		var key, keyEnd, val []byte
		end := false
		for typ, v := range attributes(elem) {
			switch typ {
			case unix.NFTA_SET_ELEM_KEY:
				key = attribute(v, unix.NFTA_DATA_VALUE)
			case setElemKeyEnd:
				keyEnd = attribute(v, unix.NFTA_DATA_VALUE)
			case unix.NFTA_SET_ELEM_DATA:
				if val = attribute(v, unix.NFTA_DATA_VALUE); s.data == typeVerdict {
					val = attribute(v, unix.NFTA_DATA_VERDICT, unix.NFTA_VERDICT_CHAIN)
				}
			case unix.NFTA_SET_ELEM_FLAGS:
				end = len(v) == 4 && binary.BigEndian.Uint32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
			}
		}
		if key == nil {
			continue // the catch-all element, which this package never makes
		}
		if s.kind == sources {
			key = append(slices.Clone(key), keyEnd...)
		}
		if len(key) != keyLen || val != nil && s.data != typeVerdict && len(val) != int(s.data.len) {
			return fmt.Errorf("element of %d and %d bytes, want %d and %d", len(key), len(val), keyLen, s.data.len)
		}
		each(key, val, end)
	}
	return nil
}

// setElemKeyEnd is NFTA_SET_ELEM_KEY_END.
const setElemKeyEnd = 10

// readState reads all elements. It is nil if the program's own are not as they should be.
func (c *conn) readState(shape *shape) (*state, error) {
	s := newState()
	for _, f := range families {
		sound, err := s.readWays(c, f, shape)
		if err != nil || !sound {
			return nil, err
		}
		for _, read := range []func(*conn, *family) error{s.readFronts, s.readLinks, s.readSources, s.readGroups, s.readVIPs, s.readPlains} {
			if err := read(c, f); err != nil {
				return nil, err
			}
		}
	}
	s.sweep()
	return s, nil
}

// sweep makes strays of what no frontend leads to.
func (s *state) sweep() {
	led := make(map[numbered]uint32) // id → the frontend's code
	for k, code := range s.fronts {
		led[numbered{familyOf(k.Addr), code >> lowBits}] = code
	}
	for l := range s.links {
		if led[numbered{l.s.f, l.code >> lowBits}] != l.code {
			s.discardLink(l)
		}
	}
	for n := range s.sources {
		if led[n]&lowMask != wayGuard {
			s.discardSources(n)
		}
	}
}

func (s *state) discardLink(l link) {
	s.strays = append(s.strays, stray{l.s, string(appendNumber(nil, l.code))})
	delete(s.links, l)
}

func (s *state) discardSources(n numbered) {
	for _, p := range s.sources[n] {
		s.strays = append(s.strays, stray{sets[sources][n.f.index], string(sourceKey(n, p))})
	}
	delete(s.sources, n)
}

// readWays takes a chain for good when its elements and its rules are there.
func (s *state) readWays(c *conn, f *family, shape *shape) (sound bool, err error) {
	top, err := s.readWaysOf(c, sets[ways][f.index], shape)
	if err != nil || top == nil {
		return false, err
	}
	end, err := s.readWaysOf(c, sets[ends][f.index], shape)
	if err != nil || end == nil {
		return false, err
	}
	for _, x := range []struct {
		k           kind
		these, also map[way]uint32
	}{{ways, top, end}, {ends, end, top}} {
		for w, n := range x.these {
			if x.also[w] == n {
				s.ways[wayOf{f, w}] = n
			} else {
				s.strays = append(s.strays, stray{sets[x.k][f.index], string(appendNumber(nil, n))})
			}
		}
	}
	return true, nil
}

// readWaysOf is nil if what belongs to the program is not there.
func (s *state) readWaysOf(c *conn, m *set, shape *shape) (map[way]uint32, error) {
	found, fixed := make(map[way]uint32), m.f.fixedWays(m.kind)
	err := c.elements(m, func(key, val []byte, _ bool) {
		n, name := parseNumber(key), cString(val)
		if want, ok := fixed[n]; ok && want == name {
			delete(fixed, n)
			return
		}
		if w, ok := m.f.parseChain(name); ok && n >= firstWay && n <= lowMask && found[w] == 0 && shape.has(m.f.wayChain(w)) {
			found[w] = n
			return
		}
		s.strays = append(s.strays, stray{m, string(key)})
	})
	if len(fixed) > 0 {
		return nil, err
	}
	return found, err
}

func (s *state) readFronts(c *conn, f *family) error {
	for _, k := range []kind{services, nodeports, hostports, hostportsAt} {
		m := sets[k][f.index]
		err := c.elements(m, func(key, val []byte, _ bool) {
			front := m.parseFrontend(key)
			if frontendSet(front) != m || string(f.frontendKey(nil, front)) != string(key) {
				s.strays = append(s.strays, stray{m, string(key)})
				return
			}
			s.fronts[front] = parseNumber(val)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *state) readLinks(c *conn, f *family) error {
	for _, k := range []kind{inside, outside} {
		m := sets[k][f.index]
		err := c.elements(m, func(key, val []byte, _ bool) { s.links[link{m, parseNumber(key)}] = parseNumber(val) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *state) readSources(c *conn, f *family) error {
	m := sets[sources][f.index]
	err := c.elements(m, func(key, _ []byte, _ bool) {
		code := parseNumber(key)
		n := numbered{f, code >> lowBits}
		prefix, ok := prefixBetween(f.address(key[4:]), f.address(key[int(m.key.len)+4:]).Next())
		if !ok || string(sourceKey(n, prefix)) != string(key) {
			s.strays = append(s.strays, stray{m, string(key)})
			return
		}
		s.sources[n] = append(s.sources[n], prefix)
	})
	for _, from := range s.sources {
		slices.SortFunc(from, netip.Prefix.Compare)
	}
	return err
}

// readGroups reads the groups that the frontends lead to.
func (s *state) readGroups(c *conn, f *family) error {
	numbers := s.wayNumbers(f)
	plain, staying := make(map[uint32]uint32), make(map[uint32]uint32) // id → number of endpoints
	visit := func(code uint32) {
		if code&lowMask < firstWay {
			return
		}
		if w := numbers[code&lowMask]; w.affinity == 0 {
			plain[code>>lowBits] = max(plain[code>>lowBits], w.n)
		} else {
			staying[code>>lowBits] = w.n
		}
	}
	for k, code := range s.fronts {
		if familyOf(k.Addr) == f {
			visit(code)
		}
	}
	for l, code := range s.links {
		if l.s.f == f {
			visit(code)
		}
	}
	for id := range staying {
		delete(plain, id)
	}
	if err := s.readEndpoints(c, f, plain); err != nil {
		return err
	}
	return s.readSeats(c, f, staying)
}

// readEndpoints reads the groups' endpoints. It asks for each by its key, because reading the whole map costs
// the square of its size: the kernel goes through it from the start for every 32 KB. Only when that does not account for all
// elements, something is there that no Service leads to, and the whole map is read.
func (s *state) readEndpoints(c *conn, f *family, groups map[uint32]uint32) error {
	m := sets[endpoints][f.index]
	count, err := c.count(m)
	if err != nil {
		return err
	}
	type place struct{ id, index uint32 }
	var asked []place
	wanted, found := 0, 0
	ask := func() error {
		wanted += len(asked)
		err := c.lookup(m, len(asked), func(b []byte, i int) []byte { return pairKey(b, asked[i].id<<lowBits, asked[i].index) },
			func(i int, val []byte) {
				if g := s.groups[numbered{f, asked[i].id}]; len(g.dests) == int(asked[i].index) {
					g.dests = append(g.dests, f.parseDest(val))
					found++
				}
			})
		asked = asked[:0]
		return err
	}
	for id, n := range groups {
		if n > maxEndpoints {
			return s.readAllEndpoints(c, m, groups)
		}
		s.groups[numbered{f, id}] = &group{dests: make([]dest, 0, n)}
		for i := range n {
			asked = append(asked, place{id, i})
		}
		if len(asked) < 16*maxLookup {
			continue
		}
		if err := ask(); err != nil {
			return fmt.Errorf("read set %s: %w", m.name(), err)
		}
	}
	if err := ask(); err != nil {
		return fmt.Errorf("read set %s: %w", m.name(), err)
	}
	if found != wanted || count >= 0 && found != count {
		return s.readAllEndpoints(c, m, groups)
	}
	return nil
}

// maxEndpoints is what no Service has: more can only come from numbers that somebody else wrote into the map.
const maxEndpoints = 1 << 20

// readAllEndpoints sorts the endpoints under their groups. Those behind a gap in the indexes, and those of groups that nothing leads to, are
// strays: they are written again if they are wanted.
func (s *state) readAllEndpoints(c *conn, m *set, groups map[uint32]uint32) error {
	type indexed struct {
		index uint32
		dest  dest
	}
	f, found := m.f, make(map[uint32][]indexed)
	err := c.elements(m, func(key, val []byte, _ bool) {
		code, i := parsePair(key)
		if _, ok := groups[code>>lowBits]; !ok || code&lowMask != 0 {
			s.strays = append(s.strays, stray{m, string(key)})
			return
		}
		found[code>>lowBits] = append(found[code>>lowBits], indexed{i, f.parseDest(val)})
	})
	if err != nil {
		return err
	}
	for id := range groups {
		g := &group{}
		s.groups[numbered{f, id}] = g
		slices.SortFunc(found[id], func(a, b indexed) int { return cmp.Compare(a.index, b.index) })
		for i, x := range found[id] {
			if int(x.index) != i {
				s.strays = append(s.strays, stray{m, string(pairKey(nil, id<<lowBits, x.index))})
				continue
			}
			g.dests = append(g.dests, x.dest)
		}
	}
	return nil
}

// readSeats reads the groups with affinity.
func (s *state) readSeats(c *conn, f *family, groups map[uint32]uint32) error {
	bySeat, byIndex := sets[seated][f.index], sets[seats][f.index]
	sitting, order := make(map[uint32]dest), make(map[uint32]map[uint32]uint32)
	err := c.elements(bySeat, func(key, val []byte, _ bool) { sitting[parseNumber(key)] = f.parseDest(val) })
	if err != nil {
		return err
	}
	err = c.elements(byIndex, func(key, val []byte, _ bool) {
		code, i := parsePair(key)
		seat, id := parseNumber(val), code>>lowBits
		_, there := sitting[seat]
		_, led := groups[id]
		if !there || !led || code&lowMask != 0 || seat>>lowBits != id || seat&lowMask == 0 {
			s.strays = append(s.strays, stray{byIndex, string(key)})
			return
		}
		if order[id] == nil {
			order[id] = make(map[uint32]uint32)
		}
		order[id][i] = seat
	})
	if err != nil {
		return err
	}
	for id := range groups {
		g := &group{seats: []uint16{}}
		s.groups[numbered{f, id}] = g
		for i := uint32(0); ; i++ {
			seat, ok := order[id][i]
			d, free := sitting[seat]
			if !ok || !free { // the end, or somebody sits there twice
				break
			}
			g.dests, g.seats = append(g.dests, d), append(g.seats, uint16(seat&lowMask))
			delete(order[id], i)
			delete(sitting, seat)
		}
		for i := range order[id] {
			s.strays = append(s.strays, stray{byIndex, string(pairKey(nil, id<<lowBits, i))})
		}
	}
	for seat := range sitting {
		s.strays = append(s.strays, stray{bySeat, string(appendNumber(nil, seat))})
	}
	return nil
}

func (s *state) readVIPs(c *conn, f *family) error {
	return c.elements(sets[vips][f.index], func(key, _ []byte, _ bool) { s.vips[f.address(key)] = struct{}{} })
}

func (s *state) readPlains(c *conn, f *family) error {
	for p, all := range s.plains {
		if p.f != f {
			continue
		}
		read := func() error { return s.readIntervals(c, p) }
		if !p.isInterval() {
			read = func() error { return c.elements(p, func(key, _ []byte, _ bool) { all[string(key)] = struct{}{} }) }
		}
		if err := read(); err != nil {
			return err
		}
	}
	return nil
}

// readIntervals pairs starts and ends. A range that is no prefix cannot be ours.
func (s *state) readIntervals(c *conn, p *set) error {
	type bound struct {
		addr netip.Addr
		end  bool
	}
	var bounds []bound
	err := c.elements(p, func(key, _ []byte, end bool) { bounds = append(bounds, bound{p.f.address(key), end}) })
	if err != nil {
		return err
	}
	slices.SortFunc(bounds, func(a, b bound) int {
		if c := a.addr.Compare(b.addr); c != 0 || a.end == b.end {
			return c
		}
		if a.end { // a range may begin where another ends
			return -1
		}
		return 1
	})
	for i := 0; i < len(bounds); i++ {
		b := bounds[i]
		if b.end {
			if b.addr != p.f.address(make([]byte, p.f.size)) { // the tool writes one at address zero
				s.strays = append(s.strays, stray{p, string(p.f.appendAddr(nil, b.addr)) + endMark})
			}
			continue
		}
		var end netip.Addr
		if i+1 < len(bounds) && bounds[i+1].end {
			end = bounds[i+1].addr
			i++
		}
		if prefix, ok := prefixBetween(b.addr, end); ok {
			s.plains[p][string(prefixKey(prefix))] = struct{}{}
			continue
		}
		s.strays = append(s.strays, stray{p, string(p.f.appendAddr(nil, b.addr))})
		if end.IsValid() {
			s.strays = append(s.strays, stray{p, string(p.f.appendAddr(nil, end)) + endMark})
		}
	}
	return nil
}

// endMark behind a stray's key says that it is the end of an interval.
const endMark = "\x00"

// prefixBetween is the prefix that begins at start and ends before end; end is zero for the last address there is.
func prefixBetween(start, end netip.Addr) (netip.Prefix, bool) {
	for bits := 0; bits <= start.BitLen(); bits++ {
		p := netip.PrefixFrom(start, bits)
		if p.Masked().Addr() == start && after(p) == end {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// lookup reads n single elements by their keys, and hands those that are there to each, in order.
func (c *conn) lookup(s *set, n int, key func(b []byte, i int) []byte, each func(i int, val []byte)) error {
	var buf, scratch []byte
	for next := 0; next < n; {
		part := min(n-next, maxLookup)
		m := message{buf: buf[:0]}
		m.begin(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, unix.NLM_F_ACK, unix.NFPROTO_INET, 0)
		m.putString(unix.NFTA_SET_ELEM_LIST_TABLE, Table)
		m.putString(unix.NFTA_SET_ELEM_LIST_SET, s.name())
		at := m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		for i := range part {
			scratch = key(scratch[:0], next+i)
			element(&m, scratch, nil, false)
		}
		m.close(at)
		end := next + part
		_, err := c.request(&m, func(data []byte) error {
			return parseElements(s, data, func(_, val []byte, _ bool) {
				each(next, val)
				next++
			})
		})
		buf = m.buf
		switch {
		case errors.Is(err, unix.ENOENT): // the kernel stops at the first that is missing
			next++
		case err != nil:
			return err
		case next != end:
			return fmt.Errorf("%d elements asked for, %d answered", part, part-(end-next))
		}
	}
	return nil
}

// maxLookup is bounded by a receive buffer of the default size: every element is answered by a message of its own.
const maxLookup = 64
