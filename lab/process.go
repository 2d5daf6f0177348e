// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cluster"
)

// command is a process to start.
type command struct {
	argv  []string // the program, looked up in PATH of env if it has no slash, and its arguments
	env   []string
	dir   string      // the working directory; empty means /
	files [3]*os.File // standard input, output and error
	group cluster.ControlGroup
	user  *syscall.Credential // nil: root
	tty   bool                // standard input is a terminal for the process to control
}

// podNamespaces are those of a pod's first process that its other processes enter. The process namespace takes effect for the children
// of the thread that enters it.
const podNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWPID

// startIn starts a process inside the namespaces of the process that pidfd stands for.
//
// It enters them on an operating system thread of its own, which a goroutine that never unlocks it takes to the grave: there is no way
// back for a thread from another mount namespace. The process is a child of this one, outside the pod's process tree, so its end is
// seen here and not by the pod's first process.
func startIn(pidfd int, c command) (*os.Process, error) {
	type result struct {
		p   *os.Process
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		p, err := func() (*os.Process, error) {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return nil, fmt.Errorf("leave shared working directory: %w", err)
			}
			if err := unix.Setns(pidfd, podNamespaces); err != nil {
				return nil, fmt.Errorf("enter pod: %w", err)
			}
			return c.start()
		}()
		done <- result{p, err}
	}()
	r := <-done
	return r.p, r.err
}

// start starts the process in the namespaces of the calling thread. Errors about the command itself read as those of a shell or a
// container runtime do.
func (c command) start() (*os.Process, error) {
	dir := c.dir
	if dir == "" {
		dir = "/"
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("working directory %s: no such directory", dir)
	}
	path, err := lookPath(c.argv[0], dir, c.env)
	if err != nil {
		return nil, err
	}
	attr := &os.ProcAttr{Dir: dir, Env: c.env, Files: c.files[:], Sys: &syscall.SysProcAttr{
		Setsid:     true,
		Setctty:    c.tty,
		Credential: c.user,
	}}
	if c.group != "" {
		g, err := c.group.Open()
		if err != nil {
			return nil, err
		}
		defer g.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(g.Fd())
	}
	p, err := os.StartProcess(path, c.argv, attr)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, fmt.Errorf("exec: %q: %w", c.argv[0], err)
	}
	return p, nil
}

var errNotFound = errors.New("executable file not found in $PATH")

// lookPath finds the program as execvp does, with the PATH of the process to be.
func lookPath(name, dir string, env []string) (string, error) {
	if name == "" {
		return "", errors.New(`exec: "": the command is empty`)
	}
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if err := executable(path); err != nil {
			return "", fmt.Errorf("exec: %q: %w", name, err)
		}
		return path, nil
	}
	search := defaultPath
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = v
		}
	}
	for _, p := range filepath.SplitList(search) {
		if p == "" {
			continue
		}
		if path := filepath.Join(p, name); executable(path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("exec: %q: %w", name, errNotFound)
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("no such file or directory")
	case err != nil:
		return err
	case info.IsDir():
		return errors.New("is a directory")
	case info.Mode()&0o111 == 0:
		return errors.New("permission denied")
	}
	return nil
}

// exitOf reads how a process ended, with the shell's numbers: 128 plus the signal.
func exitOf(s *os.ProcessState) (code, signal int) {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal()), int(w.Signal())
	}
	return s.ExitCode(), 0
}
