// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/test/queries"
)

var (
	update = flag.Bool("update", false, "rewrite golden files")
	seed   = flag.Uint64("seed", 0, "seed of the random worlds; 0 for the time")
)

func random(t testing.TB) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", s)
	return rand.New(rand.NewPCG(s, 0))
}

func TestDumpGolden(t *testing.T) {
	eachGroup(t, func(t *testing.T, g queries.Group, o Options) {
		got, err := Dump(g.Snapshot, o)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", "dump", strings.ReplaceAll(strings.TrimPrefix(t.Name(), "TestDumpGolden/"), "/", "-")+".zone")
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("the dump differs from %s (-update rewrites it):\n%s", path, got)
		}
		// What is dumped is a zone file.
		parser := mdns.NewZoneParser(strings.NewReader(got), "", path)
		for _, ok := parser.Next(); ok; _, ok = parser.Next() {
		}
		if err := parser.Err(); err != nil {
			t.Errorf("the dump does not parse: %v", err)
		}
	})
}

// A dump does not depend on the order in which things arrived.
func TestDumpIsStable(t *testing.T) {
	r := random(t)
	w := newRandomWorld(r)
	for range 300 {
		w.step(r)
	}
	first, err := Dump(w.Build(), w.options)
	if err != nil {
		t.Fatal(err)
	}
	again := model.NewBuilder(model.Config{Self: "n1", DNS: w.Build().DNS})
	for _, s := range w.specs {
		again.SetService(s)
	}
	for _, s := range w.slices {
		again.SetSlice(s)
	}
	s := again.Build()
	second, err := Dump(s, w.options)
	if err != nil {
		t.Fatal(err)
	}
	serials := func(s string) string {
		return strings.ReplaceAll(strings.ReplaceAll(s, fmt.Sprintf(" %d 7200", w.Build().Generation), ""), fmt.Sprintf(" %d 7200", again.Build().Generation), "")
	}
	if serials(first) != serials(second) {
		t.Error("the dump of the same world, built in another order, differs")
	}
}

// randomWorld is a cluster with few names and addresses, so that everything meets everything.
type randomWorld struct {
	*model.Builder
	options Options
	specs   map[model.Name]model.ServiceSpec
	slices  map[model.Name]model.Slice
}

func newRandomWorld(r *rand.Rand) *randomWorld {
	o := Options{Blocks: []Block{block("cluster.local")}, Reverse: []netip.Prefix{
		netip.MustParsePrefix("10.96.0.0/" + []string{"12", "16", "24", "28"}[r.IntN(4)]),
		netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:96::/112"), netip.MustParsePrefix("fd00:244::/46")}}
	o.Blocks[0].Cluster.Pods = PodNames(r.IntN(2))
	return &randomWorld{model.NewBuilder(model.Config{Self: "n1", DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}), o,
		make(map[model.Name]model.ServiceSpec), make(map[model.Name]model.Slice)}
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func (w *randomWorld) name(r *rand.Rand) model.Name {
	return model.Name{Namespace: pick(r, "a", "b", "c"), Name: pick(r, "x", "y", "z", "w")}
}

func randomAddr(r *rand.Rand, four, six string) netip.Addr {
	if r.IntN(3) > 0 {
		return netip.MustParseAddr(fmt.Sprintf("%s%d", four, r.IntN(20)))
	}
	return netip.MustParseAddr(fmt.Sprintf("%s%x", six, r.IntN(20)))
}

var randomPorts = []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}, {Name: "dns", Protocol: model.UDP, Port: 53},
	{Name: "dns", Protocol: model.TCP, Port: 53}, {Name: "sig", Protocol: model.SCTP, Port: 9}, {Protocol: model.TCP, Port: 81}}

// step changes one object.
func (w *randomWorld) step(r *rand.Rand) {
	n := w.name(r)
	switch r.IntN(8) {
	case 0:
		delete(w.specs, n)
		w.DeleteService(n)
	case 1:
		n.Name += fmt.Sprint("-", r.IntN(3))
		delete(w.slices, n)
		w.DeleteSlice(n)
	case 2, 3, 4:
		s := model.ServiceSpec{Name: n, Type: model.ServiceType(r.IntN(3))}
		if r.IntN(4) == 0 {
			s.Arrived = time.Now()
		}
		switch s.Type {
		case model.ClusterIP:
			for range r.IntN(3) {
				a := randomAddr(r, "10.96.0.", "fd00:96::")
				if !slices.ContainsFunc(s.ClusterIPs, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
					s.ClusterIPs = append(s.ClusterIPs, a)
				}
			}
		case model.ExternalName:
			to := w.name(r)
			s.ExternalName = pick(r, "www.example.com", "192.0.2.1", to.Name+"."+to.Namespace+".svc.cluster.local", "nothing.a.svc.cluster.local")
		}
		if s.Type != model.ExternalName {
			for _, p := range randomPorts {
				if r.IntN(2) == 0 {
					s.Ports = append(s.Ports, p)
				}
			}
		}
		w.specs[n] = s
		w.SetService(s)
	default:
		sl := model.Slice{Name: n, Service: n.Name}
		sl.Name.Name += fmt.Sprint("-", r.IntN(3))
		for _, p := range randomPorts {
			if r.IntN(3) > 0 {
				p.Port = uint16(8000 + r.IntN(3))
				sl.Ports = append(sl.Ports, p)
			}
		}
		for range r.IntN(4) {
			sl.Endpoints = append(sl.Endpoints, model.Endpoint{Addr: randomAddr(r, "10.244.1.", "fd00:244:0:1::"),
				Hostname: pick(r, "", "", "h0", "h1"), Ready: r.IntN(4) > 0})
		}
		w.slices[sl.Name] = sl
		w.SetSlice(sl)
	}
}

// naive writes down every record of a world, in the simplest way there is: straight from the specification, without looking for
// anything. The keys are owner, type and data.
func naive(s *model.Snapshot, reverse []netip.Prefix) map[string]bool {
	out := make(map[string]bool)
	add := func(owner, kind, format string, args ...any) {
		out[owner+" "+kind+" "+fmt.Sprintf(format, args...)] = true
	}
	kindOf := func(a netip.Addr) string {
		if a.Is4() {
			return "A"
		}
		return "AAAA"
	}
	ptr := func(a netip.Addr, to string) {
		owner, _ := mdns.ReverseAddr(a.String())
		for _, p := range reverse {
			if p.Contains(a) {
				add(owner, "PTR", "%s", to)
				return
			}
		}
	}
	add("dns-version.cluster.local.", "TXT", `"1.1.0"`)
	for _, a := range s.DNS {
		add("ns.dns.cluster.local.", kindOf(a), "%s", a)
	}
	for n, svc := range s.Services.All() {
		name := n.Name + "." + n.Namespace + ".svc.cluster.local."
		own := func(e *model.Endpoint) string {
			if e.Hostname != "" {
				return e.Hostname + "." + name
			}
			text := e.Addr.String()
			if strings.HasSuffix(text, "::") {
				text += "0"
			}
			return strings.NewReplacer(".", "-", ":", "-").Replace(text) + "." + name
		}
		for _, e := range svc.Endpoints {
			if e.Ready && svc.Type != model.ExternalName {
				add(own(&e), kindOf(e.Addr), "%s", e.Addr)
			}
		}
		switch svc.Type {
		case model.ExternalName:
			if _, err := netip.ParseAddr(svc.ExternalName); err != nil {
				add(name, "CNAME", "%s.", svc.ExternalName)
			}
		case model.ClusterIP:
			for _, a := range svc.ClusterIPs {
				if owner, _ := s.VIPs.Get(a); owner == n {
					add(name, kindOf(a), "%s", a)
					ptr(a, name)
				}
			}
			for _, p := range svc.Ports {
				if p.Name != "" {
					add("_"+p.Name+"._"+strings.ToLower(p.Protocol.String())+"."+name, "SRV", "0 100 %d %s", p.Port, name)
				}
			}
		case model.Headless:
			for _, e := range svc.Endpoints {
				if e.Ready {
					add(name, kindOf(e.Addr), "%s", e.Addr)
					if _, vip := s.VIPs.Get(e.Addr); !vip {
						ptr(e.Addr, own(&e))
					}
				}
			}
			for i, p := range svc.Ports {
				for _, b := range svc.Backends[i] {
					if b.Ready && p.Name != "" {
						add("_"+p.Name+"._"+strings.ToLower(p.Protocol.String())+"."+name, "SRV", "0 100 %d %s", b.Port, own(b.Endpoint))
					}
				}
			}
		}
	}
	return out
}

// Random histories: after every step, what the views answer, made one from another, is what the naive list says, record for record and name for
// name, and what is dumped is the list.
func TestRandomWorlds(t *testing.T) {
	r := random(t)
	for range 8 {
		w := newRandomWorld(r)
		v, err := NewView(w.options, w.Build())
		if err != nil {
			t.Fatal(err)
		}
		for range 30 {
			for range 1 + r.IntN(5) {
				w.step(r)
			}
			v = v.next(w.Build())
			checkWorld(t, r, v, naive(v.snap, w.options.Reverse))
			if t.Failed() {
				t.Fatalf("the world is\n%s", v.snap)
			}
		}
	}
}

func checkWorld(t *testing.T, r *rand.Rand, v *View, want map[string]bool) {
	t.Helper()
	dumped := make(map[string]bool)
	for line := range strings.Lines(v.Dump()) {
		f := strings.Fields(line)
		if f[3] != "SOA" && f[3] != "NS" {
			dumped[f[0]+" "+f[3]+" "+strings.Join(f[4:], " ")] = true
		}
	}
	if !maps.Equal(dumped, want) {
		for k := range want {
			if !dumped[k] {
				t.Errorf("not dumped: %s", k)
			}
		}
		for k := range dumped {
			if !want[k] {
				t.Errorf("dumped: %s", k)
			}
		}
	}
	// Every name that has records, those around it, and names at random, with every type.
	names := map[string]bool{}
	byName := map[string]map[string]bool{}
	for k := range want {
		owner, rest, _ := strings.Cut(k, " ")
		if byName[owner] == nil {
			byName[owner] = map[string]bool{}
		}
		byName[owner][rest] = true
		names[owner], names["q."+owner] = true, true
		for rest := owner; strings.Contains(rest, "."); {
			_, rest, _ = strings.Cut(rest, ".")
			names[rest] = true
		}
	}
	for range 30 {
		n := pick(r, "x", "y", "q") + "." + pick(r, "a", "b", "q") + ".svc.cluster.local."
		names[pick(r, "", "h0.", "h1.", "10-244-1-3.", "_tcp.", "_udp.", "_http._tcp.", "_dns._udp.", "_sig._sctp.", "_._tcp.")+n] = true
		names[fmt.Sprintf("%d.1.244.10.in-addr.arpa.", r.IntN(22))] = true
		names[fmt.Sprintf("%d.0.96.10.in-addr.arpa.", r.IntN(22))] = true
	}
	for n := range names {
		checkName(t, v, n, byName)
	}
}

// checkName judges by the list alone: a name exists if it or one below it has records.
func checkName(t *testing.T, v *View, n string, byName map[string]map[string]bool) {
	t.Helper()
	exists := byName[n] != nil
	for owner := range byName {
		exists = exists || strings.HasSuffix(owner, "."+n)
	}
	labels := strings.Split(n, ".")
	for _, qtype := range []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypeSRV, mdns.TypePTR, mdns.TypeTXT, mdns.TypeCNAME, mdns.TypeMX} {
		a := v.Answer(n, qtype)
		if a.Outside || a.Rcode == mdns.RcodeServerFailure || len(a.Answer) > 0 && a.Answer[0].Type == mdns.TypeCNAME && qtype != mdns.TypeCNAME {
			continue // another zone, or an alias: the table has those
		}
		kind := mdns.TypeToString[qtype]
		var got, expected []string
		for _, rec := range a.Answer {
			f := strings.Fields(rec.String())
			got = append(got, strings.Join(f[3:], " "))
		}
		for rec := range byName[n] {
			if strings.HasPrefix(rec, kind+" ") {
				expected = append(expected, rec)
			}
		}
		if kind == "SRV" && labels[0][0] != '_' {
			expected = got // at a Service's own name there are all its ports
		}
		slices.Sort(got)
		slices.Sort(expected)
		if !slices.Equal(got, expected) {
			t.Errorf("%s %s: %q, want %q", n, kind, got, expected)
		}
		// Not on the list although they exist: Services without addresses, their namespaces, the zones, and what is above addresses.
		lax := strings.HasSuffix(n, ".svc.cluster.local.") && len(labels) <= 6 || strings.HasSuffix(n, ".arpa.") || n == "cluster.local." || n == "svc.cluster.local." || n == "pod.cluster.local."
		if nx := a.Rcode == mdns.RcodeNameError; nx && exists || !nx && !exists && !lax {
			t.Errorf("%s %s: %s, but the name exists: %t", n, kind, mdns.RcodeToString[a.Rcode], exists)
		}
	}
}
