// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/test/kubernetes/bed"
)

// incumbents is a cluster that has nothing of Fairlead.
var incumbents = bed.Options{Nodes: 3, Proxy: bed.KubeProxy, DNS: bed.CoreDNS, Network: bed.Bridge}

var (
	rolls    = flag.Int("rolls", 1, "how often TestRolling replaces the pods")
	replicas = flag.Int("replicas", 20, "pods of TestRolling")
	rate     = flag.Int("rate", 1000, "requests a second of TestRolling")
	allowed  = flag.Float64("allowed", 10, "failed requests in 100,000 that TestRolling lets Fairlead have")
)

// bound is the longest that a change may take to be everywhere.
const bound = 30 * time.Second

// TestRolling: all pods of a Service are replaced, again and again, under a steady load of new connections by name, from every node. The
// incumbents' figure is stated beside Fairlead's, which must be next to nothing. The program stops to listen at the signal, as soon as nobody waits to be accepted:
// what waits when a socket is closed is lost whoever sent it there. Two pods are replaced at a time, as two processors carry no more.
func TestRolling(t *testing.T) {
	figures := map[string]rolled{}
	for _, c := range []struct {
		name    string
		options bed.Options
	}{{"Fairlead", all}, {"kube-proxy, CoreDNS and bridge", incumbents}} {
		t.Run(c.name, func(t *testing.T) {
			w := enter(t, c.options)
			figures[c.name] = w.roll()
		})
	}
	for name, f := range figures {
		t.Logf("%s: %d pods replaced %d times in %.0f s under %.0f requests/s: %d of %d failed %v, p99 %.1f ms",
			name, *replicas, *rolls, f.took.Seconds(), f.rate, f.failed, f.sent, f.kinds, f.p99)
	}
	f, ran := figures["Fairlead"]
	if other, both := figures["kube-proxy, CoreDNS and bridge"]; ran && both && f.failed*other.sent > other.failed*f.sent {
		t.Errorf("with Fairlead %d of %d requests failed, with the incumbents %d of %d", f.failed, f.sent, other.failed, other.sent)
	}
	if ran && (f.sent == 0 || float64(f.failed)/float64(f.sent) > *allowed/100_000) {
		t.Errorf("with Fairlead %d of %d requests failed, more than %g in 100,000", f.failed, f.sent, *allowed)
	}
}

// rolled is what the replacements came to.
type rolled struct {
	sent, failed int
	kinds        map[string]int
	rate, p99    float64
	took         time.Duration
}

func (w *world) roll() (r rolled) {
	t := w.t
	t.Helper()
	var manifest strings.Builder
	for _, n := range w.Nodes {
		manifest.WriteString(podOn("client", n.Name))
	}
	fmt.Fprintf(&manifest, `---
apiVersion: v1
kind: Service
metadata: {name: rolling, namespace: %[1]s}
spec: {selector: {app: rolling}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: rolling, namespace: %[1]s}
spec:
  replicas: %[2]d
  strategy: {rollingUpdate: {maxSurge: 2, maxUnavailable: 0}}
  selector: {matchLabels: {app: rolling}}
  template:
    metadata: {labels: {app: rolling}}
    spec:
      containers:
        - name: shop
          image: %[3]s
          imagePullPolicy: Never
          args: [serve, -udp, ""]%[4]s
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
          resources: {requests: {cpu: 10m}}
`, namespace, *replicas, bed.ImageShop, env)
	w.apply(manifest.String())
	t.Cleanup(func() { w.remove("deployments", "pods", "services") })
	clients := w.wait("app=client")
	w.kubectl("-n", namespace, "rollout", "status", "deployment", "rolling", "--timeout=900s")
	// The slices are the controller manager's.
	eventually(t, 2*time.Minute, "slices of rolling", func() error {
		list, err := w.Kube.DiscoveryV1().EndpointSlices(namespace).List(interrupted, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=rolling"})
		ready := 0
		for _, s := range list.Items {
			for _, e := range s.Endpoints {
				if *e.Conditions.Ready {
					ready++
				}
			}
		}
		if err == nil && ready != *replicas {
			err = fmt.Errorf("%d endpoints are ready", ready)
		}
		return err
	})
	for _, c := range clients {
		eventually(t, bound, "rolling from "+c.Name, func() error {
			if a := w.ask(c.Name, "get", "-timeout", "1s", "http://rolling/self")[0]; a.Error != "" {
				return fmt.Errorf("%s: %s", a.Kind, a.Error)
			}
			return nil
		})
	}
	loads := map[string]*load{}
	for _, c := range clients {
		loads[c.Name] = w.start(c.Name, "http://rolling/self", *rate/len(clients))
	}
	begin := time.Now()
	for i := range *rolls {
		one := time.Now()
		w.kubectl("-n", namespace, "rollout", "restart", "deployment", "rolling")
		w.kubectl("-n", namespace, "rollout", "status", "deployment", "rolling", "--timeout=900s")
		t.Logf("roll %d: %.1f s", i+1, time.Since(one).Seconds())
	}
	// The last pods to go are still going.
	eventually(t, 2*bound, "the end of the replaced pods", func() error {
		list, err := w.Kube.CoreV1().Pods(namespace).List(interrupted, metav1.ListOptions{LabelSelector: "app=rolling"})
		if err == nil && len(list.Items) != *replicas {
			err = fmt.Errorf("%d pods", len(list.Items))
		}
		return err
	})
	r.took, r.kinds = time.Since(begin), map[string]int{}
	var seconds float64
	for name, l := range loads {
		s := l.stop()
		t.Logf("from %s: %s", name, s)
		r.sent, r.failed, r.p99, seconds = r.sent+s.Sent, r.failed+s.Failed, max(r.p99, s.P99), max(seconds, s.Seconds)
		for kind, n := range s.Kinds {
			r.kinds[kind] += n
		}
	}
	r.rate = float64(r.sent) / seconds
	return r
}
