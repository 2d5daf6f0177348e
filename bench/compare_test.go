// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

var update = flag.Bool("update", false, "rewrite the table of known differences in docs/dns.md")

// The same seed makes the same Services and the same questions.
func TestSeedDecidesEverything(t *testing.T) {
	make := func() (*nameWorld, []string) {
		r := rand.New(rand.NewPCG(7, 0))
		w := newNameWorld(r, 500)
		var questions []string
		for range 2000 {
			q := w.ask(r)
			wire, err := q.msg.Pack()
			if err != nil {
				t.Fatalf("pack %s: %v", q, err)
			}
			if q.spoil != nil {
				wire = q.spoil(wire)
			}
			questions = append(questions, fmt.Sprintf("%s %t %x", q.about, q.tcp, wire))
		}
		return w, questions
	}
	first, asked := make()
	second, again := make()
	if !reflect.DeepEqual(first.services, second.services) {
		t.Error("the Services differ")
	}
	if !slices.Equal(asked, again) {
		t.Error("the questions differ")
	}
}

// The world has every kind of Service, and what is rare in each.
func TestNameWorldHasEverything(t *testing.T) {
	shares := 0
	for _, k := range nameKinds {
		shares += k.share
	}
	if shares != 100 {
		t.Errorf("the kinds of Services add up to %d of 100", shares)
	}
	w := newNameWorld(rand.New(rand.NewPCG(1, 0)), 3000)
	have := map[string]int{}
	addresses := map[string]bool{}
	for i := range w.services {
		s := &w.services[i]
		if len(s.service.Name) > 63 {
			t.Errorf("name %s is too long", s.service.Name)
		}
		if w.find(s.service.Namespace, s.service.Name) != s {
			t.Errorf("%s is not found by its name", s.service.Name)
		}
		spec := s.service.Spec
		switch {
		case spec.Type == corev1.ServiceTypeExternalName:
			have["external"]++
		case spec.ClusterIP == corev1.ClusterIPNone:
			have["headless"]++
		default:
			have[fmt.Sprint("virtual of ", len(spec.ClusterIPs), " families")]++
		}
		for _, a := range spec.ClusterIPs {
			if a != corev1.ClusterIPNone && addresses[a] {
				t.Errorf("%s has the address %s of another", s.service.Name, a)
			}
			addresses[a] = true
		}
		if len(s.slices) > 1 {
			have["several slices"]++
		}
		if len(spec.Ports) == 0 && spec.Type != corev1.ServiceTypeExternalName {
			have["no ports"]++
		}
		for _, sl := range s.slices {
			for _, e := range sl.Endpoints {
				if e.Hostname != nil {
					have["hostname"]++
				}
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					have["not ready"]++
				}
				if e.Conditions.Terminating != nil && *e.Conditions.Terminating {
					have["terminating"]++
				}
			}
		}
		if s.twoNames() {
			have["an address with two names"]++
		}
	}
	for _, what := range []string{"external", "headless", "virtual of 1 families", "virtual of 2 families", "several slices", "no ports", "hostname", "not ready",
		"terminating", "an address with two names"} {
		if have[what] == 0 {
			t.Errorf("no Service with: %s", what)
		}
	}
}

// Every kind of question is asked, in every dress.
func TestAllKindsAreAsked(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 0))
	w := newNameWorld(r, 1000)
	about, odd := map[string]int{}, map[string]int{}
	tcp, cased, plain, norec := 0, 0, 0, 0
	for range 40_000 {
		q := w.ask(r)
		about[q.about]++
		odd[q.odd]++
		if q.tcp {
			tcp++
		}
		if q.name != strings.ToLower(q.name) {
			cased++
		}
		if q.msg.IsEdns0() == nil {
			plain++
		}
		if !q.msg.RecursionDesired {
			norec++
		}
	}
	for _, k := range questionKinds {
		if about[k.about] == 0 {
			t.Errorf("nothing is asked about %s", k.about)
		}
	}
	for what := range refusedForm {
		if odd[what] == 0 {
			t.Errorf("no question has: %s", what)
		}
	}
	for _, what := range []string{"EDNS version 1", "EDNS option 8", "EDNS option 10", "bit Z", "octets after the end", "a response", "type AXFR"} {
		if odd[what] == 0 {
			t.Errorf("no question has: %s", what)
		}
	}
	if about["CHAOS"] == 0 || tcp == 0 || cased == 0 || plain == 0 || norec == 0 {
		t.Errorf("%d of class CHAOS, %d over TCP, %d in mixed case, %d without EDNS, %d without RD", about["CHAOS"], tcp, cased, plain, norec)
	}
}

func answerOf(t *testing.T, change func(*dns.Msg), records ...string) said {
	t.Helper()
	m := new(dns.Msg).SetQuestion("app-1.team-0.svc.cluster.local.", dns.TypeA)
	m.Response, m.Authoritative = true, true
	for _, text := range records {
		section, text, _ := strings.Cut(text, " ")
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		switch section {
		case "answer":
			m.Answer = append(m.Answer, rr)
		case "authority":
			m.Ns = append(m.Ns, rr)
		default:
			m.Extra = append(m.Extra, rr)
		}
	}
	if change != nil {
		change(m)
	}
	return said{msg: m, size: m.Len()}
}

func TestDifferences(t *testing.T) {
	const (
		one   = "answer app-1.team-0.svc.cluster.local. 5 IN A 10.96.16.1"
		other = "answer app-1.team-0.svc.cluster.local. 5 IN A 10.96.16.2"
		soa   = "authority cluster.local. 0 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 0"
		later = "authority cluster.local. 0 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 2 7200 1800 86400 0"
		srv   = "answer _http._tcp.x. 5 IN SRV 0 100 80 y."
	)
	nx := func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }
	for _, tc := range []struct {
		name string
		a, b said
		want []string
	}{
		{"the same", answerOf(t, nil, one), answerOf(t, nil, one), nil},
		{"another order", answerOf(t, nil, one, other), answerOf(t, nil, other, one), nil},
		{"another serial", answerOf(t, nx, soa), answerOf(t, nx, later), nil},
		{"both silent", said{silent: true}, said{silent: true}, nil},
		{"one silent", said{silent: true}, answerOf(t, nil, one), []string{"silence"}},
		{"another address", answerOf(t, nil, one), answerOf(t, nil, other), []string{"answer"}},
		{"fewer addresses", answerOf(t, nil, one), answerOf(t, nil, one, other), []string{"answer"}},
		{"none", answerOf(t, nil, one), answerOf(t, nil, soa), []string{"answer"}},
		{"not there", answerOf(t, nil, one), answerOf(t, nx, soa), []string{"rcode"}},
		{"the zone", answerOf(t, nx, soa), answerOf(t, nx, strings.Replace(soa, "cluster.local.", "local.", 1)), []string{"authority"}},
		{"TTL", answerOf(t, nil, one), answerOf(t, nil, strings.Replace(one, " 5 ", " 30 ", 1)), []string{"TTL"}},
		{"negative TTL", answerOf(t, nx, soa), answerOf(t, nx, strings.Replace(soa, " 0 IN", " 30 IN", 1)), []string{"TTL"}},
		{"spelling", answerOf(t, nil, one), answerOf(t, nil, strings.Replace(one, "team", "TEAM", 1)), []string{"spelling"}},
		{"additional", answerOf(t, nil, srv, "additional y. 5 IN A 10.0.0.1"), answerOf(t, nil, srv), []string{"additional"}},
		{"weights", answerOf(t, nil, srv), answerOf(t, nil, strings.Replace(srv, " 100 ", " 50 ", 1)), []string{"answer"}},
		{"RA", answerOf(t, nil, one), answerOf(t, func(m *dns.Msg) { m.RecursionAvailable = true }, one), []string{"flag ra"}},
		{"AA", answerOf(t, nil, one), answerOf(t, func(m *dns.Msg) { m.Authoritative = false }, one), []string{"flag aa"}},
		{"TC", answerOf(t, nil, one), answerOf(t, func(m *dns.Msg) { m.Truncated = true }, one), []string{"flag tc"}},
		{"TC with less", answerOf(t, nil, one, other), answerOf(t, func(m *dns.Msg) { m.Truncated = true }, one), []string{"answer"}},
		{"EDNS", answerOf(t, nil, one), answerOf(t, func(m *dns.Msg) { m.SetEdns0(1232, false) }, one), []string{"EDNS"}},
		{"EDNS size", answerOf(t, func(m *dns.Msg) { m.SetEdns0(512, false) }, one), answerOf(t, func(m *dns.Msg) { m.SetEdns0(1232, false) }, one), []string{"EDNS size"}},
		{"EDNS DO", answerOf(t, func(m *dns.Msg) { m.SetEdns0(512, true) }, one), answerOf(t, func(m *dns.Msg) { m.SetEdns0(512, false) }, one), []string{"EDNS DO"}},
		{"EDNS options", answerOf(t, func(m *dns.Msg) { m.SetEdns0(512, true) }, one), answerOf(t, func(m *dns.Msg) {
			m.SetEdns0(512, true).IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{}}
		}, one), []string{"EDNS options"}},
		{"question", answerOf(t, nil, one), answerOf(t, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMX }, one), []string{"question"}},
	} {
		if got := differences(viewOf(tc.a), viewOf(tc.b)); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		if got := differences(viewOf(tc.b), viewOf(tc.a)); !slices.Equal(got, tc.want) {
			t.Errorf("%s, the other way round: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// What is known covers what is meant, and nothing near it.
func TestExplain(t *testing.T) {
	w := &nameWorld{empty: []string{"vacant"}, index: map[string]*named{}}
	add := func(name string, spec corev1.ServiceSpec) {
		s := &named{}
		s.service.Namespace, s.service.Name, s.service.Spec = "team-0", name, spec
		w.index["team-0/"+name] = s
	}
	add("virtual", corev1.ServiceSpec{ClusterIP: "10.96.16.1"})
	add("headless", corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone})
	add("alias", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "www.example.com"})
	ask := func(name string, qtype uint16) *asked {
		return &asked{name: name, qtype: qtype, class: dns.ClassINET, msg: new(dns.Msg).SetQuestion(name, qtype)}
	}
	at := func(name string) string { return name + ".team-0.svc.cluster.local." }
	pod := "9.1.160.10.in-addr.arpa."
	ptr := func(name string) string { return pod + " in ptr 10-160-1-9." + at(name) }
	for _, tc := range []struct {
		aspect string
		q      *asked
		f, c   view
		want   string
	}{
		{"rcode", ask("10-1-2-3.team-0.pod.cluster.local.", dns.TypeA), view{rcode: "NXDOMAIN"}, view{rcode: "NOERROR"}, "rcode: names of pods"},
		{"rcode", ask("10-1-2-3.team-0.pod.cluster.local.", dns.TypeA), view{rcode: "NOERROR"}, view{rcode: "NXDOMAIN"}, ""},
		{"rcode", ask(at("virtual"), dns.TypeA), view{rcode: "NXDOMAIN"}, view{rcode: "NOERROR"}, ""},
		{"rcode", ask(at("virtual"), dns.TypeA), view{rcode: "SERVFAIL"}, view{rcode: "NOERROR"}, ""},
		{"rcode", ask(at("alias"), dns.TypeA), view{rcode: "SERVFAIL"}, view{rcode: "NOERROR"}, "rcode: aliases in a circle"},
		{"rcode", ask(at("alias"), dns.TypeA), view{rcode: "SERVFAIL"}, view{rcode: "NOERROR", answer: []string{"x in a 10.0.0.1"}}, ""},
		{"rcode", ask(at("http._tcp.virtual"), dns.TypeSRV), view{rcode: "NXDOMAIN"}, view{rcode: "NOERROR"}, "rcode: loosely spelled ports"},
		{"rcode", ask(at("_http._tcp.virtual"), dns.TypeSRV), view{rcode: "NXDOMAIN"}, view{rcode: "NOERROR"}, ""},
		{"rcode", ask(at("_tcp.virtual"), dns.TypeSRV), view{rcode: "NOERROR"}, view{rcode: "NXDOMAIN"}, "rcode: names above ports"},
		{"rcode", ask(at("x.virtual"), dns.TypeSRV), view{rcode: "NOERROR"}, view{rcode: "NXDOMAIN"}, ""},
		{"rcode", ask("vacant.svc.cluster.local.", dns.TypeA), view{rcode: "NXDOMAIN"}, view{rcode: "NOERROR"}, "rcode: namespaces without Services"},
		{"rcode", ask("team-0.svc.cluster.local.", dns.TypeA), view{rcode: "NXDOMAIN"}, view{rcode: "NOERROR"}, ""},
		{"rcode", ask(pod, dns.TypePTR), view{rcode: "NXDOMAIN", flags: []string{"aa"}}, view{rcode: "NOERROR", answer: []string{ptr("virtual")}}, "rcode: reverse names of pods behind ClusterIPs"},
		{"rcode", ask(pod, dns.TypePTR), view{rcode: "NXDOMAIN", flags: []string{"aa"}}, view{rcode: "NOERROR", answer: []string{ptr("headless")}}, ""},
		{"rcode", ask(strings.Replace(pod, "160.10", "160.11", 1), dns.TypePTR), view{rcode: "NXDOMAIN"}, view{rcode: "NOERROR", answer: []string{ptr("virtual")}}, ""},
		{"rcode", ask("10-1-2-3.nowhere.pod.cluster.local.", dns.TypeA), view{rcode: "NOERROR"}, view{rcode: "NXDOMAIN"}, "rcode: names of pods in namespaces that do not exist"},
		{"answer", ask(pod, dns.TypePTR), view{answer: []string{ptr("headless")}}, view{answer: []string{ptr("headless"), ptr("virtual")}}, "answer: reverse names of pods behind ClusterIPs"},
		{"answer", ask(pod, dns.TypePTR), view{answer: []string{ptr("virtual")}}, view{answer: []string{ptr("headless")}}, ""},
		{"answer", ask(at("virtual"), dns.TypeA), view{answer: []string{"x in a 10.0.0.1"}}, view{answer: []string{"x in a 10.0.0.2"}}, ""},
		{"answer", ask(at("virtual"), dns.TypeA), view{}, view{answer: []string{"x in a 10.0.0.2"}}, ""},
		{"answer", ask(at("_http._tcp.virtual"), dns.TypeSRV), view{answer: []string{"x in srv 0 100 80 y."}}, view{answer: []string{"x in srv 0 50 80 y."}}, "answer: weights of SRV records"},
		{"answer", ask(at("_http._tcp.virtual"), dns.TypeSRV), view{answer: []string{"x in srv 0 100 80 y."}}, view{answer: []string{"x in srv 0 50 81 y."}}, ""},
		{"TTL", ask(at("virtual"), dns.TypeA), view{ttls: []uint32{5}}, view{ttls: []uint32{30}}, "TTL: positive"},
		{"TTL", ask(at("virtual"), dns.TypeA), view{ttls: []uint32{30}}, view{ttls: []uint32{5}}, ""},
		{"TTL", ask(at("virtual"), dns.TypeA), view{negative: []uint32{0, 0}}, view{negative: []uint32{30, 30}}, "TTL: negative"},
		{"TTL", ask(at("virtual"), dns.TypeA), view{negative: []uint32{5, 0}}, view{negative: []uint32{30, 30}}, ""},
		{"silence", ask(at("virtual"), dns.TypeA), view{silent: true}, view{rcode: "NOERROR"}, ""},
		{"silence", ask(at("virtual"), dns.TypeA), view{rcode: "NOERROR"}, view{silent: true}, ""},
		{"flag rd", ask(at("virtual"), dns.TypeA), view{flags: []string{"rd"}}, view{}, ""},
		{"flag ra", ask(at("virtual"), dns.TypeA), view{}, view{flags: []string{"ra"}}, ""},
	} {
		if got := explain(w, tc.aspect, tc.q, tc.f, tc.c); got != tc.want {
			t.Errorf("%s of %s, %v and %v: %q, want %q", tc.aspect, tc.q, tc.f, tc.c, got, tc.want)
		}
	}
}

// The page that operators read has exactly the known differences.
func TestDocsHaveTheDifferences(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range known {
		if seen[d.key()] || d.fairlead == "" || d.coredns == "" || d.reason == "" || strings.Contains(d.fairlead+d.coredns+d.reason, "|") {
			t.Errorf("%s: twice, or something is missing", d.key())
		}
		seen[d.key()] = true
	}
	const path, begin, end = "../docs/dns.md", "<!-- differences: bench/compareknown.go -->\n", "<!-- end of differences -->\n"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(page), begin)
	has, after, found := strings.Cut(rest, end)
	if !found {
		t.Fatalf("%s has no place for the differences", path)
	}
	if *update {
		if err := os.WriteFile(path, []byte(before+begin+table()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if has != table() {
		t.Errorf("%s does not list the known differences; -update writes\n%s", path, table())
	}
}

// upstreamOn serves the world outside on loopback.
func upstreamOn(t *testing.T) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	listener, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: conn}, {Listener: listener}} {
		s.Handler = dns.HandlerFunc(answerUpstream)
		ready := make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		go func() { _ = s.ActivateAndServe() }()
		<-ready
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return addr
}

// here is the namespace that the test runs in.
func here(t *testing.T) *host {
	t.Helper()
	ns, err := linux.CurrentNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return &host{NetNS: ns}
}

func TestAskerAndUpstream(t *testing.T) {
	testnet.MustRoot(t)
	a := newAsker(here(t), upstreamOn(t))
	defer a.close()
	for _, tc := range []struct {
		name  string
		qtype uint16
		size  uint16
		tcp   bool
		rcode string
		many  int
		tc    bool
	}{
		{"www.example.com.", dns.TypeA, 0, false, "NOERROR", 1, false},
		{"WWW.example.com.", dns.TypeAAAA, 0, true, "NOERROR", 1, false},
		{"alias.example.com.", dns.TypeA, 0, false, "NOERROR", 2, false},
		{"v6.example.com.", dns.TypeA, 0, false, "NOERROR", 0, false},
		{"nowhere.example.com.", dns.TypeA, 0, false, "NXDOMAIN", 0, false},
		{"refused.example.com.", dns.TypeA, 0, false, "REFUSED", 0, false},
		{"servfail.example.com.", dns.TypeA, 0, false, "SERVFAIL", 0, false},
		{"large.example.com.", dns.TypeA, 4096, false, "NOERROR", 60, false},
		{"large.example.com.", dns.TypeA, 0, true, "NOERROR", 60, false},
		{"large.example.com.", dns.TypeA, 0, false, "NOERROR", -1, true},
	} {
		q := &asked{name: tc.name, qtype: tc.qtype, tcp: tc.tcp, msg: new(dns.Msg).SetQuestion(tc.name, tc.qtype)}
		if tc.size > 0 {
			q.msg.SetEdns0(tc.size, false)
		}
		s, err := a.ask(q)
		if err != nil {
			t.Fatalf("%s: %v", q, err)
		}
		v := viewOf(s)
		if v.silent || v.rcode != tc.rcode || len(v.answer) != tc.many && tc.many >= 0 || v.has("tc") != tc.tc || v.edns.present != (tc.size > 0) {
			t.Errorf("%s: %s, want %s with %d records", q, v, tc.rcode, tc.many)
		}
	}
	// Nobody answers a response.
	q := &asked{odd: "a response", msg: new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA), spoil: func(b []byte) []byte { b[2] |= 0x80; return b }}
	if s, err := a.ask(q); err != nil || !s.silent {
		t.Errorf("a response is answered with %s (%v)", viewOf(s), err)
	}
}
