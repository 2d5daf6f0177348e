// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/rules"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/test/queries"
)

// dual is a server that knows the first world of the table.
func dual(t testing.TB, change func(*Options)) *Server {
	t.Helper()
	groups, err := queries.Groups()
	if err != nil {
		t.Fatal(err)
	}
	o := optionsOf(t, groups[0])
	if change != nil {
		change(&o)
	}
	s := newServer(t, o)
	s.Publish(groups[0].Snapshot)
	return s
}

// testStats is where the queries of tests are counted.
func (s *Server) testStats(proto string) *socketStats {
	for _, c := range s.stats() {
		if c.local == testAddr && c.proto == proto {
			return c
		}
	}
	return s.newStats(proto, testAddr)
}

// respond handles a message to its end.
func (s *Server) respond(proto string, from netip.Addr, req []byte) []byte {
	d := s.desk(s.testStats(proto))
	resp, later := s.handle(d, from, req, make([]byte, 4096))
	d.sent(s.now())
	if later != nil {
		return later(context.Background(), nil)
	}
	return resp
}

var testAddr = netip.MustParseAddrPort("127.0.0.1:53")

var loopback = netip.MustParseAddr("127.0.0.1")

func packed(t testing.TB, m *mdns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// message is a plain query, changed by change.
func message(t testing.TB, change func(*mdns.Msg)) []byte {
	m := new(mdns.Msg).SetQuestion("orders.shop.svc.cluster.local.", typeA)
	if change != nil {
		change(m)
	}
	return packed(t, m)
}

func TestMessages(t *testing.T) {
	s := dual(t, nil)
	plain := message(t, nil)
	edit := func(f func(b []byte) []byte) []byte { return f(append([]byte(nil), plain...)) }
	second := &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT}}
	for _, tt := range []struct {
		name string
		req  []byte
		want string // response code, "silence"; with "header" only the header comes back
	}{
		{"plain", plain, "NOERROR"},
		{"nothing", nil, "silence"},
		{"half a header", plain[:11], "silence"},
		{"a response", edit(func(b []byte) []byte { b[2] |= 0x80; return b }), "silence"},
		{"only a header", edit(func(b []byte) []byte { return b[:12] }), "FORMERR header"},
		{"no question", edit(func(b []byte) []byte { b[5] = 0; return b[:12] }), "FORMERR header"},
		{"two questions", message(t, func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) }), "FORMERR header"},
		{"65535 questions", edit(func(b []byte) []byte { b[4], b[5] = 255, 255; return b }), "FORMERR header"},
		{"cut in the name", edit(func(b []byte) []byte { return b[:20] }), "FORMERR header"},
		{"cut after the name", edit(func(b []byte) []byte { return b[:len(b)-4] }), "FORMERR header"},
		{"cut in the class", edit(func(b []byte) []byte { return b[:len(b)-1] }), "FORMERR header"},
		{"something behind", edit(func(b []byte) []byte { return append(b, 0, 1, 2) }), "NOERROR"},
		{"name points to itself", edit(func(b []byte) []byte { return append(b[:12], 0xc0, 12, 0, 1, 0, 1) }), "FORMERR header"},
		{"name points forward", edit(func(b []byte) []byte { return append(b[:12], 0xc0, 40, 0, 1, 0, 1) }), "FORMERR header"},
		{"name points into the header", edit(func(b []byte) []byte { return append(b[:12], 0xc0, 0, 0, 1, 0, 1) }), "FORMERR header"},
		{"reserved label type", edit(func(b []byte) []byte { return append(b[:12], 0x80, 1, 0, 0, 1, 0, 1) }), "FORMERR header"},
		{"a label of 64", edit(func(b []byte) []byte {
			return append(append(append(b[:12], 64), make([]byte, 64)...), 0, 0, 1, 0, 1)
		}), "FORMERR header"},
		{"a name of 256", edit(func(b []byte) []byte {
			return append(append(b[:12], []byte(strings.Repeat("\x01a", 128))...), 0, 0, 1, 0, 1)
		}), "FORMERR header"},
		{"answers in a query", message(t, func(m *mdns.Msg) {
			m.Answer = []mdns.RR{&mdns.TXT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeTXT, Class: 1}, Txt: []string{"x"}}}
		}), "FORMERR header"},
		{"answers announced, none there", edit(func(b []byte) []byte { b[7] = 1; return b }), "FORMERR header"},
		{"additional announced, none there", edit(func(b []byte) []byte { b[11] = 1; return b }), "FORMERR header"},
		{"two OPT records", message(t, func(m *mdns.Msg) { m.SetEdns0(1232, false); m.Extra = append(m.Extra, second) }), "FORMERR header"},
		{"OPT not at the root", message(t, func(m *mdns.Msg) { m.SetEdns0(1232, false); m.Extra[0].Header().Name = "x." }), "FORMERR header"},
		{"EDNS version 1", message(t, func(m *mdns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), "BADVERS"},
		{"unknown EDNS option", message(t, func(m *mdns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")}}
		}), "NOERROR"},
		{"a cut EDNS option", append(message(t, func(m *mdns.Msg) { m.SetEdns0(1232, false) })[:56], 0, 4, 0, 10, 0, 9), "FORMERR header"},
		{"notify", message(t, func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify }), "NOTIMP header"},
		{"update", message(t, func(m *mdns.Msg) { m.Opcode = mdns.OpcodeUpdate }), "NOTIMP header"},
		{"inverse query", message(t, func(m *mdns.Msg) { m.Opcode = mdns.OpcodeIQuery }), "NOTIMP header"},
		{"unknown opcode", message(t, func(m *mdns.Msg) { m.Opcode = 15 }), "NOTIMP header"},
		{"class CHAOS", message(t, func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS }), "REFUSED"},
		{"class ANY", message(t, func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassANY }), "REFUSED"},
		{"class 0", message(t, func(m *mdns.Msg) { m.Question[0].Qclass = 0 }), "REFUSED"},
		{"type OPT", message(t, func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeOPT }), "FORMERR"},
		{"type 0", message(t, func(m *mdns.Msg) { m.Question[0].Qtype = 0 }), "FORMERR"},
		{"AXFR", message(t, func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeAXFR }), "REFUSED"},
		{"IXFR", message(t, func(m *mdns.Msg) { m.SetIxfr("cluster.local.", 1, "a.", "b.") }), "REFUSED"},
		{"MAILB", message(t, func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeMAILB }), "NOTIMP"},
		{"TKEY", message(t, func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeTKEY }), "NOTIMP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, proto := range []string{"udp", "tcp"} {
				resp := s.respond(proto, loopback, tt.req)
				if got := describe(t, tt.req, resp); got != tt.want {
					t.Errorf("%s: got %s, want %s\n%s", proto, got, tt.want, hex.Dump(resp))
				}
			}
		})
	}
}

// describe checks what holds for every answer, and says what it is.
func describe(t testing.TB, req, resp []byte) string {
	t.Helper()
	if resp == nil {
		return "silence"
	}
	m := new(mdns.Msg)
	if err := m.Unpack(resp); err != nil {
		t.Fatalf("the answer does not parse: %v\n%s", err, hex.Dump(resp))
	}
	if binary.BigEndian.Uint16(req) != m.Id || !m.Response || m.Opcode != int(req[2]>>3&15) || m.RecursionDesired != (req[2]&1 != 0) {
		t.Errorf("the answer's header %v is not the query's", m.MsgHdr)
	}
	got := mdns.RcodeToString[m.Rcode]
	if m.Rcode == mdns.RcodeBadVers {
		got = "BADVERS"
	}
	if len(resp) == headerSize {
		return got + " header"
	}
	return got
}

// Answers fit: without EDNS in 512 octets, with it in what the client takes but never more than ours, over TCP whatever it needs.
func TestSizes(t *testing.T) {
	c := newCluster(t, Options{})
	var addrs []string
	for i := range 200 {
		addrs = append(addrs, fmt.Sprintf("10.244.%d.%d", i/100, i%100+1))
	}
	c.service("shop/web")
	c.endpoints("shop/web", addrs...)
	c.step()
	for _, tt := range []struct {
		proto string
		qtype uint16
		edns  uint16
		limit int
		tc    bool
	}{
		{"udp", typeA, 0, 512, true},
		{"udp", typeA, 100, 512, true},
		{"udp", typeA, 600, 600, true},
		{"udp", typeA, 1232, 1232, true},
		{"udp", typeA, 65535, 1232, true},
		{"tcp", typeA, 0, 65535, false},
		{"tcp", typeA, 512, 65535, false},
		{"udp", typeSRV, 1232, 1232, true},
		{"tcp", typeSRV, 0, 65535, false},
	} {
		name := map[uint16]string{typeA: "web.shop.svc.cluster.local.", typeSRV: "_http._tcp.web.shop.svc.cluster.local."}[tt.qtype]
		q := new(mdns.Msg).SetQuestion(name, tt.qtype)
		if tt.edns > 0 {
			q.SetEdns0(tt.edns, false)
		}
		resp := c.respond(tt.proto, loopback, packed(t, q))
		m := new(mdns.Msg)
		if err := m.Unpack(resp); err != nil {
			t.Fatal(err)
		}
		if len(resp) > tt.limit || m.Truncated != tt.tc || (m.IsEdns0() != nil) != (tt.edns > 0) {
			t.Errorf("%+v: %d octets, TC %t, OPT %v", tt, len(resp), m.Truncated, m.IsEdns0())
		}
		if full := len(m.Answer) == len(addrs); full == tt.tc || len(m.Answer) == 0 {
			t.Errorf("%+v: %d answers", tt, len(m.Answer))
		}
		// As much as fits is there.
		if tt.tc && len(resp) < tt.limit-60 {
			t.Errorf("%+v: only %d octets used", tt, len(resp))
		}
	}
}

// Additional records may be left out without a word: nobody is made to ask again for them.
func TestCutLeavesOutAdditionalFirst(t *testing.T) {
	c := newCluster(t, Options{})
	c.service("shop/web")
	c.endpoints("shop/web", "10.244.0.1", "10.244.0.2", "10.244.0.3", "10.244.0.4", "10.244.0.5", "10.244.0.6", "10.244.0.7")
	c.step()
	q := new(mdns.Msg).SetQuestion("_http._tcp.web.shop.svc.cluster.local.", typeSRV)
	resp := c.respond("udp", loopback, packed(t, q))
	m := new(mdns.Msg)
	if err := m.Unpack(resp); err != nil {
		t.Fatal(err)
	}
	if len(resp) > 512 || m.Truncated || len(m.Answer) != 7 || len(m.Extra) >= 7 {
		t.Errorf("%d octets, TC %t, %d answers, %d additional", len(resp), m.Truncated, len(m.Answer), len(m.Extra))
	}
}

// Clients that take the first address are spread.
func TestRotation(t *testing.T) {
	c := newCluster(t, Options{})
	c.service("shop/web")
	c.endpoints("shop/web", "10.244.0.1", "10.244.0.2", "10.244.0.3", "10.244.0.4")
	c.alias("shop/alias", "web.shop.svc.cluster.local")
	c.step()
	for _, name := range []string{"web.shop.svc.cluster.local.", "alias.shop.svc.cluster.local."} {
		first := make(map[string]int)
		for range 400 {
			m := new(mdns.Msg)
			if err := m.Unpack(c.respond("udp", loopback, packed(t, new(mdns.Msg).SetQuestion(name, typeA)))); err != nil {
				t.Fatal(err)
			}
			if name[0] == 'a' {
				if m.Answer[0].Header().Rrtype != mdns.TypeCNAME {
					t.Fatalf("the alias is not first: %v", m)
				}
				m.Answer = m.Answer[1:]
			}
			first[m.Answer[0].(*mdns.A).A.String()]++
		}
		if len(first) != 4 {
			t.Errorf("%s: first addresses are %v", name, first)
		}
	}
}

func TestExtendedErrors(t *testing.T) {
	ask := func(s *Server, from, name string) *mdns.EDNS0_EDE {
		t.Helper()
		q := new(mdns.Msg).SetQuestion(name, typeA)
		q.SetEdns0(1232, true)
		m := new(mdns.Msg)
		if err := m.Unpack(s.respond("udp", netip.MustParseAddr(from), packed(t, q))); err != nil {
			t.Fatal(err)
		}
		opt := m.IsEdns0()
		if opt == nil || !opt.Do() {
			t.Fatalf("%s: OPT is %v, want DO copied", name, opt)
		}
		for _, o := range opt.Option {
			if e, ok := o.(*mdns.EDNS0_EDE); ok {
				return e
			}
		}
		return &mdns.EDNS0_EDE{InfoCode: 9999}
	}
	s := dual(t, nil)
	if e := ask(s, "127.0.0.1", "www.example.com."); e.InfoCode != mdns.ExtendedErrorCodeNotAuthoritative || !strings.Contains(e.ExtraText, "no upstream resolver is configured") {
		t.Errorf("no upstream: %v", e)
	}
	if e := ask(s, "127.0.0.1", "round.aliases.svc.cluster.local."); !strings.Contains(e.ExtraText, "is an alias in a circle") {
		t.Errorf("circle: %v", e)
	}
	if e := ask(s, "192.0.2.1", "orders.shop.svc.cluster.local."); e.InfoCode != mdns.ExtendedErrorCodeProhibited || e.ExtraText != "" {
		t.Errorf("stranger: %v", e)
	}
	if e := ask(s, "127.0.0.1", "orders.shop.svc.cluster.local."); e.InfoCode != 9999 {
		t.Errorf("good answer: %v", e)
	}
}

// Not an open resolver.
func TestClients(t *testing.T) {
	given := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	s, plain := dual(t, func(o *Options) { o.Clients.Pods = given }), message(t, nil)
	for from, want := range map[string]string{
		"127.0.0.1":         "NOERROR",
		"127.9.9.9":         "NOERROR",
		"::1":               "NOERROR",
		"10.244.77.1":       "NOERROR", // by the given range
		"::ffff:10.244.1.5": "NOERROR",
		"172.30.0.12":       "NOERROR", // a node
		"fd00:30::12":       "NOERROR",
		"fd00:244:0:2::77":  "NOERROR", // by a node's pod range
		"172.30.0.13":       "REFUSED",
		"fd00:244:0:3::77":  "REFUSED",
		"192.0.2.1":         "REFUSED",
	} {
		if got := describe(t, plain, s.respond("udp", netip.MustParseAddr(from), plain)); got != want {
			t.Errorf("from %s: %s, want %s", from, got, want)
		}
	}
	// Nodes come and go.
	b := model.NewBuilder(model.Config{Self: "n1"})
	b.SetNode(model.Node{Name: "n3", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.13")}})
	s.Publish(b.Build())
	for from, want := range map[string]string{"172.30.0.13": "NXDOMAIN", "172.30.0.12": "REFUSED", "10.244.77.1": "NXDOMAIN"} {
		if got := describe(t, plain, s.respond("udp", netip.MustParseAddr(from), plain)); got != want {
			t.Errorf("later, from %s: %s, want %s", from, got, want)
		}
	}
}

// of are options with blocks.
func of(blocks ...Block) Options { return Options{Blocks: blocks} }

func TestOptions(t *testing.T) {
	for _, o := range []Options{
		{}, of(block("")), of(block("a..b")), of(block("-a.b")), of(block("a b")), of(block("a_b")), of(block(strings.Repeat("a.", 60))),
		of(block("in-addr.arpa")), {Blocks: []Block{block("x")}, Reverse: []netip.Prefix{{}}},
		of(block("x", netip.AddrPort{})), of(block("x", netip.MustParseAddrPort("0.0.0.0:53"))),
		of(block("x"), block("y")), of(Block{Zones: []string{"a..b."}}), of(Block{Cluster: &Cluster{Zones: []string{"in-addr.arpa."}}, Zones: []string{"."}}),
		of(Block{Zones: []string{"."}, Rules: rules.Rules{Templates: []rules.Template{{Match: []string{"("}}}}}),
	} {
		if _, err := New(o); err == nil {
			t.Errorf("New(%+v) is no error", o)
		}
	}
	if _, err := New(of(block("Cluster.Local"))); err != nil {
		t.Error(err)
	}
}
