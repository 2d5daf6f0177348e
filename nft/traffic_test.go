// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

// road is a node with a pod on one side and two servers on the other.
type road struct {
	node, pod, beyond *testnet.Host
	target            *Target
	b                 *model.Builder
}

// Servers stand at podAddrs(2, 1) and podAddrs(2, 2), ports 8080 (TCP) and 8081 (UDP), and answer by their addresses.
func newRoad(t *testing.T) *road {
	w := testnet.New(t)
	r := &road{node: w.Host("node"), pod: w.Host("pod"), beyond: w.Host("beyond"), b: model.NewBuilder(model.Config{Self: "n1", DNS: dnsAddrs})}
	r.node.Forward()
	w.Cable(r.node, "pod", r.pod, "eth0")
	w.Cable(r.node, "eth0", r.beyond, "eth0")
	r.node.Addr("pod", "10.244.1.1/24", "fd00:244:0:1::1/64")
	r.pod.Addr("eth0", "10.244.1.5/24", "fd00:244:0:1::5/64")
	r.pod.Route("0.0.0.0/0", "10.244.1.1", "eth0")
	r.pod.Route("::/0", "fd00:244:0:1::1", "eth0")
	r.node.Addr("eth0", "10.244.2.254/24", "fd00:244:0:2::fe/64")
	r.node.Route("0.0.0.0/0", "10.244.2.1", "eth0")
	r.node.Route("::/0", "fd00:244:0:2::1", "eth0")
	r.serve(1)
	r.serve(2)
	r.beyond.Route("10.244.1.0/24", "10.244.2.254", "eth0")
	r.beyond.Route("fd00:244:0:1::/64", "fd00:244:0:2::fe", "eth0")
	r.target = newTarget(t, r.node.NS)
	return r
}

// house gives a server, by number, its addresses, podAddrs(2, i), at which nothing listens.
func (r *road) house(i int) {
	for _, a := range podAddrs(2, i) {
		bits := map[bool]int{true: 24, false: 64}[a.Is4()]
		r.beyond.Addr("eth0", netip.PrefixFrom(a, bits).String())
	}
}

// serve makes a server, by number.
func (r *road) serve(i int) {
	r.house(i)
	for _, a := range podAddrs(2, i) {
		r.beyond.EchoAs(a.String(), "tcp", netip.AddrPortFrom(a, 8080).String())
		r.beyond.EchoAs(a.String(), "udp", netip.AddrPortFrom(a, 8081).String())
	}
}

// endpoints leads Service 1 to some of the servers, by number.
func (r *road) endpoints(t *testing.T, servers ...int) {
	t.Helper()
	r.lead(t, clusterIP(1, http, sip), servers...)
}

// lead leads a Service to some of the servers, by number.
func (r *road) lead(t *testing.T, spec model.ServiceSpec, servers ...int) {
	t.Helper()
	r.b.SetService(spec)
	var eps [][2]netip.Addr
	for _, i := range servers {
		eps = append(eps, podAddrs(2, i))
	}
	setEndpoints(r.b, spec, 8080, eps...)
	apply(t, r.target, r.b.Build())
}

// A client that keeps its socket, and so its flow, is answered by whoever is an endpoint at the time.
func TestUDPFlowsFollowTheEndpoints(t *testing.T) {
	for _, from := range []string{"pod", "node"} {
		r := newRoad(t)
		t.Run(from, func(t *testing.T) { r.flowsFollow(t, map[string]*testnet.Host{"pod": r.pod, "node": r.node}[from]) })
	}
}

func (r *road) flowsFollow(t *testing.T, client *testnet.Host) {
	for i, vip := range vipAddrs(1) {
		first, second := podAddrs(2, 1)[i].String(), podAddrs(2, 2)[i].String()
		apply(t, r.target, r.b.Build())
		conn, err := client.Dial(context.Background(), "udp", "", netip.AddrPortFrom(vip, 5060))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ask := func(when, want string) {
			t.Helper()
			got, err := testnet.AskOn(conn)
			switch {
			case want == "refused":
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s %s: %v %v, want refusal", vip, when, got, err)
				}
			case err != nil || got.Name != want:
				t.Errorf("%s %s: %v %v, want %s", vip, when, got, err, want)
			}
		}
		// A datagram before there is such a Service goes nowhere, but is tracked.
		if _, err := conn.Write([]byte("?\n")); err != nil {
			t.Fatal(err)
		}
		r.endpoints(t, 1)
		ask("after the Service is made", first)
		r.endpoints(t, 2)
		ask("after the endpoint was replaced", second)
		r.endpoints(t)
		ask("after scaling to zero", "refused")
		r.endpoints(t, 1)
		ask("after the first endpoint came", first)
		r.endpoints(t, 1, 2)
		flows := r.target.Stats().Flows
		for range 5 {
			ask("after another one came", first)
		}
		if got := r.target.Stats().Flows; got != flows {
			t.Errorf("%s: %d flows removed without need", vip, got-flows)
		}
		// What changes while no agent runs is seen at its start.
		r.target.Close()
		r.target = newTarget(t, r.node.NS)
		r.endpoints(t, 2)
		ask("after a change without an agent", second)
		r.b.DeleteService(clusterIP(1).Name)
		apply(t, r.target, r.b.Build())
		if n := tracked(t, r.node); n != 0 {
			t.Errorf("%s: %d flows left after the Service has gone", vip, n)
		}
	}
	if n := r.target.Stats().Flows; n == 0 {
		t.Error("no flow counted")
	}
}

func tracked(t *testing.T, h *testnet.Host) (n int) {
	t.Helper()
	h.Do(func() (err error) { n, err = linux.ConntrackCount(); return err })
	return n
}

// A change of so many Services that one transaction is planned while the kernel does another is no different.
func TestUDPFlowsFollowAChangeOfThousands(t *testing.T) {
	r := newRoad(t)
	r.endpoints(t, 1)
	conn, err := r.pod.Dial(context.Background(), "udp", "", netip.AddrPortFrom(vipAddrs(1)[0], 5060))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := testnet.AskOn(conn); err != nil || got.Name != podAddrs(2, 1)[0].String() {
		t.Fatalf("before: %v %v", got, err)
	}
	for i := range maxElements { // more than one transaction
		r.b.SetService(clusterIP(100+i, http))
	}
	r.endpoints(t, 2)
	if got, err := testnet.AskOn(conn); err != nil || got.Name != podAddrs(2, 2)[0].String() {
		t.Errorf("after: %v %v", got, err)
	}
}

// Only flows to what changed are looked at, and of these only the stale ones removed, whether the kernel filters or this package.
func TestOnlyStaleFlowsAreRemoved(t *testing.T) {
	r := newRoad(t)
	for i := range 2 * manyPorts {
		spec := clusterIP(10+i, sip)
		r.b.SetService(spec)
		setEndpoints(r.b, spec, 8081, podAddrs(2, 1))
	}
	r.endpoints(t, 1)
	var conns []net.Conn
	for i := range 2 * manyPorts {
		for _, vip := range vipAddrs(10 + i) {
			conn, err := r.pod.Dial(context.Background(), "udp", "", netip.AddrPortFrom(vip, 5060))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := testnet.AskOn(conn); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
	}
	for _, services := range []int{1, 2 * manyPorts} {
		before := r.target.Stats().Flows
		for i := range services {
			setEndpoints(r.b, clusterIP(10+i, sip), 8081, podAddrs(2, 2))
		}
		apply(t, r.target, r.b.Build())
		want := uint64(2 * services)
		if services > 1 {
			want -= 2 // the first is new already
		}
		if services == 1 {
			for _, conn := range conns[:2] {
				if got, err := testnet.AskOn(conn); err != nil || got.Name != podAddrs(2, 2)[0].String() && got.Name != podAddrs(2, 2)[1].String() {
					t.Errorf("%v %v", got, err)
				}
			}
		}
		if got := r.target.Stats().Flows - before; got != want {
			t.Errorf("%d of %d services changed: %d flows removed, want %d", services, 2*manyPorts, got, want)
		}
	}
}

// An endpoint that is ready only because its Service publishes whatever there is keeps its flows.
func TestUDPFlowsToPublishedEndpointsStay(t *testing.T) {
	r := newRoad(t)
	spec := clusterIP(1, sip)
	spec.PublishNotReady = true
	r.b.SetService(spec)
	unready := func(e *model.Endpoint) { e.Serving = false }
	setEndpointsAs(r.b, spec, 8081, unready, podAddrs(2, 1))
	apply(t, r.target, r.b.Build())
	for _, vip := range vipAddrs(1) {
		if _, err := r.pod.Ask("udp", "", netip.AddrPortFrom(vip, 5060)); err != nil {
			t.Fatal(err)
		}
	}
	setEndpointsAs(r.b, spec, 8081, unready, podAddrs(2, 1), podAddrs(2, 2))
	apply(t, r.target, r.b.Build())
	if n := r.target.Stats().Flows; n != 0 {
		t.Errorf("%d flows removed", n)
	}
	setEndpointsAs(r.b, spec, 8081, unready, podAddrs(2, 2))
	apply(t, r.target, r.b.Build())
	if n := r.target.Stats().Flows; n != 2 {
		t.Errorf("%d flows removed when their endpoint went, want 2", n)
	}
}

// An endpoint that terminates is no more chosen and serves its flows, which are removed when it is gone, though then nothing of the table changes.
func TestUDPFlowsStayUntilTheirEndpointIsGone(t *testing.T) {
	r := newRoad(t)
	spec := clusterIP(1, sip)
	r.b.SetService(spec)
	setEndpoints(r.b, spec, 8081, podAddrs(2, 1))
	apply(t, r.target, r.b.Build())
	for _, vip := range vipAddrs(1) {
		if _, err := r.pod.Ask("udp", "", netip.AddrPortFrom(vip, 5060)); err != nil {
			t.Fatal(err)
		}
	}
	first := podAddrs(2, 1)
	terminating := func(e *model.Endpoint) {
		if slices.Contains(first[:], e.Addr) {
			e.Ready, e.Terminating = false, true
		}
	}
	setEndpointsAs(r.b, spec, 8081, terminating, first, podAddrs(2, 2))
	apply(t, r.target, r.b.Build())
	if n := r.target.Stats().Flows; n != 0 {
		t.Errorf("%d flows removed while their endpoint serves them", n)
	}
	setEndpoints(r.b, spec, 8081, podAddrs(2, 2))
	apply(t, r.target, r.b.Build())
	if n := r.target.Stats().Flows; n != 2 {
		t.Errorf("%d flows removed when their endpoint was gone, want 2", n)
	}
}

// A flow that is passed on from a pod that is ending is removed when the endpoint that took it goes; one that the pod has itself stays.
func TestUDPFlowsThatArePassedOnFollowTheEndpoints(t *testing.T) {
	r := newRoad(t)
	r.b = model.NewBuilder(model.Config{Self: "n1", PassOn: true})
	spec, ending := clusterIP(1, sip), podAddrs(1, 5)
	here := func(e *model.Endpoint) {
		if slices.Contains(ending[:], e.Addr) {
			e.Node, e.Pod = "n1", model.Name{Namespace: "default", Name: "p"}
		}
	}
	r.b.SetNode(node(1))
	lead := func(servers ...int) {
		eps := [][2]netip.Addr{ending}
		for _, i := range servers {
			eps = append(eps, podAddrs(2, i))
		}
		r.b.SetService(spec)
		setEndpointsAs(r.b, spec, 8081, here, eps...)
		apply(t, r.target, r.b.Build())
	}
	lead(1)
	send := func(flows int) {
		for _, a := range ending {
			conn, err := r.beyond.Dial(t.Context(), "udp", "", netip.AddrPortFrom(a, 8081))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("?\n")); err != nil {
				t.Fatal(err)
			}
		}
		await(t, "the flows", func() (int, bool) { n := tracked(t, r.node); return n, n == flows })
	}
	send(2)
	pod := model.Pod{Name: model.Name{Namespace: "default", Name: "p"}, Addrs: ending[:], Terminating: true}
	r.b.SetPod(pod)
	lead(1)
	send(4)
	for _, tt := range []struct {
		server int
		want   uint64
	}{{1, 0}, {2, 2}} {
		lead(tt.server)
		if n := r.target.Stats().Flows; n != tt.want {
			t.Errorf("server %d: %d flows removed, want %d", tt.server, n, tt.want)
		}
	}
}

// The flows of a Service that another proxy carries are the other's, though its address is in the Service range.
func TestFlowsOfOthersAreLeftAlone(t *testing.T) {
	r := newRoad(t)
	r.b = model.NewBuilder(model.Config{Self: "n1", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}})
	tool(t, r.node.NS, `table inet other {
		chain pre {
			type nat hook prerouting priority -110;
			ip daddr 10.96.1.1 udp dport 5060 dnat ip to 10.244.2.1:8081
			ip6 daddr fd00:96::101 udp dport 5060 dnat ip6 to [fd00:244:0:2::1]:8081
		}
	}`)
	spec := clusterIP(1, sip)
	spec.Unproxied = true
	r.b.SetService(spec)
	setEndpoints(r.b, spec, 8081, podAddrs(2, 2))
	ask := func() {
		for i, vip := range vipAddrs(1) {
			if got, err := r.pod.Ask("udp", "", netip.AddrPortFrom(vip, 5060)); err != nil || got.Name != podAddrs(2, 1)[i].String() {
				t.Errorf("%s: %v %v", vip, got, err)
			}
		}
	}
	ask()
	apply(t, r.target, r.b.Build())
	ask()
	if n := r.target.Stats().Flows; n != 0 {
		t.Errorf("%d flows removed", n)
	}
	// Once it is this node's to carry, they are looked at.
	spec.Unproxied = false
	r.b.SetService(spec)
	apply(t, r.target, r.b.Build())
	if n := r.target.Stats().Flows; n != 4 {
		t.Errorf("%d flows removed when the Service became ours, want 4", n)
	}
}

// Node ports on loopback are for this node's own clients, though the kernel would take a neighbour's packet to 127.0.0.1.
func TestLoopbackNodePortsAreTheNodesOwn(t *testing.T) {
	r := newRoad(t)
	r.b = model.NewBuilder(model.Config{Self: "n1", NodePortAddrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.244.1.1/32")}})
	spec := clusterIP(1, model.Port{Protocol: model.UDP, Port: 5060, NodePort: 30060})
	r.b.SetService(spec)
	setEndpoints(r.b, spec, 8081, podAddrs(2, 1))
	apply(t, r.target, r.b.Build())
	r.loopbackIsTheNodesOwn(t, 30060)
}

// loopbackIsTheNodesOwn wants ports of UDP, which lead to port 8081 of pods at podAddrs(2, 1) and so on, to be answered at 127.0.0.1 for the node itself and
// not for its neighbour.
func (r *road) loopbackIsTheNodesOwn(t *testing.T, ports ...uint16) {
	t.Helper()
	loopback := netip.MustParseAddr("127.0.0.1")
	r.node.Sysctl("net/ipv4/conf/all/route_localnet", "1") // as package nodenet does
	r.neighbourOnLoopback(t)
	tool(t, r.node.NS, fmt.Sprintf(`table ip watch {
		counter arrived { }
		counter forwarded { }
		chain pre { type filter hook prerouting priority -150; ip daddr 127.0.0.1 udp dport { %s } counter name arrived; }
		chain forward { type filter hook forward priority 0; udp dport 8081 counter name forwarded; }
	}`, strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ", "), "[]")))
	for _, port := range ports {
		conn, err := r.pod.Dial(t.Context(), "udp", "10.244.1.5", netip.AddrPortFrom(loopback, port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for range 3 {
			if _, err := conn.Write([]byte("?\n")); err != nil {
				t.Fatal(err)
			}
		}
	}
	// An answered question comes behind the others.
	if got, err := r.pod.Ask("udp", "", netip.AddrPortFrom(netip.MustParseAddr("10.244.1.1"), ports[0])); err != nil {
		t.Error(got, err)
	}
	for name, want := range map[string]int{"arrived": 3 * len(ports), "forwarded": 1} {
		if got := tool(t, r.node.NS, "list", "counter", "ip", "watch", name); !strings.Contains(got, fmt.Sprintf("packets %d ", want)) {
			t.Errorf("want %d, got %s", want, got)
		}
	}
	for i, port := range ports {
		want := podAddrs(2, i+1)[0].String()
		if got, err := r.node.Ask("udp", "127.0.0.1", netip.AddrPortFrom(loopback, port)); err != nil || got.Name != want {
			t.Errorf("the node's own client at port %d: %v %v, want %s", port, got, err, want)
		}
	}
}

// Connections are made all the time while endpoints come and go: none is refused, none reaches nobody.
func TestChangesLoseNoConnection(t *testing.T) {
	r := newRoad(t)
	r.endpoints(t, 1, 2)
	var stop atomic.Bool
	var all sync.WaitGroup
	var asked atomic.Int64
	for _, vip := range vipAddrs(1) {
		all.Go(func() {
			for !stop.Load() {
				if _, err := r.pod.Ask("tcp", "", netip.AddrPortFrom(vip, 80)); err != nil {
					t.Errorf("after %d requests: %v", asked.Load(), err)
					return
				}
				asked.Add(1)
			}
		})
	}
	random := seeded(t)
	for asked.Load() < 2000 && !t.Failed() {
		r.endpoints(t, [][]int{{1}, {2}, {1, 2}}[random.IntN(3)]...)
		if random.IntN(20) == 0 {
			r.target.Close()
			r.target = newTarget(t, r.node.NS)
		}
	}
	stop.Store(true)
	all.Wait()
}

// A table of another layout goes and the new one comes without a connection noticing.
func TestReplacingTheLayoutLosesNoConnection(t *testing.T) {
	r := newRoad(t)
	r.endpoints(t, 1, 2)
	var stop atomic.Bool
	var all sync.WaitGroup
	var asked atomic.Int64
	late := false
	all.Go(func() {
		for !stop.Load() {
			_, err := r.pod.Ask("tcp", "", netip.AddrPortFrom(vipAddrs(1)[0], 80))
			var timeout net.Error
			switch {
			case err == nil:
				asked.Add(1)
			case errors.As(err, &timeout) && timeout.Timeout() && !late:
				// A packet that stands still between two hooks for as long as the transaction takes (a virtual machine's processor
				// may be taken away just there) has the old table's hooks before it and the new one's not.
				late = true
			default:
				t.Errorf("after %d requests: %v", asked.Load(), err)
				return
			}
		}
	})
	for range 20 {
		tool(t, r.node.NS, "add rule inet fairlead refuse drop")
		if err := r.target.Verify(context.Background()); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	all.Wait()
	if asked.Load() == 0 {
		t.Error("no request was made")
	}
}

// dnsRoad has the cluster DNS's Service with the second server as its endpoint of another node, and sockets of its own.
// With sourced, the local routes name the node's own address for packets of the node.
func dnsRoad(t *testing.T, sourced bool) (r *road, open func() (shut func())) {
	r = newRoad(t)
	lo, err := r.node.Link.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range dnsAddrs {
		route := &netlink.Route{Dst: netlink.NewIPNet(a.AsSlice()), LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL,
			Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
		if sourced {
			route.Src = netip.MustParseAddr([...]string{"10.244.2.254", "fd00:244:0:2::fe"}[i]).AsSlice()
		}
		if err := r.node.Link.RouteAdd(route); err != nil {
			t.Fatal(err)
		}
	}
	r.node.Sysctl("net/ipv6/ip_nonlocal_bind", "1")
	spec := model.ServiceSpec{Name: model.Name{Namespace: "kube-system", Name: "kube-dns"}, ClusterIPs: dnsAddrs, Ports: []model.Port{
		{Name: "tcp", Protocol: model.TCP, Port: 53}, {Name: "udp", Protocol: model.UDP, Port: 53}}}
	r.b.SetService(spec)
	setEndpoints(r.b, spec, 8080, podAddrs(2, 2))
	apply(t, r.target, r.b.Build())
	return r, func() func() { return r.openDNS(t, dnsAddrs) }
}

// openDNS answers at port 53 of some addresses of the node by the name "here".
func (r *road) openDNS(t *testing.T, addrs []netip.Addr) (shut func()) {
	t.Helper()
	var sockets []io.Closer
	for _, a := range addrs {
		at := netip.AddrPortFrom(a, 53).String()
		tcp, err := r.node.NS.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		udp, err := r.node.NS.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, tcp, udp)
		go func() {
			for {
				conn, err := tcp.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 9))
				_, _ = io.WriteString(conn, "here "+conn.RemoteAddr().String()+"\n")
				conn.Close() // the server closes first: its side waits in TIME_WAIT
			}
		}()
		go func() {
			for {
				_, from, err := udp.ReadFrom(make([]byte, 9))
				if err != nil {
					return
				}
				_, _ = udp.WriteTo([]byte("here "+from.String()+"\n"), from)
			}
		}()
	}
	return func() {
		for _, s := range sockets {
			s.Close()
		}
	}
}

// askDNS asks for each address and protocol and returns who answered, each name once.
func (r *road) askDNS(t *testing.T, from *testnet.Host) []string {
	t.Helper()
	var names []string
	for _, a := range dnsAddrs {
		for _, network := range []string{"tcp", "udp"} {
			got, err := from.Ask(network, "", netip.AddrPortFrom(a, 53))
			name := got.Name
			if err != nil {
				name = network + " " + err.Error()
			}
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

var (
	onThisNode = []string{"here"}
	elsewhere  = []string{podAddrs(2, 2)[0].String(), podAddrs(2, 2)[1].String()}
)

func TestDNSSocketThatAnswersAnyAddressIsNotOurs(t *testing.T) {
	r, _ := dnsRoad(t, true)
	shut := r.openDNS(t, []netip.Addr{netip.IPv6Unspecified()})
	defer shut()
	if got := r.askDNS(t, r.pod); !slices.Equal(got, elsewhere) {
		t.Errorf("answered by %v", got)
	}
}

// When another node has to answer, the questions of this node's processes need a source that the answer finds.
func TestDNSQuestionsOfTheNodeComeFromItsAddress(t *testing.T) {
	for _, sourced := range []bool{true, false} {
		r, open := dnsRoad(t, sourced)
		if got := r.askDNS(t, r.node); !slices.Equal(got, elsewhere) {
			t.Errorf("route with source %t: answered by %v", sourced, got)
		}
		shut := open()
		if err := r.target.AnswerDNS(true); err != nil {
			t.Fatal(err)
		}
		if got := r.askDNS(t, r.node); !slices.Equal(got, onThisNode) {
			t.Errorf("route with source %t, socket open: answered by %v", sourced, got)
		}
		if err := r.target.AnswerDNS(false); err != nil {
			t.Fatal(err)
		}
		shut()
		if got := r.askDNS(t, r.node); !slices.Equal(got, elsewhere) {
			t.Errorf("route with source %t, socket closed: answered by %v", sourced, got)
		}
	}
}

// TCP connections one after another from the same port: the socket of the one before is still waiting for stray packets.
func TestDNSConnectionFromAPortUsedBefore(t *testing.T) {
	r, open := dnsRoad(t, true)
	defer open()()
	for range 3 {
		conn, err := r.pod.Dial(t.Context(), "tcp", "10.244.1.5:4444", netip.AddrPortFrom(dnsAddrs[0], 53))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("?\n"))
		// The client ends after the server, so that it is the server's side that waits.
		if answer, err := io.ReadAll(conn); err != nil || string(answer) != "here 10.244.1.5:4444\n" {
			t.Errorf("%q %v", answer, err)
		}
		conn.Close()
	}
	if n := tracked(t, r.node); n != 0 {
		t.Errorf("%d connections tracked", n)
	}
}

// The table that keeps the node's own questions on the node dies with the process that made it, killed or not.
func TestDNSTableDiesWithItsProcess(t *testing.T) {
	if os.Getenv("FAIRLEAD_TEST_HOLD_DNS") != "" {
		holdDNS(t)
		return
	}
	r, open := dnsRoad(t, true)
	defer open()()
	if got := r.askDNS(t, r.node); !slices.Equal(got, elsewhere) {
		t.Errorf("before anybody says so, the node's questions go to %v", got)
	}
	child := exec.Command("/proc/self/exe", "-test.run", "^TestDNSTableDiesWithItsProcess$")
	child.Env = append(os.Environ(), "FAIRLEAD_TEST_HOLD_DNS="+r.node.NS.Path())
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 1)); err != nil { // it says when it is ready
		t.Fatal(err)
	}
	if got := r.askDNS(t, r.node); !slices.Equal(got, onThisNode) {
		t.Errorf("while the process lives, the node's questions go to %v", got)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if got := r.askDNS(t, r.node); !slices.Equal(got, elsewhere) {
		t.Errorf("after the process died, the node's questions go to %v", got)
	}
	if got := r.askDNS(t, r.pod); !slices.Equal(got, onThisNode) {
		t.Errorf("the pod's questions go to %v, though there is a socket", got)
	}
}

// holdDNS is the other process: it adopts the table, says that it answers, and waits for its end.
func holdDNS(t *testing.T) {
	ns, err := linux.OpenNetNS(os.Getenv("FAIRLEAD_TEST_HOLD_DNS"))
	if err != nil {
		t.Fatal(err)
	}
	r := &road{b: model.NewBuilder(model.Config{Self: "n1", DNS: dnsAddrs}), target: New(Options{NetNS: ns})}
	spec := model.ServiceSpec{Name: model.Name{Namespace: "kube-system", Name: "kube-dns"}, ClusterIPs: dnsAddrs, Ports: []model.Port{
		{Name: "tcp", Protocol: model.TCP, Port: 53}, {Name: "udp", Protocol: model.UDP, Port: 53}}}
	r.b.SetService(spec)
	setEndpoints(r.b, spec, 8080, podAddrs(2, 2))
	apply(t, r.target, r.b.Build())
	if err := r.target.AnswerDNS(true); err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("!")
	time.Sleep(time.Minute) // until it is killed
}
