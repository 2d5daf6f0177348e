// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/test/kubernetes/bed"
)

// TestWalkWithoutKubelets is TestWalk on nodes that have nothing but an agent: the control plane is the real one, and the pods are programs of the nodes, in
// network namespaces that the CNI plugin has attached. What differs from TestWalk is not Fairlead's.
func TestWalkWithoutKubelets(t *testing.T) {
	w := enter(t, bed.Options{Nodes: 3, Bare: true})
	r := &runner{w: w, cache: t.TempDir(), pods: map[string]*podProcess{}}
	ctx, cancel := context.WithCancel(interrupted)
	var ended sync.WaitGroup
	ended.Go(func() { r.run(ctx) })
	w.exec = r.exec
	// The cleanups of the walk, which delete pods, come before this one.
	t.Cleanup(func() { cancel(); ended.Wait() })
	walk(t, w)
}

// runner does with Pod objects what a kubelet does, as far as the scenarios need it.
type runner struct {
	w     *world
	cache string // libcni's
	mu    sync.Mutex
	pods  map[string]*podProcess
}

// podProcess is a pod that runs.
type podProcess struct {
	node    *bed.Node
	process *bed.Process
	addrs   []netip.Addr
}

// run starts the pods that there are and ends those that are to end, until ctx does.
func (r *runner) run(ctx context.Context) {
	for ctx.Err() == nil {
		list, err := r.w.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err == nil {
			for _, p := range list.Items {
				err = errors.Join(err, r.sync(ctx, &p))
			}
		}
		if err != nil && ctx.Err() == nil {
			r.w.t.Error(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// sync brings one pod to where its object wants it.
func (r *runner) sync(ctx context.Context, p *corev1.Pod) error {
	r.mu.Lock()
	running := r.pods[p.Name]
	r.mu.Unlock()
	switch {
	case p.DeletionTimestamp != nil:
		return r.end(ctx, p, running)
	case running == nil && p.Spec.NodeName != "":
		return r.begin(ctx, p)
	}
	return nil
}

// begin attaches a pod, starts its program, and says that it is ready once it listens.
func (r *runner) begin(ctx context.Context, p *corev1.Pod) error {
	i := slices.IndexFunc(r.w.Nodes, func(n *bed.Node) bool { return n.Name == p.Spec.NodeName })
	if i < 0 {
		return fmt.Errorf("start pod %s: there is no node %q", p.Name, p.Spec.NodeName)
	}
	node := r.w.Nodes[i]
	x := &podProcess{node: node}
	r.mu.Lock()
	r.pods[p.Name] = x // also if it does not come up: nobody tries again
	r.mu.Unlock()
	resolv := fmt.Sprintf("nameserver %s\nsearch %s.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n", bed.DNSAddrs[0], namespace)
	if _, err := node.Output(ctx, "sh", "-c", `ip netns add "$0" && ip -n "$0" link set lo up && mkdir -p /etc/netns/"$0" && printf %s "$1" >/etc/netns/"$0"/resolv.conf`, p.Name, resolv); err != nil {
		return fmt.Errorf("start pod %s: %w", p.Name, err)
	}
	cni, list, runtime, err := r.network(ctx, node, p)
	if err != nil {
		return fmt.Errorf("attach pod %s: %w", p.Name, err)
	}
	got, err := cni.AddNetworkList(ctx, list, runtime)
	if err != nil {
		return fmt.Errorf("attach pod %s: %w", p.Name, err)
	}
	result, err := types100.NewResultFromResult(got)
	if err != nil {
		return fmt.Errorf("attach pod %s: read the result: %w", p.Name, err)
	}
	for _, ip := range result.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		x.addrs = append(x.addrs, a.Unmap())
	}
	if x.process, err = node.Start("pod-"+p.Name, append([]string{"ip", "netns", "exec", p.Name, "env", "POD_NAME=" + p.Name, "NODE_NAME=" + node.Name, own + "/shop"},
		p.Spec.Containers[0].Args...)...); err != nil {
		return err
	}
	for _, a := range x.addrs {
		if err := within(bound, "start of "+p.Name, func() error {
			conn, err := node.NS.Dial(ctx, "tcp", netip.AddrPortFrom(a, uint16(p.Spec.Containers[0].Ports[0].ContainerPort)).String())
			if err == nil {
				conn.Close()
			}
			return errors.Join(err, x.process.Gone())
		}); err != nil {
			return err
		}
	}
	p.Status.Phase = corev1.PodRunning
	p.Status.PodIP = x.addrs[0].String()
	for _, a := range x.addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	for _, c := range []corev1.PodConditionType{corev1.PodScheduled, corev1.ContainersReady, corev1.PodReady} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue})
	}
	if _, err := r.w.Kube.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("say that pod %s is ready: %w", p.Name, err)
	}
	return nil
}

// end ends a pod's program and detaches it; then its object may go.
func (r *runner) end(ctx context.Context, p *corev1.Pod, x *podProcess) error {
	if x != nil {
		if x.process != nil {
			x.process.Kill()
		}
		cni, list, runtime, err := r.network(ctx, x.node, p)
		if err == nil {
			err = cni.DelNetworkList(ctx, list, runtime)
		}
		if err != nil {
			return fmt.Errorf("detach pod %s: %w", p.Name, err)
		}
		if _, err := x.node.Output(ctx, "ip", "netns", "del", p.Name); err != nil {
			return fmt.Errorf("end pod %s: %w", p.Name, err)
		}
		r.mu.Lock()
		delete(r.pods, p.Name)
		r.mu.Unlock()
	}
	now := int64(0)
	if err := r.w.Kube.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		return fmt.Errorf("delete pod %s: %w", p.Name, err)
	}
	return nil
}

// network is the configuration that the agent has written, and what attaches a pod by it to a node as a container runtime does.
func (r *runner) network(ctx context.Context, n *bed.Node, p *corev1.Pod) (*libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	text, err := n.Output(ctx, "sh", "-c", "cat /etc/cni/net.d/*.conflist")
	if err != nil {
		return nil, nil, nil, err
	}
	list, err := libcni.NetworkConfFromBytes([]byte(text))
	if err != nil {
		return nil, nil, nil, err
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{"/opt/cni/bin"}, r.cache, &onNode{node: n})
	return cni, list, &libcni.RuntimeConf{ContainerID: p.Name, NetNS: "/run/netns/" + p.Name, IfName: "eth0", Args: [][2]string{{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name}, {"K8S_POD_UID", string(p.UID)}}}, nil
}

// onNode runs CNI plugins on a node, whose files they are.
type onNode struct {
	version.PluginDecoder
	node *bed.Node
}

// FindInPath implements invoke.Exec.
func (*onNode) FindInPath(plugin string, paths []string) (string, error) {
	return filepath.Join(paths[0], plugin), nil
}

// ExecPlugin implements invoke.Exec.
func (e *onNode) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := e.node.Command(path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	if err := e.node.Run(ctx, cmd); err != nil {
		return nil, fmt.Errorf("run CNI plugin: %w: %s%s", err, &stdout, &stderr)
	}
	return stdout.Bytes(), nil
}

// exec runs the program of examples/shop in a pod.
func (r *runner) exec(pod string, args ...string) (string, error) {
	r.mu.Lock()
	x := r.pods[pod]
	r.mu.Unlock()
	if x == nil {
		return "", fmt.Errorf("pod %s does not run", pod)
	}
	return x.node.Output(interrupted, append([]string{"ip", "netns", "exec", pod, own + "/shop"}, args...)...)
}
