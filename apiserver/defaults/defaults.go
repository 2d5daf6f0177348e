// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package defaults

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Register adds the defaulting functions of every kind that has defaults, and
// of its list, to the scheme. Registering again replaces them. The error is
// always nil; it is there for the shape that scheme builders expect.
func Register(scheme *runtime.Scheme) error {
	add(scheme, service, func(l *corev1.ServiceList) []corev1.Service { return l.Items })
	add(scheme, pod, func(l *corev1.PodList) []corev1.Pod { return l.Items })
	add(scheme, namespace, func(l *corev1.NamespaceList) []corev1.Namespace { return l.Items })
	add(scheme, node, func(l *corev1.NodeList) []corev1.Node { return l.Items })
	add(scheme, endpointSlice, func(l *discoveryv1.EndpointSliceList) []discoveryv1.EndpointSlice { return l.Items })
	add(scheme, deployment, func(l *appsv1.DeploymentList) []appsv1.Deployment { return l.Items })
	add(scheme, replicaSet, func(l *appsv1.ReplicaSetList) []appsv1.ReplicaSet { return l.Items })
	return nil
}

// add registers a kind's defaults, for one object and for a list of them.
func add[T, L any](scheme *runtime.Scheme, set func(*T), items func(*L) []T) {
	scheme.AddTypeDefaultingFunc(any(new(T)).(runtime.Object), func(obj any) { set(obj.(*T)) })
	scheme.AddTypeDefaultingFunc(any(new(L)).(runtime.Object), func(obj any) {
		list := items(obj.(*L))
		for i := range list {
			set(&list[i])
		}
	})
}

// fill sets a field that has its zero value.
func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// fillPtr sets a field that is nil.
func fillPtr[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

func service(s *corev1.Service) {
	spec := &s.Spec
	fill(&spec.Type, corev1.ServiceTypeClusterIP)
	fill(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
		spec.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		if c := spec.SessionAffinityConfig; c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			timeout := corev1.DefaultClientIPServiceAffinitySeconds
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{
				ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout},
			}
		}
	}
	for i := range spec.Ports {
		port := &spec.Ports[i]
		fill(&port.Protocol, corev1.ProtocolTCP)
		if port.TargetPort == intstr.FromInt32(0) || port.TargetPort == intstr.FromString("") {
			port.TargetPort = intstr.FromInt32(port.Port)
		}
	}
	balanced := spec.Type == corev1.ServiceTypeLoadBalancer
	onNodes := balanced || spec.Type == corev1.ServiceTypeNodePort
	hasClusterIP := onNodes || spec.Type == corev1.ServiceTypeClusterIP
	if onNodes || hasClusterIP && len(spec.ExternalIPs) > 0 {
		fill(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if hasClusterIP {
		fillPtr(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if balanced {
		fillPtr(&spec.AllocateLoadBalancerNodePorts, true)
		for i := range s.Status.LoadBalancer.Ingress {
			if ingress := &s.Status.LoadBalancer.Ingress[i]; ingress.IP != "" {
				fillPtr(&ingress.IPMode, corev1.LoadBalancerIPModeVIP)
			}
		}
	}
}

func namespace(n *corev1.Namespace) {
	fill(&n.Status.Phase, corev1.NamespaceActive)
	// Selectors on namespaces name them by this label. A name that is still
	// to be generated has none yet.
	if n.Name != "" {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[corev1.LabelMetadataName] = n.Name
	}
}

func node(n *corev1.Node) {
	if n.Status.Allocatable == nil && n.Status.Capacity != nil {
		n.Status.Allocatable = n.Status.Capacity.DeepCopy()
	}
	resourceList(n.Status.Capacity)
	resourceList(n.Status.Allocatable)
}

func endpointSlice(s *discoveryv1.EndpointSlice) {
	for i := range s.Ports {
		fillPtr(&s.Ports[i].Name, "")
		fillPtr(&s.Ports[i].Protocol, corev1.ProtocolTCP)
	}
}

func replicaSet(r *appsv1.ReplicaSet) {
	fillPtr(&r.Spec.Replicas, 1)
	podSpec(&r.Spec.Template.Spec)
}

func deployment(d *appsv1.Deployment) {
	spec := &d.Spec
	fillPtr(&spec.Replicas, 1)
	fillPtr(&spec.RevisionHistoryLimit, 10)
	fillPtr(&spec.ProgressDeadlineSeconds, 600)
	fill(&spec.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		fillPtr(&spec.Strategy.RollingUpdate, appsv1.RollingUpdateDeployment{})
		fillPtr(&spec.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		fillPtr(&spec.Strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
	podSpec(&spec.Template.Spec)
}
