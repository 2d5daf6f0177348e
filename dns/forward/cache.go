// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	mdns "github.com/miekg/dns"
)

const (
	maxKey = 255 + 3
	// anyType stands in a key for all types: a name that does not exist has none of them (RFC 2308, section 5).
	anyType = 0
	// shardSize is how much of the cache one lock is for, at least, and maxShards how many there are at most.
	shardSize, maxShards = 256 << 10, 16
	// bucketFor is how many octets of the bound have a bucket of their own, which is about as large as an entry is.
	bucketFor = 256
	// minPause is how long a failure is remembered at least (RFC 9520, section 3.2).
	minPause = time.Second
)

// cache remembers answers as packed messages, each under its own question only: what an upstream says beside the question can poison nothing.
// Its memory is bounded in octets, including what it needs itself.
//
// What makes room is chosen by SIEVE: entries stand in line by age, a hand goes from the oldest to the newest and takes the first one that was
// not asked for since the hand last passed. A hit changes one bit, and names that are asked for once do not push out those asked for often.
type cache struct {
	seed   maphash.Seed
	size   int
	shards []shard
}

type shard struct {
	mu             sync.Mutex
	buckets        []*entry
	bound, used    int
	newest, oldest *entry
	hand           *entry
	kept           [2]int // answers and denials, of which failures are some
	counts         counts
}

// counts are a cache's, since the program started.
type counts struct {
	hits, evicted                      [2]uint64 // of answers, and of denials
	requests, misses, stale, prefetchs uint64
}

func (c *counts) add(o *counts) {
	for i := range c.hits {
		c.hits[i] += o.hits[i]
		c.evicted[i] += o.evicted[i]
	}
	c.requests += o.requests
	c.misses += o.misses
	c.stale += o.stale
	c.prefetchs += o.prefetchs
}

// kind is an index of counts.
func (e *entry) kind() int {
	if e.denial {
		return 1
	}
	return 0
}

// newCache makes a cache of at most size octets; of none if that is less than a single shard of any use needs.
func newCache(size int) *cache {
	c := &cache{seed: maphash.MakeSeed(), size: size}
	n := 1
	for n < maxShards && n*2*shardSize <= size {
		n *= 2
	}
	c.shards = make([]shard, n)
	for i := range c.shards {
		s := &c.shards[i]
		s.bound = max(size, 0) / n
		buckets := 1
		for buckets*bucketFor < s.bound {
			buckets *= 2
		}
		s.buckets = make([]*entry, buckets)
		s.used = buckets * int(unsafe.Sizeof(s.buckets[0]))
	}
	return c
}

// cost is what an entry takes of the bound, with the allocator's rounding.
func (e *entry) cost() int {
	n := entrySize + e.room
	if e.why != nil {
		n += failureSize
	}
	return n
}

// The allocator's sizes for an entry, and for a failure with the longest text.
var (
	entrySize   = cap(slices.Grow([]byte(nil), int(unsafe.Sizeof(entry{}))))
	failureSize = cap(slices.Grow([]byte(nil), int(unsafe.Sizeof(failure{})))) + cap(slices.Grow([]byte(nil), maxText))
)

// set gives an entry its octets.
func (e *entry) set(key, records, places []byte) {
	var b strings.Builder
	b.Grow(len(key) + len(records) + len(places))
	b.Write(key)
	b.Write(records)
	b.Write(places)
	e.blob, e.room, e.key, e.body = b.String(), b.Cap(), len(key), len(records)
}

// appendKey makes the key of a question, or of all types of its name.
func appendKey(b []byte, q Question, rrtype uint16) []byte {
	b = append(b, q.Name...)
	b = binary.BigEndian.AppendUint16(b, rrtype)
	return append(b, q.flags())
}

// at finds the shard of a name, and what its hash is.
func (c *cache) at(name []byte) (*shard, uint64) {
	h := maphash.Bytes(c.seed, name)
	return &c.shards[h>>32%uint64(len(c.shards))], h
}

// mix makes the hash of a key from that of its name.
func mix(h uint64, rrtype uint16, flags byte) uint64 {
	h ^= (uint64(rrtype)<<8 | uint64(flags)) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}

// lookup finds an entry, whatever its age. The shard is locked.
func (s *shard) lookup(h uint64, key []byte) *entry {
	for e := s.buckets[h&uint64(len(s.buckets)-1)]; e != nil; e = e.next {
		if e.hash == h && e.blob[:e.key] == string(key) {
			return e
		}
	}
	return nil
}

// decides finds the entry that decides about a question: its own while that holds, else the denial of all types of its name if that still holds or came
// later. What was there before a denial is not to come back when the denial is over. The shard is locked; the key stays as it is.
func (s *shard) decides(h uint64, q Question, key []byte, now int64) *entry {
	e := s.lookup(mix(h, q.Type, q.flags()), key)
	if e != nil && e.why == nil && now < e.until {
		return e
	}
	at := key[len(q.Name):]
	binary.BigEndian.PutUint16(at, anyType)
	none := s.lookup(mix(h, anyType, q.flags()), key)
	binary.BigEndian.PutUint16(at, q.Type)
	if none != nil && (e == nil || now < none.until || none.stored >= e.stored) {
		return none
	}
	return e
}

// hit is what the cache has on a question.
type hit struct {
	fresh *entry // may be given
	stale *entry // past its time, but may be given if there is nothing better
	// failed is a failure to which upstreams are not to be asked again yet.
	failed *failure
	// refresh is set for one caller, who is to ask anew though there is an answer.
	refresh bool
	// alone is until when questions for the fresh one need not be seen here: none of them would have it asked for anew.
	alone int64
}

// get looks a question up. When counted is set, the question is a client's.
func (f *Forwarder) get(q Question, now int64, counted bool) (out hit) {
	var buf [maxKey]byte
	key := appendKey(buf[:0], q, q.Type)
	s, h := f.cache.at(q.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.decides(h, q, key, now)
	switch {
	case e == nil:
	case e.why == nil && now < e.until:
		out.fresh = e
		e.used = true
		if counted {
			e.hits++
		}
		out.alone = e.until
		if n := f.o.Caching.PrefetchHits; n > 0 {
			window := e.until - (e.until-e.stored)*int64(f.o.Caching.PrefetchPercent)/100
			if out.alone = window; e.hits < n {
				out.alone = now
			}
			if counted && e.hits >= n && !e.refreshing && now >= e.retry && now >= window {
				e.refreshing, out.refresh = true, true
				s.counts.prefetchs++
			}
		}
	default:
		if e.why == nil && now < e.past {
			out.stale = e
			e.used = true
			if f.o.Caching.StaleAtOnce && !e.refreshing && now >= e.retry {
				e.refreshing, out.refresh = true, true
			}
		}
		// What was out of reach may be in reach again when an upstream has recovered, but never within the first second.
		if now < e.retry && (e.recovery == f.recoveries.Load() || now < e.retry-int64(e.pause)+int64(minPause)) {
			out.failed = e.why
			if e.why == nil {
				out.failed = errOld
			}
		}
	}
	if counted {
		s.count(out)
	}
	return out
}

// refreshed ends what a hit with refresh began, whatever came of it.
func (c *cache) refreshed(e *entry) {
	s, _ := c.at([]byte(e.blob[:e.key-3]))
	s.mu.Lock()
	e.refreshing = false
	s.mu.Unlock()
}

// errOld stands for the failure to renew an answer that is still there.
var errOld = fail(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeNoReachableAuthority, "the last attempt to renew the answer failed")

func (s *shard) count(h hit) {
	s.counts.requests++
	switch {
	case h.fresh != nil:
		s.counts.hits[h.fresh.kind()]++
	case h.failed != nil && h.stale == nil:
		s.counts.hits[1]++
	default:
		s.counts.misses++
	}
}

// countStale counts an answer given after its time.
func (c *cache) countStale(name []byte) {
	s, _ := c.at(name)
	s.mu.Lock()
	s.counts.stale++
	s.mu.Unlock()
}

// keyType is the type that an entry is found under.
func (e *entry) keyType() uint16 {
	return uint16(e.blob[e.key-3])<<8 | uint16(e.blob[e.key-2])
}

// put remembers an entry, in the place of what was under its key. A name that has come to be loses the denial of all its types.
func (c *cache) put(e *entry) {
	name := []byte(e.blob[:e.key-3])
	s, h := c.at(name)
	flags := e.blob[e.key-1]
	cost := e.cost()
	s.mu.Lock()
	defer s.mu.Unlock()
	e.hash = mix(h, e.keyType(), flags)
	if old := s.lookup(e.hash, []byte(e.blob[:e.key])); old != nil {
		s.remove(old)
	}
	if e.keyType() != anyType && e.why == nil {
		if none := s.lookup(mix(h, anyType, flags), append(name, 0, anyType, flags)); none != nil {
			s.remove(none)
		}
	}
	if s.used+cost > s.bound && cost > s.bound/2 {
		return
	}
	for s.used+cost > s.bound {
		if !s.evict() {
			return
		}
	}
	bucket := &s.buckets[e.hash&uint64(len(s.buckets)-1)]
	e.next, *bucket = *bucket, e
	if e.older = s.newest; e.older != nil {
		e.older.newer = e
	} else {
		s.oldest = e
	}
	s.newest = e
	s.used += cost
	s.kept[e.kind()]++
}

// forget drops what was said to a question before, when what is said now is not to be kept: the old is no longer better than nothing.
func (c *cache) forget(q Question) {
	s, h := c.at(q.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rrtype := range []uint16{q.Type, anyType} {
		if e := s.lookup(mix(h, rrtype, q.flags()), appendKey(make([]byte, 0, maxKey), q, rrtype)); e != nil {
			s.remove(e)
		}
	}
}

// putFailure remembers that a question could not be answered: beside the old answer if there is one that may still be given, alone otherwise.
// The pause before upstreams are asked again doubles with each failure in a row.
func (f *Forwarder) putFailure(q Question, why *failure, now int64) {
	c := f.cache
	key := appendKey(make([]byte, 0, maxKey), q, q.Type)
	s, h := c.at(q.Name)
	s.mu.Lock()
	old := s.decides(h, q, key, now)
	pause := minPause
	if old != nil && old.pause > 0 && now < old.retry+int64(old.pause) {
		pause = max(minPause, min(2*old.pause, f.o.Caching.MaxFailure))
	}
	retry := now + int64(pause)
	if old != nil && old.why == nil && now < max(old.past, old.until) {
		old.retry, old.pause, old.recovery, old.refreshing = retry, pause, f.recoveries.Load(), false
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	e := &entry{rcode: uint8(why.rcode), denial: true, why: why, stored: now, until: retry, retry: retry, pause: pause, recovery: f.recoveries.Load()}
	e.set(key, nil, nil)
	c.put(e)
}

// evict makes room, and reports whether there was anything to take.
func (s *shard) evict() bool {
	e := s.hand
	if e == nil {
		e = s.oldest
	}
	for e != nil && e.used {
		e.used = false
		if e = e.newer; e == nil {
			e = s.oldest
		}
	}
	if e == nil {
		return false
	}
	s.hand = e.newer
	s.counts.evicted[e.kind()]++
	s.unlink(e)
	return true
}

// remove takes an entry out that the hand may point at.
func (s *shard) remove(e *entry) {
	if s.hand == e {
		s.hand = e.newer
	}
	s.unlink(e)
}

func (s *shard) unlink(e *entry) {
	at := &s.buckets[e.hash&uint64(len(s.buckets)-1)]
	for *at != e {
		at = &(*at).next
	}
	*at = e.next
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		s.newest = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		s.oldest = e.newer
	}
	// Those who still read it must not hold the ones that stood beside it.
	e.next, e.newer, e.older = nil, nil, nil
	s.used -= e.cost()
	s.kept[e.kind()]--
}

// stats adds up what the shards counted: how many answers and denials there are, the octets taken, and the counters.
func (c *cache) stats() (kept [2]int, used int, sum counts) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		kept[0] += s.kept[0]
		kept[1] += s.kept[1]
		used += s.used
		sum.add(&s.counts)
		s.mu.Unlock()
	}
	return kept, used, sum
}

// copyTo puts what an old cache has and the predicate wants into a new one, the oldest first, and hands over its counters.
func (c *cache) copyTo(to *cache, want func(*entry) bool) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		var all []*entry
		for e := s.oldest; e != nil; e = e.newer {
			if want(e) {
				all = append(all, e.clone())
			}
		}
		sum := s.counts
		s.counts = counts{}
		s.mu.Unlock()
		for _, e := range all {
			to.put(e)
		}
		first := &to.shards[0]
		first.mu.Lock()
		first.counts.add(&sum)
		first.mu.Unlock()
	}
}

// clone is an entry that is in no cache.
func (e *entry) clone() *entry {
	n := *e
	n.next, n.newer, n.older, n.refreshing = nil, nil, nil, false
	return &n
}
