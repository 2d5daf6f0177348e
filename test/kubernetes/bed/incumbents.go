// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// startBridge configures the reference plugins on every node, and leads each node to the others' pods.
func (c *Cluster) startBridge(ctx context.Context) error {
	cidrs := map[*Node][]netip.Prefix{}
	for _, n := range c.Nodes {
		var err error
		if cidrs[n], err = c.podCIDRs(ctx, n); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		for _, cidr := range cidrs[n] {
			by := n.Addrs()[0]
			if cidr.Addr().Is6() {
				by = n.Addrs()[1]
			}
			// The other machines too: CoreDNS asks the API server and the fabric's name server from a pod.
			for _, m := range c.machines() {
				if m == n.Machine {
					continue
				}
				if err := m.route(cidr, by); err != nil {
					return err
				}
			}
		}
		// Pods of a node share a bridge; without these, answers between them go past connection tracking.
		if err := n.set(map[string]string{"net/bridge/bridge-nf-call-iptables": "1", "net/bridge/bridge-nf-call-ip6tables": "1"}); err != nil {
			return err
		}
		if _, err := n.Output(ctx, "sh", "-c", "cp -n "+referencePlugins+"/* "+cniBin); err != nil {
			return err
		}
		conf, err := bridgeConf(cidrs[n])
		if err != nil {
			return err
		}
		if err := n.WriteFile(ctx, filepath.Join(cniConf, "10-bridge.conflist"), conf); err != nil {
			return err
		}
	}
	return nil
}

// bridgeConf is the network configuration list of the reference plugins.
func bridgeConf(cidrs []netip.Prefix) (string, error) {
	var ranges [][]map[string]string
	var routes []map[string]string
	for _, cidr := range cidrs {
		ranges = append(ranges, []map[string]string{{"subnet": cidr.String()}})
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if cidr.Addr().Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		routes = append(routes, map[string]string{"dst": all.String()})
	}
	text, err := json.MarshalIndent(map[string]any{
		"cniVersion": "0.4.0", "name": "bridge",
		"plugins": []map[string]any{
			{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				"ipam": map[string]any{"type": "host-local", "ranges": ranges, "routes": routes},
			},
			{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode CNI configuration: %w", err)
	}
	return string(text), nil
}

// WriteFile writes a file as the machine sees it, in one step.
func (m *Machine) WriteFile(ctx context.Context, path, text string) error {
	cmd := m.Command("sh", "-c", `cat > "$0.new" && mv "$0.new" "$0"`, path)
	cmd.Stdin = strings.NewReader(text)
	if _, err := m.output(ctx, cmd); err != nil {
		return fmt.Errorf("write %s on %s: %w", path, m.Name, err)
	}
	return nil
}

// startKubeProxy starts kube-proxy on every node, in the mode that it recommends.
func (c *Cluster) startKubeProxy() (err error) {
	for _, n := range c.Nodes {
		config := filepath.Join(n.dir, "kube-proxy.yaml")
		// The size of the connection table belongs to this machine; see kube-proxy's --conntrack-max-per-core.
		text := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: %s
hostnameOverride: %s
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0}
`, list(PodCIDRs), n.Name, c.kubeconfig("kube-proxy"))
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write kube-proxy's configuration: %w", err)
		}
		if n.KubeProxy, err = n.start(networkShare, "kube-proxy", c.program("kube-proxy"), "--config="+config); err != nil {
			return err
		}
	}
	return nil
}

//go:embed coredns.yaml
var coreDNS string

// startCoreDNS applies CoreDNS as installers do.
func (c *Cluster) startCoreDNS(ctx context.Context) error {
	manifest := strings.NewReplacer("IMAGE", imageCoreDNS, "DNS4", DNSAddrs[0].String(), "DNS6", DNSAddrs[1].String()).Replace(coreDNS)
	if _, err := c.Kubectl(ctx, manifest, "apply", "-f", "-"); err != nil {
		return fmt.Errorf("apply CoreDNS: %w", err)
	}
	return nil
}
