// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import "github.com/prometheus/client_golang/prometheus"

// topClients bounds the clients that metrics name: what asks little is nobody's alert, and a name is a series.
const topClients = 10

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descRefused    = desc("fairlead_dns_clients_refused_total", "Queries refused because of who sent them: strangers, and pods beyond their rate.", "kind")
	descDropped    = desc("fairlead_dns_clients_dropped_total", "Queries of those that got no answer at all, being too many.", "kind")
	descCompleted  = desc("fairlead_dns_completions_total", "Questions of pods whose names the server completed, or in mode count would have.", "mode", "result")
	descSpared     = desc("fairlead_dns_completion_spared_total", "Further questions that completion spared, or in mode count would have at most.", "mode")
	descAutopath   = desc("coredns_autopath_success_total", "Questions of pods whose names the server completed.", "server")
	descSuppressed = desc("fairlead_dns_suppressed_aaaa_total", "Questions for IPv6 addresses of pods without IPv6 that went to no upstream, or in mode count would not have.", "mode")
	descTop        = desc("fairlead_dns_top_clients_total", "Queries, denials and queries to upstreams of the ten clients that have most of each.", "by", "client")
)

// Collectors are the metrics for a Prometheus registry. table is that of the last snapshot at any time.
func (c *Clients) Collectors(table func() *Table) []prometheus.Collector {
	return []prometheus.Collector{&collector{c, table}}
}

type collector struct {
	*Clients
	table func() *Table
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRefused, descDropped, descCompleted, descSpared, descAutopath, descSuppressed, descTop} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for k := range kinds {
		counter(descRefused, c.limiter.refused[k].Load(), k.String())
		counter(descDropped, c.limiter.dropped[k].Load(), k.String())
	}
	mode := c.settings.Completion.String()
	counter(descCompleted, c.completed.Load(), mode, "answered")
	counter(descCompleted, c.failed.Load(), mode, "failed")
	counter(descCompleted, c.kept.Load(), mode, "kept")
	counter(descSpared, c.saved.Load(), mode)
	if c.settings.Completion == On {
		counter(descAutopath, c.completed.Load(), "")
	}
	counter(descSuppressed, c.suppressed.Load(), c.settings.AAAA.String())
	t := c.table()
	for m := range measures {
		for _, e := range c.Top(t, topClients, m) {
			counter(descTop, e.by(m), m.String(), e.Name)
		}
	}
}
