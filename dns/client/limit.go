// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Verdict is what is to be done with a query because of who sent it.
type Verdict uint8

// The verdicts.
const (
	// Answer it.
	Answer Verdict = iota
	// Refuse it: REFUSED without records, so that the answer is no longer than the query.
	Refuse
	// Drop it: silence.
	Drop
)

// Rate is how many queries a client may send. The zero Rate is no limit.
type Rate struct {
	// PerSecond is up to 1e9, Burst how many may come at once; 0 is as many as in a second.
	PerSecond, Burst uint32
}

const maxRate = 1_000_000_000

// ParseRate reads "RATE" or "RATE:BURST"; "0" is no limit.
func ParseRate(s string) (r Rate, err error) {
	rate, burst, two := strings.Cut(s, ":")
	for _, n := range []struct {
		text string
		to   *uint32
		want bool
	}{{rate, &r.PerSecond, true}, {burst, &r.Burst, two}} {
		if !n.want {
			continue
		}
		v, err := strconv.ParseUint(n.text, 10, 32)
		if err != nil || v > maxRate || two && v == 0 {
			return Rate{}, fmt.Errorf("%q is neither RATE nor RATE:BURST, of queries up to %d", s, maxRate)
		}
		*n.to = uint32(v)
	}
	return r, nil
}

// Limits of strangers, of whom only some need an answer: enough for somebody who wonders why, too little to be worth forging addresses for.
// A network is a /24 or a /56, as in other servers' response rate limiting: a flood comes with more than one address of its victim's.
var (
	perNetwork   = newPace(Rate{PerSecond: 10, Burst: 20})
	allStrangers = newPace(Rate{PerSecond: 1000})
)

// pace is a rate in the terms of a [bucket], both in nanoseconds: the time a query takes, and how far ahead of the clock that may lead.
type pace struct{ each, most int64 }

func newPace(r Rate) pace {
	if r.PerSecond == 0 {
		return pace{}
	}
	burst := r.Burst
	if burst == 0 {
		burst = r.PerSecond
	}
	each := max(int64(time.Second)/int64(r.PerSecond), 1)
	return pace{each, each * int64(burst)}
}

// bucket is a token bucket in one word: the time until which what was let through has used up (the generic cell rate algorithm).
type bucket struct{ until atomic.Int64 }

// take takes a token, if there is one. now is in nanoseconds of a clock that never goes back.
func (b *bucket) take(p pace, now int64) bool {
	for {
		old := b.until.Load()
		until := max(old, now) + p.each
		if until-now > p.most {
			return false
		}
		if b.until.CompareAndSwap(old, until) {
			return true
		}
	}
}

// limiter decides who is answered. Clients that are not pods of this node share a table of fixed size.
type limiter struct {
	pods    pace
	all     bucket
	buckets buckets
	refused [kinds]atomic.Uint64
	dropped [kinds]atomic.Uint64
}

// admit decides about one query. A pod beyond its rate is refused rather than met with silence: most resolvers then give up at once instead of
// asking again every few seconds (musl's takes both for silence), and an error that is not a timeout is soon understood. TC would send it to
// TCP, which costs more than the answer. What comes at twice the rate is dropped: refusing costs as much as answering.
func (l *limiter) admit(c Client, a netip.Addr, now int64) Verdict {
	switch c.Kind {
	case Stranger:
		k := keyOf(a)
		if k.hi == 0 {
			k.lo &^= 0xff
		} else {
			k = key{hi: k.hi &^ 0xff}
		}
		if !l.buckets.get(k, now).take(perNetwork, now) || !l.all.take(allStrangers, now) {
			return l.drop(c)
		}
		return l.refuse(c)
	case OwnPod:
		return l.limit(c, &c.Pod.rate, &c.Pod.refuse, now)
	case OtherPod, Extra:
		if l.pods.each == 0 {
			return Answer
		}
		k := keyOf(a)
		return l.limit(c, l.buckets.get(k, now), l.buckets.get(key{^k.hi, k.lo}, now), now)
	}
	// Nodes stand for many clients, and this host's own for its working.
	return Answer
}

func (l *limiter) limit(c Client, rate, refusals *bucket, now int64) Verdict {
	switch {
	case l.pods.each == 0 || rate.take(l.pods, now):
		return Answer
	case refusals.take(l.pods, now):
		return l.refuse(c)
	}
	return l.drop(c)
}

func (l *limiter) refuse(c Client) Verdict {
	l.refused[c.Kind].Add(1)
	return Refuse
}

func (l *limiter) drop(c Client) Verdict {
	l.dropped[c.Kind].Add(1)
	return Drop
}

// The table of buckets: 64 KiB, sets of 8.
const (
	bucketWays = 8
	bucketSets = 512
)

// buckets is as many buckets as there is room for. The one that was used least gives way, whose client is thereby forgiven; those in a flood
// are the last to go.
type buckets [bucketSets][bucketWays]struct {
	id atomic.Uint64
	bucket
}

// get is the bucket of a key. Clients whose keys have the same hash of 64 bits share one, and two that come at the same moment may.
func (b *buckets) get(k key, now int64) *bucket {
	id := k.hash() | 1
	set := &b[id>>1%bucketSets]
	for {
		least := 0
		for i := range set {
			switch set[i].id.Load() {
			case id:
				return &set[i].bucket
			case 0:
				if set[i].id.CompareAndSwap(0, id) || set[i].id.Load() == id {
					return &set[i].bucket
				}
			}
			if set[i].until.Load() < set[least].until.Load() {
				least = i
			}
		}
		if was := set[least].id.Load(); set[least].id.CompareAndSwap(was, id) {
			set[least].until.Store(now)
			return &set[least].bucket
		}
	}
}
