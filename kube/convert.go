// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/model"
)

// proxyNameLabel names another program that a Service has been given to; such a Service is not ours.
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

// service shrinks a Service; false if it belongs to another service proxy. An API may hold what no validator
// would pass: what cannot be used is left out, and the rest of the object works.
func service(o *corev1.Service) (model.ServiceSpec, bool) {
	s := model.ServiceSpec{Name: model.Name{Namespace: o.Namespace, Name: o.Name}}
	if _, other := o.Labels[proxyNameLabel]; other {
		return s, false
	}
	switch {
	case o.Spec.Type == corev1.ServiceTypeExternalName:
		s.Type, s.ExternalName = model.ExternalName, strings.TrimSuffix(o.Spec.ExternalName, ".")
		return s, true
	case o.Spec.ClusterIP == corev1.ClusterIPNone:
		s.Type = model.Headless
	default:
		ips := o.Spec.ClusterIPs
		if len(ips) == 0 {
			ips = []string{o.Spec.ClusterIP}
		}
		s.ClusterIPs = addrs(ips)
	}
	for _, p := range o.Spec.Ports {
		if proto, ok := model.ParseProtocol(string(p.Protocol)); ok && validPort(p.Port) {
			s.Ports = append(s.Ports, model.Port{Name: p.Name, Protocol: proto, Port: uint16(p.Port)})
		}
	}
	return s, true
}

// slice shrinks an EndpointSlice; false if it belongs to no Service or to an address type that has no IP addresses.
// Conditions that are not set mean what the API says they mean: ready, serving as ready, not terminating.
func slice(o *discoveryv1.EndpointSlice) (model.Slice, bool) {
	s := model.Slice{
		Name:    model.Name{Namespace: o.Namespace, Name: o.Name},
		Service: o.Labels[discoveryv1.LabelServiceName],
	}
	if s.Service == "" || o.AddressType == discoveryv1.AddressTypeFQDN {
		return s, false
	}
	for _, p := range o.Ports {
		port := model.Port{}
		if p.Name != nil {
			port.Name = *p.Name
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
	for i := range o.Endpoints {
		s.Endpoints = append(s.Endpoints, endpoints(&o.Endpoints[i], o.AddressType)...)
	}
	return s, true
}

func endpoints(o *discoveryv1.Endpoint, family discoveryv1.AddressType) []model.Endpoint {
	e := model.Endpoint{
		Ready:       o.Conditions.Ready == nil || *o.Conditions.Ready,
		Terminating: o.Conditions.Terminating != nil && *o.Conditions.Terminating,
	}
	e.Serving = e.Ready
	if o.Conditions.Serving != nil {
		e.Serving = *o.Conditions.Serving
	}
	if o.Hostname != nil {
		e.Hostname = *o.Hostname
	}
	if o.NodeName != nil {
		e.Node = *o.NodeName
	}
	if o.Zone != nil {
		e.Zone = *o.Zone
	}
	if t := o.TargetRef; t != nil && t.Kind == "Pod" {
		e.Pod = model.Name{Namespace: t.Namespace, Name: t.Name}
	}
	// All addresses of one endpoint are interchangeable; consumers use the first.
	for _, a := range addrs(o.Addresses) {
		if a.Is4() == (family == discoveryv1.AddressTypeIPv4) {
			e.Addr = a
			return []model.Endpoint{e}
		}
	}
	return nil
}

func node(o *corev1.Node) model.Node {
	n := model.Node{Name: o.Name}
	for _, a := range o.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			n.Addrs = append(n.Addrs, addrs([]string{a.Address})...)
		}
	}
	cidrs := o.Spec.PodCIDRs
	if len(cidrs) == 0 && o.Spec.PodCIDR != "" {
		cidrs = []string{o.Spec.PodCIDR}
	}
	for _, c := range cidrs {
		if p, err := netip.ParsePrefix(c); err == nil {
			n.PodCIDRs = append(n.PodCIDRs, p.Masked())
		}
	}
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
	}
	for _, ip := range o.Status.PodIPs {
		p.Addrs = append(p.Addrs, addrs([]string{ip.IP})...)
	}
	return p
}

// addrs reads addresses and leaves out what is none. The API accepts IPv4 with leading zeros from old objects; ParseAddr does not, rightly.
func addrs(in []string) []netip.Addr {
	out := make([]netip.Addr, 0, len(in))
	for _, s := range in {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func validPort(p int32) bool { return p > 0 && p < 1<<16 }
