// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/forward"
)

// FuzzCorefile: whatever the text, nothing panics, the outcome is the same each time, what is accepted makes sense, and CoreDNS's own parser
// takes the text apart into the same words.
func FuzzCorefile(f *testing.F) {
	names, err := filepath.Glob("testdata/corefiles/*.Corefile")
	if err != nil || len(names) == 0 {
		f.Fatal(names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add("a:53,\nb {\n}\n(x) {\n errors\n}\n. {\n import x\n cache {\n import x\n}\n}")
	f.Add(". {\n rewrite {\n name a b\n}\n log . \"a b\nc\" # d\n}")
	f.Add("\ufeff. errors \"\" \"\\\"\\n\"\nforward . {$EMPTY}10.0.0.1{%EMPTY%}")
	f.Add("10.0.0.0/9 fd00::/7 {\n}")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("Corefile", []byte(text), env())
		again, err2 := Parse("Corefile", []byte(text), env())
		if fmt.Sprint(err) != fmt.Sprint(err2) || c.String() != again.String() || Explain(c) != Explain(again) {
			t.Fatalf("twice:\n%s\n%v\n%s\n%v", Explain(c), err, Explain(again), err2)
		}
		if err == nil {
			sensible(t, c)
		}
		sameWords(t, text)
	})
}

// sensible checks what whoever is given blocks relies on.
func sensible(t *testing.T, c *Config) {
	t.Helper()
	if len(c.Blocks) == 0 || len(c.Notes) == 0 {
		t.Fatalf("%d blocks, %d notes", len(c.Blocks), len(c.Notes))
	}
	if err := dns.Check(c.Blocks); err != nil {
		t.Fatalf("the server does not take it: %v", err)
	}
	for _, b := range c.Blocks {
		if len(b.Zones) == 0 || b.Port == 0 {
			t.Fatalf("block of zones %q at port %d", b.Zones, b.Port)
		}
		zones := slices.Clone(b.Zones)
		if b.Cluster != nil {
			zones = slices.Concat(zones, b.Cluster.Zones, b.Cluster.Fallthrough)
		}
		for _, z := range zones {
			if _, ok := mdns.IsDomainName(z); !ok || z != strings.ToLower(mdns.Fqdn(z)) {
				t.Fatalf("zone %q", z)
			}
		}
		if b.String() == "" {
			t.Fatal("it does not print")
		}
	}
}

// sameWords compares the server blocks that a text is taken apart into with those of CoreDNS's parser, unless it reads files. Where this
// parser is stricter, which is about braces that are not closed and imports without end, there is nothing to compare.
func sameWords(t *testing.T, text string) {
	t.Helper()
	e := Env{LookupEnv: func(name string) (string, bool) { return os.Getenv(name), true }}.withDefaults()
	p := &parser{env: e, config: &Config{}, file: "Corefile", tokens: lex("Corefile", []byte(text)), snippets: map[string][]token{}}
	got := p.servers()
	if p.stopped || len(p.config.reads) > 0 || strings.Count(text, "{$")+strings.Count(text, "{%") > 1 {
		return
	}
	// CoreDNS takes what a value and the words around it make for another variable; here a value is put in as it is.
	if strings.Contains(text, "{{$") || strings.Contains(text, "{{%") {
		return
	}
	want, err := caddyfile.Parse("Corefile", strings.NewReader(text), nil)
	if err != nil && strings.Contains(err.Error(), "snippet import depth") {
		return // it says so of snippets that nobody imports, too
	}
	if err != nil {
		t.Fatalf("CoreDNS says %v", err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d server blocks, want %d", len(got), len(want))
	}
	for i, s := range got {
		var keys []string
		for _, k := range s.keys {
			keys = append(keys, k.Text)
		}
		if !slices.Equal(keys, want[i].Keys) {
			t.Fatalf("keys %q, want %q", keys, want[i].Keys)
		}
		words := map[string][]string{}
		for _, d := range s.directives {
			name := d[0].Text
			for j, w := range d {
				if j == 0 {
					w.Text = "" // CoreDNS's keeps the variables in it
				}
				words[name] = append(words[name], fmt.Sprint(w.Line, w.Text))
			}
		}
		if len(words) != len(want[i].Tokens) {
			t.Fatalf("directives %q, want %v", words, want[i].Tokens)
		}
		for name, tokens := range want[i].Tokens {
			if len(tokens) != len(words[name]) {
				t.Fatalf("%s: %q, want %v", name, words[name], tokens)
			}
			for j, w := range tokens {
				if got := words[name][j]; got != fmt.Sprint(w.Line, w.Text) && got != fmt.Sprint(w.Line, "") {
					t.Fatalf("%s: word %d is %q, want %v", name, j, got, w)
				}
			}
		}
	}
}

// TestPools: for random forwards and names, the pool of the longest zone is the forward that comes first.
func TestPools(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	labels := []string{"a", "b", "c"}
	name := func(most int) string {
		var parts []string
		for range rnd.IntN(most + 1) {
			parts = append(parts, labels[rnd.IntN(len(labels))])
		}
		return strings.Join(parts, ".") + "."
	}
	answered := 0
	for range 3000 {
		b := &builder{parser: &parser{config: &Config{}}}
		for i := range 1 + rnd.IntN(4) {
			s := stanza{from: name(3)}
			s.pool.MaxFails = i + 1
			for range rnd.IntN(3) {
				// A name that is excepted from itself is forwarded by CoreDNS, while what is below is not.
				if e := name(3); e != s.from {
					s.except = append(s.except, e)
				}
			}
			b.stanzas = append(b.stanzas, s)
		}
		text := fmt.Sprint(b.stanzas)
		stanzas := slices.Clone(b.stanzas)
		b.pools()
		for _, p := range b.block.Forward {
			if above := slices.DeleteFunc(slices.Clone(b.block.Forward), func(o forward.Pool) bool { return o.Zone == p.Zone || !within(p.Zone, o.Zone) }); pooled(above, p.Zone) == p.MaxFails {
				t.Fatalf("the pool of %s is that of what it is in:\n%s\n%v", p.Zone, text, b.block)
			}
		}
		for range 20 {
			n := name(4)
			want := 0
			for _, s := range stanzas {
				if within(n, s.from) && !slices.ContainsFunc(s.except, func(e string) bool { return within(n, e) }) {
					want = s.pool.MaxFails
					break
				}
			}
			if got := pooled(b.block.Forward, n); got != want {
				t.Fatalf("%s goes to %d, want %d:\n%s\n%v", n, got, want, text, b.block)
			}
			answered += min(want, 1)
		}
	}
	if answered < 1000 {
		t.Errorf("%d names were forwarded", answered)
	}
}

// pooled is the mark of the pool that a name goes to, as package forward says; 0: none.
func pooled(pools []forward.Pool, name string) int {
	longest := -1
	for i, p := range pools {
		if within(name, p.Zone) && (longest < 0 || len(p.Zone) > len(pools[longest].Zone)) {
			longest = i
		}
	}
	if longest < 0 || allWithin([]string{name}, pools[longest].Except) {
		return 0
	}
	return pools[longest].MaxFails
}

// TestReverse: the zones of a range hold the reverse names of its addresses and of no others next to it.
func TestReverse(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.0/8":       "10.in-addr.arpa.",
		"10.1.2.3/32":      "3.2.1.10.in-addr.arpa.",
		"0.0.0.0/0":        "in-addr.arpa.",
		"::/0":             "ip6.arpa.",
		"10.1.2.3/23":      "2.1.10.in-addr.arpa. 3.1.10.in-addr.arpa.",
		"10.1.255.254/31":  "254.255.1.10.in-addr.arpa. 255.255.1.10.in-addr.arpa.",
		"fd00::/8":         "d.f.ip6.arpa.",
		"fd00:96::/31":     "6.9.0.0.0.0.d.f.ip6.arpa. 7.9.0.0.0.0.d.f.ip6.arpa.",
		"255.255.255.0/23": "254.255.255.in-addr.arpa. 255.255.255.in-addr.arpa.",
	} {
		zones, _, _, err := split(text)
		if got := strings.Join(zones, " "); got != want || err != nil {
			t.Errorf("%s: %s %v, want %s", text, got, err, want)
		}
	}
	for text, most := range map[string]int{"128.0.0.0/1": 128, "10.0.0.0/9": 128, "fc00::/7": 2, "e000::/1": 8} {
		if zones, _, _, _ := split(text); len(zones) != most {
			t.Errorf("%s: %d zones, want %d", text, len(zones), most)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, r := range []struct {
		text, zone string
		port       uint16
		scheme     string
	}{
		{"Example.COM", "example.com.", 53, ""},
		{".:5300", ".", 5300, ""},
		{":5300", ".", 5300, ""},
		{"dns://a:54", "a.", 54, "dns"},
		{"tls://.", ".", 53, "tls"},
		{"10.0.0.0/24:54", "0.0.10.in-addr.arpa.", 54, ""},
		{"2001:db8::/32", "8.b.d.0.1.0.0.2.ip6.arpa.", 53, ""},
		{"a:b", "a:b.", 53, ""},
	} {
		zones, port, scheme, err := split(r.text)
		if err != nil || len(zones) != 1 || zones[0] != r.zone || port != r.port || scheme != r.scheme {
			t.Errorf("%s: %q %d %q %v", r.text, zones, port, scheme, err)
		}
	}
}
