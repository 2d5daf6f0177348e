// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead/fairlead/linux"
)

func open(t *testing.T, path string) Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestOneName: however a directory is spelt, it has one name, before it exists and after, and so one control group.
func TestOneName(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(root, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(root)
	want := Dir(filepath.Join(root, "new", "state"))
	for range 2 {
		for _, spelt := range []string{"new/state", "./new/state/", root + "/new/state", "link/new/state", "x/../new/state"} {
			if got := open(t, spelt); got != want {
				t.Errorf("%s is %s, want %s", spelt, got, want)
			}
		}
		if _, err := want.Make(); err != nil {
			t.Fatal(err)
		}
	}
	if want.ControlGroupName() == open(t, "other").ControlGroupName() {
		t.Error("two directories have one control group")
	}
	if n := want.ControlGroupName(); !strings.HasPrefix(n, "fairlead-") || len(n) != len("fairlead-")+8 {
		t.Errorf("control group %s", n)
	}
}

// TestLayout: all that the layout names is below the state directory, and no two names are one path.
func TestLayout(t *testing.T) {
	d := Dir("/state")
	n := d.Node("n1")
	seen := map[string]bool{}
	for _, p := range []string{d.LockPath(), d.RecordPath(), d.Kubeconfig(), d.PKI(), d.Etcd(), d.Log("cluster"), d.Log("agent-n1"), d.Socket(), d.Netns(),
		d.NodeNetns("n1"), d.PodNetns("u"), n.Kubeconfig(), n.AgentSocket(), n.CNIConfDir(), n.CNICacheDir(), n.IPAM(), n.Pods(), n.Pod("u"), d.Node("n2").AgentSocket()} {
		if !strings.HasPrefix(p, "/state/") || seen[p] {
			t.Errorf("path %s", p)
		}
		seen[p] = true
	}
}

func TestRecord(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "state"))
	if _, err := d.ReadRecord(); !errors.Is(err, ErrNoCluster) {
		t.Errorf("record of nothing: %v", err)
	}
	if created, err := d.Make(); !created || err != nil {
		t.Errorf("make: %v %v", created, err)
	}
	if created, err := d.Make(); created || err != nil {
		t.Errorf("make again: %v %v", created, err)
	}
	want := Record{Params: DefaultParams(), ControlGroup: "/x", Supervisor: 7, Started: time.Unix(1, 0).UTC()}
	if err := d.WriteRecord(want); err != nil {
		t.Fatal(err)
	}
	got, err := d.ReadRecord()
	if err != nil || !got.Params.Equal(want.Params) || got.Supervisor != 7 || got.ControlGroup != "/x" || !got.Started.Equal(want.Started) {
		t.Errorf("read %+v %v", got, err)
	}
	for _, path := range []string{string(d), d.RecordPath()} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v: others may read it", path, info.Mode(), err)
		}
	}
	if err := os.WriteFile(d.RecordPath(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadRecord(); err == nil || errors.Is(err, ErrNoCluster) {
		t.Errorf("broken record: %v", err)
	}
}

// TestLock: one holder at a time, for as long as any copy of the file is open, also in another process.
func TestLock(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "state"))
	if _, err := d.Lock(); !errors.Is(err, ErrNoCluster) {
		t.Errorf("lock of nothing: %v", err)
	}
	if _, err := d.Make(); err != nil {
		t.Fatal(err)
	}
	lock, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock(); !errors.Is(err, ErrRunning) {
		t.Errorf("second lock: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	child := exec.Command("cat") // lives until its input ends
	child.Stdin = r
	child.ExtraFiles = []*os.File{lock}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	lock.Close()
	if _, err := d.Lock(); !errors.Is(err, ErrRunning) {
		t.Errorf("lock while a child holds it: %v", err)
	}
	child.Process.Signal(syscall.SIGKILL)
	child.Wait()
	lock, err = d.Lock()
	if err != nil {
		t.Fatalf("lock after the holder was killed: %v", err)
	}
	lock.Close()
}

func TestPurge(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "state"))
	if _, err := d.Make(); err != nil {
		t.Fatal(err)
	}
	if err := d.Purge(); !errors.Is(err, ErrNoCluster) {
		t.Errorf("purge of a directory that is none of ours: %v", err)
	}
	if _, err := os.Stat(d.PKI()); err != nil {
		t.Error("it was removed all the same")
	}
	if err := d.WriteRecord(Record{Params: DefaultParams()}); err != nil {
		t.Fatal(err)
	}
	if err := d.Purge(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(string(d)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after purge: %v", err)
	}
}

// TestPurgeLeavesTheNodesAgent: the agent of a node of another cluster has its state in a directory of the default state directory.
func TestPurgeLeavesTheNodesAgent(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "state"))
	if _, err := d.Make(); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteRecord(Record{Params: DefaultParams()}); err != nil {
		t.Fatal(err)
	}
	leases := d.Path("agent", "ipam", "leases")
	if err := os.MkdirAll(filepath.Dir(leases), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(leases, []byte("10.244.0.2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Purge(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(leases); err != nil {
		t.Errorf("after purge: %v", err)
	}
	left, err := os.ReadDir(string(d))
	if err != nil || len(left) != 1 {
		t.Errorf("after purge there is %v, %v", left, err)
	}
}

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"one", "two"} {
		if err := WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Errorf("%q %v", b, err)
		}
	}
	if err := WriteFile(filepath.Join(path, "below a file"), nil, 0o600); err == nil {
		t.Error("no error below a file")
	}
}

// TestControlGroup: what is in a group, and below it, is killed and removed, whatever it does; a group that is not there is fine.
func TestControlGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make control groups")
	}
	mount, err := linux.Cgroup2Mount()
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, filepath.Join(t.TempDir(), "state"))
	g, err := d.ControlGroup()
	if err != nil || filepath.Dir(string(g)) != mount {
		t.Fatalf("%s %v", g, err)
	}
	for name, f := range map[string]func() error{"kill": g.Kill, "remove": func() error { return g.Remove(0) }} {
		if err := f(); err != nil {
			t.Errorf("%s of nothing: %v", name, err)
		}
	}
	if g.Populated() || g.Processes() != nil {
		t.Error("a group that is not there has processes")
	}
	t.Cleanup(func() { g.Remove(10 * time.Second) })
	var started []*exec.Cmd
	for _, child := range []ControlGroup{g.Child("a"), g.Child("b", "c")} {
		if err := errors.Join(child.Make(), child.Make()); err != nil {
			t.Fatal(err)
		}
		dir, err := child.Open()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.Command("sh", "-c", "trap '' TERM HUP INT; sleep 1000 & sleep 1000")
		c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		dir.Close()
		started = append(started, c)
	}
	if !g.Populated() || len(g.Child("a").Processes()) == 0 {
		t.Error("the group is empty")
	}
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		for _, c := range started {
			c.Wait()
		}
	}()
	if err := g.Remove(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	<-reaped
	if _, err := os.Stat(string(g)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the group is left: %v", err)
	}
}
