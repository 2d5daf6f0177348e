// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	fairlead "github.com/fairlead/fairlead/agent"
	"github.com/fairlead/fairlead/config"
)

func newAgentCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run this node's service proxy, cluster DNS and pod network",
		Long: `Run this node's service proxy, cluster DNS and pod network, in the network namespace it is started in. Each of the three can be left to another
program: the proxy with --proxy=false, the DNS by giving no --dns-ip, the pod network by giving no --cni-conf-dir.

What the agent has programmed stays in the kernel when the agent ends; the next start adopts it and writes
only what differs. fairlead cleanup removes it.

The command is two processes: the first holds the sockets, and starts the second, which is the agent, again when
it ends. SIGHUP to the first replaces the agent by the program that is now at the same path; starting the command
again with the same --state takes over from the one that runs. No DNS query is lost either way.`,
		Args: cobra.NoArgs,
	}
	flags := config.AddFlags(c.Flags())
	verbose := c.Flags().BoolP("verbose", "v", false, "log every change")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := flags.Agent()
		if err != nil {
			return err
		}
		level := slog.LevelInfo
		if *verbose {
			level = slog.LevelDebug
		}
		log := slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
		if err := fairlead.Run(c.Context(), cfg, version, log.With("node", cfg.Node)); err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		return nil
	}
	return c
}
