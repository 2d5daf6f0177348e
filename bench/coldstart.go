// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

const (
	// probes is how many Services are tried until they forward, the first and the last made among them. A contender that writes in another order
	// has one of them near its end; afterwards each Service is tried once, and one that does not forward voids the round.
	probes     = 64
	startLimit = 3 * time.Minute
)

// coldStart is one start, in a namespace where nothing was before.
type coldStart struct {
	wall, listed, cpu time.Duration // listed is the part of wall after the objects were there
}

// coldStarts measures from starting the program to every Service forwarding. The time from when it has listed the objects, by its own log, is stated beside
// it: until then it waits for the API server, which is the same for all.
func coldStarts(ctx context.Context, s *suite) error {
	type size struct{ services, rounds int }
	for _, size := range pick(s, []size{{1000, 6}, {5000, 4}, {10000, 4}}, []size{{1000, 2}}) {
		w, err := s.world(ctx, place{fairlead.name, size.services}) // for both, one after the other
		if err != nil {
			return err
		}
		list, err := w.listTime(ctx)
		if err != nil {
			return err
		}
		taken, err := takeTurns(ctx, size.rounds, []string{fairlead.name, proxy.name}, func(name string) (coldStart, error) {
			return measureStart(ctx, w, contenders[name])
		})
		if err != nil {
			return err
		}
		at := fmt.Sprintf(" at %d Services", size.services)
		own, theirs := taken[fairlead.name], taken[proxy.name]
		var target *goal
		if size.services == 10000 {
			target = atLeast(100)
		}
		s.compare(figure{Section: "start", Figure: "cold start after listing" + at, Unit: "ms", X: size.services}, proxy.name,
			each(own, func(c coldStart) float64 { return ms(c.listed) }), each(theirs, func(c coldStart) float64 { return ms(c.listed) }), timesLess, target)
		s.compare(figure{Section: "start", Figure: "cold start from exec" + at, Unit: "ms", X: size.services}, proxy.name,
			each(own, func(c coldStart) float64 { return ms(c.wall) }), each(theirs, func(c coldStart) float64 { return ms(c.wall) }), timesLess, nil)
		s.compare(figure{Section: "start", Figure: "CPU of a cold start" + at, Unit: "ms", X: size.services}, proxy.name,
			each(own, func(c coldStart) float64 { return ms(c.cpu) }), each(theirs, func(c coldStart) float64 { return ms(c.cpu) }), timesLess, nil)
		s.state(figure{Section: "start", Figure: "floor: a bare client lists the objects" + at, Unit: "ms", X: size.services, Value: ms(list)})
		if size.services == 5000 {
			s.forget(place{fairlead.name, size.services})
		}
	}
	return nil
}

func measureStart(ctx context.Context, w *world, c contender) (m coldStart, err error) {
	r, err := newRig(w.programs, w.dir, w, c.name, c.number)
	if err != nil {
		return m, err
	}
	defer r.close()
	quiet(ctx)
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	p, err := c.run(r, false, anyCPU)
	if err != nil {
		return m, err
	}
	defer p.stop()
	end, err := awaitForwarding(ctx, r.client, w.vips(probes), p.gone)
	if err != nil {
		return m, fmt.Errorf("start %s: %w; it said: %s", c.name, err, tail(p.log))
	}
	m.wall = end.Sub(p.started)
	if m.cpu, err = cpuWhenIdle(ctx, p.pid()); err != nil {
		return m, err
	}
	if err := verifyForwarding(r.client, w.vips(len(w.services))); err != nil {
		return m, err
	}
	listed, err := c.listedAt(p)
	if err != nil {
		return m, err
	}
	m.listed = end.Sub(listed)
	progress("%s: %v, of it %v after listing, %v of CPU", c.name, m.wall.Round(time.Millisecond), m.listed.Round(time.Millisecond), m.cpu.Round(time.Millisecond))
	return m, nil
}

// listedAt reads from the log when the contender had all objects.
func (c contender) listedAt(p *process) (time.Time, error) {
	file, err := os.Open(p.log)
	if err != nil {
		return time.Time{}, fmt.Errorf("open log of %s: %w", c.name, err)
	}
	defer file.Close()
	var last time.Time
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if !strings.Contains(lines.Text(), c.listed) {
			continue
		}
		if last, err = logTime(lines.Text(), p.started); err != nil {
			return last, err
		}
	}
	if last.IsZero() {
		return last, fmt.Errorf("%s never said %q: %s", c.name, c.listed, tail(p.log))
	}
	return last, nil
}

// logTime reads the time of a line of log/slog's text handler (time=2026-01-02T15:04:05.678Z ...) or of klog (I0102 15:04:05.678901 ...), which
// does not say the year and means local time.
func logTime(line string, near time.Time) (time.Time, error) {
	if rest, ok := strings.CutPrefix(line, "time="); ok {
		stamp, _, _ := strings.Cut(rest, " ")
		t, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			return t, fmt.Errorf("parse time of log line %q: %w", line, err)
		}
		return t, nil
	}
	const layout = "0102 15:04:05.000000"
	if len(line) < 1+len(layout) {
		return time.Time{}, fmt.Errorf("parse time of log line %q: too short", line)
	}
	t, err := time.ParseInLocation(layout, line[1:1+len(layout)], near.Location())
	if err != nil {
		return t, fmt.Errorf("parse time of log line %q: %w", line, err)
	}
	return t.AddDate(near.Year(), 0, 0), nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// each takes one number of each round.
func each[T any](rounds []T, f func(T) float64) []float64 {
	out := make([]float64, len(rounds))
	for i, r := range rounds {
		out[i] = f(r)
	}
	return out
}
