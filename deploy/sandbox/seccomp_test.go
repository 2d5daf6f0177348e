// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/deploy"
)

var measure = flag.Bool("measure", false, "write seccomp.json from what TestSeccomp measures")

// profileFile is the profile.
const profileFile = "../seccomp.json"

// unmeasured are system calls that the profile has and that need not come up in a test, with their reasons.
var unmeasured = map[string]string{
	// The Go runtime: signals, stacks, timers and memory, as it happens to need them.
	"clock_gettime":     "where the vDSO cannot tell the time",
	"clock_nanosleep":   "the runtime's sleep",
	"nanosleep":         "the runtime's sleep",
	"exit":              "the end of a thread",
	"madvise":           "memory is given back",
	"mincore":           "a crash looks at memory",
	"mprotect":          "stacks of threads",
	"munmap":            "memory is given back",
	"restart_syscall":   "a system call that a stop has interrupted",
	"rt_sigprocmask":    "signals",
	"rt_sigreturn":      "the return from a signal's handler",
	"sched_yield":       "the runtime's locks",
	"setitimer":         "profiles of the processor",
	"sigaltstack":       "signals",
	"tgkill":            "goroutines are interrupted",
	"timer_create":      "profiles of the processor",
	"timer_delete":      "profiles of the processor",
	"timer_settime":     "profiles of the processor",
	"getrandom":         "where the vDSO has no random numbers",
	"gettimeofday":      "where the vDSO cannot tell the time",
	"sched_getaffinity": "how many processors there are",
	"uname":             "the version of the kernel",
	// Container runtimes, between setting the profile and starting the program.
	"close_range": "newer ones close files with it",
	// Who runs where: nothing that could be changed.
	"getcwd": "relative paths", "getegid": "whose file it is", "geteuid": "whose file it is", "getgid": "whose file it is", "getuid": "whose file it is",
	// Files and processes, in ways that depend on the machine and on what goes wrong.
	"arch_prctl":      "threads' own memory, on amd64",
	"clone3":          "Go and C libraries begin to use it in place of clone",
	"copy_file_range": "the plugin is copied",
	"sendfile":        "the plugin is copied",
	"splice":          "the plugin is copied",
	"fallocate":       "files of a fixed size",
	"fchmodat":        "a mode", "fchmodat2": "a mode",
	"fchmod":            "the plugin's mode",
	"fchown":            "files keep their owner",
	"fdatasync":         "the state is written down to the disk",
	"fsync":             "the state is written down to the disk",
	"flock":             "one writer of the state",
	"ftruncate":         "the state is cut",
	"mkdirat":           "directories for the state and the plugin",
	"renameat":          "files are put in place",
	"renameat2":         "files are put in place",
	"unlinkat":          "what a killed agent has left is removed",
	"symlinkat":         "files",
	"linkat":            "files",
	"getdents64":        "lists of files",
	"pread64":           "files",
	"pwrite64":          "files",
	"lseek":             "files",
	"faccessat":         "files",
	"faccessat2":        "files",
	"statx":             "files",
	"fstat":             "files",
	"newfstatat":        "files",
	"readlinkat":        "files",
	"statfs":            "files",
	"fstatfs":           "files",
	"inotify_init1":     "the Corefile is followed",
	"inotify_add_watch": "the Corefile is followed",
	"inotify_rm_watch":  "the Corefile is followed",
	"ioctl":             "an agent that ends looks for what is left in its sockets",
	"kill":              "an agent that does not get ready is ended",
	"pidfd_open":        "children",
	"pidfd_send_signal": "children",
	"wait4":             "children",
	"waitid":            "children",
	"umask":             "sockets that only root may use",
	"getppid":           "children",
	"bpf":               "the pods' fast path, where it is asked for",
	// Sockets.
	"recvmmsg":      "questions, many at a time",
	"sendmmsg":      "answers, many at a time",
	"shutdown":      "connections",
	"getpeername":   "connections",
	"socketpair":    "holder and agent",
	"sendmsg":       "netlink",
	"recvmsg":       "netlink",
	"sendto":        "connections",
	"recvfrom":      "connections",
	"dup":           "sockets are handed over",
	"dup3":          "sockets are handed over",
	"ppoll":         "sockets",
	"pselect6":      "sockets",
	"readv":         "connections",
	"writev":        "connections",
	"epoll_create1": "sockets",
	"epoll_pwait":   "sockets",
	"epoll_pwait2":  "sockets",
	"eventfd2":      "sockets",
	"pipe2":         "the runtime wakes itself",
}

// arm64 are the calls that one architecture has and the other one has not, which do the same.
var arm64 = map[string]string{
	"access": "faccessat", "dup2": "dup3", "epoll_create": "epoll_create1", "epoll_wait": "epoll_pwait", "fork": "clone", "getdents": "getdents64",
	"inotify_init": "inotify_init1", "lstat": "newfstatat", "stat": "newfstatat", "mkdir": "mkdirat", "open": "openat", "pipe": "pipe2", "poll": "ppoll",
	"readlink": "readlinkat", "rename": "renameat", "rmdir": "unlinkat", "select": "pselect6", "unlink": "unlinkat", "eventfd": "eventfd2", "chmod": "fchmodat",
}

// TestSeccomp runs agents as a cluster does, from their start over an upgrade and a crash to their end, under strace, and compares the system calls with the
// profile: each that was used is allowed, and each that is allowed was used or has a reason. That it is enough is what the other tests show, which
// run under the profile.
func TestSeccomp(t *testing.T) {
	used := map[string]bool{}
	o := rendered(t, values())
	c := startCluster(t, o.role)
	img := unpack(t)
	trace := func(k *container) string {
		k.spec.Linux.Seccomp = nil
		return k.startTraced()
	}
	first := c.container(img, o)
	files := []string{trace(first)}
	first.mustGetReady(o)
	pod := c.pod()
	for _, network := range []string{"udp", "tcp"} {
		if m, err := ask(t.Context(), pod.NS, network, dnsAddr, "orders.default.svc.cluster.local."); err != nil || len(m.Answer) != 1 {
			t.Errorf("a pod asks: %v, %v", m, err)
		}
		// The upstream does not answer, which takes its time and other system calls.
		_, _ = ask(t.Context(), pod.NS, network, dnsAddr, "elsewhere.example.")
	}
	if out, err := first.exec(t.Context(), "status", "--socket", "/var/lib/fairlead/agent/agent.sock"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	second := c.container(img, o)
	files = append(files, trace(second))
	second.mustGetReady(o)
	first.stop()
	second.stop()
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for name := range calls(string(text)) {
			used[name] = true
		}
	}
	if len(used) < 40 {
		t.Fatalf("only %d system calls were seen", len(used))
	}
	if *measure {
		write(t, used)
	}
	var profile specs.LinuxSeccomp
	if err := json.Unmarshal(read(t), &profile); err != nil {
		t.Fatal(err)
	}
	if profile.DefaultAction != specs.ActErrno || len(profile.Syscalls) != 1 || profile.Syscalls[0].Action != specs.ActAllow {
		t.Fatalf("the profile is not a list of what is allowed")
	}
	allowed := profile.Syscalls[0].Names
	for name := range used {
		if !slices.Contains(allowed, name) {
			t.Errorf("%s is used and not allowed; see -measure", name)
		}
	}
	for _, name := range allowed {
		if !used[name] && unmeasured[name] == "" && !slices.Contains(arm64Of(used), name) {
			t.Errorf("%s is allowed, was not used, and has no reason", name)
		}
	}
	if !slices.IsSorted(allowed) {
		t.Error("the names are not sorted")
	}
	if !bytes.Equal(read(t), deploy.Seccomp) && !*measure {
		t.Error("the profile is not the one that was built in")
	}
}

func arm64Of(used map[string]bool) (names []string) {
	for name := range used {
		if other := arm64[name]; other != "" {
			names = append(names, other)
		}
	}
	return names
}

func read(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(profileFile)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// write makes the profile of what was used and what has a reason.
func write(t *testing.T, used map[string]bool) {
	t.Helper()
	names := arm64Of(used)
	for name := range used {
		names = append(names, name)
	}
	for name, why := range unmeasured {
		if why != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	text, err := json.MarshalIndent(&specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
		Syscalls:      []specs.LinuxSyscall{{Names: slices.Compact(names), Action: specs.ActAllow}},
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(profileFile, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// call finds the name of a system call in a line of strace -f: "123 openat(…" or "123 <... openat resumed>".
var call = regexp.MustCompile(`^\d+ +([a-z_0-9]+)\(`)

// calls are the system calls from the moment on when the program is executed; what comes before is runc's.
func calls(trace string) map[string]bool {
	out := map[string]bool{}
	for line := range strings.SplitSeq(trace, "\n") {
		m := call.FindStringSubmatch(line)
		if m == nil || m[1] == "execve" && len(out) == 0 && !strings.Contains(line, "/bin/fairlead") {
			continue
		}
		if len(out) > 0 || m[1] == "execve" {
			out[m[1]] = true
		}
	}
	return out
}

// startTraced starts the container under strace and returns the file of the trace, which is whole once the container has ended.
func (k *container) startTraced() string {
	t := k.c.t
	t.Helper()
	k.save()
	pidFile, traceFile := filepath.Join(k.dir, "pid"), filepath.Join(k.dir, "trace")
	create := k.runc("create", "--bundle", k.dir, "--pid-file", pidFile, k.id)
	create.Stdout, create.Stderr = k.file(t), k.file(t)
	if err := create.Run(); err != nil {
		t.Fatalf("runc create: %v", err)
	}
	pid, err := os.ReadFile(pidFile)
	k.c.ok(err)
	k.cmd = exec.Command("strace", "-f", "-qq", "-o", traceFile, "-p", strings.TrimSpace(string(pid)))
	k.cmd.Stderr = k.out
	k.c.ok(k.cmd.Start())
	init, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	k.c.ok(err)
	for start := time.Now(); !traced(init); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatal("strace does not attach")
		}
	}
	go func() { _ = k.cmd.Wait(); close(k.done) }()
	k.kill = func() { _ = unix.Kill(init, syscall.SIGTERM) }
	t.Cleanup(k.stop)
	if out, err := k.runc("start", k.id).CombinedOutput(); err != nil {
		t.Fatalf("runc start: %v\n%s", err, out)
	}
	return traceFile
}

// traced reports whether all threads of a process have a tracer.
func traced(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) == 0 {
		return false
	}
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil || strings.Contains(string(text), "TracerPid:\t0\n") {
			return false
		}
	}
	return true
}

// file is where a container's output goes that outlives the command that makes it.
func (k *container) file(t *testing.T) *os.File {
	f, err := os.OpenFile(filepath.Join(k.dir, "output"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
