// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	layout "github.com/fairlead/fairlead/cluster"
)

// second is an agent that has taken over from a node's own.
type second struct {
	cmd   *exec.Cmd
	ended chan struct{}
	said  bytes.Buffer
}

// takeOver starts a second agent on a node, with more flags than the first.
func (w *world) takeOver(t *testing.T, node string, flags ...string) *second {
	t.Helper()
	pid := w.report(t, node).PID
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", w.child(t, "agent-"+node).PID))
	if err != nil {
		t.Fatal(err)
	}
	args := append(strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00"), flags...)
	s := &second{cmd: w.command(context.Background(), "fairlead", append([]string{"exec", "--node", node, "--"}, args...)...), ended: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = &s.said, &s.said
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.cmd.Wait(); close(s.ended) }()
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		<-s.ended
		if t.Failed() {
			t.Logf("the second agent of %s said:\n%s", node, s.said.String())
		}
	})
	w.next(t, node, pid)
	return s
}

// giveBack has a node's own agent take over again.
func (w *world) giveBack(t *testing.T, node string, s *second) {
	t.Helper()
	pid := w.report(t, node).PID
	w.act(t, layout.ActionRestart, "agent-"+node)
	w.next(t, node, pid)
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(10 * time.Second):
		t.Errorf("the second agent of %s does not end", node)
	}
}

// TestTunnelSwitchedLive: node after node sends everything through the tunnel, and then nothing again, while pods talk. No request fails, explain and status
// show the way, and each sender is seen with its own address.
func TestTunnelSwitchedLive(t *testing.T) {
	w := shared(t)
	ip := w.service(t, "orders").Spec.ClusterIP
	loads := make(map[string]*load)
	for _, node := range nodes {
		pod := w.clientOn(t, node)
		loads["connections from "+node] = w.start(t, pod, "get", "-rate", "200", "-duration", "2m", "--fresh-conn", "http://"+ip+":9000/self")
		loads["kept ones from "+node] = w.start(t, pod, "get", "-rate", "50", "-duration", "2m", "-c", "6", "http://"+ip+":9000/self")
	}
	walk := func() string {
		return w.must(t, "fairlead", "explain", namespace+"/"+w.clientOn(t, "n1"), "orders:80", "--probe")
	}
	var agents []*second
	for _, node := range nodes {
		agents = append(agents, w.takeOver(t, node, "--tunnel=always"))
		if r := w.report(t, node).PodNetwork; r.Tunnel != "always" || r.Tunnelled != len(nodes)-1 || r.Linked != 0 {
			t.Errorf("status of %s: %+v", node, r)
		}
	}
	if out := walk(); !strings.Contains(out, "dev fairlead-vxlan mtu 1450 through the tunnel to 172.30.0.12") {
		t.Errorf("explain does not show the tunnel:\n%s", out)
	}
	if out := w.must(t, "fairlead", "dump", "routes", "n1"); !strings.Contains(out, "tunnel fairlead-vxlan vni 170 port 4789 local 172.30.0.11") {
		t.Errorf("dump routes does not show the tunnel:\n%s", out)
	}
	t.Run("through the tunnel", TestPodsSeeEachOther)
	for i, node := range nodes {
		w.giveBack(t, node, agents[i])
		if r := w.report(t, node).PodNetwork; r.Tunnel != "auto" || r.Tunnelled != 0 || r.Linked != len(nodes)-1 {
			t.Errorf("status of %s: %+v", node, r)
		}
	}
	if out := walk(); strings.Contains(out, "through the tunnel") {
		t.Errorf("explain still shows the tunnel:\n%s", out)
	}
	for what, l := range loads {
		s := l.stop(t)
		t.Logf("%s: %s", what, s)
		if s.Failed > 0 {
			t.Errorf("%s: %d of %d failed", what, s.Failed, s.Sent)
		}
	}
}
