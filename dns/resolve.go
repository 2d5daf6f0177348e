// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/forward"
)

// found is what has been found out about a name.
type found struct {
	rcode             int
	answer, ns, extra []mdns.RR
	authoritative     bool
	verified          bool   // AD
	code              uint16 // with why, an extended error (RFC 8914)
	why               string

	ours       bool // the name is in the cluster's zones
	suppressed bool // nobody was asked, because the client cannot use the answer
	nobody     bool // there is nobody to ask
}

func failed(rcode int, code uint16, why string) *found {
	return &found{rcode: rcode, code: code, why: why}
}

// nobody is the answer about a name that is not the cluster's and that no upstream is for.
func nobody(why string) *found {
	return &found{rcode: mdns.RcodeRefused, code: mdns.ExtendedErrorCodeNotAuthoritative, why: why, nobody: true}
}

// resolve answers the question, and goes on where the pod's resolver would. Without a context it does not wait, and is nil where it would have to.
func (q *query) resolve(ctx context.Context) *found {
	f := q.byBlock(ctx)
	if f == nil || f.rcode != mdns.RcodeNameError || len(f.answer) > 0 || !f.ours || q.undo != nil || q.who.Pod == nil {
		return f
	}
	return q.complete(ctx, f)
}

// byBlock answers the question, or is nil as resolve is, by the block: its rules, the cluster's zones, the upstreams.
func (q *query) byBlock(ctx context.Context) *found {
	if a, err := q.block.rules.Answer(q.question); err != nil {
		q.completed.unsure()
		return failed(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeOther, err.Error())
	} else if a != nil {
		q.completed.unsure()
		f := &found{rcode: a.Rcode, answer: a.Answer, ns: a.Ns, extra: a.Extra, authoritative: true}
		if a.Error != nil {
			f.code, f.why = a.Error.InfoCode, a.Error.ExtraText
		}
		// From behind, so that the indices stay right.
		for _, i := range slices.Backward(a.Follow) {
			rest := q.follow(ctx, a.Answer[i].(*mdns.CNAME).Target, q.question.Qtype)
			if rest == nil {
				return nil
			}
			f.answer = slices.Insert(f.answer, i+1, rest.answer...)
		}
		return f
	}
	return q.look(ctx, q.question.Name, q.question.Qtype)
}

// instead is what the client would be answered if it asked for another name, or nil as resolve is: by the block that is for it, and its rules.
func (q *query) instead(ctx context.Context, name string, qtype uint16) *found {
	other := *q
	other.msg.Question = []mdns.Question{{Name: name, Qtype: qtype, Qclass: mdns.ClassINET}}
	f := other.begin()
	if f == nil {
		f = other.byBlock(ctx)
	} else {
		q.completed.unsure()
	}
	if other.undo != nil {
		q.completed.unsure()
	}
	if other.undo != nil && f != nil {
		m := &mdns.Msg{MsgHdr: mdns.MsgHdr{Rcode: f.rcode}, Answer: f.answer, Ns: f.ns, Extra: f.extra}
		other.undo.Apply(m)
		f.rcode, f.answer, f.ns, f.extra = m.Rcode, m.Answer, m.Ns, m.Extra
	}
	q.source, q.upstream, q.missed = other.source, other.upstream, other.missed
	return f
}

// follow is what is at the end of an alias that leads out of what answered it, or nil as resolve is.
func (q *query) follow(ctx context.Context, name string, qtype uint16) *found {
	if q.aliases == maxAliases {
		return failed(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeOther, name+" is at the end of an alias in a circle or of too many others")
	}
	q.aliases++
	defer func() { q.aliases-- }()
	return q.instead(ctx, name, qtype)
}

// look is what there is at a name for a type, or nil as resolve is.
func (q *query) look(ctx context.Context, name string, qtype uint16) *found {
	t := q.block.target(name)
	if t.kind == kindOutside {
		return q.forward(ctx, name, qtype)
	}
	q.zone, q.source = zoneOf(t.origin), client.FromCluster
	a, ok := q.s.gate.answer(t, name, qtype)
	if !ok {
		if ctx == nil {
			return nil
		}
		a = q.s.gate.await(ctx, t, name, qtype)
	}
	if a.Rcode == mdns.RcodeNameError && len(a.Answer) == 0 && q.block.fallsThrough(name) {
		return q.forward(ctx, name, qtype)
	}
	f := &found{rcode: a.Rcode, answer: rrs(a.Answer), ns: rrs(a.Authority), extra: rrs(a.Extra), code: a.Code, why: a.Why, ours: true,
		authoritative: a.Rcode != mdns.RcodeServerFailure}
	if a.Alias == "" {
		return f
	}
	// The alias leads out of the cluster. When that fails, the answer fails: half of it would look to the client as if the name had no address.
	rest := q.follow(ctx, a.Alias, qtype)
	switch {
	case rest == nil:
		return nil
	case rest.nobody:
		return f // the client may know whom to ask
	case rest.rcode == mdns.RcodeServerFailure || rest.rcode == mdns.RcodeRefused:
		return rest
	}
	f.rcode, f.answer, f.ns, f.ours = rest.rcode, append(f.answer, rest.answer...), rest.ns, false
	return f
}

// forward has the upstreams answer, or the cache alone if it is not to wait.
func (q *query) forward(ctx context.Context, name string, qtype uint16) *found {
	if q.block.upstreams == nil {
		return nobody(q.block.refusal)
	}
	suppress := q.s.clients.Suppress(q.who, qtype, true)
	if q.s.clients.CountsSuppressed(q.who, qtype) {
		q.completed.suppressed()
	}
	if suppress {
		// The pod has no address to reach one from.
		return &found{suppressed: true}
	}
	asked := forward.Question{Name: wireName(strings.ToLower(name)), Type: qtype, CD: q.msg.CheckingDisabled, AD: q.msg.AuthenticatedData, DO: q.opt != nil && q.opt.Do()}
	if asked.Name == nil {
		return failed(mdns.RcodeFormatError, 0, "")
	}
	r, err := q.reply(ctx, asked)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return failed(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeNoReachableAuthority, "the names of the search list took too long")
	case err != nil: // the end of the context or of the forwarder
		return failed(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeNotReady, "the server is ending")
	}
	if r == nil {
		return nil
	}
	m := r.Msg()
	f := &found{rcode: m.Rcode, answer: m.Answer, ns: m.Ns, extra: m.Extra, verified: m.AuthenticatedData && (asked.AD || asked.DO)}
	if code, why, ok := r.ExtendedError(); ok {
		f.code, f.why = code, why
	}
	for _, rr := range f.answer {
		// The names that were asked for get the spelling of this question: clients compare it (0x20).
		if h := rr.Header(); strings.EqualFold(h.Name, name) {
			h.Name = name
		}
	}
	return f
}

// reply is what the upstreams say; without a context what they have said, or nil.
func (q *query) reply(ctx context.Context, asked forward.Question) (r *forward.Reply, err error) {
	if ctx != nil {
		q.source, q.upstream = client.FromUpstream, true
		return q.block.upstreams.Ask(ctx, asked)
	}
	if !q.missed {
		asOf := q.completed.now()
		q.source, r = client.FromCache, q.block.upstreams.Cached(asked)
		q.missed = r == nil
		q.completed.hit(q.block, r, asOf)
	}
	return r, nil
}

// completionTime bounds all names that are tried for one question, as the time for a question to the upstreams is: resolvers wait 5 s.
const completionTime = 4500 * time.Millisecond

// complete goes on with a name that the pod's resolver has completed in vain, as that resolver would, if it is to be done and sure to lead to the same.
// Otherwise it counts what that would have spared.
func (q *query) complete(ctx context.Context, denied *found) *found {
	mode := q.block.completion(q.s.clients)
	if mode == client.Off || mode == client.CountOnly && !q.drawn {
		return denied
	}
	asked := client.Question{Name: q.question.Name, Type: q.question.Qtype, DNSSEC: q.msg.CheckingDisabled || q.opt != nil && q.opt.Do(), Below: q.belowService()}
	if _, ok := q.who.Pod.Completes(asked); !ok {
		return denied
	}
	if mode == client.CountOnly {
		c, ok := client.Complete(q.who.Pod, asked, func(name string, qtype uint16) (client.Outcome, *found) {
			t := q.block.target(name)
			if t.kind == kindOutside {
				return client.Outcome{Records: true}, nil
			}
			a, _ := q.s.gate.answer(t, name, qtype)
			return client.Outcome{Rcode: a.Rcode, Records: len(a.Answer) > 0, Ours: true}, nil
		})
		client.CountCompletion(q.s.clients, client.Sample, c, ok)
		return denied
	}
	waits := false
	if ctx == nil {
		q.completed = new(resting)
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, q.s.completing)
		defer cancel()
	}
	c, ok := client.Complete(q.who.Pod, asked, func(name string, qtype uint16) (client.Outcome, *found) {
		f := q.instead(ctx, name, qtype)
		if f == nil {
			waits = true
			return client.Outcome{Rcode: mdns.RcodeServerFailure}, nil
		}
		return client.Outcome{Rcode: f.rcode, Records: len(f.answer) > 0, Ours: f.ours, Suppressed: f.suppressed}, f
	})
	if waits {
		return nil
	}
	client.CountCompletion(q.s.clients, 1, c, ok)
	q.completed.done(c, ok)
	if !ok {
		return denied
	}
	f := c.Answer
	if c.Records {
		ttl := uint32(q.s.options.NegativeTTL / time.Second)
		alias := &mdns.CNAME{Hdr: mdns.RR_Header{Name: q.question.Name, Rrtype: mdns.TypeCNAME, Class: mdns.ClassINET, Ttl: ttl}, Target: c.Name}
		f.answer = append([]mdns.RR{alias}, f.answer...)
	} else {
		f.ns = denied.ns // another zone's SOA could have the denial kept for hours
	}
	f.verified = false // nobody has signed the alias
	return f
}

// completion is whether questions of the block are completed, which it may say itself.
func (s *served) completion(c *client.Clients) client.Mode {
	if s.Autopath {
		return client.On
	}
	return c.Completion()
}

// belowService reports whether the name is below a Service that exists.
func (q *query) belowService() bool {
	t := q.block.target(q.question.Name)
	st := q.s.gate.state.Load()
	if t.name.Name == "" || st.published == nil {
		return false
	}
	_, ok := st.published.snap.Services.Get(t.name)
	return ok
}

// account counts the query, and logs it if it is to be logged.
func (q *query) account(f *found, size int) {
	qtype, name := mdns.TypeNone, ""
	if len(q.msg.Question) == 1 {
		qtype, name = q.msg.Question[0].Qtype, q.msg.Question[0].Name
	}
	now := q.s.now()
	q.socket.count(q.zone, qtype, f.rcode)
	q.socket.observe(q.zone, now.Sub(q.start), 1)
	q.socket.meter.Observe(q.zone, q.size, size, q.opt != nil && q.opt.Do())
	q.s.clients.Count(q.who, q.from, f.rcode, q.upstream)
	if q.s.clients.Logs(f.rcode) || q.block != nil && q.block.logs(func() string { return name }, f.rcode, len(f.answer)) {
		q.s.clients.Log(ticks(now), client.Entry{Client: q.who, Addr: q.from, Name: name, Type: qtype, Rcode: f.rcode, Took: now.Sub(q.start), From: q.source})
	}
}

// logs reports whether the block wants the answer to a question logged. It asks for the question's name only when it comes to that: on the fast
// path a name costs more than the answer.
func (s *served) logs(name func() string, rcode, answers int) bool {
	if s.Errors && rcode == mdns.RcodeServerFailure {
		return true
	}
	for _, l := range s.Log {
		wanted := l.Error
		switch {
		case rcode == mdns.RcodeNameError || rcode == mdns.RcodeSuccess && answers == 0:
			wanted = l.Denial
		case rcode == mdns.RcodeSuccess:
			wanted = l.Success
		}
		if wanted && mdns.IsSubDomain(l.Zone, name()) {
			return true
		}
	}
	return false
}
