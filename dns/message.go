// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	headerSize = 12
	// maxUDP is the largest answer over UDP, whatever the client offers: what passes every path without fragments
	// (the value of DNS Flag Day 2020).
	maxUDP = 1232
)

// query is one message being answered.
type query struct {
	s      *Server
	socket *socketStats
	client netip.Addr
	start  time.Time

	msg    mdns.Msg
	opt    *mdns.OPT // the client's, nil without EDNS
	target target
}

// handle answers one message. It returns the answer in buf or in memory of its own; nil means silence. If the answer is not to
// be had at once, later gives it, on a goroutine of the caller's choice; req is not used by it.
func (s *Server) handle(d *desk, client netip.Addr, req, buf []byte) (resp []byte, later func(context.Context, []byte) []byte) {
	client = client.Unmap()
	if resp := s.fast(d, client, req, buf); resp != nil {
		return resp, nil
	}
	return s.slow(d, client, req, buf)
}

// slow answers what is not usual.
func (s *Server) slow(d *desk, client netip.Addr, req, buf []byte) (resp []byte, later func(context.Context, []byte) []byte) {
	if len(req) < headerSize || req[2]&0x80 != 0 {
		d.dropped.Add(1)
		return nil, nil
	}
	q := &query{s: s, socket: d.socketStats, client: client, start: d.start}
	if rcode := q.read(req); rcode != mdns.RcodeSuccess {
		return q.headerOnly(req, buf, rcode), nil
	}
	if rcode, code, why := q.refuse(); rcode != mdns.RcodeSuccess {
		return q.pack(buf, q.failure(rcode, code, why)), nil
	}
	asked := q.msg.Question[0]
	q.target = s.zone.parse(asked.Name)
	if q.target.kind == kindOutside {
		if s.forward == nil {
			return q.pack(buf, q.failure(mdns.RcodeRefused, mdns.ExtendedErrorCodeNotAuthoritative, s.noUpstream)), nil
		}
		if m := s.forward.cached(asked, q.flags()); m != nil {
			return q.pack(buf, q.forwarded(m)), nil
		}
		return nil, func(ctx context.Context, buf []byte) []byte { return q.pack(buf, q.forwardNow(ctx)) }
	}
	a, ok := s.gate.answer(q.target, asked.Name, asked.Qtype)
	if ok && (a.Alias == "" || s.forward == nil) {
		return q.pack(buf, q.reply(a)), nil
	}
	return nil, func(ctx context.Context, buf []byte) []byte {
		if !ok {
			a = s.gate.await(ctx, q.target, asked.Name, asked.Qtype)
		}
		m := q.reply(a)
		if a.Alias != "" && s.forward != nil {
			q.follow(ctx, m, a.Alias)
		}
		return q.pack(buf, m)
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
		if req[at] > 63 || at-headerSize > 253 {
			return false
		}
		at += 1 + int(req[at])
	}
	return at+5 <= len(req)
}

// refuse decides about a well-formed query before its name is looked at.
func (q *query) refuse() (rcode int, code uint16, why string) {
	if st := q.s.gate.state.Load(); !st.announced.clients.allow(q.client) {
		// No words here: who is not known may have a forged address, and must not get more than was sent in its name.
		q.s.strangers.Add(1)
		return mdns.RcodeRefused, mdns.ExtendedErrorCodeProhibited, ""
	}
	if q.opt != nil && q.opt.Version() != 0 {
		return mdns.RcodeBadVers, 0, ""
	}
	switch asked := q.msg.Question[0]; {
	case asked.Qclass != mdns.ClassINET:
		return mdns.RcodeRefused, mdns.ExtendedErrorCodeNotSupported, "only class IN is served"
	case asked.Qtype == mdns.TypeOPT || asked.Qtype == mdns.TypeNone:
		return mdns.RcodeFormatError, 0, ""
	case asked.Qtype == mdns.TypeAXFR || asked.Qtype == mdns.TypeIXFR:
		return mdns.RcodeRefused, mdns.ExtendedErrorCodeNotSupported, "zones are not transferred"
	case asked.Qtype >= mdns.TypeTKEY && asked.Qtype < mdns.TypeANY:
		return mdns.RcodeNotImplemented, 0, ""
	}
	return mdns.RcodeSuccess, 0, ""
}

// headerOnly is the answer to what could not be read: the header alone, so that nothing is amplified.
func (q *query) headerOnly(req, buf []byte, rcode int) []byte {
	resp := append(buf[:0], req[:headerSize]...)
	resp[2] = 0x80 | req[2]&0x79 // a response, with the opcode and RD of the query
	resp[3] = byte(rcode)
	clear(resp[4:])
	q.count(rcode)
	return resp
}

// blank is an answer without records.
func (q *query) blank() *mdns.Msg {
	m := &mdns.Msg{Compress: true, Question: q.msg.Question}
	m.Id = q.msg.Id
	m.Response = true
	m.RecursionDesired = q.msg.RecursionDesired
	m.CheckingDisabled = q.msg.CheckingDisabled
	m.RecursionAvailable = q.s.forward != nil
	return m
}

func (q *query) failure(rcode int, code uint16, why string) *mdns.Msg {
	m := q.blank()
	m.Rcode = rcode
	q.addOPT(m, code, why)
	return m
}

// addOPT answers the client's OPT record with our own, with the reason for an error in it.
func (q *query) addOPT(m *mdns.Msg, code uint16, why string) {
	if q.opt == nil {
		return
	}
	opt := &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT}}
	opt.SetUDPSize(maxUDP)
	if q.opt.Do() {
		opt.SetDo()
	}
	if code != 0 || why != "" {
		opt.Option = []mdns.EDNS0{&mdns.EDNS0_EDE{InfoCode: code, ExtraText: why}}
	}
	m.Extra = append(m.Extra, opt)
}

// reply is the message for an answer from our own zones.
func (q *query) reply(a Answer) *mdns.Msg {
	m := q.blank()
	m.Rcode = a.Rcode
	m.Authoritative = a.Rcode != mdns.RcodeServerFailure
	m.Answer, m.Ns, m.Extra = rrs(a.Answer), rrs(a.Authority), rrs(a.Extra)
	rotate(m.Answer)
	q.addOPT(m, a.Code, a.Why)
	return m
}

// rotate begins the records after the aliases at a random one, so that clients that take the first spread themselves, and
// an answer that must be cut is not always cut at the same place.
func rotate(rrs []mdns.RR) {
	for len(rrs) > 0 && rrs[0].Header().Rrtype == mdns.TypeCNAME {
		rrs = rrs[1:]
	}
	if len(rrs) < 2 {
		return
	}
	n := rand.IntN(len(rrs))
	turned := append(append(make([]mdns.RR, 0, len(rrs)), rrs[n:]...), rrs[:n]...)
	copy(rrs, turned)
}

// pack writes the answer in no more octets than the client takes.
func (q *query) pack(buf []byte, m *mdns.Msg) []byte {
	size := mdns.MaxMsgSize
	if q.socket.proto == "udp" {
		size = mdns.MinMsgSize
		if q.opt != nil {
			size = min(max(size, int(q.opt.UDPSize())), maxUDP)
		}
	}
	if m.Len() > size {
		cut(m, size)
	}
	resp, err := m.PackBuffer(buf[:cap(buf)])
	if err != nil || len(resp) > size {
		// An upstream's record that cannot be written again, or a name too long to be put before a record.
		q.s.log.Debug("pack answer", "name", q.msg.Question[0].Name, "err", err)
		m = q.failure(mdns.RcodeServerFailure, mdns.ExtendedErrorCodeInvalidData, "")
		resp, err = m.PackBuffer(buf[:cap(buf)])
		if err != nil {
			return nil
		}
	}
	q.count(m.Rcode)
	return resp
}

// cut shortens a message: additional records first, which nobody has to have (RFC 2181, section 9), then the answer, with TC set.
func cut(m *mdns.Msg, size int) {
	answers, authority := len(m.Answer), len(m.Ns)
	m.Truncate(size)
	m.Truncated = len(m.Answer) < answers || len(m.Ns) < authority
	m.Compress = true
}

// count adds the query to the metrics.
func (q *query) count(rcode int) {
	qtype := mdns.TypeNone
	if len(q.msg.Question) == 1 {
		qtype = q.msg.Question[0].Qtype
	}
	zone := zoneOf(q.target.origin)
	q.socket.count(zone, qtype, rcode)
	q.socket.observe(zone, q.s.now().Sub(q.start), 1)
}
