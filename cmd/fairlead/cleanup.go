// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/nft"
	"github.com/fairlead/fairlead/nodenet"
)

func newCleanupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what an agent has programmed in this network namespace: its nftables table and its routes",
		Long: `Remove what an agent has programmed in this network namespace: its nftables table and its routes.

It needs no other state, touches nothing of other programs, and is fine with nothing to remove. End the
agent first, or it programs everything again at the next change.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := errors.Join(nft.Cleanup(nft.Options{}), nodenet.Cleanup()); err != nil {
				return fmt.Errorf("cleanup: %w", err)
			}
			fmt.Fprintln(c.OutOrStdout(), "removed; Services are no longer served in this network namespace")
			return nil
		},
	}
}
