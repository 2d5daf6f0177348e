// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/fairlead/fairlead/model"
)

// world is a cluster's objects as they are, to be compared field by field.
type world struct {
	services map[model.Name]model.ServiceSpec
	slices   map[model.Name]model.Slice
	nodes    map[string]model.Node
	pods     map[model.Name]model.Pod
	ranges   map[string][]netip.Prefix
}

func newWorld() *world {
	return &world{make(map[model.Name]model.ServiceSpec), make(map[model.Name]model.Slice), make(map[string]model.Node), make(map[model.Name]model.Pod), make(map[string][]netip.Prefix)}
}

func (w *world) SetService(s model.ServiceSpec)                 { w.services[s.Name] = s }
func (w *world) SetSlice(s model.Slice)                         { w.slices[s.Name] = s }
func (w *world) SetNode(n model.Node)                           { w.nodes[n.Name] = n }
func (w *world) SetPod(p model.Pod)                             { w.pods[p.Name] = p }
func (w *world) SetServiceCIDR(name string, all []netip.Prefix) { w.ranges[name] = all }

// each hands everything on, nodes first, as a source does.
func (w *world) each(to model.Objects) {
	for _, n := range w.nodes {
		to.SetNode(n)
	}
	for name, r := range w.ranges {
		to.SetServiceCIDR(name, r)
	}
	for _, p := range w.pods {
		to.SetPod(p)
	}
	for _, s := range w.services {
		to.SetService(s)
	}
	for _, s := range w.slices {
		s.Endpoints = slices.Clone(s.Endpoints)
		to.SetSlice(s)
	}
}

// same says what differs between two worlds; empty if nothing does, nil and empty lists included.
func (w *world) same(o *world) string {
	for name, pair := range map[string][2]any{
		"services": {w.services, o.services}, "slices": {w.slices, o.slices}, "nodes": {w.nodes, o.nodes}, "pods": {w.pods, o.pods}, "ranges": {w.ranges, o.ranges},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			return fmt.Sprintf("%s are\n%#v, want\n%#v", name, pair[1], pair[0])
		}
	}
	return ""
}

// dice makes random objects.
type dice struct{ *rand.Rand }

func newDice(t *testing.T) dice {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return seeded(seed)
}

func seeded(seed uint64) dice { return dice{rand.New(rand.NewPCG(seed, 0))} }

func (d dice) coin() bool { return d.IntN(2) == 0 }

func (d dice) word() string {
	return []string{"", "a", "web", "kube-system", "eu-1a", "a-name-that-is-rather-long-but-not-too-long"}[d.IntN(6)]
}

func (d dice) addr() netip.Addr {
	if d.coin() {
		return netip.AddrFrom4([4]byte{10, byte(d.IntN(256)), byte(d.IntN(256)), byte(d.IntN(256))})
	}
	a := netip.MustParseAddr("fd00::").As16()
	a[15], a[14] = byte(d.IntN(256)), byte(d.IntN(256))
	return netip.AddrFrom16(a)
}

func (d dice) prefix() netip.Prefix {
	a := d.addr()
	p, _ := a.Prefix(d.IntN(a.BitLen() + 1))
	return p
}

// some is a list, which may be nil or empty.
func some[T any](d dice, one func() T) []T {
	n := d.IntN(5) - 1
	if n < 0 {
		return nil
	}
	all := make([]T, 0)
	for range n {
		all = append(all, one())
	}
	return all
}

func (d dice) port() model.Port {
	return model.Port{Name: d.word(), Protocol: []model.Protocol{model.TCP, model.UDP, model.SCTP}[d.IntN(3)], Port: uint16(d.Uint32()), NodePort: uint16(d.Uint32())}
}

func (d dice) hostPort() model.HostPort {
	p := d.port()
	h := model.HostPort{Protocol: p.Protocol, Port: p.Port, Target: p.NodePort}
	if d.coin() {
		h.Addr = d.addr()
	}
	return h
}

func (d dice) endpoint() model.Endpoint {
	e := model.Endpoint{Addr: d.addr(), Hostname: d.word(), Node: []string{"n1", "n2", ""}[d.IntN(3)], Zone: d.word(), Ready: d.coin(), Serving: d.coin(), Terminating: d.coin()}
	if d.coin() {
		e.Pod = model.Name{Namespace: "x", Name: d.word() + "-1"}
	}
	if d.coin() {
		e.Hints = &model.Hints{Nodes: some(d, d.word), Zones: some(d, d.word)}
	}
	return e
}

func (d dice) world() *world {
	w := newWorld()
	for i := range d.IntN(20) {
		name := model.Name{Namespace: d.word(), Name: fmt.Sprintf("s%d", i)}
		s := model.ServiceSpec{Name: name, Type: model.ServiceType(d.IntN(3)), ClusterIPs: some(d, d.addr), Unproxied: d.coin(), LocalOnly: d.coin(), PublishNotReady: d.coin(),
			ExternalName: d.word(), Ports: some(d, d.port)}
		if d.coin() {
			s.Affinity = time.Duration(1+d.IntN(86400)) * time.Second
		}
		if d.coin() {
			s.Exposure = &model.Exposure{LocalOnly: d.coin(), Balancers: some(d, d.addr), ExternalIPs: some(d, d.addr), SourceRanges: some(d, d.prefix), HealthPort: uint16(d.Uint32())}
		}
		w.SetService(s)
	}
	for i := range d.IntN(20) {
		w.SetSlice(model.Slice{Name: model.Name{Namespace: d.word(), Name: fmt.Sprintf("sl%d", i)}, Service: fmt.Sprintf("s%d", d.IntN(20)), Ports: some(d, d.port), Endpoints: some(d, d.endpoint)})
	}
	for i := range d.IntN(4) {
		w.SetNode(model.Node{Name: fmt.Sprintf("n%d", i), Addrs: some(d, d.addr), PodCIDRs: some(d, d.prefix), Zone: d.word(), Ready: d.coin(), Leaving: d.coin()})
	}
	for i := range d.IntN(6) {
		p := model.Pod{Name: model.Name{Namespace: "x", Name: fmt.Sprintf("p%d", i)}, Addrs: some(d, d.addr), Hostname: d.word(), Subdomain: d.word(), Terminating: d.coin(), HostNetwork: d.coin()}
		p.HostPorts, p.Created = some(d, d.hostPort), time.Unix(d.Int64N(1<<33), 0).UTC()
		if d.coin() {
			p.Resolver = &model.Resolver{Policy: model.DNSPolicy(d.IntN(3)), Searches: some(d, d.word), Ndots: d.IntN(17) - 1}
		}
		w.SetPod(p)
	}
	for i := range d.IntN(3) {
		w.SetServiceCIDR(fmt.Sprint("r", i), some(d, d.prefix))
	}
	return w
}

// large is a cluster of so many Services with so many endpoints each, on 100 nodes, named as Deployments name them.
func large(services, endpoints int) *world {
	w := newWorld()
	d := dice{rand.New(rand.NewPCG(1, 2))}
	letters := "bcdfghjklmnpqrstvwxz2456789"
	suffix := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = letters[d.IntN(len(letters))]
		}
		return string(b)
	}
	for i := range 100 {
		w.SetNode(model.Node{Name: fmt.Sprintf("worker-%03d", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 0, byte(i)})}, Ready: true,
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24)}})
	}
	for i := range services {
		name := model.Name{Namespace: fmt.Sprintf("team-%d", i%50), Name: fmt.Sprintf("service-%d", i)}
		w.SetService(model.ServiceSpec{Name: name, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
			Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}}})
		sl := model.Slice{Name: model.Name{Namespace: name.Namespace, Name: name.Name + "-" + suffix(5)}, Service: name.Name, Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080}}}
		set := suffix(10)
		for j := range endpoints {
			n := d.IntN(100)
			sl.Endpoints = append(sl.Endpoints, model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, byte(100 + j), byte(i >> 8), byte(i)}), Node: fmt.Sprintf("worker-%03d", n),
				Zone: fmt.Sprintf("eu-1%c", 'a'+n%3), Pod: model.Name{Namespace: name.Namespace, Name: name.Name + "-" + set + "-" + suffix(5)}, Ready: true, Serving: true})
		}
		w.SetSlice(sl)
	}
	return w
}

// names are the keys of a map in order.
func names[V any](m map[model.Name]V) []string {
	var all []string
	for n := range maps.Keys(m) {
		all = append(all, n.String())
	}
	slices.Sort(all)
	return all
}
