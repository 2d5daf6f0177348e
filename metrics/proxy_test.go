// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"flag"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

var update = flag.Bool("update", false, "rewrite the golden text")

// text is what a scrape gets.
func text(t *testing.T, p *Proxy) string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(p.Collectors()...)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("scrape: %d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// value is that of one line of the exposition; "" if it is not there.
func value(text, series string) string {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// clock is one that the test sets.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time                { return c.now }
func (c *clock) pass(d time.Duration)          { c.now = c.now.Add(d) }
func newClock() *clock                         { return &clock{time.Unix(1_000_000_000, 0)} }
func (c *clock) ago(d time.Duration) time.Time { return c.now.Add(-d) }

// TestExposition compares all that is exported after one of everything.
func TestExposition(t *testing.T) {
	c := newClock()
	p := New(Options{
		Dataplane: func() Dataplane { return Dataplane{1, 20, 300, 4000, 50000, 6} },
		Dropped: func() (map[string]uint64, error) {
			return map[string]uint64{"no_local_endpoint": 7, "not_in_source_ranges": 8}, nil
		},
		Now: c.Now,
	})
	everything(c, p)
	got := text(t, p)
	const golden = "testdata/exposition.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (-update rewrites it):\n%s", golden, got)
	}
}

// everything calls each method, so that each series is there.
func everything(c *clock, p *Proxy) {
	for range 3 {
		p.ServiceChanged()
	}
	for range 5 {
		p.EndpointsChanged()
	}
	p.Queued()
	changed := c.now
	c.pass(1500 * time.Millisecond)
	r := p.Begin()
	p.ServiceChanged() // comes too late for the round
	c.pass(3 * time.Millisecond)
	r.End(true, nil)
	p.Programmed(IPv6, changed.Add(time.Millisecond))
	r = p.Begin()
	c.pass(time.Second)
	r.End(false, errors.New("no"))
	p.NoLocalEndpoints(IPv4, 2, 3)
	p.NoLocalEndpoints(IPv6, 0, 0)
	p.Reconciled(IPv4, 2*time.Millisecond, 4)
	p.Healthz(200)
	p.Healthz(503)
	p.Livez(200)
}

// The names, types and labels are written by hand from kube-proxy v1.37.2, pkg/proxy/metrics.
const kubeProxy = `
kubeproxy_conntrack_reconciler_deleted_entries_total counter ip_family
kubeproxy_conntrack_reconciler_sync_duration_seconds histogram ip_family
kubeproxy_network_programming_duration_seconds histogram ip_family
kubeproxy_proxy_healthz_total counter code
kubeproxy_proxy_livez_total counter code
kubeproxy_sync_full_proxy_rules_duration_seconds histogram ip_family
kubeproxy_sync_partial_proxy_rules_duration_seconds histogram ip_family
kubeproxy_sync_proxy_rules_duration_seconds histogram ip_family
kubeproxy_sync_proxy_rules_endpoint_changes_pending gauge
kubeproxy_sync_proxy_rules_endpoint_changes_total counter
kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds gauge ip_family
kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge ip_family
kubeproxy_sync_proxy_rules_nftables_sync_failures_total counter ip_family
kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge ip_family traffic_policy
kubeproxy_sync_proxy_rules_service_changes_pending gauge
kubeproxy_sync_proxy_rules_service_changes_total counter
`

// TestSameAsKubeProxy: what is called as kube-proxy's is of the same type and has the same labels.
func TestSameAsKubeProxy(t *testing.T) {
	c := newClock()
	p := New(Options{Now: c.Now})
	everything(c, p)
	r := prometheus.NewRegistry()
	r.MustRegister(p.Collectors()...)
	gathered, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range gathered {
		line := m.GetName() + " " + strings.ToLower(m.GetType().String())
		for _, l := range m.GetMetric()[0].GetLabel() {
			line += " " + l.GetName()
		}
		got = append(got, line)
	}
	if got, want := strings.Join(got, "\n"), strings.TrimSpace(kubeProxy); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestBuckets: the bounds of the histograms are kube-proxy's.
func TestBuckets(t *testing.T) {
	got := text(t, New(Options{}))
	bounds := func(name string) (out []string) {
		for line := range strings.Lines(got) {
			if rest, ok := strings.CutPrefix(line, "kubeproxy_"+name+`_bucket{ip_family="IPv4",le="`); ok {
				le, _, _ := strings.Cut(rest, `"`)
				out = append(out, le)
			}
		}
		return out
	}
	const rounds = "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 16.384 +Inf"
	for _, name := range []string{"sync_proxy_rules_duration_seconds", "sync_full_proxy_rules_duration_seconds",
		"sync_partial_proxy_rules_duration_seconds", "conntrack_reconciler_sync_duration_seconds"} {
		if b := strings.Join(bounds(name), " "); b != rounds {
			t.Errorf("%s: buckets %s", name, b)
		}
	}
	b := bounds("network_programming_duration_seconds")
	if len(b) != 1+2+59+12+7+1 || strings.Join(b[:5], " ") != "0 0.25 0.5 1 2" || strings.Join(b[60:65], " ") != "58 59 60 65 70" ||
		strings.Join(b[73:], " ") != "115 120 150 180 210 240 270 300 +Inf" {
		t.Errorf("network programming: buckets %s", b)
	}
}

// TestRounds: a round takes away the events it took up if the kernel acknowledged it or has them already, and only those.
func TestRounds(t *testing.T) {
	c := newClock()
	p := New(Options{Now: c.Now})
	const (
		services, endpoints = "kubeproxy_sync_proxy_rules_service_changes_", "kubeproxy_sync_proxy_rules_endpoint_changes_"
		full, partial       = "kubeproxy_sync_full_proxy_rules_duration_seconds_count", "kubeproxy_sync_partial_proxy_rules_duration_seconds_count"
		all, failed         = "kubeproxy_sync_proxy_rules_duration_seconds_count", "kubeproxy_sync_proxy_rules_nftables_sync_failures_total"
		last                = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
	)
	check := func(step string, pairs ...string) {
		t.Helper()
		got := text(t, p)
		for i := 0; i < len(pairs); i += 2 {
			if v := value(got, pairs[i]); v != pairs[i+1] {
				t.Errorf("%s: %s is %q, want %q", step, pairs[i], v, pairs[i+1])
			}
		}
	}
	v4, v6 := `{ip_family="IPv4"}`, `{ip_family="IPv6"}`
	check("start", services+"pending", "0", endpoints+"total", "0", last+v4, "", all+v4, "0")
	p.ServiceChanged()
	p.EndpointsChanged()
	r := p.Begin()
	p.EndpointsChanged()
	c.pass(10 * time.Millisecond)
	r.End(true, errors.New("refused"))
	check("failed", services+"pending", "1", endpoints+"pending", "2", full+v4, "1", full+v6, "1", partial+v4, "0", all+v6, "1", failed+v6, "1", last+v6, "")
	r = p.Begin()
	p.EndpointsChanged()
	c.pass(10 * time.Millisecond)
	r.End(false, nil)
	check("done", services+"pending", "0", endpoints+"pending", "1", services+"total", "1", endpoints+"total", "3",
		full+v4, "1", partial+v4, "1", all+v4, "2", failed+v4, "1", last+v4, "1.00000000002e+09")
	p.Begin().End(false, nil)
	check("rest", endpoints+"pending", "0")
	p.EndpointsChanged()
	c.pass(10 * time.Millisecond)
	p.Begin().Spare()
	check("not needed", endpoints+"pending", "0", all+v4, "3", partial+v4, "2", last+v4, "1.00000000003e+09")
	c.pass(10 * time.Millisecond)
	p.Begin().Spare()
	check("nothing happened", last+v4, "1.00000000003e+09")
}

// TestProgrammed: what happened before the start, and what has no time, is not measured.
func TestProgrammed(t *testing.T) {
	c := newClock()
	p := New(Options{Now: c.Now})
	const sum, count = `kubeproxy_network_programming_duration_seconds_sum`, `kubeproxy_network_programming_duration_seconds_count`
	c.pass(time.Minute)
	p.Programmed(IPv4, time.Time{})
	p.Programmed(IPv4, c.ago(time.Minute))
	p.Programmed(IPv4, c.ago(2*time.Minute))
	p.Programmed(IPv4, c.ago(2*time.Second))
	p.Programmed(IPv4, c.ago(3*time.Second))
	p.Programmed(IPv6, c.ago(time.Second))
	got := text(t, p)
	for series, want := range map[string]string{
		sum + `{ip_family="IPv4"}`: "5", count + `{ip_family="IPv4"}`: "2", sum + `{ip_family="IPv6"}`: "1", count + `{ip_family="IPv6"}`: "1",
	} {
		if v := value(got, series); v != want {
			t.Errorf("%s is %s, want %s", series, v, want)
		}
	}
}

// TestDropped: counters that cannot be read cost their own lines and no others.
func TestDropped(t *testing.T) {
	p := New(Options{
		Dataplane: func() Dataplane { return Dataplane{Services: 3} },
		Dropped:   func() (map[string]uint64, error) { return map[string]uint64{"x": 1}, errors.New("no table") },
	})
	got := text(t, p)
	if value(got, "fairlead_dataplane_services") != "3" || strings.Contains(got, "dropped") {
		t.Errorf("%s", got)
	}
	if got := text(t, New(Options{})); strings.Contains(got, "fairlead_") {
		t.Errorf("without sources: %s", got)
	}
}

// TestConcurrent calls everything from many goroutines; nothing is lost.
func TestConcurrent(t *testing.T) {
	p := New(Options{})
	var watchers, loop sync.WaitGroup
	for range 8 {
		watchers.Go(func() {
			for range 1000 {
				p.ServiceChanged()
				p.EndpointsChanged()
				p.Queued()
				p.Healthz(200)
			}
		})
	}
	stop := make(chan struct{})
	loop.Go(func() {
		for {
			p.Begin().End(false, nil)
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	watchers.Wait()
	close(stop)
	loop.Wait()
	p.Begin().End(false, nil)
	got := text(t, p)
	for series, want := range map[string]string{
		"kubeproxy_sync_proxy_rules_service_changes_total": "8000", "kubeproxy_sync_proxy_rules_service_changes_pending": "0",
		"kubeproxy_sync_proxy_rules_endpoint_changes_total": "8000", "kubeproxy_sync_proxy_rules_endpoint_changes_pending": "0",
		`kubeproxy_proxy_healthz_total{code="200"}`: "8000",
	} {
		if v := value(got, series); v != want {
			t.Errorf("%s is %s, want %s", series, v, want)
		}
	}
}

// BenchmarkRound is what metrics cost one change that arrives and is programmed.
func BenchmarkRound(b *testing.B) {
	p := New(Options{})
	trigger := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		p.EndpointsChanged()
		p.Queued()
		r := p.Begin()
		r.End(false, nil)
		p.Programmed(IPv4, trigger)
	}
}
