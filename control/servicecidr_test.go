// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestServiceCIDRs: when the cluster's range is full, a further one is used as
// soon as it is there; it stays as long as a Service has an address of it, and
// gives none while it ends.
func TestServiceCIDRs(t *testing.T) {
	c := newCluster(t, prefixes("10.96.0.0/28"), prefixes("10.244.0.0/16"), "n1")
	ctx := context.Background()
	services, cidrs := c.client.CoreV1().Services("default"), c.client.NetworkingV1().ServiceCIDRs()
	c.await(t, "kube-dns", func() string {
		_, err := c.client.CoreV1().Services("kube-system").Get(ctx, "kube-dns", metav1.GetOptions{})
		return text(err)
	})
	// 13 addresses, of which kube-dns has one.
	for i := range 12 {
		create(t, services.Create, service(fmt.Sprint("s", i), map[string]string{"app": "x"}))
	}
	const full = "range is full"
	if _, err := services.Create(ctx, service("late", nil), metav1.CreateOptions{}); !strings.Contains(text(err), full) {
		t.Fatalf("the range is not full: %v", err)
	}
	more := create(t, cidrs.Create, &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.97.0.0/24"}},
	})
	ready := func(want metav1.ConditionStatus) func() string {
		return func() string {
			got, err := cidrs.Get(ctx, "more", metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			if cond := meta.FindStatusCondition(got.Status.Conditions, networkingv1.ServiceCIDRConditionReady); cond == nil || cond.Status != want {
				return fmt.Sprint(got.Status)
			}
			return ""
		}
	}
	c.await(t, "ready", ready(metav1.ConditionTrue))
	made := create(t, services.Create, service("late", map[string]string{"app": "x"}))
	if addr := netip.MustParseAddr(made.Spec.ClusterIP); !netip.MustParsePrefix("10.97.0.0/24").Contains(addr) {
		t.Errorf("got %s", addr)
	}
	chosen := service("chosen", nil)
	chosen.Spec.ClusterIP = "10.97.0.9"
	create(t, services.Create, chosen)

	if err := cidrs.Delete(ctx, "more", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := services.Create(ctx, service("later", nil), metav1.CreateOptions{}); !strings.Contains(text(err), full) {
		t.Errorf("an address was given of a range that ends: %v", err)
	}
	c.await(t, "still used", ready(metav1.ConditionFalse))
	for _, name := range []string{"late", "chosen"} {
		if err := services.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.await(t, "gone", func() string {
		got, err := cidrs.Get(ctx, "more", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return ""
		}
		return fmt.Sprint(got.Status, err)
	})
	// One that lies within another goes at once, whoever has addresses of it.
	create(t, cidrs.Create, &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "within"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/29"}},
	})
	c.await(t, "protected", func() string {
		got, err := cidrs.Get(ctx, "within", metav1.GetOptions{})
		if err == nil && len(got.Finalizers) == 1 && len(got.Status.Conditions) == 1 {
			return ""
		}
		return fmt.Sprint(got, err)
	})
	if err := cidrs.Delete(ctx, "within", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.await(t, "gone, too", func() string {
		_, err := cidrs.Get(ctx, "within", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return ""
		}
		return fmt.Sprint("it is there: ", err)
	})
	if got, err := cidrs.Get(ctx, "kubernetes", metav1.GetOptions{}); err != nil || len(got.Finalizers) > 0 || got.UID == more.UID {
		t.Errorf("the cluster's own: %v, %v", got, err)
	}
}

// text is what an error says, if it is one.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
