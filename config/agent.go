// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package config turns an agent's flags into one validated value. It is the only parser of settings: what has passed it is
// right, and every error names the flag and says what would be accepted.
//
// The way in is [AddFlags], and [Flags.Agent] after the flags were parsed.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	mdns "github.com/miekg/dns"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// Agent is the configuration of a node's agent.
type Agent struct {
	// Node is the node's name, as the API server knows it.
	Node string
	// Kubeconfig is a file; empty for the in-cluster configuration.
	Kubeconfig string
	// APIServers are where the API server is reached, HOST:PORT each, the one to prefer first; empty: where the configuration says, or the cluster itself.
	APIServers []string
	// State is the directory for the socket, for address leases and for the state on disk.
	State string
	// Left are the parts of the node's work that other programs do; the pod network is, without a CNIConfDir.
	Left model.Roles
	// CNIConfDir is where the CNI configuration is written once the node can deliver.
	CNIConfDir string
	// CNIBinDir is where the program puts itself as the CNI plugin before it writes the configuration; empty: it is there already.
	CNIBinDir string
	// ClusterDomains have no trailing dots; the first is the one that reverse names lead to and explain asks in.
	ClusterDomains []string
	// DNS are the cluster DNS's virtual addresses, at most one of a family; none: it is left to others.
	DNS []netip.Addr
	// ServiceCIDRs and PodCIDRs are the cluster's ranges, for which the DNS has the reverse zones.
	ServiceCIDRs, PodCIDRs []netip.Prefix
	// Block is what the DNS answers, unless Corefile says it: a CoreDNS Corefile, or a directory that has one.
	Block    dns.Block
	Corefile string
	// NodePortAddrs are the ranges in which addresses of the node serve node ports; empty: all of them but loopback.
	NodePortAddrs []netip.Prefix
	// PassOn has the node send new connections for a pod being ended on to another endpoint of its Service.
	PassOn bool
	// RetryRefused has the node hold a refusal by an endpoint back once, so that the client tries again and another endpoint may be chosen.
	RetryRefused bool
	// Clients are ranges of clients that the DNS answers beside the cluster's pods and nodes.
	Clients []netip.Prefix
	// NodeSearch are the search domains that the kubelet takes from the node's resolv.conf and gives to pods, without trailing dots.
	NodeSearch []string
	// Asking is what the DNS does about who asks. Its Logger is not set.
	Asking client.Settings
	// KeepSource are ranges outside the cluster that pods reach under their own addresses.
	KeepSource []netip.Prefix
	// Healthz is where /healthz and /livez are served, and Metrics where /metrics, /proxyMode and /configz; not valid: nowhere.
	Healthz, Metrics netip.AddrPort
	// Conntrack are the kernel's limits.
	Conntrack Conntrack
	// StartupTaint is the key of the Node's taint that is removed when the node can deliver; empty: none is.
	StartupTaint string
	// Flags are all settings by their flags' names, as they are in force.
	Flags map[string]string
	// Tunnel says which nodes' pods are reached through the tunnel, TunnelPort is its UDP port.
	Tunnel     nodenet.Mode
	TunnelPort uint16
	// FastPath has the node lead TCP from pod to pod, and between pods and Services, past netfilter.
	FastPath bool
	// SocketLB has pods' TCP connections to Services lead to an endpoint when they are made.
	SocketLB bool
}

// Socket is where the agent can be asked.
func (a *Agent) Socket() string { return filepath.Join(a.State, "agent.sock") }

// Door is where another agent asks to take over from this one.
func (a *Agent) Door() string { return filepath.Join(a.State, "door.sock") }

// Leases is the directory of the pods' address leases.
func (a *Agent) Leases() string { return filepath.Join(a.State, "ipam") }

// Checkpoint is the file of the state on disk.
func (a *Agent) Checkpoint() string { return filepath.Join(a.State, "checkpoint") }

// View is how the agent looks at the cluster; what it listens on itself is not in it.
func (a *Agent) View() model.Config {
	return model.Config{
		Self: a.Node, DNS: a.DNS, ServiceCIDRs: a.ServiceCIDRs, PodCIDRs: a.PodCIDRs, NodePortAddrs: a.NodePortAddrs,
		KeepSource: a.KeepSource, Left: a.Left, PassOn: a.PassOn, RetryRefused: a.RetryRefused,
	}
}

// DefaultState is the directory of an agent that is given none.
const DefaultState = "/var/lib/fairlead/agent"

// Flags are the settings as the user wrote them.
type Flags struct {
	node, kubeconfig, state, cniConfDir  string
	cniBinDir                            string
	domains                              []string
	dns, serviceCIDR, podCIDR, upstreams []string
	nodePortAddrs                        []string
	passOn, retryRefused                 bool
	proxy                                bool
	keepSource                           []string
	healthz, metrics, startupTaint       string
	conntrack                            Conntrack
	set                                  *pflag.FlagSet
	dnsClients, nodeSearch               []string
	completion, aaaa, clientRate, dnsLog string
	dnsPods, corefile                    string
	tunnel                               string
	tunnelPort                           uint16
	fastPath, socketLB                   bool
	apiServers                           []string
}

// AddFlags registers the agent's flags.
func AddFlags(fs *pflag.FlagSet) *Flags {
	f := &Flags{set: fs}
	fs.BoolVar(&f.proxy, "proxy", true, "carry the traffic of Services; =false leaves that to another program, such as kube-proxy")
	fs.StringVar(&f.node, "node", "", "name of this node, as the API server knows it (required)")
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig `file`; without it, the in-cluster configuration")
	fs.StringSliceVar(&f.apiServers, "api-server", nil, "`HOST:PORT` of API servers, the one to prefer first; credentials are those of the kubeconfig or the cluster's (default: what the configuration says, and the endpoints of Service default/kubernetes)")
	fs.StringVar(&f.state, "state", DefaultState, "`directory` for the agent's socket, address leases and the state on disk")
	fs.StringVar(&f.cniConfDir, "cni-conf-dir", "", "`directory` to write the CNI configuration to; without it, the pod network is left to others")
	fs.StringVar(&f.cniBinDir, "cni-bin-dir", "", "`directory` to put this program into as the CNI plugin, where it is not there already; goes with --cni-conf-dir")
	fs.StringSliceVar(&f.domains, "cluster-domain", []string{"cluster.local"}, "DNS `domains` of the cluster; reverse names lead to the first")
	fs.StringSliceVar(&f.dns, "dns-ip", nil, "cluster DNS's virtual `addresses`, one of each family; without them, the cluster DNS is left to others")
	fs.StringSliceVar(&f.serviceCIDR, "service-cidr", nil, "`ranges` of Services' virtual addresses, one of each family")
	fs.StringSliceVar(&f.podCIDR, "pod-cidr", nil, "`ranges` of all pods' addresses, one of each family")
	fs.StringSliceVar(&f.keepSource, "non-masquerade-cidr", nil, "`ranges` outside the cluster that pods reach under their own addresses; 0.0.0.0/0 and ::/0 for all")
	fs.StringSliceVar(&f.upstreams, "upstream", nil, "DNS `servers` for names outside the cluster, the one to prefer first: ADDR or ADDR:PORT, tls://ADDR#NAME for DNS over TLS, ZONE=ADDR for the names below a zone")
	fs.StringVar(&f.dnsPods, "dns-pods", "disabled", "names of pods by their addresses: disabled, verified (of pods known here), insecure (of any address)")
	fs.StringVar(&f.corefile, "dns-corefile", "", "CoreDNS Corefile, or `directory` that has one, to take what the DNS answers from, instead of --cluster-domain, --upstream and --dns-pods")
	fs.StringSliceVar(&f.nodePortAddrs, "nodeport-addresses", nil, "`ranges` in which addresses of this node serve node ports (default: all but loopback)")
	fs.BoolVar(&f.passOn, "pass-on-terminating", true, "send new connections that still arrive for a pod being ended on to another endpoint of its Service")
	fs.BoolVar(&f.retryRefused, "retry-refused", true, "hold back once that an endpoint refuses a connection to its Service: a second later the client tries again, and another endpoint may be chosen")
	fs.StringVar(&f.healthz, healthzFlag, "0.0.0.0:10256", "`ADDR:PORT` of /healthz and /livez; empty for none, as by default with --proxy=false")
	fs.StringVar(&f.metrics, metricsFlag, "127.0.0.1:10249", "`ADDR:PORT` of /metrics, /proxyMode and /configz; empty for none, as by default with --proxy=false")
	fs.StringVar(&f.startupTaint, "startup-taint", "fairlead.io/agent-not-ready", "`key` of the Node's taint to remove when this node can deliver; empty for none")
	f.conntrack.addFlags(fs)
	fs.StringVar(&f.tunnel, "tunnel", "auto", "which nodes' pods are reached through a VXLAN tunnel: auto (of nodes that share no link with this one), always, never")
	fs.Uint16Var(&f.tunnelPort, "tunnel-port", nodenet.DefaultPort, "UDP `port` of the tunnel, the same on all nodes")
	fs.BoolVar(&f.fastPath, "pod-fast-path", false, "lead TCP from pod to pod, and between pods and Services, past netfilter, by eBPF, and answer pods' questions to the DNS in the kernel: no program's rules see it any more, those of network policies neither; needs Linux 6.6")
	fs.BoolVar(&f.socketLB, "pod-socket-lb", false, "lead pods' TCP connections to ClusterIPs to an endpoint when they are made, at connect(), by eBPF, so that no packet is translated: what looks at the packets that leave a pod sees the endpoint and not the Service; needs Linux 5.14 with cgroup v2")
	fs.StringSliceVar(&f.dnsClients, "dns-clients", nil, "`ranges` of clients that the DNS answers beside the cluster's pods and nodes")
	fs.StringVar(&f.completion, "dns-search-completion", "count", "go through a pod's search `domains` on the server: off, count (what it would spare), on")
	fs.StringSliceVar(&f.nodeSearch, "dns-node-search", nil, "search `domains` of the node's resolv.conf, which the kubelet gives to pods too")
	fs.StringVar(&f.aaaa, "dns-suppress-aaaa", "count", "answer pods without IPv6 at once that names outside the cluster have none: off, count (what it would spare), on")
	fs.StringVar(&f.clientRate, "dns-client-rate", "0", "DNS queries a second that a pod may send, as `RATE` or RATE:BURST; 0 for no limit")
	fs.StringVar(&f.dnsLog, "dns-log", "off", "which DNS `queries` are logged: off, errors, sample:N (one in N), all")
	return f
}

// Agent validates the settings. Its error holds everything that is wrong, a line each.
func (f *Flags) Agent() (*Agent, error) {
	a := &Agent{Node: f.node, Kubeconfig: f.kubeconfig, CNIConfDir: f.cniConfDir, StartupTaint: f.startupTaint, Flags: map[string]string{}}
	f.set.VisitAll(func(flag *pflag.Flag) { a.Flags[flag.Name] = flag.Value.String() })
	var errs []error
	fail := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	if f.node == "" {
		fail("node", "the node's name is required")
	}
	for _, s := range f.apiServers {
		host, port, err := net.SplitHostPort(s)
		if n, wrong := strconv.ParseUint(port, 10, 16); err != nil || host == "" || strings.ContainsAny(host, "/@ ") || wrong != nil || n == 0 {
			fail("api-server", "%q is not HOST:PORT, like 192.0.2.1:6443 or [2001:db8::1]:6443", s)
			continue
		}
		a.APIServers = append(a.APIServers, s)
	}
	if a.CNIBinDir = f.cniBinDir; a.CNIBinDir != "" && a.CNIConfDir == "" {
		fail("cni-bin-dir", "a plugin needs a configuration: give --cni-conf-dir too")
	}
	if len(f.domains) == 0 {
		fail("cluster-domain", "the cluster's domain is required")
	}
	for _, s := range f.domains {
		domain := strings.TrimSuffix(s, ".")
		if _, ok := mdns.IsDomainName(domain); !ok || domain == "" {
			fail("cluster-domain", "%q is no domain name", s)
		}
		a.ClusterDomains = append(a.ClusterDomains, domain)
	}
	var err error
	if f.state == "" {
		fail("state", "a directory is required")
	}
	if a.State, err = filepath.Abs(f.state); err != nil {
		fail("state", "%v", err)
	}
	for _, s := range f.dns {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			fail("dns-ip", "%q is no IP address", s)
			continue
		}
		a.DNS = append(a.DNS, addr.Unmap())
	}
	if len(a.DNS) > 2 || len(a.DNS) == 2 && a.DNS[0].Is4() == a.DNS[1].Is4() {
		fail("dns-ip", "at most one address of each family")
	}
	a.ServiceCIDRs = prefixes(f.serviceCIDR, "service-cidr", fail)
	a.PodCIDRs = prefixes(f.podCIDR, "pod-cidr", fail)
	a.Block, a.Corefile = f.block(a, fail), f.corefile
	if f.corefile != "" && len(f.dns) == 0 {
		fail("dns-corefile", "without --dns-ip the cluster DNS is left to others")
	}
	if len(f.upstreams) > 0 && len(f.dns) == 0 {
		fail("upstream", "without --dns-ip the cluster DNS is left to others")
	}
	if f.corefile != "" && len(f.upstreams) > 0 {
		fail("upstream", "the Corefile of --dns-corefile says where names are forwarded: leave one of the two out")
	}
	if f.corefile != "" && f.set.Changed("dns-pods") {
		fail("dns-pods", "the Corefile of --dns-corefile says which names pods have: leave one of the two out")
	}
	a.NodePortAddrs = ranges(f.nodePortAddrs, "nodeport-addresses", fail)
	f.asking(a, fail)
	var ok bool
	if a.Tunnel, ok = nodenet.ParseMode(f.tunnel); !ok {
		fail("tunnel", "%q is neither auto, always nor never", f.tunnel)
	}
	if a.TunnelPort = f.tunnelPort; f.tunnelPort == 0 {
		fail("tunnel-port", "a port from 1 to 65535 is required")
	}
	a.KeepSource = ranges(f.keepSource, "non-masquerade-cidr", fail)
	if !f.proxy {
		a.Left |= model.Proxy
	}
	if f.cniConfDir == "" {
		a.Left |= model.Network
	}
	if a.Left == model.Proxy|model.Network && len(f.dns) == 0 {
		fail("proxy", "with the service proxy, the cluster DNS and the pod network all left to others there is nothing to do: give --dns-ip, --cni-conf-dir or --proxy")
	}
	if a.FastPath = f.fastPath; f.fastPath && a.Left.Has(model.Network) {
		fail("pod-fast-path", "the pod network is left to others: it goes with --cni-conf-dir")
	}
	if a.SocketLB = f.socketLB; f.socketLB && a.Left != 0 {
		fail("pod-socket-lb", "it is for a node that carries the traffic of Services and has the pod network: it goes with --proxy and --cni-conf-dir")
	}
	a.PassOn, a.RetryRefused = f.passOn, f.retryRefused
	a.Healthz, a.Metrics = f.address(healthzFlag, f.healthz, fail), f.address(metricsFlag, f.metrics, fail)
	a.Conntrack = f.conntrack.check(fail)
	if f.startupTaint != "" && len(validation.IsQualifiedName(f.startupTaint)) > 0 {
		fail("startup-taint", "%q is no taint's key, like example.com/name", f.startupTaint)
	}
	return a, errors.Join(errs...)
}

const (
	healthzFlag = "healthz-bind-address"
	metricsFlag = "metrics-bind-address"
)

// address is an address of the service proxy. What another program does as service proxy, it serves at the same ports.
func (f *Flags) address(flag, value string, fail func(flag, format string, args ...any)) netip.AddrPort {
	if !f.proxy && !f.set.Changed(flag) || value == "" {
		return netip.AddrPort{}
	}
	a, err := netip.ParseAddrPort(value)
	if err != nil {
		fail(flag, "%q is not ADDR:PORT", value)
	}
	return a
}

// prefixes are ranges of which there is one of each family at most.
func prefixes(in []string, flag string, fail func(flag, format string, args ...any)) []netip.Prefix {
	out := ranges(in, flag, fail)
	if len(out) > 2 || len(out) == 2 && out[0].Addr().Is4() == out[1].Addr().Is4() {
		fail(flag, "at most one range of each family")
	}
	return out
}

func ranges(in []string, flag string, fail func(flag, format string, args ...any)) (out []netip.Prefix) {
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			fail(flag, "%q is no range like 10.96.0.0/16", s)
		case p != p.Masked():
			fail(flag, "%s has bits set beyond its length; did you mean %s?", s, p.Masked())
		default:
			out = append(out, p)
		}
	}
	return out
}
