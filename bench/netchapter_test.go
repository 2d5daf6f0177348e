// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
)

// networkSample is a result of every experiment.
func networkSample() *suite {
	s := &suite{chapter: networkChapter, out: json.NewEncoder(io.Discard)}
	rivals := []string{"bridge + host-local", ptpName, "floor"}
	taken := map[string][]attached{"fairlead": {{add: []float64{3, 4}, del: []float64{9, 10}}, {add: []float64{3, 5}, del: []float64{8, 9}}}}
	for i, rival := range rivals {
		v := float64(10 - 3*i)
		taken[rival] = []attached{{add: []float64{v, v}, del: []float64{10, 10}}, {add: []float64{v, v + 1}, del: []float64{10, 11}}}
	}
	s.reportAttach(taken, "IPv4, one at a time", rivals)
	s.reportAttach(taken, "dual-stack, one at a time", rivals)
	s.compare(figure{Section: "full", Figure: "ADD with 250 of 253 addresses held, p50", Unit: "ms"}, "fairlead, none held", []float64{3}, []float64{2.9}, share, atMost(1.1))
	carried := func(v float64) []passed {
		c := carried{PerSecond: v * 1e9, P50: 10 / v, P99: 20 / v}
		return []passed{{c, c, c, c}, {c, c, c, c}}
	}
	s.reportTraffic(map[string][]passed{
		barePairName: carried(2), bridgePairName: carried(1.8), "host-gw": carried(1.9), "VXLAN": carried(1.2), vxlanPairName: carried(1.2),
		fastPair: carried(1.95), fastVXLANPair: carried(1.3), "host-gw" + byService: carried(1.8), fastPair + byService: carried(1.9),
		ledPair: carried(1.95), ledPair + byService: carried(1.95)})
	return s
}

// The page has a row of every figure, says what is missing and why, and shows the plots that are written.
func TestWriteNetworkDocs(t *testing.T) {
	dir := t.TempDir()
	s := networkSample()
	page := docsOf(t, dir, s)
	checkRows(t, page, s.figures)
	if n := strings.Count(page, "\n## "); n != len(networkChapter.experiments)+1 {
		t.Errorf("%d sections, want one for each experiment and the goals", n)
	}
	checkPlots(t, dir, page, 2, "Fairlead", "bridge") // those of ADD and of a stream
}

// A 99th percentile is of a hundred pods, of both.
func TestReportAttachTails(t *testing.T) {
	s := &suite{chapter: networkChapter, out: json.NewEncoder(io.Discard)}
	round := func(n int) []attached {
		return []attached{{add: slices.Repeat([]float64{1}, n), del: slices.Repeat([]float64{2}, n)}}
	}
	s.reportAttach(map[string][]attached{"fairlead": round(enoughForTail), "floor": round(enoughForTail), ptpName: round(4)}, "dual-stack", []string{"floor", ptpName})
	var got []string
	for _, f := range s.figures {
		got = append(got, f.Figure+" / "+f.Rival)
	}
	if want := []string{"ADD, dual-stack, p50 / floor", "ADD, dual-stack, p50 / " + ptpName, "ADD, dual-stack, p99 / floor",
		"DEL, dual-stack, p50 / floor", "DEL, dual-stack, p50 / " + ptpName, "DEL, dual-stack, p99 / floor"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Every goal is judged against the rival that it names.
func TestNetworkGoals(t *testing.T) {
	got := map[string]string{}
	for _, f := range networkSample().figures {
		if f.Met != nil {
			got[f.Figure+" / "+f.Rival] = f.Goal
		}
	}
	for what, want := range map[string]string{
		"ADD, IPv4, one at a time, p50 / bridge + host-local":                                   "≥ 4",
		"ADD, IPv4, one at a time, p50 / ptp + host-local":                                      "≥ 3",
		"ADD, dual-stack, one at a time, p50 / floor":                                           "≥ 0.5",
		"ADD with 250 of 253 addresses held, p50 / fairlead, none held":                         "≤ 1.1",
		"one TCP stream, host-gw / " + barePairName:                                             "≥ 0.95",
		"TCP connections per second, one after the other, host-gw / " + barePairName:            "≥ 0.95",
		"TCP exchanges per second on one connection, host-gw / " + barePairName:                 "≥ 0.92",
		"one TCP stream, VXLAN / " + vxlanPairName:                                              "≥ 0.95",
		"one TCP stream, host-gw, fast path / " + barePairName:                                  "≥ 0.95",
		"TCP connections per second, one after the other, host-gw, fast path / " + barePairName: "≥ 0.95",
		"TCP exchanges per second on one connection, host-gw, fast path / " + barePairName:      "≥ 0.92",
		"one TCP stream, VXLAN, fast path / " + vxlanPairName:                                   "≥ 0.95",
	} {
		if got[what] != want {
			t.Errorf("%s has the goal %q, want %s", what, got[what], want)
		}
		delete(got, what)
	}
	if len(got) != 3 { // of p50 one at a time: the others
		t.Errorf("further goals: %v", got)
	}
}
