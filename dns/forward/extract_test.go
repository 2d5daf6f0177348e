// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	mdns "github.com/miekg/dns"
)

// worldly is an upstream that says what a table has under "NAME TYPE": "answers / authority / additional", each a record, with a semicolon between
// them, with an exclamation mark before it for NXDOMAIN.
type worldly map[string]string

func (w worldly) script() script {
	return says(func(m *mdns.Msg) {
		q := m.Question[0]
		text, ok := w[strings.ToLower(q.Name)+" "+mdns.TypeToString[q.Qtype]]
		if !ok {
			m.Rcode = mdns.RcodeServerFailure
			return
		}
		if rest, ok := strings.CutPrefix(text, "!"); ok {
			m.Rcode, text = mdns.RcodeNameError, rest
		}
		sections := [3]*[]mdns.RR{&m.Answer, &m.Ns, &m.Extra}
		for i, s := range strings.Split(text, "/") {
			for line := range strings.SplitSeq(s, ";") {
				if line = strings.TrimSpace(line); line != "" {
					*sections[i] = append(*sections[i], rr(line))
				}
			}
		}
	})
}

const soa = "example. 60 IN SOA a. b. 1 2 3 4 50"

// Of what an upstream says, what belongs to the question comes through.
func TestBailiwick(t *testing.T) {
	chain := func(from, n int) (out string) {
		for i := range n {
			out += fmt.Sprintf("c%d.example. 60 IN CNAME c%d.example.;", from+i, from+i+1)
		}
		return out
	}
	up := newResolver(t, worldly{
		"plain.example. A":      "plain.example. 60 IN A 192.0.2.1; evil.example. 60 IN A 203.0.113.66; plain.example. 60 IN TXT x; plain.example. 60 CH A 203.0.113.66 / example. 60 IN NS ns.example. / ns.example. 60 IN A 203.0.113.66",
		"none.example. A":       "! / " + soa + "; evil.example. 60 IN A 203.0.113.66; other. 60 IN SOA a. b. 1 2 3 4 50",
		"foreign.example. A":    "! / other. 60 IN SOA a. b. 1 2 3 4 50",
		"nodata.example. A":     " / " + soa,
		"root.example. A":       "! / . 60 IN SOA a. b. 1 2 3 4 50",
		"unasked.example. A":    "other.example. 60 IN A 203.0.113.66",
		"alias.example. A":      "web.example. 60 IN A 192.0.2.2; alias.example. 50 IN CNAME WEB.example.; alias.example. 60 IN CNAME evil.example.; evil.example. 60 IN A 203.0.113.66",
		"alias.example. CNAME":  "alias.example. 60 IN CNAME web.example.; web.example. 60 IN A 192.0.2.2",
		"to-none.example. A":    "!to-none.example. 60 IN CNAME gone.example. / " + soa,
		"to-nodata.example. A":  "to-nodata.example. 60 IN CNAME plain.example. / " + soa,
		"to-other.example. A":   "!to-other.example. 60 IN CNAME gone.test. / " + soa,
		"half.example. A":       "half.example. 60 IN CNAME half2.example.",
		"half2.example. A":      "half2.example. 40 IN CNAME plain.example.",
		"half-none.example. A":  "half-none.example. 60 IN CNAME none.example.",
		"half-loop.example. A":  "half-loop.example. 60 IN CNAME half-loop2.example.",
		"half-loop2.example. A": "half-loop2.example. 60 IN CNAME half-loop.example.",
		"self.example. A":       "self.example. 60 IN CNAME self.example.",
		"c0.example. A":         chain(0, 30),
		"c20.example. A":        chain(20, 5) + "c25.example. 60 IN A 192.0.2.5",
		"x.d.example. A":        "d.example. 60 IN DNAME e.example.; x.d.example. 60 IN CNAME evil.example.; x.e.example. 60 IN A 192.0.2.6; evil.example. 60 IN A 203.0.113.66",
		"d.example. A":          "d.example. 60 IN DNAME e.example.; e.example. 60 IN A 203.0.113.66 / " + soa,
		"_x._tcp.example. SRV":  "_x._tcp.example. 60 IN SRV 0 0 1 plain.example.; _x._tcp.example. 60 IN SRV 0 0 1 host.corp.example. / / plain.example. 60 IN A 192.0.2.1; evil.example. 60 IN A 203.0.113.66; host.corp.example. 60 IN A 203.0.113.66; plain.example. 60 IN TXT x",
		"to-corp.example. A":    "to-corp.example. 60 IN CNAME host.corp.example.; host.corp.example. 60 IN A 203.0.113.66",
		"to-secret.example. A":  "to-secret.example. 60 IN CNAME x.secret.corp.example.; x.secret.corp.example. 60 IN A 203.0.113.66",
		"lost.example. A":       "lost.example. 60 IN CNAME broken.example.",
		"highttl.example. A":    "highttl.example. 4294967295 IN A 192.0.2.9",
	}.script())
	corp := newResolver(t, worldly{
		"host.corp.example. A":  "host.corp.example. 60 IN A 192.0.2.7",
		"out.corp.example. A":   "out.corp.example. 60 IN CNAME plain.example.; plain.example. 60 IN A 203.0.113.66",
		"cross.corp.example. A": "cross.corp.example. 60 IN CNAME to-corp.example.",
	}.script())
	r := start(t, func(o *Options) {
		o.Pools = []Pool{{Zone: ".", Upstreams: []Upstream{{Addr: up.addr}}},
			{Zone: "corp.example.", Upstreams: []Upstream{{Addr: corp.addr}}, Except: []string{"secret.corp.example."}}}
	})
	const denial = " / example. SOA a. b. 1 2 3 4 50"
	for _, tt := range []struct{ name, qtype, want string }{
		{"plain.example.", "A", "NOERROR plain.example. A 192.0.2.1"},
		{"none.example.", "A", "NXDOMAIN" + denial},
		{"foreign.example.", "A", "NXDOMAIN"},
		{"nodata.example.", "A", "NOERROR" + denial},
		{"root.example.", "A", "NXDOMAIN / . SOA a. b. 1 2 3 4 50"},
		{"unasked.example.", "A", "NOERROR"},
		{"alias.example.", "A", "NOERROR alias.example. CNAME WEB.example. web.example. A 192.0.2.2"},
		{"alias.example.", "CNAME", "NOERROR alias.example. CNAME web.example."},
		{"to-none.example.", "A", "NXDOMAIN to-none.example. CNAME gone.example." + denial},
		{"to-nodata.example.", "A", "NOERROR to-nodata.example. CNAME plain.example." + denial},
		{"to-other.example.", "A", "NXDOMAIN to-other.example. CNAME gone.test."},
		{"half.example.", "A", "NOERROR half.example. CNAME half2.example. half2.example. CNAME plain.example. plain.example. A 192.0.2.1"},
		{"half-none.example.", "A", "NXDOMAIN half-none.example. CNAME none.example." + denial},
		{"half-loop.example.", "A", "SERVFAIL"},
		{"self.example.", "A", "SERVFAIL"},
		{"c0.example.", "A", "SERVFAIL"},
		{"c20.example.", "A", "NOERROR c20.example. CNAME c21.example. c21.example. CNAME c22.example. c22.example. CNAME c23.example. c23.example. CNAME c24.example. c24.example. CNAME c25.example. c25.example. A 192.0.2.5"},
		{"x.d.example.", "A", "NOERROR d.example. DNAME e.example. x.d.example. CNAME x.e.example. x.e.example. A 192.0.2.6"},
		{"d.example.", "A", "NOERROR" + denial},
		{"_x._tcp.example.", "SRV", "NOERROR _x._tcp.example. SRV 0 0 1 plain.example. _x._tcp.example. SRV 0 0 1 host.corp.example."},
		{"to-corp.example.", "A", "NOERROR to-corp.example. CNAME host.corp.example. host.corp.example. A 192.0.2.7"},
		{"out.corp.example.", "A", "NOERROR out.corp.example. CNAME plain.example. plain.example. A 192.0.2.1"},
		{"cross.corp.example.", "A", "NOERROR cross.corp.example. CNAME to-corp.example. to-corp.example. CNAME host.corp.example. host.corp.example. A 192.0.2.7"},
		{"to-secret.example.", "A", "SERVFAIL"},
		{"lost.example.", "A", "SERVFAIL"},
		{"highttl.example.", "A", "NOERROR highttl.example. A 192.0.2.9"},
	} {
		for _, how := range []string{"asked", "remembered"} {
			m := r.ask(tt.name, mdns.StringToType[tt.qtype])
			if got := data(m); got != tt.want {
				_, text := ede(m)
				t.Errorf("%s %s, %s: %s\ngot  %s\nwant %s", tt.name, tt.qtype, how, text, got, tt.want)
			}
			extra := ""
			for _, rr := range m.Extra {
				if rr.Header().Rrtype != mdns.TypeOPT {
					extra += rr.Header().Name
				}
			}
			if (tt.qtype == "SRV") != (extra == "plain.example.") {
				t.Errorf("%s: additional %v", tt.name, m.Extra)
			}
			for _, rr := range slices.Concat(m.Answer, m.Ns) {
				if want := map[string]uint32{"half.example.": 40, "highttl.example.": 0}; tt.want != "" {
					if ttl, ok := want[tt.name]; ok && rr.Header().Ttl != ttl {
						t.Errorf("TTL of %v, want %d", rr, ttl)
					}
				}
			}
		}
	}
	if _, text := ede(r.ask("self.example.", typeA)); !strings.Contains(text, "the aliases of self.example. lead back to self.example.") {
		t.Errorf("a loop is told as %q", text)
	}
}

// Where an alias leads into names that nobody else is for, its upstream is believed: it could as well have said the address at once.
func TestAliasToNobody(t *testing.T) {
	up := newResolver(t, worldly{
		"db.corp.example. A":     "db.corp.example. 60 IN CNAME db.example.net.; db.example.net. 60 IN A 192.0.2.7",
		"half.corp.example. A":   "half.corp.example. 60 IN CNAME half.example.net.",
		"half.example.net. A":    "half.example.net. 60 IN A 192.0.2.8",
		"secret.corp.example. A": "secret.corp.example. 60 IN CNAME x.secret.example.; x.secret.example. 60 IN A 203.0.113.66",
	}.script())
	r := start(t, func(o *Options) {
		o.Pools[0].Zone = "corp.example."
		o.Pools = append(o.Pools, Pool{Zone: "example.", Except: []string{"secret.example."}, Upstreams: o.Pools[0].Upstreams})
	}, up)
	for name, answer := range map[string]string{
		"db.corp.example.":     "NOERROR db.corp.example. CNAME db.example.net. db.example.net. A 192.0.2.7",
		"half.corp.example.":   "NOERROR half.corp.example. CNAME half.example.net. half.example.net. A 192.0.2.8",
		"secret.corp.example.": "SERVFAIL",
		"half.example.net.":    "REFUSED",
	} {
		want(t, data(r.ask(name, typeA)), answer)
	}
}

// Aliases without end are cut off, whatever messages they come in.
func TestEndlessAliases(t *testing.T) {
	var n atomic.Int64
	up := newResolver(t, says(func(m *mdns.Msg) {
		m.Answer = rrs(fmt.Sprintf("%s 60 IN CNAME %d.example.", m.Question[0].Name, n.Add(1)))
	}))
	r := start(t, nil, up).untested()
	if m := r.ask("a.example.", typeA); m.Rcode != mdns.RcodeServerFailure || n.Load() > maxHops {
		t.Errorf("asked %d times: %v", n.Load(), m)
	}
}

// Who wants signatures gets them, and the proofs that are signed by a zone of the chain.
func TestSignatures(t *testing.T) {
	const sig = " 60 IN RRSIG %s 13 2 60 20300101000000 20200101000000 1 example. AAAA"
	signed := func(owner, rrtype string) string { return owner + fmt.Sprintf(sig, rrtype) }
	foreign := strings.Replace(signed("zz.example.", "NSEC"), "example. AAAA", "test. AAAA", 1)
	up := newResolver(t, worldly{
		"a.example. A": "a.example. 60 IN A 192.0.2.1; " + signed("a.example.", "A") + "; " + signed("a.example.", "AAAA") + "; " + signed("b.example.", "A") +
			" / *.example. 60 IN NSEC c.example. A; " + signed("*.example.", "NSEC") + "; unsigned.example. 60 IN NSEC c.example. A; zz.example. 60 IN NSEC c.example. A; " + foreign,
		"none.example. A": "! / " + soa + "; " + signed("example.", "SOA") + "; m.example. 60 IN NSEC o.example. A; " + signed("m.example.", "NSEC"),
	}.script())
	r := start(t, nil, up)
	count := func(m *mdns.Msg) string {
		types := func(rrs []mdns.RR) (out []string) {
			for _, r := range rrs {
				out = append(out, r.Header().Name+mdns.TypeToString[r.Header().Rrtype])
			}
			return out
		}
		return fmt.Sprint(types(m.Answer), types(m.Ns))
	}
	do := func(q *Question) { q.DO = true }
	want(t, count(r.ask("a.example.", typeA)), "[a.example.A] []")
	want(t, count(r.ask("a.example.", typeA, do)), "[a.example.A a.example.RRSIG] [*.example.NSEC *.example.RRSIG]")
	want(t, count(r.ask("none.example.", typeA)), "[] [example.SOA]")
	want(t, count(r.ask("none.example.", typeA, do)), "[] [example.SOA example.RRSIG m.example.NSEC m.example.RRSIG]")
}

// inBailiwick checks a message that came out: each record of the answer is on the way from the question's name, the authority is above its end.
func inBailiwick(t *testing.T, q Question, m *mdns.Msg) {
	t.Helper()
	name, _, err := mdns.UnpackDomainName(q.Name, 0)
	if err != nil {
		t.Fatal(err)
	}
	reached := []string{name}
	for _, rr := range m.Answer {
		h := rr.Header()
		owner := strings.ToLower(h.Name)
		switch rr := rr.(type) {
		case *mdns.CNAME:
			if q.Type != mdns.TypeANY && q.Type != mdns.TypeCNAME {
				if owner != reached[len(reached)-1] {
					t.Errorf("alias %v is not of %s", rr, reached[len(reached)-1])
				}
				reached = append(reached, strings.ToLower(rr.Target))
				continue
			}
		case *mdns.DNAME:
			if q.Type != mdns.TypeDNAME && mdns.IsSubDomain(owner, reached[len(reached)-1]) {
				continue
			}
		case *mdns.RRSIG:
			if q.DO && slices.ContainsFunc(reached, func(n string) bool { return mdns.IsSubDomain(owner, n) }) {
				continue
			}
		}
		if owner != reached[len(reached)-1] || q.Type != mdns.TypeANY && h.Rrtype != q.Type {
			t.Errorf("record %v answers no question about %v", rr, reached)
		}
	}
	for _, rr := range m.Ns {
		if _, ok := rr.(*mdns.SOA); ok && !mdns.IsSubDomain(rr.Header().Name, reached[len(reached)-1]) {
			t.Errorf("%v denies nothing of %s", rr, reached[len(reached)-1])
		} else if !ok && !q.DO {
			t.Errorf("authority %v", rr)
		}
	}
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != typeA && rr.Header().Rrtype != typeAAAA && !q.DO {
			t.Errorf("additional %v", rr)
		}
	}
	for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		if rr.Header().Class != mdns.ClassINET {
			t.Errorf("class of %v", rr)
		}
	}
}

// FuzzReply: of any message of an upstream, what comes out is a message that parses and is within the question.
func FuzzReply(f *testing.F) {
	for text, qtype := range map[string]uint16{
		"www.example. 60 IN A 192.0.2.1; www.example. 60 IN A 192.0.2.2":                                                         typeA,
		"www.example. 60 IN CNAME web.example.; web.example. 60 IN A 192.0.2.1; evil. 60 IN A 192.0.2.1":                         typeA,
		"example. 60 IN DNAME test.; www.test. 60 IN AAAA 2001:db8::1":                                                           typeAAAA,
		"www.example. 60 IN SRV 0 0 1 a.example. / / a.example. 60 IN A 192.0.2.1":                                               mdns.TypeSRV,
		"! / example. 60 IN SOA a. b. 1 2 3 4 5; example. 60 IN RRSIG SOA 13 1 60 20300101000000 20200101000000 1 example. AAAA": typeA,
		"www.example. 60 IN CNAME www.example.":                                                                                  typeA,
		`www.example. 60 IN TXT "x"; www.example. 60 IN MX 1 mx.test.`:                                                           mdns.TypeANY,
		"www.example. 60 IN HTTPS 1 . alpn=h2":                                                                                   mdns.TypeHTTPS,
	} {
		q := new(mdns.Msg).SetQuestion("www.example.", qtype)
		f.Add(worldly{"www.example. " + mdns.TypeToString[qtype]: text}.script()(q, false)[0], qtype, uint8(qtype))
	}
	f.Fuzz(func(t *testing.T, b []byte, qtype uint16, bits uint8) {
		m := new(mdns.Msg)
		if m.Unpack(b) != nil || len(m.Question) != 1 {
			return
		}
		q := Question{Name: wireLower(m.Question[0].Name), Type: qtype, DO: bits&1 != 0, CD: bits&2 != 0}
		name, _, err := mdns.UnpackDomainName(q.Name, 0)
		if err != nil {
			return
		}
		c := newChain(name, q.Type, q.DO)
		c.ours = func(name string) bool { return bits&4 == 0 || strings.HasSuffix(name, "e.") }
		if complete, err := c.follow(m); err != nil || !complete {
			return
		}
		key := appendKey(nil, q, q.Type)
		e, err := pack(key, q.Name, q.Type, &c.found)
		if err != nil {
			return
		}
		e.until = int64(7e9)
		reply := &Reply{e: e, q: q, ttl: e.remaining(0)}
		out := reply.Msg()
		if len(out.Answer) != len(c.answer) || len(out.Ns) != len(c.ns) || len(out.Extra) != len(c.extra) || out.Rcode != c.rcode&0xf {
			t.Fatalf("%v became %v", m, out)
		}
		inBailiwick(t, q, out)
		for _, rr := range slices.Concat(out.Answer, out.Ns, out.Extra) {
			if rr.Header().Ttl != 7 {
				t.Errorf("TTL of %v", rr)
			}
		}
		// In the client's own case, and turned, it is the same but for that.
		upper := header(name, q.Type)
		for i, c := range upper[headerSize : headerSize+len(q.Name)] {
			if 'a' <= c && c <= 'z' {
				upper[headerSize+i] = c - 0x20
			}
		}
		turned := new(mdns.Msg)
		if err := turned.Unpack(e.append(upper, q, 7, true)); err != nil {
			t.Fatal(err)
		}
		lines := func(rrs []mdns.RR) (out []string) {
			for _, rr := range rrs {
				out = append(out, strings.ToLower(rr.String()))
			}
			slices.Sort(out)
			return out
		}
		for i, s := range [][2][]mdns.RR{{out.Answer, turned.Answer}, {out.Ns, turned.Ns}, {out.Extra, turned.Extra}} {
			if !slices.Equal(lines(s[0]), lines(s[1])) {
				t.Errorf("section %d: %v, in upper case %v", i, s[0], s[1])
			}
		}
	})
}

// Addresses take turns, aliases stay before them.
func TestRotate(t *testing.T) {
	up := newResolver(t, worldly{
		"a.example. A":    "a.example. 60 IN CNAME b.example.; b.example. 60 IN A 192.0.2.1; b.example. 60 IN A 192.0.2.2; b.example. 60 IN A 192.0.2.3",
		"a.example. AAAA": "a.example. 60 IN AAAA 2001:db8::1; a.example. 60 IN AAAA 2001:db8::2",
		"a.example. TXT":  "a.example. 60 IN TXT a; a.example. 60 IN TXT b",
	}.script())
	for _, rotate := range []bool{false, true} {
		r := start(t, func(o *Options) { o.Rotate = rotate }, up)
		for qtype, want := range map[uint16]int{typeA: 3, typeAAAA: 2, mdns.TypeTXT: 1} {
			orders := make(map[string]bool)
			for range 100 {
				m := r.ask("a.example.", qtype)
				orders[data(m)] = true
				if _, ok := m.Answer[0].(*mdns.CNAME); ok != (qtype == typeA) || len(m.Answer) != 2 && qtype != typeA || len(m.Answer) != 4 && qtype == typeA {
					t.Fatalf("%v", m)
				}
			}
			// That one of three orders did not come up in 100 has a probability below 10^-17.
			if !rotate {
				want = 1
			}
			if len(orders) != want {
				t.Errorf("type %d: %d orders, want %d: %v", qtype, len(orders), want, orders)
			}
		}
	}
}
