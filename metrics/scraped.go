// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package metrics

import "github.com/prometheus/client_golang/prometheus"

// Dataplane is what the dataplane counts by itself.
type Dataplane struct {
	// Quarantined are Services that cannot be programmed.
	Quarantined int
	// Services are frontends (address, protocol, port) in the kernel, and Endpoints where they lead.
	Services, Endpoints int
	// Transactions that the kernel accepted, Elements written by them, and Drift: times that another program's change was mended.
	Transactions, Elements, Drift uint64
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descQuarantined  = desc("fairlead_quarantined_services", "Services that cannot be programmed, while all others are.")
	descServices     = desc("fairlead_dataplane_services", "Frontends (address, protocol, port) in the kernel.")
	descEndpoints    = desc("fairlead_dataplane_endpoints", "Endpoints that the frontends in the kernel lead to, summed up.")
	descTransactions = desc("fairlead_dataplane_transactions_total", "Transactions that the kernel accepted.")
	descElements     = desc("fairlead_dataplane_elements_total", "Map elements written: added and deleted ones.")
	descDrift        = desc("fairlead_dataplane_drift_total", "Times that another program's change to the table was found and mended.")
	descDropped      = desc("fairlead_dropped_packets_total", "Packets that the rules dropped, by reason.", "reason")
)

// scraped asks others for what they count anyway.
type scraped struct{ o Options }

// Describe implements prometheus.Collector.
func (s *scraped) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descQuarantined, descServices, descEndpoints, descTransactions, descElements, descDrift, descDropped} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *scraped) Collect(ch chan<- prometheus.Metric) {
	if s.o.Dataplane != nil {
		d := s.o.Dataplane()
		gauge := func(desc *prometheus.Desc, n int) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n))
		}
		counter := func(desc *prometheus.Desc, n uint64) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n))
		}
		gauge(descQuarantined, d.Quarantined)
		gauge(descServices, d.Services)
		gauge(descEndpoints, d.Endpoints)
		counter(descTransactions, d.Transactions)
		counter(descElements, d.Elements)
		counter(descDrift, d.Drift)
	}
	if s.o.Dropped != nil {
		// A counter that is absent is a gap in a graph; an error would cost the whole scrape.
		byReason, err := s.o.Dropped()
		if err != nil {
			return
		}
		for reason, n := range byReason {
			ch <- prometheus.MustNewConstMetric(descDropped, prometheus.CounterValue, float64(n), reason)
		}
	}
}
