// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bodyTimeout is how long a message may take over TCP once its length is known, and an answer to be taken.
	bodyTimeout = 3 * time.Second
	// pipeline bounds the queries of one connection that are being answered; further ones are not read.
	pipeline = 64
)

// conns counts the open TCP connections, all together and those of each client.
type conns struct {
	most, mostOfOne int

	mu      sync.Mutex
	open    int
	clients map[netip.Addr]int
	refused uint64
}

// add counts a new connection, unless there are too many.
func (c *conns) add(client netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open >= c.most || c.clients[client] >= c.mostOfOne {
		c.refused++
		return false
	}
	if c.clients == nil {
		c.clients = make(map[netip.Addr]int)
	}
	c.open++
	c.clients[client]++
	return true
}

func (c *conns) remove(client netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.clients[client]--; c.clients[client] == 0 {
		delete(c.clients, client)
	}
}

// count is how many are open and how many have been refused.
func (c *conns) count() (open int, refused uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open, c.refused
}

func (s *Server) serveTCP(ctx context.Context, l *net.TCPListener) {
	local := l.Addr().(*net.TCPAddr).AddrPort()
	stats := s.newStats("tcp", local)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EINVAL) { // shut down by GiveBack
				return
			}
			s.log.Warn("accept connection", "addr", local, "err", err)
			if !sleep(ctx, 10*time.Millisecond) {
				return
			}
			continue
		}
		client := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if !s.conns.add(client) {
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer s.conns.remove(client)
			s.serveConn(ctx, conn, client, stats)
		})
	}
}

// serveConn answers the queries of one connection, several at a time and in any order (RFC 7766), and what was asked before the client
// closed its side too.
func (s *Server) serveConn(ctx context.Context, conn *net.TCPConn, client netip.Addr, stats *socketStats) {
	defer conn.Close()
	var (
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
		d.begin(s)
		resp, later := s.handle(d, client, req, out)
		if later == nil {
			d.sent(s.now())
			write(resp)
			continue
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			// What is said when this process ends is no answer: on a connection that was closed the client asks again.
			if resp := later(ctx, nil); ctx.Err() == nil {
				write(resp)
			}
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
