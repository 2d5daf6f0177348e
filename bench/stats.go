// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"math/rand/v2"
	"slices"
)

// quantile is the value below which the share q of the values lies, between neighbours where it falls between them. NaN without values.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(at)
	if low+1 == len(sorted) {
		return sorted[low]
	}
	return sorted[low] + (at-float64(low))*(sorted[low+1]-sorted[low])
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// interval is a value and the range in which it lies with 95 % confidence.
type interval struct{ Low, Mid, High float64 }

// bootstrapRuns is how often rounds are resampled: enough for the 2.5 % at either end to be some hundred samples.
const bootstrapRuns = 10000

// bootstrap is the median of the values, with the interval that holds 95 % of the medians of samples drawn from them with replacement. The
// seed is fixed, so that the same rounds give the same interval.
func bootstrap(values []float64) interval {
	if len(values) == 0 {
		return interval{math.NaN(), math.NaN(), math.NaN()}
	}
	random := rand.New(rand.NewPCG(1, 2))
	medians := make([]float64, bootstrapRuns)
	sample := make([]float64, len(values))
	for i := range medians {
		for j := range sample {
			sample[j] = values[random.IntN(len(values))]
		}
		medians[i] = median(sample)
	}
	return interval{quantile(medians, 0.025), median(values), quantile(medians, 0.975)}
}

// ratios divides round by round.
func ratios(a, b []float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = a[i] / b[i]
	}
	return out
}
