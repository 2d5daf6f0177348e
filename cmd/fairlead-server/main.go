// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command fairlead-server is the standalone control plane: the embedded
// Kubernetes API with its controllers, the one-machine cluster, and kubectl.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"k8s.io/klog/v2"
)

// command is one thing that the program does. Its file adds it to commands.
type command struct {
	name, summary string
	run           func(ctx context.Context, args []string, io streams) error
}

// streams is what a command reads and writes besides files.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// commands is every command. A file adds its own in init, so that leaving the
// file out leaves the command out.
var commands []command

// version is set by the linker.
var version = "devel"

func init() {
	commands = append(commands, command{
		name:    "version",
		summary: "print the version",
		run: func(_ context.Context, _ []string, io streams) error {
			_, err := fmt.Fprintln(io.out, version)
			return err
		},
	})
}

// errUsage says that the arguments were wrong and that it has been said.
var errUsage = errors.New("wrong arguments")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr})
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "fairlead-server:", err)
		os.Exit(1)
	}
}

// run does what args say.
func run(ctx context.Context, args []string, io streams) error {
	if len(args) == 0 {
		usage(io.err)
		return errUsage
	}
	if name := args[0]; name == "help" || name == "-h" || name == "--help" {
		usage(io.out)
		return nil
	}
	for _, c := range commands {
		if c.name == args[0] {
			return c.run(ctx, args[1:], io)
		}
	}
	fmt.Fprintf(io.err, "fairlead-server: there is no command %q\n", args[0])
	usage(io.err)
	return errUsage
}

// usage lists the commands.
func usage(w io.Writer) {
	fmt.Fprint(w, "fairlead-server is the standalone control plane of Fairlead.\n\nUsage: fairlead-server COMMAND [FLAGS]\n\n")
	list := slices.SortedFunc(slices.Values(commands), func(a, b command) int { return strings.Compare(a.name, b.name) })
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range list {
		fmt.Fprintf(table, "  %s\t%s\n", c.name, c.summary)
	}
	table.Flush()
	fmt.Fprint(w, "\nfairlead-server COMMAND -h describes the flags of a command.\n")
}

// newLogger writes lines to w, and sends there what the Kubernetes libraries
// hold to be errors. What they tell besides is for those who build them.
func newLogger(w io.Writer) *slog.Logger {
	logger := slog.New(slog.NewTextHandler(w, nil))
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelError})))
	return logger
}

// parse reads flags and refuses anything else.
func parse(flags *flag.FlagSet, args []string, io streams) error {
	flags.SetOutput(io.err)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(io.err, "fairlead-server: %s takes no argument %q\n", flags.Name(), flags.Arg(0))
		return errUsage
	}
	return nil
}
