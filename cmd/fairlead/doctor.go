// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/dns/corefile"
)

// doctorOptions are the flags of the command.
type doctorOptions struct {
	corefile string
	dns      []string
	json     bool
}

func newDoctorCommand() *cobra.Command {
	var o doctorOptions
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what becomes of a CoreDNS configuration, line by line",
		Long: `Say what becomes of a CoreDNS configuration, line by line: what is honoured, what is honoured in another way, what has no effect
here, and what is refused, why, and what to do instead. Nothing is changed, and no agent is asked. It ends with code 1 if an agent would refuse the
configuration.

The Corefile of a cluster is in the ConfigMap coredns of the namespace kube-system:

  kubectl -n kube-system get configmap coredns -o jsonpath='{.data.Corefile}' > Corefile`,
		Example: "  fairlead doctor --corefile Corefile\n  fairlead doctor --corefile /etc/coredns --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return runDoctor(&o, c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&o.corefile, "corefile", "", "Corefile, or `directory` that has one (required)")
	c.Flags().StringSliceVar(&o.dns, "dns-ip", nil, "cluster DNS's virtual `addresses`: what is forwarded to them is answered by the agent itself")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return c
}

// finding is a line of what the command prints as JSON.
type finding struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Text string `json:"text"`
	Fate string `json:"fate"`
	Why  string `json:"why,omitempty"`
}

func runDoctor(o *doctorOptions, out io.Writer) error {
	if o.corefile == "" {
		return errors.New("doctor: which configuration? Name it with --corefile")
	}
	env := corefile.OS()
	for _, s := range o.dns {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("doctor: --dns-ip: %q is no IP address", s)
		}
		env.ClusterDNS = append(env.ClusterDNS, a)
	}
	read, err := corefile.Load(o.corefile, env)
	if read == nil {
		return fmt.Errorf("doctor: %w", err)
	}
	if o.json {
		findings := make([]finding, 0, len(read.Notes))
		for _, n := range read.Notes {
			findings = append(findings, finding{n.File, n.Line, n.Text, n.Fate.String(), n.Why})
		}
		if err := printJSON(out, findings); err != nil {
			return err
		}
	} else if _, err := io.WriteString(out, corefile.Explain(read)); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err != nil {
		return exitError(1)
	}
	return nil
}
