// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// lanes is how many sockets per upstream share its questions over UDP, laneQuestions and laneTime how long each does before one with
	// another random port takes its place.
	lanes         = 8
	laneQuestions = 256
	laneTime      = 2 * time.Second
	// pipeline is how many questions are on their way on one connection before another one is opened.
	pipeline = 64
	// casesForgiven is how many answers in other case, with the right port and id, it takes without a TCP connection to prove that it is the
	// upstream itself that changes the case.
	casesForgiven = 3
	// ednsAgain is how long an upstream is asked without EDNS after it did not understand it.
	ednsAgain = time.Hour
	// serialFor is how long an upstream is asked one question at a time on one connection after it hung up on those behind the first.
	serialFor = 10 * time.Minute
	// loopAgain is how long an upstream that leads back here is left alone.
	loopAgain = 30 * time.Second
)

// The states of an upstream.
const (
	up int32 = iota
	down
	looping
)

// upstream is one resolver of a pool, and what is known of it.
type upstream struct {
	Upstream
	f      *Forwarder
	pool   *pool
	tls    *tls.Config
	counts *upstreamCounts

	state    atomic.Int32
	fails    atomic.Int32 // answers owed in a row
	mangles  atomic.Bool  // it does not keep the case of a question
	recased  atomic.Int32 // answers in other case over UDP, in a row
	plain    atomic.Int64 // no EDNS until then
	serial   atomic.Int64 // it takes one question at a time on one connection, until then
	tested   atomic.Bool  // the test for a loop was begun
	mu       sync.Mutex
	why      string // it is not up
	lanes    [lanes]*link
	streams  []*link
	probing  bool
	reported bool
}

// upstreamCounts go on through reloads.
type upstreamCounts struct{ answered, failed, suspect atomic.Uint64 }

func newUpstream(f *Forwarder, p *pool, o Upstream) *upstream {
	o.Addr = netip.AddrPortFrom(o.Addr.Addr().Unmap(), o.Addr.Port())
	u := &upstream{Upstream: o, f: f, pool: p, counts: new(upstreamCounts)}
	if o.TLS {
		// Without a name it is the address that the certificate must be for.
		name := o.ServerName
		if name == "" {
			name = o.Addr.Addr().WithZone("").String()
		}
		u.tls = &tls.Config{ServerName: name, RootCAs: p.Roots, MinVersion: tls.VersionTLS12,
			ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	}
	return u
}

// adopt takes over what is known of the same upstream. What is not up is looked at again.
func (u *upstream) adopt(was *upstream) {
	u.counts = was.counts
	u.mangles.Store(was.mangles.Load())
	u.plain.Store(was.plain.Load())
	u.serial.Store(was.serial.Load())
	was.mu.Lock()
	state := was.state.Load()
	u.why, u.reported = was.why, was.reported
	was.mu.Unlock()
	u.state.Store(state)
	switch state {
	case down:
		u.probing = true
		u.f.spawn(u.probe)
	case looping:
		u.tested.Store(true)
		u.f.spawn(u.testLoop)
	}
}

func (u *upstream) String() string {
	if u.TLS {
		return "tls://" + u.Addr.String()
	}
	return u.Addr.String()
}

// dial connects. The kernel picks a port at random from those free.
func (u *upstream) dial(ctx context.Context, stream bool) (net.Conn, error) {
	network := "udp"
	if stream {
		network = "tcp"
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, u.Addr.String())
	if err != nil || u.tls == nil {
		return conn, err
	}
	secured := tls.Client(conn, u.tls)
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secured, nil
}

// link finds a connection for one more question, and lets that in.
func (u *upstream) link(stream bool) *link {
	u.mu.Lock()
	defer u.mu.Unlock()
	if stream {
		bound := pipeline
		if u.f.now() < u.serial.Load() {
			bound = 1
		}
		u.streams = slices.DeleteFunc(u.streams, func(l *link) bool { return l.ended() })
		for _, l := range u.streams {
			if l.enter(bound) {
				u.f.metrics.connHits.WithLabelValues(proxyName, u.Addr.String(), u.proto(stream)).Inc()
				return l
			}
		}
		u.streams = append(u.streams, u.open(true))
		return u.streams[len(u.streams)-1]
	}
	n := random(lanes)
	if l := u.lanes[n]; l != nil {
		if time.Since(l.born) < laneTime && l.enter(laneQuestions) {
			u.f.metrics.connHits.WithLabelValues(proxyName, u.Addr.String(), u.proto(stream)).Inc()
			return l
		}
		l.retire()
	}
	u.lanes[n] = u.open(false)
	return u.lanes[n]
}

func (u *upstream) proto(stream bool) string {
	switch {
	case u.TLS:
		return "tcp-tls"
	case stream:
		return "tcp"
	}
	return "udp"
}

func (l *link) ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil
}

// random is one of n numbers that cannot be foretold.
func random(n int) int {
	var b [4]byte
	secret(b[:])
	return int(binary.BigEndian.Uint32(b[:]) % uint32(n))
}

// exchange sends one message and waits for its answer. A connection that had been used before may have been closed by the other side just now:
// that is no failure, and the question goes to another one.
func (u *upstream) exchange(ctx context.Context, stream bool, q Question, mixed, edns bool) answer {
	for {
		l := u.link(stream)
		msg, question := message(q, mixed, edns, u.TLS)
		c := &call{question: question, mixed: mixed, done: make(chan answer, 1)}
		a := l.ask(ctx, msg, c)
		if !stream || !errors.Is(a.err, errEnded) || ctx.Err() != nil || !l.shared() {
			return a
		}
	}
}

// shared reports whether a connection has carried more than one question: that it ended says nothing of the upstream.
func (l *link) shared() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked > 1
}

// ask has the upstream answer a question: over UDP first, over TCP if that was cut short or somebody seems to interfere, without EDNS if
// it was not understood (RFC 6891, section 7).
func (u *upstream) ask(ctx context.Context, q Question) (*mdns.Msg, error) {
	stream := u.TLS || u.pool.ForceTCP
	edns := u.f.now() >= u.plain.Load()
	refused := -1 // the code with which EDNS was not understood
	for {
		mixed := !u.mangles.Load()
		a := u.exchange(ctx, stream, q, mixed, edns)
		switch {
		case errors.Is(a.err, errSuspect) && !stream:
			stream = true
			continue
		case errors.Is(a.err, errCase):
			if u.recased.Add(1) >= casesForgiven {
				u.mangle()
			} else {
				stream = true
			}
			continue
		case a.err != nil:
			return nil, a.err
		}
		u.alive() // whatever it says
		if a.recased {
			u.mangle()
		} else if mixed && !stream {
			u.recased.Store(0)
		}
		if a.msg[2]&2 != 0 && !stream { // TC
			stream = true
			continue
		}
		m := new(mdns.Msg)
		if err := m.Unpack(a.msg); err != nil {
			return nil, fmt.Errorf("its answer is broken: %w", err)
		}
		if m.Truncated {
			return nil, errors.New("its answer is cut short, over TCP too")
		}
		if edns && (m.Rcode == mdns.RcodeFormatError || m.Rcode == mdns.RcodeNotImplemented || m.Rcode == mdns.RcodeBadVers) {
			edns, refused = false, m.Rcode
			continue
		}
		if refused >= 0 && m.Rcode != refused {
			u.plain.Store(u.f.now() + int64(ednsAgain))
		}
		return m, nil
	}
}

// mangle takes note that the upstream changes the case of questions. It is asked in lower case from now on: port and id must be guessed still,
// which is what any upstream without this protection has, and TCP for all of its questions would cost a round trip each.
func (u *upstream) mangle() {
	if !u.mangles.Swap(true) {
		u.f.o.Logger.Warn("upstream changes the case of names, so that they cannot help against forged answers", "addr", u.String(), "zone", u.pool.Zone)
	}
}

// try asks, keeps count, and has the upstream's health follow. The context is that of the question, over all upstreams.
func (u *upstream) try(ctx context.Context, q Question) (*mdns.Msg, error) {
	if !u.tested.Swap(true) {
		u.f.spawn(u.testLoop)
	}
	begin := time.Now()
	limited, cancel := context.WithTimeout(ctx, u.f.o.Timeout)
	defer cancel()
	m, err := u.ask(limited, q)
	if err == nil {
		u.counts.answered.Add(1)
		u.f.metrics.duration.WithLabelValues(proxyName, u.Addr.String(), rcodeText(m.Rcode)).Observe(time.Since(begin).Seconds())
		return m, nil
	}
	u.counts.failed.Add(1)
	// One that was given less time than it may take is not to blame.
	if ctx.Err() == nil && u.f.ctx.Err() == nil {
		u.owes(err)
	}
	return nil, fmt.Errorf("upstream %s: %w", u, err)
}

// alive takes note of an answer.
func (u *upstream) alive() {
	if u.fails.Load() == 0 && u.state.Load() != down {
		return
	}
	u.fails.Store(0)
	if !u.state.CompareAndSwap(down, up) {
		return
	}
	u.f.recoveries.Add(1)
	u.mu.Lock()
	reported := u.reported
	u.reported, u.why = false, ""
	u.mu.Unlock()
	if reported {
		u.f.o.Logger.Info("upstream answers again", "addr", u.String(), "zone", u.pool.Zone)
	}
	u.f.spawn(u.testLoop) // what it was started with again may be a resolv.conf that names this server
}

// owes takes note that an answer did not come. After enough of them in a row the upstream is asked last, and probed until it answers.
func (u *upstream) owes(err error) {
	n := int(u.fails.Add(1))
	if u.pool.MaxFails < 0 || n < u.pool.MaxFails || !u.state.CompareAndSwap(up, down) {
		return
	}
	u.mu.Lock()
	u.why = err.Error()
	start := !u.probing
	u.probing = true
	u.mu.Unlock()
	if start {
		u.f.spawn(u.probe)
	}
}

// probe asks an upstream that is down, at once and then at intervals, until it answers anything. Only what a probe confirms is worth a line: a
// burst of lost datagrams is over before.
func (u *upstream) probe() {
	q := Question{Name: u.pool.healthName, Type: mdns.TypeNS}
	for {
		u.mu.Lock()
		if u.state.Load() != down {
			u.probing = false
			u.mu.Unlock()
			return
		}
		u.mu.Unlock()
		ctx, cancel := context.WithTimeout(u.f.ctx, u.f.o.Timeout)
		_, err := u.ask(ctx, q)
		cancel()
		if err == nil || u.state.Load() != down {
			continue
		}
		if u.f.ctx.Err() != nil {
			return
		}
		u.f.metrics.probeFailures.WithLabelValues(proxyName, u.Addr.String()).Inc()
		u.mu.Lock()
		first := !u.reported
		u.reported = u.reported || first
		u.why = err.Error()
		u.mu.Unlock()
		if first {
			u.f.o.Logger.Warn("upstream does not answer", "addr", u.String(), "zone", u.pool.Zone, "err", err)
		}
		if !u.f.sleep(u.pool.HealthCheck) {
			return
		}
	}
}

// testLoop finds out whether the upstream sends questions back here: it is asked for a name that nobody else can know. If that comes in as
// a question, every other one would go round until somebody gives up. Such an upstream is left out, and tested again now and then.
func (u *upstream) testLoop() {
	if len(u.pool.name) > 255-34 {
		return // no name below it is long enough to be nobody else's
	}
	for {
		var b [16]byte
		secret(b[:])
		// Two labels, because resolvers may treat names of a single one in a way of their own.
		label := hex.EncodeToString(b[:])
		name := append([]byte{16}, label[:16]...)
		name = append(append(append(name, 16), label[16:]...), u.pool.name...)
		u.f.watch(name, u)
		ctx, cancel := context.WithTimeout(u.f.ctx, u.f.o.Timeout)
		_, err := u.ask(ctx, Question{Name: name, Type: mdns.TypeHINFO})
		cancel()
		back := u.f.unwatch(name)
		if !back && err == nil && u.state.CompareAndSwap(looping, up) {
			u.f.recoveries.Add(1)
			u.mu.Lock()
			u.why = ""
			u.mu.Unlock()
			u.f.o.Logger.Info("upstream no longer sends questions back", "addr", u.String(), "zone", u.pool.Zone)
		}
		if u.state.Load() != looping || !u.f.sleep(loopAgain) {
			return
		}
	}
}

// loops takes the upstream out.
func (u *upstream) loops() {
	if u.state.Swap(looping) == looping {
		return
	}
	u.mu.Lock()
	u.why = "it sends this server's questions back to this server: forward to the resolver that it stands before"
	u.mu.Unlock()
	u.f.o.Logger.Error("upstream sends questions back to this server and is left out: forward to the resolver that it stands before, "+
		"and see that the resolv.conf it reads does not name this server", "addr", u.String(), "zone", u.pool.Zone)
}

// close ends the links.
func (u *upstream) close() {
	u.mu.Lock()
	all := append(slices.Clone(u.streams), u.lanes[:]...)
	u.mu.Unlock()
	for _, l := range all {
		if l != nil {
			l.end(errEnded)
		}
	}
}

func rcodeText(rcode int) string {
	if s, ok := mdns.RcodeToString[rcode]; ok {
		return s
	}
	return strconv.Itoa(rcode)
}
