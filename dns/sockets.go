// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readBuffer is asked of the kernel for each UDP socket, in octets: what comes while the process is replaced waits there, which are the queries of a
// second or so.
const readBuffer = 16 << 20

// Sockets are the open sockets of a server.
type Sockets struct {
	udp []udpSocket
	tcp []*net.TCPListener
}

type udpSocket struct {
	conn  *net.UDPConn
	inbox *os.File
}

// Listen opens sockets in the calling thread's network namespace: for every address some for UDP, spread over by the
// kernel, and one for TCP. The addresses need not be on an interface (yet); they must be specific, because an answer has to
// come from the address that was asked. If one cannot be opened, none is.
func (s *Server) Listen(addrs []netip.AddrPort) (*Sockets, error) {
	n := s.options.UDPSockets
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	sockets := new(Sockets)
	for _, a := range addrs {
		if err := sockets.open(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), n); err != nil {
			sockets.Close()
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
	}
	for _, u := range s.Upstreams() {
		if slices.Contains(sockets.Addrs(), u.Addr) {
			sockets.Close()
			return nil, fmt.Errorf("upstream %s is this server itself: name the resolver that it stands before", u.Addr)
		}
	}
	return sockets, nil
}

func (s *Sockets) open(a netip.AddrPort, n int) error {
	if !a.IsValid() || a.Addr().IsUnspecified() {
		return errors.New("want a specific address")
	}
	family := "6"
	if a.Addr().Is4() {
		family = "4"
	}
	config := net.ListenConfig{Control: control}
	// The first socket decides the port if it is 0, for TCP and the others to follow.
	for range n {
		c, err := config.ListenPacket(context.Background(), "udp"+family, a.String())
		if err != nil {
			return err
		}
		conn := c.(*net.UDPConn)
		inbox, err := newInboxFile()
		if err != nil {
			conn.Close()
			return err
		}
		s.udp = append(s.udp, udpSocket{conn, inbox})
		a = netip.AddrPortFrom(a.Addr(), conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	}
	l, err := config.Listen(context.Background(), "tcp"+family, a.String())
	if err != nil {
		return err
	}
	s.tcp = append(s.tcp, l.(*net.TCPListener))
	return nil
}

// control lets a socket be bound to an address that no interface has, and share it with others of its kind.
func control(network, _ string, c syscall.RawConn) error {
	var err error
	outer := c.Control(func(fd uintptr) {
		level, freebind := unix.SOL_IP, unix.IP_FREEBIND
		if network[3] == '6' {
			level, freebind = unix.SOL_IPV6, unix.IPV6_FREEBIND
		}
		if err = unix.SetsockoptInt(int(fd), level, freebind, 1); err == nil && network[:3] == "udp" {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			// Less is no error: privileged processes get it all, others what the system allows.
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, readBuffer)
			}
		}
	})
	return errors.Join(outer, err)
}

// Addrs are the addresses listened on, each once.
func (s *Sockets) Addrs() []netip.AddrPort {
	var out []netip.AddrPort
	for _, l := range s.tcp {
		out = append(out, l.Addr().(*net.TCPAddr).AddrPort())
	}
	return out
}

// Close closes all sockets.
func (s *Sockets) Close() {
	for _, u := range s.udp {
		u.conn.Close()
		u.inbox.Close()
	}
	for _, l := range s.tcp {
		l.Close()
	}
}

// Serve listens on the addresses and serves until the context ends, which is no error.
func (s *Server) Serve(ctx context.Context, addrs []netip.AddrPort) error {
	sockets, err := s.Listen(addrs)
	if err != nil {
		return err
	}
	return s.ServeSockets(ctx, sockets)
}

// ServeSockets serves on sockets that are open, until the context ends, which is no error. It closes them.
func (s *Server) ServeSockets(ctx context.Context, sockets *Sockets) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, u := range sockets.udp {
		wg.Go(func() {
			if err := s.serveUDP(ctx, u); err != nil {
				s.log.Error("socket is not served any more", "addr", u.conn.LocalAddr(), "err", err)
			}
		})
	}
	for _, l := range sockets.tcp {
		wg.Go(func() { s.serveTCP(ctx, l) })
	}
	<-ctx.Done()
	sockets.Close()
	return nil
}

// sleep waits unless the context ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
