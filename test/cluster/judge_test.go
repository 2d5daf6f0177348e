// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/kube"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/test/packets"
)

// judged are Services of many kinds, for the last judge of the packet table.
const judged = `
apiVersion: v1
kind: Service
metadata: {name: judge-plain, namespace: shop}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: judge-empty, namespace: shop}
spec: {selector: {app: nobody}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: judge-here, namespace: shop}
spec: {selector: {app: catalog}, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: judge-node, namespace: shop}
spec: {type: NodePort, selector: {app: catalog}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: judge-outside, namespace: shop}
spec: {selector: {app: orders}, externalIPs: [203.0.113.8], ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: judge-all, namespace: shop}
spec: {type: LoadBalancer, selector: {app: catalog}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: judge-some, namespace: shop}
spec: {type: LoadBalancer, selector: {app: catalog}, loadBalancerSourceRanges: [198.51.100.0/24], ports: [{port: 80, targetPort: http}]}
`

// view is the model of the cluster as a node has it, made from the API as an agent makes it.
func (w *world) view(t *testing.T, node string) *model.Snapshot {
	t.Helper()
	client, err := kube.NewClient(w.dir.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	source := kube.New(kube.Options{Client: client, Logger: slog.New(slog.DiscardHandler), Config: model.Config{
		Self: node, DNS: []netip.Addr{netip.MustParseAddr(strings.Trim(dnsIP, `"`))}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go source.Run(ctx)
	for {
		select {
		case <-source.Changed():
		case <-ctx.Done():
			t.Fatalf("the API server does not list %v", source.Waiting())
		}
		if snap := source.Snapshot(); snap != nil {
			return snap
		}
	}
}

// TestPodsAgreeWithTheModel is the last judge of the packet table: two real pods, of which one asks at an address and the other answers, on the real
// cluster. What has to become of each connection, the specification says, from what the API server says.
func TestPodsAgreeWithTheModel(t *testing.T) {
	w := shared(t)
	w.apply(t, judged)
	t.Cleanup(func() { w.run(t, judged, "fairlead-server", "kubectl", "delete", "--wait=false", "-f", "-") })
	for name, ip := range map[string]string{"judge-all": "203.0.113.9", "judge-some": "203.0.113.10"} {
		s := w.service(t, name)
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip}}
		if _, err := w.kube.CoreV1().Services(namespace).UpdateStatus(context.Background(), s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	vip := func(name string) string { return w.service(t, name).Spec.ClusterIP + ":80" }
	nodePort := w.service(t, "judge-node").Spec.Ports[0].NodePort
	nobody := "10.96.0.200:80" // of the lower band, from which the allocator takes addresses last
	seen := make(map[model.Action]int)
	for _, node := range nodes {
		client := w.clientOn(t, node)
		self := w.view(t, node)
		src := w.podAddr(t, client)
		targets := []string{vip("judge-plain"), vip("judge-empty"), vip("judge-here"), vip("judge-node"), strings.Replace(vip("judge-plain"), ":80", ":81", 1),
			"203.0.113.8:80", "203.0.113.9:80", "203.0.113.10:80", nobody, fmt.Sprintf("%s:%d", self.Node().Addrs[0], nodePort)}
		for _, target := range targets {
			dst := netip.MustParseAddrPort(target)
			row := packets.Judge(self, nil, model.TCP, src, dst)
			eventually(t, 10*time.Second, fmt.Sprintf("%s: %s", node, row), func() error { return w.judge(t, client, row) })
			seen[row.Action]++
		}
	}
	for _, a := range []model.Action{model.Forward, model.Reject, model.Drop} {
		if seen[a] == 0 {
			t.Errorf("nothing was to %s", a)
		}
	}
	t.Logf("judged: %d forwarded, %d refused, %d dropped", seen[model.Forward], seen[model.Reject], seen[model.Drop])
}

// podAddr is a pod's address.
func (w *world) podAddr(t *testing.T, name string) netip.Addr {
	t.Helper()
	for _, p := range w.pods(t, "app=client") {
		if p.Name == name {
			return netip.MustParseAddr(p.Status.PodIP)
		}
	}
	t.Fatalf("pod %s has no address", name)
	return netip.Addr{}
}

// judge has a pod try a row, and says what was otherwise.
func (w *world) judge(t *testing.T, client string, row packets.Row) error {
	t.Helper()
	url := "http://" + row.Dst.String() + "/self"
	if row.Action != model.Forward {
		kind, limit := map[model.Action]string{model.Reject: "refused", model.Drop: "timeout"}[row.Action], "2s"
		if row.Action == model.Drop {
			limit = "300ms"
		}
		s := one[*summary](t, w.exec(t, client, "shop", "get", "-n", "1", "-timeout", limit, "--fresh-conn", url).stdout)
		if s.Kinds[kind] != 1 {
			return fmt.Errorf("%s, want %s", s, kind)
		}
		return nil
	}
	r := w.exec(t, client, append([]string{"shop", "get", "--fresh-conn"}, slices.Repeat([]string{url}, 12*len(row.Candidates))...)...)
	if r.code != 0 {
		return fmt.Errorf("%s", r)
	}
	met := make(map[string]bool)
	for _, a := range lines[answer](t, r.stdout) {
		i := slices.IndexFunc(row.Candidates, func(c packets.Candidate) bool { return c.Addr.String() == a.Server })
		if i < 0 {
			return fmt.Errorf("answered by %s", a.Server)
		}
		met[a.Server] = true
		if kept := strings.HasPrefix(a.Client, row.Src.String()+":"); kept == row.Candidates[i].NAT {
			return fmt.Errorf("%s saw %s", a.Server, a.Client)
		}
	}
	if len(met) != len(row.Candidates) {
		return fmt.Errorf("answered by %v, want all", met)
	}
	return nil
}
