// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func TestDeployment(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	ctx := context.Background()
	deployments := c.client.AppsV1().Deployments(ns)
	create(t, deployments.Create, deployment("web", 6, 8080))
	d := c.rolledOut(t, ns, "web")
	if d.Annotations["deployment.kubernetes.io/revision"] != "1" {
		t.Errorf("revision is %q", d.Annotations["deployment.kubernetes.io/revision"])
	}
	nodes := map[string]int{}
	for _, p := range c.podsOf(t, ns, "web") {
		nodes[p.Spec.NodeName]++
		if !strings.HasPrefix(p.GenerateName, "web-") || p.Labels[appsv1.DefaultDeploymentUniqueLabelKey] == "" {
			t.Errorf("pod %s has generateName %q and labels %v", p.Name, p.GenerateName, p.Labels)
		}
	}
	if nodes["n1"] != 2 || nodes["n2"] != 2 || nodes["n3"] != 2 {
		t.Errorf("spread: %v", nodes)
	}
	conditions(t, c, ns, "web", "Available=True MinimumReplicasAvailable", "Progressing=True NewReplicaSetAvailable")

	// a pod deleted is replaced
	gone := c.podsOf(t, ns, "web")[0]
	if err := c.client.CoreV1().Pods(ns).Delete(ctx, gone.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.await(t, "replacement", func() string {
		pods := c.podsOf(t, ns, "web")
		for _, p := range pods {
			if p.UID == gone.UID || p.Status.PodIP == "" {
				return "not yet"
			}
		}
		if len(pods) != 6 {
			return fmt.Sprintf("%d pods", len(pods))
		}
		return ""
	})

	// scaled through the subresource, as kubectl scale does
	for _, n := range []int32{12, 3} {
		patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, n)
		if _, err := deployments.Patch(ctx, "web", types.MergePatchType, patch, metav1.PatchOptions{}, "scale"); err != nil {
			t.Fatal(err)
		}
		c.rolledOut(t, ns, "web")
		if got := len(c.podsOf(t, ns, "web")); got != int(n) {
			t.Errorf("%d pods, want %d", got, n)
		}
	}

	// a new template, as kubectl rollout restart does; then back, as kubectl rollout undo does
	first := d.Spec.Template
	c.change(t, ns, "web", func(d *appsv1.Deployment) {
		d.Spec.Template.Annotations = map[string]string{"kubectl.kubernetes.io/restartedAt": "now"}
	})
	d = c.rolledOut(t, ns, "web")
	if d.Annotations["deployment.kubernetes.io/revision"] != "2" {
		t.Errorf("revision is %q", d.Annotations["deployment.kubernetes.io/revision"])
	}
	c.change(t, ns, "web", func(d *appsv1.Deployment) { d.Spec.Template = first })
	d = c.rolledOut(t, ns, "web")
	if d.Annotations["deployment.kubernetes.io/revision"] != "3" {
		t.Errorf("revision is %q", d.Annotations["deployment.kubernetes.io/revision"])
	}
	sets, err := c.client.AppsV1().ReplicaSets(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(sets.Items) != 2 {
		t.Errorf("%d ReplicaSets, want the first one again and the second", len(sets.Items))
	}
	events := c.eventReasons(t, ns)
	for _, reason := range []string{"ScalingReplicaSet", "SuccessfulCreate", "SuccessfulDelete", "Scheduled"} {
		if !events[reason] {
			t.Errorf("no event %s among %v", reason, events)
		}
	}
}

// eventReasons waits for some events and returns their reasons.
func (c *cluster) eventReasons(t *testing.T, namespace string) map[string]bool {
	t.Helper()
	reasons := map[string]bool{}
	c.await(t, "events", func() string {
		list, err := c.client.CoreV1().Events(namespace).List(context.Background(), metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		for _, e := range list.Items {
			reasons[e.Reason] = true
		}
		if !reasons["Scheduled"] || !reasons["SuccessfulDelete"] {
			return fmt.Sprint(reasons)
		}
		return ""
	})
	return reasons
}

// conditions checks the conditions of a Deployment.
func conditions(t *testing.T, c *cluster, namespace, name string, want ...string) {
	t.Helper()
	c.await(t, "conditions of "+name, func() string {
		d, err := c.client.AppsV1().Deployments(namespace).Get(context.Background(), name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		var got []string
		for _, c := range d.Status.Conditions {
			got = append(got, fmt.Sprintf("%s=%s %s", c.Type, c.Status, c.Reason))
		}
		if have, wanted := strings.Join(got, ", "), strings.Join(want, ", "); have != wanted {
			return fmt.Sprintf("%s, want %s", have, wanted)
		}
		return ""
	})
}

// TestRollingUpdateKeepsPods watches every state that the API goes through during rolling updates: how many pods
// are ready, and how many are asked for. (Of those no longer asked for some may live a moment longer.)
func TestRollingUpdateKeepsPods(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	ctx := context.Background()
	create(t, c.client.AppsV1().Deployments(ns).Create, deployment("web", 8, 8080))
	c.rolledOut(t, ns, "web")
	list, err := c.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	from := metav1.ListOptions{ResourceVersion: list.ResourceVersion}
	pods, err := c.client.CoreV1().Pods(ns).Watch(ctx, from)
	if err != nil {
		t.Fatal(err)
	}
	defer pods.Stop()
	sets, err := c.client.AppsV1().ReplicaSets(ns).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer sets.Stop()
	ready, asked := map[types.UID]bool{}, map[types.UID]int32{}
	for _, pod := range list.Items {
		ready[pod.UID] = true
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 3 {
			c.change(t, ns, "web", func(d *appsv1.Deployment) {
				d.Spec.Template.Annotations = map[string]string{"round": fmt.Sprint(i)}
			})
			c.rolledOut(t, ns, "web")
		}
	}()
	for seen := 0; ; seen++ {
		select {
		case event := <-pods.ResultChan():
			pod, ok := event.Object.(*corev1.Pod)
			if !ok {
				t.Fatalf("watch ended with %v", event)
			}
			if event.Type != "DELETED" && pod.DeletionTimestamp == nil && isReady(pod) {
				ready[pod.UID] = true
			} else {
				delete(ready, pod.UID)
			}
			if len(ready) < 6 { // a quarter of 8 may be missing
				t.Errorf("%d pods are ready", len(ready))
			}
		case event := <-sets.ResultChan():
			rs, ok := event.Object.(*appsv1.ReplicaSet)
			if !ok {
				t.Fatalf("watch ended with %v", event)
			}
			asked[rs.UID] = *rs.Spec.Replicas
			var sum int32
			for _, n := range asked {
				sum += n
			}
			if sum > 10 { // a quarter of 8 may be too many
				t.Errorf("%d pods are asked for", sum)
			}
		case <-done:
			if seen < 50 {
				t.Errorf("saw only %d changes", seen)
			}
			return
		}
	}
}

func isReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

func TestRecreate(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	web := deployment("web", 3, 8080)
	web.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	create(t, c.client.AppsV1().Deployments(ns).Create, web)
	c.rolledOut(t, ns, "web")
	watch, err := c.client.CoreV1().Pods(ns).Watch(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	c.change(t, ns, "web", func(d *appsv1.Deployment) { d.Spec.Template.Labels["version"] = "2" })
	timeout := time.After(patience)
	old, young := map[types.UID]bool{}, map[types.UID]bool{}
	for up := 0; up < 3; {
		select {
		case event := <-watch.ResultChan():
			pod, ok := event.Object.(*corev1.Pod)
			if !ok {
				t.Fatalf("watch ended with %v", event)
			}
			set := old
			if pod.Labels["version"] == "2" {
				set = young
			}
			set[pod.UID] = true
			if event.Type == "DELETED" {
				delete(set, pod.UID)
			}
			if len(old) > 0 && len(young) > 0 {
				t.Fatalf("%d old pods together with %d new ones", len(old), len(young))
			}
			if pod.Labels["version"] == "2" && event.Type == "MODIFIED" && pod.Status.PodIP != "" {
				up++
			}
		case <-timeout:
			t.Fatalf("%d old pods, %d new ones", len(old), len(young))
		}
	}
}

func TestPauseAndScaleInTheMiddle(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	create(t, c.client.AppsV1().Deployments(ns).Create, deployment("web", 4, 8080))
	c.rolledOut(t, ns, "web")
	c.change(t, ns, "web", func(d *appsv1.Deployment) {
		d.Spec.Paused = true
		d.Spec.Template.Labels["version"] = "2"
	})
	conditions(t, c, ns, "web", "Available=True MinimumReplicasAvailable", "Progressing=Unknown DeploymentPaused")
	c.change(t, ns, "web", func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To[int32](7) })
	c.await(t, "scaled while paused", func() string {
		pods := c.podsOf(t, ns, "web")
		for _, p := range pods {
			if p.Labels["version"] == "2" {
				t.Fatal("a paused rollout went on")
			}
		}
		if len(pods) != 7 {
			return fmt.Sprintf("%d pods", len(pods))
		}
		return ""
	})
	c.change(t, ns, "web", func(d *appsv1.Deployment) { d.Spec.Paused = false })
	c.rolledOut(t, ns, "web")
	for _, p := range c.podsOf(t, ns, "web") {
		if p.Labels["version"] != "2" {
			t.Errorf("%s is still of the old template", p.Name)
		}
	}
}

// TestStuckRollout checks that a rollout whose pods never come up leaves the old pods alone and says so, and that
// going back mends it.
func TestStuckRollout(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	web := deployment("web", 4, 8080)
	web.Spec.ProgressDeadlineSeconds = ptr.To[int32](2)
	create(t, c.client.AppsV1().Deployments(ns).Create, web)
	first := c.rolledOut(t, ns, "web").Spec.Template
	c.runner.hold(ns, true)
	c.change(t, ns, "web", func(d *appsv1.Deployment) { d.Spec.Template.Labels["version"] = "2" })
	conditions(t, c, ns, "web", "Available=True MinimumReplicasAvailable", "Progressing=False ProgressDeadlineExceeded")
	c.runner.hold(ns, false)
	ready := 0
	for _, p := range c.podsOf(t, ns, "web") {
		if p.Status.PodIP != "" {
			ready++
		}
	}
	if ready != 3 {
		t.Errorf("%d old pods are left, want 3", ready)
	}
	c.change(t, ns, "web", func(d *appsv1.Deployment) { d.Spec.Template = first })
	c.rolledOut(t, ns, "web")
	conditions(t, c, ns, "web", "Available=True MinimumReplicasAvailable", "Progressing=True NewReplicaSetAvailable")
}

func TestHistoryLimit(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	web := deployment("web", 1, 8080)
	web.Spec.RevisionHistoryLimit = ptr.To[int32](1)
	create(t, c.client.AppsV1().Deployments(ns).Create, web)
	c.rolledOut(t, ns, "web")
	for i := range 4 {
		c.change(t, ns, "web", func(d *appsv1.Deployment) { d.Spec.Template.Annotations = map[string]string{"round": fmt.Sprint(i)} })
		c.rolledOut(t, ns, "web")
	}
	c.await(t, "history", func() string {
		sets, err := c.client.AppsV1().ReplicaSets(ns).List(context.Background(), metav1.ListOptions{})
		if err != nil || len(sets.Items) != 2 {
			return fmt.Sprintf("%d ReplicaSets, %v", len(sets.Items), err)
		}
		return ""
	})
}

// TestAdoption lets a ReplicaSet take pods that were there before, and let go of one whose labels change.
func TestAdoption(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	ctx := context.Background()
	pods := c.client.CoreV1().Pods(ns)
	for i := range 2 {
		create(t, pods.Create, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("there-%d", i), Labels: map[string]string{"app": "web"}},
			Spec:       podSpec(8080),
		})
	}
	rs := create(t, c.client.AppsV1().ReplicaSets(ns).Create, &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: ptr.To[int32](3),
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: deployment("web", 1, 8080).Spec.Template,
		},
	})
	owned := func(want int) {
		t.Helper()
		c.await(t, "adoption", func() string {
			all := c.podsOf(t, ns, "web")
			n := 0
			for i := range all {
				if metav1.IsControlledBy(&all[i], rs) {
					n++
				}
			}
			if n != want || len(all) != want {
				return fmt.Sprintf("%d of %d pods are owned, want %d", n, len(all), want)
			}
			return ""
		})
	}
	owned(3)
	patch := []byte(`{"metadata":{"labels":{"app":"other"}}}`)
	if _, err := pods.Patch(ctx, "there-0", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	owned(3)
	c.await(t, "release", func() string {
		pod, err := pods.Get(ctx, "there-0", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if len(pod.OwnerReferences) != 0 {
			return "still owned"
		}
		return ""
	})
	// taken back, one is too many
	patch = []byte(`{"metadata":{"labels":{"app":"web"}}}`)
	if _, err := pods.Patch(ctx, "there-0", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	owned(3)
}

// TestNameCollision takes the name that a Deployment's ReplicaSet would have.
func TestNameCollision(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	web := create(t, c.client.AppsV1().Deployments(ns).Create, deployment("web", 1, 8080))
	c.rolledOut(t, ns, "web")
	sets, err := c.client.AppsV1().ReplicaSets(ns).List(context.Background(), metav1.ListOptions{})
	if err != nil || len(sets.Items) != 1 {
		t.Fatal(len(sets.Items), err)
	}
	name := sets.Items[0].Name
	c.deleteDeployment(t, ns, "web", metav1.DeletePropagationBackground)
	c.await(t, "end of the first", func() string {
		if _, err := c.client.AppsV1().ReplicaSets(ns).Get(context.Background(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Sprint(err)
		}
		return ""
	})
	other := deployment("other", 0, 9090)
	create(t, c.client.AppsV1().ReplicaSets(ns).Create, &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.ReplicaSetSpec{Replicas: ptr.To[int32](0), Selector: other.Spec.Selector, Template: other.Spec.Template},
	})
	again := deployment("web", 1, 8080)
	again.Spec.Template = web.Spec.Template
	create(t, c.client.AppsV1().Deployments(ns).Create, again)
	d := c.rolledOut(t, ns, "web")
	if d.Status.CollisionCount == nil || *d.Status.CollisionCount != 1 {
		t.Errorf("collision count is %v", d.Status.CollisionCount)
	}
}

func (c *cluster) deleteDeployment(t *testing.T, namespace, name string, policy metav1.DeletionPropagation) {
	t.Helper()
	if err := c.client.AppsV1().Deployments(namespace).Delete(context.Background(), name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
		t.Fatal(err)
	}
}

func TestCascade(t *testing.T) {
	c := sharedCluster(t)
	ctx := context.Background()
	counts := func(ns string) string {
		pods, err1 := c.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		sets, err2 := c.client.AppsV1().ReplicaSets(ns).List(ctx, metav1.ListOptions{})
		all, err3 := c.client.AppsV1().Deployments(ns).List(ctx, metav1.ListOptions{})
		if err1 != nil || err2 != nil || err3 != nil {
			return fmt.Sprint(err1, err2, err3)
		}
		return fmt.Sprintf("%d deployments, %d replicasets, %d pods", len(all.Items), len(sets.Items), len(pods.Items))
	}
	reach := func(ns, want string) {
		t.Helper()
		c.await(t, "cascade", func() string {
			if got := counts(ns); got != want {
				return got + ", want " + want
			}
			return ""
		})
	}
	for _, policy := range []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground, metav1.DeletePropagationOrphan} {
		t.Run(string(policy), func(t *testing.T) {
			ns := c.namespace(t)
			create(t, c.client.AppsV1().Deployments(ns).Create, deployment("web", 3, 8080))
			c.rolledOut(t, ns, "web")
			before := c.podsOf(t, ns, "web")
			c.deleteDeployment(t, ns, "web", policy)
			if policy != metav1.DeletePropagationOrphan {
				reach(ns, "0 deployments, 0 replicasets, 0 pods")
				return
			}
			reach(ns, "0 deployments, 1 replicasets, 3 pods")
			sets, err := c.client.AppsV1().ReplicaSets(ns).List(ctx, metav1.ListOptions{})
			if err != nil || len(sets.Items[0].OwnerReferences) != 0 {
				t.Fatalf("the ReplicaSet is owned by %v, %v", sets.Items[0].OwnerReferences, err)
			}
			// a new Deployment of the same template takes them over, pods and all
			create(t, c.client.AppsV1().Deployments(ns).Create, deployment("web", 3, 8080))
			c.rolledOut(t, ns, "web")
			after := map[types.UID]bool{}
			for _, p := range c.podsOf(t, ns, "web") {
				after[p.UID] = true
			}
			for _, p := range before {
				if !after[p.UID] {
					t.Errorf("%s did not survive", p.Name)
				}
			}
		})
	}
}

// TestOwnersOfAnyKind checks garbage collection without any controller of ours involved.
func TestOwnersOfAnyKind(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	ctx := context.Background()
	maps := c.client.CoreV1().ConfigMaps(ns)
	configMap := func(name string, owners ...*corev1.ConfigMap) *corev1.ConfigMap {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for _, o := range owners {
			cm.OwnerReferences = append(cm.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: o.Name, UID: o.UID})
		}
		return create(t, maps.Create, cm)
	}
	a, b := configMap("a"), configMap("b")
	both := configMap("both", a, b)
	configMap("chain", both)
	impostor := a.DeepCopy()
	impostor.UID = "never-was"
	configMap("stale", impostor) // an owner of the same name but another identity
	unknown := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "unknown", OwnerReferences: []metav1.OwnerReference{
		{APIVersion: "example.com/v1", Kind: "Thing", Name: "x", UID: "y"}}}}
	create(t, maps.Create, unknown) // a kind that is not served: never deleted on a guess
	names := func() string {
		list, err := maps.List(ctx, metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		var out []string
		for _, cm := range list.Items {
			out = append(out, fmt.Sprintf("%s(%d)", cm.Name, len(cm.OwnerReferences)))
		}
		return strings.Join(out, " ")
	}
	expect := func(want string) {
		t.Helper()
		c.await(t, "owners", func() string {
			if got := names(); got != want {
				return got + ", want " + want
			}
			return ""
		})
	}
	expect("a(0) b(0) both(2) chain(1) unknown(1)")
	if err := maps.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("b(0) both(1) chain(1) unknown(1)")
	if err := maps.Delete(ctx, "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("unknown(1)")
}

func TestNamespaceDeletion(t *testing.T) {
	c := sharedCluster(t)
	ns := c.namespace(t)
	ctx := context.Background()
	create(t, c.client.AppsV1().Deployments(ns).Create, deployment("web", 4, 8080))
	create(t, c.client.CoreV1().Services(ns).Create, service("web", map[string]string{"app": "web"}))
	create(t, c.client.CoreV1().ConfigMaps(ns).Create, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}})
	c.rolledOut(t, ns, "web")
	if err := c.client.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.client.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}}, metav1.CreateOptions{}); err == nil {
		t.Error("an ending namespace takes new objects")
	}
	c.await(t, "end of the namespace", func() string {
		if _, err := c.client.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Sprint(err)
		}
		return ""
	})
	for what, n := range map[string]func() (int, error){
		"pods": func() (int, error) {
			l, err := c.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
			return len(l.Items), err
		},
		"services": func() (int, error) {
			l, err := c.client.CoreV1().Services(ns).List(ctx, metav1.ListOptions{})
			return len(l.Items), err
		},
		"slices": func() (int, error) {
			l, err := c.client.DiscoveryV1().EndpointSlices(ns).List(ctx, metav1.ListOptions{})
			return len(l.Items), err
		},
		"replicasets": func() (int, error) {
			l, err := c.client.AppsV1().ReplicaSets(ns).List(ctx, metav1.ListOptions{})
			return len(l.Items), err
		},
	} {
		if got, err := n(); got != 0 || err != nil {
			t.Errorf("%d %s are left, %v", got, what, err)
		}
	}
	// the same name can be used again at once
	create(t, c.client.CoreV1().Namespaces().Create, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
}

func pausedWithNewTemplate(d *appsv1.Deployment) {
	d.Spec.Paused = true
	d.Spec.Template.Labels["version"] = "2"
}
