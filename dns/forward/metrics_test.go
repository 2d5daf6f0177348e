// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"fmt"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// one collects from one forwarder.
type one struct{ *Forwarder }

func (one) Describe(ch chan<- *prometheus.Desc) { Describe(ch) }

// scrape is what a scrape of a forwarder gets, a line for each value, without labels that say nothing; of a histogram, the number of observations.
func scrape(t testing.TB, f *Forwarder) string {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	for _, c := range append(f.metrics.Collectors(), one{f}) {
		if err := reg.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				if v := l.GetValue(); v != "" && l.GetName() != "zones" {
					labels = append(labels, l.GetName()+"="+v)
				}
			}
			v := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			fmt.Fprintf(&out, "%s{%s} %g\n", f.GetName(), strings.Join(labels, ","), v)
		}
	}
	return out.String()
}

func TestMetrics(t *testing.T) {
	up := newResolver(t, says(func(m *mdns.Msg) {
		if m.Question[0].Name[0]|0x20 == 'n' {
			m.Rcode, m.Ns = mdns.RcodeNameError, rrs("example. 60 IN SOA a. b. 1 2 3 4 60")
			return
		}
		m.Answer = rrs(m.Question[0].Name + " 60 IN A 192.0.2.80")
	}))
	r := start(t, nil, up)
	for _, name := range []string{"a.example.", "a.example.", "none.example.", "none.example.", "none.example."} {
		r.ask(name, typeA)
	}
	got := scrape(t, r.Forwarder)
	to := up.addr.String()
	for _, line := range []string{
		`coredns_cache_entries{type=denial} 1`,
		`coredns_cache_entries{type=success} 1`,
		`coredns_cache_requests_total{} 5`,
		`coredns_cache_hits_total{type=denial} 2`,
		`coredns_cache_hits_total{type=success} 1`,
		`coredns_cache_misses_total{} 2`,
		`coredns_cache_prefetch_total{} 0`,
		`coredns_cache_served_stale_total{} 0`,
		`coredns_cache_drops_total{} 0`,
		`coredns_cache_evictions_total{type=success} 0`,
		`coredns_forward_max_concurrent_rejects_total{} 0`,
		`coredns_forward_healthcheck_broken_total{} 0`,
		`coredns_proxy_request_duration_seconds{proxy_name=forward,rcode=NOERROR,to=` + to + `} 1`,
		`coredns_proxy_request_duration_seconds{proxy_name=forward,rcode=NXDOMAIN,to=` + to + `} 1`,
		`fairlead_dns_upstream_up{to=` + to + `,zone=.} 1`,
		`fairlead_dns_suspected_spoofs_total{to=` + to + `,zone=.} 0`,
		`fairlead_dns_forwarded_total{result=answered,to=` + to + `,zone=.} 2`,
	} {
		if !strings.Contains("\n"+got, "\n"+line+"\n") {
			t.Errorf("no %s in\n%s", line, got)
		}
	}
}
