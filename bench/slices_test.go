// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"testing"
)

func TestSumRequests(t *testing.T) {
	const metrics = `# TYPE apiserver_request_total counter
apiserver_request_total{code="200",group="discovery.k8s.io",resource="endpointslices",verb="PUT",version="v1"} 10
apiserver_request_total{code="409",group="discovery.k8s.io",resource="endpointslices",verb="PUT",version="v1"} 2
apiserver_request_total{code="201",group="discovery.k8s.io",resource="endpointslices",verb="POST",version="v1"} 1e+02
apiserver_request_total{code="200",group="discovery.k8s.io",resource="endpointslices",verb="LIST",version="v1"} 7
apiserver_request_total{code="0",group="discovery.k8s.io",resource="endpointslices",verb="WATCH",version="v1"} 7
apiserver_request_total{code="200",group="",resource="pods",verb="PUT",version="v1"} 7
apiserver_request_duration_seconds_count{resource="endpointslices",verb="PUT"} 7
`
	if got, err := sumRequests([]byte(metrics), "endpointslices"); err != nil || got != 112 {
		t.Errorf("sum = %v, %v, want 112", got, err)
	}
	if got, err := sumRequests([]byte(metrics), "services"); err != nil || got != 0 {
		t.Errorf("sum of what is not there = %v, %v, want 0", got, err)
	}
	if _, err := sumRequests([]byte(`apiserver_request_total{resource="pods",verb="PUT"} many`), "pods"); err == nil {
		t.Error("no error for a number that is none")
	}
}

// TestDraw: a workload draws as many pods as it is told to, none twice, and no two of one Service where it is to change each once.
func TestDraw(t *testing.T) {
	for _, once := range []bool{false, true} {
		c := &churn{load: workload{services: 7, pods: 5, once: once}}
		for i := range 7 {
			for j := range 5 {
				c.pods = append(c.pods, fmt.Sprintf("app-%d-%d", i, j))
			}
		}
		pods, services := map[string]bool{}, map[string]bool{}
		for _, pod := range c.draw(7) {
			pods[pod] = true
			services[pod[:len("app-0")]] = true
		}
		if len(pods) != 7 || once && len(services) != 7 {
			t.Errorf("once %t: drew %v of %v", once, pods, services)
		}
	}
}
