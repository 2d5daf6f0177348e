// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"github.com/prometheus/client_golang/prometheus"
)

// proxyName is CoreDNS's name for what asks upstreams.
const proxyName = "forward"

// Metrics are what all forwarders of a server count together, from one reload to the next. What is counted by each is told by [Forwarder.Collect].
type Metrics struct {
	rejects, broken      prometheus.Counter
	duration             *prometheus.HistogramVec
	drops, probeFailures *prometheus.CounterVec
	connHits, connMisses *prometheus.CounterVec
}

// NewMetrics have counted nothing yet. They are to be given to forwarders by [Options].
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return &Metrics{
		rejects: prometheus.NewCounter(prometheus.CounterOpts{Name: "coredns_forward_max_concurrent_rejects_total",
			Help: "Questions refused because too many were waiting for upstreams."}),
		broken: prometheus.NewCounter(prometheus.CounterOpts{Name: "coredns_forward_healthcheck_broken_total",
			Help: "Questions for which all upstreams were down, so that one of those was asked."}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "coredns_proxy_request_duration_seconds",
			Help: "Time until an upstream answered.", Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16)}, []string{"proxy_name", "to", "rcode"}),
		drops:         counter("coredns_cache_drops_total", "Answers of upstreams that were of no use.", "server", "zones", "view"),
		probeFailures: counter("coredns_proxy_healthcheck_failures_total", "Probes of upstreams that were not answered.", "proxy_name", "to"),
		connHits:      counter("coredns_proxy_conn_cache_hits_total", "Questions sent on a connection that was open.", "proxy_name", "to", "proto"),
		connMisses:    counter("coredns_proxy_conn_cache_misses_total", "Questions that a connection was opened for.", "proxy_name", "to", "proto"),
	}
}

// Collectors are the metrics for a Prometheus registry, under CoreDNS's names where they mean the same.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.rejects, m.broken, m.duration, m.drops, m.probeFailures, m.connHits, m.connMisses}
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
	descEvicted  = desc("coredns_cache_evictions_total", "Answers that made room for others.", "server", "type", "zones", "view")

	descCacheSize = desc("fairlead_dns_cache_bytes", "Memory of the cache of upstreams' answers.", "zones")
	descForwarded = desc("fairlead_dns_forwarded_total", "Questions sent to upstreams, by upstream and result.", "zones", "to", "zone", "result")
	descSuspect   = desc("fairlead_dns_suspected_spoofs_total", "Messages in an upstream's name that answered no question.", "zones", "to", "zone")
	descUp        = desc("fairlead_dns_upstream_up", "1 for an upstream that answers, 0 for others.", "zones", "to", "zone")
)

// Describe sends what [Forwarder.Collect] tells, whoever collects.
func Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descEntries, descRequests, descHits, descMisses, descPrefetch, descStale, descEvicted,
		descCacheSize, descForwarded, descSuspect, descUp} {
		ch <- d
	}
}

// Collect sends what this forwarder has counted, and those that it adopted from.
func (f *Forwarder) Collect(ch chan<- prometheus.Metric) {
	zones := f.o.Zones
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	kept, used, n := f.cache.stats()
	for kind, name := range []string{"success", "denial"} {
		gauge(descEntries, float64(kept[kind]), "", name, zones, "")
		counter(descHits, n.hits[kind], "", name, zones, "")
		counter(descEvicted, n.evicted[kind], "", name, zones, "")
	}
	counter(descRequests, n.requests, "", zones, "")
	counter(descMisses, n.misses, "", zones, "")
	counter(descPrefetch, n.prefetchs, "", zones, "")
	counter(descStale, n.stale, "", zones, "")
	gauge(descCacheSize, float64(used), zones)
	for _, p := range f.all {
		for _, u := range p.upstreams {
			to := u.String()
			counter(descForwarded, u.counts.answered.Load(), zones, to, p.Zone, "answered")
			counter(descForwarded, u.counts.failed.Load(), zones, to, p.Zone, "failed")
			counter(descSuspect, u.counts.suspect.Load(), zones, to, p.Zone)
			isUp := 0.0
			if u.state.Load() == up {
				isUp = 1
			}
			gauge(descUp, isUp, zones, to, p.Zone)
		}
	}
}
