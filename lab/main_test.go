// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/podnet"
)

// secluded is set in the process that runs the tests of this package: one with a network namespace and a mount namespace of its own,
// as the supervisor has.
const secluded = "FAIRLEAD_LAB_SECLUDED"

// serving makes this program a container that answers HTTP at an address: /ok, and not found for anything else.
const serving = "FAIRLEAD_LAB_SERVE"

func serveHTTP(addr string) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(http.ResponseWriter, *http.Request) {})
	fmt.Fprintln(os.Stderr, http.ListenAndServe(addr, mux))
	os.Exit(1)
}

// stateRoot holds the state directories of the tests' nodes. Its name is fixed, so that a run finds and removes what a killed one left.
var stateRoot = filepath.Join(os.TempDir(), "fairlead-lab-tests")

// TestMain runs the tests again in namespaces of their own, where the machine allows it. The test program is also the CNI plugin of the
// tests, and, by importing package pause, the first process of their pods.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" && len(os.Args) == 1 {
		podnet.Main()
		return
	}
	if addr := os.Getenv(serving); addr != "" {
		serveHTTP(addr)
	}
	if os.Getenv(secluded) != "" {
		if lo, err := netlink.LinkByName("lo"); err == nil {
			netlink.LinkSetUp(lo)
		}
	}
	if os.Geteuid() != 0 || os.Getenv(secluded) != "" {
		os.Exit(m.Run())
	}
	code, err := runSecluded()
	if err != nil {
		fmt.Fprintln(os.Stderr, "run tests in namespaces of their own:", err)
		code = 1
	}
	os.Exit(code)
}

// runSecluded runs this program again in new namespaces, and removes what it, or one before it, left. One run at a time: they share
// the state root.
func runSecluded() (int, error) {
	lock, err := os.OpenFile(stateRoot+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return 0, err
	}
	if err := removeLeft(); err != nil {
		return 0, err
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), secluded+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	if left := removeLeft(); left != nil {
		return 0, left
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil
	}
	return 0, err
}

// removeLeft removes the control groups and state directories below the state root.
func removeLeft() error {
	entries, _ := os.ReadDir(stateRoot)
	var errs error
	for _, e := range entries {
		dir, err := cluster.Open(filepath.Join(stateRoot, e.Name()))
		if err != nil {
			return err
		}
		group, err := dir.ControlGroup()
		if err != nil {
			return err
		}
		errs = errors.Join(errs, group.Remove(20*time.Second))
	}
	return errors.Join(errs, os.RemoveAll(stateRoot))
}

// quietLog is for what a test does not look at.
func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }
