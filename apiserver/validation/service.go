// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Service checks a new Service whose addresses have been allocated.
func Service(s *corev1.Service) field.ErrorList {
	errs := created(&s.ObjectMeta, true, apivalidation.NameIsDNS1035Label)
	return append(errs, serviceSpec(s)...)
}

// ServiceUpdate checks a change of a Service. Its addresses and their families
// may be completed and cut back, never exchanged, except by a change of type
// from or to ExternalName.
func ServiceUpdate(s, old *corev1.Service) field.ErrorList {
	errs := updated(&s.ObjectMeta, &old.ObjectMeta)
	if external(s) == external(old) && !external(s) {
		errs = append(errs, clusterIPsUpdate(&s.Spec, &old.Spec)...)
		errs = append(errs, ipFamiliesUpdate(&s.Spec, &old.Spec)...)
	}
	return append(errs, serviceSpec(s)...)
}

// ServiceStatusUpdate checks a change of a Service's status.
func ServiceStatusUpdate(s, old *corev1.Service) field.ErrorList {
	errs := updated(&s.ObjectMeta, &old.ObjectMeta)
	errs = append(errs, metavalidation.ValidateConditions(s.Status.Conditions, statusPath.Child("conditions"))...)
	if len(s.Status.LoadBalancer.Ingress) > 0 {
		errs = append(errs, field.Forbidden(statusPath.Child("loadBalancer", "ingress"), "may only be used when `spec.type` is \"LoadBalancer\""))
	}
	return errs
}

func external(s *corev1.Service) bool { return s.Spec.Type == corev1.ServiceTypeExternalName }

// headless: no address of its own, its name stands for the pods' addresses.
func headless(s *corev1.ServiceSpec) bool {
	return len(s.ClusterIPs) == 1 && s.ClusterIPs[0] == corev1.ClusterIPNone
}

func serviceSpec(s *corev1.Service) (errs field.ErrorList) {
	spec := &s.Spec
	if len(spec.Ports) == 0 && !headless(spec) && !external(s) {
		errs = append(errs, field.Required(specPath.Child("ports"), ""))
	}
	errs = append(errs, serviceType(spec)...)
	if external(s) {
		errs = append(errs, externalName(spec)...)
	}
	errs = append(errs, servicePorts(spec)...)
	errs = append(errs, metavalidation.ValidateLabels(spec.Selector, specPath.Child("selector"))...)
	errs = append(errs, ServiceAddresses(s)...)
	return append(errs, servicePolicies(s)...)
}

func serviceType(spec *corev1.ServiceSpec) field.ErrorList {
	path := specPath.Child("type")
	switch spec.Type {
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		return field.ErrorList{unsupported(path, spec.Type, `use "ClusterIP", "ExternalName", or clusterIP "None"`)}
	}
	return oneOf(spec.Type, path, corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName)
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
	type number struct {
		protocol corev1.Protocol
		port     int32
	}
	names, numbers := map[string]bool{}, map[number]bool{}
	for i := range spec.Ports {
		port, path := &spec.Ports[i], specPath.Child("ports").Index(i)
		errs = append(errs, servicePort(port, len(spec.Ports) > 1, path)...)
		if port.Name != "" && names[port.Name] {
			errs = append(errs, field.Duplicate(path.Child("name"), port.Name))
		}
		names[port.Name] = true
		key := number{port.Protocol, port.Port}
		if numbers[key] {
			errs = append(errs, field.Duplicate(path, corev1.ServicePort{Protocol: port.Protocol, Port: port.Port}))
		}
		numbers[key] = true
		if port.NodePort != 0 && !exposed(spec) {
			errs = append(errs, field.Forbidden(path.Child("nodePort"), fmt.Sprintf("may not be used when `type` is '%s'", spec.Type)))
		}
	}
	return errs
}

func servicePort(port *corev1.ServicePort, needsName bool, path *field.Path) (errs field.ErrorList) {
	if port.Name != "" {
		errs = append(errs, dnsLabel(port.Name, path.Child("name"))...)
	} else if needsName {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	errs = append(errs, portNumber(port.Port, path.Child("port"))...)
	errs = append(errs, protocol(port.Protocol, path.Child("protocol"))...)
	errs = append(errs, portNumberOrName(port.TargetPort, path.Child("targetPort"))...)
	if port.AppProtocol != nil {
		errs = append(errs, qualifiedName(*port.AppProtocol, path.Child("appProtocol"))...)
	}
	return errs
}

// protocol is of a port that traffic is forwarded to.
func protocol(p corev1.Protocol, path *field.Path) field.ErrorList {
	if p == corev1.ProtocolSCTP {
		return field.ErrorList{unsupported(path, p, `use "TCP" or "UDP"`)}
	}
	return oneOf(p, path, corev1.ProtocolTCP, corev1.ProtocolUDP)
}

// servicePolicies refuses what the node's dataplane does not do yet.
func servicePolicies(s *corev1.Service) (errs field.ErrorList) {
	spec := &s.Spec
	path := specPath.Child("sessionAffinity")
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		errs = append(errs, unsupported(path, spec.SessionAffinity, `use "None"`))
	} else {
		errs = append(errs, oneOf(spec.SessionAffinity, path, corev1.ServiceAffinityNone)...)
		if spec.SessionAffinityConfig != nil {
			errs = append(errs, field.Forbidden(specPath.Child("sessionAffinityConfig"), "must not be set when session affinity is None"))
		}
	}
	errs = append(errs, internalTrafficPolicy(spec)...)
	if len(spec.ExternalIPs) > 0 {
		errs = append(errs, forbidden(specPath.Child("externalIPs"), "traffic from outside the cluster is not taken; leave it out"))
	}
	// Defaulting sets it where the real fault is another field's.
	if spec.ExternalTrafficPolicy != "" && !exposed(spec) && len(spec.ExternalIPs) == 0 {
		errs = append(errs, field.Invalid(specPath.Child("externalTrafficPolicy"), spec.ExternalTrafficPolicy, "may only be set for externally-accessible services"))
	}
	if spec.HealthCheckNodePort != 0 && !exposed(spec) {
		errs = append(errs, field.Invalid(specPath.Child("healthCheckNodePort"), spec.HealthCheckNodePort, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
	}
	errs = append(errs, balancer(s)...)
	if d := spec.TrafficDistribution; d != nil && (s.Namespace != metav1.NamespaceSystem || s.Name != "kube-dns") {
		errs = append(errs, unsupported(specPath.Child("trafficDistribution"), *d, "traffic goes to all endpoints alike; leave it out"))
	} else if d != nil {
		errs = append(errs, oneOf(*d, specPath.Child("trafficDistribution"), corev1.ServiceTrafficDistributionPreferClose,
			corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)...)
	}
	return errs
}

func internalTrafficPolicy(spec *corev1.ServiceSpec) field.ErrorList {
	path := specPath.Child("internalTrafficPolicy")
	switch p := spec.InternalTrafficPolicy; {
	case p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal:
		return field.ErrorList{unsupported(path, *p, `use "Cluster"`)}
	case p != nil:
		return oneOf(*p, path, corev1.ServiceInternalTrafficPolicyCluster)
	case spec.Type == corev1.ServiceTypeClusterIP:
		return field.ErrorList{field.Required(path, "")}
	}
	return nil
}

// exposed: of a type that is refused as a whole, so that its fields need no
// error of their own.
func exposed(spec *corev1.ServiceSpec) bool {
	return spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer
}

// balancer: the fields of load balancers.
func balancer(s *corev1.Service) (errs field.ErrorList) {
	const message = "may only be used when `type` is 'LoadBalancer'"
	spec := &s.Spec
	if exposed(spec) {
		return nil
	}
	if spec.LoadBalancerIP != "" {
		errs = append(errs, field.Forbidden(specPath.Child("loadBalancerIP"), message))
	}
	if len(spec.LoadBalancerSourceRanges) > 0 {
		errs = append(errs, field.Forbidden(specPath.Child("loadBalancerSourceRanges"), message))
	}
	if spec.LoadBalancerClass != nil {
		errs = append(errs, field.Forbidden(specPath.Child("loadBalancerClass"), message))
	}
	if spec.AllocateLoadBalancerNodePorts != nil {
		errs = append(errs, field.Forbidden(specPath.Child("allocateLoadBalancerNodePorts"), message))
	}
	if _, ok := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; ok {
		errs = append(errs, field.Forbidden(metadataPath.Child("annotations").Key(corev1.AnnotationLoadBalancerSourceRangesKey), message))
	}
	return errs
}

// ServiceAddresses checks what clusterIP, clusterIPs, ipFamilies and
// ipFamilyPolicy say together. The allocator asks it before it starts, when
// the rest of the Service has not been validated yet.
func ServiceAddresses(s *corev1.Service) (errs field.ErrorList) {
	spec := &s.Spec
	path := specPath.Child("clusterIPs")
	switch {
	case spec.ClusterIP != "" && len(spec.ClusterIPs) == 0:
		errs = append(errs, field.Required(path, ""))
	case spec.ClusterIP != "" && spec.ClusterIPs[0] != spec.ClusterIP:
		errs = append(errs, field.Invalid(path, spec.ClusterIPs, "first value must match `clusterIP`"))
	case spec.ClusterIP == "" && len(spec.ClusterIPs) > 0:
		errs = append(errs, field.Invalid(path, spec.ClusterIPs, "must be empty when `clusterIP` is not specified"))
	}
	for i, family := range spec.IPFamilies {
		at := specPath.Child("ipFamilies").Index(i)
		if family != corev1.IPv4Protocol && family != corev1.IPv6Protocol {
			errs = append(errs, field.NotSupported(at, family, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}))
		}
		if slices.Contains(spec.IPFamilies[:i], family) {
			errs = append(errs, field.Duplicate(at, family))
		}
	}
	if p := spec.IPFamilyPolicy; p != nil {
		errs = append(errs, oneOf(*p, specPath.Child("ipFamilyPolicy"),
			corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack)...)
	}
	return append(errs, clusterIPs(spec, path)...)
}

func clusterIPs(spec *corev1.ServiceSpec, path *field.Path) (errs field.ErrorList) {
	families := make([]corev1.IPFamily, 0, len(spec.ClusterIPs))
	broken := false
	for i, ip := range spec.ClusterIPs {
		if i == 0 && ip == corev1.ClusterIPNone {
			if len(spec.ClusterIPs) > 1 {
				broken = true
				errs = append(errs, field.Invalid(path, spec.ClusterIPs, "'None' must be the first and only value"))
			}
			continue
		}
		if e := ipAddress(ip, path.Index(i)); len(e) > 0 {
			broken = true
			errs = append(errs, e...)
			continue
		}
		families = append(families, familyOf(ip))
	}
	if len(spec.ClusterIPs) > 2 {
		errs = append(errs, field.Invalid(path, spec.ClusterIPs, "may only hold up to 2 values"))
	}
	// Of addresses that cannot be read, nothing more can be said.
	if broken {
		return errs
	}
	if len(families) > 1 && (len(families) > 2 || families[0] == families[1]) {
		errs = append(errs, field.Invalid(path, spec.ClusterIPs, "may specify no more than one IP for each IP family"))
	}
	for i, family := range families {
		if i < len(spec.IPFamilies) && spec.IPFamilies[i] != family {
			errs = append(errs, field.Invalid(path.Index(i), spec.ClusterIPs[i],
				fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%d]`", spec.IPFamilies[i], i)))
		}
	}
	return errs
}

// ipAddress wants an address in its one canonical form: an address is the key
// of its lock, so two spellings of one would be two locks.
func ipAddress(ip string, path *field.Path) field.ErrorList {
	return validation.IsValidIP(path, ip)
}

// familyOf is the family of a valid address.
func familyOf(ip string) corev1.IPFamily {
	if addr, err := netip.ParseAddr(ip); err == nil && addr.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

const (
	onceSet   = "may not change once set"
	releasing = "must be set to 'SingleStack' when releasing the secondary %s"
)

func clusterIPsUpdate(spec, old *corev1.ServiceSpec) (errs field.ErrorList) {
	if headless(spec) && headless(old) {
		return nil
	}
	path := specPath.Child("clusterIPs")
	for i, ip := range old.ClusterIPs {
		switch {
		case i < len(spec.ClusterIPs) && spec.ClusterIPs[i] != ip:
			errs = append(errs, field.Invalid(path.Index(i), spec.ClusterIPs, onceSet))
		case i >= len(spec.ClusterIPs) && i == 0:
			errs = append(errs, field.Invalid(path.Index(0), spec.ClusterIPs, "primary clusterIP can not be unset"))
		case i >= len(spec.ClusterIPs) && i == 1 && !singleStack(spec):
			errs = append(errs, field.Invalid(specPath.Child("ipFamilyPolicy"), spec.IPFamilyPolicy, fmt.Sprintf(releasing, "clusterIP")))
		}
	}
	return errs
}

func ipFamiliesUpdate(spec, old *corev1.ServiceSpec) (errs field.ErrorList) {
	// Without an address, nothing depends on the families.
	if headless(spec) || headless(old) {
		return nil
	}
	path := specPath.Child("ipFamilies")
	for i, family := range old.IPFamilies {
		switch {
		case i < len(spec.IPFamilies) && spec.IPFamilies[i] != family:
			errs = append(errs, field.Invalid(path.Index(i), spec.IPFamilies, onceSet))
		case i >= len(spec.IPFamilies) && i == 0:
			errs = append(errs, field.Invalid(path.Index(0), spec.IPFamilies, "primary ipFamily can not be unset"))
		case i >= len(spec.IPFamilies) && i == 1 && !singleStack(spec):
			errs = append(errs, field.Invalid(specPath.Child("ipFamilyPolicy"), spec.IPFamilyPolicy, fmt.Sprintf(releasing, "ipFamily")))
		}
	}
	return errs
}

func singleStack(spec *corev1.ServiceSpec) bool {
	return spec.IPFamilyPolicy != nil && *spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
}
