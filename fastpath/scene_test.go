// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/shortcut"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nft"
	"github.com/fairlead/fairlead/nodenet"
	"github.com/fairlead/fairlead/testnet"
)

// scene is two nodes on a link, with the routes and rules of an agent and the fast path, and three pods: 5 and 6 on node 1, 5 on node 2. Each pod has an echo
// server at port 8080 of TCP and 8081 of UDP, which answers by the pod's name.
type scene struct {
	t     *testing.T
	world *testnet.World
	nodes [3]*island
}

// island is one node. Its Builder has all nodes, and the pods of this one.
type island struct {
	*testnet.Host
	t      *testing.T
	number int
	b      *model.Builder
	routes *nodenet.Target
	rules  *nft.Target
	fast   *Target
	served *dns.Server // nil: no DNS
	pods   map[int]*testnet.Host
	counts *netlink.Handle
}

func addr(format string, args ...any) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf(format, args...))
}

// podAddrs are the addresses of pod i of node n.
func podAddrs(n, i int) []netip.Addr {
	return []netip.Addr{addr("10.244.%d.%d", n, i), addr("fd00:244:0:%d::%x", n, i)}
}

func nodeAddrs(n int) []netip.Addr {
	return []netip.Addr{addr("172.30.0.%d", 10+n), addr("fd00:30::%d", 10+n)}
}

func podName(n, i int) model.Name {
	return model.Name{Namespace: "default", Name: fmt.Sprintf("p%d-%d", n, i)}
}

func node(n int) model.Node {
	return model.Node{Name: fmt.Sprintf("n%d", n), Addrs: nodeAddrs(n), Ready: true, PodCIDRs: []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", n))}}
}

// resolvers are the addresses of the cluster's DNS, where there is one.
var resolvers = []netip.Addr{addr("10.96.0.10"), addr("fd00:96::a")}

// vips are the addresses of the Service web, which leads port 80 to ports 8080, and 90 to 9000, where nobody listens.
var vips = []netip.Addr{addr("10.96.0.1"), addr("fd00:96::1")}

var web = model.ServiceSpec{Name: model.Name{Namespace: "default", Name: "web"}, ClusterIPs: vips,
	Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080},
		{Name: "bulk", Protocol: model.TCP, Port: 90}, {Name: "sip", Protocol: model.UDP, Port: 5060}}}

func newScene(t *testing.T, mode nodenet.Mode) *scene {
	s := &scene{t: t, world: testnet.New(t)}
	lan := s.world.Host("lan")
	for n := 1; n <= 2; n++ {
		s.nodes[n] = s.node(n, lan, mode)
	}
	lan.Switch("br0", "port1", "port2")
	s.pod(1, 5)
	s.pod(1, 6)
	s.pod(2, 5)
	s.apply()
	for _, x := range s.nodes[1:] { // or what the fast path is to leave alone would prove nothing
		if r := x.fast.Report(); r.Off != "" || r.Pods != len(x.pods) {
			t.Fatalf("%s: %+v", x.Name, r)
		}
	}
	return s
}

func (s *scene) node(n int, lan *testnet.Host, mode nodenet.Mode) *island {
	x := &island{Host: s.world.Host(fmt.Sprintf("n%d", n)), t: s.t, number: n, pods: make(map[int]*testnet.Host)}
	s.world.Cable(x.Host, "eth0", lan, fmt.Sprintf("port%d", n))
	x.Forward()
	for i, a := range nodeAddrs(n) {
		x.Addr("eth0", netip.PrefixFrom(a, []int{24, 64}[i]).String())
	}
	x.b = model.NewBuilder(model.Config{Self: x.Name, PassOn: true, RetryRefused: true, DNS: resolvers,
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}})
	x.b.SetNode(node(1))
	x.b.SetNode(node(2))
	x.b.SetService(web)
	x.routes = nodenet.New(nodenet.Options{Mode: mode})
	x.rules = nft.New(nft.Options{NetNS: x.NS})
	s.t.Cleanup(func() { x.rules.Close() })
	x.start()
	return x
}

// start is a new agent's fast path.
func (x *island) start() {
	x.fast = New(shortcut.New(), slog.New(slog.NewTextHandler(x.t.Output(), nil)))
	x.t.Cleanup(x.fast.Close)
}

// pod attaches a pod as package podnet does, and tells its node.
func (s *scene) pod(n, i int) {
	x := s.nodes[n]
	p := s.world.Host(podName(n, i).Name)
	dev := fmt.Sprintf("fl%d", i)
	s.world.Cable(x.Host, dev, p, "eth0")
	x.Addr(dev, "169.254.1.1/32", "fe80::1/64")
	for _, a := range podAddrs(n, i) {
		single := netip.PrefixFrom(a, a.BitLen()).String()
		p.Addr("eth0", single)
		x.Route(single, "", dev)
		p.EchoAs(p.Name, "tcp", netip.AddrPortFrom(a, 8080).String())
		p.EchoAs(p.Name, "udp", netip.AddrPortFrom(a, 8081).String())
	}
	p.Route("169.254.1.1/32", "", "eth0")
	p.Route("0.0.0.0/0", "169.254.1.1", "eth0")
	p.Route("::/0", "fe80::1", "eth0")
	x.pods[i] = p
	x.b.SetPod(model.Pod{Name: podName(n, i), Addrs: podAddrs(n, i)})
}

// lead gives the Service web its endpoints, each a node and a pod of it, on both nodes. mood changes each, if it is not nil.
func (s *scene) lead(mood func(*model.Endpoint), pods ...[2]int) {
	for _, x := range s.nodes[1:] {
		for fam, suffix := range []string{"v4", "v6"} {
			sl := model.Slice{Name: model.Name{Namespace: "default", Name: "web-" + suffix}, Service: "web",
				Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080}, {Name: "bulk", Protocol: model.TCP, Port: 9000},
					{Name: "sip", Protocol: model.UDP, Port: 8081}}}
			for _, p := range pods {
				e := model.Endpoint{Addr: podAddrs(p[0], p[1])[fam], Ready: true, Serving: true, Node: fmt.Sprintf("n%d", p[0]), Pod: podName(p[0], p[1])}
				if mood != nil {
					mood(&e)
				}
				sl.Endpoints = append(sl.Endpoints, e)
			}
			x.b.SetSlice(sl)
		}
	}
	s.apply()
}

// apply brings both nodes to what their Builders have, in the agent's order.
func (s *scene) apply() {
	s.t.Helper()
	for _, x := range s.nodes[1:] {
		x.apply()
	}
}

func (x *island) apply() {
	x.t.Helper()
	snap := x.b.Build()
	x.Do(func() error {
		if err := x.routes.Apply(x.t.Context(), snap); err != nil {
			return err
		}
		x.fast.Apply(snap, x.routes.Links())
		return nil
	})
	if x.served != nil {
		x.served.Announce(snap)
	}
	if err := x.rules.Apply(x.t.Context(), snap); err != nil {
		x.t.Fatal(err)
	}
	if x.served != nil {
		x.served.Publish(snap)
	}
}

func (x *island) verify() {
	x.Do(func() error { x.fast.Verify(x.routes.Links()); return nil })
}

// tracked are the connections that a node's conntrack has of a port, either way.
func (x *island) tracked(port uint16) (n int) {
	x.t.Helper()
	x.Do(func() error {
		for _, family := range []netlink.InetFamily{2, 10} {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				return err
			}
			for _, f := range flows {
				if f.Forward.DstPort == port || f.Reverse.SrcPort == port {
					n++
				}
			}
		}
		return nil
	})
	return n
}

// ask has one host ask another, and wants an answer by name that saw the client's address; not valid: any. Whether a packet of it went the fast way of a node
// is returned.
func (s *scene) ask(from *testnet.Host, network string, to netip.AddrPort, name string, client netip.Addr) (fast [3]bool) {
	s.t.Helper()
	var before [3]uint64
	for n, x := range s.nodes[1:] {
		before[n+1] = x.fast.Report().Packets
	}
	got, err := from.Ask(network, "", to)
	if err != nil || !strings.HasPrefix(got.Name, name) || client.IsValid() && got.Client.Addr() != client {
		s.t.Errorf("%s asks %s %s: %v %v, want %s, which sees %s", from.Name, network, to, got, err, name, client)
	}
	for n, x := range s.nodes[1:] {
		fast[n+1] = x.fast.Report().Packets > before[n+1]
	}
	return fast
}

// tool runs a program in a host's network.
func (x *island) tool(h *testnet.Host, args ...string) {
	x.t.Helper()
	h.Do(func() error {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%v: %w: %s", args, err, out)
		}
		return err
	})
}
