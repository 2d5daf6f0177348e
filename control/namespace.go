// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
)

// emptying is how long to wait before looking again whether a namespace is empty. Ending pods wake it earlier.
const emptying = 500 * time.Millisecond

// namespaces empties namespaces that are being deleted, then lets them go. Pods end first, gracefully, and what
// they may still need (Services, ConfigMaps) goes after them.
type namespaces struct {
	*loop[string]
	h      *hub
	lister corelisters.NamespaceLister
}

func newNamespaces(h *hub) *namespaces {
	core := h.factory.Core().V1().Namespaces()
	n := &namespaces{h: h, lister: core.Lister()}
	n.loop = newLoop(h, "namespace", 4, n.reconcile)
	watch(h, core.Informer(), func(old, cur *corev1.Namespace) {
		if cur != nil && cur.DeletionTimestamp != nil {
			n.add(cur.Name)
		}
	})
	watch(h, h.pods, func(old, cur *corev1.Pod) {
		if cur != nil {
			return
		}
		if ns, err := n.lister.Get(old.Namespace); err == nil && ns.DeletionTimestamp != nil {
			n.add(ns.Name)
		}
	})
	return n
}

func (n *namespaces) reconcile(ctx context.Context, name string) (time.Duration, error) {
	ns, err := n.h.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if err != nil || ns.DeletionTimestamp == nil {
		return 0, ignoreGone(err)
	}
	left, err := n.empty(ctx, name)
	if err != nil {
		return 0, err
	}
	if left {
		return emptying, nil
	}
	return 0, n.finalize(ctx, ns)
}

// empty deletes what is in the namespace; left says whether something is still there.
func (n *namespaces) empty(ctx context.Context, namespace string) (left bool, err error) {
	var rest []kind
	for _, k := range n.h.kinds {
		if !k.namespaced {
			continue
		}
		if k.resource != podResource {
			rest = append(rest, k)
			continue
		}
		if left, err := n.clear(ctx, k, namespace); left || err != nil {
			return left, err
		}
	}
	var errs []error
	for _, k := range rest {
		some, err := n.clear(ctx, k, namespace)
		left = left || some
		errs = append(errs, err)
	}
	return left, errors.Join(errs...)
}

// clear deletes all objects of one kind in the namespace that are not being deleted already.
func (n *namespaces) clear(ctx context.Context, k kind, namespace string) (left bool, err error) {
	client := n.h.objects.Resource(k.resource).Namespace(namespace)
	list, err := client.List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
		return false, nil // no such kind any more
	}
	if err != nil {
		return false, fmt.Errorf("list %s: %w", k.resource.Resource, err)
	}
	untouched := slices.ContainsFunc(list.Items, func(o metav1.PartialObjectMetadata) bool { return o.DeletionTimestamp == nil })
	if !untouched {
		return len(list.Items) > 0, nil
	}
	background := metav1.DeletePropagationBackground
	if err := client.DeleteCollection(ctx, metav1.DeleteOptions{PropagationPolicy: &background}, metav1.ListOptions{}); ignoreGone(err) != nil {
		return true, fmt.Errorf("delete %s: %w", k.resource.Resource, err)
	}
	n.log.Info("deleted", "namespace", namespace, "kind", k.resource.Resource, "objects", len(list.Items))
	if list, err = client.List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
		return true, fmt.Errorf("list %s: %w", k.resource.Resource, err)
	}
	return len(list.Items) > 0, nil
}

// finalize removes this controller's finalizer, and with it the namespace.
func (n *namespaces) finalize(ctx context.Context, ns *corev1.Namespace) error {
	if !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return nil
	}
	ns.Spec.Finalizers = slices.DeleteFunc(ns.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	if _, err := n.h.client.CoreV1().Namespaces().Finalize(ctx, ns, metav1.UpdateOptions{}); ignoreGone(err) != nil {
		return fmt.Errorf("finalize namespace: %w", err)
	}
	n.log.Info("namespace is gone", "namespace", ns.Name)
	return nil
}
