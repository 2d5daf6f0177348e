// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package explain walks the way of one connection, from a name to a pod, and says at each step what is so and how it is known:
// which search suffix applies, what the DNS answers, which Service the address belongs to, what the kernel's map
// holds, which endpoints are in or out and why, and which route and source address a packet would have.
//
// The invariant: what can be read from the live system is read from it (the DNS is asked over the wire, the map entry and the
// route come from the kernel), and the model serves only to name things and to judge. Where the two differ, the walk
// says so under Findings; an empty list means that they agree.
//
// The way in is [Explainer.Walk].
package explain

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

// ndots is what the kubelet writes into a pod's resolv.conf: a name with fewer dots tries the search list first.
const ndots = 5

// Target is what a client connects to.
type Target struct {
	// Host is a DNS name as the client would write it, or an address.
	Host string
	// Port is the number the client connects to; zero if PortName says which.
	Port     uint16
	PortName string
	Protocol model.Protocol
}

// ParseTarget reads NAME:PORT or NAME:PORT/udp; PORT is a number or the name of a Service's port.
func ParseTarget(s string) (Target, error) {
	t := Target{Protocol: model.TCP}
	rest := s
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		p, ok := model.ParseProtocol(strings.ToUpper(s[i+1:]))
		if !ok || s[i+1:] == "" {
			return t, fmt.Errorf("parse target %q: %q is no protocol; use tcp, udp or sctp", s, s[i+1:])
		}
		t.Protocol, rest = p, s[:i]
	}
	i := strings.LastIndexByte(rest, ':')
	if i <= 0 || i == len(rest)-1 {
		return t, fmt.Errorf("parse target %q: want NAME:PORT, for example orders:80", s)
	}
	t.Host = strings.Trim(rest[:i], "[]")
	if _, err := netip.ParseAddr(t.Host); err != nil {
		if _, ok := dns.IsDomainName(t.Host); !ok {
			return t, fmt.Errorf("parse target %q: %q is no domain name", s, t.Host)
		}
	}
	n, err := strconv.ParseUint(rest[i+1:], 10, 16)
	switch {
	case err == nil && n > 0:
		t.Port = uint16(n)
	case err == nil, strings.Trim(rest[i+1:], "0123456789") == "":
		return t, fmt.Errorf("parse target %q: port %s is not between 1 and 65535", s, rest[i+1:])
	default:
		t.PortName = rest[i+1:]
	}
	return t, nil
}

// Route is how the kernel would send a packet.
type Route struct {
	Dev string     `json:"dev"`
	Via netip.Addr `json:"via,omitzero"`
	// Src is the address that a process of the node itself would have.
	Src netip.Addr `json:"src,omitzero"`
	// MTU is in bytes.
	MTU int `json:"mtu"`
	// Tunnel is the node at the other end, if the packet goes through the tunnel.
	Tunnel netip.Addr `json:"tunnel,omitzero"`
}

// Entry is what the kernel holds for a frontend.
type Entry struct {
	// Chain is the chain of rules that a packet ends in.
	Chain    string
	Backends []netip.AddrPort
}

// Explainer knows how to look at one node. Every field must be set.
type Explainer struct {
	Domain string
	// DNS is where pods of this node ask; none: the cluster DNS is another program's, and behind the Service kube-system/kube-dns.
	DNS []netip.AddrPort
	// Snapshot is the acknowledged state; nil before the first.
	Snapshot func() *model.Snapshot
	// Entry reads from the kernel where a frontend leads for clients inside the cluster; ok is false if the kernel has no such entry.
	Entry func(model.Frontend) (e Entry, ok bool, err error)
	// Route asks the kernel for the route to an address.
	Route func(netip.Addr) (Route, error)
	// Fast reads from the kernel what of a TCP connection from a pod to an address goes past netfilter, in the words of [Way.FastPath].
	Fast func(pod, to netip.Addr) (string, error)
	// Led reads from the kernel to which endpoints a TCP connection of a pod is led when it is made; none: its packets are translated.
	Led func(pod netip.Addr, to netip.AddrPort) ([]netip.AddrPort, error)
	// InKernel reads from the kernel whether it has the answer to a pod's plain question, without asking the DNS.
	InKernel func(pod netip.Addr, server netip.AddrPort, name string, qtype uint16) bool
}

// Walk is the way of a connection, step by step.
type Walk struct {
	Pod        string       `json:"pod"`
	Node       string       `json:"node"`
	Source     []netip.Addr `json:"source"`
	Target     string       `json:"target"`
	Generation uint64       `json:"generation"`

	Search    []string   `json:"search,omitempty"`
	Questions []Question `json:"questions,omitempty"`
	Ways      []Way      `json:"ways"`
	// Findings are disagreements and obstacles, each a sentence. Without any, the connection should work.
	Findings []string `json:"findings,omitempty"`
	// Probe is what became of a real connection, if one was made.
	Probe *Probe `json:"probe,omitempty"`
}

// Probe is a connection that was really made from inside the pod.
type Probe struct {
	// From and To are its ends as the client knows them.
	From netip.AddrPort `json:"from,omitzero"`
	To   netip.AddrPort `json:"to,omitzero"`
	// Resolved and Connected are how long the two steps took, in milliseconds.
	Resolved  float64 `json:"resolvedMs"`
	Connected float64 `json:"connectedMs"`
	// Silent says that nothing answered, which over UDP is no error.
	Silent bool   `json:"silent,omitempty"`
	Error  string `json:"error,omitempty"`

	// Server is the endpoint that was chosen, and Client the address that it saw, both read from the kernel's connection tracking.
	Server netip.AddrPort `json:"server,omitzero"`
	Client netip.AddrPort `json:"client,omitzero"`
	Pod    string         `json:"pod,omitempty"`
	Node   string         `json:"node,omitempty"`
}

// AddProbe completes the walk with a connection that the pod has made.
func (w *Walk) AddProbe(p Probe) {
	if p.Error != "" {
		w.find("the probe failed: %s", p.Error)
	}
	for _, way := range w.Ways {
		for _, b := range way.Backends {
			if b.Address == p.Server {
				p.Pod, p.Node = b.Pod, b.Node
			}
		}
	}
	w.Probe = &p
}

// Question is one question put to the DNS, and its answer.
type Question struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	Server  string   `json:"server"`
	RCode   string   `json:"rcode"`
	Answers []string `json:"answers,omitempty"`
	// Millis is how long the answer took, in milliseconds.
	Millis float64 `json:"ms"`
	// InKernel says that the pod has this answer from the node's kernel now, past netfilter, and the DNS is not asked.
	InKernel bool `json:"inKernel,omitempty"`
}

// Way is what happens at one address that the name stands for.
type Way struct {
	Address netip.AddrPort `json:"address"`
	Service string         `json:"service,omitempty"`
	// HostPort is set, and Service is not, if a pod has the address and port as its host port.
	HostPort *HostPort `json:"hostPort,omitempty"`
	PortName string    `json:"portName,omitempty"`
	Protocol string    `json:"protocol"`
	Action   string    `json:"action"`
	Why      string    `json:"why"`
	// Kind is what the address is to the Service: ClusterIP, load balancer, external IP, node port or leaving endpoint; or it is a pod's host port.
	Kind string `json:"kind,omitempty"`
	// Affinity is how long the client keeps its endpoint, in seconds; zero: no longer than the connection.
	Affinity float64 `json:"affinitySeconds,omitempty"`
	// InKernel says whether the kernel's map has an entry for the address and port, and Chain where the entry leads.
	InKernel bool       `json:"inKernel"`
	Chain    string     `json:"chain,omitempty"`
	Backends []Endpoint `json:"backends,omitempty"`
	// Led says that the connection leads to an endpoint from when it is made, and none of its packets is translated.
	Led bool `json:"led,omitempty"`
	// FastPath is what of the connection goes past netfilter on this node: "whole"; "established", which is without its first and last packets; or nothing.
	FastPath string `json:"fastPath,omitempty"`
	// Route leads to the address itself when no Service stands before it.
	Route *Route `json:"route,omitempty"`
}

// HostPort is a port of this node that a pod asks for.
type HostPort struct {
	Pod string `json:"pod"`
	// Frontend is "hostport4:8080/TCP" for every address of the node, and "hostport:172.30.0.11:8080/TCP" for one.
	Frontend string `json:"frontend"`
}

// Endpoint is one backend: in or out, and why.
type Endpoint struct {
	Address netip.AddrPort `json:"address"`
	Pod     string         `json:"pod,omitempty"`
	Node    string         `json:"node,omitempty"`
	State   string         `json:"state"`
	// In says that new connections may go here; InKernel that the kernel thinks so.
	In       bool   `json:"in"`
	InKernel bool   `json:"inKernel"`
	Route    *Route `json:"route,omitempty"`
	// Source is the client's address as the endpoint sees it.
	Source string `json:"source,omitempty"`
}

// Walk explains a connection from a pod of this node to a target. The error says why there is nothing to
// explain; what is wrong on the way is in the walk's findings.
func (e *Explainer) Walk(ctx context.Context, pod model.Name, target Target) (*Walk, error) {
	snap := e.Snapshot()
	if snap == nil {
		return nil, fmt.Errorf("explain: this node's agent has not programmed anything yet")
	}
	p, ok := snap.Pods.Get(pod)
	if !ok {
		return nil, fmt.Errorf("explain: pod %s is not on node %s", pod, snap.Self)
	}
	if len(p.Addrs) == 0 {
		return nil, fmt.Errorf("explain: pod %s has no address yet", pod)
	}
	w := &Walk{Pod: pod.String(), Node: snap.Self, Source: p.Addrs, Target: target.String(), Generation: snap.Generation}
	addrs := e.resolve(ctx, w, pod.Namespace, target.Host, p.Addrs)
	for _, a := range addrs {
		w.Ways = append(w.Ways, e.way(w, snap, p, a, target))
	}
	if len(addrs) == 0 {
		w.find("the name %s leads to no address", target.Host)
	}
	return w, nil
}

// String is the target as ParseTarget reads it.
func (t Target) String() string {
	port := t.PortName
	if port == "" {
		port = strconv.Itoa(int(t.Port))
	}
	s := net.JoinHostPort(t.Host, port)
	if t.Protocol != model.TCP {
		s += "/" + strings.ToLower(t.Protocol.String())
	}
	return s
}

func (w *Walk) find(format string, args ...any) {
	w.Findings = append(w.Findings, fmt.Sprintf(format, args...))
}

// resolve asks as a pod's resolver does: the search list for names with few dots, each suffix in turn, and the name as it is.
func (e *Explainer) resolve(ctx context.Context, w *Walk, namespace, host string, source []netip.Addr) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}
	}
	server := e.server()
	if server == "" {
		w.find("there is no cluster DNS to ask for %s: Service kube-system/kube-dns has no address", host)
		return nil
	}
	names := []string{dns.Fqdn(host)}
	if !dns.IsFqdn(host) {
		w.Search = []string{namespace + ".svc." + e.Domain, "svc." + e.Domain, e.Domain}
		searched := make([]string, len(w.Search))
		for i, suffix := range w.Search {
			searched[i] = dns.Fqdn(host + "." + suffix)
		}
		if strings.Count(host, ".") < ndots {
			names = append(searched, names...)
		} else {
			names = append(names, searched...)
		}
	}
	for _, name := range names {
		var found []netip.Addr
		for _, qtype := range qtypes(source) {
			addrs, err := e.ask(ctx, w, source, server, name, qtype)
			if err != nil {
				w.find("the DNS at %s does not answer for %s: %v", server, name, err)
				return nil
			}
			found = append(found, addrs...)
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// server is where pods ask; empty if nobody can be asked.
func (e *Explainer) server() string {
	if len(e.DNS) > 0 {
		return e.DNS[0].String()
	}
	if svc, ok := e.Snapshot().Services.Get(model.Name{Namespace: "kube-system", Name: "kube-dns"}); ok && len(svc.ClusterIPs) > 0 {
		return netip.AddrPortFrom(svc.ClusterIPs[0], model.DNSPort).String()
	}
	return ""
}

// qtypes are the types a resolver asks for, of the families the pod has.
func qtypes(source []netip.Addr) (out []uint16) {
	if slices.ContainsFunc(source, netip.Addr.Is4) {
		out = append(out, dns.TypeA)
	}
	if slices.ContainsFunc(source, netip.Addr.Is6) {
		out = append(out, dns.TypeAAAA)
	}
	return out
}

func (e *Explainer) ask(ctx context.Context, w *Walk, source []netip.Addr, server, name string, qtype uint16) ([]netip.Addr, error) {
	m := new(dns.Msg).SetQuestion(name, qtype)
	m.SetEdns0(1232, false)
	client := &dns.Client{Timeout: 2 * time.Second}
	r, took, err := client.ExchangeContext(ctx, m, server)
	if err == nil && r.Truncated {
		client.Net = "tcp"
		r, took, err = client.ExchangeContext(ctx, m, server)
	}
	if err != nil {
		return nil, err
	}
	q := Question{
		Name: name, Type: dns.TypeToString[qtype], Server: server,
		RCode: dns.RcodeToString[r.Rcode], Millis: float64(took.Microseconds()) / 1000,
	}
	if at, err := netip.ParseAddrPort(server); err == nil {
		q.InKernel = e.InKernel(sourceFor(source, at.Addr()), at, name, qtype)
	}
	var addrs []netip.Addr
	for _, rr := range r.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			a, _ := netip.AddrFromSlice(rr.A)
			addrs, q.Answers = append(addrs, a.Unmap()), append(q.Answers, a.Unmap().String())
		case *dns.AAAA:
			a, _ := netip.AddrFromSlice(rr.AAAA)
			addrs, q.Answers = append(addrs, a), append(q.Answers, a.String())
		case *dns.CNAME:
			q.Answers = append(q.Answers, "CNAME "+rr.Target)
		}
	}
	w.Questions = append(w.Questions, q)
	return addrs, nil
}

// way explains one address.
func (e *Explainer) way(w *Walk, snap *model.Snapshot, pod *model.Pod, addr netip.Addr, target Target) Way {
	port := e.port(snap, addr, target)
	at := netip.AddrPortFrom(addr, port)
	way := Way{Address: at, Protocol: target.Protocol.String()}
	if port == 0 {
		way.Action, way.Why = model.Pass.String(), "the port is not known"
		w.find("nothing behind %s has a port named %q", addr, target.PortName)
		return way
	}
	source := sourceFor(pod.Addrs, addr)
	p := model.Packet{Protocol: target.Protocol, Src: netip.AddrPortFrom(source, 0), Dst: at, ToNode: isOwn(snap, addr)}
	v := snap.Lookup(p)
	way.Action, way.Why = v.Action.String(), v.Why
	if v.Service == nil {
		if v.Action == model.Reject {
			w.find("connections to %s are refused: %s", at, v.Why)
			return way
		}
		way.Route = e.route(w, addr)
		e.headless(w, &way, snap, target)
		way.FastPath = e.fast(w, way.Protocol, source, at)
		return way
	}
	way.Service, way.PortName, way.Kind, way.Affinity = v.Service.Name.String(), v.Port.Name, v.Kind.String(), v.Affinity.Seconds()
	front := v.Frontend
	if front == (model.Frontend{}) { // the Service has no such port, and the kernel should agree
		front = model.Frontend{Addr: addr, Protocol: target.Protocol, Port: port}
	}
	if owner := v.Service.Pod; owner != nil {
		way.Service, way.HostPort = "", &HostPort{Pod: owner.Name.String(), Frontend: front.String()}
	}
	entry, inKernel, err := e.Entry(front)
	if err != nil {
		w.find("the kernel's entry for %s cannot be read: %v", at, err)
	}
	way.InKernel, way.Chain = inKernel, entry.Chain
	e.backends(w, &way, snap, v, p, entry.Backends)
	e.led(w, &way, source, at)
	switch v.Action {
	case model.Reject:
		w.find("connections to %s are refused: %s", at, v.Why)
	case model.Drop:
		w.find("connections to %s get no answer: %s", at, v.Why)
	default:
		if way.Led {
			return way // all of it goes as a connection to the endpoint does
		}
		// What is to be translated can go past netfilter only where the endpoint's own connections can.
		if slices.ContainsFunc(way.Backends, func(b Endpoint) bool { return b.In && e.fast(w, way.Protocol, source, b.Address) != "" }) {
			way.FastPath = e.fast(w, way.Protocol, source, at)
		}
	}
	return way
}

// isOwn reports whether an address is one of this node's, as far as the API server knows them.
func isOwn(snap *model.Snapshot, a netip.Addr) bool {
	self := snap.Node()
	return self != nil && slices.Contains(self.Addrs, a)
}

// headless says what an address is that belongs to a headless Service. Such a Service translates no ports: a client must
// use the endpoint's own.
func (e *Explainer) headless(w *Walk, way *Way, snap *model.Snapshot, target Target) {
	name, ok := snap.Hosts.Get(way.Address.Addr())
	if !ok {
		return
	}
	svc, _ := snap.Services.Get(name)
	way.Service = name.String()
	var own []string
	for i, p := range svc.Ports {
		for _, b := range svc.Backends[i] {
			if b.Addr != way.Address.Addr() || p.Protocol != target.Protocol {
				continue
			}
			if b.Port == way.Address.Port() {
				way.PortName, way.Why = p.Name, "an endpoint of a headless Service, reached directly; it is "+b.State()
				return
			}
			own = append(own, b.AddrPort().String())
		}
	}
	way.Why = "an address of a headless Service"
	if len(own) > 0 {
		w.find("%s is headless and translates no ports: %s listens on %s, not on %d", name, way.Address.Addr(), strings.Join(own, ", "), way.Address.Port())
	}
}

// backends lists what the model knows and what the kernel holds, and says where they differ.
func (e *Explainer) backends(w *Walk, way *Way, snap *model.Snapshot, v model.Verdict, p model.Packet, kernel []netip.AddrPort) {
	all := v.Candidates
	if i := slices.Index(v.Service.Ports, v.Port); i >= 0 {
		all = v.Service.Backends[i]
	}
	for _, b := range all {
		if b.Addr.Is4() != way.Address.Addr().Is4() {
			continue
		}
		ep := Endpoint{Address: b.AddrPort(), Node: b.Node, State: b.State(), InKernel: slices.Contains(kernel, b.AddrPort())}
		if b.Pod != (model.Name{}) {
			ep.Pod = b.Pod.String()
		}
		if v.Action == model.Drop && v.Kind == model.AtBalancer {
			ep.InKernel = false // it is there for those who may pass
		}
		ep.In = slices.ContainsFunc(v.Candidates, func(c model.Backend) bool { return c.AddrPort() == b.AddrPort() })
		if ep.In {
			ep.Route = e.route(w, b.Addr)
			ep.Source = p.Src.Addr().String() + " (kept)"
			if masq, why := snap.Masquerade(p, b.Addr); masq {
				ep.Source = "this node's address, because " + why
			}
		}
		if ep.In != ep.InKernel {
			w.find("endpoint %s: the model says in=%t, the kernel says in=%t", ep.Address, ep.In, ep.InKernel)
		}
		way.Backends = append(way.Backends, ep)
	}
	for _, k := range kernel {
		if !slices.ContainsFunc(all, func(b model.Backend) bool { return b.AddrPort() == k }) {
			w.find("the kernel still sends to %s, which is no endpoint of %s", k, v.Service.Name)
		}
	}
}

// port is the number to connect to: the one given, or that of the Service's port of the given name, which for a headless
// Service is the endpoint's own.
func (e *Explainer) port(snap *model.Snapshot, addr netip.Addr, t Target) uint16 {
	if t.Port != 0 {
		return t.Port
	}
	name, virtual := snap.ServiceAt(addr)
	if !virtual {
		name, _ = snap.Hosts.Get(addr)
	}
	svc, ok := snap.Services.Get(name)
	if !ok {
		return 0
	}
	for i, p := range svc.Ports {
		if p.Name != t.PortName || p.Protocol != t.Protocol {
			continue
		}
		if virtual {
			return p.Port
		}
		for _, b := range svc.Backends[i] {
			if b.Addr == addr {
				return b.Port
			}
		}
	}
	return 0
}

// fast is what of a connection goes past netfilter.
func (e *Explainer) fast(w *Walk, protocol string, source netip.Addr, to netip.AddrPort) string {
	if protocol != model.TCP.String() || !source.IsValid() {
		return ""
	}
	course, err := e.Fast(source, to.Addr())
	if err != nil {
		w.find("the fast path to %s cannot be read: %v", to, err)
	}
	return course
}

// led looks whether the kernel leads connections to a Service at the socket, and compares to which endpoints.
func (e *Explainer) led(w *Walk, way *Way, source netip.Addr, at netip.AddrPort) {
	if way.Protocol != model.TCP.String() || !source.IsValid() {
		return
	}
	to, err := e.Led(source, at)
	if err != nil {
		w.find("where connections to %s are led cannot be read: %v", at, err)
	}
	if way.Led = len(to) > 0; !way.Led {
		return
	}
	if way.Action != model.Forward.String() || way.Affinity > 0 {
		w.find("connections to %s are led to an endpoint, which is not for the socket to decide", at)
	}
	for i := range way.Backends {
		b := &way.Backends[i]
		if in := slices.Contains(to, b.Address); in != b.In {
			w.find("endpoint %s: the model says in=%t, where connections are led says in=%t", b.Address, b.In, in)
		}
		if b.In {
			b.Source = source.String() + " (kept)" // also of a pod that reaches itself
			way.FastPath = cmp.Or(way.FastPath, e.fast(w, way.Protocol, source, b.Address))
		}
	}
	for _, a := range to {
		if !slices.ContainsFunc(way.Backends, func(b Endpoint) bool { return b.Address == a }) {
			w.find("connections are still led to %s, which is no endpoint of %s", a, way.Service)
		}
	}
}

func (e *Explainer) route(w *Walk, dst netip.Addr) *Route {
	r, err := e.Route(dst)
	if err != nil {
		w.find("there is no route to %s: %v", dst, err)
		return nil
	}
	return &r
}

// sourceFor is the pod's address of the destination's family.
func sourceFor(addrs []netip.Addr, dst netip.Addr) netip.Addr {
	for _, a := range addrs {
		if a.Is4() == dst.Is4() {
			return a
		}
	}
	return addrs[0]
}
