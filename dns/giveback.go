// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// giveBackLook is the pause between two looks whether everything is answered.
const giveBackLook = 2 * time.Millisecond

// GiveBack ends the serving of sockets without losing a question: new ones go where they would go without the sockets, and what has arrived is answered. It is
// for sockets that nobody serves afterwards, and returns when nothing is left to answer and no TCP connection is open, or when the context ends.
// [Server.ServeSockets] goes on until then.
//
// Whoever decides by an open socket where a packet goes, as the node's rules do, has to see none any more while its questions can still be read. A UDP socket
// that is connected is nobody's but its peer's, and keeps what it has; its peer here is itself. A TCP listener is shut down once no connection waits to be accepted; those that
// are open stay.
func (s *Server) GiveBack(ctx context.Context, sockets *Sockets) error {
	for _, u := range sockets.udp {
		if err := connectToSelf(u.conn); err != nil {
			return fmt.Errorf("give back UDP socket %s: %w", u.conn.LocalAddr(), err)
		}
	}
	for _, l := range sockets.tcp {
		for waiting(l) > 0 && sleep(ctx, giveBackLook) {
		}
		if err := onDescriptor(l, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) }); err != nil {
			return fmt.Errorf("give back TCP socket %s: %w", l.Addr(), err)
		}
	}
	for quiet := 0; quiet < 2; { // a question that was just read is in neither place for a moment
		open, _ := s.conns.count()
		quiet++
		if open > 0 || s.late.Load() > 0 || sockets.unread() > 0 {
			quiet = 0
		}
		if !sleep(ctx, giveBackLook) {
			break
		}
	}
	return nil
}

// connectToSelf makes a socket its own peer.
func connectToSelf(c *net.UDPConn) error {
	return onDescriptor(c, func(fd int) error {
		own, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		return unix.Connect(fd, own)
	})
}

// waiting is how many connections of a listener wait to be accepted.
func waiting(l *net.TCPListener) (n uint32) {
	_ = onDescriptor(l, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			n = info.Unacked // of a listener, the length of its queue
		}
		return err
	})
	return n
}

// unread is how many octets wait in UDP sockets.
func (s *Sockets) unread() (n int) {
	for _, u := range s.udp {
		_ = onDescriptor(u.conn, func(fd int) error {
			size, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
			n += size
			return err
		})
	}
	return n
}

func onDescriptor(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}
