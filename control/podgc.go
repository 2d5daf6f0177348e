// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// unknownNode is how long a pod may be bound to a node that was never seen: its Node may be about to register.
const unknownNode = 40 * time.Second

// podGC deletes the pods that nobody else can: those of nodes that are gone, and those that are being deleted
// without ever having had a node. Keys are node names.
type podGC struct {
	*loop[string]
	h     *hub
	nodes corelisters.NodeLister
}

func newPodGC(h *hub) *podGC {
	nodes := h.factory.Core().V1().Nodes()
	g := &podGC{h: h, nodes: nodes.Lister()}
	g.loop = newLoop(h, "podgc", 1, g.reconcile)
	watch(h, nodes.Informer(), func(old, cur *corev1.Node) {
		if cur == nil {
			g.add(old.Name)
		}
	})
	watch(h, h.pods, func(old, cur *corev1.Pod) {
		switch {
		case cur == nil:
		case cur.Spec.NodeName == "" && cur.DeletionTimestamp != nil:
			g.add("")
		case cur.Spec.NodeName != "" && (old == nil || old.Spec.NodeName == ""):
			if _, err := g.nodes.Get(cur.Spec.NodeName); err != nil {
				g.addAfter(cur.Spec.NodeName, unknownNode)
			}
		}
	})
	return g
}

func (g *podGC) reconcile(ctx context.Context, node string) (time.Duration, error) {
	pods := g.h.podsBy(podsByNode, node)
	if len(pods) == 0 {
		return 0, nil
	}
	if node != "" {
		// asked of the server itself: a Node may have been deleted and made again
		if _, err := g.h.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return 0, err
		}
	}
	now := int64(0)
	for _, pod := range pods {
		if node == "" && pod.DeletionTimestamp == nil {
			continue
		}
		err := g.h.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &now,
			Preconditions:      metav1.NewUIDPreconditions(string(pod.UID)),
		})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("delete pod %s: %w", cache.MetaObjectToName(pod), err)
		}
		g.log.Info("deleted pod without a node", "pod", cache.MetaObjectToName(pod).String(), "node", node)
	}
	return 0, nil
}
