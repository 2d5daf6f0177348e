// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package packets

import (
	_ "embed"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead/fairlead/model"
)

//go:embed packets.txt
var table string

// World is a state of a cluster and the packets to try in it.
type World struct {
	Name     string
	Snapshot *model.Snapshot
	// Own are addresses of this node beside those that its Node object names.
	Own  []netip.Addr
	Rows []Row
}

// Judge is what the specification says about a packet in this world, as a row.
func (w World) Judge(proto model.Protocol, src netip.Addr, dst netip.AddrPort) Row {
	return Judge(w.Snapshot, w.Own, proto, src, dst)
}

// Row is a packet and what has to become of it.
type Row struct {
	// Line is the row's number in the table, from 1.
	Line     int
	Protocol model.Protocol
	Src      netip.Addr
	Dst      netip.AddrPort
	Action   model.Action
	// Candidates are where a packet that is forwarded may go, in order of address. For Pass it is the destination itself.
	Candidates []Candidate
}

// Candidate is one possible receiver.
type Candidate struct {
	Addr netip.AddrPort
	// NAT says that the receiver sees the node's address and not the sender's.
	NAT bool
}

// String is the candidate as the table has it.
func (c Candidate) String() string {
	if c.NAT {
		return "nat:" + c.Addr.String()
	}
	return c.Addr.String()
}

// String is the row as the table has it.
func (r Row) String() string {
	s := fmt.Sprintf("packet %s %s > %s = %s", r.Protocol, r.Src, r.Dst, r.Action)
	for _, c := range r.Candidates {
		if r.Action == model.Pass {
			if c.NAT {
				s += " nat"
			}
			continue
		}
		s += " " + c.String()
	}
	return s
}

// Judge is what the specification says about a packet, as a row. own are addresses of this node beside those that its Node object names.
func Judge(s *model.Snapshot, own []netip.Addr, proto model.Protocol, src netip.Addr, dst netip.AddrPort) Row {
	isOwn := func(a netip.Addr) bool {
		self := s.Node()
		return slices.Contains(own, a) || self != nil && slices.Contains(self.Addrs, a)
	}
	p := model.Packet{Protocol: proto, Src: netip.AddrPortFrom(src, 40000), Dst: dst, FromNode: isOwn(src), ToNode: isOwn(dst.Addr())}
	v := s.Lookup(p)
	r := Row{Protocol: proto, Src: src, Dst: dst, Action: v.Action}
	var to []netip.AddrPort
	switch v.Action {
	case model.Reject, model.Drop:
		return r
	case model.Pass:
		to = append(to, dst)
	default:
		if v.Action == model.Local && v.Service.Unproxied {
			r.Candidates = append(r.Candidates, Candidate{Addr: dst}) // where it goes without a socket here, its proxy decides
		}
		for _, b := range v.Candidates {
			to = append(to, b.AddrPort())
		}
	}
	for _, a := range to {
		nat, _ := s.Masquerade(p, a.Addr())
		r.Candidates = append(r.Candidates, Candidate{a, nat})
	}
	return r
}

// Table is the worlds of the table.
func Table() ([]World, error) { return Parse(table) }

// Parse reads worlds in the language of the package's documentation. Errors name the line.
func Parse(text string) ([]World, error) {
	var p parser
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		p.line = n
		if err := p.statement(words[0], words[1:]); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	p.finish()
	return p.worlds, nil
}

// parser collects a world until the next begins.
type parser struct {
	worlds []World
	line   int

	name     string
	config   model.Config
	own      []netip.Addr
	nodes    []model.Node
	pods     []model.Pod
	services []*service
	rows     []Row
}

type service struct {
	spec    model.ServiceSpec
	slices  []model.Slice
	unknown bool
}

func (p *parser) statement(verb string, args []string) error {
	if verb == "world" && len(args) == 1 {
		p.finish()
		*p = parser{worlds: p.worlds, line: p.line, name: args[0]}
		return nil
	}
	if p.name == "" {
		return fmt.Errorf("%q before the first world", verb)
	}
	switch {
	case verb == "self" && len(args) == 1:
		p.config.Self = args[0]
		return nil
	case verb == "own":
		return addrs(&p.own, args)
	case verb == "ranges":
		return prefixes(&p.config.ServiceCIDRs, args)
	case verb == "nodeport-addresses":
		return prefixes(&p.config.NodePortAddrs, args)
	case verb == "keep-source":
		return prefixes(&p.config.KeepSource, args)
	case verb == "pod-ranges":
		return prefixes(&p.config.PodCIDRs, args)
	case verb == "left" && len(args) == 1 && args[0] == "proxy":
		p.config.Left |= model.Proxy
		return nil
	case verb == "left" && len(args) == 1 && args[0] == "network":
		p.config.Left |= model.Network
		return nil
	case verb == "pass-on" && len(args) == 0:
		p.config.PassOn = true
		return nil
	case verb == "node" && len(args) > 1:
		return p.node(args)
	case verb == "pod" && len(args) > 1:
		return p.pod(args)
	case verb == "hostport" && len(args) == 3 && len(p.pods) > 0:
		return p.hostPort(args)
	case verb == "own-port" && len(args) == 3:
		return p.ownPort(args)
	case verb == "dns":
		return addrs(&p.config.DNS, args)
	case verb == "service" && len(args) > 0:
		return p.service(args)
	case verb == "port" && len(args) >= 3 && len(p.services) > 0:
		return p.port(args)
	case verb == "endpoint" && len(args) >= 3 && len(p.services) > 0:
		return p.endpoint(args)
	case verb == "packet" && len(args) >= 6:
		return p.packet(args)
	}
	if set := policies[verb]; set != nil && len(p.services) > 0 {
		return set(p.services[len(p.services)-1], args)
	}
	return fmt.Errorf("no such statement: %s with %d words", verb, len(args))
}

// policies are the statements about the whole of a Service.
var policies = map[string]func(*service, []string) error{
	"no-slices":         flag(func(s *service) { s.unknown = true }),
	"unproxied":         flag(func(s *service) { s.spec.Unproxied = true }),
	"publish-not-ready": flag(func(s *service) { s.spec.PublishNotReady = true }),
	"headless":          flag(func(s *service) { s.spec.Type = model.Headless }),
	"internal-local":    flag(func(s *service) { s.spec.LocalOnly = true }),
	"external-local":    flag(func(s *service) { s.exposure().LocalOnly = true }),
	"external":          func(s *service, args []string) error { return addrs(&s.exposure().ExternalIPs, args) },
	"balancer":          func(s *service, args []string) error { return addrs(&s.exposure().Balancers, args) },
	"health-port": func(s *service, args []string) error {
		n, err := strconv.ParseUint(strings.Join(args, " "), 10, 16)
		s.exposure().HealthPort = uint16(n)
		return err
	},
	"sources": func(s *service, args []string) error { return prefixes(&s.exposure().SourceRanges, args) },
	"external-name": func(s *service, args []string) error {
		s.spec.Type, s.spec.ExternalName = model.ExternalName, strings.Join(args, " ")
		return nil
	},
	"affinity": func(s *service, args []string) (err error) {
		s.spec.Affinity, err = time.ParseDuration(strings.Join(args, " "))
		return err
	},
}

// flag is a policy that is one word.
func flag(set func(*service)) func(*service, []string) error {
	return func(s *service, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("want no more words, not %v", args)
		}
		set(s)
		return nil
	}
}

func (s *service) exposure() *model.Exposure {
	if s.spec.Exposure == nil {
		s.spec.Exposure = &model.Exposure{}
	}
	return s.spec.Exposure
}

func prefixes(to *[]netip.Prefix, words []string) error { return list(to, words, netip.ParsePrefix) }

func addrs(to *[]netip.Addr, words []string) error { return list(to, words, netip.ParseAddr) }

func list[T any](to *[]T, words []string, parse func(string) (T, error)) error {
	for _, w := range words {
		v, err := parse(w)
		if err != nil {
			return err
		}
		*to = append(*to, v)
	}
	return nil
}

func (p *parser) node(args []string) error {
	n := model.Node{Name: args[0], Ready: true}
	if i := slices.Index(args, "zone"); i >= 0 && i+2 == len(args) {
		n.Zone, args = args[i+1], args[:i]
	}
	i := slices.Index(args, "pods")
	if i < 0 {
		i = len(args)
	}
	if err := addrs(&n.Addrs, args[1:i]); err != nil {
		return err
	}
	if err := prefixes(&n.PodCIDRs, args[min(i+1, len(args)):]); err != nil {
		return err
	}
	p.nodes = append(p.nodes, n)
	return nil
}

func name(s string) (model.Name, error) {
	ns, n, ok := strings.Cut(s, "/")
	if !ok {
		return model.Name{}, fmt.Errorf("%q is no namespace/name", s)
	}
	return model.Name{Namespace: ns, Name: n}, nil
}

func (p *parser) pod(args []string) (err error) {
	var pod model.Pod
	if pod.Name, err = name(args[0]); err != nil {
		return err
	}
	pod.Created = time.Unix(int64(len(p.pods)), 0) // the first is the oldest
	if last := len(args) - 1; args[last] == "terminating" {
		pod.Terminating, args = true, args[:last]
	}
	p.pods = append(p.pods, pod)
	return addrs(&p.pods[len(p.pods)-1].Addrs, args[1:])
}

// hostPort is PROTOCOL [ADDRESS:]PORT TARGET, of the last pod.
func (p *parser) hostPort(args []string) error {
	var h model.HostPort
	proto, ok := model.ParseProtocol(args[0])
	at, err := netip.ParseAddrPort(args[1])
	if err != nil {
		var port uint64
		port, err = strconv.ParseUint(args[1], 10, 16)
		at = netip.AddrPortFrom(netip.Addr{}, uint16(port))
	}
	target, bad := strconv.ParseUint(args[2], 10, 16)
	if !ok || err != nil || bad != nil {
		return fmt.Errorf("hostport %v: want PROTOCOL [ADDRESS:]PORT TARGET", args)
	}
	h.Addr, h.Protocol, h.Port, h.Target = at.Addr(), proto, at.Port(), uint16(target)
	pod := &p.pods[len(p.pods)-1]
	pod.HostPorts = append(pod.HostPorts, h)
	return nil
}

func (p *parser) ownPort(args []string) error {
	proto, ok := model.ParseProtocol(args[1])
	port, err := strconv.ParseUint(args[2], 10, 16)
	if !ok || err != nil {
		return fmt.Errorf("own-port %v: want NAME PROTOCOL NUMBER", args)
	}
	p.config.OwnPorts = append(p.config.OwnPorts, model.Port{Name: args[0], Protocol: proto, Port: uint16(port)})
	return nil
}

func (p *parser) service(args []string) (err error) {
	s := &service{}
	if s.spec.Name, err = name(args[0]); err != nil {
		return err
	}
	p.services = append(p.services, s)
	return addrs(&s.spec.ClusterIPs, args[1:])
}

func (p *parser) port(args []string) error {
	proto, ok := model.ParseProtocol(args[1])
	number, err := strconv.ParseUint(args[2], 10, 16)
	if !ok || err != nil {
		return fmt.Errorf("port %v: want NAME PROTOCOL NUMBER", args)
	}
	port := model.Port{Name: args[0], Protocol: proto, Port: uint16(number)}
	if len(args) == 5 && args[3] == "nodeport" {
		n, err := strconv.ParseUint(args[4], 10, 16)
		if err != nil {
			return fmt.Errorf("port %v: want nodeport NUMBER", args)
		}
		port.NodePort = uint16(n)
	} else if len(args) != 3 {
		return fmt.Errorf("port %v: want NAME PROTOCOL NUMBER", args)
	}
	s := p.services[len(p.services)-1]
	s.spec.Ports = append(s.spec.Ports, port)
	return nil
}

// states are the conditions that an endpoint may have. The last two are ready because their Service publishes addresses that are not.
var states = map[string]func(*model.Endpoint){
	"ready":            func(e *model.Endpoint) { e.Ready, e.Serving = true, true },
	"serving":          func(e *model.Endpoint) { e.Serving, e.Terminating = true, true },
	"terminating":      func(e *model.Endpoint) { e.Terminating = true },
	"notready":         func(*model.Endpoint) {},
	"published":        func(e *model.Endpoint) { e.Ready = true },
	"published-ending": func(e *model.Endpoint) { e.Ready, e.Terminating = true, true },
}

// endpoint makes a slice for every endpoint: the model must put them together.
func (p *parser) endpoint(args []string) error {
	to, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	e := model.Endpoint{Addr: to.Addr(), Node: args[2]}
	state, ok := states[args[1]]
	if !ok {
		return fmt.Errorf("state %q", args[1])
	}
	state(&e)
	for _, w := range args[3:] {
		key, value, _ := strings.Cut(w, "=")
		if e.Hints == nil && key != "pod" {
			e.Hints = &model.Hints{}
		}
		switch key {
		case "pod":
			if e.Pod, err = name(value); err != nil {
				return err
			}
		case "zones":
			e.Hints.Zones = strings.Split(value, ",")
		case "nodes":
			e.Hints.Nodes = strings.Split(value, ",")
		default:
			return fmt.Errorf("endpoint: %q is none of pod=, zones= and nodes=", w)
		}
	}
	s := p.services[len(p.services)-1]
	if len(s.spec.Ports) == 0 {
		return fmt.Errorf("endpoint before any port")
	}
	port := s.spec.Ports[len(s.spec.Ports)-1]
	port.Port = to.Port()
	s.slices = append(s.slices, model.Slice{
		Name:      model.Name{Namespace: s.spec.Name.Namespace, Name: fmt.Sprintf("%s-%d", s.spec.Name.Name, len(s.slices))},
		Service:   s.spec.Name.Name,
		Ports:     []model.Port{port},
		Endpoints: []model.Endpoint{e},
	})
	return nil
}

// packet is PROTOCOL SOURCE > DESTINATION = VERDICT CANDIDATE...
func (p *parser) packet(args []string) (err error) {
	r := Row{Line: p.line}
	var ok bool
	if r.Protocol, ok = model.ParseProtocol(args[0]); !ok || args[2] != ">" || args[4] != "=" {
		return fmt.Errorf("want packet PROTOCOL SOURCE > ADDRESS:PORT = VERDICT")
	}
	if r.Src, err = netip.ParseAddr(args[1]); err != nil {
		return err
	}
	if r.Dst, err = netip.ParseAddrPort(args[3]); err != nil {
		return err
	}
	actions := map[string]model.Action{"pass": model.Pass, "reject": model.Reject, "forward": model.Forward, "local": model.Local, "drop": model.Drop}
	if r.Action, ok = actions[args[5]]; !ok {
		return fmt.Errorf("verdict %q", args[5])
	}
	if r.Action == model.Pass {
		r.Candidates = []Candidate{{r.Dst, len(args) > 6 && args[6] == "nat"}}
	} else {
		for _, w := range args[6:] {
			addr, nat := strings.CutPrefix(w, "nat:")
			to, err := netip.ParseAddrPort(addr)
			if err != nil {
				return err
			}
			r.Candidates = append(r.Candidates, Candidate{to, nat})
		}
	}
	p.rows = append(p.rows, r)
	return nil
}

func (p *parser) finish() {
	if p.name == "" {
		return
	}
	b := model.NewBuilder(p.config)
	for _, n := range p.nodes {
		b.SetNode(n)
	}
	for _, pod := range p.pods {
		b.SetPod(pod)
	}
	for _, s := range p.services {
		b.SetService(s.spec)
		for _, sl := range s.slices {
			b.SetSlice(sl)
		}
		if len(s.slices) == 0 && !s.unknown {
			b.SetSlice(model.Slice{Name: s.spec.Name, Service: s.spec.Name.Name})
		}
	}
	p.worlds = append(p.worlds, World{p.name, b.Build(), p.own, p.rows})
}
