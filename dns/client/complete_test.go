// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

const domain = "cluster.local"

func newTestPod(r *model.Resolver, node ...string) *Pod {
	p := &model.Pod{Name: model.Name{Namespace: "shop", Name: "web"}, Addrs: addrs("10.244.1.5"), Resolver: r}
	return (&Table{options: Options{Domain: domain, NodeSearch: node}}).newPod(p)
}

// TestSearch: the search list of a pod as a kubelet makes it, and the lists that not every resolver would follow alike.
func TestSearch(t *testing.T) {
	const cluster = ".shop.svc.cluster.local. .svc.cluster.local. .cluster.local."
	for _, tt := range []struct {
		r     *model.Resolver
		node  []string
		want  string
		ndots int
	}{
		{nil, nil, cluster, 5},
		{nil, []string{"ec2.internal.", "CORP.example"}, cluster + " .ec2.internal. .corp.example.", 5},
		{nil, []string{"svc.cluster.local", "corp.example"}, cluster + " .corp.example.", 5},
		{nil, []string{"."}, "", 0},
		{nil, []string{"a.example", "b.example", "c.example"}, cluster + " .a.example. .b.example. .c.example.", 5},
		{nil, []string{"a.example", "b.example", "c.example", "d.example"}, "", 0},
		{nil, []string{strings.Repeat("a.", 99) + "bb"}, cluster + " ." + strings.Repeat("a.", 99) + "bb.", 5}, // 255 octets
		{nil, []string{strings.Repeat("a.", 99) + "bbb"}, "", 0},
		{&model.Resolver{Ndots: 2}, nil, cluster, 2},
		{&model.Resolver{Ndots: -1, Searches: []string{"corp.example", "cluster.local"}}, nil, cluster + " .corp.example.", 5},
		{&model.Resolver{Ndots: -1, Searches: []string{""}}, nil, "", 0},
		{&model.Resolver{Ndots: -1, Searches: []string{`a\.b`}}, nil, "", 0},
		{&model.Resolver{Ndots: -1, Searches: []string{"other.svc.cluster.local"}}, nil, cluster + " .other.svc.cluster.local.", 5},
		{&model.Resolver{Ndots: -1, Searches: []string{"other.svc.cluster.local"}}, []string{"corp.example"}, "", 0},
		{&model.Resolver{Ndots: -1, Policy: model.DNSDefault}, []string{"corp.example"}, "", 0},
		{&model.Resolver{Ndots: -1, Policy: model.DNSNone}, []string{"corp.example"}, "", 0},
		{&model.Resolver{Ndots: -1, Policy: model.DNSNone, Searches: []string{"corp.example", "svc.cluster.local"}}, nil, "", 0},
		{&model.Resolver{Ndots: -1, Policy: model.DNSNone, Searches: []string{"svc.Cluster.local", "corp.example"}}, nil, ".svc.cluster.local. .corp.example.", 1},
		{&model.Resolver{Ndots: 3, Policy: model.DNSNone, Searches: []string{"cluster.local"}}, nil, ".cluster.local.", 3},
		{&model.Resolver{Ndots: 3, Policy: model.DNSNone, Searches: []string{"notcluster.local"}}, nil, "", 0},
	} {
		s := newTestPod(tt.r, tt.node...).search
		if got := strings.Join(s.suffixes, " "); got != tt.want || s.ndots != tt.ndots {
			t.Errorf("%+v %v\ngot  %s ndots %d\nwant %s ndots %d", tt.r, tt.node, got, s.ndots, tt.want, tt.ndots)
		}
	}
}

// TestShort: which names are taken for short ones completed.
func TestShort(t *testing.T) {
	long := strings.Repeat("a.", 114) + "aa" // 230 octets, with the 24 of the longest suffix just 254
	pod, deep := newTestPod(nil), newTestPod(&model.Resolver{Ndots: 15})
	deep.search.ndots = 1000
	for _, tt := range []struct {
		pod        *Pod
		name, want string
	}{
		{pod, "www.example.com.shop.svc.cluster.local.", "www.example.com"},
		{pod, "wWw.eXample.com.shoP.svc.clusTer.local.", "wWw.eXample.com"},
		{pod, "a.b.shop.svc.cluster.local.", "a.b"},
		{pod, "a.b.c.d.e.shop.svc.cluster.local.", "a.b.c.d.e"},
		{pod, "a.b.c.d.e.f.shop.svc.cluster.local.", ""}, // five dots: tried as it is first
		{pod, "orders.shop.svc.cluster.local.", ""},
		{pod, "shop.svc.cluster.local.", ""},
		{pod, ".shop.svc.cluster.local.", ""},
		{pod, "a.b.other.svc.cluster.local.", ""},
		{pod, "a.b.xshop.svc.cluster.local.", ""},
		{pod, "a.b.shop.svc.cluster.local", ""},
		{pod, "a.b.svc.cluster.local.", ""},
		{pod, "www.example.com.", ""},
		{pod, ".", ""},
		{pod, "", ""},
		{pod, `a\.b.c.shop.svc.cluster.local.`, ""},
		{pod, `a.b\.shop.svc.cluster.local.`, ""},
		{pod, `a.\255.shop.svc.cluster.local.`, ""},
		{pod, "_sip._tcp.example.shop.svc.cluster.local.", "_sip._tcp.example"},
		{pod, "secret.onion.shop.svc.cluster.local.", ""},
		{pod, "secret.oNion.shop.svc.cluster.local.", ""},
		{pod, "secret.bunion.shop.svc.cluster.local.", "secret.bunion"},
		{deep, long[:228] + ".shop.svc.cluster.local.", ""}, // an empty label at its end
		{deep, long + ".shop.svc.cluster.local.", long},
		{deep, long + ".a.shop.svc.cluster.local.", ""},
		{nil, "www.example.com.shop.svc.cluster.local.", ""},
		{newTestPod(&model.Resolver{Ndots: 1}), "www.example.com.shop.svc.cluster.local.", ""},
		{newTestPod(&model.Resolver{Policy: model.DNSDefault}), "www.example.com.shop.svc.cluster.local.", ""},
		{newTestPod(nil, "a-rather-long-domain.example"), long + ".shop.svc.cluster.local.", ""},
	} {
		got, ok := tt.pod.Short(tt.name)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%q: got %q, %t, want %q", tt.name, got, ok, tt.want)
		}
	}
}

// TestCompletes: which questions are completed at all.
func TestCompletes(t *testing.T) {
	const name = "www.example.com.shop.svc.cluster.local."
	pod := newTestPod(nil)
	for _, tt := range []struct {
		q    Question
		want bool
	}{
		{Question{Name: name, Type: mdns.TypeA}, true},
		{Question{Name: name, Type: mdns.TypeAAAA}, true},
		{Question{Name: name, Type: mdns.TypeSRV}, false},
		{Question{Name: name, Type: mdns.TypeANY}, false},
		{Question{Name: name, Type: mdns.TypeHTTPS}, false},
		{Question{Name: name, Type: mdns.TypeA, DNSSEC: true}, false},
		{Question{Name: name, Type: mdns.TypeA, Below: true}, false},
		{Question{Name: "www.example.com.", Type: mdns.TypeA}, false},
	} {
		if _, ok := pod.Completes(tt.q); ok != tt.want {
			t.Errorf("%+v: got %t", tt.q, ok)
		}
		ask := func(string, uint16) (Outcome, int) {
			if !tt.want {
				t.Errorf("%+v: asked", tt.q)
			}
			return Outcome{Records: true}, 0
		}
		if _, ok := Complete(pod, tt.q, ask); ok != tt.want {
			t.Errorf("%+v: completed %t", tt.q, ok)
		}
	}
}

// TestComplete tells what is asked for and what comes out, case by case. What is there is written as NAME TYPE=OUTCOME; the rest is NXDOMAIN.
func TestComplete(t *testing.T) {
	node := []string{"corp.example"}
	for _, tt := range []struct {
		about string
		qtype uint16
		node  []string
		there string
		want  string
		asked string
	}{
		{"a name outside", mdns.TypeA, nil, "a.b. A=data", "a.b. data saved 3", "a.b.svc.cluster.local. A, a.b.cluster.local. A, a.b. A"},
		{"a Service of another namespace", mdns.TypeA, nil, "a.b.svc.cluster.local. A=data, a.b. A=data", "a.b.svc.cluster.local. data saved 1", "a.b.svc.cluster.local. A"},
		{"without that type", mdns.TypeAAAA, nil, "a.b.svc.cluster.local. AAAA=nodata, a.b. AAAA=data", "a.b.svc.cluster.local. nodata saved 1", "a.b.svc.cluster.local. AAAA"},
		{"a Service that is not programmed", mdns.TypeA, nil, "a.b.svc.cluster.local. A=failed", "a.b.svc.cluster.local. failed saved 1", "a.b.svc.cluster.local. A"},
		{"upstreams fail", mdns.TypeA, nil, "a.b. A=failed", "a.b. failed saved 3", "a.b.svc.cluster.local. A, a.b.cluster.local. A, a.b. A"},
		{"no name at all", mdns.TypeA, nil, "", "", "a.b.svc.cluster.local. A, a.b.cluster.local. A, a.b. A"},
		{"a node's domain before", mdns.TypeA, node, "a.b. A=data",
			"a.b. data saved 4", "a.b.svc.cluster.local. A, a.b.cluster.local. A, a.b.corp.example. A, a.b.corp.example. AAAA, a.b. A"},
		{"in a node's domain", mdns.TypeA, node, "a.b.corp.example. A=data, a.b.corp.example. AAAA=nodata, a.b. A=data",
			"a.b.corp.example. data saved 3", "a.b.svc.cluster.local. A, a.b.cluster.local. A, a.b.corp.example. A, a.b.corp.example. AAAA"},
		{"only half in a node's domain", mdns.TypeA, node, "a.b.corp.example. A=data, a.b. A=data",
			"", "a.b.svc.cluster.local. A, a.b.cluster.local. A, a.b.corp.example. A, a.b.corp.example. AAAA"},
		{"the other half", mdns.TypeAAAA, node, "a.b.corp.example. A=data, a.b. A=data, a.b. AAAA=data",
			"", "a.b.svc.cluster.local. AAAA, a.b.cluster.local. AAAA, a.b.corp.example. AAAA, a.b.corp.example. A"},
		{"the other half fails", mdns.TypeAAAA, node, "a.b.corp.example. A=failed, a.b. AAAA=data",
			"", "a.b.svc.cluster.local. AAAA, a.b.cluster.local. AAAA, a.b.corp.example. AAAA, a.b.corp.example. A"},
		{"a node's domain fails", mdns.TypeA, node, "a.b.corp.example. A=failed, a.b. A=data",
			"a.b.corp.example. failed saved 3", "a.b.svc.cluster.local. A, a.b.cluster.local. A, a.b.corp.example. A"},
		{"AAAA suppressed", mdns.TypeAAAA, nil, "a.b. AAAA=suppressed", "a.b. nodata saved 3", "a.b.svc.cluster.local. AAAA, a.b.cluster.local. AAAA, a.b. AAAA"},
		{"AAAA suppressed, whatever may come", mdns.TypeAAAA, node, "a.b.corp.example. AAAA=suppressed, a.b. AAAA=suppressed",
			"a.b.corp.example. nodata saved 3", "a.b.svc.cluster.local. AAAA, a.b.cluster.local. AAAA, a.b.corp.example. AAAA"},
		{"AAAA suppressed, and A goes on", mdns.TypeA, node, "a.b.corp.example. AAAA=suppressed, a.b. A=data",
			"a.b. data saved 4", "a.b.svc.cluster.local. A, a.b.cluster.local. A, a.b.corp.example. A, a.b.corp.example. AAAA, a.b. A"},
	} {
		there := map[string]string{}
		for _, s := range strings.Split(tt.there, ", ") {
			k, v, _ := strings.Cut(s, "=")
			there[k] = v
		}
		var asked []string
		q := Question{Name: "a.b.shop.svc.cluster.local.", Type: tt.qtype}
		c, ok := Complete(newTestPod(nil, tt.node...), q, func(name string, qtype uint16) (Outcome, string) {
			key := name + " " + mdns.TypeToString[qtype]
			asked = append(asked, key)
			o := Outcome{Rcode: mdns.RcodeNameError, Ours: strings.HasSuffix(name, ".cluster.local.")}
			switch there[key] {
			case "data":
				o.Rcode, o.Records = mdns.RcodeSuccess, true
			case "nodata":
				o.Rcode = mdns.RcodeSuccess
			case "suppressed":
				o.Rcode, o.Suppressed = mdns.RcodeSuccess, true
			case "failed":
				o.Rcode = mdns.RcodeServerFailure
			}
			return o, key
		})
		got := ""
		if ok {
			what := "nodata"
			switch {
			case c.Records:
				what = "data"
			case c.failed():
				what = "failed"
			}
			got = fmt.Sprintf("%s %s saved %d", c.Name, what, c.Saved)
			if want := c.Name + " " + mdns.TypeToString[tt.qtype]; c.Answer != want {
				t.Errorf("%s: the answer is that of %s, want %s", tt.about, c.Answer, want)
			}
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.about, got, tt.want)
		}
		if got := strings.Join(asked, ", "); got != tt.asked {
			t.Errorf("%s asked\n%s, want\n%s", tt.about, got, tt.asked)
		}
	}
}

// names is a random world: what is at a name is drawn once, from the name, so that asking does not change it.
type names struct {
	seed     maphash.Seed
	suppress bool // no AAAA of names outside
	sound    bool // nothing fails
}

func (w names) draw(what ...string) *rand.Rand {
	return rand.New(rand.NewPCG(maphash.String(w.seed, strings.Join(what, " ")), 0))
}

// there is what is at a name. The cluster's names exist, and fail, for all types or for none; the rest of the world does as it likes.
func (w names) there(name string, qtype uint16) (reply, Outcome) {
	name = strings.ToLower(name)
	ours := strings.HasSuffix(name, ".cluster.local.")
	o := Outcome{Ours: ours}
	if w.suppress && !ours && qtype == mdns.TypeAAAA {
		o.Suppressed = true
		return reply{}, o
	}
	r, of := w.draw(name), w.draw(name, fmt.Sprint(qtype))
	kind := r.IntN(10)
	if !ours && r.IntN(3) == 0 {
		kind = of.IntN(10)
	}
	var out reply
	switch {
	case kind < 5:
		out.rcode = mdns.RcodeNameError
		out.records = !ours && of.IntN(4) == 0 // an alias to what is not there
	case kind < 6 && !w.sound:
		out.rcode = mdns.RcodeServerFailure
		if !ours && of.IntN(3) == 0 {
			out.rcode = mdns.RcodeRefused
		}
	default:
		switch of.IntN(4) {
		case 0:
			out.records = of.IntN(3) == 0 // an alias to what is not of this type
		default:
			out.records, out.addrs = true, []string{fmt.Sprint(name, qtype)}
		}
	}
	o.Rcode, o.Records = out.rcode, out.records
	return out, o
}

// completed is what a completing server says, and the name that it says it of.
func (w names) completed(p *Pod, name string, qtype uint16) (reply, string) {
	r, _ := w.there(name, qtype)
	if r.rcode != mdns.RcodeNameError || r.records {
		return r, name
	}
	c, ok := Complete(p, Question{Name: name, Type: qtype}, func(name string, qtype uint16) (Outcome, reply) {
		r, o := w.there(name, qtype)
		return o, r
	})
	switch {
	case !ok:
		return r, name
	case !c.Records:
		return reply{rcode: c.Rcode}, name
	}
	return c.Answer, c.Name
}

// TestCompletedLikePlain: in random worlds, with random search lists, every resolver ends with the same addresses or the same error whether
// the server completes or not, and never asks more.
func TestCompletedLikePlain(t *testing.T) {
	r := random(t)
	resolvers := map[string]func(lookup) result{"glibc": glibc, "musl 1.1": musl11, "musl 1.2": musl12, "Go": golang, "c-ares": cares}
	plainly, spared, changed := map[string]int{}, map[string]int{}, 0
	for range 20_000 {
		w := names{seed: maphash.MakeSeed(), suppress: r.IntN(3) == 0}
		var node []string
		for _, d := range []string{"deep.svc.cluster.local", "corp.example", "lab.example"} {
			if r.IntN(3) == 0 {
				node = append(node, d)
			}
		}
		config := &model.Resolver{Ndots: r.IntN(7) - 1}
		if r.IntN(4) == 0 {
			config.Searches = []string{"last.example"}
		}
		p := newTestPod(config, node...)
		l := lookup{ndots: p.search.ndots, name: []string{"a", "a.b", "www.example.com", "a.b.c.d", "A.b", "a.b.c.d.e.f"}[r.IntN(6)],
			types: [][]uint16{{mdns.TypeA}, {mdns.TypeAAAA}, {mdns.TypeA, mdns.TypeAAAA}, {mdns.TypeAAAA, mdns.TypeA}}[r.IntN(4)]}
		for _, s := range p.search.suffixes {
			l.list = append(l.list, strings.Trim(s, "."))
		}
		for name, resolve := range resolvers {
			if name != "c-ares" && l.types[0] == mdns.TypeAAAA && len(l.types) == 2 {
				continue // only in c-ares it matters which answer comes first
			}
			var log [2][]string
			run := func(i int, answer func(string, uint16) reply) result {
				l.ask = func(name string, qtype uint16) reply {
					r := answer(name, qtype)
					log[i] = append(log[i], fmt.Sprintf("%s %d: %+v", name, qtype, r))
					return r
				}
				return resolve(l)
			}
			plain := run(0, func(name string, qtype uint16) reply { r, _ := w.there(name, qtype); return r })
			done := run(1, func(name string, qtype uint16) reply { r, _ := w.completed(p, name, qtype); return r })
			if !reflect.DeepEqual(plain, done) || len(log[1]) > len(log[0]) {
				t.Fatalf("%s looks %s up, types %v, search %v, ndots %d\nplain     %+v of\n\t%s\ncompleted %+v of\n\t%s", name, l.name, l.types, l.list, l.ndots,
					plain, strings.Join(log[0], "\n\t"), done, strings.Join(log[1], "\n\t"))
			}
			plainly[name] += len(log[0])
			spared[name] += len(log[0]) - len(log[1])
			if !slices.Equal(log[0], log[1]) {
				changed++
			}
		}
	}
	for name := range resolvers {
		t.Logf("%s: %d questions, %d spared", name, plainly[name], spared[name])
		if spared[name] == 0 {
			t.Errorf("%s was spared nothing", name)
		}
	}
	if changed == 0 {
		t.Error("nothing was completed")
	}
}

// TestExternal: the case that this is for, with ndots:5: a name outside that has IPv4 only.
func TestExternal(t *testing.T) {
	for _, suppress := range []bool{false, true} {
		upstream := 0
		there := func(name string, qtype uint16) (reply, Outcome) {
			o := Outcome{Rcode: mdns.RcodeNameError, Ours: strings.HasSuffix(name, ".cluster.local.")}
			if name == "www.example.com." {
				o.Rcode = mdns.RcodeSuccess
				if suppress && qtype == mdns.TypeAAAA {
					o.Suppressed = true
					return reply{}, o
				}
				upstream++
				if qtype == mdns.TypeA {
					o.Records = true
					return reply{records: true, addrs: []string{"192.0.2.1"}}, o
				}
				return reply{}, o
			}
			return reply{rcode: o.Rcode}, o
		}
		p := newTestPod(nil)
		for name, resolve := range map[string]func(lookup) result{"glibc": glibc, "musl 1.1": musl11, "musl 1.2": musl12, "Go": golang, "c-ares": cares} {
			upstream = 0
			asked := 0
			l := lookup{name: "www.example.com", types: []uint16{mdns.TypeA, mdns.TypeAAAA}, ndots: 5,
				list: []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local"}}
			l.ask = func(name string, qtype uint16) reply {
				asked++
				r, _ := there(name, qtype)
				if c, ok := Complete(p, Question{Name: name, Type: qtype}, func(name string, qtype uint16) (Outcome, reply) {
					r, o := there(name, qtype)
					return o, r
				}); r.rcode == mdns.RcodeNameError && ok {
					return c.Answer
				}
				return r
			}
			got := resolve(l)
			want := map[bool]int{false: 2, true: 1}[suppress]
			if !slices.Equal(got.addrs, []string{"192.0.2.1"}) || asked != 2 || upstream != want {
				t.Errorf("%s, suppressed %t: %+v after %d questions and %d upstream, want 2 and %d", name, suppress, got, asked, upstream, want)
			}
		}
	}
}

// FuzzShort: no name makes trouble, and what is taken for short is what a resolver would have put the search domain after.
func FuzzShort(f *testing.F) {
	for _, s := range []string{"www.example.com.shop.svc.cluster.local.", ".shop.svc.cluster.local.", `a\.b.shop.svc.cluster.local.`, "a..b.shop.svc.cluster.local.", "K.b.shop.svc.cluster.local.", ""} {
		f.Add(s)
	}
	pods := []*Pod{newTestPod(nil), newTestPod(nil, "corp.example"), newTestPod(&model.Resolver{Policy: model.DNSNone, Ndots: 2, Searches: []string{"cluster.local"}})}
	f.Fuzz(func(t *testing.T, name string) {
		for _, p := range pods {
			short, ok := p.Short(name)
			if !ok {
				continue
			}
			first := p.search.suffixes[0]
			if !strings.EqualFold(short+first, name) || strings.Count(short, ".") >= p.search.ndots || !strings.Contains(short, ".") {
				t.Fatalf("%q is short for %q", short, name)
			}
			if _, valid := mdns.IsDomainName(name); !valid && len(mdns.SplitDomainName(name)) > 0 && longestLabel(name) <= 63 {
				t.Fatalf("%q is no name", name)
			}
			Complete(p, Question{Name: name, Type: mdns.TypeA}, func(n string, _ uint16) (Outcome, struct{}) {
				if !strings.HasPrefix(n, short+".") || len(n) > maxName || strings.Contains(n, "..") {
					t.Fatalf("asked for %q", n)
				}
				return Outcome{Rcode: mdns.RcodeNameError}, struct{}{}
			})
		}
	})
}

func longestLabel(name string) (n int) {
	for l := range strings.SplitSeq(name, ".") {
		n = max(n, len(l))
	}
	return n
}
