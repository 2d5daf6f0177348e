// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"math"
	"testing"
)

// A goal is judged at the end of the interval that speaks against it.
func TestGoals(t *testing.T) {
	for _, row := range []struct {
		goal  *goal
		ratio interval
		met   bool
		text  string
	}{
		{atLeast(50), interval{50, 60, 70}, true, "≥ 50"},
		{atLeast(50), interval{49, 60, 70}, false, "≥ 50"},
		{atMost(1.2), interval{1, 1.1, 1.2}, true, "≤ 1.2"},
		{atMost(1.2), interval{1, 1.1, 1.21}, false, "≤ 1.2"},
		{atLeast(1), interval{math.NaN(), math.NaN(), math.NaN()}, false, "≥ 1"},
		{atMost(1), interval{math.NaN(), math.NaN(), math.NaN()}, false, "≤ 1"},
	} {
		if got := row.goal.met(row.ratio); got != row.met || row.goal.String() != row.text {
			t.Errorf("%s met by %+v: %v, want %v", row.goal, row.ratio, got, row.met)
		}
	}
}

func TestCompare(t *testing.T) {
	var out bytes.Buffer
	s := &suite{out: json.NewEncoder(&out)}
	s.compare(figure{Figure: "time", Unit: "ms"}, "rival", []float64{1, 2, 4}, []float64{100, 200, 400}, timesLess, atLeast(100))
	s.compare(figure{Figure: "rate", Unit: "1/s"}, "rival", []float64{9, 10, 11}, []float64{10, 10, 10}, share, atLeast(0.95))
	s.contrast(figure{Figure: "memory", Value: 30}, "rival", 100, share, atMost(0.25))
	s.contrast(figure{Figure: "nothing", Value: 0}, "rival", 0, share, nil)
	want := []struct {
		value, rival, ratio float64
		met                 any
	}{{2, 200, 100, true}, {10, 10, 1, false}, {30, 100, 0.3, false}, {0, 0, 0, nil}}
	for i, d := 0, json.NewDecoder(&out); i < len(want); i++ {
		var got map[string]any
		if err := d.Decode(&got); err != nil {
			t.Fatal(err)
		}
		value := func(key string) float64 { v, _ := got[key].(float64); return v }
		w := want[i]
		if value("value") != w.value || value("rival_value") != w.rival || value("ratio") != w.ratio || got["met"] != w.met {
			t.Errorf("line %d: %v, want %+v", i, got, w)
		}
	}
}
