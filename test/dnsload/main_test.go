// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"net"
	"testing"
	"time"
)

// peculiar is a server that treats each query by its number.
func peculiar(t *testing.T, answer func(n int, reply func(change func([]byte)))) *load {
	t.Helper()
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		buf := make([]byte, 512)
		for n := 0; ; n++ {
			size, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			msg := append([]byte(nil), buf[:size]...)
			msg[2] |= 0x80
			msg[7] = 1 // as if there were a record
			answer(n, func(change func([]byte)) {
				out := append([]byte(nil), msg...)
				if change != nil {
					change(out)
				}
				server.WriteToUDPAddrPort(out, from)
			})
		}
	}()
	query, err := pack("orders.shop.svc.cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	l := &load{query: query, timeout: 300 * time.Millisecond}
	for range 3 {
		conn, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		l.lines = append(l.lines, &line{conn: conn})
	}
	return l
}

// Every query is one of answered and lost, and what else comes is counted by what it is.
func TestCounts(t *testing.T) {
	l := peculiar(t, func(n int, reply func(func([]byte))) {
		switch {
		case n >= 100:
			reply(nil)
		case n%10 == 3: // lost
		case n%10 == 5:
			reply(nil)
			reply(nil)
		case n%10 == 7:
			reply(func(m []byte) { m[3] = 2 })
		case n%10 == 8:
			reply(func(m []byte) { m[7] = 0 })
		case n%10 == 9:
			reply(func(m []byte) { binary.BigEndian.PutUint16(m, 60_000) })
		default:
			reply(nil)
		}
	})
	s := l.run(t.Context(), 2000, 200*time.Millisecond)
	if s.Sent < 200 || s.Lost != 40 || s.Wrong != 30 || s.Repeated != 10 || s.Answered != s.Sent-40 || s.Refused != 0 {
		t.Errorf("%+v", s)
	}
	if s.Max <= 0 || s.P99 > s.Max || s.Median > s.P99 || s.MaxAt.IsZero() {
		t.Errorf("%+v", s)
	}
}

// Ids go round, and each answer is for the newest query of its id.
func TestIDsGoRound(t *testing.T) {
	s := &line{}
	began := time.Now()
	for range 70_000 {
		s.sent, s.took = append(s.sent, began), append(s.took, 0)
	}
	msg := []byte{0, 0, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0}
	for _, tc := range []struct{ id, want int }{{0, 65_536}, {4463, 69_999}, {4464, 4464}, {65_535, 65_535}} {
		binary.BigEndian.PutUint16(msg, uint16(tc.id))
		s.hear(msg, began.Add(time.Second))
		if s.took[tc.want] != time.Second {
			t.Errorf("the answer with id %d is not that of query %d", tc.id, tc.want)
		}
	}
	if s.open() != 70_000-4 || s.wrong+s.repeated != 0 {
		t.Errorf("%d open, %+v wrong", s.open(), s.wrong+s.repeated)
	}
	for _, bad := range [][]byte{nil, make([]byte, 11), make([]byte, 12)} {
		s.hear(bad, began)
	}
	if s.wrong != 3 {
		t.Errorf("%d wrong, want 3", s.wrong)
	}
}

// A closed port refuses; nothing of that is an answer.
func TestRefused(t *testing.T) {
	l := peculiar(t, func(int, func(func([]byte))) {})
	probe, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialUDP("udp", nil, probe.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	probe.Close()
	l.lines = []*line{{conn: conn}}
	s := l.run(t.Context(), 100, 100*time.Millisecond)
	if s.Refused == 0 || s.Answered != 0 || s.Lost != s.Sent {
		t.Errorf("%+v", s)
	}
}

// The end of the context ends the sending; what was sent is still waited for.
func TestEnds(t *testing.T) {
	l := peculiar(t, func(_ int, reply func(func([]byte))) { reply(nil) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if s := l.run(ctx, 1000, time.Hour); s.Sent == 0 || s.Answered != s.Sent {
		t.Errorf("%+v", s)
	}
	for _, name := range []string{"", "a..b", string(make([]byte, 64))} {
		if _, err := pack(name); err == nil {
			t.Errorf("%q is packed", name)
		}
	}
}
