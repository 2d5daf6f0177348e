// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// HostPort is a port of its node that a pod asks for: what arrives there is the pod's.
type HostPort struct {
	// Addr is the node's address; unspecified (0.0.0.0 or ::) for all of its family, zero for all of both.
	Addr     netip.Addr
	Protocol Protocol
	// Port is the node's and Target the pod's, each 1 to 65535.
	Port, Target uint16
}

// String is "8080/TCP to 80", or with an address "172.30.0.11:8080/TCP to 80".
func (h HostPort) String() string {
	s := strconv.Itoa(int(h.Port))
	if h.Addr.IsValid() {
		s = netip.AddrPortFrom(h.Addr, h.Port).String()
	}
	return fmt.Sprintf("%s/%s to %d", s, h.Protocol, h.Target)
}

// hostService is a pod's host ports as a Service that has them for frontends and the pod for its one endpoint; nil if the pod has none, or no
// address yet. Its name is one that no Service can have, and reads as kubectl users write pods.
func (p *Pod) hostService(node string) *Service {
	if len(p.HostPorts) == 0 || len(p.Addrs) == 0 || p.HostNetwork {
		return nil
	}
	svc := &Service{ServiceSpec: ServiceSpec{Name: hostServiceName(p.Name)}, Pod: p, Slices: 1}
	for _, a := range p.Addrs {
		// It is not asked whether the pod is ready: its ports are its own, from when it has an address until it has ended.
		svc.Endpoints = append(svc.Endpoints, Endpoint{Addr: a, Node: node, Pod: p.Name, Ready: true, Serving: true, Terminating: p.Terminating})
	}
	for _, h := range p.HostPorts {
		if svc.hostTarget(h) >= 0 {
			continue
		}
		svc.Ports = append(svc.Ports, Port{Protocol: h.Protocol, Port: h.Target})
		var backends []Backend
		for i := range svc.Endpoints {
			backends = append(backends, Backend{&svc.Endpoints[i], h.Target})
		}
		svc.Backends = append(svc.Backends, backends)
	}
	return svc
}

func hostServiceName(pod Name) Name { return Name{pod.Namespace, "pod/" + pod.Name} }

// hostTarget is the index of the port that a host port leads to; negative if there is none.
func (svc *Service) hostTarget(h HostPort) int {
	return slices.IndexFunc(svc.Ports, func(p Port) bool { return p.Protocol == h.Protocol && p.Port == h.Target })
}

// hostFrontends is frontends for a pod's host ports. Those that the agent itself listens on are nobody's.
func (svc *Service) hostFrontends(c *Config, yield func(Frontend, Kind, int)) {
	for _, h := range svc.Pod.HostPorts {
		if c.ownPort(h) != nil {
			continue
		}
		for _, a := range svc.Pod.Addrs {
			at := Unspecified(a)
			switch {
			case !h.Addr.IsValid():
			case h.Addr.Is4() != a.Is4():
				continue
			default:
				at = h.Addr
			}
			yield(Frontend{Addr: at, Protocol: h.Protocol, Port: h.Port, Host: true}, AtHostPort, svc.hostTarget(h))
		}
	}
}

// ownPort is the agent's own port that a host port would take; nil if there is none.
func (c *Config) ownPort(h HostPort) *Port {
	i := slices.IndexFunc(c.OwnPorts, func(p Port) bool { return p.Protocol == h.Protocol && p.Port == h.Port })
	if i < 0 {
		return nil
	}
	return &c.OwnPorts[i]
}

// isChecked reports whether a host port is no pod's because this node's agent answers health checks there.
func (s *Snapshot) isChecked(f Frontend) bool {
	if !f.Host || f.Protocol != TCP {
		return false
	}
	_, ok := s.HealthPorts.Get(f.Port)
	return ok
}

// created is when what claims a frontend was made, if that decides among several. Among pods it does: a kubelet does not run the one that comes later.
func (svc *Service) created() time.Time {
	if svc.Pod == nil {
		return time.Time{}
	}
	return svc.Pod.Created
}

// AtNode is what happens at an address of this node's, at a port where no frontend has the address for itself: a node port, if the address
// serves them; else a pod's host port at this address, else one at every address.
func (s *Snapshot) AtNode(dst Frontend) (Frontend, Way, bool) {
	anywhere := Unspecified(dst.Addr)
	for _, f := range [...]Frontend{
		{Addr: anywhere, Protocol: dst.Protocol, Port: dst.Port},
		{Addr: dst.Addr, Protocol: dst.Protocol, Port: dst.Port, Host: true},
		{Addr: anywhere, Protocol: dst.Protocol, Port: dst.Port, Host: true},
	} {
		if !f.Host && !s.ServesNodePorts(dst.Addr) {
			continue
		}
		if w, ok := s.Way(f); ok {
			return f, w, true
		}
	}
	return Frontend{}, Way{}, false
}

// Rival is somebody who has a host port, or some addresses of it, instead of a pod that asks for it.
type Rival struct {
	// At is what it has, and By who it is: a Service, another pod, or the agent and what for.
	At Frontend
	By string
}

// Rivals are those who come before a pod at its host ports, in order, each once.
func (s *Snapshot) Rivals(svc *Service) (out []Rival) {
	for _, h := range svc.Pod.HostPorts {
		if own := s.ownPort(h); own != nil {
			at := Frontend{Addr: h.Addr, Protocol: h.Protocol, Port: h.Port, Host: true}
			if !h.Addr.IsValid() {
				at.Addr = Unspecified(svc.Pod.Addrs[0])
			}
			out = append(out, Rival{at, "this node's agent (" + own.Name + ")"})
		}
	}
	svc.hostFrontends(&s.Config, func(f Frontend, _ Kind, _ int) {
		ask := func(g Frontend) {
			if owner, ok := s.Frontends.Get(g); ok && owner != svc.Name {
				out = append(out, Rival{g, owner.String()})
			}
		}
		if s.isChecked(f) {
			name, _ := s.HealthPorts.Get(f.Port)
			out = append(out, Rival{f, "this node's agent (health checks of " + name.String() + ")"})
			return
		}
		ask(f)
		plain := f
		plain.Host = false
		ask(plain) // a Service's at this address, or for all addresses the node port
		if f.Addr.IsUnspecified() {
			if self := s.Node(); self != nil {
				for _, a := range self.Addrs {
					if a.Is4() == f.Addr.Is4() {
						plain.Addr = a
						ask(plain)
					}
				}
			}
			for _, other := range s.HostPorts.All() {
				other.hostFrontends(&s.Config, func(g Frontend, _ Kind, _ int) {
					if g.Protocol == f.Protocol && g.Port == f.Port && g.Addr.Is4() == f.Addr.Is4() {
						ask(g)
					}
				})
			}
			return
		}
		plain.Addr = Unspecified(f.Addr)
		if s.ServesNodePorts(f.Addr) {
			ask(plain)
		}
	})
	slices.SortFunc(out, func(a, b Rival) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.By, b.By)) })
	return slices.Compact(out)
}
