// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/testnet"
)

// traffic is what goes on until it is stopped, and what has become of it.
type traffic struct {
	t      *testing.T
	ctx    context.Context
	all    sync.WaitGroup
	rounds []*atomic.Int64 // of each connection
	broken atomic.Int64    // connections that ended, or could not be opened
	opened atomic.Int64
	sent   atomic.Int64 // datagrams
	lost   atomic.Int64
}

// stream sends what must come back the same, over one connection.
func (l *traffic) stream(from, to *testnet.Host, at netip.Addr, chunk int) {
	l.t.Helper()
	server := echoServer(l.t, to, at)
	c, err := from.Dial(l.ctx, "tcp", "", server)
	if err != nil {
		l.t.Fatalf("connect to %s: %v", server, err)
	}
	n := new(atomic.Int64)
	l.rounds = append(l.rounds, n)
	l.all.Go(func() {
		defer c.Close()
		out, in := make([]byte, chunk), make([]byte, chunk)
		for l.ctx.Err() == nil {
			binary.BigEndian.PutUint64(out, uint64(n.Load()))
			c.SetDeadline(time.Now().Add(20 * time.Second))
			written := make(chan error, 1)
			go func() { _, err := c.Write(out); written <- err }()
			_, err := io.ReadFull(c, in)
			if werr := <-written; err == nil {
				err = werr
			}
			if err == nil && !bytes.Equal(in, out) {
				err = fmt.Errorf("other bytes came back")
			}
			if err != nil {
				l.broken.Add(1)
				l.t.Errorf("a connection to %s broke in round %d: %v", server, n.Load(), err)
				return
			}
			n.Add(1)
		}
	})
}

// echoServer sends back what it gets.
func echoServer(t *testing.T, on *testnet.Host, at netip.Addr) netip.AddrPort {
	t.Helper()
	listener, err := on.NS.Listen("tcp", netip.AddrPortFrom(at, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { listener.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer c.Close(); io.Copy(c, c) })
		}
	})
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

// small opens one connection after the other.
func (l *traffic) small(from, to *testnet.Host, at netip.Addr) {
	l.t.Helper()
	server := to.Echo("tcp", netip.AddrPortFrom(at, 0).String())
	n := new(atomic.Int64)
	l.rounds = append(l.rounds, n)
	l.all.Go(func() {
		for l.ctx.Err() == nil {
			l.opened.Add(1)
			if _, err := from.Ask("tcp", "", server); err != nil {
				l.broken.Add(1)
				l.t.Errorf("a new connection to %s: %v", server, err)
			}
			n.Add(1)
		}
	})
}

// inFlight bounds the datagrams of a stream that have not come back: so many fit into every queue.
const inFlight = 64

// datagrams sends from the one's pod to the other's at a rate, and counts those that do not come back. The addresses must be nobody else's: where a pod learns
// from its connections that less fits into a packet to an address, its own kernel drops a datagram to there that it is just about to send.
func (l *traffic) datagrams(from *member, source netip.Addr, to *member, at netip.Addr) {
	l.t.Helper()
	server := to.pod.Echo("udp", netip.AddrPortFrom(at, 0).String())
	c, err := from.pod.Dial(l.ctx, "udp", source.String(), server)
	if err != nil {
		l.t.Fatal(err)
	}
	var back atomic.Int64
	l.all.Go(func() {
		buf := make([]byte, 200)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			back.Add(1)
		}
	})
	l.all.Go(func() {
		defer c.Close()
		tick := time.NewTicker(500 * time.Microsecond)
		defer tick.Stop()
		var n, missing int64
		last := time.Now()
		for l.ctx.Err() == nil {
			<-tick.C
			if n-back.Load()-missing >= inFlight {
				if since := time.Since(last); since > 5*time.Second {
					missing = n - back.Load() // they will not come any more
				}
				continue
			}
			last = time.Now()
			if _, err := c.Write([]byte("one that fits into every packet")); err != nil {
				l.t.Errorf("send to %s: %v", server, err)
				return
			}
			n++
		}
		for end := time.Now().Add(5 * time.Second); back.Load() < n && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		l.sent.Add(n)
		l.lost.Add(n - back.Load())
	})
}

// seconds gives the pods of the first two nodes another address each.
func (s *site) seconds(family int) (one, two netip.Addr) {
	s.t.Helper()
	var addrs [2]netip.Addr
	for i, m := range s.members[:2] {
		addrs[i] = nth(m.node.PodCIDRs[family], 6)
		s.addPodAddr(m, m.pod, podDevice(i+1), addrs[i])
		settle(s.t, m.pod, addrs[i].String())
	}
	return addrs[0], addrs[1]
}

// droppedByProcessors is how many packets the machine has dropped because their processor's queue was full.
func droppedByProcessors(t *testing.T) (n uint64) {
	t.Helper()
	text, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		dropped, err := strconv.ParseUint(strings.Fields(line)[1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		n += dropped
	}
	return n
}

// noneLost fails the test if a datagram was lost, unless the machine was too busy for some packets.
func (l *traffic) noneLost(before uint64) {
	l.t.Helper()
	busy := droppedByProcessors(l.t) - before
	if lost := l.lost.Load(); lost > int64(busy) {
		l.t.Errorf("%d datagrams lost; the machine was too busy for %d packets", lost, busy)
	}
}

// progress returns when every connection has done some more rounds.
func (l *traffic) progress(more int64) {
	l.t.Helper()
	goal := make([]int64, len(l.rounds))
	for i, n := range l.rounds {
		goal[i] = n.Load() + more
	}
	end := time.Now().Add(20 * time.Second)
	for i, n := range l.rounds {
		for n.Load() < goal[i] {
			if l.broken.Load() > 0 || time.Now().After(end) {
				l.t.Fatalf("connection %d is at round %d and does not get to %d", i, n.Load(), goal[i])
			}
			time.Sleep(200 * time.Microsecond)
		}
	}
}

// TestSwitch: the ends of a pair go from mode to mode, each when it likes, under load. No connection breaks, none cannot be opened, and no datagram is lost
// that every packet has room for. With reverse path filtering off, loose and strict.
func TestSwitch(t *testing.T) {
	testnet.MustRoot(t)
	for _, filter := range []string{"0", "2", "1"} {
		for _, nodes := range []int{dual, v6first} {
			name := map[int]string{dual: "over IPv4", v6first: "over IPv6"}[nodes]
			t.Run("rp_filter "+filter+"/"+name, func(t *testing.T) { testSwitch(t, nodes, filter) })
		}
	}
}

func testSwitch(t *testing.T, nodes int, filter string) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t, nodes, dual)
	for i, m := range s.members {
		m.Sysctl("net/ipv4/conf/all/rp_filter", filter)
		m.Sysctl("net/ipv4/conf/eth0/rp_filter", filter)
		s.set(i, Auto)
	}
	before := droppedByProcessors(t)
	ctx, stop := context.WithCancel(context.Background())
	l := &traffic{t: t, ctx: ctx}
	defer func() { stop(); l.all.Wait() }()
	one, two, far := s.members[0], s.members[1], s.members[2]
	for _, f := range []int{0, 1} {
		a, b, c := podAddr(one.node.PodCIDRs[f]), podAddr(two.node.PodCIDRs[f]), podAddr(far.node.PodCIDRs[f])
		l.stream(one.pod, two.pod, b, 100_000)
		l.stream(two.pod, one.pod, a, 100_000)
		l.stream(one.pod, two.pod, b, 100)
		l.stream(one.Host, two.pod, b, 10_000)
		l.stream(two.pod, one.Host, one.node.Addr(a), 10_000)
		l.stream(far.pod, one.pod, a, 10_000)
		l.stream(two.pod, far.pod, c, 10_000)
		l.small(one.pod, two.pod, b)
		l.small(two.Host, one.pod, a)
		x, y := s.seconds(f)
		l.datagrams(one, x, two, y)
		l.datagrams(two, y, one, x)
	}
	l.progress(2)
	switches := 0
	for range 30 { // switches
		i := r.IntN(3)
		mode := Mode(r.IntN(3))
		if i == 2 || mode == Never {
			// Those behind the router have no other way than the tunnel, for which both ends must send into it.
			mode = []Mode{Auto, Always}[r.IntN(2)]
		}
		s.set(i, mode)
		switches++
		l.progress(1 + r.Int64N(3))
	}
	stop()
	l.all.Wait()
	var rounds int64
	for _, n := range l.rounds {
		rounds += n.Load()
	}
	t.Logf("%d switches, %d rounds on %d connections, %d connections opened, %d broken; %d datagrams, %d lost", switches, rounds, len(l.rounds), l.opened.Load(), l.broken.Load(), l.sent.Load(), l.lost.Load())
	l.noneLost(before)
}

// TestSwitchNever is TestSwitch for a pair that needs nobody behind a router, so that either end may be without the tunnel at any time.
func TestSwitchNever(t *testing.T) {
	testnet.MustRoot(t)
	for _, filter := range []string{"0", "2", "1"} {
		t.Run("rp_filter "+filter, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			s := newSite(t, dual, dual)
			s.members = s.members[:2]
			for i, m := range s.members {
				m.Sysctl("net/ipv4/conf/all/rp_filter", filter)
				m.Sysctl("net/ipv4/conf/eth0/rp_filter", filter)
				s.set(i, Never)
			}
			before := droppedByProcessors(t)
			ctx, stop := context.WithCancel(context.Background())
			l := &traffic{t: t, ctx: ctx}
			defer func() { stop(); l.all.Wait() }()
			one, two := s.members[0], s.members[1]
			for _, f := range []int{0, 1} {
				a, b := podAddr(one.node.PodCIDRs[f]), podAddr(two.node.PodCIDRs[f])
				l.stream(one.pod, two.pod, b, 100_000)
				l.stream(two.pod, one.pod, a, 100_000)
				l.stream(one.Host, two.pod, b, 10_000)
				l.small(one.pod, two.pod, b)
				x, y := s.seconds(f)
				l.datagrams(two, y, one, x)
			}
			l.progress(2)
			seen := make(map[[2]Mode]bool)
			now := [2]Mode{Never, Never}
			for range 30 {
				i := r.IntN(2)
				now[i] = Mode(r.IntN(3))
				s.set(i, now[i])
				seen[now] = true
				l.progress(1 + r.Int64N(3))
			}
			stop()
			l.all.Wait()
			t.Logf("30 switches through %d of 9 pairs of modes, %d connections opened, %d broken; %d datagrams, %d lost", len(seen), l.opened.Load(), l.broken.Load(), l.sent.Load(), l.lost.Load())
			l.noneLost(before)
		})
	}
}

// TestMovingPeer: a node gets a leg on the link of another, and loses it again, while they talk. What was reached through the tunnel is reached by the link, and
// the other way round.
func TestMovingPeer(t *testing.T) {
	testnet.MustRoot(t)
	s := newSite(t, v4only, dual)
	for i := range s.members {
		s.set(i, Auto)
	}
	one, far := s.members[0], s.members[2]
	ctx, stop := context.WithCancel(context.Background())
	l := &traffic{t: t, ctx: ctx}
	defer func() { stop(); l.all.Wait() }()
	for f := range one.node.PodCIDRs {
		l.stream(one.pod, far.pod, podAddr(far.node.PodCIDRs[f]), 50_000)
		l.stream(far.pod, one.pod, podAddr(one.node.PodCIDRs[f]), 50_000)
	}
	s.world.Cable(one.Host, "eth1", far.Host, "eth1")
	for range 5 {
		for _, m := range []struct {
			*member
			to string
		}{{one, "172.31.0.13/32"}, {far, "172.30.0.11/32"}} {
			m.Route(m.to, "", "eth1")
			m.Do(func() error { return m.target.Verify(ctx) })
			l.progress(2)
		}
		one.Do(func() error {
			hop, err := Lookup(podAddr(far.node.PodCIDRs[0]))
			if hop.Dev != "eth1" || hop.Via != far.node.Addrs[0] || hop.MTU != 1500 {
				t.Errorf("with the link: %v", hop)
			}
			six, err := Lookup(podAddr(far.node.PodCIDRs[1]))
			if six.Dev != Device { // nodes without IPv6 have no other way for it
				t.Errorf("with the link, for IPv6: %v", six)
			}
			return err
		})
		for _, m := range []struct {
			*member
			to string
		}{{one, "172.31.0.13/32"}, {far, "172.30.0.11/32"}} {
			_, dst, err := netlinkPrefix(m.to)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Link.RouteDel(&netlink.Route{Dst: dst, LinkIndex: m.Index("eth1"), Protocol: 4, Scope: netlink.SCOPE_LINK}); err != nil {
				t.Fatal(err)
			}
			m.Do(func() error { return m.target.Verify(ctx) })
			l.progress(2)
		}
		one.Do(func() error {
			hop, err := Lookup(podAddr(far.node.PodCIDRs[0]))
			if hop.Dev != Device || hop.Tunnel != far.node.Addrs[0] || hop.MTU != 1450 {
				t.Errorf("without the link: %v", hop)
			}
			return err
		})
	}
}
