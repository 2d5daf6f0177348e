// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// version is that of the file format, in its first line.
const version = 1

// keepFreed is how many of the addresses freed last a rewritten file remembers:
// enough for every address of a /24, and as many of a /64 beside it. Every ADD and
// DEL reads them all.
const keepFreed = 512

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
	held  map[string]*Lease  // by ID
	uses  map[netip.Addr]use // of every address that is held, or was once
	freed []mark             // in the order of freeing; of an address only the place in uses counts
	lines int
}

// use is what an address is in: a lease, or, without one, the place in freed that tells when it was freed last.
type use struct {
	by    *Lease
	place int
}

type mark struct {
	addr netip.Addr
	at   time.Time
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
			if by := s.uses[addr].by; by != nil {
				s.release(by.ID, r.Hold.AllocatedAt)
			}
		}
		s.held[r.Hold.ID] = r.Hold
		for _, addr := range r.Hold.Addrs {
			s.uses[addr] = use{by: r.Hold}
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
		delete(s.uses, addr)
	}
	s.mark(lease.Addrs, at)
}

func (s *state) mark(addrs []netip.Addr, at time.Time) {
	for _, addr := range addrs {
		if s.uses[addr].by == nil {
			s.uses[addr] = use{place: len(s.freed)}
			s.freed = append(s.freed, mark{addr, at})
		}
	}
}

// adopt takes in a lease found in use. One that is in the state with at least the
// same addresses stays as it is, since the state knows more about it.
func (s *state) adopt(lease Lease, at time.Time) {
	known := true
	for _, addr := range lease.Addrs {
		by := s.uses[addr].by
		known = known && by != nil && by.ID == lease.ID
	}
	if !known {
		lease.AllocatedAt = at
		s.apply(record{Hold: &lease})
	}
}

// freedInOrder is the addresses that were held once and are not now, longest ago first.
func (s *state) freedInOrder(yield func(mark) bool) {
	for i, m := range s.freed {
		if u, ok := s.uses[m.addr]; ok && u.by == nil && u.place == i && !yield(m) {
			return
		}
	}
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
	used := func(addr netip.Addr) bool { _, ok := s.uses[addr]; return ok }
	freed := func(yield func(netip.Addr) bool) {
		for m := range s.freedInOrder {
			if !yield(m.addr) {
				return
			}
		}
	}
	addrs := make([]netip.Addr, len(ranges))
	for i, r := range ranges {
		addr, ok := Pick(r, used, freed)
		if !ok {
			full := &FullError{Range: r}
			for addr, u := range s.uses {
				if u.by != nil && r.Contains(addr) {
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
	marks := slices.Collect(s.freedInOrder)
	for part := range slices.Chunk(marks[max(0, len(marks)-keepFreed):], freedPerLine) {
		addrs := make([]netip.Addr, len(part))
		for i, m := range part {
			addrs[i] = m.addr
		}
		out = append(out, encodeRecord(record{Freed: &freed{addrs, part[len(part)-1].at}})...)
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

// decoder takes a file apart, line by line. What it makes of the lines lies side by side, in room for all of them: a CNI plugin is a new process, for which
// every further page of memory is one that the kernel has to give it.
type decoder struct {
	leases []Lease
	addrs  []netip.Addr

	// Of the line:
	left string
	more bool  // there is a field left, be it an empty one
	err  error // the first thing that is wrong
}

// decode is the inverse of encodeRecord, for a line without its newline, and the same as a string.
func (d *decoder) decode(line []byte, text string) (record, error) {
	sum, rest, ok := strings.Cut(text, " ")
	want, err := strconv.ParseUint(sum, 16, 32)
	if !ok || len(sum) != 8 || err != nil {
		return record{}, errors.New("no checksum")
	}
	if got := crc32.ChecksumIEEE(line[len(line)-len(rest):]); got != uint32(want) {
		return record{}, fmt.Errorf("checksum is %08x, want %08x", got, want)
	}
	d.left, d.more, d.err = rest, true, nil
	r := d.record()
	if d.err == nil && d.more {
		d.err = fmt.Errorf("%d fields too many", strings.Count(d.left, "\t")+1)
	}
	return r, d.err
}

func (d *decoder) record() (r record) {
	switch kind := d.text(); kind {
	case "head":
		r.Head = &head{Version: int(d.number()), Boot: d.text()}
		if r.Head.Version != version || r.Head.Boot == "" {
			d.fail(fmt.Errorf("head of format %d and boot %q, want format %d", r.Head.Version, r.Head.Boot, version))
		}
	case "hold":
		d.leases = append(d.leases, Lease{ID: d.text(), Addrs: d.addresses(), AllocatedAt: d.time(), ContainerID: d.text(), IfName: d.text(),
			NetNS: d.text(), NetNSID: d.number(), PodNamespace: d.text(), PodName: d.text(), PodUID: d.text()})
		r.Hold = &d.leases[len(d.leases)-1]
		d.fail(r.Hold.check())
	case "free":
		r.Free = &free{ID: d.text(), At: d.time()}
	case "freed":
		r.Freed = &freed{Addrs: d.addresses(), At: d.time()}
		d.fail(checkAddrs(r.Freed.Addrs))
	default:
		d.fail(fmt.Errorf("line of kind %q", kind))
	}
	return r
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *decoder) text() string {
	if !d.more {
		d.fail(errors.New("fields are missing"))
		return ""
	}
	text, left, more := strings.Cut(d.left, "\t")
	d.left, d.more = left, more
	if strings.IndexByte(text, '\\') >= 0 {
		text = unescaper.Replace(text)
	}
	return text
}

func (d *decoder) number() uint64 {
	n, err := strconv.ParseUint(d.text(), 10, 64)
	d.fail(err)
	return n
}

func (d *decoder) time() time.Time {
	at, err := time.Parse(time.RFC3339Nano, d.text())
	d.fail(err)
	return at.UTC()
}

func (d *decoder) addresses() []netip.Addr {
	first := len(d.addrs)
	for part := range strings.SplitSeq(d.text(), ",") {
		addr, err := netip.ParseAddr(part)
		d.fail(err)
		d.addrs = append(d.addrs, addr)
	}
	return d.addrs[first:len(d.addrs):len(d.addrs)]
}

// decode reads a file. good is the length of the part that counts: a last line
// without its newline was being written when the writer died, and is left out.
// With damage anywhere else the error is a *CorruptError without path, and the
// state is made of the good lines.
func decode(data []byte) (s *state, good int, err error) {
	var corrupt CorruptError
	text := string(data) // of which all texts of all lines are parts
	lines, holds, commas := strings.Count(text, "\n"), strings.Count(text, " hold\t"), strings.Count(text, ",")
	d := decoder{leases: make([]Lease, 0, holds), addrs: make([]netip.Addr, 0, lines+commas)}
	s = &state{held: make(map[string]*Lease, holds), uses: make(map[netip.Addr]use, holds+commas), freed: make([]mark, 0, lines+commas)}
	number := 0
	for good < len(data) {
		end := bytes.IndexByte(data[good:], '\n')
		if end < 0 {
			break
		}
		number++
		r, err := d.decode(data[good:good+end], text[good:good+end])
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
