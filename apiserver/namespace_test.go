// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestSystemNamespaces(t *testing.T) {
	i, err := shared()
	must(t, err)
	c := i.admin(t)
	for _, name := range systemNamespaces {
		ns, err := c.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
		must(t, err)
		if ns.Status.Phase != corev1.NamespaceActive || ns.Labels[corev1.LabelMetadataName] != name {
			t.Errorf("%s: %v %v", name, ns.Status, ns.Labels)
		}
	}
	for _, name := range systemNamespaces[:3] {
		err := c.CoreV1().Namespaces().Delete(t.Context(), name, metav1.DeleteOptions{})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "this namespace may not be deleted") {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	cidr, err := c.NetworkingV1().ServiceCIDRs().Get(t.Context(), defaultServiceCIDR, metav1.GetOptions{})
	must(t, err)
	if len(cidr.Spec.CIDRs) != 1 || cidr.Spec.CIDRs[0] != testCIDRs[0].String() || len(cidr.Status.Conditions) != 1 {
		t.Errorf("service CIDR %v %v", cidr.Spec, cidr.Status)
	}
}

// TestNamespaceEnd follows a namespace from its deletion to its end.
func TestNamespaceEnd(t *testing.T) {
	i, name := sharedServer(t)
	c := i.admin(t)
	namespaces, maps := c.CoreV1().Namespaces(), c.CoreV1().ConfigMaps(name)
	ns, err := namespaces.Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	if !slices.Equal(ns.Spec.Finalizers, []corev1.FinalizerName{corev1.FinalizerKubernetes}) {
		t.Errorf("finalizers %v", ns.Spec.Finalizers)
	}
	_, err = maps.Create(t.Context(), configMap("before", nil), metav1.CreateOptions{})
	must(t, err)
	other := types.UID("other")
	err = namespaces.Delete(t.Context(), name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &other}})
	if !apierrors.IsConflict(err) {
		t.Errorf("delete another of the name: %v", err)
	}
	must(t, namespaces.Delete(t.Context(), name, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}))
	ns, err = namespaces.Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	if ns.DeletionTimestamp != nil {
		t.Fatal("a dry run deleted the namespace")
	}

	ns.Finalizers = []string{"example.org/wait"}
	_, err = namespaces.Update(t.Context(), ns, metav1.UpdateOptions{})
	must(t, err)
	must(t, namespaces.Delete(t.Context(), name, metav1.DeleteOptions{}))
	must(t, namespaces.Delete(t.Context(), name, metav1.DeleteOptions{})) // again is no error
	ns, err = namespaces.Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	if ns.Status.Phase != corev1.NamespaceTerminating || ns.DeletionTimestamp == nil {
		t.Errorf("after deletion: %v %v", ns.Status, ns.DeletionTimestamp)
	}
	_, err = maps.Create(t.Context(), configMap("after", nil), metav1.CreateOptions{})
	if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Errorf("create in an ending namespace: %v", err)
	}
	before, err := maps.Get(t.Context(), "before", metav1.GetOptions{})
	must(t, err)
	before.Data = map[string]string{"still": "writable"}
	_, err = maps.Update(t.Context(), before, metav1.UpdateOptions{})
	must(t, err)

	// An ordinary update cannot finalize; the subresource can.
	ns.Spec.Finalizers = nil
	ns, err = namespaces.Update(t.Context(), ns, metav1.UpdateOptions{})
	must(t, err)
	if len(ns.Spec.Finalizers) != 1 {
		t.Errorf("an update removed the finalizers")
	}
	ns.Spec.Finalizers = nil
	ns, err = namespaces.Finalize(t.Context(), ns, metav1.UpdateOptions{})
	must(t, err)
	if _, err = namespaces.Get(t.Context(), name, metav1.GetOptions{}); err != nil {
		t.Fatalf("gone in spite of a finalizer in its metadata: %v", err)
	}
	ns.Finalizers = nil
	_, err = namespaces.Update(t.Context(), ns, metav1.UpdateOptions{})
	must(t, err)
	if _, err = namespaces.Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("finalized: %v", err)
	}
}

// TestNamespaceFinalize checks the usual end: nothing but the spec's finalizer
// was left.
func TestNamespaceFinalize(t *testing.T) {
	i, name := sharedServer(t)
	namespaces := i.admin(t).CoreV1().Namespaces()
	must(t, namespaces.Delete(t.Context(), name, metav1.DeleteOptions{}))
	ns, err := namespaces.Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	ns.Spec.Finalizers = nil
	_, err = namespaces.Finalize(t.Context(), ns, metav1.UpdateOptions{})
	must(t, err)
	if _, err = namespaces.Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("finalized: %v", err)
	}
	// The name can be used again at once.
	again := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err = namespaces.Create(t.Context(), again, metav1.CreateOptions{})
	must(t, err)
	_, err = i.admin(t).CoreV1().ConfigMaps(name).Create(t.Context(), configMap("m", nil), metav1.CreateOptions{})
	must(t, err)
}

func TestNamespaceCollection(t *testing.T) {
	i, err := shared()
	must(t, err)
	err = i.admin(t).CoreV1().RESTClient().Delete().Resource("namespaces").Do(t.Context()).Error()
	if !apierrors.IsMethodNotSupported(err) {
		t.Errorf("delete all namespaces: %v", err)
	}
}

func TestNamespaceStatus(t *testing.T) {
	i, name := sharedServer(t)
	namespaces := i.admin(t).CoreV1().Namespaces()
	ns, err := namespaces.Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	ns.Status.Phase = corev1.NamespaceTerminating
	if _, err := namespaces.UpdateStatus(t.Context(), ns, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("terminating without deletion: %v", err)
	}
	ns.Status.Phase = corev1.NamespaceActive
	ns.Status.Conditions = []corev1.NamespaceCondition{{Type: "X", Status: corev1.ConditionTrue}}
	ns, err = namespaces.UpdateStatus(t.Context(), ns, metav1.UpdateOptions{})
	must(t, err)
	if len(ns.Status.Conditions) != 1 {
		t.Errorf("status %v", ns.Status)
	}
}
