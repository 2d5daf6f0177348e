// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/test/kubernetes/bed"
)

// installed is a cluster that has nothing but Fairlead, installed as docs/install.md says, on nodes that come with the start-up taint.
var installed = bed.Options{Nodes: 3, Taint: bed.StartupTaint, Install: func(ctx context.Context, c *bed.Cluster) error {
	before = map[string]map[string]bool{}
	for _, n := range c.Nodes {
		var err error
		if before[n.Name], err = traces(ctx, n); err != nil {
			return err
		}
	}
	return bed.AsDaemonSet(ctx, c)
}}

// before is what was on each node before the installation.
var before map[string]map[string]bool

// TestDaemonSet: the image of make image is imported, the manifest of the chart is applied to the API server, which validates it, and the nodes become
// ready by it and lose the start-up taint; all that is in what enter waits for. What then follows is what docs/install.md says of the installation.
func TestDaemonSet(t *testing.T) {
	for _, part := range []struct {
		name string
		do   func(*testing.T, *world)
	}{
		{"walk", walk},
		{"privileges", privileges},
		{"upgrade", upgrade},
		{"switched", switched},
		{"pod deleted", podDeleted},
		{"rule missing", ruleMissing},
		{"uninstall", uninstall}, // the last
	} {
		t.Run(part.name, func(t *testing.T) {
			w := enter(t, installed)
			t.Cleanup(func() {
				if t.Failed() {
					pods, _ := w.Kubectl(interrupted, "", "-n", "kube-system", "get", "pods", "-o", "wide")
					t.Logf("the agents:\n%s", pods)
				}
			})
			part.do(t, w)
		})
	}
	if err := leave(); err != nil {
		t.Error(err)
	}
}

// agents are the pods of the DaemonSet that are not being ended, by node.
func (w *world) agents() (map[string]*corev1.Pod, error) {
	list, err := w.Kube.CoreV1().Pods("kube-system").List(interrupted, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=fairlead"})
	if err != nil {
		return nil, err
	}
	pods := map[string]*corev1.Pod{}
	for _, p := range list.Items {
		if p.DeletionTimestamp != nil || pods[p.Spec.NodeName] != nil {
			return nil, fmt.Errorf("%s on %s has not ended", p.Name, p.Spec.NodeName)
		}
		pods[p.Spec.NodeName] = &p
	}
	if len(pods) != len(w.Nodes) {
		return nil, fmt.Errorf("%d pods on %d nodes", len(pods), len(w.Nodes))
	}
	return pods, nil
}

// settled waits until each node has one agent.
func (w *world) settled() (pods map[string]*corev1.Pod) {
	w.t.Helper()
	eventually(w.t, time.Minute, "one agent on each node", func() (err error) {
		pods, err = w.agents()
		return err
	})
	return pods
}

// rolledOut waits until each node has one agent, the newest, and wants that none has ended by itself on the way.
func (w *world) rolledOut() map[string]*corev1.Pod {
	w.t.Helper()
	if err := w.RolledOut(interrupted); err != nil {
		w.t.Fatal(err)
	}
	pods := w.settled()
	for node, pod := range pods {
		for _, c := range pod.Status.ContainerStatuses {
			if c.RestartCount > 0 {
				said, _ := w.Kubectl(interrupted, "", "-n", "kube-system", "logs", "--previous", pod.Name)
				w.t.Errorf("%s on %s was started %d times more; the time before it said:\n%s", pod.Name, node, c.RestartCount, said)
			}
		}
	}
	return pods
}

// image is that of the DaemonSet.
func (w *world) image() string {
	w.t.Helper()
	return w.kubectl("-n", "kube-system", "get", "daemonset", "fairlead", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
}

// status is what fairlead status says in a pod of the DaemonSet.
func (w *world) status(pod string) (string, error) {
	return w.Kubectl(interrupted, "", "-n", "kube-system", "exec", pod, "--", "fairlead", "status")
}

// privileges: the agent's process has exactly what the manifest lists.
func privileges(t *testing.T, w *world) {
	ds, err := w.Kube.AppsV1().DaemonSets("kube-system").Get(interrupted, "fairlead", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[corev1.Capability]int{"NET_ADMIN": unix.CAP_NET_ADMIN, "NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE}
	listed := ds.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add
	var want uint64
	for _, c := range listed {
		number, known := numbers[c]
		if !known {
			t.Fatalf("the manifest lists %s, of which docs/install.md knows nothing", c)
		}
		want |= 1 << number
	}
	if len(listed) != len(numbers) {
		t.Fatalf("the manifest lists %v", listed)
	}
	pods := w.settled()
	for _, n := range w.Nodes {
		id := strings.TrimPrefix(pods[n.Name].Status.ContainerStatuses[0].ContainerID, "containerd://")
		tasks, err := n.Output(interrupted, "ctr", "-n", "k8s.io", "tasks", "list")
		if err != nil {
			t.Fatal(err)
		}
		var pid string
		for line := range strings.Lines(tasks) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == id {
				pid = f[1]
			}
		}
		if pid == "" {
			t.Fatalf("containerd on %s does not know %s:\n%s", n.Name, id, tasks)
		}
		text, err := n.Output(interrupted, "cat", "/proc/"+pid+"/status")
		if err != nil {
			t.Fatal(err)
		}
		is := map[string]string{}
		for line := range strings.Lines(text) {
			key, value, _ := strings.Cut(line, ":")
			is[key] = strings.TrimSpace(value)
		}
		if is["Name"] != "fairlead" {
			t.Errorf("%s: process %s is %q", n.Name, pid, is["Name"])
		}
		for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
			if got, err := strconv.ParseUint(is[set], 16, 64); err != nil || got != want {
				t.Errorf("%s: %s is %s, want %016x for %v", n.Name, set, is[set], want, listed)
			}
		}
		for key, want := range map[string]string{"CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
			if is[key] != want {
				t.Errorf("%s: %s is %q, want %s", n.Name, key, is[key], want)
			}
		}
		mounts, err := n.Output(interrupted, "cat", "/proc/"+pid+"/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		readOnly := false
		for line := range strings.Lines(mounts) {
			if f := strings.Fields(line); len(f) > 5 && f[4] == "/" {
				readOnly = slices.Contains(strings.Split(f[5], ","), "ro")
			}
		}
		if !readOnly {
			t.Errorf("%s: the root can be written:\n%s", n.Name, mounts)
		}
	}
}

// traffic is what pods on all nodes do while the agents change.
type traffic struct {
	w       *world
	loads   map[string]*load
	streams []*stream
}

// drive has a pod on every node make new connections by a URL, so many a second together, ask names and hold connections open. Servers and clients are made
// for it.
func drive(t *testing.T, w *world, byName bool, rate int) *traffic {
	t.Helper()
	var manifest strings.Builder
	for _, n := range w.Nodes {
		manifest.WriteString(podOn("server", n.Name) + podOn("client", n.Name))
	}
	names := []string{"steady"}
	for _, n := range w.Nodes {
		names = append(names, "asked-by-"+n.Name) // no other load has it in its arguments
	}
	for _, name := range names {
		fmt.Fprintf(&manifest, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: %s}\n"+
			"spec: {selector: {app: server}, ipFamilyPolicy: RequireDualStack, ports: [{port: 80, targetPort: http}]}\n", name, namespace)
	}
	w.apply(manifest.String())
	t.Cleanup(func() { w.remove("pods", "services") })
	w.wait("app=server")
	clients := w.wait("app=client")
	service, err := w.Kube.CoreV1().Services(namespace).Get(interrupted, "steady", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	url := "http://steady/self"
	if !byName {
		url = "http://" + service.Spec.ClusterIP + "/self"
	}
	r := &traffic{w: w, loads: map[string]*load{}}
	for _, n := range w.Nodes {
		client := clients[n.Name]
		for _, name := range names {
			eventually(t, bound, name+" from "+client.Name, func() error { return w.many(client, name, 10) })
		}
		name := fmt.Sprintf("asked-by-%s.%s.svc.cluster.local.", n.Name, namespace)
		r.loads[n.Name+" connects"] = w.start(client.Name, url, rate/len(w.Nodes))
		r.loads[n.Name+" asks"] = w.run(w.Control, name, w.KubectlCommand("-n", namespace, "exec", client.Name, "--",
			"/bin/shop", "dns", "-rate", "100", "-timeout", dnsPatience.String(), "-duration", "14m", name).Args)
		for _, ip := range service.Spec.ClusterIPs {
			for range 5 {
				r.streams = append(r.streams, hold(t, client.Name, netip.AddrPortFrom(netip.MustParseAddr(ip), 80)))
			}
		}
	}
	for _, l := range r.loads {
		l.begun()
	}
	return r
}

// stop ends it all. No stream may have broken, and nothing have failed.
func (r *traffic) stop() {
	r.w.t.Helper()
	requests := int64(0)
	for _, s := range r.streams {
		requests += s.stop(r.w.t)
	}
	r.w.t.Logf("%d connections stayed, with %d requests on them", len(r.streams), requests)
	for name, l := range r.loads {
		s := l.stop()
		r.w.t.Logf("%s: %s", name, s)
		if s.Sent == 0 || s.Failed > 0 {
			r.w.t.Errorf("%s: %d of %d failed: %v", name, s.Failed, s.Sent, s.Kinds)
		}
	}
}

// stream is a connection that is in use all the time.
type stream struct {
	what   string
	cancel context.CancelFunc
	asked  atomic.Int64
	ended  sync.WaitGroup
	err    error
}

// hold opens a connection from a pod, by its network namespace.
func hold(t *testing.T, pod string, to netip.AddrPort) *stream {
	t.Helper()
	ns := podNS(t, pod)
	defer ns.Close()
	dialing, cancelDial := context.WithTimeout(interrupted, patience)
	defer cancelDial()
	conn, err := ns.Dial(dialing, "tcp", to.String())
	if err != nil {
		t.Fatalf("connect from %s to %s: %v", pod, to, err)
	}
	ctx, cancel := context.WithCancel(interrupted)
	s := &stream{what: fmt.Sprintf("connection of %s to %s", pod, to), cancel: cancel}
	r := bufio.NewReader(conn)
	s.ended.Go(func() {
		defer conn.Close()
		for ctx.Err() == nil {
			_ = conn.SetDeadline(time.Now().Add(patience))
			if _, s.err = fmt.Fprintf(conn, "GET /self HTTP/1.1\r\nHost: steady\r\n\r\n"); s.err != nil {
				return
			}
			var resp *http.Response
			if resp, s.err = http.ReadResponse(r, nil); s.err != nil {
				return
			}
			if _, s.err = io.Copy(io.Discard, resp.Body); s.err == nil && (resp.StatusCode != http.StatusOK || resp.Close) {
				s.err = fmt.Errorf("answer %s, close %t", resp.Status, resp.Close)
			}
			if s.err != nil {
				return
			}
			s.asked.Add(1)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { cancel(); s.ended.Wait() })
	return s
}

func (s *stream) stop(t testing.TB) int64 {
	s.cancel()
	s.ended.Wait()
	if s.err != nil {
		t.Errorf("%s broke after %d requests: %v", s.what, s.asked.Load(), s.err)
	}
	return s.asked.Load()
}

// podNS is the network namespace of a pod of podOn, whose processes are processes of this machine.
func podNS(t *testing.T, pod string) *linux.NetNS {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		dir := filepath.Dir(e)
		argv, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		env, _ := os.ReadFile(e)
		if bytes.HasPrefix(argv, []byte("/bin/shop\x00serve\x00")) && slices.Contains(strings.Split(string(env), "\x00"), "POD_NAME="+pod) {
			ns, err := linux.OpenNetNS(filepath.Join(dir, "ns", "net"))
			if err != nil {
				t.Fatal(err)
			}
			return ns
		}
	}
	t.Fatalf("no process of %s", pod)
	return nil
}

// next is another version as far as the cluster can tell.
const next = "localhost/fairlead:next"

// upgrade: to another image and back, under load, without a connection or a query that is lost.
func upgrade(t *testing.T, w *world) {
	first := w.image()
	for _, n := range w.Nodes {
		if _, err := n.Output(interrupted, "ctr", "-n", "k8s.io", "images", "tag", "--force", first, next); err != nil {
			t.Fatal(err)
		}
	}
	load := drive(t, w, true, 300)
	for _, step := range []struct {
		name, image string
		args        []string
	}{
		{"upgrade", next, []string{"set", "image", "daemonset/fairlead", "agent=" + next}},
		{"roll-back", first, []string{"rollout", "undo", "daemonset/fairlead"}},
	} {
		begin := time.Now()
		was := w.settled()
		w.kubectl(append([]string{"-n", "kube-system"}, step.args...)...)
		for node, pod := range w.rolledOut() {
			if pod.Spec.Containers[0].Image != step.image || pod.UID == was[node].UID {
				t.Errorf("after the %s %s on %s has the image %s", step.name, pod.Name, node, pod.Spec.Containers[0].Image)
			}
		}
		t.Logf("%s: %.1f s", step.name, time.Since(begin).Seconds())
	}
	load.stop()
}

// podDeleted: an agent that is ended before the next one starts. Connections, new ones too, go on without it, and the other nodes answer its names.
func podDeleted(t *testing.T, w *world) {
	load := drive(t, w, false, 300)
	was := w.settled()["n1"]
	w.kubectl("-n", "kube-system", "delete", "pod", was.Name)
	if err := w.RolledOut(interrupted); err != nil {
		t.Fatal(err)
	}
	if now := w.settled()["n1"]; now.UID == was.UID {
		t.Errorf("%s is still there", was.Name)
	}
	load.stop()
}

// ruleMissing: a rule of the ClusterRole is taken away. The next agent says which one, and works with what the one before it knew.
func ruleMissing(t *testing.T, w *world) {
	roles := w.Kube.RbacV1().ClusterRoles()
	role, err := roles.Get(interrupted, "fairlead", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rules := role.Rules
	role.Rules = slices.DeleteFunc(slices.Clone(rules), func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, "endpointslices") })
	if len(role.Rules) != len(rules)-1 {
		t.Fatalf("the role has no rule for endpointslices: %v", rules)
	}
	load := drive(t, w, false, 300)
	if role, err = roles.Update(interrupted, role, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	restore := func() error {
		role, err := roles.Get(interrupted, "fairlead", metav1.GetOptions{})
		if err == nil {
			role.Rules = rules
			_, err = roles.Update(interrupted, role, metav1.UpdateOptions{})
		}
		return err
	}
	t.Cleanup(func() {
		if err := restore(); err != nil {
			t.Error(err)
		}
	})
	was := w.settled()["n1"]
	w.kubectl("-n", "kube-system", "delete", "pod", was.Name)
	const want = `add the verbs list and watch of resource endpointslices in API group "discovery.k8s.io" to the agent's ClusterRole`
	said := func() (string, error) {
		pods, err := w.agents()
		if err != nil {
			return "", err
		}
		if pods["n1"].UID == was.UID {
			return "", errors.New("the pod has not been replaced")
		}
		return w.status(pods["n1"].Name)
	}
	eventually(t, time.Minute, "fairlead status naming the rule", func() error {
		text, err := said()
		if err == nil && !strings.Contains(text, want) {
			err = fmt.Errorf("it says:\n%s", text)
		}
		return err
	})
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "fairlead status without it", func() error {
		text, err := said()
		if err == nil && strings.Contains(text, want) {
			err = fmt.Errorf("it says:\n%s", text)
		}
		return err
	})
	if err := w.RolledOut(interrupted); err != nil {
		t.Fatal(err)
	}
	load.stop()
}

// stays are the settings that docs/install.md says remain.
var stays = regexp.MustCompile(`^/proc/sys/net/(netfilter/nf_conntrack_(max|tcp_timeout_established|tcp_timeout_close_wait|tcp_be_liberal|tcp_ignore_invalid_rst|tcp_loose)|ipv4/ip_forward|ipv[46]/conf/(all|default|eth0|lo)/forwarding) = `)

// uninstall: as docs/install.md says. The kernel goes on without the agents, pods end as always, and after the clean-up the nodes have what they
// had before, but for the settings that docs/install.md names.
func uninstall(t *testing.T, w *world) {
	image := w.image()
	load := drive(t, w, false, 300)
	manifest, err := w.Manifest(interrupted)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range load.loads {
		if !strings.HasPrefix(l.marker, "http") {
			l.stop() // there will be no DNS
		}
	}
	w.kubectl("delete", "-f", manifest, "--timeout=60s")
	eventually(t, time.Minute, "the end of the agents", func() error {
		list, err := w.Kube.CoreV1().Pods("kube-system").List(interrupted, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=fairlead"})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are there", len(list.Items))
		}
		return err
	})
	load.stop()
	w.remove("pods", "services")
	for _, n := range w.Nodes {
		if out, err := n.Output(interrupted, "/opt/cni/bin/fairlead", "cleanup"); err == nil {
			t.Errorf("%s: the CNI plugin takes itself for the program: %s", n.Name, out)
		}
		for _, command := range []string{
			// The control group is one that goes with the node.
			"ctr --namespace k8s.io run --rm --net-host --cap-add CAP_NET_ADMIN --cgroup /fairlead-bed-" + name + "/" + n.Name + "/cleanup " +
				image + " fairlead-cleanup fairlead cleanup",
			"rm -f /etc/cni/net.d/10-fairlead.conflist /opt/cni/bin/fairlead",
			"rm -rf /var/lib/fairlead/*", // the directory itself is a mount here
		} {
			out, err := n.Output(interrupted, "sh", "-c", command)
			if err != nil {
				t.Error(err)
			}
			if out != "" {
				t.Logf("%s: %s", n.Name, out)
			}
		}
		after, err := traces(interrupted, n)
		if err != nil {
			t.Fatal(err)
		}
		for line := range after {
			if !before[n.Name][line] && !stays.MatchString(line) {
				t.Errorf("%s: left: %s", n.Name, line)
			}
		}
		for line := range before[n.Name] {
			if !after[line] {
				t.Logf("%s: gone: %s", n.Name, line)
			}
		}
	}
}

// traces are the things on a node that a service proxy, a cluster DNS or a pod network could have made, a line each. The tables of iptables
// are left out: the kubelet makes them and chains of its own in them, at a moment of its own after its start.
func traces(ctx context.Context, n *bed.Node) (map[string]bool, error) {
	out, err := n.Output(ctx, "sh", "-c", `
nft list tables | grep -vE '^table ip6? (mangle|nat|filter)$'
ip -o link | cut -d: -f2
for f in -4 -6; do ip $f rule; ip $f route show table all; ip -o $f addr; done
find /opt/cni /etc/cni /var/lib/fairlead -mindepth 1
find /proc/sys/net -type f ! -name '*_count' | while read f; do echo "$f = $(cat $f 2>/dev/null)"; done
`)
	lines := map[string]bool{}
	for line := range strings.Lines(out) {
		lines[strings.Join(strings.Fields(line), " ")] = true
	}
	return lines, err
}

// TestNodeWithoutPodCIDR: the agent says what its node lacks, lets no pod come, and goes on by itself when the node has it.
func TestNodeWithoutPodCIDR(t *testing.T) {
	enter(t, bed.Options{Nodes: 1, Taint: bed.StartupTaint, NoPodCIDRs: true, Install: func(ctx context.Context, c *bed.Cluster) error {
		if err := c.ApplyDaemonSet(ctx); err != nil {
			return err
		}
		w := &world{Cluster: c, t: t} // whose Fatal this goroutine, which is not the test's, must not call
		const want = `Node "n1" has no pod CIDR yet; kube-controller-manager gives it one with --allocate-node-cidrs`
		if err := within(time.Minute, "fairlead status naming what is missing", func() error {
			pods, err := w.agents()
			if err != nil {
				return err
			}
			if pods["n1"] == nil {
				return errors.New("there is no agent yet")
			}
			text, err := w.status(pods["n1"].Name)
			if err == nil && !strings.Contains(text, want) {
				err = fmt.Errorf("it says:\n%s", text)
			}
			return err
		}); err != nil {
			return err
		}
		node, err := c.Kube.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == bed.StartupTaint }) {
			t.Errorf("the start-up taint is gone already: %v", node.Spec.Taints)
		}
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"podCIDR": "10.244.0.0/24", "podCIDRs": []string{"10.244.0.0/24", "fd00:244::/64"}}})
		if err != nil {
			return err
		}
		if _, err := c.Kubectl(ctx, "", "patch", "node", "n1", "-p", string(patch)); err != nil {
			return err
		}
		return c.RolledOut(ctx)
	}})
}
