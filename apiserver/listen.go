// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// joined is several listeners as one, because the library serves one. Its
// address is that of the first.
type joined struct {
	listeners []net.Listener
	conns     chan net.Conn
	failed    chan error
	closed    chan struct{}
	once      sync.Once
}

var _ net.Listener = (*joined)(nil)

// join starts to accept on all listeners, which then belong to the result.
func join(listeners ...net.Listener) *joined {
	j := &joined{
		listeners: listeners,
		conns:     make(chan net.Conn),
		failed:    make(chan error, len(listeners)),
		closed:    make(chan struct{}),
	}
	for _, l := range listeners {
		go j.accept(l)
	}
	return j
}

// accept hands over the connections of one listener until it is closed. A
// passing error, such as too many open files, is the server's to retry.
func (j *joined) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			select {
			case j.failed <- err:
			case <-j.closed:
				return
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		select {
		case j.conns <- conn:
		case <-j.closed:
			conn.Close()
			return
		}
	}
}

// Accept returns the next connection of any of the listeners.
func (j *joined) Accept() (net.Conn, error) {
	select {
	case conn := <-j.conns:
		return conn, nil
	case err := <-j.failed:
		return nil, err
	case <-j.closed:
		return nil, net.ErrClosed
	}
}

// Close closes all listeners.
func (j *joined) Close() error {
	var err error
	j.once.Do(func() {
		close(j.closed)
		for _, l := range j.listeners {
			err = errors.Join(err, l.Close())
		}
	})
	return err
}

// Addr is the address of the first listener.
func (j *joined) Addr() net.Addr { return j.listeners[0].Addr() }

// inProcess is a listener that only this process can reach: every Dial makes a
// pair of connected sockets, of which the server gets one. It needs no address,
// so it works in any network namespace.
type inProcess struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

var _ net.Listener = (*inProcess)(nil)

func newInProcess() *inProcess {
	return &inProcess{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept returns the server's end of the next dialled pair.
func (l *inProcess) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close refuses all further dials.
func (l *inProcess) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr is an address for messages; nothing listens there.
func (l *inProcess) Addr() net.Addr { return loopbackAddr }

// Dial connects to the server; network and address are not looked at.
func (l *inProcess) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server, err := socketPair()
	if err != nil {
		return nil, err
	}
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		err = &net.OpError{Op: "dial", Net: "in-process", Err: net.ErrClosed}
	case <-ctx.Done():
		err = ctx.Err()
	}
	client.Close()
	server.Close()
	return nil, err
}

// loopbackAddr is what both ends of a pair give as their address.
var loopbackAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}

// pairedConn is one end of a socket pair. The library looks for an IP address
// in the peer's name, and a socket pair has no name.
type pairedConn struct{ net.Conn }

func (pairedConn) LocalAddr() net.Addr  { return loopbackAddr }
func (pairedConn) RemoteAddr() net.Addr { return loopbackAddr }

// socketPair makes two connected stream sockets.
func socketPair() (client, server net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "in-process")
		conn, connErr := net.FileConn(file)
		err = errors.Join(err, connErr, file.Close())
		if connErr == nil {
			conns[i] = pairedConn{conn}
		}
	}
	if err != nil {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
		return nil, nil, fmt.Errorf("wrap socket pair: %w", err)
	}
	return conns[0], conns[1], nil
}
