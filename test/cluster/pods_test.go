// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// httpPort is the number of a pod's container port "http".
func httpPort(p corev1.Pod) int32 {
	for _, c := range p.Spec.Containers[0].Ports {
		if c.Name == "http" {
			return c.ContainerPort
		}
	}
	return 0
}

// TestPodsSeeEachOther: all pods have distinct addresses from their node's range,
// and whoever talks to whom, over TCP or UDP, is seen with its own.
func TestPodsSeeEachOther(t *testing.T) {
	w := shared(t)
	pods := w.pods(t, "")
	byIP, used := map[string]string{}, map[string]bool{}
	for _, p := range pods {
		if other := byIP[p.Status.PodIP]; other != "" {
			t.Errorf("%s and %s both have %s", p.Name, other, p.Status.PodIP)
		}
		byIP[p.Status.PodIP] = p.Name
		used[p.Spec.NodeName] = true
		node, err := w.kube.CoreV1().Nodes().Get(t.Context(), p.Spec.NodeName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if prefix, err := netip.ParsePrefix(node.Spec.PodCIDR); err != nil || !prefix.Contains(netip.MustParseAddr(p.Status.PodIP)) {
			t.Errorf("%s has %s, which is not of %s's range %q", p.Name, p.Status.PodIP, p.Spec.NodeName, node.Spec.PodCIDR)
		}
	}
	if len(used) != len(nodes) {
		t.Errorf("pods on %d nodes, want %d", len(used), len(nodes))
	}
	var urls, udps []string
	for _, p := range pods {
		urls = append(urls, "http://"+net.JoinHostPort(p.Status.PodIP, strconv.Itoa(int(httpPort(p))))+"/self")
		udps = append(udps, net.JoinHostPort(p.Status.PodIP, "7007"))
	}
	asked := 0
	for _, from := range pods {
		for _, how := range []struct {
			network string
			args    []string
		}{
			{"tcp", append([]string{"shop", "get", "--fresh-conn"}, urls...)},
			{"udp", append([]string{"shop", "udp"}, udps...)},
		} {
			r := w.exec(t, from.Name, how.args...)
			answers := lines[answer](t, r.stdout)
			if len(answers) != len(pods) {
				t.Fatalf("%s: %d answers, want %d", r, len(answers), len(pods))
			}
			for i, a := range answers {
				asked++
				if a.Pod != pods[i].Name || host(a.Client) != from.Status.PodIP {
					t.Errorf("%s: %s (%s) to %s (%s): answered by %q, which saw %q %s", how.network,
						from.Name, from.Status.PodIP, pods[i].Name, pods[i].Status.PodIP, a.Pod, a.Client, a.Error)
				}
			}
		}
	}
	t.Logf("%d pods, %d ordered pairs asked, each sender seen with its own address", len(pods), asked)
}

// removal watches for the moment when no EndpointSlice of a Service names an
// address as ready any more, and returns when the watch said so: the removal was
// stored before that.
func (w *world) removal(t testing.TB, service, addr string) <-chan time.Time {
	t.Helper()
	watch, err := w.kube.DiscoveryV1().EndpointSlices(namespace).Watch(t.Context(), metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch.Stop)
	out := make(chan time.Time, 1)
	go func() {
		seen := false
		for e := range watch.ResultChan() {
			slice, ok := e.Object.(*discoveryv1.EndpointSlice)
			if !ok {
				continue
			}
			now := slices.ContainsFunc(slice.Endpoints, func(ep discoveryv1.Endpoint) bool {
				return slices.Contains(ep.Addresses, addr) && ep.Conditions.Ready != nil && *ep.Conditions.Ready
			})
			if seen && !now {
				out <- time.Now()
				return
			}
			seen = seen || now
		}
	}()
	return out
}

// TestPodReplaced: a pod is deleted under load. Its replacement has another
// address, the Service keeps its own, and nobody notices.
func TestPodReplaced(t *testing.T) {
	w := shared(t)
	before := w.service(t, "catalog").Spec.ClusterIP
	victim := w.pods(t, "app=catalog")[0]
	gone := w.removal(t, "catalog", victim.Status.PodIP)

	l := w.start(t, w.clientOn(t, "n1"), "get", "-rate", "200", "-duration", "5m", "--fresh-conn", "http://catalog/self")
	time.Sleep(time.Second)
	w.kubectl(t, "-n", namespace, "delete", "pod", victim.Name)
	var stored time.Time
	select {
	case stored = <-gone:
	case <-time.After(30 * time.Second):
		t.Fatal("the deleted pod stays in its EndpointSlice")
	}
	w.kubectl(t, "-n", namespace, "rollout", "status", "deployment", "catalog", "--timeout=60s")
	time.Sleep(time.Second)
	s := l.stop(t)
	t.Logf("load by name: %s", s)

	after := 0
	for _, f := range s.Failures {
		if f.Start.After(stored) {
			after++
		}
	}
	if after > 0 || s.Failed > 0 {
		t.Errorf("%d requests failed, %d of them started after the removal was stored at %s", s.Failed, after, stored.Format("15:04:05.000"))
	}
	if s.Sent < 200 {
		t.Errorf("only %d requests sent", s.Sent)
	}
	if ip := w.service(t, "catalog").Spec.ClusterIP; ip != before {
		t.Errorf("ClusterIP was %s, is %s", before, ip)
	}
	pods := w.pods(t, "app=catalog")
	if len(pods) != 2 {
		t.Errorf("%d catalog pods, want 2", len(pods))
	}
	for _, p := range pods {
		if p.Status.PodIP == victim.Status.PodIP || p.Name == victim.Name {
			t.Errorf("the replacement %s has the old address or name (%s %s)", p.Name, victim.Name, victim.Status.PodIP)
		}
		if s.Pods[p.Name] == 0 {
			t.Errorf("%s got no request", p.Name)
		}
	}
}

// TestScaleAndRestartUnderLoad: pods come and go behind a name that 200 requests
// each second go to.
func TestScaleAndRestartUnderLoad(t *testing.T) {
	w := shared(t)
	scale := func(n int) {
		w.kubectl(t, "-n", namespace, "scale", "deployment", "orders-v1", "--replicas", strconv.Itoa(n))
		w.kubectl(t, "-n", namespace, "rollout", "status", "deployment", "orders-v1", "--timeout=120s")
	}
	t.Cleanup(func() {
		scale(3)
		eventually(t, 60*time.Second, "three orders-v1 pods again", func() error {
			if n := len(w.pods(t, "app=orders,version=v1")); n != 3 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
	})
	scale(4)
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"scale 4 to 12", func() { scale(12) }},
		{"scale 12 to 4", func() {
			scale(4)
			eventually(t, 60*time.Second, "pods gone", func() error {
				list, err := w.kube.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=orders,version=v1"})
				if err == nil && len(list.Items) != 4 {
					err = fmt.Errorf("%d pods", len(list.Items))
				}
				return err
			})
		}},
		{"rollout restart", func() {
			w.kubectl(t, "-n", namespace, "rollout", "restart", "deployment", "orders-v1")
			w.kubectl(t, "-n", namespace, "rollout", "status", "deployment", "orders-v1", "--timeout=120s")
		}},
	} {
		l := w.start(t, w.clientOn(t, "n2"), "get", "-rate", "200", "-duration", "5m", "--fresh-conn", "http://orders:9000/self")
		time.Sleep(500 * time.Millisecond)
		begin := time.Now()
		step.do()
		took := time.Since(begin)
		time.Sleep(500 * time.Millisecond)
		s := l.stop(t)
		t.Logf("%s in %.1f s: %s", step.name, took.Seconds(), s)
		if s.Failed > 0 {
			t.Errorf("%s: %d of %d requests failed", step.name, s.Failed, s.Sent)
		}
	}
}

// TestWeights: three pods of v1 and one of v2 behind one selector share the
// traffic evenly, so v2 gets a quarter. 3 % is more than four standard
// deviations of 4000 fair choices.
func TestWeights(t *testing.T) {
	w := shared(t)
	for _, node := range nodes {
		out := w.in(t, w.clientOn(t, node), "shop", "get", "-n", "4000", "-c", "8", "--fresh-conn", "http://orders:9000/self")
		s := one[*summary](t, out)
		share := float64(s.Versions["v2"]) / float64(s.Sent) * 100
		t.Logf("from %s: %.2f %% of %d requests reached v2; by pod %v; %s", node, share, s.Sent, s.Pods, s)
		if s.Sent != 4000 || s.Failed > 0 || math.Abs(share-25) > 3 || len(s.Pods) != 4 {
			t.Errorf("from %s: want 4000 without failure over 4 pods, 25 %% to v2", node)
		}
		if node == nodes[0] && testing.Short() {
			break
		}
	}
}

// TestPorts: every way to write a Service port leads to the right pod port.
func TestPorts(t *testing.T) {
	w := shared(t)
	for _, node := range nodes {
		from := w.clientOn(t, node)
		for _, tc := range []struct {
			target string
			want   map[string]string // version to the port that answered
		}{
			{"http://orders/self", map[string]string{"v1": "8080", "v2": "9090"}},
			{"http://orders:9000/self", map[string]string{"v1": "9100", "v2": "9100"}},
			{"http://front/self", map[string]string{"v1": "8080"}},
		} {
			var targets []string
			for range 24 {
				targets = append(targets, tc.target)
			}
			seen := map[string]bool{}
			for _, a := range lines[answer](t, w.in(t, from, append([]string{"shop", "get", "--fresh-conn"}, targets...)...)) {
				_, port, _ := net.SplitHostPort(a.Server)
				seen[a.Version] = true
				if port != tc.want[a.Version] {
					t.Errorf("from %s, %s: %s (%s) answered at port %s, want %s", node, tc.target, a.Pod, a.Version, port, tc.want[a.Version])
				}
			}
			if len(seen) != len(tc.want) {
				t.Errorf("from %s, %s: versions %v answered in 24 requests, want %v", node, tc.target, seen, tc.want)
			}
		}
		s := one[*summary](t, w.in(t, from, "shop", "udp", "-n", "50", "ticker:7000"))
		if s.Failed > 0 || len(s.Pods) != 2 {
			t.Errorf("from %s, UDP: %s by pods %v, want both", node, s, s.Pods)
		}
	}
}

// TestPodReachesItself: a pod that is behind a Service reaches the Service also
// when the choice falls on itself.
func TestPodReachesItself(t *testing.T) {
	w := shared(t)
	for _, tc := range []struct {
		selector string
		args     []string
	}{
		{"app=orders", []string{"shop", "get", "-n", "80", "--fresh-conn", "http://orders:9000/self"}},
		{"app=front", []string{"shop", "get", "-n", "10", "--fresh-conn", "http://front/self"}},
		{"app=ticker", []string{"shop", "udp", "-n", "40", "ticker:7000"}},
	} {
		for _, p := range w.pods(t, tc.selector) {
			s := one[*summary](t, w.exec(t, p.Name, tc.args...).stdout)
			if s.Failed > 0 || s.Pods[p.Name] == 0 {
				t.Errorf("%s: %s; itself %d times", p.Name, s, s.Pods[p.Name])
			}
		}
	}
}
