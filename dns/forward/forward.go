// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// patience bounds a question over all upstreams and aliases: stub resolvers give up after 5 s.
	patience = 4500 * time.Millisecond
	// stalePatience is how long a client waits for a new answer when there is an old one (RFC 8767, section 5).
	stalePatience = 1800 * time.Millisecond
	// maxHops is how many times the name that an alias leads to is asked for separately.
	maxHops = 8
	// rounds is how many times all upstreams are asked if datagrams may have been lost.
	rounds = 3
)

// ErrClosed is why a closed [Forwarder] does not answer.
var ErrClosed = errors.New("the forwarder is closed")

// Forwarder asks upstreams and remembers their answers. All of its methods may be called concurrently, save Adopt.
type Forwarder struct {
	o       Options // with their defaults
	base    time.Time
	pools   map[string]*pool // by the zone in wire form
	all     []*pool
	cache   *cache
	metrics *Metrics

	// recoveries counts how often an upstream came back: failures from before may be none any more.
	recoveries atomic.Int64
	ctx        context.Context
	cancel     context.CancelFunc

	mu      sync.Mutex
	closed  bool
	work    sync.WaitGroup
	flights map[string]*flight
	idle    chan struct{} // closed when the last flight has ended, if somebody waits for that
	watched map[string]*upstream
}

// pool is upstreams, and what is asked of them.
type pool struct {
	Pool
	f          *Forwarder
	name       []byte // the zone in wire form
	healthName []byte
	except     map[string]bool
	upstreams  []*upstream
	turn       atomic.Uint32
	places     chan struct{}
}

// flight is a question on its way, whoever asked it. All who ask the same meanwhile get its answer.
type flight struct {
	done chan struct{}
	e    *entry
	why  *failure
	now  int64
}

// New makes a forwarder. It refuses what cannot work, such as an upstream that is this server itself. Nothing is sent before the first question.
func New(o Options) (*Forwarder, error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	f := &Forwarder{o: o, base: o.Now(), pools: make(map[string]*pool), flights: make(map[string]*flight), watched: make(map[string]*upstream)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	for _, po := range o.Pools {
		p := &pool{Pool: po, f: f, name: wire(po.Zone), healthName: wire(po.HealthDomain), except: make(map[string]bool),
			places: make(chan struct{}, po.MaxConcurrent)}
		for _, name := range po.Except {
			p.except[string(wire(name))] = true
		}
		for _, uo := range po.Upstreams {
			p.upstreams = append(p.upstreams, newUpstream(f, p, uo))
		}
		f.pools[string(p.name)] = p
		f.all = append(f.all, p)
	}
	f.cache = newCache(o.Caching.Size)
	f.metrics = o.Metrics
	if f.metrics == nil {
		f.metrics = NewMetrics()
	}
	f.metrics.drops.WithLabelValues("", o.Zones, "").Add(0) // it is there before it counts
	return f, nil
}

// Adopt takes over from a forwarder of before a reload: its counters, what it learnt of upstreams that are still there, and what it
// remembers of names that are still for the same upstreams to answer. Call it before anything else; the old one may be in use meanwhile.
func (f *Forwarder) Adopt(old *Forwarder) {
	f.base = old.base
	f.recoveries.Store(old.recoveries.Load() + 1) // what failed may not fail here
	for _, p := range f.all {
		before := old.pools[string(p.name)]
		if before == nil {
			continue
		}
		for _, u := range p.upstreams {
			for _, was := range before.upstreams {
				if was.Upstream == u.Upstream {
					u.adopt(was)
				}
			}
		}
	}
	same := len(f.all) == len(old.all)
	for _, p := range f.all {
		same = same && p.same(old.pools[string(p.name)])
	}
	if same && f.cache.size == old.cache.size {
		f.cache = old.cache
	} else {
		old.cache.copyTo(f.cache, func(e *entry) bool {
			name := []byte(e.blob[:e.key-3])
			p := f.poolOf(name)
			return e.why == nil && (same || !e.crossed && p != nil && p.same(old.poolOf(name)))
		})
	}
}

// same reports whether two pools ask the same upstreams the same way.
func (p *pool) same(o *pool) bool {
	return p != nil && o != nil && slices.Equal(p.Upstreams, o.Upstreams) && p.Roots.Equal(o.Roots) && slices.Equal(p.Except, o.Except)
}

// Close ends the forwarder. Questions that are on their way may end until the context does; what would have to be
// asked afterwards fails with [ErrClosed].
func (f *Forwarder) Close(ctx context.Context) {
	f.mu.Lock()
	f.closed = true
	idle := make(chan struct{})
	if f.idle = idle; len(f.flights) == 0 {
		close(idle)
		f.idle = nil
	}
	f.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
	f.mu.Lock()
	f.cancel() // under the lock: no work starts after this
	f.mu.Unlock()
	for _, p := range f.all {
		for _, u := range p.upstreams {
			u.close()
		}
	}
	f.work.Wait()
}

// spawn runs background work, unless the forwarder has ended.
func (f *Forwarder) spawn(work func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx.Err() != nil {
		return false
	}
	f.work.Go(work)
	return true
}

// sleep waits, unless the forwarder ends before.
func (f *Forwarder) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-f.ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// now is the time since the base, which clock changes do not move.
func (f *Forwarder) now() int64 { return int64(f.o.Now().Sub(f.base)) }

// wire is a name of the configuration, which was checked.
func wire(name string) []byte {
	b := make([]byte, 256)
	n, err := mdns.PackDomainName(name, b, 0, nil, false)
	if err != nil {
		panic(fmt.Sprintf("pack %q: %v", name, err))
	}
	return b[:n]
}

// poolOf finds the pool with the longest zone that a name in wire form is in; nil if there is none, or it is excepted.
func (f *Forwarder) poolOf(name []byte) *pool {
	p, excepted := f.find(name)
	if excepted {
		return nil
	}
	return p
}

// find finds the pool with the longest zone that a name in wire form is in, and tells whether the name is excepted there.
func (f *Forwarder) find(name []byte) (p *pool, excepted bool) {
	for rest := name; len(rest) > 0 && p == nil; rest = parent(rest) {
		p = f.pools[string(rest)]
	}
	if p == nil || len(p.except) == 0 {
		return p, false
	}
	for rest := name; len(rest) > 0; rest = parent(rest) {
		if p.except[string(rest)] {
			return p, true
		}
	}
	return p, false
}

// parent is a name without its first label; nothing, of the root.
func parent(name []byte) []byte { return name[min(1+int(name[0]), len(name)):] }

// Append answers from the cache. What dst ends with must be the 12 octets of a header and the client's question (the name in its own case, type and
// class). On a hit the header's response code, AD and the counts are set, the records are appended, and ok is true. The
// other flags are the caller's, and there is no OPT. Otherwise dst is as it was and [Forwarder.Ask] has the answer; so it is for remembered
// failures and for answers past their time, which have something to say that belongs into an OPT.
//
// It does not allocate if dst has room.
func (f *Forwarder) Append(dst []byte, q Question) (resp []byte, fresh Fresh, ok bool) {
	now := f.now()
	h := f.get(q, now, true)
	if h.refresh {
		f.refresh(q, h)
	}
	if h.fresh == nil {
		return dst, Fresh{}, false
	}
	return h.fresh.append(dst, q, h.fresh.remaining(now), f.o.Rotate), h.at(now), true
}

// Count counts answers that somebody else has given in the cache's place: so many, and so many denials.
func (f *Forwarder) Count(answers, denials uint64) {
	s := &f.cache.shards[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.requests += answers + denials
	s.counts.hits[0] += answers
	s.counts.hits[1] += denials
}

// Cached is the reply to a client's question if [Forwarder.Append] could give it; otherwise nil. The question's name becomes the reply's.
func (f *Forwarder) Cached(q Question) *Reply {
	now := f.now()
	h := f.get(q, now, true)
	if h.refresh {
		f.refresh(q, h)
	}
	if h.fresh == nil {
		return nil
	}
	return f.fresh(q, &h, now)
}

func (f *Forwarder) fresh(q Question, h *hit, now int64) *Reply {
	return &Reply{e: h.fresh, q: q, ttl: h.fresh.remaining(now), fresh: h.at(now), rotate: f.o.Rotate}
}

// refresh asks anew in the background.
func (f *Forwarder) refresh(q Question, h hit) {
	q.Name = slices.Clone(q.Name)
	f.spawn(func() {
		if fl, err := f.fly(q); err == nil {
			<-fl.done
		}
		e := h.fresh
		if e == nil {
			e = h.stale
		}
		f.cache.refreshed(e)
	})
}

// Ask answers a question from the cache or from upstreams, for which it waits until the context ends. The error is the context's, or
// [ErrClosed]; that a question cannot be answered is a reply too, which says why.
func (f *Forwarder) Ask(ctx context.Context, q Question) (*Reply, error) {
	q.Name = slices.Clone(q.Name) // the reply, and the flight, outlive the caller's
	if f.cameBack(q) {
		return f.failed(q, fail(mdns.RcodeRefused, mdns.ExtendedErrorCodeOther, "this question is this server's own: it is in a loop of forwarders")), nil
	}
	switch q.Type {
	case mdns.TypeNone, mdns.TypeOPT, mdns.TypeTSIG, mdns.TypeTKEY, mdns.TypeIXFR, mdns.TypeAXFR, mdns.TypeMAILA, mdns.TypeMAILB:
		return f.failed(q, fail(mdns.RcodeNotImplemented, mdns.ExtendedErrorCodeNotSupported, "questions of type %s are not forwarded", mdns.Type(q.Type))), nil
	}
	now := f.now()
	h := f.get(q, now, false)
	switch {
	case h.fresh != nil:
		return f.fresh(q, &h, now), nil
	case h.stale != nil && (h.failed != nil || f.o.Caching.StaleAtOnce):
		if h.refresh {
			f.refresh(q, h)
		}
		return f.old(q, h.stale), nil
	case h.failed != nil:
		r := f.failed(q, h.failed)
		r.code, r.text = mdns.ExtendedErrorCodeCachedError, h.failed.text
		return r, nil
	}
	fl, err := f.fly(q)
	if err != nil {
		return nil, err
	}
	var patience <-chan time.Time
	if h.stale != nil {
		t := time.NewTimer(stalePatience)
		defer t.Stop()
		patience = t.C
	}
	select {
	case <-fl.done:
	case <-patience:
		return f.old(q, h.stale), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	switch {
	case fl.why == nil:
		return &Reply{e: fl.e, q: q, ttl: fl.e.remaining(fl.now)}, nil
	case h.stale != nil:
		return f.old(q, h.stale), nil
	}
	return f.failed(q, fl.why), nil
}

func (f *Forwarder) failed(q Question, why *failure) *Reply {
	return &Reply{e: &entry{rcode: uint8(why.rcode)}, q: q, code: why.code, text: why.text, extra: true}
}

// old is a reply that is past its time.
func (f *Forwarder) old(q Question, e *entry) *Reply {
	f.cache.countStale(q.Name)
	r := &Reply{e: e, q: q, ttl: staleTTL, rotate: f.o.Rotate, code: mdns.ExtendedErrorCodeStaleAnswer, extra: true}
	if e.rcode == mdns.RcodeNameError {
		r.code = mdns.ExtendedErrorCodeStaleNXDOMAINAnswer
	}
	return r
}

// fly finds the flight of a question, or starts one. The question's name stays as it is.
func (f *Forwarder) fly(q Question) (*flight, error) {
	var buf [maxKey]byte
	key := appendKey(buf[:0], q, q.Type)
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.flights[string(key)]; fl != nil {
		return fl, nil
	}
	if f.closed {
		return nil, ErrClosed
	}
	fl := &flight{done: make(chan struct{})}
	f.flights[string(key)] = fl
	f.work.Go(func() { f.land(q, fl) })
	return fl, nil
}

// land brings a flight to its end.
func (f *Forwarder) land(q Question, fl *flight) {
	fl.e, fl.why = f.resolve(q)
	fl.now = f.now()
	switch {
	case fl.why == nil:
		fl.e.stored = fl.now
		fl.e.until += fl.now
		fl.e.past = fl.e.until + int64(f.o.Caching.ServeStale)
		if fl.e.until > fl.now {
			f.cache.put(fl.e)
		} else {
			f.cache.forget(q)
		}
	case !fl.why.once && f.ctx.Err() == nil:
		f.putFailure(q, fl.why, fl.now)
	}
	f.mu.Lock()
	delete(f.flights, string(appendKey(nil, q, q.Type)))
	if len(f.flights) == 0 && f.idle != nil {
		close(f.idle)
		f.idle = nil
	}
	f.mu.Unlock()
	close(fl.done)
}

// resolve asks upstreams for a name, and for those that its aliases lead to as far as the upstreams did not say. The entry's end is
// relative to now.
func (f *Forwarder) resolve(q Question) (*entry, *failure) {
	p := f.poolOf(q.Name)
	if p == nil {
		return nil, &failure{rcode: mdns.RcodeRefused, code: mdns.ExtendedErrorCodeNotAuthoritative, text: "names like this are not forwarded", once: true}
	}
	places := p.places // of the pool that was asked first, wherever aliases lead
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	default:
		f.metrics.rejects.Inc()
		return nil, &failure{rcode: mdns.RcodeRefused, code: mdns.ExtendedErrorCodeOther, text: "too many questions are waiting for upstreams", once: true}
	}
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	text, _, err := mdns.UnpackDomainName(q.Name, 0)
	if err != nil {
		return nil, &failure{rcode: mdns.RcodeFormatError, code: mdns.ExtendedErrorCodeOther, text: err.Error(), once: true}
	}
	c := newChain(text, q.Type, q.DO)
	next := q
	for hop := 0; ; hop++ {
		if hop > 0 {
			if next.Name = wireLower(c.end); len(next.Name) == 1 && c.end != "." {
				return nil, fail(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeInvalidData, "%s is an alias of %s, which is no name", text, c.end)
			}
			if h := f.get(next, f.now(), false); h.fresh != nil {
				if err := c.splice(&Reply{e: h.fresh, q: next, ttl: h.fresh.remaining(f.now())}); err != nil {
					return nil, fail(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeOther, "%v", err)
				}
				break
			}
			// Names that nobody is for are told by who leads there: it could as well have said what is at the end at once.
			other, excepted := f.find(next.Name)
			if excepted {
				return nil, fail(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeOther, "%s is an alias of %s, and names like that are not forwarded", text, c.end)
			}
			if other != nil {
				p = other
			}
		}
		if hop == maxHops {
			return nil, fail(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeOther, "%s has aliases without end", text)
		}
		c.ours = func(name string) bool {
			other, excepted := f.find(wireLower(name))
			return (other == p || other == nil) && !excepted
		}
		complete, why := p.ask(ctx, next, c)
		if why != nil {
			return nil, why
		}
		if complete {
			break
		}
	}
	ttl := f.lifetime(&c.found)
	keyType := q.Type
	if c.denial && c.rcode == mdns.RcodeNameError && len(c.answer) == 0 {
		keyType = anyType
	}
	e, err := pack(appendKey(nil, q, keyType), q.Name, q.Type, &c.found)
	if err != nil {
		f.metrics.drops.WithLabelValues("", f.o.Zones, "").Inc()
		return nil, fail(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeInvalidData, "%v", err)
	}
	e.until = int64(ttl)
	return e, nil
}

// wireLower is the wire form, in lower case, of a name that came in a message and was parsed; the root, if it has none.
func wireLower(name string) []byte {
	b := make([]byte, 256)
	n, err := mdns.PackDomainName(name, b, 0, nil, false)
	if err != nil {
		return []byte{0}
	}
	lower(b[:n])
	return b[:n]
}

// lifetime is how long what was found may be given.
func (f *Forwarder) lifetime(w *found) time.Duration {
	c := &f.o.Caching
	ttl := time.Duration(w.ttl) * time.Second
	switch {
	case !w.denial:
		return min(max(ttl, c.MinTTL), c.MaxTTL)
	case !w.keep:
		return 0 // it does not say for how long (RFC 2308, section 5)
	}
	return min(max(ttl, c.MinDenial), c.MaxDenial)
}

// ask has the upstreams of a pool answer a question, one after the other until one can, and takes from its answer what belongs to the chain.
func (p *pool) ask(ctx context.Context, q Question, c *chain) (complete bool, why *failure) {
	var (
		said   *failure // by an upstream that speaks, but cannot help
		denied *mdns.Msg
		others bool // among those asked did not deny it
		errs   []string
	)
	for round := range rounds {
		lost := false
		for _, u := range p.order() {
			m, err := u.try(ctx, q)
			if err == nil {
				if !p.helps(m) {
					said = refusal(u, m)
					if m.Rcode == mdns.RcodeNameError {
						denied = m
					} else {
						others = true
					}
					continue
				}
				if complete, err = c.attempt(m); err == nil {
					return complete, nil
				}
				said, others = fail(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeInvalidData, "upstream %s: %v", u, err), true
				continue
			}
			others = true
			lost = lost || errors.Is(err, errTimeout)
			if s := err.Error(); !slices.Contains(errs, s) {
				errs = append(errs, s)
			}
			if ctx.Err() != nil {
				break
			}
		}
		if said != nil || !lost || ctx.Err() != nil || round == rounds-1 {
			break
		}
	}
	if denied != nil && !others {
		if complete, err := c.attempt(denied); err == nil {
			return complete, nil
		}
	}
	if said != nil {
		return false, said
	}
	if len(errs) == 0 {
		errs = append(errs, "every upstream sends questions back to this server")
	}
	return false, fail(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeNoReachableAuthority, "%s", strings.Join(errs, "; "))
}

// helps reports whether a message is an answer, and not a reason to ask the next upstream.
func (p *pool) helps(m *mdns.Msg) bool {
	return (m.Rcode == mdns.RcodeSuccess || m.Rcode == mdns.RcodeNameError) && !slices.Contains(p.NextOn, m.Rcode)
}

// refusal is what an upstream says instead of an answer, with the reason that it may give (RFC 8914).
func refusal(u *upstream, m *mdns.Msg) *failure {
	rcode := m.Rcode
	if rcode > 0xf || rcode == mdns.RcodeSuccess || rcode == mdns.RcodeNameError {
		rcode = mdns.RcodeServerFailure // one that denies a name does not deny it for those who are to be asked then
	}
	why := fail(rcode, mdns.ExtendedErrorCodeOther, "upstream %s says %s", u, rcodeText(m.Rcode))
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*mdns.EDNS0_EDE); ok {
				why.code = ede.InfoCode
				if ede.ExtraText != "" {
					why.text += ": " + strings.ToValidUTF8(ede.ExtraText[:min(len(ede.ExtraText), 100)], "?")
				}
				break
			}
		}
	}
	return why
}

// order is the upstreams as they are to be asked: as the policy says, but those that are down last, and those that lead back here not at all.
func (p *pool) order() []*upstream {
	n := len(p.upstreams)
	out := make([]*upstream, 0, n)
	first := 0
	switch p.Policy {
	case RoundRobin:
		first = int((p.turn.Add(1) - 1) % uint32(min(n, math.MaxInt32)))
	case Random:
		first = random(n)
	}
	for _, state := range []int32{up, down} {
		from := len(out)
		for i := range n {
			if u := p.upstreams[(first+i)%n]; u.state.Load() == state {
				out = append(out, u)
			}
		}
		if state == up && len(out) == 0 {
			p.f.metrics.broken.Inc()
		}
		if p.Policy == Random {
			for i := len(out) - 1; i > from; i-- {
				j := from + random(i-from+1)
				out[i], out[j] = out[j], out[i]
			}
		}
	}
	return out
}

// watch has a question for a name told as coming back from an upstream, until unwatch, which tells whether one has.
func (f *Forwarder) watch(name []byte, u *upstream) {
	f.mu.Lock()
	f.watched[string(name)] = u
	f.mu.Unlock()
}

func (f *Forwarder) unwatch(name []byte) (back bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	back = f.watched[string(name)] == nil
	delete(f.watched, string(name))
	return back
}

// cameBack reports whether a question is one that this forwarder sent to find loops, and takes the upstream out that sent it back.
func (f *Forwarder) cameBack(q Question) bool {
	if q.Type != mdns.TypeHINFO {
		return false
	}
	f.mu.Lock()
	u, watched := f.watched[string(q.Name)]
	if u != nil {
		f.watched[string(q.Name)] = nil
	}
	f.mu.Unlock()
	if u != nil {
		u.loops()
	}
	return watched
}

// UpstreamStatus is what is known of an upstream.
type UpstreamStatus struct {
	Zone string
	Addr netip.AddrPort
	TLS  bool
	// State is "up", "down" or "loop"; an upstream of the last kind is not asked at all.
	State string
	// Why it is not up, in words; empty if it is.
	Why string
	// Answered and Failed count questions; SuspectedSpoofs, messages in the upstream's name that were not the answer to one. What came from other
	// addresses and ports is not among those: the kernel keeps it away.
	Answered, Failed, SuspectedSpoofs uint64
	// ChangesCase is set for one that does not keep the case of questions, so that this cannot help against forged answers.
	ChangesCase bool
}

// Status tells of all upstreams, in the order of the configuration.
func (f *Forwarder) Status() []UpstreamStatus {
	var out []UpstreamStatus
	for _, p := range f.all {
		for _, u := range p.upstreams {
			u.mu.Lock()
			out = append(out, UpstreamStatus{Zone: p.Zone, Addr: u.Addr, TLS: u.TLS, State: [...]string{"up", "down", "loop"}[u.state.Load()], Why: u.why,
				Answered: u.counts.answered.Load(), Failed: u.counts.failed.Load(), SuspectedSpoofs: u.counts.suspect.Load(), ChangesCase: u.mangles.Load()})
			u.mu.Unlock()
		}
	}
	return out
}
