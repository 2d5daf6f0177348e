// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/cluster"
)

// newSupervisor makes a supervisor around a scene, as far as the control socket goes, and returns the client of it.
func newSupervisor(t *testing.T, s *scene) (*supervisor, cluster.Client) {
	t.Helper()
	params := cluster.DefaultParams()
	params.Nodes = 1
	up := &supervisor{
		Options: Options{Dir: s.host.dir, Logger: quietLog()},
		params:  params, started: time.Now(), count: s.count, agents: s.runner.agents, client: s.client,
		hosts: map[string]*host{"n1": s.host}, nodes: map[string]*apiNode{"n1": newAPINode(s.client, s.host, "v1", quietLog())},
		runner: s.runner,
	}
	ctx, cancel := context.WithCancel(context.Background())
	up.stop = cancel
	l, err := up.listen()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		up.serve(ctx, l)
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
		if _, err := os.Stat(s.host.dir.Socket()); err == nil {
			t.Error("the socket is left")
		}
		cancel()
	})
	return up, s.host.dir.Client()
}

// outcome is what a command run through the control socket did.
type outcome struct {
	code        int
	out, errors string
	err         error
}

// execute runs a command through the control socket. signals and ctx are the client's.
func execute(ctx context.Context, t *testing.T, c cluster.Client, r cluster.ExecRequest, input string, signals <-chan os.Signal) outcome {
	t.Helper()
	var files, ends [3]*os.File
	for i := range files {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			files[i], ends[i] = r, w
		} else {
			files[i], ends[i] = w, r
		}
	}
	go func() {
		io.WriteString(ends[0], input)
		ends[0].Close()
	}()
	texts := make([]chan string, 3)
	for i := 1; i < 3; i++ {
		texts[i] = make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(ends[i])
			ends[i].Close()
			texts[i] <- string(b)
		}()
	}
	var o outcome
	o.code, o.err = c.Exec(ctx, r, files, signals)
	for _, f := range files {
		f.Close()
	}
	o.out, o.errors = <-texts[1], <-texts[2]
	return o
}

func TestControlSocket(t *testing.T) {
	s := newScene(t)
	up, c := newSupervisor(t, s)
	ctx := t.Context()
	in := func(argv ...string) cluster.ExecRequest {
		return cluster.ExecRequest{Namespace: s.namespace, Pod: "web", Command: argv}
	}
	// While the cluster starts there is not much to say.
	if st, err := c.Status(ctx); err != nil || st.Ready || st.Supervisor != os.Getpid() || len(st.Nodes) != 0 {
		t.Errorf("status before the cluster is ready: %+v %v", st, err)
	}
	if o := execute(ctx, t, c, in("true"), "", nil); o.err == nil || !strings.Contains(o.err.Error(), "still starting") {
		t.Errorf("exec before the cluster is ready: %+v", o)
	}
	up.mu.Lock()
	up.ready = true
	up.mu.Unlock()

	second := shell("side", "echo other; exec sleep 1000")
	second.Env = []corev1.EnvVar{{Name: "WHO", Value: "side"}}
	first := shell("main", "echo hello; exec sleep 1000")
	first.Env = []corev1.EnvVar{{Name: "WHO", Value: "main"}}
	first.WorkingDir = "/etc"
	s.create("web", corev1.PodSpec{Containers: []corev1.Container{first, second}})
	p := s.await("web", "Running IP T T T T | main 0 running ready | side 0 running ready")
	st, err := c.Status(ctx)
	if err != nil || !st.Ready || len(st.Nodes) != 1 || st.Nodes[0].Name != "n1" || len(st.Pods) != 1 || st.Pods[0].Name != "web" || st.Pods[0].Pause == 0 || st.Counters["sandboxes_created"] != 1 {
		t.Errorf("status %+v %v", st, err)
	}
	if link, err := os.Readlink(st.Nodes[0].NetNS); err != nil || !strings.HasPrefix(link, "net:") && !strings.Contains(link, "/") {
		t.Errorf("network namespace %s: %q %v", st.Nodes[0].NetNS, link, err)
	}

	other := in("sh", "-c", "echo $WHO; pwd")
	other.Container = "side"
	wrong := in("true")
	wrong.Container = "no"
	onNode := cluster.ExecRequest{Node: "n1", Command: []string{"ip", "-o", "addr", "show", nodeInterface}}
	for _, tc := range []struct {
		name  string
		r     cluster.ExecRequest
		input string
		want  outcome
		err   string
	}{
		{"output", in("sh", "-c", "echo out; echo err >&2"), "", outcome{out: "out\n", errors: "err\n"}, ""},
		{"input", in("cat"), "typed\n", outcome{out: "typed\n"}, ""},
		{"code", in("sh", "-c", "exit 7"), "", outcome{code: 7}, ""},
		{"signal", in("sh", "-c", "kill -9 $$"), "", outcome{code: 137}, ""},
		{"environment of the first container", in("sh", "-c", "echo $WHO; pwd; hostname"), "", outcome{out: "main\n/etc\nweb\n"}, ""},
		{"environment of another", other, "", outcome{out: "side\n/\n"}, ""},
		{"the pod's processes", in("sh", "-c", "cat /proc/1/comm"), "", outcome{}, ""},
		{"no such program", in("no-such-program"), "", outcome{}, `exec: "no-such-program": executable file not found in $PATH`},
		{"no such container", wrong, "", outcome{}, `no container named "no"`},
		{"no such pod", cluster.ExecRequest{Namespace: s.namespace, Pod: "nobody", Command: []string{"true"}}, "", outcome{}, s.namespace + "/nobody not found"},
		{"no command", in(), "", outcome{}, "the command is empty"},
		{"no such node", cluster.ExecRequest{Node: "n9", Command: []string{"true"}}, "", outcome{}, `no node "n9"`},
		{"neither", cluster.ExecRequest{Command: []string{"true"}}, "", outcome{}, `no node ""`},
	} {
		o := execute(ctx, t, c, tc.r, tc.input, nil)
		switch {
		case tc.err != "":
			if o.err == nil || !strings.Contains(o.err.Error(), tc.err) {
				t.Errorf("%s: %+v, want %q", tc.name, o, tc.err)
			}
		case o.err != nil || o.code != tc.want.code || o.errors != tc.want.errors || tc.want.out != "" && o.out != tc.want.out:
			t.Errorf("%s: %+v, want %+v", tc.name, o, tc.want)
		}
	}
	if o := execute(ctx, t, c, onNode, "", nil); o.err != nil || !strings.Contains(o.out, s.host.addrs[0].String()) {
		t.Errorf("on the node: %+v", o)
	}

	// Signals reach the command, and all of its group.
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGTERM
	if o := execute(ctx, t, c, in("sleep", "1000"), "", signals); o.err != nil || o.code != 143 {
		t.Errorf("signalled: %+v", o)
	}
	// A client that goes takes its command along.
	gone, leave := context.WithCancel(ctx)
	before := s.host.podGroup(p).Child("main").Processes()
	go func() {
		eventually(t, func() string {
			if n := len(s.host.podGroup(p).Child("main").Processes()); n <= len(before) {
				return "the command has not started"
			}
			return ""
		})
		leave()
	}()
	if o := execute(gone, t, c, in("sleep", "1000"), "", nil); o.err == nil {
		t.Errorf("client that goes: %+v", o)
	}
	eventually(t, func() string {
		if now := s.host.podGroup(p).Child("main").Processes(); !slices.Equal(now, before) {
			return "the command runs on"
		}
		return ""
	})
	checkLogs(t, s, c)
	s.delete("web", 0)
	s.awaitGone("web")
}

// checkLogs asks for the logs of the pod web, and waits for the end of a run.
func checkLogs(t *testing.T, s *scene, c cluster.Client) {
	t.Helper()
	ask := cluster.LogsRequest{Namespace: s.namespace, Pod: "web", Container: "main"}
	l, err := c.Logs(t.Context(), ask)
	if err != nil || !l.Running || len(l.Files) != 1 {
		t.Fatalf("logs %+v %v", l, err)
	}
	if b, err := os.ReadFile(l.Files[0]); err != nil || string(b) != "hello\n" {
		t.Errorf("log %q %v", b, err)
	}
	for _, bad := range []cluster.LogsRequest{{Namespace: s.namespace, Pod: "nobody"}, {Namespace: s.namespace, Pod: "web", Container: "no"}, {Namespace: s.namespace, Pod: "web", Previous: true}} {
		if l, err := c.Logs(t.Context(), bad); err == nil {
			t.Errorf("logs of %+v: %+v", bad, l)
		}
	}
	ended := make(chan error, 1)
	go func() {
		wait := ask
		wait.Wait = true
		_, err := c.Logs(t.Context(), wait)
		ended <- err
	}()
	proc, err := s.runner.find(s.namespace, "web").running("main")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Errorf("the end was told while the container runs: %v", err)
	default:
	}
	proc.signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Errorf("wait for the end: %v", err)
	}
	s.await("web", "Running IP T T T T | main 1 running last:Error:143 ready | side 0 running ready")
	ask.Previous = true
	if l, err := c.Logs(t.Context(), ask); err != nil || l.Running || len(l.Files) != 1 {
		t.Errorf("logs of the previous run: %+v %v", l, err)
	}
}

// TestControlChildren: the cluster's own processes are found by name, and the unknown ones are refused with the known.
func TestControlChildren(t *testing.T) {
	s := newScene(t)
	up, c := newSupervisor(t, s)
	one := newTestChild(t, "exec sleep 1000")
	awaitChild(t, one, "running", runs)
	up.mu.Lock()
	up.children = append(up.children, one)
	up.mu.Unlock()
	if err := c.Child(t.Context(), cluster.ActionStop, "child"); err != nil {
		t.Fatal(err)
	}
	st, err := c.Status(t.Context())
	if err != nil || len(st.Children) != 1 || st.Children[0].State != cluster.ChildStopped {
		t.Errorf("status %+v %v", st, err)
	}
	for _, tc := range []struct{ action, name, want string }{
		{cluster.ActionStop, "nobody", "there are child"},
		{"dance", "child", "dance"},
	} {
		if err := c.Child(t.Context(), tc.action, tc.name); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %s: %v, want %q", tc.action, tc.name, err, tc.want)
		}
	}
}

// TestControlGarbage: what is no request is not answered, and the next one is.
func TestControlGarbage(t *testing.T) {
	s := newScene(t)
	_, c := newSupervisor(t, s)
	for _, text := range []string{"\n", "{}{}\n", "GET / HTTP/1.1\r\n\r\n", strings.Repeat("x", 2<<20)} {
		conn, err := net.Dial("unix", s.host.dir.Socket())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, text)
		conn.(*net.UnixConn).CloseWrite()
		if b, _ := io.ReadAll(conn); len(b) > 0 {
			t.Errorf("%.20q was answered: %s", text, b)
		}
		conn.Close()
	}
	conn, err := net.Dial("unix", s.host.dir.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, `{"op":"dance"}`+"\n")
	if b, err := io.ReadAll(conn); err != nil || !strings.Contains(string(b), "unknown request") {
		t.Errorf("unknown request: %q %v", b, err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestWatchNetwork: a node is ready from the moment its agent has written the CNI configuration, its pods start then, and an agent that is away for a
// moment does not make it unready.
func TestWatchNetwork(t *testing.T) {
	s := newScene(t)
	up, _ := newSupervisor(t, s)
	up.changed = map[string]chan struct{}{"n1": make(chan struct{}, 1)}
	s.host.name = "n1" // as the supervisor calls it
	conf := s.host.node.CNIConfDir() + "/10-fairlead.conflist"
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan string, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		up.watchNetwork(ctx, "n1", ready)
	}()
	if ok, why := up.nodes["n1"].state(); ok || !strings.Contains(why, "not initialized") {
		t.Errorf("ready %v: %s", ok, why)
	}
	s.host.configure(t)
	if got := <-ready; got != "n1" {
		t.Errorf("ready: %s", got)
	}
	eventually(t, func() string {
		if ok, why := up.nodes["n1"].state(); !ok {
			return why
		}
		return ""
	})
	s.runner.mu.Lock()
	open := s.runner.ready["n1"]
	s.runner.mu.Unlock()
	if !open {
		t.Error("the node's pods may not start")
	}
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	poke(up.changed["n1"])
	if err := up.networkStatus(t.Context(), s.host); err == nil {
		t.Error("STATUS without a configuration is well")
	}
	if ok, why := up.nodes["n1"].state(); !ok {
		t.Errorf("not ready at once: %s", why)
	}
	cancel()
	<-ended
}
