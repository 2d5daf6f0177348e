// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/status"
)

// counted are Services that give a client no answer, each for a reason of its own. Of app front there is one pod, and nobody listens at port 9.
const counted = `
apiVersion: v1
kind: Service
metadata: {name: counted-elsewhere, namespace: shop}
spec: {selector: {app: front}, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: counted-stranger, namespace: shop}
spec: {type: LoadBalancer, selector: {app: catalog}, loadBalancerSourceRanges: [198.51.100.0/24], ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: counted-deaf, namespace: shop}
spec: {selector: {app: catalog}, ports: [{port: 80, targetPort: 9}]}
`

// dropped is what a node's rules have dropped, by reason: as the metrics have it, and as status does.
func (w *world) dropped(t testing.TB, node string) (metrics, report map[string]uint64) {
	t.Helper()
	var text string
	if err := status.Dial(w.dir.Node(node).AgentSocket()).Get(context.Background(), "/metrics", nil, &text); err != nil {
		t.Fatal(err)
	}
	metrics = map[string]uint64{}
	for _, m := range regexp.MustCompile(`(?m)^fairlead_dropped_packets_total\{reason="(\w+)"\} (\d+)$`).FindAllStringSubmatch(text, -1) {
		metrics[m[1]], _ = strconv.ParseUint(m[2], 10, 64)
	}
	d := w.report(t, node).Dataplane
	return metrics, map[string]uint64{"no_local_endpoint": d.NoLocal, "not_in_source_ranges": d.NotAllowed, "refused_once": d.RefusedOnce}
}

// TestDropsAreCounted: what a node's rules drop is counted by its reason, and status and metrics say the same. A connection that an endpoint refuses is
// dropped once: it is tried again after a second, and then refused.
func TestDropsAreCounted(t *testing.T) {
	w := shared(t)
	w.apply(t, counted)
	t.Cleanup(func() { w.run(t, counted, "fairlead-server", "kubectl", "delete", "--wait=false", "-f", "-") })
	balanced := w.service(t, "counted-stranger")
	balanced.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.11"}}
	if _, err := w.kube.CoreV1().Services(namespace).UpdateStatus(context.Background(), balanced, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	node := "n1"
	if w.pods(t, "app=front")[0].Spec.NodeName == node {
		node = "n2"
	}
	client := w.clientOn(t, node)
	for _, tt := range []struct{ reason, host, timeout, kind string }{
		{"no_local_endpoint", w.service(t, "counted-elsewhere").Spec.ClusterIP, "300ms", "timeout"},
		{"not_in_source_ranges", "203.0.113.11", "300ms", "timeout"},
		{"refused_once", w.service(t, "counted-deaf").Spec.ClusterIP, "5s", "refused"},
	} {
		eventually(t, 10*time.Second, tt.reason, func() error {
			before, _ := w.dropped(t, node)
			s := one[*summary](t, w.exec(t, client, "shop", "get", "-n", "1", "-timeout", tt.timeout, "--fresh-conn", "http://"+tt.host+"/self").stdout)
			if s.Kinds[tt.kind] != 1 {
				return fmt.Errorf("%s, want %s", s, tt.kind)
			}
			after, reported := w.dropped(t, node)
			if !maps.Equal(after, reported) {
				return fmt.Errorf("metrics say %v, status %v", after, reported)
			}
			for reason, n := range after {
				if more := n > before[reason]; more != (reason == tt.reason) {
					return fmt.Errorf("%s: %d, then %d", reason, before[reason], n)
				}
			}
			if len(after) != 3 {
				return fmt.Errorf("counted: %v", after)
			}
			return nil
		})
	}
}
