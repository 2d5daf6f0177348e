// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/status"
)

const (
	// readyTimeout is how long ready waits by default, which is less than an agent lets anyone wait.
	readyTimeout = 50 * time.Second
	// readyPause is the time between two questions while somebody else answers, or nobody.
	readyPause = 200 * time.Millisecond
)

func newReadyCommand() *cobra.Command {
	var socket string
	var timeout time.Duration
	agent := config.Agent{State: config.DefaultState}
	c := &cobra.Command{
		Use:   "ready",
		Short: "Wait until the agent of this container has taken the node over: for startup probes",
		Long: `Wait until the agent of this container has taken the node over: it has programmed the kernel, answers DNS, and has written
the CNI configuration. The exit code is 1, and the reason is printed, when the time is over before.

An agent outside of this container does not count. While an upgrade starts a new pod beside the old one, the old agent answers on the node's socket; if it
were taken for the new one, the old pod would be ended too early.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			own, err := os.Readlink("/proc/self/ns/pid")
			if err != nil {
				return fmt.Errorf("ready: %w", err)
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			return waitReady(ctx, status.Dial(socket), own)
		},
	}
	c.Flags().StringVar(&socket, "socket", agent.Socket(), "`path` of the agent's socket")
	c.Flags().DurationVar(&timeout, "timeout", readyTimeout, "how long to wait")
	return c
}

// waitReady returns once an agent whose process ids are numbers in the PID namespace own says that it is ready.
func waitReady(ctx context.Context, client *status.Client, own string) error {
	var last error
	for {
		why := askReady(ctx, client, own)
		if why == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil { // that the time is over is no reason
			last = why
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", last)
		case <-time.After(readyPause):
		}
	}
}

var errOther = errors.New("an agent outside of this container answers; the one inside has not taken over yet")

// askReady asks once; whether the agent is ready, it is let wait to say.
func askReady(ctx context.Context, client *status.Client, own string) error {
	r, err := client.Report(ctx)
	switch {
	case err != nil:
		return err
	case r.PIDNamespace != own:
		return errOther
	}
	left := time.Second
	if end, ok := ctx.Deadline(); ok {
		left = max(time.Until(end)-time.Second, 0) // so that it is the agent who says why
	}
	var text string
	return client.Get(ctx, "/v1/deliver", url.Values{"timeout": {left.String()}}, &text)
}
