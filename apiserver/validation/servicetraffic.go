// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"
)

// maxAffinityTimeout is the longest that a client stays with its endpoint, in
// seconds.
const maxAffinityTimeout = 86400

func sessionAffinity(spec *corev1.ServiceSpec) field.ErrorList {
	path, config := specPath.Child("sessionAffinityConfig"), spec.SessionAffinityConfig
	if spec.SessionAffinity == corev1.ServiceAffinityNone && config != nil {
		return field.ErrorList{field.Forbidden(path, "must not be set when session affinity is None")}
	}
	if spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return oneOf(spec.SessionAffinity, specPath.Child("sessionAffinity"), corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	}
	const why = "when session affinity type is ClientIP"
	switch {
	case config == nil:
		return field.ErrorList{field.Required(path, why)}
	case config.ClientIP == nil:
		return field.ErrorList{field.Required(path.Child("clientIP"), why)}
	case config.ClientIP.TimeoutSeconds == nil:
		return field.ErrorList{field.Required(path.Child("clientIP", "timeoutSeconds"), why)}
	}
	if timeout := *config.ClientIP.TimeoutSeconds; timeout <= 0 || timeout > maxAffinityTimeout {
		return field.ErrorList{field.Invalid(path.Child("clientIP", "timeoutSeconds"), timeout,
			fmt.Sprintf("must be greater than 0 and less than %d", maxAffinityTimeout))}
	}
	return nil
}

// externalIPs are addresses that somebody else brings to the nodes.
func externalIPs(s, old *corev1.Service) (errs field.ErrorList) {
	var before []string
	if old != nil {
		before = old.Spec.ExternalIPs
	}
	for i, ip := range s.Spec.ExternalIPs {
		path := specPath.Child("externalIPs").Index(i)
		if e := validation.IsValidIPForLegacyField(path, ip, true, before); len(e) > 0 {
			errs = append(errs, e...)
			continue
		}
		errs = append(errs, ordinaryAddress(ip, path)...)
	}
	return errs
}

// balancer: the fields of load balancers.
func balancer(s, old *corev1.Service) (errs field.ErrorList) {
	const message = "may only be used when `type` is 'LoadBalancer'"
	spec := &s.Spec
	errs = append(errs, sourceRanges(s, old, message)...)
	if spec.AllocateLoadBalancerNodePorts != nil && !Balanced(spec) {
		errs = append(errs, field.Forbidden(specPath.Child("allocateLoadBalancerNodePorts"), message))
	}
	if spec.AllocateLoadBalancerNodePorts == nil && Balanced(spec) {
		// Kubernetes has no "spec" in this path.
		errs = append(errs, field.Required(field.NewPath("allocateLoadBalancerNodePorts"), ""))
	}
	switch class := spec.LoadBalancerClass; {
	case class == nil:
	case Balanced(spec):
		errs = append(errs, qualifiedName(*class, specPath.Child("loadBalancerClass"))...)
	default:
		errs = append(errs, field.Forbidden(specPath.Child("loadBalancerClass"), message))
	}
	return errs
}

// sourceRanges are in a field, or else in an annotation. Both may be padded
// with spaces.
func sourceRanges(s, old *corev1.Service, message string) (errs field.ErrorList) {
	spec := &s.Spec
	if len(spec.LoadBalancerSourceRanges) > 0 {
		// This is how Kubernetes spells the path.
		path := specPath.Child("LoadBalancerSourceRanges")
		if !Balanced(spec) {
			errs = append(errs, field.Forbidden(path, message))
		}
		var before []string
		if old != nil {
			for _, value := range old.Spec.LoadBalancerSourceRanges {
				before = append(before, strings.TrimSpace(value))
			}
		}
		for i, value := range spec.LoadBalancerSourceRanges {
			errs = append(errs, validation.IsValidCIDRForLegacyField(path.Index(i), strings.TrimSpace(value), true, before)...)
		}
		return errs
	}
	const annotation = corev1.AnnotationLoadBalancerSourceRangesKey
	value, ok := s.Annotations[annotation]
	if !ok {
		return nil
	}
	path := metadataPath.Child("annotations").Key(annotation)
	if !Balanced(spec) {
		errs = append(errs, field.Forbidden(path, message))
	}
	if old != nil && old.Annotations[annotation] == value || strings.TrimSpace(value) == "" {
		return errs
	}
	for part := range strings.SplitSeq(value, ",") {
		errs = append(errs, validation.IsValidCIDRForLegacyField(path, strings.TrimSpace(part), true, nil)...)
	}
	return errs
}

// balancerUpdate: what others have been told about a load balancer stays.
func balancerUpdate(spec, old *corev1.ServiceSpec) (errs field.ErrorList) {
	if Balanced(spec) && Balanced(old) && !ptr.Equal(spec.LoadBalancerClass, old.LoadBalancerClass) {
		errs = append(errs, field.Invalid(specPath.Child("loadBalancerClass"), spec.LoadBalancerClass, onceSet))
	}
	if HealthChecked(spec) && HealthChecked(old) && spec.HealthCheckNodePort != old.HealthCheckNodePort {
		errs = append(errs, field.Forbidden(specPath.Child("healthCheckNodePort"), "field is immutable"))
	}
	return errs
}

func externalTraffic(spec *corev1.ServiceSpec) (errs field.ErrorList) {
	policy, path := spec.ExternalTrafficPolicy, specPath.Child("externalTrafficPolicy")
	if Exposed(spec) {
		errs = oneOf(policy, path, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	} else if policy != "" {
		errs = append(errs, field.Invalid(path, policy, "may only be set for externally-accessible services"))
	}
	port, path := spec.HealthCheckNodePort, specPath.Child("healthCheckNodePort")
	switch {
	case !HealthChecked(spec):
		if port != 0 {
			errs = append(errs, field.Invalid(path, port, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
		}
	case port == 0:
		errs = append(errs, field.Required(path, ""))
	default:
		errs = append(errs, portNumber(port, path)...)
	}
	return errs
}

func internalTraffic(spec *corev1.ServiceSpec) field.ErrorList {
	path := specPath.Child("internalTrafficPolicy")
	if p := spec.InternalTrafficPolicy; p != nil {
		return supported(*p, path, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
	}
	switch spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		return field.ErrorList{field.Required(path, "")}
	}
	return nil
}

func trafficDistribution(spec *corev1.ServiceSpec) field.ErrorList {
	if spec.TrafficDistribution == nil {
		return nil
	}
	return supported(*spec.TrafficDistribution, specPath.Child("trafficDistribution"),
		corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
}

// supported checks a value that is one of a few, which are told in this order.
func supported[T ~string](value T, path *field.Path, valid ...T) field.ErrorList {
	if slices.Contains(valid, value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(path, value, valid)}
}
