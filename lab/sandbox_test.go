// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

// newHost makes one node on a fabric of its own, with the real CNI plugin and nobody for it to ask.
func newHost(t *testing.T) *host {
	t.Helper()
	testnet.MustRoot(t)
	if err := os.MkdirAll(stateRoot, 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.MkdirTemp(stateRoot, "")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := cluster.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Make(); err != nil {
		t.Fatal(err)
	}
	group, err := dir.ControlGroup()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := group.Remove(20 * time.Second); err != nil {
			t.Error(err)
		}
		syscall.Unmount(dir.Netns(), syscall.MNT_DETACH)
		os.RemoveAll(root)
	})
	if err := seclude(dir); err != nil {
		t.Fatal(err)
	}
	ns, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	var node *linux.NetNS
	params := cluster.DefaultParams()
	err = ns.Do(func() error {
		bridge, err := makeFabric(params.FabricAddrs())
		if err != nil {
			return err
		}
		node, err = makeNode("n1", dir.NodeNetns("n1"), bridge, params.NodeAddrs(0), params.FabricAddrs())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{
		dir: dir, node: dir.Node("n1"), name: "n1", params: params, addrs: bareAddrs(params.NodeAddrs(0)),
		netns: node, group: group.Child("n1"), pause: own,
	}
	plugins := filepath.Join(root, "plugins")
	for _, d := range []string{plugins, h.node.CNIConfDir(), h.node.Pods()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(own, filepath.Join(plugins, "fairlead")); err != nil {
		t.Fatal(err)
	}
	h.network = newNetwork(h.node, plugins, node, h.group.Child("cni"))
	if err := h.group.Child("cni").Make(); err != nil {
		t.Fatal(err)
	}
	return h
}

// configure writes the node's CNI configuration, as an agent does.
func (h *host) configure(t *testing.T) {
	t.Helper()
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "fairlead",
		"plugins": []any{map[string]any{"type": "fairlead", "podCIDRs": []string{"10.244.1.0/24"}, "dataDir": h.node.IPAM()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cluster.WriteFile(filepath.Join(h.node.CNIConfDir(), "10-fairlead.conflist"), conf, 0o600); err != nil {
		t.Fatal(err)
	}
}

// testPod is a pod bound to n1.
func testPod(name string, containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name), ResourceVersion: "1"},
		Spec:       corev1.PodSpec{NodeName: "n1", DNSPolicy: corev1.DNSClusterFirst, Containers: containers},
	}
}

func shell(name, script string) corev1.Container {
	return corev1.Container{Name: name, Image: "host", Command: []string{"sh", "-c", script}}
}

// sandboxFor makes a sandbox that the test's end removes.
func sandboxFor(t *testing.T, h *host, pod *corev1.Pod) *sandbox {
	t.Helper()
	s, err := h.newSandbox(t.Context(), pod, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.remove(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(string(s.group)); err == nil {
			t.Errorf("control group %s is left", s.group)
		}
		if _, err := os.Stat(h.dir.PodNetns(string(pod.UID))); err == nil {
			t.Error("the network namespace's mount is left")
		}
	})
	return s
}

// output runs a command to its end in a sandbox and returns what it wrote.
func output(t *testing.T, s *sandbox, argv ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err := s.run(command{argv: argv, env: []string{"PATH=" + defaultPath}, files: [3]*os.File{null, f, f}, group: s.group.Child("pause")})
	if err != nil {
		t.Fatal(err)
	}
	state, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !state.Success() {
		t.Fatalf("%q: %s: %s", argv, state, text)
	}
	return string(text)
}

// TestSandbox: what a process of a pod sees is the pod's own.
func TestSandbox(t *testing.T) {
	h := newHost(t)
	pod := testPod("web")
	if _, err := h.newSandbox(t.Context(), pod, 1); err == nil || !strings.Contains(err.Error(), "not initialized") {
		t.Fatalf("sandbox without a CNI configuration: %v", err)
	}
	h.configure(t)
	if err := h.network.status(t.Context()); err != nil {
		t.Fatalf("CNI STATUS: %v", err)
	}
	s := sandboxFor(t, h, pod)
	if len(s.addrs) != 1 || !netip.MustParsePrefix("10.244.1.0/24").Contains(s.addrs[0]) {
		t.Fatalf("addresses %v", s.addrs)
	}
	if err := h.network.check(t.Context(), s.att); err != nil {
		t.Errorf("CNI CHECK: %v", err)
	}
	for _, tc := range []struct {
		argv []string
		want []string
		not  []string
	}{
		{argv: []string{"cat", "/etc/resolv.conf"}, want: []string{"nameserver 10.96.0.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"}},
		{argv: []string{"cat", "/etc/hosts"}, want: []string{s.addrs[0].String() + "\tweb\n", "127.0.0.1\tlocalhost\n"}},
		{argv: []string{"cat", "/etc/hostname"}, want: []string{"web\n"}},
		{argv: []string{"cat", "/etc/nsswitch.conf"}, want: []string{"hosts: files dns\n"}},
		{argv: []string{"hostname"}, want: []string{"web\n"}},
		{argv: []string{"sh", "-c", "echo /proc/[0-9]*"}, want: []string{"/proc/1 "}},
		{argv: []string{"cat", "/proc/1/cmdline"}, want: []string{"pause\x00default/web"}},
		{argv: []string{"ip", "-o", "addr"}, want: []string{"eth0", s.addrs[0].String() + "/32", "lo"}},
		{argv: []string{"cat", "/proc/mounts"}, want: []string{"/etc/resolv.conf"}, not: []string{h.dir.Netns()}},
		{argv: []string{"cat", "/proc/self/cgroup"}, want: []string{"/n1/pods/uid-web/pause"}},
	} {
		got := output(t, s, tc.argv...)
		for _, want := range tc.want {
			if !strings.Contains(got, want) {
				t.Errorf("%q: want %q in\n%s", tc.argv, want, got)
			}
		}
		for _, not := range tc.not {
			if strings.Contains(got, not) {
				t.Errorf("%q: %q must not be in\n%s", tc.argv, not, got)
			}
		}
	}
	own, err := os.ReadFile("/etc/resolv.conf")
	if err != nil || strings.Contains(string(own), "10.96.0.10") {
		t.Errorf("the machine's own resolv.conf has changed: %q %v", own, err)
	}
	conn, err := h.netns.Dial(t.Context(), "tcp", netip.AddrPortFrom(s.addrs[0], 9).String())
	if err == nil {
		conn.Close()
		t.Error("port 9 answers")
	} else if !strings.Contains(err.Error(), "refused") {
		t.Errorf("the pod's kernel does not answer the node: %v", err)
	}
}

// TestSandboxHostNetwork: such a pod shares the node's network and nothing else.
func TestSandboxHostNetwork(t *testing.T) {
	h := newHost(t)
	pod := testPod("bare")
	pod.Spec.HostNetwork = true
	s := sandboxFor(t, h, pod)
	if !slices.Equal(s.addrs, h.addrs) {
		t.Errorf("addresses %v, want the node's %v", s.addrs, h.addrs)
	}
	if got := output(t, s, "ip", "-o", "addr"); !strings.Contains(got, h.addrs[0].String()) {
		t.Errorf("addresses:\n%s", got)
	}
	if got := output(t, s, "hostname"); got != "bare\n" {
		t.Errorf("host name %q", got)
	}
}

// TestOrphans: the pod's first process takes in what a container leaves behind, and its death ends everything.
func TestOrphans(t *testing.T) {
	h := newHost(t)
	h.configure(t)
	s := sandboxFor(t, h, testPod("web"))
	// Ten orphans that end at once: nobody is left as a zombie, the first process has no children but those.
	output(t, s, "sh", "-c", "for i in 0 1 2 3 4 5 6 7 8 9; do (true &) ; done")
	eventually(t, func() string {
		got := output(t, s, "sh", "-c", "cat /proc/[0-9]*/stat | grep -c ' Z ' || true")
		if strings.TrimSpace(got) == "0" {
			return ""
		}
		return got + " zombies"
	})
	null, _ := os.Open(os.DevNull)
	defer null.Close()
	p, err := s.run(command{argv: []string{"sleep", "1000"}, env: []string{"PATH=" + defaultPath}, files: [3]*os.File{null, null, null}, group: s.group.Child("pause")})
	if err != nil {
		t.Fatal(err)
	}
	s.proc.Kill()
	// The kernel keeps the first process until all others of the pod are reaped, those with a parent outside of it too.
	state, err := p.Wait()
	<-s.dead
	if err != nil || state.Success() {
		t.Errorf("a process of the pod outlived the pod's first: %v %v", state, err)
	}
	if _, err := s.run(command{argv: []string{"true"}}); err == nil {
		t.Error("a process was started in a dead pod")
	}
}

// eventually waits until f returns the empty string; it is for what the kernel does on its own time.
func eventually(t *testing.T, f func() string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		got := f()
		if got == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", got)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// launchShell starts a container's run with a script.
func launchShell(t *testing.T, s *sandbox, name, script string, run int) *process {
	t.Helper()
	p, err := s.launch(runSpec{
		name: name, argv: []string{"sh", "-c", script}, env: []string{"PATH=" + defaultPath}, number: run,
		log: runLog(s.host.node.Pod(s.att.uid), name, run),
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRuns: how a container's main process ends, what is left of it, and what it wrote.
func TestRuns(t *testing.T) {
	h := newHost(t)
	h.configure(t)
	s := sandboxFor(t, h, testPod("web"))
	none := func(context.Context) {}
	for i, tc := range []struct {
		script string
		stop   func(p *process)
		code   int
		signal int
		reason string
		log    string
	}{
		{script: "echo out; echo err >&2", code: 0, reason: reasonCompleted, log: "out\nerr\n"},
		{script: "exit 7", code: 7, reason: reasonError},
		{script: "kill -9 $$", code: 137, signal: 9, reason: reasonError},
		{script: "sleep 1000 & echo started", code: 0, reason: reasonCompleted, log: "started\n"},
		{script: "exec sleep 1000", stop: func(p *process) { p.stopRun(none, closed, time.Minute, nil) }, code: 143, signal: 15, reason: reasonError},
		{script: "trap 'echo bye; exit 0' TERM; echo on; while :; do sleep 0.01; done",
			stop: func(p *process) { waitLog(t, h, "on"); p.stopRun(none, closed, time.Minute, nil) }, code: 0, reason: reasonCompleted, log: "on\nbye\n"},
		{script: "trap '' TERM; sleep 1000 & echo deaf; while :; do sleep 1; done",
			stop: func(p *process) { waitLog(t, h, "deaf"); p.stopRun(none, closed, time.Millisecond, nil) }, code: 137, signal: 9, reason: reasonError, log: "deaf\n"},
		{script: "trap '' TERM; echo deaf; while :; do sleep 1; done",
			stop: func(p *process) { waitLog(t, h, "deaf"); p.stopRun(none, make(chan struct{}), time.Hour, closed) }, code: 137, signal: 9, reason: reasonError, log: "deaf\n"},
	} {
		run := i + 1
		waitLogRun = run
		p := launchShell(t, s, "main", tc.script, run)
		if tc.stop != nil {
			tc.stop(p)
		}
		<-p.done
		r := p.result
		if r.code != tc.code || r.signal != tc.signal || r.reason != tc.reason || r.run != run {
			t.Errorf("%s: ended with %+v", tc.script, r)
		}
		got, err := os.ReadFile(runLog(h.node.Pod("uid-web"), "main", run))
		if err != nil || tc.log != "" && string(got) != tc.log {
			t.Errorf("%s: log %q %v, want %q", tc.script, got, err, tc.log)
		}
		if _, err := os.Stat(string(p.group)); err == nil {
			t.Errorf("%s: control group is left", tc.script)
		}
	}
}

// waitLogRun is the run that waitLog reads the log of.
var waitLogRun int

// waitLog waits until the present run has written a word.
func waitLog(t *testing.T, h *host, word string) {
	t.Helper()
	eventually(t, func() string {
		b, _ := os.ReadFile(runLog(h.node.Pod("uid-web"), "main", waitLogRun))
		if strings.Contains(string(b), word) {
			return ""
		}
		return fmt.Sprintf("no %q in the log of run %d", word, waitLogRun)
	})
}

// TestStopOrder: SIGTERM comes after the preStop hook and not before hold is given up.
func TestStopOrder(t *testing.T) {
	h := newHost(t)
	h.configure(t)
	s := sandboxFor(t, h, testPod("web"))
	waitLogRun = 1
	p := launchShell(t, s, "main", "trap 'echo term; exit 0' TERM; echo on; while :; do sleep 0.01; done", 1)
	waitLog(t, h, "on")
	hold, hooked, stopped := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		p.stopRun(func(ctx context.Context) {
			if _, _, err := p.exec(ctx, []string{"sh", "-c", "echo hook"}); err != nil {
				t.Error(err)
			}
			close(hooked)
		}, hold, time.Minute, nil)
		close(stopped)
	}()
	<-hooked
	// The process lives and serves for as long as a kernel may still send it connections.
	if code, out, err := p.exec(t.Context(), []string{"echo", "served"}); code != 0 || out != "served\n" || err != nil {
		t.Errorf("exec while held: %d %q %v", code, out, err)
	}
	b, _ := os.ReadFile(runLog(h.node.Pod("uid-web"), "main", 1))
	if bytes.Contains(b, []byte("term")) {
		t.Error("SIGTERM came before hold was given up")
	}
	close(hold)
	<-stopped
	if p.result.code != 0 {
		t.Errorf("ended with %+v", p.result)
	}
}

// TestExec: exit codes, output, environment and the end by time of commands beside the main process.
func TestExec(t *testing.T) {
	h := newHost(t)
	h.configure(t)
	s := sandboxFor(t, h, testPod("web"))
	p := launchShell(t, s, "main", "exec sleep 1000", 1)
	for _, tc := range []struct {
		argv []string
		code int
		out  string
		err  string
	}{
		{argv: []string{"sh", "-c", "echo a; echo b >&2"}, out: "a\nb\n"},
		{argv: []string{"sh", "-c", "exit 3"}, code: 3},
		{argv: []string{"hostname"}, out: "web\n"},
		{argv: []string{"no-such-program"}, err: `exec: "no-such-program": executable file not found in $PATH`},
		{argv: []string{"/no/such"}, err: `exec: "/no/such": no such file or directory`},
		{argv: []string{"/etc"}, err: `exec: "/etc": is a directory`},
		{argv: []string{"/etc/hosts"}, err: `exec: "/etc/hosts": permission denied`},
		{argv: nil, err: "the command is empty"},
	} {
		code, out, err := p.exec(t.Context(), tc.argv)
		if code != tc.code || out != tc.out || (err == nil) != (tc.err == "") || err != nil && err.Error() != tc.err {
			t.Errorf("%q: %d %q %v", tc.argv, code, out, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if code, _, err := p.exec(ctx, []string{"sh", "-c", "sleep 1000; true"}); code != 137 || err != nil {
		t.Errorf("command past its time: %d %v", code, err)
	}
	p.kill()
	<-p.done
	if _, _, err := p.exec(t.Context(), []string{"true"}); err == nil {
		t.Error("a command was started beside a container that has ended")
	}
}
