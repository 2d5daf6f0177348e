// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// testServer answers on loopback with what a function makes of each query; nothing where it makes nothing.
func testServer(t *testing.T, answer func(msg []byte) []byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if out := answer(slices.Clone(buf[:n])); out != nil {
				_, _ = conn.WriteTo(out, from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

// testZone is a server that knows questions, and a file of them.
func testZone(t *testing.T) (questions []question, path string, answer func([]byte) []byte) {
	t.Helper()
	questions = []question{
		mustQuestion(t, "one.local", typeA, rcodeSuccess, "10.0.0.1"),
		mustQuestion(t, "ten.local", typeA, rcodeSuccess, "10.0.1.1", "10.0.1.2", "10.0.1.3"),
		mustQuestion(t, "none.local", typeA, rcodeNotFound),
	}
	path = filepath.Join(t.TempDir(), "questions")
	var text bytes.Buffer
	if err := writeQuestions(&text, questions); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	known := map[string][]byte{}
	for _, q := range questions {
		known[string(q.packet[headerSize:])] = answerTo(t, q, nil)
	}
	return questions, path, func(msg []byte) []byte {
		out := slices.Clone(known[string(msg[headerSize:])])
		copy(out, msg[:2])
		return out
	}
}

func runClient(t *testing.T, args ...string) dnsResult {
	t.Helper()
	var out bytes.Buffer
	if err := dnsload(args, &out); err != nil {
		t.Fatal(err)
	}
	var r dnsResult
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// The client counts right answers, as many as were asked for, in both ways of asking.
func TestDNSLoad(t *testing.T) {
	_, path, answer := testZone(t)
	to := testServer(t, answer)
	r := runClient(t, "-to", to, "-questions", path, "-sources", "3", "-window", "7", "-n", "100", "-warm", "0s", "-count", "1m")
	if err := r.fault(); err != nil || r.All < 100 || r.All > 107 || r.Answers != r.All || r.P50 <= 0 || r.P50 > r.P99 || r.P99 > r.P999 {
		t.Errorf("as fast as it goes: %+v, %v", r, err)
	}
	r = runClient(t, "-to", to, "-questions", path, "-rate", "10000", "-n", "50", "-warm", "0s", "-count", "1m")
	r.Stall = 0 // the test's machine may be busy
	if err := r.fault(); err != nil || r.All != 50 {
		t.Errorf("at a rate: %+v, %v", r, err)
	}
	r = runClient(t, "-to", to, "-questions", path, "-warm", "1ms", "-count", "50ms")
	if err := r.fault(); err != nil || r.perSecond() <= 0 {
		t.Errorf("for a time: %+v, %v", r, err)
	}
}

// What is wrong, lost or of another question is told, and makes the round one with an error.
func TestDNSLoadFindsFaults(t *testing.T) {
	questions, path, answer := testZone(t)
	n := atomic.Int64{}
	every := func(k int64, do func([]byte) []byte) func([]byte) []byte {
		return func(msg []byte) []byte {
			if n.Add(1)%k == 0 {
				return do(msg)
			}
			return answer(msg)
		}
	}
	lie := answerTo(t, questions[0], func(m *dnsmessage.Message) { m.Answers[0].Body = &dnsmessage.AResource{A: [4]byte{6, 6, 6, 6}} })
	for _, row := range []struct {
		name string
		do   func([]byte) []byte
		want string
	}{
		{"lost", func([]byte) []byte { return nil }, "lost"},
		{"short", func([]byte) []byte { return []byte{1, 2} }, "wrong"},
		{"another id", func(msg []byte) []byte { msg[0] += 100; return answer(msg) }, "nothing waits for"},
		{"a lie", func(msg []byte) []byte {
			out := slices.Clone(lie)
			copy(out, msg[:2])
			return out
		}, "wrong"},
	} {
		to := testServer(t, every(10, row.do))
		r := runClient(t, "-to", to, "-questions", path, "-sources", "2", "-window", "4", "-n", "60", "-warm", "0s", "-count", "300ms")
		if err := r.fault(); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %+v, %v", row.name, r, err)
		}
	}
	if err := (dnsResult{}).fault(); err == nil {
		t.Error("no answer at all is no fault")
	}
	if err := (dnsResult{Answers: 1, All: 1, Stall: mostStall + 1}).fault(); err == nil || !strings.Contains(err.Error(), "stood still") {
		t.Errorf("a client that stood still: %v", err)
	}
}

// A server that is too slow for a rate ends the client, instead of making it wait.
func TestDNSLoadOverrun(t *testing.T) {
	_, path, _ := testZone(t)
	to := testServer(t, func([]byte) []byte { return nil })
	var out bytes.Buffer
	err := dnsload([]string{"-to", to, "-questions", path, "-sources", "1", "-window", "1", "-rate", "1e6", "-count", "1m"}, &out)
	if err == nil || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("%v, %s", err, out.String())
	}
}

func TestDNSLoadFlags(t *testing.T) {
	_, path, _ := testZone(t)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]string{
		{"-to", "here", "-questions", path},
		{"-to", "127.0.0.1:53", "-questions", path + "x"},
		{"-to", "127.0.0.1:53", "-questions", empty},
		{"-to", "127.0.0.1:53", "-questions", path, "-sources", "10", "-window", "9"},
		{"-to", "127.0.0.1:53", "-questions", path, "-sources", "1", "-window", "257"},
		{"-what"},
	} {
		if err := dnsload(bad, &bytes.Buffer{}); err == nil {
			t.Errorf("%v: want an error", bad)
		}
	}
}
