// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Family is an IP family, as the label ip_family has it.
type Family int

// The families.
const (
	IPv4 Family = iota
	IPv6
	families
)

// String is the label's value.
func (f Family) String() string { return [...]string{"IPv4", "IPv6"}[f] }

// Options of a Proxy. Whatever is nil is not exported.
type Options struct {
	// Dataplane is asked at each scrape.
	Dataplane func() Dataplane
	// Dropped is asked at each scrape: packets by reason, as counted by the rules. With an error the scrape goes without them.
	Dropped func() (map[string]uint64, error)
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Proxy is the metrics of a node's service proxy. Its methods may be called concurrently.
type Proxy struct {
	o       Options
	started time.Time

	// What the loop observes has its place looked up once.
	sync, full, partial, programming, conntrack [families]prometheus.Observer
	failures, deleted                           [families]prometheus.Counter
	serviceChanges, endpointChanges             prometheus.Counter
	pendingServices, pendingEndpoints           atomic.Int64
	// A time that has not been is no metric: as zero it would look like an age of decades.
	queued, last *prometheus.GaugeVec
	noLocal      *prometheus.GaugeVec

	healthz, livez *prometheus.CounterVec

	collectors []prometheus.Collector
}

// New returns metrics that have counted nothing.
func New(o Options) *Proxy {
	if o.Now == nil {
		o.Now = time.Now
	}
	p := &Proxy{o: o, started: o.Now()}
	rounds := prometheus.ExponentialBuckets(0.001, 2, 15)
	p.sync = p.histogram("sync_proxy_rules_duration_seconds", "Time that a round of programming took.", rounds)
	p.full = p.histogram("sync_full_proxy_rules_duration_seconds", "Time that a round took which compared everything.", rounds)
	p.partial = p.histogram("sync_partial_proxy_rules_duration_seconds", "Time that a round took which wrote what changed.", rounds)
	p.programming = p.histogram("network_programming_duration_seconds",
		"Time from the change of a Service's endpoints to the kernel's acknowledgement.", slices.Concat(
			[]float64{0}, // kube-proxy has it, though nothing but a clock that is behind falls into it
			prometheus.LinearBuckets(0.25, 0.25, 2),
			prometheus.LinearBuckets(1, 1, 59),
			prometheus.LinearBuckets(60, 5, 12),
			prometheus.LinearBuckets(120, 30, 7),
		))
	p.conntrack = p.histogram("conntrack_reconciler_sync_duration_seconds", "Time that a pass over the tracked UDP flows took.", rounds)
	p.failures = p.counter("sync_proxy_rules_nftables_sync_failures_total", "Rounds that failed.")
	p.deleted = p.counter("conntrack_reconciler_deleted_entries_total", "Tracked flows removed because they led to no endpoint any more.")

	p.queued = p.gauges("sync_proxy_rules_last_queued_timestamp_seconds", "When a round was last asked for.", "ip_family")
	p.last = p.gauges("sync_proxy_rules_last_timestamp_seconds", "When a round last succeeded.", "ip_family")
	p.noLocal = p.gauges("sync_proxy_rules_no_local_endpoints_total",
		"Service ports whose traffic policy is Local and that have endpoints, but none on this node.", "traffic_policy", "ip_family")

	p.serviceChanges = p.single("sync_proxy_rules_service_changes_total", "Service events.")
	p.endpointChanges = p.single("sync_proxy_rules_endpoint_changes_total", "EndpointSlice events.")
	p.pending("sync_proxy_rules_service_changes_pending", "Service events that the kernel does not have yet.", &p.pendingServices)
	p.pending("sync_proxy_rules_endpoint_changes_pending", "EndpointSlice events that the kernel does not have yet.", &p.pendingEndpoints)

	p.healthz = p.codes("proxy_healthz_total", "Answers of /healthz.")
	p.livez = p.codes("proxy_livez_total", "Answers of /livez.")
	p.collectors = append(p.collectors, &scraped{o})
	return p
}

// Collectors are the metrics for a Prometheus registry.
func (p *Proxy) Collectors() []prometheus.Collector { return slices.Clone(p.collectors) }

// ServiceChanged counts an event of a Service.
func (p *Proxy) ServiceChanged() {
	p.serviceChanges.Inc()
	p.pendingServices.Add(1)
}

// EndpointsChanged counts an event of an EndpointSlice.
func (p *Proxy) EndpointsChanged() {
	p.endpointChanges.Inc()
	p.pendingEndpoints.Add(1)
}

// Queued says that there is something to program.
func (p *Proxy) Queued() {
	for f := range families {
		p.queued.WithLabelValues(f.String()).Set(seconds(p.o.Now()))
	}
}

// Round is one go at bringing the kernel to the desired state.
type Round struct {
	p                   *Proxy
	start               time.Time
	services, endpoints int64
}

// Begin starts a round, which takes up the events counted so far. It is for the one loop: of two rounds at once, both would count the
// same events as done.
func (p *Proxy) Begin() Round {
	return Round{p, p.o.Now(), p.pendingServices.Load(), p.pendingEndpoints.Load()}
}

// End says that the kernel has acknowledged the round, or why not; full rounds compare everything. A round that quarantines a
// Service and applies all else has succeeded. The events of a round that fails stay pending.
func (r Round) End(full bool, err error) {
	p, now := r.p, r.p.o.Now()
	took := now.Sub(r.start).Seconds()
	kind := &p.partial
	if full {
		kind = &p.full
	}
	for f := range families {
		p.sync[f].Observe(took)
		kind[f].Observe(took)
		if err != nil {
			p.failures[f].Inc()
		}
	}
	if err == nil {
		r.done(now)
	}
}

// Spare says instead that the round was not needed: the kernel has all that the events say.
func (r Round) Spare() {
	if r.services+r.endpoints > 0 {
		r.done(r.p.o.Now())
	}
}

func (r Round) done(now time.Time) {
	for f := range families {
		r.p.last.WithLabelValues(f.String()).Set(seconds(now))
	}
	r.p.pendingServices.Add(-r.services)
	r.p.pendingEndpoints.Add(-r.endpoints)
}

// Programmed says that the kernel has acknowledged a change of endpoints which happened at that time. It is to be called once for
// each slice that was added or changed, and not for deleted ones: their annotation is of the change before. What happened
// before the agent started is left out, as it measures the agent's absence.
func (p *Proxy) Programmed(f Family, trigger time.Time) {
	if !trigger.IsZero() && trigger.After(p.started) {
		p.programming[f].Observe(p.o.Now().Sub(trigger).Seconds())
	}
}

// NoLocalEndpoints says for how many Service ports the internal or external traffic policy wants an endpoint on this node, and all that
// can be used are elsewhere. A Service without any endpoint does not count.
func (p *Proxy) NoLocalEndpoints(f Family, internal, external int) {
	p.noLocal.WithLabelValues("internal", f.String()).Set(float64(internal))
	p.noLocal.WithLabelValues("external", f.String()).Set(float64(external))
}

// Reconciled says how long a pass over the tracked UDP flows took, and how many it removed.
func (p *Proxy) Reconciled(f Family, took time.Duration, deleted int) {
	p.conntrack[f].Observe(took.Seconds())
	p.deleted[f].Add(float64(deleted))
}

// Healthz counts an answer of /healthz.
func (p *Proxy) Healthz(code int) { p.healthz.WithLabelValues(strconv.Itoa(code)).Inc() }

// Livez counts an answer of /livez.
func (p *Proxy) Livez(code int) { p.livez.WithLabelValues(strconv.Itoa(code)).Inc() }

// seconds is a time as Prometheus writes it.
func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
