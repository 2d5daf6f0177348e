// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// notYet begins every refusal of what Kubernetes can do and Fairlead cannot.
const notYet = "not supported yet by Fairlead: "

var (
	metadataPath = field.NewPath("metadata")
	specPath     = field.NewPath("spec")
	statusPath   = field.NewPath("status")
)

// unsupported refuses a value of a field that takes others.
func unsupported(path *field.Path, value any, why string) *field.Error {
	return &field.Error{Type: field.ErrorTypeNotSupported, Field: path.String(), BadValue: value, Detail: notYet + why}
}

// forbidden refuses a field as a whole.
func forbidden(path *field.Path, why string) *field.Error {
	return field.Forbidden(path, notYet+why)
}

// invalid makes an error of every message.
func invalid(path *field.Path, value any, messages []string) (errs field.ErrorList) {
	for _, message := range messages {
		errs = append(errs, field.Invalid(path, value, message))
	}
	return errs
}

func dnsLabel(value string, path *field.Path) field.ErrorList {
	return invalid(path, value, validation.IsDNS1123Label(value))
}

func dnsSubdomain(value string, path *field.Path) field.ErrorList {
	return invalid(path, value, validation.IsDNS1123Subdomain(value))
}

func qualifiedName(value string, path *field.Path) field.ErrorList {
	return invalid(path, value, validation.IsQualifiedName(value))
}

// oneOf checks a value that has to be one of a few.
func oneOf[T ~string](value T, path *field.Path, valid ...T) field.ErrorList {
	switch {
	case value == "":
		return field.ErrorList{field.Required(path, "")}
	case !slices.Contains(valid, value):
		slices.Sort(valid)
		return field.ErrorList{field.NotSupported(path, value, valid)}
	}
	return nil
}

func portNumber(port int32, path *field.Path) field.ErrorList {
	return invalid(path, port, validation.IsValidPortNum(int(port)))
}

func portNumberOrName(port intstr.IntOrString, path *field.Path) field.ErrorList {
	if port.Type == intstr.String {
		return invalid(path, port.StrVal, validation.IsValidPortName(port.StrVal))
	}
	return portNumber(port.IntVal, path)
}

// nonNegative takes nil for a number that was not given.
func nonNegative[T int32 | int64](value *T, path *field.Path) field.ErrorList {
	if value == nil {
		return nil
	}
	return apivalidation.ValidateNonnegativeField(int64(*value), path)
}

func greaterThanZero[T int32 | int64](value *T, path *field.Path) field.ErrorList {
	if value == nil || *value > 0 {
		return nil
	}
	return field.ErrorList{field.Invalid(path, int64(*value), "must be greater than 0")}
}

func immutable(value, old any, path *field.Path) field.ErrorList {
	return apivalidation.ValidateImmutableField(value, old, path)
}

// created checks a new object's metadata.
func created(meta *metav1.ObjectMeta, namespaced bool, name apivalidation.ValidateNameFunc) field.ErrorList {
	return apivalidation.ValidateObjectMeta(meta, namespaced, name, metadataPath)
}

// updated checks a changed object's metadata.
func updated(meta, old *metav1.ObjectMeta) field.ErrorList {
	return apivalidation.ValidateObjectMetaUpdate(meta, old, metadataPath)
}

// sorted is a map's keys in order, so that the same object always gets the
// same errors in the same order.
func sorted[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}

// selector checks a label selector that has to select something.
func selector(s *metav1.LabelSelector, path *field.Path) field.ErrorList {
	if s == nil {
		return field.ErrorList{field.Required(path, "")}
	}
	errs := metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, path)
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		errs = append(errs, field.Invalid(path, s, "empty selector is invalid for deployment"))
	}
	return errs
}

// taints checks the taints of a node.
func taints(taints []corev1.Taint, path *field.Path) (errs field.ErrorList) {
	type identity struct {
		key    string
		effect corev1.TaintEffect
	}
	seen := map[identity]bool{}
	for i, taint := range taints {
		at := path.Index(i)
		errs = append(errs, metavalidation.ValidateLabelName(taint.Key, at.Child("key"))...)
		errs = append(errs, invalid(at.Child("value"), taint.Value, validation.IsValidLabelValue(taint.Value))...)
		errs = append(errs, taintEffect(taint.Effect, at.Child("effect"))...)
		id := identity{taint.Key, taint.Effect}
		if seen[id] {
			duplicate := field.Duplicate(at, taint)
			duplicate.Detail = "taints must be unique by key and effect pair"
			errs = append(errs, duplicate)
		}
		seen[id] = true
	}
	return errs
}

func taintEffect(effect corev1.TaintEffect, path *field.Path) field.ErrorList {
	return oneOf(effect, path, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)
}
