// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// resolver is an upstream made for tests: real sockets on loopback, and answers as its script says.
type resolver struct {
	addr netip.AddrPort
	udp  *net.UDPConn
	tcp  net.Listener
	wg   sync.WaitGroup

	asked [2]atomic.Int64 // over UDP and TCP
	mu    sync.Mutex
	last  *mdns.Msg
}

// script makes the messages that answer a query, in order; none is silence.
type script func(q *mdns.Msg, tcp bool) [][]byte

func newResolver(t *testing.T, play script) *resolver {
	t.Helper()
	r := &resolver{}
	for try := 0; ; try++ {
		udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		r.addr = udp.LocalAddr().(*net.UDPAddr).AddrPort()
		tcp, err := net.Listen("tcp4", r.addr.String())
		if err == nil {
			r.udp, r.tcp = udp, tcp
			break
		}
		udp.Close()
		if try == 10 {
			t.Fatal(err)
		}
	}
	r.wg.Go(func() { r.serveUDP(play) })
	r.wg.Go(func() { r.serveTCP(play) })
	t.Cleanup(func() {
		r.udp.Close()
		r.tcp.Close()
		r.wg.Wait()
	})
	return r
}

func (r *resolver) note(q *mdns.Msg, transport int) {
	r.asked[transport].Add(1)
	r.mu.Lock()
	r.last = q
	r.mu.Unlock()
}

func (r *resolver) serveUDP(play script) {
	buf := make([]byte, 4096)
	for {
		n, from, err := r.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		q := new(mdns.Msg)
		if q.Unpack(buf[:n]) != nil {
			continue
		}
		r.note(q, 0)
		for _, b := range play(q, false) {
			r.udp.WriteToUDPAddrPort(b, from)
		}
	}
}

func (r *resolver) serveTCP(play script) {
	for {
		conn, err := r.tcp.Accept()
		if err != nil {
			return
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if q, err := (&mdns.Conn{Conn: conn}).ReadMsg(); err == nil {
			r.note(q, 1)
			for _, b := range play(q, true) {
				conn.Write(framed(b))
			}
		}
		conn.Close()
	}
}

// says makes a script of a function that completes the answer.
func says(f func(m *mdns.Msg)) script {
	return func(q *mdns.Msg, _ bool) [][]byte {
		m := new(mdns.Msg).SetReply(q)
		m.RecursionAvailable = true
		f(m)
		b, err := m.Pack()
		if err != nil {
			panic(err)
		}
		return [][]byte{b}
	}
}

func rr(s string) mdns.RR {
	r, err := mdns.NewRR(s)
	if err != nil {
		panic(err)
	}
	return r
}

// addresses answers every question with an address.
var addresses = says(func(m *mdns.Msg) { m.Answer = []mdns.RR{rr(m.Question[0].Name + " 60 IN A 192.0.2.80")} })

func silent(*mdns.Msg, bool) [][]byte { return nil }

// through is a server with upstreams, and asks it.
type through struct {
	*Server
	t *testing.T
}

func forwarding(t *testing.T, change func(*Options), upstreams ...*resolver) through {
	return through{dual(t, func(o *Options) {
		for _, u := range upstreams {
			o.Upstreams = append(o.Upstreams, u.addr)
		}
		o.UpstreamTimeout = 300 * time.Millisecond
		if change != nil {
			change(o)
		}
	}), t}
}

func (s through) ask(name string, qtype uint16, change func(*mdns.Msg)) *mdns.Msg {
	s.t.Helper()
	q := new(mdns.Msg).SetQuestion(name, qtype)
	q.SetEdns0(1232, false)
	if change != nil {
		change(q)
	}
	m := new(mdns.Msg)
	if err := m.Unpack(s.respond("udp", loopback, packed(s.t, q))); err != nil {
		s.t.Fatal(err)
	}
	if m.Id != q.Id || m.Question[0].Name != name {
		s.t.Errorf("the answer is not the query's: %v", m)
	}
	return m
}

func data(m *mdns.Msg) string {
	return strings.Join(append([]string{mdns.RcodeToString[m.Rcode]}, words(m.Answer)...), " ")
}

func TestForward(t *testing.T) {
	up := newResolver(t, says(func(m *mdns.Msg) {
		m.Answer = []mdns.RR{rr(strings.ToLower(m.Question[0].Name) + " 60 IN A 192.0.2.80")}
		m.Extra = append(m.Extra, &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT}, Option: []mdns.EDNS0{&mdns.EDNS0_LOCAL{Code: 65001, Data: []byte("mine")}}})
	}))
	s := forwarding(t, nil, up)
	m := s.ask("Www.Example.COM.", typeA, nil)
	if got := data(m); got != "NOERROR Www.Example.COM. A 192.0.2.80" || m.Authoritative || !m.RecursionAvailable {
		t.Errorf("answer %s, flags %v", got, m.MsgHdr)
	}
	if opt := m.IsEdns0(); opt == nil || len(opt.Option) != 0 || len(m.Extra) != 1 {
		t.Errorf("the upstream's OPT came through: %v", m.Extra)
	}
	up.mu.Lock()
	q := up.last
	up.mu.Unlock()
	if q.Question[0].Name != "Www.Example.COM." || !q.RecursionDesired || q.IsEdns0() == nil || q.IsEdns0().UDPSize() != maxUDP {
		t.Errorf("the upstream was asked %v", q)
	}
	// The cluster's own names do not leave, whatever becomes of them.
	for _, own := range []string{"orders.shop.svc.cluster.local.", "nothing.cluster.local.", "9.9.96.10.in-addr.arpa."} {
		if m := s.ask(own, typeA, nil); !m.Authoritative {
			t.Errorf("%s was not answered here: %v", own, m)
		}
	}
	if n := up.asked[0].Load(); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

func TestForwardTruncatedGoesOverTCP(t *testing.T) {
	var up *resolver
	up = newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte {
		return says(func(m *mdns.Msg) {
			if !tcp {
				m.Truncated = true
				return
			}
			for i := range 100 {
				m.Answer = append(m.Answer, rr(fmt.Sprintf("%s 60 IN A 192.0.2.%d", m.Question[0].Name, i)))
			}
		})(q, tcp)
	})
	s := forwarding(t, nil, up)
	if m := s.ask("big.example.com.", typeA, nil); !m.Truncated || len(m.Answer) == 0 || len(m.Answer) == 100 {
		t.Errorf("over UDP: TC %t, %d answers", m.Truncated, len(m.Answer))
	}
	q := new(mdns.Msg).SetQuestion("big.example.com.", typeA)
	m := new(mdns.Msg)
	if err := m.Unpack(s.respond("tcp", loopback, packed(t, q))); err != nil || m.Truncated || len(m.Answer) != 100 {
		t.Errorf("over TCP: %v, TC %t, %d answers", err, m.Truncated, len(m.Answer))
	}
	if u, v := up.asked[0].Load(), up.asked[1].Load(); u != 1 || v != 1 {
		t.Errorf("asked %d times over UDP and %d over TCP, want each once: the whole answer is remembered", u, v)
	}
}

func TestForwardFailover(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first script
	}{
		{"silent", silent},
		{"servfail", says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeServerFailure })},
		{"refused", says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeRefused })},
		{"garbage", func(*mdns.Msg, bool) [][]byte { return [][]byte{{1, 2, 3}, make([]byte, 12)} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first, second := newResolver(t, tt.first), newResolver(t, addresses)
			s := forwarding(t, nil, first, second)
			if got := data(s.ask("a.example.com.", typeA, nil)); got != "NOERROR a.example.com. A 192.0.2.80" {
				t.Errorf("answer %s", got)
			}
			if got := data(s.ask("b.example.com.", typeA, nil)); got != "NOERROR b.example.com. A 192.0.2.80" {
				t.Errorf("answer %s", got)
			}
			// One that does not answer is asked last for a while; one that says it cannot may be able to tell another name.
			want := map[bool]int64{true: 1, false: 2}[tt.name == "silent" || tt.name == "garbage"]
			if n := first.asked[0].Load(); n != want {
				t.Errorf("the first one was asked %d times, want %d", n, want)
			}
		})
	}
	t.Run("closed port", func(t *testing.T) {
		gone := newResolver(t, silent)
		gone.udp.Close()
		s := forwarding(t, func(o *Options) { o.UpstreamTimeout = time.Minute }, gone, newResolver(t, addresses))
		if got := data(s.ask("a.example.com.", typeA, nil)); got != "NOERROR a.example.com. A 192.0.2.80" {
			t.Errorf("answer %s", got)
		}
	})
	t.Run("all fail", func(t *testing.T) {
		s := forwarding(t, nil, newResolver(t, silent), newResolver(t, silent))
		m := s.ask("a.example.com.", typeA, nil)
		if m.Rcode != mdns.RcodeServerFailure || !strings.Contains(m.IsEdns0().String(), "no answer in time") {
			t.Errorf("answer %v", m)
		}
		bad := forwarding(t, nil, newResolver(t, silent), newResolver(t, says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeRefused })))
		if m := bad.ask("a.example.com.", typeA, nil); m.Rcode != mdns.RcodeRefused {
			t.Errorf("the answer of the only one that speaks: %v", m)
		}
	})
}

// An upstream that comes back is used again.
func TestForwardRecovers(t *testing.T) {
	var dead atomic.Bool
	dead.Store(true)
	first := newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte {
		if dead.Load() {
			return nil
		}
		return addresses(q, tcp)
	})
	clock := new(atomic.Int64)
	begin := time.Now()
	s := forwarding(t, func(o *Options) { o.Now = func() time.Time { return begin.Add(time.Duration(clock.Load())) } }, first, newResolver(t, addresses))
	s.ask("a.example.com.", typeA, nil)
	dead.Store(false)
	s.ask("b.example.com.", typeA, nil)
	if n := first.asked[0].Load(); n != 1 {
		t.Errorf("asked %d times while it is shunned", n)
	}
	clock.Store(int64(shun + time.Second))
	s.ask("c.example.com.", typeA, nil)
	if n := first.asked[0].Load(); n != 2 {
		t.Errorf("asked %d times in all, want 2", n)
	}
	if u := s.forward.upstreams[0]; u.shunned.Load() != 0 || u.answered.Load() != 1 || u.failed.Load() != 1 {
		t.Errorf("remembered: %d, %d answered, %d failed", u.shunned.Load(), u.answered.Load(), u.failed.Load())
	}
}

// Answers that are not the query's are passed over: the right one behind them counts.
func TestForwardSpoofed(t *testing.T) {
	forge := func(change func(m *mdns.Msg)) script {
		return func(q *mdns.Msg, tcp bool) [][]byte {
			bad := says(func(m *mdns.Msg) {
				m.Answer = []mdns.RR{rr(m.Question[0].Name + " 60 IN A 203.0.113.66")}
				change(m)
			})(q, tcp)
			return append(bad, addresses(q, tcp)...)
		}
	}
	for name, change := range map[string]func(m *mdns.Msg){
		"id":       func(m *mdns.Msg) { m.Id++ },
		"name":     func(m *mdns.Msg) { m.Question[0].Name = "evil.example.com." },
		"type":     func(m *mdns.Msg) { m.Question[0].Qtype = typeAAAA },
		"class":    func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS },
		"query":    func(m *mdns.Msg) { m.Response = false },
		"opcode":   func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify },
		"question": func(m *mdns.Msg) { m.Question = nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := forwarding(t, nil, newResolver(t, forge(change)))
			if got := data(s.ask("a.example.com.", typeA, nil)); got != "NOERROR a.example.com. A 192.0.2.80" {
				t.Errorf("answer %s", got)
			}
		})
	}
	// From another address than the one asked, even with everything right.
	t.Run("address", func(t *testing.T) {
		other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		up, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer up.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 4096)
			n, from, err := up.ReadFromUDPAddrPort(buf)
			q := new(mdns.Msg)
			if err != nil || q.Unpack(buf[:n]) != nil {
				return
			}
			other.WriteToUDPAddrPort(says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeNameError })(q, false)[0], from)
			up.WriteToUDPAddrPort(addresses(q, false)[0], from)
		}()
		s := forwarding(t, func(o *Options) { o.Upstreams = []netip.AddrPort{up.LocalAddr().(*net.UDPAddr).AddrPort()} })
		if got := data(s.ask("a.example.com.", typeA, nil)); got != "NOERROR a.example.com. A 192.0.2.80" {
			t.Errorf("answer %s", got)
		}
		<-done
	})
}

// Ports and ids are not to be guessed from those before.
func TestForwardUnpredictable(t *testing.T) {
	var mu sync.Mutex
	ids, ports := make(map[uint16]bool), make(map[int]bool)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFromUDP(buf)
			q := new(mdns.Msg)
			if err != nil || q.Unpack(buf[:n]) != nil {
				return
			}
			mu.Lock()
			ids[q.Id], ports[from.Port] = true, true
			mu.Unlock()
			conn.WriteToUDP(addresses(q, false)[0], from)
		}
	}()
	s := forwarding(t, func(o *Options) { o.Upstreams = []netip.AddrPort{conn.LocalAddr().(*net.UDPAddr).AddrPort()} })
	const n = 50
	for i := range n {
		s.ask(fmt.Sprintf("%d.example.com.", i), typeA, nil)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) < n-3 || len(ports) < n-10 {
		t.Errorf("%d ids and %d ports in %d queries", len(ids), len(ports), n)
	}
}

func TestForwardAlias(t *testing.T) {
	up := newResolver(t, says(func(m *mdns.Msg) {
		switch {
		case m.Question[0].Name != "www.example.com.":
			m.Rcode = mdns.RcodeServerFailure
		case m.Question[0].Qtype == typeA:
			m.Answer = []mdns.RR{rr("www.example.com. 60 IN CNAME web.example.net."), rr("web.example.net. 60 IN A 192.0.2.80")}
		default:
			m.Ns = []mdns.RR{rr("example.com. 60 IN SOA a. b. 1 2 3 4 5")}
		}
	}))
	s := forwarding(t, nil, up)
	const alias = "outside.aliases.svc.cluster.local."
	for range 2 {
		m := s.ask(alias, typeA, nil)
		if got := data(m); got != "NOERROR "+alias+" CNAME www.example.com. www.example.com. CNAME web.example.net. web.example.net. A 192.0.2.80" || !m.Authoritative {
			t.Errorf("answer %s", got)
		}
	}
	if m := s.ask(alias, typeAAAA, nil); len(m.Answer) != 1 || len(m.Ns) != 1 {
		t.Errorf("without data: %v", m)
	}
	if m := s.ask(alias, mdns.TypeCNAME, nil); data(m) != "NOERROR "+alias+" CNAME www.example.com." {
		t.Errorf("the alias itself: %v", m)
	}
	if n := up.asked[0].Load(); n != 2 {
		t.Errorf("the upstream was asked %d times, want 2: each answer is remembered", n)
	}
	down := forwarding(t, nil, newResolver(t, silent))
	if m := down.ask(alias, typeA, nil); m.Rcode != mdns.RcodeServerFailure || len(m.Answer) != 0 {
		t.Errorf("with no upstream alive: %v", m)
	}
}

func TestCache(t *testing.T) {
	begin := time.Now()
	var clock atomic.Int64
	up := newResolver(t, says(func(m *mdns.Msg) {
		name := m.Question[0].Name
		soa := rr("example.com. 600 IN SOA a. b. 1 2 3 4 40")
		switch strings.SplitN(strings.ToLower(name), ".", 2)[0] {
		case "short":
			m.Answer = []mdns.RR{rr(name + " 300 IN CNAME x.example.com."), rr("x.example.com. 30 IN A 192.0.2.1")}
		case "zero":
			m.Answer = []mdns.RR{rr(name + " 0 IN A 192.0.2.1")}
		case "none":
			m.Rcode, m.Ns = mdns.RcodeNameError, []mdns.RR{soa}
		case "nodata":
			m.Ns = []mdns.RR{soa}
		case "bare":
			m.Rcode = mdns.RcodeNameError
		case "long":
			m.Answer = []mdns.RR{rr(name + " 999999 IN A 192.0.2.1")}
		}
	}))
	s := forwarding(t, func(o *Options) {
		o.Now = func() time.Time { return begin.Add(time.Duration(clock.Load())) }
	}, up)
	asked := func() int64 { return up.asked[0].Load() }
	for _, tt := range []struct {
		name string
		ttl  time.Duration // how long it is kept
	}{
		{"short", 30 * time.Second}, {"zero", 0}, {"none", 40 * time.Second}, {"nodata", 40 * time.Second}, {"bare", 0}, {"long", time.Hour},
	} {
		name := tt.name + ".example.com."
		first := s.ask(name, typeA, nil)
		before := asked()
		if tt.ttl > 0 {
			clock.Add(int64(tt.ttl - time.Second))
			again := s.ask(strings.ToUpper(name), typeA, nil)
			if asked() != before {
				t.Errorf("%s: asked again before its time", tt.name)
			}
			if again.Rcode != first.Rcode || len(again.Answer) != len(first.Answer) || len(again.Ns) != len(first.Ns) {
				t.Errorf("%s: remembered as %v", tt.name, again)
			}
			for i, r := range append(again.Answer, again.Ns...) {
				was := append(first.Answer, first.Ns...)[i].Header().Ttl
				if want := was - min(was, uint32(tt.ttl/time.Second)-1); r.Header().Ttl != want {
					t.Errorf("%s: TTL of %v, want %d", tt.name, r, want)
				}
			}
			clock.Add(int64(time.Second))
		}
		s.ask(name, typeA, nil)
		if asked() != before+1 {
			t.Errorf("%s: not asked again after its time", tt.name)
		}
	}
	// What a client gets depends on DO and CD: they are kept apart.
	before := asked()
	for _, change := range []func(*mdns.Msg){nil, func(m *mdns.Msg) { m.IsEdns0().SetDo() }, func(m *mdns.Msg) { m.CheckingDisabled = true }, nil} {
		s.ask("long.other.example.com.", typeA, change)
	}
	if n := asked() - before; n != 3 {
		t.Errorf("asked %d times for three kinds of the same question", n)
	}
	if p, n := s.forward.cache.len(); p == 0 || n != 0 && n > 2 {
		t.Errorf("%d answers and %d denials kept", p, n)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache(10, time.Now)
	question := func(i int) mdns.Question {
		return mdns.Question{Name: fmt.Sprintf("%d.example.com.", i), Qtype: typeA, Qclass: mdns.ClassINET}
	}
	for i := range 100 {
		m := new(mdns.Msg)
		m.Question = []mdns.Question{question(i)}
		m.Answer = []mdns.RR{rr(question(i).Name + " 60 IN A 192.0.2.1")}
		if i%2 == 0 {
			m.Answer, m.Ns = nil, []mdns.RR{rr("example.com. 60 IN SOA a. b. 1 2 3 4 60")}
		}
		c.put(question(i), flags{}, m)
		c.get(question(0), flags{}) // used all the time: it stays
		if p, n := c.len(); p+n > 10 || p < 0 || n < 0 {
			t.Fatalf("%d answers and %d denials", p, n)
		}
	}
	if c.get(question(0), flags{}) == nil || c.get(question(99), flags{}) == nil || c.get(question(50), flags{}) != nil {
		t.Error("what is used or new has gone, or what is neither has stayed")
	}
	big := new(mdns.Msg)
	big.Question = []mdns.Question{question(1000)}
	for i := range 400 {
		big.Answer = append(big.Answer, rr(fmt.Sprintf("%s 60 IN A 192.0.%d.%d", question(1000).Name, i/200, i%200)))
	}
	c.put(question(1000), flags{}, big)
	if c.get(question(1000), flags{}) != nil {
		t.Error("a message too large was kept")
	}
}

// More queries than an upstream can take end at once with a word, instead of piling up.
func TestForwardBounded(t *testing.T) {
	s := forwarding(t, nil, newResolver(t, silent))
	for range maxForwarding {
		s.forward.places <- struct{}{}
	}
	m := s.ask("a.example.com.", typeA, nil)
	if m.Rcode != mdns.RcodeServerFailure || !strings.Contains(m.IsEdns0().String(), "too many queries") {
		t.Errorf("answer %v", m)
	}
}

// The descriptors of queries are closed, however they end.
func TestForwardLeavesNothingOpen(t *testing.T) {
	count := func() int {
		n := 0
		for fd := range 1024 {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
				n++
			}
		}
		return n
	}
	s := forwarding(t, func(o *Options) { o.UpstreamTimeout = 20 * time.Millisecond }, newResolver(t, silent), newResolver(t, addresses))
	s.ask("warm.example.com.", typeA, nil)
	before := count()
	for i := range 20 {
		s.forward.upstreams[0].shunned.Store(0)
		s.ask(fmt.Sprintf("%d.example.com.", i), typeA, nil)
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}
