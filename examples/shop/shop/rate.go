// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// steady asks for one name at a steady rate, whether answers come or not, from
// one socket. It notes what an observer needs to judge the server: when the
// queries were sent that were answered, and when those that were denied.
type steady struct {
	conn  net.Conn
	query []byte

	mu    sync.Mutex
	sent  [1 << 16]time.Time // by id; zero: answered, or never sent
	s     *sighting
	first chan netip.Addr
	done  chan struct{} // closed when no more answers are read
}

// steadily begins to ask for a name, rate times a second, until ctx or end ends
// it. It writes what it sees to s, which is the caller's after end.
func (c resolver) steadily(ctx context.Context, name string, rate int, s *sighting) (*steady, error) {
	query, err := packQuery(0, name, typeA)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", c.server)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.server, err)
	}
	q := &steady{conn: conn, query: query, s: s, first: make(chan netip.Addr, 1), done: make(chan struct{})}
	context.AfterFunc(ctx, func() { conn.Close() })
	go q.read()
	go q.send(ctx, rate)
	return q, nil
}

// send keeps the rate over any time longer than a millisecond.
func (q *steady) send(ctx context.Context, rate int) {
	start, id := time.Now(), uint16(0)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n := 0; ; {
		for due := int(time.Since(start).Seconds() * float64(rate)); n < due; n++ {
			binary.BigEndian.PutUint16(q.query, id)
			q.mu.Lock()
			q.sent[id] = time.Now()
			q.mu.Unlock()
			if _, err := q.conn.Write(q.query); err != nil && ctx.Err() != nil {
				return
			}
			id++
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (q *steady) read() {
	defer close(q.done)
	buf := make([]byte, 4096)
	for {
		n, err := q.conn.Read(buf)
		if err != nil {
			return
		}
		if n < 2 {
			continue
		}
		id := binary.BigEndian.Uint16(buf)
		r, err := unpackReply(buf[:n], id)
		if err != nil {
			continue
		}
		q.answered(id, r)
	}
}

func (q *steady) answered(id uint16, r reply) {
	q.mu.Lock()
	defer q.mu.Unlock()
	sent := q.sent[id]
	if sent.IsZero() {
		return
	}
	q.sent[id] = time.Time{}
	after := !q.s.FirstAnswer.IsZero()
	switch {
	case len(r.addrs) == 0 && sent.After(q.s.LastMissing):
		q.s.LastMissing = sent
	case len(r.addrs) > 0 && !after:
		q.s.FirstAnswer = time.Now()
		q.first <- r.addrs[0]
	}
	switch {
	case !after:
		q.s.Asked++
		if len(r.addrs) == 0 {
			q.s.Missing++
		}
	case len(r.addrs) == 0 && sent.After(q.s.FirstAnswer):
		q.s.TakenBack++
		fallthrough
	default:
		q.s.AskedAfter++
	}
}

// connect makes the connection that the answer promised, while the asking goes on.
func (q *steady) connect(ctx context.Context, addr netip.Addr, port string) {
	result := sighting{Name: q.s.Name}
	result.connect(ctx, net.JoinHostPort(addr.String(), port))
	sleepUntil(ctx, time.Now().Add(afterglow))
	q.mu.Lock()
	defer q.mu.Unlock()
	q.s.Addr, q.s.ConnectMS, q.s.FirstOK, q.s.Pod = addr.String(), result.ConnectMS, result.FirstOK, result.Pod
	q.s.Outcome, q.s.Error = result.Outcome, result.Error
}

// end ends the asking, and counts what has not been answered a second before as lost.
func (q *steady) end() {
	q.conn.Close()
	<-q.done
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, sent := range q.sent {
		if !sent.IsZero() && time.Since(sent) > time.Second {
			q.s.Lost++
		}
	}
}
