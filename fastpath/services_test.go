// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// flow is what a node's conntrack has of the connection from one address and port to another; nil: nothing.
func (x *island) flow(from, to netip.AddrPort) (found *netlink.ConntrackFlow) {
	x.t.Helper()
	family := netlink.InetFamily(unix.AF_INET)
	if from.Addr().Is6() {
		family = unix.AF_INET6
	}
	x.Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		for _, f := range flows {
			src, _ := netip.AddrFromSlice(f.Forward.SrcIP)
			dst, _ := netip.AddrFromSlice(f.Forward.DstIP)
			if netip.AddrPortFrom(src.Unmap(), f.Forward.SrcPort) == from && netip.AddrPortFrom(dst.Unmap(), f.Forward.DstPort) == to {
				found = f
			}
		}
		return err
	})
	return found
}

const timeWait = 7 // TCP_CONNTRACK_TIME_WAIT

// state is conntrack's of a TCP connection.
func state(f *netlink.ConntrackFlow) uint8 { return f.ProtoInfo.(*netlink.ProtoInfoTCP).State }

// keepFor sets for how long a node's conntrack keeps an established connection that nothing is heard of, and has the agent see it.
func (x *island) keepFor(seconds int) {
	x.t.Helper()
	x.Do(func() error {
		return linux.WriteSysctl("net/netfilter/nf_conntrack_tcp_timeout_established", fmt.Sprint(seconds))
	})
	x.verify()
}

// becomes waits until conntrack has a connection as it should be.
func (x *island) becomes(t *testing.T, what string, from, to netip.AddrPort, right func(*netlink.ConntrackFlow) bool) {
	t.Helper()
	var f *netlink.ConntrackFlow
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f = x.flow(from, to); f != nil && right(f) {
			return
		}
	}
	t.Fatalf("%s: %v", what, f)
}

// forgets waits until conntrack has nothing of a connection.
func (x *island) forgets(t *testing.T, from, to netip.AddrPort) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); x.flow(from, to) != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("conntrack still has %v", x.flow(from, to))
		}
	}
}

func local(c *call) netip.AddrPort {
	a := c.conn.LocalAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// TestServices: a connection to a Service goes the fast way both ways while it is established, as its entry in conntrack says, which lives on as if every packet
// had been seen; and its end is conntrack's again.
func TestServices(t *testing.T) {
	for _, mode := range []nodenet.Mode{nodenet.Never, nodenet.Always} {
		s := newScene(t, mode)
		one := s.nodes[1]
		tunnel := map[nodenet.Mode]string{nodenet.Never: "eth0", nodenet.Always: nodenet.Device}[mode]
		for _, endpoint := range []struct {
			where string
			pod   [2]int
			dev   string // where its packets come from
		}{{"on the node", [2]int{1, 6}, "fl6"}, {"on another node", [2]int{2, 5}, tunnel}} {
			for i, vip := range vips {
				t.Run(fmt.Sprintf("%s %s IPv%d", mode, endpoint.where, 4+2*i), func(t *testing.T) {
					t.Cleanup(func() { one.keepFor(432000) })
					s.lead(nil, endpoint.pod)
					to := netip.AddrPortFrom(vip, 80)
					target := netip.AddrPortFrom(podAddrs(endpoint.pod[0], endpoint.pod[1])[i], 8080)
					name := podName(endpoint.pod[0], endpoint.pod[1]).Name
					open := func() *call { return s.call(one.pods[5], to, name) }

					c := open()
					from := local(c)
					one.keepFor(1000)
					before := one.fast.Report().Packets
					c.again("when it is established")
					if n := one.fast.Report().Packets - before; n < 2 {
						t.Errorf("%d packets of a question and its answer went the fast way", n)
					}
					one.becomes(t, "time of an established connection", from, to, func(f *netlink.ConntrackFlow) bool { return f.TimeOut > 900 && f.TimeOut <= 1000 })

					// Data that nobody has acknowledged is waited for no longer than conntrack would.
					one.judge("fl5", frame{src: from, dst: to, flags: ack, hops: 64, proto: tcp, payload: 1})
					one.becomes(t, "time after data", from, to, func(f *netlink.ConntrackFlow) bool { return f.TimeOut > 200 && f.TimeOut <= 300 })
					one.judge(endpoint.dev, frame{src: target, dst: from, flags: ack, hops: 64, proto: tcp})
					one.becomes(t, "time after an acknowledgement", from, to, func(f *netlink.ConntrackFlow) bool { return f.TimeOut > 900 })

					for _, tt := range []struct {
						what  string
						flags byte
						fast  bool
					}{{"in the middle", ack, true}, {"a first packet", syn, false}, {"the answer to it", syn | ack, false}, {"a last packet", fin | ack, false}, {"a reset", rst, true}} {
						f := frame{src: from, dst: to, flags: tt.flags, hops: 64, proto: tcp, payload: 99}
						if fast, src, dst := one.judge("fl5", f); fast != tt.fast || fast && (src != from || dst != target) {
							t.Errorf("%s: fast %t, from %s to %s, want %t, from %s to %s", tt.what, fast, src, dst, tt.fast, from, target)
						}
						f.src, f.dst = target, from
						if fast, src, dst := one.judge(endpoint.dev, f); fast != tt.fast || fast && (src != to || dst != from) {
							t.Errorf("%s, back: fast %t, from %s to %s, want %t, from %s to %s", tt.what, fast, src, dst, tt.fast, to, from)
						}
					}
					// The last one of these was a reset, which neither end has seen: what goes on at once is not lost.
					one.judge("fl5", frame{src: from, dst: to, flags: ack, hops: 64, proto: tcp})
					c.again("after a reset")
					one.becomes(t, "time of a connection that goes on", from, to, func(f *netlink.ConntrackFlow) bool { return f.TimeOut > 900 })

					c.conn.Close()
					one.becomes(t, "state after the last packets", from, to, func(f *netlink.ConntrackFlow) bool { return state(f) == timeWait })

					// Somebody resets it: the other end hears of it, from whom it thinks it speaks with.
					c = open()
					if err := c.conn.(*net.TCPConn).SetLinger(0); err != nil {
						t.Fatal(err)
					}
					from = local(c)
					c.conn.Close()
					one.forgets(t, from, to)
				})
			}
		}
	}
}

// TestKept: a connection that goes the long way to its endpoint is kept by conntrack for its whole time after an exchange, not for that of data which nobody has
// acknowledged.
func TestKept(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	// One that is passed on is translated like one by a node port.
	one.b.SetPod(model.Pod{Name: podName(1, 5), Addrs: podAddrs(1, 5), Terminating: true})
	s.lead(func(e *model.Endpoint) {
		if e.Pod == podName(1, 5) {
			e.Ready, e.Terminating = false, true
		}
	}, [2]int{1, 5}, [2]int{1, 6})
	two := s.nodes[2].pods[5]
	for i := range vips {
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(nodeAddrs(1)[i], 30080), netip.AddrPortFrom(podAddrs(1, 5)[i], 8080)} {
			c := s.call(two, to, "p1-6")
			c.again("in the middle")
			one.becomes(t, "after exchanges", local(c), to, func(f *netlink.ConntrackFlow) bool { return f.TimeOut > 400000 })
		}
	}
}

// TestChecksums: what is translated arrives where checksums are looked at: sockets leave them to the device, and here the device leaves them to the kernel.
func TestChecksums(t *testing.T) {
	s := newScene(t, nodenet.Never)
	for _, x := range s.nodes[1:] {
		x.Do(func() error { return computeChecksums("eth0") })
	}
	s.transfer([2]int{1460, 1440}, [2]int{1460, 1440}, true)
}

// computeChecksums has the kernel compute the checksums of TCP that leaves by a device of the thread's namespace (ethtool -K DEVICE tx off).
func computeChecksums(device string) error {
	const siocethtool, setTxChecksums = 0x8946, 0x17
	value := struct{ cmd, data uint32 }{cmd: setTxChecksums}
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:], device)
	request.data = unsafe.Pointer(&value)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), siocethtool, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("set %s to compute checksums: %w", device, errno)
	}
	return nil
}

// TestGoneService: what is established goes on when its Service has none of its endpoint any more, or is gone, as it does on the long way; nothing new comes.
func TestGoneService(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	s.lead(nil, [2]int{2, 5})
	for _, vip := range vips {
		c := s.call(one.pods[5], netip.AddrPortFrom(vip, 80), "p2-5")
		s.lead(nil, [2]int{1, 6})
		before := one.fast.Report().Packets
		c.again("without its endpoint")
		one.b.DeleteService(web.Name)
		one.apply()
		c.again("without its Service")
		if n := one.fast.Report().Packets - before; n < 4 {
			t.Errorf("%d packets went the fast way", n)
		}
		if got, err := one.pods[5].Ask("tcp", "", netip.AddrPortFrom(vip, 80)); err == nil {
			t.Errorf("a Service that is gone answers: %v", got)
		}
		one.b.SetService(web)
		s.lead(nil, [2]int{2, 5})
	}
}

// TestSamePort: a pod has two connections to the same port of the same pod, from the same port of its own: one by the Service, one directly. To conntrack one of
// them does not exist, and to the endpoint they would be one.
func TestSamePort(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	dial := func(from netip.AddrPort, to netip.AddrPort, name string) *call {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		}}
		var conn net.Conn
		if err := one.pods[5].NS.Do(func() (err error) { conn, err = dialer.DialContext(ctx, "tcp", to.String()); return err }); err != nil {
			t.Fatalf("from %s to %s: %v", from, to, err)
		}
		t.Cleanup(func() { conn.Close() })
		return &call{t, conn, name}
	}
	port := uint16(20000)
	for _, pod := range [][2]int{{1, 6}, {2, 5}} {
		for i := range vips {
			name := podName(pod[0], pod[1]).Name
			s.lead(nil, pod)
			ways := []netip.AddrPort{netip.AddrPortFrom(vips[i], 80), netip.AddrPortFrom(podAddrs(pod[0], pod[1])[i], 8080)}
			for first := range ways {
				port++
				from := netip.AddrPortFrom(podAddrs(1, 5)[i], port)
				var both []*call
				for _, to := range []netip.AddrPort{ways[first], ways[1-first]} {
					c := dial(from, to, name)
					c.again("at first")
					both = append(both, c)
				}
				again := func(when string) {
					t.Helper()
					for _, c := range both {
						c.again(when)
					}
				}
				again("beside the other")
				one.fast.Close()
				again("on the long way")
				one.start()
				one.apply()
				again("on the fast way again")
			}
			// When the one by the Service is over, nothing of it is in the way.
			port++
			from := netip.AddrPortFrom(podAddrs(1, 5)[i], port)
			c := dial(from, ways[0], name)
			c.again("by the Service")
			c.conn.Close()
			one.becomes(t, "the one by the Service", from, ways[0], func(f *netlink.ConntrackFlow) bool { return state(f) == timeWait })
			dial(from, ways[1], name).again("directly, after it")
			if f := one.flow(from, ways[1]); f != nil {
				t.Errorf("the later one went the long way: %v", f)
			}
		}
	}
}
