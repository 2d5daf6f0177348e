// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/rules"
)

// coreDNS is the program that the expected answers are asked of, with -update: `make bench/bin/coredns` makes it.
var coreDNS = flag.String("coredns", "", "with -update, the CoreDNS program to ask")

// TestAsCoreDNS: rewriting, templates and hosts answer as CoreDNS 1.14.7 did when it was asked the same with the same Corefile. Its answers are
// in testdata/coredns/answers; to ask it again: go test ./dns/corefile -run TestAsCoreDNS -update -coredns PROGRAM.
func TestAsCoreDNS(t *testing.T) {
	const dir = "testdata/coredns"
	c, err := Load(dir, OS())
	if err != nil {
		t.Fatal(err)
	}
	questions := judged()
	if *update && *coreDNS != "" {
		text := askCoreDNS(t, *coreDNS, dir, questions)
		if err := os.WriteFile(filepath.Join(dir, "answers"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "answers"))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(want) != len(questions) {
		t.Fatalf("%d answers to %d questions", len(want), len(questions))
	}
	// Of an answer that CoreDNS leaves with the rewritten question, which docs/corefile.md tells of, the rest is compared.
	left := regexp.MustCompile(` to \[\{[^}]*\}\]`)
	kinds := map[string]int{}
	for i, q := range questions {
		got := answerText(q, answerByRules(t, c, q))
		expected := left.ReplaceAllString(want[i], "")
		if got != expected {
			t.Errorf("\n%s, CoreDNS says\n%s", got, want[i])
		}
		if expected != want[i] {
			kinds["left"]++
		}
		kinds[strings.Fields(want[i])[3]]++
	}
	for _, kind := range []string{"NOERROR", "NXDOMAIN", "SERVFAIL", "left"} {
		if kinds[kind] < 8 {
			t.Errorf("%d answers of kind %s", kinds[kind], kind)
		}
	}
}

// judged are the questions: each name with each type.
func judged() []mdns.Question {
	names := strings.Fields(`
		a.exact.example. A.Exact.Example. b.exact.example. b2.exact.example. c.exact.example. x.a.exact.example. gone.exact.example. broken.exact.example. exact.example.
		a.auto.suffix.example. A.b.Auto.suffix.example. auto.suffix.example. plain.suffix.example. a.plain.suffix.example. aplain.suffix.example. x.more.suffix.example. x.step.suffix.example. gone.suffix.example. none.suffix.example. suffix.example.
		ftp.other.example. ftp.a.other.example. FTP.uno.other.example. ftpx.other.example. uno.other.example. xuno.uno.other.example. ftp.gone.other.example. gone.uno.other.example. a.b.re.other.example. a.b.c.re.other.example. a.re.other.example. abc.rx.other.example. a1.rx.other.example. gone.other.example. broken.other.example. none.other.example. other.example.
		a.hosts.example. alias.hosts.example. inline.hosts.example. b.hosts.example. B.HOSTS.example. c.hosts.example. d.hosts.example. hosts.example. y.w.hosts.example. x.w.hosts.example. six.w.hosts.example. y.y.w.hosts.example. *.w.hosts.example. w.hosts.example. f.hosts.example. a.f.hosts.example.
		ip-1-2.t.hosts.example. v3.t.hosts.example. v.t.hosts.example. a.t.hosts.example. ip-1-2.a.t.hosts.example. a.a.t.hosts.example. x.hosts.example. a.x.hosts.example.
		1.0.0.10.in-addr.arpa. 2.0.0.10.in-addr.arpa. 3.0.0.10.in-addr.arpa. 4.0.0.10.in-addr.arpa. 9.0.0.10.in-addr.arpa. 1.1.0.10.in-addr.arpa. 0.0.10.in-addr.arpa.
		1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa. 9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.D.f.ip6.arpa.
		a.deny.example. b.deny.example. deny.example. alias.deny.example. lost.alias.deny.example.`)
	var out []mdns.Question
	for _, n := range names {
		for _, t := range []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypeSRV, mdns.TypeMX, mdns.TypePTR, mdns.TypeTXT, mdns.TypeANY} {
			out = append(out, mdns.Question{Name: n, Qtype: t, Qclass: mdns.ClassINET})
		}
	}
	return out
}

// answerByRules answers as a server does that has nothing but rules.
func answerByRules(t *testing.T, c *Config, q mdns.Question) *mdns.Msg {
	t.Helper()
	var block *dns.Block
	longest := ""
	for i := range c.Blocks {
		for _, z := range c.Blocks[i].Zones {
			if within(q.Name, z) && len(z) > len(longest) {
				block, longest = &c.Blocks[i], z
			}
		}
	}
	set, err := rules.New(block.Rules)
	if err != nil {
		t.Fatal(err)
	}
	m := &mdns.Msg{Question: []mdns.Question{q}}
	asked, undo, err := set.Rewrite(q)
	if err != nil {
		m.Rcode = mdns.RcodeServerFailure
		return m
	}
	switch a, err := set.Answer(asked); {
	case err != nil || a == nil: // there is nothing behind the rules
		m.Rcode = mdns.RcodeServerFailure
	default:
		m.Rcode, m.Answer, m.Ns, m.Extra = a.Rcode, a.Answer, a.Ns, a.Extra
		for _, i := range slices.Backward(a.Follow) {
			target := mdns.Question{Name: a.Answer[i].(*mdns.CNAME).Target, Qtype: q.Qtype, Qclass: q.Qclass}
			m.Answer = slices.Insert(m.Answer, i+1, answerByRules(t, c, target).Answer...)
		}
		if a.Error != nil {
			m.SetEdns0(4096, true)
			m.IsEdns0().Option = append(m.IsEdns0().Option, a.Error)
		}
	}
	if undo != nil {
		undo.Apply(m)
	}
	return m
}

// answerText is a line of the file of answers. Names are in lower case: package rules keeps that of the question, CoreDNS does not.
func answerText(q mdns.Question, m *mdns.Msg) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %s", q.Name, mdns.Class(q.Qclass), mdns.Type(q.Qtype), mdns.RcodeToString[m.Rcode])
	if len(m.Question) != 1 || m.Question[0] != q {
		fmt.Fprintf(&b, " to %v", m.Question)
	}
	for _, s := range []struct {
		name string
		rrs  []mdns.RR
	}{{"answer", m.Answer}, {"authority", m.Ns}, {"additional", m.Extra}} {
		var lines []string
		for _, rr := range s.rrs {
			if opt, ok := rr.(*mdns.OPT); ok {
				for _, o := range opt.Option {
					if e, ok := o.(*mdns.EDNS0_EDE); ok {
						fmt.Fprintf(&b, " error %d %q", e.InfoCode, e.ExtraText)
					}
				}
				continue
			}
			lines = append(lines, strings.Join(strings.Fields(rr.String()), " "))
		}
		if len(lines) > 0 {
			fmt.Fprintf(&b, " %s: %s", s.name, strings.ToLower(strings.Join(lines, " | ")))
		}
	}
	return b.String()
}

// askCoreDNS starts a CoreDNS on an address of this machine's own and asks it.
func askCoreDNS(t *testing.T, program, dir string, questions []mdns.Question) string {
	t.Helper()
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.LocalAddr().String()
	free.Close()
	_, port, _ := net.SplitHostPort(address)
	program, err = filepath.Abs(program)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-conf", "Corefile", "-dns.port", port)
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	client := &mdns.Client{Timeout: time.Second}
	var b strings.Builder
	for i, q := range questions {
		m := &mdns.Msg{Question: []mdns.Question{q}}
		m.Id = mdns.Id()
		m.SetEdns0(4096, false)
		r, _, err := client.ExchangeContext(ctx, m, address)
		for tries := 0; err != nil && i == 0 && tries < 100; tries++ {
			time.Sleep(50 * time.Millisecond) // it is starting
			r, _, err = client.ExchangeContext(ctx, m, address)
		}
		if err != nil {
			t.Fatalf("%v: %v", q, err)
		}
		slices.SortStableFunc(r.Extra, func(a, b mdns.RR) int { return cmp.Compare(a.Header().Rrtype, b.Header().Rrtype) })
		fmt.Fprintln(&b, answerText(q, r))
	}
	return b.String()
}
