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
	err = lab.Run(ctx, lab.Options{
		Dir:      dir,
		Fairlead: filepath.Join(filepath.Dir(server), "fairlead"),
		Server:   server,
		Version:  *version,
		Listener: listener,
		Progress: progress,
		Logger:   newLogger(io.err),
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
