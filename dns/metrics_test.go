// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	mdns "github.com/miekg/dns"
)

// gather is what a scrape of a server gets, by name and labels; of a histogram, the number of observations.
func gather(t *testing.T, s *Server) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(s.Collectors()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			got[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return got
}

func TestMetrics(t *testing.T) {
	start := time.Unix(0, 0)
	s := dual(t, func(o *Options) { o.Now = func() time.Time { return start } })
	for range 3 {
		s.respond("udp", loopback, message(t, nil))
	}
	s.respond("tcp", loopback, message(t, nil))
	s.respond("udp", loopback, message(t, func(m *mdns.Msg) { m.SetQuestion("www.example.com.", mdns.TypeCAA) }))
	s.respond("udp", loopback, message(t, func(m *mdns.Msg) { m.SetQuestion("1.0.96.10.in-addr.arpa.", typePTR) }))
	s.respond("udp", loopback, message(t, func(m *mdns.Msg) { m.Opcode = mdns.OpcodeUpdate }))
	s.respond("udp", loopback, nil)
	got := gather(t, s)
	for k, want := range map[string]float64{
		"coredns_dns_requests_total{family=1,proto=udp,server=dns://127.0.0.1:53,type=A,view=,zone=cluster.local.}":      3,
		"coredns_dns_requests_total{family=1,proto=tcp,server=dns://127.0.0.1:53,type=A,view=,zone=cluster.local.}":      1,
		"coredns_dns_requests_total{family=1,proto=udp,server=dns://127.0.0.1:53,type=other,view=,zone=.}":               2,
		"coredns_dns_requests_total{family=1,proto=udp,server=dns://127.0.0.1:53,type=PTR,view=,zone=in-addr.arpa.}":     1,
		"coredns_dns_responses_total{plugin=fairlead,rcode=NOERROR,server=dns://127.0.0.1:53,view=,zone=cluster.local.}": 4,
		"coredns_dns_responses_total{plugin=fairlead,rcode=REFUSED,server=dns://127.0.0.1:53,view=,zone=.}":              1,
		"coredns_dns_responses_total{plugin=fairlead,rcode=NOTIMP,server=dns://127.0.0.1:53,view=,zone=.}":               1,
		"coredns_dns_request_duration_seconds{server=dns://127.0.0.1:53,view=,zone=cluster.local.}":                      4,
		"fairlead_dns_dropped_total{proto=udp,server=dns://127.0.0.1:53}":                                                1,
		"fairlead_dns_unsent_total{server=dns://127.0.0.1:53}":                                                           0,
		"fairlead_dns_waits_total{reason=programming}":                                                                   0,
		"fairlead_dns_generation{stage=published}":                                                                       1,
	} {
		if v, ok := got[k]; !ok || v != want {
			t.Errorf("%s is %v (there: %t), want %v", k, v, ok, want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

// Several blocks with upstreams are told apart, after a reload too.
func TestMetricsOfBlocks(t *testing.T) {
	upstream := netip.MustParseAddrPort("192.0.2.1:53")
	one, two := block("cluster.local", upstream), block("cluster.local", upstream)
	two.Port = 5353
	s := newServer(t, of(one, two))
	count := func() (n int) {
		t.Helper()
		for k := range gather(t, s) {
			if strings.HasPrefix(k, "fairlead_dns_upstream_up{") {
				n++
			}
		}
		return n
	}
	if n := count(); n != 2 {
		t.Errorf("%d upstreams are there, want 2", n)
	}
	corp := Block{Zones: []string{"corp.example."}, Forward: one.Forward}
	if err := s.Reload([]Block{one, two, corp}); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 3 {
		t.Errorf("%d upstreams are there after the reload, want 3", n)
	}
}

// A change of endpoints is counted by its Service's kind, if it happened in the server's time.
func TestProgrammed(t *testing.T) {
	now := time.Unix(1000, 0)
	s := dual(t, func(o *Options) { o.Now = func() time.Time { return now } })
	now = now.Add(time.Minute)
	for _, n := range []string{"shop/orders", "shop/web", "shop/nothing", "aliases/outside"} {
		s.Programmed(name(n), now.Add(-time.Second))
		s.Programmed(name(n), now.Add(-2*time.Minute))
	}
	got := make(map[string]float64)
	for k, v := range gather(t, s) {
		if kind, ok := strings.CutPrefix(k, "coredns_kubernetes_dns_programming_duration_seconds"); ok {
			got[kind] = v
		}
	}
	if len(got) != 2 || got["{service_kind=cluster_ip}"] != 1 || got["{service_kind=headless_with_selector}"] != 1 {
		t.Errorf("counted: %v", got)
	}
}
