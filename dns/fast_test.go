// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/test/queries"
)

// paths has a message answered by the fast path and by the slow one, and reports whether the fast one did. They must agree in everything but
// the order of records and the spelling of names in them.
func paths(t testing.TB, s *Server, proto string, from netip.Addr, req []byte) bool {
	t.Helper()
	d, st := s.desk(s.testStats(proto)), s.gate.state.Load()
	d.from = from
	d.who = st.announced.clients.Lookup(from)
	if s.clients.Admit(d.who, from, d.tick) != client.Answer {
		return false
	}
	quick := slices.Clone(s.fast(d, st, req, make([]byte, 4096)))
	if quick == nil {
		return false
	}
	resp, later := s.slow(d, s.gate.state.Load(), req, make([]byte, 4096), true)
	if later != nil {
		t.Fatalf("the slow path has to wait for what the fast one answers:\n%s", describe(t, req, quick))
	}
	if got, want := comparable(t, quick), comparable(t, resp); got != want {
		t.Fatalf("the fast path answers\n%s\nand the slow one\n%s", got, want)
	}
	// The question comes back as it was spelled.
	if !bytes.Equal(quick[headerSize:d.asked.end], req[headerSize:d.asked.end]) {
		t.Fatalf("the question comes back as %q, it was %q", quick[headerSize:d.asked.end], req[headerSize:d.asked.end])
	}
	return true
}

// comparable is a message without what may differ.
func comparable(t testing.TB, b []byte) string {
	t.Helper()
	m := new(mdns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("the answer %x does not parse: %v", b, err)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%+v\n", m.MsgHdr)
	for _, section := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		var lines []string
		for _, rr := range section {
			lines = append(lines, strings.ToLower(rr.String()))
		}
		slices.Sort(lines)
		fmt.Fprintf(&out, "%s\n--\n", strings.Join(lines, "\n"))
	}
	return out.String()
}

// The table is answered by the fast path wherever it is about usual names.
func TestTableFast(t *testing.T) {
	eachGroup(t, func(t *testing.T, g queries.Group, o Options) {
		s := newServer(t, o)
		s.Publish(g.Snapshot)
		fast := 0
		for _, r := range g.Rows {
			for _, edns := range []uint16{0, 512, 4096} {
				q := new(mdns.Msg).SetQuestion(r.Name, typeOf(t, r))
				q.CheckingDisabled, q.RecursionDesired = r.Line%3 == 0, r.Line%5 > 0
				if edns > 0 {
					q.SetEdns0(edns, r.Line%2 == 0)
				}
				b, err := q.Pack()
				if err != nil {
					continue
				}
				for _, proto := range []string{"udp", "tcp"} {
					if paths(t, s, proto, loopback, b) {
						fast++
					}
				}
			}
		}
		if share := float64(fast) / float64(6*len(g.Rows)); len(g.Rows) > 20 && share < 0.4 {
			t.Errorf("only %.2f of the answers are fast", share)
		}
	})
}

// Both paths agree about random worlds, also while something is announced and not published, or refused.
func TestRandomFast(t *testing.T) {
	r := random(t)
	fast, asked := 0, 0
	for range 6 {
		w := newRandomWorld(r)
		w.options.Settle, w.options.NegativeTTL = time.Hour, time.Duration(r.IntN(20))*time.Second
		s := newServer(t, w.options)
		last := w.Build()
		s.Publish(last)
		for range 30 {
			for range 1 + r.IntN(5) {
				w.step(r)
			}
			next := w.Build()
			s.Announce(next)
			for range 200 {
				if ask(t, r, s) {
					fast++
				}
				asked++
			}
			var refused []model.Name
			if r.IntN(3) == 0 {
				refused = append(refused, w.name(r))
			}
			s.Publish(next, refused...)
			for range 200 {
				if ask(t, r, s) {
					fast++
				}
				asked++
			}
		}
	}
	if fast < asked/3 {
		t.Errorf("%d of %d answers are fast", fast, asked)
	}
}

// ask asks a random question on both paths.
func ask(t *testing.T, r *rand.Rand, s *Server) bool {
	t.Helper()
	svc := pick(r, "x", "y", "z", "w", "q") + "." + pick(r, "a", "b", "c", "q") + ".svc.cluster.local."
	n := pick(r, svc, svc, svc,
		pick(r, "h0.", "h1.", "10-244-1-3.", fmt.Sprintf("10-244-1-%d.", r.IntN(20)), "fd00-244-0-1--5.", "_tcp.", "_http._tcp.", "_dns._udp.", "_dns._tcp.", "_sig._sctp.", "_._tcp.", "x.y.", "_x._y._tcp.")+svc,
		fmt.Sprintf("%d.1.244.10.in-addr.arpa.", r.IntN(22)),
		fmt.Sprintf("%d.0.96.10.in-addr.arpa.", r.IntN(22)),
		fmt.Sprintf("%x.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.", r.IntN(16)),
		fmt.Sprintf("%x.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.4.4.2.0.0.0.d.f.ip6.arpa.", r.IntN(16)),
		pick(r, "cluster.local.", "svc.cluster.local.", "a.svc.cluster.local.", "pod.cluster.local.", "10-244-1-3.a.pod.cluster.local.", "dns.cluster.local.", "ns.dns.cluster.local.", "x.ns.dns.cluster.local.",
			"dns-version.cluster.local.", "x.dns-version.cluster.local.", "www.example.com.", "com.cluster.local.", "xcluster.local.", "local.", ".", "arpa.", "300.1.244.10.in-addr.arpa.", "01.0.96.10.in-addr.arpa."))
	if r.IntN(3) == 0 {
		n = strings.ToUpper(n)
	}
	q := new(mdns.Msg).SetQuestion(n, pick(r, mdns.TypeA, mdns.TypeA, mdns.TypeAAAA, mdns.TypeSRV, mdns.TypePTR, mdns.TypeTXT, mdns.TypeMX, mdns.TypeANY, mdns.TypeNS))
	if r.IntN(2) == 0 {
		q.SetEdns0(uint16(r.IntN(2000)), r.IntN(2) == 0)
	}
	from := loopback
	if r.IntN(20) == 0 {
		from = netip.MustParseAddr("192.0.2.1")
	}
	return paths(t, s, "udp", from, packed(t, q))
}

// An answer that is too long is left to the slow path, which knows what to leave out.
func TestFastTooLong(t *testing.T) {
	c := newCluster(t, Options{})
	c.service("shop/many")
	var addrs []string
	for i := range 80 {
		addrs = append(addrs, fmt.Sprintf("10.244.1.%d", i+1))
	}
	for _, tt := range []struct {
		n    int
		edns uint16
		fast bool
	}{{20, 0, true}, {30, 0, false}, {30, 1232, true}, {73, 4096, true}, {74, 4096, false}, {80, 4096, false}} { // of 74, all but the OPT record would fit
		c.endpoints("shop/many", addrs[:tt.n]...)
		c.step()
		req := message(t, func(m *mdns.Msg) {
			m.SetQuestion("many.shop.svc.cluster.local.", typeA)
			if tt.edns > 0 {
				m.SetEdns0(tt.edns, false)
			}
		})
		if got := paths(t, c.Server, "udp", loopback, req); got != tt.fast {
			t.Errorf("%d addresses, EDNS %d: fast %t", tt.n, tt.edns, got)
		}
	}
}

// Both paths count and log a query in the same way.
func TestFastCounts(t *testing.T) {
	questions := []struct {
		name  string
		qtype uint16
	}{{"orders.shop.svc.cluster.local.", typeA}, {"orders.shop.svc.cluster.local.", mdns.TypeTXT}, {"nothing.shop.svc.cluster.local.", typeA}, {"nothing.default.svc.cluster.local.", typeAAAA},
		{"_http._tcp.orders.shop.svc.cluster.local.", typeSRV}, {"20.0.96.10.in-addr.arpa.", typePTR},
		{"4.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.", typePTR}}
	for _, settings := range []client.LogSettings{{}, {Every: 1}} {
		account := func(fast bool) (map[string]float64, string) {
			var lines strings.Builder
			s := dual(t, func(o *Options) {
				o.Now = func() time.Time { return origin }
				o.Blocks[0].Log = []Log{{Zone: "shop.svc.cluster.local.", Denial: true}, {Zone: "arpa.", Success: true}}
				o.Asking.Log = settings
				o.Logger = slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
					if a.Key == slog.TimeKey {
						return slog.Attr{}
					}
					return a
				}}))
			})
			d, st := s.desk(s.testStats("udp")), s.gate.state.Load()
			d.from, d.who = loopback, st.announced.clients.Lookup(loopback)
			for i, q := range questions {
				req := packed(t, new(mdns.Msg).SetQuestion(q.name, q.qtype).SetEdns0(1232, i%2 == 0))
				if fast {
					if s.fast(d, st, req, make([]byte, slotSize)) == nil {
						t.Errorf("%s is not fast", q.name)
					}
					d.sent(s.now())
				} else if resp, _ := s.slow(d, s.gate.state.Load(), req, make([]byte, slotSize), true); resp == nil {
					t.Errorf("%s has to wait", q.name)
				}
			}
			return gather(t, s), lines.String()
		}
		counted, logged := account(true)
		wantCounted, wantLogged := account(false)
		if !maps.Equal(counted, wantCounted) {
			t.Errorf("the fast path counts\n%v\nand the slow one\n%v", counted, wantCounted)
		}
		if n := strings.Count(logged, "\n"); logged != wantLogged || n != map[uint32]int{0: 4, 1: len(questions)}[settings.Every] {
			t.Errorf("the fast path logs %d lines:\n%s\nand the slow one\n%s", n, logged, wantLogged)
		}
	}
}

// What an upstream has said is answered from the cache on the fast path as it was the first time, and is the answer to that very question only.
func TestFastFromCache(t *testing.T) {
	var lines strings.Builder
	up := newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte {
		return says(func(m *mdns.Msg) {
			m.Authoritative, m.AuthenticatedData = true, true
			if strings.HasPrefix(strings.ToLower(q.Question[0].Name), "none.") {
				m.Rcode, m.Ns = mdns.RcodeNameError, []mdns.RR{rr("example.com. 60 IN SOA a. b. 1 2 3 4 60")}
				return
			}
			m.Answer = []mdns.RR{rr(fmt.Sprintf("%s 60 IN TXT \"CD %t DO %t\"", q.Question[0].Name, q.CheckingDisabled, q.IsEdns0() != nil && q.IsEdns0().Do()))}
		})(q, tcp)
	})
	now := time.Now()
	s := forwarding(t, func(o *Options) {
		o.Now = func() time.Time { return now }
		o.Blocks[0].Log = []Log{{Zone: ".", Success: true, Denial: true}}
		o.Logger = slog.New(slog.NewTextHandler(&lines, nil))
	}, up)
	asked := 0
	for _, name := range []string{"www.example.com.", "none.example.com."} {
		for _, flags := range []struct{ rd, cd, ad, do, edns bool }{{rd: true}, {cd: true}, {ad: true}, {edns: true}, {do: true, edns: true}, {rd: true, cd: true, ad: true, do: true, edns: true}} {
			q := new(mdns.Msg).SetQuestion(name, mdns.TypeTXT)
			q.RecursionDesired, q.CheckingDisabled, q.AuthenticatedData = flags.rd, flags.cd, flags.ad
			if flags.edns {
				q.SetEdns0(1232, flags.do)
			}
			req := packed(t, q)
			first := comparable(t, s.respond("udp", loopback, req))
			d, st := s.desk(s.testStats("udp")), s.gate.state.Load()
			d.from, d.who = loopback, st.announced.clients.Lookup(loopback)
			quick := s.fast(d, st, req, make([]byte, slotSize))
			if quick == nil {
				t.Fatalf("%s %+v is not fast", name, flags)
			}
			if got := comparable(t, quick); got != first {
				t.Errorf("%s %+v: at first\n%s\nfrom the cache\n%s", name, flags, first, got)
			}
			m := new(mdns.Msg)
			if err := m.Unpack(quick); err != nil {
				t.Fatal(err)
			}
			if name == "www.example.com." {
				if got, want := data(m), fmt.Sprintf(`NOERROR %s TXT "CD %t DO %t"`, name, flags.cd, flags.do); got != want {
					t.Errorf("%+v: %s, want %s", flags, got, want)
				}
			}
			if m.Authoritative || !m.RecursionAvailable || m.AuthenticatedData != (flags.ad || flags.do) {
				t.Errorf("%s %+v: flags %+v", name, flags, m.MsgHdr)
			}
			asked++
		}
	}
	if n := gather(t, s.Server)["coredns_dns_responses_total{plugin=fairlead,rcode=NXDOMAIN,server=dns://127.0.0.1:53,view=,zone=.}"]; n != float64(asked) {
		t.Errorf("%v denials are counted, want %d", n, asked)
	}
	if n := strings.Count(lines.String(), "from=cache"); n < asked {
		t.Errorf("%d lines of the log are from the cache, want at least %d:\n%s", n, asked, lines.String())
	}
}

// The addresses of a headless Service begin at each of them, if they are to.
func TestFastRotates(t *testing.T) {
	c := newCluster(t, Options{})
	c.service("shop/many")
	c.endpoints("shop/many", "10.244.1.1", "10.244.1.2", "10.244.1.3", "10.244.1.4")
	c.step()
	first := make(map[string]int)
	d := c.desk(c.newStats("udp", testAddr))
	req, m := message(t, func(m *mdns.Msg) { m.SetQuestion("many.shop.svc.cluster.local.", typeA) }), new(mdns.Msg)
	for range 400 {
		if err := m.Unpack(c.fast(d, c.gate.state.Load(), req, make([]byte, 512))); err != nil {
			t.Fatal(err)
		}
		first[m.Answer[0].(*mdns.A).A.String()]++
	}
	if len(first) != 4 {
		t.Errorf("the first addresses are %v", first)
	}
	for a, n := range first {
		if n < 50 {
			t.Errorf("%s is first %d times of 400", a, n)
		}
	}
	b := block("cluster.local")
	b.Loadbalance = false
	if err := c.Reload([]Block{b}); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := m.Unpack(c.fast(d, c.gate.state.Load(), req, make([]byte, 512))); err != nil || m.Answer[0].(*mdns.A).A.String() != "10.244.1.1" {
			t.Fatalf("without Loadbalance: %v, %v", m, err)
		}
	}
}

// With the plugin errors of kubeadm's Corefile too, which logs none of these.
func TestFastAllocatesNothing(t *testing.T) {
	c := newCluster(t, Options{})
	b := block("cluster.local")
	b.Errors, b.Log = true, []Log{{Zone: ".", Error: true}}
	if err := c.Reload([]Block{b}); err != nil {
		t.Fatal(err)
	}
	c.service("shop/orders", "10.96.0.20", "fd00:96::14")
	c.endpoints("shop/orders", "10.244.1.1")
	c.service("shop/many")
	c.endpoints("shop/many", "10.244.1.1", "10.244.1.2", "10.244.1.3")
	c.step()
	d, buf := c.desk(c.newStats("udp", testAddr)), make([]byte, slotSize)
	for _, n := range []string{"orders.shop.svc.cluster.local. A", "orders.shop.svc.cluster.local. AAAA", "orders.shop.svc.cluster.local. TXT", "many.shop.svc.cluster.local. A",
		"_http._tcp.orders.shop.svc.cluster.local. SRV", "20.0.96.10.in-addr.arpa. PTR", "1.1.244.10.in-addr.arpa. PTR", "10-244-1-1.many.shop.svc.cluster.local. A",
		"nothing.shop.svc.cluster.local. A", "www.example.com.svc.cluster.local. A", "www.example.com.cluster.local. A"} {
		name, kind, _ := strings.Cut(n, " ")
		req := packed(t, new(mdns.Msg).SetQuestion(name, mdns.StringToType[kind]).SetEdns0(1232, false))
		if allocs := testing.AllocsPerRun(100, func() {
			if c.fast(d, c.gate.state.Load(), req, buf) == nil {
				t.Errorf("%s is not fast", n)
			}
			d.sent(time.Time{})
		}); allocs != 0 {
			t.Errorf("%s: %v allocations", n, allocs)
		}
	}
}

// Whatever comes in: what the fast path answers, the slow one answers too.
func FuzzFast(f *testing.F) {
	addTable(f)
	f.Add(message(f, func(m *mdns.Msg) {
		m.SetEdns0(1232, true).IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
	}))
	s := dual(f, nil)
	f.Fuzz(func(t *testing.T, req []byte) {
		for _, proto := range []string{"udp", "tcp"} {
			paths(t, s, proto, loopback, req)
		}
	})
}
