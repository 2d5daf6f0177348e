// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/testnet"
)

// kernelAddr is an address as the kernel writes it, in room for the larger kind.
func kernelAddr(a netip.AddrPort) *unix.RawSockaddrInet6 {
	out := new(unix.RawSockaddrInet6)
	port := a.Port()<<8 | a.Port()>>8
	if a.Addr().Is4() {
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(out)) = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: a.Addr().As4()}
	} else {
		*out = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: a.Addr().As16()}
	}
	return out
}

// Two hosts, and on the first an outbox with its socket for each family.
func outboxes(t *testing.T) (node, pod *testnet.Host, ends []outboxEnd) {
	t.Helper()
	node, pod = nodeAndPod(t)
	for _, a := range []string{"172.30.0.11:53", "[fd00:30::11]:53"} {
		e := outboxEnd{local: netip.MustParseAddrPort(a)}
		node.Do(func() (err error) {
			e.sender, err = openSender(e.local)
			return err
		})
		var err error
		if e.out, err = openOutbox(e.local.Addr()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			e.out.close()
			e.sender.Close()
		})
		e.client = netip.AddrPortFrom(netip.MustParseAddr(strings.Replace(e.local.Addr().String(), "11", "12", 1)), 0)
		pod.Do(func() (err error) {
			e.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(e.client))
			return err
		})
		t.Cleanup(func() { e.conn.Close() })
		e.client = localOf(e.conn)
		ends = append(ends, e)
	}
	return node, pod, ends
}

// outboxEnd is an outbox of an address, its socket, and a client.
type outboxEnd struct {
	local, client netip.AddrPort
	sender        *os.File
	out           *outbox
	conn          *net.UDPConn
}

func (e outboxEnd) flush(t *testing.T) {
	t.Helper()
	raw, err := e.sender.SyscallConn()
	if err == nil {
		err = e.out.flush(raw)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Answers come from the address that was asked, and one that cannot be sent holds up none. Nothing waits for the socket that they leave by, and nothing arrives at it.
func TestOutbox(t *testing.T) {
	_, pod, ends := outboxes(t)
	for _, e := range ends {
		if err := e.sender.SetDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
			t.Errorf("%s: the socket for answers is waited for: %v", e.local, err)
		}
		e.out.put(kernelAddr(netip.AddrPortFrom(e.client.Addr(), 0)), []byte("to no port"))
		e.out.put(kernelAddr(e.client), []byte("one"))
		e.out.put(kernelAddr(e.client), append(e.out.next()[:0], "two"...))
		e.flush(t)
		if e.out.unsent != 1 {
			t.Errorf("%s: %d of three answers are not sent, want one", e.local, e.out.unsent)
		}
		e.out.put(kernelAddr(e.client), []byte("three"))
		e.flush(t)
		if e.out.unsent != 0 {
			t.Errorf("%s: an answer is not sent", e.local)
		}
		e.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		for _, want := range []string{"one", "two", "three"} {
			buf := make([]byte, 100)
			n, from, err := e.conn.ReadFromUDPAddrPort(buf)
			if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); err != nil || string(buf[:n]) != want || from != e.local {
				t.Errorf("%q from %s, %v; want %q from %s", buf[:n], from, err, want, e.local)
			}
		}
		// A closed port: the kernel says so, which it would not if the socket took what comes to its port.
		conn, err := pod.Dial(t.Context(), "udp", "", e.local)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		conn.Write([]byte("question"))
		if _, err := conn.Read(make([]byte, 10)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: a question that nobody serves: %v", e.local, err)
		}
		conn.Close()
	}
}

// While a host that has gone is being looked for, its answers fill the socket. They are given up, and the next ones are sent when there is room.
func TestOutboxFull(t *testing.T) {
	_, _, ends := outboxes(t)
	for _, e := range ends {
		if err := unix.SetsockoptInt(int(e.sender.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil { // the least that there is
			t.Fatal(err)
		}
		gone := kernelAddr(netip.AddrPortFrom(netip.MustParseAddr(strings.Replace(e.local.Addr().String(), "11", "99", 1)), 1024))
		for range batchSize {
			e.out.put(gone, make([]byte, 1000))
		}
		if e.flush(t); e.out.unsent == 0 || e.out.unsent >= batchSize {
			t.Errorf("%s: %d of %d answers are not sent into a small buffer", e.local, e.out.unsent, batchSize)
		}
		e.out.put(gone, make([]byte, 1000))
		if raw, err := e.sender.SyscallConn(); err != nil {
			t.Fatal(err)
		} else if err := raw.Control(func(fd uintptr) {
			_, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&e.out.headers[0])), 1, unix.MSG_DONTWAIT, 0, 0)
			if errno != unix.EAGAIN {
				t.Errorf("%s: the socket is not full: %v", e.local, errno)
			}
		}); err != nil {
			t.Fatal(err)
		}
		e.out.n = 0
		received := make(chan error, 1)
		go func() {
			e.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			_, err := e.conn.Read(make([]byte, 10))
			received <- err
		}()
		for waiting := true; waiting; {
			e.out.put(kernelAddr(e.client), []byte("answer"))
			e.flush(t) // which waits for room
			select {
			case err := <-received:
				if err != nil {
					t.Errorf("%s: no answer arrives: %v", e.local, err)
				}
				waiting = false
			default:
			}
		}
	}
}

// TestWithoutSender: where something else has the port for itself at every address, answers leave by the socket that questions come in by, as right as otherwise.
func TestWithoutSender(t *testing.T) {
	node, pod := nodeAndPod(t)
	addrs := []netip.AddrPort{netip.MustParseAddrPort("172.30.0.11:53"), netip.MustParseAddrPort("[fd00:30::11]:53")}
	s := dual(t, nil)
	var sockets *Sockets
	node.Do(func() (err error) {
		// It lets others have the port beside it, but only at addresses that say the same.
		other := net.ListenConfig{Control: control}
		for _, a := range []string{"0.0.0.0:53", "[::]:53"} {
			network := "udp4"
			if a[0] == '[' {
				network = "udp6"
			}
			c, err := other.ListenPacket(t.Context(), network, a)
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
		}
		sockets, err = s.Listen(addrs)
		return err
	})
	for _, u := range sockets.udp {
		if u.sender != nil {
			t.Errorf("%s: there is a sender", localOf(u.conn))
		}
	}
	if !errors.Is(sockets.lacks, unix.EADDRINUSE) {
		t.Errorf("why there is none: %v", sockets.lacks)
	}
	defer serve(t, s, sockets)()
	for _, to := range addrs {
		for range 3 {
			asks(t, pod, "udp", to)
		}
	}
}

// TestUnsent: an answer that the kernel does not take, here because the node has no way to who asked, is counted.
func TestUnsent(t *testing.T) {
	node, pod := nodeAndPod(t)
	pod.Addr("eth0", "192.0.2.99/32")
	addr := netip.MustParseAddrPort("172.30.0.11:53")
	s := dual(t, nil)
	var sockets *Sockets
	node.Do(func() (err error) {
		sockets, err = s.Listen([]netip.AddrPort{addr})
		return err
	})
	defer serve(t, s, sockets)()
	query, err := new(mdns.Msg).SetQuestion("orders.shop.svc.cluster.local.", typeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	pod.Do(func() error {
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.99:0")), net.UDPAddrFromAddrPort(addr))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(query)
		return err
	})
	for limit := time.Now().Add(10 * time.Second); gather(t, s)["fairlead_dns_unsent_total{server=dns://172.30.0.11:53}"] != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("not counted: %v", gather(t, s))
		}
	}
	asks(t, pod, "udp", addr)
}
