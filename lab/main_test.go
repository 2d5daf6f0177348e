// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/podnet"
)

// secluded is set in the process that runs the tests of this package: one with a network namespace and a mount namespace of its own,
// as the supervisor has.
const secluded = "FAIRLEAD_LAB_SECLUDED"

// TestMain runs the tests again in namespaces of their own, where the machine allows it. The test program is also the CNI plugin of the
// tests, and, by importing package pause, the first process of their pods.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" && len(os.Args) == 1 {
		podnet.Main()
		return
	}
	if os.Geteuid() != 0 || os.Getenv(secluded) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), secluded+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(max(1, exit.ExitCode()))
	}
	fmt.Fprintln(os.Stderr, "run tests in namespaces of their own:", err)
	os.Exit(1)
}

// quietLog is for what a test does not look at.
func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }
