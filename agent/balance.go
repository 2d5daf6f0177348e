// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/health"
	"github.com/fairlead/fairlead/metrics"
	"github.com/fairlead/fairlead/model"
)

// balance follows the acknowledged snapshots and tells who sends traffic to this node, or looks after it, what it can expect here: load balancers
// at the Services' health check node ports, and people by Events about Services that cannot be programmed.
func (n *Node) balance(ctx context.Context) error {
	defer n.ports.Close()
	b := newBalancing()
	for {
		n.waitForNext(ctx, b)
		if ctx.Err() != nil {
			return nil
		}
		snap := n.state.Acknowledged()
		n.answerChecks(snap, b)
		for _, f := range []metrics.Family{metrics.IPv4, metrics.IPv6} {
			n.proxy.NoLocalEndpoints(f, b.total[f].internal, b.total[f].external)
		}
		n.warn(ctx, b)
	}
}

// waitForNext returns with the next snapshot. If checks are answered at certain addresses, it also returns after a while without: addresses come
// and go with no word of the API server.
func (n *Node) waitForNext(ctx context.Context, b *balancing) {
	if len(n.cfg.NodePortAddrs) > 0 && len(b.checks) > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, verifyEvery)
		defer cancel()
	}
	_ = n.state.Wait(ctx, func(s *model.Snapshot) bool { return s != b.last })
}

// answerChecks opens and closes what differs in the checks, or in the addresses that they are answered at.
func (n *Node) answerChecks(snap *model.Snapshot, b *balancing) {
	changed := b.update(snap)
	var addrs []netip.Addr
	if len(b.checks) > 0 { // or else nobody asks, and reading them is for nothing
		addrs = n.healthAddrs(snap)
	}
	if changed || !slices.Equal(addrs, b.addrs) {
		b.addrs = addrs
		n.ports.Set(addrs, b.checks)
	}
}

// balancing is what was told last.
type balancing struct {
	last   *model.Snapshot
	addrs  []netip.Addr // where the checks are answered
	checks map[model.Name]health.Check
	local  map[model.Name]noLocal
	total  noLocal
	warned map[model.Name]string
}

func newBalancing() *balancing {
	return &balancing{checks: make(map[model.Name]health.Check), local: make(map[model.Name]noLocal), warned: make(map[model.Name]string)}
}

// noLocal counts, by family, the ports whose policy is Local and that have endpoints, but none here.
type noLocal [2]struct{ internal, external int }

// update looks at the Services that changed and reports whether any check did.
func (b *balancing) update(snap *model.Snapshot) (changed bool) {
	from := b.last
	if from == nil {
		from, changed = &model.Snapshot{}, true
	}
	b.last = snap
	for name, c := range model.Diff(from.Services, snap.Services) {
		was, is := b.checks[name], health.Check{}
		var count noLocal
		if c.HasNew {
			is, count = checkOf(snap, c.New), countNoLocal(snap, c.New)
		}
		if was != is {
			changed = true
			b.checks[name] = is
			if is.Port == 0 {
				delete(b.checks, name)
			}
		}
		b.count(name, count)
	}
	return changed
}

func (b *balancing) count(name model.Name, now noLocal) {
	was := b.local[name]
	for f := range b.total {
		b.total[f].internal += now[f].internal - was[f].internal
		b.total[f].external += now[f].external - was[f].external
	}
	if b.local[name] = now; now == (noLocal{}) {
		delete(b.local, name)
	}
}

// checkOf is a Service's health check; its port is zero if it has none.
func checkOf(snap *model.Snapshot, svc *model.Service) (c health.Check) {
	if svc.Type != model.ClusterIP || svc.Unproxied || svc.Exposure == nil || svc.Exposure.HealthPort == 0 {
		return c
	}
	c.Port = svc.Exposure.HealthPort
	for _, a := range svc.ClusterIPs {
		family := &c.IPv4
		if a.Is6() {
			family = &c.IPv6
		}
		family.Served = true
		for i := range svc.Endpoints {
			if e := &svc.Endpoints[i]; e.Ready && e.Node == snap.Self && e.Addr.Is4() == a.Is4() {
				family.LocalEndpoints++
			}
		}
	}
	return c
}

func countNoLocal(snap *model.Snapshot, svc *model.Service) (count noLocal) {
	x := svc.Exposure
	external := x != nil && x.LocalOnly
	if svc.Type != model.ClusterIP || svc.Unproxied || !svc.LocalOnly && !external {
		return count
	}
	for _, a := range svc.ClusterIPs {
		f := familyOf(a.Is6())
		for i := range svc.Ports {
			if snap.Choose(svc, i, a.Is4(), model.Here).Action != model.Drop {
				continue
			}
			if svc.LocalOnly {
				count[f].internal++
			}
			if external {
				count[f].external++
			}
		}
	}
	return count
}

// healthAddrs is where health checks are answered: on every address, or on those of this node's in the ranges for node ports.
func (n *Node) healthAddrs(snap *model.Snapshot) []netip.Addr {
	if len(n.cfg.NodePortAddrs) == 0 {
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		n.log.Warn("cannot read this node's addresses; health checks are answered at those the API server knows", "err", err)
		if self := snap.Node(); self != nil {
			return slices.DeleteFunc(slices.Clone(self.Addrs), func(a netip.Addr) bool { return !snap.ServesNodePorts(a) })
		}
	}
	var out []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && snap.ServesNodePorts(p.Addr().Unmap()) {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out
}

// warn makes an Event about each Service that is newly refused.
func (n *Node) warn(ctx context.Context, b *balancing) {
	refused := n.plane.Quarantined()
	now := make(map[model.Name]string, len(refused))
	for _, r := range refused {
		if _, ok := b.last.Services.Get(r.Service); !ok {
			continue // a pod's host ports, which status names
		}
		now[r.Service] = r.Err.Error()
		if b.warned[r.Service] == now[r.Service] {
			continue
		}
		message := fmt.Sprintf("Node %s cannot program this Service: %v. What it had of it before stays; other Services are not affected.", n.cfg.Node, r.Err)
		if err := n.client.Warn(ctx, r.Service, n.cfg.Node, "FailedToProgram", message); err != nil && ctx.Err() == nil {
			n.log.Warn("cannot make an Event about a Service that is quarantined, trying again with the next change", "service", r.Service, "err", err)
			delete(now, r.Service)
		}
	}
	b.warned = now
}

// disputes names the frontends that a Service asks for and another one has, and the host ports that a pod asks for and somebody else has.
func disputes(snap *model.Snapshot) (out []string) {
	out = hostPortDisputes(snap)
	for _, svc := range snap.Services.All() {
		snap.Claims(svc, func(f model.Frontend) {
			if w, ok := snap.Way(f); ok && w.Service.Name != svc.Name && w.Kind != model.AtLeaving { // an endpoint may be several Services'
				out = append(out, fmt.Sprintf("%s: %s belongs to %s", svc.Name, f, w.Service.Name))
			}
		})
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// passingOn names the frontends that stand for pods that are ending.
func passingOn(snap *model.Snapshot) (out []string) {
	for _, svc := range snap.Services.All() {
		if !slices.ContainsFunc(svc.Endpoints, func(e model.Endpoint) bool { return e.Leaving }) {
			continue
		}
		snap.Ways(svc, func(f model.Frontend, w model.Way) {
			if w.Kind == model.AtLeaving && len(snap.Onward(f, w)) > 0 {
				out = append(out, f.String())
			}
		})
	}
	slices.Sort(out)
	return out
}
