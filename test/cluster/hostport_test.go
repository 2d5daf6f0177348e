// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// shopPod is a pod of the shop on a node, with ports.
func shopPod(name, node, ports string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
    - name: shop
      image: host
      command: [shop, serve]
      env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
      ports: [%s]
---`, name, node, ports)
}

// hostPorts are those that lead to a shop pod.
const hostPorts = "{containerPort: 8080, hostPort: 8088}, {containerPort: 7007, hostPort: 8088, protocol: UDP}"

// TestHostPorts: a pod's host ports are reached from pods of its node and of another one, from the pod itself and from the nodes, in both families,
// with the right address as the client; and who has them follows the pods.
func TestHostPorts(t *testing.T) {
	w := newWorld(t, "hostports")
	if r := w.up(t, "--nodes", "2", "--service-cidr", "10.96.0.0/16,fd00:96::/112", "--pod-cidr", "10.244.0.0/16,fd00:244::/48"); r.code != 0 {
		t.Fatalf("up: %s", r)
	}
	t.Cleanup(func() { w.run(t, "", "fairlead", "down", "--state", string(w.dir), "--purge") })
	if err := w.connect(); err != nil {
		t.Fatal(err)
	}
	w.kubectl(t, "create", "namespace", namespace)
	w.apply(t, shopPod("edge", "n1", hostPorts+", {containerPort: 8080, hostPort: 8089, hostIP: 127.0.0.1}, {containerPort: 8080, hostPort: 8089, hostIP: '::1'}")+
		shopPod("near", "n1", "")+shopPod("far", "n2", ""))
	w.await(t, "edge", "near", "far")
	node := make(map[string][]string)
	for _, name := range []string{"n1", "n2"} {
		n, err := w.kube.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range n.Status.Addresses {
			if _, err := netip.ParseAddr(a.Address); err == nil {
				node[name] = append(node[name], a.Address)
			}
		}
	}
	if len(node["n1"]) != 2 {
		t.Fatalf("addresses of the nodes: %v", node)
	}
	for i, at := range node["n1"] {
		for _, from := range []struct {
			name string
			ask  func(...string) result
			sees string
		}{
			{"a pod of the node", w.inPod(t, "near"), w.addr(t, "near", i)},
			{"a pod of another node", w.inPod(t, "far"), w.addr(t, "far", i)},
			{"the pod itself", w.inPod(t, "edge"), at},
			{"the node", w.inNode(t, "n1"), at},
			{"another node", w.inNode(t, "n2"), node["n2"][i]},
		} {
			eventually(t, 10*time.Second, from.name, func() error { return answeredBy(t, from.ask, net.JoinHostPort(at, "8088"), "edge", from.sees) })
		}
	}
	// Loopback is for the node's own processes. From ::1 nothing leaves, so that whoever tries is told at once.
	if err := answeredBy(t, w.inNode(t, "n1"), "127.0.0.1:8088", "edge", node["n1"][0]); err != nil {
		t.Error(err)
	}
	if a := w.inNode(t, "n1")("get", "--fresh-conn", "http://127.0.0.1:8089/self"); !strings.Contains(a.stdout, `"edge"`) {
		t.Errorf("hostIP 127.0.0.1: %s", a)
	}
	if a := w.inNode(t, "n1")("get", "--fresh-conn", "http://[::1]:8089/self"); !strings.Contains(a.stdout, "refused") {
		t.Errorf("hostIP ::1 from ::1: %s", a)
	}
	if r := w.run(t, "", "fairlead", "explain", "--state", string(w.dir), namespace+"/near", node["n1"][0]+":8088"); r.code != 0 ||
		!strings.Contains(r.stdout, "a host port of pod shop/edge (hostport4:8088/TCP)") || strings.Contains(r.stdout, "finding") {
		t.Errorf("explain: %s", r)
	}

	// One that comes later, and wants the same, waits until the first has gone. What is created in the same second goes by its name.
	edge, err := w.kube.CoreV1().Pods(namespace).Get(t.Context(), "edge", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(time.Until(edge.CreationTimestamp.Add(time.Second)))
	at := net.JoinHostPort(node["n1"][1], "8088")
	w.apply(t, shopPod("also", "n1", hostPorts))
	w.await(t, "also")
	dispute := "shop/pod/also: hostport6:8088/TCP belongs to shop/pod/edge"
	eventually(t, 10*time.Second, "the dispute in the status", func() error {
		if r := w.report(t, "n1"); !slices.Contains(r.Disputed, dispute) {
			return fmt.Errorf("%q", r.Disputed)
		}
		return nil
	})
	if err := answeredBy(t, w.inPod(t, "far"), at, "edge", w.addr(t, "far", 1)); err != nil {
		t.Error(err)
	}
	w.kubectl(t, "-n", namespace, "delete", "pod", "edge", "--wait")
	eventually(t, 10*time.Second, "the other pod", func() error { return answeredBy(t, w.inPod(t, "far"), at, "also", w.addr(t, "far", 1)) })
	w.kubectl(t, "-n", namespace, "delete", "pod", "also", "--wait")
	for _, how := range [][]string{{"get", "--fresh-conn", "http://" + at + "/self"}, {"udp", at}} {
		eventually(t, 10*time.Second, "refusal", func() error {
			if r := w.inPod(t, "far")(how...); !strings.Contains(r.stdout+r.stderr, "refused") {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
	}
	if r := w.report(t, "n1"); len(r.Disputed)+len(r.Flawed) > 0 {
		t.Errorf("disputed %q, flawed %q", r.Disputed, r.Flawed)
	}
}

// await waits until pods are ready.
func (w *world) await(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		w.kubectl(t, "-n", namespace, "wait", "--for=condition=Ready", "pod/"+name, "--timeout=60s")
	}
}

// addr is a pod's address, by the index of the family.
func (w *world) addr(t *testing.T, pod string, family int) string {
	t.Helper()
	p, err := w.kube.CoreV1().Pods(namespace).Get(t.Context(), pod, metav1.GetOptions{})
	if err != nil || len(p.Status.PodIPs) != 2 {
		t.Fatalf("pod %s: %v %v", pod, p, err)
	}
	return p.Status.PodIPs[family].IP
}

// inPod and inNode run the shop's client there.
func (w *world) inPod(t *testing.T, pod string) func(...string) result {
	return func(args ...string) result { return w.exec(t, pod, append([]string{"shop"}, args...)...) }
}

func (w *world) inNode(t *testing.T, node string) func(...string) result {
	return func(args ...string) result { return w.onNode(t, node, append([]string{binary("shop")}, args...)...) }
}

// answeredBy wants one pod to answer at an address, over TCP and UDP, and to have seen a client of the address given.
func answeredBy(t *testing.T, ask func(...string) result, at, pod, client string) error {
	t.Helper()
	for _, how := range [][]string{{"get", "--fresh-conn", "http://" + at + "/self"}, {"udp", at}} {
		r := ask(how...)
		all := lines[answer](t, r.stdout)
		if len(all) != 1 || all[0].Pod != pod || host(all[0].Client) != client {
			return fmt.Errorf("want %s, which sees %s: %s", pod, client, r)
		}
	}
	return nil
}
