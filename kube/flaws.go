// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/model"
)

// An API server may hold what no validator lets through: objects of other versions, or put into its database past it. What of them cannot be used is
// left out, and this file says what that is, so that nobody has to wonder.

// mostFlaws are named of one object.
const mostFlaws = 3

// flaws collects what is wrong with one object.
type flaws []string

func (f *flaws) add(format string, args ...any) { *f = append(*f, fmt.Sprintf(format, args...)) }

// String names the first.
func (f flaws) String() string {
	if more := len(f) - mostFlaws; more > 0 {
		f = append(f[:mostFlaws:mostFlaws], fmt.Sprintf("%d more", more))
	}
	return strings.Join(f, "; ")
}

// addrs names what is no address.
func (f *flaws) addrs(field string, list []string) {
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err != nil || a.Zone() != "" {
			f.add("%s %.60q is no address", field, s)
		}
	}
}

// serviceFlaws are what service leaves out.
func serviceFlaws(o *corev1.Service) (f flaws) {
	if o.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	if o.Spec.ClusterIP != corev1.ClusterIPNone && !slices.Contains(o.Spec.ClusterIPs, corev1.ClusterIPNone) {
		f.addrs("clusterIP", o.Spec.ClusterIPs)
		if len(o.Spec.ClusterIPs) == 0 && o.Spec.ClusterIP != "" {
			f.addrs("clusterIP", []string{o.Spec.ClusterIP})
		}
		f.addrs("externalIP", o.Spec.ExternalIPs)
	}
	for i, p := range o.Spec.Ports {
		proto, known := model.ParseProtocol(string(p.Protocol))
		switch {
		case !known:
			f.add("protocol %.20q of port %d is unknown", p.Protocol, p.Port)
		case !validPort(p.Port):
			f.add("port %d is no port", p.Port)
		case slices.ContainsFunc(o.Spec.Ports[:i], func(q corev1.ServicePort) bool {
			other, ok := model.ParseProtocol(string(q.Protocol))
			return ok && other == proto && q.Port == p.Port
		}):
			f.add("port %d/%s is there twice", p.Port, proto)
		case hasNodePorts(o) && p.NodePort != 0 && !validPort(p.NodePort):
			f.add("nodePort %d is no port", p.NodePort)
		}
	}
	if o.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, in := range o.Status.LoadBalancer.Ingress {
			if in.IP != "" {
				f.addrs("load balancer", []string{in.IP})
			}
		}
		for _, r := range o.Spec.LoadBalancerSourceRanges {
			if _, ok := prefix(strings.TrimSpace(r)); !ok {
				f.add("loadBalancerSourceRange %.60q is no range", r)
			}
		}
	}
	return f
}

// sliceFlaws are what slice leaves out.
func sliceFlaws(o *discoveryv1.EndpointSlice) (f flaws) {
	switch o.AddressType {
	case discoveryv1.AddressTypeFQDN:
		return nil
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
	default:
		f.add("addressType %.20q is unknown", o.AddressType)
	}
	for _, p := range o.Ports {
		name, proto := "", ""
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			proto = string(*p.Protocol)
		}
		switch _, known := model.ParseProtocol(proto); {
		case !known:
			f.add("protocol %.20q of port %.20q is unknown", proto, name)
		case p.Port == nil:
			f.add("port %.20q has no number", name)
		case !validPort(*p.Port):
			f.add("port %d is no port", *p.Port)
		}
	}
	for i := range o.Endpoints {
		all := o.Endpoints[i].Addresses
		if len(all) == 0 {
			f.add("endpoint %d has no address", i)
		}
		for _, s := range all {
			a, err := netip.ParseAddr(s)
			if err != nil || a.Zone() != "" || a.Unmap().Is4() != (o.AddressType == discoveryv1.AddressTypeIPv4) {
				f.add("endpoint %.60q is no %.20s address", s, o.AddressType)
			}
		}
	}
	return f
}

// nodeFlaws are what node leaves out.
func nodeFlaws(o *corev1.Node) (f flaws) {
	for _, a := range o.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			f.addrs("InternalIP", []string{a.Address})
		}
	}
	cidrs := o.Spec.PodCIDRs
	if len(cidrs) == 0 && o.Spec.PodCIDR != "" {
		cidrs = []string{o.Spec.PodCIDR}
	}
	for _, c := range cidrs {
		if _, ok := prefix(c); !ok {
			f.add("podCIDR %.60q is no range", c)
		}
	}
	return f
}

// note remembers what is wrong with an object, or that nothing is. The caller holds the lock.
func (s *Source) note(kind string, name model.Name, text string) {
	key := flawedKey(kind, name)
	switch {
	case text == "":
		delete(s.flawed, key)
	case s.flawed[key] != text:
		if s.flawed == nil {
			s.flawed = make(map[string]string)
		}
		s.flawed[key] = text
		s.log.Warn("an object of the API server has what cannot be used; the rest of it is", "object", key, "left_out", text)
	}
}

// noted reports whether that would change nothing. The caller holds the lock.
func (s *Source) noted(kind string, name model.Name, text string) bool {
	return text == "" && len(s.flawed) == 0 || s.flawed[flawedKey(kind, name)] == text
}

func (s *Source) forget(kind string, n model.Name) { delete(s.flawed, flawedKey(kind, n)) }

func flawedKey(kind string, n model.Name) string {
	return kind + " " + strings.TrimPrefix(n.String(), "/")
}

// Flawed names the objects of the API server of which something cannot be used, and what, a line each, in order.
func (s *Source) Flawed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := make([]string, 0, len(s.flawed))
	for key, text := range s.flawed {
		lines = append(lines, key+": "+text)
	}
	for slice, service := range s.builder.Orphans {
		lines = append(lines, fmt.Sprintf("endpointslice %s: there is no Service %s", slice, service))
	}
	slices.Sort(lines)
	return lines
}
