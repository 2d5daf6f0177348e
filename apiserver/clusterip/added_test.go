// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// growing is an allocator whose ranges can be added to.
func growing(t *testing.T, m *memory, ranges ...string) (a *Allocator, add func(...string), reads *int) {
	t.Helper()
	a = newAllocator(t, m, prefixes(ranges...)...)
	var mu sync.Mutex
	var added []netip.Prefix
	reads = new(int)
	a.More = func(context.Context) ([]netip.Prefix, error) {
		mu.Lock()
		defer mu.Unlock()
		*reads++
		return added, nil
	}
	return a, func(list ...string) {
		mu.Lock()
		defer mu.Unlock()
		added = prefixes(list...)
	}, reads
}

// fill takes addresses until there are none and says how many there were.
func fill(t *testing.T, a *Allocator, spec string) (n int, last error) {
	t.Helper()
	for ; n < 1000; n++ {
		_, err := a.Allocate(t.Context(), service(t, fmt.Sprintf("shop/f%d-%p", n, &n), spec), false)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// TestAddedRanges: the first range is used up before another one is, those of
// other families are left alone, and all of them give what they have.
func TestAddedRanges(t *testing.T) {
	m := newMemory()
	a, add, reads := growing(t, m, "10.96.0.0/29")
	for i := range 3 {
		if _, err := a.Allocate(t.Context(), service(t, fmt.Sprintf("shop/s%d", i), `{}`), false); err != nil {
			t.Fatal(err)
		}
	}
	if *reads != 0 {
		t.Errorf("further ranges were read %d times while the first had room", *reads)
	}
	if n, err := fill(t, a, `{}`); n != 2 || !strings.HasSuffix(err.Error(), "range is full") || !apierrors.IsInternalError(err) {
		t.Errorf("first range: %d more, then %v", n, err)
	}
	add("fd00:96::/120", "10.97.0.0/31", "10.98.0.0/29", "10.99.0.0/30")
	// A range's first address is its network's, its last for everybody, and
	// the second left to be chosen.
	if n, err := fill(t, a, `{}`); n != 5+1 || !strings.HasSuffix(err.Error(), "range is full") {
		t.Errorf("further ranges: %d, then %v\n%s", n, err, m)
	}
	if strings.Contains(m.String(), "fd00") || strings.Contains(m.String(), "10.97.") {
		t.Errorf("addresses of a range that cannot be used: %s", m)
	}
	add()
	if _, err := a.Allocate(t.Context(), service(t, "shop/late", `{}`), false); err == nil {
		t.Error("a range that is no longer there was used")
	}
}

// TestAddedDualStack: each family has its own further ranges.
func TestAddedDualStack(t *testing.T) {
	m := newMemory()
	a, add, _ := growing(t, m, "10.96.0.0/30", "fd00:96::/126")
	add("10.97.0.0/29", "fd00:97::/125")
	n, err := fill(t, a, `{"ipFamilyPolicy":"RequireDualStack"}`)
	if n != 1+5 || !strings.HasSuffix(err.Error(), "range is full") {
		t.Errorf("%d, then %v\n%s", n, err, m)
	}
	// The family that is not full keeps nothing of those who failed.
	if got := strings.Count(m.String(), "="); got != 2*n {
		t.Errorf("%d locks of %d Services\n%s", got, n, m)
	}
}

func TestChooseAdded(t *testing.T) {
	m := newMemory()
	a, add, _ := growing(t, m, "10.96.0.0/16")
	add("10.97.0.0/24")
	for _, row := range []struct{ ip, err string }{
		{"10.97.0.1", ""},
		{"10.97.0.200", ""},
		{"10.97.0.200", "failed to allocate IP 10.97.0.200: provided IP is already allocated"},
		{"10.97.0.0", "failed to allocate IP 10.97.0.0: the provided network does not match the current range. The range of valid IPs is 10.96.0.0/16"},
		{"10.98.0.1", "failed to allocate IP 10.98.0.1: the provided network does not match the current range. The range of valid IPs is 10.96.0.0/16"},
		{"10.96.0.9", ""},
	} {
		for _, dry := range []bool{true, false} {
			_, err := a.Allocate(t.Context(), service(t, "shop/s", `{"clusterIP":"`+row.ip+`"}`), dry)
			if row.err == "" && err != nil || row.err != "" && (err == nil || !strings.HasSuffix(err.Error(), row.err) || !apierrors.IsInvalid(err)) {
				t.Errorf("%s, dry run %t: got %v, want %s", row.ip, dry, err, row.err)
			}
		}
	}
}

// TestAddedFailure: when the ranges cannot be read, nothing is given of them
// and the reason is told.
func TestAddedFailure(t *testing.T) {
	away := errors.New("storage is away")
	for after := range 2 {
		m := newMemory()
		a := newAllocator(t, m, prefixes("10.96.0.0/30")...)
		reads := 0
		a.More = func(context.Context) ([]netip.Prefix, error) {
			if reads++; reads > after {
				return nil, away
			}
			return prefixes("10.97.0.0/24"), nil
		}
		if _, err := a.Allocate(t.Context(), service(t, "shop/first", `{}`), false); err != nil {
			t.Fatal(err)
		}
		for _, spec := range []string{`{}`, `{"clusterIP":"10.97.0.9"}`} {
			reads = 0
			if _, err := a.Allocate(t.Context(), service(t, "shop/s", spec), false); !errors.Is(err, away) {
				t.Errorf("after %d reads, %s: %v", after, spec, err)
			}
		}
		if got := locksOf(m, "shop/s"); got != "" {
			t.Errorf("left locked: %s", got)
		}
	}
}

// TestRangeTakenAway removes a range while addresses are allocated of it. Who
// takes it away marks it and then looks for locks; whoever has an address
// afterwards must have been seen.
func TestRangeTakenAway(t *testing.T) {
	for round := range 200 {
		m := newMemory()
		a, add, _ := growing(t, m, "10.96.0.0/30")
		add("10.97.0.0/28")
		if _, err := a.Allocate(t.Context(), service(t, "shop/first", `{}`), false); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		var mu sync.Mutex
		var given []string
		for w := range 4 {
			spec := `{}`
			if w == 0 {
				spec = `{"clusterIP":"10.97.0.5"}`
			}
			group.Go(func() {
				s := service(t, fmt.Sprintf("shop/w%d", w), spec)
				if _, err := a.Allocate(context.Background(), s, false); err == nil {
					mu.Lock()
					defer mu.Unlock()
					given = append(given, s.Spec.ClusterIP)
				}
			})
		}
		seen := ""
		group.Go(func() {
			add() // marked
			seen = m.String()
		})
		group.Wait()
		for _, ip := range given {
			if !strings.Contains(seen, ip+"=") {
				t.Fatalf("round %d: %s was given of a range that was thought to be unused:\n%s", round, ip, seen)
			}
		}
	}
}

// TestRepairAdded: an address of an added range is in range.
func TestRepairAdded(t *testing.T) {
	m := newMemory()
	a, add, _ := growing(t, m, "10.96.0.0/16")
	add("10.97.0.0/24")
	findings, err := a.Repair(t.Context(), []corev1.Service{with(t, "shop/a", 1, "10.97.0.9"), with(t, "shop/b", 1, "10.98.0.9")})
	if err != nil {
		t.Fatal(err)
	}
	want := "missing 10.97.0.9 shop/a\nout of range 10.98.0.9 shop/b\nmissing 10.98.0.9 shop/b"
	if got := found(findings); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
