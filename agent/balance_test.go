// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/health"
	"github.com/fairlead/fairlead/metrics"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nft"
	"github.com/fairlead/fairlead/testnet"
)

func parseAddrs(list string) (out []netip.Addr) {
	for _, a := range strings.Fields(list) {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// endpointsOf makes a slice's endpoints of "ADDRESS STATE NODE, ...".
func endpointsOf(list string) (out []model.Endpoint) {
	for _, line := range strings.Split(list, ",") {
		w := strings.Fields(line)
		if len(w) == 0 {
			continue
		}
		out = append(out, model.Endpoint{Addr: netip.MustParseAddr(w[0]), Node: w[2], Ready: w[1] == "ready",
			Serving: w[1] == "ready" || w[1] == "draining", Terminating: w[1] == "draining"})
	}
	return out
}

var serviceName = model.Name{Namespace: "x", Name: "s"}

func oneService(spec model.ServiceSpec, endpoints string) *model.Snapshot {
	b := model.NewBuilder(model.Config{Self: "n1"})
	spec.Name = serviceName
	b.SetService(spec)
	b.SetSlice(model.Slice{Name: spec.Name, Service: spec.Name.Name, Ports: []model.Port{{Protocol: model.TCP, Port: 8080}, {Name: "b", Protocol: model.TCP, Port: 8081}},
		Endpoints: endpointsOf(endpoints)})
	return b.Build()
}

// What load balancers hear at the health check node port.
func TestChecks(t *testing.T) {
	exposed := &model.Exposure{LocalOnly: true, HealthPort: 32000}
	both := "10.96.0.1 fd00:96::1"
	for _, tt := range []struct {
		name      string
		spec      model.ServiceSpec
		endpoints string
		want      health.Check
	}{
		{"endpoints here", model.ServiceSpec{ClusterIPs: parseAddrs(both), Exposure: exposed}, "10.0.0.1 ready n1, 10.0.0.2 ready n1, 10.0.0.3 ready n2, fd00::1 ready n1",
			health.Check{Port: 32000, IPv4: health.Family{Served: true, LocalEndpoints: 2}, IPv6: health.Family{Served: true, LocalEndpoints: 1}}},
		{"none here", model.ServiceSpec{ClusterIPs: parseAddrs(both), Exposure: exposed}, "10.0.0.3 ready n2",
			health.Check{Port: 32000, IPv4: health.Family{Served: true}, IPv6: health.Family{Served: true}}},
		{"one that drains tells the balancer to go", model.ServiceSpec{ClusterIPs: parseAddrs("10.96.0.1"), Exposure: exposed}, "10.0.0.1 draining n1, 10.0.0.2 bad n1",
			health.Check{Port: 32000, IPv4: health.Family{Served: true}}},
		{"one family", model.ServiceSpec{ClusterIPs: parseAddrs("fd00:96::1"), Exposure: exposed}, "10.0.0.1 ready n1, fd00::1 ready n1",
			health.Check{Port: 32000, IPv6: health.Family{Served: true, LocalEndpoints: 1}}},
		{"no port", model.ServiceSpec{ClusterIPs: parseAddrs(both), Exposure: &model.Exposure{LocalOnly: true}}, "10.0.0.1 ready n1", health.Check{}},
		{"not exposed", model.ServiceSpec{ClusterIPs: parseAddrs(both)}, "10.0.0.1 ready n1", health.Check{}},
		{"somebody else's", model.ServiceSpec{ClusterIPs: parseAddrs(both), Exposure: exposed, Unproxied: true}, "10.0.0.1 ready n1", health.Check{}},
		{"headless", model.ServiceSpec{Type: model.Headless, Exposure: exposed}, "10.0.0.1 ready n1", health.Check{}},
	} {
		b := newBalancing()
		if !b.update(oneService(tt.spec, tt.endpoints)) {
			t.Errorf("%s: the first snapshot is no change", tt.name)
		}
		if got := b.checks[serviceName]; got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// What the metric of ports without an endpoint here counts.
func TestNoLocal(t *testing.T) {
	ports := []model.Port{{Protocol: model.TCP, Port: 80}, {Name: "b", Protocol: model.TCP, Port: 81}}
	both := "10.96.0.1 fd00:96::1"
	for _, tt := range []struct {
		name      string
		spec      model.ServiceSpec
		endpoints string
		// want is IPv4 internal, external, IPv6 internal, external.
		want [4]int
	}{
		{"internal", model.ServiceSpec{ClusterIPs: parseAddrs(both), Ports: ports, LocalOnly: true}, "10.0.0.1 ready n2, fd00::1 ready n2", [4]int{2, 0, 2, 0}},
		{"external", model.ServiceSpec{ClusterIPs: parseAddrs(both), Ports: ports[:1], Exposure: &model.Exposure{LocalOnly: true}}, "10.0.0.1 ready n2, fd00::1 ready n1",
			[4]int{0, 1, 0, 0}},
		{"both", model.ServiceSpec{ClusterIPs: parseAddrs("10.96.0.1"), Ports: ports[:1], LocalOnly: true, Exposure: &model.Exposure{LocalOnly: true}}, "10.0.0.1 ready n2",
			[4]int{1, 1, 0, 0}},
		{"no endpoint anywhere", model.ServiceSpec{ClusterIPs: parseAddrs(both), Ports: ports, LocalOnly: true}, "", [4]int{}},
		{"one that drains here", model.ServiceSpec{ClusterIPs: parseAddrs("10.96.0.1"), Ports: ports, LocalOnly: true}, "10.0.0.1 draining n1, 10.0.0.2 ready n2", [4]int{}},
		{"policy Cluster", model.ServiceSpec{ClusterIPs: parseAddrs(both), Ports: ports, Exposure: &model.Exposure{}}, "10.0.0.1 ready n2", [4]int{}},
		{"somebody else's", model.ServiceSpec{ClusterIPs: parseAddrs(both), Ports: ports, LocalOnly: true, Unproxied: true}, "10.0.0.1 ready n2", [4]int{}},
		{"headless", model.ServiceSpec{Type: model.Headless, Ports: ports, LocalOnly: true}, "10.0.0.1 ready n2", [4]int{}},
	} {
		b := newBalancing()
		b.update(oneService(tt.spec, tt.endpoints))
		if got := counts(b); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func counts(b *balancing) [4]int {
	v4, v6 := b.total[metrics.IPv4], b.total[metrics.IPv6]
	return [4]int{v4.internal, v4.external, v6.internal, v6.external}
}

// Following changes comes to the same as looking at everything, and a change that concerns no check is none.
func TestBalancingAgainstAFreshStart(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	builder, b := model.NewBuilder(model.Config{Self: "n1"}), newBalancing()
	some := 0
	for step := range 2000 {
		randomChange(r, builder)
		before := maps.Clone(b.checks)
		snap := builder.Build()
		changed := b.update(snap)
		fresh := newBalancing()
		fresh.update(snap)
		if !maps.Equal(b.checks, fresh.checks) || b.total != fresh.total || !maps.Equal(b.local, fresh.local) {
			t.Fatalf("step %d:\ngot  %v %v\nwant %v %v", step, b.checks, b.total, fresh.checks, fresh.total)
		}
		if step > 0 && changed == maps.Equal(before, b.checks) {
			t.Fatalf("step %d: changed is %t, from %v to %v", step, changed, before, b.checks)
		}
		some += len(b.checks)
		for _, n := range counts(b) {
			some += n
		}
	}
	if some == 0 {
		t.Error("nothing was counted in all this")
	}
}

func randomChange(r *rand.Rand, b *model.Builder) {
	name := model.Name{Namespace: "x", Name: fmt.Sprint("s", r.IntN(6))}
	switch r.IntN(8) {
	case 0:
		b.DeleteService(name)
	case 1:
		b.DeleteSlice(name)
	case 2, 3, 4:
		s := model.ServiceSpec{Name: name, LocalOnly: r.IntN(2) == 0, Unproxied: r.IntN(6) == 0, ClusterIPs: parseAddrs("10.96.0.1 fd00:96::1")[r.IntN(2):],
			Ports: []model.Port{{Protocol: model.TCP, Port: 80}, {Name: "b", Protocol: model.TCP, Port: 81}}[:1+r.IntN(2)]}
		if r.IntN(3) > 0 {
			s.Exposure = &model.Exposure{LocalOnly: r.IntN(2) == 0, HealthPort: uint16(r.IntN(2) * 32000)}
		}
		b.SetService(s)
	default:
		var list []string
		for i := range r.IntN(5) {
			list = append(list, fmt.Sprintf("%s %s n%d", []string{"10.0.0.", "fd00::"}[r.IntN(2)]+fmt.Sprint(1+i), []string{"ready", "draining", "bad"}[r.IntN(3)], 1+r.IntN(2)))
		}
		b.SetSlice(model.Slice{Name: name, Service: name.Name, Ports: []model.Port{{Protocol: model.TCP, Port: 8080}, {Name: "b", Protocol: model.TCP, Port: 8081}},
			Endpoints: endpointsOf(strings.Join(list, ","))})
	}
}

// Who asked for what another has, a line each.
func TestDisputes(t *testing.T) {
	b := model.NewBuilder(model.Config{Self: "n1"})
	add := func(name, vip, external string, nodePort uint16) {
		s := model.ServiceSpec{Name: model.Name{Namespace: "x", Name: name}, ClusterIPs: parseAddrs(vip), Ports: []model.Port{{Protocol: model.TCP, Port: 80, NodePort: nodePort}}}
		if external != "" {
			s.Exposure = &model.Exposure{ExternalIPs: parseAddrs(external)}
		}
		b.SetService(s)
	}
	add("a", "10.96.0.1", "203.0.113.1", 30080)
	if got := disputes(b.Build()); len(got) != 0 {
		t.Errorf("one Service alone: %v", got)
	}
	add("b", "10.96.0.2", "203.0.113.1 10.96.0.1 203.0.113.1", 30080)
	add("c", "10.96.0.1", "203.0.113.2", 0)
	want := []string{"x/b: 10.96.0.1:80/TCP belongs to x/a", "x/b: 203.0.113.1:80/TCP belongs to x/a", "x/b: nodeport4:30080/TCP belongs to x/a",
		"x/c: 10.96.0.1:80/TCP belongs to x/a"}
	if got := disputes(b.Build()); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	b.DeleteService(model.Name{Namespace: "x", Name: "a"})
	want = []string{"x/b: 10.96.0.1:80/TCP belongs to x/c"}
	if got := disputes(b.Build()); !slices.Equal(got, want) {
		t.Errorf("without the first: %v, want %v", got, want)
	}
}

// That a pod belongs to two Services is no dispute, also while it is ending.
func TestNoDisputeAboutAPodThatIsEnding(t *testing.T) {
	b := model.NewBuilder(model.Config{Self: "n1", PassOn: true})
	pod := model.Name{Namespace: "x", Name: "p"}
	b.SetPod(model.Pod{Name: pod, Addrs: parseAddrs("10.244.0.5"), Terminating: true})
	for _, name := range []string{"a", "b"} {
		n := model.Name{Namespace: "x", Name: name}
		b.SetService(model.ServiceSpec{Name: n, ClusterIPs: parseAddrs(map[string]string{"a": "10.96.0.1", "b": "10.96.0.2"}[name]), Ports: []model.Port{{Protocol: model.TCP, Port: 80}}})
		b.SetSlice(model.Slice{Name: n, Service: name, Ports: []model.Port{{Protocol: model.TCP, Port: 8080}},
			Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("10.244.0.5"), Node: "n1", Pod: pod, Ready: true, Serving: true}}})
	}
	if got := disputes(b.Build()); len(got) > 0 {
		t.Errorf("disputes: %q", got)
	}
}

// A host port that others have is named like a frontend that others have, until it is the pod's.
func TestHostPortDisputes(t *testing.T) {
	own := ownPorts(&config.Agent{DNS: parseAddrs("10.96.0.10"), Healthz: netip.MustParseAddrPort("0.0.0.0:10256")}, []uint16{53})
	b := model.NewBuilder(model.Config{Self: "n1", OwnPorts: own})
	pod := func(name string, age int64, ports ...model.HostPort) {
		b.SetPod(model.Pod{Name: model.Name{Namespace: "x", Name: name}, Addrs: parseAddrs("10.244.0.1"), Created: time.Unix(age, 0), HostPorts: ports})
	}
	pod("old", 1, model.HostPort{Protocol: model.TCP, Port: 8080, Target: 80})
	if got := disputes(b.Build()); len(got) != 0 {
		t.Errorf("one pod alone: %v", got)
	}
	b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "x", Name: "web"}, ClusterIPs: parseAddrs("10.96.0.1"), Ports: []model.Port{{Protocol: model.TCP, Port: 80, NodePort: 30080}}})
	pod("new", 2, model.HostPort{Protocol: model.TCP, Port: 8080, Target: 80}, model.HostPort{Protocol: model.TCP, Port: 30080, Target: 80},
		model.HostPort{Protocol: model.TCP, Port: 10256, Target: 80}, model.HostPort{Protocol: model.UDP, Port: 53, Target: 53}, model.HostPort{Protocol: model.TCP, Port: 9153, Target: 80})
	want := []string{"x/pod/new: hostport4:10256/TCP belongs to this node's agent (healthz)", "x/pod/new: hostport4:53/UDP belongs to this node's agent (DNS)",
		"x/pod/new: hostport4:8080/TCP belongs to x/pod/old", "x/pod/new: hostport4:9153/TCP belongs to this node's agent (metrics)",
		"x/pod/new: nodeport4:30080/TCP belongs to x/web"}
	if got := disputes(b.Build()); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	b.DeletePod(model.Name{Namespace: "x", Name: "old"})
	b.DeleteService(model.Name{Namespace: "x", Name: "web"})
	if got := disputes(b.Build()); len(got) != 3 {
		t.Errorf("without the others: %v", got)
	}
}

func TestHealthAddrs(t *testing.T) {
	snap := oneService(model.ServiceSpec{Ports: []model.Port{}}, "")
	n := &Node{cfg: &config.Agent{}}
	if got := fmt.Sprint(n.healthAddrs(snap)); got != "[0.0.0.0 ::]" {
		t.Errorf("without ranges: %s", got)
	}
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	n.cfg.NodePortAddrs = loopback
	b := model.NewBuilder(model.Config{Self: "n1", NodePortAddrs: loopback})
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var want []netip.Addr
	for _, a := range all {
		if p := netip.MustParsePrefix(a.String()); loopback[0].Contains(p.Addr()) {
			want = append(want, p.Addr())
		}
	}
	if got := n.healthAddrs(b.Build()); !slices.Equal(got, want) {
		t.Errorf("answered at %v, want %v", got, want)
	}
}

// TestHealthAddrsAreFollowed: an address that comes or goes later is one where checks are answered, or is one no more, though the API server knows of no change.
func TestHealthAddrsAreFollowed(t *testing.T) {
	host := testnet.New(t).Host("node")
	host.Addr("lo", "10.9.0.1/32")
	synctest.Test(t, func(t *testing.T) {
		ranges := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
		var mu sync.Mutex
		open := make(map[string]bool)
		n := &Node{cfg: &config.Agent{NodePortAddrs: ranges}, state: NewState(), plane: nft.New(nft.Options{}), proxy: metrics.New(metrics.Options{})}
		n.ports = health.NewPorts(health.PortsOptions{Healthy: func() bool { return true }, Listen: func(_ context.Context, _, addr string) (net.Listener, error) {
			mu.Lock()
			defer mu.Unlock()
			open[addr] = true
			return &deaf{closed: make(chan struct{}), gone: func() {
				mu.Lock()
				defer mu.Unlock()
				delete(open, addr)
			}}, nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			host.Do(func() error { return n.balance(ctx) })
		}()
		b := model.NewBuilder(model.Config{Self: "n1", NodePortAddrs: ranges})
		want := func(when, list string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(slices.Sorted(maps.Keys(open)), " "); got != list {
				t.Errorf("%s: answered at %q, want %q", when, got, list)
			}
		}
		n.state.acknowledge(b.Build(), 0)
		want("without a check", "")
		s := model.ServiceSpec{Name: serviceName, ClusterIPs: parseAddrs("10.96.0.1"), Exposure: &model.Exposure{LocalOnly: true, HealthPort: 32000}}
		b.SetService(s)
		n.state.acknowledge(b.Build(), 0)
		want("at first", "10.9.0.1:32000")
		host.Addr("lo", "10.9.0.2/32")
		time.Sleep(verifyEvery)
		want("a while later", "10.9.0.1:32000 10.9.0.2:32000")
		host.Addr("lo", "10.9.0.3/32", "10.8.0.1/32")
		b.SetNode(model.Node{Name: "n2"})
		n.state.acknowledge(b.Build(), 0)
		want("with a change of something else", "10.9.0.1:32000 10.9.0.2:32000 10.9.0.3:32000")
		host.Do(func() error { return exec.Command("ip", "addr", "del", "10.9.0.1/32", "dev", "lo").Run() })
		time.Sleep(verifyEvery)
		want("when one is gone", "10.9.0.2:32000 10.9.0.3:32000")
		b.DeleteService(serviceName)
		n.state.acknowledge(b.Build(), 0)
		want("without the Service", "")
		cancel()
		<-ended
	})
}

// deaf is a listener that nobody reaches.
type deaf struct {
	once   sync.Once
	closed chan struct{}
	gone   func()
}

func (d *deaf) Accept() (net.Conn, error) {
	<-d.closed
	return nil, net.ErrClosed
}

func (d *deaf) Close() error {
	d.once.Do(func() { close(d.closed); d.gone() })
	return nil
}

func (d *deaf) Addr() net.Addr { return &net.TCPAddr{} }

// A node takes itself out of its load balancers when it is gone or leaving, and not because nothing is known yet.
func TestEligible(t *testing.T) {
	for _, tt := range []struct {
		name string
		node *model.Node
		want bool
	}{
		{"here", &model.Node{Name: "n1"}, true},
		{"leaving", &model.Node{Name: "n1", Leaving: true}, false},
		{"gone", nil, false},
	} {
		n := &Node{state: NewState()}
		if !n.eligible() {
			t.Errorf("%s: not eligible before the first snapshot", tt.name)
		}
		b := model.NewBuilder(model.Config{Self: "n1"})
		if tt.node != nil {
			b.SetNode(*tt.node)
		}
		n.state.acknowledge(b.Build(), 0)
		if got := n.eligible(); got != tt.want {
			t.Errorf("%s: eligible is %v", tt.name, got)
		}
	}
}

// TestPassingOn: an ending pod of this node is named as long as another endpoint can take its connections, and a moment longer than
// slices name it.
func TestPassingOn(t *testing.T) {
	b := model.NewBuilder(model.Config{Self: "n1", PassOn: true})
	name := model.Name{Namespace: "x", Name: "a"}
	b.SetService(model.ServiceSpec{Name: name, ClusterIPs: parseAddrs("10.96.0.1"), Ports: []model.Port{{Protocol: model.TCP, Port: 80}}})
	slice := func(others ...string) {
		sl := model.Slice{Name: name, Service: "a", Ports: []model.Port{{Protocol: model.TCP, Port: 8080}}}
		sl.Endpoints = append(sl.Endpoints, model.Endpoint{Addr: netip.MustParseAddr("10.244.0.5"), Node: "n1", Pod: name, Ready: true, Serving: true})
		for _, a := range others {
			sl.Endpoints = append(sl.Endpoints, model.Endpoint{Addr: netip.MustParseAddr(a), Node: "n2", Ready: true, Serving: true})
		}
		b.SetSlice(sl)
	}
	want := func(when string, list ...string) {
		t.Helper()
		if got := passingOn(b.Build()); !slices.Equal(got, list) {
			t.Errorf("%s: %v, want %v", when, got, list)
		}
	}
	slice("10.244.1.5")
	pod := model.Pod{Name: name, Addrs: parseAddrs("10.244.0.5")}
	b.SetPod(pod)
	want("while it runs")
	pod.Terminating = true
	b.SetPod(pod)
	want("while it ends", "10.244.0.5:8080/TCP")
	slice()
	want("alone")
	slice("10.244.1.5")
	b.DeletePod(name)
	want("gone, and slices do not know", "10.244.0.5:8080/TCP")
	b.SetSlice(model.Slice{Name: name, Service: "a", Ports: []model.Port{{Protocol: model.TCP, Port: 8080}},
		Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("10.244.1.5"), Node: "n2", Ready: true, Serving: true}}})
	want("gone a moment ago", "10.244.0.5:8080/TCP")
	for b.Lingers() {
		b.Tick()
		b.Build()
	}
	want("gone")
}
