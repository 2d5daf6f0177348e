// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/adopt"
	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/corefile"
	"github.com/fairlead/fairlead/kube"
	"github.com/fairlead/fairlead/model"
)

func newAdoptCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "adopt",
		Short: "Compare with kube-proxy and CoreDNS, and say how to take over from them",
		Long: `Compare what Fairlead would do on this node with what kube-proxy and CoreDNS do, and say step by step how to take over from them in a
live cluster, and how to go back.`,
		// A command that there is not is an error, and not a question for help: scripts go on after this one.
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newAdoptCheckCommand(), newAdoptPlanCommand())
	return c
}

// adoptOptions are the flags of adopt check beside the agent's.
type adoptOptions struct {
	only     string
	ask      []string
	allNames bool
	rate     int
	wait     time.Duration
	json     bool
}

// sampleOfNames is how many questions each server is asked if not all are.
const sampleOfNames = 2000

func newAdoptCheckCommand() *cobra.Command {
	var o adoptOptions
	c := &cobra.Command{
		Use:   "check",
		Short: "Compare what would be done here with what kube-proxy and CoreDNS do",
		Long: `Compare what an agent with these flags would do on this node with what kube-proxy has programmed and what CoreDNS answers. Nothing is
changed and no packet of anybody is touched; an agent may be running or not. It takes what the API server has, reads kube-proxy's nftables tables or
iptables chains, and follows its rules for clients of every kind at every Service's address and port; and it asks CoreDNS's pods for the Services' names.

Differences that docs/services.md and docs/dns.md have are meant. The exit code is 0 if there are no others, 1 if there are, and 2 if
something could not be compared. Run it in the node's network namespace: on the node, or in the agent's pod. There, --node is taken from the
environment variable NODE_NAME; the other flags are not taken from the agent's.`,
		Example: `  fairlead adopt check --node n1 --kubeconfig /etc/kubernetes/kubelet.conf --dns-ip 10.96.0.10
  kubectl -n kube-system exec ds/fairlead -- fairlead adopt check --only proxy`,
		Args: func(c *cobra.Command, args []string) error {
			if err := cobra.NoArgs(c, args); err != nil {
				return notCompared(c, err)
			}
			return nil
		},
	}
	c.SetFlagErrorFunc(notCompared)
	flags := config.AddFlags(c.Flags())
	c.Flags().StringVar(&o.only, "only", "", "compare `proxy` or dns only")
	c.Flags().StringSliceVar(&o.ask, "ask", nil, "DNS `servers` to ask, as ADDR or ADDR:PORT (default: the endpoints of the cluster DNS's Service)")
	c.Flags().BoolVar(&o.allNames, "all-names", false, fmt.Sprintf("ask for all names, not for %d of them", sampleOfNames))
	c.Flags().IntVar(&o.rate, "rate", 500, "DNS `questions` a second")
	c.Flags().DurationVar(&o.wait, "timeout", time.Minute, "how long to wait for the API server")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if node := os.Getenv("NODE_NAME"); node != "" && !c.Flags().Changed("node") {
			if err := c.Flags().Set("node", node); err != nil {
				return fmt.Errorf("adopt check: %w", err)
			}
		}
		cfg, err := flags.Agent()
		if err == nil {
			err = o.check()
		}
		var report *adopt.Report
		if err == nil {
			report, err = runAdoptCheck(c.Context(), cfg, &o, c.ErrOrStderr())
		}
		if err != nil {
			return notCompared(c, err)
		}
		if o.json {
			if err := printJSON(c.OutOrStdout(), report); err != nil {
				return notCompared(c, err)
			}
		} else {
			report.Print(c.OutOrStdout())
		}
		if code := report.Code(); code != 0 {
			return exitError(code)
		}
		return nil
	}
	return c
}

// notCompared says why nothing was compared, and ends with the code for that: 1 would mean differences.
func notCompared(c *cobra.Command, err error) error {
	fmt.Fprintln(c.ErrOrStderr(), "fairlead: adopt check:", err)
	return exitError(2)
}

func (o *adoptOptions) check() error {
	if o.only != "" && o.only != "proxy" && o.only != "dns" {
		return fmt.Errorf("--only: %q is neither proxy nor dns", o.only)
	}
	if o.rate < 1 || o.rate > 100_000 {
		return fmt.Errorf("--rate: %d is not between 1 and 100000", o.rate)
	}
	_, err := o.servers()
	return err
}

func (o *adoptOptions) servers() (all []netip.AddrPort, err error) {
	for _, s := range o.ask {
		at, err := netip.ParseAddrPort(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("--ask: %q is neither an address nor ADDR:PORT", s)
			}
			at = netip.AddrPortFrom(a, model.DNSPort)
		}
		all = append(all, at)
	}
	return all, nil
}

func runAdoptCheck(ctx context.Context, cfg *config.Agent, o *adoptOptions, complaints io.Writer) (*adopt.Report, error) {
	progress := func(s string) { fmt.Fprintln(complaints, s) }
	source, err := listed(ctx, cfg, o.wait, complaints)
	if err != nil {
		return nil, err
	}
	snap := source.Snapshot()
	r := &adopt.Report{Node: cfg.Node, Services: snap.Services.Len()}
	if o.only != "dns" {
		r.Parts = append(r.Parts, adopt.CheckProxy(ctx, adopt.ProxyOptions{Snapshot: source.Snapshot, Progress: progress}))
	}
	if o.only != "proxy" {
		names := dns.Options{Blocks: []dns.Block{cfg.Block}, Reverse: slices.Concat(snap.ServiceCIDRs, cfg.PodCIDRs)}
		if cfg.Corefile != "" {
			env := corefile.OS()
			env.ClusterDNS = cfg.DNS
			read, err := corefile.Load(cfg.Corefile, env)
			if err != nil {
				return nil, fmt.Errorf("--dns-corefile: %w", err)
			}
			names.Blocks = read.Blocks
		}
		servers, err := o.servers()
		if err != nil {
			return nil, err
		}
		most := sampleOfNames
		if o.allNames {
			most = 0
		}
		r.Parts = append(r.Parts, adopt.CheckDNS(ctx, adopt.DNSOptions{Snapshot: source.Snapshot, Names: names, Servers: servers, Most: most, Rate: o.rate, Progress: progress}))
	}
	return r, nil
}

// listed follows the API server as an agent does that is the service proxy, and returns when everything is there.
func listed(ctx context.Context, cfg *config.Agent, wait time.Duration, complaints io.Writer) (*kube.Source, error) {
	log := slog.New(slog.NewTextHandler(complaints, &slog.HandlerOptions{Level: slog.LevelError}))
	klog.SetSlogLogger(log)
	client, err := kube.NewClient(cfg.Kubeconfig, cfg.APIServers...)
	if err != nil {
		return nil, err
	}
	view := cfg.View()
	view.Left &^= model.Proxy
	source := kube.New(kube.Options{Client: client, Logger: log, Config: view})
	go source.Run(ctx)
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	for source.Snapshot() == nil {
		select {
		case <-source.Changed():
		case <-deadline.C:
			return nil, fmt.Errorf("the API server at %s has not listed %s within %s", client.Server(), strings.Join(source.Waiting(), ", "), wait)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return source, nil
}

// planOptions are the flags of adopt plan.
type planOptions struct {
	kubeconfig string
	json       bool
}

func newAdoptPlanCommand() *cobra.Command {
	var o planOptions
	c := &cobra.Command{
		Use:   "plan",
		Short: "Print the steps of taking over this cluster, and of going back",
		Long: `Look at what this cluster has (kube-proxy, CoreDNS and its Corefile, NodeLocal DNSCache, k3s's and kind's own) and print the steps of taking over
from it live: each with its command, how to see that it worked, and how to undo it. Nothing is changed.
The exit code is 1 if something is in the way.`,
		Example: "  fairlead adopt plan --kubeconfig ~/.kube/config",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := kube.NewClient(o.kubeconfig)
			if err != nil {
				return fmt.Errorf("adopt plan: %w", err)
			}
			plan, err := adopt.MakePlan(c.Context(), client.Get)
			if err != nil {
				return fmt.Errorf("adopt plan: %w", err)
			}
			if !o.json {
				plan.Print(c.OutOrStdout())
			} else if err := printJSON(c.OutOrStdout(), plan); err != nil {
				return err
			}
			if len(plan.Obstacles) > 0 {
				return exitError(1)
			}
			return nil
		},
	}
	c.Flags().StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig `file`; without it, the in-cluster configuration")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return c
}
