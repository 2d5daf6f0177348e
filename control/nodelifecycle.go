// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationlisters "k8s.io/client-go/listers/coordination/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

const (
	// reasonLost marks what this controller wrote about a node that went silent: the node's condition and its
	// pods' readiness. What carries it may be taken back when the node is heard again.
	reasonLost  = "NodeStatusUnknown"
	reasonFound = "LeaseRenewed"
	messageLost = "The node stopped renewing its Lease."
)

// nodeLifecycle watches the Leases in kube-node-lease. A node that gives no sign of life for NodeGrace, neither a
// renewal of its Lease nor a word about its own readiness, gets Ready=Unknown and the unreachable taints, and its
// pods are marked not ready, so that they leave the endpoints; all of it is taken back at the next sign. When a
// sign was given is measured by this process' clock from when it saw it, so clocks need not agree and a restart
// gives every node a fresh grace.
type nodeLifecycle struct {
	*loop[string]
	h      *hub
	nodes  corelisters.NodeLister
	leases coordinationlisters.LeaseLister
	heard  map[string]sign // touched by the one worker only
}

// sign is the last sign of life of a node: which one, when it was first seen, and whether it is a new one, not
// just what was there when this process started.
type sign struct {
	lease, word string
	seen        time.Time
	fresh       bool
}

func newNodeLifecycle(h *hub) *nodeLifecycle {
	nodes, leases := h.factory.Core().V1().Nodes(), h.factory.Coordination().V1().Leases()
	n := &nodeLifecycle{h: h, nodes: nodes.Lister(), leases: leases.Lister(), heard: map[string]sign{}}
	n.loop = newLoop(h, "nodelifecycle", 1, n.reconcile)
	watch(h, nodes.Informer(), func(old, cur *corev1.Node) { n.add(latest(old, cur).Name) })
	watch(h, leases.Informer(), func(old, cur *coordinationv1.Lease) {
		if l := latest(old, cur); l.Namespace == corev1.NamespaceNodeLease {
			n.add(l.Name)
		}
	})
	return n
}

func (n *nodeLifecycle) reconcile(ctx context.Context, name string) (time.Duration, error) {
	node, err := n.nodes.Get(name)
	if err != nil {
		delete(n.heard, name)
		return 0, ignoreGone(err)
	}
	left := n.grace(node, time.Now())
	if left <= 0 {
		return 0, n.lost(ctx, node)
	}
	return left, n.found(ctx, node)
}

// grace is how long the node may still stay silent; it notes a new sign of life.
func (n *nodeLifecycle) grace(node *corev1.Node, now time.Time) time.Duration {
	last, known := n.heard[node.Name]
	current := sign{lease: last.lease, word: last.word, seen: now, fresh: known}
	if lease, err := n.leases.Leases(corev1.NamespaceNodeLease).Get(node.Name); err == nil && lease.Spec.RenewTime != nil {
		current.lease = string(lease.UID) + lease.Spec.RenewTime.String()
	}
	if c := nodeCondition(node, corev1.NodeReady); c != nil && c.Reason != reasonLost && c.Reason != reasonFound {
		current.word = fmt.Sprint(c.Status, c.Reason, c.LastHeartbeatTime, c.LastTransitionTime)
	}
	if !known || current.lease != last.lease || current.word != last.word {
		last = current
		n.heard[node.Name] = last
	}
	return last.seen.Add(n.h.NodeGrace).Sub(now)
}

// unreachable are the taints of a lost node.
var unreachable = []corev1.Taint{
	{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute},
}

func (n *nodeLifecycle) lost(ctx context.Context, node *corev1.Node) error {
	// The pods first, since that is what takes traffic away, and once: one that says later that it is ready has a
	// runner that lives.
	if c := nodeCondition(node, corev1.NodeReady); c == nil || c.Reason != reasonLost {
		if err := n.markPods(ctx, node.Name, podLost); err != nil {
			return err
		}
	}
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: reasonLost, Message: messageLost}
	if err := n.setReady(ctx, node, ready); err != nil {
		return err
	}
	taints := slices.Clone(node.Spec.Taints)
	for _, t := range unreachable {
		if !slices.ContainsFunc(taints, func(have corev1.Taint) bool { return have.MatchTaint(&t) }) {
			now := metav1.Now()
			t.TimeAdded = &now
			taints = append(taints, t)
		}
	}
	return n.setTaints(ctx, node, taints)
}

func (n *nodeLifecycle) found(ctx context.Context, node *corev1.Node) error {
	c := nodeCondition(node, corev1.NodeReady)
	if !n.heard[node.Name].fresh {
		return nil // within its grace, but not heard yet
	}
	if c != nil && c.Status == corev1.ConditionUnknown && c.Reason == reasonLost {
		if err := n.setReady(ctx, node, corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: reasonFound, Message: "The node renews its Lease."}); err != nil {
			return err
		}
	}
	taints := slices.DeleteFunc(slices.Clone(node.Spec.Taints), func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeUnreachable })
	if err := n.setTaints(ctx, node, taints); err != nil {
		return err
	}
	return n.markPods(ctx, node.Name, podFound)
}

func (n *nodeLifecycle) setReady(ctx context.Context, node *corev1.Node, want corev1.NodeCondition) error {
	fresh := node.DeepCopy()
	c := nodeCondition(fresh, want.Type)
	if c != nil && c.Status == want.Status {
		return nil
	}
	want.LastTransitionTime = metav1.Now()
	if c == nil {
		want.LastHeartbeatTime = want.LastTransitionTime
		fresh.Status.Conditions = append(fresh.Status.Conditions, want)
	} else {
		want.LastHeartbeatTime = c.LastHeartbeatTime
		*c = want
	}
	if _, err := n.h.client.CoreV1().Nodes().UpdateStatus(ctx, fresh, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update node status: %w", err)
	}
	n.log.Info("node readiness", "node", node.Name, "ready", want.Status, "reason", want.Reason)
	return nil
}

func (n *nodeLifecycle) setTaints(ctx context.Context, node *corev1.Node, taints []corev1.Taint) error {
	if equality.Semantic.DeepEqual(taints, node.Spec.Taints) {
		return nil
	}
	fresh := node.DeepCopy()
	fresh.Spec.Taints = taints
	if _, err := n.h.client.CoreV1().Nodes().Update(ctx, fresh, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update node taints: %w", err)
	}
	n.log.Info("node taints", "node", node.Name, "taints", len(taints))
	return nil
}

// markPods writes what mark says about each pod of the node; nil means nothing to write.
func (n *nodeLifecycle) markPods(ctx context.Context, node string, mark func(*corev1.Pod) *corev1.PodCondition) error {
	for _, pod := range n.h.podsBy(podsByNode, node) {
		want := mark(pod)
		if want == nil {
			continue
		}
		fresh := pod.DeepCopy()
		want.LastTransitionTime = metav1.Now()
		for i := range fresh.Status.Conditions {
			if fresh.Status.Conditions[i].Type == want.Type {
				fresh.Status.Conditions[i] = *want
			}
		}
		if _, err := n.h.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, fresh, metav1.UpdateOptions{}); ignoreGone(err) != nil {
			return fmt.Errorf("update pod status: %w", err)
		}
		n.log.Info("pod readiness", "pod", cache.MetaObjectToName(pod).String(), "node", node, "ready", want.Status)
	}
	return nil
}

// podLost is the Ready condition of a pod on a lost node, if that differs from what it has.
func podLost(pod *corev1.Pod) *corev1.PodCondition {
	if podReady(pod) == nil || podFinal(pod) {
		return nil
	}
	return &corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: reasonLost, Message: messageLost}
}

// podFound undoes podLost: the pod is as ready as its containers were last said to be. The node's runner corrects
// what has changed meanwhile, and should do so before it renews the Lease.
func podFound(pod *corev1.Pod) *corev1.PodCondition {
	marked, containers := false, corev1.ConditionTrue
	for _, c := range pod.Status.Conditions {
		switch c.Type {
		case corev1.PodReady:
			marked = c.Status == corev1.ConditionFalse && c.Reason == reasonLost
		case corev1.ContainersReady:
			containers = c.Status
		}
	}
	if !marked || podFinal(pod) || containers != corev1.ConditionTrue {
		return nil
	}
	return &corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue}
}
