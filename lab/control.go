// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cluster"
)

// listen opens the control socket. The lock is held, so a socket that is there is a dead one's.
func (s *supervisor) listen() (*net.UnixListener, error) {
	path := s.Dir.Socket()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	os.Remove(path)
	// The directory's descriptor gives the socket a short name: the kernel takes 107 bytes.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	defer dir.Close()
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// serve answers requests until the socket is closed.
func (s *supervisor) serve(ctx context.Context, l *net.UnixListener) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.Logger.Error("control socket", "err", err)
			}
			os.Remove(s.Dir.Socket())
			return
		}
		go func() {
			defer conn.Close()
			s.answer(ctx, conn)
		}()
	}
}

// requestTimeout bounds the time that a client may take to say what it wants.
const requestTimeout = 10 * time.Second

func (s *supervisor) answer(ctx context.Context, conn *net.UnixConn) {
	conn.SetReadDeadline(time.Now().Add(requestTimeout))
	r, err := cluster.ReadRequest(conn)
	if err != nil {
		return
	}
	defer r.Close()
	conn.SetReadDeadline(time.Time{})
	reply, err := s.reply(ctx, r)
	if err != nil {
		reply.Error = err.Error()
	}
	cluster.WriteLine(conn, reply)
}

func (s *supervisor) reply(ctx context.Context, r *cluster.Incoming) (cluster.Reply, error) {
	switch {
	case r.Op == cluster.OpStatus:
		return cluster.Reply{Status: s.status()}, nil
	case r.Op == cluster.OpStop:
		s.stop()
		return cluster.Reply{}, nil
	case r.Op == cluster.OpChild:
		c, err := s.child(r.Child)
		if err != nil {
			return cluster.Reply{}, err
		}
		return cluster.Reply{}, c.act(ctx, r.Action)
	case r.Op == cluster.OpLogs && r.Logs != nil:
		w, err := s.pod(r.Logs.Namespace, r.Logs.Pod)
		if err != nil {
			return cluster.Reply{}, err
		}
		if r.Logs.Wait {
			if p, err := w.running(r.Logs.Container); err == nil {
				wait(r.Rest, p.done)
			}
		}
		logs, err := w.logsOf(r.Logs.Container, r.Logs.Previous)
		return cluster.Reply{Logs: &logs}, err
	case r.Op == cluster.OpExec && r.Exec != nil:
		code, err := s.exec(ctx, r)
		return cluster.Reply{Exit: code}, err
	}
	return cluster.Reply{}, fmt.Errorf("unknown request %q", r.Op)
}

// wait returns when done is closed or the client has gone.
func wait(client io.Reader, done <-chan struct{}) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		client.Read(make([]byte, 1))
	}()
	select {
	case <-done:
	case <-gone:
	}
}

// errStarting is the answer to what needs the whole cluster.
var errStarting = errors.New("the cluster is still starting")

// pod finds a pod's worker.
func (s *supervisor) pod(namespace, name string) (*worker, error) {
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	if !ready {
		return nil, errStarting
	}
	if w := s.runner.find(namespace, name); w != nil {
		return w, nil
	}
	return nil, fmt.Errorf("pod %s/%s not found on any node", namespace, name)
}

// exec runs a command with the client's files and returns its exit code. The command ends with the connection.
func (s *supervisor) exec(ctx context.Context, r *cluster.Incoming) (int, error) {
	if len(r.Exec.Command) == 0 {
		return 0, errors.New("the command is empty")
	}
	if len(r.Files) != 3 {
		return 0, fmt.Errorf("three files are needed, not %d", len(r.Files))
	}
	proc, err := s.startExec(*r.Exec, [3]*os.File(r.Files))
	if err != nil {
		return 0, err
	}
	r.Close() // the command has its own copies; a pipe must end with it
	s.count.add("execs", 1)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		lines := bufio.NewScanner(r.Rest)
		for lines.Scan() {
			var sig cluster.Signal
			if json.Unmarshal(lines.Bytes(), &sig) == nil && sig.Signal > 0 {
				unix.Kill(-proc.Pid, unix.Signal(sig.Signal))
			}
		}
	}()
	ended := make(chan struct{})
	go func() {
		select {
		case <-gone:
			killSession(proc)
		case <-ctx.Done():
			killSession(proc)
		case <-ended:
		}
	}()
	state, err := proc.Wait()
	close(ended)
	if err != nil {
		return 0, fmt.Errorf("wait for command: %w", err)
	}
	code, _ := exitOf(state)
	return code, nil
}

// startExec starts the command of an exec request, in a pod or in a node's network namespace.
func (s *supervisor) startExec(r cluster.ExecRequest, files [3]*os.File) (*os.Process, error) {
	var env []string
	if r.Term != "" {
		env = append(env, "TERM="+r.Term)
	}
	if r.Pod != "" {
		w, err := s.pod(r.Namespace, r.Pod)
		if err != nil {
			return nil, err
		}
		p, err := w.running(r.Container)
		if err != nil {
			return nil, err
		}
		return p.start(r.Command, files, r.TTY, env)
	}
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	if !ready {
		return nil, errStarting
	}
	h := s.hosts[r.Node]
	if h == nil {
		return nil, fmt.Errorf("there is no node %q", r.Node)
	}
	group := h.group.Child("exec")
	if err := group.Make(); err != nil {
		return nil, err
	}
	var proc *os.Process
	err := h.netns.Do(func() (err error) {
		env = append(env, "PATH="+h.path(), "HOME=/root", "NODE_NAME="+h.name)
		proc, err = command{argv: r.Command, env: env, files: files, group: group, tty: r.TTY}.start()
		return err
	})
	return proc, err
}
