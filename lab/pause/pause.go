// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package pause is the first process of every process pod: `fairlead pause`. It is process 1 of the pod's process namespace, holds the
// pod's mount, host name, message queue and network namespaces, and takes in the orphans of the pod's containers. When it
// dies the kernel kills everything in the pod.
//
// The invariant: once it has said that it is ready it makes no system call any more but the one in which it sleeps.
//
// The one way in is importing the package: its init recognises the command line `pause` with the variable FAIRLEAD_PAUSE and
// never returns. It runs that early because a program's packages are initialised before main, one after another, and the
// Kubernetes client libraries alone touch several megabytes while they are. A pod should not pay for what it never uses. Keep
// the imports of this package few for the same reason: it is initialised as soon as its imports are.
package pause

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Variable is the name of the environment variable that carries the [Spec], as JSON, to the process.
const Variable = "FAIRLEAD_PAUSE"

// Spec is what the process sets up in its new namespaces before it says that it is ready.
type Spec struct {
	// Hostname is the pod's host name.
	Hostname string `json:"hostname"`
	// Unmount lists mounts to take away, in order: those of the supervisor that would keep other pods' namespaces alive.
	Unmount []string `json:"unmount,omitempty"`
	// Binds are files to put over others: target to source.
	Binds map[string]string `json:"binds,omitempty"`
	// Empty are directories to hide behind an empty one.
	Empty []string `json:"empty,omitempty"`
}

// ready is the descriptor on which the process says "ok", or what went wrong.
const ready = 3

func init() {
	spec, ok := os.LookupEnv(Variable)
	if !ok || len(os.Args) < 2 || os.Args[1] != "pause" {
		return
	}
	// Ignored child signals make the kernel reap the orphans.
	signal.Ignore(syscall.SIGCHLD, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	answer := "ok"
	err := setUp(spec)
	if err != nil {
		answer = err.Error()
	}
	syscall.Write(ready, []byte(answer))
	syscall.Close(ready)
	if err != nil {
		os.Exit(1)
	}
	for {
		unix.Pause()
	}
}

// setUp prepares the namespaces that the process was started in.
func setUp(text string) error {
	var spec Spec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return fmt.Errorf("read pod specification: %w", err)
	}
	if os.Getpid() != 1 {
		return fmt.Errorf("pause must be the first process of a process namespace; it is started by the node runner")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range spec.Unmount {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for target, source := range spec.Binds {
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("put %s over %s: %w", source, target, err)
		}
	}
	for _, dir := range spec.Empty {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k,mode=755"); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return nil
}
