// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Limits of what Params accepts.
const (
	// MaxNodes is the largest number of virtual nodes. The addresses of a /24 and the processes of one machine end near here.
	MaxNodes = 100
	// FabricPort is the port of the API server inside the cluster, on the fabric's own address.
	FabricPort = 6443
	// nodeOffset is the distance of node n1's address from the node network's base, less one. It leaves low addresses free
	// for the fabric.
	nodeOffset = 10
	// dnsOffset is the place of the kube-dns ClusterIP in a service range, as Kubernetes installers choose it.
	dnsOffset = 10
)

// Params is what a user may choose about a cluster. The zero value is not valid; start from [DefaultParams].
type Params struct {
	// Nodes is how many virtual nodes there are, 1 to MaxNodes. They are named n1, n2 and so on.
	Nodes int `json:"nodes"`
	// ServiceCIDRs is the range of ClusterIPs: one prefix, or two of different families. The first one's family is the primary one.
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	// PodCIDRs is the range of pod addresses, families in the order of ServiceCIDRs. A node gets a /24 (IPv4) or /64 (IPv6) of it.
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	// NodeCIDRs is the network that joins the nodes, families in the order of ServiceCIDRs.
	NodeCIDRs []netip.Prefix `json:"nodeCIDRs"`
	// APIPort is the TCP port of the API server on the machine's loopback address 127.0.0.1.
	APIPort uint16 `json:"apiPort"`
	// Domain is the cluster's DNS zone, without a dot at the end.
	Domain string `json:"clusterDomain"`
	// PodFastPath and PodSocketLB are the agents' switches of these names. They may be others at each start.
	PodFastPath bool `json:"podFastPath,omitempty"`
	PodSocketLB bool `json:"podSocketLB,omitempty"`
}

// DefaultParams returns a cluster of three nodes with IPv4 only, in the ranges that Kubernetes users know.
func DefaultParams() Params {
	return Params{
		Nodes:        3,
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		NodeCIDRs:    []netip.Prefix{netip.MustParsePrefix("172.30.0.0/24")},
		APIPort:      6443,
		Domain:       "cluster.local",
	}
}

// defaultNode6 joins the nodes of a dual-stack cluster when the user named no node network.
var defaultNode6 = netip.MustParsePrefix("fd00:30::/64")

// ParseCIDRs reads one prefix or two with a comma between them. Host bits must be zero.
func ParseCIDRs(s string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for part := range strings.SplitSeq(s, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%q is not a CIDR such as 10.96.0.0/16", part)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s has host bits set; write %s", p, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

// FormatCIDRs is the inverse of [ParseCIDRs].
func FormatCIDRs(ps []netip.Prefix) string {
	s := make([]string, len(ps))
	for i, p := range ps {
		s[i] = p.String()
	}
	return strings.Join(s, ",")
}

// Complete returns p with a node network for every family of the service range: a dual-stack cluster needs only its
// service and pod ranges named.
func (p Params) Complete() Params {
	if len(p.ServiceCIDRs) != 2 || len(p.NodeCIDRs) != 1 || !p.NodeCIDRs[0].Addr().Is4() {
		return p
	}
	if p.ServiceCIDRs[0].Addr().Is4() {
		p.NodeCIDRs = []netip.Prefix{p.NodeCIDRs[0], defaultNode6}
	} else {
		p.NodeCIDRs = []netip.Prefix{defaultNode6, p.NodeCIDRs[0]}
	}
	return p
}

var domainRE = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$`)

// Validate returns nil for parameters that a cluster can be made from, and otherwise the first fault, in a sentence that
// names the flag.
func (p Params) Validate() error {
	if p.Nodes < 1 || p.Nodes > MaxNodes {
		return fmt.Errorf("--nodes %d: choose 1 to %d", p.Nodes, MaxNodes)
	}
	if p.APIPort == 0 {
		return errors.New("--api-port 0: choose a port from 1 to 65535")
	}
	if len(p.Domain) > 200 || !domainRE.MatchString(p.Domain) {
		return fmt.Errorf("--cluster-domain %q: choose a DNS name in lower case without a dot at the end, such as cluster.local", p.Domain)
	}
	lists := []struct {
		flag string
		cidr []netip.Prefix
	}{{"--service-cidr", p.ServiceCIDRs}, {"--pod-cidr", p.PodCIDRs}, {"--node-cidr", p.NodeCIDRs}}
	for _, l := range lists {
		if err := validFamilies(l.cidr, p.ServiceCIDRs); err != nil {
			return fmt.Errorf("%s %s: %w", l.flag, FormatCIDRs(l.cidr), err)
		}
	}
	for i, a := range lists {
		for _, b := range lists[i+1:] {
			for _, x := range a.cidr {
				for _, y := range b.cidr {
					if x.Overlaps(y) {
						return fmt.Errorf("%s %s overlaps %s %s; choose separate ranges", a.flag, x, b.flag, y)
					}
				}
			}
		}
	}
	return p.validSizes()
}

// validFamilies checks one list of prefixes against the service ranges, which set the families and their order.
func validFamilies(ps, service []netip.Prefix) error {
	switch {
	case len(ps) == 0 || len(ps) > 2:
		return errors.New("give one CIDR, or one IPv4 and one IPv6 CIDR with a comma between them")
	case len(ps) == 2 && ps[0].Addr().Is4() == ps[1].Addr().Is4():
		return errors.New("two CIDRs must be one of IPv4 and one of IPv6")
	case len(ps) != len(service):
		return fmt.Errorf("has %d CIDRs but --service-cidr has %d; give the same families in the same order", len(ps), len(service))
	}
	for i, p := range ps {
		a := p.Addr()
		switch {
		case a.Is4() != service[i].Addr().Is4():
			return errors.New("families must come in the order of --service-cidr")
		case a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified():
			return fmt.Errorf("%s is not a range of unicast addresses that may be routed", p)
		}
	}
	return nil
}

// validSizes checks that every range is large enough for its use, and not larger than its allocator can hold.
func (p Params) validSizes() error {
	for _, s := range p.ServiceCIDRs {
		host := s.Addr().BitLen() - s.Bits()
		if host < 4 || host > 20 {
			return fmt.Errorf("--service-cidr %s: choose a prefix with 16 to 1048576 addresses", s)
		}
	}
	for _, c := range p.PodCIDRs {
		per := NodePodBits(c.Addr())
		if c.Bits() > per || (per-c.Bits() < 8 && 1<<(per-c.Bits()) < p.Nodes) {
			return fmt.Errorf("--pod-cidr %s has no room for a /%d for each of %d nodes", c, per, p.Nodes)
		}
	}
	for _, n := range p.NodeCIDRs {
		if host := n.Addr().BitLen() - n.Bits(); host < 8 && 1<<host <= nodeOffset+p.Nodes+1 {
			return fmt.Errorf("--node-cidr %s has no room for %d nodes", n, p.Nodes)
		}
	}
	return nil
}

// NodePodBits is the prefix length of one node's share of a pod range with addresses of a's family.
func NodePodBits(a netip.Addr) int {
	if a.Is4() {
		return 24
	}
	return 64
}

// Differences lists, as "--flag OLD, not NEW", what would have to change to make old into p. The API port is left out: it may
// differ from one start to the next.
func (p Params) Differences(old Params) []string {
	var out []string
	diff := func(flag, was, is string) {
		if was != is {
			out = append(out, fmt.Sprintf("%s %s, not %s", flag, was, is))
		}
	}
	diff("--nodes", strconv.Itoa(old.Nodes), strconv.Itoa(p.Nodes))
	diff("--service-cidr", FormatCIDRs(old.ServiceCIDRs), FormatCIDRs(p.ServiceCIDRs))
	diff("--pod-cidr", FormatCIDRs(old.PodCIDRs), FormatCIDRs(p.PodCIDRs))
	diff("--node-cidr", FormatCIDRs(old.NodeCIDRs), FormatCIDRs(p.NodeCIDRs))
	diff("--cluster-domain", old.Domain, p.Domain)
	return out
}

// NodeNames returns n1, n2 and so on.
func (p Params) NodeNames() []string {
	out := make([]string, p.Nodes)
	for i := range out {
		out[i] = "n" + strconv.Itoa(i+1)
	}
	return out
}

// NodeAddrs returns the addresses of the i-th node (n1 is 0), one per family, with the length of their network.
func (p Params) NodeAddrs(i int) []netip.Prefix { return addrsAt(p.NodeCIDRs, nodeOffset+1+i) }

// FabricAddrs returns the addresses of the fabric's bridge, where the API server listens for the nodes.
func (p Params) FabricAddrs() []netip.Prefix { return addrsAt(p.NodeCIDRs, 1) }

// DNSAddrs returns the ClusterIPs of the Service kube-dns.
func (p Params) DNSAddrs() []netip.Addr { return bare(addrsAt(p.ServiceCIDRs, dnsOffset)) }

// KubernetesAddr returns the ClusterIP of the Service default/kubernetes: the first address of the primary service range.
func (p Params) KubernetesAddr() netip.Addr { return addrsAt(p.ServiceCIDRs[:1], 1)[0].Addr() }

// FabricEndpoint is where the API server listens inside the cluster.
func (p Params) FabricEndpoint() netip.AddrPort {
	return netip.AddrPortFrom(p.FabricAddrs()[0].Addr(), FabricPort)
}

// FabricURL is the API server's URL for the cluster's own processes.
func (p Params) FabricURL() string { return "https://" + p.FabricEndpoint().String() }

// LocalURL is the API server's URL for the machine's users.
func (p Params) LocalURL() string { return "https://127.0.0.1:" + strconv.Itoa(int(p.APIPort)) }

func addrsAt(ps []netip.Prefix, offset int) []netip.Prefix {
	out := make([]netip.Prefix, len(ps))
	for i, p := range ps {
		out[i] = netip.PrefixFrom(addOffset(p.Addr(), offset), p.Bits())
	}
	return out
}

func addOffset(a netip.Addr, n int) netip.Addr {
	b := a.AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	out, _ := netip.AddrFromSlice(b)
	return out
}

func bare(ps []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, len(ps))
	for i, p := range ps {
		out[i] = p.Addr()
	}
	return out
}

// Equal says whether two sets of parameters are the same in every field.
func (p Params) Equal(q Params) bool {
	return p.Nodes == q.Nodes && p.APIPort == q.APIPort && p.Domain == q.Domain && p.PodFastPath == q.PodFastPath && p.PodSocketLB == q.PodSocketLB &&
		slices.Equal(p.ServiceCIDRs, q.ServiceCIDRs) && slices.Equal(p.PodCIDRs, q.PodCIDRs) && slices.Equal(p.NodeCIDRs, q.NodeCIDRs)
}
