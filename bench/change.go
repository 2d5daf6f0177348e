// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// changeRound is a contender's part of a round.
type changeRound struct {
	answered []float64 // ms from the API's answer
	asked    []float64 // ms from the request
	cpu      float64   // ms per change
}

// tooShort is, in ms, the time below which the answer to the question "how long after" depends on which of two goroutines of this program was
// run first. In ratios, what is shorter counts as this long.
const tooShort = 0.1

func afterRequest(r changeRound) float64 { return median(r.asked) }

// changes measures from the API's answer for one changed endpoint to the kernel having it, judged by the kernel's own notification. The API sends its answer and
// tells those who watch at the same time, so a fast contender can be done before the answer has been read: such a time is negative. It is
// stated as it is, and counts as 0.1 ms in ratios. The time from sending the request, which has the API server's own work in it, is stated beside it;
// that one compares Fairlead with itself.
//
// Changes are so far apart that each is alone, and kube-proxy runs without the second that it otherwise waits after each time it has
// written the kernel's tables: this is about work, not about timers.
func changes(ctx context.Context, s *suite) error {
	sizes := pick(s, []int{10, 1000, 10000}, []int{10, 1000})
	rounds, perRound := pick(s, 9, 3), pick(s, 25, 10)
	random := rand.New(rand.NewPCG(3, 4)) // the same Services in every run
	turns := map[string]*running{}
	var names []string
	for _, n := range sizes {
		for _, c := range []contender{fairlead, proxy} {
			r, err := s.start(ctx, c, n, true)
			if err != nil {
				return err
			}
			name := turn(c, n)
			names, turns[name] = append(names, name), r
		}
	}
	quiet(ctx)
	progress("changing endpoints: %d rounds of %d", rounds, perRound)
	taken, err := takeTurns(ctx, rounds, names, func(name string) (changeRound, error) {
		return measureChanges(ctx, turns[name], perRound, random)
	})
	if err != nil {
		return err
	}
	cpuOf := func(r changeRound) float64 { return r.cpu }
	for _, n := range sizes {
		own, theirs := taken[turn(fairlead, n)], taken[turn(proxy, n)]
		at := fmt.Sprintf(" at %d Services", n)
		var target *goal
		if n == 10000 {
			target = atLeast(50)
		}
		figures := func(name string, target *goal, of func(changeRound) []float64) {
			mid := func(r changeRound) float64 { return max(median(of(r)), tooShort) }
			f := figure{Section: "change", Figure: name + ", median" + at, Unit: "ms", X: n}
			f.Value, f.Rival, f.RivalValue = median(pool(own, of)), proxy.name, median(pool(theirs, of))
			s.judge(f, bootstrap(ratios(each(theirs, mid), each(own, mid))), timesLess, target)
			f.Figure = name + ", p99" + at
			f.Value, f.RivalValue = quantile(pool(own, of), 0.99), quantile(pool(theirs, of), 0.99)
			ratio := f.RivalValue / max(f.Value, tooShort)
			s.judge(f, interval{ratio, ratio, ratio}, timesLess, target)
		}
		figures("one endpoint change, from answer to kernel", target, func(r changeRound) []float64 { return r.answered })
		figures("one endpoint change, from request to kernel", nil, func(r changeRound) []float64 { return r.asked })
		s.compare(figure{Section: "change", Figure: "CPU of one endpoint change" + at, Unit: "ms", X: n}, proxy.name,
			each(own, cpuOf), each(theirs, cpuOf), timesLess, target)
	}
	small, large := sizes[0], sizes[len(sizes)-1]
	few, many := taken[turn(fairlead, small)], taken[turn(fairlead, large)]
	at, rival := fmt.Sprintf(", at %d Services over at %d", large, small), fmt.Sprintf("fairlead at %d", small)
	s.compare(figure{Section: "change", Figure: "one endpoint change, from request to kernel, median" + at, Unit: "ms"}, rival,
		each(many, afterRequest), each(few, afterRequest), share, atMost(1.2))
	s.compare(figure{Section: "change", Figure: "CPU of one endpoint change" + at, Unit: "ms"}, rival, each(many, cpuOf), each(few, cpuOf), share, nil)
	return nil
}

func turn(c contender, services int) string { return fmt.Sprint(c.name, " ", services) }

// pool puts the samples of all rounds together.
func pool[T any](rounds []T, of func(T) []float64) (all []float64) {
	for _, r := range rounds {
		all = append(all, of(r)...)
	}
	return all
}

func measureChanges(ctx context.Context, r *running, n int, random *rand.Rand) (out changeRound, err error) {
	before, err := cpuTime(r.process.pid())
	if err != nil {
		return out, err
	}
	for range n {
		service := &r.w.services[random.IntN(len(r.w.services))]
		told := r.monitor.expect(r.w.nextEndpoint())
		asked, answered, err := r.w.replaceEndpoint(ctx, service, 0)
		if err != nil {
			return out, err
		}
		at, err := r.await(ctx, told)
		if err != nil {
			return out, err
		}
		out.answered = append(out.answered, ms(at.Sub(answered)))
		out.asked = append(out.asked, ms(at.Sub(asked)))
		time.Sleep(50*time.Millisecond + time.Duration(random.Int64N(int64(50*time.Millisecond))))
	}
	after, err := cpuTime(r.process.pid())
	if err != nil {
		return out, err
	}
	out.cpu = ms(after-before) / float64(n)
	return out, r.monitor.failed()
}
