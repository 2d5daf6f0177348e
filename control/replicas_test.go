// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// edit is one change of a pod for a test.
type edit func(*corev1.Pod)

func testPod(name string, edits ...edit) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "web"},
		CreationTimestamp: metav1.NewTime(testStart.Add(-time.Hour)),
	}}
	for _, e := range edits {
		e(pod)
	}
	return pod
}

func on(node string) edit { return func(p *corev1.Pod) { p.Spec.NodeName = node } }

func phase(ph corev1.PodPhase) edit { return func(p *corev1.Pod) { p.Status.Phase = ph } }

// readyFor makes a pod running and ready since d before testStart.
func readyFor(d time.Duration) edit {
	return func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
			Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(testStart.Add(-d)),
		})
	}
}

func ending(p *corev1.Pod) { p.DeletionTimestamp = ptr.To(metav1.NewTime(testStart)) }

func created(before time.Duration) edit {
	return func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(testStart.Add(-before)) }
}

func cost(n string) edit {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: n} }
}

func restarted(n int32) edit {
	return func(p *corev1.Pod) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: n}}
	}
}

func labelled(labels map[string]string) edit { return func(p *corev1.Pod) { p.Labels = labels } }

func owned(by string) edit {
	return func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: by, UID: types.UID(by), Controller: ptr.To(true)}}
	}
}

func podNames(pods []*corev1.Pod) []string {
	var out []string
	for _, pod := range pods {
		out = append(out, pod.Name)
	}
	return out
}

func TestVictims(t *testing.T) {
	hour := readyFor(time.Hour)
	for _, c := range []struct {
		name string
		pods []*corev1.Pod // in the order in which they should go
	}{
		{"without a node first", []*corev1.Pod{testPod("b"), testPod("a", on("n1"), hour)}},
		{"pending, unknown, running", []*corev1.Pod{
			testPod("c", on("n1"), phase(corev1.PodPending)), testPod("b", on("n1"), phase(corev1.PodUnknown)), testPod("a", on("n1"), phase(corev1.PodRunning))}},
		{"not ready before ready", []*corev1.Pod{testPod("b", on("n1"), phase(corev1.PodRunning)), testPod("a", on("n1"), hour)}},
		{"cheaper first", []*corev1.Pod{
			testPod("d", on("n1"), hour, cost("-5")), testPod("b", on("n2"), hour, cost("oops")), testPod("c", on("n3"), hour, cost("7"))}},
		{"the crowded node first", []*corev1.Pod{testPod("b", on("n2"), hour), testPod("c", on("n2"), hour), testPod("a", on("n1"), hour)}},
		{"ready for a shorter time first", []*corev1.Pod{testPod("b", on("n1"), readyFor(time.Second)), testPod("a", on("n2"), hour)}},
		{"more restarts first", []*corev1.Pod{testPod("b", on("n1"), hour, restarted(3)), testPod("a", on("n2"), hour, restarted(1))}},
		{"younger first", []*corev1.Pod{testPod("b", on("n1"), hour, created(time.Second)), testPod("a", on("n2"), hour, created(time.Hour))}},
		{"the same order of age: any, but always the same", []*corev1.Pod{
			testPod("a", on("n1"), readyFor(61*time.Minute)), testPod("b", on("n2"), readyFor(60*time.Minute))}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for n := 1; n <= len(c.pods); n++ {
				shuffled := slices.Clone(c.pods)
				slices.Reverse(shuffled)
				got := podNames(victims(shuffled, c.pods, n, testStart))
				want := podNames(c.pods[:n])
				if n == len(c.pods) {
					slices.Sort(got)
					slices.Sort(want)
				}
				if !slices.Equal(got, want) {
					t.Errorf("%d of %v: got %v", n, podNames(c.pods), got)
				}
			}
		})
	}
	// the crowd is counted over all ReplicaSets of the Deployment, without those that are on their way out
	related := []*corev1.Pod{testPod("x", on("n1"), hour), testPod("y", on("n2"), hour, ending), testPod("z", on("n2"), hour, ending)}
	own := []*corev1.Pod{testPod("a", on("n1"), hour), testPod("b", on("n2"), hour)}
	if got := podNames(victims(own, append(related, own...), 1, testStart)); got[0] != "a" {
		t.Errorf("crowded by others: got %v, want a", got)
	}
}

func TestReplicaSetStatus(t *testing.T) {
	rs := testSet("1", 3, 0)
	rs.Generation = 7
	rs.Spec.MinReadySeconds = 10
	full := labelled(rs.Spec.Template.Labels)
	pods := []*corev1.Pod{
		testPod("available", full, readyFor(time.Minute)),
		testPod("ready", full, readyFor(4*time.Second)),
		testPod("readier", full, readyFor(7*time.Second)),
		testPod("starting", phase(corev1.PodPending)),
		testPod("ending", full, readyFor(time.Minute), ending),
		testPod("failed", full, phase(corev1.PodFailed)),
		testPod("failed and ending", full, phase(corev1.PodFailed), ending),
	}
	got, again := replicaSetStatus(rs, pods, nil, testStart)
	want := appsv1.ReplicaSetStatus{
		Replicas: 4, FullyLabeledReplicas: 3, ReadyReplicas: 3, AvailableReplicas: 1,
		TerminatingReplicas: ptr.To[int32](1), ObservedGeneration: 7,
	}
	if !equality.Semantic.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if again != 3*time.Second {
		t.Errorf("looks again after %v, want 3s, when the next pod is available", again)
	}
	rs.Spec.MinReadySeconds = 0
	if got, again := replicaSetStatus(rs, pods, nil, testStart); got.AvailableReplicas != 3 || again != 0 {
		t.Errorf("without minReadySeconds: %d available, again %v", got.AvailableReplicas, again)
	}
	// a failure is shown, stays as first said while it lasts, and goes
	failed, _ := replicaSetStatus(rs, nil, errors.New("first"), testStart)
	if len(failed.Conditions) != 1 || failed.Conditions[0].Reason != "FailedCreate" || failed.Conditions[0].Message != "first" {
		t.Fatalf("failure is shown as %v", failed.Conditions)
	}
	rs.Status = failed
	if again, _ := replicaSetStatus(rs, nil, errors.New("second"), testStart.Add(time.Hour)); !equality.Semantic.DeepEqual(again, failed) {
		t.Errorf("the same failure again is another status: %v", again)
	}
	if over, _ := replicaSetStatus(rs, nil, nil, testStart); len(over.Conditions) != 0 {
		t.Errorf("the failure stays: %v", over.Conditions)
	}
}

func TestClaimOf(t *testing.T) {
	rs := testSet("1", 1, 1)
	leaving := rs.DeepCopy()
	leaving.DeletionTimestamp = ptr.To(metav1.Now())
	for _, c := range []struct {
		name    string
		pod     *corev1.Pod
		owner   *appsv1.ReplicaSet
		matches bool
		want    claim
	}{
		{"its own", testPod("a", owned("1")), rs, true, own},
		{"its own, no longer matching", testPod("a", owned("1")), rs, false, release},
		{"its own, of an owner that leaves", testPod("a", owned("1")), leaving, true, own},
		{"no longer matching, of an owner that leaves", testPod("a", owned("1")), leaving, false, leave},
		{"another's", testPod("a", owned("2")), rs, true, leave},
		{"nobody's", testPod("a"), rs, true, adopt},
		{"nobody's, not matching", testPod("a"), rs, false, leave},
		{"nobody's, ending", testPod("a", ending), rs, true, leave},
		{"nobody's, of an owner that leaves", testPod("a"), leaving, true, leave},
	} {
		if got := claimOf(c.pod, c.owner, c.matches); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}

func TestInBatches(t *testing.T) {
	var calls, most, now atomic.Int32
	done, err := inBatches(20, func() error {
		calls.Add(1)
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		return nil
	})
	if done != 20 || err != nil || calls.Load() != 20 {
		t.Errorf("did %d of 20 in %d calls: %v", done, calls.Load(), err)
	}
	calls.Store(0)
	done, err = inBatches(500, func() error {
		if calls.Add(1) > 3 {
			return errors.New("quota")
		}
		return nil
	})
	if done != 3 || err == nil || calls.Load() > 8 {
		t.Errorf("did %d with %d calls, error %v: want 3, and no more calls than one batch", done, calls.Load(), err)
	}
}

func TestExpectations(t *testing.T) {
	e := newExpectations()
	settled := func(living ...types.UID) bool {
		shown := map[types.UID]bool{}
		for _, uid := range living {
			shown[uid] = true
		}
		arrivals, departures := e.pending("rs", shown)
		return len(arrivals) == 0 && !departures
	}
	e.create("rs", "a", testStart)
	e.create("rs", "b", testStart)
	e.create("other", "c", testStart)
	if settled() {
		t.Error("settled before anything arrived")
	}
	e.seen("rs", "a")
	e.seen("rs", "x") // not ours to wait for
	if settled() {
		t.Error("settled before b arrived")
	}
	e.seen("rs", "b")
	if !settled() {
		t.Error("not settled after both arrived")
	}
	e.remove("rs", "u1")
	e.remove("rs", "u2")
	if settled("u1") || settled("u1") {
		t.Error("settled while a deleted pod is shown as living")
	}
	if !settled() {
		t.Error("not settled after both are gone")
	}
	e.remove("rs", "u3")
	e.undo("rs", "u3")
	if !settled("u3") {
		t.Error("not settled after the deletion failed")
	}
	e.forget("other")
	if len(e.created)+len(e.deleted) != 0 {
		t.Errorf("remembers %v %v for ever", e.created, e.deleted)
	}
}

func TestRefusedReadsTheSame(t *testing.T) {
	cause := errors.New("x")
	r := &refused{err: fmt.Errorf("why: %w", cause), text: "create pod: why"}
	if r.Error() != "create pod: why" || !errors.Is(r, cause) {
		t.Error("refused loses its text or its cause")
	}
}
