// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"maps"
	"net/netip"

	"github.com/fairlead/fairlead/model"
)

// View is a snapshot prepared for questions. It is immutable.
type View struct {
	zone *zone
	snap *model.Snapshot

	namespaces map[string]int // Services in each namespace that has any
	pods       map[netip.Addr]string
	clients    *clients
	// refused are the Services of this snapshot that the node's kernel could not be given.
	refused map[model.Name]struct{}
}

// NewView prepares a snapshot for questions about the zones that the options name. It looks at everything in the snapshot.
func NewView(o Options, s *model.Snapshot) (*View, error) {
	z, err := newZone(o.withDefaults())
	if err != nil {
		return nil, err
	}
	return (&View{zone: z, snap: &model.Snapshot{}, clients: newClients(o.Clients, nil)}).next(s), nil
}

// Snapshot is what the view was made from.
func (v *View) Snapshot() *model.Snapshot { return v.snap }

// next prepares a later snapshot; what it costs is what changed.
func (v *View) next(s *model.Snapshot) *View {
	if s == v.snap {
		return v
	}
	n := &View{zone: v.zone, snap: s, namespaces: v.namespaces, pods: v.pods, clients: v.clients}
	copied := false
	for name, c := range model.Diff(v.snap.Services, s.Services) {
		if c.HadOld == c.HasNew {
			continue
		}
		if !copied {
			if n.namespaces = maps.Clone(v.namespaces); n.namespaces == nil {
				n.namespaces = make(map[string]int)
			}
			copied = true
		}
		if c.HasNew {
			n.namespaces[name.Namespace]++
		} else if n.namespaces[name.Namespace]--; n.namespaces[name.Namespace] == 0 {
			delete(n.namespaces, name.Namespace)
		}
	}
	// Nodes and this node's pods are few and change seldom: what depends on them is made anew.
	for range model.Diff(v.snap.Pods, s.Pods) {
		n.pods = make(map[netip.Addr]string, s.Pods.Len())
		for name, p := range s.Pods.All() {
			for _, a := range p.Addrs {
				n.pods[a] = name.Namespace
			}
		}
		break
	}
	for range model.Diff(v.snap.Nodes, s.Nodes) {
		n.clients = newClients(v.clients.given, s)
		break
	}
	return n
}

// clients are the sources that may ask.
type clients struct {
	given   []netip.Prefix // by configuration
	nodes   map[netip.Addr]struct{}
	podNets []netip.Prefix // ranges of nodes' pods that no given range covers
}

func newClients(given []netip.Prefix, s *model.Snapshot) *clients {
	c := &clients{given: given, nodes: make(map[netip.Addr]struct{})}
	if s == nil {
		return c
	}
	for _, n := range s.Nodes.All() {
		for _, a := range n.Addrs {
			c.nodes[a] = struct{}{}
		}
		for _, p := range n.PodCIDRs {
			if !covered(given, p) {
				c.podNets = append(c.podNets, p)
			}
		}
	}
	return c
}

func covered(by []netip.Prefix, p netip.Prefix) bool {
	for _, q := range by {
		if q.Contains(p.Addr()) && q.Bits() <= p.Bits() {
			return true
		}
	}
	return false
}

// allow reports whether a source may ask: loopback, the given ranges, the cluster's nodes and their pods.
func (c *clients) allow(a netip.Addr) bool {
	if a.IsLoopback() || contains(c.given, a) {
		return true
	}
	if _, ok := c.nodes[a]; ok {
		return true
	}
	return contains(c.podNets, a)
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
