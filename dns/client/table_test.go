// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

func addrs(in ...string) (out []netip.Addr) {
	for _, s := range in {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(in ...string) (out []netip.Prefix) {
	for _, s := range in {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// random seeds a test's choices anew each run and prints the seed.
func random(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func TestLookup(t *testing.T) {
	b := model.NewBuilder(model.Config{Self: "n1", DNS: addrs("10.96.0.10", "fd00:96::a")})
	b.SetNode(model.Node{Name: "n1", Addrs: addrs("192.0.2.1", "2001:db8::1"), PodCIDRs: prefixes("10.244.1.0/24", "fd00:244:1::/64")})
	b.SetNode(model.Node{Name: "n2", Addrs: addrs("192.0.2.2")})
	pod := func(name string, set func(*model.Pod), a ...string) {
		p := model.Pod{Name: model.Name{Namespace: "shop", Name: name}, Addrs: addrs(a...)}
		if set != nil {
			set(&p)
		}
		b.SetPod(p)
	}
	pod("web", nil, "10.244.1.5", "fd00:244:1::5")
	pod("old", nil, "10.244.1.6")
	pod("host", func(p *model.Pod) { p.HostNetwork = true }, "192.0.2.1")
	pod("ending", func(p *model.Pod) { p.Terminating = true }, "10.244.1.7")
	pod("heir", nil, "10.244.1.7")
	pod("twin1", nil, "10.244.1.8")
	pod("twin2", nil, "10.244.1.8")
	pod("elsewhere", nil, "172.16.0.9") // of a network that is nobody's range
	table := NewTable(Options{Pods: prefixes("10.244.0.0/16"), Extra: prefixes("198.51.100.0/24", "10.0.0.0/8", "fd00:244::/32"), Domain: "cluster.local"}).Next(b.Build())
	for addr, want := range map[string]string{
		"10.244.1.5": "own_pod shop/web", "fd00:244:1::5": "own_pod shop/web", "::ffff:10.244.1.5": "own_pod shop/web",
		"10.244.1.6": "own_pod shop/old",
		"10.244.1.7": "own_pod shop/heir",
		"10.244.1.8": "other_pod",
		"172.16.0.9": "own_pod shop/elsewhere", "172.16.0.8": "stranger",
		"192.0.2.1": "node", "2001:db8::1": "node", "192.0.2.2": "node", "192.0.2.3": "stranger",
		"10.244.1.9": "other_pod", "10.244.0.0": "other_pod", "10.244.255.255": "other_pod", "fd00:244:1::6": "other_pod",
		"10.243.255.255": "extra", "10.245.0.0": "extra", "10.0.0.0": "extra", "10.255.255.255": "extra", "11.0.0.0": "stranger", "9.255.255.255": "stranger",
		"198.51.100.7": "extra", "198.51.101.0": "stranger", "fd00:244:0:ffff:ffff:ffff:ffff:ffff": "extra", "fd00:244:1:1::": "extra", "fd00:245::": "stranger",
		"127.0.0.1": "loopback", "127.255.0.1": "loopback", "::1": "loopback", "::ffff:127.0.0.1": "loopback", "10.96.0.10": "loopback", "fd00:96::a": "loopback", "10.96.0.11": "extra",
		"::": "stranger", "0.0.0.0": "stranger", "fe80::1%eth0": "stranger", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": "stranger",
	} {
		c := table.Lookup(netip.MustParseAddr(addr))
		got := c.Kind.String()
		if c.Pod != nil {
			got += " " + c.Pod.Name.String()
		}
		if got != want {
			t.Errorf("%s is %s, want %s", addr, got, want)
		}
	}
	if p := table.Lookup(netip.MustParseAddr("10.244.1.5")).Pod; !p.IPv6 {
		t.Error("web has an IPv6 address")
	}
	if p := table.Lookup(netip.MustParseAddr("10.244.1.6")).Pod; p.IPv6 {
		t.Error("old has no IPv6 address")
	}
	for in, want := range map[string]bool{"10.244.1.5 shop": true, "10.244.1.5 other": false, "fd00:244:1::5 shop": true, "10.244.1.8 shop": true, "10.244.1.8 other": false,
		"192.0.2.1 shop": true, "192.0.2.1 other": false, "192.0.2.2 shop": false, "10.244.1.9 shop": false, "203.0.113.1 shop": false} {
		a, ns, _ := strings.Cut(in, " ")
		if got := table.PodIn(netip.MustParseAddr(a), ns); got != want {
			t.Errorf("a pod at %s: %t", in, got)
		}
	}
	empty := NewTable(Options{})
	if c := empty.Lookup(netip.MustParseAddr("::1")); c.Kind != Loopback {
		t.Error("loopback is known before all else")
	}
	if c := empty.Lookup(netip.MustParseAddr("10.244.1.5")); c.Kind != Stranger {
		t.Error("nobody else is")
	}
	if c := NewTable(Options{Extra: prefixes("::/0", "0.0.0.0/0")}).Lookup(netip.MustParseAddr("ffff::")); c.Kind != Extra {
		t.Error("everybody may be let in")
	}
}

// world is a random cluster.
type world struct {
	r     *rand.Rand
	b     *model.Builder
	opts  Options
	pods  map[model.Name]model.Pod
	nodes map[string]model.Node
}

func (w *world) addr() netip.Addr {
	if w.r.IntN(3) == 0 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:%d:%d::%x", w.r.IntN(4), w.r.IntN(4), w.r.IntN(6)))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.%d.%d.%d", w.r.IntN(4), w.r.IntN(4), w.r.IntN(6)))
}

func (w *world) prefixes(n int) (out []netip.Prefix) {
	for range w.r.IntN(n + 1) {
		a := w.addr()
		bits := 6 + w.r.IntN(27)
		if a.Is6() {
			bits = 14 + w.r.IntN(115)
		}
		p, _ := a.Prefix(bits)
		out = append(out, p)
	}
	return out
}

func (w *world) addrs(n int) (out []netip.Addr) {
	for range w.r.IntN(n + 1) {
		out = append(out, w.addr())
	}
	return out
}

func (w *world) step() {
	switch w.r.IntN(4) {
	case 0:
		n := model.Node{Name: fmt.Sprint("n", w.r.IntN(5)), Addrs: w.addrs(2), PodCIDRs: w.prefixes(2), Ready: w.r.IntN(2) == 0}
		w.nodes[n.Name] = n
		w.b.SetNode(n)
	case 1:
		n := fmt.Sprint("n", w.r.IntN(5))
		delete(w.nodes, n)
		w.b.DeleteNode(n)
	case 2:
		p := model.Pod{Name: model.Name{Namespace: "x", Name: fmt.Sprint("p", w.r.IntN(8))}, Addrs: w.addrs(2), Terminating: w.r.IntN(3) == 0, HostNetwork: w.r.IntN(5) == 0}
		if old, ok := w.pods[p.Name]; ok && w.r.IntN(2) == 0 {
			p.Addrs, p.HostNetwork = old.Addrs, old.HostNetwork // ends, or comes out again
		}
		if w.r.IntN(4) == 0 {
			p.Resolver = &model.Resolver{Ndots: w.r.IntN(3)}
		}
		w.pods[p.Name] = p
		w.b.SetPod(p)
	case 3:
		n := model.Name{Namespace: "x", Name: fmt.Sprint("p", w.r.IntN(8))}
		delete(w.pods, n)
		w.b.DeletePod(n)
	}
}

// who is what Lookup should say, by looking at everything.
func (w *world) who(a netip.Addr) (Kind, model.Name) {
	has := func(ranges []netip.Prefix) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, ending := range []bool{false, true} {
		var found []model.Name
		for n, p := range w.pods {
			if !p.HostNetwork && p.Terminating == ending && slices.Contains(p.Addrs, a) {
				found = append(found, n)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return OwnPod, found[0]
		default:
			return OtherPod, model.Name{}
		}
	}
	pod := has(w.opts.Pods)
	for _, n := range w.nodes {
		if slices.Contains(n.Addrs, a) {
			return Node, model.Name{}
		}
		pod = pod || has(n.PodCIDRs)
	}
	switch {
	case pod:
		return OtherPod, model.Name{}
	case has(w.opts.Extra):
		return Extra, model.Name{}
	}
	return Stranger, model.Name{}
}

// TestTableWorlds: after any changes a table says the same as looking at everything does, tables do not change, and a pod is one and the same
// for as long as its addresses and settings are.
func TestTableWorlds(t *testing.T) {
	r := random(t)
	for range 200 {
		w := &world{r: r, b: model.NewBuilder(model.Config{Self: "n0"}), pods: map[model.Name]model.Pod{}, nodes: map[string]model.Node{}}
		w.opts = Options{Pods: w.prefixes(2), Extra: w.prefixes(3), Domain: "cluster.local"}
		table := NewTable(w.opts)
		for range 30 {
			for range 1 + r.IntN(3) {
				w.step()
			}
			before := table
			said := map[netip.Addr]Client{}
			for range 5 {
				a := w.addr()
				said[a] = before.Lookup(a)
			}
			snap := w.b.Build()
			table = before.Next(snap)
			if table.Next(snap) != table {
				t.Fatal("the same snapshot made another table")
			}
			for range 60 {
				a := w.addr()
				c := table.Lookup(a)
				kind, name := w.who(a)
				if c.Kind != kind || (c.Pod != nil) != (kind == OwnPod) || c.Pod != nil && c.Pod.Name != name {
					t.Fatalf("%s is %v, want %v %v\npods %v\nranges %v\nin\n%s", a, c, kind, name, w.opts.Pods, w.opts.Extra, snap)
				}
				if old := before.Lookup(a); old.Pod != nil && c.Pod != nil && old.Pod.Name == c.Pod.Name {
					was, is := before.fromPods, table.fromPods
					o, _ := was.Get(name)
					n, _ := is.Get(name)
					if same := slices.Equal(o.Addrs, n.Addrs) && sameResolver(o.Resolver, n.Resolver); same != (old.Pod == c.Pod) {
						t.Fatalf("pod %s: same settings %t, same client %t", name, same, old.Pod == c.Pod)
					}
				}
			}
			for a, c := range said {
				if before.Lookup(a) != c {
					t.Fatalf("a table changed its mind about %s", a)
				}
			}
		}
	}
}

// large is a node of a large cluster: 5,000 nodes, 250 pods of its own.
func large() *Table {
	b := model.NewBuilder(model.Config{Self: "n0"})
	for i := range 5000 {
		b.SetNode(model.Node{Name: fmt.Sprint("n", i), Addrs: addrs(fmt.Sprintf("192.168.%d.%d", i/250, i%250)),
			PodCIDRs: prefixes(fmt.Sprintf("10.%d.%d.0/24", i/250, i%250))})
	}
	for i := range 250 {
		b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: fmt.Sprint("p", i)}, Addrs: addrs(fmt.Sprintf("10.0.0.%d", i+1))})
	}
	return NewTable(Options{Domain: "cluster.local"}).Next(b.Build())
}

// TestNoAllocation: nothing that every query calls allocates.
func TestNoAllocation(t *testing.T) {
	table := large()
	c := New(Settings{Completion: On, AAAA: On, Rate: Rate{PerSecond: 10}, Log: LogSettings{Every: 2}})
	now := int64(0)
	for _, a := range addrs("10.0.0.7", "10.5.5.5", "192.168.3.3", "127.0.0.1", "203.0.113.9", "2001:db8::9") {
		got := testing.AllocsPerRun(200, func() {
			now += 1e6
			cl := table.Lookup(a)
			c.Admit(cl, a, now)
			c.Suppress(cl, 28, true)
			cl.Pod.Completes(Question{Name: "www.example.com.shop.svc.cluster.local.", Type: 1})
			c.Count(cl, a, 3, true)
			c.Logs(2)
		})
		if got != 0 {
			t.Errorf("%s: %v allocations", a, got)
		}
	}
}

// TestConcurrent is for the race detector: what queries call and what the agent's loop calls go on at the same time.
func TestConcurrent(t *testing.T) {
	r := random(t)
	w := &world{r: r, b: model.NewBuilder(model.Config{Self: "n0"}), pods: map[model.Name]model.Pod{}, nodes: map[string]model.Node{}}
	c := New(Settings{Completion: On, AAAA: On, Rate: Rate{PerSecond: 10}, Log: LogSettings{Every: 2}})
	table := NewTable(Options{Domain: "cluster.local"})
	for range 20 {
		w.step()
		table = table.Next(w.b.Build())
		var wg sync.WaitGroup
		for range 4 {
			asks := w.addrs(50)
			wg.Go(func() {
				for i, a := range asks {
					cl := table.Lookup(a)
					c.Admit(cl, a, int64(i))
					c.Suppress(cl, 28, true)
					c.Count(cl, a, i%4, i%2 == 0)
				}
			})
		}
		wg.Go(func() { c.Top(table, 5, Denials) })
		wg.Wait()
	}
}

func BenchmarkLookup(b *testing.B) {
	table := large()
	for name, addr := range map[string]string{"OwnPod": "10.0.0.7", "Node": "192.168.3.3", "OtherPod": "10.5.5.5", "Stranger": "203.0.113.9"} {
		a := netip.MustParseAddr(addr)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				table.Lookup(a)
			}
		})
	}
}

func BenchmarkQuery(b *testing.B) {
	table, c := large(), New(Settings{Rate: Rate{PerSecond: 1e9}})
	a := netip.MustParseAddr("10.0.0.7")
	now := int64(0)
	for b.Loop() {
		now += 100
		cl := table.Lookup(a)
		c.Admit(cl, a, now)
		c.Count(cl, a, 0, false)
	}
}

func BenchmarkNext(b *testing.B) {
	table := large()
	builder := model.NewBuilder(model.Config{Self: "n0"})
	i := 0
	for b.Loop() {
		i++
		builder.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: fmt.Sprint("p", i%250)}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}})
		s := *builder.Build()
		s.Nodes = table.fromNodes
		table = table.Next(&s)
	}
}

// TestCompletedByAny: what some pod of the node may have completed is known without asking each.
func TestCompletedByAny(t *testing.T) {
	b := model.NewBuilder(model.Config{Self: "n1"})
	pod := func(namespace, name string, i int, r *model.Resolver) {
		b.SetPod(model.Pod{Name: model.Name{Namespace: namespace, Name: name}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 1, byte(i)})}, Resolver: r})
	}
	pod("shop", "a", 1, nil)
	pod("shop", "b", 2, &model.Resolver{Policy: model.DNSClusterFirst, Ndots: 2})
	pod("few", "c", 3, &model.Resolver{Policy: model.DNSClusterFirst, Ndots: 2})
	pod("none", "d", 4, &model.Resolver{Policy: model.DNSDefault})
	table := NewTable(Options{Domain: "cluster.local"}).Next(b.Build())
	for name, want := range map[string]bool{
		"www.example.com.shop.svc.cluster.local.": true,
		"a.b.c.d.e.shop.svc.cluster.local.":       true,
		"a.b.c.d.e.f.shop.svc.cluster.local.":     false, // as many dots as are asked as they are
		"orders.shop.svc.cluster.local.":          false,
		"www.example.com.few.svc.cluster.local.":  false,
		"example.com.few.svc.cluster.local.":      true,
		"example.com.none.svc.cluster.local.":     false,
		"www.example.com.svc.cluster.local.":      false,
	} {
		wire := make([]byte, 255)
		n, err := mdns.PackDomainName(name, wire, 0, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		labels := mdns.CountLabel(name)
		each := false
		for p := range table.Pods {
			each = each || p.Completed(wire[:n], labels)
		}
		if got := table.Completed(wire[:n], labels); got != want || each != want {
			t.Errorf("%s: %t, and asking each %t, want %t", name, got, each, want)
		}
	}
}

// TestAdd: what somebody else has counted is the client's, whoever it is.
func TestAdd(t *testing.T) {
	b := model.NewBuilder(model.Config{Self: "n1"})
	own, other := netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("10.244.1.2")
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "a"}, Addrs: []netip.Addr{own}})
	table := NewTable(Options{Pods: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}).Next(b.Build())
	c := New(Settings{})
	for _, a := range []netip.Addr{own, other} {
		c.Add(table.Lookup(a), a, 0, 0)
		c.Add(table.Lookup(a), a, 5, 2)
		c.Count(table.Lookup(a), a, mdns.RcodeNameError, false)
	}
	want := []Talker{{Name: "10.244.1.2", Queries: 6, Denials: 3}, {Name: "shop/a", Queries: 6, Denials: 3}}
	if got := c.Top(table, 5, Queries); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}
