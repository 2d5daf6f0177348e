// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"
)

const second = int64(time.Second)

func TestParseRate(t *testing.T) {
	for s, want := range map[string]Rate{"0": {}, "1": {PerSecond: 1}, "5000:20000": {5000, 20000}, "1000000000:1": {1e9, 1}} {
		if r, err := ParseRate(s); err != nil || r != want {
			t.Errorf("%q: %+v, %v", s, r, err)
		}
	}
	for _, s := range []string{"", ":", "1:", ":1", "-1", "1:-1", "0:5", "5:0", "1:2:3", "1000000001", "1:1000000001", "4294967297", "1e3", " 1"} {
		if r, err := ParseRate(s); err == nil || r != (Rate{}) {
			t.Errorf("%q: %+v, %v", s, r, err)
		}
	}
}

// TestBucket: a bucket lets through what a token bucket does that is filled by the clock, in random sequences.
func TestBucket(t *testing.T) {
	r := random(t)
	for range 300 {
		rate := Rate{PerSecond: 1 + r.Uint32N(1000), Burst: r.Uint32N(50)}
		p := newPace(rate)
		most := p.most / p.each
		var b bucket
		now, tokens, last := r.Int64N(1e12), most*p.each, int64(0)
		last = now
		for range 300 {
			if r.IntN(3) == 0 {
				now += r.Int64N(3 * p.each)
			}
			tokens, last = min(tokens+now-last, most*p.each), now
			want := tokens >= p.each
			if want {
				tokens -= p.each
			}
			if got := b.take(p, now); got != want {
				t.Fatalf("%+v: got %t with %d of %d", rate, got, tokens, p.each)
			}
		}
	}
}

// TestBucketTogether: many at a time get exactly what one would.
func TestBucketTogether(t *testing.T) {
	p := newPace(Rate{PerSecond: 10, Burst: 500})
	var (
		b   bucket
		n   atomic.Int64
		all sync.WaitGroup
	)
	for range 8 {
		all.Go(func() {
			for range 200 {
				if b.take(p, second) {
					n.Add(1)
				}
			}
		})
	}
	all.Wait()
	if n.Load() != 500 {
		t.Errorf("let %d through, want 500", n.Load())
	}
}

// flood sends n queries a second for some seconds, evenly, and counts the verdicts.
func flood(c *Clients, cl Client, a netip.Addr, from int64, n, seconds int) (out [Drop + 1]int) {
	for i := range n * seconds {
		out[c.Admit(cl, a, from+int64(i)*second/int64(n))]++
	}
	return out
}

func near(got, want, by int) bool { return got >= want-by && got <= want+by }

// TestPodLimit: a pod gets its rate, as much again is refused, and what is beyond met with silence; its neighbour does not notice.
func TestPodLimit(t *testing.T) {
	table := large()
	c := New(Settings{Rate: Rate{PerSecond: 100, Burst: 50}})
	loud, quiet := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	got := flood(c, table.Lookup(loud), loud, second, 1000, 10)
	if !near(got[Answer], 1050, 10) || !near(got[Refuse], 1050, 10) || got[Drop] != 10000-got[Answer]-got[Refuse] {
		t.Errorf("a pod at ten times its rate: %v", got)
	}
	if got := flood(c, table.Lookup(quiet), quiet, second, 90, 10); got[Answer] != 900 {
		t.Errorf("its neighbour: %v", got)
	}
	if r, d := c.limiter.refused[OwnPod].Load(), c.limiter.dropped[OwnPod].Load(); r != uint64(got[Refuse]) || d != uint64(got[Drop]) {
		t.Errorf("counted %d and %d of %v", r, d, got)
	}
	other := netip.MustParseAddr("10.7.7.7")
	if got := flood(c, table.Lookup(other), other, second, 1000, 10); !near(got[Answer], 1050, 10) || !near(got[Refuse], 1050, 10) {
		t.Errorf("a pod of another node: %v", got)
	}
	for _, a := range addrs("192.168.3.3", "127.0.0.1") {
		if got := flood(c, table.Lookup(a), a, second, 1000, 10); got[Answer] != 10000 {
			t.Errorf("%s: %v", a, got)
		}
	}
	free := New(Settings{})
	for _, a := range []netip.Addr{loud, other} {
		if got := flood(free, table.Lookup(a), a, second, 100000, 1); got[Answer] != 100000 {
			t.Errorf("%s without a limit: %v", a, got)
		}
	}
}

// TestStrangers: strangers are refused a little and then met with silence, by network and all together.
func TestStrangers(t *testing.T) {
	c := New(Settings{})
	a := netip.MustParseAddr("203.0.113.1")
	if got := flood(c, Client{}, a, second, 1000, 10); got[Answer] != 0 || !near(got[Refuse], 120, 1) {
		t.Errorf("one stranger: %v", got)
	}
	at := 11 * second
	if v := c.Admit(Client{}, netip.MustParseAddr("203.0.113.77"), at-second/100); v != Drop {
		t.Error("its network has nothing left, yet:", v)
	}
	if v := c.Admit(Client{}, netip.MustParseAddr("203.0.114.1"), at); v != Refuse {
		t.Error("another network:", v)
	}
	for i, x := range addrs("2001:db8:1:100::1", "2001:db8:1:1ff::", "2001:db8:1:200::1") {
		for range 10 {
			if v := c.Admit(Client{}, x, at); v != Refuse {
				t.Errorf("address %d: %v", i, v)
			}
		}
	}
	if v := c.Admit(Client{}, netip.MustParseAddr("2001:db8:1:180::1"), at); v != Drop {
		t.Error("the /56 has had its share, yet:", v)
	}
	if v := c.Admit(Client{}, netip.MustParseAddr("2001:db8:1:200::2"), at); v != Refuse {
		t.Error("the next /56 has not:", v)
	}
	// From everywhere at once: nobody's network has had its share, all together have.
	r, got := random(t), [Drop + 1]int{}
	at += 100 * second
	for i := range 100_000 {
		got[c.Admit(Client{}, netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, r.Uint32()))), at+int64(i)*second/10_000)]++
	}
	if !near(got[Refuse], 11_000, 100) {
		t.Errorf("ten seconds of forged addresses: %v", got)
	}
}

// TestBucketsKeepTheLoud: however many come by, a client in a flood stays known.
func TestBucketsKeepTheLoud(t *testing.T) {
	r := random(t)
	var b buckets
	p := newPace(Rate{PerSecond: 10, Burst: 20})
	loud := key{lo: 42}
	passed := 0
	for i := range 200_000 {
		now := second + int64(i)*second/10_000
		if i%2 == 0 {
			if b.get(loud, now).take(p, now) {
				passed++
			}
			continue
		}
		b.get(key{hi: r.Uint64(), lo: r.Uint64()}, now).take(p, now)
	}
	if !near(passed, 20+10*20, 2) {
		t.Errorf("a client at 5,000 a second passed %d times in 20 s, want 220", passed)
	}
	if size := unsafe.Sizeof(b); size > 64<<10 {
		t.Errorf("the table has %d octets", size)
	}
}
