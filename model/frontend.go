// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
)

// Frontend is where a Service's clients send to, or those of a pod's host port.
type Frontend struct {
	// Addr is the destination address. Unspecified (0.0.0.0 or ::) stands for every address of this node: for a node port those that serve node
	// ports, for a host port all.
	Addr     netip.Addr
	Protocol Protocol
	Port     uint16
	// Host says that it is a pod's host port: it counts only while Addr is this node's own.
	Host bool
}

// Compare orders by address, then protocol, then port, host ports last.
func (f Frontend) Compare(o Frontend) int {
	return cmp.Or(f.Addr.Compare(o.Addr), cmp.Compare(f.Protocol, o.Protocol), cmp.Compare(f.Port, o.Port), btoi(f.Host)-btoi(o.Host))
}

// String is "10.96.0.1:80/TCP", and "nodeport4:30080/TCP" for every address of this node. For a host port it is "hostport:172.30.0.11:80/TCP" or
// "hostport4:80/TCP".
func (f Frontend) String() string {
	port := strconv.Itoa(int(f.Port)) + "/" + f.Protocol.String()
	word := "nodeport"
	if f.Host {
		word = "hostport"
	}
	switch {
	case f.Addr.IsUnspecified() && f.Addr.Is4():
		return word + "4:" + port
	case f.Addr.IsUnspecified():
		return word + "6:" + port
	}
	at := netip.AddrPortFrom(f.Addr, f.Port).String() + "/" + f.Protocol.String()
	if f.Host {
		return word + ":" + at
	}
	return at
}

// IsNodePort reports whether the frontend is a node port, at every address of this node that serves them.
func (f Frontend) IsNodePort() bool { return f.Addr.IsUnspecified() && !f.Host }

// Kind is what a frontend is to its Service. When Services dispute a frontend, the lower kind has it: nobody takes over a ClusterIP by
// calling it an external address.
type Kind uint8

// The kinds of frontend.
const (
	// AtClusterIP is a virtual address, for clients inside the cluster.
	AtClusterIP Kind = iota
	// AtBalancer is a load balancer's address.
	AtBalancer
	// AtExternalIP is an address of spec.externalIPs.
	AtExternalIP
	// AtNodePort is a node port.
	AtNodePort
	// AtLeaving is the address of an endpoint itself, whose pod runs on this node and has been told to end, or has run here and is gone: nodes that do not
	// know yet still send here.
	AtLeaving
	// AtHostPort is a port of this node that a pod of this node asks for.
	AtHostPort
)

// String is the kind in words.
func (k Kind) String() string {
	return [...]string{"ClusterIP", "load balancer", "external IP", "node port", "leaving endpoint", "host port"}[k]
}

// frontends yields every frontend that the Service claims, with its kind and the index of its port. One may come several times. Addresses of
// a family in which the Service has no ClusterIP are not the Service's, and of ports with the same number and protocol only the first is.
func (svc *Service) frontends(c *Config, yield func(Frontend, Kind, int)) {
	if svc == nil || svc.Type != ClusterIP || svc.Unproxied {
		return
	}
	if svc.Pod != nil {
		svc.hostFrontends(c, yield)
		return
	}
	var has [2]bool
	for _, a := range svc.ClusterIPs {
		has[btoi(a.Is4())] = true
	}
	for i, p := range svc.Ports {
		if slices.ContainsFunc(svc.Ports[:i], func(q Port) bool { return q.Port == p.Port && q.Protocol == p.Protocol }) {
			continue // no validator lets a Service have a port twice
		}
		at := func(addrs []netip.Addr, k Kind) {
			for _, a := range addrs {
				if p.Port != 0 && !a.IsUnspecified() && has[btoi(a.Is4())] {
					yield(Frontend{Addr: a, Protocol: p.Protocol, Port: p.Port}, k, i)
				}
			}
		}
		at(svc.ClusterIPs, AtClusterIP)
		if x := svc.Exposure; x != nil {
			at(x.Balancers, AtBalancer)
			at(x.ExternalIPs, AtExternalIP)
		}
		if p.NodePort != 0 {
			for _, a := range svc.ClusterIPs {
				yield(Frontend{Addr: Unspecified(a), Protocol: p.Protocol, Port: p.NodePort}, AtNodePort, i)
			}
		}
		if !c.PassOn {
			continue
		}
		for _, b := range svc.Backends[i] {
			if b.Leaving && has[btoi(b.Addr.Is4())] {
				yield(Frontend{Addr: b.Addr, Protocol: p.Protocol, Port: b.Port}, AtLeaving, i)
			}
		}
	}
}

// Unspecified is the unspecified address of a's family, which stands for all of this node's in a Frontend.
func Unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// Way is what happens at a frontend.
type Way struct {
	Service *Service
	// Port is the index of the Service's port.
	Port int
	Kind Kind
	// Ranges are the clients that may pass, of the frontend's family; everyone else is dropped. Guarded says that there are ranges at all.
	Ranges  []netip.Prefix
	Guarded bool
	// Inside and Outside are the scopes for clients inside the cluster and outside.
	Inside, Outside Scope
}

// Scope says which of a Service's endpoints may be chosen.
type Scope uint8

// The scopes.
const (
	// Everywhere is the traffic policy Cluster: all endpoints, or those that hints recommend.
	Everywhere Scope = iota
	// Here is the traffic policy Local: endpoints of this node only.
	Here
)

// Way is what happens at a frontend; ok is false if it is nobody's.
func (s *Snapshot) Way(f Frontend) (w Way, ok bool) {
	name, ok := s.Frontends.Get(f)
	if !ok || s.isChecked(f) {
		return w, false
	}
	svc, _ := s.Owner(name)
	if w, ok = svc.claim(f, &s.Config); ok {
		w.apply(f)
	}
	return w, ok
}

// claim is how a Service claims a frontend, before its policies: the first claim of the lowest kind counts.
func (svc *Service) claim(f Frontend, c *Config) (w Way, ok bool) {
	svc.frontends(c, func(g Frontend, k Kind, port int) {
		if g == f && (!ok || k < w.Kind) {
			w, ok = Way{Service: svc, Port: port, Kind: k}, true
		}
	})
	return w, ok
}

// Claims yields every frontend that a Service would like to have, some several times, and some of which others have.
func (s *Snapshot) Claims(svc *Service, yield func(Frontend)) {
	svc.frontends(&s.Config, func(f Frontend, _ Kind, _ int) { yield(f) })
}

// Ways yields the frontends that a Service has, each once, and what happens there; not those that another Service has instead.
func (s *Snapshot) Ways(svc *Service, yield func(Frontend, Way)) {
	type claim struct {
		at   Frontend
		kind Kind
		port int
	}
	var few [16]claim
	claims := few[:0]
	svc.frontends(&s.Config, func(f Frontend, k Kind, port int) { claims = append(claims, claim{f, k, port}) })
	if len(claims) > 1 { // the first claim of the lowest kind counts
		slices.SortStableFunc(claims, func(a, b claim) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.kind, b.kind)) })
		claims = slices.CompactFunc(claims, func(a, b claim) bool { return a.at == b.at })
	}
	for _, c := range claims {
		if owner, _ := s.Frontends.Get(c.at); owner == svc.Name && !s.isChecked(c.at) {
			w := Way{Service: svc, Port: c.port, Kind: c.kind}
			w.apply(c.at)
			yield(c.at, w)
		}
	}
}

// apply fills in what the Service's policies say about a frontend.
func (w *Way) apply(f Frontend) {
	x := w.Service.Exposure
	switch w.Kind {
	case AtClusterIP:
		if w.Service.LocalOnly {
			w.Inside, w.Outside = Here, Here
		}
	case AtBalancer, AtExternalIP, AtNodePort:
		if x != nil && x.LocalOnly {
			w.Outside = Here
		}
	}
	if w.Kind != AtBalancer || len(x.SourceRanges) == 0 {
		return
	}
	w.Guarded = true
	for _, p := range x.SourceRanges {
		if p.Addr().Is4() == f.Addr.Is4() {
			w.Ranges = append(w.Ranges, p)
		}
	}
}

// Choice is what becomes of the clients of a scope.
type Choice struct {
	// Action is Forward, Reject or Drop.
	Action Action
	// Candidates are the endpoints of which one is chosen, in order of address.
	Candidates []Backend
	Why        string
}

// Choose is the choice among a Service's endpoints of an address family, for one of its ports and a scope.
func (s *Snapshot) Choose(svc *Service, port int, is4 bool, scope Scope) Choice {
	all := s.everywhere(svc, port, is4)
	c := Choice{Action: Forward, Candidates: all}
	if scope == Here {
		c.Candidates = s.here(svc, port, is4)
	}
	switch {
	case len(c.Candidates) > 0:
	case len(all) > 0:
		c.Action, c.Why = Drop, "the Service's traffic policy is Local, and none of its endpoints here is ready"
	case svc.Slices == 0:
		c.Action, c.Why = Reject, "the Service's endpoints are not known yet"
	case len(svc.Backends[port]) == 0:
		c.Action, c.Why = Reject, "the Service has no endpoint"
	default:
		c.Action, c.Why = Reject, "none of the Service's endpoints is ready"
	}
	return c
}

// Onward is where new connections to an endpoint that is leaving go instead; nowhere if it is still among those to choose from, or there are none. Nobody
// can tell for which Service of several a connection is, so they must have the same endpoints to choose from.
func (s *Snapshot) Onward(f Frontend, w Way) []Backend {
	c := s.Choose(w.Service, w.Port, f.Addr.Is4(), Everywhere)
	if c.Action != Forward || isCandidate(c.Candidates, netip.AddrPortFrom(f.Addr, f.Port)) {
		return nil
	}
	others, _ := s.leavers.Get(f)
	if others == nil {
		return c.Candidates
	}
	for _, n := range *others {
		svc, _ := s.Services.Get(n)
		other, ok := svc.claim(f, &s.Config)
		if !ok {
			continue
		}
		same := func(a, b Backend) bool { return a.AddrPort() == b.AddrPort() }
		if !slices.EqualFunc(c.Candidates, s.Choose(svc, other.Port, f.Addr.Is4(), Everywhere).Candidates, same) {
			return nil
		}
	}
	return c.Candidates
}

// everywhere are the ready endpoints, or if there are none the terminating ones that still serve (KEP-1669). Of the ready ones, those that hints
// recommend for this node, or for its zone, if every one has such hints and at least one is recommended (KEP-2433, KEP-3015, KEP-4444). For
// cluster DNS, this node's own agent is not among them: it is reached by its socket, and the rules only matter when that is closed. What hints say of it
// does not count either, or a Service that prefers the same node would have nobody left.
func (s *Snapshot) everywhere(svc *Service, port int, is4 bool) []Backend {
	dns := s.isDNSOf(svc, port, is4)
	may := func(b Backend) bool { return !dns || b.Node != s.Self }
	out := pick(svc, port, is4, func(b Backend) bool { return b.Ready && may(b) })
	if use := s.hinted(out); use != nil {
		out = pick(svc, port, is4, func(b Backend) bool { return b.Ready && may(b) && use(b.Hints) })
	}
	if len(out) == 0 {
		out = pick(svc, port, is4, func(b Backend) bool { return serving(b) && may(b) })
	}
	return out
}

// isDNSOf reports whether a port of a Service is cluster DNS's in an address family.
func (s *Snapshot) isDNSOf(svc *Service, port int, is4 bool) bool {
	return slices.ContainsFunc(svc.ClusterIPs, func(a netip.Addr) bool { return a.Is4() == is4 && s.IsDNS(a, svc.Ports[port]) })
}

// here are the ready endpoints of this node, or if there are none the terminating ones that still serve.
func (s *Snapshot) here(svc *Service, port int, is4 bool) []Backend {
	out := pick(svc, port, is4, func(b Backend) bool { return b.Ready && b.Node == s.Self })
	if len(out) == 0 {
		out = pick(svc, port, is4, func(b Backend) bool { return serving(b) && b.Node == s.Self })
	}
	return out
}

func serving(b Backend) bool { return b.Serving && b.Terminating }

func pick(svc *Service, port int, is4 bool, use func(Backend) bool) (out []Backend) {
	for _, b := range svc.Backends[port] {
		if b.Addr.Is4() == is4 && use(b) {
			out = append(out, b)
		}
	}
	return out
}

// hinted says which hints are for this node, or nil if hints are not to be followed: one endpoint without any means that
// they are being changed, and none for this node that following them would leave it without.
func (s *Snapshot) hinted(ready []Backend) func(*Hints) bool {
	self := s.Node()
	if self == nil || !slices.ContainsFunc(ready, func(b Backend) bool { return b.Hints != nil }) {
		return nil
	}
	for _, level := range []struct {
		name string
		of   func(*Hints) []string
	}{
		{s.Self, func(h *Hints) []string { return h.Nodes }},
		{self.Zone, func(h *Hints) []string { return h.Zones }},
	} {
		mine := func(h *Hints) bool { return slices.Contains(level.of(h), level.name) }
		all := level.name != "" && !slices.ContainsFunc(ready, func(b Backend) bool { return b.Hints == nil || len(level.of(b.Hints)) == 0 })
		if all && slices.ContainsFunc(ready, func(b Backend) bool { return mine(b.Hints) }) {
			return mine
		}
	}
	return nil
}
