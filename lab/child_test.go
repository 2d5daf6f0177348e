// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/testnet"
)

// newTestChild makes a child that runs a script, and starts to keep it running.
func newTestChild(t *testing.T, script string) *child {
	t.Helper()
	testnet.MustRoot(t)
	dir, err := cluster.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	group, err := dir.ControlGroup()
	if err != nil {
		t.Fatal(err)
	}
	c := newChild("child", []string{"/bin/sh", "-c", script}, filepath.Join(string(dir), "child.log"), group, quietLog())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if s := c.show(); s.State == cluster.ChildRunning {
			t.Errorf("child after the end: %+v", s)
		}
		if err := group.Remove(10 * time.Second); err != nil {
			t.Error(err)
		}
	})
	return c
}

// awaitChild waits until the child's status is as f says.
func awaitChild(t *testing.T, c *child, what string, f func(cluster.ChildStatus) bool) cluster.ChildStatus {
	t.Helper()
	var s cluster.ChildStatus
	eventually(t, func() string {
		if s = c.show(); f(s) {
			return ""
		}
		return fmt.Sprintf("%s: %+v", what, s)
	})
	return s
}

func runs(s cluster.ChildStatus) bool { return s.State == cluster.ChildRunning }

// TestChildOrders: what each order leads to, from every state it can be given in.
func TestChildOrders(t *testing.T) {
	c := newTestChild(t, "exec sleep 1000")
	first := awaitChild(t, c, "running", runs)
	act := func(action string) {
		t.Helper()
		if err := c.act(t.Context(), action); err != nil {
			t.Fatalf("%s: %v", action, err)
		}
	}
	act(cluster.ActionStart) // it runs: nothing happens
	if s := c.show(); s.PID != first.PID {
		t.Errorf("start of a running child started another: %+v", s)
	}
	act(cluster.ActionKill)
	second := awaitChild(t, c, "running again", func(s cluster.ChildStatus) bool { return runs(s) && s.PID != first.PID })
	if second.Restarts != 1 || second.LastExit != "signal: killed" {
		t.Errorf("after a kill: %+v", second)
	}
	act(cluster.ActionRestart)
	third := awaitChild(t, c, "running once more", func(s cluster.ChildStatus) bool { return runs(s) && s.PID != second.PID })
	if third.Restarts != 1 || third.LastExit != "signal: terminated" {
		t.Errorf("after a restart by order: %+v", third)
	}
	act(cluster.ActionStop)
	if s := c.show(); s.State != cluster.ChildStopped || s.PID != 0 {
		t.Errorf("after a stop: %+v", s)
	}
	act(cluster.ActionStop) // it is stopped
	act(cluster.ActionKill)
	if s := c.show(); s.State != cluster.ChildStopped {
		t.Errorf("a stopped child after other orders: %+v", s)
	}
	act(cluster.ActionStart)
	awaitChild(t, c, "running after start", runs)
	if err := c.act(t.Context(), "dance"); err == nil {
		t.Error("an unknown order is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.act(ctx, cluster.ActionStop); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("order of somebody who has gone: %v", err)
	}
}

// TestChildThatEnds: it is started again, with growing pauses; that it is broken shows, with its last words; and an order to stop is heard in the pauses too.
func TestChildThatEnds(t *testing.T) {
	c := newTestChild(t, "echo first; echo last words; exit 3")
	awaitChild(t, c, "three restarts", func(s cluster.ChildStatus) bool { return s.Restarts >= 3 })
	eventually(t, func() string {
		err := c.broken()
		if err == nil {
			return "not broken"
		}
		for _, want := range []string{"child ends again and again", "exit status 3", "last words", c.out} {
			if !strings.Contains(err.Error(), want) {
				return fmt.Sprintf("no %q in %v", want, err)
			}
		}
		return ""
	})
	if err := c.act(t.Context(), cluster.ActionStop); err != nil {
		t.Fatal(err)
	}
	before := awaitChild(t, c, "stopped", func(s cluster.ChildStatus) bool { return s.State == cluster.ChildStopped })
	if err := c.act(t.Context(), cluster.ActionStart); err != nil {
		t.Fatal(err)
	}
	awaitChild(t, c, "started again", func(s cluster.ChildStatus) bool { return s.Restarts > before.Restarts })
}

// TestChildThatDoesNotStart: the reason shows where the end of a process would.
func TestChildThatDoesNotStart(t *testing.T) {
	c := newTestChild(t, "")
	c2 := newChild("other", []string{"/no/such/program"}, c.out, c.group, quietLog())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c2.run(ctx)
	}()
	s := awaitChild(t, c2, "waiting", func(s cluster.ChildStatus) bool { return s.State == cluster.ChildWaiting })
	if !strings.Contains(s.LastExit, "/no/such/program") {
		t.Errorf("status %+v", s)
	}
	cancel()
	<-done
}

// TestChildInheritsAndAppends: files reach every run of the child, output is appended, and a large log is turned before a run.
func TestChildInheritsAndAppends(t *testing.T) {
	testnet.MustRoot(t)
	dir, err := cluster.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	group, err := dir.ControlGroup()
	if err != nil {
		t.Fatal(err)
	}
	defer group.Remove(10 * time.Second)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log := filepath.Join(string(dir), "child.log")
	if err := os.WriteFile(log, make([]byte, maxLog+1), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newChild("child", []string{"/bin/sh", "-c", "echo out; echo inherited >&3; exec sleep 1000"}, log, group, quietLog())
	c.files = []*os.File{w}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(ctx)
	}()
	line := "inherited\n"
	for range 2 {
		buf := make([]byte, len(line))
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != line {
			t.Errorf("%q %v", buf, err)
		}
		if err := c.act(t.Context(), cluster.ActionRestart); err != nil {
			t.Fatal(err)
		}
	}
	io.ReadFull(r, make([]byte, len(line)))
	cancel()
	<-done
	if b, err := os.ReadFile(log); err != nil || !strings.HasPrefix(string(b), "out\nout\n") {
		t.Errorf("log of %d bytes %v", len(b), err)
	}
	if info, err := os.Stat(log + ".1"); err != nil || info.Size() != maxLog+1 {
		t.Errorf("the old log: %v", err)
	}
	w.Close()
}

// TestAgents: what the agents' answers mean.
func TestAgents(t *testing.T) {
	root, err := os.MkdirTemp("", "fl")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	dir, err := cluster.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	count := newCounters()
	a := newAgents(dir, []string{"n1", "n2", "n3"}, count)
	answer := func(node string, f http.HandlerFunc) {
		if err := os.MkdirAll(string(dir.Node(node)), 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", dir.Node(node).AgentSocket())
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: f}
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
	}
	var paths []string
	answer("n1", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/wait") {
			paths = append(paths, r.URL.String())
		}
	})
	answer("n2", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/ready" {
			http.Error(w, "the first apply is under way", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusGatewayTimeout)
	})
	// n3 has no agent.
	if err := a.ready(t.Context(), "n1"); err != nil {
		t.Errorf("ready: %v", err)
	}
	if err := a.ready(t.Context(), "n2"); err == nil || !strings.Contains(err.Error(), "the first apply is under way") {
		t.Errorf("not ready: %v", err)
	}
	if err := a.ready(t.Context(), "n3"); err == nil {
		t.Error("nobody is ready")
	}
	a.waitGone(t.Context(), []netip.Addr{netip.MustParseAddr("10.244.1.5")})
	a.waitGone(t.Context(), nil) // a pod without an address has nobody to wait for
	if len(paths) != 1 || paths[0] != "/v1/wait?gone=10.244.1.5&timeout=2s" {
		t.Errorf("asked %v", paths)
	}
	check := func(acknowledged, timeouts, down int64) {
		t.Helper()
		got := count.snapshot()
		for name, want := range map[string]int64{"pod_stop_waits_acknowledged": acknowledged, "pod_stop_wait_timeouts": timeouts, "pod_stop_wait_agent_down": down} {
			if got[name] != want {
				t.Errorf("%s is %d, want %d", name, got[name], want)
			}
		}
	}
	check(1, 1, 1)
	// An agent that is on its way back is waited for.
	asked := make(chan struct{}, 1000)
	a.returns = func(node string) bool {
		asked <- struct{}{}
		return true
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.waitGone(t.Context(), []netip.Addr{netip.MustParseAddr("10.244.1.6")})
	}()
	<-asked
	answer("n3", func(http.ResponseWriter, *http.Request) {})
	<-done
	check(3, 2, 1)
	a.after = new(time.Duration)
	a.waitGone(t.Context(), []netip.Addr{netip.MustParseAddr("10.244.1.7")})
	check(3, 2, 1) // nobody was asked
}
