// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/cleanup"
	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/status"
)

// cleanupOptions are the flags of the command.
type cleanupOptions struct {
	cleanup.Options
	socket string
	json   bool
}

func newCleanupCommand() *cobra.Command {
	var o cleanupOptions
	agent := config.Agent{State: config.DefaultState}
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what an agent, or kube-proxy, has programmed in this network namespace",
		Long: `Remove what an agent has programmed in this network namespace: its nftables table, and its routes to other nodes'
pods and for the cluster DNS's addresses. Pods keep their interfaces and routes, which go with the pods.

It needs no other state, touches nothing of other programs, and is fine with nothing to remove. While an agent is running it refuses, as the agent
would program everything again; end the agent first.

With --kube-proxy, what kube-proxy has left goes too: the nftables tables of its mode nftables, and the chains of its mode iptables with the
jumps to them, from both implementations of iptables (nft and legacy), by way of the programs iptables-save and iptables-restore. The kubelet's chains
stay. Of its mode ipvs, the virtual servers, IP sets and the interface kube-ipvs0 stay: kube-proxy --cleanup removes those.
End kube-proxy first, or it programs everything again. With --only-kube-proxy, this goes and nothing of an agent's does: so it is done under a
running agent that has taken over.`,
		Example: "  fairlead cleanup --kube-proxy --dry-run\n  fairlead cleanup --kube-proxy --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return runCleanup(c.Context(), &o, c.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&o.KubeProxy, "kube-proxy", false, "also remove what kube-proxy has left")
	c.Flags().BoolVar(&o.OnlyKubeProxy, "only-kube-proxy", false, "remove what kube-proxy has left, and nothing of an agent's; an agent may be running")
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "print what would be removed, and leave it")
	c.Flags().BoolVar(&o.Force, "force", false, "remove even while an agent is running")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	c.Flags().StringVar(&o.socket, "socket", agent.Socket(), "`path` of the agent's socket, to see whether it is running")
	return c
}

func runCleanup(ctx context.Context, o *cleanupOptions, out io.Writer) error {
	if !o.DryRun && !o.Force && !o.OnlyKubeProxy && status.Running(ctx, o.socket) {
		return fmt.Errorf("cleanup: an agent answers on %s; end it first, or use --force", o.socket)
	}
	report, failed := cleanup.Run(ctx, o.Options)
	if o.json && !errors.Is(failed, cleanup.ErrRunning) {
		if err := printJSON(out, report); err != nil {
			return err
		}
	} else if failed == nil || len(report.Removed)+len(report.Notes) > 0 {
		report.Print(out)
	}
	switch {
	case errors.Is(failed, cleanup.ErrRunning):
		return fmt.Errorf("cleanup: %w, or use --force", failed)
	case failed != nil:
		return fmt.Errorf("cleanup: %w", failed)
	}
	return nil
}
