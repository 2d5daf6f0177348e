// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
)

// Builder takes in objects and builds snapshots. It is not safe for concurrent use.
//
// The zero cost of a quiet cluster and the small cost of a change come from here: only the Services that an object touched are
// resolved again, and a Service that comes out as it was keeps its old pointer.
type Builder struct {
	last *Snapshot

	specs  map[Name]ServiceSpec
	slices map[Name]map[string]Slice // by Service, then by the slice's name
	owner  map[Name]Name             // slice to the Service it was last filed under
	vips   claims
	hosts  claims

	services editor[Name, *Service]
	nodes    editor[string, *Node]
	pods     editor[Name, *Pod]
	vipOf    editor[netip.Addr, Name]
	hostOf   editor[netip.Addr, Name]

	dirty   map[Name]struct{}
	changed bool
}

// NewBuilder starts from nothing, for the node of that name. dns are the cluster DNS's virtual addresses.
func NewBuilder(self string, dns []netip.Addr) *Builder {
	return &Builder{
		last:   &Snapshot{Self: self, DNS: dns},
		specs:  make(map[Name]ServiceSpec),
		slices: make(map[Name]map[string]Slice),
		owner:  make(map[Name]Name),
		vips:   make(claims),
		hosts:  make(claims),
		dirty:  make(map[Name]struct{}),
	}
}

// SetService takes in a Service object. The Arrived of one already known is kept.
func (b *Builder) SetService(s ServiceSpec) {
	if old, ok := b.specs[s.Name]; ok {
		s.Arrived = old.Arrived
	}
	b.specs[s.Name] = s
	b.dirty[s.Name] = struct{}{}
}

// DeleteService forgets a Service. Its slices are kept until they are deleted themselves: the Service may come back.
func (b *Builder) DeleteService(n Name) {
	delete(b.specs, n)
	b.dirty[n] = struct{}{}
}

// SetSlice takes in an EndpointSlice, which may have changed the Service it belongs to.
func (b *Builder) SetSlice(s Slice) {
	svc := Name{s.Name.Namespace, s.Service}
	if was, ok := b.owner[s.Name]; ok && was != svc {
		b.DeleteSlice(s.Name)
	}
	if b.slices[svc] == nil {
		b.slices[svc] = make(map[string]Slice, 1)
	}
	b.slices[svc][s.Name.Name] = s
	b.owner[s.Name] = svc
	b.dirty[svc] = struct{}{}
}

// DeleteSlice forgets an EndpointSlice; unknown ones are fine.
func (b *Builder) DeleteSlice(n Name) {
	svc, ok := b.owner[n]
	if !ok {
		return
	}
	delete(b.owner, n)
	delete(b.slices[svc], n.Name)
	if len(b.slices[svc]) == 0 {
		delete(b.slices, svc)
	}
	b.dirty[svc] = struct{}{}
}

// SetNode takes in a Node.
func (b *Builder) SetNode(n Node) { setValue(b, &b.nodes, n.Name, &n) }

// DeleteNode forgets a Node.
func (b *Builder) DeleteNode(name string) { deleteKey(b, &b.nodes, name) }

// SetPod takes in a pod of this node.
func (b *Builder) SetPod(p Pod) { setValue(b, &b.pods, p.Name, &p) }

// DeletePod forgets a pod.
func (b *Builder) DeletePod(n Name) { deleteKey(b, &b.pods, n) }

func setValue[K comparable, V any](b *Builder, e *editor[K, *V], k K, v *V) {
	if old, ok := e.get(k); ok && reflect.DeepEqual(old, v) {
		return
	}
	e.set(k, v)
	b.changed = true
}

func deleteKey[K comparable, V any](b *Builder, e *editor[K, *V], k K) {
	if _, ok := e.get(k); ok {
		e.delete(k)
		b.changed = true
	}
}

// Build returns the snapshot of everything taken in so far. With nothing changed it is the same snapshot as before.
func (b *Builder) Build() *Snapshot {
	for n := range b.dirty {
		b.resolve(n)
	}
	clear(b.dirty)
	if b.changed || b.last.Generation == 0 {
		b.changed = false
		b.last = &Snapshot{
			Generation: b.last.Generation + 1,
			Self:       b.last.Self,
			DNS:        b.last.DNS,
			Services:   b.services.freeze(),
			Nodes:      b.nodes.freeze(),
			Pods:       b.pods.freeze(),
			VIPs:       b.vipOf.freeze(),
			Hosts:      b.hostOf.freeze(),
		}
	}
	return b.last
}

// resolve brings one Service of the tables up to date.
func (b *Builder) resolve(n Name) {
	old, had := b.services.get(n)
	spec, exists := b.specs[n]
	if !exists {
		if had {
			b.services.delete(n)
			b.index(n, old, nil)
			b.changed = true
		}
		return
	}
	svc := Resolve(spec, b.slices[n])
	if had && reflect.DeepEqual(old, svc) {
		return
	}
	b.services.set(n, svc)
	b.index(n, old, svc)
	b.changed = true
}

// index moves a Service's claims on addresses from its old value to its new one.
func (b *Builder) index(n Name, old, svc *Service) {
	for _, a := range hostAddrs(old) {
		b.hosts.drop(a, n, &b.hostOf)
	}
	for _, a := range hostAddrs(svc) {
		b.hosts.claim(a, n, &b.hostOf)
	}
	if old != nil {
		for _, a := range old.ClusterIPs {
			b.vips.drop(a, n, &b.vipOf)
		}
	}
	if svc != nil {
		for _, a := range svc.ClusterIPs {
			b.vips.claim(a, n, &b.vipOf)
		}
	}
}

func hostAddrs(svc *Service) []netip.Addr {
	if svc == nil || svc.Type != Headless {
		return nil
	}
	addrs := make([]netip.Addr, len(svc.Endpoints))
	for i := range svc.Endpoints {
		addrs[i] = svc.Endpoints[i].Addr
	}
	return addrs
}

// claims holds, for every address, the Services that claim it, in order; the first one has it.
type claims map[netip.Addr][]Name

func (c claims) claim(a netip.Addr, n Name, winners *editor[netip.Addr, Name]) {
	if i, found := slices.BinarySearchFunc(c[a], n, Name.Compare); !found {
		c[a] = slices.Insert(c[a], i, n)
	}
	winners.set(a, c[a][0])
}

func (c claims) drop(a netip.Addr, n Name, winners *editor[netip.Addr, Name]) {
	if i, found := slices.BinarySearchFunc(c[a], n, Name.Compare); found {
		c[a] = slices.Delete(c[a], i, i+1)
	}
	if len(c[a]) == 0 {
		delete(c, a)
		winners.delete(a)
		return
	}
	winners.set(a, c[a][0])
}

// Resolve joins a Service with its slices. Slices may overlap and name different ports; an endpoint found twice
// counts once, and its best condition holds, because a slice that lags must not take a pod out of service.
// A slice's port belongs to the Service's port of the same name and protocol.
func Resolve(spec ServiceSpec, slices_ map[string]Slice) *Service {
	svc := &Service{ServiceSpec: spec, Slices: len(slices_), Backends: make([][]Backend, len(spec.Ports))}
	merged := make(map[netip.Addr]Endpoint)
	targets := make([]map[netip.AddrPort]struct{}, len(spec.Ports))
	for _, sl := range slices_ {
		for _, e := range sl.Endpoints {
			merged[e.Addr] = better(merged[e.Addr], e)
		}
		for i, p := range spec.Ports {
			for _, target := range sl.Ports {
				if target.Name != p.Name || target.Protocol != p.Protocol || target.Port == 0 {
					continue
				}
				if targets[i] == nil {
					targets[i] = make(map[netip.AddrPort]struct{})
				}
				for _, e := range sl.Endpoints {
					targets[i][netip.AddrPortFrom(e.Addr, target.Port)] = struct{}{}
				}
			}
		}
	}
	svc.Endpoints = make([]Endpoint, 0, len(merged))
	for _, e := range merged {
		svc.Endpoints = append(svc.Endpoints, e)
	}
	slices.SortFunc(svc.Endpoints, func(a, b Endpoint) int { return a.Addr.Compare(b.Addr) })
	for i := range targets {
		svc.Backends[i] = svc.backends(targets[i])
	}
	return svc
}

func (svc *Service) backends(targets map[netip.AddrPort]struct{}) []Backend {
	out := make([]Backend, 0, len(targets))
	for t := range targets {
		i, _ := slices.BinarySearchFunc(svc.Endpoints, t.Addr(), func(e Endpoint, a netip.Addr) int { return e.Addr.Compare(a) })
		out = append(out, Backend{Endpoint: &svc.Endpoints[i], Port: t.Port()})
	}
	slices.SortFunc(out, func(a, b Backend) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
	})
	return out
}

// better picks one of two views of the same address: the more useful condition, then by a fixed order so that the
// outcome does not depend on the order of slices.
func better(a, b Endpoint) Endpoint {
	if !a.Addr.IsValid() {
		return b
	}
	rank := func(e Endpoint) int {
		switch {
		case e.Ready:
			return 4
		case e.Serving && !e.Terminating:
			return 3
		case e.Serving:
			return 2
		case !e.Terminating:
			return 1
		}
		return 0
	}
	order := cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Hostname, b.Hostname),
		a.Pod.Compare(b.Pod), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Zone, b.Zone))
	if order >= 0 {
		return a
	}
	return b
}
