// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Types of DNS records, as far as anything is asked or checked here.
const (
	typeA    = 1
	typeAAAA = 28
)

// The answers that are expected: right, with or without addresses, or "there is no such name".
const (
	rcodeSuccess  = 0
	rcodeNotFound = 3
)

// question is a DNS question and its right answer.
type question struct {
	name   string
	qtype  uint16
	rcode  byte
	addrs  [][4]byte // of the answer, each once, in any order; at most 64
	packet []byte    // the whole query; its first two bytes are for the id
}

const (
	headerSize = 12
	mostAddrs  = 64
)

// newQuestion makes the query. It asks for recursion, as every pod's resolver does.
func newQuestion(name string, qtype uint16, rcode byte, addrs ...netip.Addr) (question, error) {
	q := question{name: strings.TrimSuffix(name, "."), qtype: qtype, rcode: rcode}
	if len(addrs) > mostAddrs {
		return q, fmt.Errorf("make question for %s: %d addresses in the answer, at most %d can be checked", name, len(addrs), mostAddrs)
	}
	for _, a := range addrs {
		q.addrs = append(q.addrs, a.As4())
	}
	q.packet = []byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(q.name, ".") {
		if len(label) == 0 || len(label) > 63 {
			return q, fmt.Errorf("make question for %q: a label of %d bytes", name, len(label))
		}
		q.packet = append(append(q.packet, byte(len(label))), label...)
	}
	q.packet = append(q.packet, 0)
	q.packet = binary.BigEndian.AppendUint16(q.packet, qtype)
	q.packet = binary.BigEndian.AppendUint16(q.packet, 1)
	return q, nil
}

// What can be wrong with an answer.
var (
	errShort     = errors.New("is no answer to the question")
	errTruncated = errors.New("is truncated")
	errRcode     = errors.New("has another response code")
	errCount     = errors.New("has another number of records")
	errRecord    = errors.New("has a record that cannot be read")
	errAddress   = errors.New("has an address that is not expected, or one twice")
)

// echoed says whether a message is the query come back, marked as an answer.
func (q *question) echoed(msg []byte) error {
	if len(msg) < len(q.packet) || msg[2]&0x80 == 0 || !bytes.Equal(msg[headerSize:len(q.packet)], q.packet[headerSize:]) {
		return errShort
	}
	return nil
}

// check says what is wrong with an answer whose id is right. It does not allocate: a client that checks every answer must be faster
// than every server.
func (q *question) check(msg []byte) error {
	if err := q.echoed(msg); err != nil {
		return err
	}
	switch {
	case msg[2]&0x02 != 0:
		return errTruncated
	case msg[3]&0x0f != q.rcode:
		return errRcode
	case int(binary.BigEndian.Uint16(msg[6:])) != len(q.addrs):
		return errCount
	}
	var found uint64
	at := len(q.packet)
	for range q.addrs {
		at = skipName(msg, at)
		if at < 0 || at+10 > len(msg) {
			return errRecord
		}
		rtype, size := binary.BigEndian.Uint16(msg[at:]), int(binary.BigEndian.Uint16(msg[at+8:]))
		at += 10
		if rtype != typeA || size != 4 || at+size > len(msg) {
			return errRecord
		}
		addr := [4]byte(msg[at:])
		at += size
		for i := range q.addrs {
			if q.addrs[i] == addr {
				found |= 1 << i
			}
		}
	}
	if found != 1<<len(q.addrs)-1 {
		return errAddress
	}
	return nil
}

// skipName is where the message goes on behind a name; below zero where it ends within.
func skipName(msg []byte, at int) int {
	for at < len(msg) {
		switch n := int(msg[at]); {
		case n == 0:
			return at + 1
		case n >= 0xc0:
			return at + 2
		default:
			at += 1 + n
		}
	}
	return -1
}

var typeNames = map[uint16]string{typeA: "A", typeAAAA: "AAAA"}

// writeQuestions writes a line for each: name, type, response code and addresses. dnsperf reads the same file's first two words.
func writeQuestions(w io.Writer, questions []question) error {
	out := bufio.NewWriter(w)
	for _, q := range questions {
		fmt.Fprintf(out, "%s %s %d", q.name, typeNames[q.qtype], q.rcode)
		for _, a := range q.addrs {
			fmt.Fprintf(out, " %s", netip.AddrFrom4(a))
		}
		out.WriteByte('\n')
	}
	return out.Flush()
}

// readQuestions reads what writeQuestions wrote.
func readQuestions(r io.Reader) (out []question, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			return nil, fmt.Errorf("parse question %q: want name, type and response code", lines.Text())
		}
		var qtype uint16
		for t, name := range typeNames {
			if name == fields[1] {
				qtype = t
			}
		}
		var rcode byte
		if _, err := fmt.Sscan(fields[2], &rcode); err != nil || qtype == 0 {
			return nil, fmt.Errorf("parse question %q: no such type or response code", lines.Text())
		}
		var addrs []netip.Addr
		for _, f := range fields[3:] {
			a, err := netip.ParseAddr(f)
			if err != nil || !a.Is4() {
				return nil, fmt.Errorf("parse question %q: %q is no IPv4 address", lines.Text(), f)
			}
			addrs = append(addrs, a)
		}
		q, err := newQuestion(fields[0], qtype, rcode, addrs...)
		if err != nil {
			return nil, err
		}
		out = append(out, q)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read questions: %w", err)
	}
	return out, nil
}
