// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BenchmarkService is one Service made, with its address, one after another.
func BenchmarkService(b *testing.B) {
	i, ns := sharedServer(b)
	services := i.admin(b).CoreV1().Services(ns)
	for n := 0; b.Loop(); n++ {
		if _, err := services.Create(b.Context(), service(fmt.Sprint("s", n)), metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkGet is one read of an object, from a client to storage and back.
func BenchmarkGet(b *testing.B) {
	i, ns := sharedServer(b)
	maps := i.admin(b).CoreV1().ConfigMaps(ns)
	if _, err := maps.Create(b.Context(), configMap("m", map[string]string{"a": "b"}), metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := maps.Get(b.Context(), "m", metav1.GetOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
