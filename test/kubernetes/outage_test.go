// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
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

// TestAPIServerAway: the API server is killed, and while it is away a pod is killed and a node loses its power. What needs no new information goes on without a
// failure: names, connections to pods that live; on the node that came back too, where a static pod is all that a kubelet can start; and once its node has noticed
// that the killed pod is gone, its Service from every node, by the endpoint that is left. When the API server is back,
// what is new then is everywhere within a minute, and what has become of the pods half a minute after Kubernetes itself knows.
func TestAPIServerAway(t *testing.T) {
	// After an outage the controllers back off for minutes, and write no slices of new Services: the next scenario gets a cluster of its own.
	t.Cleanup(func() {
		if err := leave(); err != nil {
			t.Error(err)
		}
	})
	w := enter(t, all)
	spared, struck := w.Nodes[:2], w.Nodes[2]
	var manifest, news strings.Builder
	for _, n := range w.Nodes {
		manifest.WriteString(podOn("client", n.Name))
	}
	for _, n := range spared {
		manifest.WriteString(podOn("steady", n.Name) + podOn("killed", n.Name))
	}
	manifest.WriteString(podOn("struck", struck.Name))
	for _, app := range []string{"steady", "killed", "struck"} {
		fmt.Fprintf(&manifest, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: %s}\nspec: {selector: {app: %[1]s}, ports: [{port: 80, targetPort: http}]}\n", app, namespace)
	}
	w.apply(manifest.String())
	t.Cleanup(func() { w.remove("pods", "services") })
	visitor := "visitor-" + struck.Name + "-" + struck.Name // as a kubelet calls a static pod
	if err := struck.SetStaticPod(interrupted, "visitor", podOn("visitor", struck.Name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := struck.SetStaticPod(interrupted, "visitor", ""); err != nil {
			t.Error(err)
		}
	})
	clients, killed, steady := w.wait("app=client"), w.wait("app=killed"), w.wait("app=steady")
	w.wait("app=struck")
	works := func(what string, limit time.Duration, from []*bed.Node, apps ...string) {
		t.Helper()
		for _, n := range from {
			c := clients[n.Name]
			for _, app := range apps {
				eventually(t, limit, what+app+" from "+c.Name, func() error { return w.many(c, app, 10) })
			}
		}
	}
	works("", bound, w.Nodes, "steady", "killed", "struck")
	eventually(t, bound, "steady from "+visitor, func() error { return w.manyInPod(struck, visitor, "steady", 10) })
	t.Cleanup(func() {
		if w.APIServer.Gone() != nil {
			if err := w.StartAPIServer(interrupted); err != nil {
				t.Error(err)
			}
		}
	})
	good := func(l *load, from string, since time.Time) {
		t.Helper()
		s := l.stop()
		t.Logf("no API server for %.0f s; from %s by name: %s", time.Since(since).Seconds(), from, s)
		if s.Failed > 0 || s.OK == 0 {
			t.Errorf("from %s, without an API server: %d of %d requests failed", from, s.Failed, s.Sent)
		}
	}

	eventually(t, bound, "the state on the disk of "+struck.Name, func() error { return kept(struck) })

	// The load runs on the nodes, for kubectl exec goes through the API server.
	loads := map[*bed.Node]*load{}
	for _, n := range w.Nodes {
		loads[n] = w.startInPod(n, clients[n.Name].Name, "http://steady/self", 100)
	}
	time.Sleep(time.Second)
	w.APIServer.Kill()
	begin := time.Now()
	victim := spared[0]
	w.killSandbox(victim, killed[victim.Name])
	time.Sleep(3 * time.Second)
	good(loads[struck], struck.Name, begin)
	delete(loads, struck)
	down := time.Now()
	if err := w.Reboot(interrupted, struck); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s has started again after %.1f s, without an API server", struck.Name, time.Since(down).Seconds())
	fromVisitor := w.startInPod(struck, visitor, "http://steady/self", 100)
	t.Logf("its static pod runs after %.1f s", time.Since(down).Seconds())
	var toKilled []*load
	for _, n := range spared {
		eventually(t, bound, "what is left of Service killed, from "+n.Name, func() error { return w.manyInPod(n, clients[n.Name].Name, "killed", 30) })
		toKilled = append(toKilled, w.startInPod(n, clients[n.Name].Name, "http://killed/self", 50))
	}
	select {
	case <-time.After(*away - time.Since(begin)):
	case <-interrupted.Done():
	}
	if err := w.StartAPIServer(interrupted); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	for n, l := range loads {
		good(l, n.Name, begin)
	}
	for i, l := range toKilled {
		good(l, spared[i].Name+" to a Service of which a pod was killed,", begin)
	}
	good(fromVisitor, struck.Name+", which lost its power", begin)
	// What is news to Fairlead alone: no controller has a hand in it.
	fmt.Fprintf(&news, "---\napiVersion: v1\nkind: Service\nmetadata: {name: news, namespace: %[1]s}\nspec: {ports: [{port: 80}]}\n", namespace)
	fmt.Fprintf(&news, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: news, namespace: %s, labels: {kubernetes.io/service-name: news}}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints:\n", namespace)
	for _, p := range steady {
		fmt.Fprintf(&news, "  - {addresses: [%q]}\n", addr(t, p, false))
	}
	w.apply(news.String())
	for _, n := range w.Nodes {
		eventually(t, converged-time.Since(back), "a new Service from a pod of "+n.Name, func() error {
			if n == struck {
				return w.manyInPod(n, visitor, "news", 10)
			}
			return w.manyInPod(n, clients[n.Name].Name, "news", 10)
		})
	}
	own := time.Since(back)
	// The controllers and the kubelets take their own time; then it is Fairlead's turn again.
	eventually(t, 2*time.Minute, "addresses of the replaced pods in the Service's slices", func() error { return w.replaced(killed, victim) })
	slices := time.Since(back)
	works("", bound, spared, "killed", "steady")
	whole := time.Since(back)
	works("after all, ", 2*time.Minute, w.Nodes, "struck", "steady", "killed", "news")
	t.Logf("API server away for %.0f s; after its return a new Service works from every node after %.1f s, the slices of the killed pods are right after %.1f s, and every request to these succeeds from the nodes that stayed after %.1f s",
		back.Sub(begin).Seconds(), own.Seconds(), slices.Seconds(), whole.Seconds())
	t.Logf("the pods of %s are back, and every request to them succeeds from every node, after %.1f s", struck.Name, time.Since(back).Seconds())
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

// manyInPod is like many, past the API server, as containerd's own tool can.
func (w *world) manyInPod(n *bed.Node, pod, app string, requests int) error {
	id, err := w.container(n, pod)
	if err != nil {
		return err
	}
	argv := []string{"ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", fmt.Sprint("many-", loads.Add(1)), id, "/bin/shop", "get", "-fresh-conn", "-timeout", "1s"}
	out, err := n.Output(interrupted, append(argv, slices.Repeat([]string{"http://" + app + "/self"}, requests)...)...)
	if err != nil {
		return fmt.Errorf("%w: %.500s", err, out)
	}
	return nil
}

// startInPod starts a load in a pod past the API server, once the pod runs.
func (w *world) startInPod(n *bed.Node, pod, url string, rate int) *load {
	w.t.Helper()
	var id string
	eventually(w.t, bound, "container of "+pod, func() (err error) {
		id, err = w.container(n, pod)
		return err
	})
	return w.load(n.Machine, url, func(marker string) []string {
		return []string{"ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", fmt.Sprint("load-", loads.Add(1)), id, "/bin/shop", "get", "-plain", "-rate", fmt.Sprint(rate), "-duration", "14m", marker}
	})
}

// container is the id of the one container of a pod that runs, as the node's containerd says.
func (w *world) container(n *bed.Node, pod string) (string, error) {
	all, err := n.Output(interrupted, "ctr", "-n", "k8s.io", "containers", "list", "-q",
		fmt.Sprintf(`labels."io.kubernetes.pod.name"==%s,labels."io.cri-containerd.kind"==container`, pod))
	if err != nil {
		return "", err
	}
	tasks, err := n.Output(interrupted, "ctr", "-n", "k8s.io", "tasks", "list")
	if err != nil {
		return "", err
	}
	for id := range strings.FieldsSeq(all) {
		for line := range strings.Lines(tasks) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == id && f[2] == "RUNNING" {
				return id, nil
			}
		}
	}
	return "", fmt.Errorf("none of the containers of pod %s runs: %q", pod, all)
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

// replaced is nil when the Service's slices have, of every pod, a ready address, and of that on a node one that it did not have before.
func (w *world) replaced(before map[string]*corev1.Pod, on *bed.Node) error {
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
			if *e.NodeName == on.Name && slices.ContainsFunc(old.Status.PodIPs, func(ip corev1.PodIP) bool { return slices.Contains(e.Addresses, ip.IP) }) {
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

// kept reports whether a node has everything on its disk that its kernel has: it is written there at most every ten seconds, and a loss of power takes the rest.
func kept(n *bed.Node) error {
	text, err := n.Output(interrupted, own+"/fairlead", "status", "--json", "--socket", "/var/lib/fairlead/agent/agent.sock")
	if err != nil {
		return err
	}
	report, err := parseReport(text)
	if err != nil {
		return err
	}
	metrics, err := n.Output(interrupted, "curl", "-sf", "http://127.0.0.1:10249/metrics")
	if err != nil {
		return err
	}
	// When the write began, after which it takes in what there is.
	_, rest, _ := strings.Cut(metrics, "\nfairlead_checkpoint_timestamp_seconds ")
	value, _, _ := strings.Cut(rest, "\n")
	seconds, err := strconv.ParseFloat(value, 64)
	if err != nil {
		return fmt.Errorf("parse metrics: %w", err)
	}
	p := report.Progress
	if at := time.UnixMicro(int64(seconds * 1e6)); at.Before(p.At) || p.Arrived != p.Acknowledged {
		return fmt.Errorf("written at %s, acknowledged at %s", at, p.At)
	}
	return nil
}
