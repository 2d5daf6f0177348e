// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// maxForwarding bounds the queries on their way to upstreams: past that, something is wrong and more of them make it worse.
	maxForwarding = 1024
	// shun is how long an upstream that did not answer is asked last.
	shun = 10 * time.Second
	// forwardTimeout bounds a query over all upstreams: stub resolvers give up after 5 s.
	forwardTimeout = 4500 * time.Millisecond
)

// flags are what an answer depends on beside the question.
type flags struct {
	dnssec   bool // DO: wants signatures
	checking bool // CD: wants what does not verify, too
	ad       bool // AD: wants to know whether it was verified (RFC 6840)
}

// forwarder asks upstream resolvers and remembers what they say.
type forwarder struct {
	upstreams []*upstream
	timeout   time.Duration
	cache     *cache
	places    chan struct{}
	now       func() time.Time
	log       *slog.Logger
}

type upstream struct {
	addr             netip.AddrPort
	shunned          atomic.Int64 // until then, in nanoseconds since 1970; 0 if it answers
	answered, failed atomic.Uint64
}

func newForwarder(o Options) (*forwarder, error) {
	f := &forwarder{
		timeout: o.UpstreamTimeout,
		cache:   newCache(o.CacheSize, o.Now),
		places:  make(chan struct{}, maxForwarding),
		now:     o.Now,
		log:     o.Logger,
	}
	for _, a := range o.Upstreams {
		if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() {
			return nil, fmt.Errorf("upstream %q: want an address and a port", a)
		}
		f.upstreams = append(f.upstreams, &upstream{addr: a})
	}
	return f, nil
}

// flags are the client's.
func (q *query) flags() flags {
	return flags{dnssec: q.opt != nil && q.opt.Do(), checking: q.msg.CheckingDisabled, ad: q.msg.AuthenticatedData}
}

// cached is the remembered answer to a question; nil if there is none.
func (f *forwarder) cached(asked mdns.Question, fl flags) *mdns.Msg { return f.cache.get(asked, fl) }

// forwardNow has the query answered by the upstreams.
func (q *query) forwardNow(ctx context.Context) *mdns.Msg {
	m, err := q.s.forward.ask(ctx, q.msg.Question[0], q.flags())
	if err != nil {
		return q.failure(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeNoReachableAuthority, err.Error())
	}
	return q.forwarded(m)
}

// forwarded makes an upstream's answer the client's. Only what belongs to the question goes through.
func (q *query) forwarded(from *mdns.Msg) *mdns.Msg {
	m := q.blank()
	m.Rcode = from.Rcode
	m.AuthenticatedData = from.AuthenticatedData && (q.flags().ad || q.flags().dnssec)
	m.Answer, m.Ns, m.Extra = from.Answer, from.Ns, from.Extra
	for _, rr := range m.Answer {
		// The names that were asked for get the spelling of this question: clients compare it (0x20).
		if h := rr.Header(); strings.EqualFold(h.Name, q.msg.Question[0].Name) {
			h.Name = q.msg.Question[0].Name
		}
	}
	q.addOPT(m, 0, "")
	return m
}

// follow goes on with an alias that leads out of the cluster's zones. When that fails, the answer fails: half of it would
// look to the client as if the name had no address.
func (q *query) follow(ctx context.Context, m *mdns.Msg, alias string) {
	asked := mdns.Question{Name: alias, Qtype: q.msg.Question[0].Qtype, Qclass: mdns.ClassINET}
	fl := q.flags()
	from := q.s.forward.cached(asked, fl)
	if from == nil {
		var err error
		if from, err = q.s.forward.ask(ctx, asked, fl); err != nil {
			*m = *q.failure(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeNoReachableAuthority, err.Error())
			return
		}
	}
	m.Rcode = from.Rcode
	m.Answer = append(m.Answer, from.Answer...)
	m.Ns = from.Ns
}

// ask asks the upstreams, one after the other until one answers, those that lately did not last.
func (f *forwarder) ask(ctx context.Context, asked mdns.Question, fl flags) (*mdns.Msg, error) {
	select {
	case f.places <- struct{}{}:
		defer func() { <-f.places }()
	default:
		return nil, errors.New("too many queries are waiting for upstreams")
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	var (
		bad  *mdns.Msg
		errs []error
	)
	for _, u := range f.order() {
		m, err := f.askOne(ctx, u, asked, fl)
		if err == nil && m.Rcode != mdns.RcodeServerFailure && m.Rcode != mdns.RcodeRefused && m.Rcode != mdns.RcodeNotImplemented {
			f.cache.put(asked, fl, m)
			return m, nil
		}
		if err == nil {
			bad = m // it speaks, but cannot help: perhaps another one can
			continue
		}
		errs = append(errs, fmt.Errorf("upstream %s: %w", u.addr, err))
		if ctx.Err() != nil {
			break
		}
	}
	if bad != nil {
		return bad, nil
	}
	return nil, errors.Join(errs...)
}

// order is the upstreams as configured, but the shunned ones at the end.
func (f *forwarder) order() []*upstream {
	now := f.now().UnixNano()
	good, shunned := make([]*upstream, 0, len(f.upstreams)), []*upstream(nil)
	for _, u := range f.upstreams {
		if u.shunned.Load() > now {
			shunned = append(shunned, u)
		} else {
			good = append(good, u)
		}
	}
	return append(good, shunned...)
}

// askOne asks one upstream, and remembers whether it answered.
func (f *forwarder) askOne(ctx context.Context, u *upstream, asked mdns.Question, fl flags) (*mdns.Msg, error) {
	limited, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	m, err := exchange(limited, "udp", u.addr, asked, fl)
	if err == nil && m.Truncated {
		m, err = exchange(limited, "tcp", u.addr, asked, fl)
	}
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errTimeout) {
			err = errTimeout
		}
		u.failed.Add(1)
		if ctx.Err() == nil && u.shunned.Swap(f.now().Add(shun).UnixNano()) == 0 {
			f.log.Warn("upstream does not answer", "addr", u.addr, "err", err)
		}
		return nil, err
	}
	u.answered.Add(1)
	if u.shunned.Swap(0) != 0 {
		f.log.Info("upstream answers again", "addr", u.addr)
	}
	return m, nil
}

var errTimeout = errors.New("no answer in time")

// exchange sends one query on a connection of its own, whose port the kernel picks at random and which takes answers from nobody
// else, and returns the first message that is an answer to it.
func exchange(ctx context.Context, network string, to netip.AddrPort, asked mdns.Question, fl flags) (*mdns.Msg, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// Cancelling must end the reading too, not only the deadline.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	out := new(mdns.Msg)
	var id [2]byte
	rand.Read(id[:]) // never fails
	out.Id = binary.BigEndian.Uint16(id[:])
	out.RecursionDesired, out.CheckingDisabled, out.AuthenticatedData = true, fl.checking, fl.ad
	out.Question = []mdns.Question{asked}
	out.SetEdns0(maxUDP, fl.dnssec)
	c := &mdns.Conn{Conn: conn, UDPSize: maxCached}
	if err := c.WriteMsg(out); err != nil {
		return nil, err
	}
	for {
		packed, err := c.ReadMsgHeader(nil)
		if err != nil {
			if ctx.Err() != nil {
				return nil, errTimeout
			}
			if network == "udp" && errors.Is(err, mdns.ErrShortRead) {
				continue
			}
			return nil, err
		}
		in := new(mdns.Msg)
		if err := in.Unpack(packed); err != nil || !answers(in, out) {
			if network == "udp" {
				continue // not from the upstream, or it is broken; the deadline ends the wait either way
			}
			return nil, errors.New("the answer does not belong to the question")
		}
		in.Extra = withoutOPT(in.Extra)
		return in, nil
	}
}

// answers reports whether a message is the answer to a query.
func answers(in, out *mdns.Msg) bool {
	return in.Response && in.Id == out.Id && in.Opcode == mdns.OpcodeQuery && len(in.Question) == 1 &&
		in.Question[0].Qtype == out.Question[0].Qtype && in.Question[0].Qclass == out.Question[0].Qclass &&
		strings.EqualFold(in.Question[0].Name, out.Question[0].Name)
}

// withoutOPT takes away what is between the upstream and us, and signatures of messages.
func withoutOPT(rrs []mdns.RR) []mdns.RR {
	out := rrs[:0]
	for _, rr := range rrs {
		switch rr.Header().Rrtype {
		case mdns.TypeOPT, mdns.TypeTSIG, mdns.TypeSIG:
		default:
			out = append(out, rr)
		}
	}
	return out
}
