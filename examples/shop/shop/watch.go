// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// afterglow is how long a name is asked on after the connection was made: a
// "not found" in that time would be an answer taken back.
const afterglow = 50 * time.Millisecond

// sighting is what became of one name. Times are the machine's, so whoever
// created the Service on the same machine can subtract.
type sighting struct {
	Name        string    `json:"name"`
	Addr        string    `json:"addr,omitempty"`
	Asked       int       `json:"asked"`        // queries sent until the first answer
	Missing     int       `json:"missing"`      // of them answered "not found" or without records
	Lost        int       `json:"lost"`         // of them, with -rate of all, not answered in a second
	LastMissing time.Time `json:"last_missing"` // with -rate: when the last query was sent that was answered "not found"
	FirstAnswer time.Time `json:"first_answer"` // when the first answer with an address arrived
	FirstOK     time.Time `json:"first_ok"`     // when the answer to the HTTP request at that address was read
	ConnectMS   float64   `json:"connect_ms"`   // time for the connection and the request
	AskedAfter  int       `json:"asked_after"`  // queries answered after the first answer
	TakenBack   int       `json:"taken_back"`   // of them answered otherwise than with an address
	Outcome     string    `json:"outcome"`      // "ok", or the kind of failure
	Error       string    `json:"error,omitempty"`
	Pod         string    `json:"pod,omitempty"`
}

// watchMain asks for each name in turn until there is an address, connects to
// the first one at once, and prints a line of JSON per name as it goes. It asks
// for the next name as soon as one is done, so whoever creates the names one
// by one finds it already asking.
func watchMain(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("watch-name", flag.ContinueOnError)
	timeout := fs.Duration("timeout", 30*time.Second, "longest time to wait for one name")
	rate := fs.Int("rate", 0, "ask so many times a second, for the name in the first search domain only, whether answers come or not (default: without a pause, one after the other)")
	targets, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(targets) == 0 || *rate < 0 || *rate > 20_000 {
		return errors.New("watch-name: which NAME:PORT, and a -rate up to 20000?")
	}
	c, err := loadResolver()
	if err != nil {
		return fmt.Errorf("watch-name: %w", err)
	}
	enc := json.NewEncoder(out)
	var failed error
	for _, t := range targets {
		host, port, err := net.SplitHostPort(t)
		if err != nil {
			return fmt.Errorf("watch-name: %w", err)
		}
		s := c.watch(ctx, host, port, *timeout, *rate)
		if s.Outcome != "ok" || s.TakenBack > 0 {
			failed = errFailed
		}
		if err := enc.Encode(s); err != nil {
			return fmt.Errorf("write sighting: %w", err)
		}
	}
	return failed
}

// watch waits for one name and connects to it, while the asking goes on.
func (c resolver) watch(ctx context.Context, host, port string, timeout time.Duration, rate int) sighting {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s := sighting{Name: host}
	await := c.await
	if rate > 0 {
		await = func(ctx context.Context, host string, s *sighting) (netip.Addr, func(), error) {
			return c.awaitSteadily(ctx, host, rate, s)
		}
	}
	addr, end, err := await(ctx, host, &s)
	if err != nil {
		s.Outcome, s.Error = "timeout", err.Error()
		if ctx.Err() == nil {
			s.Outcome = "error"
		}
		return s
	}
	s.Addr = addr.String()
	s.connect(ctx, net.JoinHostPort(s.Addr, port))
	sleepUntil(ctx, time.Now().Add(afterglow))
	end()
	return s
}

// await asks for every candidate name, round after round without a pause,
// until one has an address. It goes on asking for that one until end is called.
func (c resolver) await(ctx context.Context, host string, s *sighting) (addr netip.Addr, end func(), err error) {
	names := c.candidates(host)
	for {
		for _, name := range names {
			one, cancel := context.WithTimeout(ctx, time.Second)
			r, err := ask(one, c.server, name, typeA)
			cancel()
			if ctx.Err() != nil {
				return addr, nil, fmt.Errorf("no address for %s: %w", host, ctx.Err())
			}
			s.Asked++
			switch {
			case err != nil:
				s.Lost++
			case len(r.addrs) > 0:
				s.FirstAnswer = time.Now()
				asking, stop := context.WithCancel(ctx)
				done := make(chan struct{})
				go func() {
					defer close(done)
					c.askOn(asking, name, s)
				}()
				return r.addrs[0], func() { stop(); <-done }, nil
			default:
				s.Missing++
			}
		}
	}
}

// askOn asks for a name that exists until ctx ends, and counts answers that
// deny it.
func (c resolver) askOn(ctx context.Context, name string, s *sighting) {
	for ctx.Err() == nil {
		one, cancel := context.WithTimeout(ctx, time.Second)
		r, err := ask(one, c.server, name, typeA)
		cancel()
		if err != nil {
			continue
		}
		s.AskedAfter++
		if len(r.addrs) == 0 {
			s.TakenBack++
		}
	}
}

// connect makes the one request that the answer promised would work. It writes
// nothing that those who ask meanwhile write.
func (s *sighting) connect(ctx context.Context, target string) {
	start := time.Now()
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	a, err := fetch(ctx, client, "http://"+target+"/")
	s.ConnectMS = ms(time.Since(start))
	if err != nil {
		s.Outcome, s.Error = kindOf(err), err.Error()
		return
	}
	s.FirstOK, s.Outcome, s.Pod = time.Now(), "ok", a.Pod
}
