// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/model"
)

func parse(t *testing.T, args string) (*Agent, error) {
	t.Helper()
	fs := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	f := AddFlags(fs)
	if err := fs.Parse(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	return f.Agent()
}

func TestAgent(t *testing.T) {
	a, err := parse(t, "--node n1 --state /s/nodes/n1 --dns-ip 10.96.0.10,fd00:96::a --cluster-domain example.org. "+
		"--service-cidr 10.96.0.0/16,fd00:96::/112 --pod-cidr 10.244.0.0/16 --upstream 192.0.2.1 --upstream [2001:db8::1]:5353")
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(a.Node, a.Socket(), a.Leases(), a.ClusterDomains, a.DNS, a.ServiceCIDRs, a.PodCIDRs, a.Block)
	want := "n1/s/nodes/n1/agent.sock/s/nodes/n1/ipam[example.org] [10.96.0.10 fd00:96::a] [10.96.0.0/16 fd00:96::/112] [10.244.0.0/16] .\n  cluster example.org. in-addr.arpa. ip6.arpa., pods disabled, ttl 5s\n  forward . to 192.0.2.1:53 [2001:db8::1]:5353, sequential\n  cache\n  shuffle addresses\n"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestAPIServers: addresses and names with a port are taken, in their order; whatever else is not.
func TestAPIServers(t *testing.T) {
	a, err := parse(t, "--node n1 --dns-ip 10.96.0.10 --state /s --api-server 192.0.2.1:6443,api.example:443 --api-server [2001:db8::1]:6443")
	if err != nil || strings.Join(a.APIServers, " ") != "192.0.2.1:6443 api.example:443 [2001:db8::1]:6443" || a.Checkpoint() != "/s/checkpoint" {
		t.Errorf("%v, %v, %v", a.APIServers, a.Checkpoint(), err)
	}
	for _, bad := range []string{"192.0.2.1", "https://192.0.2.1:6443", ":6443", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:https", "2001:db8::1:6443", "a/b:1"} {
		_, err := parse(t, "--node n1 --dns-ip 10.96.0.10 --api-server "+bad)
		if want := fmt.Sprintf("--api-server: %q is not HOST:PORT", bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestServing: what the service proxy serves where, by default and as asked.
func TestServing(t *testing.T) {
	for args, want := range map[string]string{
		"--node n1 --dns-ip 10.96.0.10":               "[] true true 0.0.0.0:10256 127.0.0.1:10249",
		"--node n1 --dns-ip 10.96.0.10 --proxy=false": "[] true true  ",
		"--node n1 --dns-ip 10.96.0.10 --proxy=false --healthz-bind-address [::]:1 --metrics-bind-address [::1]:2":                                                                               "[] true true [::]:1 [::1]:2",
		"--node n1 --dns-ip 10.96.0.10 --nodeport-addresses 127.0.0.0/8,192.0.2.0/24,fd00::/8 --pass-on-terminating=false --retry-refused=false --healthz-bind-address= --metrics-bind-address=": "[127.0.0.0/8 192.0.2.0/24 fd00::/8] false false  ",
	} {
		a, err := parse(t, args)
		if err != nil {
			t.Fatal(err)
		}
		healthz, _ := a.Healthz.MarshalText() // of none, nothing
		metrics, _ := a.Metrics.MarshalText()
		if got := fmt.Sprintf("%v %t %t %s %s", a.View().NodePortAddrs, a.View().PassOn, a.View().RetryRefused, healthz, metrics); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", args, got, want)
		}
	}
}

// TestRoles: what is left to other programs.
func TestRoles(t *testing.T) {
	for args, want := range map[string]model.Roles{
		"--dns-ip 10.96.0.10 --cni-conf-dir /etc/cni/net.d": 0,
		"--cni-conf-dir /etc/cni/net.d":                     0,
		"--dns-ip 10.96.0.10":                               model.Network,
		"":                                                  model.Network,
		"--dns-ip 10.96.0.10 --proxy=false":                 model.Network | model.Proxy,
		"--dns-ip 10.96.0.10 --proxy=false --cni-conf-dir /etc/cni/net.d": model.Proxy,
	} {
		a, err := parse(t, "--node n1 "+args)
		if err != nil {
			t.Errorf("%s: %v", args, err)
		} else if a.Left != want || (len(a.DNS) > 0) != strings.Contains(args, "--dns-ip") {
			t.Errorf("%s: left %b, DNS %v", args, a.Left, a.DNS)
		}
	}
}

// TestConntrack: the kernel's limits, as kube-proxy computes them.
func TestConntrack(t *testing.T) {
	for args, want := range map[string]string{
		"": "131072 131072 262144 1048576",
		"--conntrack-max-per-core 10 --conntrack-min 30": "30 40 80 1280",
		"--conntrack-max-per-core 0":                     "0 0 0 0",
	} {
		a, err := parse(t, "--node n1 "+args)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, cores := range []int{1, 4, 8, 128} {
			got = append(got, fmt.Sprint(a.Conntrack.Max(cores)))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", args, got, want)
		}
	}
}

// TestAsking: what the DNS does about who asks, by default and as asked.
func TestAsking(t *testing.T) {
	for args, want := range map[string]string{
		"": "[] [] count count {0 0} off",
		"--dns-clients 192.0.2.0/24,2001:db8::/32 --dns-node-search corp.example.,lab.example --dns-search-completion on --dns-suppress-aaaa off " +
			"--dns-client-rate 5000:20000 --dns-log sample:100": "[192.0.2.0/24 2001:db8::/32] [corp.example lab.example] on off {5000 20000} sample:100",
		"--dns-client-rate 5000 --dns-log errors --dns-search-completion off --dns-suppress-aaaa on": "[] [] off on {5000 0} errors",
	} {
		a, err := parse(t, "--node n1 --dns-ip 10.96.0.10 "+args)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(a.Clients, a.NodeSearch, " ", a.Asking.Completion, " ", a.Asking.AAAA, " ", a.Asking.Rate, " ", a.Asking.Log); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", args, got, want)
		}
	}
}

// TestTunnel: who is reached through the tunnel, by default and as asked.
func TestTunnel(t *testing.T) {
	for args, want := range map[string]string{
		"":                                   "auto 4789",
		"--tunnel auto":                      "auto 4789",
		"--tunnel never":                     "never 4789",
		"--tunnel always --tunnel-port 8472": "always 8472",
	} {
		a, err := parse(t, "--node n1 --dns-ip 10.96.0.10 "+args)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(a.Tunnel, " ", a.TunnelPort); got != want {
			t.Errorf("%s: got %s, want %s", args, got, want)
		}
	}
}

// TestUpstreams: what upstreams there are for which names.
func TestUpstreams(t *testing.T) {
	a, err := parse(t, "--node n1 --dns-ip 10.96.0.10 --cluster-domain One.example,two.example --dns-pods verified --upstream 192.0.2.1,Corp.Example=[2001:db8::1]:5353 "+
		"--upstream tls://192.0.2.2#dns.example,corp.example.=tls://2001:db8::2")
	if err != nil {
		t.Fatal(err)
	}
	want := ".\n  cluster one.example. two.example. in-addr.arpa. ip6.arpa., pods verified, ttl 5s\n" +
		"  forward . to 192.0.2.1:53 tls://192.0.2.2:853%dns.example, sequential\n" +
		"  forward corp.example. to [2001:db8::1]:5353 tls://[2001:db8::2]:853, sequential\n  cache\n  shuffle addresses\n"
	if got := a.Block.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if a, err := parse(t, "--node n1 --dns-ip 10.96.0.10 --cluster-domain one.example --dns-corefile /etc/coredns"); err != nil || a.Corefile != "/etc/coredns" {
		t.Errorf("the Corefile is %q, %v", a.Corefile, err)
	}
}

// TestAgentErrors gives one wrong setting at a time: the error names its flag and what is wrong with it.
func TestAgentErrors(t *testing.T) {
	const right = "--node n1 --dns-ip 10.96.0.10"
	for _, tt := range []struct{ args, want string }{
		{"--dns-ip 10.96.0.10", "--node: the node's name is required"},
		{"--node n1 --proxy=false", "--proxy: with the service proxy, the cluster DNS and the pod network all left to others there is nothing to do: give --dns-ip, --cni-conf-dir or --proxy"},
		{"--node n1 --dns-corefile /etc/coredns", "--dns-corefile: without --dns-ip the cluster DNS is left to others"},
		{"--node n1 --upstream 192.0.2.1", "--upstream: without --dns-ip the cluster DNS is left to others"},
		{right + " --dns-corefile /etc/coredns --upstream 192.0.2.1", "--upstream: the Corefile of --dns-corefile says where names are forwarded: leave one of the two out"},
		{right + " --dns-corefile /etc/coredns --dns-pods verified", "--dns-pods: the Corefile of --dns-corefile says which names pods have: leave one of the two out"},
		{right + " --state=", "--state: a directory is required"},
		{right + " --metrics-bind-address 10249", `--metrics-bind-address: "10249" is not ADDR:PORT`},
		{right + " --conntrack-min=-1 --conntrack-udp-timeout 1ms", "--conntrack-min: -1 is less than nothing\n--conntrack-udp-timeout: 1ms is no number of seconds"},
		{right + " --non-masquerade-cidr 10.0.0.1/8", "--non-masquerade-cidr: 10.0.0.1/8 has bits set beyond its length; did you mean 10.0.0.0/8?"},
		{right + " --startup-taint a/b/c", `--startup-taint: "a/b/c" is no taint's key, like example.com/name`},
		{right + " --dns-ip ten", `--dns-ip: "ten" is no IP address`},
		{right + " --dns-ip fe80::1%eth0", `--dns-ip: "fe80::1%eth0" is no IP address`},
		{right + " --dns-ip 10.96.0.11", "--dns-ip: at most one address of each family"},
		{right + " --cluster-domain bad..name", `--cluster-domain: "bad..name" is no domain name`},
		{right + " --cluster-domain .", `--cluster-domain: "." is no domain name`},
		{right + " --service-cidr 10.96.0.0", `--service-cidr: "10.96.0.0" is no range like 10.96.0.0/16`},
		{right + " --pod-cidr 10.244.1.5/16", "--pod-cidr: 10.244.1.5/16 has bits set beyond its length; did you mean 10.244.0.0/16?"},
		{right + " --pod-cidr 10.0.0.0/16,10.1.0.0/16", "--pod-cidr: at most one range of each family"},
		{right + " --nodeport-addresses primary", `--nodeport-addresses: "primary" is no range like 10.96.0.0/16`},
		{right + " --nodeport-addresses 10.0.0.1/8,10.0.0.0/8,11.0.0.0/8", "--nodeport-addresses: 10.0.0.1/8 has bits set beyond its length; did you mean 10.0.0.0/8?"},
		{right + " --healthz-bind-address :10256", `--healthz-bind-address: ":10256" is not ADDR:PORT`},
		{right + " --tunnel yes", `--tunnel: "yes" is neither auto, always nor never`},
		{right + " --pod-fast-path", "--pod-fast-path: the pod network is left to others: it goes with --cni-conf-dir"},
		{right + " --pod-socket-lb", "--pod-socket-lb: it is for a node that carries the traffic of Services and has the pod network: it goes with --proxy and --cni-conf-dir"},
		{right + " --pod-socket-lb --proxy=false --cni-conf-dir /etc/cni/net.d", "--pod-socket-lb: it is for a node that carries the traffic of Services and has the pod network: it goes with --proxy and --cni-conf-dir"},
		{right + " --tunnel-port 0", "--tunnel-port: a port from 1 to 65535 is required"},
		{right + " --upstream dns.example", `--upstream: "dns.example" is neither an address nor ADDR:PORT, of which either may have tls:// before it and #NAME behind it, and ZONE= before all`},
		{right + " --upstream a..b=192.0.2.1", `--upstream: "a..b=192.0.2.1": "a..b" is no domain name`},
		{right + " --dns-pods some", `--dns-pods: "some" is neither disabled, verified nor insecure`},
		{right + " --dns-clients 192.0.2.1/24", "--dns-clients: 192.0.2.1/24 has bits set beyond its length; did you mean 192.0.2.0/24?"},
		{right + " --dns-node-search a..b", `--dns-node-search: "a..b" is no domain name`},
		{right + " --dns-search-completion yes", `--dns-search-completion: "yes" is neither off, count nor on`},
		{right + " --dns-suppress-aaaa=", `--dns-suppress-aaaa: "" is neither off, count nor on`},
		{right + " --dns-client-rate many", `--dns-client-rate: "many" is neither RATE nor RATE:BURST, of queries up to 1000000000`},
		{right + " --dns-log sample:0", `--dns-log: "sample:0" is neither off, errors, sample:N (one in N) nor all`},
		{right + " --upstream 192.0.2.1:0", `--upstream: "192.0.2.1:0" is neither an address nor ADDR:PORT, of which either may have tls:// before it and #NAME behind it, and ZONE= before all`},
	} {
		if _, err := parse(t, tt.args); err == nil || err.Error() != tt.want {
			t.Errorf("%s\ngot  %v\nwant %s", tt.args, err, tt.want)
		}
	}
	_, err := parse(t, "--dns-ip x --pod-cidr y")
	if n := len(strings.Split(fmt.Sprint(err), "\n")); n != 3 {
		t.Errorf("three things are wrong, %d lines say so:\n%v", n, err)
	}
}
