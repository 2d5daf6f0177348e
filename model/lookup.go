// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// DNSPort is where cluster DNS is asked, over UDP and TCP.
const DNSPort = 53

// Packet is the first packet of a connection, as this node gets to see it.
type Packet struct {
	Protocol Protocol
	Src, Dst netip.AddrPort
	// FromNode says that a process of this node sends it (one on the node's own network); ToNode that Dst is one of the node's own addresses.
	FromNode, ToNode bool
}

// Action is what becomes of a packet.
type Action uint8

// The actions.
const (
	// Pass leaves the packet alone: it is not for a Service.
	Pass Action = iota
	// Forward replaces the destination by one of the candidates, each equally likely (DNAT), or by the client's last one if the Service has
	// affinity and that is still a candidate.
	Forward
	// Reject answers for the Service: a TCP reset, or ICMP port unreachable for other protocols.
	Reject
	// Local delivers to this node's own socket for the virtual address while there is one, without DNAT or
	// conntrack; when there is none, the candidates are used as with Forward, and none of them means Reject. Of a Service that is Unproxied there
	// are none: the packet is left to its proxy.
	Local
	// Drop gives no answer. Load balancers know by it that they should ask another node, and strangers do not learn that anybody is here.
	Drop
)

// String is the action in a word.
func (a Action) String() string {
	return [...]string{"pass", "forward", "reject", "local", "drop"}[a]
}

// Verdict is a decision and the reason for it.
type Verdict struct {
	Action Action
	// Service and Port are the ones addressed; nil and zero if none.
	Service *Service
	Port    Port
	// Kind is what the destination is to the Service; it says nothing without a Service.
	Kind Kind
	// Frontend is the one that the packet meets; zero without a Service, or if that has no such port.
	Frontend Frontend
	// Candidates are the backends that may be chosen, in order of address.
	Candidates []Backend
	// Affinity is how long the client keeps its endpoint; zero: no longer than the connection.
	Affinity time.Duration
	// Why is the reason in words.
	Why string
}

// Lookup decides about a packet. It is the specification of the dataplane.
func (s *Snapshot) Lookup(p Packet) Verdict {
	dst := Frontend{Addr: p.Dst.Addr(), Protocol: p.Protocol, Port: p.Dst.Port()}
	if w, ok := s.Way(dst); ok {
		return s.follow(dst, w, p)
	}
	if name, ok := s.VIPs.Get(dst.Addr); ok {
		svc, _ := s.Services.Get(name)
		return Verdict{Action: Reject, Service: svc, Why: "the Service has no such port"}
	}
	if name, ok := s.Foreign.Get(dst.Addr); ok {
		svc, _ := s.Services.Get(name)
		for _, p := range svc.Ports {
			if p.Port == dst.Port && p.Protocol == dst.Protocol && s.IsDNS(dst.Addr, p) {
				return Verdict{Action: Local, Service: svc, Port: p, Kind: AtClusterIP, Why: "cluster DNS is answered on this node"}
			}
		}
		return Verdict{Action: Pass, Why: "somebody else carries the traffic of the Service that has this address"}
	}
	if s.InServiceCIDRs(dst.Addr) {
		return Verdict{Action: Reject, Why: "no Service has this address"}
	}
	// The kernel lets no packet leave from ::1, so that a process that sends from there would wait in vain.
	if p.ToNode && (p.FromNode || !dst.Addr.IsLoopback()) && p.Src.Addr() != netip.IPv6Loopback() {
		if f, w, ok := s.AtNode(dst); ok {
			return s.follow(f, w, p)
		}
	}
	return Verdict{Action: Pass, Why: "the destination is no Service's address"}
}

// follow decides about a packet at a frontend.
func (s *Snapshot) follow(f Frontend, w Way, p Packet) Verdict {
	v := Verdict{Action: Forward, Service: w.Service, Port: w.Service.Ports[w.Port], Kind: w.Kind, Frontend: f, Affinity: w.Service.Affinity}
	if w.Guarded && !within(p.Src.Addr(), w.Ranges) {
		v.Action, v.Why = Drop, "the client is in none of the Service's source ranges"
		return v
	}
	if w.Kind == AtLeaving && p.FromNode {
		return Verdict{Action: Pass, Why: "this node's own processes, the pod's probes among them, reach a pod that is ending"}
	}
	scope := w.Outside
	if p.FromNode || s.isPod(p.Src.Addr()) {
		scope = w.Inside
	}
	c := s.Choose(w.Service, w.Port, p.Dst.Addr().Is4(), scope)
	v.Action, v.Candidates, v.Why = c.Action, c.Candidates, c.Why
	switch {
	case w.Kind == AtClusterIP && s.IsDNS(p.Dst.Addr(), v.Port):
		v.Action, v.Why = Local, "cluster DNS is answered on this node"
	case w.Kind == AtLeaving && len(s.Onward(f, w)) == 0:
		return Verdict{Action: Pass, Why: "the pod is ending or gone, and its Service has no other endpoint, or its Services have different ones"}
	case w.Kind == AtLeaving:
		v.Why = "the pod is ending or gone; its Service's other endpoints take its new connections"
	case w.Kind == AtHostPort:
		v.Why = "a host port of pod " + w.Service.Pod.Name.String()
	case v.Action == Forward:
		v.Why = fmt.Sprintf("a Service's %s and port", w.Kind)
	}
	return v
}

func isCandidate(candidates []Backend, a netip.AddrPort) bool {
	return slices.ContainsFunc(candidates, func(b Backend) bool { return b.AddrPort() == a })
}

// InServiceCIDRs reports whether an address is in the ranges of virtual addresses.
func (s *Snapshot) InServiceCIDRs(a netip.Addr) bool {
	return within(a, s.ServiceCIDRs)
}

// ServesNodePorts reports whether node ports are served at an address of this node. Those of loopback are if a range of loopback is asked
// for; never ::1, from which the kernel lets no packet leave.
func (s *Snapshot) ServesNodePorts(a netip.Addr) bool {
	if a.IsLoopback() && !(a.Is4() && s.LoopbackNodePorts()) {
		return false
	}
	return len(s.NodePortAddrs) == 0 || within(a, s.NodePortAddrs)
}

// LoopbackNodePorts reports whether node ports are asked for at addresses of loopback, for this node's own clients.
func (s *Snapshot) LoopbackNodePorts() bool {
	return slices.ContainsFunc(s.NodePortAddrs, func(p netip.Prefix) bool { return p.Addr().Is4() && p.Addr().IsLoopback() })
}

// IsDNS reports whether a port at a virtual address is cluster DNS's, which this node's agent answers itself.
func (s *Snapshot) IsDNS(vip netip.Addr, p Port) bool {
	return p.Port == DNSPort && p.Protocol != SCTP && slices.Contains(s.DNS, vip)
}

// Masquerade reports whether a packet must get this node's own source address on its way to a destination (the endpoint's, if it was for
// a Service), and why. Every other packet keeps its source.
func (s *Snapshot) Masquerade(p Packet, to netip.Addr) (bool, string) {
	src, translated := p.Src.Addr(), to != p.Dst.Addr()
	switch {
	case src == to && translated && !p.FromNode:
		return true, "a pod that reaches itself through a Service would answer itself directly"
	case s.isOwnPod(src) && !p.FromNode:
		if s.isInside(to) {
			return false, "the destination is inside the cluster and knows the way back"
		}
		if s.Left.Has(Network) {
			return false, "what pods send out of the cluster is their network's to change"
		}
		if within(to, s.KeepSource) {
			return false, "pods keep their addresses towards that range, as it was asked for"
		}
		return true, "the destination is outside the cluster, where no route leads back to pods"
	case !translated:
		return false, "the destination is the one that the sender knows"
	case p.FromNode:
		if s.isInside(src) {
			return false, "the answer finds this node by itself"
		}
		return true, "the sender's address is known on this node only"
	case s.isOwnPod(to) || s.isOwnAddr(to):
		return false, "the endpoint is on this node, where the answer passes anyway"
	}
	return true, "the answer must come back through this node, which knows the connection"
}

// isInside reports whether an address is a pod's or a node's of the cluster.
func (s *Snapshot) isInside(a netip.Addr) bool {
	for _, n := range s.Nodes.All() {
		if slices.Contains(n.Addrs, a) {
			return true
		}
	}
	return s.isPod(a)
}

func (s *Snapshot) isOwnAddr(a netip.Addr) bool {
	self := s.Node()
	return self != nil && slices.Contains(self.Addrs, a)
}
