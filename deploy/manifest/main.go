// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command manifest writes the plain manifest that is made from the chart.
package main

import (
	"fmt"
	"os"

	"github.com/fairlead/fairlead/deploy"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "manifest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: manifest FILE")
	}
	text, err := deploy.Plain()
	if err != nil {
		return err
	}
	if err := os.WriteFile(args[0], []byte(text), 0o644); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}
