// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	layout "github.com/fairlead/fairlead/cluster"
)

// leftovers lists what of a cluster is on the machine, apart from its state
// directory: processes, mounts, control groups, and links, nftables tables and
// files that carry the project's name.
func (w *world) leftovers(t testing.TB) []string {
	t.Helper()
	group, err := w.dir.ControlGroup()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	if _, err := os.Stat(string(group)); err == nil {
		out = append(out, "control group "+string(group))
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cgroup, _ := os.ReadFile(p + "/cgroup")
		cmdline, _ := os.ReadFile(p + "/cmdline")
		words := strings.ReplaceAll(string(cmdline), "\x00", " ")
		mounts, _ := os.ReadFile(p + "/mountinfo")
		if dead(p) {
			continue
		}
		switch {
		case strings.Contains(string(cgroup), w.dir.ControlGroupName()), strings.Contains(words, string(w.dir)):
			out = append(out, "process "+filepath.Base(p)+" "+words)
		case strings.Contains(string(mounts), string(w.dir)):
			out = append(out, "mount in process "+filepath.Base(p)+" "+words)
		}
	}
	return append(out, ownInRoot(t)...)
}

// dead says whether a process (its directory in /proc) has ended: it is gone, or
// waits for whoever is its parent now to notice. While other threads of it are
// left, its files are still open, though its first thread may have ended.
func dead(proc string) bool {
	stat, err := os.ReadFile(proc + "/stat")
	_, rest, _ := strings.Cut(string(stat), ") ")
	threads, _ := os.ReadDir(proc + "/task")
	return err != nil || (len(threads) <= 1 && (strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")))
}

// ownInRoot lists what the machine's own namespaces have that carries the
// project's name or its addresses.
func ownInRoot(t testing.TB) []string {
	t.Helper()
	var out []string
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		addrs, _ := l.Addrs()
		if l.Name == "fabric" || strings.HasPrefix(l.Name, "fl") || strings.Contains(fmt.Sprint(addrs), "172.30.0.") {
			out = append(out, fmt.Sprintf("link %s %v", l.Name, addrs))
		}
	}
	if tables, err := exec.Command("nft", "list", "tables").Output(); err == nil && strings.Contains(string(tables), "fairlead") {
		out = append(out, "nftables "+strings.TrimSpace(string(tables)))
	}
	for _, dir := range []string{"/run", "/run/netns", "/etc/netns", "/etc/cni", "/sys/fs/bpf", "/dev/shm"} {
		fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || strings.Count(name, "/") > 2 {
				return fs.SkipDir
			}
			if strings.Contains(name, "fairlead") {
				out = append(out, "file "+filepath.Join(dir, name))
			}
			return nil
		})
	}
	return out
}

// clean fails the test if the cluster left something. Processes that were killed
// get a moment to finish ending.
func (w *world) clean(t testing.TB, when string) {
	t.Helper()
	eventually(t, 3*time.Second, when, func() error {
		if left := w.leftovers(t); len(left) > 0 {
			return fmt.Errorf("left on the machine:\n%s", strings.Join(left, "\n"))
		}
		return nil
	})
}

// processes lists the ids of all processes of a cluster.
func (w *world) processes(t testing.TB) []int {
	t.Helper()
	group, err := w.dir.ControlGroup()
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	filepath.WalkDir(string(group), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			for _, p := range layout.ControlGroup(path).Processes() {
				if pid, err := strconv.Atoi(p); err == nil {
					out = append(out, pid)
				}
			}
		}
		return nil
	})
	return out
}

// killAll kills every process of the cluster with -9, in random order, until
// none is left, and waits until the kernel is done with them.
func (w *world) killAll(t testing.TB, rnd *rand.Rand) {
	t.Helper()
	killed := map[int]bool{}
	eventually(t, 20*time.Second, "all killed", func() error {
		pids := w.processes(t)
		rnd.Shuffle(len(pids), func(i, j int) { pids[i], pids[j] = pids[j], pids[i] })
		for _, pid := range pids {
			killed[pid] = true
			syscall.Kill(pid, syscall.SIGKILL)
		}
		for pid := range killed {
			if !dead(fmt.Sprintf("/proc/%d", pid)) {
				return fmt.Errorf("process %d", pid)
			}
		}
		if len(pids) > 0 {
			return fmt.Errorf("%d processes", len(pids))
		}
		return nil
	})
}

// TestDown: a cluster that is taken down, or all of whose processes were killed,
// leaves nothing outside its state directory; and one killed at any moment comes
// up again.
func TestDown(t *testing.T) {
	w := newWorld(t, "down")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Cleanup(func() {
		w.run(t, "", "fairlead", "down", "--state", string(w.dir), "--purge")
		w.clean(t, "at the end")
	})
	down := func(args ...string) {
		t.Helper()
		w.must(t, "fairlead", append([]string{"down", "--state", string(w.dir)}, args...)...)
	}
	start := func() {
		t.Helper()
		if r := w.up(t, "--nodes", "2"); r.code != 0 {
			t.Fatal(r)
		}
		if err := w.connect(); err != nil {
			t.Fatal(err)
		}
	}

	// Killed during its very first start, when what it keeps is half-made.
	for range 4 {
		w.killedStart(t, rnd, 900*time.Millisecond)
		start()
		down("--purge")
	}
	w.killedStart(t, rnd, 2500*time.Millisecond)
	start()
	w.kubectl(t, "apply", "-f", filepath.Join(root(), "examples/shop"))
	w.rollout(t)
	running := len(w.processes(t))
	began := time.Now()
	down()
	t.Logf("%d processes taken down in %.1f s", running, time.Since(began).Seconds())
	w.clean(t, "after down")

	start()
	w.rollout(t)
	w.killAll(t, rnd)
	down()
	w.clean(t, "after kill -9 of everything and down")

	// Killed while it starts, at some moment; then it must come up, whole.
	for range 3 {
		w.killedStart(t, rnd, 2500*time.Millisecond)
		start()
		w.rollout(t)
		w.killAll(t, rnd)
	}

	// The supervisor alone is killed; the next up takes over what it left.
	start()
	s, err := w.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.Supervisor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the supervisor's end", func() error {
		if !dead(fmt.Sprintf("/proc/%d", s.Supervisor)) {
			return fmt.Errorf("it runs")
		}
		return nil
	})
	start()
	w.rollout(t)
	pods := w.pods(t, "app=client")
	if out := w.in(t, pods[0].Name, "shop", "get", "http://front/"); !strings.Contains(out, "orders") {
		t.Errorf("after the supervisor was killed: %s", out)
	}
	down("--purge")
	w.clean(t, "after down --purge")
	if _, err := os.Stat(string(w.dir)); err == nil {
		t.Errorf("%s is still there after down --purge", w.dir)
	}
}

// killedStart starts the cluster and kills everything of it at a random moment
// before limit.
func (w *world) killedStart(t testing.TB, rnd *rand.Rand, limit time.Duration) {
	t.Helper()
	moment := 50*time.Millisecond + time.Duration(rnd.Int64N(int64(limit)))
	ctx, cancel := context.WithTimeout(t.Context(), moment)
	defer cancel()
	cmd := w.command(ctx, "fairlead", "up", "--detach", "--nodes", "2", "--state", string(w.dir), "--api-port", strconv.Itoa(w.port))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	<-ctx.Done()
	w.killAll(t, rnd)
	t.Logf("everything killed %v after the start", moment)
}

// TestHangUp: a terminal that is closed takes the cluster down that was started in it, also while it starts.
func TestHangUp(t *testing.T) {
	w := newWorld(t, "hangup")
	// This process may itself be one of nohup's; what it handles, its children do not ignore.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	t.Cleanup(func() { w.run(t, "", "fairlead", "down", "--state", string(w.dir), "--purge") })
	for _, moment := range []time.Duration{100 * time.Millisecond, 400 * time.Millisecond, 700 * time.Millisecond, 4 * time.Second} {
		cmd := w.command(t.Context(), "fairlead", "up", "--nodes", "2", "--state", string(w.dir), "--api-port", strconv.Itoa(w.port))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(moment)
		cmd.Process.Signal(syscall.SIGHUP)
		cmd.Wait()
		w.clean(t, fmt.Sprintf("after a hangup %s after the start", moment))
	}

	// But not if it is to be outlived.
	cmd := w.command(t.Context(), "fairlead", "up", "--nodes", "2", "--state", string(w.dir), "--api-port", strconv.Itoa(w.port))
	cmd.Path, cmd.Args = "/usr/bin/env", append([]string{"env", "nohup", cmd.Path}, cmd.Args[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		time.Sleep(time.Second)
		cmd.Process.Signal(syscall.SIGHUP)
	}
	if s, err := w.client.Status(t.Context()); err != nil || !s.Ready {
		t.Errorf("after a hangup under nohup: %+v, %v", s, err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	w.clean(t, "after the end under nohup")
}

// TestPodEndsWithItsProcesses: killing a pod's processes, its first one included,
// brings the pod back; deleting it removes its control group and processes.
func TestPodEndsWithItsProcesses(t *testing.T) {
	w := shared(t)
	w.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: tree, namespace: shop, labels: {app: tree}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: tree, image: host, command: [sh, -c, "sleep 987654 & sleep 987653 & trap '' TERM; while :; do sleep 1; done"]}
`)
	w.kubectl(t, "-n", namespace, "wait", "pod", "tree", "--for=condition=Ready", "--timeout=30s")
	if out := w.in(t, "tree", "sh", "-c", "echo $HOSTNAME; cat /etc/hostname; hostname"); !slices.Contains(strings.Fields(out), "tree") {
		t.Errorf("the pod does not know its name: %q", out)
	}
	w.kubectl(t, "-n", namespace, "delete", "pod", "tree", "--timeout=30s")
	eventually(t, 10*time.Second, "the pod's processes", func() error {
		if n := exec.Command("pgrep", "-f", "^sleep 98765[34]$").Run(); n == nil {
			return fmt.Errorf("still there")
		}
		return nil
	})
}
