// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestService(t *testing.T) {
	for _, tt := range []struct {
		name, json, want string
		ours             bool
	}{
		{"ClusterIP", `{"spec":{"clusterIP":"10.96.0.5","clusterIPs":["10.96.0.5","fd00:96::5"],"ports":[{"name":"http","port":80,"protocol":"TCP"}]}}`,
			"ClusterIP [10.96.0.5 fd00:96::5]  [{http TCP 80}]", true},
		{"only the old field", `{"spec":{"clusterIP":"10.96.0.5","ports":[{"port":53,"protocol":"UDP"}]}}`, "ClusterIP [10.96.0.5]  [{ UDP 53}]", true},
		{"headless", `{"spec":{"clusterIP":"None","clusterIPs":["None"]}}`, "Headless []  []", true},
		{"ExternalName", `{"spec":{"type":"ExternalName","externalName":"example.com."}}`, "ExternalName [] example.com []", true},
		{"of another proxy", `{"metadata":{"labels":{"service.kubernetes.io/service-proxy-name":"x"}},"spec":{"clusterIP":"10.96.0.5"}}`, "", false},
		{"no address yet", `{"spec":{}}`, "ClusterIP []  []", true},
		{"an address that is none", `{"spec":{"clusterIPs":["10.96.0.5.6","10.96.0.7"]}}`, "ClusterIP [10.96.0.7]  []", true},
		{"ports that are none", `{"spec":{"clusterIP":"10.96.0.5","ports":[{"port":0},{"port":70000},{"port":-1},{"port":80,"protocol":"X"},{"port":81}]}}`,
			"ClusterIP [10.96.0.5]  [{ TCP 81}]", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var o corev1.Service
			decode(t, tt.json, &o)
			s, ours := service(&o)
			if ours != tt.ours {
				t.Fatalf("ours = %t", ours)
			}
			if got := fmt.Sprint(s.Type, s.ClusterIPs, " "+s.ExternalName+" ", s.Ports); ours && got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestSlice(t *testing.T) {
	const head = `{"metadata":{"namespace":"x","name":"s","labels":{"kubernetes.io/service-name":"svc"}},"addressType":"IPv4",`
	for _, tt := range []struct{ name, json, want string }{
		{"conditions not set mean ready", head + `"endpoints":[{"addresses":["10.0.0.1"]}]}`, "10.0.0.1 ready"},
		{"serving follows ready", head + `"endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":false}}]}`, "10.0.0.1 not ready"},
		{"terminating and serving", head + `"endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":false,"serving":true,"terminating":true}}]}`,
			"10.0.0.1 terminating, serving"},
		{"the first address stands for all", head + `"endpoints":[{"addresses":["10.0.0.1","10.0.0.2"]}]}`, "10.0.0.1 ready"},
		{"no address", head + `"endpoints":[{"addresses":[]},{}]}`, ""},
		{"the wrong family", head + `"endpoints":[{"addresses":["fd00::1"]},{"addresses":["10.0.0.1"]}]}`, "10.0.0.1 ready"},
		{"no endpoints", head + `"endpoints":null}`, ""},
		{"nil ports", head + `"ports":[{},{"port":null},{"port":0},{"port":8080}],"endpoints":[{"addresses":["10.0.0.1"]}]}`, ":TCP:8080 10.0.0.1 ready"},
		{"named port", head + `"ports":[{"name":"dns","port":53,"protocol":"UDP"}]}`, "dns:UDP:53"},
		{"no Service", `{"metadata":{"name":"s"},"addressType":"IPv4"}`, "not ours"},
		{"host names", `{"metadata":{"name":"s","labels":{"kubernetes.io/service-name":"svc"}},"addressType":"FQDN"}`, "not ours"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var o discoveryv1.EndpointSlice
			decode(t, tt.json, &o)
			s, ok := slice(&o)
			var got []string
			if !ok {
				got = append(got, "not ours")
			}
			for _, p := range s.Ports {
				got = append(got, fmt.Sprintf("%s:%s:%d", p.Name, p.Protocol, p.Port))
			}
			for _, e := range s.Endpoints {
				got = append(got, e.Addr.String()+" "+e.State())
			}
			if g := strings.Join(got, " "); g != tt.want {
				t.Errorf("got  %s\nwant %s", g, tt.want)
			}
		})
	}
}

func TestNodeAndPod(t *testing.T) {
	var n corev1.Node
	decode(t, `{"metadata":{"name":"n1"},"spec":{"podCIDR":"10.244.0.0/24"},"status":{
		"addresses":[{"type":"Hostname","address":"n1"},{"type":"InternalIP","address":"172.30.0.11"},{"type":"InternalIP","address":"fd00:30::11"}],
		"conditions":[{"type":"Ready","status":"True"}]}}`, &n)
	if got, want := fmt.Sprint(node(&n)), "{n1 [172.30.0.11 fd00:30::11] [10.244.0.0/24] true}"; got != want {
		t.Errorf("node: got %s, want %s", got, want)
	}
	decode(t, `{"spec":{"podCIDRs":["10.244.0.7/24","x","fd00:244::/64"]},"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`, &n)
	if got := node(&n); fmt.Sprint(got.PodCIDRs) != "[10.244.0.0/24 fd00:244::/64]" || got.Ready {
		t.Errorf("node: got %+v", got)
	}
	var p corev1.Pod
	decode(t, `{"metadata":{"namespace":"x","name":"p"},"spec":{"hostname":"h","subdomain":"s"},"status":{"podIPs":[{"ip":"10.244.0.5"},{"ip":"nonsense"},{"ip":"fd00::5"}]}}`, &p)
	if got, want := fmt.Sprint(pod(&p)), "{x/p [10.244.0.5 fd00::5] h s}"; got != want {
		t.Errorf("pod: got %s, want %s", got, want)
	}
}

// FuzzConvert feeds objects as an API may hold them, past all validation: no conversion may panic or let through what the model rules out.
func FuzzConvert(f *testing.F) {
	f.Add([]byte(`{"metadata":{"labels":{"kubernetes.io/service-name":"svc"}},"addressType":"IPv6","ports":[{"port":99999}],"endpoints":[{"addresses":["::ffff:10.0.0.1","x"]}]}`))
	f.Add([]byte(`{"spec":{"type":"ExternalName","externalName":".","clusterIPs":["","fe80::1%eth0"],"ports":[{"port":-5}]},"status":{"podIPs":[{"ip":"::"}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var (
			svc corev1.Service
			sl  discoveryv1.EndpointSlice
			n   corev1.Node
			p   corev1.Pod
		)
		_ = json.Unmarshal(data, &svc)
		_ = json.Unmarshal(data, &sl)
		_ = json.Unmarshal(data, &n)
		_ = json.Unmarshal(data, &p)
		s, _ := service(&svc)
		for _, port := range s.Ports {
			if port.Port == 0 {
				t.Error("port zero")
			}
		}
		ms, _ := slice(&sl)
		for _, e := range ms.Endpoints {
			if !e.Addr.IsValid() || e.Addr.Is4() != (sl.AddressType == discoveryv1.AddressTypeIPv4) {
				t.Errorf("endpoint %v in a slice of %s", e.Addr, sl.AddressType)
			}
		}
		for _, a := range append(node(&n).Addrs, pod(&p).Addrs...) {
			if !a.IsValid() || a.Is4In6() {
				t.Errorf("address %v", a)
			}
		}
	})
}

func decode(t *testing.T, s string, into metav1.Object) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), into); err != nil {
		t.Fatal(err)
	}
}
