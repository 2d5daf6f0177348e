// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/apiserver/validation"
)

// FuzzChange: whatever a client sends, before anything is validated, the
// allocator does not panic, what it accepts and validation accepts is locked,
// and what is released leaves only the old object's locks.
func FuzzChange(f *testing.F) {
	f.Add([]byte(`{}`), []byte(`{"ipFamilyPolicy":"RequireDualStack"}`))
	f.Add([]byte(`{"type":"ExternalName","externalName":"a"}`), []byte(`{"clusterIP":"10.96.0.7"}`))
	f.Add([]byte(`{"ipFamilyPolicy":"PreferDualStack"}`), []byte(`{"ipFamilyPolicy":"SingleStack"}`))
	f.Add([]byte(`{"clusterIP":"None"}`), []byte(`{"clusterIPs":["None"],"ipFamilies":["IPv6","IPv4"]}`))
	f.Add([]byte(`{"clusterIP":"10.96.0.7"}`), []byte(`{"type":"ExternalName","clusterIP":""}`))
	f.Add([]byte(`{}`), []byte(`{"clusterIPs":["","x","::1"],"ipFamilies":["","",""]}`))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		ctx := context.Background()
		m := newMemory()
		a := newAllocator(t, m, both46...)
		old, s := decode(first), decode(second)
		if old == nil || s == nil {
			return
		}
		if _, err := a.Allocate(ctx, old, false); err != nil {
			if m.String() != "" {
				t.Fatalf("a failed allocation left %s", m)
			}
			return
		}
		if len(validation.Service(old)) > 0 {
			return
		}
		before := m.String()
		undone := s.DeepCopy()
		_, release, err := a.Reconcile(ctx, old, undone, false)
		if e := release(); e != nil || m.String() != before {
			t.Fatalf("release left %s, want %s (%v)", m, before, e)
		}
		if err != nil {
			return
		}
		commit, release, err := a.Reconcile(ctx, old, s, false)
		if err != nil {
			t.Fatalf("the same change failed the second time: %v", err)
		}
		if errs := validation.ServiceUpdate(s, old); len(errs) > 0 {
			if err := release(); err != nil {
				t.Fatal(err)
			}
			return
		}
		if err := commit(); err != nil {
			t.Fatal(err)
		}
		if got, want := len(m.objects), len(held(s)); got != want {
			t.Fatalf("%d locks for %v: %s", got, held(s), m)
		}
		for _, addr := range held(s) {
			if l := m.objects[addr.String()]; l == nil || !ownedBy(l, s) {
				t.Fatalf("%s is not locked: %s", addr, m)
			}
		}
	})
}

// decode is a Service with that spec, nil when it is none.
func decode(spec []byte) *corev1.Service {
	s := &corev1.Service{}
	if json.Unmarshal(spec, &s.Spec) != nil {
		return nil
	}
	s.Namespace, s.Name, s.UID, s.ResourceVersion = "shop", "orders", "uid", "1"
	scheme.Default(s)
	if len(s.Spec.Ports) == 0 {
		s.Spec.Ports = []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}
		scheme.Default(s)
	}
	return s
}
