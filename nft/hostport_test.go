// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

// hostPod is a pod at podAddrs(2, i) with a host port of UDP, which leads to 8081.
func hostPod(i int, at netip.Addr, port uint16) model.Pod {
	a := podAddrs(2, i)
	return model.Pod{Name: model.Name{Namespace: "default", Name: fmt.Sprint("p", i)}, Addrs: a[:],
		HostPorts: []model.HostPort{{Addr: at, Protocol: model.UDP, Port: port, Target: 8081}}}
}

func newHostRoad(t *testing.T) *road {
	r := newRoad(t)
	r.b = model.NewBuilder(model.Config{Self: "n1"})
	r.b.SetNode(node(1))
	return r
}

// A client that keeps its socket, and so its flow, is answered by the pod that has the port at the time: at every address of the node, or at one.
func TestUDPFlowsFollowTheHostPort(t *testing.T) {
	for _, from := range []string{"pod", "node"} {
		for _, exact := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, one address %t", from, exact), func(t *testing.T) {
				r := newHostRoad(t)
				client := map[string]*testnet.Host{"pod": r.pod, "node": r.node}[from]
				for i, dst := range []netip.Addr{addr("10.244.1.1"), addr("fd00:244:0:1::1")} {
					r.hostPortFollows(t, client, i, dst, exact)
				}
			})
		}
	}
}

func (r *road) hostPortFollows(t *testing.T, client *testnet.Host, family int, dst netip.Addr, exact bool) {
	t.Helper()
	var at netip.Addr
	if exact {
		at = dst
	}
	apply(t, r.target, r.b.Build())
	conn, err := client.Dial(context.Background(), "udp", "", netip.AddrPortFrom(dst, 5060))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(when string, pod int) {
		t.Helper()
		got, err := testnet.AskOn(conn)
		if pod == 0 {
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s %s: %v %v, want refusal", dst, when, got, err)
			}
		} else if want := podAddrs(2, pod)[family].String(); err != nil || got.Name != want {
			t.Errorf("%s %s: %v %v, want %s", dst, when, got, err, want)
		}
	}
	ask("before any pod has the port", 0)
	r.b.SetPod(hostPod(1, at, 5060))
	apply(t, r.target, r.b.Build())
	ask("when a pod has it", 1)
	flows := r.target.Stats().Flows
	terminating := hostPod(1, at, 5060)
	terminating.Terminating = true
	r.b.SetPod(terminating)
	apply(t, r.target, r.b.Build())
	ask("when it has been told to end", 1)
	if got := r.target.Stats().Flows; got != flows {
		t.Errorf("%s: %d flows removed without need", dst, got-flows)
	}
	r.b.DeletePod(terminating.Name)
	r.b.SetPod(hostPod(2, at, 5060))
	apply(t, r.target, r.b.Build())
	ask("when another pod has it", 2)
	r.b.DeletePod(hostPod(2, at, 0).Name)
	apply(t, r.target, r.b.Build())
	ask("when none has it", 0)
	// What changes while no agent runs is seen at its start.
	r.b.SetPod(hostPod(1, at, 5060))
	apply(t, r.target, r.b.Build())
	ask("when it is back", 1)
	r.target.Close()
	r.target = newTarget(t, r.node.NS)
	r.b.DeletePod(terminating.Name)
	apply(t, r.target, r.b.Build())
	ask("after it went without an agent", 0)
}

// Flows that only pass through this node, or lead from it, have nothing to do with a host port or node port of the same number.
func TestFlowsThatPassByStay(t *testing.T) {
	r := newHostRoad(t)
	spec := clusterIP(1, model.Port{Protocol: model.UDP, Port: 5060, NodePort: 8081})
	apply(t, r.target, r.b.Build())
	var conns []net.Conn
	for _, from := range []*testnet.Host{r.pod, r.node} {
		for _, a := range podAddrs(2, 1) {
			conn, err := from.Dial(context.Background(), "udp", "", netip.AddrPortFrom(a, 8081))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conns = append(conns, conn)
		}
	}
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"before", func() {}},
		{"a host port comes", func() { r.b.SetPod(hostPod(2, netip.Addr{}, 8081)) }},
		{"an agent starts", func() { r.target.Close(); r.target = newTarget(t, r.node.NS) }},
		{"it goes", func() { r.b.DeletePod(hostPod(2, netip.Addr{}, 0).Name) }},
		{"one with an address comes", func() { r.b.SetPod(hostPod(2, addr("10.244.1.1"), 8081)) }},
		{"a node port comes", func() { r.b.SetService(spec); setEndpoints(r.b, spec, 9000, podAddrs(2, 2)) }},
	} {
		step.do()
		apply(t, r.target, r.b.Build())
		if n := r.target.Stats().Flows; n != 0 {
			t.Errorf("%s: %d flows removed", step.what, n)
		}
		for _, conn := range conns {
			if got, err := testnet.AskOn(conn); err != nil {
				t.Errorf("%s: %v %v", step.what, got, err)
			}
		}
	}
}

// A host port is answered at 127.0.0.1 for this node's own processes, and for nobody else, though the kernel would take a neighbour's packet.
func TestLoopbackHostPortsAreTheNodesOwn(t *testing.T) {
	r := newHostRoad(t)
	r.b.SetPod(hostPod(1, netip.Addr{}, 30060))
	r.b.SetPod(hostPod(2, addr("127.0.0.1"), 30061))
	apply(t, r.target, r.b.Build())
	r.loopbackIsTheNodesOwn(t, 30060, 30061)
}

// neighbourOnLoopback has the pod send to 127.0.0.1 by the cable and not to itself.
func (r *road) neighbourOnLoopback(t *testing.T) {
	t.Helper()
	r.pod.Sysctl("net/ipv4/conf/all/route_localnet", "1")
	local := &netlink.Route{Dst: &net.IPNet{IP: net.IPv4(127, 0, 0, 0), Mask: net.CIDRMask(8, 32)}, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}
	one := &netlink.Route{Dst: netlink.NewIPNet(net.IPv4(127, 0, 0, 1)), Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}
	for _, route := range []*netlink.Route{local, one} { // the pod's own loopback is in the way
		if err := r.pod.Link.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
	}
	r.pod.Route("127.0.0.1/32", "10.244.1.1", "eth0")
}

// A pod costs what its host ports cost, one without none; and what the kernel holds for one can be read.
func TestHostPortWritesFewElements(t *testing.T) {
	ns := newNS(t)
	b, target := model.NewBuilder(model.Config{Self: "n1"}), newTarget(t, ns)
	b.SetNode(node(1))
	apply(t, target, b.Build())
	at := addr("172.30.0.11")
	a := podAddrs(1, 1)
	pod := model.Pod{Name: model.Name{Namespace: "default", Name: "p"}, Addrs: a[:]}
	write := func(ports ...model.HostPort) uint64 {
		pod.HostPorts = ports
		b.SetPod(pod)
		before := target.Stats().Elements
		apply(t, target, b.Build())
		sameAsFresh(t, ns, b.Build(), fmt.Sprint(ports))
		return target.Stats().Elements - before
	}
	tcp := model.HostPort{Protocol: model.TCP, Port: 8080, Target: 80}
	plain := write()
	for _, c := range []struct {
		what  string
		ports []model.HostPort
		want  uint64
	}{
		{"the first, with the chain for one endpoint", []model.HostPort{tcp}, 2 * (2 + 2)},
		{"the same", []model.HostPort{tcp}, 0},
		{"another one to the same port", []model.HostPort{tcp, {Protocol: model.TCP, Port: 8081, Target: 80}}, 2},
		{"one with an address", []model.HostPort{tcp, {Addr: at, Protocol: model.TCP, Port: 8081, Target: 80}}, 2 + 1},
		{"another protocol", []model.HostPort{tcp, {Protocol: model.UDP, Port: 8080, Target: 80}}, 1 + 2*2},
		{"none", nil, 2 * 2 * 2},
	} {
		if n := write(c.ports...); n != c.want {
			t.Errorf("%s: %d elements written, want %d", c.what, n, c.want)
		}
	}
	other := podAddrs(1, 2)
	b.SetPod(model.Pod{Name: model.Name{Namespace: "default", Name: "q"}, Addrs: other[:]})
	before := target.Stats().Elements
	apply(t, target, b.Build())
	if n := target.Stats().Elements - before; n != plain {
		t.Errorf("a pod without host ports: %d elements written, %d before there were any", n, plain)
	}
	write(tcp, model.HostPort{Addr: at, Protocol: model.TCP, Port: 443, Target: 8443})
	for k, want := range map[frontend]string{
		{Addr: netip.IPv4Unspecified(), Protocol: model.TCP, Port: 8080, Host: true}: "[10.244.1.1:80] true",
		{Addr: netip.IPv6Unspecified(), Protocol: model.TCP, Port: 8080, Host: true}: "[[fd00:244:0:1::1]:80] true",
		{Addr: at, Protocol: model.TCP, Port: 443, Host: true}:                       "[10.244.1.1:8443] true",
		{Addr: at, Protocol: model.TCP, Port: 443}:                                   "[] false",
		{Addr: netip.IPv4Unspecified(), Protocol: model.TCP, Port: 8080}:             "[] false",
	} {
		e, ok, err := Read(Options{NetNS: ns}, k)
		if got := fmt.Sprint(e.Inside.Backends, ok); err != nil || got != want {
			t.Errorf("%s: %s %v, want %s", k, got, err, want)
		}
	}
}
