// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// BenchmarkPodToSlice is how long it takes from the API's answer to a change of a pod's readiness until its
// slice is stored, as a watcher sees it, at a hundred changes a second; and how many writes of slices there are
// for a change. An iteration is a change:
//
//	go test ./control -run '^$' -bench PodToSlice -benchtime 3000x
func BenchmarkPodToSlice(b *testing.B) {
	for _, services := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) { benchPodToSlice(b, services) })
	}
}

func benchPodToSlice(b *testing.B, services int) {
	const rate = 100
	podsEach := max(10, 100/services) // none changes again before it has been seen
	c, err := startCluster(filepath.Join(b.TempDir(), "state"), prefixes("10.96.0.0/16"), prefixes("10.244.0.0/16"))
	if err != nil {
		b.Fatal(err)
	}
	defer c.stop()
	if err := c.addNodes("n1"); err != nil {
		b.Fatal(err)
	}
	c.runner.hold("default", true)
	ctx := context.Background()
	pods := c.client.CoreV1().Pods("default")
	for s := range services {
		app := map[string]string{"app": fmt.Sprint("s", s)}
		if _, err := c.client.CoreV1().Services("default").Create(ctx, service(fmt.Sprint("s", s), app), metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
		for p := range podsEach {
			spec := podSpec(80)
			spec.NodeName = "n1"
			pod, err := pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%d-p%d", s, p), Labels: app}, Spec: spec}, metav1.CreateOptions{})
			if err != nil {
				b.Fatal(err)
			}
			ip := fmt.Sprintf("10.244.%d.%d", 1+s, 1+p)
			pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
			setReady(pod, false)
			if _, err := pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	}
	w, err := c.client.DiscoveryV1().EndpointSlices("default").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Stop()
	var mu sync.Mutex
	shown := map[string]bool{}                // readiness of pods in slices
	waiting := map[string][]chan<- struct{}{} // for the other one
	writes := 0
	seen := map[string]bool{}
	go func() {
		for event := range w.ResultChan() {
			slice, ok := event.Object.(*discoveryv1.EndpointSlice)
			if !ok || serviceName(slice) == "kubernetes" {
				continue
			}
			mu.Lock()
			writes++
			for _, e := range slice.Endpoints {
				name := e.TargetRef.Name
				seen[name] = true
				if now := *e.Conditions.Ready; now != shown[name] {
					shown[name] = now
					for _, ch := range waiting[name] {
						close(ch)
					}
					delete(waiting, name)
				}
			}
			mu.Unlock()
		}
	}()
	for start := time.Now(); ; { // all are there
		if time.Since(start) > patience {
			b.Fatalf("%d pods have been seen in slices\n%s", len(seen), tail(c.log.String(), 20))
		}
		mu.Lock()
		n := len(seen)
		mu.Unlock()
		if n == services*podsEach {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(time.Second) // what their own making has to write is written
	mu.Lock()
	writes = 0
	mu.Unlock()
	var latencies []time.Duration
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	b.ResetTimer()
	for i := range b.N {
		<-tick.C
		n := i % (services * podsEach)
		name := fmt.Sprintf("s%d-p%d", n%services, n/services)
		wg.Go(func() {
			mu.Lock()
			status := "True"
			if shown[name] {
				status = "False"
			}
			ch := make(chan struct{})
			waiting[name] = append(waiting[name], ch)
			mu.Unlock()
			patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":%q}]}}`, status)
			if _, err := pods.Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
				b.Error(err)
				return
			}
			answered := time.Now()
			select {
			case <-ch:
			case <-time.After(patience):
				b.Errorf("%s: no slice shows it", name)
				return
			}
			latency := time.Since(answered)
			mu.Lock()
			defer mu.Unlock()
			latencies = append(latencies, latency)
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(latencies)
	at := func(p float64) float64 { return latencies[int(p*float64(len(latencies)-1))].Seconds() * 1000 }
	b.ReportMetric(at(0.5), "ms-p50")
	b.ReportMetric(at(0.99), "ms-p99")
	b.ReportMetric(at(1), "ms-max")
	mu.Lock()
	defer mu.Unlock()
	b.ReportMetric(float64(writes)/float64(b.N), "writes/change")
}

func serviceName(slice *discoveryv1.EndpointSlice) string {
	return slice.Labels[discoveryv1.LabelServiceName]
}
