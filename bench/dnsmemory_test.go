// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"runtime"
	"strings"
	"testing"
)

func TestEventsTold(t *testing.T) {
	const metrics = `# TYPE apiserver_watch_events_total counter
apiserver_watch_events_total{group="",resource="services",version="v1"} 210
apiserver_watch_events_total{group="discovery.k8s.io",resource="endpointslices",version="v1"} 1.23e+05
`
	for resource, want := range map[string]int{"services": 210, "endpointslices": 123000} {
		if got, err := eventsTold([]byte(metrics), resource); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", resource, got, err, want)
		}
	}
	if _, err := eventsTold([]byte(metrics), "pods"); err == nil {
		t.Error("no events of pods: want an error")
	}
	if _, err := eventsTold([]byte(strings.Replace(metrics, "210", "many", 1)), "services"); err == nil {
		t.Error("no number: want an error")
	}
}

// The peak begins anew, and is seen to grow.
func TestForgetPeak(t *testing.T) {
	const size = 64 << 20
	touch := func() {
		b := make([]byte, size)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		runtime.KeepAlive(b)
	}
	if err := forgetPeak(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	before, err := memoryOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if before.PSS <= 0 || before.PSS > before.RSS || before.Peak > before.RSS+size/2 {
		t.Errorf("%+v", before)
	}
	touch()
	after, err := memoryOf(os.Getpid())
	if err != nil || after.Peak < before.RSS+size/2 {
		t.Errorf("peak %v after %v, %v", after.Peak, before, err)
	}
}

func TestReportMemory(t *testing.T) {
	s := testSuite()
	rounds := func(rss, peak float64) []held {
		return []held{{memory{RSS: rss * mib, PSS: rss * mib}, peak * mib}, {memory{RSS: rss * mib, PSS: rss * mib}, peak * mib}}
	}
	s.reportMemory(shape{1000, 100, 0, 0}, rounds(50, 55), rounds(200, 400), nil, 0)
	s.reportMemory(shape{10000, 10, 0, 0}, rounds(50, 60), rounds(200, 400), []float64{30, 10}, 2*mib)
	got := map[string]bool{}
	for _, f := range s.figures {
		if f.Met != nil {
			got[f.Figure] = *f.Met
		}
	}
	for name, want := range map[string]bool{
		"most memory during a relist over that before at 1,000 Services, 100,000 endpoints":  true,
		"most memory during a relist over that before at 10,000 Services, 100,000 endpoints": false,
		"agent less one without DNS at 10,000 Services, 100,000 endpoints":                   false,
		"heap of the package dns at 10,000 Services, 100,000 endpoints":                      true,
	} {
		if met, ok := got[name]; !ok || met != want {
			t.Errorf("%s: met %v, judged %v", name, met, ok)
		}
	}
	if len(got) != 4 {
		t.Errorf("goals %v", got)
	}
}

// The package answers for every name of the snapshot, and what it holds is told.
func TestDNSHeap(t *testing.T) {
	var out bytes.Buffer
	if err := dnsheap([]string{"-services", "50", "-endpoints", "2"}, &out); err != nil {
		t.Fatal(err)
	}
	var size int64
	if err := json.Unmarshal(out.Bytes(), &size); err != nil || size > 100<<20 {
		t.Errorf("%s, %v", out.String(), err)
	}
	snap, questions, err := makeSnapshot(3, 2)
	if err != nil || len(questions) != 3 || snap == nil {
		t.Errorf("%d questions, %v", len(questions), err)
	}
}
