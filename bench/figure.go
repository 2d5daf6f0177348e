// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
)

// figure is one result, a line of JSON.
type figure struct {
	Section    string  `json:"section"` // the experiment
	Figure     string  `json:"figure"`
	Value      float64 `json:"value"`
	Unit       string  `json:"unit"`
	Rival      string  `json:"rival,omitempty"`
	RivalValue float64 `json:"rival_value"`
	// Ratio is how many times less Fairlead needs (RatioOf "rival/value"), or has ("value/rival"), and Low and High its 95 % interval; without
	// rounds that could be resampled, all three are equal.
	Ratio   float64 `json:"ratio,omitempty"`
	RatioOf string  `json:"ratio_of,omitempty"`
	Low     float64 `json:"low,omitempty"`
	High    float64 `json:"high,omitempty"`
	Goal    string  `json:"goal,omitempty"`
	Met     *bool   `json:"met,omitempty"`
	// Missing says why something was not measured.
	Missing string `json:"missing,omitempty"`
	// Quick says that a quick run measured it: not to be used.
	Quick bool `json:"quick,omitempty"`
	// X is the number of Services, for plots.
	X int `json:"x,omitempty"`
	// Spread is of Fairlead's rounds: the least and the most.
	Spread [2]float64 `json:"spread,omitzero"`
}

// How a ratio is formed.
const (
	timesLess = "rival/value" // for what is better when it is less, told as "times as fast"
	share     = "value/rival"
)

// goal is a bound of a ratio.
type goal struct {
	least bool
	bound float64
}

func atLeast(bound float64) *goal { return &goal{true, bound} }
func atMost(bound float64) *goal  { return &goal{false, bound} }

func (g goal) String() string {
	if g.least {
		return fmt.Sprintf("≥ %.4g", g.bound)
	}
	return fmt.Sprintf("≤ %.4g", g.bound)
}

// met judges at the end of the interval that speaks against us.
func (g goal) met(ratio interval) bool {
	if g.least {
		return ratio.Low >= g.bound
	}
	return ratio.High <= g.bound
}

// reportTimes compares the median and p99 of what took time, in how many times less; what is too short to tell counts as tooShort. The goal is of p99.
func reportTimes[T any](s *suite, f figure, own, theirs []T, of func(T) []float64, target *goal) {
	what := f.Figure
	for _, q := range []struct {
		name string
		at   float64
		goal *goal
	}{{"median", 0.5, nil}, {"p99", 0.99, target}} {
		ofRound := func(r T) float64 { return max(quantile(of(r), q.at), tooShort) }
		f.Figure = what + ", " + q.name
		f.Value, f.RivalValue = quantile(pool(own, of), q.at), quantile(pool(theirs, of), q.at)
		s.judge(f, bootstrap(ratios(each(theirs, ofRound), each(own, ofRound))), timesLess, q.goal)
	}
}

// compare records a figure from the values of rounds that belong together.
func (s *suite) compare(f figure, rival string, own, theirs []float64, of string, target *goal) {
	rounds := ratios(own, theirs)
	if of == timesLess {
		rounds = ratios(theirs, own)
	}
	f.Value, f.Rival, f.RivalValue = median(own), rival, median(theirs)
	f.Spread = [2]float64{quantile(own, 0), quantile(own, 1)}
	s.judge(f, bootstrap(rounds), of, target)
}

// contrast records a figure that exists once and not in rounds: its ratio has no interval.
func (s *suite) contrast(f figure, rival string, theirs float64, of string, target *goal) {
	f.Rival, f.RivalValue = rival, theirs
	ratio := f.Value / theirs
	if of == timesLess {
		ratio = theirs / f.Value
	}
	s.judge(f, interval{ratio, ratio, ratio}, of, target)
}

func (s *suite) judge(f figure, ratio interval, of string, target *goal) {
	f.Low, f.Ratio, f.High, f.RatioOf = ratio.Low, ratio.Mid, ratio.High, of
	if target != nil {
		met := target.met(ratio)
		f.Goal, f.Met = target.String(), &met
	}
	s.state(f)
}

// state records a figure as it is.
func (s *suite) state(f figure) {
	for _, v := range []*float64{&f.Value, &f.RivalValue, &f.Ratio, &f.Low, &f.High} {
		if math.IsNaN(*v) || math.IsInf(*v, 0) {
			*v = 0 // JSON has no word for it
		}
	}
	f.Quick = s.quick
	s.figures = append(s.figures, f)
	_ = s.out.Encode(f)
}
