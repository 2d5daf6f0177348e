// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

var dnsAddrs = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")}

// newNS is a network namespace for one test.
func newNS(t testing.TB) *linux.NetNS {
	t.Helper()
	testnet.MustRoot(t)
	ns, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// newTarget is a Target in a namespace; it is closed with the test.
func newTarget(t testing.TB, ns *linux.NetNS) *Target {
	t.Helper()
	target := New(Options{NetNS: ns})
	t.Cleanup(func() { target.Close() })
	return target
}

func apply(t testing.TB, target *Target, snap *model.Snapshot) {
	t.Helper()
	if err := target.Apply(context.Background(), snap); err != nil {
		t.Fatal(err)
	}
}

func dump(t testing.TB, ns *linux.NetNS) string {
	t.Helper()
	text, err := Dump(Options{NetNS: ns})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// fresh is the dump of a snapshot that was applied to an empty namespace.
func fresh(t testing.TB, snap *model.Snapshot) string {
	t.Helper()
	ns := newNS(t)
	apply(t, newTarget(t, ns), snap)
	return dump(t, ns)
}

// tool runs the nft tool in a namespace. It is only ever used to look, and to do what other programs may do to the table.
func tool(t testing.TB, ns *linux.NetNS, args ...string) string {
	t.Helper()
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command("nft", args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func addr(format string, args ...any) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf(format, args...))
}

// node n has the pod ranges 10.244.n.0/24 and fd00:244:0:n::/64.
func node(n int) model.Node {
	return model.Node{
		Name:  fmt.Sprintf("n%d", n),
		Addrs: []netip.Addr{addr("172.30.0.%d", 10+n), addr("fd00:30::%d", 10+n)},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", n))},
		Ready: true,
	}
}

// podAddrs are the addresses of pod i of node n.
func podAddrs(n, i int) [2]netip.Addr {
	return [2]netip.Addr{addr("10.244.%d.%d", n, i), addr("fd00:244:0:%d::%x", n, i)}
}

// vipAddrs are the virtual addresses of service i.
func vipAddrs(i int) []netip.Addr {
	return []netip.Addr{addr("10.96.%d.%d", 1+i/256, i%256), addr("fd00:96::%x", 0x100+i)}
}

// setEndpoints makes the slices, one for each family, of a service whose ports lead to the given endpoints.
func setEndpoints(b *model.Builder, spec model.ServiceSpec, target uint16, eps ...[2]netip.Addr) {
	setEndpointsAs(b, spec, target, func(*model.Endpoint) {}, eps...)
}

func setEndpointsAs(b *model.Builder, spec model.ServiceSpec, target uint16, mood func(*model.Endpoint), eps ...[2]netip.Addr) {
	for fam, suffix := range []string{"v4", "v6"} {
		sl := model.Slice{Name: model.Name{Namespace: spec.Name.Namespace, Name: spec.Name.Name + "-" + suffix}, Service: spec.Name.Name}
		for i, p := range spec.Ports {
			sl.Ports = append(sl.Ports, model.Port{Name: p.Name, Protocol: p.Protocol, Port: target + uint16(i)})
		}
		for _, e := range eps {
			ep := model.Endpoint{Addr: e[fam], Ready: true, Serving: true}
			mood(&ep)
			sl.Endpoints = append(sl.Endpoints, ep)
		}
		b.SetSlice(sl)
	}
}

func clusterIP(i int, ports ...model.Port) model.ServiceSpec {
	return model.ServiceSpec{Name: model.Name{Namespace: "default", Name: fmt.Sprintf("s%05d", i)}, ClusterIPs: vipAddrs(i), Ports: ports}
}

var (
	http = model.Port{Name: "http", Protocol: model.TCP, Port: 80}
	sip  = model.Port{Name: "sip", Protocol: model.UDP, Port: 5060}
)

// world is a random cluster that changes.
type world struct {
	*model.Builder
	r     *rand.Rand
	specs map[int]model.ServiceSpec
}

func newWorld(r *rand.Rand) *world {
	ranges := [][]netip.Prefix{nil, {netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}}[r.IntN(2)]
	w := &world{model.NewBuilder(model.Config{Self: "n1", DNS: dnsAddrs, PassOn: true, ServiceCIDRs: ranges,
		OwnPorts: []model.Port{{Name: "own", Protocol: model.TCP, Port: 30005}}}), r, make(map[int]model.ServiceSpec)}
	w.SetNode(node(1))
	w.SetNode(node(2))
	w.SetService(model.ServiceSpec{Name: model.Name{Namespace: "kube-system", Name: "kube-dns"}, ClusterIPs: dnsAddrs, Ports: []model.Port{
		{Name: "dns", Protocol: model.UDP, Port: 53}, {Name: "dns-tcp", Protocol: model.TCP, Port: 53}}})
	return w
}

// change does something at random to it.
func (w *world) change() {
	const most = 12
	i := w.r.IntN(most)
	spec, there := w.specs[i]
	switch kind := w.r.IntN(21); {
	case kind == 20:
		if w.r.IntN(2) == 0 {
			w.SetServiceCIDR("more", []netip.Prefix{netip.MustParsePrefix([...]string{"10.97.0.0/16", "10.96.1.0/30"}[w.r.IntN(2)])})
		} else {
			w.DeleteServiceCIDR("more")
		}
	case kind < 3 && there:
		w.DeleteService(spec.Name)
		delete(w.specs, i)
	case kind < 7 || !there:
		spec = clusterIP(i, []model.Port{http, sip, {Name: "x", Protocol: model.SCTP, Port: uint16(w.r.IntN(3))}}[:w.r.IntN(4)]...)
		switch w.r.IntN(8) {
		case 0: // an address that another Service has too
			spec.ClusterIPs = vipAddrs(w.r.IntN(most))
		case 1:
			spec.ClusterIPs = spec.ClusterIPs[w.r.IntN(2):][:1]
		case 2:
			spec.Type, spec.ClusterIPs = model.Headless, nil
		}
		w.expose(&spec)
		w.specs[i] = spec
		w.SetService(spec)
	case kind < 16:
		eps := make([][2]netip.Addr, w.r.IntN(1+w.r.IntN(20)))
		for j := range eps {
			eps[j] = podAddrs(1+w.r.IntN(2), 1+w.r.IntN(30))
		}
		hinted := w.r.IntN(3) == 0 // every one, as hints have to be to be followed
		setEndpointsAs(w.Builder, spec, 8000+uint16(w.r.IntN(2)), func(e *model.Endpoint) { w.mood(e, hinted) }, eps...)
	case kind == 16:
		w.SetNode(node(1 + w.r.IntN(4)))
	case kind == 17:
		w.DeleteNode(fmt.Sprintf("n%d", 1+w.r.IntN(4)))
	case kind == 18:
		p := podAddrs(1, 1+w.r.IntN(5))
		w.SetPod(model.Pod{Name: model.Name{Namespace: "default", Name: fmt.Sprint("p", w.r.IntN(4))}, Addrs: p[:1+w.r.IntN(2)],
			Terminating: w.r.IntN(2) == 0, HostPorts: w.hostPorts(), Created: time.Unix(int64(w.r.IntN(3)), 0)})
	case kind == 19:
		w.DeletePod(model.Name{Namespace: "default", Name: fmt.Sprint("p", w.r.IntN(4))})
	}
}

// hostPorts are some that other pods ask for too, and some that are node ports.
func (w *world) hostPorts() (out []model.HostPort) {
	r := w.r
	for range r.IntN(4) {
		at := [...]netip.Addr{{}, {}, netip.IPv4Unspecified(), netip.IPv6Unspecified(), addr("172.30.0.11"), addr("fd00:30::11")}[r.IntN(6)]
		out = append(out, model.HostPort{Addr: at, Protocol: [...]model.Protocol{model.TCP, model.UDP, model.SCTP}[r.IntN(3)],
			Port: uint16(30000 + r.IntN(6)), Target: uint16(8000 + r.IntN(2))})
	}
	return out
}

// expose gives a Service some of what a Service may have.
func (w *world) expose(s *model.ServiceSpec) {
	r := w.r
	s.LocalOnly, s.Unproxied, s.PublishNotReady = r.IntN(4) == 0, r.IntN(8) == 0, r.IntN(6) == 0
	s.Affinity = [...]time.Duration{0, 0, time.Hour, 3 * time.Hour, 500 * time.Millisecond}[r.IntN(5)]
	if r.IntN(2) == 0 {
		return
	}
	x := &model.Exposure{LocalOnly: r.IntN(2) == 0, HealthPort: [...]uint16{0, 0, 30004}[r.IntN(3)]}
	for i := range s.Ports {
		s.Ports[i].NodePort = [...]uint16{0, uint16(30000 + r.IntN(6))}[r.IntN(2)]
	}
	for range r.IntN(3) { // some that other Services have too, and some that are ClusterIPs
		x.ExternalIPs = append(x.ExternalIPs, addr("203.0.113.%d", r.IntN(4)), addr("2001:db8::%d", r.IntN(4)))
		x.Balancers = append(x.Balancers, addr("203.0.113.%d", r.IntN(4)), vipAddrs(r.IntN(12))[r.IntN(2)])
	}
	for range r.IntN(3) {
		x.SourceRanges = append(x.SourceRanges, netip.PrefixFrom(addr("10.%d.0.0", r.IntN(3)), 8+r.IntN(20)).Masked(),
			netip.PrefixFrom(addr("fd00:%d::", r.IntN(3)), 16+r.IntN(20)).Masked())
	}
	s.Exposure = x
}

// mood gives an endpoint some of the states and places it may have.
func (w *world) mood(e *model.Endpoint, hinted bool) {
	r := w.r
	e.Node = fmt.Sprintf("n%d", 1+r.IntN(3))
	if r.IntN(3) == 0 {
		e.Pod = model.Name{Namespace: "default", Name: fmt.Sprint("p", r.IntN(4))}
	}
	if hinted || r.IntN(8) == 0 {
		e.Hints = &model.Hints{Nodes: []string{fmt.Sprintf("n%d", 1+r.IntN(2))}, Zones: []string{"z"}}
	}
	switch r.IntN(6) {
	case 0:
		e.Ready, e.Terminating = false, true
	case 1:
		e.Ready, e.Serving, e.Terminating = false, false, r.IntN(2) == 0
	}
}
