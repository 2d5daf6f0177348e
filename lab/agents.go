// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/fairlead/fairlead/cluster"
)

const (
	// goneTimeout is the longest that the end of a pod waits for the nodes' kernels.
	goneTimeout = 2 * time.Second
	// settle is the pause between the kernels' acknowledgement and SIGTERM. A connection that a kernel let through an instant before
	// may still lie in the pod's accept queue; a program that closes its socket at once would reset it.
	settle = 100 * time.Millisecond
)

// agents asks the nodes' agents over their sockets.
type agents struct {
	nodes   map[string]*http.Client
	count   *counters
	returns func(node string) bool // whether an agent that does not answer is on its way back
	after   *time.Duration         // see Options.StopAfter
}

func newAgents(dir cluster.Dir, nodes []string, count *counters) *agents {
	a := &agents{nodes: map[string]*http.Client{}, count: count, returns: func(string) bool { return false }}
	for _, n := range nodes {
		path := dir.Node(n).AgentSocket()
		a.nodes[n] = &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return cluster.DialUnix(ctx, path)
			},
			IdleConnTimeout: 30 * time.Second,
		}}
	}
	return a
}

// get returns the status code and the beginning of the body of an agent's answer.
func (a *agents) get(ctx context.Context, node, path string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return 0, "", fmt.Errorf("ask agent of %s: %w", node, err)
	}
	resp, err := a.nodes[node].Do(req)
	if err != nil {
		return 0, "", fmt.Errorf("ask agent of %s: %w", node, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return 0, "", fmt.Errorf("ask agent of %s: %w", node, err)
	}
	return resp.StatusCode, strings.TrimSpace(string(body)), nil
}

// ready returns nil when the node's agent has programmed the node, and otherwise its own sentence on what it waits for.
func (a *agents) ready(ctx context.Context, node string) error {
	code, text, err := a.get(ctx, node, "/v1/ready")
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return fmt.Errorf("agent of %s is not ready: %s", node, text)
	}
	return nil
}

// waitGone returns when no kernel of any node sends new connections for a Service to these addresses any more, or when goneTimeout is
// over.
//
// This is what makes a rolling update lose no request. Elsewhere the removal of an endpoint and the SIGTERM to its
// program race each other, and users put a sleep into a preStop hook to let the first win. Here the program is told to stop only when
// every node has acknowledged. The wait is bounded, and a node whose agent was stopped is left out: a pod must be
// able to end whatever else is broken. An agent that was killed is waited for within the bound, because its kernel still sends.
func (a *agents) waitGone(ctx context.Context, addrs []netip.Addr) {
	if len(addrs) == 0 {
		return
	}
	if a.after != nil {
		select {
		case <-time.After(*a.after):
		case <-ctx.Done():
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for node := range a.nodes {
		for _, addr := range addrs {
			wg.Go(func() {
				code, err := a.gone(ctx, node, addr)
				switch {
				case ctx.Err() != nil || code == http.StatusGatewayTimeout:
					a.count.add("pod_stop_wait_timeouts", 1)
				case err != nil:
					a.count.add("pod_stop_wait_agent_down", 1)
				default:
					a.count.add("pod_stop_waits_acknowledged", 1)
				}
			})
		}
	}
	wg.Wait()
	select {
	case <-time.After(settle):
	case <-ctx.Done():
	}
}

// agentRetry is how long after a failure a returning agent is asked again.
const agentRetry = 50 * time.Millisecond

// gone asks one node, and asks again while its agent is being restarted.
func (a *agents) gone(ctx context.Context, node string, addr netip.Addr) (int, error) {
	for {
		code, _, err := a.get(ctx, node, fmt.Sprintf("/v1/wait?gone=%s&timeout=%s", addr, goneTimeout))
		if err == nil || ctx.Err() != nil || !a.returns(node) {
			return code, err
		}
		select {
		case <-time.After(agentRetry):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// counters are what status shows. The zero value is not usable; see newCounters.
type counters struct {
	mu sync.Mutex
	n  map[string]int64
}

func newCounters() *counters { return &counters{n: map[string]int64{}} }

func (c *counters) add(name string, n int64) {
	c.mu.Lock()
	c.n[name] += n
	c.mu.Unlock()
}

// snapshot copies the counters.
func (c *counters) snapshot() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]int64, len(c.n))
	for k, v := range c.n {
		out[k] = v
	}
	return out
}
