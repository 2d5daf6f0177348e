// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// serve answers every request on a socket by f.
func serve(t *testing.T, d Dir, f func(*net.UnixConn, *Incoming) Reply) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.Socket(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r, err := ReadRequest(c)
				if err != nil {
					return
				}
				defer r.Close()
				WriteLine(c, f(c, r))
			}()
		}
	}()
}

func newDir(t *testing.T) Dir {
	t.Helper()
	// Sockets need a short path.
	root, err := os.MkdirTemp("", "fl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	d := open(t, root)
	if _, err := d.Make(); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestClient(t *testing.T) {
	d := newDir(t)
	c := d.Client()
	ctx := t.Context()
	if _, err := c.Status(ctx); !errors.Is(err, ErrNotRunning) {
		t.Errorf("status of nothing: %v", err)
	}
	var asked []Request
	serve(t, d, func(_ *net.UnixConn, r *Incoming) Reply {
		asked = append(asked, r.Request)
		switch r.Op {
		case OpStatus:
			return Reply{Status: &Status{Supervisor: 7, Params: DefaultParams()}}
		case OpLogs:
			return Reply{Logs: &Logs{Files: []string{"/a"}, Running: true}}
		case OpChild:
			return Reply{Error: "there is no process " + r.Child}
		}
		return Reply{}
	})
	if s, err := c.Status(ctx); err != nil || s.Supervisor != 7 || !s.Params.Equal(DefaultParams()) {
		t.Errorf("status %+v %v", s, err)
	}
	if l, err := c.Logs(ctx, LogsRequest{Namespace: "a", Pod: "b", Previous: true}); err != nil || !l.Running || len(l.Files) != 1 {
		t.Errorf("logs %+v %v", l, err)
	}
	if err := c.Child(ctx, ActionKill, "x"); err == nil || err.Error() != "there is no process x" {
		t.Errorf("child: %v", err)
	}
	if err := c.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
	if asked[1].Logs == nil || !asked[1].Logs.Previous || asked[2].Action != ActionKill || asked[3].Op != OpStop {
		t.Errorf("asked %+v", asked)
	}
}

// TestClientEnds: a supervisor that goes away, or does not answer before ctx ends, is an error and no hang.
func TestClientEnds(t *testing.T) {
	d := newDir(t)
	release := make(chan struct{})
	defer close(release)
	reached := make(chan struct{}, 1)
	serve(t, d, func(c *net.UnixConn, r *Incoming) Reply {
		if r.Op == OpStatus {
			c.Close()
			return Reply{}
		}
		reached <- struct{}{}
		<-release
		return Reply{}
	})
	if _, err := d.Client().Status(t.Context()); !errors.Is(err, ErrNoReply) {
		t.Errorf("supervisor that ends: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reached
		cancel()
	}()
	if err := d.Client().Stop(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("supervisor that does not answer: %v", err)
	}
}

// TestExec: the standard files travel to the supervisor, signals follow them, and the exit code comes back.
func TestExec(t *testing.T) {
	d := newDir(t)
	serve(t, d, func(_ *net.UnixConn, r *Incoming) Reply {
		files := r.Files
		if len(files) != 3 {
			return Reply{Error: fmt.Sprint(len(files), " files")}
		}
		in, _ := bufio.NewReader(files[0]).ReadString('\n')
		fmt.Fprintf(files[1], "out: %s%s\n", in, strings.Join(r.Exec.Command, " "))
		fmt.Fprintf(files[2], "err\n")
		var s Signal
		if err := json.NewDecoder(r.Rest).Decode(&s); err != nil {
			return Reply{Error: err.Error()}
		}
		return Reply{Exit: 128 + s.Signal}
	})
	var files [3]*os.File
	var ends [3]*os.File
	for i := range files {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		files[i], ends[i] = w, r
		if i == 0 {
			files[i], ends[i] = r, w
		}
		defer r.Close()
	}
	fmt.Fprintln(ends[0], "hello")
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGTERM
	// A long command does not fit into one message.
	long := strings.Repeat("x", 200<<10)
	out := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(ends[1])
		out <- b
	}()
	code, err := d.Client().Exec(t.Context(), ExecRequest{Pod: "p", Command: []string{"cmd", long}}, files, signals)
	if err != nil || code != 143 {
		t.Errorf("exit %d %v", code, err)
	}
	for _, f := range files {
		f.Close()
	}
	text := <-out
	errs, _ := io.ReadAll(ends[2])
	if string(text) != "out: hello\ncmd "+long+"\n" || string(errs) != "err\n" {
		t.Errorf("output of %d bytes, errors %q", len(text), errs)
	}
}

// TestLongSocketPath: a client reaches a socket whose path the kernel would not take.
func TestLongSocketPath(t *testing.T) {
	root := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	d := open(t, root)
	if _, err := d.Make(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(filepath.Dir(d.Socket()))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/cluster.sock", dir.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := DialUnix(t.Context(), d.Socket())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// FuzzReadRequest: whatever comes over the socket, reading it ends without a crash.
func FuzzReadRequest(f *testing.F) {
	f.Add([]byte(`{"op":"status"}` + "\n"))
	f.Add([]byte("{\n"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var conns [2]*net.UnixConn
		for i, fd := range fds {
			file := os.NewFile(uintptr(fd), "pair")
			c, err := net.FileConn(file)
			file.Close()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns[i] = c.(*net.UnixConn)
		}
		go func() {
			conns[0].Write(data)
			conns[0].CloseWrite()
		}()
		r, err := ReadRequest(conns[1])
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(r.Rest)
		line, after, _ := bytes.Cut(data, []byte("\n"))
		if !json.Valid(line) || !bytes.Equal(rest, after) {
			t.Errorf("%q was read as %+v, then %q", data, r, rest)
		}
	})
}
