// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Service checks a new Service whose addresses and node ports have been
// allocated.
func Service(s *corev1.Service) field.ErrorList {
	errs := created(&s.ObjectMeta, true, apivalidation.NameIsDNSLabel)
	return append(errs, serviceSpec(s, nil)...)
}

// ServiceUpdate checks a change of a Service. Its addresses and their families
// may be completed and cut back, never exchanged, except by a change of type
// from or to ExternalName. A load balancer's class and health check port stay
// as long as it is one.
func ServiceUpdate(s, old *corev1.Service) field.ErrorList {
	errs := updated(&s.ObjectMeta, &old.ObjectMeta)
	if external(s) == external(old) && !external(s) {
		errs = append(errs, clusterIPsUpdate(&s.Spec, &old.Spec)...)
		errs = append(errs, ipFamiliesUpdate(&s.Spec, &old.Spec)...)
	}
	errs = append(errs, balancerUpdate(&s.Spec, &old.Spec)...)
	return append(errs, serviceSpec(s, old)...)
}

func external(s *corev1.Service) bool { return s.Spec.Type == corev1.ServiceTypeExternalName }

// headless: no address of its own, its name stands for the pods' addresses.
func headless(s *corev1.ServiceSpec) bool {
	return len(s.ClusterIPs) == 1 && s.ClusterIPs[0] == corev1.ClusterIPNone
}

// Balanced: behind a load balancer.
func Balanced(s *corev1.ServiceSpec) bool { return s.Type == corev1.ServiceTypeLoadBalancer }

// OnNodes: of a type whose ports may be ports on the nodes, too.
func OnNodes(s *corev1.ServiceSpec) bool {
	return Balanced(s) || s.Type == corev1.ServiceTypeNodePort
}

// Exposed: reachable from outside of the cluster.
func Exposed(s *corev1.ServiceSpec) bool {
	return OnNodes(s) || s.Type == corev1.ServiceTypeClusterIP && len(s.ExternalIPs) > 0
}

// HealthChecked: with a node port on which nodes say whether they have an
// endpoint.
func HealthChecked(s *corev1.ServiceSpec) bool {
	return Balanced(s) && s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// serviceSpec reports in the order in which Kubernetes does. old is nil for a
// new Service: what is in it was valid once and stays so.
func serviceSpec(s, old *corev1.Service) (errs field.ErrorList) {
	spec := &s.Spec
	if len(spec.Ports) == 0 && !headless(spec) && !external(s) {
		errs = append(errs, field.Required(specPath.Child("ports"), ""))
	}
	switch spec.Type {
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		if headless(spec) {
			errs = append(errs, field.Invalid(specPath.Child("clusterIPs").Index(0), spec.ClusterIPs[0], "may not be set to 'None' for "+string(spec.Type)+" services"))
		}
	case corev1.ServiceTypeExternalName:
		errs = append(errs, externalName(spec)...)
	}
	errs = append(errs, servicePorts(spec)...)
	errs = append(errs, metavalidation.ValidateLabels(spec.Selector, specPath.Child("selector"))...)
	errs = append(errs, sessionAffinity(spec)...)
	if !external(s) {
		errs = append(errs, ServiceAddresses(s)...)
	}
	errs = append(errs, externalIPs(s, old)...)
	errs = append(errs, oneOf(spec.Type, specPath.Child("type"), corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName,
		corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)...)
	errs = append(errs, portNumbers(spec)...)
	errs = append(errs, balancer(s, old)...)
	errs = append(errs, externalTraffic(spec)...)
	errs = append(errs, internalTraffic(spec)...)
	return append(errs, trafficDistribution(spec)...)
}

func externalName(spec *corev1.ServiceSpec) (errs field.ErrorList) {
	const message = "may not be set for ExternalName services"
	if len(spec.ClusterIPs) > 0 {
		errs = append(errs, field.Forbidden(specPath.Child("clusterIPs"), message))
	}
	if len(spec.IPFamilies) > 0 {
		errs = append(errs, field.Forbidden(specPath.Child("ipFamilies"), message))
	}
	if spec.IPFamilyPolicy != nil {
		errs = append(errs, field.Forbidden(specPath.Child("ipFamilyPolicy"), message))
	}
	path := specPath.Child("externalName")
	// The name may be fully qualified.
	name := strings.TrimSuffix(spec.ExternalName, ".")
	if name == "" {
		return append(errs, field.Required(path, ""))
	}
	return append(errs, dnsSubdomain(name, path)...)
}

func servicePorts(spec *corev1.ServiceSpec) (errs field.ErrorList) {
	names := map[string]bool{}
	for i := range spec.Ports {
		port, path := &spec.Ports[i], specPath.Child("ports").Index(i)
		if port.Name != "" {
			errs = append(errs, dnsLabel(port.Name, path.Child("name"))...)
			if names[port.Name] {
				errs = append(errs, field.Duplicate(path.Child("name"), port.Name))
			}
			names[port.Name] = true
		} else if len(spec.Ports) > 1 {
			errs = append(errs, field.Required(path.Child("name"), ""))
		}
		errs = append(errs, portNumber(port.Port, path.Child("port"))...)
		errs = append(errs, protocol(port.Protocol, path.Child("protocol"))...)
		errs = append(errs, portNumberOrName(port.TargetPort, path.Child("targetPort"))...)
		if port.AppProtocol != nil {
			errs = append(errs, qualifiedName(*port.AppProtocol, path.Child("appProtocol"))...)
		}
	}
	return errs
}

// protocol is of a port that traffic is forwarded to.
func protocol(p corev1.Protocol, path *field.Path) field.ErrorList {
	return oneOf(p, path, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
}

// portNumbers: a number may be used once for each protocol, before the Service
// and on the nodes.
func portNumbers(spec *corev1.ServiceSpec) (errs field.ErrorList) {
	type number struct {
		protocol corev1.Protocol
		port     int32
	}
	list := specPath.Child("ports")
	if spec.Type == corev1.ServiceTypeClusterIP {
		for i, port := range spec.Ports {
			if port.NodePort != 0 {
				errs = append(errs, field.Forbidden(list.Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'"))
			}
		}
	}
	onNodes := map[number]bool{}
	for i, port := range spec.Ports {
		key := number{port.Protocol, port.NodePort}
		if port.NodePort != 0 && onNodes[key] {
			errs = append(errs, field.Duplicate(list.Index(i).Child("nodePort"), port.NodePort))
		}
		onNodes[key] = true
	}
	ports := map[number]bool{}
	for i, port := range spec.Ports {
		key := number{port.Protocol, port.Port}
		if ports[key] {
			errs = append(errs, field.Duplicate(list.Index(i), corev1.ServicePort{Protocol: port.Protocol, Port: port.Port}))
		}
		ports[key] = true
	}
	return errs
}
