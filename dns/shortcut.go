// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
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
	stats   map[netip.AddrPort]*socketStats

	collecting sync.Mutex
	pods       map[netip.Addr]shortcut.Asked
}

// class is what the metrics tell answers in the kernel apart by.
type class struct {
	local netip.AddrPort
	qtype int // of [countedTypes]
	rcode byte
	do    bool
	sizes [2]int // classes of size, of the question and the answer
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

// teach tells the kernel an answer that was just written for a pod of this node, if every pod would be answered so, for as long as the Service that it is about
// stays as it is.
func (s *Server) teach(w *writer, p *plan) {
	q, t := &w.asked, &s.taught
	if w.source != client.FromCluster || w.zoneOf != zoneCluster || w.disputed || len(w.Log) > 0 || !w.shared() || s.clients.Limits() || s.clients.Samples() {
		return
	}
	if !t.once.again(q.name[:q.size]) {
		return
	}
	f := shortcut.Form{Serial: w.serial, Shuffled: w.shuffled}
	// A pod whose resolver has completed the name is answered otherwise, or one question in so many is counted.
	if mode := w.completion(w.clients); w.rcode == mdns.RcodeNameError && mode != client.Off && w.state.announced.clients.Completed(q.name[:q.size], q.count) {
		if mode == client.On {
			return
		}
		f.Sample = client.Sample
	}
	if !w.told.Set(w.buf, q.size, f) {
		return
	}
	kind, ok := t.class(s, w)
	if !ok {
		return
	}
	basis := t.Basis(w.slot)
	if s.gate.state.Load() == w.state && s.plan.Load() == p {
		t.Put(&w.ask, &w.told, kind, basis)
	}
}

// class is how an answer is counted; false if there are too many ways already.
func (t *taught) class(s *Server, w *writer) (uint16, bool) {
	c := class{local: w.local, qtype: countedType(w.asked.qtype), rcode: w.rcode, do: w.asked.do, sizes: [2]int{meter.Class(len(w.request)), meter.Class(len(w.buf))}}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.classes[c]; n != nil {
		return n.index, true
	}
	index, ok := t.NewKind()
	if !ok {
		return 0, false
	}
	n := &tally{index: index, question: len(w.request), answer: len(w.buf), stats: t.stats[w.local]}
	if n.stats == nil {
		n.stats = s.newStats("udp", w.local)
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
		n.stats.countType(zoneCluster, c.qtype, int(c.rcode), answers)
		n.stats.observe(zoneCluster, 0, answers)
		n.stats.meter.Add(zoneCluster, answers, meter.Sizes{Of: n.question, Sum: now.Asked - last.Asked}, meter.Sizes{Of: n.answer, Sum: now.Said - last.Said}, c.do)
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
	for name := range model.Diff(a.Services, b.Services) {
		t.Changed(shortcut.Slot(name))
	}
}

// InKernel reports whether the kernel answers a plain question of a pod at an address of the DNS by itself. The name is fully qualified.
func (s *Server) InKernel(pod netip.Addr, at netip.AddrPort, name string, qtype uint16) bool {
	if s.taught.Answers == nil || !s.taught.Asks(pod) || at.Port() != model.DNSPort {
		return false
	}
	msg, err := new(mdns.Msg).SetQuestion(mdns.CanonicalName(name), qtype).Pack()
	var q shortcut.Question
	return err == nil && q.Read(at.Addr(), msg, msg[headerSize:len(msg)-4]) && s.taught.Has(&q)
}
