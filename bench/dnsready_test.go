// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
)

// Fairlead alone is compared with what is shipped, which the goal is of, and with what would be without the client's limit.
func TestReportReady(t *testing.T) {
	s := testSuite()
	round := func(ms float64) []learned {
		return []learned{{took: map[string][]float64{podReadyAmong: {ms, 2 * ms}}}}
	}
	taken := map[string][]learned{}
	var names []string
	for i, k := range stacks {
		names = append(names, k.name())
		taken[k.name()] = round([]float64{1, 100, 3}[i])
	}
	if !slices.Equal(names, []string{"fairlead", "CoreDNS and kube-controller-manager", "CoreDNS and kube-controller-manager without client limit"}) {
		t.Error(names)
	}
	s.reportReady(names, taken)
	var ratios []float64
	for _, f := range s.figures {
		ratios = append(ratios, f.Ratio)
		if goal := f.Rival == names[1] && strings.HasSuffix(f.Figure, "p99"); (f.Goal != "") != goal {
			t.Errorf("%+v", f)
		}
	}
	if !slices.Equal(ratios, []float64{100, 100, 3, 3}) {
		t.Error(ratios)
	}
}
