// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	layout "github.com/fairlead/fairlead/cluster"
)

// child returns the state of one of the cluster's own processes.
func (w *world) child(t testing.TB, name string) layout.ChildStatus {
	t.Helper()
	s, err := w.client.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.Children {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no child %q among %+v", name, s.Children)
	return layout.ChildStatus{}
}

// act acts on one of the cluster's own processes.
func (w *world) act(t testing.TB, action, name string) {
	t.Helper()
	if err := w.client.Child(context.Background(), action, name); err != nil {
		t.Fatalf("%s %s: %v", action, name, err)
	}
}

// dnsIP is how a ruleset names the ClusterIP of kube-dns.
const dnsIP = `"10.96.0.10"`

// ruleset is a node's nftables state as the kernel numbers it: tables, chains,
// rules and sets with their handles, and every element, one string each, sorted.
// Left out are counters and remaining times, tables that belong to the agent's
// process and by design end with it, and the endpoints of kube-dns, which are the
// agents themselves.
func (w *world) ruleset(t testing.TB, node string) []string {
	t.Helper()
	r := w.onNode(t, node, "nft", "-j", "-a", "list", "ruleset")
	if r.code != 0 {
		t.Fatal(r)
	}
	var listing struct {
		Nftables []map[string]map[string]any `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &listing); err != nil {
		t.Fatalf("%s: %v", r, err)
	}
	var out []string
	for _, object := range listing.Nftables {
		for kind, fields := range object {
			table, _ := fields["table"].(string)
			if name, _ := fields["name"].(string); kind == "table" {
				table = name
			}
			if kind == "metainfo" || strings.HasPrefix(table, "fairlead-dns-") {
				continue
			}
			elements, _ := fields["elem"].([]any)
			delete(fields, "elem")
			settle(fields)
			line, _ := json.Marshal(fields)
			out = append(out, kind+" "+string(line))
			for _, e := range elements {
				settle(e)
				line, _ := json.Marshal(e)
				if strings.Contains(string(line), dnsIP) {
					continue
				}
				out = append(out, fmt.Sprintf("%v element %s", fields["name"], line))
			}
		}
	}
	slices.Sort(out)
	if len(out) < 10 {
		t.Fatalf("%s has only %d nftables objects:\n%s", node, len(out), r.stdout)
	}
	return out
}

// unrelated are the differences that have to do with none of some virtual addresses: neither with the entry of one nor with the group
// of endpoints that it leads to.
func unrelated(t testing.TB, before, after []string, vips ...string) (lines []string) {
	t.Helper()
	groups := make(map[string]bool)
	for _, line := range append(slices.Clone(before), after...) {
		_, element, ok := strings.Cut(line, " element ")
		var pair []any
		if !ok || !slices.ContainsFunc(vips, func(vip string) bool { return strings.Contains(element, `"`+vip+`"`) }) ||
			json.Unmarshal([]byte(element), &pair) != nil || len(pair) != 2 {
			continue
		}
		var high, low uint32
		if code, _ := pair[1].(string); code != "none" {
			if _, err := fmt.Sscanf(code, "%x:%x", &high, &low); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
		groups[fmt.Sprintf(`"%x:%x"`, high, low&^0x3fff)] = true // the lower 14 bits are the way, see nft
	}
	for line := range strings.Lines(difference(before, after)) {
		related := slices.ContainsFunc(vips, func(vip string) bool { return strings.Contains(line, `"`+vip+`"`) })
		for g := range groups {
			related = related || strings.Contains(line, "endpoints4 element") && strings.Contains(line, g)
		}
		if !related {
			lines = append(lines, line)
		}
	}
	return lines
}

// settle removes what changes by itself from a decoded JSON value.
func settle(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range []string{"packets", "bytes", "expires"} {
			delete(v, k)
		}
		for _, e := range v {
			settle(e)
		}
	case []any:
		for _, e := range v {
			settle(e)
		}
	}
}

// difference says what two sorted lists do not share.
func difference(before, after []string) string {
	var b strings.Builder
	for _, l := range before {
		if _, ok := slices.BinarySearch(after, l); !ok {
			fmt.Fprintf(&b, "- %s\n", l)
		}
	}
	for _, l := range after {
		if _, ok := slices.BinarySearch(before, l); !ok {
			fmt.Fprintf(&b, "+ %s\n", l)
		}
	}
	return b.String()
}

// ready waits until a node's agent is another process than pid and ready.
func (w *world) ready(t testing.TB, node string, pid int) {
	t.Helper()
	eventually(t, 30*time.Second, "agent of "+node, func() error {
		c := w.child(t, "agent-"+node)
		if c.State != layout.ChildRunning || c.PID == pid {
			return fmt.Errorf("%+v", c)
		}
		if r := w.run(t, "", "fairlead", "status", node); r.code != 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// TestAgentsKilled: each agent in turn is killed with -9 under load. Connections
// by ClusterIP from its node lose nothing, the other nodes' agents answer DNS, and
// the next agent adopts what is there.
func TestAgentsKilled(t *testing.T) {
	w := shared(t)
	ip := w.service(t, "orders").Spec.ClusterIP
	for i, node := range nodes {
		pod, other := w.clientOn(t, node), nodes[(i+1)%len(nodes)]
		n, err := w.kube.CoreV1().Nodes().Get(context.Background(), other, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		before := w.ruleset(t, node)
		connections := w.start(t, pod, "get", "-rate", "1000", "-duration", "2m", "--fresh-conn", "http://"+ip+":9000/self")
		kept := w.start(t, pod, "get", "-rate", "20", "-duration", "2m", "-c", "1", "http://"+ip+":9000/self")
		names := w.start(t, pod, "dns", "-rate", "1000", "-duration", "2m", "-timeout", "2s", "-server", n.Status.Addresses[0].Address, "orders.shop.svc.cluster.local")
		own := w.start(t, pod, "dns", "-rate", "50", "-duration", "2m", "-timeout", "1s", "orders.shop.svc.cluster.local")
		time.Sleep(time.Second)

		pid := w.child(t, "agent-"+node).PID
		killed := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.ready(t, node, pid)
		back := time.Since(killed)
		time.Sleep(time.Second)
		for what, l := range map[string]*load{"connections by ClusterIP": connections, "one kept connection": kept, "DNS at " + other: names} {
			s := l.stop(t)
			t.Logf("%s killed, ready again after %.2f s; %s: %s", node, back.Seconds(), what, s)
			if s.Failed > 0 {
				t.Errorf("%s killed: %s: %d of %d failed", node, what, s.Failed, s.Sent)
			}
		}
		s := own.stop(t)
		t.Logf("%s killed; DNS at its own ClusterIP, each query once: %s", node, s)
		if d := difference(before, w.ruleset(t, node)); d != "" {
			t.Errorf("%s: the restart changed what was there:\n%s", node, d)
		}
	}
}

// TestChangesWhileAgentIsAway: what changed while a node had no agent is applied
// when it returns, and what did not change is not touched.
func TestChangesWhileAgentIsAway(t *testing.T) {
	w := shared(t)
	node := "n2"
	pod, pid := w.clientOn(t, node), w.child(t, "agent-"+node).PID
	w.apply(t, `
apiVersion: v1
kind: Service
metadata: {name: leaving, namespace: shop}
spec: {selector: {app: catalog}, ports: [{port: 80, targetPort: http}]}
`)
	eventually(t, 10*time.Second, "the Service that will leave", func() error { return failed(w.exec(t, pod, "shop", "get", "http://leaving/self")) })
	leaving := w.service(t, "leaving").Spec.ClusterIP
	before := w.ruleset(t, node)

	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.act(t, layout.ActionStop, "agent-"+node)
	t.Cleanup(func() {
		w.client.Child(context.Background(), layout.ActionStart, "agent-"+node)
	})
	w.kubectl(t, "-n", namespace, "delete", "service", "leaving")
	w.apply(t, `
apiVersion: v1
kind: Service
metadata: {name: coming, namespace: shop}
spec: {selector: {app: catalog}, ports: [{port: 80, targetPort: http}]}
`)
	t.Cleanup(func() { w.kubectl(t, "-n", namespace, "delete", "service", "coming") })
	coming := w.service(t, "coming").Spec.ClusterIP
	if d := difference(before, w.ruleset(t, node)); d != "" {
		t.Errorf("with no agent, something changed:\n%s", d)
	}
	// What was there goes on.
	if s := one[*summary](t, w.in(t, pod, "shop", "get", "-n", "100", "--fresh-conn", "http://"+leaving+"/self")); s.Failed > 0 {
		t.Errorf("with no agent: %s", s)
	}
	w.act(t, layout.ActionStart, "agent-"+node)
	w.ready(t, node, pid)
	eventually(t, 10*time.Second, "the new Service", func() error { return failed(w.exec(t, pod, "shop", "get", "http://coming/self")) })
	if r := w.exec(t, pod, "getent", "hosts", "leaving"); r.code == 0 {
		t.Errorf("the removed Service's name is still there: %s", r)
	}
	after := w.ruleset(t, node)
	for _, line := range unrelated(t, before, after, leaving, coming) {
		t.Errorf("changed although it has nothing to do with the change: %s", line)
	}
	if all := strings.Join(after, "\n"); strings.Contains(all, leaving+`"`) && leaving != coming {
		t.Errorf("the removed Service %s is still in the kernel", leaving)
	}
}

// failed turns a result into an error.
func failed(r result) error {
	if r.code != 0 {
		return fmt.Errorf("%s", r)
	}
	return nil
}

// TestAPIServerAway: names and connections do not need the API server; when it is
// back, changes flow again.
func TestAPIServerAway(t *testing.T) {
	w := shared(t)
	pod := w.clientOn(t, "n3")
	before := w.ruleset(t, "n3")
	l := w.start(t, pod, "get", "-rate", "200", "-duration", "2m", "--fresh-conn", "http://orders:9000/self")
	time.Sleep(500 * time.Millisecond)
	w.act(t, layout.ActionStop, "apiserver")
	stopped := time.Now()
	t.Cleanup(func() { w.client.Child(context.Background(), layout.ActionStart, "apiserver") })
	time.Sleep(3 * time.Second)
	if r := w.exec(t, pod, "getent", "hosts", "orders"); r.code != 0 {
		t.Errorf("without the API server: %s", r)
	}
	w.act(t, layout.ActionStart, "apiserver")
	eventually(t, 30*time.Second, "API server", func() error {
		_, err := w.kube.CoreV1().Services(namespace).Get(context.Background(), "orders", metav1.GetOptions{})
		return err
	})
	away := time.Since(stopped)
	w.apply(t, `
apiVersion: v1
kind: Service
metadata: {name: afterwards, namespace: shop}
spec: {selector: {app: catalog}, ports: [{port: 80, targetPort: http}]}
`)
	t.Cleanup(func() { w.kubectl(t, "-n", namespace, "delete", "service", "afterwards") })
	eventually(t, 60*time.Second, "a Service made after the return", func() error { return failed(w.exec(t, pod, "shop", "get", "http://afterwards/self")) })
	flowing := time.Since(stopped)
	s := l.stop(t)
	t.Logf("API server away for %.1f s, a new Service works on n3 %.1f s after the stop; by name: %s", away.Seconds(), flowing.Seconds(), s)
	if s.Failed > 0 {
		t.Errorf("%d requests failed", s.Failed)
	}
	after := w.service(t, "afterwards").Spec.ClusterIP
	for _, line := range unrelated(t, before, w.ruleset(t, "n3"), after) {
		t.Errorf("changed although it has nothing to do with the change: %s", line)
	}
}

// TestRestartOfEverything: the whole cluster goes down and comes up from its state
// directory with the same Services and the same pods.
func TestRestartOfEverything(t *testing.T) {
	w := shared(t)
	state := func() []string {
		var out []string
		services, err := w.kube.CoreV1().Services("").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range services.Items {
			out = append(out, fmt.Sprintf("service %s/%s %s %v", s.Namespace, s.Name, s.UID, s.Spec.ClusterIPs))
		}
		pods, err := w.kube.CoreV1().Pods("").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pods.Items {
			spec, _ := json.Marshal(p.Spec)
			out = append(out, fmt.Sprintf("pod %s/%s %s %s", p.Namespace, p.Name, p.UID, spec))
		}
		slices.Sort(out)
		return out
	}
	before := state()
	begin := time.Now()
	w.must(t, "fairlead", "down", "--state", string(w.dir))
	down := time.Since(begin)
	begin = time.Now()
	if r := w.up(t); r.code != 0 {
		t.Fatal(r)
	}
	up := time.Since(begin)
	if err := w.connect(); err != nil {
		t.Fatal(err)
	}
	w.rollout(t)
	eventually(t, 60*time.Second, "a request by name", func() error {
		pods := w.pods(t, "app=client")
		if len(pods) != 3 {
			return fmt.Errorf("%d client pods", len(pods))
		}
		return failed(w.exec(t, pods[0].Name, "shop", "get", "http://front/"))
	})
	t.Logf("down in %.1f s, up in %.1f s, first request answered after %.1f s", down.Seconds(), up.Seconds(), time.Since(begin).Seconds())
	if d := difference(before, state()); d != "" {
		t.Errorf("the restart changed:\n%s", d)
	}
}
