// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodeport

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/apiserver/validation"
)

// automatic says whether a port gets a number that nobody chose.
func automatic(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort ||
		validation.Balanced(&s.Spec) && ptr.Deref(s.Spec.AllocateLoadBalancerNodePorts, true)
}

// held are the numbers that a Service says it has, each once.
func held(s *corev1.Service) (ports []int) {
	add := func(port int32) {
		if p := int(port); p != 0 && !slices.Contains(ports, p) {
			ports = append(ports, p)
		}
	}
	if validation.OnNodes(&s.Spec) {
		for i := range s.Spec.Ports {
			add(s.Spec.Ports[i].NodePort)
		}
	}
	if validation.HealthChecked(&s.Spec) {
		add(s.Spec.HealthCheckNodePort)
	}
	return ports
}

// normalize lets a client leave out of an update what was allocated before: a
// port keeps its number by its name, unless the client has given the number to
// another port.
func normalize(s, old *corev1.Service) {
	if automatic(old) && automatic(s) {
		before, kept := map[string]int32{}, map[int32]bool{}
		for _, port := range old.Spec.Ports {
			before[port.Name] = port.NodePort
		}
		for _, port := range s.Spec.Ports {
			kept[port.NodePort] = true
		}
		for i := range s.Spec.Ports {
			port := &s.Spec.Ports[i]
			if number := before[port.Name]; port.NodePort == 0 && !kept[number] {
				port.NodePort = number
			}
		}
	}
	if validation.HealthChecked(&old.Spec) && validation.HealthChecked(&s.Spec) && s.Spec.HealthCheckNodePort == 0 {
		s.Spec.HealthCheckNodePort = old.Spec.HealthCheckNodePort
	}
}

// sibling is the number of another port of the Service that differs from the
// port in its protocol only, 0 when there is none.
func sibling(s *corev1.Service, port *corev1.ServicePort) int32 {
	taken := func(number int32) bool {
		return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort == number && p.Protocol == port.Protocol })
	}
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 && p.Port == port.Port && p.Protocol != port.Protocol && !taken(p.NodePort) {
			return p.NodePort
		}
	}
	return 0
}
