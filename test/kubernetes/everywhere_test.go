// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/test/kubernetes/bed"
)

// all is a cluster that has nothing but Fairlead.
var all = bed.Options{Nodes: 3}

// TestWalk: with no kube-proxy, no CoreDNS and no other pod network, a pod on every node reaches a pod on every node, in both families: by
// the Service's name, by its address, and by the pod's own. The server sees the address of the pod that asks.
func TestWalk(t *testing.T) {
	walk(t, enter(t, all))
}

// walk makes a server and a client on each node, and goes from every client to every server.
func walk(t *testing.T, w *world) {
	var manifest strings.Builder
	for _, n := range w.Nodes {
		manifest.WriteString(podOn("server", n.Name) + podOn("client", n.Name))
		for family, name := range map[string]string{"IPv4": "four-", "IPv6": "six-"} {
			fmt.Fprintf(&manifest, `---
apiVersion: v1
kind: Service
metadata: {name: %s%s, namespace: %s}
spec:
  selector: {app: server, on: %[2]s}
  ipFamilies: [%[4]s]
  ports: [{name: http, port: 80, targetPort: http}, {name: ticks, port: 77, targetPort: ticks, protocol: UDP}]
`, name, n.Name, namespace, family)
		}
	}
	w.apply(manifest.String())
	t.Cleanup(func() { w.remove("pods", "services") })
	servers, clients := w.wait("app=server"), w.wait("app=client")
	if len(servers) != len(w.Nodes) || len(clients) != len(w.Nodes) {
		t.Fatalf("%d servers and %d clients on %d nodes", len(servers), len(clients), len(w.Nodes))
	}
	w.await(t)
	asked := 0
	for _, from := range w.Nodes {
		client := clients[from.Name]
		var urls, ticks []string
		var want []answer
		for _, to := range w.Nodes {
			server := servers[to.Name]
			for i, name := range []string{"four-", "six-"} {
				service, err := w.Kube.CoreV1().Services(namespace).Get(interrupted, name+to.Name, metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				pod := addr(t, server, i == 1)
				vip := netip.MustParseAddr(service.Spec.ClusterIP)
				urls = append(urls, fmt.Sprintf("http://%s/self", name+to.Name), fmt.Sprintf("http://%s/self", netip.AddrPortFrom(vip, 80)),
					fmt.Sprintf("http://%s/self", netip.AddrPortFrom(pod, 8080)))
				ticks = append(ticks, name+to.Name+":77", netip.AddrPortFrom(vip, 77).String(), netip.AddrPortFrom(pod, 7007).String())
				for range 3 {
					want = append(want, answer{Pod: server.Name, Node: to.Name, Client: addr(t, client, i == 1).String(), Server: pod.String()})
				}
			}
		}
		got := w.ask(client.Name, append([]string{"get", "-fresh-conn"}, urls...)...)
		judge(t, client.Name, urls, got, want, 8080)
		judge(t, client.Name, ticks, w.ask(client.Name, append([]string{"udp"}, ticks...)...), want, 0)
		asked += len(urls) + len(ticks)

		// Programs of the node itself use Services too.
		for _, to := range w.Nodes {
			service, err := w.Kube.CoreV1().Services(namespace).Get(interrupted, "four-"+to.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			out, err := from.Output(interrupted, own+"/shop", "get", fmt.Sprintf("http://%s/self", service.Spec.ClusterIP))
			if err != nil {
				t.Errorf("from node %s to %s: %v: %s", from.Name, service.Name, err, out)
			} else if a := lines[answer](t, out)[0]; a.Node != to.Name {
				t.Errorf("from node %s to %s: %+v", from.Name, service.Name, a)
			}
			asked++
		}
		// And names outside the cluster are asked for outside.
		if out, err := w.exec(client.Name, "dns", "-n", "1", bed.OutsideName); err != nil {
			t.Errorf("%s asks for %s: %v: %s", client.Name, bed.OutsideName, err, out)
		}
	}
	t.Logf("%d requests from %d nodes to %[2]d nodes, each answered by the pod it was meant for", asked, len(w.Nodes))
}

// await waits until every node knows the Services: a name that has just been made may be known a little later, and kube-proxy programs a
// little later still.
func (w *world) await(t *testing.T) {
	for _, from := range w.Nodes {
		for _, to := range w.Nodes {
			for _, name := range []string{"four-", "six-"} {
				eventually(t, bound, name+to.Name+" on "+from.Name, func() error {
					if a := w.ask("client-"+from.Name, "get", "-timeout", "1s", "http://"+name+to.Name+"/self")[0]; a.Error != "" {
						return fmt.Errorf("%s: %s", a.Kind, a.Error)
					}
					return nil
				})
			}
		}
	}
}

// judge compares answers with those that are right.
func judge(t *testing.T, client string, targets []string, got, want []answer, port int) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("from %s: %d answers to %d requests", client, len(got), len(want))
	}
	for i, a := range got {
		seen, _, _ := net.SplitHostPort(a.Client)
		at, _, _ := net.SplitHostPort(a.Server)
		switch {
		case a.Error != "":
			t.Errorf("from %s to %s: %s: %s", client, targets[i], a.Kind, a.Error)
		case a.Pod != want[i].Pod || a.Node != want[i].Node:
			t.Errorf("from %s to %s: %s on %s answers, want %s on %s", client, targets[i], a.Pod, a.Node, want[i].Pod, want[i].Node)
		case seen != want[i].Client:
			t.Errorf("from %s to %s: the server sees %s, want %s", client, targets[i], seen, want[i].Client)
		case port != 0 && at != want[i].Server:
			t.Errorf("from %s to %s: it arrives at %s, want %s", client, targets[i], at, want[i].Server)
		}
	}
}
