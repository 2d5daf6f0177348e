// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package meter

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// histogram counts whole numbers, such as octets or nanoseconds, in buckets whose upper bounds are fixed. Bounds are in the metric's unit, which
// is scale of the numbers' (1 for octets in octets, 1e-9 for nanoseconds in seconds). The zero histogram is not usable.
type histogram struct {
	bounds []int64
	counts []atomic.Uint64 // of each bucket alone, the last beyond all bounds
	sum    atomic.Int64
	scale  float64
}

func newHistogram(scale float64, bounds []float64) *histogram {
	h := &histogram{bounds: make([]int64, len(bounds)), counts: make([]atomic.Uint64, len(bounds)+1), scale: scale}
	for i, b := range bounds {
		h.bounds[i] = int64(b/scale + 0.5)
	}
	return h
}

func (h *histogram) observe(v int64) {
	h.counts[h.bucket(v)].Add(1)
	h.sum.Add(v)
}

// bucket is the index of the one that a number is in.
func (h *histogram) bucket(v int64) int {
	b := 0
	for b < len(h.bounds) && v > h.bounds[b] {
		b++
	}
	return b
}

// addSizes adds n numbers of the bucket of one of them, which sum up to sum.
func (h *histogram) addSizes(of int64, n uint64, sum int64) {
	h.counts[h.bucket(of)].Add(n)
	h.sum.Add(sum)
}

// add adds what another one of the same bounds has counted.
func (h *histogram) add(o *histogram) {
	for i := range h.counts {
		h.counts[i].Add(o.counts[i].Load())
	}
	h.sum.Add(o.sum.Load())
}

// collect sends the histogram, as far as it has anything.
func (h *histogram) collect(ch chan<- prometheus.Metric, d *prometheus.Desc, labels ...string) {
	cumulative, count := make(map[float64]uint64, len(h.bounds)), uint64(0)
	for i := range h.counts {
		if count += h.counts[i].Load(); i < len(h.bounds) {
			cumulative[float64(h.bounds[i])*h.scale] = count
		}
	}
	if count > 0 {
		ch <- prometheus.MustNewConstHistogram(d, count, float64(h.sum.Load())*h.scale, cumulative, labels...)
	}
}
