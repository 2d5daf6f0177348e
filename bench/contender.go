// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// contender is a service proxy that can be started on a node.
type contender struct {
	name   string
	number int
	// command is the program with its flags, for a node; dir is for its files.
	command func(r *rig, dir string, eager bool) ([]string, error)
	// listed is how the line begins that it logs when it has the objects it needs, after the time.
	listed string
}

var (
	fairlead = contender{"fairlead", 11, fairleadCommand, "all watches complete"}
	proxy    = contender{"kube-proxy", 12, proxyCommand, "Caches are synced"}
)

var contenders = map[string]contender{fairlead.name: fairlead, proxy.name: proxy}

// run starts the contender on a node. Eager is without the pause that kube-proxy by default makes after each time it has written the kernel's
// tables (Fairlead has none).
func (c contender) run(r *rig, eager bool, cpu int) (*process, error) {
	dir, err := os.MkdirTemp(r.w.dir, c.name+"-")
	if err != nil {
		return nil, fmt.Errorf("make directory for %s: %w", c.name, err)
	}
	argv, err := c.command(r, dir, eager)
	if err != nil {
		return nil, err
	}
	return start(r.node, cpu, dir, c.name, argv...)
}

func fairleadCommand(r *rig, dir string, _ bool) ([]string, error) {
	return []string{r.w.programs.fairlead, "agent", "--node", r.name, "--dns-ip", dnsIP, "--kubeconfig", r.w.kubeconfig,
		"--state", filepath.Join(dir, "state"), "--service-cidr", serviceCIDR, "--pod-cidr", podCIDR, "--cni-conf-dir", filepath.Join(dir, "cni")}, nil
}

func proxyCommand(r *rig, dir string, eager bool) ([]string, error) {
	return proxyInMode("nftables", r, dir, eager)
}

// proxyInMode configures what kube-proxy has no useful default for. The limit of the conntrack table belongs to the machine's first network
// namespace and cannot be set in another.
func proxyInMode(mode string, r *rig, dir string, eager bool) ([]string, error) {
	config := map[string]any{
		"apiVersion":       "kubeproxy.config.k8s.io/v1alpha1",
		"kind":             "KubeProxyConfiguration",
		"mode":             mode,
		"clusterCIDR":      podCIDR,
		"hostnameOverride": r.name,
		"clientConnection": map[string]any{"kubeconfig": r.w.kubeconfig},
		"conntrack":        map[string]any{"maxPerCore": 0, "min": 0},
	}
	if eager {
		config["nftables"] = map[string]any{"minSyncPeriod": time.Millisecond.String()} // zero would be the default, 1 s
	}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode configuration of kube-proxy: %w", err)
	}
	flags, err := writeConfig(dir, "kube-proxy.yaml", string(text), "--config")
	return append([]string{r.w.programs.kubeProxy, "-v=2"}, flags...), err
}
