// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/explain"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/status"
)

// stateEnv names the state directory for users who do not want to repeat --state.
const stateEnv = "FAIRLEAD_STATE"

// askTimeout bounds one question to an agent, which answers from what it has at hand.
const askTimeout = 5 * time.Second

// where says which agents a command asks: those of a one-machine cluster, or one by its socket.
type where struct {
	state, socket, node string
}

func (w *where) flags(c *cobra.Command) {
	state := cluster.DefaultDir
	if s := os.Getenv(stateEnv); s != "" {
		state = s
	}
	c.Flags().StringVar(&w.state, "state", state, "`directory` of the one-machine cluster (environment: "+stateEnv+")")
	c.Flags().StringVar(&w.socket, "socket", "", "`path` of one agent's socket, instead of the one-machine cluster's")
}

// agent is one agent to ask. Its node is not known if it was found by its socket.
type agent struct {
	node   string
	client *status.Client
}

// here finds the agent of a node that is no part of a one-machine cluster: in a cluster's pod, or on a node, nobody should have to name it.
func (w *where) here() {
	if w.socket != "" || w.state != cluster.DefaultDir {
		return
	}
	if dir, err := cluster.Open(w.state); err == nil {
		if _, err := dir.ReadRecord(); err == nil {
			return
		}
	}
	node := config.Agent{State: config.DefaultState}
	if _, err := os.Stat(node.Socket()); err == nil {
		w.socket = node.Socket()
	}
}

// agents finds the agents to ask, in the order of their nodes.
func (w *where) agents() ([]agent, error) {
	w.here()
	if w.socket != "" {
		if w.node != "" {
			return nil, fmt.Errorf("%q: only nodes of a one-machine cluster are named; the agent at %s speaks for its own node", w.node, w.socket)
		}
		return []agent{{client: status.Dial(w.socket)}}, nil
	}
	dir, err := cluster.Open(w.state)
	if err != nil {
		return nil, err
	}
	rec, err := dir.ReadRecord()
	if err != nil {
		return nil, notRunning(w.state, err)
	}
	var out []agent
	for _, n := range rec.Params.NodeNames() {
		if w.node == "" || w.node == n {
			out = append(out, agent{n, status.Dial(dir.Node(n).AgentSocket())})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("there is no node %q; the nodes are %s", w.node, strings.Join(rec.Params.NodeNames(), ", "))
	}
	return out, nil
}

// notRunning says what to do about a cluster that cannot be asked.
func notRunning(state string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; the cluster belongs to root, run this with sudo", err)
	}
	return fmt.Errorf("%w; start it with fairlead up --state %s, or name an agent's --socket", err, state)
}

func newStatusCommand() *cobra.Command {
	var w where
	var asJSON bool
	c := &cobra.Command{
		Use:   "status [NODE]",
		Short: "Show what the agents have programmed, what is pending, and what is off and why",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			w.node = strings.Join(args, "")
			return runStatus(c.Context(), &w, asJSON, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	w.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func runStatus(ctx context.Context, w *where, asJSON bool, out, complaints io.Writer) error {
	agents, err := w.agents()
	if err != nil {
		return err
	}
	reports, errs := askAll(ctx, agents)
	broken := 0
	for i, r := range reports {
		if errs[i] != nil {
			broken++
			of := ""
			if agents[i].node != "" {
				of = "node " + agents[i].node + ": "
			}
			fmt.Fprintf(complaints, "%sthe agent does not answer: %v\n", of, errs[i])
			continue
		}
		if !asJSON {
			r.Print(out)
		}
		if r.Ready() != "" {
			broken++
		}
	}
	if asJSON {
		if err := printJSON(out, slices.DeleteFunc(reports, func(r *status.Report) bool { return r == nil })); err != nil {
			return err
		}
	}
	if broken > 0 {
		return exitError(1)
	}
	return nil
}

// askAll asks every agent at the same time, so that one that hangs is named and the others are heard.
func askAll(ctx context.Context, agents []agent) ([]*status.Report, []error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reports, errs := make([]*status.Report, len(agents)), make([]error, len(agents))
	var wg sync.WaitGroup
	for i, a := range agents {
		wg.Go(func() {
			if r, err := a.client.Report(ctx); err != nil {
				errs[i] = err
			} else {
				reports[i] = r
			}
		})
	}
	wg.Wait()
	return reports, errs
}

func newExplainCommand() *cobra.Command {
	var w where
	var asJSON, probe bool
	c := &cobra.Command{
		Use:   "explain NAMESPACE/POD NAME:PORT",
		Short: "Walk a connection from a pod to a name, step by step, as the live system would carry it",
		Long: `Walk a connection from a pod to a name, step by step, as the live system would carry it.

NAME is a name as the pod would write it (orders, orders.shop, an address); PORT is a number or the name of
a Service's port; NAME:PORT/udp asks about UDP. The DNS is asked over the wire, and map entries and routes are read
from the pod's node's kernel. The exit code is 2 if something on the way would stop the connection.`,
		Example: "  fairlead explain shop/POD orders:80\n  fairlead explain shop/POD orders:80 --probe --json",
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return runExplain(c.Context(), &w, args[0], args[1], probe, asJSON, c.OutOrStdout())
		},
	}
	w.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&probe, "probe", false, "make the connection too, from inside the pod")
	return c
}

func runExplain(ctx context.Context, w *where, pod, target string, probe, asJSON bool, out io.Writer) error {
	namespace, name, ok := strings.Cut(pod, "/")
	if !ok || namespace == "" || name == "" {
		return fmt.Errorf("explain %q: want NAMESPACE/POD, for example shop/front", pod)
	}
	parsed, err := explain.ParseTarget(target)
	if err != nil {
		return err
	}
	if w.here(); w.socket == "" {
		node, err := nodeOf(ctx, w.state, model.Name{Namespace: namespace, Name: name})
		if err != nil {
			return err
		}
		w.node = node
	} else if probe {
		return fmt.Errorf("--probe needs the one-machine cluster that the pod runs in, not --socket")
	}
	agents, err := w.agents()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*askTimeout) // the DNS may be slow, and a probe too
	defer cancel()
	walk := new(explain.Walk)
	if err := agents[0].client.Get(ctx, "/v1/explain", url.Values{"pod": {pod}, "target": {target}}, walk); err != nil {
		return err
	}
	if probe {
		if err := probeFrom(ctx, w.state, namespace, name, parsed, agents[0].client, walk); err != nil {
			return err
		}
	}
	if asJSON {
		err = printJSON(out, walk)
	} else {
		walk.Print(out)
	}
	if err == nil && len(walk.Findings) > 0 {
		return exitError(2)
	}
	return err
}

// nodeOf asks the one-machine cluster where a pod runs.
func nodeOf(ctx context.Context, state string, pod model.Name) (string, error) {
	dir, err := cluster.Open(state)
	if err != nil {
		return "", err
	}
	st, err := dir.Client().Status(ctx)
	if err != nil {
		return "", notRunning(state, err)
	}
	i := slices.IndexFunc(st.Pods, func(p cluster.PodStatus) bool { return p.Namespace == pod.Namespace && p.Name == pod.Name })
	if i < 0 {
		return "", fmt.Errorf("no pod %s runs in this cluster; fairlead-server kubectl get pods -A lists them", pod)
	}
	return st.Pods[i].Node, nil
}

func newDumpCommand() *cobra.Command {
	var w where
	c := &cobra.Command{
		Use:   "dump model|nft|routes|dns|fastpath|sockets [NODE]",
		Short: "Print a part of a node's state as stable text: what bug reports contain and tests compare",
		Long: `Print a part of a node's state as stable text.

  model     the Services, endpoints, nodes and pods that the agent knows and has programmed
  nft       what the kernel's nftables maps hold, read from the kernel
  routes    the routes between nodes, read from the kernel
  dns       the cluster zone in zone-file form
  fastpath  the pods and devices of the pods' fast path, read from the kernel
  sockets   where pods' connections to Services are led when they are made, read from the kernel`,
		Args:      cobra.RangeArgs(1, 2),
		ValidArgs: []string{"model", "nft", "routes", "dns", "fastpath", "sockets"},
		RunE: func(c *cobra.Command, args []string) error {
			w.node = strings.Join(args[1:], "")
			return runDump(c.Context(), &w, args[0], c.OutOrStdout())
		},
	}
	w.flags(c)
	return c
}

func runDump(ctx context.Context, w *where, what string, out io.Writer) error {
	agents, err := w.agents()
	if err != nil {
		return err
	}
	for _, a := range agents {
		var text string
		if err := a.client.Get(ctx, "/v1/dump", url.Values{"what": {what}}, &text); err != nil {
			of := ""
			if a.node != "" {
				of = " of node " + a.node
			}
			return fmt.Errorf("dump %s%s: %w", what, of, err)
		}
		if len(agents) > 1 {
			fmt.Fprintf(out, "# node %s\n", a.node)
		}
		fmt.Fprint(out, text)
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}
