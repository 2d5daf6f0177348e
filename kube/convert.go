// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/model"
)

// Labels by which a Service is left to somebody else's proxy.
const (
	proxyNameLabel = "service.kubernetes.io/service-proxy-name"
	headlessLabel  = corev1.IsHeadlessService
)

// taintLeaving is what the cluster autoscaler puts on a node that it is about to remove.
const taintLeaving = "ToBeDeletedByClusterAutoscaler"

// service shrinks a Service. What cannot be used (an address that is none, a port out of range) is left out; the rest goes on.
func service(o *corev1.Service) model.ServiceSpec {
	s := model.ServiceSpec{Name: model.Name{Namespace: intern(o.Namespace), Name: o.Name}, PublishNotReady: o.Spec.PublishNotReadyAddresses}
	_, another := o.Labels[proxyNameLabel]
	_, headless := o.Labels[headlessLabel]
	s.Unproxied = another || headless
	switch {
	case o.Spec.Type == corev1.ServiceTypeExternalName:
		s.Type, s.ExternalName = model.ExternalName, strings.TrimSuffix(o.Spec.ExternalName, ".")
		return s
	case o.Spec.ClusterIP == corev1.ClusterIPNone || slices.Contains(o.Spec.ClusterIPs, corev1.ClusterIPNone):
		s.Type = model.Headless
	default:
		ips := o.Spec.ClusterIPs
		if len(ips) == 0 {
			ips = []string{o.Spec.ClusterIP}
		}
		s.ClusterIPs = addrs(ips)
		s.LocalOnly = o.Spec.InternalTrafficPolicy != nil && *o.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
		s.Affinity = affinity(o)
		s.Exposure = exposure(o)
	}
	for _, p := range o.Spec.Ports {
		if proto, ok := model.ParseProtocol(string(p.Protocol)); ok && validPort(p.Port) {
			port := model.Port{Name: intern(p.Name), Protocol: proto, Port: uint16(p.Port)}
			if s.Type == model.ClusterIP && hasNodePorts(o) && validPort(p.NodePort) {
				port.NodePort = uint16(p.NodePort)
			}
			s.Ports = append(s.Ports, port)
		}
	}
	return s
}

func hasNodePorts(o *corev1.Service) bool {
	return o.Spec.Type == corev1.ServiceTypeNodePort || o.Spec.Type == corev1.ServiceTypeLoadBalancer
}

func affinity(o *corev1.Service) time.Duration {
	if o.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := o.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = min(max(*c.ClientIP.TimeoutSeconds, 1), int32(24*time.Hour/time.Second))
	}
	return time.Duration(seconds) * time.Second
}

// exposure is nil for a Service that clients outside the cluster cannot reach.
func exposure(o *corev1.Service) *model.Exposure {
	x := &model.Exposure{
		LocalOnly:   o.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		ExternalIPs: addrs(o.Spec.ExternalIPs),
	}
	if o.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, in := range o.Status.LoadBalancer.Ingress {
			// A balancer of mode Proxy sends to the nodes by their own addresses (KEP-1860).
			if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
				x.Balancers = append(x.Balancers, addrs([]string{in.IP})...)
			}
		}
		for _, r := range o.Spec.LoadBalancerSourceRanges {
			if p, ok := prefix(strings.TrimSpace(r)); ok {
				x.SourceRanges = append(x.SourceRanges, p)
			}
		}
		if len(x.SourceRanges) == 0 && len(o.Spec.LoadBalancerSourceRanges) > 0 {
			x.SourceRanges = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 32)} // ranges that nobody can read let nobody in
		}
		if x.LocalOnly && validPort(o.Spec.HealthCheckNodePort) {
			x.HealthPort = uint16(o.Spec.HealthCheckNodePort)
		}
	}
	if !hasNodePorts(o) && len(x.ExternalIPs) == 0 {
		return nil
	}
	return x
}

// slice shrinks an EndpointSlice; false if it belongs to no Service or to an address type that has no IP addresses.
func slice(o *discoveryv1.EndpointSlice) (model.Slice, bool) {
	s := model.Slice{
		Name:    model.Name{Namespace: intern(o.Namespace), Name: o.Name},
		Service: o.Labels[discoveryv1.LabelServiceName],
	}
	if s.Service == "" || o.AddressType == discoveryv1.AddressTypeFQDN {
		return s, false
	}
	if strings.HasPrefix(s.Name.Name, s.Service) {
		s.Service = s.Name.Name[:len(s.Service)] // one string is kept and not two
	}
	for _, p := range o.Ports {
		port := model.Port{}
		if p.Name != nil {
			port.Name = intern(*p.Name)
		}
		proto := ""
		if p.Protocol != nil {
			proto = string(*p.Protocol)
		}
		var ok bool
		if port.Protocol, ok = model.ParseProtocol(proto); ok && p.Port != nil && validPort(*p.Port) {
			port.Port = uint16(*p.Port)
			s.Ports = append(s.Ports, port)
		}
	}
	s.Endpoints = make([]model.Endpoint, 0, len(o.Endpoints)) // they are most of what is kept
	for i := range o.Endpoints {
		if e, ok := endpoint(&o.Endpoints[i], o.AddressType); ok {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	return s, true
}

// endpoint is false for one without an address of the family.
func endpoint(o *discoveryv1.Endpoint, family discoveryv1.AddressType) (e model.Endpoint, ok bool) {
	e = model.Endpoint{
		Ready:       o.Conditions.Ready == nil || *o.Conditions.Ready,
		Serving:     o.Conditions.Serving == nil || *o.Conditions.Serving,
		Terminating: o.Conditions.Terminating != nil && *o.Conditions.Terminating,
	}
	if o.Hostname != nil {
		e.Hostname = *o.Hostname
	}
	if o.NodeName != nil {
		e.Node = intern(*o.NodeName)
	}
	if o.Zone != nil {
		e.Zone = intern(*o.Zone)
	}
	if t := o.TargetRef; t != nil && t.Kind == "Pod" {
		e.Pod = model.Name{Namespace: intern(t.Namespace), Name: t.Name}
	}
	e.Hints = hints(o.Hints)
	// All addresses of one endpoint are interchangeable; consumers use the first.
	for _, text := range o.Addresses {
		if a, ok := addr(text); ok && a.Is4() == (family == discoveryv1.AddressTypeIPv4) {
			e.Addr = a
			return e, true
		}
	}
	return e, false
}

func hints(o *discoveryv1.EndpointHints) *model.Hints {
	if o == nil || len(o.ForZones) == 0 && len(o.ForNodes) == 0 {
		return nil
	}
	h := &model.Hints{}
	for _, z := range o.ForZones {
		h.Zones = append(h.Zones, z.Name)
	}
	for _, n := range o.ForNodes {
		h.Nodes = append(h.Nodes, n.Name)
	}
	return h
}

func node(o *corev1.Node) model.Node {
	n := model.Node{Name: o.Name, Zone: o.Labels[corev1.LabelTopologyZone]}
	n.Leaving = o.DeletionTimestamp != nil || slices.ContainsFunc(o.Spec.Taints, func(t corev1.Taint) bool { return t.Key == taintLeaving })
	for _, a := range o.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			n.Addrs = append(n.Addrs, addrs([]string{a.Address})...)
		}
	}
	cidrs := o.Spec.PodCIDRs
	if len(cidrs) == 0 && o.Spec.PodCIDR != "" {
		cidrs = []string{o.Spec.PodCIDR}
	}
	n.PodCIDRs = prefixes(cidrs)
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.NodeReady {
			n.Ready = c.Status == corev1.ConditionTrue
		}
	}
	return n
}

func pod(o *corev1.Pod) model.Pod {
	p := model.Pod{
		Name:      model.Name{Namespace: o.Namespace, Name: o.Name},
		Hostname:  o.Spec.Hostname,
		Subdomain: o.Spec.Subdomain,

		Terminating: o.DeletionTimestamp != nil,
		HostNetwork: o.Spec.HostNetwork,
		Created:     o.CreationTimestamp.UTC(),
		Resolver:    resolver(&o.Spec),
	}
	hostPorts(&o.Spec, func(h hostPort) {
		if h.flaw() == "" {
			p.HostPorts = append(p.HostPorts, h.HostPort)
		}
	})
	if o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
		return p // its addresses are another pod's by now, whatever its status still says
	}
	for _, ip := range o.Status.PodIPs {
		p.Addrs = append(p.Addrs, addrs([]string{ip.IP})...)
	}
	return p
}

// resolver reads a pod's DNS settings as a kubelet does; nil for those that most pods have.
func resolver(spec *corev1.PodSpec) *model.Resolver {
	r := model.Resolver{Ndots: -1}
	switch {
	case spec.DNSPolicy == corev1.DNSNone:
		r.Policy = model.DNSNone
	case spec.DNSPolicy == corev1.DNSDefault, spec.HostNetwork && spec.DNSPolicy != corev1.DNSClusterFirstWithHostNet:
		r.Policy = model.DNSDefault
	}
	if c := spec.DNSConfig; c != nil {
		for _, s := range c.Searches {
			r.Searches = append(r.Searches, intern(strings.TrimSuffix(s, ".")))
		}
		for _, o := range c.Options {
			if o.Name == "ndots" {
				r.Ndots = ndots(o.Value)
			}
		}
	}
	if r.Policy == model.DNSClusterFirst && len(r.Searches) == 0 && r.Ndots < 0 {
		return nil
	}
	return &r
}

// ndots reads the option as C libraries do. Without a value it takes the policy's away, and theirs of 1 holds; what is no number reads as 0 in some.
func ndots(value *string) int {
	if value == nil || *value == "" {
		return 1
	}
	n, err := strconv.ParseUint(*value, 10, 31)
	if err != nil {
		return 0
	}
	return int(min(n, 15))
}

// addr reads an address. The API accepts IPv4 with leading zeros from old objects; ParseAddr does not, rightly.
func addr(s string) (a netip.Addr, ok bool) {
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err == nil && a.Zone() == ""
}

// addrs reads addresses and leaves out what is none.
func addrs(in []string) []netip.Addr {
	out := make([]netip.Addr, 0, len(in))
	for _, s := range in {
		if a, ok := addr(s); ok {
			out = append(out, a)
		}
	}
	return out
}

// prefix reads a range. Of IPv4 addresses written as IPv6 it is one of IPv4.
func prefix(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, false
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// intern is for strings that many objects have: each is kept once.
func intern(s string) string { return unique.Make(s).Value() }

// prefixes reads ranges and leaves out what is none.
func prefixes(in []string) (out []netip.Prefix) {
	for _, s := range in {
		if p, ok := prefix(s); ok {
			out = append(out, p)
		}
	}
	return out
}

func validPort(p int32) bool { return p > 0 && p < 1<<16 }
