// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// world is the naive model: everything is kept as it was given, and a snapshot is built from nothing.
type world struct {
	services map[Name]ServiceSpec
	slices   map[Name]Slice
	nodes    map[string]Node
	pods     map[Name]Pod
	ranges   map[string][]netip.Prefix
	// gone are the pods that had an address last and have it no more, of those that are still endpoints.
	gone map[netip.Addr]Name
	// lingering are endpoints that slices have forgotten, by Service.
	lingering map[Name][]lingerer
}

func newWorld() *world {
	return &world{map[Name]ServiceSpec{}, map[Name]Slice{}, map[string]Node{}, map[Name]Pod{}, map[string][]netip.Prefix{}, map[netip.Addr]Name{},
		map[Name][]lingerer{}}
}

// worldConfig is what every builder of such a world is told.
var worldConfig = Config{Self: "n1", DNS: []netip.Addr{addr("10.96.0.10")}, PassOn: true,
	OwnPorts:     []Port{{Name: "own", Protocol: TCP, Port: 30082}},
	ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/24"), netip.MustParsePrefix("fd00:96::/112")}}

// build takes everything in in an order of its own, which must not matter.
func (w *world) build() *Snapshot {
	b := NewBuilder(worldConfig)
	for a, n := range w.gone {
		b.SetPod(Pod{Name: n, Addrs: []netip.Addr{a}})
		b.DeletePod(n)
	}
	for _, s := range w.services {
		b.SetService(s)
	}
	for _, s := range w.slices {
		b.SetSlice(s)
	}
	for _, n := range w.nodes {
		b.SetNode(n)
	}
	for _, p := range w.pods {
		b.SetPod(p)
	}
	for a, n := range w.gone {
		b.Detached(n, a)
	}
	for name, r := range w.ranges {
		b.SetServiceCIDR(name, r)
	}
	b.lingering = maps.Clone(w.lingering)
	return b.Build()
}

// linger finds which of the endpoints that a snapshot has linger now: slices name them no more, and their pods are gone or about to be.
func (w *world) linger(last *Snapshot) {
	next := map[Name][]lingerer{}
	for n, svc := range last.Services.All() {
		spec := w.services[n]
		for i := range svc.Endpoints {
			e, pod := svc.Endpoints[i], w.pods[svc.Endpoints[i].Pod]
			sliced := false
			for _, s := range w.slices {
				same := func(o Endpoint) bool { return o.Addr == e.Addr }
				sliced = sliced || s.Service == n.Name && s.Name.Namespace == n.Namespace && slices.ContainsFunc(s.Endpoints, same)
			}
			leaving := w.gone[e.Addr] == e.Pod || pod.Terminating && !pod.HostNetwork && slices.Contains(pod.Addrs, e.Addr)
			if e.Pod == (Name{}) || e.Node != worldConfig.Self || !leaving || sliced || spec.Name != n || spec.Type != ClusterIP || spec.Unproxied {
				continue
			}
			l := lingerer{Slice: Slice{Endpoints: []Endpoint{{Addr: e.Addr, Hostname: e.Hostname, Node: e.Node, Zone: e.Zone, Pod: e.Pod, Terminating: true}}}}
			for j, p := range svc.Ports {
				for _, b := range svc.Backends[j] {
					if b.Addr == e.Addr {
						l.Ports = append(l.Ports, Port{Name: p.Name, Protocol: p.Protocol, Port: b.Port})
					}
				}
			}
			for _, was := range w.lingering[n] {
				if was.Endpoints[0].Addr == e.Addr {
					l = was
				}
			}
			if l.ticks < 2 {
				next[n] = append(next[n], l)
			}
		}
	}
	w.lingering = next
}

// move writes down that a pod has these addresses from now on. One that it had already may have been detached.
func (w *world) move(n Name, addrs []netip.Addr) {
	old := w.pods[n]
	if old.HostNetwork {
		old.Addrs = nil
	}
	for _, a := range old.Addrs {
		if !slices.Contains(addrs, a) {
			w.gone[a] = n
		}
	}
	for _, a := range addrs {
		if !slices.Contains(old.Addrs, a) {
			delete(w.gone, a)
		}
	}
	w.ofOthers()
}

// ofOthers leaves no address gone that another pod than the one that had it has.
func (w *world) ofOthers() {
	maps.DeleteFunc(w.gone, func(a netip.Addr, n Name) bool {
		for other, p := range w.pods {
			if other != n && slices.Contains(p.Addrs, a) {
				return true
			}
		}
		return false
	})
}

// forget keeps of what is gone only what a Service's endpoints still say to be here.
func (w *world) forget(snap *Snapshot) {
	maps.DeleteFunc(w.gone, func(a netip.Addr, n Name) bool {
		for _, svc := range snap.Services.All() {
			if slices.ContainsFunc(svc.Endpoints, func(e Endpoint) bool { return e.Addr == a && e.Pod == n && e.Node == worldConfig.Self }) {
				return false
			}
		}
		return true
	})
}

// step changes one thing in the world and tells the builder.
func (w *world) step(r *rand.Rand, b *Builder) {
	n := Name{"ns" + string(rune('a'+r.IntN(2))), fmt.Sprintf("svc%d", r.IntN(6))}
	switch r.IntN(18) {
	case 0, 1:
		w.services[n] = randomService(r, n)
		b.SetService(w.services[n])
	case 2:
		delete(w.services, n)
		b.DeleteService(n)
	case 3, 4, 5, 6, 7:
		s := randomSlice(r, n)
		w.slices[s.Name] = s
		b.SetSlice(s)
	case 8:
		s := randomSlice(r, n)
		delete(w.slices, s.Name)
		b.DeleteSlice(s.Name)
	case 9:
		node := Node{Name: fmt.Sprintf("n%d", r.IntN(3)), Ready: r.IntN(2) == 0, Zone: [...]string{"", "a", "b"}[r.IntN(3)],
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", r.IntN(3)))}}
		w.nodes[node.Name] = node
		b.SetNode(node)
	case 10:
		name := fmt.Sprintf("n%d", r.IntN(3))
		delete(w.nodes, name)
		b.DeleteNode(name)
	case 14:
		name := fmt.Sprint("range", r.IntN(3))
		if r.IntN(2) == 0 {
			delete(w.ranges, name)
			b.DeleteServiceCIDR(name)
		} else {
			w.ranges[name] = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", 96+r.IntN(3)))}
			b.SetServiceCIDR(name, w.ranges[name])
		}
	case 15:
		b.Tick()
		for _, list := range w.lingering {
			for i := range list {
				list[i].ticks++
			}
		}
	case 16:
		p := randomPod(r)
		for _, a := range p.Addrs {
			b.Detached(p.Name, a)
			if slices.Contains(w.pods[p.Name].Addrs, a) {
				w.gone[a] = p.Name
				w.ofOthers()
			}
		}
	case 17:
		a := randomAddr(r)
		b.Attached(a)
		delete(w.gone, a)
	case 11, 12, 13:
		p := randomPod(r)
		n := p.Name
		if r.IntN(3) == 0 {
			w.move(n, nil)
			delete(w.pods, n)
			b.DeletePod(n)
		} else {
			w.move(n, p.Addrs)
			w.pods[n] = p
			b.SetPod(p)
		}
	}
}

func randomAddr(r *rand.Rand) netip.Addr {
	if r.IntN(3) == 0 {
		return addr(fmt.Sprintf("fd00:244::%d", 1+r.IntN(8)))
	}
	return addr(fmt.Sprintf("10.244.1.%d", 1+r.IntN(8)))
}

// TestPodString: everything that is known of a pod is in its line, so that what differs is seen to differ.
func TestPodString(t *testing.T) {
	plain := Pod{Name: Name{"ns", "p"}, Addrs: []netip.Addr{addr("10.244.1.1")}}
	seen := map[string]string{}
	for name, set := range map[string]func(*Pod){
		"plain":       func(*Pod) {},
		"hostname":    func(p *Pod) { p.Hostname, p.Subdomain = "h", "s" },
		"terminating": func(p *Pod) { p.Terminating = true },
		"network":     func(p *Pod) { p.HostNetwork = true },
		"resolver":    func(p *Pod) { p.Resolver = &Resolver{Ndots: -1} },
		"policy":      func(p *Pod) { p.Resolver = &Resolver{Policy: DNSNone, Ndots: -1} },
		"searches":    func(p *Pod) { p.Resolver = &Resolver{Searches: []string{"a.example"}, Ndots: -1} },
		"ndots":       func(p *Pod) { p.Resolver = &Resolver{Ndots: 0} },
		"host port":   func(p *Pod) { p.HostPorts = []HostPort{{Protocol: TCP, Port: 80, Target: 81}} },
		"host ports": func(p *Pod) {
			p.HostPorts = []HostPort{{Protocol: TCP, Port: 80, Target: 81}, {Protocol: UDP, Port: 80, Target: 81}}
		},
		"its target":  func(p *Pod) { p.HostPorts = []HostPort{{Protocol: TCP, Port: 80, Target: 82}} },
		"its address": func(p *Pod) { p.HostPorts = []HostPort{{Addr: addr("::"), Protocol: TCP, Port: 80, Target: 81}} },
		"its age":     func(p *Pod) { p.Created = time.Unix(1, 0) },
	} {
		p, b := plain, NewBuilder(Config{Self: "n1"})
		set(&p)
		b.SetPod(p)
		text := b.Build().String()
		if other, ok := seen[text]; ok {
			t.Errorf("%s and %s both print %q", name, other, text)
		}
		seen[text] = name
	}
	const want = "pod ns/p addrs [10.244.1.1] resolver None search [a.example b.example] ndots 2\n"
	b := NewBuilder(Config{Self: "n1"})
	plain.Resolver = &Resolver{Policy: DNSNone, Searches: []string{"a.example", "b.example"}, Ndots: 2}
	b.SetPod(plain)
	if got := b.Build().String(); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

// randomPod is one of few pods, so that endpoints name pods that are there, most of them by the addresses they have.
func randomPod(r *rand.Rand) Pod {
	i := 1 + r.IntN(4)
	p := Pod{Name: Name{"ns", fmt.Sprintf("pod%d", i)}, Addrs: []netip.Addr{addr(fmt.Sprintf("10.244.1.%d", i)), addr(fmt.Sprintf("fd00:244::%d", i))}}
	if r.IntN(6) == 0 {
		p.Addrs = []netip.Addr{randomAddr(r)}
	}
	p.Terminating, p.HostNetwork, p.Created = r.IntN(2) == 0, r.IntN(6) == 0, time.Unix(int64(r.IntN(3)), 0)
	for range r.IntN(4) {
		p.HostPorts = append(p.HostPorts, HostPort{Addr: [...]netip.Addr{{}, {}, addr("0.0.0.0"), addr("::"), addr("203.0.113.1"), addr("fd00:96::12")}[r.IntN(6)],
			Protocol: []Protocol{TCP, UDP}[r.IntN(2)], Port: uint16(30080 + r.IntN(3)), Target: uint16(80 + r.IntN(2))})
	}
	return p
}

func randomService(r *rand.Rand, n Name) ServiceSpec {
	s := ServiceSpec{Name: n, Type: ServiceType(r.IntN(3))}
	switch s.Type {
	case ClusterIP:
		// Addresses collide on purpose: an API may hold two Services that claim one.
		s.ClusterIPs = []netip.Addr{addr(fmt.Sprintf("10.96.0.%d", 10+r.IntN(5)))}
		if r.IntN(2) == 0 {
			s.ClusterIPs = append(s.ClusterIPs, addr(fmt.Sprintf("fd00:96::%d", 10+r.IntN(5))))
		}
	case ExternalName:
		s.ExternalName = "example.com"
		return s
	}
	for i := range 1 + r.IntN(3) {
		s.Ports = append(s.Ports, Port{Name: fmt.Sprintf("p%d", i), Protocol: []Protocol{TCP, UDP}[r.IntN(2)], Port: uint16(80 + r.IntN(2)),
			NodePort: [...]uint16{0, 0, 30080, 30081}[r.IntN(4)]})
	}
	s.Unproxied, s.LocalOnly, s.PublishNotReady = r.IntN(6) == 0, r.IntN(4) == 0, r.IntN(4) == 0
	s.Affinity = [...]time.Duration{0, 0, time.Hour}[r.IntN(3)]
	if r.IntN(2) == 0 {
		s.Exposure = randomExposure(r)
	}
	return s
}

// randomExposure has addresses that others have too, as a kind that wins or loses.
func randomExposure(r *rand.Rand) *Exposure {
	x := &Exposure{LocalOnly: r.IntN(2) == 0, HealthPort: [...]uint16{0, 0, 0, 30081}[r.IntN(4)]}
	some := func() (out []netip.Addr) {
		for range r.IntN(3) {
			out = append(out, [...]netip.Addr{addr("203.0.113.1"), addr("203.0.113.2"), addr("2001:db8::1"), addr("10.96.0.11"), addr("10.244.1.3"),
				addr("fd00:96::12")}[r.IntN(6)])
		}
		return out
	}
	x.Balancers, x.ExternalIPs = some(), some()
	for range r.IntN(3) {
		x.SourceRanges = append(x.SourceRanges, [...]netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("10.244.1.0/29"),
			netip.MustParsePrefix("2001:db8:51::/48")}[r.IntN(3)])
	}
	return x
}

func randomSlice(r *rand.Rand, svc Name) Slice {
	// Names that say the Service, that say another one, and that say none.
	said := [...]string{svc.Name + "-", fmt.Sprintf("svc%d-", r.IntN(6)), "slice", "-"}[r.IntN(4)]
	s := Slice{Name: Name{svc.Namespace, said + fmt.Sprint(r.IntN(2))}, Service: svc.Name}
	for i := range r.IntN(3) {
		s.Ports = append(s.Ports, Port{Name: fmt.Sprintf("p%d", i), Protocol: []Protocol{TCP, UDP}[r.IntN(2)], Port: uint16(8080 + r.IntN(2))})
	}
	for range r.IntN(4) {
		e := Endpoint{Addr: randomAddr(r), Node: fmt.Sprintf("n%d", r.IntN(3)), Terminating: r.IntN(4) == 0}
		e.Serving = r.IntN(4) != 0
		e.Ready = e.Serving && !e.Terminating
		if r.IntN(2) == 0 {
			p := randomPod(r)
			e.Pod, e.Addr, e.Node = p.Name, p.Addrs[r.IntN(len(p.Addrs))], fmt.Sprintf("n%d", 1+r.IntN(2))
		}
		if r.IntN(3) == 0 {
			e.Hints = &Hints{Nodes: []string{"n1", "n2"}[:r.IntN(3)], Zones: []string{"a", "b"}[:r.IntN(3)]}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// TestBuilderAgainstNaive holds a long history against a fresh start at every step: what a builder says must not depend on how it got there. Pods of this
// node that it has seen end while they were endpoints are all that it remembers.
func TestBuilderAgainstNaive(t *testing.T) {
	r := seeded(t)
	w, b := newWorld(), NewBuilder(worldConfig)
	last, remembered, lingered := b.Build(), 0, 0
	for i := range 4000 {
		for range 1 + r.IntN(3) {
			w.step(r, b)
		}
		before := last.String()
		w.linger(last)
		snap, fresh := b.Build(), w.build()
		if got, want := snap.String(), fresh.String(); got != want {
			t.Fatalf("step %d: the builder has\n%s\na fresh start has\n%s", i, got, want)
		}
		w.forget(fresh)
		if !maps.Equal(b.gone, w.gone) {
			t.Fatalf("step %d: the builder remembers %v, want %v", i, b.gone, w.gone)
		}
		if b.Lingers() != (len(w.lingering) > 0) {
			t.Fatalf("step %d: something lingers: %t, want %v", i, b.Lingers(), w.lingering)
		}
		remembered += len(w.gone)
		lingered += len(w.lingering)
		checkIndexes(t, snap, fresh)
		w.checkNames(t, b)
		if last.String() != before {
			t.Fatalf("step %d: an older snapshot changed", i)
		}
		if (snap == last) != (snap.String() == before && snap.Generation == last.Generation) {
			t.Fatalf("step %d: generation %d to %d, same text: %t", i, last.Generation, snap.Generation, snap.String() == before)
		}
		last = snap
	}
	if remembered == 0 || lingered == 0 {
		t.Errorf("%d times slices named a pod that was gone, %d times an endpoint lingered", remembered, lingered)
	}
	t.Logf("%d times slices named a pod that was gone, %d times an endpoint lingered", remembered, lingered)
}

// checkNames wants the Builder to know exactly what there is.
func (w *world) checkNames(t *testing.T, b *Builder) {
	t.Helper()
	for n, s := range w.services {
		other := s
		other.PublishNotReady = !s.PublishNotReady
		if !b.HasService(s) || b.HasService(other) {
			t.Fatalf("HasService of %v: %t, of what differs %t", n, b.HasService(s), b.HasService(other))
		}
	}
	for n, s := range w.slices {
		other := s
		other.Endpoints = append(slices.Clone(s.Endpoints), Endpoint{Addr: addr("192.0.2.1")})
		more := s
		more.Endpoints = slices.Clone(s.Endpoints)
		if len(more.Endpoints) > 0 {
			more.Endpoints[0].Hints = &Hints{Zones: []string{"elsewhere"}}
		}
		s.Endpoints = slices.Clone(s.Endpoints)
		if !b.HasSlice(s) || b.HasSlice(other) || len(more.Endpoints) > 0 && b.HasSlice(more) {
			t.Fatalf("HasSlice of %v: %t, of what differs %t, %t", n, b.HasSlice(s), b.HasSlice(other), b.HasSlice(more))
		}
	}
	global := func(names iter.Seq[string]) iter.Seq[Name] {
		return func(yield func(Name) bool) {
			for n := range names {
				if !yield(Name{Name: n}) {
					return
				}
			}
		}
	}
	for _, x := range []struct {
		what      string
		got, want iter.Seq[Name]
	}{
		{"Services", b.Services, maps.Keys(w.services)}, {"slices", b.Slices, maps.Keys(w.slices)}, {"pods", b.Pods, maps.Keys(w.pods)},
		{"Nodes", b.Nodes, global(maps.Keys(w.nodes))}, {"ServiceCIDRs", b.ServiceCIDRs, global(maps.Keys(w.ranges))},
	} {
		got, want := slices.SortedFunc(x.got, Name.Compare), slices.SortedFunc(x.want, Name.Compare)
		if !slices.Equal(got, want) {
			t.Fatalf("the builder knows the %s %v, there are %v", x.what, got, want)
		}
	}
}

func checkIndexes(t *testing.T, got, want *Snapshot) {
	t.Helper()
	for name, tables := range map[string][2]Table[netip.Addr, Name]{"VIPs": {got.VIPs, want.VIPs}, "Hosts": {got.Hosts, want.Hosts},
		"Foreign": {got.Foreign, want.Foreign}} {
		for k, c := range Diff(tables[0], tables[1]) {
			t.Fatalf("%s[%s] is %v (%t), want %v (%t)", name, k, c.Old, c.HadOld, c.New, c.HasNew)
		}
	}
	headless := make(map[netip.Addr][]Name)
	for n, svc := range want.Services.All() {
		for _, a := range hostAddrs(svc) {
			headless[a] = append(headless[a], n)
		}
	}
	for _, addr := range slices.Concat(slices.Collect(maps.Keys(headless)), []netip.Addr{netip.MustParseAddr("192.0.2.1")}) {
		names := headless[addr]
		slices.SortFunc(names, Name.Compare)
		if all := slices.Collect(got.HeadlessOf(addr)); !slices.Equal(all, names) {
			t.Fatalf("HeadlessOf(%s) is %v, want %v", addr, all, names)
		}
	}
	for a, names := range got.shared.All() {
		if !slices.Equal(*names, headless[a]) || len(*names) < 2 {
			t.Fatalf("shared[%s] is %v, want %v", a, *names, headless[a])
		}
	}
	for f := range want.Frontends.All() {
		if w, ok := want.Way(f); ok && w.Kind == AtLeaving {
			a, _ := got.leavers.Get(f)
			b, _ := want.leavers.Get(f)
			if (a == nil) != (b == nil) || a != nil && !slices.Equal(*a, *b) {
				t.Fatalf("leavers[%s] is %v, want %v", f, a, b)
			}
		}
	}
	if !slices.Equal(got.ServiceCIDRs, want.ServiceCIDRs) {
		t.Fatalf("ranges %v, want %v", got.ServiceCIDRs, want.ServiceCIDRs)
	}
	for k, c := range Diff(got.HealthPorts, want.HealthPorts) {
		t.Fatalf("HealthPorts[%d] is %v (%t), want %v (%t)", k, c.Old, c.HadOld, c.New, c.HasNew)
	}
	for k, c := range Diff(got.Frontends, want.Frontends) {
		t.Fatalf("Frontends[%s] is %v (%t), want %v (%t)", k, c.Old, c.HadOld, c.New, c.HasNew)
	}
}

func TestBuildKeepsPointers(t *testing.T) {
	b := NewBuilder(Config{Self: "n1"})
	a, c := Name{"x", "a"}, Name{"x", "c"}
	b.SetService(ServiceSpec{Name: a, Arrived: time.Unix(1, 0)})
	b.SetService(ServiceSpec{Name: c})
	first := b.Build()
	if b.Build() != first {
		t.Error("a second Build without a change made a new snapshot")
	}
	b.SetService(ServiceSpec{Name: a, Arrived: time.Unix(2, 0)})
	if b.Build() != first {
		t.Error("an object that came again, unchanged, made a new snapshot")
	}
	b.SetSlice(Slice{Name: Name{"x", "a-1"}, Service: "a"})
	second := b.Build()
	if second.Generation != first.Generation+1 {
		t.Errorf("generation %d after %d", second.Generation, first.Generation)
	}
	var changed []string
	for n := range Diff(first.Services, second.Services) {
		changed = append(changed, n.String())
	}
	if !slices.Equal(changed, []string{"x/a"}) {
		t.Errorf("changed: %v, want only x/a", changed)
	}
	svc, _ := second.Services.Get(a)
	if svc.Slices != 1 || !svc.Arrived.Equal(time.Unix(1, 0)) {
		t.Errorf("slices %d, arrived %v; want 1 and the first time", svc.Slices, svc.Arrived)
	}
}

func TestSliceMovesToAnotherService(t *testing.T) {
	for _, name := range []string{"s", "a-s", "b-s", "a", "-", "a-b-s"} {
		t.Run(name, func(t *testing.T) { sliceMoves(t, name) })
	}
}

func sliceMoves(t *testing.T, name string) {
	b := NewBuilder(Config{Self: "n1"})
	port := []Port{{Protocol: TCP, Port: 80}}
	for _, n := range []string{"a", "b"} {
		b.SetService(ServiceSpec{Name: Name{"x", n}, ClusterIPs: []netip.Addr{addr("10.96.0." + map[string]string{"a": "1", "b": "2"}[n])}, Ports: port})
	}
	s := Slice{Name: Name{"x", name}, Service: "a", Ports: port, Endpoints: []Endpoint{{Addr: addr("10.244.0.1"), Ready: true}}}
	b.SetSlice(s)
	b.Build()
	s.Service = "b"
	b.SetSlice(s)
	snap := b.Build()
	for n, want := range map[string]int{"a": 0, "b": 1} {
		if svc, _ := snap.Services.Get(Name{"x", n}); len(svc.Endpoints) != want || svc.Slices != want {
			t.Errorf("%s: %d endpoints in %d slices, want %d", n, len(svc.Endpoints), svc.Slices, want)
		}
	}
	for _, unknown := range []string{"unknown", "a-unknown", "b-unknown", ""} {
		b.DeleteSlice(Name{"x", unknown})
	}
	if svc, _ := b.Build().Services.Get(Name{"x", "b"}); len(svc.Endpoints) != 1 {
		t.Error("endpoints went with slices that there were not")
	}
	b.DeleteSlice(s.Name)
	if svc, _ := b.Build().Services.Get(Name{"x", "b"}); len(svc.Endpoints) != 0 {
		t.Error("endpoints stay after their slice is deleted")
	}
}

func TestResolve(t *testing.T) {
	ready := func(a string) Endpoint { return Endpoint{Addr: addr(a), Ready: true, Serving: true} }
	sick := func(a string) Endpoint { return Endpoint{Addr: addr(a)} }
	http := []Port{{Name: "http", Protocol: TCP, Port: 8080}}
	for _, tt := range []struct {
		name   string
		ports  []Port
		slices []Slice
		want   string
	}{
		{"no slice", []Port{{Name: "http", Protocol: TCP, Port: 80}}, nil, ""},
		{"one", []Port{{Name: "http", Protocol: TCP, Port: 80}}, []Slice{{Ports: http, Endpoints: []Endpoint{ready("10.0.0.1")}}}, "10.0.0.1:8080 ready"},
		{"the same endpoint twice counts once, at its best", []Port{{Name: "http", Protocol: TCP, Port: 80}},
			[]Slice{{Ports: http, Endpoints: []Endpoint{sick("10.0.0.1")}}, {Ports: http, Endpoints: []Endpoint{ready("10.0.0.1")}}}, "10.0.0.1:8080 ready"},
		{"slices with different numbers for one name", []Port{{Name: "http", Protocol: TCP, Port: 80}},
			[]Slice{{Ports: http, Endpoints: []Endpoint{ready("10.0.0.2")}},
				{Ports: []Port{{Name: "http", Protocol: TCP, Port: 9090}}, Endpoints: []Endpoint{ready("10.0.0.1")}}}, "10.0.0.1:9090 ready, 10.0.0.2:8080 ready"},
		{"the protocol must match", []Port{{Name: "http", Protocol: UDP, Port: 80}}, []Slice{{Ports: http, Endpoints: []Endpoint{ready("10.0.0.1")}}}, ""},
		{"the name must match", []Port{{Name: "web", Protocol: TCP, Port: 80}}, []Slice{{Ports: http, Endpoints: []Endpoint{ready("10.0.0.1")}}}, ""},
		{"port zero is none", []Port{{Name: "http", Protocol: TCP, Port: 80}},
			[]Slice{{Ports: []Port{{Name: "http", Protocol: TCP}}, Endpoints: []Endpoint{ready("10.0.0.1")}}}, ""},
		{"both families, in order", []Port{{Name: "http", Protocol: TCP, Port: 80}},
			[]Slice{{Ports: http, Endpoints: []Endpoint{ready("fd00::1")}}, {Ports: http, Endpoints: []Endpoint{sick("10.0.0.9"), ready("10.0.0.1")}}},
			"10.0.0.1:8080 ready, 10.0.0.9:8080 not ready, [fd00::1]:8080 ready"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := make([]Slice, len(tt.slices))
			for i, s := range tt.slices {
				slices.SortFunc(s.Endpoints, func(a, b Endpoint) int { return a.Addr.Compare(b.Addr) }) // as the Builder does
				s.Name = Name{"x", fmt.Sprint(i)}
				all[i] = s
			}
			svc := resolve(ServiceSpec{Ports: tt.ports}, all, func(*Endpoint) fate { return stays })
			var got []string
			for _, b := range svc.Backends[0] {
				got = append(got, b.AddrPort().String()+" "+b.State())
			}
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
}

// BenchmarkOneChange is the cost of one endpoint change among many Services: it must not grow with their number.
func BenchmarkOneChange(b *testing.B) {
	for _, n := range []int{10, 1_000, 20_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			builder := NewBuilder(Config{Self: "n1"})
			slice := func(i, last int) Slice {
				return Slice{Name: Name{"x", fmt.Sprint("s", i)}, Service: fmt.Sprint("s", i), Ports: []Port{{Protocol: TCP, Port: 80}},
					Endpoints: []Endpoint{{Addr: netip.AddrFrom4([4]byte{10, 244, 0, byte(last)}), Ready: true}}}
			}
			for i := range n {
				builder.SetService(ServiceSpec{Name: Name{"x", fmt.Sprint("s", i)}, Ports: []Port{{Protocol: TCP, Port: 80}},
					ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}})
				builder.SetSlice(slice(i, 1))
			}
			last := builder.Build()
			for i := 0; b.Loop(); i++ {
				builder.SetSlice(slice(i%n, (i+i/n)%250))
				snap := builder.Build()
				for range Diff(last.Services, snap.Services) {
				}
				last = snap
			}
		})
	}
}

// TestOrphans: a slice whose Service there is not is named, until that comes or the slice goes; also before the next Build.
func TestOrphans(t *testing.T) {
	b := NewBuilder(Config{Self: "n1"})
	orphans := func() (out []string) {
		for slice, service := range b.Orphans {
			out = append(out, slice.String()+" of "+service.String())
		}
		slices.Sort(out)
		return out
	}
	want := func(when string, list ...string) {
		t.Helper()
		if got := orphans(); !slices.Equal(got, list) {
			t.Errorf("%s: %v, want %v", when, got, list)
		}
	}
	b.SetSlice(Slice{Name: Name{"x", "a-1"}, Service: "a"})
	b.SetSlice(Slice{Name: Name{"x", "a-2"}, Service: "a"})
	b.SetSlice(Slice{Name: Name{"x", "b-1"}, Service: "b"})
	b.SetService(ServiceSpec{Name: Name{"x", "b"}})
	want("at first", "x/a-1 of x/a", "x/a-2 of x/a")
	b.Build()
	want("built", "x/a-1 of x/a", "x/a-2 of x/a")
	b.DeleteSlice(Name{"x", "a-2"})
	b.DeleteService(Name{"x", "b"})
	want("without b", "x/a-1 of x/a", "x/b-1 of x/b")
	b.SetService(ServiceSpec{Name: Name{"x", "a"}})
	b.SetService(ServiceSpec{Name: Name{"x", "b"}})
	want("with both")
	for range b.Orphans {
		t.Error("there is one")
	}
}
