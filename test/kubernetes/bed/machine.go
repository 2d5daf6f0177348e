// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
)

// Machine is a set of namespaces with a first process of ours, in which other programs run as on a machine of their own.
type Machine struct {
	// Name is the host name.
	Name string
	// NS is the network namespace.
	NS *linux.NetNS

	dir    string // what it writes that outlives its processes, and their logs
	group  string // the control group in which are those of its programs and pods; empty: its programs are in that of this process
	detach bool   // it outlives this process
	pid    int    // of its first process
	birth  string // when that started, in ticks since boot: with it, pid names one process for good
	pidfd  *os.File
	gone   chan struct{} // closed when the first process has ended; nil for a machine that another process made
}

// namespaces are those of a machine's first process that its other processes enter. The network namespace is made before.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID

// newMachine makes a machine without processes or interfaces.
func newMachine(name, dir string, detach bool) (*Machine, error) {
	ns, err := linux.NewNetNS()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		ns.Close()
		return nil, fmt.Errorf("make directory of %s: %w", name, err)
	}
	return &Machine{Name: name, NS: ns, dir: dir, detach: detach}, nil
}

// boot starts the first process and waits until the machine is set up.
func (m *Machine) boot(ctx context.Context, spec initSpec) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	defer r.Close()
	log, err := m.openLog("init")
	if err != nil {
		w.Close()
		return err
	}
	defer log.Close()
	pidfd := -1
	cmd := exec.Command(self)
	cmd.Args = []string{initName}
	cmd.Env = []string{initVariable + "=" + string(text), "GOMAXPROCS=1", "PATH=" + path}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: namespaces, PidFD: &pidfd}
	if !m.detach {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	m.gone = make(chan struct{})
	started := make(chan error)
	// The kernel takes the end of the thread that forked for the end of the parent, so the thread stays until the child has ended.
	go onDoomedThread(func() {
		defer close(m.gone)
		err := unix.Setns(m.NS.Fd(), unix.CLONE_NEWNET)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // by a signal, from kill
		}
	})
	err = <-started
	w.Close()
	if err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	m.pid, m.pidfd = cmd.Process.Pid, os.NewFile(uintptr(pidfd), "pidfd")
	if m.birth, err = birth(m.pid); err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	defer context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })()
	answer, _ := io.ReadAll(io.LimitReader(r, 4096)) // what came before an error is what matters
	switch said := strings.TrimSpace(string(answer)); {
	case ctx.Err() != nil:
		return fmt.Errorf("boot %s: %w", m.Name, ctx.Err())
	case said == initReady:
		return nil
	case said == "":
		return fmt.Errorf("boot %s: its first process ended: %s", m.Name, tail(m.logFile("init")))
	default:
		return fmt.Errorf("boot %s: %s", m.Name, said)
	}
}

// openMachine is a machine that another process made.
func openMachine(name, dir string, pid int, was string) (*Machine, error) {
	m := &Machine{Name: name, dir: dir, detach: true, pid: pid, birth: was}
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		m.pidfd = os.NewFile(uintptr(fd), "pidfd")
	}
	// The number is of the same process as the descriptor only if it was not given away in between.
	if now, birthErr := birth(pid); err != nil || birthErr != nil || now != was {
		m.close()
		return nil, fmt.Errorf("machine %s: %w", name, errDown)
	}
	if m.NS, err = linux.OpenNetNS(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
		m.close()
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	return m, nil
}

var errDown = errors.New("it is down")

// birth is field 22 of proc_pid_stat(5). The second, the program's name, may have blanks and parentheses.
func birth(pid int) (string, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", fmt.Errorf("read when process %d started: %w", pid, err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("read when process %d started: %q", pid, text)
	}
	return fields[19], nil
}

// kill ends every process of the machine and waits for it: with the last go its mounts and interfaces.
func (m *Machine) kill() error {
	if m == nil {
		return nil
	}
	defer m.close()
	if m.pidfd == nil {
		return nil
	}
	if err := unix.PidfdSendSignal(int(m.pidfd.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", m.Name, err)
	}
	if m.gone != nil {
		<-m.gone
		return nil
	}
	poll := []unix.PollFd{{Fd: int32(m.pidfd.Fd()), Events: unix.POLLIN}}
	for {
		switch n, err := unix.Poll(poll, 30_000); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("kill %s: %w", m.Name, err)
		case n == 0:
			return fmt.Errorf("kill %s: process %d does not end after SIGKILL", m.Name, m.pid)
		default:
			return nil
		}
	}
}

func (m *Machine) close() {
	if m.pidfd != nil {
		m.pidfd.Close()
	}
	if m.NS != nil {
		m.NS.Close()
	}
}

// path is the PATH of the machines' processes.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Command prepares a program to run in the machine; [Machine.Run] and [Machine.Start] run it. The program, if it has no
// slash, is looked up on this machine, whose files the other sees too.
func (m *Machine) Command(argv ...string) *exec.Cmd {
	name := argv[0]
	if !strings.Contains(name, "/") {
		for _, dir := range filepath.SplitList(path) {
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode()&0o111 != 0 {
				name = filepath.Join(dir, name)
				break
			}
		}
	}
	if abs, err := filepath.Abs(name); err == nil && strings.Contains(name, "/") {
		name = abs // the program starts in another directory
	}
	cmd := exec.Command(name, argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + path, "HOME=/root", "TERM=" + os.Getenv("TERM")}
	return cmd
}

// enter starts a command in the machine. Its end closes the channel after err, if any, was stored.
func (m *Machine) enter(cmd *exec.Cmd, err *error) (ended chan struct{}, _ error) {
	ended = make(chan struct{})
	started := make(chan error)
	go onDoomedThread(func() { // for a thread there is no way back from another mount namespace
		defer close(ended)
		begin := func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("leave shared working directory: %w", err)
			}
			if err := unix.Setns(int(m.pidfd.Fd()), namespaces|unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter %s: %w", m.Name, err)
			}
			return cmd.Start()
		}
		failed := begin()
		started <- failed
		if failed == nil {
			*err = cmd.Wait()
		}
	})
	return ended, <-started
}

// onDoomedThread runs f on a thread that ends with the goroutine. It is never the first one, which cannot end, and whose namespaces
// are those of the process.
func onDoomedThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onDoomedThread(f) // on another thread, as this goroutine has the first one
	}()
	<-done
	runtime.UnlockOSThread()
}

// Run runs a command of [Machine.Command] until it ends, or ctx does, which kills it.
func (m *Machine) Run(ctx context.Context, cmd *exec.Cmd) error {
	var failed error
	cmd.WaitDelay = 5 * time.Second
	ended, err := m.enter(cmd, &failed)
	if err != nil {
		return fmt.Errorf("run %s on %s: %w", filepath.Base(cmd.Path), m.Name, err)
	}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	<-ended
	if ctx.Err() != nil {
		return fmt.Errorf("run %s on %s: %w", filepath.Base(cmd.Path), m.Name, ctx.Err())
	}
	return failed
}

// Output runs a program in the machine and returns what it printed. The error has what it complained of.
func (m *Machine) Output(ctx context.Context, argv ...string) (string, error) {
	return m.output(ctx, m.Command(argv...))
}

func (m *Machine) output(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := m.Run(ctx, cmd); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// Process is a program that runs in a machine until it is told to end.
type Process struct {
	// Log is the file with what it says.
	Log string

	name  string
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // valid after ended
}

// Shares of a machine's processors: beside that of a node's pods, one for what serves the network, which on most clusters is a pod with a
// share of its own, and one for all other programs.
const (
	programsShare = "programs"
	networkShare  = "network"
)

// makeShares makes the machine's control groups.
func (m *Machine) makeShares() error {
	for _, share := range []string{programsShare, networkShare} {
		if err := makeGroup(m.group + "/" + share); err != nil {
			return err
		}
	}
	return nil
}

// Start starts a program that stays. What it says is appended to a file of the name.
func (m *Machine) Start(name string, argv ...string) (*Process, error) {
	return m.start(programsShare, name, argv...)
}

func (m *Machine) start(share, name string, argv ...string) (*Process, error) {
	log, err := m.openLog(name)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &Process{Log: m.logFile(name), name: name, cmd: m.Command(argv...)}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.ended, err = m.enter(p.cmd, &p.err); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, m.Name, err)
	}
	if m.group != "" {
		if err := enterGroup(p.PID(), m.group+"/"+share); err != nil {
			p.Kill()
			return nil, fmt.Errorf("start %s on %s: %w", name, m.Name, err)
		}
	}
	return p, nil
}

func (m *Machine) logFile(name string) string { return filepath.Join(m.dir, "logs", name+".log") }

func (m *Machine) openLog(name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Join(m.dir, "logs"), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of logs: %w", err)
	}
	f, err := os.OpenFile(m.logFile(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("make log of %s: %w", name, err)
	}
	return f, nil
}

// PID is the process's number on this machine.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process as a crash would, and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // that it has ended already is no error
	<-p.ended
}

// Gone is an error, with the end of the log, once the process has ended. One that there is not, nil, has not.
func (p *Process) Gone() error {
	if p == nil {
		return nil
	}
	select {
	case <-p.ended:
		return fmt.Errorf("%s has ended (%w); it said:\n%s", p.name, p.err, tail(p.Log))
	default:
		return nil
	}
}

// tail is the end of a file, for messages.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const most = 3000
	return string(bytes.TrimSpace(text[max(0, len(text)-most):]))
}

// until asks again and again until there is no error, a process that must go on has ended, or the time is over.
func until(ctx context.Context, most time.Duration, what string, ask func(context.Context) error, needs ...*Process) error {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		for _, p := range needs {
			if gone := p.Gone(); gone != nil {
				return fmt.Errorf("wait for %s: %w", what, gone)
			}
		}
		if whole.Err() != nil {
			return fmt.Errorf("wait for %s: %w", what, whole.Err())
		}
		select {
		case <-whole.Done():
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: not within %v: %w", what, most, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
