// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

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

const onceSet = "may not change once set"

func clusterIPsUpdate(spec, old *corev1.ServiceSpec) field.ErrorList {
	if headless(spec) && headless(old) {
		return nil
	}
	return familyListUpdate(spec, spec.ClusterIPs, old.ClusterIPs, "clusterIP", specPath.Child("clusterIPs"))
}

func ipFamiliesUpdate(spec, old *corev1.ServiceSpec) field.ErrorList {
	// Without an address, nothing depends on the families.
	if headless(spec) || headless(old) {
		return nil
	}
	return familyListUpdate(spec, spec.IPFamilies, old.IPFamilies, "ipFamily", specPath.Child("ipFamilies"))
}

// familyListUpdate is of a list with an entry for each family.
func familyListUpdate[T comparable](spec *corev1.ServiceSpec, list, old []T, entry string, path *field.Path) (errs field.ErrorList) {
	for i, was := range old {
		switch {
		case i < len(list) && list[i] != was:
			errs = append(errs, field.Invalid(path.Index(i), list, onceSet))
		case i >= len(list) && i == 0:
			errs = append(errs, field.Invalid(path.Index(0), list, "primary "+entry+" can not be unset"))
		case i >= len(list) && i == 1 && !singleStack(spec):
			errs = append(errs, field.Invalid(specPath.Child("ipFamilyPolicy"), spec.IPFamilyPolicy,
				"must be set to 'SingleStack' when releasing the secondary "+entry))
		}
	}
	return errs
}

func singleStack(spec *corev1.ServiceSpec) bool {
	return spec.IPFamilyPolicy != nil && *spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
}
