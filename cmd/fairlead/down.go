// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/cluster"
)

func newDownCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "down",
		Short: "Take this machine's cluster down, also one that was killed",
		Long: `Take this machine's cluster down, also one whose processes were killed: no process, network namespace,
mount or control group of it is left. The objects stay in the state directory for the next up, unless --purge removes it.
Where there is nothing to take down that is fine.`,
		Args: cobra.NoArgs,
	}
	state := stateFlag(c.Flags())
	purge := c.Flags().Bool("purge", false, "remove the state directory too, with all objects, keys and logs")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return runDown(c.Context(), *state, *purge, c.OutOrStdout())
	}
	return c
}

// Bounds of an orderly end, and of one by force.
const (
	orderly = 40 * time.Second
	forced  = 20 * time.Second
)

func runDown(ctx context.Context, state string, purge bool, out io.Writer) error {
	err := takeDown(ctx, state, purge, out)
	if errors.Is(err, cluster.ErrNoCluster) {
		// It was not there, or somebody else was removing it.
		fmt.Fprintf(out, "There is no cluster in %s.\n", state)
		return nil
	}
	return err
}

// takeDown is runDown where there is a cluster; if there is none, the error says so.
func takeDown(ctx context.Context, state string, purge bool, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("down needs root, as up does; run it with sudo")
	}
	dir, err := cluster.Open(state)
	if err != nil {
		return err
	}
	if _, err := dir.ReadRecord(); errors.Is(err, cluster.ErrNoCluster) {
		return err
	}
	began := time.Now()
	group, err := dir.ControlGroup()
	if err != nil {
		return err
	}
	lock, stopped, err := takeOver(ctx, dir, group)
	if err != nil {
		return err
	}
	defer lock.Close()
	left, err := removeLeft(dir, group)
	if err != nil {
		return err
	}
	if purge {
		if err := dir.Purge(); err != nil {
			return err
		}
	}
	_, stays := os.Stat(string(dir))
	switch {
	case purge && stays == nil:
		fmt.Fprintf(out, "The cluster is down and its files are removed (%.1f s). In %s the state of this node's own agent stays.\n", time.Since(began).Seconds(), dir)
	case purge:
		fmt.Fprintf(out, "The cluster is down and %s is removed (%.1f s).\n", dir, time.Since(began).Seconds())
	case stopped || left:
		fmt.Fprintf(out, "The cluster is down (%.1f s). Its objects are kept in %s.\n", time.Since(began).Seconds(), dir)
	default:
		fmt.Fprintf(out, "No cluster runs from %s.\n", dir)
	}
	return nil
}

// takeOver stops the cluster that runs from dir, if one does, and returns with the directory's lock: by asking first, and by force when that
// takes too long or ctx ends.
func takeOver(ctx context.Context, dir cluster.Dir, group cluster.ControlGroup) (lock *os.File, stopped bool, err error) {
	asked, force := false, time.Now().Add(orderly)
	for {
		lock, err := dir.Lock()
		if !errors.Is(err, cluster.ErrRunning) {
			return lock, stopped, err
		}
		stopped = true
		if !asked {
			// A start that has not come as far as its control socket is asked again.
			err := dir.Client().Stop(ctx)
			asked = err == nil
		}
		if ctx.Err() != nil || time.Now().After(force) {
			if err := group.Kill(); err != nil {
				return nil, stopped, err
			}
		}
		if time.Now().After(force.Add(forced)) {
			return nil, stopped, fmt.Errorf("another fairlead up holds %s and does not let go of it; end that first", dir)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
