// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func mustQuestion(t testing.TB, name string, qtype uint16, rcode byte, addrs ...string) question {
	t.Helper()
	var parsed []netip.Addr
	for _, a := range addrs {
		parsed = append(parsed, netip.MustParseAddr(a))
	}
	q, err := newQuestion(name, qtype, rcode, parsed...)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// answerTo is an answer as a server might make it.
func answerTo(t testing.TB, q question, change func(*dnsmessage.Message)) []byte {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(q.packet); err != nil {
		t.Fatal(err)
	}
	m.Response, m.RCode = true, dnsmessage.RCode(q.rcode)
	for _, a := range q.addrs {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 5},
			Body:   &dnsmessage.AResource{A: a},
		})
	}
	if change != nil {
		change(&m)
	}
	out, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The query is what another implementation reads as this question.
func TestNewQuestion(t *testing.T) {
	q := mustQuestion(t, "orders.shop.svc.cluster.local.", typeAAAA, rcodeSuccess)
	var m dnsmessage.Message
	if err := m.Unpack(q.packet); err != nil {
		t.Fatal(err)
	}
	if got := m.Questions[0]; len(m.Questions) != 1 || got.Name.String() != "orders.shop.svc.cluster.local." || got.Type != dnsmessage.TypeAAAA ||
		got.Class != dnsmessage.ClassINET || !m.RecursionDesired || m.Response {
		t.Errorf("%+v", m)
	}
	for _, bad := range []string{"", "a..b", strings.Repeat("x", 64) + ".local"} {
		if _, err := newQuestion(bad, typeA, rcodeSuccess); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
	if _, err := newQuestion("a", typeA, rcodeSuccess, make([]netip.Addr, mostAddrs+1)...); err == nil {
		t.Error("too many addresses: want an error")
	}
}

func TestCheck(t *testing.T) {
	one := mustQuestion(t, "one.local", typeA, rcodeSuccess, "10.0.0.1")
	three := mustQuestion(t, "three.local", typeA, rcodeSuccess, "10.0.0.1", "10.0.0.2", "10.0.0.3")
	none := mustQuestion(t, "none.local", typeAAAA, rcodeSuccess)
	gone := mustQuestion(t, "gone.local", typeA, rcodeNotFound)
	most := mustQuestion(t, "most.local", typeA, rcodeSuccess)
	for i := range mostAddrs {
		most.addrs = append(most.addrs, [4]byte{10, 0, 0, byte(i)})
	}
	for _, row := range []struct {
		name   string
		q      question
		change func(*dnsmessage.Message)
		want   error
	}{
		{"right", one, nil, nil},
		{"in another order", three, func(m *dnsmessage.Message) { slices.Reverse(m.Answers) }, nil},
		{"as many as can be", most, nil, nil},
		{"no data", none, nil, nil},
		{"no such name", gone, nil, nil},
		{"with more behind", one, func(m *dnsmessage.Message) {
			m.Authorities = append(m.Authorities, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.NSResource{NS: m.Questions[0].Name},
			})
		}, nil},
		{"the query itself", one, func(m *dnsmessage.Message) { m.Response = false }, errShort},
		{"another name", one, func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("two.local.") }, errShort},
		{"another type", one, func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeAAAA }, errShort},
		{"truncated", one, func(m *dnsmessage.Message) { m.Truncated = true }, errTruncated},
		{"refused", one, func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeRefused }, errRcode},
		{"found what is not there", gone, func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeSuccess }, errRcode},
		{"one missing", three, func(m *dnsmessage.Message) { m.Answers = m.Answers[1:] }, errCount},
		{"one too many", one, func(m *dnsmessage.Message) { m.Answers = append(m.Answers, m.Answers[0]) }, errCount},
		{"one twice", three, func(m *dnsmessage.Message) { m.Answers[2] = m.Answers[0] }, errAddress},
		{"another address", one, func(m *dnsmessage.Message) { m.Answers[0].Body = &dnsmessage.AResource{A: [4]byte{10, 0, 0, 9}} }, errAddress},
		{"an alias", one, func(m *dnsmessage.Message) {
			m.Answers[0].Header.Type, m.Answers[0].Body = dnsmessage.TypeCNAME, &dnsmessage.CNAMEResource{CNAME: m.Questions[0].Name}
		}, errRecord},
	} {
		if err := row.q.check(answerTo(t, row.q, row.change)); !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", row.name, err, row.want)
		}
	}
	// However short a message is cut, it is never taken for the answer.
	whole := answerTo(t, three, nil)
	for n := range whole {
		if err := three.check(whole[:n]); err == nil {
			t.Errorf("%d bytes of %d are right", n, len(whole))
		}
	}
	if n := testing.AllocsPerRun(100, func() { _ = three.check(whole) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestEchoed(t *testing.T) {
	q := mustQuestion(t, "one.local", typeA, rcodeSuccess, "10.0.0.1")
	msg := slices.Clone(q.packet)
	if err := q.echoed(msg); !errors.Is(err, errShort) {
		t.Errorf("not marked: %v", err)
	}
	msg[2] |= 0x80
	if err := q.echoed(msg); err != nil {
		t.Error(err)
	}
	msg[headerSize+1] ^= 0x20
	if err := q.echoed(msg); !errors.Is(err, errShort) {
		t.Errorf("another spelling: %v", err)
	}
}

// A message of any bytes is judged without a panic, and what is judged right has the addresses.
func FuzzCheck(f *testing.F) {
	q := mustQuestion(f, "three.local", typeA, rcodeSuccess, "10.0.0.1", "10.0.0.2", "10.0.0.3")
	f.Add(answerTo(f, q, nil))
	f.Add(answerTo(f, q, func(m *dnsmessage.Message) { m.Answers = nil }))
	f.Add(q.packet)
	f.Fuzz(func(t *testing.T, msg []byte) {
		if q.check(msg) != nil {
			return
		}
		for _, a := range q.addrs {
			if !bytes.Contains(msg, a[:]) {
				t.Errorf("%x is right, and has no %v", msg, a)
			}
		}
	})
}

func TestQuestionsFile(t *testing.T) {
	want := []question{
		mustQuestion(t, "one.local", typeA, rcodeSuccess, "10.0.0.1"),
		mustQuestion(t, "two.local", typeAAAA, rcodeSuccess),
		mustQuestion(t, "none.local", typeA, rcodeNotFound),
		mustQuestion(t, "three.local", typeA, rcodeSuccess, "10.0.0.1", "10.0.0.2"),
	}
	var text bytes.Buffer
	if err := writeQuestions(&text, want); err != nil {
		t.Fatal(err)
	}
	got, err := readQuestions(&text)
	if err != nil {
		t.Fatal(err)
	}
	equal := func(a, b question) bool {
		return a.name == b.name && a.qtype == b.qtype && a.rcode == b.rcode && slices.Equal(a.addrs, b.addrs) && bytes.Equal(a.packet, b.packet)
	}
	if !slices.EqualFunc(got, want, equal) {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, bad := range []string{"one.local A", "one.local MX 0", "one.local A x", "one.local A 0 ten", "one.local A 0 fd00::1", "..local A 0"} {
		if _, err := readQuestions(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}
