// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestPodResolver(t *testing.T) {
	const host = "# made by hand\nnameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch old.example\nsearch corp.example example\noptions timeout:1 rotate\nsortlist x\n"
	const clusterFirst = "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
	const fromHost = "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch corp.example example\noptions timeout:1 rotate\n"
	two := "2"
	for _, tc := range []struct {
		name string
		spec corev1.PodSpec
		want string
	}{
		{"unset", corev1.PodSpec{}, clusterFirst},
		{"ClusterFirst", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst}, clusterFirst},
		{"ClusterFirst on the host's network", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst, HostNetwork: true}, fromHost},
		{"ClusterFirstWithHostNet", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirstWithHostNet, HostNetwork: true}, clusterFirst},
		{"Default", corev1.PodSpec{DNSPolicy: corev1.DNSDefault}, fromHost},
		{"None", corev1.PodSpec{DNSPolicy: corev1.DNSNone}, ""},
		{"None with its own", corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: &corev1.PodDNSConfig{
			Nameservers: []string{"192.0.2.1"}, Searches: []string{"a.example"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "edns0"}}}},
			"nameserver 192.0.2.1\nsearch a.example\noptions ndots:2 edns0\n"},
		{"ClusterFirst and more", corev1.PodSpec{DNSConfig: &corev1.PodDNSConfig{
			Nameservers: []string{"192.0.2.1", "10.96.0.10"}, Searches: []string{"svc.cluster.local", "a.example"},
			Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "rotate"}}}},
			"nameserver 10.96.0.10\nnameserver 192.0.2.1\nsearch shop.svc.cluster.local svc.cluster.local cluster.local a.example\noptions ndots:2 rotate\n"},
		{"more servers than a resolver takes", corev1.PodSpec{DNSPolicy: corev1.DNSDefault, DNSConfig: &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1", "192.0.2.2"}}},
			"nameserver 192.0.2.53\nnameserver 192.0.2.54\nnameserver 192.0.2.1\nsearch corp.example example\noptions timeout:1 rotate\n"},
	} {
		pod := testPod("web")
		pod.Namespace, pod.Spec = "shop", tc.spec
		r := podResolver(pod, host, "cluster.local", []netip.Addr{netip.MustParseAddr("10.96.0.10")})
		if got := r.String(); got != tc.want {
			t.Errorf("%s:\n%s\nwant\n%s", tc.name, got, tc.want)
		}
		// The text says what the value is: reading it again gives the same.
		if again := parseResolver(r.String()).String(); again != r.String() {
			t.Errorf("%s: read again:\n%s", tc.name, again)
		}
	}
	pod := testPod("web")
	both := podResolver(pod, host, "c.example", []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")}).String()
	if want := "nameserver 10.96.0.10\nnameserver fd00:96::a\nsearch default.svc.c.example svc.c.example c.example\noptions ndots:5\n"; both != want {
		t.Errorf("dual-stack:\n%s", both)
	}
}

func TestPodHosts(t *testing.T) {
	pod := testPod("web-0")
	addrs := []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00:244::5")}
	got := podHosts(pod, "cluster.local", addrs)
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "::1\tlocalhost", "10.244.1.5\tweb-0\n", "fd00:244::5\tweb-0\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	pod.Spec.Hostname, pod.Spec.Subdomain = "db", "sets"
	pod.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"a", "b"}}}
	got = podHosts(pod, "cluster.local", addrs[:1])
	for _, want := range []string{"10.244.1.5\tdb.sets.default.svc.cluster.local\tdb\n", "192.0.2.7\ta\tb\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestPodHostname(t *testing.T) {
	long := strings.Repeat("a", 62) + "-b"
	for _, tc := range []struct{ name, hostname, want string }{
		{"web", "", "web"}, {"web", "db", "db"}, {long, "", strings.Repeat("a", 62)}, {"a.b", "", "a.b"},
	} {
		pod := testPod(tc.name)
		pod.Spec.Hostname = tc.hostname
		if got, _ := podHostname(pod, "cluster.local"); got != tc.want {
			t.Errorf("%q %q: %q, want %q", tc.name, tc.hostname, got, tc.want)
		}
	}
}

func TestPodNsswitch(t *testing.T) {
	for _, tc := range []struct{ host, want string }{
		{"", "hosts: files dns\n"},
		{"passwd: files\nhosts: files mymachines resolve [!UNAVAIL=return] dns\nnetworks: files\n", "passwd: files\nnetworks: files\nhosts: files dns\n"},
		{"passwd: files", "passwd: files\nhosts: files dns\n"},
	} {
		if got := podNsswitch(tc.host); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.host, got, tc.want)
		}
	}
}
