// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Threads that are there, and those started later, want short slices, and keep their nice value.
func TestRunSoon(t *testing.T) {
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if before.Runtime == 0 {
		t.Log("this kernel knows no slices")
	}
	if err := RunSoon(); err != nil {
		t.Fatal(err)
	}
	var started, end sync.WaitGroup
	end.Add(1)
	for range 8 { // each has a thread of its own
		started.Add(1)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			started.Done()
			end.Wait()
		}()
	}
	started.Wait()
	defer end.Done()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	if len(tasks) < 8 {
		t.Errorf("%d threads", len(tasks))
	}
	for _, e := range tasks {
		tid, _ := strconv.Atoi(e.Name())
		attr, err := unix.SchedGetAttr(tid, 0)
		if err != nil {
			continue // it has ended
		}
		if got := time.Duration(attr.Runtime); before.Runtime != 0 && got != shortSlice || attr.Nice != before.Nice || attr.Policy != before.Policy {
			t.Errorf("thread %d: slice %v, nice %d, policy %d; want %v, %d, %d", tid, got, attr.Nice, attr.Policy, shortSlice, before.Nice, before.Policy)
		}
	}
}
