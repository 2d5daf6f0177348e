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
}

// awaitSteadily asks for the first candidate name, rate times a second, until
// there is an address, and on until end is called, which waits for what can
// still be answered.
func (c resolver) awaitSteadily(ctx context.Context, host string, rate int, s *sighting) (addr netip.Addr, end func(), err error) {
	query, err := packQuery(0, c.candidates(host)[0], typeA)
	if err != nil {
		return addr, nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", c.server)
	if err != nil {
		return addr, nil, fmt.Errorf("ask %s: %w", c.server, err)
	}
	q := &steady{conn: conn, query: query, s: s, first: make(chan netip.Addr, 1)}
	asking, stop := context.WithCancel(ctx)
	var sender, reader sync.WaitGroup
	sender.Go(func() { q.send(asking, rate) })
	reader.Go(q.read)
	end = func() {
		stop()
		sender.Wait()
		lost := q.settle(ctx)
		conn.Close()
		reader.Wait()
		s.Lost += lost
	}
	select {
	case addr := <-q.first:
		return addr, end, nil
	case <-ctx.Done():
		end()
		return addr, nil, fmt.Errorf("no address for %s: %w", host, ctx.Err())
	}
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
			if !q.sent[id].IsZero() {
				q.s.Lost++ // ids go round in seconds
			}
			q.sent[id] = time.Now()
			q.mu.Unlock()
			_, _ = q.conn.Write(q.query) // what is not sent is not answered
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

// settle waits until every query is answered or, a second after it was sent,
// lost, and counts the latter.
func (q *steady) settle(ctx context.Context) (lost int) {
	for {
		young := 0
		lost = 0
		q.mu.Lock()
		for _, sent := range q.sent {
			switch {
			case sent.IsZero():
			case time.Since(sent) < time.Second:
				young++
			default:
				lost++
			}
		}
		q.mu.Unlock()
		if young == 0 || !sleepUntil(ctx, time.Now().Add(time.Millisecond)) {
			return lost
		}
	}
}
