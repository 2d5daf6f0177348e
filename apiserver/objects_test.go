// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	applyapps "k8s.io/client-go/applyconfigurations/apps/v1"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	applymeta "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// next is the next event of a watch that is not a bookmark.
func next(t testing.TB, w watch.Interface) watch.Event {
	t.Helper()
	for {
		select {
		case event, ok := <-w.ResultChan():
			if !ok {
				t.Fatal("the watch ended")
			}
			if event.Type != watch.Bookmark {
				return event
			}
		case <-time.After(patience):
			t.Fatal("no event")
		}
	}
}

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
}

func TestWatch(t *testing.T) {
	for _, contentType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		t.Run(contentType[strings.LastIndex(contentType, "/")+1:], func(t *testing.T) {
			i, ns := sharedServer(t)
			config := i.config(t, "admin", "system:masters")
			config.ContentType, config.AcceptContentTypes = contentType, contentType
			client, err := kubernetes.NewForConfig(config)
			must(t, err)
			maps := client.CoreV1().ConfigMaps(ns)
			list, err := maps.List(t.Context(), metav1.ListOptions{})
			must(t, err)
			w, err := maps.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion, AllowWatchBookmarks: true})
			must(t, err)
			defer w.Stop()

			made, err := maps.Create(t.Context(), configMap("a", map[string]string{"n": "1"}), metav1.CreateOptions{})
			must(t, err)
			made.Data["n"] = "2"
			changed, err := maps.Update(t.Context(), made, metav1.UpdateOptions{})
			must(t, err)
			must(t, maps.Delete(t.Context(), "a", metav1.DeleteOptions{}))
			for _, want := range []struct {
				kind watch.EventType
				n    string
			}{{watch.Added, "1"}, {watch.Modified, "2"}, {watch.Deleted, "2"}} {
				event := next(t, w)
				if got := event.Object.(*corev1.ConfigMap); event.Type != want.kind || got.Data["n"] != want.n {
					t.Errorf("got %s %v, want %+v", event.Type, got.Data, want)
				}
			}
			// A stale writer loses.
			_, err = maps.Update(t.Context(), made, metav1.UpdateOptions{})
			if !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				t.Errorf("update of a deleted object: %v", err)
			}
			if changed.ResourceVersion == made.ResourceVersion {
				t.Error("the resource version did not change")
			}
		})
	}
}

// TestWatchList checks that a watch can begin with what there is, and says
// when that is over.
func TestWatchList(t *testing.T) {
	i, ns := sharedServer(t)
	maps := i.admin(t).CoreV1().ConfigMaps(ns)
	for n := range 3 {
		_, err := maps.Create(t.Context(), configMap(fmt.Sprint("m", n), nil), metav1.CreateOptions{})
		must(t, err)
	}
	yes := true
	w, err := maps.Watch(t.Context(), metav1.ListOptions{
		SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
	must(t, err)
	defer w.Stop()
	var names []string
	for {
		select {
		case event := <-w.ResultChan():
			m, ok := event.Object.(*corev1.ConfigMap)
			if !ok {
				t.Fatalf("got %v", event)
			}
			if event.Type == watch.Bookmark {
				if m.Annotations[metav1.InitialEventsAnnotationKey] != "true" {
					continue
				}
				if got := strings.Join(names, " "); got != "m0 m1 m2" {
					t.Errorf("initial events: %s", got)
				}
				return
			}
			names = append(names, m.Name)
		case <-time.After(patience):
			t.Fatal("no end of the initial events")
		}
	}
}

func TestPatchKinds(t *testing.T) {
	i, ns := sharedServer(t)
	pods := i.admin(t).CoreV1().Pods(ns)
	_, err := pods.Create(t.Context(), pod("p", "", "a", "b"), metav1.CreateOptions{})
	must(t, err)
	for _, row := range []struct {
		name  string
		kind  types.PatchType
		patch string
		want  func(*corev1.Pod) bool
	}{
		{"strategic merge finds list items by name", types.StrategicMergePatchType,
			`{"spec":{"containers":[{"name":"b","image":"host:2"}]}}`,
			func(p *corev1.Pod) bool { return len(p.Spec.Containers) == 2 && p.Spec.Containers[1].Image == "host:2" }},
		{"merge", types.MergePatchType, `{"metadata":{"labels":{"x":"1"}}}`,
			func(p *corev1.Pod) bool { return p.Labels["x"] == "1" }},
		{"merge with null removes", types.MergePatchType, `{"metadata":{"labels":{"x":null}}}`,
			func(p *corev1.Pod) bool { _, ok := p.Labels["x"]; return !ok }},
		{"json", types.JSONPatchType, `[{"op":"add","path":"/metadata/annotations","value":{"y":"2"}}]`,
			func(p *corev1.Pod) bool { return p.Annotations["y"] == "2" }},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := pods.Patch(t.Context(), "p", row.kind, []byte(row.patch), metav1.PatchOptions{})
			must(t, err)
			if !row.want(got) {
				t.Errorf("got %v", got)
			}
		})
	}
	if _, err := pods.Patch(t.Context(), "p", types.JSONPatchType, []byte(`[{"op":"test","path":"/metadata/name","value":"q"}]`), metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a failed test in a JSON patch: %v", err)
	}
}

func TestServerSideApply(t *testing.T) {
	i, ns := sharedServer(t)
	maps := i.admin(t).CoreV1().ConfigMaps(ns)
	by := func(manager string, force bool) metav1.ApplyOptions {
		return metav1.ApplyOptions{FieldManager: manager, Force: force}
	}
	_, err := maps.Apply(t.Context(), applycore.ConfigMap("m", ns).WithData(map[string]string{"a": "1", "b": "1"}), by("one", false))
	must(t, err)
	_, err = maps.Apply(t.Context(), applycore.ConfigMap("m", ns).WithData(map[string]string{"a": "2"}), by("two", false))
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "one"`) {
		t.Fatalf("apply of another's field: %v", err)
	}
	_, err = maps.Apply(t.Context(), applycore.ConfigMap("m", ns).WithData(map[string]string{"a": "2"}), by("two", true))
	must(t, err)
	// What one no longer applies goes, except what two owns.
	got, err := maps.Apply(t.Context(), applycore.ConfigMap("m", ns), by("one", false))
	must(t, err)
	if len(got.Data) != 1 || got.Data["a"] != "2" {
		t.Errorf("data %v", got.Data)
	}
	if n := len(got.ManagedFields); n != 1 || got.ManagedFields[0].Manager != "two" {
		t.Errorf("managed fields: %v", got.ManagedFields)
	}
}

// TestApplyLists checks that the schema is known: lists are merged by key.
func TestApplyLists(t *testing.T) {
	i, ns := sharedServer(t)
	services := i.admin(t).CoreV1().Services(ns)
	port := func(name string, n int32) *applycore.ServicePortApplyConfiguration {
		return applycore.ServicePort().WithName(name).WithPort(n)
	}
	for manager, p := range map[string]*applycore.ServicePortApplyConfiguration{"one": port("a", 80), "two": port("b", 81)} {
		spec := applycore.ServiceSpec().WithPorts(p)
		_, err := services.Apply(t.Context(), applycore.Service("s", ns).WithSpec(spec), metav1.ApplyOptions{FieldManager: manager})
		must(t, err)
	}
	got, err := services.Get(t.Context(), "s", metav1.GetOptions{})
	must(t, err)
	if len(got.Spec.Ports) != 2 {
		t.Errorf("ports %v", got.Spec.Ports)
	}
	// The status is not the applier's.
	for _, entry := range got.ManagedFields {
		if strings.Contains(string(entry.FieldsV1.GetRawBytes()), "f:status") {
			t.Errorf("manager %s owns the status: %s", entry.Manager, entry.FieldsV1)
		}
	}
}

// TestStatusSeparation checks for every kind with a status that the object and
// its status are written apart, and that the generation counts the changes of
// the one only.
func TestStatusSeparation(t *testing.T) {
	i, ns := sharedServer(t)
	c := i.admin(t)
	one, two := int32(1), int32(2)
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}},
		Spec:       pod("", "", "c").Spec,
	}
	selector := &metav1.LabelSelector{MatchLabels: template.Labels}

	t.Run("deployment", func(t *testing.T) {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: selector, Template: template}}
		d.Status.Replicas = 7
		d, err := c.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{})
		must(t, err)
		if d.Status.Replicas != 0 || d.Generation != 1 {
			t.Errorf("created with status %v, generation %d", d.Status, d.Generation)
		}
		d.Spec.Replicas, d.Status.Replicas = &two, 7
		d, err = c.AppsV1().Deployments(ns).Update(t.Context(), d, metav1.UpdateOptions{})
		must(t, err)
		if d.Status.Replicas != 0 || d.Generation != 2 {
			t.Errorf("updated with status %v, generation %d", d.Status, d.Generation)
		}
		d.Spec.Replicas, d.Status.Replicas, d.Status.ObservedGeneration = &one, 7, 2
		d, err = c.AppsV1().Deployments(ns).UpdateStatus(t.Context(), d, metav1.UpdateOptions{})
		must(t, err)
		if d.Status.Replicas != 7 || *d.Spec.Replicas != 2 || d.Generation != 2 {
			t.Errorf("status updated: replicas %d, %v, generation %d", *d.Spec.Replicas, d.Status, d.Generation)
		}
	})
	t.Run("replicaset", func(t *testing.T) {
		rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "rs"}, Spec: appsv1.ReplicaSetSpec{Replicas: &one, Selector: selector, Template: template}}
		rs, err := c.AppsV1().ReplicaSets(ns).Create(t.Context(), rs, metav1.CreateOptions{})
		must(t, err)
		rs.Labels = map[string]string{"only": "metadata"}
		rs.Status.Replicas = 3
		rs, err = c.AppsV1().ReplicaSets(ns).Update(t.Context(), rs, metav1.UpdateOptions{})
		must(t, err)
		if rs.Generation != 1 || rs.Status.Replicas != 0 {
			t.Errorf("labels changed: generation %d, %v", rs.Generation, rs.Status)
		}
	})
	t.Run("pod", func(t *testing.T) {
		p, err := c.CoreV1().Pods(ns).Create(t.Context(), pod("p", "", "c"), metav1.CreateOptions{})
		must(t, err)
		if p.Status.Phase != corev1.PodPending || p.Status.QOSClass != corev1.PodQOSBestEffort || p.Generation != 1 {
			t.Errorf("created: %v, generation %d", p.Status, p.Generation)
		}
		p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, "10.0.0.1", []corev1.PodIP{{IP: "10.0.0.1"}}
		p.Spec.Containers[0].Image = "host:status"
		p, err = c.CoreV1().Pods(ns).UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
		must(t, err)
		if p.Status.PodIP != "10.0.0.1" || p.Spec.Containers[0].Image == "host:status" || p.Status.QOSClass != corev1.PodQOSBestEffort {
			t.Errorf("status updated: %v", p)
		}
		p.Status.Phase = corev1.PodFailed
		p.Spec.Containers[0].Image = "host:spec"
		p, err = c.CoreV1().Pods(ns).Update(t.Context(), p, metav1.UpdateOptions{})
		must(t, err)
		if p.Status.Phase != corev1.PodRunning || p.Generation != 2 {
			t.Errorf("updated: %v, generation %d", p.Status, p.Generation)
		}
	})
	t.Run("node", func(t *testing.T) {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: ns}}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		n, err := c.CoreV1().Nodes().Create(t.Context(), n, metav1.CreateOptions{})
		must(t, err)
		t.Cleanup(func() { c.CoreV1().Nodes().Delete(context.Background(), ns, metav1.DeleteOptions{}) })
		if len(n.Status.Conditions) != 1 {
			t.Errorf("a node registers with its status; it has %v", n.Status)
		}
		n.Spec.Unschedulable, n.Status.Conditions = true, nil
		n, err = c.CoreV1().Nodes().Update(t.Context(), n, metav1.UpdateOptions{})
		must(t, err)
		if len(n.Status.Conditions) != 1 || !n.Spec.Unschedulable {
			t.Errorf("updated: %v", n)
		}
	})
}

func TestScale(t *testing.T) {
	i, ns := sharedServer(t)
	deployments := i.admin(t).AppsV1().Deployments(ns)
	labels := map[string]string{"app": "x"}
	d := applyapps.Deployment("d", ns).WithSpec(applyapps.DeploymentSpec().
		WithReplicas(2).
		WithSelector(applymeta.LabelSelector().WithMatchLabels(labels)).
		WithTemplate(applycore.PodTemplateSpec().WithLabels(labels).WithSpec(
			applycore.PodSpec().WithContainers(applycore.Container().WithName("c").WithImage("host")))))
	_, err := deployments.Apply(t.Context(), d, metav1.ApplyOptions{FieldManager: "owner"})
	must(t, err)

	scale, err := deployments.GetScale(t.Context(), "d", metav1.GetOptions{})
	must(t, err)
	if scale.Spec.Replicas != 2 || scale.Status.Selector != "app=x" {
		t.Errorf("scale %+v", scale)
	}
	scale.Spec.Replicas = 5
	scale, err = deployments.UpdateScale(t.Context(), "d", scale, metav1.UpdateOptions{FieldManager: "scaler"})
	must(t, err)
	got, err := deployments.Get(t.Context(), "d", metav1.GetOptions{})
	must(t, err)
	if *got.Spec.Replicas != 5 || got.Generation != 2 {
		t.Errorf("replicas %d, generation %d", *got.Spec.Replicas, got.Generation)
	}
	// The replicas are the scaler's now, so the owner's apply conflicts.
	_, err = deployments.Apply(t.Context(), d, metav1.ApplyOptions{FieldManager: "owner"})
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "scaler") {
		t.Errorf("apply of scaled replicas: %v", err)
	}
	scale.Spec.Replicas = -1
	if _, err = deployments.UpdateScale(t.Context(), "d", scale, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("negative scale: %v", err)
	}
	stale := scale.DeepCopy()
	stale.ResourceVersion, stale.Spec.Replicas = "1", 3
	if _, err = deployments.UpdateScale(t.Context(), "d", stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("stale scale: %v", err)
	}
	patch := []byte(`{"spec":{"replicas":4}}`)
	_, err = deployments.Patch(t.Context(), "d", types.MergePatchType, patch, metav1.PatchOptions{}, "scale")
	must(t, err)
}

// TestSelectors checks every field selector there is, and that others are
// refused.
func TestSelectors(t *testing.T) {
	i, ns := sharedServer(t)
	c := i.admin(t)
	node := "node-" + ns
	for _, p := range []*corev1.Pod{pod("bound", node, "c"), pod("free", "", "c")} {
		_, err := c.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
		must(t, err)
	}
	status := `{"status":{"phase":"Running","podIP":"10.9.8.7","podIPs":[{"ip":"10.9.8.7"}]}}`
	_, err := c.CoreV1().Pods(ns).Patch(t.Context(), "bound", types.StrategicMergePatchType, []byte(status), metav1.PatchOptions{}, "status")
	must(t, err)
	for _, s := range []*corev1.Service{service("plain"), service("external")} {
		if s.Name == "external" {
			s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}
		}
		_, err := c.CoreV1().Services(ns).Create(t.Context(), s, metav1.CreateOptions{})
		must(t, err)
	}
	plain, err := c.CoreV1().Services(ns).Get(t.Context(), "plain", metav1.GetOptions{})
	must(t, err)
	for _, about := range []string{"bound", "free"} {
		event := &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Name: about},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: about, UID: types.UID("u-" + about)},
			Reason:         "R" + about, Type: "Normal", Source: corev1.EventSource{Component: "test"},
		}
		_, err := c.CoreV1().Events(ns).Create(t.Context(), event, metav1.CreateOptions{})
		must(t, err)
	}
	for _, row := range []struct{ resource, selector, want string }{
		{"pods", "metadata.name=free", "free"},
		{"pods", "metadata.namespace=" + ns, "bound free"},
		{"pods", "spec.nodeName=" + node, "bound"},
		{"pods", "spec.nodeName=", "free"},
		{"pods", "spec.nodeName!=" + node, "free"},
		{"pods", "spec.host=" + node, "bound"},
		{"pods", "status.phase=Running", "bound"},
		{"pods", "status.phase!=Running", "free"},
		{"pods", "status.podIP=10.9.8.7", "bound"},
		{"pods", "spec.restartPolicy=Always,status.phase=Pending", "free"},
		{"pods", "spec.colour=red", "error: field label not supported: spec.colour"},
		{"services", "spec.type=ExternalName", "external"},
		{"services", "spec.clusterIP=" + plain.Spec.ClusterIP, "plain"},
		{"services", "spec.ports=80", "error: field label not supported: spec.ports"},
		{"events", "involvedObject.name=bound", "bound"},
		{"events", "involvedObject.uid=u-free,involvedObject.kind=Pod", "free"},
		{"events", "reason=Rbound,type=Normal,source=test", "bound"},
		{"configmaps", "data.x=1", `error: "data.x" is not a known field selector: only "metadata.name", "metadata.namespace"`},
	} {
		t.Run(row.resource+" "+row.selector, func(t *testing.T) {
			list := &metav1.PartialObjectMetadataList{}
			raw, err := c.CoreV1().RESTClient().Get().Namespace(ns).Resource(row.resource).
				Param("fieldSelector", row.selector).Do(t.Context()).Raw()
			got := ""
			if err != nil {
				status := &metav1.Status{}
				must(t, json.Unmarshal(raw, status))
				got = "error: " + strings.TrimPrefix(status.Message, "Unable to find \""+"/v1, Resource="+row.resource+"\" that match label selector \"\", field selector \""+row.selector+"\": ")
			} else {
				must(t, json.Unmarshal(raw, list))
				var names []string
				for _, item := range list.Items {
					names = append(names, item.Name)
				}
				slices.Sort(names)
				got = strings.Join(names, " ")
			}
			if got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
	t.Run("watch by node", func(t *testing.T) {
		w, err := c.CoreV1().Pods(ns).Watch(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node, ResourceVersion: "0"})
		must(t, err)
		defer w.Stop()
		if event := next(t, w); event.Object.(*corev1.Pod).Name != "bound" {
			t.Errorf("got %v", event)
		}
		bind(t, c, ns, "free", node)
		if event := next(t, w); event.Type != watch.Added || event.Object.(*corev1.Pod).Name != "free" {
			t.Errorf("got %v", event)
		}
	})
	t.Run("nodes", func(t *testing.T) {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: corev1.NodeSpec{Unschedulable: true}}
		_, err := c.CoreV1().Nodes().Create(t.Context(), n, metav1.CreateOptions{})
		must(t, err)
		t.Cleanup(func() { c.CoreV1().Nodes().Delete(context.Background(), node, metav1.DeleteOptions{}) })
		list, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{FieldSelector: "spec.unschedulable=true"})
		must(t, err)
		if len(list.Items) != 1 || list.Items[0].Name != node {
			t.Errorf("got %d nodes", len(list.Items))
		}
	})
	t.Run("labels", func(t *testing.T) {
		_, err := c.CoreV1().Pods(ns).Patch(t.Context(), "free", types.MergePatchType, []byte(`{"metadata":{"labels":{"tier":"web"}}}`), metav1.PatchOptions{})
		must(t, err)
		for selector, want := range map[string]int{"tier=web": 1, "tier": 1, "!tier": 1, "tier in (web,db)": 1, "tier!=web": 1, "tier=db": 0} {
			list, err := c.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
			must(t, err)
			if len(list.Items) != want {
				t.Errorf("%s: %d pods, want %d", selector, len(list.Items), want)
			}
		}
	})
}

// TestPaging checks that a list in pieces is the list.
func TestPaging(t *testing.T) {
	i, ns := sharedServer(t)
	maps := i.admin(t).CoreV1().ConfigMaps(ns)
	for n := range 7 {
		_, err := maps.Create(t.Context(), configMap(fmt.Sprint("m", n), nil), metav1.CreateOptions{})
		must(t, err)
	}
	var names []string
	options := metav1.ListOptions{Limit: 3}
	for {
		list, err := maps.List(t.Context(), options)
		must(t, err)
		for _, m := range list.Items {
			names = append(names, m.Name)
		}
		if options.Continue = list.Continue; options.Continue == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "m0 m1 m2 m3 m4 m5 m6" {
		t.Errorf("got %s", got)
	}
	must(t, maps.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	list, err := maps.List(t.Context(), metav1.ListOptions{})
	must(t, err)
	if len(list.Items) != 0 {
		t.Errorf("%d left", len(list.Items))
	}
}

// TestOrphan checks what a deletion says about dependents.
func TestOrphan(t *testing.T) {
	i, ns := sharedServer(t)
	maps := i.admin(t).CoreV1().ConfigMaps(ns)
	for _, row := range []struct {
		policy    metav1.DeletionPropagation
		finalizer string
	}{
		{metav1.DeletePropagationOrphan, metav1.FinalizerOrphanDependents},
		{metav1.DeletePropagationForeground, metav1.FinalizerDeleteDependents},
		{metav1.DeletePropagationBackground, ""},
	} {
		t.Run(string(row.policy), func(t *testing.T) {
			name := strings.ToLower(string(row.policy))
			_, err := maps.Create(t.Context(), configMap(name, nil), metav1.CreateOptions{})
			must(t, err)
			must(t, maps.Delete(t.Context(), name, metav1.DeleteOptions{PropagationPolicy: &row.policy}))
			got, err := maps.Get(t.Context(), name, metav1.GetOptions{})
			if row.finalizer == "" {
				if !apierrors.IsNotFound(err) {
					t.Errorf("still there: %v %v", got, err)
				}
				return
			}
			must(t, err)
			if got.DeletionTimestamp == nil || !slices.Contains(got.Finalizers, row.finalizer) {
				t.Errorf("got %v", got.ObjectMeta)
			}
			got.Finalizers = nil
			_, err = maps.Update(t.Context(), got, metav1.UpdateOptions{})
			must(t, err)
			if _, err := maps.Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("without finalizers: %v", err)
			}
		})
	}
}
