// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// gather is what a registry says, by name and labels; a pedantic one refuses what contradicts its description.
func gather(t *testing.T, c []prometheus.Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c...)
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
			got[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetCounter().GetValue()
		}
	}
	return got
}

func TestMetrics(t *testing.T) {
	for _, mode := range []Mode{CountOnly, On} {
		table := large()
		c := New(Settings{Completion: mode, AAAA: mode, Rate: Rate{PerSecond: 1}})
		a, stranger := netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("203.0.113.1")
		for range 5 {
			c.Admit(table.Lookup(a), a, second)
		}
		for range 25 {
			c.Admit(table.Lookup(stranger), stranger, second)
		}
		c.Suppress(table.Lookup(a), 28, true)
		n := uint64(1)
		if mode == CountOnly {
			n = Sample
		}
		CountCompletion(c, n, Completion[int]{Outcome: Outcome{Records: true}, Saved: 3}, true)
		CountCompletion(c, n, Completion[int]{}, false)
		for i := range 300 {
			a := netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i%250 + 1)})
			for range 1 + i%7 {
				c.Count(table.Lookup(a), a, 3, true)
			}
		}
		got := gather(t, c.Collectors(func() *Table { return table }))
		m, weight := mode.String(), float64(n)
		for k, want := range map[string]float64{
			"fairlead_dns_clients_refused_total{kind=own_pod}":               1,
			"fairlead_dns_clients_dropped_total{kind=own_pod}":               3,
			"fairlead_dns_clients_refused_total{kind=stranger}":              20,
			"fairlead_dns_clients_dropped_total{kind=stranger}":              5,
			"fairlead_dns_clients_refused_total{kind=node}":                  0,
			"fairlead_dns_completions_total{mode=" + m + ",result=answered}": weight,
			"fairlead_dns_completions_total{mode=" + m + ",result=failed}":   0,
			"fairlead_dns_completions_total{mode=" + m + ",result=kept}":     weight,
			"fairlead_dns_completion_spared_total{mode=" + m + "}":           3 * weight,
			"fairlead_dns_suppressed_aaaa_total{mode=" + m + "}":             1,
			"fairlead_dns_top_clients_total{by=denials,client=shop/p104}":    7,
		} {
			if v, ok := got[k]; !ok || v != want {
				t.Errorf("%s is %v (there: %t), want %v", k, v, ok, want)
			}
		}
		if _, ok := got["coredns_autopath_success_total{server=}"]; ok != (mode == On) {
			t.Error("autopath counts what was done, not what would have been")
		}
		named := 0
		for k := range got {
			if strings.HasPrefix(k, "fairlead_dns_top_clients_total") {
				named++
			}
		}
		if named != 3*topClients {
			t.Errorf("%d series name clients", named)
		}
		if t.Failed() {
			t.Fatal(fmt.Sprint(got))
		}
	}
}
