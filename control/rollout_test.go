// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// newRand returns a generator whose seed is printed, so that a failure can be repeated by writing it here.
func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

var testStart = time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)

func template(version string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web", "version": version}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "host"}}},
	}
}

func testDeployment(replicas int32, surge, unavailable string, version string) *appsv1.Deployment {
	s, u := intstr.Parse(surge), intstr.Parse(unavailable)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "d", Generation: 1},
		Spec: appsv1.DeploymentSpec{
			Replicas:                &replicas,
			Selector:                &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template:                template(version),
			RevisionHistoryLimit:    ptr.To[int32](2),
			ProgressDeadlineSeconds: ptr.To[int32](600),
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u},
			},
		},
	}
}

// testSet is a ReplicaSet of the n-th template with that many replicas asked for and available.
func testSet(version string, asked, available int32) *appsv1.ReplicaSet {
	n, _ := strconv.Atoi(version)
	t := template(version)
	t.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = "hash" + version
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web-" + version, Namespace: "shop", UID: types.UID(version),
			CreationTimestamp: metav1.NewTime(testStart.Add(time.Duration(n) * time.Minute)),
			Annotations:       map[string]string{revisionAnnotation: version},
		},
		Spec:   appsv1.ReplicaSetSpec{Replicas: &asked, Template: t},
		Status: appsv1.ReplicaSetStatus{Replicas: asked, ReadyReplicas: available, AvailableReplicas: available},
	}
}

func TestBounds(t *testing.T) {
	for _, c := range []struct {
		replicas                   int32
		surge, unavailable         string
		wantSurge, wantUnavailable int32
	}{
		{4, "25%", "25%", 1, 1},
		{10, "25%", "25%", 3, 2}, // surge rounds up, unavailable down
		{1, "25%", "25%", 1, 0},
		{3, "1", "0", 1, 0},
		{3, "0", "1", 0, 1},
		{3, "0", "0%", 0, 1}, // something must be able to move
		{2, "0", "5", 0, 2},
		{2, "0", "10%", 0, 1},
		{0, "1", "1", 0, 0},
		{4, "100%", "100%", 4, 4},
	} {
		surge, unavailable := bounds(testDeployment(c.replicas, c.surge, c.unavailable, "1"))
		if surge != c.wantSurge || unavailable != c.wantUnavailable {
			t.Errorf("%d replicas, surge %s, unavailable %s: got %d and %d, want %d and %d",
				c.replicas, c.surge, c.unavailable, surge, unavailable, c.wantSurge, c.wantUnavailable)
		}
	}
	d := testDeployment(4, "1", "1", "1")
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	if surge, unavailable := bounds(d); surge != 0 || unavailable != 0 {
		t.Errorf("recreate: got %d and %d, want 0 and 0", surge, unavailable)
	}
	d = testDeployment(4, "1", "1", "1")
	d.Spec.Strategy.RollingUpdate = nil
	if surge, unavailable := bounds(d); surge != 1 || unavailable != 1 {
		t.Errorf("no parameters: got %d and %d, want the 25%% of Kubernetes' default", surge, unavailable)
	}
}

func TestNewRollout(t *testing.T) {
	d := testDeployment(3, "1", "0", "2")
	r := newRollout(d, []*appsv1.ReplicaSet{testSet("3", 1, 1), testSet("2", 1, 1), testSet("1", 1, 1)})
	if r.new == nil || r.new.Name != "web-2" {
		t.Fatalf("new is %v, want web-2", r.new)
	}
	if len(r.old) != 2 || r.old[0].Name != "web-1" || r.old[1].Name != "web-3" {
		t.Errorf("old is %v, want web-1, web-3", r.old)
	}
	if len(r.all()) != 3 {
		t.Errorf("all has %d, want 3", len(r.all()))
	}
}

// write applies scalings the way the API would.
func write(scalings []scaling, d *appsv1.Deployment) {
	for _, s := range scalings {
		to := s.to
		s.rs.Spec.Replicas = &to
		s.rs.Generation++
		if s.rs.Annotations == nil {
			s.rs.Annotations = map[string]string{}
		}
		maps.Copy(s.rs.Annotations, sizeAnnotations(d))
	}
}

// TestRollingKeepsItsBounds rolls random Deployments, with pods that become available, break and report late, and
// checks at every step what a rolling update promises, and that it ends.
func TestRollingKeepsItsBounds(t *testing.T) {
	rnd := newRand(t)
	percent := func() string {
		if rnd.IntN(2) == 0 {
			return strconv.Itoa(rnd.IntN(4))
		}
		return strconv.Itoa(rnd.IntN(101)) + "%"
	}
	for range 60 {
		replicas := int32(1 + rnd.IntN(20))
		d := testDeployment(replicas, percent(), percent(), "1")
		first := testSet("1", replicas, replicas)
		write([]scaling{{first, replicas}}, d)
		sets := []*appsv1.ReplicaSet{first}
		live := map[string]int32{"web-1": replicas} // pods that really serve
		version := 1
		surge, unavailable := bounds(d)
		name := fmt.Sprintf("%d replicas, surge %d, unavailable %d", replicas, surge, unavailable)

		check := func() {
			t.Helper()
			if total := sum(sets, asked); total > replicas+surge {
				t.Fatalf("%s: %d pods asked for", name, total)
			}
			var serving int32
			for _, rs := range sets {
				serving += live[rs.Name]
			}
			if serving < replicas-unavailable {
				t.Fatalf("%s: %d pods serve", name, serving)
			}
		}
		rounds := 0
		for templates := 1 + rnd.IntN(3); templates > 0; templates-- {
			version++
			d.Spec.Template = template(strconv.Itoa(version))
			sets = append(sets, testSet(strconv.Itoa(version), 0, 0))
			settle := templates == 1 // the last one is left in peace to finish
			for step := 0; settle || step < rnd.IntN(12); step++ {
				if rounds++; rounds > 20000 {
					t.Fatalf("%s: does not end", name)
				}
				r := newRollout(d, sets)
				write([]scaling{{r.new, r.newSize()}}, d)
				r = newRollout(d, sets)
				write(r.shrinkOld(), d)
				for _, rs := range sets { // scaling down is done by somebody else, but surely; it takes what the set has too many
					live[rs.Name] = min(live[rs.Name], asked(rs))
				}
				check()
				// the world moves on: a pod comes up, or a status is reported, maybe late
				rs := sets[rnd.IntN(len(sets))]
				if live[rs.Name] < asked(rs) && rnd.IntN(2) == 0 {
					live[rs.Name]++
				}
				if rnd.IntN(2) == 0 {
					rs.Status.Replicas, rs.Status.AvailableReplicas = asked(rs), live[rs.Name]
				}
				done := newRollout(d, sets)
				if s := done.status(testStart); settle && done.complete(&s) && sum(done.old, asked) == 0 {
					break
				}
			}
		}
	}
}

func TestShrinkOldTakesBrokenFirst(t *testing.T) {
	d := testDeployment(4, "1", "1", "3")
	// revision 2 never came up: its pods go although nothing of the new one is available yet
	sets := []*appsv1.ReplicaSet{testSet("1", 3, 3), testSet("2", 2, 0), testSet("3", 0, 0)}
	got := newRollout(d, sets).shrinkOld()
	if len(got) != 1 || got[0].rs.Name != "web-2" || got[0].to != 0 {
		t.Errorf("got %v, want web-2 to 0", got)
	}
}

func TestRescale(t *testing.T) {
	type set struct {
		version   string
		asked     int32
		available int32
	}
	for _, c := range []struct {
		name     string
		replicas int32
		from     int32 // the size the sets were last scaled for
		version  string
		sets     []set
		want     map[string]int32
	}{
		{"only one", 5, 3, "1", []set{{"1", 3, 3}}, map[string]int32{"web-1": 5}},
		{"down to none", 0, 3, "1", []set{{"1", 3, 3}}, map[string]int32{"web-1": 0}},
		{"from none", 3, 0, "2", []set{{"1", 0, 0}, {"2", 0, 0}}, map[string]int32{"web-2": 3}},
		{"from none, new template not rolled out", 3, 0, "3", []set{{"1", 0, 0}, {"2", 0, 0}}, map[string]int32{"web-2": 3}},
		{"middle of a rollout, up", 20, 10, "2", []set{{"1", 6, 6}, {"2", 5, 5}}, map[string]int32{"web-1": 11, "web-2": 10}},
		{"middle of a rollout, down", 5, 10, "2", []set{{"1", 6, 6}, {"2", 5, 5}}, map[string]int32{"web-1": 3, "web-2": 3}},
		{"middle of a rollout, down to none", 0, 10, "2", []set{{"1", 6, 6}, {"2", 5, 5}}, map[string]int32{"web-1": 0, "web-2": 0}},
		{"middle of a rollout, rounding all up", 1, 3, "4", []set{{"1", 1, 1}, {"2", 1, 1}, {"3", 1, 1}, {"4", 1, 1}}, map[string]int32{"web-1": 0, "web-2": 0, "web-3": 1, "web-4": 1}},
		{"new one has everything", 5, 5, "2", []set{{"1", 2, 2}, {"2", 5, 5}}, map[string]int32{"web-1": 0}},
		{"nothing there", 5, 5, "1", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := testDeployment(c.from, "1", "0", c.version)
			var sets []*appsv1.ReplicaSet
			for _, s := range c.sets {
				rs := testSet(s.version, s.asked, s.available)
				write([]scaling{{rs, s.asked}}, d)
				sets = append(sets, rs)
			}
			d.Spec.Replicas = ptr.To(c.replicas)
			r := newRollout(d, sets)
			got := map[string]int32{}
			for _, s := range r.rescale() {
				got[s.rs.Name] = s.to
			}
			if !maps.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// TestRescaleIsFair checks that scaling in the middle of a rollout keeps the sum exact and the order of sizes.
func TestRescaleIsFair(t *testing.T) {
	rnd := newRand(t)
	for range 1000 {
		d := testDeployment(int32(2+rnd.IntN(30)), "25%", "25%", "4")
		surge, _ := bounds(d)
		left := desired(d) + surge
		var sets []*appsv1.ReplicaSet
		for v := 1; v <= 4; v++ {
			n := int32(rnd.IntN(int(left) + 1))
			if v == 4 {
				n = left
			}
			left -= n
			rs := testSet(strconv.Itoa(v), n, n)
			write([]scaling{{rs, n}}, d)
			sets = append(sets, rs)
		}
		before := sum(sets, asked)
		d.Spec.Replicas = ptr.To(int32(1 + rnd.IntN(40)))
		r := newRollout(d, sets)
		running := 0
		for _, rs := range sets {
			if active(rs) {
				running++
			}
		}
		if running < 2 || r.saturated() || !r.scaledByUser() {
			continue
		}
		scalings := r.rescale()
		write(scalings, d)
		surge, _ = bounds(d)
		if got := sum(sets, asked); got != desired(d)+surge {
			t.Fatalf("from %d to %d replicas: %d pods asked for, want %d", before, desired(d), got, desired(d)+surge)
		}
		for _, s := range scalings {
			if s.to < 0 {
				t.Fatalf("%s would get %d replicas", s.rs.Name, s.to)
			}
		}
		if newRollout(d, sets).scaledByUser() {
			t.Fatal("still counts as scaled by the user")
		}
	}
}

func TestRevisions(t *testing.T) {
	d := testDeployment(3, "1", "0", "3")
	d.Annotations = map[string]string{
		"kubernetes.io/change-cause": "third", corev1.LastAppliedConfigAnnotation: "{}", revisionAnnotation: "2",
	}
	r := newRollout(d, []*appsv1.ReplicaSet{testSet("1", 1, 1), testSet("2", 1, 1)})
	annotations, revision := r.newAnnotations()
	want := map[string]string{"kubernetes.io/change-cause": "third", revisionAnnotation: "3"}
	if revision != "3" || !maps.Equal(annotations, want) {
		t.Errorf("new template: revision %s with %v, want 3 with %v", revision, annotations, want)
	}
	// back to the first template: it becomes the newest and remembers that it was the first
	d.Spec.Template = template("1")
	r = newRollout(d, []*appsv1.ReplicaSet{testSet("1", 1, 1), testSet("2", 1, 1), testSet("3", 1, 1)})
	annotations, revision = r.newAnnotations()
	if revision != "4" || annotations[historyAnnotation] != "1" {
		t.Errorf("undo: revision %s with history %q, want 4 with 1", revision, annotations[historyAnnotation])
	}
	// nothing new: nothing changes
	r.new = r.new.DeepCopy()
	r.new.Annotations = annotations
	again, revision := r.newAnnotations()
	if revision != "4" || !maps.Equal(again, annotations) {
		t.Errorf("again: revision %s with %v, want 4 with %v", revision, again, annotations)
	}
	long := ""
	for i := range 2000 {
		long = appendHistory(long, strconv.Itoa(i))
	}
	if len(long) > maxHistoryLength || long[len(long)-4:] != "1999" {
		t.Errorf("history has %d bytes and ends in %s", len(long), long[len(long)-4:])
	}
}

func TestExpired(t *testing.T) {
	d := testDeployment(3, "1", "0", "6")
	sets := []*appsv1.ReplicaSet{testSet("1", 0, 0), testSet("2", 1, 1), testSet("3", 0, 0), testSet("4", 0, 0), testSet("5", 0, 0), testSet("6", 3, 3)}
	var names []string
	for _, rs := range newRollout(d, sets).expired() {
		names = append(names, rs.Name)
	}
	if want := []string{"web-1", "web-3"}; !slices.Equal(names, want) { // web-2 still runs
		t.Errorf("got %v, want %v", names, want)
	}
	d.Spec.RevisionHistoryLimit = nil
	if got := newRollout(d, sets).expired(); len(got) != 0 {
		t.Errorf("without a limit: got %v", got)
	}
}

func TestTemplateHash(t *testing.T) {
	a, b := template("1"), template("2")
	if templateHash(&a, nil) != templateHash(a.DeepCopy(), nil) {
		t.Error("equal templates have different hashes")
	}
	if templateHash(&a, nil) == templateHash(&b, nil) {
		t.Error("different templates have the same hash")
	}
	if templateHash(&a, nil) == templateHash(&a, ptr.To[int32](1)) {
		t.Error("a collision does not change the hash")
	}
	labelled := a.DeepCopy()
	labelled.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = "x"
	if !sameTemplate(&a, labelled) || sameTemplate(&a, &b) {
		t.Error("sameTemplate is wrong")
	}
}

// TestConditions walks a Deployment through its life and reads what kubectl rollout status reads.
func TestConditions(t *testing.T) {
	now := testStart
	d := testDeployment(2, "1", "0", "1")
	rs := testSet("1", 2, 0)
	look := func(began string) (reason string, again time.Duration) {
		t.Helper()
		now = now.Add(time.Second)
		d.Generation++
		s, again := newRollout(d, []*appsv1.ReplicaSet{rs}).full(began, now)
		if s.ObservedGeneration != d.Generation {
			t.Errorf("observed generation %d, want %d", s.ObservedGeneration, d.Generation)
		}
		d.Status = s
		if c := condition(&s, appsv1.DeploymentProgressing); c != nil {
			reason = string(c.Status) + " " + c.Reason
		}
		return reason, again
	}
	expect := func(step, began, want string, wantAgain bool) {
		t.Helper()
		got, again := look(began)
		if got != want || (again > 0) != wantAgain {
			t.Errorf("%s: got %q and a look after %v, want %q", step, got, again, want)
		}
	}
	expect("created", "NewReplicaSetCreated", "True NewReplicaSetCreated", true)
	expect("nothing yet", "", "True NewReplicaSetCreated", true)
	rs.Status.ReadyReplicas, rs.Status.AvailableReplicas = 1, 1
	expect("one is up", "", "True ReplicaSetUpdated", true)
	if c := condition(&d.Status, appsv1.DeploymentAvailable); c.Status != corev1.ConditionFalse {
		t.Errorf("available with one of two and none to miss")
	}
	now = now.Add(601 * time.Second)
	expect("stuck", "", "False ProgressDeadlineExceeded", false)
	rs.Status.ReadyReplicas, rs.Status.AvailableReplicas = 2, 2
	expect("all up", "", "True NewReplicaSetAvailable", false)
	if c := condition(&d.Status, appsv1.DeploymentAvailable); c.Status != corev1.ConditionTrue || c.Reason != "MinimumReplicasAvailable" {
		t.Errorf("not available with all up")
	}
	rs.Status.ReadyReplicas, rs.Status.AvailableReplicas = 1, 1
	now = now.Add(time.Hour)
	expect("a pod fails later", "", "True NewReplicaSetAvailable", false)
	d.Spec.Paused = true
	expect("paused", "", "Unknown DeploymentPaused", false)
	d.Spec.Paused = false
	expect("resumed", "", "Unknown DeploymentResumed", true)
	d.Spec.ProgressDeadlineSeconds = nil
	expect("no limit", "", "", false)
}

// TestStatusSettles checks that looking again at an unchanged world changes nothing, so that nothing is written.
func TestStatusSettles(t *testing.T) {
	d := testDeployment(2, "1", "0", "1")
	rs := testSet("1", 2, 2)
	rs.Status.Conditions = []appsv1.ReplicaSetCondition{{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "no"}}
	now := testStart
	d.Status, _ = newRollout(d, []*appsv1.ReplicaSet{rs}).full("", now)
	for range 3 {
		now = now.Add(time.Minute)
		s, _ := newRollout(d, []*appsv1.ReplicaSet{rs}).full("", now)
		if !equality.Semantic.DeepEqual(s, d.Status) {
			t.Fatalf("status changed by itself:\n%v\n%v", d.Status, s)
		}
	}
	if condition(&d.Status, appsv1.DeploymentReplicaFailure) == nil {
		t.Error("the failure of the ReplicaSet is not shown")
	}
	rs.Status.Conditions = nil
	if s, _ := newRollout(d, []*appsv1.ReplicaSet{rs}).full("", now); condition(&s, appsv1.DeploymentReplicaFailure) != nil {
		t.Error("the failure stays after it is over")
	}
}
