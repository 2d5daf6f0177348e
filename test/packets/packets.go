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

	"github.com/fairlead/fairlead/model"
)

//go:embed packets.txt
var table string

// World is a state of a cluster and the packets to try in it.
type World struct {
	Name     string
	Snapshot *model.Snapshot
	Rows     []Row
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

// Judge is what the specification says about a packet, as a row.
func Judge(s *model.Snapshot, proto model.Protocol, src netip.Addr, dst netip.AddrPort) Row {
	v := s.Lookup(model.Packet{Protocol: proto, Src: netip.AddrPortFrom(src, 40000), Dst: dst})
	r := Row{Protocol: proto, Src: src, Dst: dst, Action: v.Action}
	to := []netip.AddrPort{dst}
	if v.Action != model.Pass {
		to = nil
		for _, b := range v.Candidates {
			to = append(to, b.AddrPort())
		}
	}
	if v.Action == model.Reject {
		return r
	}
	for _, a := range to {
		nat, _ := s.Masquerade(src, a.Addr())
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
	self     string
	dns      []netip.Addr
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
		p.self = args[0]
		return nil
	case verb == "node" && len(args) > 1:
		return p.node(args)
	case verb == "pod" && len(args) > 1:
		return p.pod(args)
	case verb == "dns":
		return addrs(&p.dns, args)
	case verb == "service" && len(args) > 0:
		return p.service(args)
	case verb == "port" && len(args) == 3 && len(p.services) > 0:
		return p.port(args)
	case verb == "endpoint" && len(args) == 3 && len(p.services) > 0:
		return p.endpoint(args)
	case verb == "no-slices" && len(p.services) > 0:
		p.services[len(p.services)-1].unknown = true
		return nil
	case verb == "packet" && len(args) >= 6:
		return p.packet(args)
	}
	return fmt.Errorf("no such statement: %s with %d words", verb, len(args))
}

func addrs(to *[]netip.Addr, words []string) error {
	for _, w := range words {
		a, err := netip.ParseAddr(w)
		if err != nil {
			return err
		}
		*to = append(*to, a)
	}
	return nil
}

func (p *parser) node(args []string) error {
	n := model.Node{Name: args[0], Ready: true}
	i := slices.Index(args, "pods")
	if i < 0 {
		i = len(args)
	}
	if err := addrs(&n.Addrs, args[1:i]); err != nil {
		return err
	}
	for _, w := range args[min(i+1, len(args)):] {
		prefix, err := netip.ParsePrefix(w)
		if err != nil {
			return err
		}
		n.PodCIDRs = append(n.PodCIDRs, prefix)
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
	p.pods = append(p.pods, pod)
	return addrs(&p.pods[len(p.pods)-1].Addrs, args[1:])
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
	s := p.services[len(p.services)-1]
	s.spec.Ports = append(s.spec.Ports, model.Port{Name: args[0], Protocol: proto, Port: uint16(number)})
	return nil
}

// endpoint makes a slice for every endpoint: the model must put them together.
func (p *parser) endpoint(args []string) error {
	to, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	e := model.Endpoint{Addr: to.Addr(), Node: args[2]}
	switch args[1] {
	case "ready":
		e.Ready, e.Serving = true, true
	case "serving":
		e.Serving, e.Terminating = true, true
	case "terminating":
		e.Terminating = true
	case "notready":
	default:
		return fmt.Errorf("state %q", args[1])
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
	actions := map[string]model.Action{"pass": model.Pass, "reject": model.Reject, "forward": model.Forward, "local": model.Local}
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
	b := model.NewBuilder(p.self, p.dns)
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
	p.worlds = append(p.worlds, World{p.name, b.Build(), p.rows})
}
