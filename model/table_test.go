// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// seeded returns a random source whose seed is printed, so that a failure can be repeated.
func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// Peek finds what Get finds, or something of another key in the same place.
func TestPeek(t *testing.T) {
	r := seeded(t)
	for _, n := range []int{0, 1, 1000, 50_000} {
		var e editor[int, int]
		at := map[Place][]int{}
		for range n {
			k := r.Int()
			e.set(k, k)
			at[PlaceOf(k)] = append(at[PlaceOf(k)], k)
		}
		table := e.freeze()
		keys := []int{-1, -2, -3}
		for k := range table.All() {
			keys = append(keys, k)
		}
		places, out := make([]Place, len(keys)), make([]int, len(keys))
		for i, k := range keys {
			places[i], out[i] = PlaceOf(k), 7
		}
		table.Peek(places, out)
		for i, k := range keys {
			want := at[places[i]]
			if _, ok := table.Get(k); ok != slices.Contains(want, k) || len(want) == 0 && out[i] != 0 || len(want) > 0 && !slices.Contains(want, out[i]) {
				t.Fatalf("among %d: %d of key %d, want one of %d", n, out[i], k, want)
			}
		}
	}
}

func TestTableAgainstMap(t *testing.T) {
	r := seeded(t)
	var e editor[int, int]
	want := map[int]int{}
	type frozen struct {
		table Table[int, int]
		want  map[int]int
	}
	var snaps []frozen
	for range 20_000 {
		k := r.IntN(500)
		switch r.IntN(10) {
		case 0, 1, 2:
			e.delete(k)
			delete(want, k)
		case 3:
			snaps = append(snaps, frozen{e.freeze(), maps.Clone(want)})
		default:
			v := r.IntN(3)
			e.set(k, v)
			want[k] = v
		}
	}
	snaps = append(snaps, frozen{e.freeze(), want}, frozen{Table[int, int]{}, map[int]int{}})
	for i, s := range snaps {
		if got := maps.Collect(s.table.All()); !maps.Equal(got, s.want) || s.table.Len() != len(s.want) {
			t.Fatalf("snapshot %d changed after it was taken: %d entries, want %d", i, s.table.Len(), len(s.want))
		}
		for k := range 500 {
			v, ok := s.table.Get(k)
			if w, has := s.want[k]; ok != has || v != w {
				t.Fatalf("snapshot %d: Get(%d) = %d, %t; want %d, %t", i, k, v, ok, w, has)
			}
		}
	}
	for range 200 {
		a, b := snaps[r.IntN(len(snaps))], snaps[r.IntN(len(snaps))]
		checkDiff(t, a.table, b.table, a.want, b.want)
	}
}

// checkDiff replays a difference and looks whether it leads from one map to the other, naming nothing twice and nothing equal.
func checkDiff(t *testing.T, a, b Table[int, int], from, to map[int]int) {
	t.Helper()
	got, seen := maps.Clone(from), map[int]bool{}
	for k, c := range Diff(a, b) {
		if seen[k] {
			t.Fatalf("key %d named twice", k)
		}
		seen[k] = true
		old, had := from[k]
		if c.HadOld != had || c.Old != old || c.HadOld && c.HasNew && c.Old == c.New {
			t.Fatalf("key %d: change %+v, was %d, %t", k, c, old, had)
		}
		if c.HasNew {
			got[k] = c.New
		} else {
			delete(got, k)
		}
	}
	if !maps.Equal(got, to) {
		t.Fatalf("replayed difference gives %v, want %v", got, to)
	}
}

func TestDiffStopsWhenAsked(t *testing.T) {
	var e editor[int, int]
	for i := range 100 {
		e.set(i, i)
	}
	full := e.freeze()
	for _, d := range []struct{ from, to Table[int, int] }{{Table[int, int]{}, full}, {full, Table[int, int]{}}} {
		n := 0
		for range Diff(d.from, d.to) {
			if n++; n == 3 {
				break
			}
		}
		if n != 3 {
			t.Errorf("yielded %d times, want 3", n)
		}
	}
	n := 0
	for range full.All() {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("All yielded %d times, want 3", n)
	}
}
