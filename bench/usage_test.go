// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestChildrenTime(t *testing.T) {
	const rest = " S 1 1 1 0 -1 4194560 100 200 0 0 11 12 13 14 20 0 5 0 100 1000 200"
	for _, name := range []string{"nft", "a b", "x) S 9 9 (y"} {
		got, err := childrenTime("42 (" + name + ")" + rest)
		if err != nil || got != 270*time.Millisecond {
			t.Errorf("%q: %v, %v, want 270ms", name, got, err)
		}
	}
	for _, bad := range []string{
		"", "42 nft S 1 1", "42 (nft) S 1",
		strings.Replace("42 (nft)"+rest, " 13 ", " x ", 1), strings.Replace("42 (nft)"+rest, " 14 ", " x ", 1),
	} {
		if got, err := childrenTime(bad); err == nil {
			t.Errorf("%q: %v, want an error", bad, got)
		}
	}
}

// The clock must run with the work of the process it names.
func TestCPUTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	x := 0
	for {
		for i := range 1_000_000 {
			x += i * i
		}
		after, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if after-before > 5*time.Millisecond {
			break
		}
	}
	if x == 0 {
		t.Error("no work done")
	}
	if _, err := cpuTime(1 << 29); err == nil {
		t.Error("no error for a process that cannot be")
	}
}

func TestFamilyOf(t *testing.T) {
	count := func() int {
		t.Helper()
		members, err := familyOf(os.Getpid())
		if err != nil || !slices.Contains(members, os.Getpid()) {
			t.Fatalf("%v, %v", members, err)
		}
		return len(members)
	}
	if n := count(); n != 1 {
		t.Errorf("%d processes before one is started", n)
	}
	_, end := childAndGrandchild(t)
	if n := count(); n != 3 {
		t.Errorf("%d processes with a child and its child", n)
	}
	both, err := memoryOf(os.Getpid())
	own, err2 := memoryOfOne(os.Getpid())
	if err != nil || err2 != nil || both.RSS <= own.all {
		t.Errorf("memory of all %+v, %v, of this process %+v, %v", both, err, own, err2)
	}
	end()
	if n := count(); n != 1 {
		t.Errorf("%d processes after the end of the others", n)
	}
}

// childAndGrandchild starts a process that starts another, until end is called or the test is over.
func childAndGrandchild(t *testing.T) (pid int, end func()) {
	t.Helper()
	child := exec.Command("sh", "-c", "cat; true")
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		stdin.Close()
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	for {
		members, err := familyOf(child.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if len(members) == 2 {
			return child.Process.Pid, end
		}
		time.Sleep(time.Millisecond) // until the shell has started it
	}
}

// What a process has started is confined with it.
func TestConfine(t *testing.T) {
	pid, _ := childAndGrandchild(t)
	if err := confine(pid, 0); err != nil {
		t.Fatal(err)
	}
	members, err := familyOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range members {
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(pid, &set); err != nil || set.Count() != 1 || !set.IsSet(0) {
			t.Errorf("process %d may run on %d processors (%v), want the first alone", pid, set.Count(), err)
		}
	}
}

func TestKilobytes(t *testing.T) {
	const text = "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss:   100 kB\nPss:    20 kB\nPss_Dirty:  7 kB\n"
	if got, err := kilobytes([]byte(text), "Pss:"); err != nil || got != 20*1024 {
		t.Errorf("Pss: %v, %v", got, err)
	}
	for _, bad := range []string{"", "Pss: 1 MB\n", "Pss: x kB\n", "Pss_Dirty: 7 kB\n"} {
		if got, err := kilobytes([]byte(bad), "Pss:"); err == nil {
			t.Errorf("%q: %v, want an error", bad, got)
		}
	}
}

func TestMemoryOf(t *testing.T) {
	m, err := memoryOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if m.RSS < 1<<20 || m.Peak < 1<<20 || m.RSS > 1<<34 {
		t.Errorf("this process holds %+v", m)
	}
}

func TestMachineTime(t *testing.T) {
	got, err := parseMachineTime("cpu  1 2 3 40 5 6 7 8 100 100\ncpu0 9 9 9 9\n")
	want := machineTime{idle: 450 * time.Millisecond, softirq: 70 * time.Millisecond, steal: 80 * time.Millisecond, total: 720 * time.Millisecond}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5 6 7 8 9 10", "cpu 1 2 3 x 5 6 7 8 9 10"} {
		if _, err := parseMachineTime(bad); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
	if now, err := readMachineTime(); err != nil || now.total <= now.idle {
		t.Errorf("this machine: %+v, %v", now, err)
	}
}

// What two processes share of their program counts twice in what is resident, and once in what they hold together.
func TestTogether(t *testing.T) {
	if got, want := together([]resident{{10, 4, 12}, {7, 1, 8}}), (memory{RSS: 17, PSS: 5 + 6, Own: 5, Peak: 20}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := together([]resident{{10, 4, 12}}), (memory{RSS: 10, PSS: 10, Own: 4, Peak: 12}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
