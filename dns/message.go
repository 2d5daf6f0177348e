// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"slices"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/rules"
)

const (
	headerSize = 12
	// maxUDP is the largest answer over UDP, whatever the client offers: what passes every path without fragments
	// (the value of DNS Flag Day 2020).
	maxUDP = 1232
)

// query is one message being answered on the slow path.
type query struct {
	s      *Server
	socket *socketStats
	who    client.Client
	drawn  bool // as of the desk
	from   netip.Addr
	start  time.Time
	size   int // of the message

	msg   mdns.Msg
	opt   *mdns.OPT // the client's, nil without EDNS
	block *served
	// question is what is looked up in place of what was asked, and undo what is then done with the answer, if the block's rules rewrite.
	question mdns.Question
	undo     *rules.Undo
	aliases  int // followed on the way to question

	zone     int // of the metrics
	source   client.Source
	upstream bool // an upstream was asked, or might have been
	missed   bool // the cache has been asked in vain
	// completed is what an answer rests on that was completed without waiting; nil: it was not.
	completed *resting
}

// handle answers one message. It returns the answer in buf or in memory of its own; nil means silence. If the answer is not to
// be had at once, later gives it, on a goroutine of the caller's choice; req is not used by it.
func (s *Server) handle(d *desk, from netip.Addr, req, buf []byte) (resp []byte, later func(context.Context, []byte) []byte) {
	defer func() {
		if p := recover(); p != nil {
			resp, later = s.panicked(p), nil
		}
	}()
	st := s.gate.state.Load()
	d.from, d.missed = from.Unmap(), false
	d.who = st.announced.clients.Lookup(d.from)
	switch s.clients.Admit(d.who, d.from, d.tick) {
	case client.Answer:
		if resp := s.fast(d, st, req, buf); resp != nil {
			return resp, nil
		}
		return s.slow(d, st, req, buf, true)
	case client.Refuse:
		return s.slow(d, st, req, buf, false)
	}
	d.dropped.Add(1)
	return nil, nil
}

// panicked notes that a query was more than the code can bear. It gets no answer, but all others do.
func (s *Server) panicked(p any) []byte {
	s.meter.Panic()
	s.log.Error("a query has found a bug", "panic", p, "stack", string(debug.Stack()))
	return nil
}

// slow answers what is not usual. A client that is not admitted is refused.
func (s *Server) slow(d *desk, st *state, req, buf []byte, admitted bool) (resp []byte, later func(context.Context, []byte) []byte) {
	if len(req) < headerSize || req[2]&0x80 != 0 {
		d.dropped.Add(1)
		return nil, nil
	}
	q := &query{s: s, socket: d.socketStats, who: d.who, drawn: d.drawn, missed: d.missed, from: d.from, start: d.start, size: len(req)}
	if rcode := q.read(req); rcode != mdns.RcodeSuccess {
		return q.headerOnly(req, buf, rcode), nil
	}
	if !admitted {
		// No words here: who is not known may have a forged address, and must not get more than was sent in its name.
		return q.pack(buf, failed(mdns.RcodeRefused, mdns.ExtendedErrorCodeProhibited, "")), nil
	}
	p := s.plan.Load()
	if f := q.begin(); f != nil {
		return q.pack(buf, f), nil
	}
	if f := q.resolve(nil); f != nil {
		resp = q.pack(buf, f)
		if s.taught.Answers != nil && q.completed != nil {
			s.teachCompleted(d, q, st, p, req, resp)
		}
		return resp, nil
	}
	return nil, func(ctx context.Context, buf []byte) (resp []byte) {
		defer func() {
			if p := recover(); p != nil {
				resp = s.panicked(p)
			}
		}()
		return q.pack(buf, q.resolve(ctx))
	}
}

// read unpacks a message, and refuses those that are none we could answer in full.
func (q *query) read(req []byte) int {
	if opcode := req[2] >> 3 & 15; opcode != mdns.OpcodeQuery {
		return mdns.RcodeNotImplemented
	}
	count := func(section int) uint16 { return binary.BigEndian.Uint16(req[4+2*section:]) }
	// One question (RFC 9619). No record belongs into a query but OPT and the SOA of IXFR; two more are let pass for
	// TSIG and the like.
	if count(0) != 1 || count(1) != 0 || count(2) > 1 || count(3) > 3 {
		return mdns.RcodeFormatError
	}
	if !wholeQuestion(req) {
		return mdns.RcodeFormatError
	}
	if err := q.msg.Unpack(req); err != nil || len(q.msg.Ns) != int(count(2)) || len(q.msg.Extra) != int(count(3)) {
		return mdns.RcodeFormatError // the library is content with less than is announced
	}
	for _, rr := range q.msg.Extra {
		opt, ok := rr.(*mdns.OPT)
		if !ok {
			continue
		}
		if q.opt != nil || opt.Hdr.Name != "." {
			return mdns.RcodeFormatError
		}
		q.opt = opt
	}
	return mdns.RcodeSuccess
}

// wholeQuestion reports whether a message has its whole question. The name must be spelled out: there is nothing before it to point to.
func wholeQuestion(req []byte) bool {
	at := headerSize
	for at < len(req) && req[at] != 0 {
		if req[at] > maxLabel || at-headerSize > 253 {
			return false
		}
		at += 1 + int(req[at])
	}
	return at+5 <= len(req)
}

// begin decides about a well-formed query before its name is looked up: nil if that is to be done.
func (q *query) begin() *found {
	asked := q.msg.Question[0]
	if q.opt != nil && q.opt.Version() != 0 {
		return failed(mdns.RcodeBadVers, 0, "")
	}
	switch {
	case asked.Qtype == mdns.TypeOPT || asked.Qtype == mdns.TypeNone:
		return failed(mdns.RcodeFormatError, 0, "")
	case asked.Qtype == mdns.TypeAXFR || asked.Qtype == mdns.TypeIXFR:
		return failed(mdns.RcodeRefused, mdns.ExtendedErrorCodeNotSupported, "zones are not transferred")
	case asked.Qtype >= mdns.TypeTKEY && asked.Qtype < mdns.TypeANY:
		return failed(mdns.RcodeNotImplemented, 0, "")
	}
	if q.block = q.s.plan.Load().findName(asked.Name, q.socket.local); q.block == nil {
		return nobody("no block is for this name")
	}
	var err error
	if q.question, q.undo, err = q.block.rules.Rewrite(asked); err != nil {
		return failed(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeOther, err.Error())
	}
	if q.question.Qclass == mdns.ClassCHAOS {
		return q.chaos()
	}
	if q.question.Qclass != mdns.ClassINET {
		return failed(mdns.RcodeRefused, mdns.ExtendedErrorCodeNotSupported, "only class IN is served")
	}
	return nil
}

// chaos answers questions about the server itself.
func (q *query) chaos() *found {
	text, ok := chaos(q.question.Name, q.s.options.Version, q.s.options.Node)
	if !ok {
		return failed(mdns.RcodeRefused, mdns.ExtendedErrorCodeNotSupported, "of class CHAOS there is only what version.bind and id.server are")
	}
	f := &found{authoritative: true}
	if t := q.question.Qtype; t == mdns.TypeTXT || t == mdns.TypeANY {
		f.answer = []mdns.RR{&mdns.TXT{Hdr: mdns.RR_Header{Name: q.question.Name, Rrtype: mdns.TypeTXT, Class: mdns.ClassCHAOS}, Txt: []string{text}}}
	}
	return f
}

// headerOnly is the answer to what could not be read: the header alone, so that nothing is amplified.
func (q *query) headerOnly(req, buf []byte, rcode int) []byte {
	resp := append(buf[:0], req[:headerSize]...)
	resp[2] = 0x80 | req[2]&0x79 // a response, with the opcode and RD of the query
	resp[3] = byte(rcode)
	clear(resp[4:])
	q.account(failed(rcode, 0, ""), len(resp))
	return resp
}

// message is the answer for the client, without records that are too many.
func (q *query) message(f *found) *mdns.Msg {
	m := &mdns.Msg{Compress: true, Answer: f.answer, Ns: f.ns, Extra: f.extra}
	m.Id, m.Response, m.Rcode = q.msg.Id, true, f.rcode
	m.Authoritative, m.AuthenticatedData = f.authoritative, f.verified
	m.RecursionDesired, m.CheckingDisabled = q.msg.RecursionDesired, q.msg.CheckingDisabled
	m.RecursionAvailable = q.block != nil && q.block.upstreams != nil
	if q.undo != nil {
		q.undo.Apply(m)
	}
	m.Question = q.msg.Question
	if q.block == nil || q.block.Loadbalance {
		rotate(m.Answer)
	}
	if q.opt == nil {
		return m
	}
	opt := &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT}}
	opt.SetUDPSize(maxUDP)
	if q.opt.Do() {
		opt.SetDo()
	}
	if f.code != 0 || f.why != "" {
		opt.Option = []mdns.EDNS0{&mdns.EDNS0_EDE{InfoCode: f.code, ExtraText: f.why}}
	}
	m.Extra = append(m.Extra, opt)
	return m
}

// rotate begins the records after the last alias at a random one, so that clients that take the first spread themselves, and
// an answer that must be cut is not always cut at the same place. What leads there, DNAMEs too, stays in its order: stub resolvers
// read an answer once, from the front.
func rotate(rrs []mdns.RR) {
	for i, rr := range slices.Backward(rrs) {
		if rr.Header().Rrtype == mdns.TypeCNAME {
			rrs = rrs[i+1:]
			break
		}
	}
	if len(rrs) < 2 {
		return
	}
	n := rand.IntN(len(rrs))
	turned := append(append(make([]mdns.RR, 0, len(rrs)), rrs[n:]...), rrs[:n]...)
	copy(rrs, turned)
}

// limit is how long an answer may be. offer is what the client's EDNS allows, 0 without it.
func (c *socketStats) limit(offer int) int {
	if c.proto != "udp" {
		return mdns.MaxMsgSize
	}
	return min(max(offer, mdns.MinMsgSize), maxUDP)
}

// pack writes the answer in no more octets than the client takes.
func (q *query) pack(buf []byte, f *found) []byte {
	offer := 0
	if q.opt != nil {
		offer = int(q.opt.UDPSize())
	}
	size := q.socket.limit(offer)
	m := q.message(f)
	if m.Len() > size {
		cut(m, size)
	}
	resp, err := m.PackBuffer(buf[:cap(buf)])
	if err != nil || len(resp) > size {
		// An upstream's record that cannot be written again, or a name too long to be put before a record.
		q.s.log.Debug("pack answer", "name", q.msg.Question[0].Name, "err", err)
		f = failed(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeInvalidData, "")
		m = q.message(f)
		if resp, err = m.PackBuffer(buf[:cap(buf)]); err != nil {
			return nil
		}
	}
	q.account(f, len(resp))
	return resp
}

// cut shortens a message: additional records first, which nobody has to have (RFC 2181, section 9), then the answer, with TC set.
func cut(m *mdns.Msg, size int) {
	answers, authority := len(m.Answer), len(m.Ns)
	m.Truncate(size)
	m.Truncated = len(m.Answer) < answers || len(m.Ns) < authority
	m.Compress = true
}
