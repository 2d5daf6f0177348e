// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"maps"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func testNode(name string, edits ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue},
			{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse},
		}},
	}
	for _, e := range edits {
		e(n)
	}
	return n
}

func notReady(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse }
func cordoned(n *corev1.Node) { n.Spec.Unschedulable = true }
func taint(key string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: "v", Effect: effect})
	}
}

func room(pods int64) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Status.Allocatable = corev1.ResourceList{corev1.ResourcePods: *resource.NewQuantity(pods, resource.DecimalSI)}
	}
}

func selecting(label, value string) edit {
	return func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{label: value} }
}

func tolerating(key string, effect corev1.TaintEffect) edit {
	return func(p *corev1.Pod) {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect})
	}
}

func requiring(label, value string) edit {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: label, Operator: corev1.NodeSelectorOpIn, Values: []string{value}}}}},
		}}}
	}
}

func TestPlace(t *testing.T) {
	three := func(edits ...func(*corev1.Node)) []*corev1.Node {
		return []*corev1.Node{testNode("n1", edits...), testNode("n2", edits...), testNode("n3", edits...)}
	}
	loads := func(pods ...int) map[string]*load {
		out := map[string]*load{}
		for i, n := range pods {
			out["n"+strconv.Itoa(i+1)] = &load{pods: n, owners: map[types.UID]int{}}
		}
		return out
	}
	like := loads(1, 5, 5)
	like["n1"].owners["rs"] = 1
	for _, c := range []struct {
		name  string
		pod   *corev1.Pod
		nodes []*corev1.Node
		loads map[string]*load
		node  string
		why   string
	}{
		{"first by name", testPod("p"), three(), nil, "n1", ""},
		{"fewest pods", testPod("p"), three(), loads(2, 1, 1), "n2", ""},
		{"fewest of the same owner before fewest pods", testPod("p", owned("rs")), three(), like, "n2", ""},
		{"no nodes", testPod("p"), nil, nil, "", "no nodes available to schedule pods"},
		{"not ready", testPod("p"), three(notReady), nil, "", "0/3 nodes are available: 3 node(s) were not ready."},
		{"cordoned", testPod("p"), three(cordoned), nil, "", "0/3 nodes are available: 3 node(s) were unschedulable."},
		{"cordoned but tolerated", testPod("p", tolerating(corev1.TaintNodeUnschedulable, "")), three(cordoned), nil, "n1", ""},
		{"tainted", testPod("p"), three(taint("k", corev1.TaintEffectNoSchedule)), nil, "", "0/3 nodes are available: 3 node(s) had untolerated taint {k: v}."},
		{"taint that evicts", testPod("p"), three(taint("k", corev1.TaintEffectNoExecute)), nil, "", "0/3 nodes are available: 3 node(s) had untolerated taint {k: v}."},
		{"taint that only asks", testPod("p"), three(taint("k", corev1.TaintEffectPreferNoSchedule)), nil, "n1", ""},
		{"tolerated", testPod("p", tolerating("k", corev1.TaintEffectNoSchedule)), three(taint("k", corev1.TaintEffectNoSchedule)), nil, "n1", ""},
		{"selector", testPod("p", selecting(corev1.LabelHostname, "n3")), three(), nil, "n3", ""},
		{"selector that matches nothing", testPod("p", selecting("disk", "fast")), three(), nil, "", "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."},
		{"required affinity", testPod("p", requiring(corev1.LabelHostname, "n2")), three(), nil, "n2", ""},
		{"full", testPod("p"), three(room(2)), loads(2, 2, 2), "", "0/3 nodes are available: 3 Too many pods."},
		{"one has room", testPod("p"), three(room(2)), loads(2, 2, 1), "n3", ""},
		{"several reasons, counted", testPod("p"), []*corev1.Node{testNode("n1", notReady), testNode("n2", cordoned), testNode("n3", cordoned)}, nil, "",
			"0/3 nodes are available: 1 node(s) were not ready, 2 node(s) were unschedulable."},
	} {
		node, why := place(c.pod, c.nodes, c.loads)
		if node != c.node || why != c.why {
			t.Errorf("%s: got %q %q, want %q %q", c.name, node, why, c.node, c.why)
		}
	}
}

// TestSpread places many pods of several owners before the informer shows any: each owner must be spread evenly,
// and so must the sum.
func TestSpread(t *testing.T) {
	p := newPlacements()
	var nodes []*corev1.Node
	for i := range 5 {
		nodes = append(nodes, testNode(fmt.Sprintf("n%d", i)))
	}
	var pods []*corev1.Pod
	for o := range 4 {
		for i := range 10 + o {
			pods = append(pods, testPod(fmt.Sprintf("p%d-%d", o, i), owned(fmt.Sprintf("rs%d", o))))
		}
	}
	at := map[string]string{}
	for _, pod := range pods {
		p.observe(nil, pod)
		node, why := p.take(pod, nodes)
		if node == "" {
			t.Fatal(why)
		}
		at[pod.Name] = node
		p.observe(pod, pod) // an update that still shows no node must not undo it
	}
	least, most := 1000, 0
	for _, n := range nodes {
		least, most = min(least, p.nodes[n.Name].pods), max(most, p.nodes[n.Name].pods)
		for o := range 4 {
			if got := p.nodes[n.Name].owners[types.UID(fmt.Sprintf("rs%d", o))]; got < 2 || got > 3 {
				t.Errorf("%s has %d pods of owner %d", n.Name, got, o)
			}
		}
	}
	if most-least > 1 {
		t.Errorf("nodes have from %d to %d pods", least, most)
	}
	// the informer catches up, the pods end, and nothing is left
	for _, pod := range pods {
		bound := pod.DeepCopy()
		bound.Spec.NodeName = at[pod.Name]
		p.observe(pod, bound)
		if p.bound(pod) {
			t.Fatal("still waits for the informer")
		}
		p.observe(bound, nil)
	}
	if len(p.pods)+len(p.nodes)+len(p.taking) != 0 {
		t.Errorf("left over: %v %v %v", p.pods, p.nodes, p.taking)
	}
}

// TestPlacementsAgreeWithCounting feeds random events and compares with counting from scratch.
func TestPlacementsAgreeWithCounting(t *testing.T) {
	rnd := newRand(t)
	p := newPlacements()
	nodes := []*corev1.Node{testNode("n1"), testNode("n2"), testNode("n3")}
	shown := map[string]*corev1.Pod{}
	for range 5000 {
		name := "p" + strconv.Itoa(rnd.IntN(20))
		old := shown[name]
		var cur *corev1.Pod
		switch {
		case old == nil:
			cur = testPod(name, owned("rs"+strconv.Itoa(rnd.IntN(3))))
		case rnd.IntN(4) == 0: // gone
		case old.Spec.NodeName == "" && rnd.IntN(2) == 0:
			node, _ := p.take(old, nodes)
			if rnd.IntN(4) == 0 {
				p.giveBack(old)
				continue
			}
			cur = old.DeepCopy()
			cur.Spec.NodeName = node
		default:
			cur = old.DeepCopy()
			if rnd.IntN(2) == 0 {
				ending(cur)
			} else {
				cur.Status.Phase = corev1.PodSucceeded
			}
		}
		p.observe(old, cur)
		if cur == nil {
			delete(shown, name)
		} else {
			shown[name] = cur
		}
	}
	want, got := map[string]int{}, map[string]int{}
	for _, pod := range shown {
		if pod.Spec.NodeName == "" || podFinal(pod) {
			continue
		}
		want[pod.Spec.NodeName]++
		if pod.DeletionTimestamp == nil {
			want[pod.Spec.NodeName+string(ownerOf(pod))]++
		}
	}
	for node, l := range p.nodes {
		got[node] = l.pods
		for owner, n := range l.owners {
			got[node+string(owner)] = n
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWaiting(t *testing.T) {
	gated := func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} }
	other := func(p *corev1.Pod) { p.Spec.SchedulerName = "mine" }
	for _, c := range []struct {
		name string
		pod  *corev1.Pod
		want bool
	}{
		{"plain", testPod("p"), true},
		{"default scheduler by name", testPod("p", func(p *corev1.Pod) { p.Spec.SchedulerName = corev1.DefaultSchedulerName }), true},
		{"bound", testPod("p", on("n1")), false},
		{"ending", testPod("p", ending), false},
		{"failed", testPod("p", phase(corev1.PodFailed)), false},
		{"another scheduler's", testPod("p", other), false},
		{"gated", testPod("p", gated), false},
	} {
		if got := waiting(c.pod); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

func TestMayFitNow(t *testing.T) {
	plain := testNode("n")
	heartbeat := plain.DeepCopy()
	heartbeat.Status.Conditions[0].LastHeartbeatTime = metav1.Now()
	if mayFitNow(plain, heartbeat) {
		t.Error("a heartbeat wakes the scheduler")
	}
	for name, n := range map[string]*corev1.Node{
		"ready": testNode("n", notReady), "cordon": testNode("n", cordoned), "room": testNode("n", room(3)),
		"taint": testNode("n", taint("k", corev1.TaintEffectNoSchedule)),
		"label": testNode("n", func(n *corev1.Node) { n.Labels["disk"] = "fast" }),
	} {
		if !mayFitNow(n, plain) {
			t.Errorf("%s does not wake the scheduler", name)
		}
	}
}
