// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	layout "github.com/fairlead/fairlead/cluster"
)

// asked is what became of the queries of one dnsload.
type asked struct {
	Sent, Answered, Lost, Refused, Wrong, Repeated int
	Seconds, Median, P99, Max, Late                float64
	MaxAt                                          time.Time
}

func (a asked) String() string {
	return fmt.Sprintf("%d queries in %.1f s, %d answered, %d lost, %d refused, %d wrong; median %.3f ms, p99 %.2f ms, worst %.1f ms at %s; %d answers came twice, the sender was %.0f ms late at most",
		a.Sent, a.Seconds, a.Answered, a.Lost, a.Refused, a.Wrong, a.Median, a.P99, a.Max, a.MaxAt.Format("15:04:05.000"), a.Repeated, a.Late)
}

// dnsload builds the program of test/dnsload.
var dnsload = sync.OnceValues(func() (string, error) {
	path := binary("dnsload")
	out, err := exec.Command("go", "build", "-o", path, filepath.Join(root(), "test", "dnsload")).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build dnsload: %w\n%s", err, out)
	}
	return path, nil
})

// flood asks from a pod, each query once, until stop is called.
func (w *world) flood(t testing.TB, pod string, rate int) (stop func() asked) {
	t.Helper()
	program, err := dnsload()
	if err != nil {
		t.Fatal(err)
	}
	cmd := w.command(context.Background(), "fairlead", "exec", namespace+"/"+pod, "--", program,
		"-rate", strconv.Itoa(rate), "-duration", "10m", "-timeout", "5s", "orders.shop.svc.cluster.local")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	end := func(s syscall.Signal) {
		once.Do(func() {
			cmd.Process.Signal(s)
			cmd.Wait()
		})
	}
	t.Cleanup(func() { end(syscall.SIGKILL) })
	return func() (a asked) {
		t.Helper()
		end(syscall.SIGTERM)
		if err := json.Unmarshal(stdout.Bytes(), &a); err != nil {
			t.Fatalf("%v: %v\n%s%s", cmd.Args, err, stdout.String(), stderr.String())
		}
		return a
	}
}

// next waits until a node's agent is another process than pid, and ready, and returns it.
func (w *world) next(t testing.TB, node string, pid int) int {
	t.Helper()
	eventually(t, 30*time.Second, "the next agent of "+node, func() error {
		r := w.report(t, node)
		if why := r.Ready(); r.PID == pid || why != "" || len(r.DNS.Addresses) == 0 {
			return fmt.Errorf("pid %d, the one before was %d; %s", r.PID, pid, why)
		}
		pid = r.PID
		return nil
	})
	return pid
}

// judge fails the test if a query was lost, and states the worst latency.
func (a asked) judge(t *testing.T, what string, rate int, back []time.Duration) {
	t.Helper()
	t.Logf("%s at %d queries/s: %s; the next agent was ready after %s", what, rate, a, spread(back))
	if a.Lost+a.Refused+a.Wrong > 0 {
		t.Errorf("%s: of %d queries, %d were lost, %d refused, %d answered wrongly", what, a.Sent, a.Lost, a.Refused, a.Wrong)
	}
	if want := int(0.9 * a.Seconds * float64(rate)); a.Sent < want {
		t.Errorf("%s: only %d queries were sent, want %d: the machine is too slow for this to mean anything", what, a.Sent, want)
	}
}

// TestHitlessKills: the agent is killed with -9 fifty times while a pod asks it 20,000 times a second, each query once. All are answered.
func TestHitlessKills(t *testing.T) {
	const kills, rate, node = 50, 20_000, "n2"
	w := shared(t)
	stop := w.flood(t, w.clientOn(t, node), rate)
	pid, holder := w.next(t, node, 0), w.child(t, "agent-"+node).PID
	var back []time.Duration
	for range kills {
		time.Sleep(300*time.Millisecond + time.Duration(rand.IntN(600))*time.Millisecond)
		began := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pid = w.next(t, node, pid)
		back = append(back, time.Since(began))
	}
	if now := w.child(t, "agent-"+node).PID; now != holder {
		t.Errorf("the holder is %d, was %d", now, holder)
	}
	stop().judge(t, "50 kill -9", rate, back)
}

// TestHitlessReplacements: the agent is replaced sixty times in sixty seconds while a pod asks it 20,000 times a second, each query once. All are answered.
func TestHitlessReplacements(t *testing.T) {
	const replacements, rate, node = 60, 20_000, "n3"
	w := shared(t)
	before := w.ruleset(t, node)
	stop := w.flood(t, w.clientOn(t, node), rate)
	pid, holder := w.next(t, node, 0), w.child(t, "agent-"+node).PID
	var back []time.Duration
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range replacements {
		<-tick.C
		began := time.Now()
		if err := syscall.Kill(holder, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		pid = w.next(t, node, pid)
		back = append(back, time.Since(began))
	}
	if now := w.child(t, "agent-"+node).PID; now != holder {
		t.Errorf("the holder is %d, was %d", now, holder)
	}
	stop().judge(t, "60 replacements in 60 s", rate, back)
	if d := difference(before, w.ruleset(t, node)); d != "" {
		t.Errorf("the replacements changed what was there:\n%s", d)
	}
}

// TestHitlessTakeOver: a second agent that is started for the node, as an update of a DaemonSet does it, takes over with everything from the first one, which
// is ended afterwards; and back. No query is lost.
func TestHitlessTakeOver(t *testing.T) {
	const rate, node = 5_000, "n1"
	w := shared(t)
	stop := w.flood(t, w.clientOn(t, node), rate)
	pid, first := w.next(t, node, 0), w.child(t, "agent-"+node).PID
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", first))
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	var back []time.Duration
	began := time.Now()
	second := w.command(context.Background(), "fairlead", append([]string{"exec", "--node", node, "--"}, args...)...)
	var said bytes.Buffer
	second.Stdout, second.Stderr = &said, &said
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { second.Wait(); close(ended) }()
	t.Cleanup(func() {
		second.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("the second agent said:\n%s", said.String())
		}
	})
	pid = w.next(t, node, pid)
	back = append(back, time.Since(began))
	holder := w.report(t, node).Holder
	if holder == first || holder == 0 {
		t.Fatalf("the agent %d is held by %d, as before", pid, holder)
	}
	// The first holder is still there and has nothing. When it is ended and started again it is the one that takes over.
	began = time.Now()
	w.act(t, layout.ActionRestart, "agent-"+node)
	w.next(t, node, pid)
	back = append(back, time.Since(began))
	if now := w.report(t, node).Holder; now != w.child(t, "agent-"+node).PID {
		t.Errorf("held by %d", now)
	}
	stop().judge(t, "a second agent, and back", rate, back)
	second.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the second agent does not end")
	}
}
