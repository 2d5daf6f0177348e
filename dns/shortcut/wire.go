// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package shortcut

import (
	"encoding/binary"
	"net/netip"
	"unsafe"
)

// What a name and an answer may have, in octets, and how many kinds of answers there are.
const (
	maxName  = 104
	maxRest  = 280
	maxKinds = 1024
)

// Pod is answer.h's struct pod.
type Pod struct {
	What, Dev     uint32
	Asked, Denied uint64
}

// Question is answer.h's struct question: what is asked, and where.
type Question struct {
	_    [0]uint64 // as the kernel, the seal is made of words
	at   [16]byte
	kind [2]byte // the type, as in the message
	size byte
	form byte
	like uint32 // 0: anybody
	name [maxName]byte
}

const (
	withEDNS byte = 1 << iota
	withDO
	withCD
	withAD
)

const (
	headerSize = 12
	optSize    = 11
	rd, ad, cd = 1, 0x20, 0x10
)

// Read reads a query that was asked at an address: a message with one question of class IN, whose name is given in lower case. It reports whether the program would
// answer such a one.
func (q *Question) Read(at netip.Addr, msg, name []byte) bool {
	end := headerSize + len(name) + 4
	if len(name) > maxName || len(msg) < end || msg[2]&^rd != 0 || msg[3]&^(ad|cd) != 0 {
		return false
	}
	*q = Question{at: at.As16(), kind: [2]byte(msg[end-4:]), size: byte(len(name))}
	copy(q.name[:], name)
	if msg[3]&cd != 0 {
		q.form |= withCD
	}
	if msg[3]&ad != 0 {
		q.form |= withAD
	}
	if msg[11] == 0 {
		return len(msg) == end
	}
	opt := msg[end:]
	if len(opt) != optSize || [3]byte(opt) != [3]byte{0, 0, 41} || opt[5] != 0 || opt[6] != 0 || opt[7]&^0x80 != 0 || [3]byte(opt[8:]) != [3]byte{} {
		return false
	}
	q.form |= withEDNS
	if opt[7] != 0 {
		q.form |= withDO
	}
	return true
}

// Of makes the question one of pods that are answered alike, as [Answers.SetAlike] tells them apart; 0: of anybody.
func (q *Question) Of(like uint32) { q.like = like }

// Answer is answer.h's struct answer: what follows the question.
type Answer struct {
	seal, until        uint64
	all, number, slot  uint32
	kind, size, serial uint16
	sum                [2]byte
	records, record    byte
	header             [8]byte
	sample             byte
	_                  byte
	rest               [maxRest]byte
}

// Form is what there is to know of an answer beside the message.
type Form struct {
	// Serial is where in the message the number of the state is, of four octets; 0: it is not.
	Serial int
	// Shuffled is how many of the first records may be in any order; all have as many octets as the first.
	Shuffled int
	// Sample is of how many questions one is left to the DNS, up to 255; 0: none is.
	Sample uint8
	// Until is when it ends, by the kernel's monotonic clock; 0: not by time.
	Until uint64
}

// Set makes an answer of a message, the name of whose question has so many octets. It reports whether there is room for it.
func (e *Answer) Set(msg []byte, name int, f Form) bool {
	end := headerSize + name + 4
	rest := msg[end:]
	if len(rest) > maxRest {
		return false
	}
	*e = Answer{until: f.Until, size: uint16(len(rest)), sample: f.Sample, header: [8]byte{msg[2] &^ rd, msg[3] &^ cd, 6: msg[10], 7: msg[11]}}
	copy(e.header[2:], msg[6:10])
	copy(e.rest[:], rest)
	if f.Serial != 0 {
		at := f.Serial - end
		e.serial = uint16(at)
		clear(e.rest[at : at+4])
	}
	if f.Shuffled > 1 {
		e.records = byte(f.Shuffled)
		e.record = 12 + rest[11] // the owner is a pointer, and no data is longer than that of AAAA
	}
	e.sum = sum(e.rest[:])
	return true
}

// sealed is answer.h's seal_of: what makes an answer the one to a question.
func sealed(q *Question, e *Answer) uint64 {
	const odd = 0x9e3779b97f4a7c15
	h := [4]uint64{1, 2, 3, 4}
	mix := func(at int, words []uint64) {
		for i, w := range words {
			if at+i != questionWords {
				h[(at+i)&3] = (h[(at+i)&3] ^ w) * odd
			}
		}
	}
	mix(0, (*[questionWords]uint64)(unsafe.Pointer(q))[:])
	mix(questionWords, (*[answerWords]uint64)(unsafe.Pointer(e))[:])
	return (((h[0]*odd)^h[1])*odd^h[2])*odd ^ h[3]
}

const (
	questionWords = int(unsafe.Sizeof(Question{}) / 8)
	answerWords   = int(unsafe.Sizeof(Answer{}) / 8)
)

// sum is what the Internet's checksum (RFC 1071) adds up.
func sum(b []byte) (out [2]byte) {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	binary.BigEndian.PutUint16(out[:], uint16(s))
	return out
}
