// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	typeA    = mdns.TypeA
	typeAAAA = mdns.TypeAAAA
)

func TestForward(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "127.9.9.9", "::1"} {
		t.Run(ip, func(t *testing.T) {
			up := listen(t, ip, says(func(m *mdns.Msg) {
				m.Answer = rrs(m.Question[0].Name+" 60 IN A 192.0.2.80", m.Question[0].Name+" 30 IN A 192.0.2.81")
				m.AuthenticatedData = true
				m.Extra = append(m.Extra, &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT},
					Option: []mdns.EDNS0{&mdns.EDNS0_LOCAL{Code: 65001, Data: []byte("mine")}}})
			}), nil, nil)
			r := start(t, nil, up)
			for i, name := range []string{"www.example.com.", "wWw.exAMple.com."} {
				m := r.ask(name, typeA)
				want(t, data(m), fmt.Sprintf("NOERROR %[1]s A 192.0.2.80 %[1]s A 192.0.2.81", name))
				if len(m.Extra) != 0 || m.AuthenticatedData || m.Question[0].Name != name || m.Answer[0].Header().Ttl != 30 || m.Answer[1].Header().Ttl != 30 {
					t.Errorf("%d: %v", i, m)
				}
			}
			if m := r.ask("www.example.com.", typeA, func(q *Question) { q.AD = true }); !m.AuthenticatedData {
				t.Error("what was verified is not said")
			}
			if n := up.asked[0].Load(); n != 1 {
				t.Errorf("asked %d times", n)
			}
			q := up.lastAsked()
			if opt := q.IsEdns0(); !q.RecursionDesired || !q.AuthenticatedData || q.CheckingDisabled || opt == nil || opt.UDPSize() != 1232 || opt.Do() ||
				!strings.EqualFold(q.Question[0].Name, "www.example.com.") {
				t.Errorf("the upstream was asked %v", q)
			}
			// Who wants signatures, or what does not verify, gets answers of his own.
			r.ask("www.example.com.", typeA, func(q *Question) { q.DO = true })
			if q := up.lastAsked(); !q.IsEdns0().Do() {
				t.Errorf("the upstream was asked %v", q)
			}
			r.ask("www.example.com.", typeA, func(q *Question) { q.CD = true })
			if q := up.lastAsked(); !q.CheckingDisabled || up.asked[0].Load() != 3 {
				t.Errorf("the upstream was asked %v, %d times in all", q, up.asked[0].Load())
			}
			if s := r.Status(); len(s) != 1 || s[0].State != "up" || s[0].Answered != 3 || s[0].Failed != 0 || s[0].SuspectedSpoofs != 0 || s[0].Addr != up.addr {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func TestReplyMsg(t *testing.T) {
	r := start(t, nil, newResolver(t, addresses))
	reply, err := r.Ask(context.Background(), question("www.example.com.", typeA))
	if err != nil {
		t.Fatal(err)
	}
	m := reply.Msg()
	want(t, data(m), "NOERROR www.example.com. A 192.0.2.80")
	if !m.Response || m.Question[0] != (mdns.Question{Name: "www.example.com.", Qtype: typeA, Qclass: mdns.ClassINET}) {
		t.Errorf("%v", m)
	}
}

// Each type of question, and names at the limits.
func TestForwardNames(t *testing.T) {
	up := newResolver(t, says(func(m *mdns.Msg) {
		q := m.Question[0]
		m.Answer = []mdns.RR{&mdns.TXT{Hdr: mdns.RR_Header{Name: q.Name, Rrtype: mdns.TypeTXT, Class: mdns.ClassINET, Ttl: 60}, Txt: []string{"x"}}}
	}))
	r := start(t, nil, up)
	for _, name := range []string{".", "com.", `odd\.dot\000\255.example.`, strings.Repeat(strings.Repeat("x", 63)+".", 3) + strings.Repeat("y", 61) + "."} {
		for range 2 {
			m := r.ask(name, mdns.TypeTXT)
			want(t, data(m), "NOERROR "+name+` TXT "x"`)
		}
	}
	if n := up.asked[0].Load(); n != 4 {
		t.Errorf("asked %d times", n)
	}
	for _, qtype := range []uint16{mdns.TypeAXFR, mdns.TypeIXFR, mdns.TypeOPT, 0} {
		if m := r.ask("example.com.", qtype); m.Rcode != mdns.RcodeNotImplemented {
			t.Errorf("type %d: %v", qtype, m)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := Upstream{Addr: netip.MustParseAddrPort("192.0.2.1:53")}
	self := netip.MustParseAddrPort("10.96.0.10:53")
	for _, tt := range []struct {
		change func(*Options)
		why    string
	}{
		{func(o *Options) { o.Pools[0].Upstreams = nil }, `forward ".": want at least one upstream`},
		{func(o *Options) { o.Pools[0].Upstreams[0].Addr = self }, "upstream 10.96.0.10:53 is this server itself: name the resolver"},
		{func(o *Options) {
			o.Self = append(o.Self, netip.MustParseAddrPort("[::]:53"))
			o.Pools[0].Upstreams[0].Addr = netip.MustParseAddrPort("127.0.0.53:53")
		}, "is this server itself"},
		{func(o *Options) { o.Pools[0].Upstreams[0].Addr = netip.MustParseAddrPort("[::ffff:10.96.0.10]:53") }, "is this server itself"},
		{func(o *Options) { o.Pools[0].Upstreams[0].Addr = netip.MustParseAddrPort("0.0.0.0:53") }, "want an address and a port"},
		{func(o *Options) { o.Pools[0].Upstreams[0].Addr = netip.MustParseAddrPort("192.0.2.1:0") }, "want an address and a port"},
		{func(o *Options) { o.Pools[0].Upstreams[0].ServerName = "dns.example" }, "a server name is for TLS only"},
		{func(o *Options) { o.Pools[0].Upstreams = []Upstream{good, good} }, "is named twice"},
		{func(o *Options) { o.Pools[0].Zone = "Example.com." }, `name "Example.com.": want one in lower case`},
		{func(o *Options) { o.Pools[0].Zone = "example.com" }, "with a dot at its end"},
		{func(o *Options) { o.Pools[0].Except = []string{"a..b."} }, `name "a..b."`},
		{func(o *Options) { o.Pools = append(o.Pools, o.Pools[0]) }, `zone "." is forwarded twice`},
		{func(o *Options) { o.Pools[0].Policy = 9 }, "policy 9 is none"},
		{func(o *Options) { o.Pools[0].Expire = -1 }, "no negative durations"},
		{func(o *Options) { o.Timeout = -1 }, "want 0 or more"},
		{func(o *Options) { o.Caching.MaxFailure = time.Hour }, "at most 5m"},
		{func(o *Options) { o.Caching.MinTTL = 2 * time.Hour }, "shortest time is longer"},
		{func(o *Options) { o.Caching.PrefetchPercent = 101 }, "0 to 100 %"},
	} {
		o := Options{Pools: []Pool{{Zone: ".", Upstreams: []Upstream{good}}}, Self: []netip.AddrPort{self}}
		if f, err := New(o); err != nil {
			t.Fatal(err)
		} else {
			f.Close(canceled())
		}
		tt.change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("error %v, want %s", err, tt.why)
		}
	}
}

// The longest zone answers, and what is excepted there is refused.
func TestPools(t *testing.T) {
	named := func(addr string) *resolver {
		return newResolver(t, says(func(m *mdns.Msg) { m.Answer = rrs(m.Question[0].Name + " 60 IN A " + addr) }))
	}
	all, corp, lab := named("192.0.2.1"), named("192.0.2.2"), named("192.0.2.3")
	r := start(t, func(o *Options) {
		o.Pools = []Pool{
			{Zone: ".", Upstreams: []Upstream{{Addr: all.addr}}, Except: []string{"local.", "deep.corp.example."}},
			{Zone: "corp.example.", Upstreams: []Upstream{{Addr: corp.addr}}, Except: []string{"secret.corp.example."}},
			{Zone: "lab.secret.corp.example.", Upstreams: []Upstream{{Addr: lab.addr}}},
		}
	})
	for name, addr := range map[string]string{"example.": "1", "corp.example.": "2", "a.b.corp.example.": "2", "xcorp.example.": "1",
		"x.lab.secret.corp.example.": "3", "deep.corp.example.": "2", "locally.": "1"} {
		want(t, data(r.ask(name, typeA)), "NOERROR "+name+" A 192.0.2."+addr)
	}
	for _, name := range []string{"secret.corp.example.", "x.secret.corp.example.", "local.", "host.local."} {
		m := r.ask(name, typeA)
		if code, text := ede(m); m.Rcode != mdns.RcodeRefused || code != 20 || !strings.Contains(text, "not forwarded") {
			t.Errorf("%s: %v", name, m)
		}
	}
	none := start(t, nil)
	if m := none.ask("example.", typeA); m.Rcode != mdns.RcodeRefused {
		t.Errorf("with no pool at all: %v", m)
	}
}

func TestPolicies(t *testing.T) {
	for policy, check := range map[Policy]func(n [3]int64) bool{
		Sequential: func(n [3]int64) bool { return n == [3]int64{60, 0, 0} },
		RoundRobin: func(n [3]int64) bool { return n == [3]int64{20, 20, 20} },
		// Each of 60 goes to one of three: that one gets fewer than 5 has a probability below 1 in 100,000.
		Random: func(n [3]int64) bool { return n[0]+n[1]+n[2] == 60 && min(n[0], n[1], n[2]) >= 5 },
	} {
		up := [3]*resolver{newResolver(t, addresses), newResolver(t, addresses), newResolver(t, addresses)}
		r := start(t, func(o *Options) { o.Pools[0].Policy = policy }, up[:]...)
		for i := range 60 {
			r.ask(fmt.Sprintf("%d.example.", i), typeA)
		}
		var n [3]int64
		for i, u := range up {
			n[i] = u.asked[0].Load()
		}
		if !check(n) {
			t.Errorf("policy %d: %v", policy, n)
		}
		// That one of six orders did not come up in 300 has a probability below 10^-22.
		orders := make(map[[3]*upstream]bool)
		for range 300 {
			orders[[3]*upstream(r.all[0].order())] = true
		}
		if want := map[Policy]int{Sequential: 1, RoundRobin: 3, Random: 6}[policy]; len(orders) != want {
			t.Errorf("policy %d: %d orders, want %d", policy, len(orders), want)
		}
	}
}

func TestFailover(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first script
		down  bool
	}{
		{"silent", silent, true},
		{"garbage", func(*mdns.Msg, bool) [][]byte { return [][]byte{{1, 2, 3}, make([]byte, 12)} }, true},
		{"servfail", says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeServerFailure }), false},
		{"refused", says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeRefused }), false},
		{"notimp", says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeNotImplemented }), false},
		{"configured", says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeNameError }), false},
		{"referral", says(func(m *mdns.Msg) {
			m.RecursionAvailable = false
			m.Ns = rrs("example.com. 60 IN NS ns.example.com.")
		}), false},
		{"broken", func(q *mdns.Msg, tcp bool) [][]byte {
			b := addresses(q, tcp)[0]
			return [][]byte{b[:len(b)-3]}
		}, false},
		{"alias loop", says(func(m *mdns.Msg) {
			m.Answer = rrs(m.Question[0].Name+" 60 IN CNAME b.example.", "b.example. 60 IN CNAME "+m.Question[0].Name)
		}), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			first, second := newResolver(t, tt.first), newResolver(t, addresses)
			r := start(t, func(o *Options) { o.Pools[0].NextOn = []int{mdns.RcodeNameError} }, first, second)
			for i := range 3 {
				name := fmt.Sprintf("%d.example.com.", i)
				want(t, data(r.ask(name, typeA)), "NOERROR "+name+" A 192.0.2.80")
			}
			if s := r.Status()[0]; (s.State == "down") != tt.down || (s.Why != "") != tt.down {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// A denial after which the next one is asked is the answer if it is everybody's, and none if somebody could not be asked.
func TestFailoverDenied(t *testing.T) {
	denies := says(func(m *mdns.Msg) { m.Rcode, m.Ns = mdns.RcodeNameError, rrs("example. 50 IN SOA a. b. 1 2 3 4 50") })
	denied := func(o *Options) { o.Pools[0].NextOn = []int{mdns.RcodeNameError} }
	first, second := newResolver(t, denies), newResolver(t, denies)
	r := start(t, denied, first, second).untested()
	for range 2 {
		want(t, data(r.ask("a.example.", typeA)), "NXDOMAIN / example. SOA a. b. 1 2 3 4 50")
	}
	if n, m := first.asked[0].Load(), second.asked[0].Load(); n != 1 || m != 1 {
		t.Errorf("asked %d and %d times: the denial was not kept", n, m)
	}
	for what, second := range map[string]script{"silent": silent, "fails": says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeServerFailure })} {
		r := start(t, denied, newResolver(t, denies), newResolver(t, second))
		if m := r.ask("a.example.", typeA); m.Rcode != mdns.RcodeServerFailure {
			t.Errorf("one denies, one %s: %v", what, m)
		}
		r = start(t, func(o *Options) { denied(o); slices.Reverse(o.Pools[0].Upstreams) }, newResolver(t, denies), newResolver(t, second))
		if m := r.ask("a.example.", typeA); m.Rcode != mdns.RcodeServerFailure {
			t.Errorf("one %s, one denies: %v", what, m)
		}
	}
}

func TestPortIsClosed(t *testing.T) {
	gone := newResolver(t, silent)
	gone.stop()
	r := start(t, func(o *Options) { o.Timeout = time.Minute }, gone, newResolver(t, addresses))
	want(t, data(r.ask("a.example.", typeA)), "NOERROR a.example. A 192.0.2.80")
	want(t, data(r.ask("b.example.", typeA)), "NOERROR b.example. A 192.0.2.80")
	eventually(t, "a line about it", func() bool { return r.log.count("upstream does not answer") == 1 })
	if s := r.Status()[0]; !strings.Contains(s.Why, "refused") {
		t.Errorf("status %+v", s)
	}
}

// An upstream that is down is asked last, and again as soon as it answers a probe. There is a line for each change.
func TestRecovers(t *testing.T) {
	first, dead := mortal(t)
	r := start(t, func(o *Options) {
		o.Timeout, o.Pools[0].HealthCheck, o.Pools[0].HealthDomain = 50*time.Millisecond, 10*time.Millisecond, "health.example."
	}, first, newResolver(t, addresses))
	r.ask("a.example.", typeA)
	r.ask("b.example.", typeA)
	eventually(t, "a line about it", func() bool { return r.log.count("upstream does not answer") == 1 })
	if s := r.Status()[0]; s.State != "down" || s.Failed != 2 || !strings.Contains(s.Why, "no answer in time") {
		t.Errorf("status %+v", s)
	}
	eventually(t, "a probe", func() bool {
		q := first.lastAsked().Question[0]
		return strings.EqualFold(q.Name, "health.example.") && q.Qtype == mdns.TypeNS
	})
	r.ask("c.example.", typeA)
	if n := r.Status()[0].Failed; n != 2 {
		t.Errorf("a question was sent to it while it is down: %d failed", n)
	}
	dead.Store(false)
	eventually(t, "it is up", func() bool { return r.Status()[0].State == "up" && r.log.count("upstream answers again") == 1 })
	asked := first.asked[0].Load()
	r.ask("d.example.", typeA)
	if n := first.asked[0].Load(); n != asked+1 || r.Status()[0].Why != "" {
		t.Errorf("asked %d times after %d, status %+v", n, asked, r.Status()[0])
	}
	if n := r.log.count("upstream does not answer"); n != 1 {
		t.Errorf("%d lines", n)
	}
}

// One that was given less time than it may take owes nothing.
func TestNotToBlame(t *testing.T) {
	r := start(t, func(o *Options) { o.Timeout = time.Minute }, newResolver(t, silent)).untested()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	u := r.all[0].upstreams[0]
	if _, err := u.try(ctx, question("a.example.", typeA)); !errors.Is(err, errTimeout) || u.fails.Load() != 0 {
		t.Errorf("%v, %d answers owed", err, u.fails.Load())
	}
}

// One that is up again is tested for a loop again.
func TestRecoveredIsTested(t *testing.T) {
	var tests atomic.Int64
	r := start(t, nil, newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte {
		if q.Question[0].Qtype == mdns.TypeHINFO {
			tests.Add(1)
		}
		return addresses(q, tcp)
	})).untested()
	r.all[0].upstreams[0].state.Store(down)
	want(t, data(r.ask("a.example.", typeA)), "NOERROR a.example. A 192.0.2.80")
	eventually(t, "a test", func() bool { return tests.Load() == 1 })
}

// When all are down, they are asked anyway; and with negative MaxFails none ever is.
func TestAllDown(t *testing.T) {
	for _, maxFails := range []int{2, -1} {
		var dead atomic.Bool
		dead.Store(true)
		play := func(q *mdns.Msg, tcp bool) [][]byte {
			if dead.Load() || q.Question[0].Qtype == mdns.TypeNS {
				return nil // it never answers probes
			}
			return addresses(q, tcp)
		}
		r := start(t, func(o *Options) { o.Timeout, o.Pools[0].MaxFails = 20*time.Millisecond, maxFails }, newResolver(t, play), newResolver(t, play))
		for i := range 2 {
			m := r.ask(fmt.Sprintf("%d.example.", i), typeA)
			if code, text := ede(m); m.Rcode != mdns.RcodeServerFailure || code != 22 || !strings.Contains(text, "no answer in time") ||
				!strings.Contains(text, r.Status()[0].Addr.String()) || !strings.Contains(text, r.Status()[1].Addr.String()) {
				t.Errorf("%v", m)
			}
		}
		for _, s := range r.Status() {
			if (s.State == "down") != (maxFails > 0) {
				t.Errorf("max fails %d: %+v", maxFails, s)
			}
		}
		dead.Store(false)
		want(t, data(r.ask("x.example.", typeA)), "NOERROR x.example. A 192.0.2.80")
		if got := scrape(t, r.Forwarder); strings.Contains(got, "coredns_forward_healthcheck_broken_total{} 0\n") != (maxFails < 0) {
			t.Errorf("max fails %d:\n%s", maxFails, got)
		}
	}
}

// The answer of the only one that speaks is the answer.
func TestRefusalPasses(t *testing.T) {
	refuses := newResolver(t, says(func(m *mdns.Msg) {
		m.Rcode = mdns.RcodeRefused
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_EDE{InfoCode: mdns.ExtendedErrorCodeBlocked, ExtraText: "house rules"}}
	}))
	r := start(t, nil, newResolver(t, silent), refuses)
	m := r.ask("a.example.", typeA)
	if code, text := ede(m); m.Rcode != mdns.RcodeRefused || code != 15 || !strings.HasSuffix(text, "says REFUSED: house rules") {
		t.Errorf("%v", m)
	}
	// A reason is cut between characters.
	r = start(t, nil, newResolver(t, says(func(m *mdns.Msg) {
		m.Rcode = mdns.RcodeRefused
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_EDE{ExtraText: "x" + strings.Repeat("ä", 100)}}
	})))
	if _, text := ede(r.ask("a.example.", typeA)); !utf8.ValidString(text) || !strings.Contains(text, "äää") {
		t.Errorf("the reason is %q", text)
	}
	// A code that has no room in a header is a failure.
	r = start(t, nil, newResolver(t, says(func(m *mdns.Msg) {
		m.SetEdns0(1232, false)
		m.Rcode = mdns.RcodeBadCookie
	})))
	m = r.ask("a.example.", typeA)
	if _, text := ede(m); m.Rcode != mdns.RcodeServerFailure || !strings.HasSuffix(text, "says BADCOOKIE") {
		t.Errorf("%v", m)
	}
}

// A lost datagram is no lost question.
func TestLostDatagram(t *testing.T) {
	var n atomic.Int64
	up := newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte {
		if q.Question[0].Qtype == typeA && n.Add(1) == 1 {
			return nil
		}
		return addresses(q, tcp)
	})
	r := start(t, func(o *Options) { o.Timeout = 50 * time.Millisecond }, up)
	want(t, data(r.ask("a.example.", typeA)), "NOERROR a.example. A 192.0.2.80")
	if s := r.Status()[0]; s.State != "up" || s.Failed != 1 || s.Answered != 1 {
		t.Errorf("status %+v", s)
	}
}

// Equal questions are asked once, and a client that goes away takes nobody with it.
func TestCoalesced(t *testing.T) {
	up, release := held(t)
	r := start(t, func(o *Options) { o.Timeout, o.Caching.Size = 4*time.Second, -1 }, up)
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan error)
	go func() {
		_, err := r.Ask(ctx, question("same.example.", typeA))
		gone <- err
	}()
	eventually(t, "the question", func() bool { return up.asked[0].Load() == 1 })
	var flights []*flight
	for range 50 {
		fl, err := r.fly(question("same.example.", typeA))
		if err != nil {
			t.Fatal(err)
		}
		flights = append(flights, fl)
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	close(release)
	for _, fl := range flights {
		if <-fl.done; fl != flights[0] || fl.why != nil || fl.e.an != 1 {
			t.Errorf("%+v", fl)
		}
	}
	if n := up.asked[0].Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	// With no cache, it is asked anew each time.
	before := up.asked[0].Load()
	r.ask("same.example.", typeA)
	r.ask("same.example.", typeA)
	if n := up.asked[0].Load(); n != before+2 {
		t.Errorf("asked %d times after %d", n, before)
	}
}

// More questions than are allowed end at once with a word, which is not remembered.
func TestMaxConcurrent(t *testing.T) {
	up, release := held(t)
	r := start(t, func(o *Options) { o.Timeout, o.Pools[0].MaxConcurrent = 4*time.Second, 1 }, up)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Ask(context.Background(), question("slow.example.", typeA))
	}()
	eventually(t, "the question", func() bool { return up.asked[0].Load() == 1 })
	m := r.ask("a.example.", typeA)
	if _, text := ede(m); m.Rcode != mdns.RcodeRefused || !strings.Contains(text, "too many questions") {
		t.Errorf("%v", m)
	}
	if got := scrape(t, r.Forwarder); !strings.Contains(got, "coredns_forward_max_concurrent_rejects_total{} 1\n") {
		t.Errorf("it is not counted:\n%s", got)
	}
	close(release)
	<-done
	want(t, data(r.ask("a.example.", typeA)), "NOERROR a.example. A 192.0.2.80")
}

func TestClose(t *testing.T) {
	up, release := held(t)
	r := start(t, func(o *Options) { o.Timeout = 4 * time.Second }, up)
	answered := make(chan string)
	go func() {
		reply, err := r.Ask(context.Background(), question("a.example.", typeA))
		if err != nil {
			answered <- err.Error()
			return
		}
		answered <- data(reply.Msg())
	}()
	eventually(t, "the question", func() bool { return up.asked[0].Load() == 1 })
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		r.Close(context.Background())
	}()
	n := 0
	eventually(t, "no further question", func() bool {
		n++
		_, err := r.Ask(canceled(), question(fmt.Sprintf("%d.example.", n), typeA))
		return errors.Is(err, ErrClosed)
	})
	close(release)
	want(t, <-answered, "NOERROR a.example. A 192.0.2.80")
	<-closed
	if _, _, ok := r.Append(header("a.example.", typeA), question("a.example.", typeA)); !ok {
		t.Error("the cache is gone with its forwarder; another one may have it")
	}
}

func TestAdopt(t *testing.T) {
	up, corp := newResolver(t, addresses), newResolver(t, addresses)
	two := func(o *Options) {
		o.Pools = append(o.Pools, Pool{Zone: "corp.example.", Upstreams: []Upstream{{Addr: corp.addr}}})
	}
	old := start(t, two, up)
	old.ask("a.example.", typeA)
	old.ask("b.corp.example.", typeA)
	old.ask("a.example.", typeA)

	was := old.all[0].upstreams[0]
	was.mangles.Store(true)
	was.serial.Store(int64(time.Minute))
	was.plain.Store(int64(time.Hour))

	same := start(t, two, up)
	same.Adopt(old.Forwarder)
	if u := same.all[0].upstreams[0]; !u.mangles.Load() || u.serial.Load() != int64(time.Minute) || u.plain.Load() != int64(time.Hour) {
		t.Error("what was learnt of the upstream is forgotten")
	}
	for _, name := range []string{"a.example.", "b.corp.example."} {
		if _, _, ok := same.Append(header(name, typeA), question(name, typeA)); !ok {
			t.Errorf("%s was forgotten", name)
		}
	}
	if s := same.Status(); s[0].Answered != 1 || s[1].Answered != 1 {
		t.Errorf("counters %+v", s)
	}
	crossed := entryFor(t, question("to-corp.example.", typeA), 1, int64(time.Hour))
	crossed.crossed = true
	same.cache.put(crossed)
	failed := question("failed.example.", typeA)
	same.putFailure(failed, fail(2, 22, "no"), same.now())
	// The corporate names are asked of another one now, and the cache is of another size.
	other := start(t, func(o *Options) {
		two(o)
		o.Pools[1].Upstreams[0].Addr = newResolver(t, addresses).addr
		o.Caching.Size = 1 << 20
	}, up)
	other.Adopt(same.Forwarder)
	if _, _, ok := other.Append(header("a.example.", typeA), question("a.example.", typeA)); !ok {
		t.Error("a.example. was forgotten")
	}
	for _, name := range []string{"b.corp.example.", "to-corp.example."} {
		if other.get(question(name, typeA), other.now(), false).fresh != nil {
			t.Errorf("another upstream's answer to %s was kept", name)
		}
	}
	if other.get(failed, other.now(), false).failed != nil {
		t.Error("a failure was kept")
	}
	if s := other.Status(); s[0].Answered != 1 || s[1].Answered != 0 {
		t.Errorf("counters %+v", s)
	}
	got := scrape(t, other.Forwarder)
	for _, line := range []string{`coredns_cache_hits_total{type=success} 4`, `coredns_cache_entries{type=success} 1`,
		fmt.Sprintf(`fairlead_dns_forwarded_total{result=answered,to=%s,zone=.} 1`, up.addr)} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no %s in\n%s", line, got)
		}
	}
}

// An upstream that is down stays so through a reload, until it answers.
func TestAdoptDown(t *testing.T) {
	first, dead := mortal(t)
	second := newResolver(t, addresses)
	change := func(o *Options) { o.Timeout, o.Pools[0].HealthCheck = 50*time.Millisecond, 10*time.Millisecond }
	old := start(t, change, first, second)
	old.ask("a.example.", typeA)
	old.ask("b.example.", typeA)
	if s := old.Status()[0]; s.State != "down" {
		t.Fatalf("status %+v", s)
	}
	r := start(t, change, first, second)
	r.Adopt(old.Forwarder)
	old.Close(canceled())
	r.ask("c.example.", typeA)
	if s := r.Status()[0]; s.State != "down" || s.Failed != 2 || s.Why == "" {
		t.Errorf("status %+v", s)
	}
	dead.Store(false)
	eventually(t, "it is up", func() bool { return r.Status()[0].State == "up" })

	old.all[0].upstreams[0].loops()
	third := start(t, change, first, second)
	third.Adopt(old.Forwarder)
	eventually(t, "it is in again", func() bool { return third.Status()[0].State == "up" })
}

// The descriptors of questions are closed, however they end.
func TestLeavesNothingOpen(t *testing.T) {
	count := func() int {
		n := 0
		for fd := range 1024 {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
				n++
			}
		}
		return n
	}
	quiet, good := newResolver(t, silent), newResolver(t, addresses)
	tcp := listen(t, "127.0.0.1", addresses, nil, nil)
	before := count()
	f, err := New(Options{Timeout: 20 * time.Millisecond, Pools: []Pool{
		{Zone: ".", Policy: Sequential, MaxFails: -1, Upstreams: []Upstream{{Addr: quiet.addr}, {Addr: good.addr}}},
		{Zone: "tcp.", ForceTCP: true, Upstreams: []Upstream{{Addr: tcp.addr}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		for _, zone := range []string{"example.", "tcp."} {
			if _, err := f.Ask(context.Background(), question(fmt.Sprintf("%d.%s", i, zone), typeA)); err != nil {
				t.Error(err)
			}
		}
	}
	f.Close(context.Background())
	eventually(t, "all is closed", func() bool { return count() <= before })
}
