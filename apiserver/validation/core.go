// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxConfigMapSize is the most bytes that keys and values may have together.
const maxConfigMapSize = 1 << 20

// Namespace checks a new Namespace.
func Namespace(n *corev1.Namespace) field.ErrorList {
	errs := created(&n.ObjectMeta, false, apivalidation.ValidateNamespaceName)
	return append(errs, namespaceFinalizers(n)...)
}

// NamespaceUpdate checks a change of a Namespace, and of its finalizers.
func NamespaceUpdate(n, old *corev1.Namespace) field.ErrorList {
	errs := updated(&n.ObjectMeta, &old.ObjectMeta)
	return append(errs, namespaceFinalizers(n)...)
}

// NamespaceStatusUpdate checks a change of a Namespace's status.
func NamespaceStatusUpdate(n, old *corev1.Namespace) field.ErrorList {
	errs := updated(&n.ObjectMeta, &old.ObjectMeta)
	at, phase := statusPath.Child("phase"), n.Status.Phase
	switch {
	case n.DeletionTimestamp == nil && phase != corev1.NamespaceActive:
		errs = append(errs, field.Invalid(at, phase, "may only be 'Active' if `deletionTimestamp` is empty"))
	case n.DeletionTimestamp != nil && phase != corev1.NamespaceTerminating:
		errs = append(errs, field.Invalid(at, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty"))
	}
	return errs
}

func namespaceFinalizers(n *corev1.Namespace) (errs field.ErrorList) {
	for i, name := range n.Spec.Finalizers {
		at := specPath.Child("finalizers").Index(i)
		errs = append(errs, qualifiedName(string(name), at)...)
		if !strings.Contains(string(name), "/") && name != corev1.FinalizerKubernetes {
			errs = append(errs, field.Invalid(at, name, "name is neither a standard finalizer name nor is it fully qualified"))
		}
	}
	return errs
}

// Node checks a new Node.
func Node(n *corev1.Node) field.ErrorList {
	errs := created(&n.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	errs = append(errs, taints(n.Spec.Taints, specPath.Child("taints"))...)
	if n.Spec.ConfigSource != nil {
		errs = append(errs, forbidden(specPath.Child("configSource"), "a node's settings are given when it is started"))
	}
	if n.Spec.PodPreemptionPolicy != nil {
		errs = append(errs, forbidden(specPath.Child("podPreemptionPolicy"), "all pods are alike"))
	}
	return append(errs, podCIDRs(n.Spec.PodCIDR, n.Spec.PodCIDRs)...)
}

// NodeUpdate checks a change of a Node or of its status. Its pod ranges and
// provider may be given once, labels and taints may change.
func NodeUpdate(n, old *corev1.Node) field.ErrorList {
	errs := updated(&n.ObjectMeta, &old.ObjectMeta)
	errs = append(errs, taints(n.Spec.Taints, specPath.Child("taints"))...)
	errs = append(errs, podCIDRs(n.Spec.PodCIDR, n.Spec.PodCIDRs)...)
	for i, address := range n.Status.Addresses {
		if slices.Contains(n.Status.Addresses[:i], address) {
			errs = append(errs, field.Duplicate(statusPath.Child("addresses").Index(i), address))
		}
	}
	if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(n.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		errs = append(errs, field.Forbidden(specPath.Child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid"))
	}
	if old.Spec.ProviderID != "" && n.Spec.ProviderID != old.Spec.ProviderID {
		errs = append(errs, field.Forbidden(specPath.Child("providerID"), "node updates may not change providerID except from \"\" to valid"))
	}
	rest := n.Spec.DeepCopy()
	rest.PodCIDR, rest.PodCIDRs, rest.ProviderID = old.Spec.PodCIDR, old.Spec.PodCIDRs, old.Spec.ProviderID
	rest.Taints, rest.Unschedulable = old.Spec.Taints, old.Spec.Unschedulable
	if !equality.Semantic.DeepEqual(rest, &old.Spec) {
		errs = append(errs, field.Forbidden(specPath, "node updates may only change labels, taints, or capacity"))
	}
	return errs
}

func podCIDRs(first string, cidrs []string) (errs field.ErrorList) {
	at := specPath.Child("podCIDRs")
	if first != "" && (len(cidrs) == 0 || cidrs[0] != first) {
		errs = append(errs, field.Invalid(at.Index(0), cidrs, "first value must match `podCIDR`"))
	}
	families := map[bool]bool{}
	for i, cidr := range cidrs {
		errs = append(errs, validation.IsValidCIDR(at.Index(i), cidr)...)
		if prefix, err := netip.ParsePrefix(cidr); err == nil {
			families[prefix.Addr().Is4()] = true
		}
	}
	if len(cidrs) > 1 && (len(cidrs) > 2 || len(families) < 2) {
		errs = append(errs, field.Invalid(at, cidrs, "may specify no more than one CIDR for each IP family"))
	}
	return errs
}

// ConfigMap checks a new ConfigMap.
func ConfigMap(m *corev1.ConfigMap) field.ErrorList {
	errs := created(&m.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	return append(errs, configMapData(m)...)
}

// ConfigMapUpdate checks a change of a ConfigMap, none when it is immutable.
func ConfigMapUpdate(m, old *corev1.ConfigMap) field.ErrorList {
	errs := updated(&m.ObjectMeta, &old.ObjectMeta)
	if old.Immutable != nil && *old.Immutable {
		const message = "field is immutable when `immutable` is set"
		if m.Immutable == nil || !*m.Immutable {
			errs = append(errs, field.Forbidden(field.NewPath("immutable"), message))
		}
		if !equality.Semantic.DeepEqual(m.Data, old.Data) {
			errs = append(errs, field.Forbidden(field.NewPath("data"), message))
		}
		if !equality.Semantic.DeepEqual(m.BinaryData, old.BinaryData) {
			errs = append(errs, field.Forbidden(field.NewPath("binaryData"), message))
		}
	}
	return append(errs, configMapData(m)...)
}

func configMapData(m *corev1.ConfigMap) (errs field.ErrorList) {
	size := 0
	for _, key := range sorted(m.Data) {
		at := field.NewPath("data").Key(key)
		errs = append(errs, invalid(at, key, validation.IsConfigMapKey(key))...)
		if _, ok := m.BinaryData[key]; ok {
			errs = append(errs, field.Invalid(at, key, "duplicate of key present in binaryData"))
		}
		size += len(m.Data[key])
	}
	for _, key := range sorted(m.BinaryData) {
		errs = append(errs, invalid(field.NewPath("binaryData").Key(key), key, validation.IsConfigMapKey(key))...)
		size += len(m.BinaryData[key])
	}
	if size > maxConfigMapSize {
		errs = append(errs, field.TooLong(field.NewPath(""), "", maxConfigMapSize))
	}
	return errs
}

// Limits of an Event that says when it happened to the microsecond: the new
// form, whose writers know of them.
const (
	maxEventAction = 128
	maxEventReason = 128
	maxEventNote   = 1024
	maxEventAuthor = 128
)

// Event checks a new Event.
func Event(e *corev1.Event) field.ErrorList {
	errs := created(&e.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	return append(errs, eventFields(e)...)
}

// EventUpdate checks a change of an Event: recorders count with it.
func EventUpdate(e, old *corev1.Event) field.ErrorList {
	errs := updated(&e.ObjectMeta, &old.ObjectMeta)
	return append(errs, eventFields(e)...)
}

func eventFields(e *corev1.Event) (errs field.ErrorList) {
	about := e.InvolvedObject.Namespace
	at := field.NewPath("involvedObject", "namespace")
	// An event about an object without namespace has to live somewhere.
	if about == "" && e.Namespace != metav1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem || about != "" && about != e.Namespace {
		errs = append(errs, field.Invalid(at, about, "does not match event.namespace"))
	}
	if e.EventTime.IsZero() {
		return errs
	}
	text := func(name, value string, most int, required bool) {
		at := field.NewPath(name)
		if value == "" && required {
			errs = append(errs, field.Required(at, ""))
		}
		if len(value) > most {
			errs = append(errs, field.Invalid(at, "", fmt.Sprintf("can have at most %d characters", most)))
		}
	}
	if e.ReportingController == "" {
		errs = append(errs, field.Required(field.NewPath("reportingController"), ""))
	} else {
		errs = append(errs, qualifiedName(e.ReportingController, field.NewPath("reportingController"))...)
	}
	text("reportingInstance", e.ReportingInstance, maxEventAuthor, true)
	text("action", e.Action, maxEventAction, true)
	text("reason", e.Reason, maxEventReason, true)
	text("message", e.Message, maxEventNote, false)
	return errs
}

// Lease checks a new Lease.
func Lease(l *coordinationv1.Lease) field.ErrorList {
	errs := created(&l.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	return append(errs, leaseSpec(&l.Spec)...)
}

// LeaseUpdate checks a change of a Lease.
func LeaseUpdate(l, old *coordinationv1.Lease) field.ErrorList {
	errs := updated(&l.ObjectMeta, &old.ObjectMeta)
	return append(errs, leaseSpec(&l.Spec)...)
}

func leaseSpec(s *coordinationv1.LeaseSpec) field.ErrorList {
	errs := greaterThanZero(s.LeaseDurationSeconds, specPath.Child("leaseDurationSeconds"))
	errs = append(errs, nonNegative(s.LeaseTransitions, specPath.Child("leaseTransitions"))...)
	const why = "the holder is chosen by its clients; leave it out"
	if s.Strategy != nil {
		errs = append(errs, forbidden(specPath.Child("strategy"), why))
	}
	if s.PreferredHolder != nil && *s.PreferredHolder != "" {
		errs = append(errs, forbidden(specPath.Child("preferredHolder"), why))
	}
	return errs
}
