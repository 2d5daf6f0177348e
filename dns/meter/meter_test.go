// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package meter

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// gather is what collectors say, in words, by name and labels. Of a histogram these are the buckets fuller than the last one before, the count
// and the sum.
func gather(t *testing.T, collectors ...prometheus.Collector) map[string]string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collectors...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			text := fmt.Sprint(m.GetCounter().GetValue())
			if h := m.GetHistogram(); h != nil {
				text = ""
				last := uint64(0)
				for _, b := range h.GetBucket() {
					if n := b.GetCumulativeCount(); n != last {
						text += fmt.Sprintf("%.6g:%d ", b.GetUpperBound(), n)
						last = n
					}
				}
				text += fmt.Sprintf("of %d, %.9g", h.GetSampleCount(), h.GetSampleSum())
			}
			got[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = text
		}
	}
	return got
}

func TestMetrics(t *testing.T) {
	m := New(".", "cluster.local.")
	const server = "dns://10.96.0.10:53"
	udp, tcp := m.Socket(server, "udp"), m.Socket(server, "tcp")
	m.Socket(server, "udp").Observe(1, 60, 100, false) // another socket of the same address
	udp.Observe(1, 101, 512, true)
	udp.Observe(0, 0, 511, true)
	tcp.Observe(1, 70, 65535, true)
	m.Programmed(ClusterIP, 1500*time.Microsecond)
	m.Programmed(ClusterIP, -time.Second)
	m.Programmed(Headless, time.Hour)
	m.Panic()
	got := gather(t, m.Collectors()...)
	for k, want := range map[string]string{
		"coredns_dns_request_size_bytes{proto=udp,server=dns://10.96.0.10:53,view=,zone=cluster.local.}":  "100:1 200:2 of 2, 161",
		"coredns_dns_request_size_bytes{proto=udp,server=dns://10.96.0.10:53,view=,zone=.}":               "0:1 of 1, 0",
		"coredns_dns_request_size_bytes{proto=tcp,server=dns://10.96.0.10:53,view=,zone=cluster.local.}":  "100:1 of 1, 70",
		"coredns_dns_response_size_bytes{proto=udp,server=dns://10.96.0.10:53,view=,zone=cluster.local.}": "100:1 1023:2 of 2, 612",
		"coredns_dns_response_size_bytes{proto=udp,server=dns://10.96.0.10:53,view=,zone=.}":              "511:1 of 1, 511",
		"coredns_dns_response_size_bytes{proto=tcp,server=dns://10.96.0.10:53,view=,zone=cluster.local.}": "of 1, 65535",
		"coredns_dns_do_requests_total{server=dns://10.96.0.10:53,view=,zone=cluster.local.}":             "2",
		"coredns_dns_do_requests_total{server=dns://10.96.0.10:53,view=,zone=.}":                          "1",
		"coredns_kubernetes_dns_programming_duration_seconds{service_kind=cluster_ip}":                    "0.001:1 0.002:2 of 2, 0.0015",
		"coredns_kubernetes_dns_programming_duration_seconds{service_kind=headless_with_selector}":        "of 1, 3600",
		"coredns_panics_total{}": "1",
	} {
		if got[k] != want {
			t.Errorf("%s\ngot  %s\nwant %s", k, got[k], want)
		}
	}
	if _, ok := got["coredns_dns_request_size_bytes{proto=tcp,server=dns://10.96.0.10:53,view=,zone=.}"]; ok {
		t.Error("what counted nothing is a series")
	}
}

// TestHistogram: a histogram says the same as the client library's of the same values.
func TestHistogram(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for _, tt := range []struct {
		scale  float64
		bounds []float64
	}{{1, sizes}, {1e-9, latencies}} {
		h := newHistogram(tt.scale, tt.bounds)
		theirs := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "theirs", Help: "A histogram.", Buckets: tt.bounds})
		for range 2000 {
			v := r.Int64N(1 + int64(2*tt.bounds[r.IntN(len(tt.bounds))]/tt.scale))
			if r.IntN(4) == 0 {
				v = h.bounds[r.IntN(len(h.bounds))] + 1 - 2*r.Int64N(2) // next to a bound; at it, theirs depends on rounding
			}
			v = max(v, 0)
			h.observe(v)
			theirs.Observe(float64(v) * tt.scale)
		}
		got := gather(t, theirs, &named{h})
		if got["ours{}"] != got["theirs{}"] || got["ours{}"] == "" {
			t.Errorf("got\n%s, want\n%s", got["ours{}"], got["theirs{}"])
		}
	}
}

var descOurs = desc("ours", "A histogram.")

// named is a histogram alone.
type named struct{ h *histogram }

func (n *named) Describe(ch chan<- *prometheus.Desc) { ch <- descOurs }

func (n *named) Collect(ch chan<- prometheus.Metric) { n.h.collect(ch, descOurs) }

func TestNoAllocation(t *testing.T) {
	m := New(".")
	s := m.Socket("dns://test", "udp")
	if n := testing.AllocsPerRun(100, func() { s.Observe(0, 60, 100, true) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestConcurrent(t *testing.T) {
	m := New(".")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				m.Socket("dns://test", "udp").Observe(0, 60, 100, true)
			}
		})
	}
	wg.Go(func() { gather(t, m.Collectors()...) })
	wg.Wait()
	if got := gather(t, m.Collectors()...)["coredns_dns_request_size_bytes{proto=udp,server=dns://test,view=,zone=.}"]; got != "100:4000 of 4000, 240000" {
		t.Error(got)
	}
}

func BenchmarkObserve(b *testing.B) {
	s := New(".").Socket("dns://test", "udp")
	for b.Loop() {
		s.Observe(0, 60, 130, false)
	}
}

// TestAdd: messages that are counted together are counted as one by one.
func TestAdd(t *testing.T) {
	one, all := New("cluster.local."), New("cluster.local.")
	a, b := one.Socket("dns://x", "udp"), all.Socket("dns://x", "udp")
	sum := [2]uint64{}
	for i := range 50 {
		request, response := 101+i, 201+2*i-i%2
		if Class(request) != Class(150) || Class(response) != Class(201) || Class(request) == Class(response) {
			t.Fatal("not of the classes that they are to be of")
		}
		a.Observe(0, request, response, true)
		sum[0] += uint64(request)
		sum[1] += uint64(response)
	}
	b.Add(0, 50, Sizes{150, sum[0]}, Sizes{201, sum[1]}, true)
	got, want := gather(t, all.Collectors()...), gather(t, one.Collectors()...)
	if !maps.Equal(got, want) || len(got) == 0 {
		t.Errorf("%v, want %v", got, want)
	}
}
