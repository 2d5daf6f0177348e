// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func lease(id string, addrs ...string) *Lease {
	l := &Lease{ID: id, ContainerID: "c-" + id, IfName: "eth0", PodName: "pod " + id, AllocatedAt: noon}
	for _, a := range addrs {
		l.Addrs = append(l.Addrs, netip.MustParseAddr(a))
	}
	return l
}

// sample is a file with every kind of line.
func sample() []record {
	return []record{
		{Head: &head{version, "boot-1"}},
		{Freed: &freed{[]netip.Addr{netip.MustParseAddr("10.0.0.9")}, noon}},
		{Hold: lease("a", "10.0.0.2", "fd00::2")},
		{Hold: lease("b", "10.0.0.3", "fd00::3")},
		{Free: &free{"a", noon.Add(time.Minute)}},
		{Hold: lease("c", "10.0.0.2", "fd00::4")},
	}
}

func encodeAll(records []record) (out []byte) {
	for _, r := range records {
		out = append(out, encodeRecord(r)...)
	}
	return out
}

func newState(boot string) *state {
	return &state{boot: boot, held: map[string]*Lease{}, uses: map[netip.Addr]use{}}
}

// dump is the state as text, without the count of lines.
func dump(s *state) string {
	text := "boot " + s.boot + "\n"
	for _, l := range s.leases() {
		text += fmt.Sprintf("%+v\n", l)
	}
	return text + fmt.Sprint("freed ", freedOf(s))
}

func TestDecode(t *testing.T) {
	s, good, err := decode(encodeAll(sample()))
	if err != nil || good != len(encodeAll(sample())) {
		t.Fatalf("%d, %v", good, err)
	}
	if got := s.leases(); len(got) != 2 || !reflect.DeepEqual(got[0], *lease("c", "10.0.0.2", "fd00::4")) || !reflect.DeepEqual(got[1], *lease("b", "10.0.0.3", "fd00::3")) {
		t.Errorf("leases %+v", got)
	}
	if got := fmt.Sprint(freedOf(s)); got != "[10.0.0.9 fd00::2]" {
		t.Errorf("freed %s", got)
	}
	again, _, err := decode(s.encode())
	if err != nil || dump(again) != dump(s) {
		t.Errorf("encoded and decoded: %s\nwant %s\n%v", dump(again), dump(s), err)
	}
}

// TestDecodeCut cuts a file at every byte, as a writer does that dies: what was
// written completely counts, and nothing else.
func TestDecodeCut(t *testing.T) {
	records := sample()
	whole := encodeAll(records)
	for cut := range len(whole) + 1 {
		lines := bytes.Count(whole[:cut], []byte("\n"))
		got, good, err := decode(whole[:cut])
		want := newState("")
		for _, r := range records[:lines] {
			want.apply(r)
		}
		if (err != nil) != (lines == 0) {
			t.Errorf("cut at %d: %v", cut, err)
		}
		if dump(got) != dump(want) || good != len(encodeAll(records[:lines])) {
			t.Errorf("cut at %d: %s\nwant %s", cut, dump(got), dump(want))
		}
	}
}

// TestDecodeFlip changes every byte: exactly one line is lost (two when it was
// the newline between them), and it is reported.
func TestDecodeFlip(t *testing.T) {
	records := sample()
	whole := encodeAll(records)
	for at := range whole {
		broken := bytes.Clone(whole)
		broken[at] ^= 0x20
		line := bytes.Count(whole[:at], []byte("\n"))
		s, _, err := decode(broken)
		var corrupt *CorruptError
		switch {
		case at == len(whole)-1: // the last newline: as if cut
			if err != nil || len(s.held) != 1 {
				t.Errorf("last newline: %v", err)
			}
		case !errors.As(err, &corrupt):
			// the checksum is written in lower case and read in both
			if whole[at]|0x20 < 'a' || whole[at]|0x20 > 'f' || at > 0 && !isSum(whole, at) {
				t.Errorf("byte %d (%q): no error", at, whole[at])
			}
		case corrupt.Line != line+1 || corrupt.Bad > 2:
			t.Errorf("byte %d: %+v, want line %d", at, corrupt, line+1)
		}
	}
}

func isSum(data []byte, at int) bool {
	start := bytes.LastIndexByte(data[:at], '\n') + 1
	return at-start < 8
}

func TestDecodeRecord(t *testing.T) {
	good := encodeRecord(sample()[2])
	for _, c := range []struct {
		name string
		line string
		want string
	}{
		{"empty", "", "no checksum"},
		{"short", "1234", "no checksum"},
		{"no space", "12345678", "no checksum"},
		{"long sum", "012345678 {}", "no checksum"},
		{"sign", "+1234567 {}", "no checksum"},
		{"wrong sum", "00000000" + string(good[8:]), "checksum is"},
		{"no kind", sum(""), `kind ""`},
		{"other kind", sum("held\tx"), `kind "held"`},
		{"other version", sum("head\t2\tb"), "head of format 2"},
		{"huge version", sum("head\t99999999999999999999\tb"), "out of range"},
		{"no boot", sum("head\t1\t"), `boot ""`},
		{"boot missing", sum("head\t1"), "missing"},
		{"no id", hold("", "10.0.0.1", ""), "lease without id"},
		{"no address", hold("x", "", ""), "unable to parse IP"},
		{"half an address", hold("x", "10.0.0.1,", ""), "unable to parse IP"},
		{"bad address", hold("x", "10.0.0.256", ""), "10.0.0.256"},
		{"zone", hold("x", "fe80::1%eth0", ""), "unusable address"},
		{"mapped", hold("x", "::ffff:10.0.0.1", ""), "unusable address"},
		{"twice", hold("x", "10.0.0.1,10.0.0.1", ""), "address 10.0.0.1 twice"},
		{"huge text", hold("x", "10.0.0.1", strings.Repeat("x", maxText+1)), "text of 4097 bytes"},
		{"one more", sum("free\tx\t2026-01-02T12:00:00Z\tmore"), "1 fields too many"},
		{"too few", sum("free\tx"), "missing"},
		{"no time", sum("free\tx\tnoon"), "noon"},
		{"freed nothing", sum("freed\t\t2026-01-02T12:00:00Z"), "unable to parse IP"},
	} {
		if _, err := new(decoder).decode([]byte(c.line), c.line); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// sum makes a line with a right checksum around any text.
func sum(text string) string { return string(sumLine(text)) }

func hold(id, addrs, netns string) string {
	return sum("hold\t" + id + "\t" + addrs + "\t2026-01-02T12:00:00Z\tc\teth0\t" + netns + "\t7\tns\tpod\tuid")
}

// TestRecordText writes and reads texts with everything in them that means
// something in the file.
func TestRecordText(t *testing.T) {
	for _, text := range []string{"", " ", "\t", "\n", `\`, `\t`, `\\t`, "a\tb\nc\\d", "ü", "\x00\xff", "12345678 x"} {
		want := lease("x"+text, "10.0.0.1")
		want.ContainerID, want.IfName, want.NetNS, want.NetNSID = text, text, text, 1<<63
		want.PodNamespace, want.PodName, want.PodUID = text, text, text
		line := encodeRecord(record{Hold: want})
		if bytes.Count(line, []byte("\n")) != 1 {
			t.Errorf("%q: lines %q", text, line)
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		got, err := new(decoder).decode(line, string(line))
		if err != nil || !reflect.DeepEqual(got.Hold, want) {
			t.Errorf("%q: %+v, %v", text, got.Hold, err)
		}
	}
}

// TestApplyContradiction lets a later lease win over an earlier one with the same
// address, and forgets the other address of that one.
func TestApplyContradiction(t *testing.T) {
	s := newState("b")
	s.apply(record{Hold: lease("a", "10.0.0.2", "fd00::2")})
	s.apply(record{Hold: lease("b", "10.0.0.2", "fd00::3")})
	s.apply(record{Hold: lease("b", "10.0.0.4", "fd00::3")})
	s.apply(record{Free: &free{"nobody", noon}})
	s.apply(record{Freed: &freed{[]netip.Addr{netip.MustParseAddr("fd00::3")}, noon}}) // is held
	if got := fmt.Sprint(s.held["b"].Addrs); got != "[10.0.0.4 fd00::3]" || len(s.held) != 1 || len(s.uses) != 4 {
		t.Errorf("held %v, used %v", s.held, s.uses)
	}
	if got := fmt.Sprint(freedOf(s)); got != "[fd00::2 10.0.0.2]" {
		t.Errorf("freed %s", got)
	}
}

// TestEncodeForgets bounds what a rewritten file remembers of the past.
func TestEncodeForgets(t *testing.T) {
	s := newState("b")
	addr := netip.MustParseAddr("fd00::2")
	for range 3 * keepFreed {
		s.mark([]netip.Addr{addr}, noon)
		addr = addr.Next()
	}
	again, _, err := decode(s.encode())
	if err != nil || len(freedOf(again)) != keepFreed {
		t.Fatalf("%d freed, %v", len(freedOf(again)), err)
	}
	if before := freedOf(s); freedOf(again)[0] != before[len(before)-keepFreed] {
		t.Error("forgot others than the oldest")
	}
}

// freedOf are the addresses that are free, longest ago first.
func freedOf(s *state) (addrs []netip.Addr) {
	for m := range s.freedInOrder {
		addrs = append(addrs, m.addr)
	}
	return addrs
}

// FuzzDecode wants no panic, and from whatever is read a state that holds: no
// address has two holders, and writing and reading it gives the same state.
func FuzzDecode(f *testing.F) {
	f.Add(encodeAll(sample()))
	f.Add([]byte(nil))
	f.Add([]byte("\n\n\n"))
	f.Add(encodeAll(sample()[2:]))
	f.Fuzz(func(t *testing.T, data []byte) {
		checkDecode(t, data)
		checkDecode(t, resum(data)) // past the checksums
	})
}

// resum puts right checksums on every line.
func resum(data []byte) (out []byte) {
	for line := range bytes.Lines(data) {
		if text, ok := bytes.CutSuffix(line, []byte("\n")); ok && len(text) > 9 {
			out = append(append(out, sumLine(string(text[9:]))...), '\n')
		}
	}
	return out
}

func checkDecode(t *testing.T, data []byte) {
	s, good, err := decode(data)
	if good > len(data) || good < len(data) && bytes.IndexByte(data[good:], '\n') >= 0 {
		t.Fatalf("good %d of %d", good, len(data))
	}
	holders := map[netip.Addr]string{}
	for id, l := range s.held {
		if id != l.ID || l.check() != nil {
			t.Fatalf("lease %s: %+v", id, l)
		}
		for _, addr := range l.Addrs {
			if other, ok := holders[addr]; ok || s.uses[addr].by != l {
				t.Fatalf("%s held by %s and %s, used %+v", addr, id, other, s.uses[addr])
			}
			holders[addr] = id
		}
	}
	freed := freedOf(s)
	for i, addr := range freed {
		if holders[addr] != "" || slices.Contains(freed[:i], addr) {
			t.Fatalf("%s is free and held by %q, or free twice: %v", addr, holders[addr], freed)
		}
	}
	if len(holders)+len(freed) != len(s.uses) {
		t.Fatalf("uses %v, holders %v, freed %v", s.uses, holders, freed)
	}
	if err != nil || len(freed) > keepFreed {
		return
	}
	again, _, err := decode(s.encode())
	if err != nil || len(again.held) != len(s.held) || fmt.Sprint(freedOf(again)) != fmt.Sprint(freedOf(s)) {
		t.Fatalf("written and read: %v\n%s\nwant %s", err, dump(again), dump(s))
	}
}
