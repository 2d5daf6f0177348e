// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command shop is the small program behind the example shop: one binary that
// plays every service of it, and every client that measures it.
//
// As a server it answers each HTTP request and each UDP datagram with one line
// of JSON that says who answered (pod, node, version) and which client address
// it saw, so that a request tells the path it took. As a client it counts what
// failed and how, because "it works" is not a figure.
//
//	shop serve       answer over HTTP and UDP, optionally asking upstreams first
//	shop get         one HTTP request, or many with a summary
//	shop udp         one datagram and its answer, or many with a summary
//	shop watch-name  ask the DNS for a name until it answers, then connect at once
//	shop dns         a steady rate of DNS queries, with what was lost or wrong
//
// Every client command is bounded in time and count and ends by itself. It
// uses the standard library alone, so it builds to one static file that runs
// in an empty image.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// command is one row of the table that main is.
type command struct {
	name string
	args string
	run  func(ctx context.Context, args []string, out io.Writer) error
}

// commands lists what the program can do, in the order the usage shows it.
func commands() []command {
	return []command{
		{"serve", "[-http ADDR,...] [-udp ADDR] [-version V] [-upstream URL,...]", serveMain},
		{"get", "[-n N] [-rate R] [-duration D] [-c WORKERS] [-fresh-conn] [-plain] URL...", getMain},
		{"udp", "[-n N] [-rate R] [-duration D] [-c WORKERS] HOST:PORT...", udpMain},
		{"watch-name", "[-timeout D] [-rate R] NAME:PORT...", watchMain},
		{"dns", "[-rate R] [-duration D] [-server ADDR] [-type T] NAME", dnsMain},
	}
}

// errFailed says that the command did its work, printed its result, and that
// the result is a failure; nothing more needs to be said.
var errFailed = errors.New("not every request succeeded")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout); {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errFailed):
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(2)
	}
}

// run finds the command named by args[0] and runs it with the rest.
func run(ctx context.Context, args []string, out io.Writer) error {
	for _, c := range commands() {
		if len(args) > 0 && args[0] == c.name {
			return c.run(ctx, args[1:], out)
		}
	}
	usage := "usage:"
	for _, c := range commands() {
		usage += fmt.Sprintf("\n  shop %-10s %s", c.name, c.args)
	}
	return errors.New(usage)
}

// parse reads args into fs and returns what is left. Flags may also follow the
// first positional argument, as people type them.
func parse(fs *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		if fs.NArg() == 0 {
			return rest, nil
		}
		rest = append(rest, fs.Arg(0))
		args = fs.Args()[1:]
	}
}
