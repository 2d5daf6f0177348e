// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/fairlead/fairlead/status"
)

// database writes where the API server keeps its objects, past all that would refuse them.
type database struct {
	l      *lone
	client *clientv3.Client
}

func (l *lone) database() *database {
	l.t.Helper()
	socket := filepath.Join(l.dir, "api", "etcd", "client.sock")
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix:" + socket}, DialTimeout: 5 * time.Second})
	l.ok(err)
	l.t.Cleanup(func() { client.Close() })
	return &database{l, client}
}

// object is any of the kinds that have a place.
type object interface {
	metav1.Object
	runtime.Object
}

// place is the key of an object.
func place(o object) string {
	switch o.(type) {
	case *corev1.Service:
		return "/registry/services/" + o.GetNamespace() + "/" + o.GetName()
	case *discoveryv1.EndpointSlice:
		return "/registry/discovery.k8s.io/endpointslices/" + o.GetNamespace() + "/" + o.GetName()
	case *corev1.Node:
		return "/registry/nodes/" + o.GetName()
	case *corev1.Pod:
		return "/registry/pods/" + o.GetNamespace() + "/" + o.GetName()
	}
	panic(fmt.Sprintf("%T has no place", o))
}

// known checks that the API server shows an object that was put, so that the agent is told of it.
func (d *database) known(o object) error {
	var err error
	switch ctx, api, get := context.Background(), d.l.kube, (metav1.GetOptions{}); o.(type) {
	case *corev1.Service:
		_, err = api.CoreV1().Services(o.GetNamespace()).Get(ctx, o.GetName(), get)
	case *discoveryv1.EndpointSlice:
		_, err = api.DiscoveryV1().EndpointSlices(o.GetNamespace()).Get(ctx, o.GetName(), get)
	case *corev1.Node:
		_, err = api.CoreV1().Nodes().Get(ctx, o.GetName(), get)
	case *corev1.Pod:
		_, err = api.CoreV1().Pods(o.GetNamespace()).Get(ctx, o.GetName(), get)
	}
	return err
}

func (d *database) put(o object) {
	d.l.t.Helper()
	o.SetUID(types.UID(fmt.Sprintf("uid-%.30s-%d", o.GetName(), time.Now().UnixNano())))
	o.SetCreationTimestamp(metav1.Now())
	kind, _, err := scheme.Scheme.ObjectKinds(o)
	d.l.ok(err)
	o.GetObjectKind().SetGroupVersionKind(kind[0])
	var text bytes.Buffer
	d.l.ok(encoder.Encode(o, &text))
	_, err = d.client.Put(context.Background(), place(o), text.String())
	d.l.ok(err)
}

func (d *database) drop(o object) {
	d.l.t.Helper()
	_, err := d.client.Delete(context.Background(), place(o))
	d.l.ok(err)
}

var encoder = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)

// ptr is a pointer to a value.
func ptr[T any](v T) *T { return &v }

// badSlice is a slice of a Service, ready to be spoilt.
func badSlice(name, service string, family discoveryv1.AddressType, ports []discoveryv1.EndpointPort, addrs ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: family, Ports: ports}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

// badService is a Service that nobody has looked at.
func badService(name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, Ports: ports}}
	if ip != "" {
		s.Spec.ClusterIPs = []string{ip}
	}
	return s
}

// spoilt changes a Service.
func spoilt(s *corev1.Service, spoil func(*corev1.Service)) *corev1.Service {
	spoil(s)
	return s
}

// TestBadObjects: objects that no validator would pass are in the API server's database. The agent does not end, it names each, what of it is good
// works, and other Services are made and changed as always.
func TestBadObjects(t *testing.T) {
	l := newLone(t)
	l.answerAll()
	http := corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}
	good := l.service("good", corev1.ServiceSpec{Ports: []corev1.ServicePort{http}})
	l.endpoints(good, farPort, farPod(0))
	l.startAgent()
	l.awaitReady("agent")
	db := l.database()
	right := []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr[int32](farPort), Protocol: ptr(corev1.ProtocolTCP)}}
	long, huge := strings.Repeat("x", 253), strings.Repeat("y", 256<<10-10)
	local := corev1.ServiceInternalTrafficPolicyLocal
	outside := spoilt(badService("outside", "10.96.200.20", http), func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"203.0.113.7"} })

	for _, row := range []struct {
		what    string
		objects []object
		named   []string // what the agent's status says; none: it has nothing to say
		works   string   // an address and port that is answered all the same
	}{
		{"empty slices", []object{badService("bad", "10.96.200.1", http), badSlice("bad-1", "bad", discoveryv1.AddressTypeIPv4, nil),
			badSlice("bad-2", "bad", discoveryv1.AddressTypeIPv4, right), badSlice("bad-3", "bad", discoveryv1.AddressTypeIPv4, nil, farPod(1))}, nil, ""},
		{"ports without a number, name or protocol", []object{badService("bad", "10.96.200.1", http),
			badSlice("bad-1", "bad", discoveryv1.AddressTypeIPv4, append([]discoveryv1.EndpointPort{{}, {Name: ptr("http")}, {Port: ptr[int32](1)}}, right...), farPod(1))},
			[]string{`default/bad-1: port "" has no number; port "http" has no number`}, "10.96.200.1:80"},
		{"port 0 and others that are none", []object{badService("bad", "10.96.200.1", http, corev1.ServicePort{Name: "a"}, corev1.ServicePort{Name: "b", Port: 70000}, corev1.ServicePort{Name: "c", Port: -80}),
			badSlice("bad-1", "bad", discoveryv1.AddressTypeIPv4, append([]discoveryv1.EndpointPort{{Name: ptr("a"), Port: ptr[int32](0)}, {Name: ptr("http"), Port: ptr[int32](65536 + farPort)}}, right...), farPod(1))},
			[]string{"default/bad: port 0 is no port; port 70000 is no port; port -80 is no port", "default/bad-1: port 0 is no port; port 73616 is no port"}, "10.96.200.1:80"},
		{"the same port twice, a protocol that is none", []object{badService("bad", "10.96.200.1", http, http, corev1.ServicePort{Port: 81, Protocol: "QUIC"}),
			badSlice("bad-1", "bad", discoveryv1.AddressTypeIPv4, right, farPod(1))},
			[]string{`default/bad: port 80/TCP is there twice; protocol "QUIC" of port 81 is unknown`}, "10.96.200.1:80"},
		{"an IPv4 address in an IPv6 slice, and the other way round", []object{badService("bad", "10.96.200.1", http),
			badSlice("bad-1", "bad", discoveryv1.AddressTypeIPv6, right, farPod(1)), badSlice("bad-2", "bad", discoveryv1.AddressTypeIPv4, right, farPod6(1), farPod(2))},
			[]string{`default/bad-1: endpoint "` + farPod(1) + `" is no IPv6 address`, `default/bad-2: endpoint "` + farPod6(1) + `" is no IPv4 address`}, "10.96.200.1:80"},
		{"addresses that are none", []object{spoilt(badService("bad", "10.96.200.1", http), func(s *corev1.Service) {
			s.Spec.ClusterIPs, s.Spec.ExternalIPs = []string{"10.96.200.1", "banana", "10.96.0.1.2", "fe80::1%eth0"}, []string{"", "10.0.0.256"}
		}), badSlice("bad-1", "bad", discoveryv1.AddressTypeIPv4, right, "", "0x7f000001", farPod(1)), badSlice("bad-2", "bad", "Pigeon", right, farPod(1))},
			[]string{`default/bad: clusterIP "banana" is no address`, `; 2 more`, `default/bad-1: endpoint "" is no IPv4 address; endpoint "0x7f000001"`, `default/bad-2: addressType "Pigeon" is unknown`}, "10.96.200.1:80"},
		{"addresses that nobody can have", []object{badService("any4", "0.0.0.0", http), badService("any6", "::", http), badService("group", "224.0.0.1", http),
			badSlice("bad-1", "any4", discoveryv1.AddressTypeIPv4, right, "0.0.0.0", "255.255.255.255", "224.0.0.1")}, nil, ""},
		{"endpoints without addresses, and with many", []object{badService("bad", "10.96.200.1", http), func() object {
			s := badSlice("bad-1", "bad", discoveryv1.AddressTypeIPv4, right, farPod(1))
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{}, discoveryv1.Endpoint{Addresses: []string{farPod(2), farPod(3), farPod(2)}})
			return s
		}()}, []string{"default/bad-1: endpoint 1 has no address"}, "10.96.200.1:80"},
		{"10,000 endpoints", func() []object {
			list := []object{badService("bad", "10.96.200.1", http)}
			for i := range 10 {
				var addrs []string
				for j := range 1000 {
					addrs = append(addrs, farPod(1000*i+j))
				}
				list = append(list, badSlice(fmt.Sprint("bad-", i), "bad", discoveryv1.AddressTypeIPv4, right, addrs...))
			}
			return list
		}(), nil, "10.96.200.1:80"},
		{"names and annotations of greatest length", []object{spoilt(badService(long, "10.96.200.1", http), func(s *corev1.Service) {
			s.Annotations, s.Labels = map[string]string{"note": huge}, map[string]string{long: long}
			s.Spec.Ports[0].Name = long
		}), func() object {
			s := badSlice(long, long, discoveryv1.AddressTypeIPv4, []discoveryv1.EndpointPort{{Name: &long, Port: ptr[int32](farPort)}}, farPod(1))
			s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: huge}
			s.Endpoints[0].Hostname, s.Endpoints[0].Zone, s.Endpoints[0].NodeName = &long, &long, &long
			return s
		}()}, nil, "10.96.200.1:80"},
		{"a slice of a Service that does not exist", []object{badSlice("orphan", "nobody", discoveryv1.AddressTypeIPv4, right, farPod(1)),
			badSlice("nameless", "", discoveryv1.AddressTypeIPv4, right, farPod(1))},
			[]string{"endpointslice default/orphan: there is no Service default/nobody"}, ""},
		{"two Services with one external address and port", []object{outside,
			spoilt(badService("outside2", "10.96.200.21", http), func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"203.0.113.7"} }),
			badSlice("outside-1", "outside", discoveryv1.AddressTypeIPv4, right, farPod(1)), badSlice("outside2-1", "outside2", discoveryv1.AddressTypeIPv4, right, farPod(2))},
			[]string{"default/outside2: 203.0.113.7:80/TCP belongs to default/outside"}, "203.0.113.7:80"},
		{"two Services with one address, and one with another's node port", []object{badService("first", "10.96.200.1", http), badService("second", "10.96.200.1", http),
			spoilt(badService("third", "10.96.200.3", corev1.ServicePort{Port: 80, NodePort: 30000}), func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }),
			spoilt(badService("fourth", "10.96.200.4", corev1.ServicePort{Port: 80, NodePort: 30000}), func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }),
			badSlice("first-1", "first", discoveryv1.AddressTypeIPv4, right, farPod(1))},
			[]string{"default/second: 10.96.200.1:80/TCP belongs to default/first", "default/third: nodeport4:30000/TCP belongs to default/fourth"}, "10.96.200.1:80"},
		{"settings that mean nothing", []object{spoilt(badService("bad", "10.96.200.1", http), func(s *corev1.Service) {
			s.Spec.Type, s.Spec.SessionAffinity, s.Spec.ExternalTrafficPolicy = "Teapot", "Often", "Sometimes"
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{}
			s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicy("Maybe"))
		}), badSlice("bad-1", "bad", discoveryv1.AddressTypeIPv4, right, farPod(1))}, nil, "10.96.200.1:80"},
		{"a timeout of affinity that is less than nothing", []object{spoilt(badService("bad", "10.96.200.1", http), func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr[int32](-5)}}
		}), badSlice("bad-1", "bad", discoveryv1.AddressTypeIPv4, right, farPod(1))}, nil, "10.96.200.1:80"},
		{"a balancer with source ranges and addresses that are none", []object{spoilt(badService("bad", "10.96.200.1", http), func(s *corev1.Service) {
			s.Spec.Type, s.Spec.LoadBalancerSourceRanges, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, []string{"everybody", "10.0.0.0/40"}, -1
			s.Spec.ExternalTrafficPolicy, s.Spec.InternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal, &local
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{}, {IP: "nowhere"}, {Hostname: "a.example"}}
		})}, []string{`default/bad: load balancer "nowhere" is no address; loadBalancerSourceRange "everybody" is no range; loadBalancerSourceRange "10.0.0.0/40" is no range`}, ""},
		{"nodes and pods with ranges and addresses that are none", []object{
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "wreck"}, Spec: corev1.NodeSpec{PodCIDR: "banana", PodCIDRs: []string{"banana", "10.244.0.0/99", "0.0.0.0/0"}},
				Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "split"}, {Type: corev1.NodeInternalIP}}}},
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "wreck", Namespace: "default"}, Spec: corev1.PodSpec{NodeName: "n1", Hostname: long, Subdomain: "."},
				Status: corev1.PodStatus{PodIP: "x", PodIPs: []corev1.PodIP{{IP: "y"}, {}}}}},
			[]string{`node wreck: InternalIP "split" is no address; InternalIP "" is no address; podCIDR "banana" is no range; 1 more`}, ""},
		{"host ports that are none", []object{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "wreck", Namespace: "default"},
			Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "a", Ports: []corev1.ContainerPort{{HostPort: 70000, ContainerPort: 80},
				{HostPort: 8080, ContainerPort: 80, HostIP: "::ffff:192.0.2.1"}, {HostPort: 53, Protocol: "QUIC"}, {HostPort: -1}}}}},
			Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.244.0.99"}}}}},
			[]string{`pod default/wreck: hostPort 70000 is no port; hostIP "::ffff:192.0.2.1" of hostPort 8080 is an IPv4 address written as IPv6; write 192.0.2.1; protocol "QUIC" of hostPort 53 is unknown; 1 more`}, ""},
	} {
		for _, o := range row.objects {
			db.put(o)
			if err := db.known(o); err != nil {
				t.Fatalf("%s: the API server does not show what is in its database: %v", row.what, err)
			}
		}
		for _, when := range []string{"while it runs", "at its start"} {
			if when == "at its start" {
				l.agent.kill()
				l.startAgent()
				l.awaitReady("agent")
			}
			pid := l.awaitReady("agent").PID // its holder would start another one in its place
			l.awaitAll("agent")              // it is heard of, and so is what comes after it
			var r *status.Report
			eventually(t, 10*time.Second, row.what+" "+when+": named", func() (err error) {
				if r, err = l.report(); err != nil {
					return err
				}
				said := strings.Join(append(append(append([]string{}, r.Flawed...), r.Disputed...), r.Quarantined...), "\n")
				for _, want := range row.named {
					if !strings.Contains(said, want) {
						return fmt.Errorf("no %q in\n%s", want, said)
					}
				}
				if len(row.named) == 0 && said != "" {
					return fmt.Errorf("there is nothing to say, but:\n%s", said)
				}
				return nil
			})
			if r.PID != pid || r.Progress.Error != "" {
				t.Errorf("%s %s: process %d, was %d; %s", row.what, when, r.PID, pid, r.Progress.Error)
			}
			if row.works != "" {
				to := netip.MustParseAddrPort(row.works)
				if got, err := l.pod.Ask("tcp", "", to); err != nil {
					t.Errorf("%s %s: what is good of it does not work: %v %v", row.what, when, got, err)
				}
			}
			if got, err := l.pod.Ask("tcp", "", at(good, true)); err != nil || host(got.Name) != farPod(0) {
				t.Errorf("%s %s: another Service: %v %v", row.what, when, got, err)
			}
		}
		for _, o := range row.objects {
			db.drop(o)
		}
	}
	if n := strings.Count(tail(l.agent.log, 10_000), "panic"); n > 0 {
		t.Errorf("the agent's log has %d panics", n)
	}
}
