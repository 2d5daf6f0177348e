// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/dump"
	"k8s.io/utils/ptr"
)

// The decisions of the Deployment controller, as functions of values. Annotations, conditions and their reasons
// are Kubernetes': kubectl rollout reads them.

const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"
	maxHistoryLength   = 2000 // bytes of revision-history kept
)

// notInherited are the annotations of a Deployment that its ReplicaSets do not get.
var notInherited = map[string]bool{
	corev1.LastAppliedConfigAnnotation: true,
	revisionAnnotation:                 true,
	historyAnnotation:                  true,
	desiredAnnotation:                  true,
	maxAnnotation:                      true,
	appsv1.DeprecatedRollbackTo:        true,
}

// rollout is one look at a Deployment: its ReplicaSets, split. All of it is read-only.
type rollout struct {
	d   *appsv1.Deployment
	new *appsv1.ReplicaSet   // the one of the current template, nil if there is none yet
	old []*appsv1.ReplicaSet // the others, oldest first
}

// scaling is one decision: give this ReplicaSet that many replicas.
type scaling struct {
	rs *appsv1.ReplicaSet
	to int32
}

func newRollout(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) *rollout {
	r := &rollout{d: d, old: slices.Clone(sets)}
	slices.SortFunc(r.old, byAge)
	for i, rs := range r.old {
		if sameTemplate(&rs.Spec.Template, &d.Spec.Template) {
			r.new = rs
			r.old = slices.Delete(r.old, i, i+1)
			break
		}
	}
	return r
}

func byAge(a, b *appsv1.ReplicaSet) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// all is the old ones and the new one, in a slice of its own.
func (r *rollout) all() []*appsv1.ReplicaSet {
	all := slices.Clone(r.old)
	if r.new != nil {
		all = append(all, r.new)
	}
	return all
}

// sameTemplate compares two pod templates but for the hash label that the controller adds.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	x, y := *a, *b
	x.Labels, y.Labels = maps.Clone(a.Labels), maps.Clone(b.Labels)
	delete(x.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	delete(y.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return equality.Semantic.DeepEqual(&x, &y)
}

// templateHash names a pod template; collisions says how many other templates were found under its name before.
func templateHash(t *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	fmt.Fprint(h, dump.ForHash(t))
	if collisions != nil {
		h.Write([]byte(strconv.Itoa(int(*collisions))))
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

func desired(d *appsv1.Deployment) int32 { return ptr.Deref(d.Spec.Replicas, 1) }
func asked(rs *appsv1.ReplicaSet) int32  { return ptr.Deref(rs.Spec.Replicas, 1) }
func rolling(d *appsv1.Deployment) bool {
	return d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType
}
func active(rs *appsv1.ReplicaSet) bool { return asked(rs) > 0 }

// available is how many replicas can be counted on: a status that still shows pods which are no longer asked for
// counts only what is.
func available(rs *appsv1.ReplicaSet) int32 { return min(rs.Status.AvailableReplicas, asked(rs)) }

func sum(sets []*appsv1.ReplicaSet, of func(*appsv1.ReplicaSet) int32) int32 {
	var n int32
	for _, rs := range sets {
		n += of(rs)
	}
	return n
}

// bounds returns how many pods there may be above the desired number and how many of it may be missing during a
// rolling update. Percentages are of the desired number; never are both 0, or nothing could move.
func bounds(d *appsv1.Deployment) (surge, unavailable int32) {
	if !rolling(d) || desired(d) == 0 {
		return 0, 0
	}
	quarter := intstr.FromString("25%")
	s, u := &quarter, &quarter
	if ru := d.Spec.Strategy.RollingUpdate; ru != nil {
		s, u = cmp.Or(ru.MaxSurge, s), cmp.Or(ru.MaxUnavailable, u)
	}
	up, err1 := intstr.GetScaledValueFromIntOrPercent(s, int(desired(d)), true)
	down, err2 := intstr.GetScaledValueFromIntOrPercent(u, int(desired(d)), false)
	if err1 != nil || err2 != nil || up == 0 && down == 0 {
		return 0, 1
	}
	return int32(up), min(int32(down), desired(d))
}

// newSize is how many replicas the new ReplicaSet should have now, while the old ones have what they have.
func (r *rollout) newSize() int32 {
	if !rolling(r.d) {
		return desired(r.d)
	}
	var have int32
	if r.new != nil {
		have = asked(r.new)
	}
	if have > desired(r.d) {
		return desired(r.d)
	}
	surge, _ := bounds(r.d)
	room := desired(r.d) + surge - sum(r.all(), asked)
	return have + max(0, min(room, desired(r.d)-have))
}

// shrinkOld decides how far the old ReplicaSets can be scaled down: what is broken in them first, whatever else
// only as far as enough pods stay available.
func (r *rollout) shrinkOld() []scaling {
	_, unavailable := bounds(r.d)
	need := desired(r.d) - unavailable
	// of the new pods those that are not available yet must be left room to come up
	mayGo := sum(r.all(), asked) - need - (asked(r.new) - available(r.new))
	if sum(r.old, asked) == 0 || mayGo <= 0 {
		return nil
	}
	to := map[*appsv1.ReplicaSet]int32{}
	for _, rs := range r.old {
		to[rs] = asked(rs)
		broken := min(mayGo, max(0, asked(rs)-available(rs)))
		to[rs] -= broken
		mayGo -= broken
	}
	spare := sum(r.all(), available) - need
	for _, rs := range r.old {
		n := max(0, min(to[rs], spare))
		to[rs] -= n
		spare -= n
	}
	return slices.DeleteFunc(resize(r.old, func(rs *appsv1.ReplicaSet) int32 { return to[rs] }),
		func(s scaling) bool { return s.to == asked(s.rs) })
}

// scaledByUser says whether the Deployment's size was changed since its ReplicaSets were last scaled.
func (r *rollout) scaledByUser() bool {
	for _, rs := range r.all() {
		if n, err := strconv.ParseInt(rs.Annotations[desiredAnnotation], 10, 32); active(rs) && err == nil && int32(n) != desired(r.d) {
			return true
		}
	}
	return false
}

// rescale brings the ReplicaSets to a changed size of the Deployment. In the middle of a rollout every one gets
// its share, so that the mix of versions stays.
func (r *rollout) rescale() []scaling {
	running := slices.DeleteFunc(r.all(), func(rs *appsv1.ReplicaSet) bool { return !active(rs) })
	switch {
	case len(running) == 1:
		return []scaling{{running[0], desired(r.d)}}
	case len(running) == 0 && r.new != nil:
		return []scaling{{r.new, desired(r.d)}}
	case len(running) == 0 && len(r.old) > 0:
		return []scaling{{r.old[len(r.old)-1], desired(r.d)}}
	case len(running) == 0:
		return nil
	case r.saturated():
		return resize(r.old, func(*appsv1.ReplicaSet) int32 { return 0 })
	case !rolling(r.d):
		return resize(running, asked)
	}
	return r.proportional(running)
}

func resize(sets []*appsv1.ReplicaSet, to func(*appsv1.ReplicaSet) int32) []scaling {
	out := make([]scaling, len(sets))
	for i, rs := range sets {
		out[i] = scaling{rs, to(rs)}
	}
	return out
}

// saturated says whether the new ReplicaSet has everything, so that the rest can go.
func (r *rollout) saturated() bool {
	if r.new == nil {
		return false
	}
	want := strconv.Itoa(int(desired(r.d)))
	return asked(r.new) == desired(r.d) && r.new.Annotations[desiredAnnotation] == want && available(r.new) == desired(r.d)
}

func (r *rollout) proportional(running []*appsv1.ReplicaSet) []scaling {
	var allowed int32
	if desired(r.d) > 0 {
		surge, _ := bounds(r.d)
		allowed = desired(r.d) + surge
	}
	toAdd := allowed - sum(running, asked)
	slices.SortFunc(running, func(a, b *appsv1.ReplicaSet) int {
		bigger, newer := cmp.Compare(asked(b), asked(a)), byAge(b, a)
		if toAdd < 0 {
			newer = -newer // shrinking starts with the oldest
		}
		return cmp.Or(bigger, newer)
	})
	to := map[*appsv1.ReplicaSet]int32{}
	var added int32
	for _, rs := range running {
		share := r.share(rs, toAdd, added)
		to[rs] = asked(rs) + share
		added += share
	}
	for _, rs := range running { // what rounding left over
		n := max(0, to[rs]+toAdd-added)
		added += n - to[rs]
		to[rs] = n
	}
	return resize(running, func(rs *appsv1.ReplicaSet) int32 { return to[rs] })
}

// share is a ReplicaSet's part of toAdd, of which added was given out already.
func (r *rollout) share(rs *appsv1.ReplicaSet, toAdd, added int32) int32 {
	if toAdd == 0 || added == toAdd || asked(rs) == 0 {
		return 0
	}
	share := -asked(rs)
	if desired(r.d) > 0 {
		surge, _ := bounds(r.d)
		before, err := strconv.ParseInt(rs.Annotations[maxAnnotation], 10, 32)
		if err != nil || before == 0 {
			before = int64(max(r.d.Status.Replicas, 1))
		}
		share = int32(math.Round(float64(asked(rs))*float64(desired(r.d)+surge)/float64(before))) - asked(rs)
	}
	if toAdd > 0 {
		return min(share, toAdd-added)
	}
	return max(share, toAdd-added)
}

// sizeAnnotations are what each ReplicaSet says about its Deployment's size when it was last scaled.
func sizeAnnotations(d *appsv1.Deployment) map[string]string {
	surge, _ := bounds(d)
	return map[string]string{
		desiredAnnotation: strconv.Itoa(int(desired(d))),
		maxAnnotation:     strconv.Itoa(int(desired(d) + surge)),
	}
}

func revisionOf(o metav1.Object) int64 {
	n, err := strconv.ParseInt(o.GetAnnotations()[revisionAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// newAnnotations is what the new ReplicaSet should carry, and the revision it then is: one more than any old one.
// A ReplicaSet that becomes the new one again keeps its former revisions in its history.
func (r *rollout) newAnnotations() (annotations map[string]string, revision string) {
	annotations = map[string]string{}
	var have int64
	if r.new != nil {
		annotations = maps.Clone(r.new.Annotations)
		have = revisionOf(r.new)
	}
	if annotations == nil {
		annotations = map[string]string{}
	}
	for k, v := range r.d.Annotations {
		if !notInherited[k] {
			annotations[k] = v
		}
	}
	var most int64
	for _, rs := range r.old {
		most = max(most, revisionOf(rs))
	}
	if have <= most {
		if was := annotations[revisionAnnotation]; was != "" {
			annotations[historyAnnotation] = appendHistory(annotations[historyAnnotation], was)
		}
		have = most + 1
	}
	revision = strconv.FormatInt(have, 10)
	annotations[revisionAnnotation] = revision
	return annotations, revision
}

func appendHistory(history, revision string) string {
	all := append(strings.FieldsFunc(history, func(c rune) bool { return c == ',' }), revision)
	for len(all) > 1 && len(strings.Join(all, ",")) > maxHistoryLength {
		all = all[1:]
	}
	return strings.Join(all, ",")
}

// expired lists the old ReplicaSets beyond the history limit that nothing runs in.
func (r *rollout) expired() []*appsv1.ReplicaSet {
	if r.d.Spec.RevisionHistoryLimit == nil || *r.d.Spec.RevisionHistoryLimit == math.MaxInt32 {
		return nil
	}
	kept := slices.DeleteFunc(slices.Clone(r.old), func(rs *appsv1.ReplicaSet) bool { return rs.DeletionTimestamp != nil })
	slices.SortStableFunc(kept, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(revisionOf(a), revisionOf(b)) })
	n := len(kept) - int(*r.d.Spec.RevisionHistoryLimit)
	if n <= 0 {
		return nil
	}
	return slices.DeleteFunc(kept[:n], func(rs *appsv1.ReplicaSet) bool {
		return rs.Status.Replicas != 0 || asked(rs) != 0 || rs.Generation > rs.Status.ObservedGeneration
	})
}

// status is what the Deployment should show but for the conditions that say how its rollout goes.
func (r *rollout) status(now time.Time) appsv1.DeploymentStatus {
	all := r.all()
	var terminating int32
	for _, rs := range all {
		terminating += ptr.Deref(rs.Status.TerminatingReplicas, 0)
	}
	s := appsv1.DeploymentStatus{
		ObservedGeneration:  r.d.Generation,
		Replicas:            sum(all, func(rs *appsv1.ReplicaSet) int32 { return rs.Status.Replicas }),
		ReadyReplicas:       sum(all, func(rs *appsv1.ReplicaSet) int32 { return rs.Status.ReadyReplicas }),
		AvailableReplicas:   sum(all, func(rs *appsv1.ReplicaSet) int32 { return rs.Status.AvailableReplicas }),
		TerminatingReplicas: &terminating,
		CollisionCount:      r.d.Status.CollisionCount,
		Conditions:          slices.Clone(r.d.Status.Conditions),
	}
	if r.new != nil {
		s.UpdatedReplicas = r.new.Status.Replicas
	}
	s.UnavailableReplicas = max(0, sum(all, asked)-s.AvailableReplicas)

	_, unavailable := bounds(r.d)
	if s.AvailableReplicas >= desired(r.d)-unavailable {
		setCondition(&s, now, appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.")
	} else {
		setCondition(&s, now, appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
	}
	return s
}

// complete says whether everything runs the current template and nothing else is left.
func (r *rollout) complete(s *appsv1.DeploymentStatus) bool {
	want := desired(r.d)
	return s.UpdatedReplicas == want && s.Replicas == want && s.AvailableReplicas == want && s.ObservedGeneration >= r.d.Generation
}

// deadline is how long a rollout may stand still before it counts as failed; ok is false when there is no limit.
func deadline(d *appsv1.Deployment) (limit time.Duration, ok bool) {
	if n := d.Spec.ProgressDeadlineSeconds; n != nil && *n != math.MaxInt32 {
		return time.Duration(*n) * time.Second, true
	}
	return 0, false
}

// full is the whole status. began is the reason if a new rollout begins with this look, else empty. again is when
// the status changes without any event (0: never).
func (r *rollout) full(began string, now time.Time) (s appsv1.DeploymentStatus, again time.Duration) {
	s = r.status(now)
	switch _, limited := deadline(r.d); {
	case !limited:
		dropCondition(&s, appsv1.DeploymentProgressing)
	case r.d.Spec.Paused:
		if was := condition(&s, appsv1.DeploymentProgressing); was == nil || was.Reason != "ProgressDeadlineExceeded" {
			setCondition(&s, now, appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentPaused", "Deployment is paused")
		}
	default:
		again = r.progress(&s, began, now)
	}
	r.passOnFailure(&s, now)
	return s, again
}

// passOnFailure shows the first failure of a ReplicaSet, the new one's before any other.
func (r *rollout) passOnFailure(s *appsv1.DeploymentStatus, now time.Time) {
	dropCondition(s, appsv1.DeploymentReplicaFailure)
	for _, rs := range append([]*appsv1.ReplicaSet{r.new}, r.old...) {
		failure := failureOf(rs)
		if failure == nil {
			continue
		}
		was := condition(&r.d.Status, appsv1.DeploymentReplicaFailure)
		if was != nil && was.Reason == failure.Reason && was.Message == failure.Message {
			s.Conditions = append(s.Conditions, *was)
		} else {
			setCondition(s, now, appsv1.DeploymentReplicaFailure, failure.Status, failure.Reason, failure.Message)
		}
		return
	}
}

func failureOf(rs *appsv1.ReplicaSet) *appsv1.ReplicaSetCondition {
	if rs == nil {
		return nil
	}
	for i := range rs.Status.Conditions {
		if c := &rs.Status.Conditions[i]; c.Type == appsv1.ReplicaSetReplicaFailure {
			return c
		}
	}
	return nil
}

// progress sets the condition Progressing and returns when the deadline will have passed.
func (r *rollout) progress(s *appsv1.DeploymentStatus, began string, now time.Time) time.Duration {
	limit, _ := deadline(r.d)
	was := condition(&r.d.Status, appsv1.DeploymentProgressing)
	say := func(status corev1.ConditionStatus, reason, message string) time.Duration {
		setCondition(s, now, appsv1.DeploymentProgressing, status, reason, message)
		condition(s, appsv1.DeploymentProgressing).LastUpdateTime = metav1.NewTime(now) // the deadline starts anew
		return limit
	}
	done := was != nil && was.Reason == "NewReplicaSetAvailable"
	if began == "" && done && s.Replicas == s.UpdatedReplicas {
		return 0 // done before: a pod that fails now is not a rollout
	}
	subject := fmt.Sprintf("Deployment %q", r.d.Name)
	if r.new != nil {
		subject = fmt.Sprintf("ReplicaSet %q", r.new.Name)
	}
	before := &r.d.Status
	switch {
	case r.complete(s):
		say(corev1.ConditionTrue, "NewReplicaSetAvailable", subject+" has successfully progressed.")
		return 0
	case began != "":
		return say(corev1.ConditionTrue, began, subject+" is the new one.")
	case was == nil || s.UpdatedReplicas > before.UpdatedReplicas || s.Replicas-s.UpdatedReplicas < before.Replicas-before.UpdatedReplicas ||
		s.ReadyReplicas > before.ReadyReplicas || s.AvailableReplicas > before.AvailableReplicas:
		return say(corev1.ConditionTrue, "ReplicaSetUpdated", subject+" is progressing.")
	case was.Reason == "DeploymentPaused":
		return say(corev1.ConditionUnknown, "DeploymentResumed", "Deployment is resumed")
	case done || was.Reason == "ProgressDeadlineExceeded":
		return 0
	}
	if left := was.LastUpdateTime.Add(limit).Sub(now); left > 0 {
		return left + time.Second // the API keeps whole seconds
	}
	say(corev1.ConditionFalse, "ProgressDeadlineExceeded", subject+" has timed out progressing.")
	return 0
}

func condition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// setCondition sets a condition; one that says the same already is left alone with its times.
func setCondition(s *appsv1.DeploymentStatus, now time.Time, t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string) {
	c := appsv1.DeploymentCondition{
		Type: t, Status: status, Reason: reason, Message: message,
		LastUpdateTime: metav1.NewTime(now), LastTransitionTime: metav1.NewTime(now),
	}
	was := condition(s, t)
	if was == nil {
		s.Conditions = append(s.Conditions, c)
		return
	}
	if was.Status == status && was.Reason == reason && was.Message == message {
		return
	}
	if was.Status == status {
		c.LastTransitionTime = was.LastTransitionTime
	}
	*was = c
}

func dropCondition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) {
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == t })
}
