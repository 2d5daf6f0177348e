// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/dns/rules"
	"github.com/fairlead/fairlead/model"
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

func newResolver(t testing.TB, play script) *resolver {
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
	if q.Question[0].Qtype == mdns.TypeHINFO {
		return // the forwarder's test for loops
	}
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
		var addrs []netip.AddrPort
		for _, u := range upstreams {
			addrs = append(addrs, u.addr)
		}
		o.Blocks[0] = block("cluster.local", addrs...)
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
	if !strings.EqualFold(q.Question[0].Name, "www.example.com.") || !q.RecursionDesired || q.IsEdns0() == nil || q.IsEdns0().UDPSize() != maxUDP {
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

func TestForwardAlias(t *testing.T) {
	up := newResolver(t, says(func(m *mdns.Msg) {
		switch {
		case !strings.EqualFold(m.Question[0].Name, "www.example.com."):
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

// Aliases come in their order, whatever leads to them, before the records at their end, which take turns.
func TestForwardOrder(t *testing.T) {
	alias := []string{"old.example. 60 IN DNAME new.example.", "www.old.example. 60 IN CNAME www.new.example."}
	up := newResolver(t, says(func(m *mdns.Msg) {
		m.Answer = []mdns.RR{rr(alias[0]), rr(alias[1]), rr("www.new.example. 60 IN A 192.0.2.1"), rr("www.new.example. 60 IN A 192.0.2.2")}
	}))
	first := make(map[string]int)
	for range 20 {
		s := forwarding(t, nil, up) // that remembers nothing
		m := s.ask("www.old.example.", typeA, nil)
		if len(m.Answer) != 4 || m.Answer[0].Header().Rrtype != mdns.TypeDNAME || m.Answer[1].Header().Rrtype != mdns.TypeCNAME {
			t.Fatalf("out of order: %s", data(m))
		}
		first[m.Answer[2].(*mdns.A).A.String()]++
	}
	if len(first) != 2 {
		t.Errorf("first addresses are %v", first)
	}
}

// blocks is a server with the first world of the table and with blocks.
func blocks(t *testing.T, b ...Block) through {
	return through{dual(t, func(o *Options) { o.Blocks, o.UpstreamTimeout = b, 300*time.Millisecond }), t}
}

// The block with the deepest zone answers.
func TestBlocks(t *testing.T) {
	numbered := func(n int) *resolver {
		return newResolver(t, says(func(m *mdns.Msg) {
			m.Answer = []mdns.RR{rr(fmt.Sprintf("%s 60 IN A 192.0.2.%d", m.Question[0].Name, n))}
		}))
	}
	one, two := numbered(1), numbered(2)
	all := block("cluster.local", one.addr)
	corp := Block{Zones: []string{"corp.example.", "deep.shop.svc.cluster.local."}, Forward: block("x", two.addr).Forward}
	none := Block{Zones: []string{"none.corp.example."}}
	s := blocks(t, corp, none, all)
	for _, tt := range []struct{ name, want string }{
		{"www.example.com.", "NOERROR www.example.com. A 192.0.2.1"},
		{"corp.example.", "NOERROR corp.example. A 192.0.2.2"},
		{"WWW.Corp.Example.", "NOERROR WWW.Corp.Example. A 192.0.2.2"},
		{"wwwcorp.example.", "NOERROR wwwcorp.example. A 192.0.2.1"},
		{"x.none.corp.example.", "REFUSED"},
		{"odd\\000.none.corp.example.", "REFUSED"},
		{"a.deep.shop.svc.cluster.local.", "NOERROR a.deep.shop.svc.cluster.local. A 192.0.2.2"},
		{"orders.shop.svc.cluster.local.", "NOERROR orders.shop.svc.cluster.local. A 10.96.0.20"},
	} {
		for range 2 { // the second time from the cache
			if got := data(s.ask(tt.name, typeA, nil)); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
			}
		}
	}
}

// What an alias leads to is answered as if it were asked for: by the block that is for it, and by that one's rules.
func TestAliasByBlocks(t *testing.T) {
	numbered := func(n int) forward.Pool {
		up := newResolver(t, says(func(m *mdns.Msg) {
			m.Answer = []mdns.RR{rr(fmt.Sprintf("%s 60 IN A 192.0.2.%d", m.Question[0].Name, n))}
		}))
		return block("x", up.addr).Forward[0]
	}
	one, two := numbered(1), numbered(2)
	all := func(change func(*Block), zones ...string) Block {
		b := block("cluster.local")
		b.Zones, b.Forward = zones, []forward.Pool{one}
		change(&b)
		return b
	}
	as := func(*Block) {}
	stub := Block{Zones: []string{"example.com."}, Forward: []forward.Pool{two}}
	template := func(name, answer string) func(*Block) {
		return func(b *Block) {
			b.Rules.Templates = []rules.Template{{Class: mdns.ClassINET, Type: typeA, Zones: []string{name}, Answer: []string{answer}}}
		}
	}
	const (
		alias = "outside.aliases.svc.cluster.local."
		cname = "NOERROR " + alias + " CNAME www.example.com."
	)
	for _, tt := range []struct {
		what   string
		blocks []Block
		name   string
		want   string
	}{
		{"its own block", []Block{all(as, ".")}, alias, cname + " www.example.com. A 192.0.2.1"},
		{"a stub domain", []Block{all(as, "."), stub}, alias, cname + " www.example.com. A 192.0.2.2"},
		{"another block alone has upstreams", []Block{all(func(b *Block) { b.Forward = nil }, "cluster.local."), stub}, alias, cname + " www.example.com. A 192.0.2.2"},
		{"nobody", []Block{all(as, "cluster.local.")}, alias, cname},
		{"nobody has upstreams", []Block{all(func(b *Block) { b.Forward = nil }, ".")}, alias, cname},
		{"hosts", []Block{all(func(b *Block) {
			b.Rules.Hosts = &rules.Hosts{Zones: []string{"."}, Fallthrough: []string{"."}, TTL: 60,
				Inline: []rules.Host{{Addr: netip.MustParseAddr("192.0.2.7"), Names: []string{"www.example.com."}}}}
		}, ".")}, alias, cname + " www.example.com. A 192.0.2.7"},
		{"a rewrite", []Block{all(func(b *Block) {
			b.Rules.Rewrites = []rules.Rewrite{rules.NameRewrite{On: rules.On{Kind: rules.Exact, Pattern: "www.example.com."}, To: "orders.shop.svc.cluster.local."}}
		}, ".")}, alias, cname + " www.example.com. A 10.96.0.20"},
		{"a circle", []Block{all(func(b *Block) {
			b.Rules.Rewrites = []rules.Rewrite{rules.NameRewrite{On: rules.On{Kind: rules.Exact, Pattern: "www.example.com."}, To: alias}}
		}, ".")}, alias, "SERVFAIL"},
		{"a template to a stub domain", []Block{all(template("made.example.", "{{ .Name }} 60 IN CNAME www.example.com."), "."), stub}, "a.made.example.",
			"NOERROR a.made.example. CNAME www.example.com. www.example.com. A 192.0.2.2"},
	} {
		s := blocks(t, tt.blocks...)
		for range 2 { // the second time from the cache
			if got := data(s.ask(tt.name, typeA, nil)); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.what, got, tt.want)
			}
		}
	}
}

// Blocks are for a port and for addresses, and others do not see them.
func TestBlocksByAddress(t *testing.T) {
	here := block("here.example")
	here.Port, here.Bind = testAddr.Port(), []netip.Addr{testAddr.Addr()}
	there := block("there.example")
	there.Port, there.Bind = testAddr.Port(), []netip.Addr{netip.MustParseAddr("127.0.0.2")}
	otherPort := block("port.example")
	otherPort.Port = 5353
	s := blocks(t, there, otherPort, here)
	for name, want := range map[string]int{"svc.here.example.": mdns.RcodeSuccess, "svc.there.example.": mdns.RcodeRefused, "svc.port.example.": mdns.RcodeRefused} {
		if m := s.ask(name, typeA, nil); m.Rcode != want {
			t.Errorf("%s: %v", name, m)
		}
	}
	if err := s.Reload([]Block{otherPort}); err != nil {
		t.Errorf("a port that was there before: %v", err)
	}
	if m := s.ask("svc.here.example.", typeA, nil); m.Rcode != mdns.RcodeRefused {
		t.Errorf("without a block: %v", m)
	}
	closed := block("x")
	closed.Port = 99
	if err := s.Reload([]Block{closed}); err == nil || !strings.Contains(err.Error(), "port 99 is not open") {
		t.Errorf("a port that nobody listens at: %v", err)
	}
}

// Other nodes ask for the cluster's DNS at this node's own address while they have none: a block bound to the former is for those questions too.
func TestBlocksOfClusterDNS(t *testing.T) {
	clusterDNS := netip.MustParseAddrPort("10.96.0.10:53")
	bound, elsewhere := block("cluster.local"), block("other.example")
	bound.Bind = []netip.Addr{netip.MustParseAddr("169.254.20.10"), clusterDNS.Addr()}
	elsewhere.Zones, elsewhere.Bind = []string{"other.example."}, []netip.Addr{netip.MustParseAddr("169.254.20.10")}
	s := through{dual(t, func(o *Options) { o.Blocks, o.Self = []Block{bound, elsewhere}, []netip.AddrPort{clusterDNS} }), t}
	if got := data(s.ask("orders.shop.svc.cluster.local.", typeA, nil)); got != "NOERROR orders.shop.svc.cluster.local. A 10.96.0.20" {
		t.Errorf("at the node's own address: %s", got)
	}
	if got := data(s.ask("orders.shop.svc.other.example.", typeA, nil)); got != "NXDOMAIN" && got != "REFUSED" {
		t.Errorf("of a block for another address: %s", got)
	}
	for at, want := range map[string]bool{"10.96.0.10:53": true, "169.254.20.10:53": true, "192.0.2.1:53": true, "[fd00:96::a]:53": true} {
		if got := s.plan.Load().findName("orders.shop.svc.cluster.local.", netip.MustParseAddrPort(at)) != nil; got != want {
			t.Errorf("answers at %s: %t", at, got)
		}
	}
	two := s.plan.Load().blocks[1]
	for at, want := range map[string]bool{"10.96.0.10:53": false, "169.254.20.10:53": true, "192.0.2.1:53": false} {
		if got := two.at(netip.MustParseAddrPort(at)); got != want {
			t.Errorf("the other block answers at %s: %t", at, got)
		}
	}
	own := block("own.example")
	own.Bind = []netip.Addr{testAddr.Addr()}
	if err := s.Reload([]Block{bound, own}); err != nil {
		t.Fatal(err)
	}
	if got := data(s.ask("orders.shop.svc.own.example.", typeA, nil)); got != "NOERROR orders.shop.svc.own.example. A 10.96.0.20" {
		t.Errorf("of a block for the node's own address: %s", got)
	}
}

// A reload changes what is answered, keeps what is remembered, and changes nothing if it is bad.
func TestReload(t *testing.T) {
	up := newResolver(t, says(func(m *mdns.Msg) { m.Answer = []mdns.RR{rr(m.Question[0].Name + " 60 IN A 192.0.2.1")} }))
	s := blocks(t, block("cluster.local", up.addr))
	if got := data(s.ask("www.example.com.", typeA, nil)); got != "NOERROR www.example.com. A 192.0.2.1" {
		t.Fatal(got)
	}
	for _, bad := range [][]Block{nil, {block("a..b")}, {block("x"), block("y")}, {block("x", netip.MustParseAddrPort("0.0.0.0:53"))}} {
		if err := s.Reload(bad); err == nil {
			t.Errorf("%v is no error", bad)
		}
		if got := data(s.ask("orders.shop.svc.cluster.local.", typeA, nil)); got != "NOERROR orders.shop.svc.cluster.local. A 10.96.0.20" {
			t.Errorf("after a bad reload: %s", got)
		}
	}
	next := block("other.example", up.addr)
	next.Cluster.TTL = 30 * time.Second
	if err := s.Reload([]Block{next}); err != nil {
		t.Fatal(err)
	}
	m := s.ask("orders.shop.svc.other.example.", typeA, nil)
	if got := data(m); got != "NOERROR orders.shop.svc.other.example. A 10.96.0.20" || m.Answer[0].Header().Ttl != 30 {
		t.Errorf("after the reload: %v", m)
	}
	if got := data(s.ask("www.example.com.", typeA, nil)); got != "NOERROR www.example.com. A 192.0.2.1" || up.asked[0].Load() != 1 {
		t.Errorf("%s, and the upstream was asked %d times: what it said was forgotten", got, up.asked[0].Load())
	}
	if got := s.Blocks(); len(got) != 1 || got[0].Cluster.Zones[0] != "other.example." {
		t.Errorf("the blocks are %v", got)
	}
}

// Each block goes on where it was, also one that another one differs from by its address alone; and a reload that is refused takes nothing away.
func TestReloadKeepsCaches(t *testing.T) {
	up := newResolver(t, addresses)
	other := block("cluster.local", newResolver(t, addresses).addr)
	other.Bind = []netip.Addr{netip.MustParseAddr("127.0.0.2")}
	here := block("cluster.local", up.addr)
	here.Bind = []netip.Addr{testAddr.Addr()}
	s := blocks(t, other, here)
	s.ask("www.example.com.", typeA, nil)
	if err := s.Reload([]Block{other, here}); err != nil {
		t.Fatal(err)
	}
	s.ask("www.example.com.", typeA, nil)
	if n := up.asked[0].Load(); n != 1 {
		t.Errorf("the upstream was asked %d times: what it said was forgotten", n)
	}
	requests := func() (n float64) {
		for k, v := range gather(t, s.Server) {
			if strings.HasPrefix(k, "coredns_cache_requests_total{") {
				n += v
			}
		}
		return n
	}
	before := requests()
	smaller, closed := here, here
	smaller.Caching.Size, closed.Port = 1<<20, 99
	if err := s.Reload([]Block{smaller, closed}); err == nil {
		t.Fatal("a port that nobody listens at is no error")
	}
	if after := requests(); before == 0 || after != before {
		t.Errorf("%v requests to the cache were counted before a refused reload, %v after it", before, after)
	}
}

// Rules come first, and what they do not answer goes on.
func TestRules(t *testing.T) {
	up := newResolver(t, says(func(m *mdns.Msg) { m.Answer = []mdns.RR{rr(m.Question[0].Name + " 60 IN A 192.0.2.1")} }))
	b := block("cluster.local", up.addr)
	b.Rules = rules.Rules{
		Rewrites: []rules.Rewrite{rules.NameRewrite{On: rules.On{Kind: rules.Exact, Pattern: "db.example."}, To: "orders.shop.svc.cluster.local."},
			rules.NameRewrite{On: rules.On{Kind: rules.Exact, Pattern: "old.shop.svc.cluster.local."}, To: "orders.shop.svc.cluster.local."}},
		Templates: []rules.Template{{Class: mdns.ClassINET, Type: typeA, Zones: []string{"made.example."}, Answer: []string{"{{ .Name }} 60 IN A 192.0.2.9"}, Fallthrough: []string{"."}}},
		Hosts:     &rules.Hosts{Zones: []string{"."}, Fallthrough: []string{"."}, TTL: 3600, Inline: []rules.Host{{Addr: netip.MustParseAddr("192.0.2.7"), Names: []string{"printer.example."}}}},
	}
	s := blocks(t, b)
	for name, want := range map[string]string{
		"db.example.":                    "NOERROR db.example. A 10.96.0.20",
		"DB.example.":                    "NOERROR DB.example. A 10.96.0.20",
		"old.shop.svc.cluster.local.":    "NOERROR old.shop.svc.cluster.local. A 10.96.0.20",
		"x.made.example.":                "NOERROR x.made.example. A 192.0.2.9",
		"printer.example.":               "NOERROR printer.example. A 192.0.2.7",
		"other.example.":                 "NOERROR other.example. A 192.0.2.1",
		"orders.shop.svc.cluster.local.": "NOERROR orders.shop.svc.cluster.local. A 10.96.0.20",
	} {
		if got := data(s.ask(name, typeA, nil)); !strings.EqualFold(got, want) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// What the cluster does not have is left to the upstreams below some names, and denied otherwise.
func TestFallthrough(t *testing.T) {
	up := newResolver(t, says(func(m *mdns.Msg) { m.Answer = []mdns.RR{rr(m.Question[0].Name + " 60 IN PTR outside.example.")} }))
	b := block("cluster.local", up.addr)
	b.Cluster.Fallthrough = []string{"in-addr.arpa."}
	s := blocks(t, b)
	for range 2 {
		if got := data(s.ask("9.9.96.10.in-addr.arpa.", typePTR, nil)); got != "NOERROR 9.9.96.10.in-addr.arpa. PTR outside.example." {
			t.Errorf("what is not there: %s", got)
		}
	}
	if got := data(s.ask("20.0.96.10.in-addr.arpa.", typePTR, nil)); got != "NOERROR 20.0.96.10.in-addr.arpa. PTR orders.shop.svc.cluster.local." {
		t.Errorf("what is there: %s", got)
	}
	if got := data(s.ask("nothing.shop.svc.cluster.local.", typeA, nil)); got != "NXDOMAIN" {
		t.Errorf("another name: %s", got)
	}
	// An alias is there, whatever becomes of its end.
	b.Cluster.Fallthrough = []string{"."}
	s = blocks(t, b)
	w := model.NewBuilder(model.Config{Self: "n1"})
	w.SetService(model.ServiceSpec{Name: name("shop/alias"), Type: model.ExternalName, ExternalName: "nothing.shop.svc.cluster.local"})
	s.Publish(w.Build())
	if got := data(s.ask("alias.shop.svc.cluster.local.", typeA, nil)); got != "NXDOMAIN alias.shop.svc.cluster.local. CNAME nothing.shop.svc.cluster.local." {
		t.Errorf("an alias of what is not there: %s", got)
	}
}

// reverse wants these answers to questions for PTR, by each path.
func (s through) reverse(all map[string]string) {
	s.t.Helper()
	for name, want := range all {
		if got := data(s.ask(name, typePTR, nil)); got != want {
			s.t.Errorf("%s: %s, want %s", name, got, want)
		}
		paths(s.t, s.Server, "udp", loopback, packed(s.t, new(mdns.Msg).SetQuestion(name, typePTR)))
	}
}

// Reverse names may be in blocks of their own, as NodeLocal DNSCache has them: they lead to the domain of another block.
func TestReverseBlock(t *testing.T) {
	reverse := Block{Zones: []string{"in-addr.arpa.", "ip6.arpa."}, Cluster: &Cluster{Zones: []string{"in-addr.arpa.", "ip6.arpa."}, TTL: DefaultTTL}}
	names := Block{Zones: []string{"cluster.local."}, Cluster: &Cluster{Zones: []string{"cluster.local."}, TTL: DefaultTTL}}
	s := blocks(t, reverse, names)
	s.reverse(map[string]string{
		"20.0.96.10.in-addr.arpa.": "NOERROR 20.0.96.10.in-addr.arpa. PTR orders.shop.svc.cluster.local.",
		"9.9.96.10.in-addr.arpa.":  "NXDOMAIN",
		"1.2.0.192.in-addr.arpa.":  "REFUSED",
	})
	if err := s.Reload([]Block{reverse}); err == nil || !strings.Contains(err.Error(), "want a cluster domain") {
		t.Errorf("reverse names alone: %v", err)
	}
}

// Of a range, what is in the reverse zones is answered, and no more.
func TestReverseParts(t *testing.T) {
	b := block("cluster.local")
	b.Cluster.Zones = []string{"cluster.local.", "0.96.10.in-addr.arpa.", "1.0.0.0.4.4.2.0.0.0.d.f.ip6.arpa.", "odd.in-addr.arpa."}
	s := blocks(t, b)
	s.reverse(map[string]string{
		"20.0.96.10.in-addr.arpa.": "NOERROR 20.0.96.10.in-addr.arpa. PTR orders.shop.svc.cluster.local.",
		"9.0.96.10.in-addr.arpa.":  "NXDOMAIN",
		"0.96.10.in-addr.arpa.":    "NOERROR",
		"9.1.96.10.in-addr.arpa.":  "REFUSED",
		"96.10.in-addr.arpa.":      "REFUSED",
		"5.1.244.10.in-addr.arpa.": "REFUSED",
		"4.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.": "REFUSED",
	})
}

// An endpoint whose name would be too long has none, and spoils nobody's answers.
func TestTooLong(t *testing.T) {
	domain := strings.Repeat("d", 60) + ".example"
	long := model.Name{Namespace: strings.Repeat("n", 63), Name: strings.Repeat("s", 63)}
	s := through{dual(t, func(o *Options) { o.Blocks = []Block{block(domain)} }), t}
	w := model.NewBuilder(model.Config{Self: "n1"})
	for _, n := range []model.Name{long, name("shop/web")} {
		port := model.Port{Name: "http", Protocol: model.TCP, Port: 80}
		w.SetService(model.ServiceSpec{Name: n, Type: model.Headless, Ports: []model.Port{port}})
		endpoints := []model.Endpoint{{Addr: netip.MustParseAddr("10.244.1.50"), Ready: true, Hostname: strings.Repeat("h", 63)}}
		if n == long {
			endpoints = append(endpoints, model.Endpoint{Addr: netip.MustParseAddr("10.244.1.51"), Ready: true, Hostname: "short"},
				model.Endpoint{Addr: netip.MustParseAddr("10.244.1.52"), Ready: true, Hostname: strings.Repeat("i", 63)})
		}
		w.SetSlice(model.Slice{Name: n, Service: n.Name, Ports: []model.Port{port}, Endpoints: endpoints})
	}
	s.Publish(w.Build())
	service := long.Name + "." + long.Namespace + ".svc." + domain + "."
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"50.1.244.10.in-addr.arpa.", typePTR, "NOERROR 50.1.244.10.in-addr.arpa. PTR " + strings.Repeat("h", 63) + ".web.shop.svc." + domain + "."},
		{"51.1.244.10.in-addr.arpa.", typePTR, "NOERROR 51.1.244.10.in-addr.arpa. PTR short." + service},
		{"52.1.244.10.in-addr.arpa.", typePTR, "NXDOMAIN"},
		{"52.1.244.10.in-addr.arpa.", typeA, "NXDOMAIN"},
		{"_http._tcp." + service, mdns.TypeSRV, "NOERROR _http._tcp." + service + " SRV 0 100 80 short." + service},
	} {
		if got := data(s.ask(tt.name, tt.qtype, nil)); got != tt.want {
			t.Errorf("%s: %s\nwant %s", tt.name, got, tt.want)
		}
		paths(t, s.Server, "udp", loopback, packed(t, new(mdns.Msg).SetQuestion(tt.name, tt.qtype)))
	}
}

func TestChaosOverTheWire(t *testing.T) {
	s := through{dual(t, func(o *Options) { o.Version, o.Node = "v1.2.3", "n1" }), t}
	for name, want := range map[string]string{"version.bind.": `NOERROR version.bind. TXT "fairlead v1.2.3"`, "ID.server.": `NOERROR ID.server. TXT "n1"`, "other.": "REFUSED"} {
		m := s.ask(name, mdns.TypeTXT, func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS })
		if got := data(m); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// askFrom asks as a pod does.
func (s through) askFrom(from, name string, qtype uint16) *mdns.Msg {
	s.t.Helper()
	m := new(mdns.Msg)
	if err := m.Unpack(s.respond("udp", netip.MustParseAddr(from), packed(s.t, new(mdns.Msg).SetQuestion(name, qtype)))); err != nil {
		s.t.Fatal(err)
	}
	return m
}

// What a pod's resolver completes in vain is completed here, if that is switched on: the pod gets its answer to the first query. Otherwise it is
// counted, and the answer is as it was.
func TestCompletion(t *testing.T) {
	up := newResolver(t, says(func(m *mdns.Msg) {
		switch {
		case !strings.EqualFold(m.Question[0].Name, "www.example.com."):
			m.Rcode = mdns.RcodeNameError
		case m.Question[0].Qtype == typeA:
			m.Answer = []mdns.RR{rr(m.Question[0].Name + " 60 IN A 192.0.2.1")}
		default:
			m.Answer = []mdns.RR{rr(m.Question[0].Name + " 60 IN AAAA 2001:db8::1")}
		}
	}))
	const pod, first = "10.244.1.77", "www.example.com.shop.svc.cluster.local."
	for _, mode := range []client.Mode{client.CountOnly, client.Off, client.On} {
		s := through{dual(t, func(o *Options) {
			o.Blocks[0] = block("cluster.local", up.addr)
			o.Clients.Domain = "cluster.local"
			o.Asking.Completion, o.Asking.AAAA = mode, mode
		}), t}
		b := model.NewBuilder(model.Config{Self: "n1"})
		for name, addrs := range map[string][]string{"four": {pod}, "both": {"10.244.1.78", "fd00:244:0:1::78"}} {
			p := model.Pod{Name: model.Name{Namespace: "shop", Name: name}, Resolver: &model.Resolver{Policy: model.DNSClusterFirst, Ndots: -1}}
			for _, a := range addrs {
				p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
			}
			b.SetPod(p)
		}
		b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "shop", Name: "orders"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20")}})
		s.Publish(b.Build())
		completed := "NXDOMAIN"
		quad, both := "NXDOMAIN", "NXDOMAIN"
		plain := "NOERROR www.example.com. AAAA 2001:db8::1"
		if mode == client.On {
			completed = "NOERROR " + first + " CNAME www.example.com. www.example.com. A 192.0.2.1"
			quad = "NOERROR" // the pod has no IPv6
			both = "NOERROR " + first + " CNAME www.example.com. www.example.com. AAAA 2001:db8::1"
			plain = "NOERROR"
		}
		for range 2 {
			for _, q := range []struct {
				from, name string
				qtype      uint16
				want       string
			}{
				{pod, first, typeA, completed},
				{pod, first, typeAAAA, quad},
				{"10.244.1.78", first, typeAAAA, both},
				{pod, "www.example.com.", typeAAAA, plain},
				{"10.244.1.78", "www.example.com.", typeAAAA, "NOERROR www.example.com. AAAA 2001:db8::1"},
				{"127.0.0.1", first, typeA, "NXDOMAIN"},
				{pod, "orders.shop.svc.cluster.local.", typeA, "NOERROR orders.shop.svc.cluster.local. A 10.96.0.20"},
				{pod, "orders.shop.shop.svc.cluster.local.", typeA, map[bool]string{true: "NOERROR orders.shop.shop.svc.cluster.local. CNAME orders.shop.svc.cluster.local. orders.shop.svc.cluster.local. A 10.96.0.20", false: "NXDOMAIN"}[mode == client.On]},
				{pod, "nothing.nowhere.shop.svc.cluster.local.", typeA, "NXDOMAIN"},
				{pod, "one.shop.svc.cluster.local.", typeA, "NXDOMAIN"},
			} {
				if got := data(s.askFrom(q.from, q.name, q.qtype)); got != q.want {
					t.Errorf("%v: %s asks for %s %s: %s, want %s", mode, q.from, q.name, mdns.TypeToString[q.qtype], got, q.want)
				}
			}
		}
	}
}

// The names that a question is completed with have together the time of one question: what is not known by then is a failure, which is no denial, and nobody is asked any more.
func TestCompletionTakesTooLong(t *testing.T) {
	const bound = 100 * time.Millisecond
	up := newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte {
		time.Sleep(2 * bound) // an upstream that is slow with everything
		return says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeNameError })(q, tcp)
	})
	s := through{dual(t, func(o *Options) {
		o.Blocks[0] = block("cluster.local", up.addr)
		o.Clients.Domain = "cluster.local"
		o.Asking.Completion = client.On
		o.UpstreamTimeout = time.Minute
	}), t}
	s.completing = bound
	b := model.NewBuilder(model.Config{Self: "n1"})
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "four"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.77")},
		Resolver: &model.Resolver{Policy: model.DNSClusterFirst, Ndots: -1, Searches: []string{"a.example", "b.example", "c.example"}}})
	s.Publish(b.Build())
	q := new(mdns.Msg).SetQuestion("www.example.com.shop.svc.cluster.local.", typeA)
	q.SetEdns0(1232, false)
	m := new(mdns.Msg)
	if err := m.Unpack(s.respond("udp", netip.MustParseAddr("10.244.1.77"), packed(t, q))); err != nil {
		t.Fatal(err)
	}
	if m.Rcode != mdns.RcodeServerFailure || !strings.Contains(m.String(), "took too long") {
		t.Errorf("it was answered with %v", m)
	}
	if n := up.asked[0].Load(); n > 1 {
		t.Errorf("the upstream was asked %d questions", n)
	}
}

// What is completed is answered at once if the cache has what it leads to, as it was the first time; it counts as the cache's, and as a question to it.
func TestCompletionFromCache(t *testing.T) {
	var lines strings.Builder
	up := newResolver(t, says(func(m *mdns.Msg) {
		if m.Question[0].Qtype == typeA {
			m.Answer = []mdns.RR{rr(m.Question[0].Name + " 60 IN A 192.0.2.1")}
		} else {
			m.Ns = []mdns.RR{rr("example.com. 60 IN SOA a. b. 1 2 3 4 60")}
		}
	}))
	now := time.Now()
	s := forwarding(t, func(o *Options) {
		o.Now = func() time.Time { return now }
		o.Clients.Domain, o.Asking.Completion = "cluster.local", client.On
		o.Blocks[0].Log = []Log{{Zone: ".", Success: true}}
		o.Logger = slog.New(slog.NewTextHandler(&lines, nil))
	}, up)
	b := model.NewBuilder(model.Config{Self: "n1"})
	pod := netip.MustParseAddr("10.244.1.77")
	b.SetPod(model.Pod{Name: name("shop/web"), Addrs: []netip.Addr{pod}})
	b.SetService(model.ServiceSpec{Name: name("shop/away"), Type: model.ExternalName, ExternalName: "www.example.com"})
	s.Publish(b.Build())
	d := s.desk(s.testStats("udp"))
	for _, q := range []string{"www.example.com.shop.svc.cluster.local.", "away.shop.svc.cluster.local.", "Away.shop.Shop.svc.cluster.local."} {
		req := packed(t, new(mdns.Msg).SetQuestion(q, typeA))
		s.respond("udp", pod, req)
		want, asked, before := comparable(t, s.respond("udp", pod, req)), up.asked[0].Load(), gather(t, s.Server)
		resp, later := s.handle(d, pod, req, make([]byte, slotSize))
		if resp == nil || later != nil {
			t.Fatalf("%s is not answered at once", q)
		}
		if got := comparable(t, resp); got != want {
			t.Errorf("%s: at first\n%s\nat once\n%s", q, want, got)
		}
		if n := up.asked[0].Load() - asked; n > 0 {
			t.Errorf("%s: the upstream was asked %d times more", q, n)
		}
		hits := 0.0
		for name, v := range gather(t, s.Server) {
			if strings.HasPrefix(name, "coredns_cache_hits_total{") {
				hits += v - before[name]
			}
		}
		if hits < 1 || hits > 2 {
			t.Errorf("%s: %v hits of the cache, want one for each name and type", q, hits)
		}
	}
	if n := strings.Count(lines.String(), "from=cache"); n < 3 {
		t.Errorf("%d lines of the log are from the cache:\n%s", n, lines.String())
	}
}

// A block with autopath completes whatever is set for all.
func TestCompletionOfBlock(t *testing.T) {
	b := block("cluster.local")
	b.Autopath = true
	s := through{dual(t, func(o *Options) {
		o.Blocks, o.Clients.Domain, o.Asking.Completion = []Block{b}, "cluster.local", client.Off
	}), t}
	w := model.NewBuilder(model.Config{Self: "n1"})
	w.SetPod(model.Pod{Name: name("tools/shell"), Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.9")}, Resolver: &model.Resolver{Policy: model.DNSClusterFirst, Ndots: -1}})
	w.SetService(model.ServiceSpec{Name: name("shop/orders"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20")}})
	s.Publish(w.Build())
	const want = "NOERROR orders.shop.tools.svc.cluster.local. CNAME orders.shop.svc.cluster.local. orders.shop.svc.cluster.local. A 10.96.0.20"
	if got := data(s.askFrom("10.244.1.9", "orders.shop.tools.svc.cluster.local.", typeA)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// What is completed is answered as the further names would be: by the rules and the blocks that are for them. No other zone's word about how long a denial
// holds goes with it, and nothing of it is verified.
func TestCompletionByBlocks(t *testing.T) {
	soa := rr("example.com. 3600 IN SOA ns.example.com. admin.example.com. 1 2 3 4 3600")
	up := newResolver(t, says(func(m *mdns.Msg) {
		m.AuthenticatedData = true
		switch {
		case !strings.EqualFold(m.Question[0].Name, "www.example.com."):
			m.Rcode = mdns.RcodeNameError
		case m.Question[0].Qtype == typeA:
			m.Answer = []mdns.RR{rr(m.Question[0].Name + " 60 IN A 192.0.2.1")}
		default:
			m.Ns = []mdns.RR{soa}
		}
	}))
	stub := newResolver(t, says(func(m *mdns.Msg) { m.Answer = []mdns.RR{rr(m.Question[0].Name + " 60 IN A 192.0.2.9")} }))
	all, corp := block("cluster.local", up.addr), block("cluster.local", stub.addr)
	corp.Zones, corp.Cluster = []string{"corp.example."}, nil
	all.Rules = rules.Rules{Hosts: &rules.Hosts{Zones: []string{"."}, Fallthrough: []string{"."}, TTL: 60,
		Inline: []rules.Host{{Addr: netip.MustParseAddr("192.0.2.7"), Names: []string{"printer.example."}}}}}
	s := through{dual(t, func(o *Options) {
		o.Blocks = []Block{all, corp}
		o.Clients.Domain = "cluster.local"
		o.Asking.Completion = client.On
	}), t}
	b := model.NewBuilder(model.Config{Self: "n1"})
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "web"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.77")}})
	s.Publish(b.Build())
	for _, tt := range []struct {
		short string
		qtype uint16
		want  string
	}{
		{"www.example.com", typeA, "NOERROR www.example.com.shop.svc.cluster.local. CNAME www.example.com. www.example.com. A 192.0.2.1"},
		{"www.example.com", typeAAAA, "NOERROR"},
		{"printer.example", typeA, "NOERROR printer.example.shop.svc.cluster.local. CNAME printer.example. printer.example. A 192.0.2.7"},
		{"mail.corp.example", typeA, "NOERROR mail.corp.example.shop.svc.cluster.local. CNAME mail.corp.example. mail.corp.example. A 192.0.2.9"},
	} {
		q := new(mdns.Msg).SetQuestion(tt.short+".shop.svc.cluster.local.", tt.qtype)
		q.AuthenticatedData = true
		m := new(mdns.Msg)
		if err := m.Unpack(s.respond("udp", netip.MustParseAddr("10.244.1.77"), packed(t, q))); err != nil {
			t.Fatal(err)
		}
		if got := data(m); got != tt.want || m.AuthenticatedData {
			t.Errorf("%s: %s, verified %t, want %s", tt.short, got, m.AuthenticatedData, tt.want)
		}
		for _, rr := range m.Ns {
			if rr.Header().Name != "cluster.local." || rr.Header().Ttl != 0 {
				t.Errorf("%s: authority %v", tt.short, rr)
			}
		}
		if tt.qtype == typeAAAA && len(m.Ns) != 1 {
			t.Errorf("%s: nobody says how long that holds", tt.short)
		}
	}
}

// Counting what completion would spare looks at few questions, changes no answer, and asks nobody; what it counts is about what there was.
func TestCompletionCounted(t *testing.T) {
	up := newResolver(t, addresses)
	s := through{dual(t, func(o *Options) {
		o.Blocks[0] = block("cluster.local", up.addr)
		o.Clients.Domain = "cluster.local"
	}), t}
	b := model.NewBuilder(model.Config{Self: "n1"})
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "web"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.77")}})
	s.Publish(b.Build())
	const n = 12_800
	for range n {
		if got := data(s.askFrom("10.244.1.77", "www.example.com.shop.svc.cluster.local.", typeA)); got != "NXDOMAIN" {
			t.Fatal(got)
		}
	}
	counted := map[string]float64{}
	for k, v := range gather(t, s.Server) {
		name, _, _ := strings.Cut(k, "{")
		counted[name] += v
	}
	// One in 64 is drawn: 200 of them, with a deviation of 14.
	if c, spared := counted["fairlead_dns_completions_total"], counted["fairlead_dns_completion_spared_total"]; c < 0.6*n || c > 1.4*n || spared != 3*c {
		t.Errorf("%v questions would have been completed, of %d; %v spared", c, n, spared)
	}
	if n := up.asked[0].Load(); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
	d := s.desk(s.testStats("udp"))
	d.drawn = true
	if s.fast(d, s.gate.state.Load(), message(t, func(m *mdns.Msg) { m.SetQuestion("odd\\000.shop.svc.cluster.local.", typeA) }), nil) != nil || d.drawn {
		t.Error("a question is counted because the one before was drawn")
	}
}

// A pod's questions are logged with its name, those of the kinds that the block says.
func TestQueryLog(t *testing.T) {
	var lines strings.Builder
	b := block("cluster.local")
	b.Log = []Log{{Zone: "shop.svc.cluster.local.", Denial: true}, {Zone: "dns.cluster.local.", Success: true}}
	s := through{dual(t, func(o *Options) {
		o.Blocks = []Block{b}
		o.Logger = slog.New(slog.NewTextHandler(&lines, nil))
	}), t}
	for _, name := range []string{"orders.shop.svc.cluster.local.", "Nothing.shop.svc.cluster.local.", "nothing.default.svc.cluster.local.", "ns.dns.cluster.local."} {
		s.ask(name, typeA, nil)
	}
	got := lines.String()
	if strings.Count(got, "msg=query") != 2 || !strings.Contains(strings.ToLower(got), "name=nothing.shop.svc.cluster.local. type=a rcode=nxdomain") ||
		!strings.Contains(got, "name=ns.dns.cluster.local. type=A rcode=NOERROR") {
		t.Errorf("the log is\n%s", got)
	}
}

// A bug that a query finds costs that query its answer, and nothing else.
func TestPanic(t *testing.T) {
	var lines strings.Builder
	s := through{dual(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&lines, nil)) }), t}
	whole := s.plan.Load()
	s.plan.Store(nil)
	if resp := s.respond("udp", loopback, message(t, nil)); resp != nil {
		t.Errorf("answered with %x", resp)
	}
	s.plan.Store(whole)
	if !strings.Contains(lines.String(), "a query has found a bug") {
		t.Errorf("the log is\n%s", lines.String())
	}
	if got := data(s.ask("orders.shop.svc.cluster.local.", typeA, nil)); got != "NOERROR orders.shop.svc.cluster.local. A 10.96.0.20" {
		t.Errorf("afterwards: %s", got)
	}
}

// A cluster may name endpoints after their pods, hide Services that have none, and keep to some namespaces, on both paths alike.
func TestClusterOptions(t *testing.T) {
	ask := func(change func(*Cluster), asked string, qtype uint16) string {
		t.Helper()
		b := block("cluster.local")
		change(b.Cluster)
		s := through{dual(t, func(o *Options) { o.Blocks = []Block{b} }), t}
		w := model.NewBuilder(model.Config{Self: "n1"})
		for i, n := range []string{"shop/empty", "shop/full", "other/full"} {
			name := name(n)
			w.SetService(model.ServiceSpec{Name: name, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(20 + i)})}})
			ready := name.Name == "full"
			w.SetSlice(model.Slice{Name: name, Service: name.Name, Endpoints: []model.Endpoint{{Addr: netip.AddrFrom4([4]byte{10, 244, 1, byte(20 + i)}), Ready: ready, Pod: model.Name{Namespace: name.Namespace, Name: "pod-1"}}}})
		}
		w.SetService(model.ServiceSpec{Name: name("shop/head"), Type: model.Headless})
		w.SetSlice(model.Slice{Name: name("shop/head"), Service: "head", Endpoints: []model.Endpoint{
			{Addr: netip.MustParseAddr("10.244.1.50"), Ready: true, Pod: name("shop/pod-2")},
			{Addr: netip.MustParseAddr("10.244.1.51"), Ready: true, Pod: name("shop/" + strings.Repeat("x", 64))}}})
		for _, n := range []string{"other/host", "shop/host"} {
			w.SetPod(model.Pod{Name: name(n), Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, HostNetwork: true})
		}
		s.Publish(w.Build())
		return data(s.ask(asked, qtype, nil))
	}
	none := func(*Cluster) {}
	pods := func(c *Cluster) { c.EndpointPodNames = true }
	full := func(c *Cluster) { c.IgnoreEmpty = true }
	shop := func(c *Cluster) { c.Namespaces, c.Pods = []string{"shop"}, PodsInsecure }
	known := func(c *Cluster) { c.Pods = PodsVerified }
	zero := func(c *Cluster) { c.TTL = 0 }
	for _, tt := range []struct {
		change func(*Cluster)
		name   string
		qtype  uint16
		want   string
	}{
		{none, "10-244-1-50.head.shop.svc.cluster.local.", typeA, "NOERROR 10-244-1-50.head.shop.svc.cluster.local. A 10.244.1.50"},
		{none, "pod-2.head.shop.svc.cluster.local.", typeA, "NXDOMAIN"},
		{pods, "pod-2.head.shop.svc.cluster.local.", typeA, "NOERROR pod-2.head.shop.svc.cluster.local. A 10.244.1.50"},
		{pods, "10-244-1-50.head.shop.svc.cluster.local.", typeA, "NXDOMAIN"},
		{pods, "10-244-1-51.head.shop.svc.cluster.local.", typeA, "NOERROR 10-244-1-51.head.shop.svc.cluster.local. A 10.244.1.51"},
		{pods, "50.1.244.10.in-addr.arpa.", typePTR, "NOERROR 50.1.244.10.in-addr.arpa. PTR pod-2.head.shop.svc.cluster.local."},
		{none, "empty.shop.svc.cluster.local.", typeA, "NOERROR empty.shop.svc.cluster.local. A 10.96.0.20"},
		{full, "empty.shop.svc.cluster.local.", typeA, "NXDOMAIN"},
		{full, "full.shop.svc.cluster.local.", typeA, "NOERROR full.shop.svc.cluster.local. A 10.96.0.21"},
		{none, "full.other.svc.cluster.local.", typeA, "NOERROR full.other.svc.cluster.local. A 10.96.0.22"},
		{shop, "full.other.svc.cluster.local.", typeA, "NXDOMAIN"},
		{shop, "other.svc.cluster.local.", typeA, "NXDOMAIN"},
		{shop, "full.shop.svc.cluster.local.", typeA, "NOERROR full.shop.svc.cluster.local. A 10.96.0.21"},
		{shop, "10-244-1-50.shop.pod.cluster.local.", typeA, "NOERROR 10-244-1-50.shop.pod.cluster.local. A 10.244.1.50"},
		{shop, "10-244-1-50.other.pod.cluster.local.", typeA, "NXDOMAIN"},
		{shop, "shop.pod.cluster.local.", typeA, "NOERROR"},
		{shop, "other.pod.cluster.local.", typeA, "NXDOMAIN"},
		{known, "10-0-0-1.shop.pod.cluster.local.", typeA, "NOERROR 10-0-0-1.shop.pod.cluster.local. A 10.0.0.1"},
		{known, "10-0-0-1.other.pod.cluster.local.", typeA, "NOERROR 10-0-0-1.other.pod.cluster.local. A 10.0.0.1"},
		{known, "10-0-0-1.third.pod.cluster.local.", typeA, "NXDOMAIN"},
		{zero, "full.shop.svc.cluster.local.", typeA, "NOERROR full.shop.svc.cluster.local. A 10.96.0.21"},
	} {
		if got := ask(tt.change, tt.name, tt.qtype); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.name, mdns.TypeToString[tt.qtype], got, tt.want)
		}
	}
}
