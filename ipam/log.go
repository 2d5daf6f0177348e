// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// version is that of the file format, in its first line.
const version = 1

// keepFreed is how many of the addresses freed last a rewritten file remembers:
// enough for every address of a /24 and a bound for a /64.
const keepFreed = 1024

// freedPerLine keeps lines readable.
const freedPerLine = 64

// record is one line of the file. Exactly one of the fields is set.
type record struct {
	Head  *head  // the first line, and only that
	Hold  *Lease // takes the addresses away from whoever has them
	Free  *free  // a lease ends; nothing if there is none
	Freed *freed // in a rewritten file: addresses that were used before
}

type head struct {
	Version int
	Boot    string
}

type free struct {
	ID string
	At time.Time
}

type freed struct {
	Addrs []netip.Addr // longest ago first
	At    time.Time    // when the last of them was freed
}

// state is what the lines of a file add up to.
type state struct {
	boot  string
	held  map[string]*Lease       // by ID
	owner map[netip.Addr]string   // the ID that holds an address
	freed map[netip.Addr]freeMark // addresses that were held once and are not now
	marks int                     // how often something was freed: the order of freed
	lines int
}

type freeMark struct {
	order int
	at    time.Time
}

func newState(boot string) *state {
	return &state{boot: boot, held: map[string]*Lease{}, owner: map[netip.Addr]string{}, freed: map[netip.Addr]freeMark{}}
}

// apply takes in one record. It cannot fail: a lease that contradicts an earlier
// one wins, since it was made when the earlier one was gone.
func (s *state) apply(r record) {
	s.lines++
	switch {
	case r.Head != nil:
		s.boot = r.Head.Boot
	case r.Hold != nil:
		s.release(r.Hold.ID, r.Hold.AllocatedAt)
		for _, addr := range r.Hold.Addrs {
			if id, taken := s.owner[addr]; taken {
				s.release(id, r.Hold.AllocatedAt)
			}
		}
		s.held[r.Hold.ID] = r.Hold
		for _, addr := range r.Hold.Addrs {
			s.owner[addr] = r.Hold.ID
			delete(s.freed, addr)
		}
	case r.Free != nil:
		s.release(r.Free.ID, r.Free.At)
	case r.Freed != nil:
		s.mark(r.Freed.Addrs, r.Freed.At)
	}
}

func (s *state) release(id string, at time.Time) {
	lease, ok := s.held[id]
	if !ok {
		return
	}
	delete(s.held, id)
	for _, addr := range lease.Addrs {
		delete(s.owner, addr)
	}
	s.mark(lease.Addrs, at)
}

func (s *state) mark(addrs []netip.Addr, at time.Time) {
	for _, addr := range addrs {
		if _, held := s.owner[addr]; !held {
			s.marks++
			s.freed[addr] = freeMark{s.marks, at}
		}
	}
}

// adopt takes in a lease found in use. One that is in the state with at least the
// same addresses stays as it is, since the state knows more about it.
func (s *state) adopt(lease Lease, at time.Time) {
	known := true
	for _, addr := range lease.Addrs {
		known = known && s.owner[addr] == lease.ID
	}
	if !known {
		lease.AllocatedAt = at
		s.apply(record{Hold: &lease})
	}
}

// freedInOrder returns the freed addresses, longest ago first.
func (s *state) freedInOrder() []netip.Addr {
	return slices.SortedFunc(maps.Keys(s.freed), func(a, b netip.Addr) int {
		return cmp.Compare(s.freed[a].order, s.freed[b].order)
	})
}

// leases returns what is held, in the order of addresses.
func (s *state) leases() []Lease {
	all := make([]Lease, 0, len(s.held))
	for _, lease := range s.held {
		all = append(all, *lease)
	}
	slices.SortFunc(all, func(a, b Lease) int { return slices.CompareFunc(a.Addrs, b.Addrs, netip.Addr.Compare) })
	return all
}

// pick chooses an address of every range.
func (s *state) pick(ranges []netip.Prefix) ([]netip.Addr, error) {
	before := s.freedInOrder()
	held := func(addr netip.Addr) bool { _, ok := s.owner[addr]; return ok }
	addrs := make([]netip.Addr, len(ranges))
	for i, r := range ranges {
		addr, ok := Pick(r, held, before)
		if !ok {
			full := &FullError{Range: r}
			for addr := range s.owner {
				if r.Contains(addr) {
					full.Held++
				}
			}
			return nil, full
		}
		addrs[i] = addr
	}
	return addrs, nil
}

// encode writes the state as a new file.
func (s *state) encode() []byte {
	out := encodeRecord(record{Head: &head{Version: version, Boot: s.boot}})
	before := s.freedInOrder()
	for part := range slices.Chunk(before[max(0, len(before)-keepFreed):], freedPerLine) {
		out = append(out, encodeRecord(record{Freed: &freed{part, s.freed[part[len(part)-1]].at}})...)
	}
	for _, lease := range s.leases() {
		out = append(out, encodeRecord(record{Hold: &lease})...)
	}
	return out
}

// encodeRecord returns one line: eight hexadecimal digits of checksum, a space,
// the kind and its fields with tabs between them, a newline. Backslash, tab and
// newline in a text are written as \\, \t and \n.
func encodeRecord(r record) []byte {
	var fields []string
	switch {
	case r.Head != nil:
		fields = []string{"head", strconv.Itoa(r.Head.Version), r.Head.Boot}
	case r.Hold != nil:
		l := r.Hold
		fields = []string{"hold", l.ID, joinAddrs(l.Addrs), stamp(l.AllocatedAt), l.ContainerID, l.IfName,
			l.NetNS, strconv.FormatUint(l.NetNSID, 10), l.PodNamespace, l.PodName, l.PodUID}
	case r.Free != nil:
		fields = []string{"free", r.Free.ID, stamp(r.Free.At)}
	case r.Freed != nil:
		fields = []string{"freed", joinAddrs(r.Freed.Addrs), stamp(r.Freed.At)}
	}
	for i := range fields {
		fields[i] = escaper.Replace(fields[i])
	}
	return sumLine(strings.Join(fields, "\t") + "\n")
}

var (
	escaper   = strings.NewReplacer(`\`, `\\`, "\t", `\t`, "\n", `\n`)
	unescaper = strings.NewReplacer(`\\`, `\`, `\t`, "\t", `\n`, "\n")
)

// sumLine puts the checksum (CRC-32 of IEEE: package crc32 is slow to prepare for others) before a text; a final newline does not count.
func sumLine(text string) []byte {
	sum := crc32.ChecksumIEEE([]byte(strings.TrimSuffix(text, "\n")))
	return fmt.Appendf(nil, "%08x %s", sum, text)
}

func stamp(at time.Time) string { return at.UTC().Format(time.RFC3339Nano) }

func joinAddrs(addrs []netip.Addr) string {
	var b []byte
	for i, addr := range addrs {
		if i > 0 {
			b = append(b, ',')
		}
		b = addr.AppendTo(b)
	}
	return string(b)
}

// decodeRecord is the inverse of encodeRecord, for a line without its newline.
func decodeRecord(line []byte) (record, error) {
	sum, rest, ok := bytes.Cut(line, []byte(" "))
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if !ok || len(sum) != 8 || err != nil {
		return record{}, errors.New("no checksum")
	}
	if got := crc32.ChecksumIEEE(rest); got != uint32(want) {
		return record{}, fmt.Errorf("checksum is %08x, want %08x", got, want)
	}
	f := fields{left: string(rest), more: true}
	r := f.record()
	if f.err == nil && f.more {
		f.err = fmt.Errorf("%d fields too many", strings.Count(f.left, "\t")+1)
	}
	return r, f.err
}

// fields takes a line apart and remembers the first thing that is wrong.
type fields struct {
	left string
	more bool // there is a field left, be it an empty one
	err  error
}

func (f *fields) record() (r record) {
	switch kind := f.text(); kind {
	case "head":
		r.Head = &head{Version: int(f.number()), Boot: f.text()}
		if r.Head.Version != version || r.Head.Boot == "" {
			f.fail(fmt.Errorf("head of format %d and boot %q, want format %d", r.Head.Version, r.Head.Boot, version))
		}
	case "hold":
		r.Hold = &Lease{ID: f.text(), Addrs: f.addrs(), AllocatedAt: f.time(), ContainerID: f.text(), IfName: f.text(),
			NetNS: f.text(), NetNSID: f.number(), PodNamespace: f.text(), PodName: f.text(), PodUID: f.text()}
		f.fail(r.Hold.check())
	case "free":
		r.Free = &free{ID: f.text(), At: f.time()}
	case "freed":
		r.Freed = &freed{Addrs: f.addrs(), At: f.time()}
		f.fail(checkAddrs(r.Freed.Addrs))
	default:
		f.fail(fmt.Errorf("line of kind %q", kind))
	}
	return r
}

func (f *fields) fail(err error) {
	if f.err == nil {
		f.err = err
	}
}

func (f *fields) text() string {
	if !f.more {
		f.fail(errors.New("fields are missing"))
		return ""
	}
	text, left, more := strings.Cut(f.left, "\t")
	f.left, f.more = left, more
	if strings.IndexByte(text, '\\') >= 0 {
		text = unescaper.Replace(text)
	}
	return text
}

func (f *fields) number() uint64 {
	n, err := strconv.ParseUint(f.text(), 10, 64)
	f.fail(err)
	return n
}

func (f *fields) time() time.Time {
	at, err := time.Parse(time.RFC3339Nano, f.text())
	f.fail(err)
	return at.UTC()
}

func (f *fields) addrs() (addrs []netip.Addr) {
	for part := range strings.SplitSeq(f.text(), ",") {
		addr, err := netip.ParseAddr(part)
		f.fail(err)
		addrs = append(addrs, addr)
	}
	return addrs
}

// decode reads a file. good is the length of the part that counts: a last line
// without its newline was being written when the writer died, and is left out.
// With damage anywhere else the error is a *CorruptError without path, and the
// state is made of the good lines.
func decode(data []byte) (s *state, good int, err error) {
	var corrupt CorruptError
	s = newState("")
	lines := bytes.Count(data, []byte("\n"))
	s.held = make(map[string]*Lease, lines)
	s.owner = make(map[netip.Addr]string, lines)
	number := 0
	for good < len(data) {
		end := bytes.IndexByte(data[good:], '\n')
		if end < 0 {
			break
		}
		number++
		r, err := decodeRecord(data[good : good+end])
		if err == nil && (r.Head != nil) != (number == 1) {
			err = errors.New("the head is not the first line")
		}
		good += end + 1
		if err == nil {
			s.apply(r)
			continue
		}
		if corrupt.Bad++; corrupt.Bad == 1 {
			corrupt.Line, corrupt.Err = number, err
		}
	}
	if number == 0 {
		corrupt = CorruptError{Line: 1, Bad: 1, Err: errors.New("no head")}
	}
	if corrupt.Bad > 0 {
		return s, good, &corrupt
	}
	return s, good, nil
}
