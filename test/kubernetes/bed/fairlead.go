// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/status"
)

// fairleadUser is who the agents are to the API server: the service account of the manifest, so that its roles are theirs.
const fairleadUser = "system:serviceaccount:kube-system:fairlead"

func (c *Cluster) own(name string) string { return filepath.Join(c.Options.Own, name) }

//go:embed fairlead-dns.yaml
var fairleadDNSManifest string

// OnHosts brings Fairlead to the nodes as a program of each, and waits until all agents are ready. It is the default of
// [Options.Install].
func OnHosts(ctx context.Context, c *Cluster) error {
	file, err := c.Manifest(ctx)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the manifest: %w", err)
	}
	manifest := roles(string(text))
	if c.Options.DNS == Fairlead {
		manifest += fairleadDNS(c.Nodes)
	}
	if _, err := c.Kubectl(ctx, manifest, "apply", "-f", "-"); err != nil {
		return fmt.Errorf("apply what Fairlead needs: %w", err)
	}
	all, ctx := errgroup.WithContext(ctx)
	for _, n := range c.Nodes {
		all.Go(func() error { return c.StartAgent(ctx, n) })
	}
	return all.Wait()
}

// roles are the objects of a manifest that say what the agents may ask of the API server.
func roles(manifest string) string {
	var all string
	for object := range strings.SplitSeq(manifest, "---\n") {
		if strings.Contains(object, "\nkind: ClusterRole") { // or ClusterRoleBinding
			all += "---\n" + object
		}
	}
	return all
}

// fairleadDNS is the Service kube-dns, whose endpoints are the nodes themselves.
func fairleadDNS(nodes []*Node) string {
	text := strings.NewReplacer("DNS4", DNSAddrs[0].String(), "DNS6", DNSAddrs[1].String()).Replace(fairleadDNSManifest)
	for i, family := range []string{"IPv4", "IPv6"} {
		text += fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns-%s
  namespace: kube-system
  labels: {kubernetes.io/service-name: kube-dns, endpointslice.kubernetes.io/managed-by: bed.fairlead.test}
addressType: %s
ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
  - {name: metrics, port: 9153, protocol: TCP}
endpoints:
`, strings.ToLower(family), family)
		for _, n := range nodes {
			text += fmt.Sprintf("  - {addresses: [%q], nodeName: %s, conditions: {ready: true}, hints: {forNodes: [{name: %[2]s}]}}\n", n.Addrs()[i], n.Name)
		}
	}
	return text
}

// StartAgent starts a node's Fairlead agent, for the first time or again, and waits until it is ready.
func (c *Cluster) StartAgent(ctx context.Context, n *Node) (err error) {
	args := []string{c.own("fairlead"), "agent", "--node=" + n.Name, "--kubeconfig=" + c.kubeconfig("fairlead"),
		"--service-cidr=" + list(ServiceCIDRs), "--pod-cidr=" + list(PodCIDRs)}
	if c.Options.Proxy != Fairlead {
		args = append(args, "--proxy=false")
	}
	if c.Options.DNS == Fairlead {
		args = append(args, "--dns-ip="+list(DNSAddrs), "--upstream="+list(addrsOf(gatewayHost)))
	}
	if c.Options.Network == Fairlead {
		args = append(args, "--cni-conf-dir="+cniConf, "--cni-bin-dir="+cniBin)
	}
	if n.Agent, err = n.start(networkShare, "fairlead", append(args, c.Options.AgentArgs...)...); err != nil {
		return err
	}
	if err := until(ctx, time.Minute, "agent of "+n.Name, n.AgentReady, n.Agent); err != nil {
		return fmt.Errorf("%w; it said:\n%s", err, tail(n.Agent.Log))
	}
	return nil
}

// AgentReady is nil when the node's agent says that the node can deliver.
func (n *Node) AgentReady(ctx context.Context) error {
	var why string
	if err := status.Dial(n.Socket()).Get(ctx, "/v1/ready", nil, &why); err != nil {
		return err
	}
	if why != "" {
		return errors.New(why)
	}
	return nil
}
