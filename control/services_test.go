// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/ptr"
)

// slicesOf reads the slices of a Service.
func (c *cluster) slicesOf(t *testing.T, namespace, service string) []discoveryv1.EndpointSlice {
	t.Helper()
	list, err := c.client.DiscoveryV1().EndpointSlices(namespace).List(context.Background(), metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service,
	})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// line is one endpoint of a slice as text.
func line(s *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint) string {
	var ports []string
	for _, p := range s.Ports {
		ports = append(ports, fmt.Sprintf("%s:%d/%s", *p.Name, *p.Port, *p.Protocol))
	}
	flags := ""
	for _, f := range []struct {
		name string
		set  *bool
	}{{"ready", e.Conditions.Ready}, {"serving", e.Conditions.Serving}, {"terminating", e.Conditions.Terminating}} {
		if ptr.Deref(f.set, false) {
			flags += " " + f.name
		}
	}
	return fmt.Sprintf("%s %s %s@%s(%s) %s%s", s.AddressType, e.Addresses[0], e.TargetRef.Name, ptr.Deref(e.NodeName, "-"),
		ptr.Deref(e.Hostname, ""), strings.Join(ports, ","), flags)
}

// lines is a Service's endpoints as sorted text.
func lines(all []discoveryv1.EndpointSlice) []string {
	var out []string
	for i := range all {
		for j := range all[i].Endpoints {
			out = append(out, line(&all[i], &all[i].Endpoints[j]))
		}
	}
	slices.Sort(out)
	return out
}

// placed makes a pod that is bound to a node and shows the given status; the runner leaves it alone, since it has
// an address already.
func (c *cluster) placed(t *testing.T, namespace, name, node, ip string, labels map[string]string, port int32, ready bool) *corev1.Pod {
	t.Helper()
	spec := podSpec(port)
	spec.NodeName = node
	c.runner.hold(namespace, true)
	pod := create(t, c.client.CoreV1().Pods(namespace).Create, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: spec})
	return c.setPod(t, pod, func(p *corev1.Pod) {
		p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
		setReady(p, ready)
	})
}

func setReady(p *corev1.Pod, ready bool) {
	c := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()}
	if ready {
		c.Status = corev1.ConditionTrue
	}
	p.Status.Conditions = append(slices.DeleteFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady }), c)
}

// setPod changes the status of a pod.
func (c *cluster) setPod(t *testing.T, pod *corev1.Pod, edit func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	for {
		fresh, err := c.client.CoreV1().Pods(pod.Namespace).Get(context.Background(), pod.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		edit(fresh)
		fresh, err = c.client.CoreV1().Pods(pod.Namespace).UpdateStatus(context.Background(), fresh, metav1.UpdateOptions{})
		if err == nil {
			return fresh
		}
		if !apierrors.IsConflict(err) {
			t.Fatal(err)
		}
	}
}

func TestEndpointSlices(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	ctx := context.Background()
	web := map[string]string{"app": "web"}
	expect := func(step, service string, want ...string) []discoveryv1.EndpointSlice {
		t.Helper()
		var all []discoveryv1.EndpointSlice
		c.await(t, step, func() string {
			all = c.slicesOf(t, ns, service)
			if got := lines(all); !slices.Equal(got, want) || len(all) == 0 {
				return fmt.Sprintf("%d slices, got\n%s\nwant\n%s", len(all), strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			return ""
		})
		return all
	}
	svc := create(t, c.client.CoreV1().Services(ns).Create, service("web", web))
	empty := expect("no pods", "web")
	if len(empty) != 1 || empty[0].Labels[discoveryv1.LabelManagedBy] != "endpointslice-controller.k8s.io" || !metav1.IsControlledBy(&empty[0], svc) ||
		!strings.HasPrefix(empty[0].Name, "web-") {
		t.Errorf("placeholder is %+v", empty[0].ObjectMeta)
	}
	// the same port name is another number in another version
	a := c.placed(t, ns, "a", "n1", "10.244.200.1", web, 8080, true)
	b := c.placed(t, ns, "b", "n2", "10.244.200.2", web, 9090, false)
	all := expect("two versions", "web",
		"IPv4 10.244.200.1 a@n1() http:8080/TCP ready serving",
		"IPv4 10.244.200.2 b@n2() http:9090/TCP")
	if len(all) != 2 {
		t.Errorf("%d slices, want one per port number", len(all))
	}
	for _, s := range all {
		if s.Annotations[corev1.EndpointsLastChangeTriggerTime] == "" {
			t.Error("no trigger time")
		}
		if zone := ptr.Deref(s.Endpoints[0].Zone, ""); zone != "zone-"+*s.Endpoints[0].NodeName {
			t.Errorf("zone is %q", zone)
		}
	}
	c.setPod(t, b, func(p *corev1.Pod) { setReady(p, true) })
	expect("ready", "web",
		"IPv4 10.244.200.1 a@n1() http:8080/TCP ready serving",
		"IPv4 10.244.200.2 b@n2() http:9090/TCP ready serving")

	// a pod that ends: not ready at once, still serving, terminating; gone when it is gone
	patch := []byte(`{"metadata":{"finalizers":["example.com/hold"]}}`)
	if _, err := c.client.CoreV1().Pods(ns).Patch(ctx, "a", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.client.CoreV1().Pods(ns).Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("terminating", "web",
		"IPv4 10.244.200.1 a@n1() http:8080/TCP serving terminating",
		"IPv4 10.244.200.2 b@n2() http:9090/TCP ready serving")
	c.setPod(t, a, func(p *corev1.Pod) { setReady(p, false) })
	expect("no longer serving", "web",
		"IPv4 10.244.200.1 a@n1() http:8080/TCP terminating",
		"IPv4 10.244.200.2 b@n2() http:9090/TCP ready serving")
	patch = []byte(`{"metadata":{"finalizers":null}}`)
	if _, err := c.client.CoreV1().Pods(ns).Patch(ctx, "a", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("gone", "web", "IPv4 10.244.200.2 b@n2() http:9090/TCP ready serving")

	// a pod that failed has left, whatever its Ready condition says
	c.setPod(t, b, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
	expect("failed", "web")

	// headless, with names and unready addresses
	headless := service("db", map[string]string{"app": "db"})
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	headless.Spec.PublishNotReadyAddresses = true
	create(t, c.client.CoreV1().Services(ns).Create, headless)
	spec := podSpec(5432)
	spec.NodeName, spec.Hostname, spec.Subdomain = "n3", "db-0", "db"
	pod := create(t, c.client.CoreV1().Pods(ns).Create, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "db-0", Labels: map[string]string{"app": "db"}}, Spec: spec})
	c.setPod(t, pod, func(p *corev1.Pod) {
		p.Status.PodIP, p.Status.PodIPs = "10.244.200.9", []corev1.PodIP{{IP: "10.244.200.9"}}
	})
	all = expect("headless", "db", "IPv4 10.244.200.9 db-0@n3(db-0) http:5432/TCP ready")
	if _, ok := all[0].Labels[corev1.IsHeadlessService]; !ok {
		t.Errorf("labels are %v", all[0].Labels)
	}

	// what somebody else does to a slice is mended
	if err := c.client.DiscoveryV1().EndpointSlices(ns).Delete(ctx, all[0].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	all = expect("deleted slice", "db", "IPv4 10.244.200.9 db-0@n3(db-0) http:5432/TCP ready")
	all[0].Endpoints[0].Conditions.Ready = ptr.To(false)
	if _, err := c.client.DiscoveryV1().EndpointSlices(ns).Update(ctx, &all[0], metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("edited slice", "db", "IPv4 10.244.200.9 db-0@n3(db-0) http:5432/TCP ready")

	// slices go with their Service
	if err := c.client.CoreV1().Services(ns).Delete(ctx, "db", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.await(t, "service deleted", func() string {
		if n := len(c.slicesOf(t, ns, "db")); n > 0 {
			return fmt.Sprintf("%d slices", n)
		}
		return ""
	})
}

func TestSlicesHoldAHundred(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	for i := range 230 {
		c.placed(t, ns, fmt.Sprintf("p%03d", i), "n1", fmt.Sprintf("10.244.%d.%d", 210+i/100, i%100+1), map[string]string{"app": "big"}, 80, true)
	}
	create(t, c.client.CoreV1().Services(ns).Create, service("big", map[string]string{"app": "big"}))
	c.await(t, "230 endpoints", func() string {
		all := c.slicesOf(t, ns, "big")
		if got := len(lines(all)); got != 230 {
			return fmt.Sprintf("%d endpoints", got)
		}
		return ""
	})
	for _, s := range c.slicesOf(t, ns, "big") {
		if len(s.Endpoints) > 100 {
			t.Errorf("a slice has %d endpoints", len(s.Endpoints))
		}
	}
}

// TestChurn makes, changes and deletes Services and pods at random, fast, and compares the slices at the end with
// what a naive look at the Services and pods says they should be.
func TestChurn(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	ctx := context.Background()
	rnd := newRand(t)
	pick := func(n int) map[string]string {
		out := map[string]string{}
		for range n {
			out["k"+fmt.Sprint(rnd.IntN(3))] = fmt.Sprint(rnd.IntN(2))
		}
		return out
	}
	c.runner.hold(ns, true)
	pods, services := c.client.CoreV1().Pods(ns), c.client.CoreV1().Services(ns)
	for i := range 250 {
		name, svc := fmt.Sprintf("p%d", rnd.IntN(15)), fmt.Sprintf("s%d", rnd.IntN(6))
		pod, podErr := pods.Get(ctx, name, metav1.GetOptions{})
		old, svcErr := services.Get(ctx, svc, metav1.GetOptions{})
		var err error
		switch op := rnd.IntN(10); {
		case op < 5 && podErr != nil:
			c.placed(t, ns, name, fmt.Sprintf("n%d", 1+rnd.IntN(3)), fmt.Sprintf("10.244.%d.%d", 220+i/200, i%200+1), pick(3), int32(8000+rnd.IntN(2)), rnd.IntN(2) == 0)
		case op == 0:
			err = pods.Delete(ctx, name, metav1.DeleteOptions{})
		case op < 4:
			setReady(pod, rnd.IntN(2) == 0)
			_, err = pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{})
		case op == 4:
			pod.Labels = pick(3)
			_, err = pods.Update(ctx, pod, metav1.UpdateOptions{})
		case op < 8 && svcErr != nil:
			s := service(svc, pick(2))
			s.Spec.PublishNotReadyAddresses = rnd.IntN(3) == 0
			_, err = services.Create(ctx, s, metav1.CreateOptions{})
		case op == 8 && svcErr == nil:
			err = services.Delete(ctx, svc, metav1.DeleteOptions{})
		case svcErr == nil:
			old.Spec.Selector = pick(1 + rnd.IntN(2))
			if rnd.IntN(3) == 0 {
				old.Spec.Ports[0].TargetPort = intstr.FromInt32(int32(7000 + rnd.IntN(2)))
			}
			_, err = services.Update(ctx, old, metav1.UpdateOptions{})
		}
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	c.await(t, "slices after churn", func() string {
		allPods, err1 := pods.List(ctx, metav1.ListOptions{})
		allServices, err2 := services.List(ctx, metav1.ListOptions{})
		if err1 != nil || err2 != nil {
			return fmt.Sprint(err1, err2)
		}
		for i := range allServices.Items {
			s := &allServices.Items[i]
			got, want := lines(c.slicesOf(t, ns, s.Name)), naive(s, allPods.Items)
			if !slices.Equal(got, want) {
				return fmt.Sprintf("%s selects %v, got\n%s\nwant\n%s", s.Name, s.Spec.Selector, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			for _, slice := range c.slicesOf(t, ns, s.Name) {
				if !metav1.IsControlledBy(&slice, s) {
					return "a slice of a Service that is gone is left: " + slice.Name
				}
			}
		}
		slices, err := c.client.DiscoveryV1().EndpointSlices(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		for _, slice := range slices.Items {
			if name := slice.Labels[discoveryv1.LabelServiceName]; !hasService(allServices.Items, name) {
				return "a slice of the deleted Service " + name + " is left"
			}
		}
		return ""
	})
}

func hasService(all []corev1.Service, name string) bool {
	return slices.ContainsFunc(all, func(s corev1.Service) bool { return s.Name == name })
}

// naive is the endpoints that a Service should have, looked up in the simplest way.
func naive(s *corev1.Service, pods []corev1.Pod) []string {
	var out []string
	for _, p := range pods {
		match := len(s.Spec.Selector) > 0 && p.Status.PodIP != ""
		for k, v := range s.Spec.Selector {
			match = match && p.Labels[k] == v
		}
		if !match {
			continue
		}
		ready := false
		for _, c := range p.Status.Conditions {
			ready = ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}
		port := s.Spec.Ports[0].TargetPort.IntVal
		if port == 0 {
			port = p.Spec.Containers[0].Ports[0].ContainerPort
		}
		flags := ""
		if s.Spec.PublishNotReadyAddresses || ready && p.DeletionTimestamp == nil {
			flags += " ready"
		}
		if ready {
			flags += " serving"
		}
		if p.DeletionTimestamp != nil {
			flags += " terminating"
		}
		out = append(out, fmt.Sprintf("IPv4 %s %s@%s() http:%d/TCP%s", p.Status.PodIP, p.Name, p.Spec.NodeName, port, flags))
	}
	slices.Sort(out)
	return out
}

func TestDualStackSlices(t *testing.T) {
	c := newCluster(t, prefixes("10.96.0.0/16", "fd00:96::/112"), prefixes("10.244.0.0/16", "fd00:244::/48"), "n1")
	create(t, c.client.CoreV1().Services("default").Create, func() *corev1.Service {
		s := service("web", map[string]string{"app": "web"})
		s.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
		return s
	}())
	pod := c.placed(t, "default", "a", "n1", "10.244.0.7", map[string]string{"app": "web"}, 80, true)
	c.setPod(t, pod, func(p *corev1.Pod) { p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: "fd00:244::7"}) })
	want := []string{"IPv4 10.244.0.7 a@n1() http:80/TCP ready serving", "IPv6 fd00:244::7 a@n1() http:80/TCP ready serving"}
	c.await(t, "both families", func() string {
		if got := lines(c.slicesOf(t, "default", "web")); !slices.Equal(got, want) {
			return strings.Join(got, "\n")
		}
		return ""
	})
	c.await(t, "pod CIDRs and DNS of both families", func() string {
		node, err := c.client.CoreV1().Nodes().Get(context.Background(), "n1", metav1.GetOptions{})
		if err != nil || !slices.Equal(node.Spec.PodCIDRs, []string{"10.244.0.0/24", "fd00:244::/64"}) || node.Spec.PodCIDR != "10.244.0.0/24" {
			return fmt.Sprint(node.Spec, err)
		}
		dns, err := c.client.CoreV1().Services("kube-system").Get(context.Background(), "kube-dns", metav1.GetOptions{})
		if err != nil || !slices.Equal(dns.Spec.ClusterIPs, []string{"10.96.0.10", "fd00:96::a"}) {
			return fmt.Sprint(dns.Spec, err)
		}
		return ""
	})
}

// TestWellKnown deletes and spoils the objects that every cluster has.
func TestWellKnown(t *testing.T) {
	c := newCluster(t, prefixes("10.96.0.0/16"), prefixes("10.244.0.0/16"), "n1", "n2")
	ctx := context.Background()
	api, dns := c.client.CoreV1().Services("default"), c.client.CoreV1().Services("kube-system")
	right := func() string {
		k, err := api.Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		d, err := dns.Get(ctx, "kube-dns", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		cidr, err := c.client.NetworkingV1().ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		got := fmt.Sprintf("%s:%d %s", k.Spec.ClusterIP, k.Spec.Ports[0].Port, k.Labels["component"])
		got += fmt.Sprintf("; %s %s %s", d.Spec.ClusterIP, d.Labels["k8s-app"], ptr.Deref(d.Spec.TrafficDistribution, ""))
		for _, p := range d.Spec.Ports {
			got += fmt.Sprintf(" %s:%d/%s", p.Name, p.Port, p.Protocol)
		}
		got += fmt.Sprintf("; %v %d", cidr.Spec.CIDRs, len(cidr.Status.Conditions))
		for _, s := range c.slicesOf(t, "default", "kubernetes") {
			for _, e := range s.Endpoints {
				got += fmt.Sprintf("; %s %s:%d", s.Name, e.Addresses[0], *s.Ports[0].Port)
			}
		}
		for _, s := range c.slicesOf(t, "kube-system", "kube-dns") {
			got += "; " + s.Name
			for _, e := range s.Endpoints {
				got += fmt.Sprintf(" %s@%s>%s", e.Addresses[0], *e.NodeName, e.Hints.ForNodes[0].Name)
			}
		}
		want := "10.96.0.1:443 apiserver; 10.96.0.10 kube-dns PreferSameNode dns:53/UDP dns-tcp:53/TCP metrics:9153/TCP; [10.96.0.0/16] 1; " +
			"kubernetes 172.30.0.1:6443; kube-dns-ipv4 172.30.0.11@n1>n1 172.30.0.12@n2>n2"
		if got != want {
			return "got " + got + "\nwant " + want
		}
		return ""
	}
	c.await(t, "at the start", right)
	for name, spoil := range map[string]func() error{
		"services deleted": func() error {
			return errorsOf(api.Delete(ctx, "kubernetes", metav1.DeleteOptions{}), dns.Delete(ctx, "kube-dns", metav1.DeleteOptions{}))
		},
		"servicecidr deleted": func() error {
			return c.client.NetworkingV1().ServiceCIDRs().Delete(ctx, "kubernetes", metav1.DeleteOptions{})
		},
		"slices deleted": func() error {
			return errorsOf(c.client.DiscoveryV1().EndpointSlices("default").Delete(ctx, "kubernetes", metav1.DeleteOptions{}),
				c.client.DiscoveryV1().EndpointSlices("kube-system").Delete(ctx, "kube-dns-ipv4", metav1.DeleteOptions{}))
		},
		"service spoiled": func() error {
			_, err := dns.Patch(ctx, "kube-dns", types.MergePatchType, []byte(`{"metadata":{"labels":{"k8s-app":null}},"spec":{"selector":{"app":"x"},"ports":[{"name":"dns","port":54,"protocol":"UDP"}]}}`), metav1.PatchOptions{})
			return err
		},
		"slice spoiled": func() error {
			_, err := c.client.DiscoveryV1().EndpointSlices("default").Patch(ctx, "kubernetes", types.MergePatchType, []byte(`{"endpoints":[]}`), metav1.PatchOptions{})
			return err
		},
		"label of a slice lost": func() error {
			_, err := c.client.DiscoveryV1().EndpointSlices("kube-system").Patch(ctx, "kube-dns-ipv4", types.MergePatchType, []byte(`{"metadata":{"labels":{"kubernetes.io/service-name":null}}}`), metav1.PatchOptions{})
			return err
		},
	} {
		if err := spoil(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c.await(t, name, right)
	}
	// a node whose network is missing does not answer
	patch := []byte(`{"status":{"conditions":[{"type":"NetworkUnavailable","status":"True"}]}}`)
	if _, err := c.client.CoreV1().Nodes().Patch(ctx, "n2", types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	c.await(t, "no network on n2", func() string {
		if got := fmt.Sprint(c.slicesOf(t, "kube-system", "kube-dns")); strings.Contains(got, "172.30.0.12") {
			return got
		}
		return ""
	})
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestPodCIDRs(t *testing.T) {
	c := newCluster(t, prefixes("10.96.0.0/16"), prefixes("10.244.0.0/20"))
	ctx := context.Background()
	nodes := c.client.CoreV1().Nodes()
	taken := create(t, nodes.Create, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "has-one"}, Spec: corev1.NodeSpec{PodCIDR: "10.244.3.0/24", PodCIDRs: []string{"10.244.3.0/24"}}})
	for i := range 15 {
		create(t, nodes.Create, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%02d", i)}})
	}
	all := func(want int) map[string]string {
		t.Helper()
		owner := map[string]string{}
		c.await(t, "pod CIDRs", func() string {
			list, err := nodes.List(ctx, metav1.ListOptions{})
			if err != nil {
				return err.Error()
			}
			clear(owner)
			have := 0
			for _, n := range list.Items {
				if n.Spec.PodCIDR == "" {
					continue
				}
				have++
				if other := owner[n.Spec.PodCIDR]; other != "" {
					t.Fatalf("%s and %s both have %s", n.Name, other, n.Spec.PodCIDR)
				}
				owner[n.Spec.PodCIDR] = n.Name
			}
			if have != want {
				return fmt.Sprintf("%d nodes have one, want %d", have, want)
			}
			return ""
		})
		return owner
	}
	if got := all(16); got["10.244.3.0/24"] != taken.Name {
		t.Errorf("10.244.3.0/24 belongs to %s", got["10.244.3.0/24"])
	}
	// all 16 are given; the next node gets one when another goes
	create(t, nodes.Create, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "late"}})
	if err := nodes.Delete(ctx, "m07", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := slices.Collect(maps.Values(all(16))); !slices.Contains(got, "late") {
		t.Errorf("nodes with pod CIDRs: %v", got)
	}
}

func TestScheduling(t *testing.T) {
	c := newCluster(t, prefixes("10.96.0.0/16"), prefixes("10.244.0.0/16"), "n1", "n2")
	ctx := context.Background()
	nodes, pods := c.client.CoreV1().Nodes(), c.client.CoreV1().Pods("default")
	patch := func(node, body string) {
		t.Helper()
		if _, err := nodes.Patch(ctx, node, types.MergePatchType, []byte(body), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	patch("n1", `{"spec":{"unschedulable":true}}`)
	patch("n2", `{"spec":{"taints":[{"key":"k","value":"v","effect":"NoSchedule"}]}}`)
	c.await(t, "cordon", func() string { // the controllers see what this client sees
		n, err := nodes.Get(ctx, "n2", metav1.GetOptions{})
		if err != nil || len(n.Spec.Taints) == 0 || len(n.Spec.PodCIDRs) == 0 {
			return fmt.Sprint(n.Spec, err)
		}
		return ""
	})
	create(t, pods.Create, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: podSpec(80)})
	c.await(t, "unschedulable", func() string {
		p, err := pods.Get(ctx, "a", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse && cond.Reason == "Unschedulable" &&
				cond.Message == "0/2 nodes are available: 1 node(s) had untolerated taint {k: v}, 1 node(s) were unschedulable." {
				return ""
			}
		}
		return fmt.Sprint(p.Spec.NodeName, p.Status.Conditions)
	})
	patch("n1", `{"spec":{"unschedulable":false}}`)
	c.await(t, "uncordoned", func() string {
		p, err := pods.Get(ctx, "a", metav1.GetOptions{})
		if err != nil || p.Spec.NodeName != "n1" {
			return fmt.Sprint(p.Spec.NodeName, err)
		}
		return ""
	})
	// a node goes, and its pods with it
	if err := nodes.Delete(ctx, "n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.await(t, "node gone", func() string {
		if _, err := pods.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Sprint(err)
		}
		return ""
	})
}

// versions is the resource version of every object but Events and Leases, whose writers are others.
func (c *cluster) versions(t *testing.T) map[string]string {
	t.Helper()
	lists, err := discovery.ServerPreferredResources(c.client.Discovery())
	if err != nil {
		t.Fatal(err)
	}
	objects, err := metadata.NewForConfig(c.server.LoopbackConfig())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || r.Kind == "Event" || r.Kind == "Lease" {
				continue
			}
			found, err := objects.Resource(gv.WithResource(r.Name)).List(context.Background(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for i := range found.Items {
				o, err := meta.Accessor(&found.Items[i])
				if err != nil {
					t.Fatal(err)
				}
				out[fmt.Sprintf("%s %s/%s", r.Kind, o.GetNamespace(), o.GetName())] = o.GetResourceVersion()
			}
		}
	}
	return out
}

// TestRestartWritesNothing stops the controllers over a world with something of everything and starts them again.
func TestRestartWritesNothing(t *testing.T) {
	services, podRange := prefixes("10.96.0.0/16"), prefixes("10.244.0.0/16")
	c := newCluster(t, services, podRange, "n1", "n2", "n3")
	ctx := context.Background()
	ns := c.namespace(t)
	for i := range 4 {
		name := fmt.Sprintf("web%d", i)
		create(t, c.client.AppsV1().Deployments(ns).Create, deployment(name, int32(i), 8080))
		create(t, c.client.CoreV1().Services(ns).Create, service(name, map[string]string{"app": name}))
		c.rolledOut(t, ns, name)
	}
	stuck := podSpec(80)
	stuck.NodeSelector = map[string]string{"disk": "fast"}
	create(t, c.client.CoreV1().Pods(ns).Create, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "stuck"}, Spec: stuck})
	c.change(t, ns, "web3", pausedWithNewTemplate)
	conditions(t, c, ns, "web3", "Available=True MinimumReplicasAvailable", "Progressing=Unknown DeploymentPaused")
	// sentinel makes every controller work through its queue: what is behind it has been looked at
	sentinel := func(name string) {
		t.Helper()
		create(t, c.client.AppsV1().Deployments(ns).Create, deployment(name, 1, 8080))
		create(t, c.client.CoreV1().Services(ns).Create, service(name, map[string]string{"app": name}))
		c.rolledOut(t, ns, name)
		c.await(t, "sentinel", func() string {
			if got := lines(c.slicesOf(t, ns, name)); len(got) != 1 || !strings.HasSuffix(got[0], "ready serving") {
				return fmt.Sprint(got)
			}
			return ""
		})
	}
	sentinel("first")
	for round := range 3 {
		if err := c.haltControl(); err != nil {
			t.Fatal(err)
		}
		before := c.versions(t)
		c.startControl(services, podRange)
		sentinel(fmt.Sprintf("round%d", round))
		after := c.versions(t)
		for name, version := range before {
			if after[name] != version {
				t.Errorf("round %d: %s was written", round, name)
			}
		}
		if len(before) < 30 {
			t.Errorf("only %d objects to compare", len(before))
		}
	}
	if t.Failed() {
		t.Log(tail(c.log.String(), 100))
	}
	_ = ctx
}

// TestSilentAtIdle checks that nothing is logged and nothing written while nothing happens. It waits for a moment
// of its own making: there is no event that says that nothing happens.
func TestSilentAtIdle(t *testing.T) {
	c := newCluster(t, prefixes("10.96.0.0/16"), prefixes("10.244.0.0/16"), "n1")
	create(t, c.client.AppsV1().Deployments("default").Create, deployment("web", 2, 8080))
	create(t, c.client.CoreV1().Services("default").Create, service("web", map[string]string{"app": "web"}))
	c.rolledOut(t, "default", "web")
	c.await(t, "endpoints", func() string {
		if n := len(lines(c.slicesOf(t, "default", "web"))); n != 2 {
			return fmt.Sprint(n)
		}
		return ""
	})
	time.Sleep(time.Second)
	before, log := c.versions(t), c.log.String()
	time.Sleep(3 * time.Second)
	if after := c.versions(t); !maps.Equal(before, after) {
		t.Errorf("objects changed at idle")
	}
	if got := strings.TrimPrefix(c.log.String(), log); got != "" {
		t.Errorf("logged at idle:\n%s", got)
	}
	if strings.Contains(log, "level=WARN") {
		t.Errorf("warnings:\n%s", log)
	}
}
