// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func cidrs(t *testing.T, s string) []netip.Prefix {
	t.Helper()
	ps, err := ParseCIDRs(s)
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

func TestParseCIDRs(t *testing.T) {
	for _, tc := range []struct{ in, want, err string }{
		{"10.96.0.0/16", "10.96.0.0/16", ""},
		{"10.96.0.0/16, fd00:96::/112", "10.96.0.0/16,fd00:96::/112", ""},
		{"banana", "", `"banana" is not a CIDR`},
		{"", "", `"" is not a CIDR`},
		{"10.96.0.0/16,", "", `"" is not a CIDR`},
		{"10.96.0.1/16", "", "write 10.96.0.0/16"},
		{"fd00::1/64", "", "write fd00::/64"},
		{"10.96.0.0/33", "", "is not a CIDR"},
	} {
		got, err := ParseCIDRs(tc.in)
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: %v, want %q", tc.in, err, tc.err)
			}
		case err != nil || FormatCIDRs(got) != tc.want:
			t.Errorf("%q: %v %v, want %s", tc.in, got, err, tc.want)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Params)
		want   string // of the error, "" for none
	}{
		{"defaults", func(*Params) {}, ""},
		{"one node", func(p *Params) { p.Nodes = 1 }, ""},
		{"most nodes", func(p *Params) { p.Nodes = MaxNodes }, ""},
		{"no nodes", func(p *Params) { p.Nodes = 0 }, "--nodes 0"},
		{"too many nodes", func(p *Params) { p.Nodes = MaxNodes + 1 }, "--nodes 101"},
		{"port", func(p *Params) { p.APIPort = 0 }, "--api-port"},
		{"domain", func(p *Params) { p.Domain = "k8s.example.org" }, ""},
		{"domain with a dot at the end", func(p *Params) { p.Domain = "cluster.local." }, "--cluster-domain"},
		{"domain in capitals", func(p *Params) { p.Domain = "Cluster.local" }, "--cluster-domain"},
		{"no domain", func(p *Params) { p.Domain = "" }, "--cluster-domain"},
		{"dual-stack", func(p *Params) { dual(p) }, ""},
		{"dual-stack, IPv6 first", func(p *Params) {
			dual(p)
			for _, l := range []*[]netip.Prefix{&p.ServiceCIDRs, &p.PodCIDRs, &p.NodeCIDRs} {
				(*l)[0], (*l)[1] = (*l)[1], (*l)[0]
			}
		}, ""},
		{"families in another order", func(p *Params) {
			dual(p)
			p.PodCIDRs[0], p.PodCIDRs[1] = p.PodCIDRs[1], p.PodCIDRs[0]
		}, "--pod-cidr fd00:244::/48,10.244.0.0/16: families must come in the order"},
		{"a family is missing", func(p *Params) { dual(p); p.PodCIDRs = p.PodCIDRs[:1] }, "--pod-cidr 10.244.0.0/16: has 1 CIDRs but --service-cidr has 2"},
		{"twice IPv4", func(p *Params) { p.ServiceCIDRs = cidrs(t, "10.96.0.0/16,10.97.0.0/16") }, "one of IPv4 and one of IPv6"},
		{"three", func(p *Params) { p.ServiceCIDRs = cidrs(t, "10.96.0.0/16,fd00::/112,fd01::/112") }, "give one CIDR"},
		{"none", func(p *Params) { p.PodCIDRs = nil }, "--pod-cidr"},
		{"overlap", func(p *Params) { p.ServiceCIDRs = cidrs(t, "10.244.0.0/16") }, "--service-cidr 10.244.0.0/16 overlaps --pod-cidr 10.244.0.0/16"},
		{"overlap in part", func(p *Params) { p.NodeCIDRs = cidrs(t, "10.96.7.0/24") }, "--service-cidr 10.96.0.0/16 overlaps --node-cidr 10.96.7.0/24"},
		{"loopback", func(p *Params) { p.NodeCIDRs = cidrs(t, "127.0.0.0/8") }, "--node-cidr"},
		{"link-local", func(p *Params) { p.PodCIDRs = cidrs(t, "169.254.0.0/16") }, "--pod-cidr"},
		{"service range too small", func(p *Params) { p.ServiceCIDRs = cidrs(t, "10.96.0.0/29") }, "--service-cidr 10.96.0.0/29"},
		{"service range too large", func(p *Params) { p.ServiceCIDRs = cidrs(t, "10.0.0.0/8") }, "--service-cidr"},
		{"room for exactly the nodes", func(p *Params) { p.Nodes, p.PodCIDRs = 4, cidrs(t, "10.244.0.0/22") }, ""},
		{"no room for the last node", func(p *Params) { p.Nodes, p.PodCIDRs = 5, cidrs(t, "10.244.0.0/22") }, "--pod-cidr 10.244.0.0/22 has no room"},
		{"pod range smaller than a node's", func(p *Params) { p.Nodes, p.PodCIDRs = 1, cidrs(t, "10.244.0.0/25") }, "--pod-cidr"},
		{"small node range", func(p *Params) { p.NodeCIDRs = cidrs(t, "172.30.0.0/28") }, ""},
		{"no room for the nodes", func(p *Params) { p.Nodes, p.NodeCIDRs = 9, cidrs(t, "172.30.0.0/28") }, "--node-cidr 172.30.0.0/28 has no room"},
	} {
		p := DefaultParams()
		tc.change(&p)
		err := p.Validate()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// dual makes parameters dual-stack, with all but the node network given.
func dual(p *Params) {
	p.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}
	p.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/48")}
	*p = p.Complete()
}

func TestAddresses(t *testing.T) {
	p := DefaultParams()
	dual(&p)
	if got := FormatCIDRs(p.FabricAddrs()); got != "172.30.0.1/24,fd00:30::1/64" {
		t.Errorf("fabric %s", got)
	}
	if got := FormatCIDRs(p.NodeAddrs(0)); got != "172.30.0.11/24,fd00:30::b/64" {
		t.Errorf("n1 %s", got)
	}
	if got := FormatCIDRs(p.NodeAddrs(99)); got != "172.30.0.110/24,fd00:30::6e/64" {
		t.Errorf("n100 %s", got)
	}
	if got := p.DNSAddrs(); len(got) != 2 || got[0].String() != "10.96.0.10" || got[1].String() != "fd00:96::a" {
		t.Errorf("DNS %v", got)
	}
	if got := p.KubernetesAddr().String(); got != "10.96.0.1" {
		t.Errorf("kubernetes %s", got)
	}
	if p.FabricURL() != "https://172.30.0.1:6443" || p.LocalURL() != "https://127.0.0.1:6443" {
		t.Errorf("URLs %s %s", p.FabricURL(), p.LocalURL())
	}
	if got := strings.Join(p.NodeNames(), " "); got != "n1 n2 n3" {
		t.Errorf("nodes %s", got)
	}
	one := DefaultParams()
	if got := one.Complete(); !got.Equal(one) {
		t.Errorf("a cluster of one family was completed to %+v", got)
	}
	six := p
	six.ServiceCIDRs = []netip.Prefix{p.ServiceCIDRs[1], p.ServiceCIDRs[0]}
	six.NodeCIDRs = p.NodeCIDRs[:1]
	if got := FormatCIDRs(six.Complete().NodeCIDRs); got != "fd00:30::/64,172.30.0.0/24" {
		t.Errorf("node networks with IPv6 first: %s", got)
	}
}

// TestValidParamsHaveDistinctAddresses: whatever Validate lets pass, all addresses that are made from it are inside their ranges and distinct.
func TestValidParamsHaveDistinctAddresses(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	valid := 0
	for range 3000 {
		random := func(lo, hi int) []netip.Prefix {
			var b [4]byte
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			p, _ := netip.AddrFrom4(b).Prefix(lo + r.IntN(hi-lo+1))
			return []netip.Prefix{p}
		}
		p := Params{Nodes: 1 + r.IntN(MaxNodes), APIPort: 6443, Domain: "c.example",
			ServiceCIDRs: random(12, 28), PodCIDRs: random(8, 24), NodeCIDRs: random(8, 28)}
		if p.Validate() != nil {
			continue
		}
		valid++
		seen := map[netip.Addr]bool{}
		for i := -1; i < p.Nodes; i++ {
			a := p.FabricAddrs()
			if i >= 0 {
				a = p.NodeAddrs(i)
			}
			if !p.NodeCIDRs[0].Contains(a[0].Addr()) || seen[a[0].Addr()] {
				t.Fatalf("%+v: node %d has %s", p, i, a[0])
			}
			seen[a[0].Addr()] = true
		}
		if !p.ServiceCIDRs[0].Contains(p.DNSAddrs()[0]) || !p.ServiceCIDRs[0].Contains(p.KubernetesAddr()) {
			t.Fatalf("%+v: DNS %s, API %s", p, p.DNSAddrs()[0], p.KubernetesAddr())
		}
	}
	if valid < 30 {
		t.Errorf("only %d of the random parameters were valid", valid)
	}
}

func TestDifferences(t *testing.T) {
	p, q := DefaultParams(), DefaultParams()
	q.APIPort, q.PodFastPath, q.PodSocketLB = 1, true, true
	if d := p.Differences(q); len(d) != 0 {
		t.Errorf("another port, or a switch, is a difference: %v", d)
	}
	q.Nodes, q.Domain, q.PodCIDRs = 5, "x", cidrs(t, "10.0.0.0/16")
	if d := strings.Join(p.Differences(q), "; "); d != "--nodes 5, not 3; --pod-cidr 10.0.0.0/16, not 10.244.0.0/16; --cluster-domain x, not cluster.local" {
		t.Errorf("differences: %s", d)
	}
}

func TestParamsJSON(t *testing.T) {
	p := DefaultParams()
	dual(&p)
	p.PodSocketLB = true
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var q Params
	if err := json.Unmarshal(b, &q); err != nil || !p.Equal(q) {
		t.Errorf("%s read again: %+v %v", b, q, err)
	}
}
