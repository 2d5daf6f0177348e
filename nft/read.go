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
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// readTries bounds how often a reading is repeated because the ruleset changed meanwhile. Another program may be
// changing tables of its own all the time, and the last reading is as good then.
const readTries = 5

// shape is what the table consists of beside elements.
type shape struct {
	exists bool
	layout string
	chains map[string][]string // chain → comments of its rules
	vips   []*set              // those of the virtual addresses that exist
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
			for _, f := range families {
				if cString(attribute(data, unix.NFTA_SET_TABLE)) == Table && cString(attribute(data, unix.NFTA_SET_NAME)) == sets[vips][f.index].name() {
					s.vips = append(s.vips, sets[vips][f.index])
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

// elements hands every element of a set to each, once: key, value (for verdicts the chain's name), and whether it ends an
// interval.
//
// A reading may miss elements while the kernel resizes its hash table, which it does in the background after many were added. So it is
// repeated until there are as many as the kernel says.
func (c *conn) elements(s *set, each func(key, val []byte, end bool)) error {
	count, err := c.count(s)
	if err != nil {
		return err
	}
	if s.flags&unix.NFT_SET_INTERVAL != 0 {
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
	for _, elem := range attributes(attribute(data, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
		var key, val []byte
		end := false
		for typ, v := range attributes(elem) {
			switch typ {
			case unix.NFTA_SET_ELEM_KEY:
				key = attribute(v, unix.NFTA_DATA_VALUE)
			case unix.NFTA_SET_ELEM_DATA:
				if val = attribute(v, unix.NFTA_DATA_VALUE); s.kind == picks {
					val = attribute(v, unix.NFTA_DATA_VERDICT, unix.NFTA_VERDICT_CHAIN)
				}
			case unix.NFTA_SET_ELEM_FLAGS:
				end = len(v) == 4 && binary.BigEndian.Uint32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
			}
		}
		if key == nil {
			continue // the catch-all element, which this package never makes
		}
		if len(key) != int(s.key.len) || val != nil && s.kind != picks && len(val) != int(s.data.len) {
			return fmt.Errorf("element of %d and %d bytes, want %d and %d", len(key), len(val), s.key.len, s.data.len)
		}
		each(key, val, end)
	}
	return nil
}

// readState reads all elements.
func (c *conn) readState(shape *shape) (*state, error) {
	s := newState()
	for _, f := range families {
		for _, read := range []func(*conn, *family) error{s.readServices, s.readEndpoints, s.readVIPs, s.readPlains} {
			if err := read(c, f); err != nil {
				return nil, err
			}
		}
		if err := s.readPicks(c, f, shape); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *state) readServices(c *conn, f *family) error {
	m := sets[services][f.index]
	return c.elements(m, func(key, val []byte, _ bool) {
		k := f.parsePortKey(key)
		if string(f.portKey(nil, k)) != string(key) {
			s.strays = append(s.strays, stray{m, string(key)})
			return
		}
		s.ports[k] = entry{n: binary.NativeEndian.Uint32(val)}
	})
}

// readEndpoints reads the endpoints of all services. It asks for each by its key, because reading the whole map costs
// the square of its size: the kernel goes through it from the start for every 32 KB. Only when that does not account for all
// elements, something is there that no service leads to, and the whole map is read.
func (s *state) readEndpoints(c *conn, f *family) error {
	m := sets[endpoints][f.index]
	count, err := c.count(m)
	if err != nil {
		return err
	}
	type place struct {
		k frontend
		i int
	}
	var asked []place
	wanted, found := 0, 0
	ask := func() error {
		wanted += len(asked)
		err := c.lookup(m, len(asked), func(b []byte, i int) []byte { return f.endpointKey(b, asked[i].k, asked[i].i) },
			func(i int, val []byte) {
				p := asked[i]
				if e := s.ports[p.k]; len(e.dests) == p.i {
					e.dests = append(e.dests, f.parseDest(val))
					s.ports[p.k] = e
					found++
				}
			})
		asked = asked[:0]
		return err
	}
	for k, e := range s.ports {
		if k.family() != f {
			continue
		}
		if e.n > maxEndpoints {
			return s.readAllEndpoints(c, m)
		}
		e.dests = make([]dest, 0, e.n)
		s.ports[k] = e
		for i := range int(e.n) {
			asked = append(asked, place{k, i})
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
		return s.readAllEndpoints(c, m)
	}
	return nil
}

// maxEndpoints is what no Service has: more can only come from numbers that somebody else wrote into the map.
const maxEndpoints = 1 << 20

// readAllEndpoints sorts the endpoints under their frontends. Those behind a gap in the indexes are strays: they are
// written again if they are wanted.
func (s *state) readAllEndpoints(c *conn, m *set) error {
	type indexed struct {
		index int
		dest  dest
	}
	f, found := m.f, make(map[frontend][]indexed)
	err := c.elements(m, func(key, val []byte, _ bool) {
		k, i := f.parseEndpointKey(key)
		if string(f.endpointKey(nil, k, i)) != string(key) {
			s.strays = append(s.strays, stray{m, string(key)})
			return
		}
		found[k] = append(found[k], indexed{i, f.parseDest(val)})
	})
	if err != nil {
		return err
	}
	for k, list := range found {
		slices.SortFunc(list, func(a, b indexed) int { return a.index - b.index })
		e := s.ports[k]
		e.dests = make([]dest, 0, len(list))
		for i, x := range list {
			if x.index != i {
				s.strays = append(s.strays, stray{m, string(f.endpointKey(nil, k, x.index))})
				continue
			}
			e.dests = append(e.dests, x.dest)
		}
		s.ports[k] = e
	}
	return nil
}

func (s *state) readVIPs(c *conn, f *family) error {
	return c.elements(sets[vips][f.index], func(key, _ []byte, _ bool) { s.vips[f.address(key)] = struct{}{} })
}

func (s *state) readPlains(c *conn, f *family) error {
	for _, k := range []kind{dnsPorts, hairpin} {
		p := sets[k][f.index]
		err := c.elements(p, func(key, _ []byte, _ bool) { s.plains[p][string(key)] = struct{}{} })
		if err != nil {
			return err
		}
	}
	for _, k := range []kind{pods, cluster} {
		if err := s.readIntervals(c, sets[k][f.index]); err != nil {
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

// readPicks takes a chain for good when its element and its rules are there.
func (s *state) readPicks(c *conn, f *family, shape *shape) error {
	m := sets[picks][f.index]
	return c.elements(m, func(key, val []byte, _ bool) {
		n := binary.NativeEndian.Uint32(key)
		if n > 0 && n < 1<<31 && cString(val) == f.chainPick(int(n)) && shape.has(f.pickChain(int(n))) {
			s.picks[pick{f, int(n)}] = struct{}{}
			return
		}
		s.strays = append(s.strays, stray{m, string(key)})
	})
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

// Read asks the kernel for the endpoints of one Service port: two look-ups by key, whatever else the table holds. ok is
// false if the map has no such entry (or there is no table): the port is refused if vip is a virtual address. An index without
// an endpoint is an error: it is refused too, and [Target.Verify] mends it.
func Read(o Options, vip netip.AddrPort, proto model.Protocol) (backends []netip.AddrPort, ok bool, err error) {
	c, err := dial(o.NetNS)
	if err != nil {
		return nil, false, err
	}
	defer c.close()
	_, err = c.settled(func() error {
		backends, ok, err = c.readPort(frontend{vip, proto})
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("read service %s %s: %w", proto, vip, err)
	}
	return backends, ok, nil
}

func (c *conn) readPort(k frontend) (backends []netip.AddrPort, ok bool, err error) {
	f, n := k.family(), 0
	err = c.lookup(sets[services][f.index], 1, func(b []byte, _ int) []byte { return f.portKey(b, k) },
		func(_ int, val []byte) { n = int(binary.NativeEndian.Uint32(val)) })
	if err != nil || n == 0 {
		return nil, false, err
	}
	err = c.lookup(sets[endpoints][f.index], n, func(b []byte, i int) []byte { return f.endpointKey(b, k, i) },
		func(_ int, val []byte) { backends = append(backends, f.parseDest(val).addrPort(f)) })
	if err == nil && len(backends) != n {
		err = fmt.Errorf("%d of %d endpoints are missing", n-len(backends), n)
	}
	slices.SortFunc(backends, netip.AddrPort.Compare)
	return backends, true, err
}

// Dump reads the whole table and prints what it means, a line a fact, in an order that does not depend on history: endpoints
// are sorted by address and their indexes are left out. Chains that are there but lead nowhere are left out too.
func Dump(o Options) (string, error) {
	c, err := dial(o.NetNS)
	if err != nil {
		return "", err
	}
	defer c.close()
	var sh *shape
	st := newState()
	_, err = c.settled(func() (err error) {
		if sh, err = c.readShape(); err != nil || !sh.exists {
			return err
		}
		if !sh.sound() {
			return nil
		}
		st, err = c.readState(sh)
		return err
	})
	if err != nil {
		return "", err
	}
	switch {
	case !sh.exists:
		return "no table\n", nil
	case !sh.sound():
		return fmt.Sprintf("table with %s, not %s, or with changed rules\n", cmp.Or(sh.layout, "no layout"), tableComment()), nil
	}
	return st.String(), nil
}

// String prints the state as [Dump] does.
func (s *state) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", tableComment())
	for _, line := range s.plainLines() {
		b.WriteString(line)
	}
	addrs := make([]netip.Addr, 0, len(s.vips))
	for a := range s.vips {
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, a := range addrs {
		fmt.Fprintf(&b, "vip %s\n", a)
	}
	keys := make([]frontend, 0, len(s.ports))
	for k := range s.ports {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareFrontends)
	for _, k := range keys {
		s.ports[k].print(&b, k, s.picks)
	}
	for _, x := range s.strays {
		fmt.Fprintf(&b, "stray %s %x\n", x.s.name(), x.key)
	}
	return b.String()
}

func (s *state) plainLines() []string {
	var lines []string
	for set, keys := range s.plains {
		for key := range keys {
			lines = append(lines, fmt.Sprintf("%s %s\n", kindNames[set.kind], plain{set, key}))
		}
	}
	slices.Sort(lines)
	return lines
}

func (p plain) String() string {
	f := p.s.f
	switch p.s.kind {
	case pods, cluster:
		return parsePrefixKey(f, p.key).String()
	case dnsPorts:
		return fmt.Sprintf("%s %s", model.Protocol(p.key[f.size]), f.address([]byte(p.key)))
	}
	return f.address([]byte(p.key)).String()
}

func (e entry) print(b *strings.Builder, k frontend, picks map[pick]struct{}) {
	fmt.Fprintf(b, "service %s %s endpoints %d\n", k.proto, k.addr, e.n)
	if _, ok := picks[pick{k.family(), int(e.n)}]; !ok && e.n > 0 {
		fmt.Fprintf(b, "  no chain for %d endpoints\n", e.n)
	}
	if int(e.n) != len(e.dests) {
		fmt.Fprintf(b, "  %d at consecutive indexes\n", len(e.dests))
	}
	for _, d := range slices.SortedFunc(slices.Values(e.dests), compareDests) {
		fmt.Fprintf(b, "  %s\n", d.addrPort(k.family()))
	}
}
