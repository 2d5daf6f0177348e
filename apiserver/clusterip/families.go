// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/fairlead/fairlead/apiserver/validation"
)

var (
	clusterIPsPath     = field.NewPath("spec", "clusterIPs")
	ipFamiliesPath     = field.NewPath("spec", "ipFamilies")
	ipFamilyPolicyPath = field.NewPath("spec", "ipFamilyPolicy")
)

// addressed says whether Services of that type have addresses.
func addressed(s *corev1.Service) bool { return s.Spec.Type != corev1.ServiceTypeExternalName }

// headless says whether the Service wants no address of its own.
func headless(s *corev1.Service) bool {
	return s.Spec.ClusterIP == corev1.ClusterIPNone ||
		len(s.Spec.ClusterIPs) > 0 && s.Spec.ClusterIPs[0] == corev1.ClusterIPNone
}

func policy(s *corev1.Service) corev1.IPFamilyPolicy {
	if p := s.Spec.IPFamilyPolicy; p != nil {
		return *p
	}
	return ""
}

// Normalize lets a client write only one of clusterIP and clusterIPs, or leave
// out of an update what was allocated before, and drops what the Service's new
// type has no use for when the client has merely left it there. old is nil for
// a new Service. Allocate and Reconcile do it; it is exported for callers that
// compare or validate before.
func Normalize(s, old *corev1.Service) {
	spec := &s.Spec
	if old == nil {
		if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
			spec.ClusterIPs = []string{spec.ClusterIP}
		}
		return
	}
	was := &old.Spec
	same := slices.Equal(spec.ClusterIPs, was.ClusterIPs)
	if addressed(old) && addressed(s) {
		// Left out is not given up.
		if spec.ClusterIP == "" && (same || len(spec.ClusterIPs) == 0) {
			spec.ClusterIP = was.ClusterIP
		}
		if len(spec.ClusterIPs) == 0 && spec.ClusterIP == was.ClusterIP {
			spec.ClusterIPs = slices.Clone(was.ClusterIPs)
			same = true
		}
		if spec.IPFamilyPolicy == nil {
			spec.IPFamilyPolicy = was.IPFamilyPolicy
		}
		if len(spec.IPFamilies) == 0 && slices.Equal(spec.ClusterIPs, was.ClusterIPs) {
			spec.IPFamilies = slices.Clone(was.IPFamilies)
		}
	}
	// A client that knows only clusterIP changed it.
	if same && spec.ClusterIP != was.ClusterIP {
		spec.ClusterIPs = nil
	}
	if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	if addressed(old) && !addressed(s) {
		dropAddresses(spec, was)
	}
	if !addressed(old) && addressed(s) && spec.ExternalName == was.ExternalName {
		spec.ExternalName = ""
	}
}

// dropAddresses forgets what only an addressed Service has, where it is as it
// was; what the client changed is for validation to refuse.
func dropAddresses(spec, was *corev1.ServiceSpec) {
	if spec.ClusterIP == was.ClusterIP && slices.Equal(spec.ClusterIPs, was.ClusterIPs) {
		spec.ClusterIP, spec.ClusterIPs = "", nil
	}
	if slices.Equal(spec.IPFamilies, was.IPFamilies) {
		spec.IPFamilies = nil
	}
	if p, q := spec.IPFamilyPolicy, was.IPFamilyPolicy; p != nil && q != nil && *p == *q {
		spec.IPFamilyPolicy = nil
	}
}

// settled says whether an update leaves a Service that prefers two families as
// it is: such a one must not gain or lose a family just because the cluster
// has, only when its owner says so.
func settled(s, old *corev1.Service) bool {
	return old != nil && s.Spec.Type == old.Spec.Type && addressed(s) &&
		policy(s) == corev1.IPFamilyPolicyPreferDualStack && policy(old) == corev1.IPFamilyPolicyPreferDualStack &&
		slices.Equal(s.Spec.ClusterIPs, old.Spec.ClusterIPs) && slices.Equal(s.Spec.IPFamilies, old.Spec.IPFamilies)
}

// fillFamilies completes ipFamilyPolicy and ipFamilies of an addressed
// Service. The errors are the API's Invalid.
func (a *Allocator) fillFamilies(s, old *corev1.Service) error {
	spec := &s.Spec
	if spec.IPFamilyPolicy == nil {
		p := defaultPolicy(s)
		spec.IPFamilyPolicy = &p
	}
	// What does not make sense in itself would only confuse the rest.
	if errs := validation.ServiceAddresses(s); len(errs) > 0 {
		return invalid(s, errs...)
	}
	errs := fitPolicy(s, old)
	for i, ip := range spec.ClusterIPs {
		if ip == corev1.ClusterIPNone || i < len(spec.IPFamilies) {
			continue
		}
		family := familyOf(netip.MustParseAddr(ip))
		if a.span(family) == nil {
			errs = append(errs, field.Invalid(clusterIPsPath.Index(i), spec.ClusterIPs, fmt.Sprintf("%s is not configured on this cluster", family)))
			continue
		}
		spec.IPFamilies = append(spec.IPFamilies, family)
	}
	if len(errs) > 0 {
		return invalid(s, errs...)
	}
	// Without selector and address, Kubernetes has no part in how the
	// endpoints are reached: any family will do.
	free := headless(s) && len(spec.Selector) == 0
	if !free {
		if errs := a.familiesConfigured(s); len(errs) > 0 {
			return invalid(s, errs...)
		}
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{a.spans[0].family}
	}
	if len(spec.IPFamilies) == 1 && policy(s) != corev1.IPFamilyPolicySingleStack && (free || len(a.spans) == 2) {
		spec.IPFamilies = append(spec.IPFamilies, otherFamily(spec.IPFamilies[0]))
	}
	return nil
}

// defaultPolicy asks for two families only where none needs an address.
func defaultPolicy(s *corev1.Service) corev1.IPFamilyPolicy {
	if headless(s) && len(s.Spec.Selector) == 0 {
		return corev1.IPFamilyPolicyRequireDualStack
	}
	return corev1.IPFamilyPolicySingleStack
}

// fitPolicy compares the policy with the number of addresses and families, and
// cuts those back that an update to SingleStack has left as they were.
func fitPolicy(s, old *corev1.Service) (errs field.ErrorList) {
	spec := &s.Spec
	bad := func(message string) {
		errs = append(errs, field.Invalid(ipFamilyPolicyPath, spec.IPFamilyPolicy, message))
	}
	single := policy(s) == corev1.IPFamilyPolicySingleStack
	if old != nil && single {
		if len(spec.ClusterIPs) > 1 && slices.Equal(spec.ClusterIPs, old.Spec.ClusterIPs) {
			spec.ClusterIPs = spec.ClusterIPs[:1]
		}
		if len(spec.IPFamilies) > 1 && slices.Equal(spec.IPFamilies, old.Spec.IPFamilies) {
			spec.IPFamilies = spec.IPFamilies[:1]
		}
	}
	if old != nil && !single {
		if len(old.Spec.ClusterIPs) == 2 && len(spec.ClusterIPs) == 1 {
			bad("must be 'SingleStack' to release the secondary cluster IP")
		}
		if len(old.Spec.IPFamilies) == 2 && len(spec.IPFamilies) == 1 {
			bad("must be 'SingleStack' to release the secondary IP family")
		}
	}
	if single && len(spec.ClusterIPs) == 2 {
		bad("must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified")
	}
	if single && len(spec.IPFamilies) == 2 {
		bad("must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified")
	}
	return errs
}

// familiesConfigured wants a range for every family.
func (a *Allocator) familiesConfigured(s *corev1.Service) (errs field.ErrorList) {
	if policy(s) == corev1.IPFamilyPolicyRequireDualStack && len(a.spans) < 2 {
		errs = append(errs, field.Invalid(ipFamilyPolicyPath, s.Spec.IPFamilyPolicy, "this cluster is not configured for dual-stack services"))
	}
	for i, family := range s.Spec.IPFamilies {
		if a.span(family) == nil {
			errs = append(errs, field.Invalid(ipFamiliesPath.Index(i), family, "not configured on this cluster"))
		}
	}
	return errs
}

func familyOf(addr netip.Addr) corev1.IPFamily {
	if addr.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func otherFamily(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// invalid is the API's answer to a Service that cannot be as it is.
func invalid(s *corev1.Service, errs ...*field.Error) error {
	return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), s.Name, errs)
}
