// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"
)

// The tests here let requests go wrong in ways that the real server shows only rarely.

var podsResource = schema.GroupResource{Resource: "pods"}

func plainSet(replicas int32) *appsv1.ReplicaSet {
	labels := map[string]string{"app": "web"}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "rs"},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}},
		},
	}
}

// livingPods lists the names of the pods.
func livingPods(t *testing.T, client *fake.Clientset) []string {
	t.Helper()
	list, err := client.CoreV1().Pods("shop").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return names
}

// onCreatePod lets the first n creates of pods go as f says; f is given what makes the pod.
func onCreatePod(h *hub, n int, f func(create func() error) error) {
	client := h.client.(*fake.Clientset)
	var left guarded[int]
	left.set(n)
	client.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mine := false
		left.change(func(n int) int { mine = n > 0; return n - 1 })
		if !mine {
			return false, nil, nil
		}
		pod := a.(clienttesting.CreateAction).GetObject().(*corev1.Pod)
		return true, pod, f(func() error { return client.Tracker().Create(a.GetResource(), pod, pod.Namespace) })
	})
}

// TestLostAnswerOfACreate loses the answers of creates, of which some were done and some were not. Either way
// there must be exactly as many pods as asked for in the end, and never more.
func TestLostAnswerOfACreate(t *testing.T) {
	lost := errors.New("connection reset by peer")
	for name, f := range map[string]func(create func() error) error{
		"done":     func(create func() error) error { return errors.Join(create(), lost) },
		"not done": func(func() error) error { return lost },
		"timeout, done": func(create func() error) error {
			return errors.Join(create(), apierrors.NewTimeoutError("too slow", 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			start := func(h *hub) {
				onCreatePod(h, 2, f)
				newReplicaSets(h)
			}
			inWorld(t, Options{}, nil, start, func(client *fake.Clientset, _ *syncBuffer) {
				if _, err := client.AppsV1().ReplicaSets("shop").Create(context.Background(), plainSet(5), metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				for range 60 {
					time.Sleep(time.Second)
					synctest.Wait()
					if got := livingPods(t, client); len(got) > 5 {
						t.Fatalf("%d pods, want no more than 5: %v", len(got), got)
					}
				}
				if got := livingPods(t, client); len(got) != 5 {
					t.Errorf("%d pods, want 5", len(got))
				}
			})
		})
	}
}

// TestRefusedCreate refuses pods for a while, as a quota would. The ReplicaSet says so in its status, tries ever
// more slowly, is not written again and again although every refusal names another pod, and recovers.
func TestRefusedCreate(t *testing.T) {
	var allowed guarded[bool]
	var tries guarded[int]
	start := func(h *hub) {
		h.client.(*fake.Clientset).PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
			tries.change(inc)
			pod := a.(clienttesting.CreateAction).GetObject().(*corev1.Pod)
			return !allowed.get(), nil, apierrors.NewForbidden(podsResource, pod.Name, errors.New("exceeded quota"))
		})
		newReplicaSets(h)
	}
	inWorld(t, Options{}, nil, start, func(client *fake.Clientset, log *syncBuffer) {
		sets := client.AppsV1().ReplicaSets("shop")
		if _, err := sets.Create(context.Background(), plainSet(4), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if n := tries.get(); n > 60 {
			t.Errorf("%d tries in 10 minutes", n)
		}
		rs, err := sets.Get(context.Background(), "web", metav1.GetOptions{})
		if err != nil || len(rs.Status.Conditions) != 1 || rs.Status.Conditions[0].Reason != "FailedCreate" {
			t.Fatalf("status %+v, %v", rs.Status, err)
		}
		writes := 0
		for _, a := range client.Actions() {
			if a.GetVerb() == "update" && a.GetResource().Resource == "replicasets" {
				writes++
			}
		}
		if writes > 2 || log.lines() != 2 { // "controllers started" and the failure
			t.Errorf("%d writes of the status; log: %s", writes, log)
		}
		allowed.set(true)
		time.Sleep(time.Minute)
		rs, err = sets.Get(context.Background(), "web", metav1.GetOptions{})
		if err != nil || len(rs.Status.Conditions) != 0 || rs.Status.Replicas != 4 || len(livingPods(t, client)) != 4 {
			t.Errorf("status %+v, %v", rs.Status, err)
		}
	})
}

// TestPodGoneBeforeSeen deletes pods the moment they are made, so that an informer may show neither their coming
// nor their going.
func TestPodGoneBeforeSeen(t *testing.T) {
	start := func(h *hub) {
		onCreatePod(h, 3, func(func() error) error { return nil }) // said to be made, and never seen
		newReplicaSets(h)
	}
	inWorld(t, Options{}, nil, start, func(client *fake.Clientset, _ *syncBuffer) {
		if _, err := client.AppsV1().ReplicaSets("shop").Create(context.Background(), plainSet(3), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(doubtArrival / 2)
		if got := livingPods(t, client); len(got) != 0 {
			t.Errorf("made %v while the first ones may still be on their way", got)
		}
		time.Sleep(2 * doubtArrival)
		if got := livingPods(t, client); len(got) != 3 {
			t.Errorf("%d pods, want 3", len(got))
		}
	})
}

// TestBindFails lets bindings fail: the place is given back, and the pod gets one in the end.
func TestBindFails(t *testing.T) {
	var fails guarded[int]
	fails.set(3)
	start := func(h *hub) {
		client := h.client.(*fake.Clientset)
		client.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
			if a.GetSubresource() != "binding" {
				return false, nil, nil
			}
			failed := false
			fails.change(func(n int) int { failed = n > 0; return n - 1 })
			if failed {
				return true, nil, apierrors.NewInternalError(errors.New("etcd is slow"))
			}
			pod, err := client.Tracker().Get(a.GetResource(), "shop", "p")
			if err != nil {
				return true, nil, err
			}
			bound := pod.(*corev1.Pod).DeepCopy()
			bound.Spec.NodeName = a.(clienttesting.CreateAction).GetObject().(*corev1.Binding).Target.Name
			return true, nil, client.Tracker().Update(a.GetResource(), bound, "shop")
		})
		newScheduler(h)
	}
	inWorld(t, Options{}, []runtime.Object{testNode("n1", room(1))}, start, func(client *fake.Clientset, _ *syncBuffer) {
		if _, err := client.CoreV1().Pods("shop").Create(context.Background(), testPod("p"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		pod, err := client.CoreV1().Pods("shop").Get(context.Background(), "p", metav1.GetOptions{})
		if err != nil || pod.Spec.NodeName != "n1" {
			t.Errorf("bound to %q, %v", pod.Spec.NodeName, err)
		}
		// the node is full now: the next one waits, until there is room
		if _, err := client.CoreV1().Pods("shop").Create(context.Background(), testPod("q"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		pod, err = client.CoreV1().Pods("shop").Get(context.Background(), "q", metav1.GetOptions{})
		if err != nil || len(pod.Status.Conditions) != 1 || pod.Status.Conditions[0].Message != "0/1 nodes are available: 1 Too many pods." {
			t.Errorf("status %+v, %v", pod.Status, err)
		}
	})
}

// TestDeploymentLags checks that a ReplicaSet shown older than we wrote it is not decided upon.
func TestDeploymentLags(t *testing.T) {
	d := &deployments{written: map[types.UID]int64{}}
	rs := plainSet(3)
	rs.Generation = 4
	if d.lags(rs) {
		t.Error("one that we never wrote lags")
	}
	newer := rs.DeepCopy()
	newer.Generation = 5
	d.wrote(newer)
	if !d.lags(rs) || d.lags(newer) {
		t.Error("lags is wrong")
	}
	newer.Spec.Replicas = ptr.To[int32](9)
	newer.Generation = 6 // somebody else's
	if d.lags(newer) {
		t.Error("a newer one lags")
	}
}

// TestSliceGoneBeforeItsAnswer deletes a slice before the controller has the answer to its creation, and one that it has not written since it was started. Both are
// made again.
func TestSliceGoneBeforeItsAnswer(t *testing.T) {
	slices := func(t *testing.T, client *fake.Clientset) []discoveryv1.EndpointSlice {
		t.Helper()
		time.Sleep(time.Minute)
		list, err := client.DiscoveryV1().EndpointSlices("shop").List(context.Background(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 {
			t.Fatalf("%d slices, %v; want one", len(list.Items), err)
		}
		return list.Items
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "web"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Port: 80}}},
	}
	creates := func(first func(*fake.Clientset, schema.GroupVersionResource, *discoveryv1.EndpointSlice) error) func(*hub) {
		return func(h *hub) {
			client, made := h.client.(*fake.Clientset), 0
			client.PrependReactor("create", "endpointslices", func(a clienttesting.Action) (bool, runtime.Object, error) {
				slice := a.(clienttesting.CreateAction).GetObject().(*discoveryv1.EndpointSlice).DeepCopy()
				made++
				slice.Name, slice.UID, slice.Generation = fmt.Sprint("web-", made), types.UID(fmt.Sprint(made)), 1
				err := client.Tracker().Create(a.GetResource(), slice, slice.Namespace)
				if made == 1 && err == nil {
					err = first(client, a.GetResource(), slice)
				}
				return true, slice, err
			})
			newEndpointSlices(h)
		}
	}
	remove := func(client *fake.Clientset, resource schema.GroupVersionResource, slice *discoveryv1.EndpointSlice) error {
		err := client.Tracker().Delete(resource, slice.Namespace, slice.Name)
		time.Sleep(time.Second) // everybody hears of it before the answer arrives
		return err
	}
	var left runtime.Object
	inWorld(t, Options{}, []runtime.Object{service}, creates(remove), func(client *fake.Clientset, _ *syncBuffer) {
		got := slices(t, client)
		if got[0].Name != "web-2" {
			t.Errorf("the slice is %s", got[0].Name)
		}
		left = &got[0]
	})
	keep := func(*fake.Clientset, schema.GroupVersionResource, *discoveryv1.EndpointSlice) error { return nil }
	inWorld(t, Options{}, []runtime.Object{service, left}, creates(keep), func(client *fake.Clientset, _ *syncBuffer) {
		slices(t, client)
		if err := client.DiscoveryV1().EndpointSlices("shop").Delete(context.Background(), "web-2", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := slices(t, client); got[0].Name != "web-1" {
			t.Errorf("the slice is %s", got[0].Name)
		}
	})
}
