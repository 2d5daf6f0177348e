// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// looks runs a loop with a pace of 15 ms in a world with its own clock, changes the key at these times and
// returns when it was looked at, in milliseconds, without those looks that were too early to see anything.
func looks(t *testing.T, changes []int, busy time.Duration, stale func() bool) (at []int) {
	t.Helper()
	var start time.Time
	look := func(context.Context, string) (time.Duration, error) {
		now := int(time.Since(start).Milliseconds())
		time.Sleep(busy)
		if stale() {
			return 0, errStale
		}
		at = append(at, now)
		return 0, nil
	}
	runLoop(t, 1, look, func(l *loop[string], _ *syncBuffer) {
		p := newPace(15*time.Millisecond, l)
		start = time.Now()
		for _, ms := range changes {
			time.Sleep(time.Until(start.Add(time.Duration(ms) * time.Millisecond)))
			p.changed("key")
		}
		time.Sleep(time.Second)
		synctest.Wait()
	})
	return at
}

func never() bool { return false }

func TestPace(t *testing.T) {
	for _, row := range []struct {
		name          string
		changes, want []int
	}{
		{"one", []int{0}, []int{0}},
		{"quiet between", []int{0, 15, 100}, []int{0, 15, 100}},
		{"the second waits", []int{0, 1}, []int{0, 15}},
		{"and the others with it", []int{0, 1, 2, 3, 14}, []int{0, 15}},
		{"a series", []int{0, 10, 20, 30, 40, 50}, []int{0, 15, 30, 45, 60}},
		{"quiet after a series", []int{0, 1, 31}, []int{0, 15, 31}},
		{"not yet quiet after a series", []int{0, 1, 20}, []int{0, 15, 30}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := looks(t, row.changes, 0, never); !slices.Equal(got, row.want) {
				t.Errorf("got %v, want %v", got, row.want)
			}
		})
	}
}

// TestPaceAnything: whatever the changes, each is looked at no earlier than it happens and no later than an
// interval after, and looks are an interval apart.
func TestPaceAnything(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		var changes []int
		for ms := 0; len(changes) < 50; ms += 1 + random.IntN(1+random.IntN(40)) {
			changes = append(changes, ms)
		}
		got := looks(t, changes, 0, never)
		for _, ms := range changes {
			if !slices.ContainsFunc(got, func(at int) bool { return at >= ms && at <= ms+15 }) {
				t.Fatalf("the change at %d was not looked at in time\nchanges %v\nlooks %v", ms, changes, got)
			}
		}
		for i := 1; i < len(got); i++ {
			if got[i]-got[i-1] < 15 {
				t.Fatalf("looked at %d and %d\nchanges %v", got[i-1], got[i], changes)
			}
		}
	}
}

// TestPaceSlow: a look that takes longer than the interval loses no change.
func TestPaceSlow(t *testing.T) {
	changes := []int{0, 5, 20, 39, 41, 90}
	got := looks(t, changes, 40*time.Millisecond, never)
	if last := got[len(got)-1]; last < 90 {
		t.Errorf("looked last at %d: %v", last, got)
	}
	for _, ms := range changes {
		if !slices.ContainsFunc(got, func(at int) bool { return at >= ms && at <= ms+15+40 }) {
			t.Errorf("the change at %d was not looked at: %v", ms, got)
		}
	}
}

// TestPaceRetry: a retry that comes between takes no look's place. The change at 10 is to be seen at 15.
func TestPaceRetry(t *testing.T) {
	first := true
	stale := func() bool { was := first; first = false; return was }
	if got := looks(t, []int{0, 1, 10}, 0, stale); !slices.Equal(got, []int{2, 15}) {
		t.Errorf("looked at %v", got)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		var changes []int
		for ms := 0; len(changes) < 50; ms += 1 + random.IntN(20) {
			changes = append(changes, ms)
		}
		got := looks(t, changes, time.Duration(random.IntN(5))*time.Millisecond, func() bool { return random.IntN(3) == 0 })
		if last := changes[len(changes)-1]; !slices.ContainsFunc(got, func(at int) bool { return at >= last }) {
			t.Fatalf("the change at %d was never looked at\nchanges %v\nlooks %v", last, changes, got)
		}
	}
}

// TestPaceForgets: a key that is gone leaves nothing.
func TestPaceForgets(t *testing.T) {
	var added []string
	p := &pace[string]{interval: time.Hour, add: func(k string) { added = append(added, k) }, at: map[string]time.Time{}}
	for range 3 {
		for i := range 100 {
			p.changed(fmt.Sprint(i))
			p.forget(fmt.Sprint(i))
		}
	}
	if len(p.at) != 0 || len(added) != 300 {
		t.Errorf("%d keys are left, %d were added at once", len(p.at), len(added))
	}
}
