// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// placements is where the pods are, counted per node: what the informer shows plus what was decided and is not
// shown yet. It is kept by each change, so that a decision costs the nodes and not the pods.
type placements struct {
	mu     sync.Mutex
	pods   map[types.UID]placement
	nodes  map[string]*load
	taking map[types.UID]bool // decided here, not yet shown by the informer
}

// placement is one pod's place. A pod on its way out still takes room but no longer counts for its owner.
type placement struct {
	node   string
	owner  types.UID
	ending bool
}

// load is what a node carries.
type load struct {
	pods   int
	owners map[types.UID]int // living pods per controlling owner; pods without one are not counted here
}

func newPlacements() *placements {
	return &placements{pods: map[types.UID]placement{}, nodes: map[string]*load{}, taking: map[types.UID]bool{}}
}

func ownerOf(pod *corev1.Pod) types.UID {
	if ref := metav1.GetControllerOf(pod); ref != nil {
		return ref.UID
	}
	return ""
}

// observe takes over what the informer shows of a pod; cur is nil when it is gone.
func (p *placements) observe(old, cur *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old != nil && (cur == nil || cur.UID != old.UID) {
		p.set(old.UID, placement{})
	}
	if cur == nil {
		return
	}
	switch {
	case podFinal(cur):
		p.set(cur.UID, placement{})
	case cur.Spec.NodeName != "":
		p.set(cur.UID, placement{cur.Spec.NodeName, ownerOf(cur), cur.DeletionTimestamp != nil})
	case !p.taking[cur.UID]:
		p.set(cur.UID, placement{})
	}
}

// set moves a pod; the zero placement removes it.
func (p *placements) set(pod types.UID, to placement) {
	delete(p.taking, pod)
	was := p.pods[pod]
	if was == to {
		return
	}
	p.count(was, -1)
	p.count(to, 1)
	if to.node == "" {
		delete(p.pods, pod)
	} else {
		p.pods[pod] = to
	}
}

func (p *placements) count(at placement, by int) {
	if at.node == "" {
		return
	}
	n := p.nodes[at.node]
	if n == nil {
		n = &load{owners: map[types.UID]int{}}
		p.nodes[at.node] = n
	}
	n.pods += by
	if at.owner != "" && !at.ending {
		if n.owners[at.owner] += by; n.owners[at.owner] == 0 {
			delete(n.owners, at.owner)
		}
	}
	if n.pods == 0 {
		delete(p.nodes, at.node)
	}
}

// take decides on a node for the pod and counts it there at once, so that the next decision knows. If no node
// fits, it returns why.
func (p *placements) take(pod *corev1.Pod, nodes []*corev1.Node) (node, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	node, why = place(pod, nodes, p.nodes)
	if node != "" {
		p.set(pod.UID, placement{node, ownerOf(pod), false})
		p.taking[pod.UID] = true
	}
	return node, why
}

// bound says whether a node was decided on for the pod that the informer does not show yet.
func (p *placements) bound(pod *corev1.Pod) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taking[pod.UID]
}

// giveBack undoes take, when the pod could not be bound.
func (p *placements) giveBack(pod *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taking[pod.UID] {
		p.set(pod.UID, placement{})
	}
}

// place chooses for the pod, of the nodes that fit, the one with the fewest pods of the same owner, then the fewest
// pods, then the first by name. If none fits, why says it as Kubernetes' scheduler does.
func place(pod *corev1.Pod, nodes []*corev1.Node, loads map[string]*load) (node, why string) {
	if len(nodes) == 0 {
		return "", "no nodes available to schedule pods"
	}
	owner := ownerOf(pod)
	affinity := nodeaffinity.GetRequiredNodeAffinity(pod)
	reasons := map[string]int{}
	var fit []*corev1.Node
	for _, n := range nodes {
		if reason := unfit(pod, affinity, n, loads[n.Name]); reason != "" {
			reasons[reason]++
		} else {
			fit = append(fit, n)
		}
	}
	if len(fit) == 0 {
		return "", unschedulable(len(nodes), reasons)
	}
	like := func(n *corev1.Node) int {
		if l := loads[n.Name]; l != nil && owner != "" {
			return l.owners[owner]
		}
		return 0
	}
	all := func(n *corev1.Node) int {
		if l := loads[n.Name]; l != nil {
			return l.pods
		}
		return 0
	}
	best := slices.MinFunc(fit, func(a, b *corev1.Node) int {
		return cmp.Or(cmp.Compare(like(a), like(b)), cmp.Compare(all(a), all(b)), cmp.Compare(a.Name, b.Name))
	})
	return best.Name, ""
}

// unfit says why a node cannot take the pod, or "".
func unfit(pod *corev1.Pod, affinity nodeaffinity.RequiredNodeAffinity, n *corev1.Node, l *load) string {
	if n.DeletionTimestamp != nil || !nodeReady(n) {
		return "node(s) were not ready"
	}
	if n.Spec.Unschedulable && !tolerates(pod, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
		return "node(s) were unschedulable"
	}
	for _, taint := range n.Spec.Taints {
		if taint.Effect != corev1.TaintEffectPreferNoSchedule && !tolerates(pod, taint) {
			return fmt.Sprintf("node(s) had untolerated taint {%s: %s}", taint.Key, taint.Value)
		}
	}
	if ok, err := affinity.Match(n); err != nil || !ok {
		return "node(s) didn't match Pod's node affinity/selector"
	}
	if room, limited := n.Status.Allocatable[corev1.ResourcePods]; limited && l != nil && int64(l.pods) >= room.Value() {
		return "Too many pods"
	}
	return ""
}

func tolerates(pod *corev1.Pod, taint corev1.Taint) bool {
	return corev1helpers.TolerationsTolerateTaint(logr.Discard(), pod.Spec.Tolerations, &taint, true)
}

// unschedulable puts the counted reasons into Kubernetes' sentence.
func unschedulable(nodes int, reasons map[string]int) string {
	var parts []string
	for reason, n := range reasons {
		parts = append(parts, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(parts)
	return fmt.Sprintf("0/%d nodes are available: %s.", nodes, strings.Join(parts, ", "))
}

// nodeReady says whether the node's condition Ready is True.
func nodeReady(n *corev1.Node) bool {
	c := nodeCondition(n, corev1.NodeReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

func nodeCondition(n *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == t {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}
