// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// proxyName is CoreDNS's name for what asks upstreams.
const proxyName = "forward"

// metrics are what is counted from one reload to the next. They speak for the forwarder that adopted them last.
type metrics struct {
	current atomic.Pointer[Forwarder]
	drops   atomic.Uint64

	rejects, broken      prometheus.Counter
	duration             *prometheus.HistogramVec
	probeFailures        *prometheus.CounterVec
	connHits, connMisses *prometheus.CounterVec
}

func newMetrics(f *Forwarder) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		rejects: prometheus.NewCounter(prometheus.CounterOpts{Name: "coredns_forward_max_concurrent_rejects_total",
			Help: "Questions refused because too many were waiting for upstreams."}),
		broken: prometheus.NewCounter(prometheus.CounterOpts{Name: "coredns_forward_healthcheck_broken_total",
			Help: "Questions for which all upstreams were down, so that one of those was asked."}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "coredns_proxy_request_duration_seconds",
			Help: "Time until an upstream answered.", Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16)}, []string{"proxy_name", "to", "rcode"}),
		probeFailures: counter("coredns_proxy_healthcheck_failures_total", "Probes of upstreams that were not answered.", "proxy_name", "to"),
		connHits:      counter("coredns_proxy_conn_cache_hits_total", "Questions sent on a connection that was open.", "proxy_name", "to", "proto"),
		connMisses:    counter("coredns_proxy_conn_cache_misses_total", "Questions that a connection was opened for.", "proxy_name", "to", "proto"),
	}
	m.current.Store(f)
	return m
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descEntries  = desc("coredns_cache_entries", "Answers of upstreams in the cache.", "server", "type", "zones", "view")
	descRequests = desc("coredns_cache_requests_total", "Questions that the cache was asked.", "server", "zones", "view")
	descHits     = desc("coredns_cache_hits_total", "Answers of upstreams given from the cache.", "server", "type", "zones", "view")
	descMisses   = desc("coredns_cache_misses_total", "Questions that the cache had no answer to.", "server", "zones", "view")
	descPrefetch = desc("coredns_cache_prefetch_total", "Answers asked for anew before their time.", "server", "zones", "view")
	descStale    = desc("coredns_cache_served_stale_total", "Answers given after their time.", "server", "zones", "view")
	descDrops    = desc("coredns_cache_drops_total", "Answers of upstreams that were of no use.", "server", "zones", "view")
	descEvicted  = desc("coredns_cache_evictions_total", "Answers that made room for others.", "server", "type", "zones", "view")

	descCacheSize = desc("fairlead_dns_cache_bytes", "Memory of the cache of upstreams' answers.")
	descForwarded = desc("fairlead_dns_forwarded_total", "Questions sent to upstreams, by upstream and result.", "to", "zone", "result")
	descSuspect   = desc("fairlead_dns_suspected_spoofs_total", "Messages in an upstream's name that answered no question.", "to", "zone")
	descUp        = desc("fairlead_dns_upstream_up", "1 for an upstream that answers, 0 for others.", "to", "zone")
)

// Collectors are the forwarder's metrics for a Prometheus registry, under CoreDNS's names where they mean the same. Those of the first forwarder speak
// for each one that adopts from it: register them once.
func (f *Forwarder) Collectors() []prometheus.Collector {
	m := f.metrics
	return []prometheus.Collector{m.rejects, m.broken, m.duration, m.probeFailures, m.connHits, m.connMisses, (*collector)(m)}
}

type collector metrics

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descEntries, descRequests, descHits, descMisses, descPrefetch, descStale, descDrops, descEvicted,
		descCacheSize, descForwarded, descSuspect, descUp} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	f := c.current.Load()
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	kept, used, n := f.cache.stats()
	for kind, name := range []string{"success", "denial"} {
		gauge(descEntries, float64(kept[kind]), "", name, ".", "")
		counter(descHits, n.hits[kind], "", name, ".", "")
		counter(descEvicted, n.evicted[kind], "", name, ".", "")
	}
	counter(descRequests, n.requests, "", ".", "")
	counter(descMisses, n.misses, "", ".", "")
	counter(descPrefetch, n.prefetchs, "", ".", "")
	counter(descStale, n.stale, "", ".", "")
	counter(descDrops, c.drops.Load(), "", ".", "")
	gauge(descCacheSize, float64(used))
	for _, p := range f.all {
		for _, u := range p.upstreams {
			to := u.String()
			counter(descForwarded, u.counts.answered.Load(), to, p.Zone, "answered")
			counter(descForwarded, u.counts.failed.Load(), to, p.Zone, "failed")
			counter(descSuspect, u.counts.suspect.Load(), to, p.Zone)
			isUp := 0.0
			if u.state.Load() == up {
				isUp = 1
			}
			gauge(descUp, isUp, to, p.Zone)
		}
	}
}
