// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/status"
)

// pair is a client and a server on two nodes.
type pair struct {
	name           string
	client, server *host
	addr           string // of the server
	vip            string // of a Service that has the server for its endpoint; empty: there is none
	closers        []func()
}

func (p *pair) close() {
	if p == nil {
		return
	}
	for i := len(p.closers) - 1; i >= 0; i-- {
		p.closers[i]()
	}
}

// later closes something with the pair.
func (p *pair) later(f func()) { p.closers = append(p.closers, f) }

// The two nodes of a pair, which has a fabric of its own.
var pairNumbers = [2]int{31, 32}

// fileName is a pair's name where it is a file's.
func fileName(pair string) string { return strings.NewReplacer(" ", "-", ",", "").Replace(pair) }

// twoNodes makes the nodes of a pair on a fabric, with nothing of any program on them.
func (p *pair) twoNodes() (nodes [2]*host, err error) {
	fabric, err := newHost()
	if err != nil {
		return nodes, err
	}
	p.later(fabric.close)
	if err := fabric.bridge("fabric", fabricIP+"/24"); err != nil {
		return nodes, err
	}
	w := &world{fabric: fabric}
	for i, number := range pairNumbers {
		if nodes[i], err = newHost(); err != nil {
			return nodes, err
		}
		p.later(nodes[i].close)
		if err := errors.Join(w.join(nodes[i], number), nodes[i].sysctls("net/ipv4/ip_forward", "1")); err != nil {
			return nodes, err
		}
	}
	return nodes, nil
}

// barePair talks between the nodes themselves.
func barePair(_ context.Context, _ *suite, p *pair) error {
	nodes, err := p.twoNodes()
	p.client, p.server, p.addr = nodes[0], nodes[1], nodeAddr(pairNumbers[1])
	return err
}

// bridgePair has the reference bridge plugin's pods, and a route each way.
func bridgePair(_ context.Context, s *suite, p *pair) error {
	nodes, err := p.twoNodes()
	if err != nil {
		return err
	}
	var ways [2]*attacher
	for i, node := range nodes {
		other := pairNumbers[1-i]
		if err := node.route(nodeCIDR(other), nodeAddr(other), "fabric0"); err != nil {
			return err
		}
		if ways[i], err = reference(s, "bridge", node, nodeCIDR(pairNumbers[i])); err != nil {
			return err
		}
		p.later(func() { close(ways[i].starts) })
	}
	_, err = p.pods(ways)
	return err
}

// fairleadPair has an agent on each node, started with further flags, and pods attached by its plugin, of which the API knows.
func fairleadPair(flags ...string) func(context.Context, *suite, *pair) error {
	return func(ctx context.Context, s *suite, p *pair) error {
		w, err := newNetwork(ctx, s, fileName(p.name))
		if err != nil {
			return err
		}
		p.later(w.close)
		var ways [2]*attacher
		for i, number := range pairNumbers {
			ways[i], err = w.attacher(ctx, s, number, nil, flags...)
			p.later(ways[i].close)
			if err != nil {
				return err
			}
		}
		addrs, err := p.pods(ways)
		if err != nil {
			return err
		}
		for i, number := range pairNumbers {
			if err := w.addPod(ctx, fmt.Sprint("pod-", number), "pair", fmt.Sprint("fairlead-", number), addrs[i]); err != nil {
				return err
			}
		}
		if p.vip, err = w.lead(ctx, "server", addrs[1]); err != nil {
			return err
		}
		if !slices.Contains(flags, podFastPath) {
			return nil
		}
		for _, way := range ways {
			if err := way.fast(ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

// lead makes a Service of a sink, with the same ports, and returns its address.
func (n *network) lead(ctx context.Context, name, target string) (vip string, err error) {
	var ports []corev1.ServicePort
	var targets []discoveryv1.EndpointPort
	for _, at := range []struct {
		protocol corev1.Protocol
		port     int32
	}{{corev1.ProtocolTCP, targetPort}, {corev1.ProtocolTCP, pingPort}, {corev1.ProtocolUDP, pingPort}, {corev1.ProtocolTCP, streamPort}} {
		of := strings.ToLower(fmt.Sprint(at.protocol, "-", at.port))
		ports = append(ports, corev1.ServicePort{Name: of, Protocol: at.protocol, Port: at.port})
		targets = append(targets, discoveryv1.EndpointPort{Name: ptr.To(of), Protocol: ptr.To(at.protocol), Port: ptr.To(at.port)})
	}
	service, err := n.client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: ports}}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("create service %s: %w", name, err)
	}
	_, err = n.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: targets,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{target}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("create slice %s: %w", name, err)
	}
	return service.Spec.ClusterIP, nil
}

const (
	podFastPath = "--pod-fast-path"
	podSocketLB = "--pod-socket-lb"
)

// fast waits until the fast path leads from the node's pod and its link, and the pod's connections are led where that is asked for.
func (a *attacher) fast(ctx context.Context) error {
	return a.agent.until(ctx, 10*time.Second, 10*time.Millisecond, func() error {
		r, err := status.Dial(a.socket).Report(ctx)
		if err != nil {
			return err
		}
		if f := r.PodNetwork.FastPath; f == nil || f.Pods != 1 || f.Links == 0 {
			return fmt.Errorf("the fast path is not there: %+v, %q", f, r.Off)
		}
		if l := r.PodNetwork.SocketLB; l != nil && (l.Pods != 1 || l.Services == 0) {
			return fmt.Errorf("nothing is led at the socket: %+v, %q", l, r.Off)
		}
		return nil
	})
}

// vxlanPair is a tunnel made by hand: one VXLAN device, one route, one neighbour and one forwarding entry on each node, and pods attached by hand.
func vxlanPair(_ context.Context, s *suite, p *pair) error {
	nodes, err := p.twoNodes()
	if err != nil {
		return err
	}
	pods := [2]*host{}
	for i, node := range nodes {
		self, other := pairNumbers[i], pairNumbers[1-i]
		under, err := node.netlink.LinkByName("fabric0")
		if err != nil {
			return fmt.Errorf("find fabric0: %w", err)
		}
		mac := func(number int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, byte(number)} }
		device := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vxlan0", HardwareAddr: mac(self), MTU: under.Attrs().MTU - 50}, VxlanId: 1,
			VtepDevIndex: under.Attrs().Index, SrcAddr: net.ParseIP(nodeAddr(self)), Port: 4789}
		if err := node.netlink.LinkAdd(device); err != nil {
			return fmt.Errorf("add VXLAN device: %w", err)
		}
		vtep := net.IPv4(169, 254, 2, byte(other))
		err = errors.Join(
			node.up("vxlan0"),
			node.netlink.NeighSet(&netlink.Neigh{LinkIndex: device.Index, State: netlink.NUD_PERMANENT, IP: vtep, HardwareAddr: mac(other)}),
			node.netlink.NeighSet(&netlink.Neigh{LinkIndex: device.Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
				IP: net.ParseIP(nodeAddr(other)), HardwareAddr: mac(other)}),
			node.netlink.RouteAdd(&netlink.Route{LinkIndex: device.Index, Dst: ipNet(nodeCIDR(other)), Gw: vtep, Flags: int(netlink.FLAG_ONLINK)}),
		)
		if err != nil {
			return fmt.Errorf("lay out VXLAN: %w", err)
		}
		if pods[i], err = newHost(); err != nil {
			return err
		}
		p.later(pods[i].close)
		if err := node.attach("pod0", pods[i], fmt.Sprintf("10.128.%d.2", self)); err != nil {
			return err
		}
		for h, dev := range map[*host]string{node: "pod0", pods[i]: "eth0"} {
			link, err := h.netlink.LinkByName(dev)
			if err == nil {
				err = h.netlink.LinkSetMTU(link, device.MTU)
			}
			if err != nil {
				return fmt.Errorf("set MTU: %w", err)
			}
		}
	}
	p.client, p.server, p.addr = pods[0], pods[1], fmt.Sprintf("10.128.%d.2", pairNumbers[1])
	return nil
}

// pods attaches a client and a server, and returns their addresses.
func (p *pair) pods(ways [2]*attacher) (addrs [2]string, err error) {
	var hosts [2]*host
	for i, way := range ways {
		h, err := newHost()
		if err != nil {
			return addrs, err
		}
		p.later(h.close)
		out, _, err := way.run("ADD", 1, h.Path())
		if err != nil {
			return addrs, err
		}
		if addrs[i], err = attachedTo(out); err != nil {
			return addrs, fmt.Errorf("%s: %w", way.name, err)
		}
		hosts[i] = h
	}
	p.client, p.server, p.addr = hosts[0], hosts[1], addrs[1]
	return addrs, nil
}

// attachedTo is the first address in the result of an ADD.
func attachedTo(out []byte) (string, error) {
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out, &result); err != nil || len(result.IPs) == 0 {
		return "", fmt.Errorf("parse result of ADD: %s, %w", out, err)
	}
	return result.IPs[0].Address.Addr().String(), nil
}

// passed is what a pair carried in one round.
type passed struct{ stream, ping, udp, connections carried }

// The names of pairs.
const (
	barePairName   = "node to node"
	bridgePairName = "bridge + routes"
	vxlanPairName  = "VXLAN by hand"
	fastPair       = "host-gw, fast path"
	fastVXLANPair  = "VXLAN, fast path"
	ledPair        = "host-gw, fast path, at the socket"
)

// byService is added to the name of a pair for what it carries by its Service.
const byService = ", by a Service"

// traffic measures what pods on two nodes can send each other, beside the nodes themselves.
func traffic(ctx context.Context, s *suite) error {
	makers := []struct {
		name string
		make func(context.Context, *suite, *pair) error
	}{
		{barePairName, barePair},
		{bridgePairName, bridgePair},
		{"host-gw", fairleadPair("--tunnel", "never")},
		{fastPair, fairleadPair("--tunnel", "never", podFastPath)},
		{ledPair, fairleadPair("--tunnel", "never", podFastPath, podSocketLB)},
		{"VXLAN", fairleadPair("--tunnel", "always")},
		{fastVXLANPair, fairleadPair("--tunnel", "always", podFastPath)},
		{vxlanPairName, vxlanPair},
	}
	pairs := map[string]*pair{}
	var names []string
	for _, m := range makers {
		progress("making two nodes: %s", m.name)
		p := &pair{name: m.name}
		defer p.close()
		if err := m.make(ctx, s, p); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		server, err := start(p.server, serverCPU, s.dir, "sink-"+fileName(m.name), s.programs.bench, "sink", p.addr)
		if err != nil {
			return err
		}
		p.later(server.stop)
		names, pairs[m.name] = append(names, m.name), p
		ways := []*pair{p}
		if p.vip != "" && strings.HasPrefix(m.name, "host-gw") {
			name := m.name + byService
			way := &pair{name: name, client: p.client, addr: p.vip}
			names, pairs[name], ways = append(names, name), way, append(ways, way)
		}
		for _, way := range ways {
			err = server.until(ctx, 10*time.Second, 20*time.Millisecond, func() error {
				_, err := way.carry(ctx, s, "ping", time.Millisecond)
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %w", way.name, err)
			}
		}
	}
	taken, err := takeTurns(ctx, pick(s, 13, 3), names, func(name string) (r passed, err error) {
		count := pick(s, time.Second, 200*time.Millisecond)
		p := pairs[name]
		if r.stream, err = p.carry(ctx, s, "stream", count); err != nil {
			return r, err
		}
		if r.ping, err = p.carry(ctx, s, "ping", count); err != nil {
			return r, err
		}
		if r.udp, err = p.carry(ctx, s, "udp", count); err != nil {
			return r, err
		}
		at := netip.AddrPortFrom(netip.MustParseAddr(p.addr), targetPort)
		load, err := runLoad(ctx, s, path{&rig{client: p.client}, []netip.AddrPort{at}}, 1)
		r.connections.PerSecond = load.perSecond()
		return r, err
	})
	if err != nil {
		return err
	}
	s.reportTraffic(taken)
	return nil
}

// carry runs one client.
func (p *pair) carry(ctx context.Context, s *suite, what string, count time.Duration) (r carried, err error) {
	ctx, cancel := context.WithTimeout(ctx, count+10*time.Second)
	defer cancel()
	out, err := output(ctx, p.client, clientCPU, s.programs.bench, "carry", "-what", what, "-to", p.addr, "-count", count.String())
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("parse result of carry: %w", err)
	}
	return r, nil
}

func (s *suite) reportTraffic(taken map[string][]passed) {
	for _, mode := range []struct {
		name   string
		rivals []string // the first is the one of the goals
		goals  [3]*goal // of the stream, the connections, the exchanges
	}{
		{"host-gw", []string{barePairName, bridgePairName}, [3]*goal{atLeast(0.95), atLeast(0.95), atLeast(0.92)}},
		{fastPair, []string{barePairName, bridgePairName, "host-gw"}, [3]*goal{atLeast(0.95), atLeast(0.95), atLeast(0.92)}},
		{"host-gw" + byService, []string{"host-gw"}, [3]*goal{}},
		{fastPair + byService, []string{fastPair, "host-gw" + byService}, [3]*goal{}},
		{ledPair + byService, []string{ledPair, fastPair + byService, "host-gw" + byService}, [3]*goal{}},
		{"VXLAN", []string{vxlanPairName, barePairName, "host-gw"}, [3]*goal{atLeast(0.95)}},
		{fastVXLANPair, []string{vxlanPairName, barePairName, "VXLAN"}, [3]*goal{atLeast(0.95)}},
	} {
		for _, row := range []struct {
			what, unit, of string
			goal           *goal
			value          func(passed) float64
		}{
			{"one TCP stream", "Gbit/s", share, mode.goals[0], func(p passed) float64 { return p.stream.PerSecond * 8 / 1e9 }},
			{"TCP connections per second, one after the other", "1/s", share, mode.goals[1], func(p passed) float64 { return p.connections.PerSecond }},
			{"TCP exchanges per second on one connection", "1/s", share, mode.goals[2], func(p passed) float64 { return p.ping.PerSecond }},
			{"time of a TCP exchange, p99", "µs", timesLess, nil, func(p passed) float64 { return p.ping.P99 }},
			{"UDP exchanges per second", "1/s", share, nil, func(p passed) float64 { return p.udp.PerSecond }},
			{"time of a UDP exchange, p50", "µs", timesLess, nil, func(p passed) float64 { return p.udp.P50 }},
			{"time of a UDP exchange, p99", "µs", timesLess, nil, func(p passed) float64 { return p.udp.P99 }},
		} {
			for i, rival := range mode.rivals {
				target := row.goal
				if i > 0 {
					target = nil
				}
				s.compare(figure{Section: "traffic", Figure: row.what + ", " + mode.name, Unit: row.unit}, rival,
					each(taken[mode.name], row.value), each(taken[rival], row.value), row.of, target)
			}
		}
	}
}
