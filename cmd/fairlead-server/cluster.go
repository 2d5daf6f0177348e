// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/lab"
)

func init() {
	commands = append(commands, command{
		name:    "cluster",
		summary: "the supervisor of the one-machine cluster; fairlead up starts it",
		run:     runCluster,
	})
}

// Two things that the scenarios change about a cluster and nobody else should: they make it worse. They come by the environment, through fairlead up.
const (
	// envAgentFlags are more flags of the nodes' agents, with spaces between them.
	envAgentFlags = "FAIRLEAD_LAB_AGENT_FLAGS"
	// envStopAfter is a duration after which deleted pods are told to stop, instead of waiting for the nodes.
	envStopAfter = "FAIRLEAD_LAB_STOP_AFTER"
)

// runCluster keeps a one-machine cluster until it is told to end. It is started by fairlead up, in namespaces of its own and with three
// descriptors to inherit.
func runCluster(ctx context.Context, args []string, io streams) error {
	flags := flag.NewFlagSet("cluster", flag.ContinueOnError)
	state := flags.String("state", cluster.DefaultDir, "state `directory`")
	version := flags.String("version", "devel", "`version` that the nodes show")
	if err := parse(flags, args, io); err != nil {
		return err
	}
	progress, listener, lock, err := lab.Inherited()
	if err != nil {
		return err
	}
	defer lock.Close()
	dir, err := cluster.Open(*state)
	if err != nil {
		return err
	}
	server, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	var stopAfter *time.Duration
	if s := os.Getenv(envStopAfter); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf("read %s: %w", envStopAfter, err)
		}
		stopAfter = &d
	}
	err = lab.Run(ctx, lab.Options{
		Dir:      dir,
		Fairlead: filepath.Join(filepath.Dir(server), "fairlead"),
		Server:   server,
		Version:  *version,
		Listener: listener,
		Progress: progress,

		AgentFlags: strings.Fields(os.Getenv(envAgentFlags)),
		StopAfter:  stopAfter,
		Logger:     newLogger(io.err),
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
