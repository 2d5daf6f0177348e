// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/cluster"
)

// process is one run of a container: its main process, and the control group with whatever that has started.
type process struct {
	name    string
	env     []string
	dir     string
	user    *syscall.Credential
	proc    *os.Process
	group   cluster.ControlGroup
	sandbox *sandbox
	began   time.Time
	stop    context.CancelFunc // ends the run's probes and hooks
	ctx     context.Context
	why     atomic.Pointer[string] // why the runner ended it, when it did
	done    chan struct{}          // closed when nothing of the run is left
	result  exit                   // valid when done is closed
}

// runSpec is what a container's process is started with.
type runSpec struct {
	name   string
	argv   []string
	env    []string
	dir    string
	user   *syscall.Credential
	log    string
	number int
}

// errNoCommand explains the one thing that manifests for real clusters lack here.
var errNoCommand = errors.New("the container has no command: process pods have no images, and so no entrypoint; set command to a program of this machine")

// containerSpec turns a container and its environment into what to start.
func containerSpec(pod *corev1.Pod, c *corev1.Container, env *environment, podDir string, run int) (runSpec, error) {
	r := runSpec{name: c.Name, env: env.list(), dir: c.WorkingDir, number: run, log: runLog(podDir, c.Name, run)}
	if len(c.Command) == 0 {
		return r, errNoCommand
	}
	for _, list := range [][]string{c.Command, c.Args} {
		for _, a := range list {
			r.argv = append(r.argv, expand(a, env.lookup))
		}
	}
	var err error
	r.user, err = credential(pod.Spec.SecurityContext, c.SecurityContext)
	return r, err
}

// credential reads the user and groups of a container's security context; nil is root.
func credential(pod *corev1.PodSecurityContext, c *corev1.SecurityContext) (*syscall.Credential, error) {
	var user, group *int64
	var nonRoot bool
	var groups []uint32
	if pod != nil {
		user, group, nonRoot = pod.RunAsUser, pod.RunAsGroup, optional(pod.RunAsNonRoot)
		for _, g := range pod.SupplementalGroups {
			groups = append(groups, uint32(g))
		}
		if pod.FSGroup != nil {
			groups = append(groups, uint32(*pod.FSGroup))
		}
	}
	if c != nil {
		if c.RunAsUser != nil {
			user = c.RunAsUser
		}
		if c.RunAsGroup != nil {
			group = c.RunAsGroup
		}
		if c.RunAsNonRoot != nil {
			nonRoot = *c.RunAsNonRoot
		}
	}
	if nonRoot && (user == nil || *user == 0) {
		return nil, errors.New("container has runAsNonRoot and no runAsUser: process pods run as root unless runAsUser says otherwise")
	}
	if user == nil && group == nil && len(groups) == 0 {
		return nil, nil
	}
	cred := &syscall.Credential{Groups: groups}
	if user != nil {
		cred.Uid = uint32(*user)
	}
	if group != nil {
		cred.Gid = uint32(*group)
	}
	return cred, nil
}

// launch starts a container's run. The returned process is reaped, and its group emptied and removed, by a goroutine that ends with it.
func (s *sandbox) launch(r runSpec) (*process, error) {
	p := &process{
		name: r.name, env: r.env, dir: r.dir, user: r.user, sandbox: s,
		group: s.group.Child(r.name), began: time.Now(), done: make(chan struct{}),
	}
	if err := p.group.Make(); err != nil {
		return nil, err
	}
	log, err := openLog(r.log, maxLog)
	if err != nil {
		return nil, err
	}
	out, in, err := os.Pipe()
	if err != nil {
		log.Close()
		return nil, fmt.Errorf("start container: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err == nil {
		p.proc, err = s.run(command{argv: r.argv, env: r.env, dir: r.dir, user: r.user, group: p.group, files: [3]*os.File{null, in, in}})
		null.Close()
	}
	in.Close()
	if err != nil {
		fmt.Fprintf(log, "%v\n", err)
		out.Close()
		log.Close()
		p.group.Remove(time.Second)
		return nil, err
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		io.Copy(log, out)
		// A log that cannot be written must not stop the program that writes to it.
		io.Copy(io.Discard, out)
	}()
	go p.reap(r.number, copied, func() {
		out.Close()
		log.Close()
	})
	return p, nil
}

// reap waits for the main process, kills what it left behind, and says how it ended.
func (p *process) reap(run int, copied <-chan struct{}, closeLog func()) {
	state, err := p.proc.Wait()
	p.stop()
	p.result = exit{run: run, began: p.began, at: time.Now(), reason: reasonError, code: 255}
	if err == nil {
		p.result.code, p.result.signal = exitOf(state)
	}
	if p.result.code == 0 {
		p.result.reason = reasonCompleted
	}
	if why := p.why.Load(); why != nil {
		p.result.message = *why
	}
	if err := p.group.Remove(10 * time.Second); err != nil {
		p.result.message = err.Error()
	}
	select {
	case <-copied:
	case <-time.After(time.Second):
		// Somebody outside of the pod holds the pipe; the log ends here.
	}
	closeLog()
	close(p.done)
}

// signal asks the main process to end.
func (p *process) signal(sig syscall.Signal) { p.proc.Signal(sig) }

// kill ends the run at once, with all its processes.
func (p *process) kill() {
	p.proc.Kill()
	p.group.Kill()
}

// stopRun ends a run as Kubernetes does: the preStop hook, then SIGTERM once hold is closed, then, when grace is over, SIGKILL. The time
// the hook takes counts, the time of hold does not. It returns when nothing is left, and cuts everything short when now is closed.
func (p *process) stopRun(hook func(context.Context), hold <-chan struct{}, grace time.Duration, now <-chan struct{}) {
	ctx, cancel := context.WithTimeout(p.ctx, grace)
	defer cancel()
	began := time.Now()
	hooked := make(chan struct{})
	go func() {
		defer close(hooked)
		hook(ctx)
	}()
	select {
	case <-hooked:
	case <-now:
	case <-p.done:
		return
	}
	left := grace - time.Since(began)
	select {
	case <-hold:
	case <-now:
	case <-p.done:
		return
	}
	p.signal(syscall.SIGTERM)
	timer := time.NewTimer(max(left, 0))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-now:
	case <-p.done:
		return
	}
	p.kill()
	<-p.done
}

const (
	// maxExecOutput is how much of a probe's or hook's output is kept for messages.
	maxExecOutput = 4 << 10
	// execDrain is how long output is waited for after the command has ended.
	execDrain = 100 * time.Millisecond
)

// exec runs a command beside the container's main process, in its environment, and returns its exit code and the beginning of what it
// wrote. The command is killed when ctx ends.
func (p *process) exec(ctx context.Context, argv []string) (int, string, error) {
	if len(argv) == 0 {
		return 0, "", errors.New("the command is empty")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, "", fmt.Errorf("run command: %w", err)
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		w.Close()
		return 0, "", fmt.Errorf("run command: %w", err)
	}
	proc, err := p.start(argv, [3]*os.File{null, w, w}, false, nil)
	null.Close()
	w.Close()
	if err != nil {
		return 0, "", err
	}
	var out bytes.Buffer
	var mu sync.Mutex
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		buf := make([]byte, 1024)
		for {
			n, err := r.Read(buf)
			mu.Lock()
			out.Write(buf[:min(n, maxExecOutput-out.Len())])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	stop := context.AfterFunc(ctx, func() { killSession(proc) })
	defer stop()
	state, err := proc.Wait()
	if err != nil {
		return 0, "", fmt.Errorf("run command: %w", err)
	}
	select {
	case <-copied:
	case <-time.After(execDrain):
		// Something that the command started holds its output open; what it wrote itself is here.
	}
	code, _ := exitOf(state)
	mu.Lock()
	defer mu.Unlock()
	return code, out.String(), nil
}

// start starts a process beside the main one.
func (p *process) start(argv []string, files [3]*os.File, tty bool, env []string) (*os.Process, error) {
	return p.sandbox.run(command{
		argv: argv, env: append(append([]string(nil), p.env...), env...), dir: p.dir, user: p.user,
		group: p.group, files: files, tty: tty,
	})
}

// killSession kills a process that leads its own session and group, with the processes that are still in that group.
func killSession(p *os.Process) {
	unix.Kill(-p.Pid, unix.SIGKILL)
	p.Kill()
}

// unsupported returns a sentence about the first thing in a pod that process pods cannot do. It is better to say so than to
// run something else than was asked for.
func unsupported(pod *corev1.Pod) error {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			if len(c.VolumeMounts) > 0 {
				return fmt.Errorf("container %s mounts volume %s: process pods see the machine's own files and have no volumes; remove volumeMounts", c.Name, c.VolumeMounts[0].Name)
			}
			if len(c.VolumeDevices) > 0 {
				return fmt.Errorf("container %s has volumeDevices: process pods have no volumes", c.Name)
			}
			for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
				if probe != nil && probe.GRPC != nil {
					return fmt.Errorf("container %s has a gRPC probe: process pods know httpGet, tcpSocket and exec", c.Name)
				}
			}
			if filepath.Base(c.Name) != c.Name || c.Name == "pause" {
				return fmt.Errorf("container name %q is taken by the pod's first process", c.Name)
			}
		}
	}
	if pod.Spec.HostPID || pod.Spec.HostIPC {
		return errors.New("hostPID and hostIPC are not possible: a process pod always has namespaces of its own")
	}
	return nil
}
