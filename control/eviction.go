// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
)

// lostNodeToleration is how long pods stay on a node that is lost or not ready if they do not say it themselves,
// as in Kubernetes.
const lostNodeToleration = 300 * time.Second

// evictions deletes the pods that do not tolerate a NoExecute taint of their node, or no longer.
type evictions struct {
	*loop[cache.ObjectName]
	h     *hub
	pods  corelisters.PodLister
	nodes corelisters.NodeLister

	mu    sync.Mutex
	since map[types.UID]map[string]time.Time // node → taint → when it was first seen here
}

func newEvictions(h *hub) *evictions {
	core := h.factory.Core().V1()
	e := &evictions{h: h, pods: core.Pods().Lister(), nodes: core.Nodes().Lister(), since: map[types.UID]map[string]time.Time{}}
	e.loop = newLoop(h, "eviction", 2, e.reconcile)
	watch(h, core.Nodes().Informer(), func(old, cur *corev1.Node) {
		if old != nil && (cur == nil || cur.UID != old.UID) {
			e.note(old.UID, nil)
		}
		if cur == nil {
			return
		}
		if e.note(cur.UID, cur.Spec.Taints) {
			for _, pod := range h.podsBy(podsByNode, cur.Name) {
				e.add(cache.MetaObjectToName(pod))
			}
		}
	})
	watch(h, h.pods, func(old, cur *corev1.Pod) {
		if cur != nil && cur.Spec.NodeName != "" && (old == nil || old.Spec.NodeName == "") {
			e.add(cache.MetaObjectToName(cur))
		}
	})
	return e
}

func taintName(t *corev1.Taint) string { return t.Key + "=" + t.Value }

// note remembers since when a node has its NoExecute taints; it says whether it has any.
func (e *evictions) note(node types.UID, taints []corev1.Taint) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	was, is := e.since[node], map[string]time.Time{}
	for i := range taints {
		if t := &taints[i]; t.Effect == corev1.TaintEffectNoExecute {
			at, known := was[taintName(t)]
			if !known {
				at = time.Now()
			}
			is[taintName(t)] = at
		}
	}
	if len(is) == 0 {
		delete(e.since, node)
		return false
	}
	e.since[node] = is
	return true
}

func (e *evictions) reconcile(ctx context.Context, name cache.ObjectName) (time.Duration, error) {
	pod, err := e.pods.Pods(name.Namespace).Get(name.Name)
	if err != nil || pod.Spec.NodeName == "" || !podActive(pod) {
		return 0, ignoreGone(err)
	}
	node, err := e.nodes.Get(pod.Spec.NodeName)
	if err != nil {
		return 0, ignoreGone(err)
	}
	e.mu.Lock()
	due, why := evictAt(pod, node.Spec.Taints, e.since[node.UID])
	e.mu.Unlock()
	if why == nil {
		return 0, nil
	}
	if left := time.Until(due); left > 0 {
		return left, nil
	}
	err = e.h.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
	if ignoreGone(err) != nil {
		return 0, fmt.Errorf("evict: %w", err)
	}
	e.h.events.Eventf(pod, corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod %s", name)
	e.log.Info("evicted", "pod", name.String(), "node", node.Name, "taint", taintName(why))
	return 0, nil
}

// evictAt is when a pod must leave a node, and because of which taint; nil if it may stay. since is when the taints
// appeared; one that is not in it has just done so.
func evictAt(pod *corev1.Pod, taints []corev1.Taint, since map[string]time.Time) (due time.Time, why *corev1.Taint) {
	for i := range taints {
		t := &taints[i]
		if t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		stay, forever := toleration(pod, t)
		if forever {
			continue
		}
		from, known := since[taintName(t)]
		if !known {
			from = time.Now()
		}
		if at := from.Add(stay); why == nil || at.Before(due) {
			due, why = at, t
		}
	}
	return due, why
}

// toleration is how long a pod bears a taint: the shortest of those of its tolerations that match.
func toleration(pod *corev1.Pod, t *corev1.Taint) (stay time.Duration, forever bool) {
	matched := false
	stay, forever = 0, true
	for _, tol := range pod.Spec.Tolerations {
		if !corev1helpers.TolerationsTolerateTaint(logr.Discard(), []corev1.Toleration{tol}, t, true) {
			continue
		}
		matched = true
		if tol.TolerationSeconds == nil {
			continue
		}
		d := max(0, time.Duration(*tol.TolerationSeconds)*time.Second)
		if forever || d < stay {
			stay, forever = d, false
		}
	}
	if matched {
		return stay, forever
	}
	if t.Key == corev1.TaintNodeUnreachable || t.Key == corev1.TaintNodeNotReady {
		return lostNodeToleration, false
	}
	return 0, false
}
