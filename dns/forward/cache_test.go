// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// An answer is kept for as long as it says, within bounds, and counts down; a denial as its SOA says (RFC 2308).
func TestLifetime(t *testing.T) {
	up := newResolver(t, worldly{
		"short.example. A":    "short.example. 300 IN CNAME x.example.; x.example. 30 IN A 192.0.2.1",
		"zero.example. A":     "zero.example. 0 IN A 192.0.2.1",
		"long.example. A":     "long.example. 999999 IN A 192.0.2.1",
		"brief.example. A":    "brief.example. 1 IN A 192.0.2.1",
		"none.example. A":     "! / example. 600 IN SOA a. b. 1 2 3 4 40",
		"nodata.example. A":   " / example. 40 IN SOA a. b. 1 2 3 4 600",
		"bare.example. A":     "!",
		"longnone.example. A": "! / example. 999999 IN SOA a. b. 1 2 3 4 999999",
		"quick.example. A":    "! / example. 0 IN SOA a. b. 1 2 3 4 999999",
	}.script())
	for _, bounds := range []Caching{{}, {MinTTL: 10 * time.Second, MaxTTL: 20 * time.Second, MinDenial: 5 * time.Second, MaxDenial: 8 * time.Second}} {
		r := start(t, func(o *Options) { o.Caching = bounds }, up).untested()
		c := r.o.Caching
		clamp := func(d time.Duration, denial bool) time.Duration {
			if denial {
				return min(max(d, c.MinDenial), c.MaxDenial)
			}
			return min(max(d, c.MinTTL), c.MaxTTL)
		}
		for _, tt := range []struct {
			name   string
			ttl    time.Duration
			denial bool
		}{
			{"short", 30 * time.Second, false}, {"zero", 0, false}, {"long", 999999 * time.Second, false}, {"brief", time.Second, false},
			{"none", 40 * time.Second, true}, {"nodata", 40 * time.Second, true}, {"longnone", 999999 * time.Second, true}, {"quick", 0, true},
		} {
			name, ttl := tt.name+".example.", clamp(tt.ttl, tt.denial)
			check := func(m *mdns.Msg, left time.Duration) {
				t.Helper()
				for _, rr := range append(m.Answer, m.Ns...) {
					if got := time.Duration(rr.Header().Ttl) * time.Second; got != left {
						t.Errorf("TTL of %v, want %s", rr, left)
					}
				}
			}
			before := up.asked[0].Load()
			first := r.ask(name, typeA)
			check(first, ttl)
			for passed, steps := time.Duration(0), 0; ttl > 0 && steps < 5; steps++ {
				passed += time.Duration(rand.Int64N(int64(ttl-passed)/2 + 1)) // whole seconds or not
				r.clock.Add(int64(passed))
				again := r.ask(strings.ToUpper(name), typeA)
				want(t, strings.ToLower(data(again)), strings.ToLower(data(first)))
				check(again, (ttl - passed).Truncate(time.Second))
				r.clock.Add(-int64(passed))
			}
			if n := up.asked[0].Load() - before; n != 1 {
				t.Errorf("%s: asked %d times before its time", name, n)
			}
			r.clock.Add(int64(ttl))
			r.ask(name, typeA)
			if n := up.asked[0].Load() - before; n != 2 {
				t.Errorf("%s: asked %d times after its time", name, n)
			}
		}
		before := up.asked[0].Load()
		r.ask("bare.example.", typeA)
		r.ask("bare.example.", typeA)
		if n := up.asked[0].Load() - before; n != 2 {
			t.Errorf("a denial that does not say for how long: asked %d times", n)
		}
	}
}

// A name that does not exist has no record of any type; one that exists may lack one (RFC 2308, section 5).
func TestDenials(t *testing.T) {
	var exists atomic.Bool
	up := newResolver(t, says(func(m *mdns.Msg) {
		q := m.Question[0]
		switch {
		case strings.EqualFold(q.Name, "alias.example."):
			m.Rcode = mdns.RcodeNameError
			m.Answer, m.Ns = rrs(q.Name+" 60 IN CNAME gone.example."), rrs(soa)
		case !exists.Load():
			m.Rcode, m.Ns = mdns.RcodeNameError, rrs(soa)
		case q.Qtype == typeA:
			m.Answer = rrs(q.Name + " 60 IN A 192.0.2.1")
		default:
			m.Ns = rrs(soa)
		}
	}))
	r := start(t, nil, up).untested()
	none := "NXDOMAIN / example. SOA a. b. 1 2 3 4 50"
	for _, qtype := range []uint16{typeA, typeAAAA, mdns.TypeTXT} {
		want(t, data(r.ask("a.example.", qtype)), none)
	}
	if n := up.asked[0].Load(); n != 1 {
		t.Errorf("asked %d times for a name that does not exist", n)
	}
	// What was verified is another question.
	r.ask("a.example.", typeA, func(q *Question) { q.CD = true })
	if n := up.asked[0].Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
	// An alias exists, whatever becomes of its target.
	for range 2 {
		r.ask("alias.example.", typeA)
		r.ask("alias.example.", mdns.TypeTXT)
	}
	if n := up.asked[0].Load(); n != 4 {
		t.Errorf("asked %d times", n)
	}
	// Once one type is there, the others are no longer denied by what was said before.
	r.clock.Add(int64(51 * time.Second))
	exists.Store(true)
	want(t, data(r.ask("a.example.", typeA)), "NOERROR a.example. A 192.0.2.1")
	want(t, data(r.ask("a.example.", typeAAAA)), "NOERROR / example. SOA a. b. 1 2 3 4 50")
	r.clock.Add(int64(49 * time.Second))
	before := up.asked[0].Load()
	want(t, data(r.ask("a.example.", typeA)), "NOERROR a.example. A 192.0.2.1")
	want(t, data(r.ask("a.example.", typeAAAA)), "NOERROR / example. SOA a. b. 1 2 3 4 50")
	if n := up.asked[0].Load(); n != before {
		t.Errorf("asked %d times more", n-before)
	}
}

// A failure is remembered for a second, then for twice as long each time, and is over with a success (RFC 9520).
func TestFailures(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	up := newResolver(t, says(func(m *mdns.Msg) {
		if broken.Load() {
			m.Rcode = mdns.RcodeServerFailure
			return
		}
		m.Answer = rrs(m.Question[0].Name + " 0 IN A 192.0.2.1")
	}))
	r := start(t, func(o *Options) { o.Caching.MaxFailure = 5 * time.Minute }, up).untested()
	asks := func(name string) int64 {
		before := up.asked[0].Load()
		m := r.ask(name, typeA)
		if broken.Load() && m.Rcode != mdns.RcodeServerFailure {
			t.Errorf("%v", m)
		}
		return up.asked[0].Load() - before
	}
	if n := asks("a.example."); n != 1 {
		t.Fatalf("asked %d times", n)
	}
	for _, pause := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		r.clock.Add(int64(pause)*int64(time.Second) - 1)
		if n := asks("a.example."); n != 0 {
			t.Errorf("asked after less than %d s", pause)
		}
		code, text := ede(r.ask("a.example.", typeA))
		if code != 13 || !strings.Contains(text, "says SERVFAIL") {
			t.Errorf("extended error %d %q", code, text)
		}
		if n := asks(fmt.Sprintf("%d.example.", pause)); n != 1 && pause != 300 {
			t.Errorf("another question was asked %d times", n)
		}
		r.clock.Add(1)
		if n := asks("a.example."); n != 1 {
			t.Errorf("asked %d times after %d s", n, pause)
		}
	}
	// An upstream that recovers is a new beginning.
	r.clock.Add(int64(time.Second))
	r.recoveries.Add(1)
	broken.Store(false)
	want(t, data(r.ask("a.example.", typeA)), "NOERROR a.example. A 192.0.2.1")
	broken.Store(true)
	// Long after a failure, the next one is a first one.
	asks("b.example.")
	r.clock.Add(int64(time.Hour))
	asks("b.example.")
	r.clock.Add(int64(time.Second))
	if n := asks("b.example."); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// A failure that is remembered counts as a denial from the cache.
func TestFailuresCount(t *testing.T) {
	r := start(t, nil, newResolver(t, says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeServerFailure }))).untested()
	for range 3 {
		r.ask("a.example.", typeA)
	}
	if _, _, n := r.cache.stats(); n.requests != 3 || n.misses != 1 || n.hits != [2]uint64{0, 2} {
		t.Errorf("%+v", n)
	}
}

// One caller is to ask anew, and after a failure to do so nobody is for a second.
func TestRefreshOnce(t *testing.T) {
	const end = int64(time.Hour)
	for name, tt := range map[string]struct {
		caching Caching
		now     int64
	}{
		"popular": {Caching{PrefetchHits: 1}, end - int64(time.Minute)},
		"stale":   {Caching{ServeStale: time.Hour, StaleAtOnce: true}, end + 1},
	} {
		r := start(t, func(o *Options) { o.Caching = tt.caching })
		q := question("a.example.", typeA)
		e := entryFor(t, q, 1, end)
		e.past = 2 * end
		r.cache.put(e)
		for i, want := range []bool{true, false} {
			if got := r.get(q, tt.now, true).refresh; got != want {
				t.Errorf("%s, call %d: to refresh: %t", name, i, got)
			}
		}
		r.putFailure(q, fail(2, 22, "no"), tt.now)
		for after, want := range map[time.Duration]bool{time.Second - 1: false, time.Second: true} {
			r.cache.refreshed(e)
			if got := r.get(q, tt.now+int64(after), true).refresh; got != want {
				t.Errorf("%s, %s after a failure: to refresh: %t", name, after, got)
			}
		}
	}
}

// stale has a forwarder that remembers an answer which is past its time.
func stale(t *testing.T, change func(*Options)) (rig, *atomic.Pointer[script]) {
	var play atomic.Pointer[script]
	set := script(addresses)
	play.Store(&set)
	up := newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte { return (*play.Load())(q, tcp) })
	r := start(t, func(o *Options) {
		o.Caching.ServeStale = time.Hour
		o.Pools[0].MaxFails = -1
		if change != nil {
			change(o)
		}
	}, up).untested()
	want(t, data(r.ask("a.example.com.", typeA)), good)
	r.clock.Add(int64(61 * time.Second))
	return r, &play
}

func answersWith(address string) *script {
	s := says(func(m *mdns.Msg) { m.Answer = rrs(m.Question[0].Name + " 60 IN A " + address) })
	return &s
}

// An answer past its time is better than none, for a while (RFC 8767).
func TestServeStale(t *testing.T) {
	const newer = "NOERROR a.example.com. A 192.0.2.99"
	isStale := func(m *mdns.Msg) {
		t.Helper()
		want(t, data(m), good)
		if code, _ := ede(m); code != 3 || m.Answer[0].Header().Ttl != 30 {
			t.Errorf("%v", m)
		}
	}
	t.Run("a new one is there", func(t *testing.T) {
		r, play := stale(t, nil)
		play.Store(answersWith("192.0.2.99"))
		want(t, data(r.ask("a.example.com.", typeA)), newer)
	})
	t.Run("none is to be had", func(t *testing.T) {
		r, play := stale(t, nil)
		dead := says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeServerFailure })
		play.Store(&dead)
		isStale(r.ask("a.example.com.", typeA))
		asked := r.Status()[0].Answered
		isStale(r.ask("a.example.com.", typeA))
		if n := r.Status()[0].Answered; n != asked {
			t.Error("it was asked again within a second")
		}
		if _, _, n := r.cache.stats(); n.stale != 2 {
			t.Errorf("%d counted", n.stale)
		}
		play.Store(answersWith("192.0.2.99"))
		r.clock.Add(int64(time.Second))
		want(t, data(r.ask("a.example.com.", typeA)), newer)
		// For too long is too long.
		play.Store(&dead)
		r.clock.Add(int64(time.Hour + 61*time.Second))
		if m := r.ask("a.example.com.", typeA); m.Rcode != mdns.RcodeServerFailure {
			t.Errorf("%v", m)
		}
	})
	t.Run("it takes too long", func(t *testing.T) {
		r, play := stale(t, func(o *Options) { o.Timeout = 10 * time.Second })
		none := script(silent)
		play.Store(&none)
		begin := time.Now()
		isStale(r.ask("a.example.com.", typeA))
		if waited := time.Since(begin); waited < stalePatience {
			t.Errorf("waited for %s", waited)
		}
	})
	t.Run("at once", func(t *testing.T) {
		r, play := stale(t, func(o *Options) { o.Caching.StaleAtOnce = true })
		play.Store(answersWith("192.0.2.99"))
		isStale(r.ask("a.example.com.", typeA))
		eventually(t, "the new one", func() bool { return data(r.ask("a.example.com.", typeA)) == newer })
	})
	t.Run("too many questions", func(t *testing.T) {
		r, _ := stale(t, func(o *Options) { o.Pools[0].MaxConcurrent = 1 })
		r.all[0].places <- struct{}{}
		isStale(r.ask("a.example.com.", typeA))
	})
	t.Run("not at all", func(t *testing.T) {
		r, play := stale(t, func(o *Options) { o.Caching.ServeStale = 0 })
		dead := says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeServerFailure })
		play.Store(&dead)
		if m := r.ask("a.example.com.", typeA); m.Rcode != mdns.RcodeServerFailure {
			t.Errorf("%v", m)
		}
	})
	t.Run("denial", func(t *testing.T) {
		r, play := stale(t, nil)
		none, dead := says(func(m *mdns.Msg) { m.Rcode, m.Ns = mdns.RcodeNameError, rrs(soa) }), says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeServerFailure })
		play.Store(&none)
		r.ask("none.example.", typeA)
		r.clock.Add(int64(time.Minute))
		play.Store(&dead)
		for _, qtype := range []uint16{typeA, typeAAAA, typeA} {
			m := r.ask("none.example.", qtype)
			if code, _ := ede(m); code != 19 || m.Rcode != mdns.RcodeNameError || len(m.Ns) != 1 {
				t.Errorf("%v", m)
			}
		}
	})
	for what, newest := range map[string]script{
		"denied since":          says(func(m *mdns.Msg) { m.Rcode, m.Ns = mdns.RcodeNameError, rrs("example.com. 50 IN SOA a. b. 1 2 3 4 50") }),
		"denied since, no SOA":  says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeNameError }),
		"not to be kept, since": says(func(m *mdns.Msg) { m.Answer = rrs(m.Question[0].Name + " 0 IN A 192.0.2.99") }),
	} {
		t.Run(what, func(t *testing.T) {
			r, play := stale(t, nil)
			play.Store(&newest)
			r.ask("a.example.com.", typeA)
			dead := says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeServerFailure })
			play.Store(&dead)
			r.clock.Add(int64(time.Minute))
			for range 2 {
				if m := r.ask("a.example.com.", typeA); len(m.Answer) > 0 {
					t.Errorf("the answer of before came back: %v", m)
				}
			}
		})
		t.Run(what+", at once", func(t *testing.T) {
			r, play := stale(t, func(o *Options) { o.Caching.StaleAtOnce = true })
			play.Store(&newest)
			isStale(r.ask("a.example.com.", typeA))
			eventually(t, "the newest", func() bool { return data(r.ask("a.example.com.", typeA)) != good })
		})
	}
}

// What is popular is asked for anew before its time is over, once, and nobody waits for it.
func TestPrefetch(t *testing.T) {
	up := newResolver(t, addresses)
	r := start(t, func(o *Options) { o.Caching.PrefetchHits, o.Caching.PrefetchPercent = 3, 20 }, up).untested()
	r.ask("popular.example.", typeA)
	r.ask("lonely.example.", typeA)
	for range 5 {
		r.ask("popular.example.", typeA)
	}
	r.clock.Add(int64(47 * time.Second))
	r.ask("popular.example.", typeA)
	if n := up.asked[0].Load(); n != 2 {
		t.Errorf("asked %d times before it was due", n)
	}
	r.clock.Add(int64(time.Second))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, _, ok := r.Append(header("popular.example.", typeA), question("popular.example.", typeA)); !ok {
				t.Error("had to wait")
			}
		})
	}
	wg.Wait()
	r.ask("lonely.example.", typeA)
	eventually(t, "the new answer", func() bool { return r.ask("popular.example.", typeA).Answer[0].Header().Ttl == 60 })
	if n := up.asked[0].Load(); n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
	if _, _, n := r.cache.stats(); n.prefetchs != 1 {
		t.Errorf("%d counted", n.prefetchs)
	}
}

// entryFor makes an entry of n addresses.
func entryFor(t testing.TB, q Question, n int, until int64) *entry {
	name, _, err := mdns.UnpackDomainName(q.Name, 0)
	if err != nil {
		t.Fatal(err)
	}
	w := &found{}
	for i := range n {
		w.answer = append(w.answer, &mdns.A{Hdr: mdns.RR_Header{Name: name, Rrtype: typeA, Class: mdns.ClassINET, Ttl: 60}, A: net.IPv4(10, 0, byte(i>>8), byte(i))})
	}
	e, err := pack(appendKey(nil, q, q.Type), q.Name, q.Type, w)
	if err != nil {
		t.Fatal(err)
	}
	e.until, e.past = until, until
	return e
}

// The bound is of the memory that is really taken, with large and with small entries, and after a change from one to the other.
func TestMemory(t *testing.T) {
	const size = 8 << 20
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	f, err := New(Options{Caching: Caching{Size: size}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close(canceled())
	for _, phase := range []struct {
		name     string
		n, count int
	}{{"small", 1, 40_000}, {"large", 200, 2500}, {"odd", 137, 3500}, {"small again", 1, 40_000}, {"failures", 0, 40_000}} {
		for i := range phase.count {
			q := question(fmt.Sprintf("%s%d.svc.example.", strings.ReplaceAll(phase.name, " ", ""), i), typeA)
			if phase.n == 0 {
				f.putFailure(q, fail(2, 22, "upstream 192.0.2.%d:53: no answer in time", i&255), 0)
				continue
			}
			f.cache.put(entryFor(t, q, phase.n, 1e18))
		}
		taken := heap() - before
		_, used, _ := f.cache.stats()
		t.Logf("%s: %d octets taken, %d accounted for, bound %d", phase.name, taken, used, size)
		if used > size || used < size*9/10 {
			t.Errorf("%s: %d octets accounted for, bound %d", phase.name, used, size)
		}
		if taken > size+64<<10 || taken < size/2 { // the forwarder itself takes some
			t.Errorf("%s: %d octets taken, bound %d", phase.name, taken, size)
		}
	}
	runtime.KeepAlive(f)
}

// What is asked for again and again stays, however many names come by once.
func TestPopularStays(t *testing.T) {
	f, err := New(Options{Caching: Caching{Size: 128 << 10}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close(canceled())
	popular := question("popular.example.", typeA)
	f.cache.put(entryFor(t, popular, 1, 1e18))
	for i := range 5000 {
		f.cache.put(entryFor(t, question(fmt.Sprintf("%d.example.", i), typeA), 1, 1e18))
		if i%10 == 0 && f.get(popular, 0, true).fresh == nil {
			t.Fatalf("gone after %d others", i)
		}
	}
	if _, _, n := f.cache.stats(); n.evicted[0] < 4000 || n.evicted[1] != 0 {
		t.Errorf("%d made room", n.evicted)
	}
	// One that is too large for its shard is not kept, and costs nobody his place.
	kept, _, _ := f.cache.stats()
	f.cache.put(entryFor(t, question("huge.example.", typeA), 4000, 1e18))
	if after, _, _ := f.cache.stats(); after != kept {
		t.Errorf("%d kept, %d before", after, kept)
	}
}

// verify checks that a cache is what its counters say.
func (c *cache) verify(t testing.TB) {
	t.Helper()
	for i := range c.shards {
		s := &c.shards[i]
		used, n := len(s.buckets)*8, 0
		var last *entry
		for e := s.oldest; e != nil; e = e.newer {
			if e.older != last || s.lookup(e.hash, []byte(e.blob[:e.key])) != e {
				t.Fatalf("shard %d: entry %q is out of line", i, e.blob[:e.key])
			}
			used += e.cost()
			n++
			last = e
		}
		in := 0
		for _, e := range s.buckets {
			for ; e != nil; e = e.next {
				in++
			}
		}
		if s.newest != last || used != s.used || n != s.kept[0]+s.kept[1] || in != n || used > s.bound {
			t.Fatalf("shard %d: %d octets, %d said, bound %d; %d entries in line, %d in buckets, %v said", i, used, s.used, s.bound, n, in, s.kept)
		}
	}
}

// FuzzCache: random calls on a cache and on a naive model agree, as far as nothing had to make room; the cache keeps its books and its bound.
func FuzzCache(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}, false)
	r := rand.New(rand.NewPCG(1, 2))
	for range 4 {
		b := make([]byte, 3000)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, ops []byte, small bool) {
		size := 256 << 10 // all there can be has room
		if small {
			size = 4096
		}
		fw, err := New(Options{Caching: Caching{Size: size, ServeStale: 20 * time.Second, MaxFailure: 8 * time.Second}})
		if err != nil {
			t.Fatal(err)
		}
		defer fw.Close(canceled())
		type value struct {
			e      *entry
			stored int64
			failed int64 // until then
		}
		model := make(map[string]value)
		ops = ops[:min(len(ops), 3000)] // long ones tell no more, and take long
		now := int64(time.Second)
		fresh := func(v value) bool { return v.e != nil && now < v.e.until }
		decides := func(key, all string) string {
			if v, none := model[key], model[all]; !fresh(v) && none.e != nil && (fresh(none) || none.stored >= v.stored) {
				return all
			}
			return key
		}
		for ; len(ops) >= 3; ops = ops[3:] {
			q := question(fmt.Sprintf("n%d.example.", ops[1]%16), []uint16{typeA, typeAAAA}[ops[1]>>4&1])
			q.DO, q.CD = ops[1]&0x40 != 0, ops[1]&0x80 != 0
			key, all := string(appendKey(nil, q, q.Type)), string(appendKey(nil, q, anyType))
			ttl := int64(ops[2]%32) * int64(time.Second)
			switch ops[0] % 5 {
			case 0: // an answer
				e := entryFor(t, q, 1+int(ops[2]>>5), now+ttl)
				e.stored = now
				e.past = e.until + int64(20*time.Second)
				fw.cache.put(e)
				model[key] = value{e: e, stored: now}
				delete(model, all)
			case 1: // no such name
				e, err := pack([]byte(all), q.Name, q.Type, &found{ns: rrs(soa), rcode: mdns.RcodeNameError, denial: true})
				if err != nil {
					t.Fatal(err)
				}
				e.stored, e.until = now, now+ttl
				e.past = e.until + int64(20*time.Second)
				fw.cache.put(e)
				model[all] = value{e: e, stored: now}
			case 2:
				fw.putFailure(q, fail(2, 22, "no"), now)
				at := decides(key, all)
				v := model[at]
				if v.e != nil && now >= v.e.past {
					at, v = key, value{}
				}
				if v.e == nil {
					v.stored = now
				}
				v.failed = now + 1 // at least for now
				model[at] = v
			case 3:
				now += ttl / 8 // not more than many an answer outlives
			case 4:
				h := fw.get(q, now, true)
				v, none := model[key], model[all]
				var wantFresh *entry
				if fresh(v) {
					wantFresh = v.e
				} else if fresh(none) {
					wantFresh = none.e
				}
				// What had to make room may leave the denial of all types behind.
				if h.fresh != wantFresh && !(small && (h.fresh == nil || h.fresh == none.e && fresh(none))) {
					t.Fatalf("%q at %d: %v, want %v", key, now, h.fresh, wantFresh)
				}
				if h.stale != nil && h.stale != v.e && h.stale != none.e || h.fresh != nil && (h.stale != nil || h.failed != nil) {
					t.Fatalf("%q at %d: %+v", key, now, h)
				}
				if h.stale != nil && (now < h.stale.until || now >= h.stale.past) {
					t.Fatalf("%q at %d: %v is not past its time", key, now, h.stale)
				}
				if wantFresh == nil && !small && now < model[decides(key, all)].failed && h.failed == nil {
					t.Fatalf("%q at %d: its failure is forgotten", key, now)
				}
				if h.fresh != nil {
					b := make([]byte, headerSize, 512)
					b = append(b, q.Name...)
					b = binary.BigEndian.AppendUint16(b, q.Type)
					b = binary.BigEndian.AppendUint16(b, mdns.ClassINET)
					b[5] = 1
					m := new(mdns.Msg)
					if err := m.Unpack(h.fresh.append(b, q, 1, true)); err != nil || len(m.Answer)+len(m.Ns) != int(h.fresh.an+h.fresh.ns) {
						t.Fatalf("%v, %v", err, m)
					}
				}
			}
			if len(ops)%16 < 3 {
				fw.cache.verify(t)
			}
		}
	})
}

// Many at once do not get in each other's way.
func TestCacheIsShared(t *testing.T) {
	up := newResolver(t, addresses)
	r := start(t, func(o *Options) { o.Caching.Size, o.Rotate = 64<<10, true }, up)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			for range 300 {
				name := fmt.Sprintf("%d.example.", rnd.IntN(400))
				q := question(name, typeA)
				resp, _, ok := r.Append(header(name, typeA), q)
				if !ok {
					reply, err := r.Ask(context.Background(), q)
					if err != nil {
						t.Error(err)
						return
					}
					resp = reply.appendTo(header(name, typeA))
				}
				m := new(mdns.Msg)
				if err := m.Unpack(resp); err != nil || data(m) != "NOERROR "+name+" A 192.0.2.80" {
					t.Errorf("%v, %v", err, m)
				}
			}
		})
	}
	wg.Wait()
	r.cache.verify(t)
}

// warm is a forwarder with answers to names in its cache, and a header for each.
func warm(t testing.TB, n int) (*Forwarder, []Question, [][]byte) {
	f, err := New(Options{Caching: Caching{Size: 64 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close(canceled()) })
	var qs []Question
	var heads [][]byte
	for i := range n {
		name := fmt.Sprintf("%d.www.example.com.", i)
		q := question(name, typeA)
		f.cache.put(entryFor(t, q, 3, 1e18))
		qs, heads = append(qs, q), append(heads, slices.Clone(header(name, typeA)))
	}
	return f, qs, heads
}

func TestAppendDoesNotAllocate(t *testing.T) {
	f, qs, heads := warm(t, 10)
	f.o.Rotate = true
	missing := question("missing.example.", typeA)
	head := header("missing.example.", typeA)
	i, buf := 0, make([]byte, 0, 512)
	if n := testing.AllocsPerRun(1000, func() {
		i++
		if _, _, ok := f.Append(append(buf, heads[i%10]...), qs[i%10]); !ok {
			t.Fatal("no hit")
		}
		if out, _, ok := f.Append(head, missing); ok || !slices.Equal(out, head) {
			t.Fatal("a hit, or something was written")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
