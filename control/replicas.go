// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
)

// The decisions of the ReplicaSet controller, as functions of values.

// podReady returns the pod's Ready condition if it is True, else nil.
func podReady(pod *corev1.Pod) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return c
		}
	}
	return nil
}

// podFinal says whether the pod has ended and will never run again.
func podFinal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// podActive says whether a pod counts as a replica: it has not ended and is not about to.
func podActive(pod *corev1.Pod) bool { return !podFinal(pod) && pod.DeletionTimestamp == nil }

// availableIn is how long from now until the pod counts as available, if it stays ready: 0 when it does already,
// negative when it is not ready.
func availableIn(pod *corev1.Pod, minReadySeconds int32, now time.Time) time.Duration {
	ready := podReady(pod)
	if ready == nil {
		return -1
	}
	if minReadySeconds == 0 {
		return 0
	}
	since := ready.LastTransitionTime
	if since.IsZero() {
		return time.Duration(minReadySeconds) * time.Second
	}
	return max(0, since.Add(time.Duration(minReadySeconds)*time.Second).Sub(now))
}

// victims chooses which n of the pods to delete, as Kubernetes does: first those that do the least (no node, not
// running, not ready), then the cheapest by annotation, then those that share a node with most of their like
// (related: pods of all ReplicaSets of the same Deployment), then the younger by order of magnitude.
func victims(pods, related []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	if n >= len(pods) {
		return pods
	}
	crowd := map[string]int{}
	for _, pod := range related {
		if podActive(pod) && pod.Spec.NodeName != "" {
			crowd[pod.Spec.NodeName]++
		}
	}
	sorted := slices.Clone(pods)
	slices.SortFunc(sorted, func(a, b *corev1.Pod) int {
		return cmp.Or(
			cmp.Compare(rank(a.Spec.NodeName != ""), rank(b.Spec.NodeName != "")),
			cmp.Compare(phaseRank(a), phaseRank(b)),
			cmp.Compare(rank(podReady(a) != nil), rank(podReady(b) != nil)),
			cmp.Compare(deletionCost(a), deletionCost(b)),
			cmp.Compare(crowd[b.Spec.NodeName], crowd[a.Spec.NodeName]),
			cmp.Compare(magnitude(readySince(a), now), magnitude(readySince(b), now)),
			cmp.Compare(restarts(b), restarts(a)),
			cmp.Compare(magnitude(a.CreationTimestamp.Time, now), magnitude(b.CreationTimestamp.Time, now)),
			cmp.Compare(a.UID, b.UID),
		)
	})
	return sorted[:n]
}

func rank(keep bool) int {
	if keep {
		return 1
	}
	return 0
}

func phaseRank(pod *corev1.Pod) int {
	switch pod.Status.Phase {
	case corev1.PodRunning:
		return 2
	case corev1.PodUnknown:
		return 1
	}
	return 0
}

// deletionCost reads the annotation controller.kubernetes.io/pod-deletion-cost; what is no number counts as 0.
func deletionCost(pod *corev1.Pod) int32 {
	n, err := strconv.ParseInt(pod.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

func readySince(pod *corev1.Pod) time.Time {
	if c := podReady(pod); c != nil {
		return c.LastTransitionTime.Time
	}
	return time.Time{}
}

// magnitude is the age in powers of two, so that pods of about the same age are chosen without regard to it and
// the victims spread over failure domains. An unknown time counts as no age.
func magnitude(t, now time.Time) int {
	age := now.Sub(t)
	if t.IsZero() || age <= 0 {
		return -1
	}
	return int(math.Log2(float64(age)))
}

func restarts(pod *corev1.Pod) int32 {
	var most int32
	for _, s := range pod.Status.ContainerStatuses {
		most = max(most, s.RestartCount)
	}
	return most
}

// replicaSetStatus is the status that a ReplicaSet should show for these pods, which are its own, and for the
// failure of managing them, if there was one; again is when it changes without any event, 0 for never.
func replicaSetStatus(rs *appsv1.ReplicaSet, pods []*corev1.Pod, failure error, now time.Time) (s appsv1.ReplicaSetStatus, again time.Duration) {
	template := labels.Set(rs.Spec.Template.Labels).AsSelectorPreValidated()
	var terminating int32
	for _, pod := range pods {
		if pod.DeletionTimestamp != nil && !podFinal(pod) {
			terminating++
		}
		if !podActive(pod) {
			continue
		}
		s.Replicas++
		if template.Matches(labels.Set(pod.Labels)) {
			s.FullyLabeledReplicas++
		}
		switch in := availableIn(pod, rs.Spec.MinReadySeconds, now); {
		case in == 0:
			s.ReadyReplicas++
			s.AvailableReplicas++
		case in > 0:
			s.ReadyReplicas++
			if again == 0 || in < again {
				again = in
			}
		}
	}
	s.TerminatingReplicas = &terminating
	s.ObservedGeneration = rs.Generation
	s.Conditions = slices.DeleteFunc(slices.Clone(rs.Status.Conditions), func(c appsv1.ReplicaSetCondition) bool {
		return c.Type == appsv1.ReplicaSetReplicaFailure
	})
	if failure != nil {
		reason := "FailedCreate"
		if s.Replicas > ptr.Deref(rs.Spec.Replicas, 1) {
			reason = "FailedDelete"
		}
		c := appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue,
			Reason: reason, Message: failure.Error(), LastTransitionTime: metav1.NewTime(now),
		}
		for _, old := range rs.Status.Conditions { // said once: a message that varies must not become a write per retry
			if old.Type == c.Type && old.Status == c.Status && old.Reason == c.Reason {
				c = old
			}
		}
		s.Conditions = append(s.Conditions, c)
	}
	if len(s.Conditions) == 0 {
		s.Conditions = nil
	}
	return s, again
}
