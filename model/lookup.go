// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"net/netip"
	"slices"
)

// DNSPort is where cluster DNS is asked, over UDP and TCP.
const DNSPort = 53

// Packet is the first packet of a connection, as it leaves a pod or a process of this node.
type Packet struct {
	Protocol Protocol
	Src, Dst netip.AddrPort
}

// Action is what becomes of a packet.
type Action uint8

// The actions.
const (
	// Pass leaves the packet alone: it is not for a Service.
	Pass Action = iota
	// Forward replaces the destination by one of the candidates, each equally likely (DNAT).
	Forward
	// Reject answers for the Service: a TCP reset, or ICMP port unreachable for other protocols.
	Reject
	// Local delivers to this node's own socket for the virtual address while there is one, without DNAT or
	// conntrack; when there is none, the candidates are used as with Forward, and none of them means Reject.
	Local
)

// String is the action in a word.
func (a Action) String() string { return [...]string{"pass", "forward", "reject", "local"}[a] }

// Verdict is a decision and the reason for it.
type Verdict struct {
	Action Action
	// Service and Port are the ones addressed; nil and zero if none.
	Service *Service
	Port    Port
	// Candidates are the backends that may be chosen, in order of address.
	Candidates []Backend
	// Why is the reason in words.
	Why string
}

// Lookup decides about a packet. It is the specification of the dataplane.
func (s *Snapshot) Lookup(p Packet) Verdict {
	name, ok := s.VIPs.Get(p.Dst.Addr())
	if !ok {
		return Verdict{Action: Pass, Why: "the destination is no Service's address"}
	}
	svc, _ := s.Services.Get(name)
	i := slices.IndexFunc(svc.Ports, func(q Port) bool { return q.Protocol == p.Protocol && q.Port == p.Dst.Port() })
	if i < 0 {
		return Verdict{Action: Reject, Service: svc, Why: "the Service has no such port"}
	}
	v := Verdict{Action: Forward, Service: svc, Port: svc.Ports[i], Why: "a Service's address and port"}
	v.Candidates = s.Candidates(svc, i, p.Dst.Addr())
	switch {
	case s.IsDNS(p.Dst.Addr(), svc.Ports[i]):
		v.Action, v.Why = Local, "cluster DNS is answered on this node"
	case len(v.Candidates) == 0 && svc.Slices == 0:
		v.Action, v.Why = Reject, "the Service's endpoints are not known yet"
	case len(v.Candidates) == 0 && len(svc.Backends[i]) == 0:
		v.Action, v.Why = Reject, "the Service has no endpoint"
	case len(v.Candidates) == 0:
		v.Action, v.Why = Reject, "none of the Service's endpoints is ready"
	}
	return v
}

// Candidates are the backends that a new connection to port i of a Service may go to, at a virtual address of vip's family: the
// ready ones, or if there are none the terminating ones that still serve (KEP-1669). For cluster DNS, this node's own agent is not
// among them when others are: it is reached by its socket, and the rules only matter when that is closed.
func (s *Snapshot) Candidates(svc *Service, i int, vip netip.Addr) []Backend {
	pick := func(use func(Backend) bool) (out []Backend) {
		for _, b := range svc.Backends[i] {
			if b.Addr.Is4() == vip.Is4() && use(b) {
				out = append(out, b)
			}
		}
		return out
	}
	out := pick(func(b Backend) bool { return b.Ready })
	if len(out) == 0 {
		out = pick(func(b Backend) bool { return b.Serving && b.Terminating })
	}
	if s.IsDNS(vip, svc.Ports[i]) {
		out = slices.DeleteFunc(out, func(b Backend) bool { return b.Node == s.Self })
	}
	return out
}

// IsDNS reports whether a port at a virtual address is cluster DNS's, which this node's agent answers itself.
func (s *Snapshot) IsDNS(vip netip.Addr, p Port) bool {
	return p.Port == DNSPort && p.Protocol != SCTP && slices.Contains(s.DNS, vip)
}

// Masquerade reports whether a packet from src must get this node's own source address on its way to dst (the destination
// after DNAT), and why. Only two cases need it; every other packet keeps its source.
func (s *Snapshot) Masquerade(src, dst netip.Addr) (bool, string) {
	if src == dst {
		return true, "a pod that reaches itself through a Service would answer itself directly"
	}
	self := s.Node()
	if self == nil || !slices.ContainsFunc(self.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(src) }) {
		return false, "the source is not a pod of this node"
	}
	for _, n := range s.Nodes.All() {
		if slices.Contains(n.Addrs, dst) || slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(dst) }) {
			return false, "the destination is inside the cluster and knows the way back"
		}
	}
	return true, "the destination is outside the cluster, where no route leads back to pods"
}
