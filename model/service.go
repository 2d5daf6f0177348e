// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"net/netip"
	"strconv"
	"time"
)

// Name is the namespace and the name of an object.
type Name struct{ Namespace, Name string }

// String is "namespace/name", the way users write it.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders by namespace, then by name.
func (n Name) Compare(o Name) int {
	return cmp.Or(cmp.Compare(n.Namespace, o.Namespace), cmp.Compare(n.Name, o.Name))
}

// Protocol is a transport protocol by its IANA number.
type Protocol uint8

// The protocols a Service port may have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String is the protocol's name as Kubernetes writes it: "TCP".
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return strconv.Itoa(int(p))
}

// ParseProtocol reads a protocol as Kubernetes writes it; the empty string is TCP, as in the API.
func ParseProtocol(s string) (Protocol, bool) {
	switch s {
	case "TCP", "":
		return TCP, true
	case "UDP":
		return UDP, true
	case "SCTP":
		return SCTP, true
	}
	return 0, false
}

// ServiceType says by what means a Service is reached.
type ServiceType uint8

// The types of Service.
const (
	// ClusterIP is reached at its virtual addresses.
	ClusterIP ServiceType = iota
	// Headless has no address of its own: its name stands for its endpoints' addresses.
	Headless
	// ExternalName is an alias (CNAME) for a name outside the cluster.
	ExternalName
)

// String is the type as the dump writes it.
func (t ServiceType) String() string { return [...]string{"ClusterIP", "Headless", "ExternalName"}[t] }

// ServiceSpec is what the Service object itself says.
type ServiceSpec struct {
	Name Name
	Type ServiceType
	// ClusterIPs are the virtual addresses, at most one of a family; empty unless Type is ClusterIP.
	ClusterIPs []netip.Addr
	// Unproxied says that somebody else carries the Service's traffic (label service.kubernetes.io/service-proxy-name or
	// service.kubernetes.io/headless): its names are answered, its packets left alone.
	Unproxied bool
	// LocalOnly is internalTrafficPolicy Local: clients at the ClusterIPs reach endpoints of their own node only (KEP-2086).
	LocalOnly bool
	// PublishNotReady says that endpoints count as ready whatever state their pods are in.
	PublishNotReady bool
	// Affinity is how long after its last connection a client still gets the same endpoint (sessionAffinity ClientIP); zero: not at all.
	Affinity time.Duration
	// Exposure is how the Service is reached from outside the cluster; nil if it is not.
	Exposure *Exposure
	// ExternalName is the target of the alias, without trailing dot; empty unless Type is ExternalName.
	ExternalName string
	// Ports are in the object's order. A headless Service may have none.
	Ports []Port
	// Arrived is when this node first heard of the Service; zero for one that was there when the node began.
	Arrived time.Time
}

// Exposure is what the Service object says about clients outside the cluster.
type Exposure struct {
	// LocalOnly is externalTrafficPolicy Local: clients outside the cluster reach endpoints of the node only that they came to, with
	// their own address.
	LocalOnly bool
	// Balancers are addresses of load balancers that deliver packets to the nodes unchanged (ipMode VIP); ExternalIPs are those of
	// spec.externalIPs.
	Balancers, ExternalIPs []netip.Addr
	// SourceRanges are the clients that may use the Balancers' addresses; empty: everyone. It may name other families than an address has.
	SourceRanges []netip.Prefix
	// HealthPort is the healthCheckNodePort; zero if there is none.
	HealthPort uint16
}

// Port is one port of a Service, as clients address it.
type Port struct {
	// Name is a DNS label; it may be empty if the Service has one port only.
	Name     string
	Protocol Protocol
	// Port is the number that clients use, 1 to 65535.
	Port uint16
	// NodePort is the number at which every node answers for the Service; zero if there is none.
	NodePort uint16
}

// Slice is one EndpointSlice: some of the endpoints of one Service, all in one address family and
// with the same ports.
type Slice struct {
	Name Name
	// Service is the Service's name, in the slice's namespace (label kubernetes.io/service-name).
	Service string
	// Ports maps the Service's ports, by their name and protocol, to the pods' ports.
	Ports     []Port
	Endpoints []Endpoint
}

// Endpoint is an address behind a Service and its conditions (KEP-1672).
type Endpoint struct {
	Addr netip.Addr
	// Hostname, if set, gives the endpoint a name of its own below the Service's.
	Hostname string
	// Node and Zone are where the endpoint runs; empty if not known.
	Node, Zone string
	// Pod is the pod behind the address; zero if it is not a pod.
	Pod Name
	// Ready endpoints get new connections. Serving ones could; they are not ready only because they are Terminating.
	Ready, Serving, Terminating bool
	// Leaving says that this node has seen the pod being told to end: it is a pod of this node, with an address of its own, and Terminating. Once it has ended,
	// it is not Serving either.
	Leaving bool
	// Hints say for whom the endpoint is meant; nil if nobody says.
	Hints *Hints
}

// Hints are an EndpointSlice's hints for one endpoint: clients of these nodes (KEP-3015) and zones (KEP-2433, KEP-4444) should use it.
type Hints struct{ Nodes, Zones []string }

// State is the endpoint's condition in one word.
func (e *Endpoint) State() string {
	switch {
	case e.Ready:
		return "ready"
	case e.Terminating && e.Serving:
		return "terminating, serving"
	case e.Terminating:
		return "terminating"
	case e.Serving:
		return "serving"
	}
	return "not ready"
}

// Service is a Service together with the endpoints that its slices give it.
type Service struct {
	ServiceSpec
	// Pod is the pod whose host ports this stands for; nil for what is a Service in the API.
	Pod *Pod
	// Slices is the number of EndpointSlices known of it. Services and slices are separate watches: at zero,
	// the endpoints are not known yet rather than known to be none.
	Slices int
	// Endpoints is every address of every slice once, in order of address.
	Endpoints []Endpoint
	// Backends[i] are the endpoints behind Ports[i], in order of address and port.
	Backends [][]Backend
}

// Backend is an endpoint with the port that one port of the Service leads to.
type Backend struct {
	*Endpoint
	Port uint16
}

// AddrPort is where a connection to the backend goes.
func (b Backend) AddrPort() netip.AddrPort { return netip.AddrPortFrom(b.Addr, b.Port) }

// Node is a node of the cluster.
type Node struct {
	Name string
	// Addrs are its internal addresses, the first of each family being the one that routes use.
	Addrs []netip.Addr
	// PodCIDRs are the ranges its pods' addresses come from, at most one of a family.
	PodCIDRs []netip.Prefix
	// Zone is the label topology.kubernetes.io/zone; empty if there is none.
	Zone  string
	Ready bool
	// Leaving says that the node is about to be removed: load balancers should stop sending to it.
	Leaving bool
}

// Addr is the node's address of the same family as like; zero if it has none.
func (n *Node) Addr(like netip.Addr) netip.Addr {
	for _, a := range n.Addrs {
		if a.Is4() == like.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// Pod is a pod of this node.
type Pod struct {
	Name  Name
	Addrs []netip.Addr
	// Hostname and Subdomain are the pod's name under a headless Service; empty if it has none.
	Hostname, Subdomain string
	// Terminating says that the pod has been told to end.
	Terminating bool
	// HostNetwork says that the pod has no network of its own: its addresses are the node's, and other pods' too.
	HostNetwork bool
	// HostPorts are the ports of its node that the pod asks for; a pod of the node's network has none.
	HostPorts []HostPort
	// Created is when the API server took the pod in.
	Created time.Time
	// Resolver is what the pod's spec says about its resolver; nil: the DNS policy ClusterFirst and nothing else, as most have it.
	Resolver *Resolver
}

// Resolver is what a pod's spec says about its resolver (dnsPolicy and dnsConfig), as far as it decides which names are asked for.
type Resolver struct {
	Policy DNSPolicy
	// Searches are search domains after those of the policy, without trailing dots.
	Searches []string
	// Ndots is the option ndots, 0 to 15; negative: the spec does not give it.
	Ndots int
}

// DNSPolicy says where a pod's resolver gets its servers and first search domains from. A pod of the node's network that is ClusterFirst by
// its spec is DNSDefault in effect, and here.
type DNSPolicy uint8

// The policies.
const (
	// DNSClusterFirst is the cluster's DNS and the cluster's search domains.
	DNSClusterFirst DNSPolicy = iota
	// DNSDefault is what the node itself has.
	DNSDefault
	// DNSNone is nothing: only what dnsConfig gives.
	DNSNone
)

// String is the policy's name in the API.
func (p DNSPolicy) String() string { return [...]string{"ClusterFirst", "Default", "None"}[p] }
