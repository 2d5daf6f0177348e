// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// subsystem is the first word of kube-proxy's names.
const subsystem = "kubeproxy"

func (p *Proxy) histogram(name, help string, buckets []float64) (out [families]prometheus.Observer) {
	vec := prometheus.NewHistogramVec(prometheus.HistogramOpts{Subsystem: subsystem, Name: name, Help: help, Buckets: buckets}, []string{"ip_family"})
	for f := range families {
		out[f] = vec.WithLabelValues(f.String())
	}
	p.collectors = append(p.collectors, vec)
	return out
}

func (p *Proxy) counter(name, help string) (out [families]prometheus.Counter) {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Subsystem: subsystem, Name: name, Help: help}, []string{"ip_family"})
	for f := range families {
		out[f] = vec.WithLabelValues(f.String())
	}
	p.collectors = append(p.collectors, vec)
	return out
}

func (p *Proxy) single(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Subsystem: subsystem, Name: name, Help: help})
	p.collectors = append(p.collectors, c)
	return c
}

func (p *Proxy) pending(name, help string, n *atomic.Int64) {
	p.collectors = append(p.collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Subsystem: subsystem, Name: name, Help: help},
		func() float64 { return float64(n.Load()) }))
}

func (p *Proxy) gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	vec := prometheus.NewGaugeVec(prometheus.GaugeOpts{Subsystem: subsystem, Name: name, Help: help}, labels)
	p.collectors = append(p.collectors, vec)
	return vec
}

func (p *Proxy) codes(name, help string) *prometheus.CounterVec {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Subsystem: subsystem, Name: name, Help: help}, []string{"code"})
	p.collectors = append(p.collectors, vec)
	return vec
}
