// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/model"
)

// known is a builder of what a source has been told: two Services with their slices, a node and a range.
func known(t *testing.T) *model.Builder {
	t.Helper()
	f := newFeed(t)
	f.stream("services", serviceAt("a", "10.96.0.1"), serviceAt("b", "10.96.0.2"))
	f.stream("endpointslices", sliceOf("a", "10.244.0.1", "10.244.0.2"), sliceOf("b", "10.244.0.3"), sliceOf("orphan", "10.244.0.9"))
	f.stream("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	f.stream("pods", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p"}})
	f.stream("servicecidrs", &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.97.0.0/16"}}})
	b := model.NewBuilder(model.Config{Self: "n1"})
	f.s.Save(b)
	if got, want := b.Build().String(), f.s.Snapshot().String(); got != want {
		t.Fatalf("saved:\n%s\nwant:\n%s", got, want)
	}
	if !slices.Contains(slices.Collect(b.Slices), model.Name{Namespace: "x", Name: "orphan"}) {
		t.Error("a slice without a Service is not saved")
	}
	return b
}

// TestKeptIsNotNeeded: with an API server that answers in time, what was known before is never handed out; what its lists do not have is gone.
func TestKeptIsNotNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeedKeeping(t, known(t))
		go f.s.rely(t.Context())
		time.Sleep(grace - time.Millisecond)
		for _, resource := range []string{"services", "endpointslices", "nodes"} {
			f.stream(resource)
			if f.s.Snapshot() != nil || f.s.Listed() {
				t.Fatal("a snapshot before the last list")
			}
		}
		f.stream("pods")
		f.stream("servicecidrs")
		synctest.Wait()
		time.Sleep(time.Second)
		if f.s.Relying() || !f.s.Listed() || strings.Contains(f.log.String(), "known before") {
			t.Errorf("it counts: %s", &f.log)
		}
		if got := f.s.Snapshot().String(); got != "" {
			t.Errorf("left of what was known:\n%s", got)
		}
	})
}

// TestKeptCounts: without an API server, what was known before is handed out after the grace; each list that comes then replaces its part, and what it
// has as it was changes nothing.
func TestKeptCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeedKeeping(t, known(t))
		go f.s.rely(t.Context())
		time.Sleep(grace - time.Millisecond)
		synctest.Wait()
		if f.s.Snapshot() != nil {
			t.Fatal("handed out within the grace")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if !f.s.Relying() || f.s.Listed() || !f.changed() || len(f.s.Waiting()) != 4 {
			t.Errorf("relying %t, listed %t, waits for %v", f.s.Relying(), f.s.Listed(), f.s.Waiting())
		}
		const all = "a [10.96.0.1] with 2, b [10.96.0.2] with 1"
		if f.services() != all || f.s.Snapshot().Node() == nil {
			t.Errorf("Services %s", f.services())
		}
		first := f.s.Snapshot()
		f.stream("services", serviceAt("a", "10.96.0.1"), serviceAt("b", "10.96.0.2"))
		f.stream("endpointslices", sliceOf("b", "10.244.0.3"), sliceOf("a", "10.244.0.2", "10.244.0.1"), sliceOf("orphan", "10.244.0.9"))
		if f.s.Snapshot() != first {
			t.Error("lists of what was known make another snapshot")
		}
		f.stream("services", serviceAt("b", "10.96.0.9"), serviceAt("c", "10.96.0.3"))
		if got := f.services(); got != "b [10.96.0.9] with 1, c [10.96.0.3] with 0" || !f.s.Relying() {
			t.Errorf("Services %s", got)
		}
		f.stream("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
		f.stream("pods")
		if f.s.Relying() || !f.s.Listed() || f.s.Snapshot().Pods.Len() != 0 {
			t.Error("it still counts after the last list")
		}
		if f.heard != (heard{}) {
			t.Errorf("told of the first lists: %+v", f.heard)
		}
		if got := f.s.Snapshot().ServiceCIDRs; len(got) != 1 {
			t.Errorf("ranges %v, before their list", got)
		}
		f.stream("servicecidrs")
		if got := f.s.Snapshot().ServiceCIDRs; len(got) != 0 {
			t.Errorf("ranges %v", got)
		}
	})
}

// TestNothingKept: without anything known before, nothing is handed out however long the API server takes.
func TestNothingKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed(t)
		ctx, cancel := context.WithCancel(t.Context())
		f.s.client.servers.dial = nothing
		done := make(chan struct{})
		go func() { f.s.Run(ctx); close(done) }()
		time.Sleep(time.Hour)
		if f.s.Snapshot() != nil || f.s.Relying() {
			t.Error("something is handed out")
		}
		if got := strings.Join(f.s.Troubles(), "\n"); !strings.Contains(got, "no API server can be reached: 127.0.0.1:1: nothing is there (since ") {
			t.Errorf("troubles: %s", got)
		}
		if lines := strings.Count(f.log.String(), "\n"); lines != 1 {
			t.Errorf("%d lines logged in an hour without an API server, want one:\n%.2000s", lines, &f.log)
		}
		cancel()
		<-done
	})
}

// TestAPIServers: the addresses of the API servers are those that are ready of Service default/kubernetes.
func TestAPIServers(t *testing.T) {
	f := newFeed(t)
	sl := sliceOf("kubernetes", "192.0.2.1", "192.0.2.2")
	sl.Namespace = "default"
	https, other, port, no := "https", "other", int32(6443), false
	sl.Ports = []discoveryv1.EndpointPort{{Name: &https, Port: &port}, {Name: &other, Port: &port}}
	sl.Endpoints[1].Conditions.Ready = &no
	f.stream("endpointslices", sl, sliceOf("kubernetes", "192.0.2.9"))
	if got := f.s.apiServers(); !slices.Equal(got, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6443")}) {
		t.Error(got)
	}
}
