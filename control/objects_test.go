// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func address(ips ...string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: n.Name}, {Type: corev1.NodeExternalIP, Address: "203.0.113.9"}}
		for _, ip := range ips {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
		}
	}
}

func noNetwork(n *corev1.Node) { n.Status.Conditions[1].Status = corev1.ConditionTrue }

// printSlices is the slices in a stable text form.
func printSlices(slices []*discoveryv1.EndpointSlice) string {
	out := ""
	for _, s := range slices {
		out += fmt.Sprintf("%s %s", s.Name, s.AddressType)
		for _, p := range s.Ports {
			out += fmt.Sprintf(" %s:%d/%s", *p.Name, *p.Port, *p.Protocol)
		}
		for _, e := range s.Endpoints {
			out += " " + e.Addresses[0]
			if e.NodeName != nil {
				out += "@" + *e.NodeName
			}
			if e.Hints != nil {
				out += ">" + e.Hints.ForNodes[0].Name
			}
		}
		out += "\n"
	}
	return out
}

func TestDNSSlices(t *testing.T) {
	single := dnsServiceSpec([]netip.Addr{netip.MustParseAddr("10.96.0.10")})
	dual := dnsServiceSpec([]netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")})
	const ports = " dns:53/UDP dns-tcp:53/TCP metrics:9153/TCP"
	nodes := []*corev1.Node{
		testNode("n3", address("172.30.0.13")),
		testNode("n1", address("172.30.0.11", "172.30.0.99", "fd00:30::11")), // one address of each family
		testNode("n2", address("172.30.0.12"), noNetwork),
		testNode("n4", address("172.30.0.14"), notReady),
		testNode("n5", address("nonsense")),
	}
	if got, want := printSlices(dnsSlices(single, nodes)), "kube-dns-ipv4 IPv4"+ports+" 172.30.0.11@n1>n1 172.30.0.13@n3>n3\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	want := "kube-dns-ipv4 IPv4" + ports + " 172.30.0.11@n1>n1 172.30.0.13@n3>n3\nkube-dns-ipv6 IPv6" + ports + " fd00:30::11@n1>n1\n"
	if got := printSlices(dnsSlices(dual, nodes)); got != want {
		t.Errorf("dual-stack: got\n%swant\n%s", got, want)
	}
	if got, want := printSlices(dnsSlices(single, nil)), "kube-dns-ipv4 IPv4"+ports+"\n"; got != want {
		t.Errorf("no nodes: got\n%swant\n%s", got, want)
	}
	var many []*corev1.Node
	for i := range 250 {
		many = append(many, testNode(fmt.Sprintf("n%03d", i), address(fmt.Sprintf("172.30.%d.%d", i/100, i%100+1))))
	}
	total := 0
	var names []string
	for _, s := range dnsSlices(single, many) {
		if len(s.Endpoints) > endpointsPerSlice {
			t.Errorf("%s has %d endpoints", s.Name, len(s.Endpoints))
		}
		total += len(s.Endpoints)
		names = append(names, s.Name)
	}
	if total != 250 || !slices.Equal(names, []string{"kube-dns-ipv4", "kube-dns-ipv4-1", "kube-dns-ipv4-2"}) {
		t.Errorf("%d endpoints in %v", total, names)
	}
}

func TestAPIService(t *testing.T) {
	for _, c := range []struct{ cidr, api, ip, slice string }{
		{"10.96.0.0/16", "172.30.0.1:6443", "10.96.0.1", "kubernetes IPv4 https:6443/TCP 172.30.0.1\n"},
		{"10.96.7.9/16", "172.30.0.1:6443", "10.96.0.1", "kubernetes IPv4 https:6443/TCP 172.30.0.1\n"},
		{"fd00:96::/112", "[fd00:30::1]:443", "fd00:96::1", "kubernetes IPv6 https:443/TCP fd00:30::1\n"},
	} {
		api := netip.MustParseAddrPort(c.api)
		s := apiServiceSpec(netip.MustParsePrefix(c.cidr), api.Port())
		if s.Spec.ClusterIP != c.ip || s.Spec.Ports[0].Port != 443 || s.Spec.Ports[0].TargetPort.IntValue() != int(api.Port()) {
			t.Errorf("%s: got %+v", c.cidr, s.Spec)
		}
		if got := printSlices(apiSlices(api)); got != c.slice {
			t.Errorf("got %q, want %q", got, c.slice)
		}
	}
}

// TestEndpointFacts checks that what can change an EndpointSlice is seen and what cannot is not.
func TestEndpointFacts(t *testing.T) {
	ips := func(all ...string) edit {
		return func(p *corev1.Pod) {
			for _, ip := range all {
				p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
			}
		}
	}
	base := []edit{on("n1"), readyFor(0), ips("10.244.0.2")}
	pod := func(more ...edit) *corev1.Pod { return testPod("p", append(slices.Clone(base), more...)...) }
	for _, c := range []struct {
		name string
		pod  *corev1.Pod
		same bool
	}{
		{"nothing", pod(), true},
		{"annotation", pod(cost("3")), true},
		{"restart count", pod(restarted(4)), true},
		{"another condition", pod(func(p *corev1.Pod) {
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue})
		}), true},
		{"label", pod(labelled(map[string]string{"app": "api"})), false},
		{"ending", pod(ending), false},
		{"failed", pod(phase(corev1.PodFailed)), false}, // still Ready by its condition, yet it must leave
		{"not ready", pod(func(p *corev1.Pod) { p.Status.Conditions = nil }), false},
		{"second address", pod(ips("fd00::2")), false},
		{"hostname", pod(func(p *corev1.Pod) { p.Spec.Hostname = "h" }), false},
		{"subdomain", pod(func(p *corev1.Pod) { p.Spec.Subdomain = "s" }), false},
		{"node", pod(on("n2")), false},
		{"gone", nil, false},
	} {
		if got := endpointFacts(pod()).equal(endpointFacts(c.pod)); got != c.same {
			t.Errorf("%s: same is %v", c.name, got)
		}
	}
}

func TestKindsOf(t *testing.T) {
	all := metav1.Verbs{"create", "delete", "get", "list", "watch"}
	kinds, err := kindsOf([]*metav1.APIResourceList{
		{GroupVersion: "v1", APIResources: []metav1.APIResource{
			{Name: "pods", Kind: "Pod", Namespaced: true, Verbs: all},
			{Name: "pods/status", Kind: "Pod", Namespaced: true, Verbs: metav1.Verbs{"get", "update"}},
			{Name: "nodes", Kind: "Node", Verbs: all},
		}},
		{GroupVersion: "apps/v1", APIResources: []metav1.APIResource{{Name: "replicasets", Kind: "ReplicaSet", Namespaced: true, Verbs: all}}},
	})
	if err != nil || len(kinds) != 3 {
		t.Fatalf("got %v, %v", kinds, err)
	}
	if kinds[2].resource != replicaSetResource || kinds[2].gvk != replicaSetKind || !kinds[2].namespaced {
		t.Errorf("got %v", kinds[2])
	}
	if kinds[0].resource != podResource || kinds[0].nameIn("shop", "p").String() != "shop/p" {
		t.Errorf("got %v", kinds[0])
	}
	if kinds[1].gvk != (schema.GroupVersionKind{Version: "v1", Kind: "Node"}) || kinds[1].nameIn("shop", "n1").String() != "n1" {
		t.Errorf("got %v", kinds[1])
	}
	if _, err := kindsOf([]*metav1.APIResourceList{{GroupVersion: "a/b/c"}}); err == nil {
		t.Error("a version that is none is accepted")
	}
}

func TestWithoutOwners(t *testing.T) {
	refs := []metav1.OwnerReference{{UID: "a"}, {UID: "b"}, {UID: "c"}}
	got := withoutOwners(refs, func(r metav1.OwnerReference) bool { return r.UID == "b" })
	if len(got) != 2 || got[1].UID != "c" || refs[1].UID != "b" || len(refs) != 3 {
		t.Errorf("got %v of %v", got, refs)
	}
}
