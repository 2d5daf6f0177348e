// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// anyCPU leaves it to the kernel where a process runs.
const anyCPU = -1

// process is a program that runs in a host until stop, and that does not outlive this one.
type process struct {
	cmd     *exec.Cmd
	log     string // file with what it says
	started time.Time
	done    chan struct{}
	err     error // valid after done
}

// start runs a program in a host, on one processor or any. What it prints goes to a file of its name in dir.
func start(h *host, cpu int, dir, name string, argv ...string) (*process, error) {
	p := &process{log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	file, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("make log of %s: %w", name, err)
	}
	defer file.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = file, file
	if err := p.launch(h, cpu); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// launch starts the command on a thread that has the namespace and the processors of the command and waits for it. The thread lives as long as
// the command: the kernel takes the death of the thread that forked for the death of the parent.
func (p *process) launch(h *host, cpu int) error {
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		defer close(p.done)
		err := unix.Setns(h.Fd(), unix.CLONE_NEWNET)
		if err == nil && cpu != anyCPU {
			var set unix.CPUSet
			set.Set(cpu)
			err = unix.SchedSetaffinity(0, &set)
		}
		if err == nil {
			p.started = time.Now()
			err = p.cmd.Start()
		}
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
	}()
	return <-started
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stopGrace is how long a process may take to end after SIGTERM.
const stopGrace = 5 * time.Second

// stop ends the process and waits for its end.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopGrace):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// gone is an error once the process has ended.
func (p *process) gone() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended (%v); it said: %s", filepath.Base(p.cmd.Path), p.err, tail(p.log))
	default:
		return nil
	}
}

// tail is the end of a file, for messages.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const most = 2000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(bytes.TrimSpace(b))
}

// output runs a program in a host until it ends, and returns what it printed. The end of ctx kills it.
func output(ctx context.Context, h *host, cpu int, argv ...string) ([]byte, error) {
	p := &process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), done: make(chan struct{})}
	var out, complaint bytes.Buffer
	p.cmd.Stdout, p.cmd.Stderr = &out, &complaint
	if err := p.launch(h, cpu); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	<-p.done
	if p.err != nil {
		return nil, fmt.Errorf("run %s: %w: %s", argv[0], p.err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.Bytes(), nil
}

// until asks again and again, with a pause between, until there is no error, the process has ended or the time is over.
func (p *process) until(ctx context.Context, most, pause time.Duration, ask func() error) error {
	deadline := time.Now().Add(most)
	for {
		err := ask()
		switch {
		case err == nil:
			return nil
		case p.gone() != nil:
			return p.gone()
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(deadline):
			return fmt.Errorf("after %v: %w; %s said: %s", most, err, filepath.Base(p.cmd.Path), tail(p.log))
		}
		time.Sleep(pause)
	}
}
