// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func TestFirstFree(t *testing.T) {
	for _, c := range []struct {
		r     string
		bits  int
		taken []string
		want  string // empty: none left
	}{
		{"10.244.0.0/16", 24, nil, "10.244.0.0/24"},
		{"10.244.0.0/16", 24, []string{"10.244.0.0/24"}, "10.244.1.0/24"},
		{"10.244.0.0/16", 24, []string{"10.244.1.0/24"}, "10.244.0.0/24"},
		{"10.244.0.0/16", 24, []string{"10.244.2.0/24", "10.244.0.0/24", "10.244.1.0/24"}, "10.244.3.0/24"},
		{"10.244.0.0/16", 24, []string{"10.244.0.0/23"}, "10.244.2.0/24"},                   // a bigger one
		{"10.244.0.0/16", 24, []string{"10.244.0.64/26", "10.244.1.7/32"}, "10.244.2.0/24"}, // smaller ones
		{"10.244.0.0/16", 24, []string{"10.244.0.0/28", "10.244.0.0/22"}, "10.244.4.0/24"},  // one in the other
		{"10.244.0.0/16", 24, []string{"10.0.0.0/24", "192.168.0.0/16"}, "10.244.0.0/24"},   // elsewhere
		{"10.244.0.0/16", 24, []string{"10.0.0.0/8"}, ""},
		{"10.244.0.0/16", 16, nil, "10.244.0.0/16"},
		{"10.244.0.0/16", 16, []string{"10.244.9.0/24"}, ""},
		{"10.244.0.0/23", 24, []string{"10.244.0.0/24", "10.244.1.0/24"}, ""},
		{"255.255.255.0/24", 25, []string{"255.255.255.0/25", "255.255.255.128/25"}, ""},
		{"10.244.3.7/16", 24, nil, "10.244.0.0/24"}, // written with host bits
		{"fd00:244::/48", 64, nil, "fd00:244::/64"},
		{"fd00:244::/48", 64, []string{"fd00:244::/64", "fd00:244:0:1::/64"}, "fd00:244:0:2::/64"},
		{"fd00:244::/48", 64, []string{"fd00:244::/56"}, "fd00:244:0:100::/64"},
		{"fd00:244::/48", 64, []string{"10.244.0.0/24"}, "fd00:244::/64"},
		{"ffff:ffff:ffff:ffff::/64", 64, []string{"ffff:ffff:ffff:ffff::/64"}, ""},
		{"0.0.0.0/0", 24, []string{"0.0.0.0/0"}, ""},
	} {
		got, ok := firstFree(netip.MustParsePrefix(c.r), c.bits, prefixes(c.taken...))
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("/%d of %s without %v: got %v %v, want %q", c.bits, c.r, c.taken, got, ok, c.want)
		}
	}
}

// TestPodCIDRsNeverOverlap gives and takes at random until ranges are full and free again.
func TestPodCIDRsNeverOverlap(t *testing.T) {
	rnd := newRand(t)
	ranges := prefixes("10.244.0.0/20", "fd00:244::/60")
	mask := (&Options{NodeMask4: 24, NodeMask6: 64}).nodeMask
	var taken [][]netip.Prefix
	full := 0
	for range 2000 {
		if len(taken) > 0 && rnd.IntN(3) == 0 {
			i := rnd.IntN(len(taken))
			taken = slices.Delete(taken, i, i+1)
			continue
		}
		flat := slices.Concat(taken...)
		got, err := choosePodCIDRs(ranges, mask, flat)
		if len(taken) == 16 {
			if err == nil {
				t.Fatalf("got %v although all 16 are taken", got)
			}
			full++
			taken = taken[:rnd.IntN(16)]
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range got {
			if !ranges[i].Contains(p.Addr()) || p.Bits() != mask(p) {
				t.Fatalf("%v is not a part of %v", p, ranges[i])
			}
			for _, other := range flat {
				if other.Overlaps(p) {
					t.Fatalf("%v overlaps %v", p, other)
				}
			}
		}
		taken = append(taken, got)
	}
	if full == 0 {
		t.Error("never filled up")
	}
}

func TestPodPrefixes(t *testing.T) {
	n := testNode("n", func(n *corev1.Node) {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = "10.244.1.0/24", []string{"10.244.1.0/24", "fd00::/64", "nonsense"}
	})
	if got, want := podPrefixes(n), prefixes("10.244.1.0/24", "fd00::/64"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
