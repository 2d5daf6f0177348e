// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	layout "github.com/fairlead/fairlead/cluster"
)

// resident returns a process's resident memory, now and at its highest, in MiB.
func resident(t testing.TB, pid int) (now, peak float64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	find := func(name string) float64 {
		m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(text)
		if m == nil {
			t.Fatalf("no %s in the status of process %d", name, pid)
		}
		kb, _ := strconv.Atoi(string(m[1]))
		return float64(kb) / 1024
	}
	return find("VmRSS"), find("VmHWM")
}

// maxAgent is more than an agent of a small cluster may have resident, in MiB.
// The aim is 50; the bound catches the day when it links what it must not.
const maxAgent = 80

// maxHolder is more than a holder may have that it does not share with the agent, in MiB.
const maxHolder = 2

// private returns how much memory a process shares with no other, in MiB.
func private(t testing.TB, pid int) (mib float64) {
	t.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(rollup)) {
		var kb int
		if _, err := fmt.Sscanf(line, "Private_Dirty: %d kB", &kb); err == nil {
			mib += float64(kb) / 1024
		}
		if _, err := fmt.Sscanf(line, "Private_Clean: %d kB", &kb); err == nil {
			mib += float64(kb) / 1024
		}
	}
	return mib
}

// TestFigures states what the programs cost.
func TestFigures(t *testing.T) {
	w := shared(t)
	for _, name := range []string{"fairlead", "fairlead-server", "shop"} {
		info, err := os.Stat(binary(name))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("bin/%s: %.1f MiB", name, float64(info.Size())/(1<<20))
	}
	s, err := w.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	now, peak := resident(t, s.Supervisor)
	t.Logf("supervisor: %.1f MiB resident, %.1f at most", now, peak)
	agents := 0
	for _, c := range s.Children {
		if c.State != layout.ChildRunning {
			t.Errorf("%s: %+v", c.Name, c)
			continue
		}
		pid, node, ok := c.PID, "", false
		if node, ok = strings.CutPrefix(c.Name, "agent-"); ok {
			pid = w.report(t, node).PID
		}
		now, peak := resident(t, pid)
		t.Logf("%s: %.1f MiB resident, %.1f at most", c.Name, now, peak)
		if !ok {
			continue
		}
		own := private(t, c.PID)
		t.Logf("%s: its holder has %.1f MiB of its own", c.Name, own)
		if own > maxHolder {
			t.Errorf("the holder of %s has %.1f MiB of its own, more than %d", c.Name, own, maxHolder)
		}
		agents++
		if now > maxAgent {
			t.Errorf("%s has %.1f MiB resident, more than %d", c.Name, now, maxAgent)
		}
	}
	if agents != len(nodes) {
		t.Errorf("%d agents, want %d", agents, len(nodes))
	}
	for _, p := range s.Pods[:1] {
		now, _ := resident(t, p.Pause)
		t.Logf("a pod's first process: %.1f MiB resident", now)
	}
}
