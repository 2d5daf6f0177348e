// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Checkpoint counts the writes of the state on disk.
type Checkpoint struct {
	timestamp, size  prometheus.Gauge
	writes, failures prometheus.Counter
}

// NewCheckpoint has counted nothing.
func NewCheckpoint() *Checkpoint {
	const space, part = "fairlead", "checkpoint"
	return &Checkpoint{
		timestamp: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: space, Subsystem: part, Name: "timestamp_seconds", Help: "When the state on disk was written; 0 if there is none."}),
		size:      prometheus.NewGauge(prometheus.GaugeOpts{Namespace: space, Subsystem: part, Name: "size_bytes", Help: "Size of the state on disk as it was last written; 0 before that."}),
		writes:    prometheus.NewCounter(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "writes_total", Help: "Writes of the state to disk."}),
		failures:  prometheus.NewCounter(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "write_failures_total", Help: "Writes of the state to disk that failed."}),
	}
}

// Collectors are the metrics, to be registered.
func (c *Checkpoint) Collectors() []prometheus.Collector {
	return []prometheus.Collector{c.timestamp, c.size, c.writes, c.failures}
}

// Found says that a state of a time was on disk at the start.
func (c *Checkpoint) Found(at time.Time) { c.timestamp.Set(float64(at.UnixMicro()) / 1e6) }

// Wrote says that the state was written, in so many bytes.
func (c *Checkpoint) Wrote(at time.Time, size int64) {
	c.timestamp.Set(float64(at.UnixMicro()) / 1e6)
	c.size.Set(float64(size))
	c.writes.Inc()
}

// Failed says that it could not be.
func (c *Checkpoint) Failed() { c.failures.Inc() }
