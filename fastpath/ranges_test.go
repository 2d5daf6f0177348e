// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// naive is what the map ranges is to have, without any history.
func naive(s *model.Snapshot, ways map[netip.Prefix]nodenet.Way) map[netip.Prefix]way {
	all := make(map[netip.Prefix]way) // of pods
	for _, n := range s.Nodes.All() {
		for _, p := range n.PodCIDRs {
			all[p] = wayOf(ways[p])
		}
	}
	for _, p := range s.PodCIDRs {
		all[p] = wayOf(ways[p])
	}
	answers := make(map[netip.Prefix]way)
	for f := range s.Frontends.All() {
		best := -1
		for p, w := range all {
			if p.Contains(f.Addr) && p.Bits() > best {
				best = p.Bits()
				w.What |= askServices
				answers[netip.PrefixFrom(f.Addr, f.Addr.BitLen())] = w
			}
		}
	}
	maps.Copy(all, answers)
	for _, p := range s.ServiceCIDRs {
		if _, isPods := all[p]; !isPods {
			all[p] = way{What: services}
		}
	}
	return all
}

// TestRanges follows random histories of nodes, pods that end and Services that claim addresses of pods, and wants the map to end as if there had been none.
func TestRanges(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		b := model.NewBuilder(model.Config{Self: "n1", PassOn: true, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}[:r.IntN(2)]})
		b.SetNode(node(1))
		var book ranges
		kernel := make(map[netip.Prefix]way)
		ways := make(map[netip.Prefix]nodenet.Way)
		asked := 0
		for step := range 200 {
			moved := false
			n, i := 1+r.IntN(4), 1+r.IntN(6)
			switch r.IntN(10) {
			case 0:
				b.SetNode(node(n))
			case 1:
				if n > 1 {
					b.DeleteNode(fmt.Sprintf("n%d", n))
				}
			case 2:
				ways, moved = maps.Clone(ways), true
				fam := r.IntN(2)
				ways[node(n).PodCIDRs[fam]] = nodenet.Way{Dev: r.IntN(3), Via: nodeAddrs(n)[fam], MTU: 1400 + r.IntN(2), Tunnel: r.IntN(2) == 0}
			case 3:
				svc := web
				if r.IntN(2) == 0 {
					svc.Exposure = &model.Exposure{ExternalIPs: podAddrs(n, i)}
				}
				b.SetService(svc)
			case 4:
				b.DeleteService(web.Name)
			case 5:
				b.SetPod(model.Pod{Name: podName(1, i), Addrs: podAddrs(1, i), Terminating: r.IntN(2) == 0})
			case 6:
				b.DeletePod(podName(1, i))
			case 7: // beside pods, and what nobody should have: the same range
				b.SetServiceCIDR("more", [][]netip.Prefix{{netip.MustParsePrefix("10.96.0.0/16")}, {netip.MustParsePrefix("fd00:96::/112"), netip.MustParsePrefix("10.244.1.0/24")}}[r.IntN(2)])
			case 8:
				b.DeleteServiceCIDR("more")
			case 9:
				sl := model.Slice{Name: model.Name{Namespace: "default", Name: "web-v4"}, Service: "web", Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080}}}
				for range r.IntN(4) {
					i := 1 + r.IntN(6)
					sl.Endpoints = append(sl.Endpoints, model.Endpoint{Addr: podAddrs(1, i)[0], Ready: true, Serving: true, Node: "n1", Pod: podName(1, i)})
				}
				b.SetSlice(sl)
			}
			if r.IntN(4) == 0 {
				b.Tick()
			}
			s := b.Build()
			put, gone := book.follow(s, ways, moved)
			for p, w := range put {
				if have, ok := kernel[p]; ok && have == w {
					t.Fatalf("step %d: %s is %v already", step, p, w)
				}
				kernel[p] = w
				asked += int(w.What & askServices)
			}
			for _, p := range gone {
				if _, ok := kernel[p]; !ok {
					t.Fatalf("step %d: %s is gone already", step, p)
				}
				delete(kernel, p)
			}
			for i := range 6 {
				a := podAddrs(1, 1+i)[0]
				if w := kernel[netip.PrefixFrom(a, 32)]; w.What&askServices != book.what(a) {
					t.Fatalf("step %d: %s is %v, and as a pod %d", step, a, w, book.what(a))
				}
			}
			if want := naive(s, ways); !maps.Equal(kernel, want) {
				t.Fatalf("step %d: the kernel has %v, want %v", step, kernel, want)
			}
		}
		if asked == 0 {
			t.Error("nothing ever answered at a pod's address")
		}
	}
}

// TestRangeKey: a key of the kernel's map says what it was made of.
func TestRangeKey(t *testing.T) {
	for _, s := range []string{"10.244.0.0/16", "10.244.1.5/32", "0.0.0.0/0", "fd00:244::/56", "fd00::1/128", "::/0"} {
		if p := netip.MustParsePrefix(s); s != "::/0" && keyOf(p).prefix() != p || keyOf(p).Bits > 128 {
			t.Errorf("%s became %s", p, keyOf(p).prefix())
		}
	}
}
