// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	appslisters "k8s.io/client-go/listers/apps/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
)

const setsByOwner = "owner" // index of the ReplicaSet informer, as podsByOwner

// deployments moves each Deployment's pods to its current template, through ReplicaSets.
type deployments struct {
	*loop[cache.ObjectName]
	h           *hub
	deployments appslisters.DeploymentLister
	sets        cache.SharedIndexInformer

	mu      sync.Mutex
	written map[types.UID]int64 // generation of each ReplicaSet as we last wrote it
}

func newDeployments(h *hub) *deployments {
	apps := h.factory.Apps().V1()
	d := &deployments{
		h:           h,
		deployments: apps.Deployments().Lister(),
		sets:        apps.ReplicaSets().Informer(),
		written:     map[types.UID]int64{},
	}
	d.loop = newLoop(h, "deployment", 4, d.reconcile)
	h.index(d.sets, cache.Indexers{setsByOwner: byController})
	watch(h, apps.Deployments().Informer(), func(old, cur *appsv1.Deployment) {
		d.add(cache.MetaObjectToName(latest(old, cur)))
	})
	watch(h, d.sets, d.onSet)
	watch(h, h.pods, d.onPod)
	return d
}

func (d *deployments) onSet(old, cur *appsv1.ReplicaSet) {
	if old != nil && (cur == nil || cur.UID != old.UID) {
		d.mu.Lock()
		delete(d.written, old.UID)
		d.mu.Unlock()
	}
	for _, rs := range []*appsv1.ReplicaSet{old, cur} {
		if rs == nil {
			continue
		}
		if ref := metav1.GetControllerOf(rs); ref != nil {
			if ref.Kind == deploymentKind.Kind {
				d.add(cache.ObjectName{Namespace: rs.Namespace, Name: ref.Name})
			}
			continue
		}
		if cur != nil {
			d.addAdopters(cur)
		}
	}
}

func (d *deployments) addAdopters(rs *appsv1.ReplicaSet) {
	all, err := d.deployments.Deployments(rs.Namespace).List(labels.Everything())
	if err != nil {
		return // an in-memory list does not fail
	}
	for _, deployment := range all {
		if selector, err := metav1.LabelSelectorAsSelector(deployment.Spec.Selector); err == nil && selector.Matches(labels.Set(rs.Labels)) {
			d.add(cache.MetaObjectToName(deployment))
		}
	}
}

// onPod wakes a Deployment that replaces all pods at once, which waits for the last old pod to be gone.
func (d *deployments) onPod(old, cur *corev1.Pod) {
	if old == nil || cur != nil && podFinal(cur) == podFinal(old) {
		return
	}
	ref := metav1.GetControllerOf(old)
	if ref == nil || ref.Kind != replicaSetKind.Kind {
		return
	}
	obj, ok, err := d.sets.GetIndexer().GetByKey(cache.ObjectName{Namespace: old.Namespace, Name: ref.Name}.String())
	if err != nil || !ok {
		return
	}
	if owner := metav1.GetControllerOf(obj.(*appsv1.ReplicaSet)); owner != nil {
		d.add(cache.ObjectName{Namespace: old.Namespace, Name: owner.Name})
	}
}

func (d *deployments) reconcile(ctx context.Context, name cache.ObjectName) (time.Duration, error) {
	deployment, err := d.deployments.Deployments(name.Namespace).Get(name.Name)
	if err != nil {
		return 0, ignoreGone(err)
	}
	sets, err := d.claimSets(ctx, deployment)
	if err != nil {
		return 0, err
	}
	r := newRollout(deployment, sets)
	began := ""
	switch {
	case deployment.DeletionTimestamp != nil:
	case deployment.Spec.Paused || r.scaledByUser():
		err = d.resize(ctx, r)
	default:
		began, err = d.roll(ctx, r)
	}
	if err != nil {
		return 0, err
	}
	status, again := r.full(began, time.Now())
	if !deployment.Spec.Paused && deployment.DeletionTimestamp == nil && r.complete(&status) || deployment.Spec.Paused {
		if err := d.deleteExpired(ctx, r); err != nil {
			return 0, err
		}
	}
	return again, d.write(ctx, r, status)
}

// claimSets returns the Deployment's ReplicaSets, after adopting and releasing.
func (d *deployments) claimSets(ctx context.Context, deployment *appsv1.Deployment) ([]*appsv1.ReplicaSet, error) {
	selector, err := metav1.LabelSelectorAsSelector(deployment.Spec.Selector)
	if err != nil {
		return nil, fmt.Errorf("read selector: %w", err)
	}
	var mine []*appsv1.ReplicaSet
	for _, key := range []string{string(deployment.UID), orphansOf(deployment.Namespace)} {
		objs, err := d.sets.GetIndexer().ByIndex(setsByOwner, key)
		if err != nil {
			return nil, fmt.Errorf("list replicasets: %w", err)
		}
		for _, obj := range objs {
			rs := obj.(*appsv1.ReplicaSet)
			switch claimOf(rs, deployment, selector.Matches(labels.Set(rs.Labels))) {
			case own:
				if d.lags(rs) {
					return nil, errStale
				}
				mine = append(mine, rs)
			case release:
				if err := d.h.releaseObject(ctx, replicaSetResource, rs, deployment); err != nil {
					return nil, err
				}
			case adopt:
				if selector.Empty() {
					continue
				}
				if err := d.stillWanted(ctx, deployment); err != nil {
					return nil, err
				}
				if err := d.h.adoptObject(ctx, replicaSetResource, rs, deployment, deploymentKind); err != nil {
					return nil, err
				}
				return nil, errStale // go on with what the informer then shows
			}
		}
	}
	return mine, nil
}

func (d *deployments) stillWanted(ctx context.Context, deployment *appsv1.Deployment) error {
	fresh, err := d.h.client.AppsV1().Deployments(deployment.Namespace).Get(ctx, deployment.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get deployment: %w", err)
	}
	if fresh.UID != deployment.UID || fresh.DeletionTimestamp != nil {
		return errStale
	}
	return nil
}

// lags says whether the informer shows a ReplicaSet as it was before our last write. Deciding on that could take
// away pods twice: once from the ReplicaSet shown too big, once from another.
func (d *deployments) lags(rs *appsv1.ReplicaSet) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return rs.Generation < d.written[rs.UID]
}

func (d *deployments) wrote(rs *appsv1.ReplicaSet) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written[rs.UID] = rs.Generation
}

// resize spreads a changed number of replicas over what runs, without moving the rollout on.
func (d *deployments) resize(ctx context.Context, r *rollout) error {
	running := 0
	for _, rs := range r.all() {
		if active(rs) {
			running++
		}
	}
	if running > 1 && !r.scaledByUser() {
		return nil // paused in the middle: the mix stays as it is
	}
	_, err := d.apply(ctx, r.d, r.rescale())
	return err
}

// roll takes the next step of a rollout. began is the reason if it is the first one.
func (d *deployments) roll(ctx context.Context, r *rollout) (began string, err error) {
	if !rolling(r.d) {
		return d.recreate(ctx, r)
	}
	if began, err = d.ensureNew(ctx, r); err != nil {
		return began, err
	}
	if grown, err := d.apply(ctx, r.d, []scaling{{r.new, r.newSize()}}); err != nil || grown {
		return began, err
	}
	_, err = d.apply(ctx, r.d, r.shrinkOld())
	return began, err
}

// recreate makes new pods only once the last old one has ended.
func (d *deployments) recreate(ctx context.Context, r *rollout) (began string, err error) {
	if _, err := d.apply(ctx, r.d, resize(r.old, func(*appsv1.ReplicaSet) int32 { return 0 })); err != nil {
		return "", err
	}
	for _, rs := range r.old {
		for _, pod := range d.h.podsBy(podsByOwner, string(rs.UID)) {
			if !podFinal(pod) {
				return "", nil
			}
		}
		if rs.Status.Replicas > 0 || rs.Status.ObservedGeneration < rs.Generation {
			return "", nil // not yet seen to be empty
		}
	}
	if began, err = d.ensureNew(ctx, r); err != nil {
		return began, err
	}
	_, err = d.apply(ctx, r.d, []scaling{{r.new, r.newSize()}})
	return began, err
}

// ensureNew makes sure that there is a ReplicaSet of the current template with the right annotations.
func (d *deployments) ensureNew(ctx context.Context, r *rollout) (began string, err error) {
	annotations, revision := r.newAnnotations()
	if r.new == nil {
		if err := d.createSet(ctx, r, annotations); err != nil {
			return "", err
		}
		return "NewReplicaSetCreated", nil
	}
	if r.d.Annotations[revisionAnnotation] != revision {
		began = "FoundNewReplicaSet"
	}
	if maps.Equal(annotations, r.new.Annotations) && r.new.Spec.MinReadySeconds == r.d.Spec.MinReadySeconds {
		return began, nil
	}
	fresh := r.new.DeepCopy()
	fresh.Annotations = annotations
	fresh.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
	if r.new, err = d.update(ctx, fresh); err != nil {
		return "", err
	}
	return began, nil
}

func (d *deployments) update(ctx context.Context, rs *appsv1.ReplicaSet) (*appsv1.ReplicaSet, error) {
	updated, err := d.h.client.AppsV1().ReplicaSets(rs.Namespace).Update(ctx, rs, metav1.UpdateOptions{})
	if err != nil {
		return nil, fmt.Errorf("update replicaset %s: %w", rs.Name, err)
	}
	d.wrote(updated)
	return updated, nil
}

func (d *deployments) createSet(ctx context.Context, r *rollout, annotations map[string]string) error {
	hash := templateHash(&r.d.Spec.Template, r.d.Status.CollisionCount)
	template := r.d.Spec.Template.DeepCopy()
	template.Labels = withLabel(template.Labels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	selector := r.d.Spec.Selector.DeepCopy()
	selector.MatchLabels = withLabel(selector.MatchLabels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	maps.Copy(annotations, sizeAnnotations(r.d))
	size := r.newSize()
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       r.d.Namespace,
			Name:            r.d.Name + "-" + hash,
			Labels:          template.Labels,
			Annotations:     annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(r.d, deploymentKind)},
		},
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        &size,
			MinReadySeconds: r.d.Spec.MinReadySeconds,
			Selector:        selector,
			Template:        *template,
		},
	}
	made, err := d.h.client.AppsV1().ReplicaSets(rs.Namespace).Create(ctx, rs, metav1.CreateOptions{})
	switch {
	case err == nil:
		d.wrote(made)
		r.new = made
		d.said(r.d, made, 0, size)
		return nil
	case apierrors.IsAlreadyExists(err):
		return d.collided(ctx, r.d, rs.Name)
	case namespaceEnding(err):
		return errStale
	}
	return d.cannotCreate(ctx, r, fmt.Errorf("create replicaset: %w", err))
}

// cannotCreate shows in the status why there is no ReplicaSet.
func (d *deployments) cannotCreate(ctx context.Context, r *rollout, cause error) error {
	fresh := r.d.DeepCopy()
	if _, limited := deadline(r.d); limited {
		setCondition(&fresh.Status, time.Now(), appsv1.DeploymentProgressing, corev1.ConditionFalse, "ReplicaSetCreateError", cause.Error())
	}
	if !equality.Semantic.DeepEqual(fresh.Status, r.d.Status) {
		if _, err := d.h.client.AppsV1().Deployments(r.d.Namespace).UpdateStatus(ctx, fresh, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("update deployment status: %w", err)
		}
	}
	return cause
}

// collided handles a ReplicaSet that has the name we wanted: it is ours and the informer does not show it yet, or
// it is another one, and then the next name is tried.
func (d *deployments) collided(ctx context.Context, deployment *appsv1.Deployment, name string) error {
	other, err := d.h.client.AppsV1().ReplicaSets(deployment.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get replicaset: %w", err)
	}
	if controlledBy(other, deployment.UID) && sameTemplate(&other.Spec.Template, &deployment.Spec.Template) {
		return errStale
	}
	fresh := deployment.DeepCopy()
	fresh.Status.CollisionCount = ptr.To(ptr.Deref(deployment.Status.CollisionCount, 0) + 1)
	if _, err := d.h.client.AppsV1().Deployments(deployment.Namespace).UpdateStatus(ctx, fresh, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update deployment status: %w", err)
	}
	d.log.Info("name of replicaset is taken, trying another", "deployment", cache.MetaObjectToName(deployment).String(), "replicaset", name)
	return errStale
}

func withLabel(labels map[string]string, key, value string) map[string]string {
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[key] = value
	return labels
}

// apply scales ReplicaSets, writing only what differs; done says whether a size changed.
func (d *deployments) apply(ctx context.Context, deployment *appsv1.Deployment, scalings []scaling) (done bool, err error) {
	for _, s := range scalings {
		fresh := s.rs.DeepCopy()
		fresh.Spec.Replicas = &s.to
		if fresh.Annotations == nil {
			fresh.Annotations = map[string]string{}
		}
		// a ReplicaSet that stays empty has no share that would have to be known
		if s.to > 0 || active(s.rs) {
			maps.Copy(fresh.Annotations, sizeAnnotations(deployment))
		}
		grown := s.to != asked(s.rs)
		if !grown && maps.Equal(fresh.Annotations, s.rs.Annotations) {
			continue
		}
		if _, err := d.update(ctx, fresh); err != nil {
			return done, err
		}
		if grown {
			d.said(deployment, s.rs, asked(s.rs), s.to)
			done = true
		}
	}
	return done, nil
}

// said tells users and the log about a change of size.
func (d *deployments) said(deployment *appsv1.Deployment, rs *appsv1.ReplicaSet, from, to int32) {
	direction := "up"
	if to < from {
		direction = "down"
	}
	d.h.events.Eventf(deployment, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled %s replica set %s from %d to %d", direction, rs.Name, from, to)
	d.log.Info("scaled", "deployment", cache.MetaObjectToName(deployment).String(), "replicaset", rs.Name, "from", from, "to", to)
}

func (d *deployments) deleteExpired(ctx context.Context, r *rollout) error {
	for _, rs := range r.expired() {
		err := d.h.client.AppsV1().ReplicaSets(rs.Namespace).Delete(ctx, rs.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(rs.UID))})
		if ignoreGone(err) != nil {
			return fmt.Errorf("delete old replicaset: %w", err)
		}
		d.log.Info("deleted old replicaset", "deployment", cache.MetaObjectToName(r.d).String(), "replicaset", rs.Name)
	}
	return nil
}

// write stores the status and the revision, in one write, if either differs. The status subresource takes
// annotations too; through the object itself the revision would count as a change by the user.
func (d *deployments) write(ctx context.Context, r *rollout, status appsv1.DeploymentStatus) error {
	fresh := r.d.DeepCopy()
	fresh.Status = status
	if r.new != nil && r.d.DeletionTimestamp == nil {
		if fresh.Annotations == nil {
			fresh.Annotations = map[string]string{}
		}
		fresh.Annotations[revisionAnnotation] = r.new.Annotations[revisionAnnotation]
	}
	began := !maps.Equal(fresh.Annotations, r.d.Annotations)
	if !began && equality.Semantic.DeepEqual(r.d.Status, status) {
		return nil
	}
	if _, err := d.h.client.AppsV1().Deployments(r.d.Namespace).UpdateStatus(ctx, fresh, metav1.UpdateOptions{}); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("update deployment status: %w", err)
	}
	if began {
		d.log.Info("rollout", "deployment", cache.MetaObjectToName(r.d).String(), "revision", fresh.Annotations[revisionAnnotation], "replicaset", r.new.Name)
	}
	return nil
}
