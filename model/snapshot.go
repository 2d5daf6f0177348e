// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Config is what a node is told about itself and its cluster once, at its start.
type Config struct {
	// Self is the name of the node whose view this is.
	Self string
	// DNS are the cluster DNS's virtual addresses, which this node's own agent answers for as long as it runs.
	DNS []netip.Addr
	// ServiceCIDRs are the ranges of virtual addresses; in a Snapshot, with those that ServiceCIDR objects add. What no Service has of them is nobody's.
	ServiceCIDRs []netip.Prefix
	// NodePortAddrs are the ranges in which addresses of this node serve node ports; empty: all of them. Loopback is one of them only if a
	// range of its own is named.
	NodePortAddrs []netip.Prefix
	// PodCIDRs are ranges of pods' addresses, beside those of the Nodes: a plugin may give out addresses that no Node's range holds.
	PodCIDRs []netip.Prefix
	// KeepSource are ranges outside the cluster that pods reach under their own addresses.
	KeepSource []netip.Prefix
	// Left are the parts of this node's work that other programs do.
	Left Roles
	// PassOn has this node send new connections that still arrive for a pod being ended on to another endpoint of its Service.
	PassOn bool
	// RetryRefused has this node let a connection to a Service that an endpoint refuses be tried once more.
	RetryRefused bool
	// OwnPorts are those that the agent itself listens on, each with what for as its name. No pod gets them, at whichever address.
	OwnPorts []Port
}

// Roles are parts of a node's work. The cluster DNS is not one of them: it is left to others by an empty [Config.DNS].
type Roles uint8

// The roles.
const (
	// Proxy carries the traffic of Services. Who leaves it to another program treats every Service as Unproxied, and no address as a Service's.
	Proxy Roles = 1 << iota
	// Network gives pods their addresses and their host ports, and leads to those of other nodes. Who leaves it to another program makes no such
	// routes, serves no host port, and does not replace the source of what pods send out of the cluster.
	Network
)

// Has reports whether a role is among them.
func (r Roles) Has(role Roles) bool { return r&role != 0 }

// Snapshot is the whole state at one moment. It never changes.
type Snapshot struct {
	// Generation grows by one with every snapshot of a Builder; the first is 1.
	Generation uint64
	Config

	Services Table[Name, *Service]
	Nodes    Table[string, *Node]
	// Pods are those of this node.
	Pods Table[Name, *Pod]
	// HostPorts are the host ports of those pods that have any, each as a Service of its own, whose Pod is set. See Owner.
	HostPorts Table[Name, *Service]
	// VIPs says which Service a ClusterIP belongs to. If several claim one, it is the first by name.
	VIPs Table[netip.Addr, Name]
	// Foreign are the ClusterIPs of Services that are Unproxied, and whose they are: the first by name.
	Foreign Table[netip.Addr, Name]
	// Frontends says which Service answers at a frontend, or which pod. If several claim one, it is the first in the order of Kind, then of two pods the
	// older one, then by name.
	Frontends Table[Frontend, Name]
	// HealthPorts says for which Service this node's agent answers load balancers' health checks at a port of TCP: the first by name.
	HealthPorts Table[uint16, Name]
	// Hosts says which headless Service an endpoint's address belongs to, for reverse names: the first by name. See HeadlessOf for the others.
	Hosts Table[netip.Addr, Name]
	// shared has all the headless Services of the addresses that belong to several.
	shared Table[netip.Addr, *[]Name]
	// leavers has all the Services of the endpoints that are leaving and belong to several.
	leavers Table[Frontend, *[]Name]
}

// HeadlessOf yields the headless Services that an address belongs to, whatever the endpoint's condition, in the order of their names.
func (s *Snapshot) HeadlessOf(a netip.Addr) iter.Seq[Name] {
	return func(yield func(Name) bool) {
		if all, ok := s.shared.Get(a); ok {
			for _, n := range *all {
				if !yield(n) {
					return
				}
			}
		} else if n, ok := s.Hosts.Get(a); ok {
			yield(n)
		}
	}
}

// Node is this node; nil if the API server does not know it yet.
func (s *Snapshot) Node() *Node {
	n, _ := s.Nodes.Get(s.Self)
	return n
}

// Owner is who has a frontend, by the name in Frontends: a Service, or a pod's host ports.
func (s *Snapshot) Owner(n Name) (*Service, bool) {
	if svc, ok := s.Services.Get(n); ok {
		return svc, true
	}
	return s.HostPorts.Get(n)
}

// Owners yields every Service, and the host ports of every pod, in no order.
func (s *Snapshot) Owners(yield func(*Service) bool) {
	for _, t := range [...]Table[Name, *Service]{s.Services, s.HostPorts} {
		for _, svc := range t.All() {
			if !yield(svc) {
				return
			}
		}
	}
}

// Owns reports whether a virtual address is the Service's to use. It is not when another Service claims it too.
func (s *Snapshot) Owns(vip netip.Addr, svc *Service) bool {
	owner, ok := s.VIPs.Get(vip)
	return ok && owner == svc.Name || !ok && svc.Unproxied
}

// ServiceAt is the Service that a ClusterIP belongs to, whoever carries its traffic.
func (s *Snapshot) ServiceAt(vip netip.Addr) (Name, bool) {
	if name, ok := s.VIPs.Get(vip); ok {
		return name, true
	}
	return s.Foreign.Get(vip)
}

// Pods' ranges and addresses: a packet from one of them comes from inside the cluster.
func (s *Snapshot) isPod(a netip.Addr) bool {
	for _, n := range s.Nodes.All() {
		if n.hasPod(a) {
			return true
		}
	}
	return s.isOwnPod(a) || within(a, s.PodCIDRs)
}

// LastOf is the last address of a range.
func LastOf(r netip.Prefix) netip.Addr {
	b := r.Addr().AsSlice()
	for i := r.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

func within(a netip.Addr, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// isOwnPod reports whether the address is of a pod of this node. Pods on the node's own network are not meant. A node that is not known yet has
// no pods: neither are the others, and everything would seem to be outside.
func (s *Snapshot) isOwnPod(a netip.Addr) bool {
	self := s.Node()
	switch {
	case self == nil || slices.Contains(self.Addrs, a):
		return false
	case self.hasPod(a):
		return true
	}
	for _, p := range s.Pods.All() {
		if slices.Contains(p.Addrs, a) {
			return true
		}
	}
	return false
}

func (n *Node) hasPod(a netip.Addr) bool { return within(a, n.PodCIDRs) }

// String prints the snapshot in a stable order, one line a fact: the form that dump shows and tests compare.
func (s *Snapshot) String() string {
	var b strings.Builder
	for _, r := range s.ServiceCIDRs {
		fmt.Fprintf(&b, "range %s\n", r)
	}
	for _, n := range sorted(s.Nodes, cmp.Compare[string]) {
		fmt.Fprintf(&b, "node %s addrs %v podcidrs %v ready %t", n.Name, n.Addrs, n.PodCIDRs, n.Ready)
		if n.Zone != "" {
			fmt.Fprintf(&b, " zone %s", n.Zone)
		}
		if n.Leaving {
			b.WriteString(" leaving")
		}
		b.WriteByte('\n')
	}
	for _, p := range sorted(s.Pods, Name.Compare) {
		fmt.Fprintf(&b, "pod %s addrs %v", p.Name, p.Addrs)
		if p.Hostname != "" {
			fmt.Fprintf(&b, " hostname %s.%s", p.Hostname, p.Subdomain)
		}
		if p.Terminating {
			b.WriteString(" terminating")
		}
		if p.HostNetwork {
			b.WriteString(" of the node's network")
		}
		for _, h := range p.HostPorts {
			fmt.Fprintf(&b, " hostport %s", h)
		}
		if !p.Created.IsZero() {
			fmt.Fprintf(&b, " created %s", p.Created.Format(time.RFC3339))
		}
		if r := p.Resolver; r != nil {
			fmt.Fprintf(&b, " resolver %s search %v", r.Policy, r.Searches)
			if r.Ndots >= 0 {
				fmt.Fprintf(&b, " ndots %d", r.Ndots)
			}
		}
		b.WriteByte('\n')
	}
	for _, svc := range sorted(s.Services, Name.Compare) {
		b.WriteString(svc.String())
	}
	return b.String()
}

// String prints the Service and its endpoints, a line each.
func (svc *Service) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "service %s %s", svc.Name, svc.Type)
	for _, a := range svc.ClusterIPs {
		fmt.Fprintf(&b, " %s", a)
	}
	if svc.ExternalName != "" {
		fmt.Fprintf(&b, " %s", svc.ExternalName)
	}
	svc.describe(&b)
	if svc.Slices == 0 && svc.Type != ExternalName {
		b.WriteString(" (no slice yet)")
	}
	b.WriteByte('\n')
	for i, p := range svc.Ports {
		fmt.Fprintf(&b, "  port %q %s %d", p.Name, p.Protocol, p.Port)
		if p.NodePort != 0 {
			fmt.Fprintf(&b, " nodeport %d", p.NodePort)
		}
		b.WriteByte('\n')
		for _, e := range svc.Backends[i] {
			fmt.Fprintf(&b, "    %s %s\n", e.AddrPort(), e.Endpoint.describe())
		}
	}
	if len(svc.Ports) == 0 {
		for i := range svc.Endpoints {
			e := &svc.Endpoints[i]
			fmt.Fprintf(&b, "    %s %s\n", e.Addr, e.describe())
		}
	}
	return b.String()
}

// describe prints what the Service's specification says beyond the usual.
func (s *ServiceSpec) describe(b *strings.Builder) {
	if s.Unproxied {
		b.WriteString(" unproxied")
	}
	if s.LocalOnly {
		b.WriteString(" internal local")
	}
	if s.Affinity > 0 {
		fmt.Fprintf(b, " affinity %s", s.Affinity)
	}
	if s.PublishNotReady {
		b.WriteString(" publish not ready")
	}
	x := s.Exposure
	if x == nil {
		return
	}
	if x.LocalOnly {
		b.WriteString(" external local")
	}
	for _, a := range x.Balancers {
		fmt.Fprintf(b, " balancer %s", a)
	}
	for _, a := range x.ExternalIPs {
		fmt.Fprintf(b, " external %s", a)
	}
	for _, p := range x.SourceRanges {
		fmt.Fprintf(b, " from %s", p)
	}
	if x.HealthPort != 0 {
		fmt.Fprintf(b, " health %d", x.HealthPort)
	}
}

func (e *Endpoint) describe() string {
	s := e.State()
	if e.Pod != (Name{}) {
		s += " pod " + e.Pod.String()
	}
	if e.Node != "" {
		s += " node " + e.Node
	}
	if e.Hostname != "" {
		s += " hostname " + e.Hostname
	}
	if e.Hints != nil {
		s += fmt.Sprintf(" for nodes %v zones %v", e.Hints.Nodes, e.Hints.Zones)
	}
	if e.Leaving {
		s += " leaving"
	}
	return s
}

func sorted[K comparable, V comparable](t Table[K, V], order func(a, b K) int) []V {
	keys := make([]K, 0, t.Len())
	for k := range t.All() {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, order)
	values := make([]V, len(keys))
	for i, k := range keys {
		values[i], _ = t.Get(k)
	}
	return values
}
