// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// AskTimeout bounds one [Host.Ask]. It is long because it only ever ends a
// request that is lost: one that is refused ends at once.
const AskTimeout = 3 * time.Second

// Echo starts a server on the host at a literal address and port (0: any), for
// the network "tcp" or "udp", and returns the address with the port it got. It
// answers every line (TCP) or datagram (UDP) with "NAME CLIENT\n": the host's
// name and the address and port from which it saw the request come. It ends with
// the test.
func (h *Host) Echo(network, address string) netip.AddrPort {
	h.t.Helper()
	return h.EchoAs(h.Name, network, address)
}

// EchoAs is [Host.Echo] under another name, for several servers on one host. With
// an empty name, a TCP server answers by the address and port that was asked.
func (h *Host) EchoAs(name, network, address string) netip.AddrPort {
	h.t.Helper()
	switch network {
	case "tcp":
		listener, err := h.NS.Listen(network, address)
		h.ok(err)
		serveTCP(h, listener, name)
		return listener.Addr().(*net.TCPAddr).AddrPort()
	case "udp":
		conn, err := h.NS.ListenPacket(network, address)
		h.ok(err)
		serveUDP(h, conn, name)
		return conn.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	h.t.Fatalf("echo: network %q, want tcp or udp", network)
	return netip.AddrPort{}
}

// serveTCP answers until the test ends, and then closes the connections that are
// still open and waits for their goroutines.
func serveTCP(h *Host, listener net.Listener, name string) {
	var (
		mu    sync.Mutex
		conns = map[net.Conn]bool{}
		all   sync.WaitGroup
	)
	h.t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			mu.Lock()
			conns[conn] = true
			mu.Unlock()
			all.Go(func() {
				answerLines(conn, name)
				mu.Lock()
				delete(conns, conn)
				mu.Unlock()
			})
		}
	})
}

func answerLines(conn net.Conn, name string) {
	defer conn.Close()
	if name == "" {
		name = conn.LocalAddr().String()
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if _, err := fmt.Fprintf(conn, "%s %s\n", name, conn.RemoteAddr()); err != nil {
			return
		}
	}
}

func serveUDP(h *Host, conn net.PacketConn, name string) {
	var done sync.WaitGroup
	h.t.Cleanup(func() {
		conn.Close()
		done.Wait()
	})
	done.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			_, client, err := conn.ReadFrom(buf)
			if err != nil {
				return // closed
			}
			fmt.Fprintf(writerTo{conn, client}, "%s %s\n", name, client)
		}
	})
}

// writerTo writes each chunk as one datagram to a client.
type writerTo struct {
	conn   net.PacketConn
	client net.Addr
}

func (w writerTo) Write(p []byte) (int, error) { return w.conn.WriteTo(p, w.client) }

// Answer is what an echo server said.
type Answer struct {
	Name   string         // of the server
	Client netip.AddrPort // as the server saw it
}

// Ask sends one request from the host to an echo server, from the source
// address from (an address, or an address and port; empty: the kernel chooses),
// and returns the answer. It may be used by several goroutines.
func (h *Host) Ask(network, from string, to netip.AddrPort) (Answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), AskTimeout)
	defer cancel()
	conn, err := h.Dial(ctx, network, from, to)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	return AskOn(conn)
}

// Dial connects from the host, with a source as for [Host.Ask].
func (h *Host) Dial(ctx context.Context, network, from string, to netip.AddrPort) (net.Conn, error) {
	source, err := parseSource(from)
	if err != nil {
		return nil, err
	}
	return h.NS.DialFrom(ctx, network, source, to.String())
}

func parseSource(from string) (netip.AddrPort, error) {
	if from == "" {
		return netip.AddrPort{}, nil
	}
	if addr, err := netip.ParseAddr(from); err == nil {
		return netip.AddrPortFrom(addr, 0), nil
	}
	return netip.ParseAddrPort(from)
}

// AskOn sends one request on a connection that is open already.
func AskOn(conn net.Conn) (Answer, error) {
	if err := conn.SetDeadline(time.Now().Add(AskTimeout)); err != nil {
		return Answer{}, err
	}
	if _, err := conn.Write([]byte("?\n")); err != nil {
		return Answer{}, err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return Answer{}, err
	}
	name, client, _ := strings.Cut(strings.TrimSpace(line), " ")
	addr, err := netip.ParseAddrPort(client)
	if err != nil {
		return Answer{}, fmt.Errorf("parse echo answer %q: %w", line, err)
	}
	return Answer{Name: name, Client: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())}, nil
}

func ipnet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
