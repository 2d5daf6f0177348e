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
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Bounds of every load: nothing this program does goes on for ever.
const (
	maxCount    = 10_000_000
	maxDuration = time.Hour
	maxFailures = 100 // failures listed one by one; the rest are only counted
)

// load says how many requests to make and how fast.
type load struct {
	count    int           // requests in all; 0: as many as duration and rate give
	rate     float64       // requests started per second; 0: as fast as workers go
	duration time.Duration // time in which requests are started; 0: until count
	workers  int           // requests in flight at most
	timeout  time.Duration // for one request, name lookup included
}

// flags adds the load's flags to fs.
func (l *load) flags(fs *flag.FlagSet) {
	fs.IntVar(&l.count, "n", 0, "requests to make")
	fs.Float64Var(&l.rate, "rate", 0, "requests to start per second (0: as fast as the workers go)")
	fs.DurationVar(&l.duration, "duration", 0, "time in which requests are started")
	fs.IntVar(&l.workers, "c", 0, "requests in flight at most (default 1, with -rate 256)")
	fs.DurationVar(&l.timeout, "timeout", 3*time.Second, "longest time for one request")
}

// many reports whether the flags ask for a series and its summary, rather than
// for one request and its answer.
func (l *load) many() bool { return l.count != 0 || l.duration != 0 || l.rate != 0 }

// check fills what was left out and refuses what cannot be meant.
func (l *load) check() error {
	if l.workers == 0 {
		l.workers = 1
		if l.rate > 0 {
			l.workers = 256
		}
	}
	switch {
	case l.count < 0 || l.count > maxCount:
		return fmt.Errorf("-n %d: must be 0 to %d", l.count, maxCount)
	case l.duration < 0 || l.duration > maxDuration:
		return fmt.Errorf("-duration %v: must be 0 to %v", l.duration, maxDuration)
	case l.rate < 0 || l.rate > 1e6:
		return fmt.Errorf("-rate %v: must be 0 to 1000000", l.rate)
	case l.workers < 1 || l.workers > 10_000:
		return fmt.Errorf("-c %d: must be 1 to 10000", l.workers)
	case l.timeout <= 0:
		return fmt.Errorf("-timeout %v: must be more than 0", l.timeout)
	case l.count == 0 && l.duration == 0:
		return errors.New("-rate needs -n or -duration")
	}
	return nil
}

// failure is one request that did not succeed.
type failure struct {
	Start  time.Time `json:"start"`
	TookMS float64   `json:"took_ms"`
	Kind   string    `json:"kind"`
	Error  string    `json:"error"`
}

// summary is what a series of requests came to.
type summary struct {
	Sent     int            `json:"sent"`
	OK       int            `json:"ok"`
	Failed   int            `json:"failed"`
	Kinds    map[string]int `json:"kinds,omitempty"`    // failed requests by kind
	Pods     map[string]int `json:"pods,omitempty"`     // answers by pod
	Versions map[string]int `json:"versions,omitempty"` // answers by version
	Nodes    map[string]int `json:"nodes,omitempty"`    // answers by the node of the pod that gave them
	MedianMS float64        `json:"median_ms"`          // of the requests that succeeded
	P99MS    float64        `json:"p99_ms"`
	MaxMS    float64        `json:"max_ms"`
	Seconds  float64        `json:"seconds"`
	LateMS   float64        `json:"late_ms"`            // most that a request started behind its time: the load's own honesty
	Failures []failure      `json:"failures,omitempty"` // the first of them

	mu   sync.Mutex
	took []time.Duration
}

// record adds one finished request.
func (s *summary) record(start time.Time, took time.Duration, a answer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Sent++
	if err != nil {
		s.Failed++
		kind := kindOf(err)
		s.Kinds[kind]++
		if len(s.Failures) < maxFailures {
			s.Failures = append(s.Failures, failure{start, ms(took), kind, err.Error()})
		}
		return
	}
	s.OK++
	s.took = append(s.took, took)
	count(s.Pods, a.Pod)
	count(s.Versions, a.Version)
	count(s.Nodes, a.Node)
}

// count adds one to m[key], unless the answer did not say.
func count(m map[string]int, key string) {
	if key != "" {
		m[key]++
	}
}

// late notes that a request started behind its time.
func (s *summary) late(d time.Duration) {
	s.mu.Lock()
	s.LateMS = max(s.LateMS, ms(d))
	s.mu.Unlock()
}

// shoot runs shot as l says and sums up. shot is called from many goroutines.
func shoot(ctx context.Context, l load, shot func(ctx context.Context, i int) (answer, error)) *summary {
	s := &summary{Kinds: map[string]int{}, Pods: map[string]int{}, Versions: map[string]int{}, Nodes: map[string]int{}}
	begin := time.Now()
	slots := make(chan struct{}, l.workers)
	var wg sync.WaitGroup
	for i := 0; l.count == 0 || i < l.count; i++ {
		due := begin
		if l.rate > 0 {
			due = begin.Add(time.Duration(float64(i) / l.rate * float64(time.Second)))
		}
		if !sleepUntil(ctx, due) || (l.duration > 0 && time.Since(begin) >= l.duration) {
			break
		}
		slots <- struct{}{}
		if l.rate > 0 {
			s.late(time.Since(due))
		}
		wg.Go(func() {
			defer func() { <-slots }()
			one, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
			defer cancel()
			start := time.Now()
			a, err := shot(one, i)
			s.record(start, time.Since(start), a, err)
		})
	}
	wg.Wait()
	s.Seconds = time.Since(begin).Seconds()
	if n := len(s.took); n > 0 {
		slices.Sort(s.took)
		s.MedianMS, s.P99MS, s.MaxMS = ms(s.took[n/2]), ms(s.took[n*99/100]), ms(s.took[n-1])
	}
	return s
}

// print writes the summary as one line of JSON and turns failures into errFailed.
func (s *summary) print(out io.Writer) error {
	if err := json.NewEncoder(out).Encode(s); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	if s.Failed > 0 || s.Sent == 0 {
		return errFailed
	}
	return nil
}

// sleepUntil waits until t and reports whether ctx still goes on.
func sleepUntil(ctx context.Context, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// kindOf names the kind of a failure, for counting.
func kindOf(err error) string {
	var dnsErr *net.DNSError
	var status statusError
	var netErr net.Error
	switch {
	case errors.As(err, &dnsErr) && dnsErr.IsNotFound:
		return "nxdomain"
	case errors.As(err, &dnsErr) && !dnsErr.IsTimeout:
		return "dns"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "unreachable"
	case errors.As(err, &status):
		return "status"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return "timeout"
	}
	return "other"
}

// ms is a duration in milliseconds, to the microsecond.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// unmap gives an IPv4 address that arrived on a dual-stack socket its own form.
func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
