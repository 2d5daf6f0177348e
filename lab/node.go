// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const (
	// leasePeriod is how often a node says that it lives; it is given up after leaseSeconds.
	leasePeriod  = 5 * time.Second
	leaseSeconds = 40
	// maxPods is a node's capacity.
	maxPods = 110
	// networkGrace is how long a node that was ready may fail to answer CNI STATUS before it is called not ready. An agent that was killed is back
	// within a second, and meanwhile the kernel goes on without it.
	networkGrace = 20 * time.Second
)

// apiNode keeps the Node object and the Lease of one virtual node. Its methods but set may be called by one goroutine.
type apiNode struct {
	client  kubernetes.Interface
	host    *host
	log     *slog.Logger
	version string

	mu    sync.Mutex
	ready bool
	why   string
	wake  chan struct{}
}

func newAPINode(client kubernetes.Interface, h *host, version string, log *slog.Logger) *apiNode {
	return &apiNode{client: client, host: h, version: version, log: log.With("node", h.name),
		why: errNoCNI.Error(), wake: make(chan struct{}, 1)}
}

// set changes what is known of the node's readiness; it is published by run.
func (n *apiNode) set(ready bool, why string) {
	n.mu.Lock()
	changed := n.ready != ready || n.why != why
	n.ready, n.why = ready, why
	n.mu.Unlock()
	if changed {
		poke(n.wake)
	}
}

func (n *apiNode) state() (bool, string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready, n.why
}

// labels are those that Kubernetes' own software expects on every node.
func (n *apiNode) labels() map[string]string {
	return map[string]string{
		corev1.LabelHostname:   n.host.name,
		corev1.LabelOSStable:   runtime.GOOS,
		corev1.LabelArchStable: runtime.GOARCH,
	}
}

// register creates the Node object, or brings the labels and the status of an old one up to date.
func (n *apiNode) register(ctx context.Context) (*corev1.Node, error) {
	nodes := n.client.CoreV1().Nodes()
	node, err := nodes.Get(ctx, n.host.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		node, err = nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.host.name, Labels: n.labels()}}, metav1.CreateOptions{})
	}
	if err != nil {
		return nil, fmt.Errorf("register node %s: %w", n.host.name, err)
	}
	if err := n.patch(ctx, map[string]any{"metadata": map[string]any{"labels": n.labels()}}); err != nil {
		return nil, err
	}
	status := n.facts()
	status.Conditions = n.conditions(node)
	return node, n.patch(ctx, map[string]any{"status": status}, "status")
}

// patch merges part of a Node into the object. It is a map because a Node value would also carry what it does not mean to say.
func (n *apiNode) patch(ctx context.Context, part map[string]any, subresource ...string) error {
	body, err := json.Marshal(part)
	if err != nil {
		return fmt.Errorf("encode node: %w", err)
	}
	_, err = n.client.CoreV1().Nodes().Patch(ctx, n.host.name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, subresource...)
	if err != nil {
		return fmt.Errorf("patch node %s: %w", n.host.name, err)
	}
	return nil
}

// facts is the part of the status that does not change while the cluster runs.
func (n *apiNode) facts() corev1.NodeStatus {
	var st corev1.NodeStatus
	for _, a := range n.host.addrs {
		st.Addresses = append(st.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	st.Addresses = append(st.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.host.name})
	st.Capacity = corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(totalMemory(), resource.BinarySI),
		corev1.ResourcePods:   *resource.NewQuantity(maxPods, resource.DecimalSI),
	}
	st.Allocatable = st.Capacity
	st.NodeInfo = nodeInfo(n.version)
	return st
}

func totalMemory() int64 {
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) != nil {
		return 0
	}
	return int64(s.Totalram) * int64(s.Unit)
}

// nodeInfo describes the machine.
func nodeInfo(version string) corev1.NodeSystemInfo {
	var u unix.Utsname
	unix.Uname(&u)
	read := func(path string) string {
		b, _ := os.ReadFile(path)
		return strings.TrimSpace(string(b))
	}
	name := "Linux"
	for line := range strings.Lines(read("/etc/os-release")) {
		if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			name = strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return corev1.NodeSystemInfo{
		MachineID:               read("/etc/machine-id"),
		BootID:                  read("/proc/sys/kernel/random/boot_id"),
		KernelVersion:           unix.ByteSliceToString(u.Release[:]),
		OSImage:                 name,
		ContainerRuntimeVersion: "process://" + version,
		KubeletVersion:          version,
		OperatingSystem:         runtime.GOOS,
		Architecture:            runtime.GOARCH,
	}
}

// conditions are the node's own conditions as they are now; old gives the times of those that did not change.
func (n *apiNode) conditions(old *corev1.Node) []corev1.NodeCondition {
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	ready, why := n.state()
	r := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "the node takes pods"}
	if !ready {
		r.Status, r.Reason, r.Message = corev1.ConditionFalse, "KubeletNotReady", "pod network not ready: "+why
	}
	out := []corev1.NodeCondition{
		{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, Reason: "NotMeasured", Message: "process pods are not evicted"},
		{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse, Reason: "NotMeasured", Message: "process pods are not evicted"},
		{Type: corev1.NodePIDPressure, Status: corev1.ConditionFalse, Reason: "NotMeasured", Message: "process pods are not evicted"},
		r,
	}
	for i := range out {
		out[i].LastHeartbeatTime, out[i].LastTransitionTime = now, now
		if c := nodeCondition(old, out[i].Type); c != nil && c.Status == out[i].Status {
			out[i].LastTransitionTime = c.LastTransitionTime
		}
	}
	return out
}

func nodeCondition(node *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range node.Status.Conditions {
		if node.Status.Conditions[i].Type == t {
			return &node.Status.Conditions[i]
		}
	}
	return nil
}

// agrees says whether the Node object shows the readiness that is so.
func (n *apiNode) agrees(node *corev1.Node) bool {
	ready, why := n.state()
	c := nodeCondition(node, corev1.NodeReady)
	if c == nil {
		return false
	}
	if ready {
		return c.Status == corev1.ConditionTrue
	}
	return c.Status == corev1.ConditionFalse && strings.HasSuffix(c.Message, why)
}

// publish writes the readiness if the object shows another one. It registers the node again if somebody deleted it.
func (n *apiNode) publish(ctx context.Context, get func() *corev1.Node) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	node := get()
	if node == nil {
		_, err := n.register(ctx)
		return err
	}
	if n.agrees(node) {
		return nil
	}
	return n.patch(ctx, map[string]any{"status": map[string]any{"conditions": n.conditions(node)}}, "status")
}

// run keeps the Node's condition and its Lease. get returns the object as the watch has it.
func (n *apiNode) run(ctx context.Context, get func() *corev1.Node) {
	lease := time.NewTicker(leasePeriod)
	defer lease.Stop()
	failing := false
	tell := func(err error) {
		if err != nil && !failing && ctx.Err() == nil {
			n.log.Warn("node not kept up to date", "err", err)
		} else if err == nil && failing {
			n.log.Info("node is kept up to date again")
		}
		failing = err != nil
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
			if err := n.publish(ctx, get); err != nil {
				tell(err)
				time.AfterFunc(time.Second, func() { poke(n.wake) })
			}
		case <-lease.C:
			tell(n.renew(ctx))
		}
	}
}

// renew says that the node lives, in its Lease.
func (n *apiNode) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leasePeriod)
	defer cancel()
	leases := n.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now := metav1.NewMicroTime(time.Now())
	seconds := int32(leaseSeconds)
	spec := coordinationv1.LeaseSpec{HolderIdentity: &n.host.name, LeaseDurationSeconds: &seconds, RenewTime: &now}
	body, err := json.Marshal(map[string]any{"spec": spec})
	if err != nil {
		return fmt.Errorf("encode lease: %w", err)
	}
	_, err = leases.Patch(ctx, n.host.name, types.MergePatchType, body, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: n.host.name}, Spec: spec}, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("renew lease of node %s: %w", n.host.name, err)
	}
	return nil
}

// bareAddrs drops the prefix lengths.
func bareAddrs(ps []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, len(ps))
	for i, p := range ps {
		out[i] = p.Addr()
	}
	return out
}
