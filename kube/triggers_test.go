// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/model"
)

// TestTriggers reads what the endpoints controller writes, survives what it does not, and leaves out the first lists.
func TestTriggers(t *testing.T) {
	client, err := NewClientFor(&rest.Config{Host: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Client: client, Config: model.Config{Self: "n1"}})
	sl := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv6, ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "s",
		Labels: map[string]string{discoveryv1.LabelServiceName: "s"}, Annotations: map[string]string{}}}
	set := func(at string) []Trigger {
		sl.Annotations[corev1.EndpointsLastChangeTriggerTime] = at
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("fd00::%x", len(sl.Endpoints)+1)}})
		s.setSlice(sl)()
		return s.Triggers()
	}
	if got := set("2026-01-02T12:00:00Z"); len(got) > 0 {
		t.Errorf("in the first list: %v", got)
	}
	s.synced = time.Now()
	for in, want := range map[string]time.Time{
		"2026-01-02T12:00:00.123456789Z": time.Date(2026, 1, 2, 12, 0, 0, 123456789, time.UTC),
		"2026-01-02T13:00:00+01:00":      time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC),
		"2026-01-02T12:00:00Z":           time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC),
	} {
		if got := set(in); len(got) != 1 || !got[0].IPv6 || !got[0].At.Equal(want) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
	if s.setSlice(sl) != nil {
		t.Error("what is listed again as it is is to be set")
	}
	for _, in := range []string{"", "yesterday", "2026-13-02T12:00:00Z"} {
		if got := set(in); len(got) > 0 {
			t.Errorf("%q: %v, want none", in, got)
		}
	}
}
