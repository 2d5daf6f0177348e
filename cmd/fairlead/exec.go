// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/fairlead/fairlead/cluster"
)

func newExecCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "exec NAMESPACE/POD -- COMMAND [ARG...]",
		Short: "Run a command in a pod, or in a node's network",
		Long: `Run a command in a pod of this machine's cluster, beside the container's own process: in its namespaces,
environment and working directory. With --node it runs in a node's network namespace. The exit code is the command's.`,
		Example: "  fairlead exec shop/client -- getent hosts orders\n  fairlead exec shop/client -- sh\n  fairlead exec --node n1 -- ip route",
	}
	f := c.Flags()
	state := stateFlag(f)
	container := f.StringP("container", "c", "", "`name` of the container; default: the first one")
	node := f.String("node", "", "run in this `node`'s network namespace instead of a pod")
	// People type these out of habit; a terminal is noticed anyway.
	f.BoolP("stdin", "i", false, "")
	f.BoolP("tty", "t", false, "")
	f.MarkHidden("stdin")
	f.MarkHidden("tty")
	c.RunE = func(c *cobra.Command, args []string) error {
		r := cluster.ExecRequest{Container: *container, Node: *node}
		dash := c.ArgsLenAtDash()
		if dash < 0 {
			dash = min(len(args), 1)
			if *node != "" {
				dash = 0
			}
		}
		r.Command = args[dash:]
		switch {
		case *node != "" && dash > 0:
			return errors.New("give either NAMESPACE/POD or --node, not both")
		case *node != "" && *container != "":
			return errors.New("give either --container or --node, not both: a node has no containers")
		case *node == "":
			var err error
			if r.Namespace, r.Pod, err = podArg(args[:dash]); err != nil {
				return err
			}
		}
		if len(r.Command) == 0 {
			return errors.New("there is no command; give it after --, as in: fairlead exec NAMESPACE/POD -- COMMAND")
		}
		dir, err := cluster.Open(*state)
		if err != nil {
			return err
		}
		code, err := runExec(c.Context(), dir, r)
		if err == nil && code != 0 {
			return exitError(code)
		}
		return err
	}
	return c
}

// podArg reads the argument that names a pod.
func podArg(args []string) (namespace, pod string, err error) {
	if len(args) != 1 {
		return "", "", fmt.Errorf("give one pod as NAMESPACE/POD, not %d arguments", len(args))
	}
	namespace, pod, ok := strings.Cut(args[0], "/")
	if !ok || namespace == "" || pod == "" || strings.Contains(pod, "/") {
		return "", "", fmt.Errorf("%q does not name a pod; write NAMESPACE/POD", args[0])
	}
	return namespace, pod, nil
}

// explain turns the client's errors into sentences that name the state directory.
func explainClient(dir cluster.Dir, err error) error {
	if errors.Is(err, cluster.ErrNotRunning) {
		return fmt.Errorf("no cluster runs from %s; start it with fairlead up%s", dir, stateHint(dir))
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("the cluster in %s belongs to root; run this with sudo", dir)
	}
	return err
}

// runExec runs a command with this process's standard files and returns its exit code. When both input and output are a terminal, the command
// gets a terminal of its own, and this one passes every key to it.
func runExec(ctx context.Context, dir cluster.Dir, r cluster.ExecRequest) (int, error) {
	signals := make(chan os.Signal, 4)
	if !term.IsTerminal(int(os.Stdin.Fd())) || !term.IsTerminal(int(os.Stdout.Fd())) {
		// The command ends by the signal, and this process with it; the context of main ends too early for that.
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
		defer signal.Stop(signals)
		code, err := dir.Client().Exec(context.WithoutCancel(ctx), r, [3]*os.File{os.Stdin, os.Stdout, os.Stderr}, signals)
		return code, explainClient(dir, err)
	}
	own, command, err := openTerminal()
	if err != nil {
		return 0, err
	}
	defer own.Close()
	r.TTY, r.Term = true, os.Getenv("TERM")
	resize := func() {
		if w, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ); err == nil {
			unix.IoctlSetWinsize(int(own.Fd()), unix.TIOCSWINSZ, w)
		}
	}
	resize()
	raw, err := term.MakeRaw(int(os.Stdin.Fd()))
	if err != nil {
		command.Close()
		return 0, fmt.Errorf("set terminal: %w", err)
	}
	defer term.Restore(int(os.Stdin.Fd()), raw)
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, syscall.SIGWINCH)
	defer signal.Stop(winch)
	go func() {
		for range winch {
			resize()
		}
	}()
	go io.Copy(own, os.Stdin)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		io.Copy(os.Stdout, own) // ends with an error when the last process has closed the command's side
	}()
	code, err := dir.Client().Exec(ctx, r, [3]*os.File{command, command, command}, nil)
	command.Close()
	<-copied
	return code, explainClient(dir, err)
}

// openTerminal makes a new terminal: our end of it, and the command's.
func openTerminal() (own, command *os.File, err error) {
	own, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(int(own.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(own.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		command, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		own.Close()
		return nil, nil, fmt.Errorf("make terminal: %w", err)
	}
	return own, command, nil
}
