// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// scheduler gives each pod without a node one. Decisions are made one after another, each knowing the ones before
// (placements); the binding requests go out in parallel.
type scheduler struct {
	*loop[cache.ObjectName]
	h      *hub
	pods   corelisters.PodLister
	nodes  corelisters.NodeLister
	placed *placements
}

func newScheduler(h *hub) *scheduler {
	core := h.factory.Core().V1()
	s := &scheduler{h: h, pods: core.Pods().Lister(), nodes: core.Nodes().Lister(), placed: newPlacements()}
	s.loop = newLoop(h, "scheduler", 16, s.reconcile)
	watch(h, h.pods, func(old, cur *corev1.Pod) {
		s.placed.observe(old, cur)
		if cur != nil && waiting(cur) {
			s.add(cache.MetaObjectToName(cur))
		}
		if old != nil && old.Spec.NodeName != "" && (cur == nil || podFinal(cur) && !podFinal(old)) {
			s.retryAll() // there is room now
		}
	})
	watch(h, core.Nodes().Informer(), func(old, cur *corev1.Node) {
		if cur != nil && (old == nil || mayFitNow(old, cur)) {
			s.retryAll()
		}
	})
	return s
}

// waiting says whether the pod is ours to schedule.
func waiting(pod *corev1.Pod) bool {
	ours := pod.Spec.SchedulerName == "" || pod.Spec.SchedulerName == corev1.DefaultSchedulerName
	return ours && pod.Spec.NodeName == "" && podActive(pod) && len(pod.Spec.SchedulingGates) == 0
}

// mayFitNow says whether a change of a node can matter to a pod that found no place.
func mayFitNow(old, cur *corev1.Node) bool {
	return nodeReady(old) != nodeReady(cur) || old.Spec.Unschedulable != cur.Spec.Unschedulable ||
		!equality.Semantic.DeepEqual(old.Spec.Taints, cur.Spec.Taints) || !maps.Equal(old.Labels, cur.Labels) ||
		!equality.Semantic.DeepEqual(old.Status.Allocatable, cur.Status.Allocatable)
}

func (s *scheduler) retryAll() {
	for _, pod := range s.h.podsBy(podsByNode, "") {
		if waiting(pod) {
			s.add(cache.MetaObjectToName(pod))
		}
	}
}

func (s *scheduler) reconcile(ctx context.Context, name cache.ObjectName) (time.Duration, error) {
	pod, err := s.pods.Pods(name.Namespace).Get(name.Name)
	if err != nil || !waiting(pod) {
		return 0, ignoreGone(err)
	}
	if s.placed.bound(pod) {
		return 0, nil // bound already, the informer will show it
	}
	nodes, err := s.nodes.List(labels.Everything())
	if err != nil {
		return 0, fmt.Errorf("list nodes: %w", err)
	}
	node, why := s.placed.take(pod, nodes)
	if node == "" {
		return 0, s.refuse(ctx, pod, why)
	}
	err = s.h.client.CoreV1().Pods(pod.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{FieldManager: component})
	if err != nil {
		s.placed.giveBack(pod)
		if apierrors.IsNotFound(err) {
			return 0, nil
		}
		return 0, fmt.Errorf("bind to %s: %w", node, err)
	}
	s.h.events.Eventf(pod, corev1.EventTypeNormal, "Scheduled", "Successfully assigned %s to %s", name, node)
	s.log.Info("bound", "pod", name.String(), "node", node)
	return 0, nil
}

// refuse says in the pod's status that no node fits, if it does not say so already. The pod is looked at again
// when a node changes or a pod makes room.
func (s *scheduler) refuse(ctx context.Context, pod *corev1.Pod, why string) error {
	fresh := pod.DeepCopy()
	said := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: why,
		LastTransitionTime: metav1.Now(),
	}
	found := false
	for i := range fresh.Status.Conditions {
		c := &fresh.Status.Conditions[i]
		if c.Type != said.Type {
			continue
		}
		if c.Status == said.Status && c.Reason == said.Reason && c.Message == said.Message {
			return nil
		}
		if c.Status == said.Status {
			said.LastTransitionTime = c.LastTransitionTime
		}
		*c, found = said, true
	}
	if !found {
		fresh.Status.Conditions = append(fresh.Status.Conditions, said)
	}
	if _, err := s.h.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, fresh, metav1.UpdateOptions{}); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("update pod status: %w", err)
	}
	s.h.events.Event(pod, corev1.EventTypeWarning, "FailedScheduling", why)
	s.log.Info("no node fits", "pod", cache.MetaObjectToName(pod).String(), "why", why)
	return nil
}
