// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Node is a machine, usually with containerd and a kubelet.
type Node struct {
	*Machine
	// Containerd and Kubelet are there unless the cluster is bare, KubeProxy where it is the proxy, and Agent where Fairlead runs as a program of
	// the node's; nil in a cluster that another process made.
	Containerd, Kubelet, KubeProxy, Agent *Process

	number int
}

// Addrs are the node's addresses, IPv4 first.
func (n *Node) Addrs() []netip.Addr { return addrsOf(nodeHost + n.number - 1) }

// Socket is where the node's Fairlead agent is asked, on this machine.
func (n *Node) Socket() string { return filepath.Join(n.dir, "fairlead", "agent", "agent.sock") }

const (
	cniBin  = "/opt/cni/bin"
	cniConf = "/etc/cni/net.d"
	// referencePlugins is where Debian puts them.
	referencePlugins = "/usr/lib/cni"
)

// loadModules loads what a kernel may have as modules. One that is built in, or not there at all, is found out by who needs it.
func loadModules() {
	for _, name := range []string{"overlay", "br_netfilter", "nf_conntrack", "vxlan"} {
		_ = exec.Command("modprobe", "-q", name).Run()
	}
}

// imagesFile has the images of every node.
func (c *Cluster) imagesFile() string { return filepath.Join(c.dir, "images.tar") }

// startNodes starts containerd and the kubelet on every node.
func (c *Cluster) startNodes(ctx context.Context) error {
	if c.Options.Bare {
		for _, n := range c.Nodes {
			if err := c.register(ctx, n); err != nil {
				return err
			}
		}
		return nil
	}
	images := []image{
		{ImagePause, c.program("pause"), "bin/pause"},
		{ImageShop, c.own("shop"), "bin/shop"},
	}
	if c.Options.DNS == CoreDNS {
		images = append(images, image{imageCoreDNS, c.program("coredns"), "bin/coredns"})
	}
	if err := writeImages(c.imagesFile(), images...); err != nil {
		return err
	}
	all, ctx := errgroup.WithContext(ctx)
	for _, n := range c.Nodes {
		all.Go(func() error {
			if err := c.startNode(ctx, n); err != nil {
				return fmt.Errorf("start node %s: %w", n.Name, err)
			}
			return nil
		})
	}
	return all.Wait()
}

// register does for a bare node what a kubelet does first.
func (c *Cluster) register(ctx context.Context, n *Node) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelHostname: n.Name}}}
	node, err := c.Kube.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("register node %s: %w", n.Name, err)
	}
	for _, a := range n.Addrs() {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()})
	if _, err := c.Kube.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("say that node %s is ready: %w", n.Name, err)
	}
	return nil
}

func (c *Cluster) startNode(ctx context.Context, n *Node) (err error) {
	// containerd has the reference plugin loopback set up every pod's lo, whoever does the rest. Packages of Kubernetes bring it.
	if _, err := n.Output(ctx, "sh", "-c", fmt.Sprintf("mkdir -p %s %s && cp %s/loopback %[1]s", cniBin, cniConf, referencePlugins)); err != nil {
		return err
	}
	config := filepath.Join(n.dir, "containerd.toml")
	if err := os.WriteFile(config, []byte(containerdConfig), 0o644); err != nil {
		return fmt.Errorf("write containerd's configuration: %w", err)
	}
	if n.Containerd, err = n.Start("containerd", "containerd", "--config", config); err != nil {
		return err
	}
	// It answers before its plugins are all there, so the first import may be refused.
	if err := until(ctx, time.Minute, "containerd", func(ctx context.Context) error {
		return n.Import(ctx, c.imagesFile())
	}, n.Containerd); err != nil {
		return err
	}
	return c.startKubelet(ctx, n)
}

// Import loads an archive of images of this machine into the node's containerd, for pods to use.
func (n *Node) Import(ctx context.Context, archive string) error {
	_, err := n.Output(ctx, "ctr", "--namespace", "k8s.io", "images", "import", archive)
	return err
}

// containerdConfig is of version 2, which every containerd from 1.6 on reads. It has the runtime leave scores of the kernel's
// out-of-memory killer alone, which it may not lower where this machine is itself a container.
const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + ImagePause + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "` + cniBin + `"
    conf_dir = "` + cniConf + `"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`

func (c *Cluster) startKubelet(ctx context.Context, n *Node) (err error) {
	config := filepath.Join(n.dir, "kubelet.yaml")
	text := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %s}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /%s
clusterDNS: [%s]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
enforceNodeAllocatable: []
evictionHard: {nodefs.available: "1%%"}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
maxOpenFiles: 20000
oomScoreAdj: 0
resolvConf: /etc/resolv.conf
staticPodPath: %s
`, c.pki("ca.crt"), n.group, list(DNSAddrs), staticPods)
	if c.Options.Taint != "" {
		text += fmt.Sprintf("registerWithTaints: [{key: %s, effect: NoSchedule}]\n", c.Options.Taint)
	}
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write kubelet's configuration: %w", err)
	}
	// A directory that is not there when the kubelet starts is looked at every 20 seconds, and not watched.
	if _, err := n.Output(ctx, "mkdir", "-p", staticPods); err != nil {
		return err
	}
	n.Kubelet, err = n.Start("kubelet", c.program("kubelet"), "--config="+config, "--kubeconfig="+c.kubeconfig(n.Name),
		"--hostname-override="+n.Name, "--node-ip="+list(n.Addrs()))
	return err
}

// staticPods is where a node's kubelet finds its static pods, on the node.
const staticPods = "/var/lib/kubelet/static"

// SetStaticPod gives the node's kubelet a static pod, in place of one of the same name; an empty manifest takes it away.
func (n *Node) SetStaticPod(ctx context.Context, name, manifest string) error {
	cmd := n.Command("sh", "-ec", `if [ "$2" ]; then printf %s "$2" >"$0/.$1"; mv "$0/.$1" "$0/$1.yaml"; else rm -f "$0/$1.yaml"; fi`, staticPods, name, manifest)
	_, err := n.output(ctx, cmd)
	return err
}

// Reboot ends everything on a node at once, as a loss of power does, and starts it again with what was on its disk. It returns when the node's own programs
// run and its agent, if it has one, is ready. No API server is needed for that.
func (c *Cluster) Reboot(ctx context.Context, n *Node) error {
	if err := n.kill(); err != nil {
		return err
	}
	m, err := newMachine(n.Name, n.dir, n.detach)
	if err != nil {
		return err
	}
	m.group, n.Machine = n.group, m
	for _, step := range []func() error{
		func() error { return removeGroup(m.group) },
		m.makeShares,
		func() error { return c.Fabric.awaitUnplugged(ctx, n.Name) },
		func() error { return n.plugIn(c.Fabric) },
		func() error { return m.boot(ctx, c.initSpec(m)) },
		c.save,
		func() error { return c.startNode(ctx, n) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("reboot %s: %w", n.Name, err)
		}
	}
	if n.Agent == nil {
		return nil
	}
	return c.StartAgent(ctx, n)
}

// podCIDRs are the ranges that the controller manager gave a node, once it has.
func (c *Cluster) podCIDRs(ctx context.Context, n *Node) (cidrs []netip.Prefix, err error) {
	err = until(ctx, time.Minute, "pod ranges of "+n.Name, func(ctx context.Context) error {
		node, err := c.Kube.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		cidrs = nil
		for _, text := range node.Spec.PodCIDRs {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return err
			}
			cidrs = append(cidrs, p)
		}
		if len(cidrs) == 0 {
			return errors.New("it has none")
		}
		return nil
	}, c.ControllerManager, n.Kubelet)
	return cidrs, err
}

// waitReady waits for the nodes, and for the pods that are part of the cluster.
func (c *Cluster) waitReady(ctx context.Context) error {
	if c.Options.Network == None {
		return nil
	}
	for _, n := range c.Nodes {
		if err := until(ctx, 90*time.Second, "node "+n.Name, func(ctx context.Context) error {
			node, err := c.Kube.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			return ready(node)
		}, n.Kubelet, n.Containerd); err != nil {
			if n.Kubelet != nil {
				err = fmt.Errorf("%w; the kubelet said:\n%s", err, tail(n.Kubelet.Log))
			}
			return err
		}
	}
	if c.Options.DNS == CoreDNS {
		if _, err := c.Kubectl(ctx, "", "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=90s"); err != nil {
			return err
		}
	}
	return nil
}

// ready is nil for a node that takes pods.
func ready(node *corev1.Node) error {
	for _, taint := range node.Spec.Taints {
		if taint.Effect != corev1.TaintEffectPreferNoSchedule {
			return fmt.Errorf("it has the taint %s", taint.Key)
		}
	}
	var why []string
	for _, cond := range node.Status.Conditions {
		if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
			return nil
		}
		if cond.Type == corev1.NodeReady {
			why = append(why, cond.Message)
		}
	}
	return fmt.Errorf("it is not ready: %s", strings.Join(why, "; "))
}
