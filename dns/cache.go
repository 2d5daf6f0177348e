// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"container/list"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// maxTTL is the longest that an answer of an upstream is kept.
	maxTTL = time.Hour
	// maxNegativeTTL is the longest that a denial is kept (RFC 2308 allows up to three hours).
	maxNegativeTTL = 30 * time.Minute
	// maxCached is the largest message that is kept, so that the number of entries bounds the memory.
	maxCached = 4096
)

// cache remembers answers of upstreams as whole messages, each under its own question only: what an upstream says beside the
// question can poison nothing. The oldest unused ones make room for new ones.
type cache struct {
	size int
	now  func() time.Time

	hits   [2]atomic.Uint64 // of answers and of denials
	misses atomic.Uint64

	mu      sync.Mutex
	entries map[cacheKey]*list.Element
	used    list.List // of *cacheEntry, the latest first
	denials int
}

type cacheKey struct {
	name   string // in lower case
	qtype  uint16
	qclass uint16
	flags  flags
}

type cacheEntry struct {
	key           cacheKey
	msg           *mdns.Msg
	stored, until time.Time
	denial        bool
}

func newCache(size int, now func() time.Time) *cache {
	return &cache{size: size, now: now, entries: make(map[cacheKey]*list.Element)}
}

func keyOf(q mdns.Question, fl flags) cacheKey {
	return cacheKey{strings.ToLower(q.Name), q.Qtype, q.Qclass, fl}
}

// get is the answer to a question with the time it has been kept taken off its TTLs, for the caller to keep; nil if there is none.
func (c *cache) get(q mdns.Question, fl flags) *mdns.Msg {
	now := c.now()
	e := c.find(keyOf(q, fl), now)
	if e == nil {
		c.misses.Add(1)
		return nil
	}
	if e.denial {
		c.hits[1].Add(1)
	} else {
		c.hits[0].Add(1)
	}
	m := e.msg.Copy()
	age := uint32(now.Sub(e.stored) / time.Second)
	for _, section := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			h.Ttl -= min(age, h.Ttl)
		}
	}
	return m
}

func (c *cache) find(key cacheKey, now time.Time) *cacheEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.entries[key]
	if el == nil {
		return nil
	}
	e := el.Value.(*cacheEntry)
	if !now.Before(e.until) {
		c.remove(el)
		return nil
	}
	c.used.MoveToFront(el)
	return e
}

// put remembers an answer for as long as it says.
func (c *cache) put(q mdns.Question, fl flags, m *mdns.Msg) {
	ttl, denial := lifetime(m)
	if ttl <= 0 || c.size <= 0 || m.Len() > maxCached {
		return
	}
	now := c.now()
	e := &cacheEntry{key: keyOf(q, fl), msg: m.Copy(), stored: now, until: now.Add(ttl), denial: denial}
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.entries[e.key]; el != nil {
		c.remove(el)
	}
	for len(c.entries) >= c.size {
		c.remove(c.used.Back())
	}
	c.entries[e.key] = c.used.PushFront(e)
	if denial {
		c.denials++
	}
}

// remove is for holders of the lock.
func (c *cache) remove(el *list.Element) {
	e := c.used.Remove(el).(*cacheEntry)
	delete(c.entries, e.key)
	if e.denial {
		c.denials--
	}
}

// len is the number of answers and of denials kept.
func (c *cache) len() (positive, negative int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries) - c.denials, c.denials
}

// lifetime is how long a message may be kept, and whether it denies. Denials without SOA, errors and messages cut short may not be.
func lifetime(m *mdns.Msg) (time.Duration, bool) {
	if m.Truncated || m.Rcode != mdns.RcodeSuccess && m.Rcode != mdns.RcodeNameError {
		return 0, false
	}
	ttl, qtype := maxTTL, m.Question[0].Qtype
	answered := false
	for _, rr := range m.Answer {
		h := rr.Header()
		answered = answered || h.Rrtype == qtype || qtype == mdns.TypeANY
		ttl = min(ttl, time.Duration(h.Ttl)*time.Second)
	}
	if answered && m.Rcode == mdns.RcodeSuccess {
		return ttl, false
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*mdns.SOA); ok {
			return min(ttl, maxNegativeTTL, time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second), true
		}
	}
	return 0, true
}
