// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// pod is a pod of containers, on a node if it has a name.
func pod(name, node string, containers ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: node}}
	for _, c := range containers {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: c, Image: "host", Command: []string{"/bin/true"}})
	}
	return p
}

// bind assigns a pod to a node.
func bind(t testing.TB, c kubernetes.Interface, ns, name, node string) {
	t.Helper()
	binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}
	must(t, c.CoreV1().Pods(ns).Bind(t.Context(), binding, metav1.CreateOptions{}))
}

func TestBinding(t *testing.T) {
	i, ns := sharedServer(t)
	c := i.admin(t)
	made, err := c.CoreV1().Pods(ns).Create(t.Context(), pod("p", "", "c"), metav1.CreateOptions{})
	must(t, err)
	try := func(change func(*corev1.Binding)) error {
		b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: ns}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}
		change(b)
		return c.CoreV1().Pods(ns).Bind(t.Context(), b, metav1.CreateOptions{})
	}
	for _, row := range []struct {
		name   string
		change func(*corev1.Binding)
		want   func(error) bool
	}{
		{"to nothing", func(b *corev1.Binding) { b.Target.Name = "" }, apierrors.IsInvalid},
		{"to a service", func(b *corev1.Binding) { b.Target.Kind = "Service" }, apierrors.IsInvalid},
		{"another of the name", func(b *corev1.Binding) { b.UID = "other" }, apierrors.IsConflict},
		{"missing", func(b *corev1.Binding) { b.Name = "q" }, apierrors.IsNotFound},
	} {
		if err := try(row.change); !row.want(err) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
	must(t, try(func(b *corev1.Binding) { b.UID = made.UID; b.Annotations = map[string]string{"why": "room"} }))
	got, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{})
	must(t, err)
	if got.Spec.NodeName != "n1" || got.Annotations["why"] != "room" || len(got.Status.Conditions) != 1 ||
		got.Status.Conditions[0].Type != corev1.PodScheduled || got.Status.Conditions[0].Status != corev1.ConditionTrue {
		t.Errorf("bound: %v %v", got.Spec.NodeName, got.Status.Conditions)
	}
	err = try(func(b *corev1.Binding) { b.Target.Name = "n2" })
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `pod p is already assigned to node "n1"`) {
		t.Errorf("bound again: %v", err)
	}
	got.Spec.NodeName = "n2"
	if _, err := c.CoreV1().Pods(ns).Update(t.Context(), got, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("moved by update: %v", err)
	}
}

// TestBindingRace checks that of many schedulers one wins.
func TestBindingRace(t *testing.T) {
	i, ns := sharedServer(t)
	c := i.admin(t)
	_, err := c.CoreV1().Pods(ns).Create(t.Context(), pod("p", "", "c"), metav1.CreateOptions{})
	must(t, err)
	var won atomic.Int32
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Target: corev1.ObjectReference{Name: "n" + string(rune('a'+n))}}
			err := c.CoreV1().Pods(ns).Bind(t.Context(), b, metav1.CreateOptions{})
			switch {
			case err == nil:
				won.Add(1)
			case !apierrors.IsConflict(err):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d bindings succeeded", won.Load())
	}
}

// TestPodDeletion checks when a pod goes at once and when it is told to end.
func TestPodDeletion(t *testing.T) {
	i, ns := sharedServer(t)
	c := i.admin(t)
	seconds := func(n int64) *int64 { return &n }
	for _, row := range []struct {
		name  string
		node  string
		phase corev1.PodPhase
		spec  *int64 // terminationGracePeriodSeconds
		asked *int64
		want  int64 // grace period; 0 is gone
	}{
		{"free", "", corev1.PodPending, nil, nil, 0},
		{"free with grace", "", corev1.PodPending, seconds(60), seconds(60), 0},
		{"running", "n1", corev1.PodRunning, nil, nil, 30},
		{"running with its own grace", "n1", corev1.PodRunning, seconds(7), nil, 7},
		{"running, asked for less", "n1", corev1.PodRunning, seconds(7), seconds(3), 3},
		{"running, asked for more", "n1", corev1.PodRunning, seconds(7), seconds(90), 90},
		{"running, at once", "n1", corev1.PodRunning, nil, seconds(0), 0},
		{"succeeded", "n1", corev1.PodSucceeded, nil, nil, 0},
		{"failed", "n1", corev1.PodFailed, nil, seconds(20), 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			name := strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(row.name)
			p := pod(name, row.node, "c")
			p.Spec.TerminationGracePeriodSeconds = row.spec
			pods := c.CoreV1().Pods(ns)
			p, err := pods.Create(t.Context(), p, metav1.CreateOptions{})
			must(t, err)
			p.Status.Phase = row.phase
			p, err = pods.UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
			must(t, err)
			must(t, pods.Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: row.asked}))
			got, err := pods.Get(t.Context(), name, metav1.GetOptions{})
			if row.want == 0 {
				if !apierrors.IsNotFound(err) {
					t.Errorf("still there: %v %v", got, err)
				}
				return
			}
			must(t, err)
			if got.DeletionTimestamp == nil || got.DeletionGracePeriodSeconds == nil || *got.DeletionGracePeriodSeconds != row.want {
				t.Fatalf("deletion %v, grace %v", got.DeletionTimestamp, got.DeletionGracePeriodSeconds)
			}
			if got.Generation != p.Generation+1 {
				t.Errorf("generation %d after %d", got.Generation, p.Generation)
			}
			// The node reports the end and completes it.
			got.Status.Phase = corev1.PodSucceeded
			got, err = pods.UpdateStatus(t.Context(), got, metav1.UpdateOptions{})
			must(t, err)
			if got.DeletionTimestamp == nil {
				t.Error("a status update took the deletion back")
			}
			zero := int64(0)
			other := types.UID("other")
			err = pods.Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &other}})
			if !apierrors.IsConflict(err) {
				t.Errorf("deletion of another pod of the name: %v", err)
			}
			must(t, pods.Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &got.UID}}))
			if _, err := pods.Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("after the node's deletion: %v", err)
			}
		})
	}
}

func TestEviction(t *testing.T) {
	i, ns := sharedServer(t)
	pods := i.admin(t).CoreV1().Pods(ns)
	_, err := pods.Create(t.Context(), pod("p", "n1", "c"), metav1.CreateOptions{})
	must(t, err)
	evict := func(name string) error {
		return pods.EvictV1(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}})
	}
	must(t, evict("p"))
	got, err := pods.Get(t.Context(), "p", metav1.GetOptions{})
	must(t, err)
	if got.DeletionTimestamp == nil {
		t.Error("an evicted pod is not told to end")
	}
	err = evict("q")
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Message != `pods "q" not found` {
		t.Errorf("eviction of a missing pod: %v", err)
	}
}
