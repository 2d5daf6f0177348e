// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/control"
)

// TestNeverTooMany grows ReplicaSets in many small steps, each while the pods of the one before are still on their
// way, and counts every pod that was ever made: not one may be made to be deleted again.
func TestNeverTooMany(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	ctx := context.Background()
	rnd := newRand(t)
	watch, err := c.client.CoreV1().Pods(ns).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	sets := c.client.AppsV1().ReplicaSets(ns)
	want := map[string]int{}
	for i := range 5 {
		name := fmt.Sprintf("rs%d", i)
		d := deployment(name, 1, 8080)
		create(t, sets.Create, &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       appsv1.ReplicaSetSpec{Replicas: ptr.To[int32](1), Selector: d.Spec.Selector, Template: d.Spec.Template},
		})
		want[name] = 1
	}
	for range 30 {
		name := fmt.Sprintf("rs%d", rnd.IntN(5))
		want[name] += rnd.IntN(3)
		patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, want[name])
		if _, err := sets.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for name, n := range want {
		c.await(t, name, func() string {
			rs, err := sets.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			if rs.Status.ReadyReplicas != int32(n) || rs.Status.ObservedGeneration != rs.Generation {
				return fmt.Sprintf("%d ready, want %d", rs.Status.ReadyReplicas, n)
			}
			return ""
		})
	}
	end := create(t, c.client.CoreV1().Pods(ns).Create, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "end"}, Spec: podSpec(80)})
	made := map[string]map[types.UID]bool{}
	for event := range watch.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		if !ok {
			t.Fatalf("watch ended with %v", event)
		}
		if pod.UID == end.UID {
			break
		}
		name := pod.Labels["app"]
		if made[name] == nil {
			made[name] = map[types.UID]bool{}
		}
		made[name][pod.UID] = true
	}
	for name, n := range want {
		if len(made[name]) != n {
			t.Errorf("%s: %d pods were made, want %d", name, len(made[name]), n)
		}
	}
}

// TestDeploymentChurn scales, rolls, pauses and breaks Deployments at random, and expects each to end as its last
// spec says, with nothing left of what came before.
func TestDeploymentChurn(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	ctx := context.Background()
	rnd := newRand(t)
	names := []string{"a", "b", "c"}
	for _, name := range names {
		create(t, c.client.AppsV1().Deployments(ns).Create, deployment(name, 2, 8080))
	}
	for range 60 {
		name := names[rnd.IntN(len(names))]
		switch op := rnd.IntN(10); {
		case op < 3:
			c.change(t, ns, name, func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To(int32(rnd.IntN(7))) })
		case op < 6:
			c.change(t, ns, name, func(d *appsv1.Deployment) { d.Spec.Template.Labels["version"] = fmt.Sprint(rnd.IntN(4)) })
		case op == 6:
			c.change(t, ns, name, func(d *appsv1.Deployment) { d.Spec.Paused = !d.Spec.Paused })
		case op == 7:
			c.change(t, ns, name, func(d *appsv1.Deployment) {
				if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
					d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType}
				} else {
					d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
				}
			})
		case op == 8:
			if pods := c.podsOf(t, ns, name); len(pods) > 0 {
				err := c.client.CoreV1().Pods(ns).Delete(ctx, pods[rnd.IntN(len(pods))].Name, metav1.DeleteOptions{})
				if err != nil && !apierrors.IsNotFound(err) {
					t.Fatal(err)
				}
			}
		default:
			list, err := c.client.AppsV1().ReplicaSets(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
			if err != nil {
				t.Fatal(err)
			}
			if len(list.Items) > 0 {
				err := c.client.AppsV1().ReplicaSets(ns).Delete(ctx, list.Items[rnd.IntN(len(list.Items))].Name,
					metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)})
				if err != nil && !apierrors.IsNotFound(err) {
					t.Fatal(err)
				}
			}
		}
	}
	for _, name := range names {
		c.change(t, ns, name, func(d *appsv1.Deployment) { d.Spec.Paused = false })
		d := c.rolledOut(t, ns, name)
		c.await(t, "pods of "+name, func() string {
			pods := c.podsOf(t, ns, name)
			if len(pods) != int(*d.Spec.Replicas) {
				return fmt.Sprintf("%d pods, want %d", len(pods), *d.Spec.Replicas)
			}
			for _, p := range pods {
				if p.Labels["version"] != d.Spec.Template.Labels["version"] {
					return p.Name + " is of an old template"
				}
			}
			return ""
		})
	}
}

// TestSpreadOfMany makes many pods at once, faster than any informer shows where they went.
func TestSpreadOfMany(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	create(t, c.client.AppsV1().Deployments(ns).Create, deployment("many", 60, 8080))
	c.rolledOut(t, ns, "many")
	nodes := map[string]int{}
	for _, p := range c.podsOf(t, ns, "many") {
		nodes[p.Spec.NodeName]++
	}
	if nodes["n1"] != 20 || nodes["n2"] != 20 || nodes["n3"] != 20 {
		t.Errorf("spread: %v", nodes)
	}
	ips := map[string]bool{}
	for _, p := range c.podsOf(t, ns, "many") {
		if ips[p.Status.PodIP] {
			t.Errorf("%s twice", p.Status.PodIP)
		}
		ips[p.Status.PodIP] = true
	}
}

// TestControllersFollowTheServer takes the controllers away while users go on, and lets them catch up.
func TestControllersFollowTheServer(t *testing.T) {
	services, pods := prefixes("10.96.0.0/16"), prefixes("10.244.0.0/16")
	c := newCluster(t, services, pods, "n1")
	ctx := context.Background()
	create(t, c.client.AppsV1().Deployments("default").Create, deployment("web", 3, 8080))
	create(t, c.client.AppsV1().Deployments("default").Create, deployment("gone", 2, 8080))
	create(t, c.client.CoreV1().Services("default").Create, service("web", map[string]string{"app": "web"}))
	c.rolledOut(t, "default", "web")
	c.rolledOut(t, "default", "gone")
	if err := c.haltControl(); err != nil {
		t.Fatal(err)
	}
	// meanwhile: a pod deleted, a Deployment deleted, another one rolled, a node added, a namespace deleted
	left := c.podsOf(t, "default", "web")
	if err := c.client.CoreV1().Pods("default").Delete(ctx, left[0].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.deleteDeployment(t, "default", "gone", metav1.DeletePropagationForeground)
	c.change(t, "default", "web", func(d *appsv1.Deployment) { d.Spec.Template.Labels["version"] = "2" })
	ns := create(t, c.client.CoreV1().Namespaces().Create, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "short-lived"}})
	create(t, c.client.CoreV1().ConfigMaps(ns.Name).Create, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}})
	if err := c.client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.addNodes("n2"); err != nil {
		t.Fatal(err)
	}
	c.startControl(services, pods)
	c.rolledOut(t, "default", "web")
	c.await(t, "catching up", func() string {
		if n := len(c.podsOf(t, "default", "gone")); n > 0 {
			return fmt.Sprintf("%d pods of the deleted deployment", n)
		}
		if _, err := c.client.AppsV1().Deployments("default").Get(ctx, "gone", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Sprint("the deleted deployment: ", err)
		}
		if _, err := c.client.CoreV1().Namespaces().Get(ctx, ns.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Sprint("the deleted namespace: ", err)
		}
		n2, err := c.client.CoreV1().Nodes().Get(ctx, "n2", metav1.GetOptions{})
		if err != nil || n2.Spec.PodCIDR == "" {
			return fmt.Sprint("the new node: ", n2.Spec, err)
		}
		var want []string
		for _, p := range c.podsOf(t, "default", "web") {
			want = append(want, fmt.Sprintf("IPv4 %s %s@%s() http:8080/TCP ready serving", p.Status.PodIP, p.Name, p.Spec.NodeName))
		}
		slices.Sort(want)
		if got := lines(c.slicesOf(t, "default", "web")); !slices.Equal(got, want) {
			return "got\n" + strings.Join(got, "\n") + "\nwant\n" + strings.Join(want, "\n")
		}
		return ""
	})
}

// TestOtherDNSAddress starts the controllers with another address for kube-dns than the Service has.
func TestOtherDNSAddress(t *testing.T) {
	services, pods := prefixes("10.96.0.0/16"), prefixes("10.244.0.0/16")
	c := newCluster(t, services, pods, "n1")
	address := func(want string) {
		t.Helper()
		c.await(t, "kube-dns", func() string {
			s, err := c.client.CoreV1().Services("kube-system").Get(context.Background(), "kube-dns", metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			all := c.slicesOf(t, "kube-system", "kube-dns")
			if s.Spec.ClusterIP != want || len(all) != 1 || len(all[0].Endpoints) != 1 || !metav1.IsControlledBy(&all[0], s) {
				return fmt.Sprintf("%s with %d slices, want %s", s.Spec.ClusterIP, len(all), want)
			}
			return ""
		})
	}
	address("10.96.0.10")
	if err := c.haltControl(); err != nil {
		t.Fatal(err)
	}
	c.dns = []netip.Addr{netip.MustParseAddr("10.96.0.53")}
	c.startControl(services, pods)
	address("10.96.0.53")
}

// TestRunWaitsForTheServer starts the controllers where nobody answers; they wait, and end when told to.
func TestRunWaitsForTheServer(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	log := &log{}
	done := make(chan error, 1)
	tried := make(chan struct{}, 1)
	go func() {
		done <- control.Run(ctx, control.Options{
			Config:       &rest.Config{Host: "https://127.0.0.1:1", Dial: refuse(tried)},
			ServiceCIDRs: prefixes("10.96.0.0/16"),
			APIAddr:      netip.MustParseAddrPort("172.30.0.1:6443"),
			Logger:       newLogger(log),
		})
	}()
	for range 3 {
		<-tried
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "waiting for the API server") {
		t.Errorf("log: %s", log)
	}
	if err := control.Run(context.Background(), control.Options{}); err == nil {
		t.Error("runs without any option")
	}
}
