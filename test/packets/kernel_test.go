// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	"github.com/fairlead/fairlead/testnet"
)

// lab is a world made real: this node, its pods, and one more host, beyond, that has all other addresses.
//
//	pod ─ veth ─ node ─ eth0 ─ beyond
type lab struct {
	t            *testing.T
	net          *testnet.World
	snap         *model.Snapshot
	node, beyond *testnet.Host
	pods         map[netip.Addr]*testnet.Host
	nodeAddrs    []netip.Addr
	servers      map[string]bool
	target       *nft.Target
}

func newLab(t *testing.T, snap *model.Snapshot) *lab {
	net := testnet.New(t)
	l := &lab{t: t, net: net, snap: snap, pods: make(map[netip.Addr]*testnet.Host), servers: make(map[string]bool)}
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
	for _, prefix := range []string{"10.96.0.0/16", "10.244.1.0/24"} {
		l.beyond.Route(prefix, "172.30.0.11", "eth0")
	}
	for _, prefix := range []string{"fd00:96::/112", "fd00:244:0:1::/64"} {
		l.beyond.Route(prefix, "fd00:30::11", "eth0")
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

func (l *lab) apply(snap *model.Snapshot) {
	l.t.Helper()
	l.snap = snap
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

// host is where an address lives. What is neither the node's nor a pod's is put beyond.
func (l *lab) host(a netip.Addr) *testnet.Host {
	if slices.Contains(l.nodeAddrs, a) {
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
	h, from := l.host(r.Src), ""
	if h == l.beyond {
		from = r.Src.String()
	}
	return h.Ask(network(r.Protocol), from, r.Dst)
}

// judge tries a row until every candidate was met, and holds each answer against it.
func (l *lab) judge(r Row) error {
	if r.Action == model.Reject || len(r.Candidates) == 0 {
		return l.judgeReject(r)
	}
	for _, c := range r.Candidates {
		l.serve(r.Protocol, c.Addr)
	}
	missing := make(map[string]Candidate)
	for _, c := range r.Candidates {
		missing[c.Addr.String()] = c
	}
	all := len(missing)
	for try := 0; len(missing) > 0; try++ {
		got, err := l.ask(r)
		if err != nil {
			return fmt.Errorf("after %d answers: %w", try, err)
		}
		i := slices.IndexFunc(r.Candidates, func(c Candidate) bool { return c.Addr.String() == got.Name })
		if i < 0 {
			return fmt.Errorf("answered by %s", got.Name)
		}
		want := r.Src
		if r.Candidates[i].NAT {
			want = l.nodeAddr(r.Src)
		}
		if got.Client.Addr() != want {
			return fmt.Errorf("%s saw %s as its client, want %s", got.Name, got.Client.Addr(), want)
		}
		delete(missing, got.Name)
		if try == 60*all {
			return fmt.Errorf("after %d answers, none from %v", try, missing)
		}
	}
	return nil
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

// The second judge: the kernel.
func TestKernel(t *testing.T) {
	for _, w := range worlds(t) {
		t.Run(w.Name, func(t *testing.T) {
			l := newLab(t, w.Snapshot)
			l.judgeAll(w.Rows, "")
			if len(w.Snapshot.DNS) == 0 {
				return
			}
			stop := l.answerHere()
			l.judgeLocal(w.Rows)
			stop()
			l.judgeAll(w.Rows, "after the sockets are closed: ")
		})
	}
}

func (l *lab) judgeAll(rows []Row, when string) {
	for _, r := range rows {
		if r.Protocol == model.SCTP {
			continue // few kernels have SCTP sockets; the rules know no difference
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
	l := newLab(t, randomWorld(t, r))
	for range 12 {
		for range 15 {
			src, dst, proto := randomPacket(r)
			row := Judge(l.snap, proto, src, dst)
			if row.Action == model.Pass {
				continue
			}
			if err := l.judge(row); err != nil {
				t.Fatalf("%s: %v\nin\n%s", row, err, l.snap)
			}
		}
		l.apply(randomWorld(t, r))
	}
}

var randomAddrs = [2][]string{
	{"10.244.1.5", "10.244.1.6", "10.244.2.7", "10.244.2.8", "10.244.3.9", "172.30.0.11", "172.30.0.12", "172.30.0.1"},
	{"fd00:244:0:1::5", "fd00:244:0:1::6", "fd00:244:0:2::7", "fd00:244:0:2::8", "fd00:244:0:3::9", "fd00:30::11", "fd00:30::12", "fd00:30::1"},
}

// randomWorld is written in the table's own language.
func randomWorld(t *testing.T, r *rand.Rand) *model.Snapshot {
	t.Helper()
	var b strings.Builder
	b.WriteString(`world random
self n1
node n1 172.30.0.11 fd00:30::11 pods 10.244.1.0/24 fd00:244:0:1::/64
node n2 172.30.0.12 fd00:30::12 pods 10.244.2.0/24 fd00:244:0:2::/64
node n3 172.30.0.13 fd00:30::13 pods 10.244.3.0/24 fd00:244:0:3::/64
pod p/a 10.244.1.5 fd00:244:0:1::5
pod p/b 10.244.1.6 fd00:244:0:1::6
`)
	for i := range 1 + r.IntN(4) {
		fmt.Fprintf(&b, "service s/s%d 10.96.0.%d fd00:96::%d\n", i, 1+r.IntN(4), 1+r.IntN(4))
		for j := range r.IntN(4) {
			proto := [2]string{"TCP", "UDP"}[r.IntN(2)]
			fmt.Fprintf(&b, "port p%d %s %d\n", j, proto, 80+r.IntN(2))
			for range r.IntN(5) {
				addr := netip.MustParseAddr(randomAddrs[r.IntN(2)][r.IntN(8)])
				state := [...]string{"ready", "ready", "ready", "serving", "notready"}[r.IntN(5)]
				fmt.Fprintf(&b, "endpoint %s %s -\n", netip.AddrPortFrom(addr, 8080+uint16(r.IntN(2))), state)
			}
		}
	}
	ws, err := Parse(b.String())
	if err != nil {
		t.Fatal(err)
	}
	return ws[0].Snapshot
}

func randomPacket(r *rand.Rand) (netip.Addr, netip.AddrPort, model.Protocol) {
	f := r.IntN(2)
	src := netip.MustParseAddr(randomAddrs[f][[...]int{0, 1, 5}[r.IntN(3)]])
	dst := netip.MustParseAddr([2]string{"10.96.0.", "fd00:96::"}[f] + fmt.Sprint(1+r.IntN(4)))
	return src, netip.AddrPortFrom(dst, 80+uint16(r.IntN(2))), [2]model.Protocol{model.TCP, model.UDP}[r.IntN(2)]
}

// Connections are spread evenly: chi-square over 7 endpoints, with a bound that chance exceeds once in a thousand million.
func TestEvenDistribution(t *testing.T) {
	var text strings.Builder
	text.WriteString("world even\nself n1\nnode n1 172.30.0.11 pods 10.244.1.0/24\npod p/a 10.244.1.5\nservice s/s 10.96.0.1\nport p UDP 80\n")
	const endpoints, packets, bound = 7, 2100, 56.0 // 6 degrees of freedom
	for i := range endpoints {
		fmt.Fprintf(&text, "endpoint 10.244.2.%d:8080 ready n2\n", 1+i)
	}
	ws, err := Parse(text.String())
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, ws[0].Snapshot)
	row := Judge(l.snap, model.UDP, netip.MustParseAddr("10.244.1.5"), netip.MustParseAddrPort("10.96.0.1:80"))
	for _, c := range row.Candidates {
		l.serve(model.UDP, c.Addr)
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
		t.Errorf("chi-square %.1f: %v", chi, hits)
	}
}
