// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, row := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{[]float64{7}, 0.99, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 2, 3}, 0.5, 2.5},
		{[]float64{1, 2, 3, 4, 5}, 0, 1},
		{[]float64{5, 4, 3, 2, 1}, 1, 5},
		{[]float64{0, 10}, 0.25, 2.5},
		{[]float64{-1, 1}, 0.5, 0},
	} {
		if got := quantile(row.values, row.q); math.Abs(got-row.want) > 1e-12 {
			t.Errorf("quantile(%v, %v) = %v, want %v", row.values, row.q, got, row.want)
		}
	}
	if got := quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("quantile of nothing = %v, want NaN", got)
	}
}

func TestQuantileLeavesItsInputAlone(t *testing.T) {
	values := []float64{3, 1, 2}
	quantile(values, 0.5)
	if values[0] != 3 || values[1] != 1 || values[2] != 2 {
		t.Errorf("values are now %v", values)
	}
}

// The interval of a median must hold the true one about 95 times out of 100, and one of equal values has no width.
func TestBootstrap(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const worlds, rounds, truth = 300, 9, 10.0
	held := 0
	for range worlds {
		values := make([]float64, rounds)
		for i := range values {
			values[i] = truth + random.NormFloat64()
		}
		got := bootstrap(values)
		if got.Low > got.Mid || got.Mid > got.High || got.Mid != median(values) {
			t.Fatalf("bootstrap(%v) = %+v", values, got)
		}
		if got.Low <= truth && truth <= got.High {
			held++
		}
	}
	if held < worlds*85/100 || held == worlds {
		t.Errorf("the interval held the truth in %d of %d worlds, want about 95 %%", held, worlds)
	}
	if got := bootstrap([]float64{2, 2, 2}); got != (interval{2, 2, 2}) {
		t.Errorf("bootstrap of equal values = %+v", got)
	}
	if got := bootstrap(nil); !math.IsNaN(got.Mid) {
		t.Errorf("bootstrap of nothing = %+v", got)
	}
}

func TestRatios(t *testing.T) {
	got := ratios([]float64{2, 9, 5}, []float64{1, 3})
	if len(got) != 2 || got[0] != 2 || got[1] != 3 {
		t.Errorf("ratios = %v, want [2 3]", got)
	}
}
