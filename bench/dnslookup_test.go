// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func TestCandidates(t *testing.T) {
	search := []string{"a.local", "local"}
	for _, row := range []struct {
		name string
		want []string
	}{
		{"www.example.com", []string{"www.example.com.a.local", "www.example.com.local", "www.example.com"}},
		{"a.b.c.d.e.f", []string{"a.b.c.d.e.f", "a.b.c.d.e.f.a.local", "a.b.c.d.e.f.local"}},
	} {
		if got := candidates(row.name, search, 5); !slices.Equal(got, row.want) {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}

func runLookup(t *testing.T, args ...string) (r lookedUp) {
	t.Helper()
	var out bytes.Buffer
	if err := lookup(args, &out); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// A lookup takes two queries for each candidate up to the one that is there, and finds it in whatever order answers come.
func TestLookup(t *testing.T) {
	to := testServer(t, func(msg []byte) []byte {
		out, _ := answerOutside(msg, 0)
		return out
	})
	args := []string{"-to", to, "-workers", "2", "-n", "5", "-warm", "0s", "-count", "1m"}
	if r := runLookup(t, args...); r.Errors != 0 || r.All != 10 || r.Lookups != 10 || r.Queries != 10*2*4 {
		t.Errorf("with the search list of a pod: %+v", r)
	}
	if r := runLookup(t, append(args, "-ndots", "1")...); r.Errors != 0 || r.Queries != 10*2 {
		t.Errorf("with ndots 1: %+v", r)
	}
	if r := runLookup(t, append(args, "-search", "x")...); r.Errors != 0 || r.Queries != 10*2*2 {
		t.Errorf("with one search domain: %+v", r)
	}
	for name, answer := range map[string]func([]byte) []byte{
		"refused": func(msg []byte) []byte { msg[2], msg[3] = msg[2]|0x80, 5; return msg },
		"nothing": func(msg []byte) []byte { msg[2], msg[3] = msg[2]|0x80, rcodeNotFound; return msg },
	} {
		if r := runLookup(t, "-to", testServer(t, answer), "-workers", "1", "-n", "3", "-warm", "0s"); r.Errors != 3 || r.FirstError == "" || r.Lookups != 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if err := lookup([]string{"-to", "x"}, &bytes.Buffer{}); err == nil {
		t.Error("no address: want an error")
	}
}

func TestOutsideAddress(t *testing.T) {
	q := mustQuestion(t, "www.example.com.shop.svc.cluster.local", typeA, rcodeSuccess)
	record := func(m *dnsmessage.Message, name string, body dnsmessage.ResourceBody) {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET}, Body: body,
		})
	}
	const target = "www.example.com."
	right := &dnsmessage.AResource{A: [4]byte{198, 51, 100, 1}}
	for _, row := range []struct {
		name   string
		change func(*dnsmessage.Message)
		found  bool
		err    error
	}{
		{"there", func(m *dnsmessage.Message) { record(m, q.name+".", right) }, true, nil},
		{"behind an alias", func(m *dnsmessage.Message) {
			record(m, q.name+".", &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(target)})
			record(m, target, right)
		}, true, nil},
		{"an alias to nothing", func(m *dnsmessage.Message) {
			record(m, q.name+".", &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(target)})
		}, false, nil},
		{"no data", nil, false, nil},
		{"no such name", func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }, false, nil},
		{"failed", func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeServerFailure }, false, errRcode},
		{"another address", func(m *dnsmessage.Message) { record(m, q.name+".", &dnsmessage.AResource{A: [4]byte{6, 6, 6, 6}}) }, false, errAddress},
		{"no answer", func(m *dnsmessage.Message) { m.Response = false }, false, errShort},
	} {
		found, err := outsideAddress(&q, answerTo(t, q, row.change))
		if found != row.found || !errors.Is(err, row.err) {
			t.Errorf("%s: %v, %v", row.name, found, err)
		}
	}
	whole := answerTo(t, q, func(m *dnsmessage.Message) { record(m, q.name+".", right) })
	for n := range whole {
		if found, err := outsideAddress(&q, whole[:n]); found || err == nil {
			t.Errorf("%d bytes of %d: %v, %v", n, len(whole), found, err)
		}
	}
}

// What a pod asks of a server is judged against the server's own work, and the goal only with the switches on.
func TestReportLookups(t *testing.T) {
	s := testSuite()
	rounds := func(perSecond int, queries int) []looked {
		return []looked{{lookedUp{Lookups: perSecond, All: 10, Queries: queries, Seconds: 1}, 100, 0.5}}
	}
	s.reportLookups("switches off", rounds(100, 80), rounds(100, 80), rounds(100, 80), rounds(50, 80), nil)
	s.reportLookups("switches on", rounds(100, 20), rounds(100, 80), rounds(300, 20), rounds(50, 80), atLeast(4.5))
	goals := 0
	for _, f := range s.figures {
		if f.Goal != "" {
			goals++
			if f.Ratio != 6 || !*f.Met {
				t.Errorf("%+v", f)
			}
		}
		if strings.HasPrefix(f.Figure, "queries by the pod") && strings.HasSuffix(f.Figure, "on") && (f.Value != 2 || f.RivalValue != 8 || f.Ratio != 4) {
			t.Errorf("%+v", f)
		}
	}
	if goals != 1 {
		t.Errorf("%d goals", goals)
	}
}
