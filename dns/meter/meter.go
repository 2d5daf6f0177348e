// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package meter

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The buckets are CoreDNS's.
var (
	sizes     = []float64{0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3}
	latencies = prometheus.ExponentialBuckets(0.001, 2, 20) // 1 ms to 9 min
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descRequest     = desc("coredns_dns_request_size_bytes", "Size of queries.", "server", "zone", "view", "proto")
	descResponse    = desc("coredns_dns_response_size_bytes", "Size of answers.", "server", "zone", "view", "proto")
	descDO          = desc("coredns_dns_do_requests_total", "Queries with the bit DO set, which ask for signatures.", "server", "zone", "view")
	descProgramming = desc("coredns_kubernetes_dns_programming_duration_seconds", "Time from a change of endpoints to its being answered.", "service_kind")
	descPanics      = desc("coredns_panics_total", "Queries whose handling failed by a fault of the program.")
)

// ServiceKind is what a change was of, as CoreDNS tells Services apart.
type ServiceKind uint8

// The kinds of Services. Nobody says when the endpoints of those without a selector were changed, so that theirs is never observed.
const (
	ClusterIP ServiceKind = iota
	Headless
	serviceKinds
)

// String is the kind as a label.
func (k ServiceKind) String() string { return [...]string{"cluster_ip", "headless_with_selector"}[k] }

// Meter counts for one server.
type Meter struct {
	zones       []string
	mu          sync.Mutex // of the list, not of what is in it
	sockets     []*Socket
	programming [serviceKinds]*histogram
	panics      atomic.Uint64
}

// New is a meter that has counted nothing. zones are the names to tell apart, with trailing dots.
func New(zones ...string) *Meter {
	m := &Meter{zones: zones}
	for k := range m.programming {
		m.programming[k] = newHistogram(1e-9, latencies)
	}
	return m
}

// Socket counts messages at one socket.
type Socket struct {
	server, proto string
	zones         []zone
}

type zone struct {
	requests, responses *histogram
	dnssec              atomic.Uint64
}

func newZone() zone { return zone{requests: newHistogram(1, sizes), responses: newHistogram(1, sizes)} }

// Socket is where messages are counted at an address, such as "dns://10.96.0.10:53", and a transport, "udp" or "tcp". Each socket of them should have
// one of its own, so that processors do not wait for each other.
func (m *Meter) Socket(server, proto string) *Socket {
	s := &Socket{server: server, proto: proto}
	for range m.zones {
		s.zones = append(s.zones, newZone())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sockets = append(m.sockets, s)
	return s
}

// Observe counts a query and its answer, whose sizes are in octets. zone is an index of the names that [New] was given; dnssec says that DO was
// set. It allocates nothing and may be called concurrently, as may all of a Meter.
func (s *Socket) Observe(zone, request, response int, dnssec bool) {
	z := &s.zones[zone]
	z.requests.observe(int64(request))
	z.responses.observe(int64(response))
	if dnssec {
		z.dnssec.Add(1)
	}
}

// Sizes are those of messages that are told apart by their buckets only: the size of one of them, and the sum of all.
type Sizes struct {
	Of  int
	Sum uint64
}

// Add is Observe for n queries and answers whose sizes are in the same buckets.
func (s *Socket) Add(zone int, n uint64, requests, responses Sizes, dnssec bool) {
	z := &s.zones[zone]
	z.requests.addSizes(int64(requests.Of), n, int64(requests.Sum))
	z.responses.addSizes(int64(responses.Of), n, int64(responses.Sum))
	if dnssec {
		z.dnssec.Add(n)
	}
}

// Class is which bucket of sizes a message of so many octets is in.
func Class(octets int) int { return classes.bucket(int64(octets)) }

var classes = newHistogram(1, sizes)

// Programmed counts a change of endpoints that is answered now, by the time since it happened (the annotation
// endpoints.kubernetes.io/last-change-trigger-time of the EndpointSlice). Clocks that disagree can make it negative, which counts as nothing.
func (m *Meter) Programmed(k ServiceKind, took time.Duration) {
	m.programming[k].observe(int64(max(took, 0)))
}

// Panic counts a query whose handling panicked.
func (m *Meter) Panic() { m.panics.Add(1) }

// Collectors are the metrics for a Prometheus registry.
func (m *Meter) Collectors() []prometheus.Collector { return []prometheus.Collector{(*collector)(m)} }

type collector Meter

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRequest, descResponse, descDO, descProgramming, descPanics} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	c.mu.Lock()
	sockets := slices.Clone(c.sockets)
	c.mu.Unlock()
	type key struct{ server, proto string }
	total := make(map[key][]zone)
	for _, s := range sockets {
		k := key{s.server, s.proto}
		if total[k] == nil {
			for range c.zones {
				total[k] = append(total[k], newZone())
			}
		}
		for i := range s.zones {
			to, z := &total[k][i], &s.zones[i]
			to.requests.add(z.requests)
			to.responses.add(z.responses)
			to.dnssec.Add(z.dnssec.Load())
		}
	}
	// DNSSEC questions are told apart by address only: UDP and TCP are one.
	dnssec := make(map[[2]string]uint64)
	for k, zones := range total {
		for i := range zones {
			zones[i].requests.collect(ch, descRequest, k.server, c.zones[i], "", k.proto)
			zones[i].responses.collect(ch, descResponse, k.server, c.zones[i], "", k.proto)
			if n := zones[i].dnssec.Load(); n > 0 {
				dnssec[[2]string{k.server, c.zones[i]}] += n
			}
		}
	}
	for k, n := range dnssec {
		counter(descDO, n, k[0], k[1], "")
	}
	for k, h := range c.programming {
		h.collect(ch, descProgramming, ServiceKind(k).String())
	}
	counter(descPanics, c.panics.Load())
}
