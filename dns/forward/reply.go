// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	headerSize = 12
	// staleTTL is the TTL of an answer that is past its time, in seconds (RFC 8767, section 4).
	staleTTL = 30
	// maxText is the longest text of a failure, in octets, so that it fits in an answer.
	maxText = 200
	bitAD   = 0x20
)

// Question is what a client asks, in class IN.
type Question struct {
	// Name is in wire form, lower case, not compressed, and ends with the root's 0.
	Name []byte
	Type uint16
	// DO wants signatures, CD what does not verify too, AD to be told whether it was verified (RFC 6840, section 5.7).
	DO, CD, AD bool
}

// flags are those that an answer depends on.
func (q Question) flags() (f byte) {
	if q.DO {
		f |= 1
	}
	if q.CD {
		f |= 2
	}
	return f
}

// entry is one answer, packed as the message is that answers the question in lower case. What it says never changes; the cache changes the
// fields that are its own.
type entry struct {
	blob       string // the key, the records, the places of the TTLs
	key, body  int    // lengths
	room       int    // the memory that blob takes
	an, ns, ar uint16
	rcode      uint8
	ad         bool
	denial     bool
	crossed    bool // an alias led into another pool's names
	why        *failure

	// Of the final set of addresses, what [Options.Rotate] needs: where it begins, how many there are, the octets of each. Count 0: it stays as it is.
	turn, count, each int

	stored, until int64 // since the forwarder's base
	past          int64 // may be given as stale until then

	// The cache's own, under its shard's lock.
	hash            uint64
	next            *entry // in the bucket
	newer, older    *entry
	used            bool
	hits            int
	refreshing      bool
	retry, recovery int64         // a failure: upstreams are not asked before; and how often upstreams had recovered when it happened
	pause           time.Duration // from the failure to retry
}

// failure says why there is no answer.
type failure struct {
	rcode int
	code  uint16 // of RFC 8914
	text  string
	// once is a failure of this server's, and says nothing of the next question.
	once bool
}

// fail makes a failure whose text fits in an answer.
func fail(rcode int, code uint16, format string, args ...any) *failure {
	text := fmt.Sprintf(format, args...)
	return &failure{rcode: rcode, code: code, text: strings.Clone(text[:min(len(text), maxText)])}
}

// append writes an answer behind a header and the client's question, each record with the same TTL: that of the one that ends first. No cache
// behind could use the others for longer anyhow.
func (e *entry) append(dst []byte, q Question, ttl uint32, rotate bool) []byte {
	start := len(dst)
	msg := dst[start-len(q.Name)-4-headerSize:]
	msg[3] = msg[3]&^(bitAD|0xf) | e.rcode
	if e.ad && (q.AD || q.DO) {
		msg[3] |= bitAD
	}
	binary.BigEndian.PutUint16(msg[6:], e.an)
	binary.BigEndian.PutUint16(msg[8:], e.ns)
	binary.BigEndian.PutUint16(msg[10:], e.ar)
	body := e.blob[e.key : e.key+e.body]
	if rotate && e.count > 1 {
		first := e.turn + int(rand.Uint32N(uint32(e.count)))*e.each
		end := e.turn + e.count*e.each
		dst = append(append(append(append(dst, body[:e.turn]...), body[first:end]...), body[e.turn:first]...), body[end:]...)
	} else {
		dst = append(dst, body...)
	}
	records := dst[start:]
	for places := e.blob[e.key+e.body:]; len(places) > 0; places = places[2:] {
		binary.BigEndian.PutUint32(records[int(places[0])<<8|int(places[1]):], ttl)
	}
	return dst
}

// remaining is an answer's TTL at a time, in seconds.
func (e *entry) remaining(now int64) uint32 { return uint32(max(0, e.until-now) / int64(time.Second)) }

// Fresh is what there is to know of an answer that is in its time.
type Fresh struct {
	// Left is for how long it may be given without being asked for here: until its TTLs change, or questions for it are to have it asked for anew.
	Left   time.Duration
	Denial bool
	// First is how many addresses it begins with, which may come in any order; 0: none.
	First int
}

func (h *hit) at(now int64) Fresh {
	e := h.fresh
	f := Fresh{Left: max(0, min(time.Duration(e.until-now)%time.Second, time.Duration(h.alone-now))), Denial: e.denial}
	if e.turn == 0 {
		f.First = e.count
	}
	return f
}

// Reply is the answer to a question: an upstream's, a remembered one, or the reason why there is none.
type Reply struct {
	e      *entry
	q      Question
	ttl    uint32
	fresh  Fresh
	rotate bool
	code   uint16
	text   string
	extra  bool
}

// appendTo writes the reply behind what dst ends with: 12 octets of header and the client's question (the name in its own case, type and
// class). It sets the header's response code, AD and the counts; the other flags are the caller's. There is no OPT.
func (r *Reply) appendTo(dst []byte) []byte { return r.e.append(dst, r.q, r.ttl, r.rotate) }

// Fresh is what there is to know of the reply, if it is one that was remembered and is in its time.
func (r *Reply) Fresh() Fresh { return r.fresh }

// ExtendedError is the code and the text of RFC 8914 that belong to the reply, if any: why it failed, or that it is old.
func (r *Reply) ExtendedError() (code uint16, text string, ok bool) { return r.code, r.text, r.extra }

// Msg is the reply as a message of the caller's own. Its names are in lower case where they are the question's.
func (r *Reply) Msg() *mdns.Msg {
	b := make([]byte, headerSize, headerSize+len(r.q.Name)+4+r.e.body)
	b[2], b[3], b[5] = 0x81, 0x80, 1
	b = append(b, r.q.Name...)
	b = binary.BigEndian.AppendUint16(b, r.q.Type)
	b = binary.BigEndian.AppendUint16(b, mdns.ClassINET)
	m := new(mdns.Msg)
	if err := m.Unpack(r.appendTo(b)); err != nil {
		// What was packed was parsed before; a type that this cannot be said of must not end the server.
		return &mdns.Msg{MsgHdr: mdns.MsgHdr{Response: true, RecursionDesired: true, RecursionAvailable: true, Rcode: mdns.RcodeServerFailure},
			Question: []mdns.Question{{Name: ".", Qtype: r.q.Type, Qclass: mdns.ClassINET}}}
	}
	return m
}

// found is what was learnt about a question, before it is packed.
type found struct {
	answer, ns, extra []mdns.RR
	rcode             int
	ad                bool
	ttl               uint32
	denial            bool // there is no such name, or no such record
	keep              bool // a denial that says for how long
	crossed           bool
}

// pack makes an entry of what was found. The key is the cache's.
func pack(key, name []byte, qtype uint16, w *found) (*entry, error) {
	text, _, err := mdns.UnpackDomainName(name, 0)
	if err != nil {
		return nil, fmt.Errorf("pack answer: %w", err)
	}
	m := mdns.Msg{Compress: true, Question: []mdns.Question{{Name: text, Qtype: qtype, Qclass: mdns.ClassINET}},
		Answer: w.answer, Ns: w.ns, Extra: w.extra}
	b, err := m.Pack()
	start := headerSize + len(name) + 4
	switch {
	case err != nil:
		return nil, fmt.Errorf("pack answer: %w", err)
	case len(b) < start || len(b) > mdns.MaxMsgSize || string(b[headerSize:start-4]) != string(name):
		return nil, errors.New("pack answer: it does not fit its question")
	}
	if err := new(mdns.Msg).Unpack(b); err != nil { // what can be read cannot always be read again
		return nil, fmt.Errorf("pack answer: %w", err)
	}
	e := &entry{rcode: uint8(w.rcode), ad: w.ad, denial: w.denial, crossed: w.crossed,
		an: uint16(len(w.answer)), ns: uint16(len(w.ns)), ar: uint16(len(w.extra))}
	places := make([]byte, 0, 2*(len(w.answer)+len(w.ns)+len(w.extra)))
	for at, i := start, 0; at < len(b); i++ {
		begin := at
		if at, err = skipName(b, at); err != nil || at+10 > len(b) {
			return nil, errors.New("pack answer: it cannot be read again")
		}
		places = binary.BigEndian.AppendUint16(places, uint16(at+4-start))
		rrtype, owner := binary.BigEndian.Uint16(b[at:]), at-begin
		at += 10 + int(binary.BigEndian.Uint16(b[at+8:]))
		e.mayTurn(begin-start, at-begin, owner == 2 && (rrtype == mdns.TypeA || rrtype == mdns.TypeAAAA) && rrtype == qtype && i < len(w.answer))
	}
	e.set(key, b[start:], places)
	return e, nil
}

// mayTurn takes note of a record. Addresses whose owner is a pointer can change places: nothing points at them, and all have one length.
func (e *entry) mayTurn(begin, length int, address bool) {
	if !address {
		return
	}
	if e.count == 0 {
		e.turn, e.each = begin, length
	}
	if begin == e.turn+e.count*e.each && length == e.each {
		e.count++
	}
}

// skipName is where the name at a place of a message ends.
func skipName(b []byte, at int) (int, error) {
	for at < len(b) {
		switch n := int(b[at]); {
		case n == 0:
			return at + 1, nil
		case n >= 0xc0:
			return at + 2, nil
		default:
			at += 1 + n
		}
	}
	return 0, errors.New("name without end")
}
