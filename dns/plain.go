// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"math/bits"

	mdns "github.com/miekg/dns"
)

// maxName and maxLabel are how long a name in wire form and one of its labels may be (RFC 1035, section 2.3.4).
const (
	maxName  = 255
	maxLabel = 63
)

// maxLabels is how many labels a name may have to be usual: 32 of an IPv6 address, ip6 and arpa.
const maxLabels = 34

// plain is a query of the usual form, taken apart without allocation: one question of class IN for a name of letters, digits, dashes and
// underscores, with or without EDNS. What is of another form goes to [query.read], which knows all that is allowed.
type plain struct {
	name   [maxName]byte    // in lower case, in wire form
	size   int              // of the name
	labels [maxLabels]uint8 // where each one's length octet is
	count  int              // of labels
	end    int              // where the question ends in the message
	qtype  uint16
	edns   bool
	do     bool // wants signatures (RFC 3225)
	offer  int  // the answer's size that EDNS allows
}

// lower maps the octets of usual names to lower case, and all others to 0.
var lower = func() (t [256]byte) {
	for c := range t {
		switch {
		case 'A' <= c && c <= 'Z':
			t[c] = byte(c) | 0x20
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			t[c] = byte(c)
		}
	}
	return t
}()

const (
	countsOneQuestion = 1 << 48 // QDCOUNT 1, ANCOUNT 0, NSCOUNT 0
	optSize           = 11
)

// parse takes a message apart, and reports whether it is of the usual form.
func (q *plain) parse(req []byte) bool {
	// A query with opcode QUERY. Whether AA, TC, RA or an rcode are set makes no difference.
	if len(req) < headerSize+5 || req[2]&0xf8 != 0 {
		return false
	}
	counts := binary.BigEndian.Uint64(req[4:])
	if counts&^1 != countsOneQuestion {
		return false
	}
	if !q.parseName(req) {
		return false
	}
	at := headerSize + q.size
	if at+4 > len(req) || binary.BigEndian.Uint16(req[at+2:]) != mdns.ClassINET {
		return false
	}
	q.qtype = binary.BigEndian.Uint16(req[at:])
	q.end = at + 4
	q.edns, q.do, q.offer = false, false, 0
	if counts&1 == 0 {
		return len(req) == q.end
	}
	return q.parseOPT(req[q.end:])
}

func (q *plain) parseName(req []byte) bool {
	at, n := headerSize, 0
	q.count = 0
	for {
		length := int(req[at])
		if length == 0 {
			q.name[n] = 0
			q.size = n + 1
			return true
		}
		// A label, its length octet, and what must follow: another length octet.
		if length > maxLabel || at+1+length >= len(req) || n+1+length >= len(q.name) || q.count == maxLabels {
			return false
		}
		q.labels[q.count] = uint8(n)
		q.count++
		q.name[n] = byte(length)
		from, to := req[at+1:at+1+length], q.name[n+1:n+1+length]
		for i, c := range from {
			l := lower[c]
			if l == 0 {
				return false
			}
			to[i] = l
		}
		at += 1 + length
		n += 1 + length
	}
}

// parseOPT reads the OPT record (RFC 6891) that is the rest of a message. Of its options, cookies only are usual: they are not
// answered, which RFC 7873 allows.
func (q *plain) parseOPT(rest []byte) bool {
	if len(rest) < optSize || rest[0] != 0 || binary.BigEndian.Uint16(rest[1:]) != mdns.TypeOPT || rest[6] != 0 {
		return false
	}
	q.edns, q.do, q.offer = true, rest[7]&0x80 != 0, int(binary.BigEndian.Uint16(rest[3:]))
	options := rest[optSize:]
	if int(binary.BigEndian.Uint16(rest[9:])) != len(options) {
		return false
	}
	for len(options) > 0 {
		if len(options) < 4 || binary.BigEndian.Uint16(options) != mdns.EDNS0COOKIE {
			return false
		}
		length := int(binary.BigEndian.Uint16(options[2:]))
		if 4+length > len(options) {
			return false
		}
		options = options[4+length:]
	}
	return true
}

// label is the i-th label from the left.
func (q *plain) label(i int) []byte {
	at := int(q.labels[i])
	return q.name[at+1 : at+1+int(q.name[at])]
}

// text is the name in presentation form, in lower case.
func (q *plain) text() string {
	if q.count == 0 {
		return "."
	}
	name := make([]byte, 0, q.size)
	for i := range q.count {
		name = append(append(name, q.label(i)...), '.')
	}
	return string(name)
}

// wireName is a name in wire form; nil for one that has none.
func wireName(name string) []byte {
	buf := make([]byte, maxName)
	n, err := mdns.PackDomainName(name, buf, 0, nil, false)
	if err != nil {
		return nil
	}
	return buf[:n:n]
}

// below reports how many labels of the question's name are before a zone, and whether it is in the zone at all.
func (q *plain) below(zone []byte, labels int) (before int, ok bool) {
	before = q.count - labels
	if before < 0 || len(zone) > q.size {
		return 0, false
	}
	at := q.size - len(zone)
	return before, string(q.name[at:q.size]) == string(zone) && (before == q.count || int(q.labels[before]) == at)
}

// dice is a generator for choices that need not be secret, one for each goroutine.
type dice uint64

// below is a number under n, which is not zero.
func (d *dice) below(n int) int {
	// The generator is SplitMix64 (Steele, Lea and Flood, 2014).
	*d += 0x9e3779b97f4a7c15
	z := uint64(*d)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	hi, _ := bits.Mul64(z^z>>31, uint64(n))
	return int(hi)
}
