// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/bpf"
	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/dns/rules"
	"github.com/fairlead/fairlead/dns/shortcut"
	"github.com/fairlead/fairlead/model"
)

// sum adds up what the metrics have under a name.
func sum(t *testing.T, s *Server, name string) (n float64) {
	t.Helper()
	for key, v := range gather(t, s) {
		if strings.HasPrefix(key, name+"{") {
			n += v
		}
	}
	return n
}

// asks has a pod ask the kernel, and if that does not know the server, which may have to wait for an upstream.
func (k *inKernel) asks(s *Server, pod netip.Addr, msg []byte) (kernel, waited bool) {
	k.Helper()
	if k.ask(netip.AddrPortFrom(pod, 40000), self[0], msg) != nil {
		return true, false
	}
	d := s.desk(s.statsAt(self[0]))
	_, later := s.handle(d, pod, msg, make([]byte, slotSize))
	if later != nil {
		later(k.Context(), make([]byte, slotSize))
	}
	return false, later != nil
}

// TestShortcutReload: what the kernel has answered from the cache is counted also when the cache is another one since, and reloads use nothing up.
func TestShortcutReload(t *testing.T) {
	up := outsideWorld(t)
	k := newInKernel(t, completingPods...)
	s, _ := completing(t, k, func(o *Options) { o.Blocks = []Block{block("cluster.local", up.addr)} })
	msg := packed(t, new(mdns.Msg).SetQuestion("www.example.com.", typeA))
	const asked = 100
	kernel := 0
	for range asked {
		if in, _ := k.asks(s, completingPods[0], msg); in {
			kernel++
		}
	}
	b := block("cluster.local", up.addr)
	b.Caching.Size = 1 << 20 // so that it is another one
	if err := s.Reload([]Block{b}); err != nil {
		t.Fatal(err)
	}
	if n := sum(t, s, "coredns_cache_requests_total"); n != asked || kernel < asked/2 {
		t.Errorf("%v of %d questions to the cache were counted, %d of them in the kernel", n, asked, kernel)
	}
	k.learn(s, completingPods[0], msg)
	classes := len(s.taught.classes)
	for range 20 {
		if err := s.Reload([]Block{block("cluster.local", up.addr)}); err != nil {
			t.Fatal(err)
		}
		if k.learn(s, completingPods[0], msg) == nil {
			t.Fatal("after a reload it is not answered by the kernel")
		}
	}
	if n := len(s.taught.classes); n != classes {
		t.Errorf("%d ways of counting after reloads, %d before", n, classes)
	}
}

// TestShortcutPrefetch: what is popular is asked for anew in time also when the kernel answers it, so that nobody waits for the upstream but the first.
func TestShortcutPrefetch(t *testing.T) {
	up := newResolver(t, says(func(m *mdns.Msg) { m.Answer = []mdns.RR{rr(m.Question[0].Name + " 2 IN A 192.0.2.80")} }))
	k := newInKernel(t, completingPods...)
	s, _ := completing(t, k, func(o *Options) {
		o.Blocks = []Block{block("cluster.local", up.addr)}
		o.Blocks[0].Caching.PrefetchHits, o.Blocks[0].Caching.PrefetchPercent = 3, 30
	})
	msg := packed(t, new(mdns.Msg).SetQuestion("www.example.com.", typeA))
	waits, kernel := 0, 0
	for end := time.Now().Add(20 * time.Second); sum(t, s, "coredns_cache_prefetch_total") < 2; time.Sleep(time.Millisecond) {
		in, waited := k.asks(s, completingPods[0], msg)
		if in {
			kernel++
		}
		if waited {
			waits++
		}
		if time.Now().After(end) {
			t.Fatal("nothing was asked for anew")
		}
	}
	if waits != 1 || kernel < 100 {
		t.Errorf("%d questions waited for the upstream, %d were answered by the kernel", waits, kernel)
	}
}

// TestShortcutLate: however long the server takes, what it teaches does not hold for longer than what it says itself.
func TestShortcutLate(t *testing.T) {
	k := newInKernel(t, completingPods...)
	slow := false
	s, _ := completing(t, k, func(o *Options) {
		o.Now = func() time.Time {
			now := time.Now()
			if slow {
				slow = false
				time.Sleep(700 * time.Millisecond) // the machine stood still
			}
			return now
		}
	})
	msg := packed(t, new(mdns.Msg).SetQuestion("www.example.com.", typeA))
	ttl := func(b []byte) uint32 {
		m := new(mdns.Msg)
		if err := m.Unpack(b); err != nil || len(m.Answer) == 0 {
			t.Fatal(m, err)
		}
		return m.Answer[0].Header().Ttl
	}
	k.learn(s, completingPods[0], msg)
	src := netip.AddrPortFrom(completingPods[0], 40000)
	for k.ask(src, self[0], msg) != nil {
		time.Sleep(time.Millisecond)
	}
	d := s.desk(s.statsAt(self[0])) // it looks at the clock itself
	slow = true
	s.handle(d, completingPods[0], msg, make([]byte, slotSize))
	for began := time.Now(); time.Since(began) < time.Second; time.Sleep(time.Millisecond) {
		before, _ := s.handle(d, netip.MustParseAddr("127.0.0.5"), msg, make([]byte, slotSize)) // no pod: by this the kernel is taught nothing
		if got := k.ask(src, self[0], msg); got != nil && ttl(got) > ttl(before) {
			t.Fatalf("the kernel says TTL %d, and the server %d", ttl(got), ttl(before))
		}
	}
}

// TestShortcutAlikeFull: where the kernel has no room for an address, its pod is not taken for another one, and is known when there is room.
func TestShortcutAlikeFull(t *testing.T) {
	spec, err := bpf.Forward()
	if err != nil {
		t.Fatal(err)
	}
	spec.Maps["askers"].MaxEntries = 1
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a := shortcut.New()
	if err := a.Load(shortcut.Maps{Answers: c.Maps["answers"], Slots: c.Maps["slots"], Counts: c.Maps["counts"], Pods: c.Maps["pods"], Askers: c.Maps["askers"]}); err != nil {
		t.Fatal(err)
	}
	defer a.Unload()
	x := netip.MustParseAddr("10.0.0.1")
	kernel := func() (n uint32) {
		if err := c.Maps["askers"].Lookup(x.As16(), &n); err != nil {
			return 0
		}
		return n
	}
	for range 40 {
		if err := a.SetAlike(map[netip.Addr]uint32{x: 1}); err != nil || kernel() != 1 {
			t.Fatalf("alone: %v, %d", err, kernel())
		}
		many := map[netip.Addr]uint32{x: 2}
		for i := range 10 {
			many[netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})] = 3
		}
		if err := a.SetAlike(many); err == nil {
			t.Fatal("there is room for eleven in one place")
		}
		if n := kernel(); n == 1 || n != a.Alike(x) {
			t.Fatalf("%d in the kernel, and %d is said to be", n, a.Alike(x))
		}
		if err := a.SetAlike(map[netip.Addr]uint32{x: 2}); err != nil || kernel() != 2 || a.Alike(x) != 2 {
			t.Fatalf("with room again: %v, %d", err, kernel())
		}
	}
}

// TestShortcutCompletedRandom: in random worlds, whose pods, Services and blocks change in every way between the questions, what the kernel answers to a pod is what the server would.
func TestShortcutCompletedRandom(t *testing.T) {
	r := random(t)
	addrs := []netip.Addr{netip.MustParseAddr("fd00:244::74"), netip.MustParseAddr("fd00:244::75")}
	for i := range 6 {
		addrs = append(addrs, netip.MustParseAddr(fmt.Sprint("10.244.1.", 71+i)))
	}
	first, second := outsideWorld(t), outsideWorld(t)
	kernel := 0
	for range 8 {
		blocks := func() []Block {
			b := block("cluster.local", first.addr)
			b.Autopath, b.Loadbalance = r.IntN(2) == 0, r.IntN(2) == 0
			if r.IntN(5) == 0 {
				b.Cluster.Fallthrough = []string{"."}
			}
			switch r.IntN(4) {
			case 0:
				b.Rules.Hosts = &rules.Hosts{Zones: []string{"."}, Fallthrough: []string{"."}, TTL: 5, Inline: rules.ParseHosts("10.9.9.9 www.example.com four.corp.example")}
			case 1:
				b.Rules.Rewrites = []rules.Rewrite{rules.NameRewrite{On: rules.On{Kind: rules.Exact, Pattern: "www.example.com."}, To: "four.example.com."}}
			}
			if r.IntN(3) > 0 {
				return []Block{b}
			}
			other := Block{Zones: []string{"example.com."}, Loadbalance: r.IntN(2) == 0}
			if r.IntN(2) == 0 {
				other.Forward = []forward.Pool{{Zone: ".", Policy: forward.Sequential, Upstreams: []forward.Upstream{{Addr: second.addr}}}}
			}
			return []Block{b, other}
		}
		clock := time.Now() // stands still, or the server's TTLs would change between two answers
		k := newInKernel(t, addrs...)
		s, b := completing(t, k, func(o *Options) {
			o.Blocks, o.Wait, o.Now = blocks(), time.Millisecond, func() time.Time { return clock }
			o.Clients.Pods = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/64")}
			o.Clients.NodeSearch = [][]string{nil, {"corp.example"}}[r.IntN(2)]
			o.Asking.Completion, o.Asking.AAAA = pick(r, client.On, client.On, client.Off, client.CountOnly), pick(r, client.On, client.CountOnly, client.Off)
		})
		step := func() {
			if r.IntN(2) == 0 {
				p := model.Pod{Name: name(pick(r, "shop/a", "shop/b", "other/c", "com/d")), Terminating: r.IntN(5) == 0, Addrs: []netip.Addr{addrs[2+r.IntN(6)]}}
				if r.IntN(4) == 0 {
					b.DeletePod(p.Name)
					return
				}
				if r.IntN(2) == 0 {
					p.Addrs = append(p.Addrs, addrs[r.IntN(2)])
				}
				switch r.IntN(4) {
				case 0:
					p.Resolver = &model.Resolver{Policy: model.DNSClusterFirst, Ndots: r.IntN(6)}
				case 1:
					p.Resolver = &model.Resolver{Policy: model.DNSClusterFirst, Ndots: -1, Searches: []string{"corp.example"}}
				case 2:
					p.Resolver = &model.Resolver{Policy: model.DNSDefault, Ndots: -1}
				}
				b.SetPod(p)
				return
			}
			switch n := name(pick(r, "shop/orders", "shop/db", "other/db", "com/example", "example/www")); r.IntN(4) {
			case 0:
				b.DeleteService(n)
			case 1:
				b.SetService(model.ServiceSpec{Name: n, ClusterIPs: []netip.Addr{serviceAddr(r.IntN(4))}})
			case 2:
				b.SetService(model.ServiceSpec{Name: n, Type: model.ExternalName, ExternalName: pick(r, "www.example.com", "db.shop.svc.cluster.local", "none.example.com")})
			case 3:
				b.SetService(model.ServiceSpec{Name: n, Type: model.Headless})
			}
		}
		for range 10 {
			var asked [][]byte
			for range 12 {
				name := pick(r, "www.example.com", "alias.example.com", "four.example.com", "none.example.com", "orders.shop", "db.shop", "db.other", "orders.shop.svc", "a.b.c.d") +
					pick(r, ".", ".shop.svc.cluster.local.", ".shop.svc.cluster.local.", ".other.svc.cluster.local.", ".svc.cluster.local.", ".corp.example.")
				m := new(mdns.Msg).SetQuestion(name, pick(r, typeA, typeA, typeAAAA, mdns.TypeTXT))
				m.AuthenticatedData, m.CheckingDisabled = r.IntN(4) == 0, r.IntN(8) == 0
				if r.IntN(3) == 0 {
					m.SetEdns0(1232, r.IntN(3) == 0)
				}
				asked = append(asked, packed(t, m))
			}
			for range 120 {
				msg, pod := pick(r, asked...), pick(r, addrs...)
				at := self[0]
				if pod.Is6() {
					at = self[1]
				}
				got := k.ask(netip.AddrPortFrom(pod, 40000), at, msg)
				resp, later := s.handle(s.desk(s.statsAt(at)), pod, msg, make([]byte, slotSize))
				if later != nil {
					resp = later(t.Context(), make([]byte, slotSize))
				}
				if got == nil {
					continue
				}
				kernel++
				if g, w := comparable(t, got), comparable(t, resp); g != w || later != nil {
					t.Fatalf("%s is answered by the kernel\n%s\nand by the server, at once %t\n%s", pod, g, later == nil, w)
				}
			}
			for range 1 + r.IntN(2) {
				step()
			}
			snap := b.Build()
			s.Announce(snap)
			if r.IntN(4) > 0 {
				s.Publish(snap)
			}
			if r.IntN(5) == 0 {
				if err := s.Reload(blocks()); err != nil {
					t.Fatal(err)
				}
			}
			if r.IntN(3) == 0 {
				clock = clock.Add(time.Duration(r.IntN(1000)) * time.Millisecond) // so that what is left of the second is another part
				s.taught.Changed(shortcut.All)                                    // the kernel's clock has not jumped, and what it has would be too old
			}
		}
	}
	if kernel < 500 {
		t.Errorf("the kernel answered %d questions", kernel)
	}
}
