// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/model"
)

// BenchmarkSearch is the first question of a pod's lookup of a name outside: it is denied, or completed.
func BenchmarkSearch(b *testing.B) {
	up := newResolver(b, says(func(m *mdns.Msg) { m.Answer = []mdns.RR{rr(m.Question[0].Name + " 3600 IN A 192.0.2.1")} }))
	for _, mode := range []client.Mode{client.Off, client.CountOnly, client.On} {
		b.Run(mode.String(), func(b *testing.B) {
			s := dual(b, func(o *Options) {
				o.Blocks[0] = block("cluster.local", up.addr)
				o.Clients.Domain = "cluster.local"
				o.Asking.Completion = mode
			})
			m := model.NewBuilder(model.Config{Self: "n1"})
			pod := netip.MustParseAddr("10.244.1.77")
			m.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "web"}, Addrs: []netip.Addr{pod}})
			s.Publish(m.Build())
			req := packed(b, new(mdns.Msg).SetQuestion("www.example.com.shop.svc.cluster.local.", typeA))
			s.respond("udp", pod, req) // by which the cache has it
			d, buf := s.desk(s.newStats("udp", testAddr)), make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				if resp, _ := s.handle(d, pod, req, buf); resp == nil {
					b.Fatal("silence")
				}
			}
		})
	}
}
