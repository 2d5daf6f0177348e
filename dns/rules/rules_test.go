// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"
)

func mustNew(t testing.TB, r Rules) *Set {
	t.Helper()
	s, err := New(r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func question(name string, qtype uint16) mdns.Question {
	return mdns.Question{Name: name, Qtype: qtype, Qclass: mdns.ClassINET}
}

func wire(t testing.TB, name string) []byte {
	t.Helper()
	b := make([]byte, 512)
	n, err := mdns.PackDomainName(name, b, 0, nil, false)
	if err != nil {
		t.Fatalf("%q: %v", name, err)
	}
	return b[:n]
}

func records(t testing.TB, texts ...string) []mdns.RR {
	t.Helper()
	var out []mdns.RR
	for _, s := range texts {
		rr, err := mdns.NewRR(s)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		out = append(out, rr)
	}
	return out
}

func text(rrs []mdns.RR) string {
	var out []string
	for _, rr := range rrs {
		out = append(out, strings.ReplaceAll(strings.TrimPrefix(rr.String(), ";"), "\t", " "))
	}
	return strings.Join(out, " | ")
}

// TestRewrite: a row is the rules, a question, the question that comes of it, and what becomes of an answer to that.
func TestRewrite(t *testing.T) {
	exact := NameRewrite{On: On{Exact, "Old.example.com"}, To: "new.example.com"}
	rows := []struct {
		name     string
		rules    []Rewrite
		asked    string
		qtype    uint16
		becomes  string // with type; empty: no rule fits
		answered []string
		answer   string
	}{
		{name: "exact", rules: []Rewrite{exact}, asked: "OLD.example.com.", becomes: "new.example.com. A",
			answered: []string{"new.example.com. 5 IN A 10.0.0.1"}, answer: "old.example.com. 5 IN A 10.0.0.1"},
		{name: "exact, other name", rules: []Rewrite{exact}, asked: "older.example.com."},
		{name: "exact, name below", rules: []Rewrite{exact}, asked: "a.old.example.com."},
		{name: "exact, targets and names below go back too", rules: []Rewrite{exact}, asked: "old.example.com.", qtype: mdns.TypeSRV, becomes: "new.example.com. SRV",
			answered: []string{"new.example.com. 5 IN SRV 0 0 80 a.new.example.com.", "a.new.example.com. 5 IN CNAME anew.example.com."},
			answer:   "old.example.com. 5 IN SRV 0 0 80 a.old.example.com. | a.old.example.com. 5 IN CNAME anew.example.com."},
		{name: "first that stops is last", rules: []Rewrite{exact, NameRewrite{On: On{Exact, "new.example.com"}, To: "newer"}}, asked: "old.example.com.", becomes: "new.example.com. A"},
		{name: "continue", rules: []Rewrite{NameRewrite{On: exact.On, To: exact.To, Continue: true}, NameRewrite{On: On{Exact, "new.example.com."}, To: "Newer."}},
			asked: "old.example.com.", becomes: "newer. A",
			answered: []string{"newer. 5 IN A 10.0.0.1"}, answer: "old.example.com. 5 IN A 10.0.0.1"},
		{name: "prefix is of whole labels", rules: []Rewrite{NameRewrite{On: On{Prefix, "ftp-"}, To: "web-"}}, asked: "ftp-a.example."},
		{name: "prefix", rules: []Rewrite{NameRewrite{On: On{Prefix, "ftp"}, To: "web"}}, asked: "ftp.a.example.", becomes: "web.a.example. A",
			answered: []string{"web.a.example. 5 IN A 10.0.0.1"}, answer: "web.a.example. 5 IN A 10.0.0.1"},
		{name: "prefix, auto", rules: []Rewrite{NameRewrite{On: On{Prefix, "ftp"}, To: "web", Auto: true}}, asked: "ftp.a.example.", becomes: "web.a.example. A",
			answered: []string{"web.a.example. 5 IN A 10.0.0.1"}, answer: "ftp.a.example. 5 IN A 10.0.0.1"},
		{name: "suffix", rules: []Rewrite{NameRewrite{On: On{Suffix, ".prod.example"}, To: ".svc.cluster.local", Auto: true}}, asked: "a.b.Prod.example.", becomes: "a.b.svc.cluster.local. A",
			answered: []string{"a.b.svc.cluster.local. 5 IN CNAME c.svc.cluster.local."}, answer: "a.b.prod.example. 5 IN CNAME c.prod.example."},
		{name: "suffix within a label", rules: []Rewrite{NameRewrite{On: On{Suffix, "rod.example"}, To: "x."}}, asked: "prod.example.", becomes: "px. A"},
		{name: "suffix, not the zone itself", rules: []Rewrite{NameRewrite{On: On{Suffix, ".prod.example."}, To: "x."}}, asked: "prod.example."},
		{name: "substring, with its dot", rules: []Rewrite{NameRewrite{On: On{Substring, "b"}, To: "c"}}, asked: "ab.bb.x.", becomes: "ac.bc.x. A"},
		{name: "regex", rules: []Rewrite{NameRewrite{On: On{Regex, `^(.*)\.shop\.example\.com\.$`}, To: "{1}.shop.svc.cluster.local",
			Answers: []AnswerRewrite{{From: `^(.*)\.shop\.svc\.cluster\.local\.$`, To: "{1}.shop.example.com"}}}}, asked: "orders.SHOP.example.com.", becomes: "orders.shop.svc.cluster.local. A",
			answered: []string{"orders.shop.svc.cluster.local. 5 IN A 10.0.0.1", "other. 5 IN A 10.0.0.2"},
			answer:   "orders.shop.example.com. 5 IN A 10.0.0.1 | other. 5 IN A 10.0.0.2"},
		{name: "regex, other", rules: []Rewrite{NameRewrite{On: On{Regex, `(.*)\.shop\.$`}, To: "x"}}, asked: "shop."},
		{name: "answer value", rules: []Rewrite{NameRewrite{On: On{Suffix, "a."}, To: "b.", Auto: true, Answers: []AnswerRewrite{{Value: true, From: `^x\.(.*)\.$`, To: "y.{1}"}}}},
			asked: "q.a.", qtype: mdns.TypeMX, becomes: "q.b. MX", answered: []string{"q.b. 5 IN MX 1 x.z.", "q.b. 5 IN MX 1 x.b."}, answer: "q.a. 5 IN MX 1 y.z. | q.a. 5 IN MX 1 y.a."},
		{name: "values of every type", rules: []Rewrite{NameRewrite{On: On{Suffix, "a."}, To: "b.", Auto: true}}, asked: "a.", becomes: "b. A",
			answered: []string{"b. 5 IN NS b.", "b. 5 IN PTR b.", "b. 5 IN SOA b. b. 1 2 3 4 5", "b. 5 IN DNAME b.", `b. 5 IN NAPTR 1 2 "" "" "" b.`, `b. 5 IN TXT "b."`},
			answer:   `a. 5 IN NS a. | a. 5 IN PTR a. | a. 5 IN SOA a. b. 1 2 3 4 5 | a. 5 IN DNAME a. | a. 5 IN NAPTR 1 2 "" "" "" a. | a. 5 IN TXT "b."`},
		{name: "type", rules: []Rewrite{TypeRewrite{From: mdns.TypeANY, To: mdns.TypeA}}, asked: "a.", qtype: mdns.TypeANY, becomes: "a. A"},
		{name: "type, other", rules: []Rewrite{TypeRewrite{From: mdns.TypeANY, To: mdns.TypeA}}, asked: "a."},
		{name: "class", rules: []Rewrite{ClassRewrite{From: mdns.ClassINET, To: mdns.ClassCHAOS}}, asked: "a.", becomes: "a. CH A"},
		{name: "ttl", rules: []Rewrite{TTLRewrite{On: On{Suffix, "a."}, Min: 5, Max: 10}}, asked: "a.", becomes: "a. A",
			answered: []string{"a. 1 IN A 10.0.0.1", "a. 7 IN A 10.0.0.1", "a. 11 IN A 10.0.0.1"},
			answer:   "a. 5 IN A 10.0.0.1 | a. 7 IN A 10.0.0.1 | a. 10 IN A 10.0.0.1"},
		{name: "name and ttl", rules: []Rewrite{NameRewrite{On: On{Exact, "a"}, To: "b", Continue: true}, TTLRewrite{On: On{Exact, "b"}, Min: 30, Max: 30}}, asked: "a.", becomes: "b. A",
			answered: []string{"b. 5 IN A 10.0.0.1"}, answer: "a. 30 IN A 10.0.0.1"},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			s := mustNew(t, Rules{Rewrites: r.rules})
			if r.qtype == 0 {
				r.qtype = mdns.TypeA
			}
			asked := question(r.asked, r.qtype)
			q, undo, err := s.Rewrite(asked)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Concerns(wire(t, r.asked), r.qtype, mdns.ClassINET); got != (r.becomes != "") {
				t.Errorf("concerns %v", got)
			}
			if (undo != nil) != (r.becomes != "") {
				t.Fatalf("became %v %v", q, undo)
			}
			if undo == nil {
				if q != asked {
					t.Errorf("became %v", q)
				}
				return
			}
			got := q.Name + " "
			if q.Qclass != mdns.ClassINET {
				got += mdns.Class(q.Qclass).String() + " "
			}
			if got += mdns.Type(q.Qtype).String(); got != r.becomes {
				t.Errorf("became %s, want %s", got, r.becomes)
			}
			m := &mdns.Msg{Question: []mdns.Question{q}, Answer: records(t, r.answered...)}
			m.SetEdns0(1232, true)
			opt := m.IsEdns0().String()
			undo.Apply(m)
			if got := text(m.Answer); got != r.answer {
				t.Errorf("answer\n%s, want\n%s", got, r.answer)
			}
			if m.Question[0] != asked {
				t.Errorf("question %v, want %v", m.Question[0], asked)
			}
			if m.IsEdns0().String() != opt {
				t.Errorf("EDNS0 %s, want %s", m.IsEdns0(), opt)
			}
		})
	}
}

func TestRewriteRcode(t *testing.T) {
	s := mustNew(t, Rules{Rewrites: []Rewrite{RcodeRewrite{On: On{Suffix, "a."}, From: mdns.RcodeServerFailure, To: mdns.RcodeNameError}}})
	for _, r := range []struct{ asked, answered, want int }{{0, mdns.RcodeServerFailure, mdns.RcodeNameError}, {0, 0, 0}, {1, mdns.RcodeServerFailure, mdns.RcodeNameError}} {
		_, undo, err := s.Rewrite(question("x.a.", mdns.TypeA))
		if err != nil || undo == nil {
			t.Fatal(undo, err)
		}
		m := &mdns.Msg{}
		m.Rcode = r.answered
		if r.asked == 1 {
			m.Ns = records(t, "a. 5 IN SOA b. b. 1 2 3 4 5")
		}
		if undo.Apply(m); m.Rcode != r.want {
			t.Errorf("rcode %d became %d, want %d", r.answered, m.Rcode, r.want)
		}
	}
}

func TestRewriteToNoName(t *testing.T) {
	long := strings.Repeat("a", 60) + "."
	s := mustNew(t, Rules{Rewrites: []Rewrite{NameRewrite{On: On{Suffix, "x."}, To: strings.Repeat(long, 4)}}})
	asked := question("aaaaaaaaaaaaaaa.x.", mdns.TypeA)
	if q, undo, err := s.Rewrite(asked); err == nil || undo != nil || q != asked {
		t.Errorf("%v, %v, %v", q, undo, err)
	}
}

// TestRefused: what makes no sense is said when the set is made.
func TestRefused(t *testing.T) {
	for _, r := range []struct {
		rules Rules
		want  string
	}{
		{Rules{Rewrites: []Rewrite{NameRewrite{On: On{Regex, "("}, To: "x"}}}, "regular expression"},
		{Rules{Rewrites: []Rewrite{NameRewrite{On: On{Regex, strings.Repeat("a", 10_001)}, To: "x"}}}, "longer than 10000"},
		{Rules{Rewrites: []Rewrite{NameRewrite{On: On{Regex, "(a)"}, To: "{1}{2}"}}}, "uses 2 groups"},
		{Rules{Rewrites: []Rewrite{NameRewrite{On: On{Exact, "a"}, To: "b", Answers: []AnswerRewrite{{From: "a", To: "{1}"}}}}}, "uses 1 groups"},
		{Rules{Rewrites: []Rewrite{NameRewrite{On: On{Exact, "a"}, To: "b", Answers: []AnswerRewrite{{From: "[", To: "x"}}}}}, "regular expression"},
		{Rules{Rewrites: []Rewrite{NameRewrite{On: On{Suffix, "a"}, To: "b", Auto: true, Answers: []AnswerRewrite{{From: "a", To: "x"}}}}}, "not both"},
		{Rules{Rewrites: []Rewrite{TTLRewrite{On: On{Exact, "a"}, Min: 2, Max: 1}}}, "above its maximum"},
		{Rules{Templates: []Template{{Match: []string{"["}}}}, "regular expression"},
		{Rules{Templates: []Template{{Answer: []string{"{{ .Nme }}"}}}}, "template field .Nme"},
		{Rules{Templates: []Template{{Answer: []string{"{{ .Message.Id }}"}}}}, "template field .Message"},
		{Rules{Templates: []Template{{Answer: []string{"{{ $.Remote }}"}}}}, "template field .Remote"},
		{Rules{Templates: []Template{{Answer: []string{"{{ if .Name }}{{ .Question }}{{ end }}"}}}}, "template field .Question"},
		{Rules{Templates: []Template{{Answer: []string{`{{ .Meta "x" }}`}}}}, "template field .Meta"},
		{Rules{Templates: []Template{{Answer: []string{"{{ range .Match }}x{{ end }}"}}}}, "template part"},
		{Rules{Templates: []Template{{Additional: []string{`{{ define "x" }}y{{ end }}{{ template "x" }}`}}}}, "template part"},
		{Rules{Templates: []Template{{Authority: []string{"{{ .Name"}}}}, "unclosed action"},
		{Rules{Templates: []Template{{Authority: []string{"{{ frob .Name }}"}}}}, "frob"},
	} {
		if _, err := New(r.rules); err == nil || !strings.Contains(err.Error(), r.want) {
			t.Errorf("%v: %v, want %q", r.rules, err, r.want)
		}
	}
}

func TestHosts(t *testing.T) {
	file := ParseHosts("# comment\n10.0.0.1 a.Example b.example # more\n10.0.0.2\ta.example.\nfe80::1%eth0 a.example\nnonsense a.example\n10.0.0.9\n::ffff:10.0.0.3 c.example\n" +
		"10.0.1.1 *.w.example\n10.0.1.2 x.w.example\nfd00::5 six.w.example\nfd00::6 six.example\n10.9.9.9 a.other\n")
	inline := ParseHosts("10.0.0.7 a.example")
	none := Hosts{Zones: []string{"example"}, TTL: 30, File: file, Inline: inline}
	through := none
	through.Fallthrough = []string{"."}
	part := none
	part.Fallthrough = []string{"w.example"}
	types := through
	types.Unsupported = true
	partTypes := part
	partTypes.Unsupported = true
	noReverse := through
	noReverse.NoReverse = true
	const failed = "SERVFAIL"
	for _, r := range []struct {
		hosts Hosts
		name  string
		qtype uint16
		want  string // empty: nothing to do with it; "none": it exists
	}{
		{none, "a.example.", mdns.TypeA, "a.example. 30 IN A 10.0.0.1 | a.example. 30 IN A 10.0.0.2 | a.example. 30 IN A 10.0.0.7"},
		{none, "A.exAmple.", mdns.TypeAAAA, "A.exAmple. 30 IN AAAA fe80::1"},
		{none, "b.example.", mdns.TypeAAAA, "none"},
		{none, "b.example.", mdns.TypeTXT, "none"},
		{none, "c.example.", mdns.TypeA, "c.example. 30 IN A 10.0.0.3"},
		{none, "six.example.", mdns.TypeA, "none"},
		{none, `x\.example.`, mdns.TypeA, ""},
		{none, `x\\.example.`, mdns.TypeA, failed},
		{partTypes, "a.example.", mdns.TypeTXT, "none"},
		{partTypes, "x.w.example.", mdns.TypeTXT, ""},
		{none, "d.example.", mdns.TypeA, failed},
		{none, "example.", mdns.TypeMX, failed},
		{none, "aexample.", mdns.TypeA, ""},
		{none, "a.other.", mdns.TypeA, ""},
		{through, "d.example.", mdns.TypeA, ""},
		{through, "b.example.", mdns.TypeMX, "none"},
		{types, "b.example.", mdns.TypeMX, ""},
		{types, "b.example.", mdns.TypeAAAA, "none"},
		{part, "d.example.", mdns.TypeA, failed},
		{part, "w.example.", mdns.TypeA, ""},
		{part, "d.w.example.", mdns.TypeA, "d.w.example. 30 IN A 10.0.1.1"},
		{none, "x.w.example.", mdns.TypeA, "x.w.example. 30 IN A 10.0.1.2"},
		{none, "x.w.example.", mdns.TypeAAAA, "none"},
		{none, "six.w.example.", mdns.TypeA, "six.w.example. 30 IN A 10.0.1.1"},
		{none, "x.y.w.example.", mdns.TypeA, failed},
		{none, "*.w.example.", mdns.TypeA, "*.w.example. 30 IN A 10.0.1.1"},
		{none, "1.0.0.10.in-addr.arpa.", mdns.TypePTR, "1.0.0.10.in-addr.arpa. 30 IN PTR a.example. | 1.0.0.10.in-addr.arpa. 30 IN PTR b.example."},
		{none, "3.0.0.10.in-addr.arpa.", mdns.TypePTR, "3.0.0.10.in-addr.arpa. 30 IN PTR c.example."},
		{none, "9.9.9.10.in-addr.arpa.", mdns.TypePTR, ""},
		{none, "1.1.0.10.in-addr.arpa.", mdns.TypePTR, ""},
		{none, "1.0.0.10.in-addr.arpa.", mdns.TypeA, ""},
		{none, "a.example.", mdns.TypePTR, ""},
		{none, "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.E.f.ip6.arpa.", mdns.TypePTR,
			"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.E.f.ip6.arpa. 30 IN PTR a.example."},
		{noReverse, "1.0.0.10.in-addr.arpa.", mdns.TypePTR, ""},
		{noReverse, "a.example.", mdns.TypePTR, ""},
	} {
		s := mustNew(t, Rules{Hosts: &r.hosts})
		a, err := s.Answer(question(r.name, r.qtype))
		got := ""
		switch {
		case err != nil:
			got = err.Error()
		case a == nil:
		case a.Rcode == mdns.RcodeServerFailure:
			got = failed
		case len(a.Answer) == 0:
			got = "none"
		default:
			got = text(a.Answer)
		}
		if got != r.want {
			t.Errorf("%s %s:\n%s, want\n%s", r.name, mdns.Type(r.qtype), got, r.want)
		}
		if got := s.Concerns(wire(t, r.name), r.qtype, mdns.ClassINET); got != (r.want != "") {
			t.Errorf("%s %s: concerns %v", r.name, mdns.Type(r.qtype), got)
		}
	}
}

func TestTemplates(t *testing.T) {
	ip := Template{Class: mdns.ClassINET, Type: mdns.TypeA, Zones: []string{"example"}, Match: []string{`^ip-(?P<a>[0-9]+)-(?P<b>[0-9]+)\.example\.$`, `^ten\.`},
		Answer: []string{"{{ .Name }} 60 IN A 10.0.{{ .Group.a }}.{{ .Group.b }}"}}
	through := ip
	through.Fallthrough = []string{"example"}
	denial := Template{Class: mdns.ClassANY, Type: mdns.TypeANY, Zones: []string{"invalid", "deep.invalid"}, Rcode: mdns.RcodeNameError,
		Authority: []string{"{{ .Zone }} 60 {{ .Class }} SOA ns.{{ .Zone }} h.{{ .Zone }} (1 60 60 60 60)"}, Error: &mdns.EDNS0_EDE{InfoCode: 15, ExtraText: "blocked"}}
	hex := Template{Class: mdns.ClassINET, Type: mdns.TypeANY, Zones: []string{"hex"}, Match: []string{`^(?P<h>[0-9a-f]{2})\.hex\.$`},
		Answer:     []string{`{{ $n := parseInt .Group.h 16 8 }}{{ .Name }} 60 IN A 10.0.0.{{ $n }}`, `{{ if eq .Type "MX" }}{{ .Name }} 60 IN MX 1 {{ index .Match 1 }}.x.{{ else }}{{ .Name }} 60 IN TXT "{{ .Type }}"{{ end }}`},
		Additional: []string{"{{ index .Match 1 }}.x. 60 IN A 10.0.0.1"}}
	alias := Template{Class: mdns.ClassINET, Type: mdns.TypeANY, Zones: []string{"alias"}, Answer: []string{"{{ .Name }} 60 IN CNAME target.other."}}
	broken := Template{Class: mdns.ClassINET, Type: mdns.TypeA, Zones: []string{"broken"}, Answer: []string{"{{ .Name }} 60 IN A {{ .Group.nothing }}"}}
	refusal := Template{Class: mdns.ClassINET, Type: mdns.TypeA, Zones: []string{"refused"}, Rcode: mdns.RcodeServerFailure, Answer: []string{"x. 1 IN A 10.0.0.1"}}
	typed := Template{Class: mdns.ClassINET, Type: mdns.TypeTXT, Zones: []string{"typed"}, Answer: []string{"{{ .Name }} 60 {{ .Class }} {{ .Type }} x"}}
	all := []Template{through, denial, hex, alias, broken, refusal, typed}
	for _, r := range []struct {
		templates []Template
		name      string
		qtype     uint16
		class     uint16
		want      string
	}{
		{all, "IP-1-2.example.", mdns.TypeA, 0, "NOERROR answer: ip-1-2.example. 60 IN A 10.0.1.2"},
		{all, "ip-1-2.example.", mdns.TypeANY, 0, "NOERROR answer: ip-1-2.example. 60 IN A 10.0.1.2"},
		{all, "ip-1-2.example.", mdns.TypeAAAA, 0, ""},
		{all, "ip-1-2.example.", mdns.TypeA, mdns.ClassCHAOS, ""},
		{all, "ip-1-2.example.", mdns.TypeA, mdns.ClassANY, "NOERROR answer: ip-1-2.example. 60 IN A 10.0.1.2"},
		{all, "x.ip-1-2.example.", mdns.TypeA, 0, ""},
		{[]Template{ip}, "x.ip-1-2.example.", mdns.TypeA, 0, "SERVFAIL"},
		{[]Template{ip, through}, "x.ip-1-2.example.", mdns.TypeA, 0, "SERVFAIL"},
		{all, "ip-1-2.example.org.", mdns.TypeA, 0, ""},
		{all, "x.invalid.", mdns.TypeMX, 0, "NXDOMAIN authority: invalid. 60 IN SOA ns.invalid. h.invalid. 1 60 60 60 60 error 15 blocked"},
		{all, "x.deep.invalid.", mdns.TypeMX, 0, "NXDOMAIN authority: deep.invalid. 60 IN SOA ns.deep.invalid. h.deep.invalid. 1 60 60 60 60 error 15 blocked"},
		{all, "0A.hex.", mdns.TypeMX, 0, "NOERROR answer: 0a.hex. 60 IN A 10.0.0.10 | 0a.hex. 60 IN MX 1 0a.x. additional: 0a.x. 60 IN A 10.0.0.1"},
		{all, "ff.hex.", mdns.TypeA, 0, `NOERROR answer: ff.hex. 60 IN A 10.0.0.255 | ff.hex. 60 IN TXT "A" additional: ff.x. 60 IN A 10.0.0.1`},
		{all, "a.alias.", mdns.TypeA, 0, "NOERROR answer: a.alias. 60 IN CNAME target.other. follow 0"},
		{all, "a.alias.", mdns.TypeTXT, 0, "NOERROR answer: a.alias. 60 IN CNAME target.other."},
		{all, "a.typed.", mdns.TypeANY, mdns.ClassANY, `NOERROR answer: a.typed. 60 IN TXT "x"`},
		{all, "a.broken.", mdns.TypeA, 0, "SERVFAIL error"},
		{all, "a.refused.", mdns.TypeA, 0, "SERVFAIL"},
		{[]Template{ip}, "ten.example.", mdns.TypeA, 0, "SERVFAIL error"},
	} {
		s := mustNew(t, Rules{Templates: r.templates})
		if r.class == 0 {
			r.class = mdns.ClassINET
		}
		a, err := s.Answer(mdns.Question{Name: r.name, Qtype: r.qtype, Qclass: r.class})
		got := ""
		if a != nil {
			got = mdns.RcodeToString[a.Rcode]
			for _, p := range []struct {
				name string
				rrs  []mdns.RR
			}{{"answer", a.Answer}, {"additional", a.Extra}, {"authority", a.Ns}} {
				if len(p.rrs) > 0 {
					got += " " + p.name + ": " + text(p.rrs)
				}
			}
			if a.Error != nil {
				got += fmt.Sprintf(" error %d %s", a.Error.InfoCode, a.Error.ExtraText)
			}
			for _, f := range a.Follow {
				got += fmt.Sprintf(" follow %d", f)
			}
		}
		if err != nil {
			got += " error"
		}
		if got != r.want {
			t.Errorf("%s %s:\n%s, want\n%s", r.name, mdns.Type(r.qtype), got, r.want)
		}
		if got := s.Concerns(wire(t, r.name), r.qtype, r.class); got != (r.want != "") {
			t.Errorf("%s %s: concerns %v", r.name, mdns.Type(r.qtype), got)
		}
	}
}

// TestOrder: templates come before hosts, and both see what the rewriting has left.
func TestOrder(t *testing.T) {
	s := mustNew(t, Rules{
		Rewrites:  []Rewrite{NameRewrite{On: On{Exact, "a"}, To: "b"}},
		Templates: []Template{{Class: mdns.ClassINET, Type: mdns.TypeA, Zones: []string{"b"}, Answer: []string{"b. 1 IN A 10.0.0.1"}}},
		Hosts:     &Hosts{Zones: []string{"."}, Fallthrough: []string{"."}, Inline: ParseHosts("10.0.0.2 a b c")},
	})
	for name, want := range map[string]string{"a.": "10.0.0.1", "b.": "10.0.0.1", "c.": "10.0.0.2"} {
		q, _, _ := s.Rewrite(question(name, mdns.TypeA))
		if a, err := s.Answer(q); err != nil || !strings.HasSuffix(text(a.Answer), want) {
			t.Errorf("%s: %v %v, want %s", name, a, err, want)
		}
	}
	if none := mustNew(t, Rules{}); none != nil || none.Concerns(wire(t, "a."), mdns.TypeA, mdns.ClassINET) {
		t.Error("no rules are a set")
	}
}

// busy are rules of every kind.
func busy() Rules {
	r := Rules{Hosts: &Hosts{Zones: []string{"."}, Fallthrough: []string{"."}, Inline: ParseHosts("10.0.0.1 one.hosts *.two.hosts")}}
	for i := range 200 {
		r.Rewrites = append(r.Rewrites, NameRewrite{On: On{Exact, fmt.Sprintf("name-%d.example", i)}, To: "x"})
	}
	r.Rewrites = append(r.Rewrites,
		NameRewrite{On: On{Suffix, ".shop.example"}, To: ".shop.svc.cluster.local", Auto: true},
		NameRewrite{On: On{Prefix, "ftp"}, To: "web", Continue: true},
		NameRewrite{On: On{Regex, `^(.*)\.prod\.example\.$`}, To: "{1}.x."},
		NameRewrite{On: On{Regex, `^v[0-9]+\.api\.`}, To: "x."},
		NameRewrite{On: On{Regex, `-canary-`}, To: "x."},
		TypeRewrite{From: mdns.TypeANY, To: mdns.TypeHINFO},
		TTLRewrite{On: On{Substring, "slow"}, Min: 60, Max: 60},
	)
	r.Templates = []Template{
		{Class: mdns.ClassINET, Type: mdns.TypeA, Zones: []string{"ip.example"}, Match: []string{`^([0-9]+)\.ip\.example\.$`}, Fallthrough: []string{"."}, Answer: []string{"{{ .Name }} 1 IN A 10.0.0.1"}},
		{Class: mdns.ClassANY, Type: mdns.TypeANY, Zones: []string{"invalid"}, Rcode: mdns.RcodeNameError},
	}
	return r
}

// TestConcerns: the fast question says exactly what the slow ones do.
func TestConcerns(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	s := mustNew(t, busy())
	labels := []string{"a", "ftp", "name-7", "name-777", "example", "shop", "prod", "v12", "api", "x-canary-y", "slow", "ip", "12", "invalid", "hosts", "one", "two", "svc", "cluster", "local", "Prod", "FTP", `a\.b`, `\007`}
	types := []uint16{mdns.TypeA, mdns.TypeA, mdns.TypeAAAA, mdns.TypePTR, mdns.TypeANY, mdns.TypeSRV}
	concerned := 0
	for range 20_000 {
		var parts []string
		for range 1 + rnd.IntN(4) {
			parts = append(parts, labels[rnd.IntN(len(labels))])
		}
		name, qtype := strings.Join(parts, ".")+".", types[rnd.IntN(len(types))]
		check(t, s, name, qtype)
		if s.Concerns(wire(t, name), qtype, mdns.ClassINET) {
			concerned++
		}
	}
	if concerned < 1000 || concerned > 19_000 {
		t.Errorf("%d of 20000 questions concern rules", concerned)
	}
}

func check(t *testing.T, s *Set, name string, qtype uint16) {
	t.Helper()
	q := question(name, qtype)
	_, undo, err := s.Rewrite(q)
	a, err2 := s.Answer(q)
	slow := undo != nil || a != nil || err != nil || err2 != nil
	if fast := s.Concerns(wire(t, name), qtype, mdns.ClassINET); fast != slow {
		t.Errorf("%s %s: concerns %v, but %v %v %v", name, mdns.Type(qtype), fast, undo, a, err)
	}
}

func TestConcernsIsFree(t *testing.T) {
	s := mustNew(t, busy())
	names := [][]byte{wire(t, "orders.shop.svc.cluster.local."), wire(t, "www.wikipedia.org."), wire(t, "name-3.example."), wire(t, "a.prod.example."), wire(t, "v1.api.example."), wire(t, "x.two.hosts.")}
	if n := testing.AllocsPerRun(1000, func() {
		for _, w := range names {
			s.Concerns(w, mdns.TypeA, mdns.ClassINET)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	for i, w := range names {
		if got := s.Concerns(w, mdns.TypeA, mdns.ClassINET); got != (i > 1) {
			t.Errorf("%d: concerns %v", i, got)
		}
	}
}

// TestLiterals: what is known of every match of an expression.
func TestLiterals(t *testing.T) {
	for _, r := range []struct{ re, head, within, tail string }{
		{`^foo\.(.*)\.bar\.$`, "foo.", "", ".bar."},
		{`^foo`, "foo", "", ""},
		{`foo$`, "", "", "foo"},
		{`foo`, "", "foo", ""},
		{`(a|b)foo.*ba`, "", "foo", ""},
		{`(?i)^foo$`, "", "", ""},
		{`(?m)^foo$`, "", "foo", ""},
		{`^(foo)(.*)`, "foo", "", ""},
		{`a?b|c`, "", "", ""},
		{`.*`, "", "", ""},
		{`^a{3}b`, "a", "", ""},
	} {
		re, err := compileRegex(r.re)
		if err != nil {
			t.Fatal(err)
		}
		if m := newMatcher(re); string(m.head) != r.head || string(m.tail) != r.tail || (r.within != "" && string(m.within) != r.within) {
			t.Errorf("%s: %q %q %q", r.re, m.head, m.within, m.tail)
		}
	}
}

func TestString(t *testing.T) {
	got := Rules{
		Rewrites: []Rewrite{
			NameRewrite{On: On{Regex, `^(.*)\.a\.$`}, To: "{1}.b", Answers: []AnswerRewrite{{From: "x", To: "y"}, {Value: true, From: "v", To: "w"}}, Continue: true},
			NameRewrite{On: On{Suffix, ".a."}, To: ".b.", Auto: true},
			TypeRewrite{From: mdns.TypeANY, To: mdns.TypeA}, ClassRewrite{From: mdns.ClassCHAOS, To: mdns.ClassINET, Continue: true},
			TTLRewrite{On: On{Exact, "a."}, Min: 1, Max: 2}, RcodeRewrite{On: On{Prefix, "a."}, From: 2, To: 3},
		},
		Templates: []Template{{Class: mdns.ClassINET, Type: mdns.TypeANY, Zones: []string{"a."}, Match: []string{"m"}, Fallthrough: []string{"."}, Answer: []string{"x"}, Rcode: 3, Error: &mdns.EDNS0_EDE{InfoCode: 1}}},
		Hosts: &Hosts{Zones: []string{"."}, TTL: 3600, Fallthrough: []string{"."}, NoReverse: true, Unsupported: true,
			File: []Host{{netip.MustParseAddr("10.0.0.1"), []string{"f"}}}, Inline: []Host{{netip.MustParseAddr("fd00::1"), []string{"a", "b"}}}},
	}.String()
	want := `rewrite continue name regex "^(.*)\\.a\\.$" "{1}.b" answer name "x" "y" answer value "v" "w"
rewrite name suffix ".a." ".b." answer auto
rewrite type ANY A
rewrite continue class CH IN
rewrite ttl exact "a." 1-2
rewrite rcode prefix "a." SERVFAIL NXDOMAIN
template IN ANY a., rcode NXDOMAIN, fall through ., error 1 ""
  match "m"
  answer "x"
hosts . ttl 3600s, no reverse names, fall through ., other types fall through too, 1 from a file
  fd00::1 a b
`
	if got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// FuzzName: names are written as package dns writes them, and what is no name is none for both.
func FuzzName(f *testing.F) {
	f.Add([]byte("\x03foo\x00"))
	f.Add([]byte("\x00"))
	f.Add([]byte("\x05a.b\\\"\x00"))
	f.Add([]byte("\x02\xff@\x03 ;(\x00rest"))
	f.Add([]byte{0xc0, 0})
	f.Add(append(slices.Repeat([]byte("\x07abcdefg"), 32), 0))
	f.Fuzz(func(t *testing.T, wire []byte) {
		if slices.IndexFunc(wire, func(b byte) bool { return b >= 0xc0 }) >= 0 {
			wire = slices.Clone(wire)
			for i := range wire {
				wire[i] &= 0x7f // pointers are the business of whoever reads the message
			}
		}
		got, ok := appendName(nil, wire)
		want, _, err := mdns.UnpackDomainName(wire, 0)
		if ok != (err == nil && len(wire) > 0) {
			t.Fatalf("%q: %q %v, want %q %v", wire, got, ok, want, err)
		}
		if ok && string(got) != canonical(want) {
			t.Fatalf("%q: %q, want %q", wire, got, canonical(want))
		}
	})
}

// FuzzRules: whatever the rules and the question, the fast question says what the slow ones do, and nothing panics.
func FuzzRules(f *testing.F) {
	f.Add(uint8(4), `^(.*)\.a\.$`, "{1}.b.", "x.a.", uint16(1), "10.0.0.1 x.a y.b\n::1 *.a")
	f.Add(uint8(2), ".a", ".b", "x.a.", uint16(12), "")
	f.Add(uint8(3), "a", "", "a.a.a.", uint16(255), "1.2.3.4 a")
	f.Add(uint8(1), `\`, `\.`, `\..`, uint16(1), "1.2.3.4 \\")
	f.Fuzz(func(t *testing.T, kind uint8, pattern, to, name string, qtype uint16, list string) {
		on := On{Kind(int(kind) % len(Kinds)), pattern}
		s, err := New(Rules{
			Rewrites:  []Rewrite{NameRewrite{On: on, To: to, Continue: true}, TTLRewrite{On: on, Max: 1}},
			Templates: []Template{{Class: mdns.ClassINET, Type: mdns.TypeA, Zones: []string{to}, Match: []string{`^` + pattern}, Fallthrough: []string{pattern}}},
			Hosts:     &Hosts{Zones: []string{"."}, Fallthrough: []string{to}, Inline: ParseHosts(list)},
		})
		if err != nil {
			return
		}
		b := make([]byte, 256)
		n, err := mdns.PackDomainName(name, b, 0, nil, false)
		if err != nil {
			return
		}
		name, _, err = mdns.UnpackDomainName(b[:n], 0)
		if err != nil {
			return
		}
		check(t, s, name, qtype)
		if q, undo, err := s.Rewrite(question(name, qtype)); err == nil && undo != nil {
			m := &mdns.Msg{Question: []mdns.Question{q}}
			if undo.Apply(m); m.Question[0].Name != name {
				t.Errorf("question %v", m.Question)
			}
		}
	})
}

func BenchmarkConcerns(b *testing.B) {
	s := mustNew(b, busy())
	for _, name := range []string{"orders.shop.svc.cluster.local.", "name-3.example."} {
		w := wire(b, name)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Concerns(w, mdns.TypeA, mdns.ClassINET)
			}
		})
	}
}
