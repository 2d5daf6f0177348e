// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// copies are what a holder has of a server's sockets.
func copies(t *testing.T, s *Sockets) map[string]*os.File {
	t.Helper()
	out := make(map[string]*os.File)
	for name, f := range s.Files() {
		raw, err := f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		copied := -1
		if err := errors.Join(raw.Control(func(fd uintptr) {
			copied, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		}), err); err != nil {
			t.Fatal(err)
		}
		out[name] = os.NewFile(uintptr(copied), name)
	}
	return out
}

func isClosed(f *os.File) bool {
	_, err := f.Stat()
	return errors.Is(err, os.ErrClosed)
}

// Queries that arrive while nobody answers are answered by the next server on the same sockets, over both transports and families, each from where it waits.
func TestListenInherited(t *testing.T) {
	first := dual(t, func(o *Options) { o.UDPSockets = 3 })
	sockets := listen(t, first, "127.0.0.1", "::1")
	addrs := sockets.Addrs()
	var want []string
	for _, a := range addrs {
		for _, n := range []string{"dns/tcp/%/0", "dns/udp/%/0", "dns/udp/%/1", "dns/udp/%/2", "dns/inbox2/%/0", "dns/inbox2/%/1", "dns/inbox2/%/2"} {
			want = append(want, strings.ReplaceAll(n, "%", a.String()))
		}
	}
	if got := slices.Sorted(maps.Keys(sockets.Files())); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Fatalf("the files are %q, want %q", got, want)
	}
	for round := range 3 {
		held := copies(t, sockets)
		sockets.Close()
		var conns []*mdns.Conn
		for _, a := range addrs {
			for range 20 {
				for _, network := range []string{"udp", "tcp"} {
					conn, err := net.Dial(network, a.String())
					if err != nil {
						t.Fatalf("round %d: %v", round, err)
					}
					defer conn.Close()
					conn.SetDeadline(time.Now().Add(20 * time.Second))
					c := &mdns.Conn{Conn: conn}
					if err := c.WriteMsg(new(mdns.Msg).SetQuestion("orders.shop.svc.cluster.local.", typeA)); err != nil {
						t.Fatal(err)
					}
					conns = append(conns, c)
				}
			}
		}
		next := dual(t, func(o *Options) { o.UDPSockets = 1 })
		var err error
		if sockets, err = next.ListenInherited(addrs, held); err != nil {
			t.Fatal(err)
		}
		for name, f := range held {
			if !isClosed(f) {
				t.Errorf("%s is still open", name)
			}
		}
		if got := slices.Sorted(maps.Keys(sockets.Files())); len(got) != len(want) {
			t.Errorf("round %d: the next one's files are %q", round, got)
		}
		again := copies(t, sockets)
		stop := serve(t, next, sockets)
		for _, c := range conns {
			if m, err := c.ReadMsg(); err != nil || len(m.Answer) != 1 {
				t.Errorf("round %d: %s %s: %v, %v", round, c.RemoteAddr().Network(), c.RemoteAddr(), m, err)
			}
		}
		stop()
		if sockets, err = next.ListenInherited(addrs, again); err != nil {
			t.Fatal(err)
		}
	}
	sockets.Close()
}

// What is missing is opened, and what is not wanted is closed.
func TestListenInheritedInPart(t *testing.T) {
	s := dual(t, func(o *Options) { o.UDPSockets = 2 })
	for _, missing := range []string{"dns/tcp/", "dns/udp/"} {
		sockets := listen(t, s, "127.0.0.1", "127.0.0.1")
		wanted, other := sockets.Addrs()[0], sockets.Addrs()[1]
		held := copies(t, sockets)
		for name, f := range held {
			if strings.HasPrefix(name, missing+wanted.String()) {
				f.Close()
				delete(held, name)
			}
		}
		sockets.Close()
		sockets, err := s.ListenInherited([]netip.AddrPort{wanted}, held)
		if err != nil {
			t.Fatal(err)
		}
		if files := sockets.Files(); len(files) != 5 {
			t.Errorf("without %s: %q", missing, slices.Sorted(maps.Keys(files)))
		}
		sockets.Close()
		// If the other address's sockets were open, it could not be listened on.
		l, err := net.Listen("tcp", other.String())
		if err != nil {
			t.Errorf("what is not wanted is open: %v", err)
			continue
		}
		l.Close()
	}
}

// A query that waits for the kernel when its server ends, in whatever way, is answered by the next one, once that knows.
func TestInheritWaiting(t *testing.T) {
	first := newCluster(t, Options{Wait: time.Hour, UDPSockets: 2})
	sockets := listen(t, first.Server, "127.0.0.1")
	stop := serve(t, first.Server, sockets)
	addrs, held := sockets.Addrs(), copies(t, sockets)
	const clients = 20
	var conns []net.Conn
	for range clients {
		conn, err := net.Dial("udp", addrs[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(message(t, nil)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for first.gate.waiting.Load() < clients {
		time.Sleep(time.Millisecond) // until all have arrived
	}
	stop()
	next := dual(t, nil)
	sockets, err := next.ListenInherited(addrs, held)
	if err != nil {
		t.Fatal(err)
	}
	defer serve(t, next, sockets)()
	deadline := time.Now().Add(20 * time.Second)
	for _, conn := range conns {
		conn.SetDeadline(deadline)
		if m, err := (&mdns.Conn{Conn: conn}).ReadMsg(); err != nil || !m.Response {
			t.Errorf("%v, %v", m, err)
		}
	}
}

// A file that is not what its name says is an error, and nothing stays open.
func TestListenInheritedRefuses(t *testing.T) {
	s := dual(t, func(o *Options) { o.UDPSockets = 1 })
	sockets := listen(t, s, "127.0.0.1")
	defer sockets.Close()
	a := sockets.Addrs()[0]
	for i, wrong := range []map[string]string{
		{"dns/udp/%/0": "dns/tcp/%/0"},
		{"dns/tcp/%/0": "dns/udp/%/0"},
		{"dns/udp/127.0.0.9:53/0": "dns/udp/%/0"},
		{"dns/tcp/127.0.0.9:53/0": "dns/tcp/%/0"},
		{"dns/udp/%/0": ""},
		{"dns/udp/%/0": "dns/udp/%/0", "dns/inbox2/%/0": ""},
	} {
		addr := a
		have := copies(t, sockets)
		files := make(map[string]*os.File)
		for name, of := range wrong {
			if strings.Contains(name, "127.0.0.9") {
				addr = netip.MustParseAddrPort("127.0.0.9:53")
			}
			if of == "" {
				files[strings.ReplaceAll(name, "%", a.String())] = devNull(t)
				continue
			}
			files[strings.ReplaceAll(name, "%", a.String())] = have[strings.ReplaceAll(of, "%", a.String())]
		}
		got, err := s.ListenInherited([]netip.AddrPort{addr}, files)
		if err == nil {
			got.Close()
			t.Errorf("%d: no error", i)
		}
		for name, f := range files {
			if !isClosed(f) {
				t.Errorf("%d: %s is still open", i, name)
			}
		}
		for _, f := range have {
			f.Close()
		}
	}
	if _, err := s.ListenInherited([]netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:53")}, nil); err == nil {
		t.Error("an unspecified address is no error")
	}
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := s.ListenInherited([]netip.AddrPort{taken.Addr().(*net.TCPAddr).AddrPort()}, nil); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a taken address: %v", err)
	}
}

func devNull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
