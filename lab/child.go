// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/linux"
)

// Waits before a child that ended by itself is started again. A run of childForgive counts as good.
const (
	childRetryFirst = 100 * time.Millisecond
	childRetryMost  = 10 * time.Second
	childForgive    = 10 * time.Second
	// childGrace is how long a child may take to end after SIGTERM.
	childGrace = 10 * time.Second
)

// child is one of the cluster's own processes. It is kept running: when it ends by itself it is started again, at once the first time and
// later after a growing pause.
type child struct {
	name  string
	argv  []string
	files []*os.File           // inherited as descriptors 3 and following
	netns *linux.NetNS         // nil is the supervisor's own
	group cluster.ControlGroup // made by start
	out   string               // the file that its output is appended to
	log   *slog.Logger
	told  func() // called after every start and end

	orders chan order

	mu     sync.Mutex
	status cluster.ChildStatus
	proc   *os.Process
}

// order is an action and where to say that it is done.
type order struct {
	action string
	done   chan error
}

func newChild(name string, argv []string, out string, group cluster.ControlGroup, log *slog.Logger) *child {
	return &child{
		name: name, argv: argv, out: out, group: group, log: log.With("child", name), told: func() {},
		orders: make(chan order),
		status: cluster.ChildStatus{Name: name, State: cluster.ChildStopped, Since: time.Now()},
	}
}

// show returns the child's status.
func (c *child) show() cluster.ChildStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *child) set(f func(*cluster.ChildStatus)) {
	c.mu.Lock()
	f(&c.status)
	c.status.Since = time.Now()
	c.mu.Unlock()
	c.told()
}

// act gives an order and waits until it is carried out.
func (c *child) act(ctx context.Context, action string) error {
	switch action {
	case cluster.ActionStop, cluster.ActionStart, cluster.ActionKill, cluster.ActionRestart:
	default:
		return fmt.Errorf("%q is not stop, start, kill or restart", action)
	}
	o := order{action: action, done: make(chan error, 1)}
	select {
	case c.orders <- o:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run keeps the child running until ctx ends, and then ends it.
func (c *child) run(ctx context.Context) {
	ends := 0
	for {
		began := time.Now()
		ended, err := c.start()
		if err != nil {
			c.log.Error("child not started", "err", err)
			c.set(func(s *cluster.ChildStatus) { s.State, s.PID, s.LastExit = cluster.ChildWaiting, 0, err.Error() })
		} else {
			next := c.attend(ctx, ended)
			switch next {
			case attendOver:
				return
			case attendStart:
				ends = 0
				continue
			}
		}
		if time.Since(began) >= childForgive {
			ends = 0
		}
		if !c.pause(ctx, backoff(ends, childRetryFirst, childRetryMost)) {
			return
		}
		ends++
		c.mu.Lock()
		c.status.Restarts++
		c.mu.Unlock()
	}
}

// attended is why attend returned.
type attended int

const (
	attendEnded attended = iota // the process ended by itself
	attendStart                 // the process was ended by order and is to be started again
	attendOver                  // the cluster goes down
)

// start starts the process. The channel gets its end.
func (c *child) start() (<-chan *os.ProcessState, error) {
	if err := turnLog(c.out, maxLog); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(c.out, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	if err := c.group.Make(); err != nil {
		return nil, err
	}
	group, err := c.group.Open()
	if err != nil {
		return nil, err
	}
	defer group.Close()
	var proc *os.Process
	begin := func() (err error) {
		proc, err = os.StartProcess(c.argv[0], c.argv, &os.ProcAttr{
			Dir: "/", Env: os.Environ(), Files: append([]*os.File{null, out, out}, c.files...), Sys: inGroup(group),
		})
		return err
	}
	if c.netns != nil {
		err = c.netns.Do(begin)
	} else {
		err = begin()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	ended := make(chan *os.ProcessState, 1)
	go func() {
		state, _ := proc.Wait()
		ended <- state
	}()
	c.mu.Lock()
	c.proc = proc
	c.mu.Unlock()
	c.log.Info("child started", "pid", proc.Pid)
	c.set(func(s *cluster.ChildStatus) { s.State, s.PID = cluster.ChildRunning, proc.Pid })
	return ended, nil
}

// attend waits for the end of the process and carries out orders.
func (c *child) attend(ctx context.Context, ended <-chan *os.ProcessState) attended {
	for {
		select {
		case state := <-ended:
			text := describe(state)
			c.log.Warn("child ended", "how", text)
			c.set(func(s *cluster.ChildStatus) { s.State, s.PID, s.LastExit = cluster.ChildWaiting, 0, text })
			return attendEnded
		case <-ctx.Done():
			c.stop(ended)
			return attendOver
		case o := <-c.orders:
			switch o.action {
			case cluster.ActionKill:
				c.proc.Kill()
				o.done <- nil
			case cluster.ActionStop, cluster.ActionRestart:
				c.stop(ended)
				if o.action == cluster.ActionStop {
					o.done <- nil
					if o = c.stopped(ctx); o.done == nil {
						return attendOver
					}
				}
				o.done <- nil // starting it is what run does next
				return attendStart
			default:
				o.done <- nil // it runs already
			}
		}
	}
}

// stopped waits, with the child down by order, for the order to start it.
func (c *child) stopped(ctx context.Context) order {
	for {
		select {
		case <-ctx.Done():
			return order{}
		case o := <-c.orders:
			if o.action == cluster.ActionStart || o.action == cluster.ActionRestart {
				return o
			}
			o.done <- nil
		}
	}
}

// stop ends the process.
func (c *child) stop(ended <-chan *os.ProcessState) {
	c.proc.Signal(syscall.SIGTERM)
	var state *os.ProcessState
	select {
	case state = <-ended:
	case <-time.After(childGrace):
		c.log.Warn("child killed: it did not end after SIGTERM")
		c.proc.Kill()
		state = <-ended
	}
	c.log.Info("child stopped", "how", describe(state))
	c.set(func(s *cluster.ChildStatus) { s.State, s.PID, s.LastExit = cluster.ChildStopped, 0, describe(state) })
}

// pause waits between two runs; an order cuts it short. It returns false when the child is not to be started again.
func (c *child) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	case o := <-c.orders:
		if o.action != cluster.ActionStop {
			o.done <- nil
			return true
		}
		c.set(func(s *cluster.ChildStatus) { s.State = cluster.ChildStopped })
		o.done <- nil
		o = c.stopped(ctx)
		if o.done == nil {
			return false
		}
		o.done <- nil
		return true
	}
}

// describe says how a process ended.
func describe(state *os.ProcessState) string {
	if state == nil {
		return "unknown"
	}
	return state.String()
}

// lastLine is the last line of the child's output, for messages.
func (c *child) lastLine() string {
	f, err := os.Open(c.out)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	buf := make([]byte, min(info.Size(), 4096))
	if _, err := f.ReadAt(buf, info.Size()-int64(len(buf))); err != nil {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(buf), []byte("\n"))
	return string(lines[len(lines)-1])
}

// errGaveUp means that a child ended again and again while the cluster started.
var errGaveUp = errors.New("ends again and again")

// broken returns an error once the child has ended several times in a row without having become useful.
func (c *child) broken() error {
	if s := c.show(); s.Restarts >= 3 && s.State != cluster.ChildRunning {
		return fmt.Errorf("%s %w (%s): %s; see %s", c.name, errGaveUp, s.LastExit, c.lastLine(), c.out)
	}
	return nil
}
