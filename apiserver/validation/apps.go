// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Deployment checks a new Deployment.
func Deployment(d *appsv1.Deployment) field.ErrorList {
	errs := created(&d.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	return append(errs, deploymentSpec(&d.Spec)...)
}

// DeploymentUpdate checks a change of a Deployment, whose selector stays.
func DeploymentUpdate(d, old *appsv1.Deployment) field.ErrorList {
	errs := updated(&d.ObjectMeta, &old.ObjectMeta)
	errs = append(errs, deploymentSpec(&d.Spec)...)
	return append(errs, immutable(d.Spec.Selector, old.Spec.Selector, specPath.Child("selector"))...)
}

// DeploymentStatusUpdate checks a change of a Deployment's status.
func DeploymentStatusUpdate(d, old *appsv1.Deployment) field.ErrorList {
	errs := updated(&d.ObjectMeta, &old.ObjectMeta)
	s := &d.Status
	errs = append(errs, nonNegative(&s.ObservedGeneration, statusPath.Child("observedGeneration"))...)
	errs = append(errs, nonNegative(&s.UnavailableReplicas, statusPath.Child("unavailableReplicas"))...)
	errs = append(errs, nonNegative(s.TerminatingReplicas, statusPath.Child("terminatingReplicas"))...)
	errs = append(errs, counts(s.Replicas, count{"updatedReplicas", s.UpdatedReplicas},
		count{"readyReplicas", s.ReadyReplicas}, count{"availableReplicas", s.AvailableReplicas})...)
	errs = append(errs, availableAreReady(s.AvailableReplicas, s.ReadyReplicas)...)
	if s.CollisionCount != nil {
		at := statusPath.Child("collisionCount")
		errs = append(errs, nonNegative(s.CollisionCount, at)...)
		if old.Status.CollisionCount != nil && *s.CollisionCount < *old.Status.CollisionCount {
			errs = append(errs, field.Invalid(at, *s.CollisionCount, "cannot be decremented"))
		}
	}
	return errs
}

// ReplicaSet checks a new ReplicaSet.
func ReplicaSet(r *appsv1.ReplicaSet) field.ErrorList {
	errs := created(&r.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	return append(errs, replicaSetSpec(&r.Spec)...)
}

// ReplicaSetUpdate checks a change of a ReplicaSet, whose selector stays.
func ReplicaSetUpdate(r, old *appsv1.ReplicaSet) field.ErrorList {
	errs := updated(&r.ObjectMeta, &old.ObjectMeta)
	errs = append(errs, replicaSetSpec(&r.Spec)...)
	return append(errs, immutable(r.Spec.Selector, old.Spec.Selector, specPath.Child("selector"))...)
}

// ReplicaSetStatusUpdate checks a change of a ReplicaSet's status.
func ReplicaSetStatusUpdate(r, old *appsv1.ReplicaSet) field.ErrorList {
	errs := updated(&r.ObjectMeta, &old.ObjectMeta)
	s := &r.Status
	errs = append(errs, nonNegative(&s.ObservedGeneration, statusPath.Child("observedGeneration"))...)
	errs = append(errs, nonNegative(s.TerminatingReplicas, statusPath.Child("terminatingReplicas"))...)
	errs = append(errs, counts(s.Replicas, count{"fullyLabeledReplicas", s.FullyLabeledReplicas},
		count{"readyReplicas", s.ReadyReplicas}, count{"availableReplicas", s.AvailableReplicas})...)
	return append(errs, availableAreReady(s.AvailableReplicas, s.ReadyReplicas)...)
}

// Scale checks a change of how many replicas are wanted.
func Scale(s *autoscalingv1.Scale) field.ErrorList {
	errs := created(&s.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	return append(errs, nonNegative(&s.Spec.Replicas, specPath.Child("replicas"))...)
}

// count is a number of the status that is part of the replicas.
type count struct {
	name  string
	value int32
}

func counts(replicas int32, parts ...count) field.ErrorList {
	errs := nonNegative(&replicas, statusPath.Child("replicas"))
	for _, part := range parts {
		at := statusPath.Child(part.name)
		errs = append(errs, nonNegative(&part.value, at)...)
		if part.value > replicas {
			errs = append(errs, field.Invalid(at, part.value, "cannot be greater than status.replicas"))
		}
	}
	return errs
}

func availableAreReady(available, ready int32) field.ErrorList {
	if available <= ready {
		return nil
	}
	return field.ErrorList{field.Invalid(statusPath.Child("availableReplicas"), available, "cannot be greater than readyReplicas")}
}

func deploymentSpec(s *appsv1.DeploymentSpec) field.ErrorList {
	errs := nonNegative(s.Replicas, specPath.Child("replicas"))
	errs = append(errs, selectorAndTemplate(s.Selector, &s.Template)...)
	errs = append(errs, strategy(&s.Strategy, specPath.Child("strategy"))...)
	errs = append(errs, nonNegative(&s.MinReadySeconds, specPath.Child("minReadySeconds"))...)
	errs = append(errs, nonNegative(s.RevisionHistoryLimit, specPath.Child("revisionHistoryLimit"))...)
	if deadline := s.ProgressDeadlineSeconds; deadline != nil {
		at := specPath.Child("progressDeadlineSeconds")
		errs = append(errs, nonNegative(deadline, at)...)
		if *deadline <= s.MinReadySeconds {
			errs = append(errs, field.Invalid(at, *deadline, "must be greater than minReadySeconds"))
		}
	}
	return errs
}

func replicaSetSpec(s *appsv1.ReplicaSetSpec) field.ErrorList {
	errs := nonNegative(s.Replicas, specPath.Child("replicas"))
	errs = append(errs, nonNegative(&s.MinReadySeconds, specPath.Child("minReadySeconds"))...)
	return append(errs, selectorAndTemplate(s.Selector, &s.Template)...)
}

// selectorAndTemplate checks that the pods made of the template are selected.
func selectorAndTemplate(s *metav1.LabelSelector, t *corev1.PodTemplateSpec) field.ErrorList {
	errs := selector(s, specPath.Child("selector"))
	path := specPath.Child("template")
	if matcher, err := metav1.LabelSelectorAsSelector(s); err == nil && !matcher.Empty() && !matcher.Matches(labels.Set(t.Labels)) {
		errs = append(errs, field.Invalid(path.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	}
	errs = append(errs, podTemplateMetadata(t, path)...)
	spec := path.Child("spec")
	errs = append(errs, podSpec(&t.Spec, spec)...)
	if len(t.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(spec.Child("ephemeralContainers"), "ephemeral containers not allowed in pod template"))
	}
	// A pod that ends by itself would be replaced for ever.
	if p := t.Spec.RestartPolicy; p == corev1.RestartPolicyOnFailure || p == corev1.RestartPolicyNever {
		errs = append(errs, field.NotSupported(spec.Child("restartPolicy"), p, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	return errs
}

func strategy(s *appsv1.DeploymentStrategy, path *field.Path) field.ErrorList {
	errs := oneOf(s.Type, path.Child("type"), appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType)
	rolling := path.Child("rollingUpdate")
	switch {
	case s.Type == appsv1.RecreateDeploymentStrategyType && s.RollingUpdate != nil:
		errs = append(errs, field.Forbidden(rolling, "may not be specified when strategy `type` is 'Recreate'"))
	case s.Type == appsv1.RollingUpdateDeploymentStrategyType && s.RollingUpdate == nil:
		errs = append(errs, field.Required(rolling, "this should be defaulted and never be nil"))
	case s.Type == appsv1.RollingUpdateDeploymentStrategyType:
		surge, more := intOrPercent(s.RollingUpdate.MaxSurge, rolling.Child("maxSurge"))
		errs = append(errs, more...)
		unavailable, more := intOrPercent(s.RollingUpdate.MaxUnavailable, rolling.Child("maxUnavailable"))
		errs = append(errs, more...)
		if u := s.RollingUpdate.MaxUnavailable; u != nil && u.Type == intstr.String && unavailable > 100 {
			errs = append(errs, field.Invalid(rolling.Child("maxUnavailable"), u, "must not be greater than 100%"))
		}
		if len(errs) == 0 && surge == 0 && unavailable == 0 {
			errs = append(errs, field.Invalid(rolling.Child("maxUnavailable"), s.RollingUpdate.MaxUnavailable, "may not be 0 when `maxSurge` is 0"))
		}
	}
	return errs
}

// intOrPercent checks a number of pods or a share of them; nil is zero.
func intOrPercent(v *intstr.IntOrString, path *field.Path) (int, field.ErrorList) {
	switch {
	case v == nil:
		return 0, nil
	case v.Type == intstr.Int:
		return int(v.IntVal), nonNegative(&v.IntVal, path)
	}
	if messages := validation.IsValidPercent(v.StrVal); len(messages) > 0 {
		return 0, invalid(path, v, messages)
	}
	share, err := strconv.Atoi(strings.TrimSuffix(v.StrVal, "%"))
	if err != nil {
		return 0, field.ErrorList{field.Invalid(path, v, "must be an integer or percentage (e.g '5%')")}
	}
	return share, nil
}
