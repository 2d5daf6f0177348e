// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

// nodeAndPod are two hosts on one link, with addresses of both families.
func nodeAndPod(t *testing.T) (node, pod *testnet.Host) {
	t.Helper()
	w := testnet.New(t)
	node, pod = w.Host("node"), w.Host("pod")
	w.Cable(node, "fl0", pod, "eth0")
	node.Addr("fl0", "172.30.0.11/24", "fd00:30::11/64")
	pod.Addr("eth0", "172.30.0.12/24", "fd00:30::12/64")
	return node, pod
}

// asks asks from a host, and wants an answer from the address that was asked: by a connected socket, at which no other arrives.
func asks(t *testing.T, from *testnet.Host, network string, to netip.AddrPort) {
	t.Helper()
	conn, err := from.Dial(t.Context(), network, "", to)
	if err != nil {
		t.Fatalf("%s %s: %v", network, to, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	c := &mdns.Conn{Conn: conn}
	if err := c.WriteMsg(new(mdns.Msg).SetQuestion("orders.shop.svc.cluster.local.", typeA)); err != nil {
		t.Fatal(err)
	}
	if m, err := c.ReadMsg(); err != nil || len(m.Answer) != 1 {
		t.Errorf("%s %s: %v, %v", network, to, m, err)
	}
}

// The virtual address is on no device. Pods ask it through the node, and the answer comes from the address that was asked,
// over both transports and families, also when the node's own address is asked beside it.
func TestVirtualAddressInNetns(t *testing.T) {
	node, pod := nodeAndPod(t)
	pod.Route("0.0.0.0/0", "172.30.0.11", "eth0")
	pod.Route("::/0", "fd00:30::11", "eth0")
	for h, addr := range map[*testnet.Host]string{node: "fd00:30::11", pod: "fd00:30::12"} {
		// The kernel makes the route by which a host delivers to itself later than the address.
		for {
			if routes, err := h.Link.RouteGet(net.ParseIP(addr)); err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	var addrs []netip.AddrPort
	for _, a := range []string{"10.96.0.10:53", "[fd00:96::a]:53", "172.30.0.11:53", "[fd00:30::11]:53"} {
		addrs = append(addrs, netip.MustParseAddrPort(a))
	}
	s := dual(t, nil)
	var sockets *Sockets
	node.Do(func() (err error) {
		// The sockets come first: the route may follow.
		if sockets, err = s.Listen(addrs); err != nil {
			return err
		}
		for _, vip := range addrs[:2] {
			dst := &net.IPNet{IP: vip.Addr().AsSlice(), Mask: net.CIDRMask(vip.Addr().BitLen(), vip.Addr().BitLen())}
			err = errors.Join(err, netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: 1, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST, Protocol: linux.RouteProtocol}))
		}
		return err
	})
	defer serve(t, s, sockets)()
	for _, to := range addrs {
		for _, network := range []string{"udp", "tcp"} {
			asks(t, pod, network, to)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	s := dual(t, nil)
	for _, a := range []string{"0.0.0.0:0", "[::]:0"} {
		if sockets, err := s.Listen([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort(a)}); err == nil {
			sockets.Close()
			t.Errorf("%s: no error", a)
		}
	}
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if sockets, err := s.Listen([]netip.AddrPort{taken.Addr().(*net.TCPAddr).AddrPort()}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a taken port: %v, %v", sockets, err)
	}
	port := netip.MustParseAddrPort("127.0.0.1:5399")
	loop := dual(t, func(o *Options) { o.Blocks[0] = block("cluster.local", port) })
	if sockets, err := loop.Listen([]netip.AddrPort{port}); err == nil || !strings.Contains(err.Error(), "is this server itself") {
		t.Errorf("its own upstream: %v, %v", sockets, err)
	}
}

func dialTCP(t *testing.T, addr netip.AddrPort) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

func framed(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }

// Queries on one connection are answered each, in any order: one that waits holds up none, and what was asked before the client
// closed its side is answered too.
func TestPipelining(t *testing.T) {
	c := newCluster(t, Options{Wait: 15 * time.Second, Settle: time.Nanosecond})
	c.service("shop/old", "10.96.0.20")
	c.step()
	c.service("shop/new", "10.96.0.21")
	later := c.announce()
	conn := dialTCP(t, start(t, c.Server, "127.0.0.1"))
	var out []byte
	const queries = 100
	for i := range queries {
		m := new(mdns.Msg).SetQuestion("old.shop.svc.cluster.local.", typeA)
		if i == 3 {
			m.SetQuestion("new.shop.svc.cluster.local.", typeA)
		}
		m.Id = uint16(i)
		out = append(out, framed(packed(t, m))...)
	}
	// In pieces that end anywhere.
	for len(out) > 0 {
		n := min(len(out), 77)
		if _, err := conn.Write(out[:n]); err != nil {
			t.Fatal(err)
		}
		out = out[n:]
	}
	conn.(*net.TCPConn).CloseWrite()
	client := &mdns.Conn{Conn: conn}
	seen := make(map[uint16]bool)
	for range queries {
		if len(seen) == queries-1 {
			if seen[3] {
				t.Fatal("what is not programmed was answered")
			}
			c.Publish(later)
		}
		m, err := client.ReadMsg()
		if err != nil {
			t.Fatalf("after %d answers: %v", len(seen), err)
		}
		if seen[m.Id] || len(m.Answer) != 1 {
			t.Errorf("answer %v", m)
		}
		seen[m.Id] = true
	}
	if _, err := client.ReadMsg(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last answer: %v, want the end", err)
	}
}

// A connection that says nothing, or dawdles within a message, is closed.
func TestIdleConnections(t *testing.T) {
	s := dual(t, func(o *Options) { o.IdleTimeout = 20 * time.Millisecond })
	addr := start(t, s, "127.0.0.1")
	for _, begin := range []string{"", "\x00", "\x00\x20", "\x00\x20abcdef"} {
		conn := dialTCP(t, addr)
		io.WriteString(conn, begin)
		if n, err := conn.Read(make([]byte, 1)); err != io.EOF && !strings.Contains(fmt.Sprint(err), "reset") {
			t.Errorf("after %q: %d, %v, want the end", begin, n, err)
		}
	}
}

// More connections than allowed are closed at once; those open go on, and places become free again.
func TestConnectionLimit(t *testing.T) {
	s := dual(t, func(o *Options) { o.MaxConns = 2 })
	addr := start(t, s, "127.0.0.1")
	ask := func(conn net.Conn) error {
		c := &mdns.Conn{Conn: conn}
		if err := c.WriteMsg(new(mdns.Msg).SetQuestion("cluster.local.", mdns.TypeSOA)); err != nil {
			return err
		}
		_, err := c.ReadMsg()
		return err
	}
	open := []net.Conn{dialTCP(t, addr), dialTCP(t, addr)}
	for _, c := range open {
		if err := ask(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := ask(dialTCP(t, addr)); err == nil {
		t.Error("a third connection is answered")
	}
	if open, refused := s.conns.count(); open != 2 || refused != 1 {
		t.Errorf("%d connections counted as open, %d as refused", open, refused)
	}
	if err := ask(open[0]); err != nil {
		t.Errorf("an open connection: %v", err)
	}
	open[1].Close()
	for n := 2; n > 1; n, _ = s.conns.count() {
		time.Sleep(time.Millisecond) // until the server has noticed
	}
	if err := ask(dialTCP(t, addr)); err != nil {
		t.Errorf("after one has closed: %v", err)
	}
}

// One client cannot take all places.
func TestConnectionLimitOfOne(t *testing.T) {
	c := conns{most: 5, mostOfOne: 3}
	a, b := netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00::1")
	for i, tt := range []struct {
		client netip.Addr
		want   bool
	}{{a, true}, {a, true}, {a, true}, {a, false}, {b, true}, {b, true}, {b, false}} {
		if got := c.add(tt.client); got != tt.want {
			t.Errorf("connection %d: %t", i, got)
		}
	}
	c.remove(a)
	if !c.add(b) || c.add(a) {
		t.Error("a place that has become free is not the next one's")
	}
	for range 2 {
		c.remove(a)
	}
	for range 3 {
		c.remove(b)
	}
	if open, refused := c.count(); open != 0 || refused != 3 || len(c.clients) != 0 {
		t.Errorf("%d open, %d refused, %d clients at the end", open, refused, len(c.clients))
	}
}

// A client that opens connections without end and says nothing on them, or half a message, keeps nobody else from being answered.
func TestFlood(t *testing.T) {
	s := dual(t, func(o *Options) { o.MaxConns, o.MaxConnsOfOne = 200, 50 })
	addr := start(t, s, "127.0.0.1")
	from := func(ip string) net.Conn {
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	for i := range 150 {
		io.WriteString(from("127.0.0.2"), []string{"", "\x00", "\x00\x20", "\x00\x20abcdef"}[i%4]) // those too many may be closed by now
	}
	c := &mdns.Conn{Conn: from("127.0.0.3")}
	if err := c.WriteMsg(new(mdns.Msg).SetQuestion("cluster.local.", mdns.TypeSOA)); err != nil {
		t.Fatal(err)
	}
	if m, err := c.ReadMsg(); err != nil || len(m.Answer) != 1 {
		t.Errorf("another client: %v, %v", m, err)
	}
	if open, refused := s.conns.count(); open > 51 || refused < 100 {
		t.Errorf("%d connections are open, %d were refused", open, refused)
	}
}

// A shutdown ends everything: open connections, queries that wait, sockets.
func TestShutdown(t *testing.T) {
	c := newCluster(t, Options{Wait: time.Hour})
	sockets := listen(t, c.Server, "127.0.0.1")
	stop := serve(t, c.Server, sockets)
	addr := sockets.Addrs()[0]
	idle, waiting := dialTCP(t, addr), dialTCP(t, addr)
	waiting.Write(framed(message(t, nil)))
	udp, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	udp.Write(message(t, nil))
	for c.gate.waiting.Load() < 2 {
		time.Sleep(time.Millisecond) // until both have arrived
	}
	stop()
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("an idle connection goes on")
	}
	if m, err := (&mdns.Conn{Conn: waiting}).ReadMsg(); err == nil {
		t.Errorf("a query that had to wait, and could be asked again, was answered with %v", m)
	}
}

// Many clients at once, while the world changes all the time: nobody gets no answer, or a wrong one. (Run with -race.)
func TestConcurrentChanges(t *testing.T) {
	c := newCluster(t, Options{Wait: 10 * time.Second, Settle: time.Nanosecond})
	c.service("shop/stays", "10.96.0.20")
	c.step()
	addr := start(t, c.Server, "127.0.0.1")
	stop := make(chan struct{})
	var wg, clients sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if i%2 == 0 {
				c.service("shop/moves", "10.96.0.21")
				c.service("shop/web")
			} else {
				c.DeleteService(name("shop/moves"))
			}
			c.endpoints("shop/web", fmt.Sprintf("10.244.0.%d", i%200+1))
			s := c.announce()
			c.Publish(s)
		}
	})
	for i := range 4 {
		clients.Go(func() {
			client := &mdns.Client{Net: []string{"udp", "tcp"}[i%2], Timeout: 20 * time.Second}
			conn, err := client.Dial(addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for n := range 300 {
				name := []string{"stays", "moves", "web"}[n%3]
				m, _, err := client.ExchangeWithConn(new(mdns.Msg).SetQuestion(name+".shop.svc.cluster.local.", typeA), conn)
				if err != nil || m.Rcode == mdns.RcodeServerFailure || name == "stays" && len(m.Answer) != 1 {
					t.Errorf("%s: %v, %v", name, m, err)
					return
				}
			}
		})
	}
	clients.Wait()
	close(stop)
	wg.Wait()
}

// TestStopsUnderLoad: serving ends soon after it is told to, also while more questions are there than can be answered: the next process waits for that. What it
// leaves is in the sockets and the inboxes.
func TestStopsUnderLoad(t *testing.T) {
	s := dual(t, func(o *Options) { o.UDPSockets = 1 })
	sockets := listen(t, s, "127.0.0.1")
	addr := sockets.Addrs()[0]
	stop := serve(t, s, sockets)
	query, err := new(mdns.Msg).SetQuestion("orders.shop.svc.cluster.local.", typeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var flood sync.WaitGroup
	for range 4 {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
		if err != nil {
			t.Fatal(err)
		}
		flood.Go(func() {
			defer conn.Close()
			// As many as are sent with one system call, so that few are enough to have the server busy.
			raw, _ := conn.SyscallConn()
			raw.Control(func(fd uintptr) {
				out, err := openOutbox(addr.Addr())
				if err != nil {
					t.Error(err)
					return
				}
				defer out.close()
				for i := range batchSize {
					out.put(kernelAddr(addr), query)
					out.headers[i].Control, out.headers[i].Controllen = nil, 0
				}
				for {
					select {
					case <-ended:
						return
					default:
						out.sendAll(fd)
					}
				}
			})
		})
	}
	busy := func() bool { // a queue that is never empty
		for range 100 {
			if sockets.unread() == 0 {
				return false
			}
			time.Sleep(time.Millisecond)
		}
		return true
	}
	for limit := time.Now().Add(10 * time.Second); !busy() && time.Now().Before(limit); {
	}
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Error("the server does not stop under load")
	}
	close(ended)
	flood.Wait()
	<-stopped
}
