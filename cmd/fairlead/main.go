// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command fairlead is what a node carries: the agent, the CNI plugin, and the operator's commands. It does not
// link the API server, so that an agent stays small; the one-machine cluster's control plane is fairlead-server.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/podnet"
)

// version is set by the linker.
var version = "devel"

func main() {
	// A container runtime starts the CNI plugin without arguments and says what it wants in the environment. That start is counted in
	// milliseconds, so nothing else is set up for it.
	if os.Getenv("CNI_COMMAND") != "" && len(os.Args) == 1 {
		podnet.Main()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		var exit exitError
		if errors.As(err, &exit) {
			os.Exit(int(exit))
		}
		fmt.Fprintln(os.Stderr, "fairlead:", err)
		os.Exit(1)
	}
}

// exitError ends the program with a code and without a message: the command has said what there was to say.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "fairlead",
		Short:         "Kubernetes service networking in one small program per node",
		Long:          "Fairlead guides a connection from a name, to a stable address, to a ready pod:\nservice proxy, cluster DNS and pod network from one state.",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddGroup(
		&cobra.Group{ID: "cluster", Title: "A cluster on this machine:"},
		&cobra.Group{ID: "ask", Title: "Ask a node:"},
		&cobra.Group{ID: "node", Title: "On a node:"},
	)
	group := func(id string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("cluster", newUpCommand(), newDownCommand(), newExecCommand(), newLogsCommand())
	group("ask", newStatusCommand(), newExplainCommand(), newDumpCommand())
	group("node", newAgentCommand(), newReadyCommand(), newDoctorCommand(), newAdoptCommand(), newCleanupCommand())
	root.AddCommand(newPauseCommand(), newProbeCommand())
	return root
}
