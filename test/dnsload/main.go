// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command dnsload sends DNS queries at a steady rate whether they are answered or not, each of them once, and tells in a line of JSON what became of them. It is
// for finding out whether a server loses any: a resolver would ask again and hide it.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Summary is what the program prints.
type Summary struct {
	// Sent are the queries that the kernel took, and Answered those that were answered in time and rightly.
	Sent, Answered int
	// Lost were not answered in time, or not at all; Refused were answered by an ICMP message instead, and Wrong with another response code than
	// NOERROR or without a record.
	Lost, Refused, Wrong int
	// Repeated are answers to what was answered before. They do no harm.
	Repeated int
	// Seconds is how long queries were sent.
	Seconds float64
	// Milliseconds from query to answer.
	Median, P99, Max float64
	// MaxAt is when the query was sent that took the longest, and Late how far sending once fell behind, in milliseconds.
	MaxAt time.Time
	Late  float64
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "dnsload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	server := flag.String("server", "10.96.0.10:53", "`ADDR:PORT` to ask")
	rate := flag.Int("rate", 1000, "queries a second")
	duration := flag.Duration("duration", 10*time.Second, "how long")
	timeout := flag.Duration("timeout", 5*time.Second, "how long an answer may take")
	sockets := flag.Int("sockets", 32, "sockets to send from, in turn")
	flag.Parse()
	to, err := netip.ParseAddrPort(*server)
	if err != nil || flag.NArg() != 1 || *rate < 1 || *sockets < 1 {
		return errors.New("want one NAME, and ADDR:PORT as the server")
	}
	query, err := pack(flag.Arg(0))
	if err != nil {
		return err
	}
	l := load{query: query, timeout: *timeout}
	for range *sockets {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetReadBuffer(4 << 20)
		l.lines = append(l.lines, &line{conn: conn})
	}
	return json.NewEncoder(os.Stdout).Encode(l.run(ctx, *rate, *duration))
}

// pack makes the question for a name's A record (RFC 1035, section 4.1).
func pack(name string) ([]byte, error) {
	msg := []byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if len(label) == 0 || len(label) > 63 || len(msg) > 250 {
			return nil, fmt.Errorf("%q is no name", name)
		}
		msg = append(append(msg, byte(len(label))), label...)
	}
	return append(msg, 0, 0, 1, 0, 1), nil
}

// load is everything that is asked.
type load struct {
	query   []byte
	timeout time.Duration
	lines   []*line
}

// line is one socket and what was asked from it. A query's number is its id, modulo 65536.
type line struct {
	conn *net.UDPConn

	mu       sync.Mutex
	sent     []time.Time
	took     []time.Duration // 0: not answered
	wrong    int
	refused  int
	repeated int
}

func (l *load) run(ctx context.Context, rate int, duration time.Duration) *Summary {
	var readers sync.WaitGroup
	for _, s := range l.lines {
		readers.Go(s.read)
	}
	s := &Summary{}
	began := time.Now()
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	msg := slices.Clone(l.query)
	for n := 0; ctx.Err() == nil; {
		now := time.Since(began)
		if now > duration {
			break
		}
		due := int(now.Seconds() * float64(rate))
		s.Late = max(s.Late, float64(due-n)/float64(rate)*1000)
		for ; n < due; n++ {
			l.lines[n%len(l.lines)].send(msg)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	s.Seconds = time.Since(began).Seconds()
	l.wait()
	for _, one := range l.lines {
		one.conn.SetReadDeadline(time.Unix(1, 0))
	}
	readers.Wait()
	l.sum(s)
	return s
}

// wait returns when all is answered, or can be no more.
func (l *load) wait() {
	for end := time.Now().Add(l.timeout); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if !slices.ContainsFunc(l.lines, func(s *line) bool { return s.open() > 0 }) {
			return
		}
	}
}

func (s *line) open() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, took := range s.took {
		if took == 0 {
			n++
		}
	}
	return n - s.refused
}

func (s *line) send(msg []byte) {
	s.mu.Lock()
	binary.BigEndian.PutUint16(msg, uint16(len(s.sent)))
	s.sent, s.took = append(s.sent, time.Now()), append(s.took, 0)
	s.mu.Unlock()
	// An error here is about an earlier query: it was refused. This one has not been sent then, and is the one to count as not answered.
	if _, err := s.conn.Write(msg); err != nil {
		s.mu.Lock()
		s.refused++
		s.mu.Unlock()
	}
}

func (s *line) read() {
	buf := make([]byte, 4096)
	for {
		n, err := s.conn.Read(buf)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			s.mu.Lock()
			s.refused++
			s.mu.Unlock()
			continue
		case err != nil:
			return
		}
		s.hear(buf[:n], time.Now())
	}
}

func (s *line) hear(msg []byte, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(msg) < 12 || len(s.sent) == 0 {
		s.wrong++
		return
	}
	// The newest query of this id.
	last := len(s.sent) - 1
	i := last - int(uint16(last)-binary.BigEndian.Uint16(msg))
	switch {
	case i < 0 || msg[2]&0x80 == 0 || msg[3]&0xf != 0 || binary.BigEndian.Uint16(msg[6:]) == 0:
		s.wrong++
	case s.took[i] != 0:
		s.repeated++
	default:
		s.took[i] = max(1, now.Sub(s.sent[i]))
	}
}

// sum adds everything up.
func (l *load) sum(s *Summary) {
	var all []time.Duration
	var worst time.Duration
	for _, one := range l.lines {
		s.Sent += len(one.sent)
		s.Wrong += one.wrong
		s.Refused += one.refused
		s.Repeated += one.repeated
		for i, took := range one.took {
			if took == 0 || took > l.timeout {
				s.Lost++
				continue
			}
			s.Answered++
			all = append(all, took)
			if took > worst {
				worst, s.MaxAt = took, one.sent[i]
			}
		}
	}
	slices.Sort(all)
	at := func(share float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return float64(all[min(len(all)-1, int(share*float64(len(all))))].Microseconds()) / 1000
	}
	s.Median, s.P99, s.Max = at(0.5), at(0.99), at(1)
}
