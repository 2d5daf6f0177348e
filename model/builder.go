// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Objects takes in a cluster's objects, one at a time and in any order. A Builder does.
type Objects interface {
	SetService(ServiceSpec)
	SetSlice(Slice)
	SetNode(Node)
	SetPod(Pod)
	SetServiceCIDR(name string, ranges []netip.Prefix)
}

var _ Objects = (*Builder)(nil)

// Builder takes in objects and builds snapshots. It is not safe for concurrent use.
//
// The zero cost of a quiet cluster and the small cost of a change come from here: only the Services that an object touched are
// resolved again, and a Service that comes out as it was keeps its old pointer.
//
// What comes out follows from the objects that there are, and not from their history, with one exception: a pod of this node that was seen to end is out of
// service though slices, which lag, still say that it is ready, and is known to have been an endpoint for a moment after they have forgotten it, because
// other nodes lag too and still send to it. Who attaches pods may know of an end before the API server does (Detached). Of a pod that was never seen nobody
// knows whether it is gone or new.
type Builder struct {
	last *Snapshot

	specs   map[Name]*ServiceSpec // that Build has not taken in yet; nil: the Service is gone
	slices  map[Name][]Slice      // by Service
	strange map[Name]string       // slices whose name does not say the Service they are filed under, with it
	vips    claims[netip.Addr]
	foreign claims[netip.Addr]
	hosts   claims[netip.Addr]
	fronts  claims[Frontend]
	health  claims[uint16]
	// here are the Services that have a pod of this node among their endpoints: what becomes of the pod is known here first.
	here map[Name]map[Name]struct{}
	// gone are addresses that pods of this node had when they ended, with the pod, for as long as it is an endpoint of some Service.
	gone map[netip.Addr]Name
	// lingering are endpoints that were leaving when slices forgot them, by Service.
	lingering map[Name][]lingerer

	config Config
	ranges map[string][]netip.Prefix // by the ServiceCIDR's name

	services  editor[Name, *Service]
	nodes     editor[string, *Node]
	pods      editor[Name, *Pod]
	hostPorts editor[Name, *Service]
	vipOf     editor[netip.Addr, Name]
	hostOf    editor[netip.Addr, Name]
	shared    editor[netip.Addr, *[]Name]
	leavers   editor[Frontend, *[]Name]
	foreignOf editor[netip.Addr, Name]
	frontOf   editor[Frontend, Name]
	healthOf  editor[uint16, Name]

	dirty   map[Name]struct{}
	changed bool
}

// NewBuilder starts from nothing.
func NewBuilder(c Config) *Builder {
	return &Builder{
		config:    c,
		ranges:    make(map[string][]netip.Prefix),
		last:      &Snapshot{Config: c},
		specs:     make(map[Name]*ServiceSpec),
		slices:    make(map[Name][]Slice),
		strange:   make(map[Name]string),
		vips:      make(claims[netip.Addr]),
		foreign:   make(claims[netip.Addr]),
		hosts:     make(claims[netip.Addr]),
		fronts:    make(claims[Frontend]),
		health:    make(claims[uint16]),
		here:      make(map[Name]map[Name]struct{}),
		gone:      make(map[netip.Addr]Name),
		lingering: make(map[Name][]lingerer),
		dirty:     make(map[Name]struct{}),
	}
}

// SetService takes in a Service object. The Arrived of one already known is kept.
func (b *Builder) SetService(s ServiceSpec) {
	s.Unproxied = b.unproxied(s)
	if old := b.spec(s.Name); old != nil {
		s.Arrived = old.Arrived
	}
	b.specs[s.Name] = &s
	b.dirty[s.Name] = struct{}{}
}

// unproxied reports whether somebody else carries a Service's traffic.
func (b *Builder) unproxied(s ServiceSpec) bool { return s.Unproxied || b.config.Left.Has(Proxy) }

// HasService reports whether a Service is known as it is, but for when it arrived.
func (b *Builder) HasService(s ServiceSpec) bool {
	old := b.spec(s.Name)
	if old == nil {
		return false
	}
	s.Arrived, s.Unproxied = old.Arrived, b.unproxied(s)
	return reflect.DeepEqual(*old, s)
}

// spec is what is known of a Service; nil if there is none.
func (b *Builder) spec(n Name) *ServiceSpec {
	if s, pending := b.specs[n]; pending {
		return s
	}
	if svc, ok := b.services.get(n); ok {
		return &svc.ServiceSpec
	}
	return nil
}

// DeleteService forgets a Service. Its slices are kept until they are deleted themselves: the Service may come back.
func (b *Builder) DeleteService(n Name) {
	b.specs[n] = nil
	b.dirty[n] = struct{}{}
}

// SetSlice takes in an EndpointSlice, which may have changed the Service it belongs to. The slice belongs to the Builder from then on.
func (b *Builder) SetSlice(s Slice) {
	svc := Name{s.Name.Namespace, s.Service}
	if was, ok := b.filedUnder(s.Name); ok && was != svc {
		b.DeleteSlice(s.Name)
	}
	slices.SortFunc(s.Endpoints, func(a, b Endpoint) int { return a.Addr.Compare(b.Addr) })
	list := b.slices[svc]
	if i := indexOf(list, s.Name); i >= 0 {
		list[i] = s
	} else {
		b.slices[svc] = append(slices.Grow(list, 1), s)
	}
	if saidBy(s.Name) != svc {
		b.strange[s.Name] = s.Service
	}
	b.dirty[svc] = struct{}{}
}

// saidBy is the Service that a slice belongs to by its name: the controllers that make slices append a dash and something random.
func saidBy(slice Name) Name {
	return Name{slice.Namespace, slice.Name[:max(strings.LastIndexByte(slice.Name, '-'), 0)]}
}

// filedUnder is the Service that a slice was last filed under, if it is known.
func (b *Builder) filedUnder(slice Name) (service Name, ok bool) {
	if name, ok := b.strange[slice]; ok {
		return Name{slice.Namespace, name}, true
	}
	service = saidBy(slice)
	return service, indexOf(b.slices[service], slice) >= 0
}

// indexOf is the place of a slice among others; negative if it is not there.
func indexOf(list []Slice, n Name) int {
	return slices.IndexFunc(list, func(s Slice) bool { return s.Name == n })
}

// HasSlice reports whether an EndpointSlice is known as it is.
func (b *Builder) HasSlice(s Slice) bool {
	slices.SortFunc(s.Endpoints, func(a, b Endpoint) int { return a.Addr.Compare(b.Addr) })
	list := b.slices[Name{s.Name.Namespace, s.Service}]
	i := indexOf(list, s.Name)
	return i >= 0 && slices.Equal(list[i].Ports, s.Ports) && slices.EqualFunc(list[i].Endpoints, s.Endpoints, Endpoint.same)
}

// same reports whether two endpoints are the same, hints and all.
func (e Endpoint) same(o Endpoint) bool {
	a, b := e.Hints, o.Hints
	e.Hints, o.Hints = nil, nil
	return e == o && (a == nil) == (b == nil) && (a == nil || slices.Equal(a.Nodes, b.Nodes) && slices.Equal(a.Zones, b.Zones))
}

// DeleteSlice forgets an EndpointSlice; unknown ones are fine.
func (b *Builder) DeleteSlice(n Name) {
	svc, ok := b.filedUnder(n)
	if !ok {
		return
	}
	delete(b.strange, n)
	b.slices[svc] = slices.DeleteFunc(b.slices[svc], func(s Slice) bool { return s.Name == n })
	if len(b.slices[svc]) == 0 {
		delete(b.slices, svc)
	}
	b.dirty[svc] = struct{}{}
}

// Services yields the names of the Services that the Builder knows; so do the others for their kinds.
func (b *Builder) Services(yield func(Name) bool) {
	for n, s := range b.specs {
		if s != nil && !yield(n) {
			return
		}
	}
	for n := range b.services.table.All() {
		if _, pending := b.specs[n]; !pending && !yield(n) {
			return
		}
	}
}

// Slices is like Services, for EndpointSlices.
func (b *Builder) Slices(yield func(Name) bool) {
	for _, list := range b.slices {
		for _, s := range list {
			if !yield(s.Name) {
				return
			}
		}
	}
}

// Pods is like Services, for pods.
func (b *Builder) Pods(yield func(Name) bool) { keys(b.pods.table)(yield) }

// Nodes is like Services, for Nodes, whose names have no namespace.
func (b *Builder) Nodes(yield func(Name) bool) { global(keys(b.nodes.table))(yield) }

// ServiceCIDRs is like Nodes, for ServiceCIDRs.
func (b *Builder) ServiceCIDRs(yield func(Name) bool) { global(maps.Keys(b.ranges))(yield) }

// Ranges yields the ServiceCIDRs that were taken in, by name.
func (b *Builder) Ranges(yield func(name string, ranges []netip.Prefix) bool) {
	maps.All(b.ranges)(yield)
}

// Sliced yields the names of the Services that have EndpointSlices, whether they are there themselves or not.
func (b *Builder) Sliced(yield func(Name) bool) { maps.Keys(b.slices)(yield) }

// SlicesOf are the EndpointSlices of a Service. The list is the caller's; what is in it must not be changed.
func (b *Builder) SlicesOf(service Name) []Slice { return slices.Clone(b.slices[service]) }

// Orphans yields the EndpointSlices of Services that there are not, each with the Service's name.
func (b *Builder) Orphans(yield func(slice, service Name) bool) {
	for service, list := range b.slices {
		if b.spec(service) != nil {
			continue
		}
		for _, s := range list {
			if !yield(s.Name, service) {
				return
			}
		}
	}
}

func global(names iter.Seq[string]) iter.Seq[Name] {
	return func(yield func(Name) bool) {
		for n := range names {
			if !yield(Name{Name: n}) {
				return
			}
		}
	}
}

func keys[K, V comparable](t Table[K, V]) iter.Seq[K] {
	return func(yield func(K) bool) {
		for k := range t.All() {
			if !yield(k) {
				return
			}
		}
	}
}

// SetServiceCIDR takes in a further range of virtual addresses, or one of each family, beside those of the Config.
func (b *Builder) SetServiceCIDR(name string, ranges []netip.Prefix) {
	if !slices.Equal(b.ranges[name], ranges) {
		b.ranges[name] = ranges
		b.changed = true
	}
}

// DeleteServiceCIDR forgets a range.
func (b *Builder) DeleteServiceCIDR(name string) {
	if _, ok := b.ranges[name]; ok {
		delete(b.ranges, name)
		b.changed = true
	}
}

// allRanges are the ranges of virtual addresses there are, in order.
func (b *Builder) allRanges() []netip.Prefix {
	if b.config.Left.Has(Proxy) {
		return nil
	}
	all := slices.Clone(b.config.ServiceCIDRs)
	for _, r := range b.ranges {
		all = append(all, r...)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	all = slices.Compact(all)
	if slices.Equal(all, b.last.ServiceCIDRs) {
		return b.last.ServiceCIDRs
	}
	return all
}

// SetNode takes in a Node.
func (b *Builder) SetNode(n Node) { setValue(b, &b.nodes, n.Name, &n) }

// DeleteNode forgets a Node.
func (b *Builder) DeleteNode(name string) { deleteKey(b, &b.nodes, name) }

// SetPod takes in a pod of this node.
func (b *Builder) SetPod(p Pod) {
	b.moveAddrs(p.Name, p.Addrs)
	setValue(b, &b.pods, p.Name, &p)
	b.touchServicesOf(p.Name)
	if !b.config.Left.Has(Network) {
		b.setHostPorts(p.Name, p.hostService(b.config.Self))
	}
}

// DeletePod forgets a pod.
func (b *Builder) DeletePod(n Name) {
	b.moveAddrs(n, nil)
	deleteKey(b, &b.pods, n)
	b.touchServicesOf(n)
	b.setHostPorts(n, nil)
}

// setHostPorts brings a pod's host ports up to date; nil: it has none.
func (b *Builder) setHostPorts(pod Name, svc *Service) {
	n := hostServiceName(pod)
	old, had := b.hostPorts.get(n)
	switch {
	case svc == nil && !had, svc != nil && reflect.DeepEqual(old, svc):
		return
	case svc == nil:
		b.hostPorts.delete(n)
	default:
		b.hostPorts.set(n, svc)
	}
	b.claimFrontends(old, svc)
	b.changed = true
}

func (b *Builder) touchServicesOf(pod Name) {
	for n := range b.here[pod] {
		b.dirty[n] = struct{}{}
	}
}

// Attached takes in that an address is being given to a pod of this node, as who attaches pods says, and reports whether that is news.
func (b *Builder) Attached(a netip.Addr) (news bool) {
	was, news := b.gone[a]
	if news {
		delete(b.gone, a)
		b.touchServicesOf(was)
	}
	return news
}

// Detached is like Attached, for a pod of this node that has an address no more, whatever its object and slices still say.
func (b *Builder) Detached(pod Name, a netip.Addr) (news bool) {
	if p, ok := b.pods.get(pod); !ok || !slices.Contains(p.Addrs, a) {
		return false
	}
	b.leave(pod, a)
	return true
}

// leave writes down that a pod has an address no more, unless another one has it.
func (b *Builder) leave(pod Name, a netip.Addr) {
	for n, p := range b.pods.table.All() {
		if n != pod && slices.Contains(p.Addrs, a) {
			return
		}
	}
	b.gone[a] = pod
	b.touchServicesOf(pod)
}

// moveAddrs writes down which addresses a pod is about to have no more, and that those that it has only now are its.
func (b *Builder) moveAddrs(pod Name, addrs []netip.Addr) {
	var had []netip.Addr
	if old, ok := b.pods.get(pod); ok && !old.HostNetwork {
		had = old.Addrs
	}
	for _, a := range had {
		if !slices.Contains(addrs, a) {
			b.leave(pod, a)
		}
	}
	for _, a := range addrs {
		if !slices.Contains(had, a) {
			b.Attached(a)
		}
	}
}

// forgetGone forgets the addresses at which no Service has a pod that has ended.
func (b *Builder) forgetGone() {
	for a, pod := range b.gone {
		named := false
		for n := range b.here[pod] {
			svc, _ := b.services.get(n)
			i, found := slices.BinarySearchFunc(svc.Endpoints, a, func(e Endpoint, a netip.Addr) int { return e.Addr.Compare(a) })
			named = named || found && svc.Endpoints[i].Pod == pod && b.isHere(&svc.Endpoints[i])
		}
		if !named {
			delete(b.gone, a)
		}
	}
}

// fate is what a node knows of an endpoint before slices say it.
type fate uint8

const (
	stays  fate = iota
	ends        // told to end, at an address that is not its own but the node's
	leaves      // told to end
	left        // gone
)

// fateOf is the fate of an endpoint: what has ended here is told first by the kubelet, and by the slices a moment later.
func (b *Builder) fateOf(e *Endpoint) fate {
	if !b.isHere(e) {
		return stays
	}
	if pod, ok := b.gone[e.Addr]; ok && pod == e.Pod {
		return left
	}
	p, ok := b.pods.get(e.Pod)
	switch {
	case !ok || !p.Terminating || !slices.Contains(p.Addrs, e.Addr):
		return stays
	case p.HostNetwork:
		return ends
	}
	return leaves
}

// lingerer is an endpoint that slices have forgotten, as a slice of its own, and for how many ticks it has been that.
type lingerer struct {
	Slice
	ticks int
}

// lingerTicks is for how many ticks an endpoint lingers.
const lingerTicks = 2

// Lingers reports whether the last snapshot has endpoints that slices have forgotten. Until there are none, Tick is to be called from time to time.
func (b *Builder) Lingers() bool { return len(b.lingering) > 0 }

// Tick forgets the endpoints that were lingering at the last two calls, for good with the next Build.
func (b *Builder) Tick() {
	for n, list := range b.lingering {
		for i := range list {
			list[i].ticks++
		}
		b.dirty[n] = struct{}{}
	}
}

// linger brings up to date which endpoints of a Service linger: those that it had and no slice has, if their pods are leaving. A node passes their new
// connections on to others, so that one that comes from a node that has not yet heard of it all is not lost.
func (b *Builder) linger(n Name, old *Service, spec *ServiceSpec) {
	if old == nil || !b.config.PassOn {
		return
	}
	was := b.lingering[n]
	delete(b.lingering, n)
	if spec == nil || spec.Type != ClusterIP || spec.Unproxied {
		return
	}
	for i := range old.Endpoints {
		if b.fateOf(&old.Endpoints[i]) < leaves || b.sliced(n, old.Endpoints[i].Addr) {
			continue
		}
		e := old.Endpoints[i]
		e.Ready, e.Serving, e.Terminating, e.Hints = false, false, true, nil
		l := lingerer{Slice: Slice{Ports: old.portsAt(e.Addr), Endpoints: []Endpoint{e}}}
		if at := slices.IndexFunc(was, func(l lingerer) bool { return l.Endpoints[0].Addr == e.Addr }); at >= 0 {
			l = was[at]
		}
		if l.ticks < lingerTicks {
			b.lingering[n] = append(b.lingering[n], l)
		}
	}
}

// sliced reports whether a slice of a Service has an address.
func (b *Builder) sliced(service Name, a netip.Addr) bool {
	return slices.ContainsFunc(b.slices[service], func(s Slice) bool {
		_, found := slices.BinarySearchFunc(s.Endpoints, a, func(e Endpoint, a netip.Addr) int { return e.Addr.Compare(a) })
		return found
	})
}

// portsAt are the Service's ports that lead to an endpoint, as a slice has them.
func (svc *Service) portsAt(a netip.Addr) (ports []Port) {
	for i, p := range svc.Ports {
		for _, b := range svc.Backends[i] {
			if b.Addr == a {
				ports = append(ports, Port{Name: p.Name, Protocol: p.Protocol, Port: b.Port})
			}
		}
	}
	return ports
}

// isHere reports whether an endpoint is a pod of this node, as the slices say.
func (b *Builder) isHere(e *Endpoint) bool { return e.Node == b.config.Self && e.Pod != (Name{}) }

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
	b.dirty, b.specs = emptied(b.dirty), emptied(b.specs)
	b.forgetGone()
	if b.changed || b.last.Generation == 0 {
		b.changed = false
		config := b.config
		config.ServiceCIDRs = b.allRanges()
		b.last = &Snapshot{
			Generation:  b.last.Generation + 1,
			Config:      config,
			Services:    b.services.freeze(),
			Nodes:       b.nodes.freeze(),
			Pods:        b.pods.freeze(),
			HostPorts:   b.hostPorts.freeze(),
			VIPs:        b.vipOf.freeze(),
			Hosts:       b.hostOf.freeze(),
			shared:      b.shared.freeze(),
			leavers:     b.leavers.freeze(),
			Foreign:     b.foreignOf.freeze(),
			Frontends:   b.frontOf.freeze(),
			HealthPorts: b.healthOf.freeze(),
		}
	}
	return b.last
}

// emptied is the map without its entries. One that was large, as at the start, gives back its memory, which clear would not.
func emptied[K comparable, V any](m map[K]V) map[K]V {
	if len(m) > 256 {
		return make(map[K]V)
	}
	clear(m)
	return m
}

// resolve brings one Service of the tables up to date.
func (b *Builder) resolve(n Name) {
	old, had := b.services.get(n)
	spec := b.spec(n)
	b.linger(n, old, spec)
	if spec == nil {
		if had {
			b.services.delete(n)
			b.index(n, old, nil)
			b.changed = true
		}
		return
	}
	all := b.slices[n]
	for _, l := range b.lingering[n] {
		all = append(slices.Clip(all), l.Slice)
	}
	svc := resolve(*spec, all, b.fateOf)
	svc.Slices = len(b.slices[n])
	if had && reflect.DeepEqual(old, svc) {
		return
	}
	b.services.set(n, svc)
	b.index(n, old, svc)
	b.changed = true
}

// index moves a Service's claims on addresses and frontends from its old value to its new one.
func (b *Builder) index(n Name, old, svc *Service) {
	if p := old.healthPort(); p != 0 {
		b.health.drop(p, claimant{name: n}, &b.healthOf)
	}
	if p := svc.healthPort(); p != 0 {
		b.health.claim(p, claimant{name: n}, &b.healthOf, func(_ uint16, n Name) claimant { return claimant{name: n} })
	}
	plain := func(_ netip.Addr, n Name) claimant { return claimant{name: n} }
	for _, x := range []struct {
		of      func(*Service) []netip.Addr
		claims  claims[netip.Addr]
		winners *editor[netip.Addr, Name]
	}{{hostAddrs, b.hosts, &b.hostOf}, {virtualAddrs, b.vips, &b.vipOf}, {foreignAddrs, b.foreign, &b.foreignOf}} {
		for _, a := range x.of(old) {
			x.claims.drop(a, claimant{name: n}, x.winners)
		}
		for _, a := range x.of(svc) {
			x.claims.claim(a, claimant{name: n}, x.winners, plain)
		}
	}
	for _, a := range slices.Concat(hostAddrs(old), hostAddrs(svc)) {
		share(a, b.hosts, &b.shared)
	}
	b.claimFrontends(old, svc)
	for _, p := range b.podsHere(old) {
		delete(b.here[p], n)
		if len(b.here[p]) == 0 {
			delete(b.here, p)
		}
	}
	for _, p := range b.podsHere(svc) {
		if b.here[p] == nil {
			b.here[p] = make(map[Name]struct{}, 1)
		}
		b.here[p][n] = struct{}{}
	}
}

// claimFrontends moves the claims on frontends from the old value of a Service, or of a pod's host ports, to the new one.
func (b *Builder) claimFrontends(old, svc *Service) {
	var leaving []Frontend
	note := func(f Frontend, k Kind) {
		if _, noted := b.leavers.get(f); noted || k == AtLeaving {
			leaving = append(leaving, f)
		}
	}
	old.frontends(&b.config, func(f Frontend, k Kind, _ int) { b.fronts.drop(f, old.claimant(k), &b.frontOf); note(f, k) })
	svc.frontends(&b.config, func(f Frontend, k Kind, _ int) {
		b.fronts.claim(f, svc.claimant(k), &b.frontOf, b.claimantOf)
		note(f, k)
	})
	for _, f := range leaving {
		share(f, b.fronts, &b.leavers)
	}
}

// share writes down the Services that claim something, if there are several.
func share[K comparable](k K, c claims[K], to *editor[K, *[]Name]) {
	claimants := c[k]
	if len(claimants) == 0 {
		if _, had := to.get(k); had {
			to.delete(k)
		}
		return
	}
	names := make([]Name, len(claimants))
	for i, c := range claimants {
		names[i] = c.name
	}
	if was, had := to.get(k); !had || !slices.Equal(*was, names) {
		to.set(k, &names)
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

func virtualAddrs(svc *Service) []netip.Addr {
	if svc == nil || svc.Unproxied {
		return nil
	}
	return svc.ClusterIPs
}

func foreignAddrs(svc *Service) []netip.Addr {
	if svc == nil || !svc.Unproxied {
		return nil
	}
	return svc.ClusterIPs
}

func (svc *Service) healthPort() uint16 {
	if svc == nil || svc.Type != ClusterIP || svc.Unproxied || svc.Exposure == nil {
		return 0
	}
	return svc.Exposure.HealthPort
}

func (b *Builder) podsHere(svc *Service) (pods []Name) {
	if svc == nil {
		return nil
	}
	for i := range svc.Endpoints {
		if e := &svc.Endpoints[i]; b.isHere(e) {
			pods = append(pods, e.Pod)
		}
	}
	return pods
}

// claimantOf is the one who claims a frontend for who has it.
func (b *Builder) claimantOf(f Frontend, n Name) claimant {
	svc, ok := b.services.get(n)
	if !ok {
		svc, _ = b.hostPorts.get(n)
	}
	w, _ := svc.claim(f, &b.config)
	return svc.claimant(w.Kind)
}

// claims holds who claims what is claimed by several, in order; the first one has it. What only one claims, which is nearly everything, is
// not in it: the table of winners knows.
type claims[K comparable] map[K][]claimant

// claimant claims something, a frontend as a kind of it. Of pods, the older comes first.
type claimant struct {
	kind    Kind
	created time.Time
	name    Name
}

func (c claimant) compare(o claimant) int {
	return cmp.Or(cmp.Compare(c.kind, o.kind), c.created.Compare(o.created), c.name.Compare(o.name))
}

func (svc *Service) claimant(k Kind) claimant { return claimant{k, svc.created(), svc.Name} }

// claim takes in a claim. sole tells who claims something for the Service that has it undisputed.
func (c claims[K]) claim(k K, by claimant, winners *editor[K, Name], sole func(K, Name) claimant) {
	list, disputed := c[k]
	if owner, taken := winners.get(k); !disputed {
		if !taken {
			winners.set(k, by.name)
			return
		}
		list = []claimant{sole(k, owner)}
	}
	if i, found := slices.BinarySearchFunc(list, by, claimant.compare); !found {
		list = slices.Insert(list, i, by)
	}
	if len(list) > 1 {
		c[k] = list
	}
	winners.set(k, list[0].name)
}

func (c claims[K]) drop(k K, by claimant, winners *editor[K, Name]) {
	list, disputed := c[k]
	if !disputed {
		if owner, taken := winners.get(k); taken && owner == by.name {
			winners.delete(k)
		}
		return
	}
	if i, found := slices.BinarySearchFunc(list, by, claimant.compare); found {
		list = slices.Delete(list, i, i+1)
	}
	if c[k] = list; len(list) == 1 {
		delete(c, k)
	}
	winners.set(k, list[0].name)
}

// resolve joins a Service with its slices. Slices may overlap and name different ports; an endpoint found twice
// counts once, and its best condition holds, because a slice that lags must not take a pod out of service.
// A slice's port belongs to the Service's port of the same name and protocol. fateOf tells of endpoints whose pods have just been told
// to end or are gone, which the slices will say a moment later.
func resolve(spec ServiceSpec, slices_ []Slice, fateOf func(*Endpoint) fate) *Service {
	svc := withAddrs(spec)
	svc.Slices, svc.Backends, svc.Endpoints = len(slices_), make([][]Backend, len(spec.Ports)), endpoints(slices_)
	copied := len(slices_) > 1
	for i := range svc.Endpoints {
		f := fateOf(&svc.Endpoints[i])
		if f == stays {
			continue
		}
		if !copied {
			svc.Endpoints, copied = slices.Clone(svc.Endpoints), true
		}
		e := &svc.Endpoints[i]
		e.Leaving, e.Terminating = f >= leaves, true
		e.Ready = e.Ready && spec.PublishNotReady && f != left
		e.Serving = e.Serving && f != left
	}
	for i, p := range spec.Ports {
		svc.Backends[i] = svc.backends(p, slices_)
	}
	return svc
}

// beside is a Service after an array of addresses.
type beside[Array any] struct {
	addrs Array
	Service
}

// withAddrs is a Service that has its virtual addresses beside it in memory: who answers for its name looks at little else.
func withAddrs(spec ServiceSpec) *Service {
	switch ips := spec.ClusterIPs; len(ips) {
	case 1:
		s := &beside[[1]netip.Addr]{[1]netip.Addr(ips), Service{ServiceSpec: spec}}
		s.ClusterIPs = s.addrs[:]
		return &s.Service
	case 2:
		s := &beside[[2]netip.Addr]{[2]netip.Addr(ips), Service{ServiceSpec: spec}}
		s.ClusterIPs = s.addrs[:]
		return &s.Service
	}
	return &Service{ServiceSpec: spec}
}

// endpoints are those of some slices, each address once, in order. With one slice that has no address twice, which is how most are, they are
// the slice's own.
func endpoints(slices_ []Slice) []Endpoint {
	if len(slices_) == 1 {
		all := slices_[0].Endpoints
		strictly := true
		for i := 1; i < len(all); i++ {
			strictly = strictly && all[i-1].Addr.Less(all[i].Addr)
		}
		if strictly {
			return all
		}
	}
	n := 0
	for _, sl := range slices_ {
		n += len(sl.Endpoints)
	}
	all := make([]Endpoint, 0, n)
	for _, sl := range slices_ {
		all = append(all, sl.Endpoints...)
	}
	slices.SortFunc(all, func(a, b Endpoint) int { return a.Addr.Compare(b.Addr) })
	return merge(all)
}

// merge makes one of the endpoints that have the same address, in order of address.
func merge(sorted []Endpoint) []Endpoint {
	out := sorted[:0]
	for _, e := range sorted {
		if last := len(out) - 1; last >= 0 && out[last].Addr == e.Addr {
			out[last] = better(out[last], e)
		} else {
			out = append(out, e)
		}
	}
	return slices.Clip(out)
}

// backends are the endpoints behind a port, of those slices that have it.
func (svc *Service) backends(p Port, slices_ []Slice) []Backend {
	out := make([]Backend, 0, len(svc.Endpoints))
	for _, sl := range slices_ {
		for _, target := range sl.Ports {
			if target.Name != p.Name || target.Protocol != p.Protocol || target.Port == 0 {
				continue
			}
			for _, e := range sl.Endpoints {
				i, _ := slices.BinarySearchFunc(svc.Endpoints, e.Addr, func(e Endpoint, a netip.Addr) int { return e.Addr.Compare(a) })
				out = append(out, Backend{Endpoint: &svc.Endpoints[i], Port: target.Port})
			}
		}
	}
	slices.SortFunc(out, func(a, b Backend) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
	})
	return slices.CompactFunc(out, func(a, b Backend) bool { return a.AddrPort() == b.AddrPort() })
}

// better picks one of two views of the same address: the more useful condition, then by a fixed order so that the
// outcome does not depend on the order of slices.
func better(a, b Endpoint) Endpoint {
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
		a.Pod.Compare(b.Pod), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Zone, b.Zone), a.Hints.compare(b.Hints))
	if order >= 0 {
		return a
	}
	return b
}

func (h *Hints) compare(o *Hints) int {
	if h == nil || o == nil {
		return cmp.Compare(btoi(h != nil), btoi(o != nil))
	}
	return cmp.Or(slices.Compare(h.Nodes, o.Nodes), slices.Compare(h.Zones, o.Zones))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
