// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nft"
	"github.com/fairlead/fairlead/socketlb"
	"github.com/fairlead/fairlead/testnet"
)

// lab is a world made real: this node, its pods, and one more host, beyond, that has all other addresses.
//
//	pod ─ veth ─ node ─ eth0 ─ beyond
type lab struct {
	t            *testing.T
	net          *testnet.World
	snap         *model.Snapshot
	own          []netip.Addr
	node, beyond *testnet.Host
	pods         map[netip.Addr]*testnet.Host
	nodeAddrs    []netip.Addr
	servers      map[string]bool
	target       *nft.Target
	sockets      *socketlb.Target // nil: pods' connections are not led at their sockets
}

func newLab(t *testing.T, w World) *lab {
	snap := w.Snapshot
	net := testnet.New(t)
	l := &lab{t: t, net: net, snap: snap, own: w.Own, pods: make(map[netip.Addr]*testnet.Host), servers: make(map[string]bool)}
	l.nodeAddrs = []netip.Addr{netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("fd00:30::11")}
	l.node, l.beyond = net.Host("node"), net.Host("beyond")
	l.node.Forward()
	for _, h := range []*testnet.Host{l.node, l.beyond} {
		// As an address that is on no interface is asked for with FREEBIND.
		h.Sysctl("net/ipv6/ip_nonlocal_bind", "1")
	}
	// Else the kernel tells a host of no more than a few closed ports in a second.
	l.node.Sysctl("net/ipv4/icmp_ratelimit", "0")
	l.node.Sysctl("net/ipv6/icmp/ratelimit", "0")
	net.Cable(l.node, "eth0", l.beyond, "eth0")
	l.node.Addr("eth0", "172.30.0.11/24", "fd00:30::11/64")
	l.beyond.Addr("eth0", "172.30.0.1/24", "fd00:30::1/64")
	l.node.Route("0.0.0.0/0", "172.30.0.1", "eth0")
	l.node.Route("::/0", "fd00:30::1", "eth0")
	for _, prefix := range []string{"10.96.0.0/16", "10.244.1.0/24", "203.0.113.0/24", "172.30.9.0/24"} {
		l.beyond.Route(prefix, "172.30.0.11", "eth0")
	}
	for _, prefix := range []string{"fd00:96::/112", "fd00:244:0:1::/64", "2001:db8:113::/64", "fd00:39::/64"} {
		l.beyond.Route(prefix, "fd00:30::11", "eth0")
	}
	for _, a := range w.Own {
		if !a.IsLoopback() {
			l.node.Addr("lo", netip.PrefixFrom(a, a.BitLen()).String())
		}
	}
	if snap.LoopbackNodePorts() || snap.HostPorts.Len() > 0 {
		l.node.Sysctl("net/ipv4/conf/all/route_localnet", "1") // as package nodenet does
	}
	i := 0
	for _, p := range snap.Pods.All() {
		l.addPod(fmt.Sprint("pod", i), p)
		i++
	}
	for _, a := range snap.DNS {
		l.makeLocal(a)
	}
	l.target = nft.New(nft.Options{NetNS: l.node.NS})
	t.Cleanup(func() { l.target.Close() })
	l.apply(snap)
	return l
}

// lead has pods' connections led at their sockets.
func (l *lab) lead() {
	l.t.Helper()
	namespaces := make(map[netip.Addr]uint64)
	for a, pod := range l.pods {
		cookie, err := pod.NS.Cookie()
		l.ok(err)
		namespaces[a] = cookie
	}
	l.sockets = socketlb.New(func() (map[netip.Addr]uint64, error) { return namespaces, nil }, slog.New(slog.NewTextHandler(l.t.Output(), nil)))
	l.t.Cleanup(l.sockets.Close)
	l.apply(l.snap)
	if off := l.sockets.Report().Off; off != "" {
		l.t.Fatal(off)
	}
}

func (l *lab) apply(snap *model.Snapshot) {
	l.t.Helper()
	l.snap = snap
	if l.sockets != nil {
		l.sockets.Apply(snap)
	}
	if err := l.target.Apply(context.Background(), snap); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// addPod connects a pod as the CNI plugin does: routes to single addresses, a gateway that is only a neighbour entry.
func (l *lab) addPod(dev string, p *model.Pod) {
	h := l.net.Host(p.Name.String())
	l.net.Cable(l.node, dev, h, "eth0")
	link, err := l.node.Link.LinkByName(dev)
	l.ok(err)
	mac := link.Attrs().HardwareAddr
	for _, a := range p.Addrs {
		gateway, all := "169.254.1.1", "0.0.0.0/0"
		if a.Is6() {
			gateway, all = "fe80::1", "::/0"
		}
		prefix := netip.PrefixFrom(a, a.BitLen()).String()
		h.Addr("eth0", prefix)
		if a.Is4() {
			h.Route(gateway+"/32", "", "eth0")
		}
		l.ok(h.Link.NeighSet(&netlink.Neigh{LinkIndex: h.Index("eth0"), State: netlink.NUD_PERMANENT,
			IP: netip.MustParseAddr(gateway).AsSlice(), HardwareAddr: mac}))
		h.Route(all, gateway, "eth0")
		l.node.Route(prefix, "", dev)
		l.pods[a] = h
	}
}

// makeLocal makes a virtual address deliverable on the node, as package nodenet does.
func (l *lab) makeLocal(a netip.Addr) {
	lo, err := l.node.Link.LinkByName("lo")
	l.ok(err)
	dst := netlink.NewIPNet(a.AsSlice())
	l.ok(l.node.Link.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
		Scope: netlink.SCOPE_HOST, Src: l.nodeAddr(a).AsSlice(), Protocol: linux.RouteProtocol}))
}

// nodeAddr is the node's address of a's family.
func (l *lab) nodeAddr(a netip.Addr) netip.Addr {
	if a.Is4() {
		return l.nodeAddrs[0]
	}
	return l.nodeAddrs[1]
}

func (l *lab) isNode(a netip.Addr) bool {
	return slices.Contains(l.nodeAddrs, a) || slices.Contains(l.own, a)
}

// host is where an address lives. What is neither the node's nor a pod's is put beyond.
func (l *lab) host(a netip.Addr) *testnet.Host {
	if l.isNode(a) {
		return l.node
	}
	if h := l.pods[a]; h != nil {
		return h
	}
	if key := a.String(); !l.servers[key] {
		l.servers[key] = true
		if a != netip.MustParseAddr("172.30.0.1") && a != netip.MustParseAddr("fd00:30::1") {
			l.beyond.Addr("eth0", netip.PrefixFrom(a, a.BitLen()).String())
			l.awaitLocal(a)
		}
	}
	return l.beyond
}

// awaitLocal returns when the kernel delivers to a new address. For IPv6 it says yes first, and does it a moment later.
func (l *lab) awaitLocal(a netip.Addr) {
	for l.t.Context().Err() == nil {
		routes, err := l.beyond.Link.RouteGet(a.AsSlice())
		l.ok(err)
		if len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		runtime.Gosched()
	}
}

func network(p model.Protocol) string { return strings.ToLower(p.String()) }

// serve sees to it that somebody answers at an address, by the name of the address.
func (l *lab) serve(p model.Protocol, a netip.AddrPort) {
	key := network(p) + a.String()
	if !l.servers[key] {
		l.servers[key] = true
		l.host(a.Addr()).EchoAs(a.String(), network(p), a.String())
	}
}

// ask sends the row's packet for real.
func (l *lab) ask(r Row) (testnet.Answer, error) {
	h, from := l.source(r)
	return h.Ask(network(r.Protocol), from, r.Dst)
}

// source is who sends a row's packet, and from what address if that is not the only one it has.
func (l *lab) source(r Row) (h *testnet.Host, from string) {
	h = l.host(r.Src)
	if h == l.beyond || slices.Contains(l.own, r.Src) || h == l.node && l.isNode(r.Dst.Addr()) {
		from = r.Src.String()
	}
	return h, from
}

// judge tries a row until every candidate was met, and holds each answer against it.
func (l *lab) judge(r Row) error {
	switch {
	case r.Action == model.Drop:
		return l.judgeDrop(r)
	case r.Action == model.Reject || len(r.Candidates) == 0:
		return l.judgeReject(r)
	}
	for _, c := range r.Candidates {
		l.serve(r.Protocol, c.Addr)
	}
	missing := make(map[string]Candidate)
	for _, c := range r.Candidates {
		missing[c.Addr.String()] = c
	}
	all, stays, led := len(missing), l.stays(r), l.isLed(r)
	for try := 0; len(missing) > 0; try++ {
		before := l.led()
		got, err := l.ask(r)
		if err != nil {
			return fmt.Errorf("after %d answers: %w", try, err)
		}
		if n := l.led() - before; led && n != 1 || !led && n != 0 {
			return fmt.Errorf("%d connections were led at the socket", n)
		}
		i := slices.IndexFunc(r.Candidates, func(c Candidate) bool { return c.Addr.String() == got.Name })
		if i < 0 {
			return fmt.Errorf("answered by %s", got.Name)
		}
		// A connection that is led to the pod that makes it never leaves it.
		nat := r.Candidates[i].NAT && !(led && r.Candidates[i].Addr.Addr() == r.Src)
		if saw := got.Client.Addr(); nat && !l.isNode(saw) || !nat && saw != r.Src {
			return fmt.Errorf("%s saw %s as its client", got.Name, saw)
		}
		delete(missing, got.Name)
		if stays && len(missing) < all-1 {
			return fmt.Errorf("answered by %s, and by another one before", got.Name)
		}
		if stays && try == 5 {
			return nil
		}
		if try == 60*all {
			return fmt.Errorf("after %d answers, none from %v", try, missing)
		}
	}
	return nil
}

// stays reports whether the row's Service gives a client the endpoint that it had, so that one client never meets them all.
func (l *lab) stays(r Row) bool {
	v := l.snap.Lookup(model.Packet{Protocol: r.Protocol, Src: netip.AddrPortFrom(r.Src, 40000), Dst: r.Dst, FromNode: l.isNode(r.Src), ToNode: l.isNode(r.Dst.Addr())})
	return v.Action == model.Forward && v.Affinity > 0 && len(r.Candidates) > 1
}

// led is how many connections were led at their sockets.
func (l *lab) led() uint64 {
	if l.sockets == nil {
		return 0
	}
	return l.sockets.Report().Connections
}

// isLed reports whether a row's connections have to be: those of pods by TCP to a ClusterIP, unless who asks makes a difference, or an endpoint is something to the rules itself.
func (l *lab) isLed(r Row) bool {
	if l.sockets == nil || r.Protocol != model.TCP || l.pods[r.Src] == nil {
		return false
	}
	v := l.snap.Lookup(model.Packet{Protocol: r.Protocol, Src: netip.AddrPortFrom(r.Src, 40000), Dst: r.Dst, ToNode: l.isNode(r.Dst.Addr())})
	if v.Action != model.Forward || v.Affinity > 0 {
		return false
	}
	if v.Kind != model.AtClusterIP {
		return false
	}
	for _, b := range v.Candidates {
		// The rules decide about a packet once.
		p := model.Packet{Protocol: r.Protocol, Src: netip.AddrPortFrom(r.Src, 40000), Dst: b.AddrPort(), ToNode: l.isNode(b.Addr)}
		if l.snap.Lookup(p).Action != model.Pass {
			return false
		}
	}
	return true
}

// judgeReject wants the refusal of a closed port, at once, and no trace of it.
func (l *lab) judgeReject(r Row) error {
	before := l.tracked()
	got, err := l.ask(r)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("not refused: %v %v", got, err)
	}
	// A datagram of the node's own is tracked on its way to loopback, until the Service has an endpoint.
	own := r.Protocol == model.UDP && l.host(r.Src) == l.node
	if after := l.tracked(); after > before && !own {
		return fmt.Errorf("%d connections tracked, %d before", after, before)
	}
	return nil
}

// judgeDrop wants the packet counted as dropped, and nothing to come back.
func (l *lab) judgeDrop(r Row) error {
	before := l.dropped()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		h, from := l.source(r)
		conn, err := h.Dial(ctx, network(r.Protocol), from, r.Dst)
		if err != nil {
			failed <- err
			return
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("?\n")); err != nil {
			failed <- err
			return
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		n, err := conn.Read(make([]byte, 100))
		failed <- fmt.Errorf("%d bytes came back: %w", n, err)
	}()
	for l.dropped() == before {
		select {
		case err := <-failed:
			if l.dropped() == before {
				return fmt.Errorf("not dropped: %w", err)
			}
			failed <- err
		default:
			runtime.Gosched()
		}
	}
	cancel()
	own := l.host(r.Src) == l.node // whose sender is told by the kernel itself
	if err := <-failed; own && errors.Is(err, syscall.EPERM) {
		return nil
	} else if !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "canceled") {
		return fmt.Errorf("dropped, and yet: %w", err)
	}
	return nil
}

func (l *lab) dropped() uint64 {
	d, err := nft.ReadDropped(nft.Options{NetNS: l.node.NS})
	l.ok(err)
	return d.NoLocal + d.NotAllowed
}

func (l *lab) tracked() (n int) {
	l.node.Do(func() (err error) { n, err = linux.ConntrackCount(); return err })
	return n
}

// fallback is what a Local row means while this node's socket is closed.
func fallback(r Row) Row {
	if r.Action == model.Local {
		r.Action = model.Forward
		if len(r.Candidates) == 0 {
			r.Action = model.Reject
		}
	}
	return r
}

// answerHere opens this node's DNS sockets, and closes them again.
func (l *lab) answerHere() (stop func()) {
	var open []io.Closer
	for _, a := range l.snap.DNS {
		at := netip.AddrPortFrom(a, model.DNSPort).String()
		tcp, err := l.node.NS.Listen("tcp", at)
		l.ok(err)
		udp, err := l.node.NS.ListenPacket("udp", at)
		l.ok(err)
		open = append(open, tcp, udp)
		go answerTCP(tcp)
		go answerUDP(udp)
	}
	l.ok(l.target.AnswerDNS(true))
	return func() {
		l.ok(l.target.AnswerDNS(false))
		for _, c := range open {
			c.Close()
		}
	}
}

// answerTCP answers as testnet's servers do, until the listener is closed.
func answerTCP(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			if _, err := conn.Read(make([]byte, 100)); err == nil {
				fmt.Fprintf(conn, "here %s\n", conn.RemoteAddr())
			}
		}()
	}
}

func answerUDP(conn net.PacketConn) {
	for {
		_, client, err := conn.ReadFrom(make([]byte, 100))
		if err != nil {
			return
		}
		_, _ = conn.WriteTo(fmt.Appendf(nil, "here %s\n", client), client)
	}
}

// The second judge: the kernel. It has two ways to see to it: by rules alone, and with pods' connections led at their sockets.
func TestKernel(t *testing.T) {
	for _, w := range worlds(t) {
		t.Run(w.Name, func(t *testing.T) {
			l := newLab(t, w)
			l.judgeAll(w.Rows, "")
			if len(w.Snapshot.DNS) == 0 {
				return
			}
			stop := l.answerHere()
			l.judgeLocal(w.Rows)
			stop()
			l.judgeAll(w.Rows, "after the sockets are closed: ")
		})
		t.Run(w.Name+", led", func(t *testing.T) {
			l := newLab(t, w)
			l.lead()
			l.judgeAll(w.Rows, "")
			if len(w.Snapshot.DNS) > 0 {
				defer l.answerHere()()
				l.judgeLocal(w.Rows)
			}
		})
	}
}

func (l *lab) judgeAll(rows []Row, when string) {
	for _, r := range rows {
		if r.Protocol == model.SCTP {
			continue // few kernels have SCTP sockets; the rules know no difference
		}
		if r.Action == model.Local && slices.Contains(r.Candidates, Candidate{Addr: r.Dst}) {
			continue // another proxy's
		}
		if err := l.judge(fallback(r)); err != nil {
			l.t.Errorf("%spackets.txt:%d: %s: %v", when, r.Line, r, err)
		}
	}
}

// judgeLocal wants every question answered here, untracked, and the asker's own address seen.
func (l *lab) judgeLocal(rows []Row) {
	for _, r := range rows {
		if r.Action != model.Local {
			continue
		}
		before := l.tracked()
		for range 5 {
			got, err := l.ask(r)
			if err != nil || got.Name != "here" || got.Client.Addr() != r.Src {
				l.t.Errorf("packets.txt:%d: %s: %+v %v", r.Line, r, got, err)
				break
			}
		}
		if after := l.tracked(); after > before {
			l.t.Errorf("packets.txt:%d: %s: %d connections tracked, %d before", r.Line, r, after, before)
		}
	}
}

// Random worlds, and in each of them random packets: both judges must agree about packets nobody has thought of.
func TestKernelAgreesWithModelAtRandom(t *testing.T) {
	a, b := rand.Uint64(), rand.Uint64()
	r := rand.New(rand.NewPCG(a, b))
	t.Logf("seed %d %d", a, b)
	l := newLab(t, World{Snapshot: randomWorld(t, r), Own: []netip.Addr{netip.MustParseAddr("172.30.9.1"), netip.MustParseAddr("fd00:39::1")}})
	for i := range 24 {
		if i == 12 {
			l.lead()
		}
		for range 15 {
			src, dst, proto := randomPacket(r)
			row := Judge(l.snap, l.own, proto, src, dst)
			if row.Action == model.Pass || l.pods[src] != nil && src == dst.Addr() {
				continue // what a pod sends to its own address does not leave it
			}
			if err := l.judge(row); err != nil {
				t.Fatalf("%s: %v\nin\n%s", row, err, l.snap)
			}
		}
		l.apply(randomWorld(t, r))
	}
}

// What there is in random worlds, in each family: pods of this node, other nodes' pods, nodes, the outside.
var randomAddrs = [2][]string{
	{"10.244.1.5", "10.244.1.6", "10.244.2.7", "10.244.2.8", "10.244.3.9", "172.30.0.11", "172.30.0.12", "172.30.0.1", "198.51.100.7"},
	{"fd00:244:0:1::5", "fd00:244:0:1::6", "fd00:244:0:2::7", "fd00:244:0:2::8", "fd00:244:0:3::9", "fd00:30::11", "fd00:30::12", "fd00:30::1", "2001:db8:51::7"},
}

var randomNodes = []string{"n1", "n1", "n2", "n2", "n3", "n1", "n2", "-", "-"}

// randomWorld is written in the table's own language.
func randomWorld(t *testing.T, r *rand.Rand) *model.Snapshot {
	t.Helper()
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	maybe := func(in int, format string, args ...any) {
		if r.IntN(in) == 0 {
			line(format, args...)
		}
	}
	line(`world random
self n1
ranges 10.96.0.0/16 fd00:96::/112
node n1 172.30.0.11 fd00:30::11 pods 10.244.1.0/24 fd00:244:0:1::/64 zone a
node n2 172.30.0.12 fd00:30::12 pods 10.244.2.0/24 fd00:244:0:2::/64 zone a
node n3 172.30.0.13 fd00:30::13 pods 10.244.3.0/24 fd00:244:0:3::/64 zone b
own 172.30.9.1 fd00:39::1
pod p/a 10.244.1.5 fd00:244:0:1::5%s
%spod p/b 10.244.1.6 fd00:244:0:1::6
%s`, [...]string{"", " terminating"}[r.IntN(2)], randomHostPorts(r), randomHostPorts(r))
	maybe(2, "pass-on")
	maybe(4, "nodeport-addresses 172.30.9.0/24 fd00:39::/64")
	for i := range 1 + r.IntN(4) {
		line("service s/s%d 10.96.0.%d fd00:96::%d", i, 1+r.IntN(4), 1+r.IntN(4))
		maybe(6, "unproxied")
		maybe(5, "affinity 3h")
		maybe(4, "internal-local")
		maybe(4, "external-local")
		maybe(3, "external 203.0.113.%d 2001:db8:113::%d", r.IntN(2), r.IntN(2))
		maybe(3, "balancer 203.0.113.%d 2001:db8:113::%d", r.IntN(3), r.IntN(3))
		maybe(5, "health-port %d", 30080+r.IntN(3))
		maybe(4, "sources 198.51.100.0/24 2001:db8:51::/48 10.244.1.5/32")
		for j := range r.IntN(4) {
			proto := [2]string{"TCP", "UDP"}[r.IntN(2)]
			port := fmt.Sprintf("port p%d %s %d", j, proto, 80+r.IntN(2))
			if r.IntN(2) == 0 {
				port += fmt.Sprintf(" nodeport %d", 30080+r.IntN(2))
			}
			line("%s", port)
			hinted := r.IntN(3) == 0
			for range r.IntN(5) {
				f, n := r.IntN(2), r.IntN(9)
				addr := netip.MustParseAddr(randomAddrs[f][n])
				state := [...]string{"ready", "ready", "ready", "serving", "notready"}[r.IntN(5)]
				end := fmt.Sprintf("endpoint %s %s %s", netip.AddrPortFrom(addr, 8080+uint16(r.IntN(2))), state, randomNodes[n])
				if n < 2 {
					end += " pod=p/" + string("ab"[n])
				}
				if hinted {
					end += [...]string{" zones=a", " zones=b", " nodes=n1 zones=a", " nodes=n2,n1"}[r.IntN(4)]
				}
				line("%s", end)
			}
		}
	}
	ws, err := Parse(b.String())
	if err != nil {
		t.Fatal(err)
	}
	return ws[0].Snapshot
}

// randomHostPorts are those of a pod: few numbers, so that others have them too, and node ports among them.
func randomHostPorts(r *rand.Rand) (lines string) {
	for range r.IntN(4) {
		at := [...]string{"", "", "172.30.0.11:", "[fd00:30::11]:", "172.30.9.1:", "[fd00:39::1]:", "0.0.0.0:", "[::]:"}[r.IntN(8)]
		lines += fmt.Sprintf("hostport %s %s%d %d\n", [2]string{"TCP", "UDP"}[r.IntN(2)], at, 30080+r.IntN(3), 8080+r.IntN(2))
	}
	return lines
}

func randomPacket(r *rand.Rand) (netip.Addr, netip.AddrPort, model.Protocol) {
	f := r.IntN(2)
	src := netip.MustParseAddr(randomAddrs[f][[...]int{0, 1, 5, 2, 8}[r.IntN(5)]])
	to := [2][]string{
		{"10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4", "10.96.7.7", "203.0.113.0", "203.0.113.1", "203.0.113.2", "172.30.0.11", "172.30.9.1", "10.244.1.5"},
		{"fd00:96::1", "fd00:96::2", "fd00:96::3", "fd00:96::4", "fd00:96::77", "2001:db8:113::0", "2001:db8:113::1", "2001:db8:113::2", "fd00:30::11", "fd00:39::1", "fd00:244:0:1::5"},
	}[f]
	n := r.IntN(len(to))
	port := 80 + uint16(r.IntN(2))
	switch n {
	case 8, 9:
		port = 30080 + uint16(r.IntN(3))
	case 10:
		port = 8080 + uint16(r.IntN(2))
	}
	return src, netip.AddrPortFrom(netip.MustParseAddr(to[n]), port), [2]model.Protocol{model.TCP, model.UDP}[r.IntN(2)]
}

// Random changes of what pods are led to at their sockets end in what a fresh start makes.
func TestLedAsFromAFreshStart(t *testing.T) {
	a, b := rand.Uint64(), rand.Uint64()
	r := rand.New(rand.NewPCG(a, b))
	t.Logf("seed %d %d", a, b)
	testnet.MustRoot(t)
	nobody := func() (map[netip.Addr]uint64, error) { return nil, nil }
	led := socketlb.New(nobody, nil)
	defer led.Close()
	lines := 0
	for step := range 60 {
		snap := randomWorld(t, r)
		led.Apply(snap)
		fresh := socketlb.New(nobody, nil)
		fresh.Apply(snap)
		want, err := fresh.Dump()
		fresh.Close()
		got, err2 := led.Dump()
		if got != want || err != nil || err2 != nil {
			t.Fatalf("step %d, %v %v: got\n%s\nwant\n%s\nin\n%s", step, err, err2, got, want, snap)
		}
		lines += strings.Count(got, "\n")
	}
	if lines == 0 {
		t.Error("nothing was led")
	}
}

// Connections are spread evenly, by the rules and by who leads at the socket: chi-square over 7 endpoints, with a bound that chance exceeds once in a thousand million.
func TestEvenDistribution(t *testing.T) {
	var text strings.Builder
	text.WriteString("world even\nself n1\nnode n1 172.30.0.11 pods 10.244.1.0/24\npod p/a 10.244.1.5\nservice s/s 10.96.0.1\n")
	const endpoints, packets, bound = 7, 2100, 56.0 // 6 degrees of freedom
	for _, port := range []string{"u UDP 80", "t TCP 80"} {
		text.WriteString("port " + port + "\n")
		for i := range endpoints {
			fmt.Fprintf(&text, "endpoint 10.244.2.%d:8080 ready n2\n", 1+i)
		}
	}
	ws, err := Parse(text.String())
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, ws[0])
	l.lead()
	for _, proto := range []model.Protocol{model.UDP, model.TCP} {
		row := Judge(l.snap, nil, proto, netip.MustParseAddr("10.244.1.5"), netip.MustParseAddrPort("10.96.0.1:80"))
		for _, c := range row.Candidates {
			l.serve(proto, c.Addr)
		}
		hits := make(map[string]int)
		for range packets {
			got, err := l.ask(row)
			l.ok(err)
			hits[got.Name]++
		}
		chi, expected := 0.0, float64(packets)/endpoints
		for _, c := range row.Candidates {
			d := float64(hits[c.Addr.String()]) - expected
			chi += d * d / expected
		}
		if chi > bound {
			t.Errorf("%s: chi-square %.1f: %v", proto, chi, hits)
		}
	}
	if n := l.led(); n != packets {
		t.Errorf("%d connections were led", n)
	}
}
