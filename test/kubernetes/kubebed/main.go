// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command kubebed brings up a Kubernetes cluster of real parts on this machine, to try Fairlead on by hand.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/fairlead/fairlead/test/kubernetes/bed"
)

const usage = `usage: kubebed [-name NAME] COMMAND

  up [-nodes N] [-daemonset] [-proxy fairlead|kube-proxy|none] [-dns fairlead|coredns|none] [-network fairlead|bridge|none] [ARGS]
                    bring a cluster up and leave it running; ARGS go to the Fairlead agents,
                    which are programs of the nodes, or with -daemonset pods of the image, as docs/install.md has it
  kubectl ARGS      kubectl, as administrator
  exec MACHINE CMD  run a program on a machine: n1, n2 and so on, control, fabric
  down              end the cluster and remove all of it

It needs root. NAME is "bed" unless given.
`

func main() {
	bed.Init()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1)) // it has said why
	default:
		fmt.Fprintln(os.Stderr, "kubebed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	top := flag.NewFlagSet("kubebed", flag.ContinueOnError)
	top.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	name := top.String("name", "bed", "")
	if err := top.Parse(args); err != nil {
		return err
	}
	args = top.Args()
	switch {
	case len(args) == 0:
	case os.Geteuid() != 0:
		return errors.New("a cluster is made of namespaces and control groups, which needs root")
	case args[0] == "up":
		return up(ctx, *name, args[1:])
	case args[0] == "down" && len(args) == 1:
		return bed.Remove(*name)
	case args[0] == "kubectl":
		return kubectl(ctx, *name, args[1:])
	case args[0] == "exec" && len(args) > 2:
		return execute(ctx, *name, args[1], args[2:])
	}
	top.Usage()
	return flag.ErrHelp
}

func up(ctx context.Context, name string, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the cluster's programs: %w", err)
	}
	o := bed.Options{Name: name, Detach: true, Programs: filepath.Dir(self), Own: filepath.Join(filepath.Dir(self), "../../../bin")}
	flags := flag.NewFlagSet("kubebed up", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flags.IntVar(&o.Nodes, "nodes", 3, "")
	flags.StringVar((*string)(&o.Proxy), "proxy", string(bed.Fairlead), "")
	flags.StringVar((*string)(&o.DNS), "dns", string(bed.Fairlead), "")
	flags.StringVar((*string)(&o.Network), "network", string(bed.Fairlead), "")
	daemonSet := flags.Bool("daemonset", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if o.AgentArgs = flags.Args(); *daemonSet {
		if len(o.AgentArgs) > 0 {
			return errors.New("agents of a DaemonSet get their arguments by kubectl edit, when the cluster is up")
		}
		o.Install, o.Taint = bed.AsDaemonSet, bed.StartupTaint
	}
	o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	c, err := bed.Up(ctx, o)
	if err != nil {
		return err
	}
	c.Release()
	return nil
}

// attach gives a command the terminal of this one.
func attach(cmd *exec.Cmd) *exec.Cmd {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

func kubectl(ctx context.Context, name string, args []string) error {
	c, err := bed.Open(name)
	if err != nil {
		return err
	}
	return c.Control.Run(ctx, attach(c.KubectlCommand(args...)))
}

func execute(ctx context.Context, name, machine string, argv []string) error {
	c, err := bed.Open(name)
	if err != nil {
		return err
	}
	m := c.Machine(machine)
	if m == nil {
		return fmt.Errorf("cluster %s has no machine %q", name, machine)
	}
	if argv[0] == "--" && len(argv) > 1 {
		argv = argv[1:]
	}
	return m.Run(ctx, attach(m.Command(argv...)))
}
