// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
)

var (
	apiService          = cache.ObjectName{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}
	dnsService          = cache.ObjectName{Namespace: metav1.NamespaceSystem, Name: "kube-dns"}
	wellKnownNamespaces = []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease}
)

const (
	namespacesKey  = "namespaces"
	serviceCIDRKey = "servicecidr"

	defaultServiceCIDR = "kubernetes" // the name of the ServiceCIDR that the cluster was made with
)

// wellKnown keeps the objects that every cluster has: made when missing, mended when changed. Keys are those two
// and the names of the two Services, which stand for the Service and its slices.
type wellKnown struct {
	*loop[string]
	h      *hub
	nodes  corelisters.NodeLister
	slices cache.SharedIndexInformer
}

func newWellKnown(h *hub) *wellKnown {
	core := h.factory.Core().V1()
	w := &wellKnown{h: h, nodes: core.Nodes().Lister(), slices: h.factory.Discovery().V1().EndpointSlices().Informer()}
	w.loop = newLoop(h, "wellknown", 1, w.reconcile)
	isOurs := func(name cache.ObjectName) {
		if name == apiService || name == dnsService {
			w.add(name.String())
		}
	}
	watch(h, core.Services().Informer(), func(old, cur *corev1.Service) { isOurs(cache.MetaObjectToName(latest(old, cur))) })
	watch(h, w.slices, func(old, cur *discoveryv1.EndpointSlice) {
		for _, slice := range []*discoveryv1.EndpointSlice{old, cur} {
			if slice != nil {
				isOurs(serviceOf(slice))
			}
		}
	})
	watch(h, core.Nodes().Informer(), func(old, cur *corev1.Node) {
		if !equality.Semantic.DeepEqual(dnsEndpoints(old), dnsEndpoints(cur)) {
			w.add(dnsService.String())
		}
	})
	watch(h, core.Namespaces().Informer(), func(old, cur *corev1.Namespace) {
		if cur == nil && slices.Contains(wellKnownNamespaces, old.Name) {
			w.add(namespacesKey)
		}
	})
	watch(h, h.factory.Networking().V1().ServiceCIDRs().Informer(), func(old, cur *networkingv1.ServiceCIDR) {
		if latest(old, cur).Name == defaultServiceCIDR {
			w.add(serviceCIDRKey)
		}
	})
	for _, key := range []string{namespacesKey, serviceCIDRKey, apiService.String(), dnsService.String()} {
		w.add(key)
	}
	return w
}

func (w *wellKnown) reconcile(ctx context.Context, key string) (time.Duration, error) {
	switch key {
	case namespacesKey:
		return 0, w.ensureNamespaces(ctx)
	case serviceCIDRKey:
		return 0, w.ensureServiceCIDR(ctx)
	case apiService.String():
		return 0, w.ensureService(ctx, apiServiceSpec(w.h.ServiceCIDRs[0], w.h.APIAddr.Port()), func(*corev1.Service) []*discoveryv1.EndpointSlice {
			return apiSlices(w.h.APIAddr)
		})
	}
	nodes, err := w.nodes.List(labels.Everything())
	if err != nil {
		return 0, fmt.Errorf("list nodes: %w", err)
	}
	return 0, w.ensureService(ctx, dnsServiceSpec(w.h.DNSAddrs), func(service *corev1.Service) []*discoveryv1.EndpointSlice {
		return dnsSlices(service, nodes)
	})
}

func (w *wellKnown) ensureNamespaces(ctx context.Context) error {
	client := w.h.client.CoreV1().Namespaces()
	for _, name := range wellKnownNamespaces {
		if _, err := client.Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			if err != nil {
				return fmt.Errorf("get namespace: %w", err)
			}
			continue
		}
		_, err := client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create namespace: %w", err)
		}
		w.log.Info("created", "namespace", name)
	}
	return nil
}

// ensureServiceCIDR keeps the ServiceCIDR that says which ranges the cluster's ClusterIPs come from. The server makes
// it when it starts; here it is made again when somebody deletes it.
func (w *wellKnown) ensureServiceCIDR(ctx context.Context) error {
	client := w.h.client.NetworkingV1().ServiceCIDRs()
	have, err := client.Get(ctx, defaultServiceCIDR, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		want := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: defaultServiceCIDR}}
		for _, p := range w.h.ServiceCIDRs {
			want.Spec.CIDRs = append(want.Spec.CIDRs, p.Masked().String())
		}
		if have, err = client.Create(ctx, want, metav1.CreateOptions{}); err == nil {
			w.log.Info("created", "servicecidr", want.Name, "cidrs", want.Spec.CIDRs)
		}
	}
	if err != nil {
		return fmt.Errorf("ensure servicecidr: %w", err)
	}
	isReady := func(c metav1.Condition) bool { return c.Type == networkingv1.ServiceCIDRConditionReady }
	if have.DeletionTimestamp != nil || slices.ContainsFunc(have.Status.Conditions, isReady) {
		return nil
	}
	have.Status.Conditions = append(have.Status.Conditions, metav1.Condition{
		Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, Reason: "ReadyForAllocation",
		Message: "Kubernetes Service CIDR is ready", LastTransitionTime: metav1.Now(),
	})
	if _, err := client.UpdateStatus(ctx, have, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update servicecidr status: %w", err)
	}
	w.log.Info("servicecidr is ready", "cidrs", have.Spec.CIDRs)
	return nil
}

// apiServiceSpec is default/kubernetes: the first address of the primary range, port 443.
func apiServiceSpec(primary netip.Prefix, port uint16) *corev1.Service {
	s := fixedService(apiService, []netip.Addr{nth(primary, 1)}, map[string]string{"component": "apiserver", "provider": "kubernetes"})
	s.Spec.Ports = []corev1.ServicePort{servicePort("https", corev1.ProtocolTCP, 443, int(port))}
	return s
}

// dnsServiceSpec is kube-system/kube-dns. Every node answers for itself; the other nodes are its fallback.
func dnsServiceSpec(addrs []netip.Addr) *corev1.Service {
	s := fixedService(dnsService, addrs, map[string]string{"k8s-app": "kube-dns", "kubernetes.io/name": "KubeDNS", "kubernetes.io/cluster-service": "true"})
	s.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameNode)
	s.Spec.Ports = []corev1.ServicePort{
		servicePort("dns", corev1.ProtocolUDP, 53, 53),
		servicePort("dns-tcp", corev1.ProtocolTCP, 53, 53),
		servicePort("metrics", corev1.ProtocolTCP, 9153, 9153),
	}
	return s
}

func servicePort(name string, protocol corev1.Protocol, port, target int) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Protocol: protocol, Port: int32(port), TargetPort: intstr.FromInt32(int32(target))}
}

// fixedService is a Service without a selector at addresses of our choice.
func fixedService(name cache.ObjectName, addrs []netip.Addr, labels map[string]string) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, Labels: labels},
		Spec: corev1.ServiceSpec{
			Type:            corev1.ServiceTypeClusterIP,
			ClusterIP:       addrs[0].String(),
			SessionAffinity: corev1.ServiceAffinityNone,
			IPFamilyPolicy:  ptr.To(corev1.IPFamilyPolicySingleStack),
		},
	}
	for _, a := range addrs {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a.String())
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, family(a))
	}
	if len(addrs) > 1 {
		s.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
	}
	return s
}

func family(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// ensureService keeps a Service and its slices.
func (w *wellKnown) ensureService(ctx context.Context, want *corev1.Service, slicesFor func(*corev1.Service) []*discoveryv1.EndpointSlice) error {
	client := w.h.client.CoreV1().Services(want.Namespace)
	have, err := client.Get(ctx, want.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		if have, err = client.Create(ctx, want, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create service: %w", err)
		}
		w.log.Info("created", "service", want.Namespace+"/"+want.Name, "clusterIP", want.Spec.ClusterIP)
	case err != nil:
		return fmt.Errorf("get service: %w", err)
	case have.DeletionTimestamp != nil:
		return nil // it comes back here when it is gone
	case !slices.Equal(have.Spec.ClusterIPs, want.Spec.ClusterIPs):
		// addresses cannot be changed; the event of its end makes the right one
		w.log.Warn("service has other addresses than configured, making it anew", "service", want.Namespace+"/"+want.Name, "has", have.Spec.ClusterIPs, "wants", want.Spec.ClusterIPs)
		if err := client.Delete(ctx, have.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(have.UID))}); ignoreGone(err) != nil {
			return fmt.Errorf("delete service: %w", err)
		}
		return nil
	default:
		if have, err = w.mend(ctx, have, want); err != nil {
			return err
		}
	}
	return w.ensureSlices(ctx, have, slicesFor(have))
}

// mend sets back the fields of a Service that are ours.
func (w *wellKnown) mend(ctx context.Context, have, want *corev1.Service) (*corev1.Service, error) {
	fresh := have.DeepCopy()
	fresh.Labels = withLabels(fresh.Labels, want.Labels)
	fresh.Spec.Selector = nil
	fresh.Spec.Type = want.Spec.Type
	fresh.Spec.Ports = want.Spec.Ports
	fresh.Spec.SessionAffinity = want.Spec.SessionAffinity
	fresh.Spec.SessionAffinityConfig = nil
	fresh.Spec.TrafficDistribution = want.Spec.TrafficDistribution
	fresh.Spec.PublishNotReadyAddresses = false
	fresh.Spec.ExternalName = ""
	fresh.Spec.ExternalIPs = nil
	if equality.Semantic.DeepEqual(have.Labels, fresh.Labels) && equality.Semantic.DeepEqual(have.Spec, fresh.Spec) {
		return have, nil
	}
	fixed, err := w.h.client.CoreV1().Services(have.Namespace).Update(ctx, fresh, metav1.UpdateOptions{})
	if err != nil {
		return nil, fmt.Errorf("mend service: %w", err)
	}
	w.log.Info("mended", "service", have.Namespace+"/"+have.Name)
	return fixed, nil
}

func withLabels(labels, more map[string]string) map[string]string {
	out := maps.Clone(labels)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, more)
	return out
}

// ensureSlices makes the slices of a Service exactly these.
func (w *wellKnown) ensureSlices(ctx context.Context, service *corev1.Service, want []*discoveryv1.EndpointSlice) error {
	objs, err := w.slices.GetIndexer().ByIndex(slicesByService, cache.MetaObjectToName(service).String())
	if err != nil {
		return fmt.Errorf("list slices: %w", err)
	}
	client := w.h.client.DiscoveryV1().EndpointSlices(service.Namespace)
	have := map[string]*discoveryv1.EndpointSlice{}
	for _, obj := range objs {
		slice := obj.(*discoveryv1.EndpointSlice)
		have[slice.Name] = slice
	}
	for _, slice := range want {
		slice.Namespace = service.Namespace
		slice.Labels = withLabels(slice.Labels, map[string]string{discoveryv1.LabelServiceName: service.Name})
		slice.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(service, corev1.SchemeGroupVersion.WithKind("Service"))}
		old := have[slice.Name]
		delete(have, slice.Name)
		if err := w.ensureSlice(ctx, old, slice); err != nil {
			return err
		}
	}
	for name := range have {
		if err := client.Delete(ctx, name, metav1.DeleteOptions{}); ignoreGone(err) != nil {
			return fmt.Errorf("delete slice: %w", err)
		}
		w.log.Info("deleted", "slice", service.Namespace+"/"+name)
	}
	return nil
}

func (w *wellKnown) ensureSlice(ctx context.Context, old, want *discoveryv1.EndpointSlice) error {
	client := w.h.client.DiscoveryV1().EndpointSlices(want.Namespace)
	if old == nil {
		_, err := client.Create(ctx, want, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			// the informer lags, or it lost its label; then it is not ours to keep but in our way
			return w.takeOver(ctx, want)
		}
		if err != nil {
			return fmt.Errorf("create slice: %w", err)
		}
		w.log.Info("created", "slice", want.Namespace+"/"+want.Name, "endpoints", len(want.Endpoints))
		return nil
	}
	same := equality.Semantic.DeepEqual(old.Endpoints, want.Endpoints) && equality.Semantic.DeepEqual(old.Ports, want.Ports) &&
		maps.Equal(old.Labels, want.Labels) && equality.Semantic.DeepEqual(old.OwnerReferences, want.OwnerReferences)
	if same {
		return nil
	}
	fresh := old.DeepCopy()
	fresh.Endpoints, fresh.Ports, fresh.Labels, fresh.OwnerReferences = want.Endpoints, want.Ports, want.Labels, want.OwnerReferences
	if _, err := client.Update(ctx, fresh, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update slice: %w", err)
	}
	w.log.Info("updated", "slice", want.Namespace+"/"+want.Name, "endpoints", len(want.Endpoints))
	return nil
}

func (w *wellKnown) takeOver(ctx context.Context, want *discoveryv1.EndpointSlice) error {
	live, err := w.h.client.DiscoveryV1().EndpointSlices(want.Namespace).Get(ctx, want.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get slice: %w", err)
	}
	return w.ensureSlice(ctx, live, want)
}

// apiSlices lead to the API server.
func apiSlices(api netip.AddrPort) []*discoveryv1.EndpointSlice {
	return []*discoveryv1.EndpointSlice{{
		ObjectMeta:  metav1.ObjectMeta{Name: apiService.Name},
		AddressType: discoveryv1.AddressType(family(api.Addr())),
		Ports:       []discoveryv1.EndpointPort{slicePort("https", corev1.ProtocolTCP, int32(api.Port()))},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{api.Addr().String()},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		}},
	}}
}

func slicePort(name string, protocol corev1.Protocol, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port}
}

// dnsSlices lead to the nodes, each of which answers DNS. The hint says that a node's own pods should be answered
// by it; without it (not ready) the others step in by the ordinary rules.
func dnsSlices(service *corev1.Service, nodes []*corev1.Node) []*discoveryv1.EndpointSlice {
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b *corev1.Node) int { return cmp.Compare(a.Name, b.Name) })
	var out []*discoveryv1.EndpointSlice
	for _, f := range service.Spec.IPFamilies {
		var endpoints []discoveryv1.Endpoint
		for _, n := range nodes {
			if e, ok := dnsEndpoints(n)[f]; ok {
				endpoints = append(endpoints, e)
			}
		}
		name := dnsService.Name + map[corev1.IPFamily]string{corev1.IPv4Protocol: "-ipv4", corev1.IPv6Protocol: "-ipv6"}[f]
		for i := 0; i == 0 || len(endpoints) > 0; i++ {
			slice := &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Name:   name,
					Labels: withLabels(service.Labels, map[string]string{discoveryv1.LabelManagedBy: component}),
				},
				AddressType: discoveryv1.AddressType(f),
			}
			if i > 0 {
				slice.Name += "-" + strconv.Itoa(i)
			}
			for _, p := range service.Spec.Ports {
				slice.Ports = append(slice.Ports, slicePort(p.Name, p.Protocol, p.TargetPort.IntVal))
			}
			n := min(len(endpoints), endpointsPerSlice)
			slice.Endpoints, endpoints = endpoints[:n:n], endpoints[n:]
			out = append(out, slice)
		}
	}
	return out
}

// dnsEndpoints is where a node answers DNS for the cluster: its first internal address of each family, while it
// is Ready and its network is not said to be missing. A nil node has none.
func dnsEndpoints(n *corev1.Node) map[corev1.IPFamily]discoveryv1.Endpoint {
	if n == nil || n.DeletionTimestamp != nil || !nodeReady(n) {
		return nil
	}
	if c := nodeCondition(n, corev1.NodeNetworkUnavailable); c != nil && c.Status == corev1.ConditionTrue {
		return nil
	}
	out := map[corev1.IPFamily]discoveryv1.Endpoint{}
	for _, a := range n.Status.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		if err != nil || a.Type != corev1.NodeInternalIP {
			continue
		}
		if _, have := out[family(addr)]; have {
			continue
		}
		e := discoveryv1.Endpoint{
			Addresses:  []string{addr.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
			NodeName:   ptr.To(n.Name),
			TargetRef:  &corev1.ObjectReference{Kind: "Node", Name: n.Name, UID: n.UID},
			Hints:      &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: n.Name}}},
		}
		if zone := n.Labels[corev1.LabelTopologyZone]; zone != "" {
			e.Zone = &zone
		}
		out[family(addr)] = e
	}
	return out
}
