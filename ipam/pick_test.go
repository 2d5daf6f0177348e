// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestBounds(t *testing.T) {
	for _, c := range []struct {
		r, first, last string
		size           uint64
	}{
		{"10.244.1.0/24", "10.244.1.2", "10.244.1.254", 253},
		{"10.244.1.77/24", "10.244.1.2", "10.244.1.254", 253},
		{"10.244.0.0/16", "10.244.0.2", "10.244.255.254", 65533},
		{"0.0.0.0/0", "0.0.0.2", "255.255.255.254", 1<<32 - 3},
		{"10.0.0.4/30", "10.0.0.6", "10.0.0.6", 1},
		{"10.0.0.0/31", "", "", 0},
		{"10.0.0.0/32", "", "", 0},
		{"fd00::/126", "fd00::2", "fd00::3", 2},
		{"fd00:244:0:1::/64", "fd00:244:0:1::2", "fd00:244:0:1:ffff:ffff:ffff:ffff", math.MaxUint64},
		{"fd00::/96", "fd00::2", "fd00::ffff:ffff", 1<<32 - 2},
		{"::/0", "::2", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", math.MaxUint64},
		{"fd00::/127", "", "", 0},
	} {
		first, last, err := Bounds(netip.MustParsePrefix(c.r))
		if c.first == "" {
			if err == nil {
				t.Errorf("%s: no error", c.r)
			}
		} else if err != nil || first.String() != c.first || last.String() != c.last {
			t.Errorf("%s: %s to %s, %v", c.r, first, last, err)
		}
		if got := Size(netip.MustParsePrefix(c.r)); got != c.size {
			t.Errorf("%s: size %d", c.r, got)
		}
	}
	if _, _, err := Bounds(netip.Prefix{}); err == nil {
		t.Error("zero prefix: no error")
	}
}

func TestPick(t *testing.T) {
	r := netip.MustParsePrefix("10.0.0.0/29") // .2 to .6
	addrs := func(last ...byte) (list []netip.Addr) {
		for _, l := range last {
			list = append(list, netip.AddrFrom4([4]byte{10, 0, 0, l}))
		}
		return list
	}
	for _, c := range []struct {
		name        string
		held, freed []netip.Addr
		want        string
	}{
		{"first", nil, nil, "10.0.0.2"},
		{"next", addrs(2), nil, "10.0.0.3"},
		{"gap", addrs(2, 4), nil, "10.0.0.3"},
		{"never used before freed", addrs(3), addrs(2), "10.0.0.4"},
		{"longest freed", addrs(2, 3), addrs(6, 4, 5), "10.0.0.6"},
		{"full", addrs(2, 3, 4, 5, 6), nil, ""},
		{"full, freed elsewhere", addrs(2, 3, 4, 5, 6), append(addrs(0, 1, 7, 9), netip.MustParseAddr("fd00::5")), ""},
		{"freed elsewhere counts for nothing", nil, append(addrs(0, 1, 7, 9), netip.MustParseAddr("fd00::5")), "10.0.0.2"},
	} {
		got, ok := Pick(r, func(a netip.Addr) bool { return slices.Contains(c.held, a) || slices.Contains(c.freed, a) }, slices.Values(c.freed))
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%s: %s %v, want %s", c.name, got, ok, c.want)
		}
	}
	if _, ok := Pick(netip.MustParsePrefix("10.0.0.0/32"), func(netip.Addr) bool { return false }, slices.Values[[]netip.Addr](nil)); ok {
		t.Error("picked from a range without addresses")
	}
}

// queue is the naive model: all addresses in a line, the freed ones go to its
// end.
type queue []netip.Addr

func newQueue(r netip.Prefix) (q queue) {
	first, last, _ := Bounds(r)
	for a := first; ; a = a.Next() {
		if q = append(q, a); a == last {
			return q
		}
	}
}

// TestPickRandom compares with the model over random holding and freeing in
// small ranges of both families.
func TestPickRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, text := range []string{"10.0.0.0/29", "10.0.0.0/26", "fd00::/125", "10.0.0.0/30", "fd00::ff00/123"} {
		r := netip.MustParsePrefix(text)
		model := newQueue(r)
		var held, freed []netip.Addr
		for range 3000 {
			if random.IntN(2) == 0 && len(held) > 0 {
				i := random.IntN(len(held))
				freed = append(freed, held[i])
				model = append(model, held[i])
				held = slices.Delete(held, i, i+1)
				continue
			}
			got, ok := Pick(r, func(a netip.Addr) bool { return slices.Contains(held, a) || slices.Contains(freed, a) }, slices.Values(freed))
			if ok != (len(model) > 0) || ok && got != model[0] {
				t.Fatalf("%s: %s %v, want first of %v", r, got, ok, model)
			}
			if ok {
				model, held = model[1:], append(held, got)
				freed = slices.DeleteFunc(freed, func(a netip.Addr) bool { return a == got })
			}
		}
	}
}
