// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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

const (
	// bodyTimeout is how long a message may take over TCP once its length is known, and an answer to be taken.
	bodyTimeout = 3 * time.Second
	// pipeline bounds the queries of one connection that are being answered; further ones are not read.
	pipeline = 64
	// readBuffer is asked of the kernel for each UDP socket, in octets: what comes while the process is replaced waits there, which are the queries of a
	// second or so.
	readBuffer = 16 << 20
)

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
	if s.forward != nil {
		for _, u := range s.options.Upstreams {
			if slices.Contains(sockets.Addrs(), u) {
				sockets.Close()
				return nil, fmt.Errorf("upstream %s is this server itself: name the resolver that it stands before", u)
			}
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

// serveUDP answers on one socket, first what a process before this one has left unanswered. What can be answered at once is, on this goroutine and
// without allocation, a batch of queries at a time.
func (s *Server) serveUDP(ctx context.Context, u udpSocket) error {
	raw, err := u.conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("serve %s: %w", u.conn.LocalAddr(), err)
	}
	in, err := openInbox(u.inbox)
	if err != nil {
		return err
	}
	defer in.close()
	out, err := openOutbox()
	if err != nil {
		return err
	}
	defer out.close()
	local := u.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	d := s.desk(s.newStats("udp", local))
	var wg sync.WaitGroup
	defer wg.Wait()
	answer := func(from *unix.RawSockaddrInet6, msg []byte) {
		to := address(from)
		resp, later := s.handle(d, to.Addr(), msg, out.next())
		if resp != nil {
			out.put(from, resp)
		}
		if later == nil {
			return
		}
		done := in.wait(from, msg)
		wg.Go(func() {
			defer done()
			if resp := later(ctx, nil); resp != nil {
				u.conn.WriteToUDPAddrPort(resp, to)
			}
		})
	}
	flush := func() error {
		err := out.send(raw)
		d.sent(s.now())
		return err
	}
	for from, msg := range in.left() {
		// The slot is free again at once, so one after the other.
		if answer(from, msg); out.n > 0 {
			if err := flush(); err != nil {
				return closed(ctx, err)
			}
		}
	}
	in.prepare()
	for {
		n, err := in.receive(raw)
		if err != nil {
			if err := closed(ctx, err); err == nil || errors.Is(err, net.ErrClosed) {
				return err
			}
			s.log.Warn("read query", "addr", local, "err", err)
			if !sleep(ctx, 10*time.Millisecond) {
				return nil
			}
			continue
		}
		d.start = s.now()
		for i := range n {
			answer(in.message(i))
		}
		if err := flush(); err != nil {
			return closed(ctx, err)
		}
	}
}

// closed is no error if the socket was closed because the context ended.
func closed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
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

func (s *Server) serveTCP(ctx context.Context, l *net.TCPListener) {
	local := l.Addr().(*net.TCPAddr).AddrPort()
	stats := s.newStats("tcp", local)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Warn("accept connection", "addr", local, "err", err)
			if !sleep(ctx, 10*time.Millisecond) {
				return
			}
			continue
		}
		if s.conns.Add(1) > int64(s.options.MaxConns) {
			s.conns.Add(-1)
			s.connsRefused.Add(1)
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer s.conns.Add(-1)
			s.serveConn(ctx, conn, stats)
		})
	}
}

// serveConn answers the queries of one connection, several at a time and in any order (RFC 7766), and what was asked before the client
// closed its side too.
func (s *Server) serveConn(ctx context.Context, conn *net.TCPConn, stats *socketStats) {
	defer conn.Close()
	var (
		client = conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		d      = s.desk(stats)
		out    = make([]byte, maxUDP)
		places = make(chan struct{}, pipeline)
		mu     sync.Mutex // one answer at a time is written
		wg     sync.WaitGroup
		buf    = make([]byte, 512)
	)
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	write := func(resp []byte) {
		if resp == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		conn.SetWriteDeadline(time.Now().Add(bodyTimeout))
		framed := make([]byte, 2+len(resp))
		binary.BigEndian.PutUint16(framed, uint16(len(resp)))
		copy(framed[2:], resp)
		if _, err := conn.Write(framed); err != nil {
			conn.Close()
		}
	}
	for ctx.Err() == nil {
		req, err := s.readMessage(ctx, conn, buf)
		if err != nil {
			return
		}
		d.start = s.now()
		resp, later := s.handle(d, client, req, out)
		if later == nil {
			d.sent(d.start)
			write(resp)
			continue
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			write(later(ctx, nil))
		})
	}
}

// readMessage reads one message with its length before it. A client may be idle for a while, but not dawdle within a message.
func (s *Server) readMessage(ctx context.Context, conn *net.TCPConn, buf []byte) ([]byte, error) {
	deadline := func(d time.Duration) error {
		conn.SetReadDeadline(time.Now().Add(d))
		return ctx.Err() // if it ended between, the deadline just set would hide it
	}
	var length [2]byte
	if err := deadline(s.options.IdleTimeout); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > len(buf) {
		buf = make([]byte, n)
	}
	if err := deadline(min(bodyTimeout, s.options.IdleTimeout)); err != nil {
		return nil, err
	}
	_, err := io.ReadFull(conn, buf[:n])
	return buf[:n], err
}
