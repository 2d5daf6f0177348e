// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// KubeProxyTable is the name of kube-proxy's nftables tables, one of each family.
const KubeProxyTable = "kube-proxy"

// What kube-proxy v1.37 has in iptables, from its modes iptables and ipvs.
var (
	// fixedChains are its chains by table.
	fixedChains = map[string][]string{
		"nat": {"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-PROXY-CANARY",
			"KUBE-NODE-PORT", "KUBE-LOAD-BALANCER"},
		"filter": {"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY",
			"KUBE-NODE-PORT", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER"},
		"mangle": {"KUBE-PROXY-CANARY"},
	}
	// perService are the beginnings of its chains in the table nat that end in a hash.
	perService = []string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"}
	// jumpComments tell its own jumps, in the built-in chains, from other programs' rules that lead to its chains.
	jumpComments = []string{
		"kubernetes service portals",
		"kubernetes externally-visible service portals",
		"kubernetes health check service ports",
		"kubernetes forwarding rules",
		"kubernetes load balancer firewall",
		"kubernetes postrouting rules",
		"kubernetes health check rules",
		"kube-proxy firewall rules",
		"kubernetes ipvs access filter",
	}
	builtIn = []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
)

// KubeProxys reports whether a chain of an iptables table is kube-proxy's.
func KubeProxys(table, chain string) bool {
	return slices.Contains(fixedChains[table], chain) ||
		table == "nat" && slices.ContainsFunc(perService, func(p string) bool { return strings.HasPrefix(chain, p) })
}

func kubeProxyTables(r *Report) error {
	var errs []error
	for _, family := range []struct {
		name   string
		number nftables.TableFamily
	}{{"ip", nftables.TableFamilyIPv4}, {"ip6", nftables.TableFamilyIPv6}} {
		tables, err := listTables(family.number)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, t := range tables {
			if t.Name != KubeProxyTable {
				continue
			}
			if !r.DryRun {
				if err := deleteTable(t); err != nil {
					errs = append(errs, err)
					continue
				}
			}
			r.removed(Table, "", family.name+" "+t.Name)
		}
	}
	return errors.Join(errs...)
}

// kubeProxyChains removes the rules of the modes iptables and ipvs.
func kubeProxyChains(ctx context.Context, r *Report, run runner) error {
	errs := []error{iptables(ctx, r, run)}
	if link, err := netlink.LinkByName("kube-ipvs0"); err == nil {
		r.note("interface %s, IPVS's virtual servers and the IP sets of kube-proxy's mode ipvs stay; kube-proxy --cleanup removes them",
			link.Attrs().Name)
	}
	return errors.Join(errs...)
}
