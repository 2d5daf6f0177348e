// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/test/kubernetes/bed"
)

var away = flag.Duration("away", time.Minute, "how long TestAPIServerAway does without an API server")

// converged is the longest that Fairlead may take, from the moment the API server is ready again, until what was made then works from every node.
const converged = time.Minute

// TestAPIServerAway: the API server is killed, and pods while it is away. What needs no new information goes on without a failure:
// names, connections to pods that live. When the API server is back, what is new then is everywhere within a minute, and what has become of the
// pods half a minute after Kubernetes itself knows.
func TestAPIServerAway(t *testing.T) {
	// After an outage the controllers back off for minutes, and write no slices of new Services: the next scenario gets a cluster of its own.
	t.Cleanup(func() {
		if err := leave(); err != nil {
			t.Error(err)
		}
	})
	w := enter(t, all)
	var manifest, news strings.Builder
	for _, n := range w.Nodes {
		manifest.WriteString(podOn("client", n.Name) + podOn("steady", n.Name) + podOn("killed", n.Name))
	}
	for _, app := range []string{"steady", "killed"} {
		fmt.Fprintf(&manifest, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: %s}\nspec: {selector: {app: %[1]s}, ports: [{port: 80, targetPort: http}]}\n", app, namespace)
	}
	w.apply(manifest.String())
	t.Cleanup(func() { w.remove("pods", "services") })
	clients, killed := w.wait("app=client"), w.wait("app=killed")
	steady := w.wait("app=steady")
	for _, c := range clients {
		for _, app := range []string{"steady", "killed"} {
			eventually(t, bound, app+" from "+c.Name, func() error { return w.many(c, app, 10) })
		}
	}
	t.Cleanup(func() {
		if w.APIServer.Gone() != nil {
			if err := w.StartAPIServer(interrupted); err != nil {
				t.Error(err)
			}
		}
	})

	// The load runs on the nodes, for kubectl exec goes through the API server.
	loads := map[*bed.Node]*load{}
	for _, n := range w.Nodes {
		loads[n] = w.startInPod(n, clients[n.Name], "http://steady/self", 100)
	}
	time.Sleep(time.Second)
	w.APIServer.Kill()
	begin := time.Now()
	for _, n := range w.Nodes {
		w.killSandbox(n, killed[n.Name])
	}
	select {
	case <-time.After(*away):
	case <-interrupted.Done():
	}
	if err := w.StartAPIServer(interrupted); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	for n, l := range loads {
		s := l.stop()
		t.Logf("no API server for %.0f s; from %s by name: %s", back.Sub(begin).Seconds(), n.Name, s)
		if s.Failed > 0 {
			t.Errorf("from %s, without an API server: %d of %d requests failed", n.Name, s.Failed, s.Sent)
		}
	}
	// What is news to Fairlead alone: no controller has a hand in it.
	fmt.Fprintf(&news, "---\napiVersion: v1\nkind: Service\nmetadata: {name: news, namespace: %[1]s}\nspec: {ports: [{port: 80}]}\n", namespace)
	fmt.Fprintf(&news, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: news, namespace: %s, labels: {kubernetes.io/service-name: news}}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints:\n", namespace)
	for _, p := range steady {
		fmt.Fprintf(&news, "  - {addresses: [%q]}\n", addr(t, p, false))
	}
	w.apply(news.String())
	for _, c := range clients {
		eventually(t, converged-time.Since(back), "a new Service from "+c.Name, func() error { return w.many(c, "news", 10) })
	}
	own := time.Since(back)
	// The controllers and the kubelets take their own time; then it is Fairlead's turn again.
	eventually(t, 2*time.Minute, "addresses of the replaced pods in the Service's slices", func() error { return w.replaced(killed) })
	slices := time.Since(back)
	for _, c := range clients {
		for _, app := range []string{"killed", "steady"} {
			eventually(t, bound, app+" from "+c.Name, func() error { return w.many(c, app, 30) })
		}
	}
	t.Logf("API server away for %.0f s; after its return a new Service works from every node after %.1f s, the slices of the killed pods are right after %.1f s, and every request to these succeeds from every node after %.1f s",
		back.Sub(begin).Seconds(), own.Seconds(), slices.Seconds(), time.Since(back).Seconds())
	for _, n := range w.Nodes {
		if err := n.AgentReady(interrupted); err != nil {
			t.Errorf("agent of %s: %v", n.Name, err)
		}
	}
}

// many makes so many requests one after the other, which must all succeed.
func (w *world) many(from *corev1.Pod, app string, n int) error {
	var urls []string
	for range n {
		urls = append(urls, "http://"+app+"/self")
	}
	out, err := w.Kubectl(interrupted, "", append([]string{"-n", namespace, "exec", from.Name, "--", "/bin/shop", "get", "-fresh-conn", "-timeout", "1s"}, urls...)...)
	if err != nil {
		return fmt.Errorf("%w: %.500s", err, out)
	}
	return nil
}

// startInPod starts a load in a pod past the API server, as containerd's own tool can.
func (w *world) startInPod(n *bed.Node, pod *corev1.Pod, url string, rate int) *load {
	w.t.Helper()
	id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
	return w.load(n.Machine, url, func(marker string) []string {
		return []string{"ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", "load", id, "/bin/shop", "get", "-plain", "-rate", fmt.Sprint(rate), "-duration", "14m", marker}
	})
}

// killSandbox kills the process that holds a pod's namespaces, which ends the pod on its node: the kubelet makes it anew, with new addresses.
func (w *world) killSandbox(n *bed.Node, pod *corev1.Pod) {
	w.t.Helper()
	ids, err := n.Output(interrupted, "ctr", "-n", "k8s.io", "containers", "list", "-q",
		fmt.Sprintf(`labels."io.kubernetes.pod.uid"==%s,labels."io.cri-containerd.kind"==sandbox`, pod.UID))
	if err == nil && len(strings.Fields(ids)) != 1 {
		err = fmt.Errorf("pod %s has sandboxes %q", pod.Name, ids)
	}
	if err == nil {
		_, err = n.Output(interrupted, "ctr", "-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", strings.TrimSpace(ids))
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// replaced is nil when the Service's slices have, of every pod, a ready address that it did not have before.
func (w *world) replaced(before map[string]*corev1.Pod) error {
	list, err := w.Kube.DiscoveryV1().EndpointSlices(namespace).List(interrupted, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=killed"})
	if err != nil {
		return err
	}
	found := 0
	for _, s := range list.Items {
		for _, e := range s.Endpoints {
			old := before[*e.NodeName]
			if e.Conditions.Ready == nil || !*e.Conditions.Ready {
				return fmt.Errorf("%s is not ready", e.TargetRef.Name)
			}
			if slices.ContainsFunc(old.Status.PodIPs, func(ip corev1.PodIP) bool { return slices.Contains(e.Addresses, ip.IP) }) {
				return fmt.Errorf("%s still has %v", old.Name, e.Addresses)
			}
			found++
		}
	}
	if found != len(before) {
		return errors.New("some are missing")
	}
	return nil
}
