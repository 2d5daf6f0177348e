// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/explain"
	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nft"
	"github.com/fairlead/fairlead/nodenet"
	"github.com/fairlead/fairlead/status"
)

var _ status.Agent = (*Node)(nil)

// Report implements status.Agent.
func (n *Node) Report() *status.Report {
	r := &status.Report{
		Node: n.cfg.Node, Version: n.version, PID: os.Getpid(), Holder: n.held.Holder(), Started: n.started, Server: n.client.Server(),
		Waiting: n.source.Waiting(), Flawed: n.source.Flawed(), Progress: n.state.Progress(),
	}
	r.Off = append(r.Off, n.source.Troubles()...)
	if n.source.Relying() {
		r.KeptOf = n.kept.saved()
	}
	if problem := n.kept.problem(); problem != "" {
		r.Off = append(r.Off, problem)
	}
	r.PIDNamespace, _ = os.Readlink("/proc/self/ns/pid") // without it, ready does not know its own agent
	if snap := n.state.Acknowledged(); snap != nil {
		r.Services, r.Nodes, r.Pods = snap.Services.Len(), snap.Nodes.Len(), snap.Pods.Len()
		for _, svc := range snap.Services.All() {
			r.Endpoints += len(svc.Endpoints)
		}
		if snap.Node() == nil {
			r.Off = append(r.Off, fmt.Sprintf("%s off: the API server has no Node %q", n.wanting(), n.cfg.Node))
		} else if !n.cfg.Left.Has(model.Network) && len(snap.Node().PodCIDRs) == 0 {
			r.Off = append(r.Off, fmt.Sprintf("%s off: Node %q has no pod CIDR yet; kube-controller-manager gives it one with --allocate-node-cidrs", n.wanting(), n.cfg.Node))
		}
	}
	r.Left = n.left()
	if problem := n.asProxy.Problem(); problem != "" {
		r.Off = append(r.Off, problem)
	}
	for _, u := range n.names.Upstreams() {
		addr := u.Addr.String()
		if u.TLS {
			addr = "tls://" + addr
		}
		r.DNS.Upstreams = append(r.DNS.Upstreams, status.Upstream{Zone: u.Zone, Addr: addr, State: u.State, Why: u.Why, Answered: u.Answered, Failed: u.Failed, Spoofs: u.SuspectedSpoofs})
	}
	if len(r.DNS.Upstreams) == 0 && len(n.cfg.DNS) > 0 {
		r.Off = append(r.Off, "names outside the cluster are refused: no upstream is configured")
	}
	for _, t := range n.names.Top(topClients, client.Queries) {
		r.DNS.Top = append(r.DNS.Top, status.Asker{Name: t.Name, Queries: t.Queries, Denials: t.Denials, Upstream: t.Upstream})
	}
	n.mu.Lock()
	if n.limits != nil {
		r.Off = append(r.Off, fmt.Sprintf("connections are tracked within the kernel's own limits: %s", oneLine(n.limits)))
	}
	if n.dnsStale != "" {
		r.Off = append(r.Off, n.dnsStale)
	}
	for _, port := range n.dnsMetrics {
		if problem := port.Problem(); problem != "" {
			r.Off = append(r.Off, problem)
		}
	}
	for _, a := range n.dnsOn {
		r.DNS.Addresses = append(r.DNS.Addresses, a.String())
	}
	n.mu.Unlock()
	n.count(r)
	return r
}

// wanting are the roles that wait for the Node, as the beginning of a sentence.
func (n *Node) wanting() string {
	var roles []string
	if len(n.cfg.DNS) > 0 {
		roles = append(roles, "DNS")
	}
	if !n.cfg.Left.Has(model.Network) {
		roles = append(roles, "pod network")
	}
	switch len(roles) {
	case 0:
		return "the node's readiness is"
	case 1:
		return roles[0] + " is"
	}
	return strings.Join(roles, " and ") + " are"
}

// left are the roles that other programs have.
func (n *Node) left() (roles []string) {
	if n.cfg.Left.Has(model.Proxy) {
		roles = append(roles, "service proxy")
	}
	if len(n.cfg.DNS) == 0 {
		roles = append(roles, "cluster DNS")
	}
	if n.cfg.Left.Has(model.Network) {
		roles = append(roles, "pod network")
	}
	return roles
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// topClients is how many of those who ask most a report names.
const topClients = 5

// count fills in the numbers, which are the metrics' own.
func (n *Node) count(r *status.Report) {
	families, err := n.metrics.Gather()
	if err != nil {
		r.Off = append(r.Off, fmt.Sprintf("counters: %v", err))
		return
	}
	sums := make(map[string]uint64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			sums[f.GetName()] += uint64(m.GetCounter().GetValue())
		}
	}
	r.DNS.Queries = sums["coredns_dns_requests_total"]
	r.DNS.Waits = sums["fairlead_dns_waits_total"]
	r.DNS.TimedOut = sums["fairlead_dns_wait_timeouts_total"]
	stats := n.plane.Stats()
	r.Dataplane = status.Dataplane{Transactions: stats.Transactions, Elements: stats.Elements, Conntrack: stats.Flows, Drift: stats.Drift}
	if snap := n.state.Acknowledged(); snap != nil {
		r.Disputed, r.PassingOn = disputes(snap), passingOn(snap)
	}
	if d, err := nft.ReadDropped(nft.Options{}); err == nil {
		r.Dataplane.NoLocal, r.Dataplane.NotAllowed, r.Dataplane.RefusedOnce = d.NoLocal, d.NotAllowed, d.HeldBack
	}
	for _, f := range n.ports.Failures() {
		r.Off = append(r.Off, fmt.Sprintf("a health check is not answered: %v", f))
	}
	if problem := n.health.Problem(); problem != "" {
		r.Off = append(r.Off, problem)
	}
	for _, q := range n.plane.Quarantined() {
		r.Quarantined = append(r.Quarantined, fmt.Sprintf("%s: %v", q.Service, q.Err))
	}
	r.Off = append(r.Off, n.routes.Problems()...)
	reach := n.routes.Reach()
	r.PodNetwork = status.PodNetwork{Tunnel: reach.Mode.String(), Port: reach.Port, Linked: reach.Linked, Tunnelled: reach.Tunnelled}
	if n.fast != nil {
		fast := n.fast.Report()
		r.PodNetwork.FastPath = &status.FastPath{Pods: fast.Pods, Links: fast.Links, Packets: fast.Packets, Answers: fast.Answers}
		if fast.Off != "" {
			r.Off = append(r.Off, "the pods' fast path is off: "+fast.Off)
		}
		for _, why := range fast.Left {
			r.Off = append(r.Off, "the pods' fast path is not on a device: "+why)
		}
		if why := n.names.Unshared(); why != "" && len(n.cfg.DNS) > 0 {
			r.Off = append(r.Off, "the pods' fast path answers no questions to the DNS: "+why)
		}
	}
	if n.sockets != nil {
		led := n.sockets.Report()
		r.PodNetwork.SocketLB = &status.SocketLB{Pods: led.Pods, Services: led.Services, Connections: led.Connections}
		if led.Off != "" {
			r.Off = append(r.Off, "pods' connections are not led at their sockets: "+led.Off)
		}
		if led.Crowded > 0 {
			r.Off = append(r.Off, fmt.Sprintf("connections to %d addresses and ports of Services are not led at the socket: there is no room for them", led.Crowded))
		}
	}
	if dropped, err := nodenet.Dropped(); err == nil {
		for _, n := range dropped {
			r.PodNetwork.Dropped += n
		}
	}
}

// Attached implements status.Agent.
func (n *Node) Attached(addrs []netip.Addr) {
	if n.sockets != nil {
		n.sockets.Attached()
	}
	n.source.Attached(addrs)
}

// Detached implements status.Agent.
func (n *Node) Detached(pod model.Name, addrs []netip.Addr) { n.source.Detached(pod, addrs) }

// WaitReady implements status.Agent.
func (n *Node) WaitReady(ctx context.Context) error {
	select {
	case <-n.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// WaitGone implements status.Agent.
func (n *Node) WaitGone(ctx context.Context, addr netip.Addr) error {
	return n.state.Wait(ctx, func(s *model.Snapshot) bool { return !forwards(s, addr) })
}

// forwards reports whether any Service sends new connections to the address.
func forwards(s *model.Snapshot, addr netip.Addr) bool {
	for _, svc := range s.Services.All() {
		if !slices.ContainsFunc(svc.Endpoints, func(e model.Endpoint) bool { return e.Addr == addr }) {
			continue
		}
		for i := range svc.Ports {
			for _, scope := range []model.Scope{model.Everywhere, model.Here} {
				if slices.ContainsFunc(s.Choose(svc, i, addr.Is4(), scope).Candidates, func(b model.Backend) bool { return b.Addr == addr }) {
					return true
				}
			}
		}
	}
	return false
}

// Explain implements status.Agent.
func (n *Node) Explain(ctx context.Context, pod model.Name, target explain.Target) (*explain.Walk, error) {
	return n.explain.Walk(ctx, pod, target)
}

// Tracked implements status.Agent.
func (n *Node) Tracked(proto model.Protocol, from, to netip.AddrPort) (status.Translation, bool, error) {
	t, ok, err := linux.Tracked(uint8(proto), from, to)
	return status.Translation{Server: t.Server, Client: t.Client}, ok, err
}

func (n *Node) explainer() *explain.Explainer {
	e := &explain.Explainer{
		Domain:   n.cfg.ClusterDomains[0],
		Snapshot: n.state.Acknowledged,
		Entry: func(f model.Frontend) (explain.Entry, bool, error) {
			e, ok, err := nft.Read(nft.Options{}, f)
			return explain.Entry{Chain: e.Inside.Chain, Backends: e.Inside.Backends}, ok, err
		},
		Route: func(dst netip.Addr) (explain.Route, error) {
			r, err := nodenet.LookupFromPod(dst)
			return explain.Route{Dev: r.Dev, Via: r.Via, Src: r.Src, MTU: r.MTU, Tunnel: r.Tunnel}, err
		},
		Fast: func(pod, to netip.Addr) (string, error) {
			if n.fast == nil {
				return "", nil
			}
			course, err := n.fast.Course(pod, to)
			return string(course), err
		},
		Led: func(pod netip.Addr, at netip.AddrPort) ([]netip.AddrPort, error) {
			if n.sockets == nil {
				return nil, nil
			}
			return n.sockets.Read(pod, at)
		},
		InKernel: n.names.InKernel,
	}
	for _, a := range n.cfg.DNS {
		e.DNS = append(e.DNS, netip.AddrPortFrom(a, model.DNSPort))
	}
	return e
}

// Dump implements status.Agent.
func (n *Node) Dump(what string) (string, error) {
	snap := n.state.Acknowledged()
	if snap == nil {
		return "", fmt.Errorf("nothing is programmed yet: %s", n.Report().Ready())
	}
	switch what {
	case "model":
		return fmt.Sprintf("# generation %d\n%s", snap.Generation, snap), nil
	case "nft":
		return nft.Dump(nft.Options{})
	case "routes":
		return nodenet.Dump()
	case "dns":
		return n.names.Dump(), nil
	case "fastpath":
		if n.fast == nil {
			return "", errors.New("the pods' fast path is not asked for: --pod-fast-path")
		}
		return n.fast.Dump()
	case "sockets":
		if n.sockets == nil {
			return "", errors.New("pods' connections are not to be led at their sockets: --pod-socket-lb")
		}
		return n.sockets.Dump()
	}
	return "", fmt.Errorf("there is no %q to dump; there are model, nft, routes, dns, fastpath and sockets", what)
}
