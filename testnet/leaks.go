// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// leakGrace is how long things that end by themselves (closing goroutines,
// exiting threads) may take. It only delays a test that fails.
var leakGrace = 3 * time.Second

// NoLeaks fails the test if at its end, after everything registered with Cleanup
// later than this call, the process holds more than now: open descriptors,
// threads outside of the process's network namespace, child processes (dead ones
// that nobody waited for too), and mounts below the test's temporary directory.
func NoLeaks(t testing.TB) {
	t.Helper()
	dir := filepath.Dir(t.TempDir()) // before Cleanup: so it still exists then
	before := held(dir)
	t.Cleanup(func() {
		end := time.Now().Add(leakGrace)
		for {
			leaked := minus(held(dir), before)
			if len(leaked) == 0 {
				return
			}
			if time.Now().After(end) {
				t.Errorf("leaked:\n\t%s", strings.Join(leaked, "\n\t"))
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// held lists what the process holds, a line each; equal things are equal lines.
func held(dir string) []string {
	lines := slices.Concat(descriptors(), strayThreads(), children(), mountsBelow(dir))
	slices.Sort(lines)
	return lines
}

// minus returns the lines of a that are not in b, counting equal ones.
func minus(a, b []string) []string {
	count := map[string]int{}
	for _, line := range b {
		count[line]++
	}
	var more []string
	for _, line := range a {
		if count[line]--; count[line] < 0 {
			more = append(more, line)
		}
	}
	return more
}

// descriptors leaves out those of the runtime's poller, which come with the
// first use of the network and stay.
func descriptors() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return []string{"no /proc/self/fd: " + err.Error()}
	}
	var lines []string
	for _, entry := range entries {
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err != nil || strings.HasPrefix(target, "anon_inode:[event") || target == fmt.Sprintf("/proc/%d/fd", os.Getpid()) {
			continue // the one just used for listing is among those gone by now
		}
		lines = append(lines, "descriptor of "+target)
	}
	return lines
}

func strayThreads() []string {
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return []string{"no /proc/self/ns/net: " + err.Error()}
	}
	threads, _ := filepath.Glob("/proc/self/task/*/ns/net")
	var lines []string
	for _, thread := range threads {
		if ns, err := os.Readlink(thread); err == nil && ns != home {
			lines = append(lines, "thread in "+ns)
		}
	}
	return lines
}

// children finds the processes whose parent is this one.
func children() []string {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	var lines []string
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// "PID (NAME) STATE PPID ...", where NAME may hold anything
		at := strings.LastIndexByte(string(data), ')')
		fields := strings.Fields(string(data[at+1:]))
		if len(fields) > 1 && fields[1] == fmt.Sprint(os.Getpid()) {
			lines = append(lines, "child process "+string(data[:at+1])+" "+fields[0])
		}
	}
	return lines
}

func mountsBelow(dir string) []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{"no /proc/self/mountinfo: " + err.Error()}
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			lines = append(lines, "mount at "+fields[4])
		}
	}
	return lines
}
