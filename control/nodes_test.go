// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/utils/ptr"
)

func cause(t metav1.CauseType) metav1.StatusCause { return metav1.StatusCause{Type: t} }

// inWorld runs f with the controllers that start makes, over an API in memory and a clock of its own. That API
// knows no versions and no graceful deletion, so it serves for what depends on time; the rest is tested against
// the real server.
func inWorld(t *testing.T, o Options, objects []runtime.Object, start func(*hub), f func(*fake.Clientset, *syncBuffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log, buffer := logged()
		o.Logger = log
		o.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
		o.APIAddr = netip.MustParseAddrPort("172.30.0.1:6443")
		if err := o.setDefaults(); err != nil {
			t.Fatal(err)
		}
		client := fake.NewClientset(objects...)
		h := newHub(o, client, metadatafake.NewSimpleMetadataClient(metadatafake.NewTestScheme()), nil)
		start(h)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { h.run(ctx); close(done) }()
		time.Sleep(time.Second)
		f(client, buffer)
		cancel()
		<-done
	})
}

// renew writes a node's Lease.
func renew(t *testing.T, client *fake.Clientset, node string) {
	t.Helper()
	leases := client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: node, Namespace: corev1.NamespaceNodeLease},
		Spec:       coordinationv1.LeaseSpec{RenewTime: ptr.To(metav1.NowMicro())},
	}
	ctx := context.Background()
	if _, err := leases.Update(ctx, lease, metav1.UpdateOptions{}); err != nil {
		if _, err = leases.Create(ctx, lease, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// seen describes a node and the pod on it in one line.
func seen(t *testing.T, client *fake.Clientset) string {
	t.Helper()
	ctx := context.Background()
	node, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod, err := client.CoreV1().Pods("shop").Get(ctx, "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := "node " + string(nodeCondition(node, corev1.NodeReady).Status)
	for _, taint := range node.Spec.Taints {
		out += " " + string(taint.Effect)
	}
	if podReady(pod) != nil {
		return out + ", pod ready"
	}
	return out + ", pod not ready"
}

// writesOf counts the requests that change something.
func writesOf(client *fake.Clientset) int {
	n := 0
	for _, a := range client.Actions() {
		if !slices.Contains([]string{"get", "list", "watch"}, a.GetVerb()) && a.GetResource().Resource != "leases" {
			n++
		}
	}
	return n
}

func TestNodeLifecycle(t *testing.T) {
	objects := []runtime.Object{testNode("n1"), testPod("p", on("n1"), readyFor(time.Minute))}
	inWorld(t, Options{}, objects, func(h *hub) { newNodeLifecycle(h) }, func(client *fake.Clientset, log *syncBuffer) {
		expect := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := seen(t, client); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		const fine, lost = "node True, pod ready", "node Unknown NoSchedule NoExecute, pod not ready"
		for range 10 {
			renew(t, client, "n1")
			time.Sleep(10 * time.Second)
			expect(fine)
		}
		if writesOf(client) != 0 || log.lines() != 1 {
			t.Errorf("%d writes while nothing happened; log: %s", writesOf(client), log)
		}
		time.Sleep(29 * time.Second)
		expect(fine)
		time.Sleep(2 * time.Second)
		expect(lost)
		before := writesOf(client)
		time.Sleep(time.Hour)
		if writesOf(client) != before {
			t.Errorf("%d writes while the node stayed lost", writesOf(client)-before)
		}
		renew(t, client, "n1")
		time.Sleep(time.Second)
		expect(fine)
		time.Sleep(39 * time.Second)
		expect(lost)
	})
}

// TestNodeLifecycleHearsTheNode lets a lost node speak for itself before its Lease is renewed: that counts, or the
// two would write against each other.
func TestNodeLifecycleHearsTheNode(t *testing.T) {
	objects := []runtime.Object{testNode("n1"), testPod("p", on("n1"), readyFor(time.Minute))}
	inWorld(t, Options{}, objects, func(h *hub) { newNodeLifecycle(h) }, func(client *fake.Clientset, _ *syncBuffer) {
		renew(t, client, "n1")
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := seen(t, client); got != "node Unknown NoSchedule NoExecute, pod not ready" {
			t.Fatalf("got %q", got)
		}
		node, err := client.CoreV1().Nodes().Get(context.Background(), "n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		*nodeCondition(node, corev1.NodeReady) = corev1.NodeCondition{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastTransitionTime: metav1.Now(),
		}
		before := writesOf(client)
		if _, err := client.CoreV1().Nodes().UpdateStatus(context.Background(), node, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := seen(t, client); got != "node True, pod ready" || writesOf(client) > before+6 { // an informer that lags makes one twice, which the real server refuses
			t.Errorf("got %q after %d writes", got, writesOf(client)-before)
		}
	})
}

// TestNodeLifecycleStartsWithGrace starts over nodes that are lost and nodes that are not: neither changes until
// its own time, since nobody listened meanwhile.
func TestNodeLifecycleStartsWithGrace(t *testing.T) {
	lostNode := testNode("n1", taint(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute))
	lostNode.Status.Conditions[0].Status, lostNode.Status.Conditions[0].Reason = corev1.ConditionUnknown, reasonLost
	old := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Namespace: corev1.NamespaceNodeLease, UID: "l"},
		Spec:       coordinationv1.LeaseSpec{RenewTime: ptr.To(metav1.NewMicroTime(testStart))},
	}
	objects := []runtime.Object{lostNode, old, testPod("p", on("n1"))}
	inWorld(t, Options{NodeGrace: 5 * time.Second}, objects, func(h *hub) { newNodeLifecycle(h) }, func(client *fake.Clientset, log *syncBuffer) {
		synctest.Wait()
		if got := seen(t, client); got != "node Unknown NoExecute, pod not ready" || writesOf(client) != 0 {
			t.Errorf("a node that nobody heard of became %q with %d writes", got, writesOf(client))
		}
		renew(t, client, "n1")
		time.Sleep(time.Second)
		if got := seen(t, client); got != "node True, pod not ready" { // nothing says that this pod was ever ready
			t.Errorf("after a renewal: %q", got)
		}
		if !strings.Contains(log.String(), "n1") {
			t.Errorf("log: %s", log)
		}
	})
}

func TestPodFound(t *testing.T) {
	marked := func(p *corev1.Pod) { p.Status.Conditions = []corev1.PodCondition{*podLost(testPod("p", readyFor(0)))} }
	containers := func(s corev1.ConditionStatus) edit {
		return func(p *corev1.Pod) {
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.ContainersReady, Status: s})
		}
	}
	for _, c := range []struct {
		name string
		pod  *corev1.Pod
		want bool
	}{
		{"marked by us", testPod("p", marked), true},
		{"containers are ready", testPod("p", marked, containers(corev1.ConditionTrue)), true},
		{"containers are not", testPod("p", marked, containers(corev1.ConditionFalse)), false},
		{"not ready for a reason of its own", testPod("p"), false},
		{"ready", testPod("p", readyFor(0)), false},
		{"ended", testPod("p", marked, phase(corev1.PodFailed)), false},
	} {
		if got := podFound(c.pod) != nil; got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
	if podLost(testPod("p")) != nil || podLost(testPod("p", readyFor(0), phase(corev1.PodSucceeded))) != nil {
		t.Error("a pod that is not ready is marked")
	}
}

func TestToleration(t *testing.T) {
	seconds := func(n int64) edit {
		return func(p *corev1.Pod) { p.Spec.Tolerations[len(p.Spec.Tolerations)-1].TolerationSeconds = &n }
	}
	const any = corev1.TaintEffect("")
	for _, c := range []struct {
		name    string
		pod     *corev1.Pod
		taint   string
		stay    time.Duration
		forever bool
	}{
		{"no toleration", testPod("p"), "k", 0, false},
		{"no toleration of a lost node", testPod("p"), corev1.TaintNodeUnreachable, 300 * time.Second, false},
		{"for ever", testPod("p", tolerating("k", any)), "k", 0, true},
		{"for a while", testPod("p", tolerating("k", any), seconds(60)), "k", time.Minute, false},
		{"less than nothing", testPod("p", tolerating("k", any), seconds(-1)), "k", 0, false},
		{"the shortest counts", testPod("p", tolerating("k", any), seconds(60), tolerating("k", corev1.TaintEffectNoExecute), seconds(9), tolerating("", any)), "k", 9 * time.Second, false},
		{"another taint", testPod("p", tolerating("other", any)), "k", 0, false},
		{"a lost node, for a while", testPod("p", tolerating(corev1.TaintNodeUnreachable, any), seconds(5)), corev1.TaintNodeUnreachable, 5 * time.Second, false},
	} {
		stay, forever := toleration(c.pod, &corev1.Taint{Key: c.taint, Effect: corev1.TaintEffectNoExecute})
		if stay != c.stay || forever != c.forever {
			t.Errorf("%s: got %v %v, want %v %v", c.name, stay, forever, c.stay, c.forever)
		}
	}
}

// TestEviction loses a node: its pods leave the endpoints soon, and the node after their toleration, unless it
// comes back.
func TestEviction(t *testing.T) {
	objects := []runtime.Object{
		testNode("n1"), testPod("p", on("n1"), readyFor(time.Minute)),
		testPod("patient", on("n1"), tolerating(corev1.TaintNodeUnreachable, "")),
	}
	left := func(client *fake.Clientset) int {
		list, err := client.CoreV1().Pods("shop").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Items)
	}
	inWorld(t, Options{}, objects, func(h *hub) { newNodeLifecycle(h); newEvictions(h) }, func(client *fake.Clientset, _ *syncBuffer) {
		renew(t, client, "n1")
		time.Sleep(300 * time.Second) // lost after 40 s, due after 340 s
		renew(t, client, "n1")
		time.Sleep(39 * time.Second)
		if got := left(client); got != 2 {
			t.Errorf("%d pods are left although the node came back", got)
		}
		time.Sleep(300 * time.Second) // lost after 1 s more
		if got := left(client); got != 2 {
			t.Errorf("%d pods are left before their time", got)
		}
		time.Sleep(10 * time.Second)
		if got := left(client); got != 1 {
			t.Errorf("%d pods are left, want the patient one", got)
		}
		// a taint by hand, which nobody tolerates
		node, err := client.CoreV1().Nodes().Get(context.Background(), "n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		taint("k", corev1.TaintEffectNoExecute)(node)
		if _, err := client.CoreV1().Nodes().Update(context.Background(), node, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := left(client); got != 0 {
			t.Errorf("%d pods are left on a node that nobody tolerates", got)
		}
	})
}

func TestPodGC(t *testing.T) {
	objects := []runtime.Object{
		testNode("n1"), testNode("n2"),
		testPod("stays", on("n1")), testPod("orphaned", on("n2")), testPod("early", on("n9")),
		testPod("waits"), testPod("never ran", ending),
	}
	inWorld(t, Options{}, objects, func(h *hub) { newPodGC(h) }, func(client *fake.Clientset, _ *syncBuffer) {
		expect := func(when string, want ...string) {
			t.Helper()
			synctest.Wait()
			list, err := client.CoreV1().Pods("shop").List(context.Background(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i := range list.Items {
				got = append(got, list.Items[i].Name)
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %v, want %v", when, got, want)
			}
		}
		expect("at the start", "early", "orphaned", "stays", "waits")
		if err := client.CoreV1().Nodes().Delete(context.Background(), "n2", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		expect("a node is deleted", "early", "stays", "waits")
		time.Sleep(unknownNode)
		expect("a node never came", "stays", "waits")
	})
}

func TestOptions(t *testing.T) {
	good := Options{
		ServiceCIDRs: prefixes("10.96.0.0/16"), PodCIDRs: prefixes("10.244.0.0/16", "fd00:244::/48"),
		APIAddr: netip.MustParseAddrPort("172.30.0.1:6443"),
	}
	if err := good.setDefaults(); err != nil || good.NodeMask4 != 24 || good.NodeMask6 != 64 || good.NodeGrace != 40*time.Second ||
		!slices.Equal(good.DNSAddrs, []netip.Addr{netip.MustParseAddr("10.96.0.10")}) {
		t.Errorf("got %+v, %v", good, err)
	}
	for name, change := range map[string]func(*Options){
		"no service range":  func(o *Options) { o.ServiceCIDRs = nil },
		"no API server":     func(o *Options) { o.APIAddr = netip.AddrPort{} },
		"nodes do not fit":  func(o *Options) { o.PodCIDRs = prefixes("10.244.0.0/25") },
		"DNS elsewhere":     func(o *Options) { o.DNSAddrs = []netip.Addr{netip.MustParseAddr("10.97.0.10")} },
		"no room for DNS":   func(o *Options) { o.DNSAddrs, o.ServiceCIDRs = nil, prefixes("10.96.0.0/29") },
		"mask is too long":  func(o *Options) { o.NodeMask4 = 33 },
		"v6 does not fit":   func(o *Options) { o.PodCIDRs = prefixes("fd00:244::/80") },
		"v6 mask too short": func(o *Options) { o.NodeMask6 = 32 },
	} {
		bad := good
		change(&bad)
		if err := bad.setDefaults(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
