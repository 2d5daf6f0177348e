// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
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
	udp   []udpSocket
	tcp   []*net.TCPListener
	lacks error // why there is no sender, of the first one of which there is none
}

type udpSocket struct {
	conn   *net.UDPConn
	inbox  *os.File
	sender *os.File // nil if none could be opened
}

// Listen opens sockets in the calling thread's network namespace: for every address some for UDP, spread over by the
// kernel, and one for TCP. The addresses need not be on an interface (yet); they must be specific, because an answer has to
// come from the address that was asked. If one cannot be opened, none is.
func (s *Server) Listen(addrs []netip.AddrPort) (*Sockets, error) {
	return s.ListenInherited(addrs, nil)
}

// openUDP opens one more socket for an address.
func (s *Sockets) openUDP(a netip.AddrPort) error {
	c, err := listenConfig.ListenPacket(context.Background(), "udp"+family(a), a.String())
	if err != nil {
		return err
	}
	return s.addUDP(c.(*net.UDPConn), nil)
}

// addUDP adds a socket with its inbox, which it makes if there is none. It takes over both.
func (s *Sockets) addUDP(conn *net.UDPConn, inbox *os.File) (err error) {
	if inbox == nil {
		if inbox, err = newInboxFile(); err != nil {
			conn.Close()
			return err
		}
	}
	sender, err := openSender(localOf(conn))
	if s.lacks == nil {
		s.lacks = err
	}
	s.udp = append(s.udp, udpSocket{conn, inbox, sender})
	return nil
}

func (s *Sockets) openTCP(a netip.AddrPort) error {
	l, err := listenConfig.Listen(context.Background(), "tcp"+family(a), a.String())
	if err != nil {
		return err
	}
	s.tcp = append(s.tcp, l.(*net.TCPListener))
	return nil
}

func family(a netip.AddrPort) string {
	if a.Addr().Is4() {
		return "4"
	}
	return "6"
}

var listenConfig = net.ListenConfig{Control: control}

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
			askBuffer(int(fd), unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, readBuffer)
		}
	})
	return errors.Join(outer, err)
}

// askBuffer asks for a buffer of a size, by an option that takes a privilege, or else by the usual one. Less is no error: others get what the system allows.
func askBuffer(fd, force, usual, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, usual, size)
	}
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
		_ = u.sender.Close() // of nil, an error
	}
	for _, l := range s.tcp {
		l.Close()
	}
}

// ServeSockets serves on sockets that are open, until the context ends, which is no error. It closes them.
func (s *Server) ServeSockets(ctx context.Context, sockets *Sockets) error {
	if sockets.lacks != nil {
		s.log.Warn("answers leave by the sockets that questions come in by, which costs more", "err", sockets.lacks)
	}
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
