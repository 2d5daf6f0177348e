// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"fmt"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// Limits of an EndpointSlice.
const (
	maxSliceEndpoints = 1000
	maxSlicePorts     = 20000
	maxSliceAddresses = 100
	maxHints          = 8
)

// EndpointSlice checks a new EndpointSlice.
func EndpointSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	errs := created(&s.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	at := field.NewPath("addressType")
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		errs = append(errs, unsupported(at, s.AddressType, `traffic is forwarded to addresses; use "IPv4" or "IPv6", or a Service of type ExternalName`))
	} else {
		errs = append(errs, oneOf(s.AddressType, at, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)...)
	}
	errs = append(errs, endpoints(s, field.NewPath("endpoints"))...)
	return append(errs, endpointPorts(s.Ports, field.NewPath("ports"))...)
}

// EndpointSliceUpdate checks a change of an EndpointSlice.
func EndpointSliceUpdate(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	errs := updated(&s.ObjectMeta, &old.ObjectMeta)
	errs = append(errs, EndpointSlice(s)...)
	return append(errs, immutable(s.AddressType, old.AddressType, field.NewPath("addressType"))...)
}

func endpoints(s *discoveryv1.EndpointSlice, list *field.Path) (errs field.ErrorList) {
	if len(s.Endpoints) > maxSliceEndpoints {
		return field.ErrorList{field.TooMany(list, len(s.Endpoints), maxSliceEndpoints)}
	}
	for i := range s.Endpoints {
		e, at := &s.Endpoints[i], list.Index(i)
		addresses := at.Child("addresses")
		switch n := len(e.Addresses); {
		case n == 0:
			errs = append(errs, field.Required(addresses, "must contain at least 1 address"))
		case n > maxSliceAddresses:
			errs = append(errs, field.TooMany(addresses, n, maxSliceAddresses))
		}
		for j, address := range e.Addresses {
			errs = append(errs, endpointAddress(address, s.AddressType, addresses.Index(j))...)
		}
		if e.NodeName != nil {
			errs = append(errs, dnsSubdomain(*e.NodeName, at.Child("nodeName"))...)
		}
		if e.Hostname != nil {
			errs = append(errs, dnsLabel(*e.Hostname, at.Child("hostname"))...)
		}
		errs = append(errs, metavalidation.ValidateLabels(e.DeprecatedTopology, at.Child("deprecatedTopology"))...)
		if e.Hints != nil {
			errs = append(errs, hints(e.Hints, at.Child("hints"))...)
		}
	}
	return errs
}

// endpointAddress checks that traffic can be sent to the address: one of the
// slice's family, and an ordinary one.
func endpointAddress(address string, family discoveryv1.AddressType, at *field.Path) field.ErrorList {
	if errs := ipAddress(address, at); len(errs) > 0 {
		return errs
	}
	addr, _ := netip.ParseAddr(address)
	switch family {
	case discoveryv1.AddressTypeIPv4:
		if !addr.Is4() {
			return field.ErrorList{field.Invalid(at, address, "must be an IPv4 address")}
		}
	case discoveryv1.AddressTypeIPv6:
		if addr.Is4() {
			return field.ErrorList{field.Invalid(at, address, "must be an IPv6 address")}
		}
	}
	return ordinaryAddress(address, at)
}

// ordinaryAddress checks that an address, which may be one with leading zeros
// that was valid once, means the same on every machine.
func ordinaryAddress(address string, at *field.Path) field.ErrorList {
	addr := netutils.ParseIPSloppy(address)
	if addr == nil {
		return field.ErrorList{field.Invalid(at, address, "must be a valid IP address")}
	}
	message := ""
	switch {
	case addr.IsUnspecified():
		message = fmt.Sprintf("may not be unspecified (%s)", addr)
	case addr.IsLoopback():
		message = "may not be in the loopback range (127.0.0.0/8, ::1/128)"
	case addr.IsLinkLocalUnicast():
		message = "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
	case addr.IsLinkLocalMulticast():
		message = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
	case addr.IsMulticast():
		message = "may not be a multicast address"
	default:
		return nil
	}
	return field.ErrorList{field.Invalid(at, address, message)}
}

func hints(h *discoveryv1.EndpointHints, at *field.Path) (errs field.ErrorList) {
	if len(h.ForZones) > maxHints {
		errs = append(errs, field.TooMany(at.Child("forZones"), len(h.ForZones), maxHints))
	}
	if len(h.ForNodes) > maxHints {
		errs = append(errs, field.TooMany(at.Child("forNodes"), len(h.ForNodes), maxHints))
	}
	for i, zone := range h.ForZones {
		name := at.Child("forZones").Index(i).Child("name")
		errs = append(errs, invalid(name, zone.Name, validation.IsValidLabelValue(zone.Name))...)
		if slices.Contains(h.ForZones[:i], zone) {
			errs = append(errs, field.Duplicate(name, zone.Name))
		}
	}
	for i, node := range h.ForNodes {
		name := at.Child("forNodes").Index(i).Child("name")
		errs = append(errs, dnsSubdomain(node.Name, name)...)
		if slices.Contains(h.ForNodes[:i], node) {
			errs = append(errs, field.Duplicate(name, node.Name))
		}
	}
	return errs
}

func endpointPorts(ports []discoveryv1.EndpointPort, list *field.Path) (errs field.ErrorList) {
	if len(ports) > maxSlicePorts {
		return field.ErrorList{field.TooMany(list, len(ports), maxSlicePorts)}
	}
	names := make(map[string]bool, len(ports))
	for i := range ports {
		port, at := &ports[i], list.Index(i)
		name := ""
		if port.Name == nil {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else if name = *port.Name; name != "" {
			errs = append(errs, dnsLabel(name, at.Child("name"))...)
		}
		if names[name] {
			errs = append(errs, field.Duplicate(at.Child("name"), name))
		}
		names[name] = true
		if port.Protocol == nil {
			errs = append(errs, field.Required(at.Child("protocol"), ""))
		} else {
			errs = append(errs, protocol(*port.Protocol, at.Child("protocol"))...)
		}
		if port.Port != nil {
			errs = append(errs, portNumber(*port.Port, at.Child("port"))...)
		}
		if port.AppProtocol != nil {
			errs = append(errs, qualifiedName(*port.AppProtocol, at.Child("appProtocol"))...)
		}
	}
	return errs
}

// ServiceCIDR checks a new ServiceCIDR.
func ServiceCIDR(c *networkingv1.ServiceCIDR) field.ErrorList {
	errs := created(&c.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	return append(errs, serviceCIDRs(&c.Spec)...)
}

func serviceCIDRs(spec *networkingv1.ServiceCIDRSpec) (errs field.ErrorList) {
	at := specPath.Child("cidrs")
	switch {
	case len(spec.CIDRs) == 0:
		return field.ErrorList{field.Required(at, "at least one CIDR required")}
	case len(spec.CIDRs) > 2:
		return field.ErrorList{field.Invalid(at, spec.CIDRs, "may only hold up to 2 values")}
	}
	var families []bool
	for i, cidr := range spec.CIDRs {
		errs = append(errs, validation.IsValidCIDR(at.Index(i), cidr)...)
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			continue
		}
		families = append(families, prefix.Addr().Is4())
		if prefix.Addr().BitLen()-prefix.Bits() < 2 {
			errs = append(errs, unsupported(at.Index(i), cidr, "a range needs room for the network's own address and two Services"))
		}
	}
	if len(families) == 2 && families[0] == families[1] {
		errs = append(errs, field.Invalid(at, spec.CIDRs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"))
	}
	return errs
}

// ServiceCIDRUpdate checks a change of a ServiceCIDR. A range stays, and one of
// the other family may be added.
func ServiceCIDRUpdate(c, old *networkingv1.ServiceCIDR) field.ErrorList {
	const stays = apivalidation.FieldImmutableErrorMsg
	errs := updated(&c.ObjectMeta, &old.ObjectMeta)
	now, was, at := c.Spec.CIDRs, old.Spec.CIDRs, specPath.Child("cidrs")
	added := len(was) == 1 && len(now) == 2
	if len(now) != len(was) && !added {
		return append(errs, field.Invalid(at, now, stays))
	}
	for i := range was {
		if now[i] != was[i] {
			errs = append(errs, field.Invalid(at.Index(i), now[i], stays))
		}
	}
	if added {
		errs = append(errs, serviceCIDRs(&c.Spec)...)
	}
	return errs
}

// ServiceCIDRStatusUpdate checks a change of a ServiceCIDR's status.
func ServiceCIDRStatusUpdate(c, old *networkingv1.ServiceCIDR) field.ErrorList {
	errs := updated(&c.ObjectMeta, &old.ObjectMeta)
	return append(errs, metavalidation.ValidateConditions(c.Status.Conditions, statusPath.Child("conditions"))...)
}

// IPAddress checks a new IPAddress, whose name is the address that it locks.
func IPAddress(a *networkingv1.IPAddress) field.ErrorList {
	errs := created(&a.ObjectMeta, false, func(name string, _ bool) (messages []string) {
		for _, err := range ipAddress(name, nil) {
			messages = append(messages, err.Detail)
		}
		return messages
	})
	at, ref := specPath.Child("parentRef"), a.Spec.ParentRef
	if ref == nil {
		return append(errs, field.Required(at, ""))
	}
	if ref.Group != "" {
		errs = append(errs, dnsSubdomain(ref.Group, at.Child("group"))...)
	}
	segment := func(value string, required bool, at *field.Path) {
		if value == "" && required {
			errs = append(errs, field.Required(at, ""))
			return
		}
		errs = append(errs, invalid(at, value, path.IsValidPathSegmentName(value))...)
	}
	segment(ref.Resource, true, at.Child("resource"))
	segment(ref.Name, true, at.Child("name"))
	segment(ref.Namespace, false, at.Child("namespace"))
	return errs
}

// IPAddressUpdate checks a change of an IPAddress, whose owner stays.
func IPAddressUpdate(a, old *networkingv1.IPAddress) field.ErrorList {
	errs := updated(&a.ObjectMeta, &old.ObjectMeta)
	return append(errs, immutable(a.Spec.ParentRef, old.Spec.ParentRef, specPath.Child("parentRef"))...)
}
