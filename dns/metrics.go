// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/dns/meter"
)

// The zones of the metrics are few, whatever is configured: forwarded names, the cluster's own and the two kinds of reverse names.
const (
	zoneRoot = iota
	zoneCluster
	zoneReverse4
	zoneReverse6
	zones
)

// countedTypes are the types that metrics tell apart; the last stands for all others. They are CoreDNS's.
var countedTypes = [...]uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypeANY, mdns.TypeCNAME, mdns.TypeDNSKEY, mdns.TypeDS, mdns.TypeHTTPS,
	mdns.TypeMX, mdns.TypeNS, mdns.TypePTR, mdns.TypeSOA, mdns.TypeSRV, mdns.TypeSVCB, mdns.TypeTXT, mdns.TypeNone}

// durations are the upper bounds of the histogram: from 250 µs, doubling, as CoreDNS has them.
var durations = prometheus.ExponentialBuckets(0.00025, 2, 16)

const rcodes = 24

// durationBuckets are those of [durations], and one for what took longer.
const durationBuckets = 17

// transport is what the metrics tell sockets apart by.
type transport struct {
	server string // "dns://10.96.0.10:53"
	proto  string // "udp" or "tcp"
	family string // "1" for IPv4, "2" for IPv6, as CoreDNS has it
}

// socketStats counts the queries at one socket, without a lock.
type socketStats struct {
	transport
	local netip.AddrPort // the address that is asked
	meter *meter.Socket

	requests  [zones][len(countedTypes)]atomic.Uint64
	responses [zones][rcodes]atomic.Uint64
	buckets   [zones][durationBuckets]atomic.Uint64
	nanos     [zones]atomic.Uint64
	dropped   atomic.Uint64
	unsent    atomic.Uint64
}

// zoneOf is the zone of the metrics for the zone that an answer is from.
func zoneOf(origin string) int {
	switch {
	case origin == "":
		return zoneRoot
	case strings.HasSuffix(origin, suffix4[1:]):
		return zoneReverse4
	case strings.HasSuffix(origin, suffix6[1:]):
		return zoneReverse6
	}
	return zoneCluster
}

// count counts a query and the response to it.
func (c *socketStats) count(zone int, qtype uint16, rcode int) {
	c.countType(zone, countedType(qtype), rcode, 1)
}

// countedType is the index of a type in [countedTypes].
func countedType(qtype uint16) int {
	for i, known := range countedTypes {
		if known == qtype {
			return i
		}
	}
	return len(countedTypes) - 1
}

// countType is count for n queries, and the index of their type.
func (c *socketStats) countType(zone, counted, rcode int, n uint64) {
	c.requests[zone][counted].Add(n)
	c.responses[zone][min(max(rcode, 0), rcodes-1)].Add(n)
}

// observe counts n queries that took the same time.
func (c *socketStats) observe(zone int, took time.Duration, n uint64) {
	b, s := 0, took.Seconds()
	for b < len(durations) && s > durations[b] {
		b++
	}
	c.buckets[zone][b].Add(n)
	c.nanos[zone].Add(uint64(max(took, 0)) * n)
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descRequests  = desc("coredns_dns_requests_total", "DNS requests by zone, transport, family and type.", "server", "zone", "view", "proto", "family", "type")
	descResponses = desc("coredns_dns_responses_total", "DNS responses by zone and response code.", "server", "zone", "view", "rcode", "plugin")
	descDuration  = desc("coredns_dns_request_duration_seconds", "Time to answer a DNS request.", "server", "zone", "view")

	descDropped   = desc("fairlead_dns_dropped_total", "Messages that got no answer: too short, responses, or more than their client may send.", "server", "proto")
	descUnsent    = desc("fairlead_dns_unsent_total", "Answers over UDP that the kernel did not take: a rule of the node refused them, or what was sent before filled the buffer.", "server")
	descWaits     = desc("fairlead_dns_waits_total", "Queries that waited for what they ask for to be programmed.", "reason")
	descTimeouts  = desc("fairlead_dns_wait_timeouts_total", "Queries that waited in vain.", "reason")
	descWaiting   = desc("fairlead_dns_waiting", "Queries that wait now.")
	descOverflows = desc("fairlead_dns_wait_overflows_total", "Queries that were not let wait because too many did.")
	descConns     = desc("fairlead_dns_tcp_connections", "Open TCP connections.")
	descConnsOver = desc("fairlead_dns_tcp_connections_refused_total", "TCP connections closed at once because too many were open, of all or of their client.")
	descStage     = desc("fairlead_dns_generation", "Generation of the state that is announced and published.", "stage")
)

// Collectors are the server's metrics for a Prometheus registry, under CoreDNS's names where they mean the same.
func (s *Server) Collectors() []prometheus.Collector {
	out := []prometheus.Collector{(*collector)(s)}
	out = append(out, s.meter.Collectors()...)
	out = append(out, s.clients.Collectors(func() *client.Table { return s.gate.state.Load().announced.clients })...)
	return []prometheus.Collector{&collectors{s, append(out, s.options.forwarding.Collectors()...)}}
}

// collectors are a server's, which first takes in what the kernel has counted.
type collectors struct {
	*Server
	all []prometheus.Collector
}

// Describe implements prometheus.Collector.
func (c *collectors) Describe(ch chan<- *prometheus.Desc) {
	for _, each := range c.all {
		each.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (c *collectors) Collect(ch chan<- prometheus.Metric) {
	c.Server.collect()
	for _, each := range c.all {
		each.Collect(ch)
	}
}

// zoneNames are the zones of the metrics by their names.
func zoneNames(cluster string) []string { return []string{".", cluster, suffix4[1:], suffix6[1:]} }

type collector Server

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	forward.Describe(ch)
	for _, d := range []*prometheus.Desc{descRequests, descResponses, descDuration, descDropped, descUnsent, descWaits,
		descTimeouts, descWaiting, descOverflows, descConns, descConnsOver, descStage} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, b := range c.plan.Load().blocks {
		if b.upstreams != nil {
			b.upstreams.Collect(ch)
		}
	}
	c.collectSockets(ch, counter)
	for r := starting; r < reasons; r++ {
		counter(descWaits, c.gate.waits[r].Load(), r.String())
		counter(descTimeouts, c.gate.timeouts[r].Load(), r.String())
	}
	gauge(descWaiting, float64(c.gate.waiting.Load()))
	counter(descOverflows, c.gate.overflows.Load())
	open, refused := c.conns.count()
	gauge(descConns, float64(open))
	counter(descConnsOver, refused)
	st := c.gate.state.Load()
	gauge(descStage, float64(st.announced.snap.Generation), "announced")
	if st.published != nil {
		gauge(descStage, float64(st.published.snap.Generation), "published")
	}
}

// collectSockets adds up the counters of the sockets. Responses and durations are told apart by address only, so UDP and TCP are one.
func (c *collector) collectSockets(ch chan<- prometheus.Metric, counter func(*prometheus.Desc, uint64, ...string)) {
	type key struct {
		server string
		zone   int
	}
	type sums struct {
		responses [rcodes]uint64
		buckets   [durationBuckets]uint64
		nanos     uint64
	}
	names := zoneNames(c.plan.Load().primary())
	total := make(map[key]*sums)
	transports := make(map[transport]*[zones][len(countedTypes)]uint64)
	dropped, unsent := make(map[transport]uint64), make(map[string]uint64)
	for _, s := range (*Server)(c).stats() {
		dropped[s.transport] += s.dropped.Load()
		unsent[s.server] += s.unsent.Load()
		requests := transports[s.transport]
		if requests == nil {
			requests = new([zones][len(countedTypes)]uint64)
			transports[s.transport] = requests
		}
		for z := range zones {
			t := total[key{s.server, z}]
			if t == nil {
				t = new(sums)
				total[key{s.server, z}] = t
			}
			for i := range s.requests[z] {
				requests[z][i] += s.requests[z][i].Load()
			}
			for i := range s.responses[z] {
				t.responses[i] += s.responses[z][i].Load()
			}
			for i := range s.buckets[z] {
				t.buckets[i] += s.buckets[z][i].Load()
			}
			t.nanos += s.nanos[z].Load()
		}
	}
	for k, requests := range transports {
		counter(descDropped, dropped[k], k.server, k.proto)
		for z := range zones {
			for i, n := range requests[z] {
				if n > 0 {
					counter(descRequests, n, k.server, names[z], "", k.proto, k.family, typeName(countedTypes[i]))
				}
			}
		}
	}
	for server, n := range unsent {
		counter(descUnsent, n, server)
	}
	for k, t := range total {
		for rcode, n := range t.responses {
			if n > 0 {
				counter(descResponses, n, k.server, names[k.zone], "", rcodeName(rcode), "fairlead")
			}
		}
		cumulative, count := make(map[float64]uint64, len(durations)), uint64(0)
		for i, n := range t.buckets {
			if count += n; i < len(durations) {
				cumulative[durations[i]] = count
			}
		}
		if count > 0 {
			ch <- prometheus.MustNewConstHistogram(descDuration, count, float64(t.nanos)/1e9, cumulative, k.server, names[k.zone], "")
		}
	}
}

func typeName(t uint16) string {
	if t == mdns.TypeNone {
		return "other"
	}
	return mdns.TypeToString[t]
}

func rcodeName(rcode int) string {
	if rcode == mdns.RcodeBadVers {
		return "BADVERS"
	}
	if s, ok := mdns.RcodeToString[rcode]; ok {
		return s
	}
	return strconv.Itoa(rcode)
}
