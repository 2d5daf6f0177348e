// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// StartupTaint is for Options.Taint: the taint that the agents of the manifest take away.
const StartupTaint = "fairlead.io/agent-not-ready"

// AsDaemonSet installs Fairlead as docs/install.md says, and waits for it. It is for Options.Install.
func AsDaemonSet(ctx context.Context, c *Cluster) error {
	if err := c.ApplyDaemonSet(ctx); err != nil {
		return err
	}
	return c.RolledOut(ctx)
}

// ApplyDaemonSet does all that AsDaemonSet does but wait.
func (c *Cluster) ApplyDaemonSet(ctx context.Context) error {
	if err := c.tainted(ctx); err != nil {
		return err
	}
	all, importing := errgroup.WithContext(ctx)
	for _, n := range c.Nodes {
		all.Go(func() error { return n.Import(importing, c.own("fairlead-image.tar")) })
	}
	if err := all.Wait(); err != nil {
		return err
	}
	manifest, err := c.Manifest(ctx)
	if err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "", "apply", "--server-side", "--validate=strict", "-f", manifest); err != nil {
		return fmt.Errorf("apply the manifest: %w", err)
	}
	return nil
}

// RolledOut waits until the DaemonSet's pods are all there, ready and of its present version.
func (c *Cluster) RolledOut(ctx context.Context) error {
	_, err := c.Kubectl(ctx, "", "-n", "kube-system", "rollout", "status", "daemonset/fairlead", "--timeout=180s")
	if err == nil {
		return nil
	}
	// The event that says why is in here, and what the agents say.
	pods, _ := c.Kubectl(ctx, "", "-n", "kube-system", "describe", "pods", "--selector=app.kubernetes.io/name=fairlead")
	logs, _ := c.Kubectl(ctx, "", "-n", "kube-system", "logs", "--selector=app.kubernetes.io/name=fairlead", "--prefix", "--tail=20")
	return fmt.Errorf("%w; the pods:\n%s\ntheir agents said:\n%s", err, pods, logs)
}

// tainted is an error unless the kubelets have put Options.Taint on their nodes: else it would be no wonder that it is gone later.
func (c *Cluster) tainted(ctx context.Context) error {
	if c.Options.Taint == "" {
		return nil
	}
	for _, n := range c.Nodes {
		if err := until(ctx, time.Minute, "taint of "+n.Name, func(ctx context.Context) error {
			node, err := c.Kube.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
			if err == nil && !slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == c.Options.Taint }) {
				err = fmt.Errorf("it was registered with %v", node.Spec.Taints)
			}
			return err
		}, n.Kubelet); err != nil {
			return err
		}
	}
	return nil
}

// Manifest renders the chart for this cluster by the program of deploy/manifest, and returns the file.
func (c *Cluster) Manifest(ctx context.Context) (string, error) {
	values, file := filepath.Join(c.dir, "values.yaml"), filepath.Join(c.dir, "fairlead.yaml")
	text, err := json.Marshal(map[string]any{ // which is YAML too
		"apiServer": apiAddr(), "serviceCIDRs": ServiceCIDRs, "podCIDRs": PodCIDRs,
		"proxy":   map[string]any{"enabled": c.Options.Proxy == Fairlead},
		"dns":     map[string]any{"enabled": c.Options.DNS == Fairlead, "ips": DNSAddrs},
		"network": map[string]any{"enabled": c.Options.Network == Fairlead},
	})
	if err == nil {
		err = os.WriteFile(values, text, 0o644)
	}
	if err != nil {
		return "", fmt.Errorf("write the chart's values: %w", err)
	}
	if out, err := exec.CommandContext(ctx, c.program("manifest"), "-values", values, file).CombinedOutput(); err != nil {
		return "", fmt.Errorf("render the chart: %w: %s; make build-kubernetes makes the program", err, out)
	}
	return file, nil
}
