// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// The further ranges of a world for names, which has both families.
const (
	serviceCIDR6 = "fd00:96::/112"
	podCIDR6     = "fd00:128::/48"
	// namePods is how many pods there are for the Services to share.
	namePods = 4000
)

// named is a Service as far as its names go, with its slices.
type named struct {
	service corev1.Service
	slices  []discoveryv1.EndpointSlice
}

// nameWorld is a random cluster's Services: a value, and the same for the same seed.
type nameWorld struct {
	namespaces []string
	empty      []string // namespaces without a Service
	services   []named
	index      map[string]*named // by NAMESPACE/NAME
}

// Kinds of Services and how many of a hundred are of each.
var nameKinds = []struct {
	share int
	make  func(w *nameWorld, r *rand.Rand, s *named)
}{
	{42, (*nameWorld).virtual4},
	{12, (*nameWorld).virtualDual},
	{6, (*nameWorld).virtual6},
	{14, (*nameWorld).headlessHosts},
	{12, (*nameWorld).headlessPlain},
	{3, (*nameWorld).headlessBare},
	{11, (*nameWorld).external},
}

func newNameWorld(r *rand.Rand, n int) *nameWorld {
	w := &nameWorld{empty: []string{"vacant", "kube-public"}}
	for i := range max(n/200, 3) {
		w.namespaces = append(w.namespaces, fmt.Sprintf("team-%d", i))
	}
	for i := range n {
		s := named{service: corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: pickOne(r, w.namespaces...), Name: fmt.Sprintf("app-%d", i)}}}
		if i%97 == 0 { // as long as a label may be
			s.service.Name += "-" + strings.Repeat("x", 62-len(s.service.Name))
		}
		at := r.IntN(100)
		for _, k := range nameKinds {
			if at -= k.share; at < 0 {
				k.make(w, r, &s)
				break
			}
		}
		w.services = append(w.services, s)
	}
	w.index = make(map[string]*named, n)
	for i := range w.services {
		s := &w.services[i]
		w.index[s.service.Namespace+"/"+s.service.Name] = s
	}
	return w
}

func pickOne[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// ports are one without a name or several with, among them one name in two protocols.
func (s *named) ports(r *rand.Rand) {
	all := []corev1.ServicePort{
		{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(8080)},
		{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(5353)},
		{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt32(5353)},
		{Name: "sig", Protocol: corev1.ProtocolSCTP, Port: 9900, TargetPort: intstr.FromInt32(9900)},
		{Name: "metrics", Protocol: corev1.ProtocolTCP, Port: 9100, TargetPort: intstr.FromInt32(9100)},
	}
	if r.IntN(4) == 0 {
		s.service.Spec.Ports = []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(8080)}}
		return
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	s.service.Spec.Ports = all[:1+r.IntN(3)]
}

func (s *named) families(f ...corev1.IPFamily) {
	s.service.Spec.IPFamilies = f
	policy := corev1.IPFamilyPolicySingleStack
	if len(f) == 2 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	s.service.Spec.IPFamilyPolicy = &policy
}

// podAddr is the address of a pod in a family.
func podAddr(n int, family corev1.IPFamily) netip.Addr {
	if family == corev1.IPv4Protocol {
		return endpoint(uint32(n))
	}
	b := netip.MustParsePrefix(podCIDR6).Addr().As16()
	b[14], b[15] = byte(n>>8), byte(n)
	b[7] = 1
	return netip.AddrFrom16(b)
}

// endpoints puts up to most endpoints into slices, one or more of each family, some of them twice and some not ready.
func (s *named) endpoints(r *rand.Rand, most int, hostnames bool) {
	pods := make([]int, r.IntN(most+1))
	for i := range pods {
		pods[i] = 1 + r.IntN(namePods)
	}
	for _, family := range s.service.Spec.IPFamilies {
		var made []discoveryv1.Endpoint
		for i, p := range pods {
			e := discoveryv1.Endpoint{
				Addresses:  []string{podAddr(p, family).String()},
				Conditions: conditions(r),
				NodeName:   ptr.To(remoteNode),
				TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: s.service.Namespace, Name: fmt.Sprintf("pod-%d", p)},
			}
			if hostnames && r.IntN(8) > 0 {
				e.Hostname = ptr.To(fmt.Sprintf("host-%d", i))
			}
			made = append(made, e)
		}
		for len(made) > 0 || len(s.slices) == 0 {
			n := min(len(made), 1+r.IntN(most))
			s.slice(family, made[:n])
			if n > 0 && r.IntN(10) == 0 {
				s.slice(family, made[:1+r.IntN(n)]) // while slices are rewritten, an endpoint is in two
			}
			if made = made[n:]; n == 0 {
				break
			}
		}
	}
}

func conditions(r *rand.Rand) discoveryv1.EndpointConditions {
	switch r.IntN(10) {
	case 0:
		return discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(false), Terminating: ptr.To(false)}
	case 1:
		return discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(true), Terminating: ptr.To(true)}
	case 2:
		return discoveryv1.EndpointConditions{} // not said: ready
	}
	return discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)}
}

func (s *named) slice(family corev1.IPFamily, endpoints []discoveryv1.Endpoint) {
	slice := discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.service.Namespace, Name: fmt.Sprintf("%s-%d", s.service.Name, len(s.slices)),
			Labels: map[string]string{discoveryv1.LabelServiceName: s.service.Name},
		},
		AddressType: discoveryv1.AddressType(family),
		Endpoints:   endpoints,
	}
	for _, p := range s.service.Spec.Ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: ptr.To(p.Name), Protocol: ptr.To(p.Protocol), Port: ptr.To(p.TargetPort.IntVal)})
	}
	s.slices = append(s.slices, slice)
}

// virtual gives a Service the next addresses: the same in every run.
func (w *nameWorld) virtual(s *named, f ...corev1.IPFamily) {
	s.families(f...)
	n := len(w.services) + 0x1000
	for _, family := range f {
		if family == corev1.IPv4Protocol {
			s.service.Spec.ClusterIPs = append(s.service.Spec.ClusterIPs, fmt.Sprintf("10.96.%d.%d", n>>8, n&0xff))
		} else {
			s.service.Spec.ClusterIPs = append(s.service.Spec.ClusterIPs, fmt.Sprintf("fd00:96::%x", n))
		}
	}
	s.service.Spec.ClusterIP = s.service.Spec.ClusterIPs[0]
}

func (w *nameWorld) virtual4(r *rand.Rand, s *named) {
	w.virtual(s, corev1.IPv4Protocol)
	s.ports(r)
	s.endpoints(r, 4, r.IntN(6) == 0)
}

func (w *nameWorld) virtual6(r *rand.Rand, s *named) {
	w.virtual(s, corev1.IPv6Protocol)
	s.ports(r)
	s.endpoints(r, 4, false)
}

func (w *nameWorld) virtualDual(r *rand.Rand, s *named) {
	w.virtual(s, corev1.IPv4Protocol, corev1.IPv6Protocol)
	s.ports(r)
	s.endpoints(r, 4, false)
}

func (w *nameWorld) headless(r *rand.Rand, s *named) {
	s.service.Spec.ClusterIP = corev1.ClusterIPNone
	switch r.IntN(4) {
	case 0:
		s.families(corev1.IPv6Protocol)
	case 1:
		s.families(corev1.IPv4Protocol, corev1.IPv6Protocol)
	default:
		s.families(corev1.IPv4Protocol)
	}
}

func (w *nameWorld) headlessHosts(r *rand.Rand, s *named) {
	w.headless(r, s)
	s.ports(r)
	s.endpoints(r, pickOne(r, 3, 3, 3, 40), true) // the large ones do not fit into a small answer
}

func (w *nameWorld) headlessPlain(r *rand.Rand, s *named) {
	w.headless(r, s)
	s.ports(r)
	s.endpoints(r, 5, false)
}

// headlessBare has no ports, only addresses.
func (w *nameWorld) headlessBare(r *rand.Rand, s *named) {
	w.headless(r, s)
	s.endpoints(r, 3, true)
}

// external points outside, to another Service before it (so that there are chains, and no circles but one), or to nothing.
func (w *nameWorld) external(r *rand.Rand, s *named) {
	s.service.Spec.Type = corev1.ServiceTypeExternalName
	other := "app-nothing.team-0"
	if len(w.services) > 0 {
		o := pickOne(r, w.services...)
		other = o.service.Name + "." + o.service.Namespace
	}
	s.service.Spec.ExternalName = pickOne(r, "www.example.com", "nowhere.example.com", "alias.example.com", "v6.example.com", "www.example.com.",
		other+".svc.cluster.local", other+".svc.cluster.local", s.service.Name+"."+s.service.Namespace+".svc.cluster.local", "192.0.2.80",
		"missing.team-0.svc.cluster.local", "cluster.local")
}

// create makes everything known to the API server, and takes in what the server has made of it.
func (nw *nameWorld) create(ctx context.Context, w *world) error {
	for _, ns := range append(append([]string(nil), nw.namespaces...), "vacant") {
		object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}
		if _, err := w.client.CoreV1().Namespaces().Create(ctx, object, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create namespace %s: %w", ns, err)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(seeders)
	for i := range nw.services {
		group.Go(func() error {
			s := &nw.services[i]
			made, err := w.client.CoreV1().Services(s.service.Namespace).Create(ctx, &s.service, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("create service %s/%s: %w", s.service.Namespace, s.service.Name, err)
			}
			s.service = *made
			for j := range s.slices {
				if _, err := w.client.DiscoveryV1().EndpointSlices(s.service.Namespace).Create(ctx, &s.slices[j], metav1.CreateOptions{}); err != nil {
					return fmt.Errorf("create slice %s: %w", s.slices[j].Name, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// name is the Service's own, below a domain.
func (s *named) name(domain string) string {
	return s.service.Name + "." + s.service.Namespace + ".svc." + domain
}

// addresses of a Service: virtual ones, or those of its endpoints, whatever their condition.
func (s *named) addresses() (virtual, real []netip.Addr) {
	for _, a := range s.service.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(a); err == nil {
			virtual = append(virtual, addr)
		}
	}
	for _, sl := range s.slices {
		for _, e := range sl.Endpoints {
			real = append(real, netip.MustParseAddr(e.Addresses[0]))
		}
	}
	return virtual, real
}

// labels are the names of the endpoints below the Service's.
func (s *named) labels() (out []string) {
	for _, sl := range s.slices {
		for _, e := range sl.Endpoints {
			out = append(out, dashed(e.Addresses[0]))
			if e.Hostname != nil {
				out = append(out, *e.Hostname)
			}
		}
	}
	return out
}

func dashed(a string) string { return strings.NewReplacer(".", "-", ":", "-").Replace(a) }
