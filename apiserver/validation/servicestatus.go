// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ServiceStatusUpdate checks a change of a Service's status: what whoever
// makes load balancers says of this one.
func ServiceStatusUpdate(s, old *corev1.Service) field.ErrorList {
	errs := updated(&s.ObjectMeta, &old.ObjectMeta)
	errs = append(errs, metavalidation.ValidateConditions(s.Status.Conditions, statusPath.Child("conditions"))...)
	list := statusPath.Child("loadBalancer", "ingress")
	ingress := s.Status.LoadBalancer.Ingress
	if !Balanced(&s.Spec) && len(ingress) > 0 {
		return append(errs, field.Forbidden(list, "may only be used when `spec.type` is 'LoadBalancer'"))
	}
	var before []string
	for _, i := range old.Status.LoadBalancer.Ingress {
		if i.IP != "" {
			before = append(before, i.IP)
		}
	}
	for i := range ingress {
		errs = append(errs, ingressPoint(&ingress[i], before, list.Index(i))...)
	}
	return errs
}

// ingressPoint is one address or name of a load balancer.
func ingressPoint(in *corev1.LoadBalancerIngress, before []string, path *field.Path) (errs field.ErrorList) {
	if in.IP != "" {
		errs = append(errs, validation.IsValidIPForLegacyField(path.Child("ip"), in.IP, true, before)...)
	}
	mode := path.Child("ipMode")
	switch {
	case in.IPMode == nil && in.IP != "":
		errs = append(errs, field.Required(mode, "must be specified when `ip` is set"))
	case in.IPMode != nil && in.IP == "":
		errs = append(errs, field.Forbidden(mode, "may not be specified when `ip` is not set"))
	case in.IPMode != nil:
		errs = append(errs, supported(*in.IPMode, mode, corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP)...)
	}
	if in.Hostname != "" {
		errs = append(errs, dnsSubdomain(in.Hostname, path.Child("hostname"))...)
		if _, err := netip.ParseAddr(in.Hostname); err == nil {
			errs = append(errs, field.Invalid(path.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address"))
		}
	}
	return errs
}
