// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/dns/shortcut"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
	"github.com/fairlead/fairlead/testnet"
)

// TestWho: TCP from pod to pod and to Services goes the fast way, on both nodes, by a link and through the tunnel, and nothing else does; whichever way it goes,
// everything arrives from whom it should. What went from pod to pod, connection tracking has not seen.
func TestWho(t *testing.T) {
	for _, mode := range []nodenet.Mode{nodenet.Never, nodenet.Always} {
		t.Run(mode.String(), func(t *testing.T) { testWho(t, mode) })
	}
}

func testWho(t *testing.T, mode nodenet.Mode) {
	s := newScene(t, mode)
	s.lead(nil, [2]int{2, 5})
	one, two := s.nodes[1], s.nodes[2]
	for i, family := range []string{"IPv4", "IPv6"} {
		here, beside, there := podAddrs(1, 5)[i], podAddrs(1, 6)[i], podAddrs(2, 5)[i]
		for _, tt := range []struct {
			what    string
			from    *testnet.Host
			network string
			to      netip.AddrPort
			name    string
			client  netip.Addr
			fast    [3]bool // on node 1 and 2
		}{
			{"to another node", one.pods[5], "tcp", netip.AddrPortFrom(there, 8080), "p2-5", here, [3]bool{1: true, 2: true}},
			{"from another node", two.pods[5], "tcp", netip.AddrPortFrom(here, 8080), "p1-5", there, [3]bool{1: true, 2: true}},
			{"on the node", one.pods[5], "tcp", netip.AddrPortFrom(beside, 8080), "p1-6", here, [3]bool{1: true}},
			{"by UDP", one.pods[5], "udp", netip.AddrPortFrom(there, 8081), "p2-5", here, [3]bool{}},
			{"to a Service", one.pods[5], "tcp", netip.AddrPortFrom(vips[i], 80), "p2-5", here, [3]bool{1: true, 2: true}},
			{"to a Service of which the pod is the endpoint", two.pods[5], "tcp", netip.AddrPortFrom(vips[i], 80), "p2-5", netip.Addr{}, [3]bool{}},
			{"to a Service by UDP", one.pods[5], "udp", netip.AddrPortFrom(vips[i], 5060), "p2-5", here, [3]bool{}},
			// Where it is translated it is seen whole, or not at all but for its ends.
			{"to a node port", one.pods[5], "tcp", netip.AddrPortFrom(nodeAddrs(1)[i], 30080), "p2-5", here, [3]bool{2: true}},
			{"to a node port of another node", one.pods[5], "tcp", netip.AddrPortFrom(nodeAddrs(2)[i], 30080), "p2-5", here, [3]bool{}},
			{"from the node itself", one.Host, "tcp", netip.AddrPortFrom(here, 8080), "p1-5", netip.Addr{}, [3]bool{}},
			{"from the other node", two.Host, "tcp", netip.AddrPortFrom(here, 8080), "p1-5", netip.Addr{}, [3]bool{}},
		} {
			t.Run(family+" "+tt.what, func(t *testing.T) {
				before := one.tracked(tt.to.Port()) + two.tracked(tt.to.Port())
				if fast := s.ask(tt.from, tt.network, tt.to, tt.name, tt.client); fast != tt.fast {
					t.Errorf("fast on node 1 %t and 2 %t, want %t and %t", fast[1], fast[2], tt.fast[1], tt.fast[2])
				}
				if n := one.tracked(tt.to.Port()) + two.tracked(tt.to.Port()) - before; tt.to.Port() == 8080 && tt.fast[1] && n != 0 {
					t.Errorf("%d connections are tracked", n)
				}
			})
		}
	}
	for i := range vips {
		for _, tt := range []struct {
			from, to netip.Addr
			want     Course
		}{
			{podAddrs(1, 5)[i], podAddrs(2, 5)[i], Whole},
			{podAddrs(1, 5)[i], podAddrs(1, 6)[i], Whole},
			{podAddrs(1, 5)[i], vips[i], Established},
			{podAddrs(1, 5)[i], nodeAddrs(1)[i], LongWay},
			{podAddrs(1, 5)[i], podAddrs(1, 7)[i], LongWay},
			{podAddrs(1, 7)[i], podAddrs(1, 5)[i], LongWay},
		} {
			if got, err := one.fast.Course(tt.from, tt.to); got != tt.want || err != nil {
				t.Errorf("from %s to %s: %q %v, want %q", tt.from, tt.to, got, err, tt.want)
			}
		}
	}
	for _, x := range s.nodes[1:] {
		if r := x.fast.Report(); r.Off != "" || r.Left != nil || r.Links != map[nodenet.Mode]int{nodenet.Never: 2, nodenet.Always: 1}[mode] || r.Pods != len(x.pods) {
			t.Errorf("%s: %+v", x.Name, r)
		}
	}
	want := map[nodenet.Mode]string{nodenet.Never: `device 2 leads to other nodes
device 3 leads to a pod
device 4 leads to other nodes
pod 10.244.2.5 device 3
pod fd00:244:0:2::5 device 3
range 10.244.1.0/24 via 172.30.0.11 device 2 mtu 1500
range 10.244.2.0/24 no way
range 10.96.0.0/16 of services
range fd00:244:0:1::/64 via fd00:30::11 device 2 mtu 1500
range fd00:244:0:2::/64 no way
range fd00:96::/112 of services
`, nodenet.Always: `device 3 leads to a pod
device 4 leads to other nodes
pod 10.244.2.5 device 3
pod fd00:244:0:2::5 device 3
range 10.244.1.0/24 via 10.244.1.0 through the tunnel device 4 mtu 1450
range 10.244.2.0/24 no way
range 10.96.0.0/16 of services
range fd00:244:0:1::/64 via fe80::28bf:12ff:fe74:3ce7 through the tunnel device 4 mtu 1450
range fd00:244:0:2::/64 no way
range fd00:96::/112 of services
`}[mode]
	if text, err := two.fast.Dump(); text != want || err != nil {
		t.Errorf("node 2 has, %v:\n%s", err, text)
	}
}

// call is a connection that is kept, and asked on again and again.
type call struct {
	t    *testing.T
	conn net.Conn
	name string // of who answers
}

func (s *scene) call(from *testnet.Host, to netip.AddrPort, name string) *call {
	s.t.Helper()
	conn, err := from.Dial(s.t.Context(), "tcp", "", to)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	c := &call{s.t, conn, name}
	c.again("at first")
	return c
}

func (c *call) again(when string) {
	c.t.Helper()
	if got, err := testnet.AskOn(c.conn); err != nil || got.Name != c.name {
		c.t.Errorf("%s, from %s to %s: %v %v, want %s", when, c.conn.LocalAddr(), c.conn.RemoteAddr(), got, err, c.name)
	}
}

// TestEnding: a pod that has been told to end keeps its connections, on the fast path; new ones, which nodes that do not know yet still send to it, go on to
// another endpoint of its Service; and when it is gone, nothing is left of it.
func TestEnding(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one, two := s.nodes[1], s.nodes[2]
	s.lead(nil, [2]int{1, 5}, [2]int{1, 6})
	var kept []*call
	for i := range vips {
		kept = append(kept, s.call(two.pods[5], netip.AddrPortFrom(podAddrs(1, 5)[i], 8080), "p1-5"))
	}
	// Node 1 hears of it; node 2 does not.
	one.b.SetPod(model.Pod{Name: podName(1, 5), Addrs: podAddrs(1, 5), Terminating: true})
	one.apply()
	for i := range vips {
		before := one.fast.Report().Packets
		kept[i].again("while the pod is ending")
		if one.fast.Report().Packets == before {
			t.Error("its connections have left the fast path")
		}
		to := netip.AddrPortFrom(podAddrs(1, 5)[i], 8080)
		passedOn := s.call(two.pods[5], to, "p1-6")
		kept = append(kept, passedOn)
		// Its Service's other ports are none of it.
		if got, err := two.pods[5].Ask("tcp", "", netip.AddrPortFrom(to.Addr(), 9)); err == nil {
			t.Errorf("a port where nobody listens: %v", got)
		}
	}
	// Its agent ends and another one starts: not before the first packets of every connection have gone the long way.
	one.fast.Close()
	for _, c := range kept {
		c.again("on the long way")
	}
	one.start()
	one.apply()
	for _, c := range kept {
		c.again("on the fast path of the next agent")
	}
	one.b.DeletePod(podName(1, 5))
	s.lead(nil, [2]int{1, 6})
	one.b.Tick()
	one.b.Tick()
	one.apply()
	text, err := one.fast.Dump()
	if err != nil || strings.Contains(text, "10.244.1.5 ") || strings.Contains(text, "ask") || strings.Contains(text, "device 3") {
		t.Errorf("left of the pod, %v:\n%s", err, text)
	}
}

// TestSwitched: connections of all kinds outlive the fast path's coming and going, on one node and on both.
func TestSwitched(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one, two := s.nodes[1], s.nodes[2]
	s.lead(nil, [2]int{1, 6}, [2]int{2, 5})
	connect := func() (calls []*call) {
		for i := range vips {
			calls = append(calls,
				s.call(one.pods[5], netip.AddrPortFrom(podAddrs(2, 5)[i], 8080), "p2-5"),
				s.call(two.pods[5], netip.AddrPortFrom(podAddrs(1, 5)[i], 8080), "p1-5"),
				s.call(one.pods[5], netip.AddrPortFrom(podAddrs(1, 6)[i], 8080), "p1-6"))
			// A Service, until both endpoints have been had.
			for had := map[string]bool{}; len(had) < 2; {
				conn, err := one.pods[5].Dial(t.Context(), "tcp", "", netip.AddrPortFrom(vips[i], 80))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				got, err := testnet.AskOn(conn)
				if err != nil {
					t.Fatal(err)
				}
				if !had[got.Name] {
					calls = append(calls, &call{t, conn, got.Name})
				}
				had[got.Name] = true
			}
		}
		return calls
	}
	calls := connect()
	for round, change := range []func(){
		one.fast.Close, two.fast.Close, one.start, s.apply, two.start, s.apply,
		func() { one.fast.Close(); two.fast.Close() }, func() { one.start(); two.start(); s.apply() },
	} {
		change()
		for _, c := range calls {
			c.again(fmt.Sprint("after change ", round))
		}
		calls = append(calls, connect()...)
	}
}

// TestLongWayFirst: what was opened on the long way has an entry in conntrack, which sees nothing more of it on the fast one; when the connection ends, so does
// the entry.
func TestLongWayFirst(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	for i := range vips {
		for _, reset := range []bool{false, true} {
			one.fast.Close()
			to := netip.AddrPortFrom(podAddrs(2, 5)[i], 8080)
			c := s.call(one.pods[5], to, "p2-5")
			one.start()
			one.apply()
			c.again("on the fast path")
			if f := one.flow(local(c), to); f == nil || f.TimeOut < 200 {
				t.Fatalf("while it is open conntrack has %v", f)
			}
			if reset {
				if err := c.conn.(*net.TCPConn).SetLinger(0); err != nil {
					t.Fatal(err)
				}
			}
			from := local(c)
			c.conn.Close()
			one.forgets(t, from, to)
		}
	}
}

// TestHairpin: a pod that is its Service's endpoint is answered by itself.
func TestHairpin(t *testing.T) {
	s := newScene(t, nodenet.Never)
	s.lead(nil, [2]int{1, 5})
	for i := range vips {
		s.ask(s.nodes[1].pods[5], "tcp", netip.AddrPortFrom(vips[i], 80), "p1-5", netip.Addr{})
		s.ask(s.nodes[1].pods[6], "tcp", netip.AddrPortFrom(vips[i], 80), "p1-5", podAddrs(1, 6)[i])
	}
}

// TestForged: a pod that speaks in another's name is not carried further than it was.
func TestForged(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	for i, a := range podAddrs(1, 99) {
		one.pods[5].Addr("eth0", netip.PrefixFrom(a, a.BitLen()).String())
		before := one.fast.Report().Packets
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		conn, err := one.pods[5].Dial(ctx, "tcp", a.String(), netip.AddrPortFrom(podAddrs(2, 5)[i], 8080))
		cancel()
		if err == nil {
			conn.Close()
			t.Errorf("connected from %s", a)
		}
		if n := one.fast.Report().Packets - before; n != 0 {
			t.Errorf("%d packets from %s went the fast way", n, a)
		}
	}
}

// TestSizes: what is too large for its way is said to be by the long way, and then all of a large transfer arrives, by the fast one. Through the tunnel nobody
// has to say it: connections begin with segments that fit.
func TestSizes(t *testing.T) {
	t.Run("a link", func(t *testing.T) {
		s := newScene(t, nodenet.Never)
		for _, x := range s.nodes[1:] {
			link, err := x.Link.LinkByName("eth0")
			if err == nil {
				err = x.Link.LinkSetMTU(link, 1400)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		s.transfer([2]int{1460, 1440}, [2]int{1400 - 40, 1400 - 60}, false) // at first both ends think that they may
		s.transfer([2]int{1460, 1440}, [2]int{1400 - 40, 1400 - 60}, true)
	})
	t.Run("the tunnel", func(t *testing.T) {
		s := newScene(t, nodenet.Always)
		for _, x := range s.nodes[1:] {
			x.tool(x.pods[5], "nft", "table inet deaf { chain in { type filter hook input priority 0; icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }")
		}
		s.transfer([2]int{1450 - 40, 1450 - 60}, [2]int{1450 - 40, 1450 - 60}, false)
		s.transfer([2]int{1450 - 40, 1450 - 60}, [2]int{1450 - 40, 1450 - 60}, true)
	})
}

// transfer sends megabytes from a pod of node 1 to one of node 2, at its own address or by a Service, in segments that have one size at first and one in the
// end, by the family.
func (s *scene) transfer(first, last [2]int, service bool) {
	s.t.Helper()
	one, two := s.nodes[1], s.nodes[2]
	s.lead(nil, [2]int{2, 5})
	for i := range vips {
		const size = 4 << 20
		to := netip.AddrPortFrom(podAddrs(2, 5)[i], 9000)
		if service {
			to = netip.AddrPortFrom(vips[i], 90)
		}
		l, err := two.pods[5].NS.Listen("tcp", netip.AddrPortFrom(podAddrs(2, 5)[i], 9000).String())
		if err != nil {
			s.t.Fatal(err)
		}
		defer l.Close()
		sum := make(chan [32]byte, 1)
		go func() {
			h := sha256.New()
			if conn, err := l.Accept(); err == nil {
				_, _ = io.Copy(h, conn)
				conn.Close()
			}
			sum <- [32]byte(h.Sum(nil))
		}()
		conn, err := one.pods[5].Dial(s.t.Context(), "tcp", "", to)
		if err != nil {
			s.t.Fatal(err)
		}
		if n := segments(s.t, conn); n != first[i] {
			s.t.Errorf("segments of %d bytes at first, want %d", n, first[i])
		}
		data := make([]byte, size)
		_, _ = rand.Read(data)
		var before [3]uint64
		for n, x := range s.nodes[1:] {
			before[n+1] = x.fast.Report().Packets
		}
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			s.t.Fatal(err)
		}
		if _, err := conn.Write(data); err != nil {
			s.t.Fatal(err)
		}
		if n := segments(s.t, conn); n != last[i] {
			s.t.Errorf("segments of %d bytes in the end, want %d", n, last[i])
		}
		conn.Close()
		select {
		case got := <-sum:
			if got != sha256.Sum256(data) {
				s.t.Error("what arrived is not what was sent")
			}
		case <-time.After(20 * time.Second):
			s.t.Fatal("the transfer has not ended")
		}
		for n, x := range s.nodes[1:] {
			if n := x.fast.Report().Packets - before[n+1]; n < 20 {
				s.t.Errorf("%d packets went the fast way of %s", n, x.Name)
			}
		}
	}
}

// segments is the size that TCP sends in, in bytes without the options that each has.
func segments(t *testing.T, conn net.Conn) int {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var infoErr error
	if err := raw.Control(func(fd uintptr) { info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil || infoErr != nil {
		t.Fatal(err, infoErr)
	}
	const timestamps = 12
	return int(info.Snd_mss) + timestamps
}

// TestUnfit: pods whose traffic is shaped, and devices that are no pods', are left alone, and named; what comes, goes or is made anew is noticed.
func TestUnfit(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	left := func() string { return strings.Join(one.fast.Report().Left, "; ") }
	ip := func(args ...string) { t.Helper(); one.tool(one.Host, args...) }
	ip("tc", "qdisc", "add", "dev", "fl6", "root", "pfifo_fast")
	one.fast.Close()
	one.start()
	one.apply()
	if got := left(); got != "fl6 has the queueing discipline pfifo_fast" {
		t.Errorf("left: %q", got)
	}
	ip("tc", "qdisc", "del", "dev", "fl6", "root")
	one.verify()
	if r := one.fast.Report(); r.Left != nil || r.Pods != 2 {
		t.Errorf("when it is not shaped any more: %+v", r)
	}
	// A pod's addresses lead elsewhere.
	ip("ip", "link", "add", "br9", "type", "bridge")
	ip("ip", "link", "set", "br9", "up")
	ip("ip", "route", "replace", "10.244.1.6/32", "dev", "br9")
	ip("ip", "-6", "route", "del", "fd00:244:0:1::6/128", "dev", "fl6")
	one.verify()
	if r := one.fast.Report(); left() != "br9 is no veth but a bridge" || r.Pods != 1 {
		t.Errorf("when a pod is behind a bridge: %+v", r)
	}
	ip("ip", "route", "replace", "10.244.1.6/32", "dev", "fl6")
	ip("ip", "link", "del", "br9")
	// A pod's device is gone, and another one has its addresses.
	ip("ip", "link", "del", "fl5")
	one.verify()
	if r := one.fast.Report(); r.Off != "" || r.Left != nil || r.Pods != 1 || r.Links != 2 {
		t.Errorf("when a pod has gone: %+v", r)
	}
	s.pod(1, 7)
	one.apply()
	for i := range vips {
		if fast := s.ask(one.pods[7], "tcp", netip.AddrPortFrom(podAddrs(2, 5)[i], 8080), "p2-5", podAddrs(1, 7)[i]); fast != [3]bool{1: true, 2: true} {
			t.Errorf("a new pod: %v", fast)
		}
	}
}

// TestBareLink: nothing goes the fast way to nodes from which it could not come back by it, behind a device without link addresses.
func TestBareLink(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	one.tool(one.Host, "ip", "tuntap", "add", "tun0", "mode", "tun")
	links := *one.routes.Links()
	links.Plain = append(slices.Clone(links.Plain), one.Index("tun0"))
	links.Ways = maps.Clone(links.Ways)
	bare := node(2).PodCIDRs[0]
	w := links.Ways[bare]
	w.Dev = one.Index("tun0")
	links.Ways[bare] = w
	one.Do(func() error { one.fast.Apply(one.b.Build(), &links); return nil })
	text, err := one.fast.Dump()
	if err != nil || !strings.Contains(text, "range "+bare.String()+" no way\n") || !strings.Contains(text, "range "+node(2).PodCIDRs[1].String()+" via") {
		t.Errorf("%v:\n%s", err, text)
	}
	if r := one.fast.Report(); r.Off != "" || !slices.Contains(r.Left, "tun0 has no link addresses") {
		t.Errorf("%+v", r)
	}
	one.Do(func() error { one.fast.Apply(one.b.Build(), one.routes.Links()); return nil })
	if text, err := one.fast.Dump(); err != nil || strings.Count(text, "no way") != 2 {
		t.Errorf("%v, with the way as it was:\n%s", err, text)
	}
}

// TestGone: a connection to a pod that has just gone, of which nobody has told the node yet, is refused as it was, and at once.
func TestGone(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	one.tool(one.Host, "ip", "link", "del", "fl6")
	for i, from := range []*testnet.Host{s.nodes[2].pods[5], one.pods[5]} {
		for fam := range vips {
			if got, err := from.Ask("tcp", "", netip.AddrPortFrom(podAddrs(1, 6)[fam], 8080)); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EACCES) {
				t.Errorf("from %d, family %d: %v %v", i, fam, got, err)
			}
		}
	}
}

// TestOff: where the program cannot be loaded everything goes on without, and what is missing is named, once.
func TestOff(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	one.fast.Close()
	var log bytes.Buffer
	one.fast = New(shortcut.New(), slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(one.fast.Close)
	snap := one.b.Build()
	one.Without(func() {
		one.fast.Apply(snap, one.routes.Links())
		one.fast.Verify(one.routes.Links())
	}, unix.CAP_SYS_ADMIN, unix.CAP_BPF, unix.CAP_PERFMON)
	r := one.fast.Report()
	if !strings.Contains(r.Off, "BPF, PERFMON and NET_ADMIN") || r.Pods+r.Links != 0 {
		t.Errorf("%+v", r)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log.String())
	}
	if _, err := one.fast.Dump(); err == nil {
		t.Error("there is something to dump")
	}
	ask := func(want [3]bool) {
		t.Helper()
		if fast := s.ask(one.pods[5], "tcp", netip.AddrPortFrom(podAddrs(2, 5)[0], 8080), "p2-5", podAddrs(1, 5)[0]); fast != want {
			t.Errorf("fast: %v", fast)
		}
	}
	ask([3]bool{2: true})
	// It is tried again, if not each time.
	for n := 0; one.fast.Report().Off != "" && n < 4; n++ {
		one.verify()
	}
	ask([3]bool{1: true, 2: true})
	if n := strings.Count(log.String(), "works again"); n != 1 {
		t.Errorf("said %d times that it works:\n%s", n, log.String())
	}
}
