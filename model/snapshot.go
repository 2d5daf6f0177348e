// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Snapshot is the whole state at one moment. It never changes.
type Snapshot struct {
	// Generation grows by one with every snapshot of a Builder; the first is 1.
	Generation uint64
	// Self is the name of the node whose view this is.
	Self string
	// DNS are the cluster DNS's virtual addresses, which this node's own agent answers for as long as it runs.
	DNS []netip.Addr

	Services Table[Name, *Service]
	Nodes    Table[string, *Node]
	// Pods are those of this node.
	Pods Table[Name, *Pod]
	// VIPs says which Service a virtual address belongs to. If several claim one, it is the first by name.
	VIPs Table[netip.Addr, Name]
	// Hosts says which headless Services an endpoint's address belongs to, for reverse names: the first by name.
	Hosts Table[netip.Addr, Name]
}

// Node is this node; nil if the API server does not know it yet.
func (s *Snapshot) Node() *Node {
	n, _ := s.Nodes.Get(s.Self)
	return n
}

// Owns reports whether a virtual address is the Service's to use. It is not when another Service claims it too.
func (s *Snapshot) Owns(vip netip.Addr, svc Name) bool {
	owner, ok := s.VIPs.Get(vip)
	return ok && owner == svc
}

// String prints the snapshot in a stable order, one line a fact: the form that dump shows and tests compare.
func (s *Snapshot) String() string {
	var b strings.Builder
	for _, n := range sorted(s.Nodes, cmp.Compare[string]) {
		fmt.Fprintf(&b, "node %s addrs %v podcidrs %v ready %t\n", n.Name, n.Addrs, n.PodCIDRs, n.Ready)
	}
	for _, p := range sorted(s.Pods, Name.Compare) {
		fmt.Fprintf(&b, "pod %s addrs %v", p.Name, p.Addrs)
		if p.Hostname != "" {
			fmt.Fprintf(&b, " hostname %s.%s", p.Hostname, p.Subdomain)
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
	if svc.Slices == 0 && svc.Type != ExternalName {
		b.WriteString(" (no slice yet)")
	}
	b.WriteByte('\n')
	for i, p := range svc.Ports {
		fmt.Fprintf(&b, "  port %q %s %d\n", p.Name, p.Protocol, p.Port)
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
