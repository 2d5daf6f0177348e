// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// rolling is a Service whose pods stop to listen the moment they are told to end, and have nothing that delays it.
const rolling = `
apiVersion: v1
kind: Service
metadata: {name: rolling, namespace: shop}
spec: {selector: {app: rolling}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: rolling, namespace: shop}
spec:
  replicas: 6
  selector: {matchLabels: {app: rolling}}
  template:
    metadata: {labels: {app: rolling}}
    spec:
      containers:
        - name: shop
          image: host
          command: [shop, serve, -udp, ""]
          env:
            - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
`

// ending is when a pod's deletion was seen.
type ending struct {
	pod, node string
	at        time.Time
}

// endings watches the deletions of the Service's pods until stop is called.
func (w *world) endings(t testing.TB) (stop func() []ending) {
	t.Helper()
	watch, err := w.kube.CoreV1().Pods(namespace).Watch(t.Context(), metav1.ListOptions{LabelSelector: "app=rolling"})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var list []ending
	all.Go(func() {
		seen := map[string]bool{}
		for e := range watch.ResultChan() {
			if p, ok := e.Object.(*corev1.Pod); ok && p.DeletionTimestamp != nil && !seen[p.Name] {
				seen[p.Name] = true
				list = append(list, ending{p.Name, p.Spec.NodeName, time.Now()})
			}
		}
	})
	return func() []ending {
		watch.Stop()
		all.Wait()
		return list
	}
}

// roll replaces all pods of the Service while each node makes so many new connections a second, and returns what became of those.
func (w *world) roll(t testing.TB, what string, rate int) (sent, failed int) {
	t.Helper()
	ip := w.service(t, "rolling").Spec.ClusterIP
	before := w.pods(t, "app=rolling")
	stop := w.endings(t)
	var loads []*load
	for _, node := range nodes {
		loads = append(loads, w.start(t, w.clientOn(t, node), "get", "-rate", fmt.Sprint(rate), "-duration", "2m", "-plain", "http://"+ip+"/self"))
	}
	time.Sleep(time.Second)
	begin := time.Now()
	w.kubectl(t, "-n", namespace, "rollout", "restart", "deployment", "rolling")
	w.kubectl(t, "-n", namespace, "rollout", "status", "deployment", "rolling", "--timeout=120s")
	took := time.Since(begin)
	time.Sleep(time.Second)
	var seconds float64
	var failures []failure
	for i, l := range loads {
		s := l.stop(t)
		t.Logf("%s: from %s: %s", what, nodes[i], s)
		sent, failed, seconds = sent+s.Sent, failed+s.Failed, max(seconds, s.Seconds)
		failures = append(failures, s.Failures...)
	}
	endings := stop()
	for _, p := range before {
		if !slices.ContainsFunc(endings, func(e ending) bool { return e.pod == p.Name }) {
			t.Errorf("%s: %s was not replaced", what, p.Name)
		}
	}
	t.Logf("%s: %d pods replaced in %.1f s under %.0f new connections a second: %d of %d failed", what, len(endings), took.Seconds(), float64(sent)/seconds, failed, sent)
	slices.SortFunc(endings, func(a, b ending) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	const shown = 10
	for _, f := range failures[:min(shown, len(failures))] {
		var last ending
		for _, e := range endings {
			if end := f.Start.Add(time.Duration(f.Took * float64(time.Millisecond))); e.at.Before(end) {
				last = e
			}
		}
		t.Logf("%s: started %.1f ms after the deletion of %s on %s was seen, failed %.1f ms later: %s", what,
			float64(f.Start.Sub(last.at).Microseconds())/1000, last.pod, last.node, f.Took, f.Error)
	}
	return sent, failed
}

// TestRollingReplacementLosesNothing: all pods of a Service are replaced under 2,000 new connections a second. The one-machine cluster tells a pod to
// end when every kernel has let go of it, and loses none. A kubelet does not wait; how long its runtime takes to send the signal is tried at two lengths.
// What comes for a pod that has closed its socket is then passed on by its node, and what is refused is tried once more; with both switched off, the failures
// are counted for comparison.
func TestRollingReplacementLosesNothing(t *testing.T) {
	const rate = 700 // from each of three nodes
	w := newWorld(t, "rolling")
	t.Cleanup(func() { w.run(t, "", "fairlead", "down", "--state", string(w.dir), "--purge") })
	var lost []int
	for i, mode := range []struct{ what, stopAfter, agentFlags string }{
		{"told when the kernels have let go", "", ""},
		{"told after 50 ms, passed on", "50ms", "--retry-refused=false"},
		{"told at once, passed on and tried once more", "0", ""},
		{"told at once, neither", "0", "--pass-on-terminating=false --retry-refused=false"},
	} {
		t.Setenv("FAIRLEAD_LAB_STOP_AFTER", mode.stopAfter)
		t.Setenv("FAIRLEAD_LAB_AGENT_FLAGS", mode.agentFlags)
		if i > 0 {
			w.must(t, "fairlead", "down", "--state", string(w.dir))
		}
		eventually(t, 20*time.Second, "up", func() error {
			err := failed(w.up(t))
			if err != nil {
				out, _ := exec.Command("ss", "-Htanp", "sport", "=", ":"+strconv.Itoa(w.port)).CombinedOutput()
				t.Logf("%v\n%s", err, out)
			}
			return err
		})
		if err := w.connect(); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			for _, file := range []string{"00-namespace.yaml", "client.yaml"} {
				w.kubectl(t, "apply", "-f", filepath.Join(root(), "examples/shop", file))
			}
			w.apply(t, rolling)
		}
		for _, d := range []string{"client", "rolling"} {
			w.kubectl(t, "-n", namespace, "rollout", "status", "deployment", d, "--timeout=90s")
		}
		eventually(t, 30*time.Second, "agents know all pods", func() error {
			for _, node := range nodes {
				if r := w.exec(t, w.clientOn(t, node), "shop", "get", "-n", "20", "--fresh-conn", "http://rolling/self"); r.code != 0 {
					return fmt.Errorf("%s", r)
				}
			}
			return nil
		})
		sent, failed := w.roll(t, mode.what, rate)
		if sent < 1000 {
			t.Errorf("%s: only %d connections were made", mode.what, sent)
		}
		lost = append(lost, failed)
	}
	if lost[0] > 0 {
		t.Errorf("%d connections failed although every kernel had let go of the pod", lost[0])
	}
	// Passed on, what is left to lose is what arrives between the pod's SIGTERM and its own node's word of it; tried once more, what its socket had not
	// accepted yet.
	if lost[1] > lost[3] || lost[2] > lost[3] {
		t.Errorf("%d connections failed when passed on and when tried once more too, %d when neither", lost[1:3], lost[3])
	}
}
