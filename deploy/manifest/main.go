// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command manifest writes the plain manifest that is made from the chart: the one of the repository, or with -values one that fits a cluster, for
// those who do not use helm.
package main

import (
	"flag"
	"fmt"
	"os"

	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/deploy"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "manifest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	fs := flag.NewFlagSet("manifest", flag.ContinueOnError)
	from := fs.String("values", "", "YAML `file` with values of the chart, which replace its own")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return fmt.Errorf("usage: manifest [-values FILE] FILE")
	}
	values := map[string]any{}
	if *from != "" {
		text, err := os.ReadFile(*from)
		if err != nil {
			return fmt.Errorf("read values: %w", err)
		}
		if err := yaml.Unmarshal(text, &values); err != nil {
			return fmt.Errorf("read values in %s: %w", *from, err)
		}
	}
	text, err := deploy.Plain(values)
	if err != nil {
		return err
	}
	if err := os.WriteFile(fs.Arg(0), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}
