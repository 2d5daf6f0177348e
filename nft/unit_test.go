// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// place keeps who stays where they are as far as there is room, takes in who is new and leaves no hole.
func TestPlace(t *testing.T) {
	r := seeded(t)
	pick := func(n int) (out []dest) {
		for _, i := range r.Perm(12)[:n] {
			out = append(out, destOf(netip.AddrPortFrom(addr("10.0.0.%d", i), uint16(1+i%2))))
		}
		return out
	}
	for range 5000 {
		have, names := pick(r.IntN(9)), pick(r.IntN(9))
		if len(have) > 1 && r.IntN(4) == 0 {
			have[0] = have[1] // as a foreign hand may leave it
		}
		var want []model.Backend
		for _, d := range names {
			a := d.addrPort(v4)
			want = append(want, model.Backend{Endpoint: &model.Endpoint{Addr: a.Addr()}, Port: a.Port()})
		}
		was := slices.Clone(have)
		got := place(have, want)
		if !slices.Equal(have, was) {
			t.Fatal("the present endpoints were changed in place")
		}
		if !slices.Equal(slices.SortedFunc(slices.Values(got), compareDests), slices.SortedFunc(slices.Values(names), compareDests)) {
			t.Fatalf("from %v to %v: %v", have, names, got)
		}
		moved := 0
		for i, d := range got {
			if i >= len(have) || have[i] != d {
				moved++
			}
		}
		gone := 0
		for i, d := range have {
			if !slices.Contains(names, d) || slices.Index(have, d) != i {
				gone++
			}
		}
		fresh := len(names) - (len(have) - gone)
		if moved > max(gone, fresh) {
			t.Fatalf("from %v to %v: %d moved, %d gone, %d new", have, names, moved, gone, fresh)
		}
	}
}

func TestDisjointPrefixes(t *testing.T) {
	r := seeded(t)
	for range 500 {
		var all []netip.Prefix
		for range r.IntN(12) {
			all = append(all, netip.PrefixFrom(addr("10.%d.%d.%d", r.IntN(2), r.IntN(3)*64, r.IntN(2)*255), 8+r.IntN(25)))
		}
		out := disjoint(append(all, netip.Prefix{}))
		for i, p := range out {
			if slices.ContainsFunc(out[i+1:], p.Overlaps) {
				t.Fatalf("%v overlap, from %v", out, all)
			}
		}
		for range 50 {
			a := addr("10.%d.%d.%d", r.IntN(3), r.IntN(256), r.IntN(256))
			in := func(list []netip.Prefix) bool {
				return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
			}
			if in(all) != in(out) {
				t.Fatalf("%s: in %v is %t, in %v is %t", a, all, in(all), out, in(out))
			}
		}
	}
}

func TestPrefixBetweenUndoesAfter(t *testing.T) {
	for _, s := range []string{"0.0.0.0/0", "10.0.0.0/8", "10.244.1.0/24", "10.1.2.3/32", "255.255.255.255/32", "128.0.0.0/1",
		"::/0", "fd00::/8", "fd00:244:0:1::/64", "ffff::/16", "::1/128"} {
		p := netip.MustParsePrefix(s)
		if got, ok := prefixBetween(p.Addr(), after(p)); !ok || got != p {
			t.Errorf("%s: %v %t", p, got, ok)
		}
	}
	for _, c := range [][2]string{{"10.0.0.0", "10.0.0.3"}, {"10.0.0.1", "10.0.0.3"}, {"10.0.0.5", "10.0.0.5"}} {
		if got, ok := prefixBetween(netip.MustParseAddr(c[0]), netip.MustParseAddr(c[1])); ok {
			t.Errorf("%v: %v is no prefix", c, got)
		}
	}
}

func TestKeysReadAsWritten(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		for _, f := range families {
			var raw [16]byte
			for i := range raw {
				raw[i] = byte(r.Uint32())
			}
			k := frontend{Addr: f.address(raw[:]), Protocol: model.Protocol(r.Uint32()), Port: uint16(r.Uint32())}
			for _, s := range []*set{sets[services][f.index], sets[nodeports][f.index]} {
				if s.kind == nodeports {
					k.Addr = model.Unspecified(k.Addr)
				}
				key := f.frontendKey(nil, k)
				if got := s.parseFrontend(key); got != k || len(key) != int(s.key.len) || frontendSet(k) != s {
					t.Fatalf("%v: read as %v, %d bytes", k, got, len(key))
				}
			}
			id, index := r.Uint32(), r.Uint32()
			if x, y := parsePair(pairKey(nil, id, index)); x != id || y != index {
				t.Fatalf("%d %d: read as %d %d", id, index, x, y)
			}
			at := netip.AddrPortFrom(f.address(raw[:]), k.Port)
			d := destOf(at)
			data := f.destData(nil, d)
			if f.parseDest(data) != d || d.addrPort(f) != at || len(data) != int(sets[endpoints][f.index].data.len) {
				t.Fatalf("%v: read as %v, %d bytes", d, f.parseDest(data), len(data))
			}
		}
	}
}

// The number of messages and the numbers of the acknowledgements have to agree, whatever is in the batch.
func TestBatchIsWellFormed(t *testing.T) {
	b := newBatch()
	addTable(b, Table, 0, tableComment())
	addProgram(b)
	var many message
	for i := range 5000 {
		element(&many, pairKey(nil, 1<<lowBits, uint32(i)), make([]byte, 8), false)
	}
	addElements(b, Table, sets[endpoints][0], unix.NFT_MSG_NEWSETELEM, many.buf)
	buf := b.seal(7)
	seq, elements := uint32(7), -2*(len(v4.fixedWays(ways))+len(v4.fixedWays(ends)))
	for len(buf) > 0 {
		size := int(binary.NativeEndian.Uint32(buf))
		if got := binary.NativeEndian.Uint32(buf[8:]); got != seq {
			t.Fatalf("message %d has number %d", seq, got)
		}
		if size > maxMessage+1024 {
			t.Errorf("message %d has %d bytes", seq, size)
		}
		for range attributes(attribute(buf[headerLen:size], unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
			elements++
		}
		last := len(buf) == size+headerLen
		if ack := binary.NativeEndian.Uint16(buf[6:])&unix.NLM_F_ACK != 0; ack != last {
			t.Errorf("message %d: acknowledgement asked for: %t", seq, ack)
		}
		buf, seq = buf[size:], seq+1
	}
	if elements != 5000 {
		t.Errorf("%d elements, want 5000", elements)
	}
}

func FuzzAttributes(f *testing.F) {
	var m message
	element(&m, []byte("key!"), []byte("value"), true)
	f.Add(m.buf)
	f.Add([]byte{3, 0, 1, 0})
	f.Add([]byte{255, 255, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		for _, val := range attributes(data) {
			total += len(val) + 4
		}
		if total > len(data) {
			t.Errorf("%d bytes of attributes in %d", total, len(data))
		}
		attribute(data, 1, 1, 1)
		commentOf(data)
		v4.parseFlow(data)
		_ = parseElements(sets[endpoints][0], data, func(key, val []byte, _ bool) { parsePair(key) })
		_ = parseElements(sets[sources][1], data, func(key, val []byte, _ bool) { v6.address(key[4:]) })
	})
}

func TestErrorsSpeak(t *testing.T) {
	const text = "no such element"
	data := binary.NativeEndian.AppendUint32(nil, uint32(0xffffffff&-int64(unix.ENOENT)))
	data = append(data, make([]byte, unix.NLMSG_HDRLEN)...)
	var m message
	m.putString(errAttrMessage, text)
	err := reply{flags: ackCapped | ackHasMessage, data: append(data, m.buf...)}.failure()
	if !errors.Is(err, unix.ENOENT) || !bytes.Contains([]byte(err.Error()), []byte(text)) {
		t.Errorf("%v", err)
	}
	if err := (reply{data: make([]byte, 20)}).failure(); err != nil {
		t.Errorf("an acknowledgement reads as %v", err)
	}
	if err := (reply{}).failure(); err == nil {
		t.Error("an empty answer reads as an acknowledgement")
	}
}

// At whatever point the talk with the kernel breaks, the next Apply puts everything right.
func TestBrokenTalkIsMended(t *testing.T) {
	r := seeded(t)
	w := newWorld(r)
	for range 30 {
		w.change()
	}
	from := w.Build()
	for range 15 {
		w.change()
	}
	to := w.Build()
	want := stateOf(to)
	for _, broken := range []struct {
		what     string
		sendOnly bool
		do       func(sending []byte) error
	}{
		{"the call fails", false, func([]byte) error { return syscall.ENOBUFS }},
		{"a message is spoilt", true, spoil},
	} {
		// A target that knows the table, one that finds it, and one that finds none.
		for _, start := range []string{"known", "found", "none"} {
			ns := newNS(t)
			at, stride := 0, 1
			if start == "found" { // there are many more steps, and most are alike
				stride = 4
				at = r.IntN(stride)
			}
			for fired := true; fired; at += stride {
				target := newTarget(t, ns)
				if start != "none" {
					apply(t, target, from)
				} else if err := Cleanup(Options{NetNS: ns}); err != nil {
					t.Fatal(err)
				}
				if start == "found" {
					target.Close()
				}
				if err := target.connect(); err != nil {
					t.Fatal(err)
				}
				step := 0
				fired = false
				target.conn.hook = func(sending []byte) error {
					if broken.sendOnly && sending == nil {
						return nil
					}
					if step++; step-1 == at {
						fired = true
						return broken.do(sending)
					}
					return nil
				}
				_ = target.Apply(t.Context(), to)
				target.conn.hook = nil
				apply(t, target, to)
				if got := dump(t, ns); got != want {
					t.Fatalf("%s at step %d, table %s:\n%s", broken.what, at, start, differenceOf(got, want))
				}
				target.Close()
			}
		}
	}
}

// spoil makes the second message of a transaction one that the kernel does not know, or a single request likewise.
func spoil(sending []byte) error {
	at := 0
	if first := int(binary.NativeEndian.Uint32(sending)); first < len(sending) {
		at = first
	}
	sending[at+4] = 0x7f
	return nil
}
