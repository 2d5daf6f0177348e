// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Inheritance is how the names of all files begin that outlive a process, see [Sockets.Files].
const Inheritance = "dns/"

// inboxKind is the kind of an inbox in its name. Its number is to be changed when the layout of inboxMemory is.
const inboxKind = "inbox2"

func fileName(kind string, a netip.AddrPort, index int) string {
	return fmt.Sprintf("%s%s/%s/%d", Inheritance, kind, a, index)
}

// Files are what the next process needs to answer in the place of this one, by names that say what each is: "dns/udp/10.96.0.10:53/0" is the first UDP
// socket of an address, of which there may be several, "dns/inbox2/10.96.0.10:53/0" the memory of what was received there and is not answered, and
// "dns/tcp/10.96.0.10:53/0" the TCP listener. They remain the Sockets' own.
func (s *Sockets) Files() map[string]syscall.Conn {
	files := make(map[string]syscall.Conn)
	for _, u := range s.udp {
		a, i := localOf(u.conn), 0
		for files[fileName("udp", a, i)] != nil {
			i++
		}
		files[fileName("udp", a, i)], files[fileName(inboxKind, a, i)] = u.conn, u.inbox
	}
	for _, l := range s.tcp {
		files[fileName("tcp", l.Addr().(*net.TCPAddr).AddrPort(), 0)] = l
	}
	return files
}

func localOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// ListenInherited is [Server.Listen] for a process that has inherited [Sockets.Files] of another one, which has ended: it uses what is there for the
// addresses, however many sockets there are, since queries may wait in each, and opens what is missing. It takes over the files and closes those that
// are not wanted.
func (s *Server) ListenInherited(addrs []netip.AddrPort, files map[string]*os.File) (*Sockets, error) {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	n := s.options.UDPSockets
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	sockets := new(Sockets)
	for _, a := range addrs {
		if err := sockets.open(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), n, files); err != nil {
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

// open opens an address's sockets, n for UDP and one for TCP, or uses those that are there.
func (s *Sockets) open(a netip.AddrPort, n int, files map[string]*os.File) error {
	if !a.IsValid() || a.Addr().IsUnspecified() {
		return errors.New("want a specific address")
	}
	had := len(s.udp)
	for f := files[fileName("udp", a, 0)]; f != nil; f = files[fileName("udp", a, len(s.udp)-had)] {
		if err := s.inheritUDP(a, f, files[fileName(inboxKind, a, len(s.udp)-had)]); err != nil {
			return fmt.Errorf("use %s: %w", f.Name(), err)
		}
	}
	if len(s.udp) == had {
		// The first socket decides the port if it is 0, for TCP and the others to follow.
		for range n {
			if err := s.openUDP(a); err != nil {
				return err
			}
			a = localOf(s.udp[had].conn)
		}
	}
	f := files[fileName("tcp", a, 0)]
	if f == nil {
		return s.openTCP(a)
	}
	l, err := net.FileListener(f)
	if err == nil && (l.Addr().Network() != "tcp" || l.Addr().(*net.TCPAddr).AddrPort() != a) {
		err = fmt.Errorf("it is %s %s", l.Addr().Network(), l.Addr())
		l.Close()
	}
	if err != nil {
		return fmt.Errorf("use %s: %w", f.Name(), err)
	}
	s.tcp = append(s.tcp, l.(*net.TCPListener))
	return nil
}

// inheritUDP adds a socket, with the inbox if it is one. Without, the process before has ended before it received anything.
func (s *Sockets) inheritUDP(a netip.AddrPort, f, inbox *os.File) error {
	c, err := net.FilePacketConn(f)
	if err != nil {
		return err
	}
	if c.LocalAddr().Network() != "udp" || localOf(c.(*net.UDPConn)) != a {
		c.Close()
		return fmt.Errorf("it is %s %s", c.LocalAddr().Network(), c.LocalAddr())
	}
	if inbox == nil {
		return s.addUDP(c.(*net.UDPConn), nil)
	}
	own, err := copyInbox(inbox)
	if err != nil {
		c.Close()
		return err
	}
	return s.addUDP(c.(*net.UDPConn), own)
}

// copyInbox is another descriptor for the same memory.
func copyInbox(f *os.File) (*os.File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("use inbox: %w", err)
	}
	if want := int64(unsafe.Sizeof(inboxMemory{})); info.Size() != want {
		return nil, fmt.Errorf("use inbox: it has %d octets, not %d", info.Size(), want)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("use inbox: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
