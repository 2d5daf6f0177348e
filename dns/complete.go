// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/model"
)

// tries is where a desk has the names answered that it completes a name with.
type tries struct {
	desk desk
	w    writer
	req  [headerSize + maxName + 4]byte
	resp [slotSize]byte
}

// complete does what [query.complete] does with a name that is denied, where that is usual: all names are the cluster's but the last one, and what is there is known. It reports
// whether the denial is to stay. Otherwise there is the answer, or, if it is not done, the slow path has to find it.
func (w *writer) complete(origin int) (stays bool) {
	q, pod := &w.asked, w.who.Pod
	if w.drawn || w.taught.Answers != nil || q.qtype != mdns.TypeA && q.qtype != mdns.TypeAAAA || q.do || w.request[3]&0x10 != 0 || pod.SearchesOutside() {
		return false
	}
	octets, ok := pod.ShortOf(q.name[:q.size], q.count)
	if !ok {
		return true
	}
	before := q.count - w.domain.labels
	if string(q.label(before-1)) != "svc" {
		return false
	}
	if before >= 3 {
		if _, below := w.state.published.snap.Services.Get(model.Name{Namespace: view(q.label(before - 2)), Name: view(q.label(before - 3))}); below {
			return true
		}
	}
	t := w.tries
	if t == nil {
		t = &tries{desk: desk{socketStats: w.socketStats, dice: dice(w.dice.below(1 << 62))}}
		w.tries = t
	}
	d := &t.desk
	d.who, d.from, d.start, d.tick, d.missed = w.who, w.from, w.start, w.tick, false
	plan := w.plan.Load()
	for i := 0; ; i++ {
		// The question for it, with the short name spelled as it was asked for.
		req := append(append(t.req[:0], w.request[:headerSize]...), w.request[headerSize:headerSize+octets]...)
		binary.BigEndian.PutUint64(req[4:], countsOneQuestion)
		req, last := pod.AppendTries(req, i)
		req = append(req, byte(q.qtype>>8), byte(q.qtype), 0, mdns.ClassINET)
		if !d.asked.parse(req) {
			return false
		}
		b := plan.find(&d.asked, w.local)
		if b == nil || b.rules.Concerns(d.asked.name[:d.asked.size], q.qtype, mdns.ClassINET) {
			return false
		}
		a := &t.w
		*a = writer{desk: d, Server: w.Server, served: b, state: w.state, buf: t.resp[:0], limit: len(t.resp), request: req, tried: true}
		a.question(req)
		a.resolve(req)
		w.missed = d.missed
		switch {
		case !a.done || a.domain == nil && !last:
			return false
		case a.rcode != mdns.RcodeNameError:
			failed := a.rcode != mdns.RcodeSuccess
			w.spared = client.Spared{Suppressed: a.spared.Suppressed, Completed: !failed, Failed: failed, Saved: uint8(i + 1)}
			w.instead(a, origin)
			return false
		case last:
			w.spared = client.Spared{Suppressed: a.spared.Suppressed, Kept: true}
			return true
		}
	}
}

// instead answers with what there is at another name: an alias and its records, or that there are none. The denial of the name that was asked for says how long that
// may be kept.
func (w *writer) instead(a *writer, origin int) {
	w.source = a.source
	w.buf[2] &^= 4 &^ a.buf[2] // authoritative only if that is
	if a.answers == 0 {
		w.absent(a.rcode, origin)
		return
	}
	w.rcode = a.rcode
	name := a.request[headerSize : len(a.request)-4]
	w.record(headerSize, mdns.TypeCNAME, uint32(w.options.NegativeTTL/time.Second), len(name))
	m := moved{name: len(w.buf) - headerSize, records: len(w.buf) + len(name) - a.asked.end, from: a.asked.end}
	w.buf = append(w.buf, name...)
	start := len(w.buf)
	w.buf = append(w.buf, a.buf[a.asked.end:]...)
	if !m.all(w.buf, start, int(a.answers)+int(a.denied)+int(a.extra)) {
		return
	}
	w.answers, w.denied, w.extra = a.answers+1, a.denied, a.extra
	w.fit()
}

// moved is how compressed names of a message change when its records move to another one: those that end in its question's name, and those that end in its records,
// which began at an offset.
type moved struct{ name, records, from int }

// all changes so many records from an offset to the end, and reports whether it knows them all: those of addresses, and what leads to them or denies them.
func (m moved) all(msg []byte, at, records int) bool {
	ok := true
	for range records {
		if at, ok = m.one(msg, at); !ok || at+10 > len(msg) {
			return false
		}
		rtype, end := binary.BigEndian.Uint16(msg[at:]), at+10+int(binary.BigEndian.Uint16(msg[at+8:]))
		if at += 10; end > len(msg) {
			return false
		}
		names, rest := 0, 0
		switch rtype {
		case mdns.TypeA, mdns.TypeAAAA:
			rest = end - at
		case mdns.TypeCNAME, mdns.TypeNS:
			names = 1
		case mdns.TypeSOA:
			names, rest = 2, 20
		default:
			return false
		}
		for range names {
			if at, ok = m.one(msg[:end], at); !ok {
				return false
			}
		}
		if at += rest; at != end {
			return false
		}
	}
	return at == len(msg)
}

// one changes a name, and returns where it ends.
func (m moved) one(msg []byte, at int) (end int, ok bool) {
	for at < len(msg) {
		n := int(msg[at])
		switch {
		case n == 0:
			return at + 1, true
		case n <= maxLabel:
			at += 1 + n
		case n < 0xc0 || at+1 == len(msg):
			return 0, false
		default:
			to := int(binary.BigEndian.Uint16(msg[at:]) & 0x3fff)
			if to < m.from-4 {
				to += m.name
			} else {
				to += m.records
			}
			binary.BigEndian.PutUint16(msg[at:], 0xc000|uint16(to))
			return at + 2, true
		}
	}
	return 0, false
}
