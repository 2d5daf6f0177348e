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
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The control socket speaks lines of JSON. A client sends one Request; the supervisor sends one Reply and closes, except for exec: there
// the standard files travel with the request, the client may send a Signal line at any time, and the Reply comes when the
// process has ended. Only root can reach the socket, because of the directory it is in.

// Operations of a [Request].
const (
	OpStatus = "status" // what runs
	OpStop   = "stop"   // stop everything; answered when it has begun
	OpExec   = "exec"   // run a command in a pod or a node
	OpLogs   = "logs"   // where a container's output is
	OpChild  = "child"  // act on one of the cluster's own processes
)

// Actions on a child of the supervisor.
const (
	ActionStop    = "stop"    // SIGTERM, and stay down
	ActionStart   = "start"   // start again after a stop
	ActionKill    = "kill"    // SIGKILL; it is restarted as after a crash
	ActionRestart = "restart" // stop and start
)

// Request is what a client asks on the control socket.
type Request struct {
	Op     string       `json:"op"`
	Exec   *ExecRequest `json:"exec,omitempty"`
	Logs   *LogsRequest `json:"logs,omitempty"`
	Child  string       `json:"child,omitempty"`
	Action string       `json:"action,omitempty"`
}

// Reply is the supervisor's answer. Error, when set, is a sentence for the user.
type Reply struct {
	Error  string  `json:"error,omitempty"`
	Status *Status `json:"status,omitempty"`
	Exit   int     `json:"exit,omitempty"`
	Logs   *Logs   `json:"logs,omitempty"`
}

// Signal is sent by the client of a running exec.
type Signal struct {
	Signal int `json:"signal"`
}

// ExecRequest names a command and where to run it: in a pod, or, when Pod is empty, in a node's network namespace.
type ExecRequest struct {
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	// Container is the container whose environment and working directory the command gets; empty means the first one.
	Container string `json:"container,omitempty"`
	Node      string `json:"node,omitempty"`
	// Command is the program and its arguments, at least one.
	Command []string `json:"command"`
	// TTY says that the standard files are a terminal that the command may control.
	TTY bool `json:"tty,omitempty"`
	// Term is the TERM variable of a command with a terminal.
	Term string `json:"term,omitempty"`
}

// LogsRequest names a container; an empty Container means the first one.
type LogsRequest struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Container string `json:"container,omitempty"`
	// Previous asks for the run before the current one.
	Previous bool `json:"previous,omitempty"`
	// Wait asks for an answer only when the current run has ended.
	Wait bool `json:"wait,omitempty"`
}

// Logs says where a container's output is.
type Logs struct {
	// Files are the files to read, oldest first. The last one is still written while Running is true.
	Files []string `json:"files"`
	// Running says whether the container runs.
	Running bool `json:"running"`
}

// Status is what the supervisor knows about the cluster.
type Status struct {
	Params     Params           `json:"params"`
	Supervisor int              `json:"supervisor"`
	Started    time.Time        `json:"started"`
	Ready      bool             `json:"ready"`
	Children   []ChildStatus    `json:"children"`
	Nodes      []NodeStatus     `json:"nodes"`
	Pods       []PodStatus      `json:"pods"`
	Counters   map[string]int64 `json:"counters"`
}

// States of a child.
const (
	ChildRunning = "running"
	ChildStopped = "stopped"
	ChildWaiting = "waiting" // for its next start, after it ended by itself
)

// ChildStatus is one process that the supervisor keeps running.
type ChildStatus struct {
	Name     string    `json:"name"`
	State    string    `json:"state"`
	PID      int       `json:"pid,omitempty"`
	Since    time.Time `json:"since"`
	Restarts int       `json:"restarts"`
	LastExit string    `json:"lastExit,omitempty"`
}

// NodeStatus is one virtual node.
type NodeStatus struct {
	Name  string       `json:"name"`
	Addrs []netip.Addr `json:"addrs"`
	Ready bool         `json:"ready"`
	// Why is a sentence when the node is not ready.
	Why string `json:"why,omitempty"`
	// NetNS is a path under which other processes of the machine can open the node's network namespace.
	NetNS string `json:"netns"`
}

// PodStatus is one pod that has processes or should have.
type PodStatus struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	UID       string       `json:"uid"`
	Node      string       `json:"node"`
	Phase     string       `json:"phase"`
	Addrs     []netip.Addr `json:"addrs,omitempty"`
	// Pause is the process id of the pod's first process, which holds its namespaces; 0 when there is none.
	Pause    int `json:"pause,omitempty"`
	Restarts int `json:"restarts"`
}

// Client asks a running cluster's supervisor. Its methods connect for each request and may be used concurrently. Their error is
// [ErrNotRunning] when nobody listens.
type Client struct {
	path string
}

// Client returns the client of the cluster in d.
func (d Dir) Client() Client { return Client{path: d.Socket()} }

// maxUnixPath is the longest path the kernel takes for a UNIX socket, its final zero included.
const maxUnixPath = 108

// DialUnix connects to a UNIX socket whose path may be longer than the kernel takes in an address.
func DialUnix(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	if len(path) >= maxUnixPath {
		// An O_PATH descriptor gives the socket a short name.
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "dial", Path: path, Err: err}
		}
		defer unix.Close(fd)
		path = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

func (c Client) send(ctx context.Context, r Request, files ...*os.File) (*net.UnixConn, error) {
	conn, err := DialUnix(ctx, c.path)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			return nil, ErrNotRunning
		}
		return nil, fmt.Errorf("reach supervisor: %w", err)
	}
	line, err := json.Marshal(r)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("ask supervisor: %w", err)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		conn.Close()
		return nil, fmt.Errorf("ask supervisor: %w", err)
	}
	return conn, nil
}

// ErrNoReply means that the supervisor ended before it answered.
var ErrNoReply = errors.New("the cluster's supervisor ended before it answered")

func receive(ctx context.Context, conn *net.UnixConn) (Reply, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var reply Reply
	err := json.NewDecoder(bufio.NewReader(conn)).Decode(&reply)
	switch {
	case ctx.Err() != nil:
		return reply, ctx.Err()
	case err != nil:
		return reply, ErrNoReply
	case reply.Error != "":
		return reply, errors.New(reply.Error)
	}
	return reply, nil
}

func (c Client) ask(ctx context.Context, r Request) (Reply, error) {
	conn, err := c.send(ctx, r)
	if err != nil {
		return Reply{}, err
	}
	defer conn.Close()
	return receive(ctx, conn)
}

// Status returns what runs.
func (c Client) Status(ctx context.Context) (Status, error) {
	r, err := c.ask(ctx, Request{Op: OpStatus})
	if err != nil {
		return Status{}, err
	}
	if r.Status == nil {
		return Status{}, ErrNoReply
	}
	return *r.Status, nil
}

// Stop asks the supervisor to take the cluster down and returns when it has begun. The end of it shows in the lock: see [Dir.Lock].
func (c Client) Stop(ctx context.Context) error {
	_, err := c.ask(ctx, Request{Op: OpStop})
	return err
}

// Child acts on one of the cluster's own processes ("apiserver", "agent-n1") and returns when the action is done.
func (c Client) Child(ctx context.Context, action, name string) error {
	_, err := c.ask(ctx, Request{Op: OpChild, Action: action, Child: name})
	return err
}

// Logs returns where a container's output is.
func (c Client) Logs(ctx context.Context, r LogsRequest) (Logs, error) {
	reply, err := c.ask(ctx, Request{Op: OpLogs, Logs: &r})
	if err != nil {
		return Logs{}, err
	}
	if reply.Logs == nil {
		return Logs{}, ErrNoReply
	}
	return *reply.Logs, nil
}

// Exec runs a command with the given standard input, output and error, and returns its exit code: 128 plus the number for one that a
// signal ended. Values received from signals are passed on to the command. When ctx ends the command is killed.
func (c Client) Exec(ctx context.Context, r ExecRequest, files [3]*os.File, signals <-chan os.Signal) (int, error) {
	conn, err := c.send(ctx, Request{Op: OpExec, Exec: &r}, files[:]...)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				if n, ok := s.(unix.Signal); ok {
					line, _ := json.Marshal(Signal{Signal: int(n)})
					conn.Write(append(line, '\n'))
				}
			case <-done:
				return
			}
		}
	}()
	reply, err := receive(ctx, conn)
	return reply.Exit, err
}

// Incoming is a request as it came to the supervisor.
type Incoming struct {
	Request
	// Files came with the request. The receiver closes them.
	Files []*os.File
	// Rest is what the client sends after the request: lines of [Signal].
	Rest io.Reader
}

// Close closes the files.
func (in *Incoming) Close() {
	for _, f := range in.Files {
		f.Close()
	}
}

// maxRequest bounds a request in bytes.
const maxRequest = 1 << 20

// ReadRequest reads the request of a new connection. It is the supervisor's half of the protocol.
func ReadRequest(conn *net.UnixConn) (*Incoming, error) {
	in := &Incoming{}
	var line []byte
	buf, oob := make([]byte, 32<<10), make([]byte, unix.CmsgSpace(3*4))
	for {
		n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		if err == nil && n == 0 || len(line)+n > maxRequest {
			err = fmt.Errorf("no line of at most %d bytes", maxRequest)
		}
		if err == nil {
			var got []*os.File
			got, err = rights(oob[:oobn])
			in.Files = append(in.Files, got...)
		}
		if err != nil {
			in.Close()
			return nil, fmt.Errorf("read request: %w", err)
		}
		line = append(line, buf[:n]...)
		end := bytes.IndexByte(line, '\n')
		if end < 0 {
			continue
		}
		in.Rest = io.MultiReader(bytes.NewReader(line[end+1:]), conn)
		if err := json.Unmarshal(line[:end], &in.Request); err != nil {
			in.Close()
			return nil, fmt.Errorf("read request: %w", err)
		}
		return in, nil
	}
}

// rights takes the descriptors out of control messages.
func rights(oob []byte) ([]*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

// WriteLine sends one value as a line of JSON.
func WriteLine(conn net.Conn, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write line: %w", err)
	}
	_, err = conn.Write(append(line, '\n'))
	return err
}

// Progress is what the supervisor writes, a line of JSON each, to the pipe that fairlead up gave it.
type Progress struct {
	// Step is what has just been done, in words that follow a check mark: "API server answers".
	Step string `json:"step,omitempty"`
	// Seconds is how long it took.
	Seconds float64 `json:"seconds,omitempty"`
	// Ready ends the start: the cluster can be used.
	Ready bool `json:"ready,omitempty"`
	// Error ends the start too: a sentence on why the cluster did not start.
	Error string `json:"error,omitempty"`
}
