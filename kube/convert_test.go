// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/model"
)

func TestService(t *testing.T) {
	for _, tt := range []struct{ name, json, want string }{
		{"ClusterIP", `{"spec":{"clusterIP":"10.96.0.5","clusterIPs":["10.96.0.5","fd00:96::5"],"ports":[{"name":"http","port":80,"protocol":"TCP"}]}}`,
			"ClusterIP [10.96.0.5 fd00:96::5] http/TCP:80"},
		{"only the old field", `{"spec":{"clusterIP":"10.96.0.5","ports":[{"port":53,"protocol":"UDP"}]}}`, "ClusterIP [10.96.0.5] /UDP:53"},
		{"headless", `{"spec":{"clusterIP":"None","clusterIPs":["None"]}}`, "Headless []"},
		{"headless, with what is for others", `{"spec":{"type":"NodePort","clusterIP":"None","externalIPs":["203.0.113.1"],"sessionAffinity":"ClientIP",
			"internalTrafficPolicy":"Local","ports":[{"port":80,"nodePort":30080}]}}`, "Headless [] /TCP:80"},
		{"ExternalName", `{"spec":{"type":"ExternalName","externalName":"example.com."}}`, "ExternalName [] example.com"},
		{"ExternalName with an address", `{"spec":{"type":"ExternalName","externalName":"x","clusterIP":"10.96.0.5","externalIPs":["203.0.113.1"],"ports":[{"port":80}]}}`,
			"ExternalName [] x"},
		{"of another proxy", `{"metadata":{"labels":{"service.kubernetes.io/service-proxy-name":"x"}},"spec":{"clusterIP":"10.96.0.5"}}`,
			"ClusterIP [10.96.0.5] unproxied"},
		{"of another proxy without a name", `{"metadata":{"labels":{"service.kubernetes.io/service-proxy-name":""}},"spec":{"clusterIP":"10.96.0.5"}}`,
			"ClusterIP [10.96.0.5] unproxied"},
		{"labelled headless", `{"metadata":{"labels":{"service.kubernetes.io/headless":""}},"spec":{"clusterIP":"10.96.0.5"}}`, "ClusterIP [10.96.0.5] unproxied"},
		{"another label", `{"metadata":{"labels":{"service.kubernetes.io/topology-mode":"Auto"}},"spec":{"clusterIP":"10.96.0.5"}}`, "ClusterIP [10.96.0.5]"},
		{"no address yet", `{"spec":{}}`, "ClusterIP []"},
		{"an address that is none", `{"spec":{"clusterIPs":["10.96.0.5.6","10.96.0.7"]}}`, "ClusterIP [10.96.0.7]"},
		{"ports that are none", `{"spec":{"clusterIP":"10.96.0.5","ports":[{"port":0},{"port":70000},{"port":-1},{"port":80,"protocol":"X"},{"port":81}]}}`,
			"ClusterIP [10.96.0.5] /TCP:81"},
		{"published", `{"spec":{"clusterIP":"10.96.0.5","publishNotReadyAddresses":true}}`, "ClusterIP [10.96.0.5] published"},
		{"node ports", `{"spec":{"type":"NodePort","clusterIP":"10.96.0.5","ports":[{"port":80,"nodePort":30080},{"port":81,"nodePort":0},{"port":82,"nodePort":70000}]}}`,
			"ClusterIP [10.96.0.5] /TCP:80:30080 /TCP:81 /TCP:82 exposed"},
		{"node ports left over from another type", `{"spec":{"type":"ClusterIP","clusterIP":"10.96.0.5","ports":[{"port":80,"nodePort":30080}]}}`,
			"ClusterIP [10.96.0.5] /TCP:80"},
		{"internal policy", `{"spec":{"clusterIP":"10.96.0.5","internalTrafficPolicy":"Local"}}`, "ClusterIP [10.96.0.5] local"},
		{"internal policy Cluster", `{"spec":{"clusterIP":"10.96.0.5","internalTrafficPolicy":"Cluster"}}`, "ClusterIP [10.96.0.5]"},
		{"affinity", `{"spec":{"clusterIP":"10.96.0.5","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":30}}}}`,
			"ClusterIP [10.96.0.5] affinity 30s"},
		{"affinity without a time", `{"spec":{"clusterIP":"10.96.0.5","sessionAffinity":"ClientIP"}}`, "ClusterIP [10.96.0.5] affinity 3h0m0s"},
		{"affinity for less than is allowed", `{"spec":{"clusterIP":"10.96.0.5","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":-7}}}}`,
			"ClusterIP [10.96.0.5] affinity 1s"},
		{"affinity for more", `{"spec":{"clusterIP":"10.96.0.5","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":2000000000}}}}`,
			"ClusterIP [10.96.0.5] affinity 24h0m0s"},
		{"no affinity with a time", `{"spec":{"clusterIP":"10.96.0.5","sessionAffinity":"None","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":30}}}}`,
			"ClusterIP [10.96.0.5]"},
		{"external addresses", `{"spec":{"clusterIP":"10.96.0.5","externalIPs":["203.0.113.1","no","2001:db8::1"]}}`,
			"ClusterIP [10.96.0.5] exposed external [203.0.113.1 2001:db8::1]"},
		{"external addresses, none readable", `{"spec":{"clusterIP":"10.96.0.5","externalIPs":["no"]}}`, "ClusterIP [10.96.0.5]"},
		{"external policy", `{"spec":{"type":"NodePort","clusterIP":"10.96.0.5","externalTrafficPolicy":"Local"}}`, "ClusterIP [10.96.0.5] exposed local"},
		{"load balancer", `{"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.5"},"status":{"loadBalancer":{"ingress":[
			{"ip":"203.0.113.1"},{"ip":"203.0.113.2","ipMode":"VIP"},{"ip":"203.0.113.3","ipMode":"Proxy"},{"ip":"203.0.113.4","ipMode":"Other"},
			{"hostname":"lb.example.com"},{"ip":"2001:db8::1"},{"ip":"nonsense"}]}}}`,
			"ClusterIP [10.96.0.5] exposed balancers [203.0.113.1 203.0.113.2 2001:db8::1]"},
		{"a status left over from another type", `{"spec":{"type":"NodePort","clusterIP":"10.96.0.5"},"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.1"}]}}}`,
			"ClusterIP [10.96.0.5] exposed"},
		{"source ranges", `{"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.5","loadBalancerSourceRanges":[" 198.51.100.7/24 ","2001:db8::/32"]}}`,
			"ClusterIP [10.96.0.5] exposed from [198.51.100.0/24 2001:db8::/32]"},
		{"source ranges, some unreadable", `{"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.5","loadBalancerSourceRanges":["198.51.100.0/33","198.51.100.0/24",""]}}`,
			"ClusterIP [10.96.0.5] exposed from [198.51.100.0/24]"},
		{"source ranges, all unreadable: nobody", `{"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.5","loadBalancerSourceRanges":["everyone"]}}`,
			"ClusterIP [10.96.0.5] exposed from [0.0.0.0/32]"},
		{"source ranges, IPv4 written as IPv6", `{"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.5","loadBalancerSourceRanges":["::ffff:10.1.2.3/104"]}}`,
			"ClusterIP [10.96.0.5] exposed from [10.0.0.0/8]"},
		{"source ranges of another type", `{"spec":{"type":"NodePort","clusterIP":"10.96.0.5","loadBalancerSourceRanges":["198.51.100.0/24"]}}`,
			"ClusterIP [10.96.0.5] exposed"},
		{"health port", `{"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.5","externalTrafficPolicy":"Local","healthCheckNodePort":32000}}`,
			"ClusterIP [10.96.0.5] exposed local health 32000"},
		{"health port without the policy", `{"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.5","healthCheckNodePort":32000}}`, "ClusterIP [10.96.0.5] exposed"},
		{"health port out of range", `{"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.5","externalTrafficPolicy":"Local","healthCheckNodePort":-1}}`,
			"ClusterIP [10.96.0.5] exposed local"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var o corev1.Service
			decode(t, tt.json, &o)
			if got := describe(service(&o)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// describe is everything of a specification that is not as usual.
func describe(s model.ServiceSpec) string {
	var b strings.Builder
	fmt.Fprint(&b, s.Type, " ", s.ClusterIPs)
	say := func(really bool, format string, args ...any) {
		if really {
			fmt.Fprintf(&b, " "+format, args...)
		}
	}
	say(s.ExternalName != "", "%s", s.ExternalName)
	say(s.Unproxied, "unproxied")
	say(s.PublishNotReady, "published")
	say(s.LocalOnly, "local")
	say(s.Affinity != 0, "affinity %s", s.Affinity)
	for _, p := range s.Ports {
		say(p.NodePort == 0, "%s/%s:%d", p.Name, p.Protocol, p.Port)
		say(p.NodePort != 0, "%s/%s:%d:%d", p.Name, p.Protocol, p.Port, p.NodePort)
	}
	if x := s.Exposure; x != nil {
		say(true, "exposed")
		say(x.LocalOnly, "local")
		say(len(x.Balancers) > 0, "balancers %v", x.Balancers)
		say(len(x.ExternalIPs) > 0, "external %v", x.ExternalIPs)
		say(len(x.SourceRanges) > 0, "from %v", x.SourceRanges)
		say(x.HealthPort != 0, "health %d", x.HealthPort)
	}
	return b.String()
}

func TestSlice(t *testing.T) {
	const head = `{"metadata":{"namespace":"x","name":"s","labels":{"kubernetes.io/service-name":"svc"}},"addressType":"IPv4",`
	for _, tt := range []struct{ name, json, want string }{
		{"conditions not set mean ready", head + `"endpoints":[{"addresses":["10.0.0.1"]}]}`, "10.0.0.1 ready"},
		{"serving if nobody says no", head + `"endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":false}},` +
			`{"addresses":["10.0.0.2"],"conditions":{"ready":false,"terminating":true}},{"addresses":["10.0.0.3"],"conditions":{"ready":false,"serving":false}}]}`,
			"10.0.0.1 serving 10.0.0.2 terminating, serving 10.0.0.3 not ready"},
		{"terminating and serving", head + `"endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":false,"serving":true,"terminating":true}}]}`,
			"10.0.0.1 terminating, serving"},
		{"the first address stands for all", head + `"endpoints":[{"addresses":["10.0.0.1","10.0.0.2"]}]}`, "10.0.0.1 ready"},
		{"ready while terminating, as published", head + `"endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":true,"serving":false,"terminating":true}}]}`,
			"10.0.0.1 ready"},
		{"a pod, somewhere", head + `"endpoints":[{"addresses":["10.0.0.1"],"nodeName":"n1","zone":"a","hostname":"h","targetRef":{"kind":"Pod","namespace":"x","name":"p"}}]}`,
			"10.0.0.1 ready pod x/p node n1 zone a hostname h"},
		{"no pod", head + `"endpoints":[{"addresses":["10.0.0.1"],"targetRef":{"kind":"Node","name":"p"}}]}`, "10.0.0.1 ready"},
		{"hints", head + `"endpoints":[{"addresses":["10.0.0.1"],"hints":{"forZones":[{"name":"a"},{"name":"b"}],"forNodes":[{"name":"n1"}]}}]}`,
			"10.0.0.1 ready for [n1] [a b]"},
		{"hints for nobody are none", head + `"endpoints":[{"addresses":["10.0.0.1"],"hints":{}},{"addresses":["10.0.0.2"],"hints":{"forZones":[],"forNodes":[]}}]}`,
			"10.0.0.1 ready 10.0.0.2 ready"},
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
				if e.Pod != (model.Name{}) {
					got = append(got, "pod "+e.Pod.String())
				}
				for _, x := range [][2]string{{"node ", e.Node}, {"zone ", e.Zone}, {"hostname ", e.Hostname}} {
					if x[1] != "" {
						got = append(got, x[0]+x[1])
					}
				}
				if e.Hints != nil {
					got = append(got, fmt.Sprintf("for %v %v", e.Hints.Nodes, e.Hints.Zones))
				}
			}
			if g := strings.Join(got, " "); g != tt.want {
				t.Errorf("got  %s\nwant %s", g, tt.want)
			}
		})
	}
}

func TestNode(t *testing.T) {
	const whole = `{"metadata":{"name":"n1","labels":{"topology.kubernetes.io/zone":"a"}},"spec":{"podCIDR":"10.244.0.0/24"},"status":{
		"addresses":[{"type":"Hostname","address":"n1"},{"type":"InternalIP","address":"172.30.0.11"},{"type":"ExternalIP","address":"203.0.113.1"},
		{"type":"InternalIP","address":"fd00:30::11"}],"conditions":[{"type":"DiskPressure","status":"False"},{"type":"Ready","status":"True"}]}}`
	for _, tt := range []struct {
		name, json string
		want       model.Node
	}{
		{"all of it", whole, model.Node{Name: "n1", Zone: "a", Ready: true, Addrs: addrs([]string{"172.30.0.11", "fd00:30::11"}),
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}}},
		{"ranges, one unreadable, and a condition that is not known", `{"spec":{"podCIDR":"10.9.0.0/24","podCIDRs":["10.244.0.7/24","x","fd00:244::/64"]},
			"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`,
			model.Node{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:244::/64")}}},
		{"being deleted", `{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}`, model.Node{Leaving: true}},
		{"about to be removed", `{"spec":{"taints":[{"key":"ToBeDeletedByClusterAutoscaler","effect":"NoSchedule"}]}}`, model.Node{Leaving: true}},
		{"cordoned", `{"spec":{"unschedulable":true,"taints":[{"key":"node.kubernetes.io/unschedulable","effect":"NoSchedule"}]}}`, model.Node{}},
	} {
		var o corev1.Node
		decode(t, tt.json, &o)
		if got := node(&o); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tt.name, got, tt.want)
		}
	}
}

func TestPod(t *testing.T) {
	for _, tt := range []struct {
		json string
		want model.Pod
	}{
		{`{"metadata":{"namespace":"x","name":"p"},"spec":{"hostname":"h","subdomain":"s"},"status":{"podIPs":[{"ip":"10.244.0.5"},{"ip":"nonsense"},{"ip":"fd00::5"}]}}`,
			model.Pod{Name: model.Name{Namespace: "x", Name: "p"}, Addrs: addrs([]string{"10.244.0.5", "fd00::5"}), Hostname: "h", Subdomain: "s"}},
		{`{"metadata":{"namespace":"x","name":"p","deletionTimestamp":"2026-01-01T00:00:00Z"}}`, model.Pod{Name: model.Name{Namespace: "x", Name: "p"}, Terminating: true}},
		{`{"metadata":{"namespace":"x","name":"p"},"status":{"phase":"Succeeded","podIPs":[{"ip":"10.244.0.5"}]}}`, model.Pod{Name: model.Name{Namespace: "x", Name: "p"}}},
		{`{"metadata":{"namespace":"x","name":"p"},"status":{"phase":"Failed","podIPs":[{"ip":"10.244.0.5"}]}}`, model.Pod{Name: model.Name{Namespace: "x", Name: "p"}}},
	} {
		var o corev1.Pod
		decode(t, tt.json, &o)
		if got := pod(&o); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("got  %+v\nwant %+v", got, tt.want)
		}
	}
}

// TestPodResolver: what of a pod's DNS settings decides which names its resolver asks for, as a kubelet reads them.
func TestPodResolver(t *testing.T) {
	for _, tt := range []struct {
		spec string
		want *model.Resolver
	}{
		{`{}`, nil},
		{`{"dnsPolicy":"ClusterFirst"}`, nil},
		{`{"dnsPolicy":"Unheard"}`, nil}, // a kubelet takes it for ClusterFirst
		{`{"dnsPolicy":"ClusterFirst","dnsConfig":{"nameservers":["10.0.0.1"],"options":[{"name":"edns0"}]}}`, nil},
		{`{"dnsPolicy":"ClusterFirstWithHostNet"}`, nil},
		{`{"dnsPolicy":"ClusterFirstWithHostNet","hostNetwork":true}`, nil},
		{`{"dnsPolicy":"ClusterFirst","hostNetwork":true}`, &model.Resolver{Policy: model.DNSDefault, Ndots: -1}},
		{`{"dnsPolicy":"Default"}`, &model.Resolver{Policy: model.DNSDefault, Ndots: -1}},
		{`{"dnsPolicy":"None","dnsConfig":{"searches":["a.example.","b.example"]}}`,
			&model.Resolver{Policy: model.DNSNone, Searches: []string{"a.example", "b.example"}, Ndots: -1}},
		{`{"dnsConfig":{"options":[{"name":"ndots","value":"2"}]}}`, &model.Resolver{Ndots: 2}},
		{`{"dnsConfig":{"options":[{"name":"ndots","value":"2"},{"name":"ndots","value":"99"}]}}`, &model.Resolver{Ndots: 15}},
		{`{"dnsConfig":{"options":[{"name":"ndots"}]}}`, &model.Resolver{Ndots: 1}},
		{`{"dnsConfig":{"options":[{"name":"ndots","value":"few"}]}}`, &model.Resolver{Ndots: 0}},
		{`{"dnsConfig":{"options":[{"name":"ndots","value":"-1"}]}}`, &model.Resolver{Ndots: 0}},
		{`{"dnsConfig":{"searches":["."]}}`, &model.Resolver{Searches: []string{""}, Ndots: -1}},
	} {
		var o corev1.Pod
		decode(t, `{"spec":`+tt.spec+`}`, &o)
		if got := pod(&o).Resolver; !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s\ngot  %+v\nwant %+v", tt.spec, got, tt.want)
		}
	}
}

// FuzzConvert feeds objects as an API may hold them, past all validation: no conversion may panic or let through what the model rules out.
func FuzzConvert(f *testing.F) {
	f.Add([]byte(`{"metadata":{"labels":{"kubernetes.io/service-name":"svc"}},"addressType":"IPv6","ports":[{"port":99999}],"endpoints":[{"addresses":["::ffff:10.0.0.1","x"]}]}`))
	f.Add([]byte(`{"spec":{"type":"ExternalName","externalName":".","clusterIPs":["","fe80::1%eth0"],"ports":[{"port":-5}]},"status":{"podIPs":[{"ip":"::"}]}}`))
	f.Add([]byte(`{"spec":{"type":"LoadBalancer","clusterIPs":["10.96.0.1"],"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{}},"externalIPs":["::ffff:1.2.3.4"],
		"loadBalancerSourceRanges":["::ffff:10.0.0.0/104","x"],"externalTrafficPolicy":"Local","healthCheckNodePort":99999,"ports":[{"port":80,"nodePort":-1}],
		"taints":[{}]},"status":{"loadBalancer":{"ingress":[{"ip":"fe80::1%x","ipMode":"VIP"},{}]}},"endpoints":[{"hints":{"forZones":[{}]},"targetRef":{"kind":"Pod"}}]}`))
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
		s := service(&svc)
		for _, port := range s.Ports {
			if port.Port == 0 {
				t.Error("port zero")
			}
		}
		if s.Affinity < 0 || s.Affinity > 24*time.Hour {
			t.Errorf("affinity for %s", s.Affinity)
		}
		if r := pod(&p).Resolver; r != nil && (r.Ndots < -1 || r.Ndots > 15) {
			t.Errorf("ndots %d", r.Ndots)
		}
		all := slices.Clone(s.ClusterIPs)
		if x := s.Exposure; x != nil {
			if len(svc.Spec.LoadBalancerSourceRanges) > 0 && svc.Spec.Type == corev1.ServiceTypeLoadBalancer && len(x.SourceRanges) == 0 {
				t.Errorf("ranges %q let everyone in", svc.Spec.LoadBalancerSourceRanges)
			}
			all = slices.Concat(all, x.Balancers, x.ExternalIPs)
			for _, p := range x.SourceRanges {
				if p != p.Masked() || p.Addr().Is4In6() && p.Bits() >= 96 {
					t.Errorf("range %s", p)
				}
			}
		}
		if s.Type != model.ClusterIP && (len(all) > 0 || s.Exposure != nil || s.Affinity > 0) {
			t.Errorf("%s has what only a ClusterIP has: %s", s.Type, describe(s))
		}
		ms, _ := slice(&sl)
		for _, e := range ms.Endpoints {
			if !e.Addr.IsValid() || e.Addr.Is4() != (sl.AddressType == discoveryv1.AddressTypeIPv4) {
				t.Errorf("endpoint %v in a slice of %s", e.Addr, sl.AddressType)
			}
		}
		for _, a := range slices.Concat(all, node(&n).Addrs, pod(&p).Addrs) {
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
