// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	appslisters "k8s.io/client-go/listers/apps/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
)

const (
	burst         = 500              // most pods made or deleted in one go
	doubtArrival  = 10 * time.Second // after this a pod that we made and that never showed up is looked for
	maxNameLength = 58               // of the part of a generated name before its five random characters
)

// replicaSets keeps as many pods as each ReplicaSet asks for.
type replicaSets struct {
	*loop[cache.ObjectName]
	h        *hub
	sets     appslisters.ReplicaSetLister
	expected *expectations
}

func newReplicaSets(h *hub) *replicaSets {
	apps := h.factory.Apps().V1().ReplicaSets()
	r := &replicaSets{h: h, sets: apps.Lister(), expected: newExpectations()}
	r.loop = newLoop(h, "replicaset", 8, r.reconcile)
	watch(h, apps.Informer(), func(old, cur *appsv1.ReplicaSet) {
		if old != nil && (cur == nil || cur.UID != old.UID) {
			r.expected.forget(old.UID)
		}
		r.add(cache.MetaObjectToName(latest(old, cur)))
	})
	watch(h, h.pods, r.onPod)
	return r
}

// onPod wakes the ReplicaSet that owns the pod, those that owned it before, and for a pod without an owner all
// that could adopt it.
func (r *replicaSets) onPod(old, cur *corev1.Pod) {
	for _, pod := range []*corev1.Pod{old, cur} {
		if pod == nil {
			continue
		}
		if ref := metav1.GetControllerOf(pod); ref != nil {
			if ref.Kind == replicaSetKind.Kind {
				r.expected.seen(ref.UID, pod.Name)
				r.add(cache.ObjectName{Namespace: pod.Namespace, Name: ref.Name})
			}
			continue
		}
		if cur != nil {
			r.addAdopters(cur)
		}
	}
}

func (r *replicaSets) addAdopters(pod *corev1.Pod) {
	if len(pod.Labels) == 0 || !podActive(pod) {
		return
	}
	sets, err := r.sets.ReplicaSets(pod.Namespace).List(labels.Everything())
	if err != nil {
		return // an in-memory list does not fail
	}
	for _, rs := range sets {
		if selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector); err == nil && selector.Matches(labels.Set(pod.Labels)) {
			r.add(cache.MetaObjectToName(rs))
		}
	}
}

func (r *replicaSets) reconcile(ctx context.Context, name cache.ObjectName) (time.Duration, error) {
	rs, err := r.sets.ReplicaSets(name.Namespace).Get(name.Name)
	if err != nil {
		return 0, ignoreGone(err)
	}
	// what is pending is asked before the pods are listed: an arrival in between is then at worst waited for once more
	settled, again := r.settled(ctx, rs)
	pods, err := r.claimPods(ctx, rs)
	if err != nil {
		return 0, err
	}
	var failure error
	if settled && rs.DeletionTimestamp == nil {
		failure = r.manage(ctx, rs, pods)
	}
	status, ready := replicaSetStatus(rs, pods, failure, time.Now())
	if ready > 0 {
		again = ready
	}
	if err := r.writeStatus(ctx, rs, status); err != nil {
		return 0, errors.Join(failure, err)
	}
	return again, failure
}

// settled says whether the informer shows everything that was asked for.
func (r *replicaSets) settled(ctx context.Context, rs *appsv1.ReplicaSet) (bool, time.Duration) {
	living := map[types.UID]bool{}
	for _, pod := range r.h.podsBy(podsByOwner, string(rs.UID)) {
		living[pod.UID] = pod.DeletionTimestamp == nil
	}
	arrivals, departures := r.expected.pending(rs.UID, living)
	for podName, at := range arrivals {
		if time.Since(at) < doubtArrival {
			continue
		}
		// made and deleted while the informer could not see it, or a create whose answer was lost
		_, err := r.h.client.CoreV1().Pods(rs.Namespace).Get(ctx, podName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			r.expected.seen(rs.UID, podName)
			delete(arrivals, podName)
		}
	}
	if len(arrivals) > 0 || departures {
		return false, doubtArrival
	}
	return true, 0
}

// claimPods returns the pods that are the ReplicaSet's, after adopting and releasing.
func (r *replicaSets) claimPods(ctx context.Context, rs *appsv1.ReplicaSet) ([]*corev1.Pod, error) {
	selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil {
		return nil, fmt.Errorf("read selector: %w", err)
	}
	candidates := append(r.h.podsBy(podsByOwner, string(rs.UID)), r.h.podsBy(podsByOwner, orphansOf(rs.Namespace))...)
	var mine []*corev1.Pod
	checked := false
	for _, pod := range candidates {
		matches := selector.Matches(labels.Set(pod.Labels))
		switch claimOf(pod, rs, matches) {
		case own:
			mine = append(mine, pod)
		case release:
			if err := r.h.releaseObject(ctx, podResource, pod, rs); err != nil {
				return nil, err
			}
		case adopt:
			if podFinal(pod) || selector.Empty() {
				continue
			}
			if !checked { // an informer may not show yet that the ReplicaSet is being deleted
				if err := r.stillWanted(ctx, rs); err != nil {
					return nil, err
				}
				checked = true
			}
			if err := r.h.adoptObject(ctx, podResource, pod, rs, replicaSetKind); err != nil {
				if apierrors.IsNotFound(err) {
					continue
				}
				return nil, err
			}
			mine = append(mine, pod)
		}
	}
	return mine, nil
}

func (r *replicaSets) stillWanted(ctx context.Context, rs *appsv1.ReplicaSet) error {
	fresh, err := r.h.client.AppsV1().ReplicaSets(rs.Namespace).Get(ctx, rs.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get replicaset: %w", err)
	}
	if fresh.UID != rs.UID || fresh.DeletionTimestamp != nil {
		return errStale
	}
	return nil
}

// manage creates or deletes pods until there are as many as asked for.
func (r *replicaSets) manage(ctx context.Context, rs *appsv1.ReplicaSet, pods []*corev1.Pod) error {
	var active []*corev1.Pod
	for _, pod := range pods {
		if podActive(pod) {
			active = append(active, pod)
		}
	}
	switch diff := len(active) - int(ptr.Deref(rs.Spec.Replicas, 1)); {
	case diff < 0:
		n := min(-diff, burst)
		made, err := inBatches(n, func() error { return r.createPod(ctx, rs) })
		if made > 0 {
			r.log.Info("created pods", "replicaset", cache.MetaObjectToName(rs).String(), "pods", made)
		}
		if namespaceEnding(err) {
			return nil
		}
		return err
	case diff > 0:
		n := min(diff, burst)
		chosen := victims(active, r.related(rs, active), n, time.Now())
		err := r.deletePods(ctx, rs, chosen)
		r.log.Info("deleted pods", "replicaset", cache.MetaObjectToName(rs).String(), "pods", n)
		return err
	}
	return nil
}

// related returns the pods of all ReplicaSets that have the same controlling owner as rs.
func (r *replicaSets) related(rs *appsv1.ReplicaSet, own []*corev1.Pod) []*corev1.Pod {
	ref := metav1.GetControllerOf(rs)
	if ref == nil {
		return own
	}
	sets, err := r.sets.ReplicaSets(rs.Namespace).List(labels.Everything())
	if err != nil {
		return own
	}
	var all []*corev1.Pod
	for _, other := range sets {
		if controlledBy(other, ref.UID) {
			all = append(all, r.h.podsBy(podsByOwner, string(other.UID))...)
		}
	}
	return all
}

// createPod makes one pod of the template, under a name of our own choice (see expectations).
func (r *replicaSets) createPod(ctx context.Context, rs *appsv1.ReplicaSet) error {
	prefix := rs.Name + "-"
	if len(prefix) > maxNameLength {
		prefix = prefix[:maxNameLength]
	}
	template := rs.Spec.Template.DeepCopy()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       rs.Namespace,
			GenerateName:    prefix,
			Name:            prefix + rand.String(5),
			Labels:          template.Labels,
			Annotations:     template.Annotations,
			Finalizers:      template.Finalizers,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(rs, replicaSetKind)},
		},
		Spec: template.Spec,
	}
	r.expected.create(rs.UID, pod.Name, time.Now())
	_, err := r.h.client.CoreV1().Pods(rs.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err == nil {
		r.h.events.Eventf(rs, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %v", pod.Name)
		return nil
	}
	var answered apierrors.APIStatus
	if errors.As(err, &answered) && !apierrors.IsServerTimeout(err) && !apierrors.IsTimeout(err) {
		r.expected.seen(rs.UID, pod.Name) // surely not made
	}
	if !namespaceEnding(err) && ctx.Err() == nil {
		r.h.events.Eventf(rs, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
	}
	return &refused{err: err, text: "create pod: " + strings.ReplaceAll(err.Error(), pod.Name, prefix+"*")}
}

// refused is a failed create without the random name, so that the same refusal reads the same each time.
type refused struct {
	err  error
	text string
}

func (r *refused) Error() string { return r.text }
func (r *refused) Unwrap() error { return r.err }

func (r *replicaSets) deletePods(ctx context.Context, rs *appsv1.ReplicaSet, chosen []*corev1.Pod) error {
	errs := make([]error, len(chosen))
	var wg sync.WaitGroup
	for i, pod := range chosen {
		r.expected.remove(rs.UID, pod.UID)
		wg.Go(func() {
			err := r.h.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
			switch {
			case err == nil:
				r.h.events.Eventf(rs, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %v", pod.Name)
			case !apierrors.IsNotFound(err):
				r.expected.undo(rs.UID, pod.UID)
				errs[i] = fmt.Errorf("delete pod: %w", err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (r *replicaSets) writeStatus(ctx context.Context, rs *appsv1.ReplicaSet, status appsv1.ReplicaSetStatus) error {
	if equality.Semantic.DeepEqual(rs.Status, status) {
		return nil
	}
	fresh := rs.DeepCopy()
	fresh.Status = status
	if _, err := r.h.client.AppsV1().ReplicaSets(rs.Namespace).UpdateStatus(ctx, fresh, metav1.UpdateOptions{}); ignoreGone(err) != nil {
		return fmt.Errorf("update replicaset status: %w", err)
	}
	return nil
}

// inBatches calls f n times, in parallel, in batches that double while all goes well: what would fail n times
// (a quota, a bad template) fails once. It returns how many calls succeeded and the first error.
func inBatches(n int, f func() error) (done int, err error) {
	for size := 1; n > 0; size *= 2 {
		size = min(size, n)
		errs := make([]error, size)
		var wg sync.WaitGroup
		for i := range size {
			wg.Go(func() { errs[i] = f() })
		}
		wg.Wait()
		for _, e := range errs {
			if e == nil {
				done++
			} else if err == nil {
				err = e
			}
		}
		if err != nil {
			return done, err
		}
		n -= size
	}
	return done, nil
}
