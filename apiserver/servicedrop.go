// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/apiserver/validation"
)

// dropTypeDependent forgets what a Service's new type has no use for, where the
// client has merely left it as it was, so that changing the type is enough to
// change the type. What the client changed is for validation to refuse.
// Addresses and families are the allocator's business, and done before.
func dropTypeDependent(svc, old *corev1.Service) {
	spec, was := &svc.Spec, &old.Spec
	if validation.OnNodes(was) && !validation.OnNodes(spec) && sameNodePorts(spec, was) {
		for i := range spec.Ports {
			spec.Ports[i].NodePort = 0
		}
	}
	if validation.HealthChecked(was) && !validation.HealthChecked(spec) && spec.HealthCheckNodePort == was.HealthCheckNodePort {
		spec.HealthCheckNodePort = 0
	}
	if validation.Balanced(was) && !validation.Balanced(spec) {
		if ptr.Equal(spec.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts) {
			spec.AllocateLoadBalancerNodePorts = nil
		}
		if ptr.Equal(spec.LoadBalancerClass, was.LoadBalancerClass) {
			spec.LoadBalancerClass = nil
		}
	}
	if validation.Exposed(was) && !validation.Exposed(spec) && spec.ExternalTrafficPolicy == was.ExternalTrafficPolicy {
		spec.ExternalTrafficPolicy = ""
	}
	// Taking a load balancer down takes time, but the Service is none now.
	if !validation.Balanced(spec) {
		svc.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	}
	dropPolicy(svc)
}

// dropPolicy forgets the internal traffic policy of a Service that has no
// traffic. Kubernetes accepts and never shows it.
func dropPolicy(svc *corev1.Service) {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		svc.Spec.InternalTrafficPolicy = nil
	}
}

// sameNodePorts says whether no node port is new. Ports may have come, gone
// and changed in other ways.
func sameNodePorts(spec, was *corev1.ServiceSpec) bool {
	return !slices.ContainsFunc(spec.Ports, func(port corev1.ServicePort) bool {
		return port.NodePort != 0 && !slices.ContainsFunc(was.Ports, func(p corev1.ServicePort) bool { return p.NodePort == port.NodePort })
	})
}
