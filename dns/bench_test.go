// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"

	mdns "github.com/miekg/dns"
)

// large is a server of a cluster with 10,000 Services.
func large(b *testing.B) *cluster {
	c := newCluster(b, Options{})
	for i := range 10_000 {
		n := fmt.Sprintf("ns-%d/svc-%d", i%100, i)
		c.service(n, fmt.Sprintf("10.96.%d.%d", i/250, i%250+1))
		c.endpoints(n, fmt.Sprintf("10.244.%d.%d", i/250, i%250+1))
	}
	c.step()
	return c
}

func BenchmarkHandle(b *testing.B) {
	c := large(b)
	for _, bm := range []struct {
		name  string
		qname string
		qtype uint16
	}{
		{"A", "svc-4711.ns-11.svc.cluster.local.", typeA},
		{"SRV", "_http._tcp.svc-4711.ns-11.svc.cluster.local.", typeSRV},
		{"PTR", "1.1.96.10.in-addr.arpa.", typePTR},
		{"NXDOMAIN", "nothing.ns-11.svc.cluster.local.", typeA},
	} {
		b.Run(bm.name, func(b *testing.B) {
			req := packed(b, new(mdns.Msg).SetQuestion(bm.qname, bm.qtype))
			d, buf := c.desk(c.newStats("udp", testAddr)), make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				if resp, _ := c.handle(d, loopback, req, buf); resp == nil {
					b.Fatal("silence")
				}
			}
		})
	}
}

// BenchmarkHandleAny asks for every name of 10,000, in no order: what it takes more than BenchmarkHandle are the places in memory that an answer is put together from.
func BenchmarkHandleAny(b *testing.B) {
	c := large(b)
	reqs := make([][]byte, 10_000)
	for to, i := range rand.New(rand.NewPCG(1, 2)).Perm(len(reqs)) {
		reqs[to] = packed(b, new(mdns.Msg).SetQuestion(fmt.Sprintf("svc-%d.ns-%d.svc.cluster.local.", i, i%100), typeA))
	}
	d, buf := c.desk(c.newStats("udp", testAddr)), make([]byte, 4096)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if resp, _ := c.handle(d, loopback, reqs[i%len(reqs)], buf); resp == nil {
			b.Fatal("silence")
		}
	}
}

// BenchmarkUDP has as many clients as processors ask over loopback, each with some queries under way; clients and server share the machine.
func BenchmarkUDP(b *testing.B) {
	c := large(b)
	addr := start(b, c.Server, "127.0.0.1")
	req := packed(b, new(mdns.Msg).SetQuestion("svc-4711.ns-11.svc.cluster.local.", typeA))
	const window = 32
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		buf, pending := make([]byte, 512), 0
		for pb.Next() {
			if _, err := conn.Write(req); err != nil {
				b.Error(err)
				return
			}
			if pending++; pending < window {
				continue
			}
			if _, err := conn.Read(buf); err != nil {
				b.Error(err)
				return
			}
			pending--
		}
		for ; pending > 0; pending-- {
			if _, err := conn.Read(buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
}

// BenchmarkChange is the cost of one Service coming and going among 10,000, until it is answered.
func BenchmarkChange(b *testing.B) {
	c := large(b)
	b.ReportAllocs()
	for b.Loop() {
		c.service("shop/one", "10.97.0.1")
		c.step()
		if _, ok := c.now("nothing.shop.svc.cluster.local.", typeA); !ok {
			b.Fatal("not answered")
		}
		c.DeleteService(name("shop/one"))
		c.step()
	}
}
