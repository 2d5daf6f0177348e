// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"
	"unsafe"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/dns/shortcut"
	"github.com/fairlead/fairlead/model"
)

// desk is what one goroutine answers queries at. Nothing on it is shared, so that the fast path neither allocates nor locks.
type desk struct {
	*socketStats
	asked plain
	dice  dice
	from  netip.Addr
	who   client.Client
	// drawn says that the query is one of those looked at to count what completion would spare.
	drawn bool
	// missed says that the cache has been asked in vain.
	missed bool
	// start is when the query came, for the metrics, and tick the same as a number; answered are the fast answers whose time is not yet
	// counted.
	start    time.Time
	tick     int64
	answered [zones]uint64
	// tries is where names are tried that a name is completed with; nil until there is one.
	tries *tries
	// ask and told are what the kernel is taught.
	ask  shortcut.Question
	told shortcut.Answer
}

// sent counts the time of the answers that have been made since start.
func (d *desk) sent(now time.Time) {
	for zone, n := range d.answered {
		if n > 0 {
			d.observe(zone, now.Sub(d.start), n)
			d.answered[zone] = 0
		}
	}
}

// desk is a new one, whose queries are counted with a socket's.
func (s *Server) desk(stats *socketStats) *desk {
	d := &desk{socketStats: stats, dice: dice(rand.Uint64())}
	d.begin(s)
	return d
}

// begin notes the time of the queries that are answered next.
func (d *desk) begin(s *Server) {
	d.start = s.now()
	d.tick = ticks(d.start)
}

// origin is where ticks begin.
var origin = time.Now()

// ticks is a time as clients are counted by: nanoseconds that never go back.
func ticks(now time.Time) int64 { return int64(now.Sub(origin)) }

// fast answers a query of the usual form about a usual name from the state as it is, written straight into buf; nil if that cannot be
// done, and the slow path must. It gives the same answers as [View.Answer], which is the specification; the order of addresses is random in both.
//
// Nothing is stored here for it: what a Service's name stands for is a few octets for each address, which are put behind the question about as fast as a
// stored answer could be copied, and which can be no older than the state.
func (s *Server) fast(d *desk, st *state, req, buf []byte) []byte {
	q := &d.asked
	d.drawn = false
	if st.published == nil || !q.parse(req) {
		return nil
	}
	if q.qtype == mdns.TypeNone || q.qtype == mdns.TypeOPT || q.qtype >= mdns.TypeTKEY && q.qtype <= mdns.TypeANY {
		return nil
	}
	p := s.plan.Load()
	b := p.find(q, d.local)
	if b == nil || b.rules.Concerns(q.name[:q.size], q.qtype, mdns.ClassINET) {
		return nil
	}
	w := writer{desk: d, Server: s, served: b, state: st, buf: buf[:0], limit: min(d.limit(q.offer), cap(buf)), request: req}
	w.question(req)
	w.resolve(req)
	if !w.done {
		return nil
	}
	resp := w.finish()
	if resp != nil && s.taught.Answers != nil {
		s.teach(&w, p)
	}
	return resp
}

// resolve answers as [query.resolve] does, where that is usual.
func (w *writer) resolve(req []byte) {
	q := &w.asked
	if w.zone != nil {
		switch before := w.find(); {
		case w.domain != nil && (before == 0 || !w.zone.usual()):
			return // the domain's own records
		case w.domain != nil:
			q.forward(w, before)
			return
		case q.reverse(w):
			return
		}
	}
	w.cached(req)
}

// cached answers with what an upstream has said before.
func (w *writer) cached(req []byte) {
	q := &w.asked
	if w.upstreams == nil {
		return
	}
	if w.clients.Suppresses(w.who, q.qtype) {
		if w.tried {
			w.buf[2] &^= 4
			w.spared.Suppressed, w.done = 1, true
		}
		return
	}
	asked := forward.Question{Name: q.name[:q.size], Type: q.qtype, DO: q.do, CD: req[3]&0x10 != 0, AD: req[3]&0x20 != 0}
	if w.taught.Answers != nil {
		w.asOf = shortcut.Clock()
	}
	resp, fresh, ok := w.upstreams.Append(w.buf, asked)
	if !ok {
		w.missed = true
		return
	}
	w.buf = resp
	w.buf[2] &^= 4 // another one's word
	w.rcode = w.buf[3] & 15
	w.answers, w.denied, w.extra = binary.BigEndian.Uint16(resp[6:]), binary.BigEndian.Uint16(resp[8:]), binary.BigEndian.Uint16(resp[10:])
	w.source, w.fresh = client.FromCache, fresh
	if w.tried && w.clients.CountsSuppressed(w.who, q.qtype) {
		w.spared.Suppressed = 1
	}
	w.fit()
}

// find finds the domain that the name is below, and says how many labels are before it.
func (w *writer) find() (before int) {
	for _, d := range w.zone.deepest {
		if before, ok := w.asked.below(d.wire, d.labels); ok {
			w.domain = d
			return before
		}
	}
	return 0
}

// writer writes an answer.
type writer struct {
	*desk
	*Server
	*served
	state   *state
	buf     []byte
	limit   int
	request []byte

	domain                 *domain
	done                   bool // there is an answer
	zoneOf                 int  // of the metrics
	source                 client.Source
	rcode                  byte
	answers, denied, extra uint16
	spared                 client.Spared
	tried                  bool // it is one of the names that another is completed with

	// What the kernel is to know of it.
	slot     uint32 // what it depends on
	disputed bool   // it may change although nothing that it is about has changed
	serial   int    // where the number of the state is; 0: nowhere
	shuffled int    // how many of the first records may come in any order
	asOf     uint64 // by the kernel's clock: before the cache was asked
	fresh    forward.Fresh
}

// question begins the answer: the header, and the question as it was spelled.
func (w *writer) question(req []byte) {
	w.buf = append(w.buf, req[:w.asked.end]...)
	flags := byte(0)
	if w.upstreams != nil {
		flags = 0x80 // RA
	}
	w.buf[2] = 0x84 | req[2]&1 // a response, authoritative, with RD of the query
	w.buf[3] = flags | req[3]&0x10
}

// finish ends the answer.
func (w *writer) finish() []byte {
	if w.asked.edns {
		if len(w.buf)+optSize > w.limit {
			return nil
		}
		do := byte(0)
		if w.asked.do {
			do = 0x80
		}
		w.buf = append(w.buf, 0, 0, byte(mdns.TypeOPT), maxUDP>>8, maxUDP&0xff, 0, 0, do, 0, 0, 0)
		w.extra++
	}
	w.buf[3] |= w.rcode
	binary.BigEndian.PutUint16(w.buf[6:], w.answers)
	binary.BigEndian.PutUint16(w.buf[8:], w.denied)
	binary.BigEndian.PutUint16(w.buf[10:], w.extra)
	w.account()
	return w.buf
}

// account does what [query.account] does.
func (w *writer) account() {
	w.count(w.zoneOf, w.asked.qtype, int(w.rcode))
	w.answered[w.zoneOf]++
	w.socketStats.meter.Observe(w.zoneOf, len(w.request), len(w.buf), w.asked.do)
	w.clients.Count(w.who, w.from, int(w.rcode), false)
	if w.spared != (client.Spared{}) {
		w.spared.Count(w.clients, 1)
	}
	if w.clients.Logs(int(w.rcode)) || w.logs(w.asked.text, int(w.rcode), int(w.answers)) {
		w.clients.Log(w.tick, client.Entry{Client: w.who, Addr: w.from, Name: w.asked.text(), Type: w.asked.qtype, Rcode: int(w.rcode), Took: w.Server.now().Sub(w.start), From: w.source})
	}
}

// forward answers for a name with so many labels before the cluster's domain. Which names there are is said by [zone.parseForward].
func (q *plain) forward(w *writer, before int) {
	z := w.zone
	w.zoneOf, w.source = zoneCluster, client.FromCluster
	origin := headerSize + int(q.labels[before])
	switch string(q.label(before - 1)) {
	case "svc":
	case "pod":
		if z.Pods != PodsDisabled {
			return
		}
		w.deny(mdns.RcodeNameError, origin)
		return
	case "dns":
		if before <= 2 {
			return
		}
		w.deny(mdns.RcodeNameError, origin)
		return
	case "dns-version":
		if before == 1 {
			return
		}
		w.deny(mdns.RcodeNameError, origin)
		return
	default:
		w.deny(mdns.RcodeNameError, origin)
		return
	}
	switch before {
	case 1, 2:
		return
	case 3:
		q.service(w, origin, before, kindService)
	case 4:
		if _, ok := parseProtocol(view(q.label(0))); ok {
			return
		}
		q.service(w, origin, before, kindEndpoint)
	case 5:
		if _, ok := parseProtocol(view(q.label(1))); ok && q.label(0)[0] == '_' {
			q.service(w, origin, before, kindPort)
			return
		}
		w.deny(mdns.RcodeNameError, origin)
	default:
		w.deny(mdns.RcodeNameError, origin)
	}
}

// view is a label as a string, for looking it up; it must not be kept.
func view(label []byte) string { return unsafe.String(unsafe.SliceData(label), len(label)) }

// service answers for the names of a Service and below it, if what is published is a promise: see [state.gated].
func (q *plain) service(w *writer, origin, before int, k kind) {
	name := model.Name{Namespace: view(q.label(before - 2)), Name: view(q.label(before - 3))}
	st := w.state
	if w.taught.Answers != nil {
		w.slot = shortcut.Slot(name)
	}
	svc, ok := st.published.snap.Services.Get(name)
	if st.announced != st.published {
		if announced, known := st.announced.snap.Services.Get(name); announced != svc || known != ok {
			return
		}
	}
	switch {
	case !ok:
		w.deny(mdns.RcodeNameError, origin)
		return
	case svc.Type == model.ExternalName || svc.Slices == 0 && !svc.Arrived.IsZero():
		return
	}
	if len(st.published.refused) > 0 {
		if _, refused := st.published.refused[svc.Name]; refused {
			return
		}
	}
	switch {
	case svc.Type == model.ClusterIP:
		w.clusterIP(svc, origin, before, k)
	case k == kindService && q.qtype != mdns.TypeSRV:
		w.endpoints(svc, origin)
	case k == kindEndpoint:
		w.endpoint(svc, origin)
	}
}

func (w *writer) clusterIP(svc *model.Service, origin, before int, k kind) {
	q := &w.asked
	w.disputed = svc.Unproxied
	switch k {
	case kindEndpoint:
		w.endpoint(svc, origin)
		return
	case kindService:
		if q.qtype == mdns.TypeSRV {
			return
		}
		w.addresses(svc)
		w.end(true, origin)
		return
	}
	proto, _ := parseProtocol(view(q.label(1)))
	port := view(q.label(0)[1:])
	for i := range svc.Ports {
		p := &svc.Ports[i]
		if port == "" || p.Name != port || p.Protocol != proto {
			continue
		}
		if q.qtype != mdns.TypeSRV {
			w.deny(mdns.RcodeSuccess, origin)
			return
		}
		w.srv(svc, p.Port, before)
		return
	}
	w.deny(mdns.RcodeNameError, origin)
}

// addresses adds the virtual addresses of the family asked for.
func (w *writer) addresses(svc *model.Service) {
	for _, a := range svc.ClusterIPs {
		if addrType(a) == w.asked.qtype && w.state.published.owns(a, svc) {
			w.address(headerSize, a)
			w.answers++
		}
	}
}

// srv answers with the port, and says the addresses of the Service along with it.
func (w *writer) srv(svc *model.Service, port uint16, before int) {
	q := &w.asked
	at := int(q.labels[before-3])
	target := q.name[at:q.size] // the Service's own name
	w.record(headerSize, mdns.TypeSRV, w.zone.ttl, 6+len(target))
	w.buf = binary.BigEndian.AppendUint16(w.buf, srvPriority)
	w.buf = binary.BigEndian.AppendUint16(w.buf, srvWeight)
	w.buf = binary.BigEndian.AppendUint16(w.buf, port)
	owner := len(w.buf)
	w.buf = append(w.buf, target...)
	w.answers++
	for _, a := range svc.ClusterIPs {
		if w.state.published.owns(a, svc) {
			w.address(owner, a)
			w.extra++
		}
	}
	w.fit()
}

// endpoints answers for the name of a headless Service with its ready endpoints, beginning at a random one.
func (w *writer) endpoints(svc *model.Service, origin int) {
	ready, n := false, len(svc.Endpoints)
	first := 0
	if w.Loadbalance && n > 0 {
		first = w.dice.below(n)
	}
	for i := range n {
		e := &svc.Endpoints[(first+i)%n]
		if !e.Ready {
			continue
		}
		ready = true
		if addrType(e.Addr) == w.asked.qtype {
			if len(w.buf) > w.limit {
				return
			}
			w.address(headerSize, e.Addr)
			w.answers++
		}
	}
	if w.Loadbalance {
		w.shuffled = int(w.answers)
	}
	w.end(ready, origin)
}

// endpoint answers for an endpoint's own name below its Service.
func (w *writer) endpoint(svc *model.Service, origin int) {
	name, exists := view(w.asked.label(0)), false
	addr, _ := undash(name)
	for i := range svc.Endpoints {
		e := &svc.Endpoints[i]
		if e.Ready && (e.Hostname == "" && e.Addr == addr || e.Hostname != "" && len(e.Hostname) == len(name) && strings.EqualFold(e.Hostname, name)) {
			exists = true
			if addrType(e.Addr) == w.asked.qtype {
				w.address(headerSize, e.Addr)
				w.answers++
			}
		}
	}
	w.end(exists, origin)
}

// reverse answers for the name of an address, as [zone.parseReverse] reads it. It reports whether the name may be one of the cluster's.
func (q *plain) reverse(w *writer) bool {
	if q.count < 2 || string(q.label(q.count-1)) != "arpa" {
		return false
	}
	addr, ok := q.address()
	if !ok {
		return true // perhaps it is above addresses
	}
	for _, p := range w.zone.reverse {
		if !p.Contains(addr) {
			continue
		}
		width := width(addr)
		apex, all := apex(p).Bits()/width, addr.BitLen()/width
		if apex == all || w.state.announced != w.state.published || !w.zone.usual() {
			return true
		}
		origin := headerSize + int(q.labels[all-apex])
		w.domain, w.zoneOf = w.zone.main, zoneReverse4
		if addr.Is6() {
			w.zoneOf = zoneReverse6
		}
		w.source = client.FromCluster
		w.pointer(addr, origin)
		return true
	}
	return false
}

var (
	arpa4 = wireName(suffix4[1:])
	arpa6 = wireName(suffix6[1:])
)

// address is what a reverse name of full length stands for.
func (q *plain) address() (a netip.Addr, ok bool) {
	switch {
	case q.count == 6 && bytes.HasSuffix(q.name[:q.size], arpa4) && q.size-len(arpa4) == int(q.labels[4]):
		var octets [4]byte
		for i := range octets {
			v, ok := parseDigits(view(q.label(3-i)), 8)
			if !ok {
				return a, false
			}
			octets[i] = byte(v)
		}
		return netip.AddrFrom4(octets), true
	case q.count == 34 && bytes.HasSuffix(q.name[:q.size], arpa6) && q.size-len(arpa6) == int(q.labels[32]):
		var octets [16]byte
		for i := range 32 {
			v, ok := parseDigits(view(q.label(31-i)), 4)
			if !ok {
				return a, false
			}
			octets[i/2] |= byte(v << (4 * (1 - i%2)))
		}
		return netip.AddrFrom16(octets), true
	}
	return a, false
}

// pointer answers with the Service of an address, or with its names as an endpoint.
func (w *writer) pointer(addr netip.Addr, origin int) {
	snap := w.state.published.snap
	exists := false
	if name, ok := snap.ServiceAt(addr); ok {
		exists = w.ptr(name, nil)
	} else {
		for name := range snap.HeadlessOf(addr) {
			if e := w.state.published.host(name, addr); e != nil && e.Ready && w.ptr(name, e) {
				exists = true
			}
		}
	}
	w.end(exists, origin)
}

// ptr adds the name of a Service, or of an endpoint of it, and reports whether there is such a name.
func (w *writer) ptr(name model.Name, e *model.Endpoint) bool {
	var label [maxLabel]byte
	text := label[:0]
	size := 1 + len(name.Name) + 1 + len(name.Namespace) + len("\x03svc") + len(w.domain.wire)
	if e != nil {
		text = appendLabel(text, e)
		size += 1 + len(text)
	}
	switch {
	case size > maxName:
		return false
	case w.asked.qtype != mdns.TypePTR || len(w.buf) > w.limit:
		return true // of the wrong type, or too long already
	}
	w.record(headerSize, mdns.TypePTR, w.zone.ttl, size)
	if e != nil {
		w.buf = append(append(w.buf, byte(len(text))), text...)
	}
	w.buf = append(append(w.buf, byte(len(name.Name))), name.Name...)
	w.buf = append(append(w.buf, byte(len(name.Namespace))), name.Namespace...)
	w.buf = append(append(w.buf, "\x03svc"...), w.domain.wire...)
	w.answers++
	return true
}

// appendLabel appends what [zone.label] says, with the usual names.
func appendLabel(to []byte, e *model.Endpoint) []byte {
	if e.Hostname != "" {
		for _, c := range []byte(e.Hostname) {
			to = append(to, lower[c])
		}
		return to
	}
	return appendDash(to, e.Addr)
}

// record begins a record of class IN whose owner is at an offset of the message. Its data, of that size, is to follow.
func (w *writer) record(owner int, rtype uint16, ttl uint32, size int) {
	w.buf = append(w.buf, 0xc0|byte(owner>>8), byte(owner), byte(rtype>>8), byte(rtype), 0, mdns.ClassINET,
		byte(ttl>>24), byte(ttl>>16), byte(ttl>>8), byte(ttl), byte(size>>8), byte(size))
}

// address adds an address record.
func (w *writer) address(owner int, a netip.Addr) {
	if a.Is4() {
		w.record(owner, mdns.TypeA, w.zone.ttl, 4)
		octets := a.As4()
		w.buf = append(w.buf, octets[:]...)
		return
	}
	w.record(owner, mdns.TypeAAAA, w.zone.ttl, 16)
	octets := a.As16()
	w.buf = append(w.buf, octets[:]...)
}

// end ends an answer: without a record it is the denial of the type, or of the name if that does not exist.
func (w *writer) end(exists bool, origin int) {
	switch {
	case !exists:
		w.deny(mdns.RcodeNameError, origin)
	case w.answers == 0:
		w.deny(mdns.RcodeSuccess, origin)
	default:
		w.fit()
	}
}

// deny says that the name, or anything of the type, is not there (RFC 2308), by the SOA record of the zone at an offset of the message.
func (w *writer) deny(rcode byte, origin int) {
	if rcode == mdns.RcodeNameError && (len(w.Cluster.Fallthrough) > 0 || w.completes() && !w.complete(origin)) {
		return
	}
	w.absent(rcode, origin)
}

// absent is deny for what is not completed.
func (w *writer) absent(rcode byte, origin int) {
	w.rcode = rcode
	z, d := w.zone, w.domain
	size := len(d.serverWire) + len("\x0ahostmaster") + 2 + 20
	w.record(origin, mdns.TypeSOA, min(z.ttl, z.minimum), size)
	at := len(w.buf) + len(d.serverWire) - len(d.wire)
	w.buf = append(append(w.buf, d.serverWire...), "\x0ahostmaster"...)
	w.buf = append(w.buf, 0xc0|byte(at>>8), byte(at))
	w.serial = len(w.buf)
	for _, v := range [...]uint32{uint32(w.state.published.snap.Generation), soaRefresh, soaRetry, soaExpire, z.minimum} {
		w.buf = binary.BigEndian.AppendUint32(w.buf, v)
	}
	w.denied++
	w.fit()
}

// completes reports whether the asking pod's resolver may have completed the name, which is to be done better, or counted.
func (w *writer) completes() bool {
	if w.tried {
		return false
	}
	mode := w.completion(w.clients)
	if w.who.Pod == nil || mode == client.Off || !w.who.Pod.Completed(w.asked.name[:w.asked.size], w.asked.count) {
		return false
	}
	w.drawn = mode == client.CountOnly && (w.dice.below(client.Sample) == 0 || w.sampled())
	return mode == client.On || w.drawn
}

// fit says that the answer is complete, if it is not longer than it may be.
func (w *writer) fit() { w.done = len(w.buf) <= w.limit }
