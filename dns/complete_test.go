// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/model"
)

// elsewhere answers for names outside: with addresses, through aliases, with nothing of the type, with no such name, with what there is for one type only.
func elsewhere(m *mdns.Msg) {
	name, six := m.Question[0].Name, m.Question[0].Qtype == typeAAAA
	address := func(owner string) {
		for i := range 3 {
			if six {
				m.Answer = append(m.Answer, rr(fmt.Sprintf("%s 60 IN AAAA 2001:db8::%d", owner, i+1)))
			} else {
				m.Answer = append(m.Answer, rr(fmt.Sprintf("%s 90 IN A 192.0.2.%d", owner, i+1)))
			}
		}
	}
	labels := mdns.SplitDomainName(name)
	soa := rr(labels[len(labels)-1] + ". 3600 IN SOA ns.example. admin.example. 1 2 3 4 3600")
	switch lower := strings.ToLower(name); {
	case strings.HasPrefix(lower, "alias."):
		m.Answer = []mdns.RR{rr(name + " 300 IN CNAME next." + name), rr("next." + name + " 300 IN CNAME else.where.example.")}
		address("else.where.example.")
		m.Ns = []mdns.RR{rr("example. 300 IN NS ns." + name)}
		m.Extra = []mdns.RR{rr("ns." + name + " 300 IN A 192.0.2.53")}
	case strings.HasPrefix(lower, "dangling."):
		m.Answer, m.Rcode = []mdns.RR{rr(name + " 300 IN CNAME no.such.example.")}, mdns.RcodeNameError
		m.Ns = []mdns.RR{soa}
	case strings.HasPrefix(lower, "no."), strings.Contains(lower, ".corp."):
		m.Rcode = mdns.RcodeNameError
		m.Ns = []mdns.RR{soa}
	case strings.HasPrefix(lower, "four.") && six:
		m.Ns = []mdns.RR{soa}
	case strings.HasPrefix(lower, "odd."):
		m.Answer = []mdns.RR{rr(name + ` 300 IN TXT "not asked for"`)}
	case strings.HasPrefix(lower, "broken."):
		m.Rcode = mdns.RcodeServerFailure
	default:
		address(name)
	}
}

// Pods that complete names in several ways, and Services for names to be completed to.
func completers(t *testing.T, change func(*Options)) (s *Server, pods []netip.Addr) {
	s = dual(t, func(o *Options) {
		o.Blocks[0] = block("cluster.local", newResolver(t, says(elsewhere)).addr)
		o.Clients.Domain = "cluster.local"
		o.Asking.Completion, o.Asking.AAAA = client.On, client.On
		o.NegativeTTL = 7 * time.Second
		now := time.Now()
		o.Now = func() time.Time { return now }
		change(o)
	})
	b := model.NewBuilder(model.Config{Self: "n1"})
	for i, p := range []model.Pod{
		{Name: name("shop/four"), Resolver: &model.Resolver{Policy: model.DNSClusterFirst, Ndots: -1}},
		{Name: name("shop/both")},
		{Name: name("other/few"), Resolver: &model.Resolver{Policy: model.DNSClusterFirst, Ndots: 2}},
		{Name: name("shop/corp"), Resolver: &model.Resolver{Policy: model.DNSClusterFirst, Ndots: -1, Searches: []string{"corp.example"}}},
		{Name: name("shop/own"), Resolver: &model.Resolver{Policy: model.DNSNone, Ndots: 3, Searches: []string{"cluster.local"}}},
		{Name: name("shop/node"), Resolver: &model.Resolver{Policy: model.DNSDefault, Ndots: -1}},
	} {
		a := netip.AddrFrom4([4]byte{10, 244, 1, byte(70 + i)})
		p.Addrs = []netip.Addr{a}
		if i == 1 {
			p.Addrs = append(p.Addrs, netip.MustParseAddr("fd00:244:0:1::71"))
		}
		b.SetPod(p)
		pods = append(pods, a)
	}
	both := []netip.Addr{netip.MustParseAddr("10.96.0.20"), netip.MustParseAddr("fd00:96::20")}
	b.SetService(model.ServiceSpec{Name: name("shop/orders"), ClusterIPs: both, Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}}})
	b.SetService(model.ServiceSpec{Name: name("other/carts"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.21")}})
	b.SetService(model.ServiceSpec{Name: name("com/example"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.22")}})
	b.SetService(model.ServiceSpec{Name: name("other/away"), Type: model.ExternalName, ExternalName: "alias.example"})
	b.SetService(model.ServiceSpec{Name: name("other/db"), Type: model.Headless})
	b.SetSlice(model.Slice{Name: name("other/db-1"), Service: "db", Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("10.244.2.1"), Hostname: "db-0", Ready: true}, {Addr: netip.MustParseAddr("10.244.2.2"), Ready: true}}})
	s.Publish(b.Build())
	return s, pods
}

// shorts are names as pods have them looked up.
var shorts = []string{
	"www.example.com", "WWW.Example.com", "alias.example.com", "dangling.example", "four.example.com", "no.example.com", "odd.example.com", "broken.example.com", "secret.onion",
	"orders.shop", "Orders.SHOP", "orders.shop.svc", "orders.shop.svc.cluster.local", "carts.other", "db.other", "db-0.db.other", "away.other", "x.orders.shop", "x.orders", "y.x.orders", "nobody.shop", "example.com",
	"a.b.c.d.e.f", "one", "1-2-3-4.shop.pod", "x.pod", "dns-version", "x.dns", "www." + strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63),
}

// What is completed on the fast path is what the slow one completes it to, in every octet that matters, and is counted as that counts it.
func TestCompletionFast(t *testing.T) {
	for what, change := range map[string]func(*Options){
		"on":                  func(*Options) {},
		"AAAA not suppressed": func(o *Options) { o.Asking.AAAA = client.Off },
		"AAAA counted":        func(o *Options) { o.Asking.AAAA = client.CountOnly },
		"autopath":            func(o *Options) { o.Asking.Completion, o.Blocks[0].Autopath = client.Off, true },
		"no upstream":         func(o *Options) { o.Blocks[0].Forward = nil },
		"falls through":       func(o *Options) { o.Blocks[0].Cluster.Fallthrough = []string{"."} },
		"another block": func(o *Options) {
			b := o.Blocks[0]
			b.Zones, b.Cluster = []string{"example.com."}, nil
			o.Blocks = append(o.Blocks, b)
		},
		"a block for a Service": func(o *Options) {
			b := o.Blocks[0]
			b.Zones, b.Cluster = []string{"orders.shop.svc.cluster.local."}, nil
			o.Blocks = append(o.Blocks, b)
		},
	} {
		t.Run(what, func(t *testing.T) {
			s, pods := completers(t, change)
			fast, n := map[string]bool{}, 0
			for i, pod := range pods {
				for _, suffix := range []string{".shop.svc.cluster.local.", ".other.svc.cluster.local.", ".cluster.local."} {
					for _, short := range shorts {
						for _, qtype := range []uint16{typeA, typeAAAA, mdns.TypeMX} {
							m := new(mdns.Msg).SetQuestion(short+suffix, qtype)
							switch n++; i * (n % 7) {
							case 3:
								m.CheckingDisabled = true
							case 1:
								m.SetEdns0(4096, true)
							case 2:
								m.SetEdns0(512, false)
								m.AuthenticatedData = true
							}
							req, err := m.Pack()
							if err != nil {
								continue // too long
							}
							s.respond("udp", pod, req) // by which the cache has what there is
							if i > 1 {                 // what is counted is not the pod's matter
								paths(t, s, "udp", pod, req)
								continue
							}
							if same(t, s, pod, req) && qtype == typeA && suffix == ".shop.svc.cluster.local." && pod == pods[0] {
								fast[strings.ToLower(short)] = true
							}
						}
					}
				}
			}
			if what != "on" {
				return
			}
			for _, short := range []string{"www.example.com", "alias.example.com", "dangling.example", "no.example.com", "orders.shop", "orders.shop.svc.cluster.local", "db.other", "db-0.db.other", "nobody.shop", "secret.onion"} {
				if !fast[short] {
					t.Errorf("%s takes the slow path", short)
				}
			}
		})
	}
}

// same has a question answered on both paths, with all that is counted; false if the fast one leaves it to the other.
func same(t *testing.T, s *Server, pod netip.Addr, req []byte) bool {
	t.Helper()
	if !paths(t, s, "udp", pod, req) {
		return false
	}
	st, at := s.gate.state.Load(), 0
	d := s.desk(s.testStats("udp"))
	d.from, d.who = pod, st.announced.clients.Lookup(pod)
	var counted [2]map[string]float64
	var resp [2][]byte
	before := gather(t, s)
	for _, answer := range []func() []byte{
		func() []byte { return s.fast(d, st, req, make([]byte, slotSize)) },
		func() []byte { resp, _ := s.slow(d, st, req, make([]byte, slotSize), true); return resp },
	} {
		resp[at] = slices.Clone(answer())
		d.sent(d.start)
		after := gather(t, s)
		counted[at] = map[string]float64{}
		for k, v := range after {
			if v != before[k] && !strings.HasPrefix(k, "coredns_dns_response_size") { // compressed otherwise
				counted[at][k] = v - before[k]
			}
		}
		before = after
		at++
	}
	if !maps.Equal(counted[0], counted[1]) {
		t.Fatalf("%s\nis counted as %v, on the slow path as %v", describe(t, req, resp[0]), counted[0], counted[1])
	}
	// An alias leads to the name as it was spelled.
	m, want := new(mdns.Msg), new(mdns.Msg)
	if m.Unpack(resp[0]) != nil || want.Unpack(resp[1]) != nil {
		t.Fatal("an answer that does not parse")
	}
	if len(want.Answer) > 0 && want.Answer[0].Header().Rrtype == mdns.TypeCNAME && m.Answer[0].(*mdns.CNAME).Target != want.Answer[0].(*mdns.CNAME).Target {
		t.Errorf("an alias to %v, on the slow path to %v", m.Answer[0], want.Answer[0])
	}
	return true
}

// What the fast path leaves to the other is counted once. The pod's list ends with a domain outside, which the cache is asked about.
func TestCompletionCountedOnce(t *testing.T) {
	s, pods := completers(t, func(*Options) {})
	for _, short := range []string{"www.example.com", "four.example.com", "no.example.com"} {
		req := packed(t, new(mdns.Msg).SetQuestion(short+".shop.svc.cluster.local.", typeA))
		s.respond("udp", pods[3], req)
		d, st := s.desk(s.testStats("udp")), s.gate.state.Load()
		var requests [2]float64
		for i, answer := range []func() []byte{
			func() []byte { resp, _ := s.handle(d, pods[3], req, make([]byte, slotSize)); return resp },
			func() []byte { resp, _ := s.slow(d, st, req, make([]byte, slotSize), true); return resp },
		} {
			const counter = "coredns_cache_requests_total{server=,view=,zones=.}"
			before := gather(t, s)[counter]
			if answer() == nil {
				t.Fatalf("%s is not answered at once", short)
			}
			requests[i] = gather(t, s)[counter] - before
		}
		if requests[0] != requests[1] || requests[0] == 0 {
			t.Errorf("%s: %v questions to the cache, on the slow path alone %v", short, requests[0], requests[1])
		}
	}
}

// Both paths agree whatever changes, also while something is announced and not yet published, or refused.
func TestCompletionFastRandom(t *testing.T) {
	r := random(t)
	s, pods := completers(t, func(o *Options) { o.Settle = time.Hour })
	b := model.NewBuilder(model.Config{Self: "n1"})
	for i, pod := range pods {
		b.SetPod(model.Pod{Name: name(fmt.Sprintf("%s/p%d", pick(r, "shop", "other"), i)), Addrs: []netip.Addr{pod}})
	}
	namespaces, names := []string{"shop", "other", "com", "svc", "example"}, []string{"orders", "example", "www", "db", "svc"}
	fast := 0
	for range 300 {
		n := model.Name{Namespace: pick(r, namespaces...), Name: pick(r, names...)}
		switch r.IntN(4) {
		case 0:
			b.DeleteService(n)
		case 1:
			b.SetService(model.ServiceSpec{Name: n, Type: model.Headless})
			b.SetSlice(model.Slice{Name: model.Name{Namespace: n.Namespace, Name: n.Name + "-1"}, Service: n.Name, Endpoints: []model.Endpoint{{Addr: randomAddr(r, "10.244.2.", "fd00:244::"), Ready: r.IntN(3) > 0}}})
		default:
			b.SetService(model.ServiceSpec{Name: n, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(r.IntN(20))})}})
		}
		next := b.Build()
		s.Announce(next)
		ask := func() {
			for range 20 {
				short := strings.Join([]string{pick(r, names...), pick(r, namespaces...)}, ".") + pick(r, "", "", ".svc", ".svc.cluster.local", ".com")
				if r.IntN(4) == 0 {
					short = "x." + short
				}
				req := packed(t, new(mdns.Msg).SetQuestion(short+"."+pick(r, "shop", "other")+".svc.cluster.local.", pick(r, typeA, typeAAAA)))
				pod := pods[r.IntN(len(pods))]
				if resp, later := s.handle(s.desk(s.testStats("udp")), pod, req, make([]byte, slotSize)); resp == nil && later == nil {
					t.Fatal("silence")
				}
				if paths(t, s, "udp", pod, req) {
					fast++
				}
			}
		}
		ask()
		var refused []model.Name
		if r.IntN(3) == 0 {
			refused = append(refused, n)
		}
		s.Publish(next, refused...)
		ask()
	}
	if fast < 3000 {
		t.Errorf("%d answers are fast", fast)
	}
}

// FuzzMoved: whatever records are moved, no octet outside them is touched, and what was a message of such records stays one.
func FuzzMoved(f *testing.F) {
	m := &mdns.Msg{Compress: true}
	m.SetQuestion("www.example.com.", typeA)
	elsewhere(m)
	m.Answer = append(m.Answer, rr("www.example.com. 1 IN CNAME a.www.example.com."))
	m.Ns = []mdns.RR{rr("example.com. 3600 IN SOA ns.example.com. admin.www.example.com. 1 2 3 4 3600"), rr("com. 1 IN NS www.example.com.")}
	b := packed(f, m)
	f.Add(b[headerSize+17+4:], 6)
	f.Add([]byte{0xc0}, 1)
	f.Add([]byte{0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 0, 0, 2, 0xc0, 40}, 1)
	f.Add([]byte{0, 0, 6, 0, 1, 0, 0, 0, 0, 0, 22, 0, 0}, 1)
	f.Fuzz(func(t *testing.T, records []byte, n int) {
		const before = 100
		msg := append(bytes.Repeat([]byte{0xcc}, before), records...)
		ok := moved{name: 50, records: 60, from: headerSize + 17 + 4}.all(msg, before, min(n, 100))
		if !bytes.Equal(msg[:before], bytes.Repeat([]byte{0xcc}, before)) || len(msg) != before+len(records) {
			t.Fatal("what is not the records' was changed")
		}
		if ok && n <= 0 && len(records) > 0 {
			t.Fatal("records that nobody counted")
		}
	})
}
