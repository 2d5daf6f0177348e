// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/model"
)

func TestServiceFlaws(t *testing.T) {
	for _, tt := range []struct{ json, want string }{
		{`{"spec":{"clusterIP":"10.96.0.5","clusterIPs":["10.96.0.5","fd00:96::5"],"ports":[{"port":53,"protocol":"UDP"},{"port":53,"protocol":"TCP"},{"port":53,"protocol":"SCTP"}]}}`, ""},
		{`{"spec":{}}`, ""},
		{`{"spec":{"clusterIP":"None"}}`, ""},
		{`{"spec":{"clusterIP":"None","clusterIPs":["None"],"ports":[{"port":80}]}}`, ""},
		{`{"spec":{"type":"ExternalName","externalName":"x","ports":[{"port":0}]}}`, ""},
		{`{"spec":{"type":"NodePort","clusterIP":"10.96.0.5","ports":[{"port":80,"nodePort":30080},{"port":81}]}}`, ""},
		{`{"spec":{"clusterIP":"ten"}}`, `clusterIP "ten" is no address`},
		{`{"spec":{"clusterIP":"10.96.0.5","clusterIPs":["10.96.0.5.6","fe80::1%eth0"]}}`, `clusterIP "10.96.0.5.6" is no address; clusterIP "fe80::1%eth0" is no address`},
		{`{"spec":{"clusterIP":"10.96.0.5","externalIPs":["","192.0.2.1"]}}`, `externalIP "" is no address`},
		{`{"spec":{"ports":[{"port":0},{"port":70000},{"port":-1}]}}`, `port 0 is no port; port 70000 is no port; port -1 is no port`},
		{`{"spec":{"ports":[{"port":0},{"port":0},{"port":0},{"port":0},{"port":0}]}}`, `port 0 is no port; port 0 is no port; port 0 is no port; 2 more`},
		{`{"spec":{"ports":[{"port":80,"protocol":"QUIC"}]}}`, `protocol "QUIC" of port 80 is unknown`},
		{`{"spec":{"ports":[{"port":80},{"port":80,"protocol":"UDP"},{"name":"b","port":80,"protocol":"TCP"}]}}`, `port 80/TCP is there twice`},
		{`{"spec":{"type":"NodePort","ports":[{"port":80,"nodePort":-3}]}}`, `nodePort -3 is no port`},
		{`{"spec":{"type":"LoadBalancer","loadBalancerSourceRanges":[" 10.0.0.0/8 ","all"]},"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"hostname":"x"},{"ip":"y"}]}}}`,
			`load balancer "y" is no address; loadBalancerSourceRange "all" is no range`},
	} {
		var o corev1.Service
		decode(t, tt.json, &o)
		if got := serviceFlaws(&o).String(); got != tt.want {
			t.Errorf("%s\ngot  %s\nwant %s", tt.json, got, tt.want)
		}
	}
}

func TestSliceFlaws(t *testing.T) {
	for _, tt := range []struct{ json, want string }{
		{`"addressType":"IPv4","ports":[{"name":"a","port":80},{"port":81,"protocol":"UDP"}],"endpoints":[{"addresses":["10.0.0.1"]}]`, ""},
		{`"addressType":"IPv6","endpoints":[{"addresses":["fd00::1"]}]`, ""},
		{`"addressType":"IPv4"`, ""},
		{`"addressType":"FQDN","endpoints":[{"addresses":["a.example"]}]`, ""},
		{`"endpoints":null`, `addressType "" is unknown`},
		{`"addressType":"IPv6","endpoints":[{"addresses":["10.0.0.1"]}]`, `endpoint "10.0.0.1" is no IPv6 address`},
		{`"addressType":"IPv6","endpoints":[{"addresses":["::ffff:10.0.0.1"]}]`, `endpoint "::ffff:10.0.0.1" is no IPv6 address`},
		{`"addressType":"IPv4","endpoints":[{"addresses":["fd00::1"]},{"addresses":["here"]},{}]`,
			`endpoint "fd00::1" is no IPv4 address; endpoint "here" is no IPv4 address; endpoint 2 has no address`},
		{`"addressType":"IPv4","ports":[{"name":"a"},{"port":0},{"port":80,"protocol":"QUIC"}]`,
			`port "a" has no number; port 0 is no port; protocol "QUIC" of port "" is unknown`},
	} {
		var o discoveryv1.EndpointSlice
		decode(t, `{"metadata":{"name":"s","namespace":"x","labels":{"kubernetes.io/service-name":"svc"}},`+tt.json+`}`, &o)
		if got := sliceFlaws(&o).String(); got != tt.want {
			t.Errorf("%s\ngot  %s\nwant %s", tt.json, got, tt.want)
		}
	}
}

func TestNodeFlaws(t *testing.T) {
	for _, tt := range []struct{ json, want string }{
		{`{"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24","fd00::/64"]},"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"},{"type":"Hostname","address":"n1"}]}}`, ""},
		{`{"spec":{"podCIDR":"10.244.1.0/24"}}`, ""},
		{`{}`, ""},
		{`{"spec":{"podCIDR":"ten"}}`, `podCIDR "ten" is no range`},
		{`{"spec":{"podCIDR":"ten","podCIDRs":["ten","10.244.0.0/99"]},"status":{"addresses":[{"type":"InternalIP","address":"n1"},{"type":"InternalIP"}]}}`,
			`InternalIP "n1" is no address; InternalIP "" is no address; podCIDR "ten" is no range; 1 more`},
	} {
		var o corev1.Node
		decode(t, tt.json, &o)
		if got := nodeFlaws(&o).String(); got != tt.want {
			t.Errorf("%s\ngot  %s\nwant %s", tt.json, got, tt.want)
		}
	}
}

// What is named is what is there now, once, and only for as long.
func TestFlawed(t *testing.T) {
	var log strings.Builder
	client, err := NewClientFor(&rest.Config{Host: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Client: client, Config: model.Config{Self: "n1"}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	meta := metav1.ObjectMeta{Namespace: "x", Name: "s", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}}
	bad := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 0}}}}
	sl := &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{}}}
	want := func(lines ...string) {
		t.Helper()
		if got := s.Flawed(); !slices.Equal(got, lines) {
			t.Errorf("got %q, want %q", got, lines)
		}
	}
	want()
	s.setService(bad)()
	if s.setService(bad) != nil {
		t.Error("what is known is to be set again")
	}
	s.setSlice(sl)()
	want("endpointslice x/s: endpoint 0 has no address", "service x/s: port 0 is no port")
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("%d lines logged, want one for each:\n%s", n, log.String())
	}
	s.setService(&corev1.Service{ObjectMeta: meta})()
	want("endpointslice x/s: endpoint 0 has no address")
	s.setNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDR: "x"}})()
	want("endpointslice x/s: endpoint 0 has no address", `node n1: podCIDR "x" is no range`)
	s.deleteNode(model.Name{Name: "n1"})
	s.deleteSlice(model.Name{Namespace: "x", Name: "s"})
	want()
	s.setService(bad)()
	s.setSlice(sl)()
	s.deleteService(model.Name{Namespace: "x", Name: "s"})
	sl.Labels = nil // no Service's any more
	s.setSlice(sl)()
	want()
	wrong := &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{HostPort: -1}}}}}}
	s.setPod(wrong)()
	want("pod x/s: hostPort -1 is no port")
	s.setPod(&corev1.Pod{ObjectMeta: meta})()
	want()
	s.setPod(wrong)()
	s.deletePod(model.Name{Namespace: "x", Name: "s"})
	want()
}

func TestPodFlaws(t *testing.T) {
	const addrs = `"status":{"podIPs":[{"ip":"10.244.1.5"},{"ip":"fd00:244::5"}]}`
	ports := func(list string) string { return `{"spec":{"containers":[{"ports":[` + list + `]}]},` + addrs + `}` }
	for _, tt := range []struct {
		json, want string
		ports      []string
	}{
		{ports(`{"containerPort":80}`), "", nil},
		{ports(`{"containerPort":80,"hostPort":0}`), "", nil},
		{ports(`{"containerPort":80,"hostPort":8080},{"containerPort":53,"hostPort":53,"protocol":"UDP"},{"containerPort":1,"hostPort":65535,"protocol":"SCTP"}`), "",
			[]string{"8080/TCP to 80", "53/UDP to 53", "65535/SCTP to 1"}},
		{ports(`{"containerPort":80,"hostPort":8080,"hostIP":"192.0.2.1"},{"containerPort":80,"hostPort":8080,"hostIP":"fd00::1"},{"containerPort":80,"hostPort":81,"hostIP":"0.0.0.0"}`), "",
			[]string{"192.0.2.1:8080/TCP to 80", "[fd00::1]:8080/TCP to 80", "0.0.0.0:81/TCP to 80"}},
		{ports(`{"containerPort":80,"hostPort":-1},{"containerPort":80,"hostPort":65536},{"containerPort":80,"hostPort":131152}`),
			"hostPort -1 is no port; hostPort 65536 is no port; hostPort 131152 is no port", nil},
		{ports(`{"containerPort":0,"hostPort":80},{"containerPort":70000,"hostPort":81}`),
			"containerPort 0 of hostPort 80 is no port; containerPort 70000 of hostPort 81 is no port", nil},
		{ports(`{"containerPort":80,"hostPort":80,"hostIP":"here"},{"containerPort":80,"hostPort":81,"hostIP":"fe80::1%eth0"},{"containerPort":80,"hostPort":82,"hostIP":"010.0.0.1"}`),
			`hostIP "here" of hostPort 80 is no address; hostIP "fe80::1%eth0" of hostPort 81 is no address; hostIP "010.0.0.1" of hostPort 82 is no address`, nil},
		{ports(`{"containerPort":80,"hostPort":80,"hostIP":"::ffff:192.0.2.1"}`),
			`hostIP "::ffff:192.0.2.1" of hostPort 80 is an IPv4 address written as IPv6; write 192.0.2.1`, nil},
		{ports(`{"containerPort":80,"hostPort":80,"protocol":"QUIC"},{"containerPort":80,"hostPort":81}`), `protocol "QUIC" of hostPort 80 is unknown`, []string{"81/TCP to 80"}},
		{`{"spec":{"containers":[{"ports":[{"containerPort":80,"hostPort":80,"hostIP":"fd00::1"}]}]},"status":{"podIPs":[{"ip":"10.244.1.5"}]}}`,
			"hostIP fd00::1 of hostPort 80 is of a family in which the pod has no address", []string{"[fd00::1]:80/TCP to 80"}},
		{`{"spec":{"containers":[{"ports":[{"containerPort":80,"hostPort":80,"hostIP":"fd00::1"}]}]}}`, "", []string{"[fd00::1]:80/TCP to 80"}},
		// Of containers that live as long as the pod.
		{`{"spec":{"initContainers":[{"ports":[{"containerPort":1,"hostPort":1}]},{"restartPolicy":"Always","ports":[{"containerPort":2,"hostPort":2}]}],
			"containers":[{"ports":[{"containerPort":3,"hostPort":3}]},{"ports":[{"containerPort":4,"hostPort":4}]}]}}`, "", []string{"2/TCP to 2", "3/TCP to 3", "4/TCP to 4"}},
		{`{"spec":{"hostNetwork":true,"containers":[{"ports":[{"containerPort":80,"hostPort":80},{"containerPort":0,"hostPort":90000}]}]}}`, "", nil},
	} {
		var o corev1.Pod
		decode(t, tt.json, &o)
		if got := podFlaws(&o).String(); got != tt.want {
			t.Errorf("%s\ngot  %s\nwant %s", tt.json, got, tt.want)
		}
		var got []string
		for _, h := range pod(&o).HostPorts {
			got = append(got, h.String())
		}
		if !slices.Equal(got, tt.ports) {
			t.Errorf("%s\ngot  %q\nwant %q", tt.json, got, tt.ports)
		}
	}
}

// No number and no address makes a host port that a snapshot cannot have.
func FuzzHostPort(f *testing.F) {
	f.Add(int32(8080), int32(80), "", "TCP")
	f.Add(int32(-1), int32(0), "::ffff:10.0.0.1", "QUIC")
	f.Add(int32(65536), int32(65537), "fe80::1%eth0", "")
	f.Add(int32(53), int32(53), "::", "UDP")
	f.Fuzz(func(t *testing.T, port, target int32, ip, proto string) {
		o := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
			{HostPort: port, ContainerPort: target, HostIP: ip, Protocol: corev1.Protocol(proto)}}}}}}
		o.Status.PodIPs = []corev1.PodIP{{IP: "10.244.1.5"}, {IP: "fd00:244::5"}}
		p, flaws := pod(o), podFlaws(o)
		if port != 0 && len(p.HostPorts)+len(flaws) != 1 {
			t.Fatalf("%d host ports and the flaws %q", len(p.HostPorts), flaws)
		}
		for _, h := range p.HostPorts {
			if int32(h.Port) != port || int32(h.Target) != target || h.Port == 0 || h.Target == 0 || h.Addr.Is4In6() || h.Addr.Zone() != "" {
				t.Fatalf("%s of %d, %d, %q", h, port, target, ip)
			}
		}
		b := model.NewBuilder(model.Config{Self: "n1"})
		b.SetPod(p)
		_ = b.Build().String()
	})
}
