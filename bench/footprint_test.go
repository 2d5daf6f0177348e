// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A process that sleeps is woken, and what it has started counts with it.
func TestWakeups(t *testing.T) {
	before, err := wakeups(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range 20 {
		time.Sleep(time.Millisecond)
	}
	after, err := wakeups(os.Getpid())
	if err != nil || after < before+20 {
		t.Errorf("%d before, %d after 20 sleeps: %v", before, after, err)
	}
	if _, err := wakeups(1 << 30); err != nil {
		t.Errorf("a process that is gone: %v", err)
	}
}

func TestParseWakeups(t *testing.T) {
	const good = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n"
	if n, err := parseWakeups([]byte(good)); n != 695 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, bad := range []string{"", strings.Replace(good, "150", "many", 1), "voluntary_ctxt_switches:\t1\n"} {
		if n, err := parseWakeups([]byte(bad)); err == nil {
			t.Errorf("%q: %d", bad, n)
		}
	}
}

func TestIdlePlus(t *testing.T) {
	sum := idle{memory{1, 2, 3, 4}, time.Second, 4}.plus(idle{memory{10, 20, 30, 40}, time.Minute, 40})
	if want := (idle{memory{11, 22, 33, 44}, 61 * time.Second, 44}); sum != want {
		t.Errorf("%+v, want %+v", sum, want)
	}
}
