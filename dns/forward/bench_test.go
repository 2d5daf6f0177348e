// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"context"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// processor begins a benchmark's time, and reports what of the processors it took, which a busy machine does not change.
func processor(b *testing.B) func() {
	var before, after unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &before)
	b.ReportAllocs()
	b.ResetTimer()
	return func() {
		unix.Getrusage(unix.RUSAGE_SELF, &after)
		b.ReportMetric(float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano())/float64(b.N), "cpu-ns/op")
	}
}

// BenchmarkAppendHit is an answer of three addresses from a cache with 10,000 of them.
func BenchmarkAppendHit(b *testing.B) {
	f, qs, heads := warm(b, 10_000)
	defer processor(b)()
	i, buf := 0, make([]byte, 0, 4096)
	for b.Loop() {
		f.Append(append(buf, heads[i]...), qs[i])
		if i++; i == len(qs) {
			i = 0
		}
	}
}

// BenchmarkAppendHitParallel is the same on all processors.
func BenchmarkAppendHitParallel(b *testing.B) {
	f, qs, heads := warm(b, 10_000)
	defer processor(b)()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 0, 4096)
		for i := rand.IntN(len(qs)); pb.Next(); {
			f.Append(append(buf, heads[i]...), qs[i])
			if i++; i == len(qs) {
				i = 0
			}
		}
	})
}

// BenchmarkAppendHitOneName is the worst there is for the locks: all ask for the same.
func BenchmarkAppendHitOneName(b *testing.B) {
	f, qs, heads := warm(b, 1)
	defer processor(b)()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 0, 4096)
		for pb.Next() {
			f.Append(append(buf, heads[0]...), qs[0])
		}
	})
}

// BenchmarkAppendMiss is what a question costs before it is asked.
func BenchmarkAppendMiss(b *testing.B) {
	f, _, _ := warm(b, 10_000)
	q, head := question("missing.example.com.", typeA), header("missing.example.com.", typeA)
	defer processor(b)()
	for b.Loop() {
		f.Append(head, q)
	}
}

// parrot answers any query with one fixed answer, for the least that an upstream can cost.
func parrot(b *testing.B) *net.UDPConn {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			buf[2] |= 0x80
			buf[7], buf[11] = 1, 0
			n -= 11 // the OPT
			conn.WriteToUDPAddrPort(append(buf[:n], 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1), from)
		}
	}()
	return conn
}

// BenchmarkAsk is a question that goes to an upstream, over sockets that questions share.
func BenchmarkAsk(b *testing.B) {
	up := parrot(b)
	f, err := New(Options{Caching: Caching{Size: -1}, Pools: []Pool{{Zone: ".", Upstreams: []Upstream{{Addr: up.LocalAddr().(*net.UDPAddr).AddrPort()}}}}})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close(canceled())
	q := question("www.example.com.", typeA)
	defer processor(b)()
	for b.Loop() {
		if r, err := f.Ask(context.Background(), q); err != nil || r.e.rcode != mdns.RcodeSuccess {
			b.Fatal(r, err)
		}
	}
}

// BenchmarkAskMany is 64 different questions at a time. Its processor time includes the upstream's.
func BenchmarkAskMany(b *testing.B) {
	up := parrot(b)
	f, err := New(Options{Pools: []Pool{{Zone: ".", Upstreams: []Upstream{{Addr: up.LocalAddr().(*net.UDPAddr).AddrPort()}}}}})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close(canceled())
	defer processor(b)()
	b.SetParallelism(64 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		q := question("xxxxxxxxxxxx.example.com.", typeA)
		for pb.Next() {
			n := rand.Uint64()
			for i := 1; i < 13; i, n = i+1, n>>5 {
				q.Name[i] = "abcdefghijklmnopqrstuvwxyz012345"[n&31]
			}
			if r, err := f.Ask(context.Background(), q); err != nil || r.e.rcode != mdns.RcodeSuccess {
				b.Error(r, err)
				return
			}
		}
	})
	b.ReportMetric(float64(f.Status()[0].Failed), "lost")
}

// BenchmarkAskOwnSocket is what the exchange alone costs with a socket for each question.
func BenchmarkAskOwnSocket(b *testing.B) {
	up := parrot(b)
	q := question("www.example.com.", typeA)
	buf := make([]byte, 512)
	defer processor(b)()
	for b.Loop() {
		conn, err := net.DialUDP("udp4", nil, up.LocalAddr().(*net.UDPAddr))
		if err != nil {
			b.Fatal(err)
		}
		msg, _ := message(q, true, true, false)
		conn.Write(msg[2:])
		if _, err := conn.Read(buf); err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
}

// BenchmarkSharedSocket is the same with one socket for all.
func BenchmarkSharedSocket(b *testing.B) {
	up := parrot(b)
	q := question("www.example.com.", typeA)
	buf := make([]byte, 512)
	conn, err := net.DialUDP("udp4", nil, up.LocalAddr().(*net.UDPAddr))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	defer processor(b)()
	for b.Loop() {
		msg, _ := message(q, true, true, false)
		conn.Write(msg[2:])
		if _, err := conn.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
