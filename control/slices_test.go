// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// hintLines is a Service's endpoints with their zones and hints, as sorted text.
func hintLines(all []discoveryv1.EndpointSlice) []string {
	var out []string
	for i := range all {
		for _, e := range all[i].Endpoints {
			text := e.TargetRef.Name + " in " + ptr.Deref(e.Zone, "-")
			if e.Hints != nil {
				for _, z := range e.Hints.ForZones {
					text += " for zone " + z.Name
				}
				for _, n := range e.Hints.ForNodes {
					text += " for node " + n.Name
				}
			}
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return out
}

// awaitLines waits until a Service's endpoints are these, as print shows them.
func (c *cluster) awaitLines(t *testing.T, step, namespace, service string, print func([]discoveryv1.EndpointSlice) []string, want ...string) []discoveryv1.EndpointSlice {
	t.Helper()
	var all []discoveryv1.EndpointSlice
	c.await(t, step, func() string {
		all = c.slicesOf(t, namespace, service)
		if got := print(all); len(all) == 0 || !slices.Equal(got, want) {
			return fmt.Sprintf("%d slices, got\n%s\nwant\n%s", len(all), strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		return ""
	})
	return all
}

// patchService changes a Service.
func (c *cluster) patchService(t *testing.T, namespace, name, patch string) {
	t.Helper()
	if _, err := c.client.CoreV1().Services(namespace).Patch(context.Background(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestTrafficDistribution: endpoints are hinted for their zones and nodes as the Service says, also when that, or
// a node's zone, changes; those that are not ready are not.
func TestTrafficDistribution(t *testing.T) {
	c := newCluster(t, prefixes("10.96.0.0/16"), prefixes("10.244.0.0/16"), "n1", "n2", "n3")
	app := map[string]string{"app": "web"}
	zone := func(node, value string) {
		t.Helper()
		patch := fmt.Sprintf(`{"metadata":{"labels":{"topology.kubernetes.io/zone":%s}}}`, value)
		if _, err := c.client.CoreV1().Nodes().Patch(context.Background(), node, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	s := service("web", app)
	s.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameZone)
	create(t, c.client.CoreV1().Services("default").Create, s)
	c.placed(t, "default", "a", "n1", "10.244.0.1", app, 80, true)
	b := c.placed(t, "default", "b", "n2", "10.244.0.2", app, 80, true)
	c.placed(t, "default", "c", "n3", "10.244.0.3", app, 80, false)
	zones := []string{"a in zone-n1 for zone zone-n1", "b in zone-n2 for zone zone-n2", "c in zone-n3"}
	expect := func(step string, want ...string) {
		t.Helper()
		c.awaitLines(t, step, "default", "web", hintLines, want...)
	}
	expect("zones", zones...)
	c.patchService(t, "default", "web", `{"spec":{"trafficDistribution":"PreferSameNode"}}`)
	expect("nodes", "a in zone-n1 for zone zone-n1 for node n1", "b in zone-n2 for zone zone-n2 for node n2", "c in zone-n3")
	zone("n1", `"elsewhere"`)
	expect("another zone", "a in elsewhere for zone elsewhere for node n1", "b in zone-n2 for zone zone-n2 for node n2", "c in zone-n3")
	zone("n2", `null`)
	expect("no zone", "a in elsewhere for zone elsewhere for node n1", "b in - for node n2", "c in zone-n3")
	zone("n1", `"zone-n1"`)
	zone("n2", `"zone-n2"`)
	c.patchService(t, "default", "web", `{"spec":{"trafficDistribution":"PreferClose"}}`)
	expect("close", zones...)
	c.setPod(t, b, func(p *corev1.Pod) { setReady(p, false) })
	expect("not ready", "a in zone-n1 for zone zone-n1", "b in zone-n2", "c in zone-n3")
	c.patchService(t, "default", "web", `{"spec":{"publishNotReadyAddresses":true}}`)
	expect("published all the same", "a in zone-n1 for zone zone-n1", "b in zone-n2 for zone zone-n2", "c in zone-n3 for zone zone-n3")
	c.patchService(t, "default", "web", `{"spec":{"trafficDistribution":null}}`)
	expect("no more", "a in zone-n1", "b in zone-n2", "c in zone-n3")
	if strings.Contains(c.log.String(), "level=WARN") {
		t.Errorf("warnings:\n%s", c.log)
	}
}

// TestNamedPorts: a named target is looked up in each pod, by name and protocol, in its containers and in those
// initial ones that go on running.
func TestNamedPorts(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	c.runner.hold(ns, true)
	ports := func(list ...corev1.ContainerPort) []corev1.ContainerPort { return list }
	web := func(number int32) corev1.ContainerPort {
		return corev1.ContainerPort{Name: "web", ContainerPort: number, Protocol: corev1.ProtocolTCP}
	}
	dns := corev1.ContainerPort{Name: "dns", ContainerPort: 5353, Protocol: corev1.ProtocolUDP}
	last := 0
	pod := func(name string, main []corev1.ContainerPort, initial ...corev1.Container) {
		t.Helper()
		last++
		ip := fmt.Sprintf("10.244.230.%d", last)
		spec := podSpec(1)
		spec.NodeName, spec.Containers[0].Ports, spec.InitContainers = "n1", main, initial
		made := create(t, c.client.CoreV1().Pods(ns).Create, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "x"}}, Spec: spec})
		c.setPod(t, made, func(p *corev1.Pod) {
			p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
			setReady(p, true)
		})
	}
	initial := func(name string, policy *corev1.ContainerRestartPolicy, list ...corev1.ContainerPort) corev1.Container {
		return corev1.Container{Name: name, Image: "host", Command: []string{"/bin/true"}, RestartPolicy: policy, Ports: list}
	}
	always := ptr.To(corev1.ContainerRestartPolicyAlways)
	pod("main", ports(web(8001), dns))
	pod("other", ports(web(8002), dns))
	pod("sidecar", nil, initial("proxy", always, web(8003)))
	pod("both", ports(web(8004)), initial("proxy", always, web(9999)))
	pod("ended", nil, initial("setup", nil, web(9998)))
	pod("protocol", ports(corev1.ContainerPort{Name: "web", ContainerPort: 9997, Protocol: corev1.ProtocolUDP}))
	s := service("x", map[string]string{"app": "x"})
	s.Spec.Ports = []corev1.ServicePort{
		{Name: "http", Port: 80, TargetPort: intstr.FromString("web")},
		{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromString("dns")},
		{Name: "sctp", Port: 81, Protocol: corev1.ProtocolSCTP, TargetPort: intstr.FromInt32(7000)},
	}
	create(t, c.client.CoreV1().Services(ns).Create, s)
	printPorts := func(all []discoveryv1.EndpointSlice) (out []string) {
		for _, slice := range all {
			var list []string
			for _, p := range slice.Ports {
				list = append(list, fmt.Sprintf("%s:%d/%s", *p.Name, *p.Port, *p.Protocol))
			}
			slices.Sort(list)
			for _, e := range slice.Endpoints {
				out = append(out, e.TargetRef.Name+" "+strings.Join(list, " "))
			}
		}
		slices.Sort(out)
		return out
	}
	c.awaitLines(t, "named ports", ns, "x", printPorts,
		"both http:8004/TCP sctp:7000/SCTP",
		"ended sctp:7000/SCTP",
		"main dns:5353/UDP http:8001/TCP sctp:7000/SCTP",
		"other dns:5353/UDP http:8002/TCP sctp:7000/SCTP",
		"protocol sctp:7000/SCTP",
		"sidecar http:8003/TCP sctp:7000/SCTP")
}

// TestPodAddresses: a pod is an endpoint when it has an address of the Service's family, whatever else it has; and
// until it is gone, unless it has failed or is done.
func TestPodAddresses(t *testing.T) {
	c := newCluster(t, prefixes("10.96.0.0/16", "fd00:96::/112"), prefixes("10.244.0.0/16", "fd00:244::/48"), "n1")
	app := map[string]string{"app": "x"}
	for name, policy := range map[string]corev1.IPFamilyPolicy{"one": corev1.IPFamilyPolicySingleStack, "two": corev1.IPFamilyPolicyRequireDualStack} {
		s := service(name, app)
		s.Spec.IPFamilyPolicy = &policy
		if name == "two" {
			s.Spec.ClusterIP = corev1.ClusterIPNone
		}
		create(t, c.client.CoreV1().Services("default").Create, s)
	}
	both := c.placed(t, "default", "both", "n1", "10.244.0.1", app, 80, true)
	c.setPod(t, both, func(p *corev1.Pod) { p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: "fd00:244::1"}) })
	c.placed(t, "default", "six", "n1", "fd00:244::2", app, 80, true)
	none := c.placed(t, "default", "none", "n1", "10.244.0.3", app, 80, true)
	c.setPod(t, none, func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = "", nil })
	const v4, v6 = "IPv4 10.244.0.1 both@n1() http:80/TCP ready serving", "IPv6 fd00:244::1 both@n1() http:80/TCP ready serving"
	const six = "IPv6 fd00:244::2 six@n1() http:80/TCP ready serving"
	c.awaitLines(t, "one family", "default", "one", lines, v4)
	c.awaitLines(t, "two families", "default", "two", lines, v4, v6, six)
	c.setPod(t, none, func(p *corev1.Pod) {
		p.Status.PodIP, p.Status.PodIPs = "10.244.0.4", []corev1.PodIP{{IP: "10.244.0.4"}}
	})
	const late = "IPv4 10.244.0.4 none@n1() http:80/TCP ready serving"
	c.awaitLines(t, "an address", "default", "one", lines, v4, late)
	c.setPod(t, none, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
	c.awaitLines(t, "done", "default", "one", lines, v4)
	// to one family and back
	c.patchService(t, "default", "two", `{"spec":{"ipFamilyPolicy":"SingleStack","ipFamilies":["IPv6"]}}`)
	c.awaitLines(t, "the other family", "default", "two", lines, v6, six)
}

// TestNothingMoreWritten: what no slice shows is no reason to write one.
func TestNothingMoreWritten(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	ctx := context.Background()
	app := map[string]string{"app": "web"}
	create(t, c.client.CoreV1().Services(ns).Create, service("web", app))
	a := c.placed(t, ns, "a", "n1", "10.244.231.1", app, 80, true)
	c.placed(t, ns, "b", "n2", "10.244.231.2", map[string]string{"app": "web", "x": "y"}, 80, false)
	const one, two = "IPv4 10.244.231.1 a@n1() http:80/TCP ready serving", "IPv4 10.244.231.2 b@n2() http:80/TCP"
	before := c.awaitLines(t, "at first", ns, "web", lines, one, two)
	version := func(all []discoveryv1.EndpointSlice) (out []string) {
		for _, s := range all {
			out = append(out, s.Name+" "+s.ResourceVersion)
		}
		return out
	}
	// settled: the write that made it like this has been the last
	c.await(t, "settled", func() string {
		now := c.slicesOf(t, ns, "web")
		same := slices.Equal(version(now), version(before))
		before = now
		if !same {
			return "written again"
		}
		return ""
	})
	for i := range 20 {
		c.setPod(t, a, func(p *corev1.Pod) {
			p.Status.Message = fmt.Sprint("message ", i)
			setReady(p, true) // at another time
		})
		for name, patch := range map[string]string{
			"a": fmt.Sprintf(`{"metadata":{"annotations":{"x":"%d"}}}`, i),
			"b": fmt.Sprintf(`{"metadata":{"labels":{"other":"%d"}}}`, i),
		} {
			if _, err := c.client.CoreV1().Pods(ns).Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		c.patchService(t, ns, "web", fmt.Sprintf(`{"metadata":{"annotations":{"x":"%d"}},"spec":{"sessionAffinity":"%s","type":"%s"}}`, i,
			[]string{"ClientIP", "None"}[i%2], []string{"NodePort", "LoadBalancer", "ClusterIP"}[i%3]))
	}
	// another Service of these pods shows that the controller has come past all of it
	create(t, c.client.CoreV1().Services(ns).Create, service("after", app))
	c.awaitLines(t, "sentinel", ns, "after", lines, one, two)
	if after := c.slicesOf(t, ns, "web"); !slices.Equal(version(after), version(before)) {
		t.Errorf("was %v, is %v", version(before), version(after))
	}
}
