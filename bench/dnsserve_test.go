// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// The upstream knows the names directly below its zone, in both families, and says of nothing else that it is there.
func TestAnswerOutside(t *testing.T) {
	const asked = 0x01020304
	for _, row := range []struct {
		name  string
		qtype uint16
		rcode dnsmessage.RCode
		want  string // of the first record's body
		count bool
	}{
		{"www.example.com", typeA, dnsmessage.RCodeSuccess, "[198 51 100 1]", true},
		{"WWW.Example.COM", typeA, dnsmessage.RCodeSuccess, "[198 51 100 1]", true},
		{"www.example.com", typeAAAA, dnsmessage.RCodeSuccess, "[32 1 13 184 0 0 0 0 0 0 0 0 0 0 0 1]", true},
		{"www.example.com", 15, dnsmessage.RCodeSuccess, "", true},
		{"a.www.example.com", typeA, dnsmessage.RCodeNameError, "", true},
		{"www.example.com.svc.cluster.local", typeA, dnsmessage.RCodeNameError, "", true},
		{"local", typeA, dnsmessage.RCodeNameError, "", true},
		{counter, typeA, dnsmessage.RCodeSuccess, "[1 2 3 4]", false},
	} {
		q := mustQuestion(t, row.name, row.qtype, 0)
		out, counted := answerOutside(q.packet, asked)
		var m dnsmessage.Message
		if err := m.Unpack(out); err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		body := ""
		if len(m.Answers) > 0 {
			switch b := m.Answers[0].Body.(type) {
			case *dnsmessage.AResource:
				body = sprint(b.A)
			case *dnsmessage.AAAAResource:
				body = sprint(b.AAAA)
			}
		}
		if m.RCode != row.rcode || body != row.want || counted != row.count || !m.Response || !m.Authoritative || !m.RecursionDesired {
			t.Errorf("%s %d: %+v, counted %v", row.name, row.qtype, m, counted)
		}
		if (body == "") != (len(m.Authorities) == 1) {
			t.Errorf("%s %d: %d records of authority", row.name, row.qtype, len(m.Authorities))
		}
	}
	good := mustQuestion(t, "www.example.com", typeA, 0).packet
	for n := range good {
		if out, _ := answerOutside(good[:n], 0); out != nil {
			t.Errorf("%d bytes of %d are answered", n, len(good))
		}
	}
	answer, _ := answerOutside(good, 0)
	if out, _ := answerOutside(answer, 0); out != nil {
		t.Error("an answer is answered")
	}
}

func FuzzAnswerOutside(f *testing.F) {
	f.Add(mustQuestion(f, "www.example.com", typeA, 0).packet)
	f.Add(mustQuestion(f, "other.local", typeAAAA, 0).packet)
	f.Fuzz(func(t *testing.T, msg []byte) {
		out, _ := answerOutside(msg, 7)
		if out == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(out); err == nil && (!m.Response || len(m.Questions) != 1) {
			t.Errorf("%x is answered with %+v", msg, m)
		}
	})
}
