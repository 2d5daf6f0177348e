// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/dns/meter"
	"github.com/fairlead/fairlead/dns/shortcut"
	"github.com/fairlead/fairlead/model"
)

// taught is what this server has told the kernel, and what it has taken in of what the kernel has counted since.
type taught struct {
	*shortcut.Answers // nil: the kernel answers nothing
	once              *once

	mu      sync.Mutex
	classes map[class]*tally
	put     int // of those, what is not from the cluster's zones alone
	stats   map[netip.AddrPort]*socketStats

	collecting sync.Mutex
	pods       map[netip.Addr]shortcut.Asked
}

// class is what the metrics tell answers in the kernel apart by.
type class struct {
	local   netip.AddrPort
	zone    int
	qtype   int // of [countedTypes]
	rcode   byte
	do      bool
	sizes   [2]int // classes of size, of the question and the answer
	outside outside
	spared  client.Spared
}

// mostPut is how many ways of counting there are for what is not from the cluster's zones alone; for the rest there are as many.
const mostPut = 512

// outside is what of an answer came out of a block's cache of upstreams' answers: how many answers and denials. Without one, block is empty.
type outside struct {
	block            string // by its label, as a reload makes other blocks
	answers, denials uint8
}

// resting is what a completed answer rests on beside the state: what was in the cache, for how long, and what was counted. Its methods do nothing on nil.
type resting struct {
	outside
	client.Spared
	until  uint64 // by the kernel's clock; 0: not on time
	others bool   // and on what nobody knows when it changes
}

func (r *resting) unsure() {
	if r != nil {
		r.others = true
	}
}

func (r *resting) suppressed() {
	if r != nil {
		r.Suppressed++
	}
}

// now is the time by the kernel's clock.
func (r *resting) now() uint64 {
	if r == nil {
		return 0
	}
	return shortcut.Clock()
}

func (r *resting) hit(b *served, reply *forward.Reply, asOf uint64) {
	if r == nil || reply == nil {
		return
	}
	if r.block != "" && r.block != b.name {
		r.others = true
	}
	fresh := reply.Fresh()
	r.block = b.name
	r.count(fresh.Denial)
	if until := asOf + uint64(fresh.Left); r.until == 0 || until < r.until {
		r.until = until
	}
}

func (r *resting) done(c client.Completion[*found], ok bool) {
	if r != nil {
		suppressed := r.Suppressed
		r.Spared = client.SparedBy(c, ok)
		r.Suppressed = suppressed
	}
}

func (o *outside) count(denial bool) {
	if denial {
		o.denials++
	} else {
		o.answers++
	}
}

// tally is how many of a class are counted.
type tally struct {
	index            uint16
	stats            *socketStats
	question, answer int // octets of one question and one answer, for their classes
	counted          shortcut.Count
}

// once remembers names that were asked lately, more or less: the kernel is taught what is asked again, or names that nobody asks for twice would take the room of others.
type once [1 << 15]atomic.Uint32

var onceSeed = maphash.MakeSeed()

// again reports whether a name was asked for before, and remembers it.
func (o *once) again(name []byte) bool {
	h := maphash.Bytes(onceSeed, name)
	place, tag := &o[h%uint64(len(o))], uint32(h>>32)
	if place.Load() == tag {
		return true
	}
	place.Store(tag)
	return false
}

// Unshared is why the kernel does not answer everything that it could; empty if it does.
func (s *Server) Unshared() string {
	switch {
	case s.clients.Limits():
		return "each pod's questions are limited, and so all counted by the DNS (--dns-client-rate)"
	case s.clients.Samples():
		return "questions are logged (--dns-log)"
	}
	var logged []string
	for _, b := range s.plan.Load().blocks {
		if len(b.Log) > 0 {
			logged = append(logged, b.Zones...)
		}
	}
	if len(logged) > 0 {
		return fmt.Sprintf("questions for names below %s are logged (the Corefile's log)", strings.Join(logged, " "))
	}
	return ""
}

// shared reports whether the question is one that the kernel would answer if it knew the answer. Only addresses of the cluster's DNS are this server's whatever
// Services say.
func (w *writer) shared() bool {
	t := &w.taught
	return t.Answers != nil && w.proto == "udp" && w.local.Port() == model.DNSPort && slices.Contains(w.options.Self, w.local) && t.Asks(w.from) &&
		w.ask.Read(w.local.Addr(), w.request, w.asked.name[:w.asked.size])
}

// sampled reports whether the kernel has left the question to the server although it has the answer.
func (w *writer) sampled() bool { return w.shared() && w.taught.Has(&w.ask) }

// teach tells the kernel an answer that was just written for a pod of this node: of the cluster's zones, for as long as the Service that it is about stays as it is; from the cache,
// until its TTLs change. It is for all pods, or for those that are answered alike.
func (s *Server) teach(w *writer, p *plan) {
	q := &w.asked
	f, c := shortcut.Form{Serial: w.serial, Shuffled: w.shuffled}, class{zone: w.zoneOf}
	switch {
	case w.disputed:
		return
	case w.source == client.FromCluster && w.zoneOf == zoneCluster:
	case w.source == client.FromCache && !s.clients.Suppressing(q.qtype):
		if w.fresh.Left == 0 {
			return
		}
		w.slot, f.Until = shortcut.All, w.asOf+uint64(w.fresh.Left)
		if w.Loadbalance {
			f.Shuffled = w.fresh.First
		}
		c.outside.block = w.name
		c.outside.count(w.fresh.Denial)
	default:
		return
	}
	if !w.teachable() {
		return
	}
	// A pod whose resolver has completed the name is answered otherwise, or one question in so many is counted.
	if mode := w.completion(w.clients); w.rcode == mdns.RcodeNameError && mode != client.Off && w.state.announced.clients.Completed(q.name[:q.size], q.count) {
		if mode == client.On {
			if w.who.Pod.Alike() == 0 {
				return
			}
			w.ask.Of(w.who.Pod.Alike())
		} else {
			f.Sample = client.Sample
		}
	}
	w.tell(p, f, c)
}

// teachable reports whether the kernel may be taught what was written: it would answer such a question, and the server needs not see each.
func (w *writer) teachable() bool {
	return len(w.Log) == 0 && w.shared() && !w.clients.Limits() && !w.clients.Samples() && w.taught.once.again(w.asked.name[:w.asked.size])
}

// tell tells the kernel what was written, unless the state is another one by now.
func (w *writer) tell(p *plan, f shortcut.Form, c class) {
	t := &w.taught
	if !w.told.Set(w.buf, w.asked.size, f) {
		return
	}
	kind, ok := t.class(w, c)
	if !ok {
		return
	}
	basis := t.Basis(w.slot)
	if w.gate.state.Load() == w.state && w.plan.Load() == p {
		t.Put(&w.ask, &w.told, kind, basis)
	}
}

// teachCompleted tells the kernel an answer that was completed for a pod, for all pods that are answered alike: until something about any Service changes, or the TTLs
// that it has from the cache.
func (s *Server) teachCompleted(d *desk, q *query, st *state, p *plan, req, resp []byte) {
	r := q.completed
	if r.others || resp[3]&15 == mdns.RcodeServerFailure || !d.asked.parse(req) || q.who.Pod.Alike() == 0 {
		return
	}
	// The alias leads to the name as it was spelled, which here may be in upper case, and for others not.
	if name := d.asked.name[:d.asked.size]; !bytes.Equal(name, req[headerSize:headerSize+len(name)]) {
		return
	}
	if r.until == 0 && binary.BigEndian.Uint16(resp[6:]) > 2 {
		return // the alias comes first, and the kernel would give several addresses in one order for ever
	}
	w := writer{desk: d, Server: s, served: q.block, state: st, buf: resp, request: req, slot: shortcut.Any, rcode: resp[3] & 15}
	if !w.teachable() {
		return
	}
	if r.until != 0 && r.until <= shortcut.Clock() {
		return
	}
	w.ask.Of(q.who.Pod.Alike())
	w.tell(p, shortcut.Form{Until: r.until}, class{zone: q.zone, outside: r.outside, spared: r.Spared})
}

// countCached counts in a block's cache what was given in its place.
func (p *plan) countCached(o outside, n uint64) {
	for _, b := range p.blocks {
		if b.name == o.block && b.upstreams != nil {
			b.upstreams.Count(n*uint64(o.answers), n*uint64(o.denials))
			return
		}
	}
}

// class is how an answer is counted; false if there are too many ways already. Of c it is said what is not to be seen from the answer.
func (t *taught) class(w *writer, c class) (uint16, bool) {
	c.local, c.qtype, c.rcode, c.do, c.sizes = w.local, countedType(w.asked.qtype), w.rcode, w.asked.do, [2]int{meter.Class(len(w.request)), meter.Class(len(w.buf))}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.classes[c]; n != nil {
		return n.index, true
	}
	// There are more ways for what is put together from others' answers, and a pod can ask for many: they have to leave room.
	if c.outside != (outside{}) || c.spared != (client.Spared{}) {
		if t.put == mostPut {
			return 0, false
		}
		t.put++
	}
	index, ok := t.NewKind()
	if !ok {
		return 0, false
	}
	n := &tally{index: index, question: len(w.request), answer: len(w.buf), stats: t.stats[w.local]}
	if n.stats == nil {
		n.stats = w.newStats("udp", w.local)
		t.stats[w.local] = n.stats
	}
	t.classes[c] = n
	return index, true
}

// collect counts what the kernel has answered since the last time, each in no time: it takes less than the buckets tell apart.
func (s *Server) collect() {
	t := &s.taught
	if t.Answers == nil {
		return
	}
	t.collecting.Lock()
	defer t.collecting.Unlock()
	t.mu.Lock()
	classes := maps.Clone(t.classes)
	t.mu.Unlock()
	for c, n := range classes {
		now, last := t.Count(n.index), n.counted
		if now.Load != last.Load {
			last = shortcut.Count{}
		}
		n.counted = now
		answers := now.Answers - last.Answers
		if answers == 0 {
			continue
		}
		n.stats.countType(c.zone, c.qtype, int(c.rcode), answers)
		n.stats.observe(c.zone, 0, answers)
		c.spared.Count(s.clients, answers)
		if c.outside.block != "" {
			s.plan.Load().countCached(c.outside, answers)
		}
		n.stats.meter.Add(c.zone, answers, meter.Sizes{Of: n.question, Sum: now.Asked - last.Asked}, meter.Sizes{Of: n.answer, Sum: now.Said - last.Said}, c.do)
	}
	table, was := s.gate.state.Load().announced.clients, t.pods
	t.pods = make(map[netip.Addr]shortcut.Asked, len(was))
	for addr, now := range t.Pods {
		last := was[addr]
		if now.Load != last.Load || now.Dev != last.Dev {
			last = shortcut.Asked{} // another pod's
		}
		t.pods[addr] = now
		s.clients.Add(table.Lookup(addr), addr, now.Answers-last.Answers, now.Denials-last.Denials)
	}
}

// unteach ends the answers in the kernel that a change of the state may have made wrong.
func (s *Server) unteach(old, now *state) {
	t := &s.taught
	if old.announced.clients != now.announced.clients {
		// Before the others end: what pods are told from then on is for what they are now.
		if err := t.SetAlike(now.announced.clients.Alike()); err != nil {
			s.log.Warn("completed names are not answered in the kernel for all pods", "err", err)
		}
	}
	all := old.published == nil || old.announced.clients != now.announced.clients
	for _, v := range []*View{old.announced, old.published, now.announced, now.published} {
		// One Service may have got what another had, or lost it.
		all = all || v != nil && (v.claims != v.snap.VIPs.Len() || len(v.refused) > 0)
	}
	if all {
		t.Changed(shortcut.All)
	} else {
		t.changed(old.announced.snap, now.announced.snap)
		t.changed(old.published.snap, now.published.snap)
	}
	if now.published != nil {
		t.SetSerial(uint32(now.published.snap.Generation))
	}
}

// changed ends the answers about Services that are not the same in two snapshots.
func (t *taught) changed(a, b *model.Snapshot) {
	if a == b {
		return
	}
	some := false
	for name := range model.Diff(a.Services, b.Services) {
		t.Changed(shortcut.Slot(name))
		some = true
	}
	if some {
		t.Changed(shortcut.Any)
	}
}

// InKernel reports whether the kernel answers a plain question of a pod at an address of the DNS by itself. The name is fully qualified.
func (s *Server) InKernel(pod netip.Addr, at netip.AddrPort, name string, qtype uint16) bool {
	if s.taught.Answers == nil || !s.taught.Asks(pod) || at.Port() != model.DNSPort {
		return false
	}
	msg, err := new(mdns.Msg).SetQuestion(mdns.CanonicalName(name), qtype).Pack()
	var q shortcut.Question
	if err != nil || !q.Read(at.Addr(), msg, msg[headerSize:len(msg)-4]) {
		return false
	}
	if s.taught.Has(&q) {
		return true
	}
	q.Of(s.taught.Alike(pod))
	return s.taught.Has(&q)
}
