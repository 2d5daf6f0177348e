// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// large answers over TCP with nearly as much as a message holds, over UDP with what fits.
func large(n int) script {
	return func(q *mdns.Msg, tcp bool) [][]byte {
		return says(func(m *mdns.Msg) {
			if m.Question[0].Qtype != typeA {
				return
			}
			if !tcp {
				m.Truncated = true
				m.Answer = rrs(m.Question[0].Name + " 60 IN A 192.0.2.66")
				return
			}
			for i := range n {
				m.Answer = append(m.Answer, rr(fmt.Sprintf("%s 60 IN A 10.1.%d.%d", m.Question[0].Name, i>>8, i&255)))
			}
		})(q, tcp)
	}
}

func TestTruncatedGoesOverTCP(t *testing.T) {
	for _, n := range []int{100, 4090} {
		up := newResolver(t, large(n))
		r := start(t, func(o *Options) { o.Timeout = 4 * time.Second }, up)
		for range 2 {
			m := r.ask("big.example.com.", typeA)
			if len(m.Answer) != n || m.Truncated || m.Answer[n-1].(*mdns.A).A.String() != fmt.Sprintf("10.1.%d.%d", (n-1)>>8, (n-1)&255) {
				t.Errorf("%d answers, want %d", len(m.Answer), n)
			}
		}
		if u, v := up.asked[0].Load(), up.asked[1].Load(); u != 1 || v != 1 {
			t.Errorf("asked %d times over UDP and %d over TCP", u, v)
		}
	}
	// What is cut short is not given as if it were whole.
	up := newResolver(t, large(10))
	up.tcp.Close()
	r := start(t, nil, up)
	if m := r.ask("big.example.com.", typeA); m.Rcode != mdns.RcodeServerFailure || len(m.Answer) != 0 {
		t.Errorf("%v", m)
	}
	// A datagram larger than was asked for, of which the end is lost.
	huge := newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte { return large(300)(q, true) })
	r = start(t, func(o *Options) { o.Timeout = 4 * time.Second }, huge)
	if m := r.ask("big.example.com.", typeA); len(m.Answer) != 300 || huge.asked[1].Load() != 1 {
		t.Errorf("%d answers, asked %d times over TCP", len(m.Answer), huge.asked[1].Load())
	}
}

func forceTCP(o *Options) { o.Pools[0].ForceTCP = true }

// askMany asks n questions at a time, and expects an answer to each.
func askMany(t *testing.T, r rig, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			name := fmt.Sprintf("%d.example.com.", i)
			reply, err := r.Ask(context.Background(), question(name, typeA))
			if err != nil {
				t.Error(err)
				return
			}
			if got, want := data(reply.Msg()), "NOERROR "+name+" A 192.0.2.80"; got != want {
				_, text, _ := reply.ExtendedError()
				t.Errorf("got %s (%s)", got, text)
			}
		})
	}
	wg.Wait()
}

// Questions share a connection, and answers come in any order (RFC 7766).
func TestPipelined(t *testing.T) {
	const n = 20
	up := listen(t, "127.0.0.1", addresses, func(r *resolver, conn net.Conn) {
		// The test for loops is one of the questions.
		var qs []*mdns.Msg
		for len(qs) < n+1 {
			q := r.read(conn)
			if q == nil {
				return
			}
			qs = append(qs, q)
		}
		for i := range qs {
			conn.Write(framed(addresses(qs[n-i], true)[0]))
		}
		r.oneByOne(conn, addresses)
	}, nil)
	r := start(t, func(o *Options) { forceTCP(o); o.Timeout = 4 * time.Second }, up)
	askMany(t, r, n)
	r.ask("more.example.com.", typeA)
	if n := up.conns.Load(); n != 1 || up.asked[0].Load() != 0 {
		t.Errorf("%d connections, asked %d times over UDP", n, up.asked[0].Load())
	}
}

// An upstream that closes after each answer, or after the first of several, loses nothing.
func TestClosesAfterEach(t *testing.T) {
	up := listen(t, "127.0.0.1", addresses, func(r *resolver, conn net.Conn) {
		if q := r.read(conn); q != nil {
			conn.Write(framed(addresses(q, true)[0]))
		}
	}, nil)
	r := start(t, func(o *Options) { forceTCP(o); o.Timeout = 4 * time.Second }, up)
	for i := range 3 {
		askMany(t, r, 20)
		r.clock.Add(int64(time.Hour)) // the answers' time is over
		if i == 0 {
			continue
		}
		if s := r.Status()[0]; s.Failed != 0 || s.State != "up" {
			t.Errorf("status %+v", s)
		}
	}
}

// One that hangs up on the questions behind the first is asked them one at a time, and again all at once after a while.
func TestSerial(t *testing.T) {
	var most atomic.Int64 // questions on a connection
	up := listen(t, "127.0.0.1", addresses, func(r *resolver, conn net.Conn) {
		q := r.read(conn)
		if q == nil {
			return
		}
		conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n := int64(1)
		for r.read(conn) != nil {
			n++
		}
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		conn.Write(framed(addresses(q, true)[0]))
	}, nil)
	r := start(t, func(o *Options) { forceTCP(o); o.Timeout, o.Caching.Size = 4*time.Second, -1 }, up).untested()
	for i, want := range []bool{true, false, true} {
		most.Store(0)
		askMany(t, r, 5)
		if got := most.Load() > 1; got != want {
			t.Errorf("%d: %d questions on a connection", i, most.Load())
		}
		if i == 1 {
			r.clock.Add(int64(serialFor))
			u := r.all[0].upstreams[0]
			eventually(t, "all connections end", func() bool {
				u.mu.Lock()
				defer u.mu.Unlock()
				return !slices.ContainsFunc(u.streams, func(l *link) bool { return !l.ended() })
			})
		}
	}
}

// A connection is not idle while an answer may come.
func TestSlowStream(t *testing.T) {
	up := newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte {
		time.Sleep(100 * time.Millisecond)
		return addresses(q, tcp)
	})
	r := start(t, func(o *Options) { forceTCP(o); o.Timeout, o.Pools[0].Expire = 4*time.Second, 10*time.Millisecond }, up).untested()
	want(t, data(r.ask("a.example.com.", typeA)), good)
	if n := up.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// Where a connection is silent, the next question has another one.
func TestSilentStream(t *testing.T) {
	var conns atomic.Int64
	up := listen(t, "127.0.0.1", addresses, func(r *resolver, conn net.Conn) {
		play := addresses
		if conns.Add(1) == 1 {
			play = silent
		}
		r.oneByOne(conn, play)
	}, nil)
	r := start(t, func(o *Options) { forceTCP(o); o.Timeout, o.Pools[0].Expire = 50*time.Millisecond, time.Minute }, up).untested()
	want(t, data(r.ask("a.example.com.", typeA)), good)
	if s := r.Status()[0]; s.Failed != 1 || s.Answered != 1 {
		t.Errorf("status %+v", s)
	}
}

// An idle connection is closed, and the next question opens another one.
func TestIdleConnection(t *testing.T) {
	ended := make(chan struct{}, 10)
	up := listen(t, "127.0.0.1", addresses, func(r *resolver, conn net.Conn) {
		r.oneByOne(conn, addresses)
		ended <- struct{}{}
	}, nil)
	r := start(t, func(o *Options) { forceTCP(o); o.Timeout, o.Pools[0].Expire = 50*time.Millisecond, 50*time.Millisecond }, up)
	r.ask("a.example.com.", typeA)
	<-ended
	want(t, data(r.ask("b.example.com.", typeA)), "NOERROR b.example.com. A 192.0.2.80")
	if n := up.conns.Load(); n < 2 {
		t.Errorf("%d connections", n)
	}
}

// Whatever a connection does, the next upstream answers.
func TestBadStreams(t *testing.T) {
	for name, treat := range map[string]serve{
		"reset": func(r *resolver, conn net.Conn) {
			r.read(conn)
			conn.(*net.TCPConn).SetLinger(0)
		},
		"closes":   func(r *resolver, conn net.Conn) { r.read(conn) },
		"silent":   func(r *resolver, conn net.Conn) { r.oneByOne(conn, silent) },
		"half":     func(r *resolver, conn net.Conn) { q := r.read(conn); sendHalf(q, conn); r.oneByOne(conn, silent) },
		"half end": func(r *resolver, conn net.Conn) { sendHalf(r.read(conn), conn) },
		"garbage": func(r *resolver, conn net.Conn) {
			r.read(conn)
			conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n" + strings.Repeat("x", 20000)))
		},
		"empty": func(r *resolver, conn net.Conn) { r.read(conn); conn.Write([]byte{0, 0}); r.oneByOne(conn, silent) },
		"other id": func(r *resolver, conn net.Conn) {
			r.oneByOne(conn, says(func(m *mdns.Msg) { m.Id++; m.Answer = rrs(m.Question[0].Name + " 60 IN A 203.0.113.66") }))
		},
		"other question": func(r *resolver, conn net.Conn) {
			r.oneByOne(conn, says(func(m *mdns.Msg) { m.Question[0].Name = "evil.example." }))
		},
		"truncated": func(r *resolver, conn net.Conn) { r.oneByOne(conn, says(func(m *mdns.Msg) { m.Truncated = true })) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad, fine := listen(t, "127.0.0.1", silent, treat, nil), newResolver(t, addresses)
			r := start(t, forceTCP, bad, fine)
			for range 3 {
				want(t, data(r.ask("a.example.com.", typeA)), good)
				r.clock.Add(int64(time.Hour))
			}
			if s := r.Status(); s[0].Answered != 0 || s[0].Failed == 0 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func sendHalf(q *mdns.Msg, conn net.Conn) {
	if q != nil {
		b := framed(addresses(q, true)[0])
		conn.Write(b[:len(b)/2])
	}
}

// An upstream that does not know EDNS is asked without, and for a while not troubled with it again (RFC 6891).
func TestNoEDNS(t *testing.T) {
	for name, refuse := range map[string]func(m *mdns.Msg){
		"formerr":      func(m *mdns.Msg) { m.Rcode = mdns.RcodeFormatError },
		"bare formerr": func(m *mdns.Msg) { m.Rcode, m.Question = mdns.RcodeFormatError, nil },
		"notimp":       func(m *mdns.Msg) { m.Rcode = mdns.RcodeNotImplemented },
		"badvers":      func(m *mdns.Msg) { m.SetEdns0(512, false); m.Rcode = mdns.RcodeBadVers },
	} {
		t.Run(name, func(t *testing.T) {
			up := newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte {
				if q.IsEdns0() != nil {
					return says(refuse)(q, tcp)
				}
				return addresses(q, tcp)
			})
			r := start(t, nil, up).untested()
			ask := func(name string) int64 {
				before := up.asked[0].Load()
				want(t, data(r.ask(name, typeA)), "NOERROR "+name+" A 192.0.2.80")
				return up.asked[0].Load() - before
			}
			if n := ask("a.example.com."); n != 2 {
				t.Errorf("asked %d times", n)
			}
			if n := ask("b.example.com."); n != 1 {
				t.Errorf("asked %d times, though it is known", n)
			}
			r.clock.Add(int64(ednsAgain))
			if n := ask("c.example.com."); n != 2 {
				t.Errorf("asked %d times after a long time", n)
			}
		})
	}
	// One that does not like the question itself keeps its EDNS.
	up := newResolver(t, says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeFormatError }))
	r := start(t, nil, up).untested()
	if m := r.ask("a.example.com.", typeA); m.Rcode != mdns.RcodeFormatError {
		t.Errorf("%v", m)
	}
	r.ask("b.example.com.", typeA)
	if n := up.asked[0].Load(); n != 4 {
		t.Errorf("asked %d times, want 4", n)
	}
}

// DNS over TLS: the certificate must be for the name, or the address, and signed by somebody trusted.
func TestTLS(t *testing.T) {
	named, namedRoots := certificate(t, "dns.example")
	addressed, addressedRoots := certificate(t, "127.0.0.1", "::1")
	for _, tt := range []struct {
		name, ip, server string
		right            bool
		why              string
		setup            func() (*resolver, Pool)
	}{
		{name: "name", ip: "127.0.0.1", server: "dns.example", right: true, setup: func() (*resolver, Pool) {
			return listen(t, "127.0.0.1", addresses, nil, named), Pool{Roots: namedRoots}
		}},
		{name: "address", right: true, setup: func() (*resolver, Pool) {
			return listen(t, "127.0.0.1", addresses, nil, addressed), Pool{Roots: addressedRoots}
		}},
		{name: "address 6", right: true, setup: func() (*resolver, Pool) {
			return listen(t, "::1", addresses, nil, addressed), Pool{Roots: addressedRoots}
		}},
		{name: "other name", server: "other.example", why: "valid for dns.example, not other.example", setup: func() (*resolver, Pool) {
			return listen(t, "127.0.0.1", addresses, nil, named), Pool{Roots: namedRoots}
		}},
		{name: "name without address", why: "doesn't contain any IP SANs", setup: func() (*resolver, Pool) {
			return listen(t, "127.0.0.1", addresses, nil, named), Pool{Roots: namedRoots}
		}},
		{name: "other address", why: "valid for 127.0.0.1, ::1, not 127.0.0.2", setup: func() (*resolver, Pool) {
			return listen(t, "127.0.0.2", addresses, nil, addressed), Pool{Roots: addressedRoots}
		}},
		{name: "other roots", why: "unknown authority", setup: func() (*resolver, Pool) {
			return listen(t, "127.0.0.1", addresses, nil, addressed), Pool{Roots: namedRoots}
		}},
		{name: "system roots", why: "unknown authority", setup: func() (*resolver, Pool) {
			return listen(t, "127.0.0.1", addresses, nil, addressed), Pool{}
		}},
		{name: "no TLS there", why: "no answer in time", setup: func() (*resolver, Pool) { return newResolver(t, addresses), Pool{Roots: addressedRoots} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up, p := tt.setup()
			p.Zone, p.Upstreams = ".", []Upstream{{Addr: up.addr, TLS: true, ServerName: tt.server}}
			r := start(t, func(o *Options) {
				if o.Pools = []Pool{p}; tt.why != "no answer in time" {
					o.Timeout = 4 * time.Second
				}
			})
			m := r.ask("a.example.com.", typeA)
			if !tt.right {
				code, text := ede(m)
				if m.Rcode != mdns.RcodeServerFailure || code != 22 || !strings.Contains(text, "tls://"+up.addr.String()) || !strings.Contains(text, tt.why) || up.asked[1].Load() != 0 {
					t.Errorf("%v, asked %d times", m, up.asked[1].Load())
				}
				return
			}
			want(t, data(m), good)
			askMany(t, r, 10)
			if n := up.conns.Load(); n != 1 || up.asked[0].Load() != 0 {
				t.Errorf("%d connections, asked %d times without TLS", n, up.asked[0].Load())
			}
		})
	}
}

// What goes over TLS has one of few lengths (RFC 8467).
func TestPadding(t *testing.T) {
	for _, name := range []string{".", "a.example.com.", letters, strings.Repeat(strings.Repeat("x", 63)+".", 3) + strings.Repeat("y", 61) + "."} {
		for _, do := range []bool{false, true} {
			q := question(name, typeA)
			q.DO, q.CD = do, do
			for _, pad := range []bool{false, true} {
				msg, sent := message(q, true, true, pad)
				m := new(mdns.Msg)
				if err := m.Unpack(msg[2:]); err != nil || m.IsEdns0() == nil || m.IsEdns0().Do() != do || m.CheckingDisabled != do {
					t.Fatalf("%s: %v, %v", name, err, m)
				}
				if pad != (len(msg[2:])%padTo == 0) && pad {
					t.Errorf("%s: %d octets", name, len(msg)-2)
				}
				if !strings.EqualFold(m.Question[0].Name, name) || len(sent) != len(q.Name)+4 {
					t.Errorf("%s became %s", name, m.Question[0].Name)
				}
			}
		}
	}
}
