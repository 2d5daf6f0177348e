// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/dns/rules"
	"github.com/fairlead/fairlead/model"
)

// plan is the blocks of a configuration, made ready for questions. It never changes: a reload puts another one in its place, and a question keeps the
// one that it began with.
type plan struct {
	blocks  []*served
	entries []entry // the zones of all blocks, those with more labels first
	zones   []*zone // the cluster's, of all blocks
}

// served is a block made ready.
type served struct {
	name string // its label
	Block
	zone      *zone              // nil if the cluster is not served here
	rules     *rules.Set         // nil if there are none
	upstreams *forward.Forwarder // nil without upstreams
	refusal   string             // what is said to a question that nothing of the block answers
	// cluster are the addresses of the cluster's DNS, if the block is bound to one of them: then it is also for what comes to the node's own
	// addresses, where other nodes ask while the cluster's DNS is not answered on theirs.
	cluster []netip.Addr
}

// entry leads from a zone to its block.
type entry struct {
	name   string
	wire   []byte // the name, in lower case
	labels int
	*served
}

// newPlan makes blocks ready. Its error names the block, and what about it is wrong.
func newPlan(o Options) (*plan, error) {
	if len(o.Blocks) == 0 {
		return nil, errors.New("no block says what is to be answered")
	}
	p := new(plan)
	for _, b := range o.Blocks {
		s, err := newServed(o, b)
		if err != nil {
			p.close()
			return nil, fmt.Errorf("block %s: %w", strings.Join(b.Zones, " "), err)
		}
		p.blocks = append(p.blocks, s)
		if s.zone != nil {
			p.zones = append(p.zones, s.zone)
		}
		for _, name := range b.Zones {
			wire := wireName(name)
			if wire == nil {
				p.close()
				return nil, fmt.Errorf("block %s: %q is no name", strings.Join(b.Zones, " "), name)
			}
			p.entries = append(p.entries, entry{name, bytes.ToLower(wire), mdns.CountLabel(name), s})
		}
	}
	for _, z := range p.zones {
		if z.main == nil {
			z.main = p.domain()
		}
		if z.main == nil {
			p.close()
			return nil, fmt.Errorf("zones %s: the names that addresses lead to want a cluster domain", strings.Join(z.Zones, " "))
		}
	}
	// Of blocks with the same zone, one that is bound to the node's own address comes before one that is for it because of the cluster's DNS.
	slices.SortStableFunc(p.entries, func(a, b entry) int { return cmp.Or(b.labels-a.labels, len(a.cluster)-len(b.cluster)) })
	if err := p.unique(); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// Check is the error with which [New] and [Server.Reload] refuse blocks, whatever the other settings; nil: they are right.
func Check(blocks []Block) error {
	p, err := newPlan(Options{Blocks: blocks}.withDefaults())
	if err == nil {
		p.close()
	}
	return err
}

// unique refuses two blocks that would answer the same questions.
func (p *plan) unique() error {
	for i, a := range p.entries {
		for _, b := range p.entries[i+1:] {
			if bytes.Equal(a.wire, b.wire) && a.Port == b.Port && (len(a.Bind) == 0 || len(b.Bind) == 0 || slices.ContainsFunc(a.Bind, func(x netip.Addr) bool { return slices.Contains(b.Bind, x) })) {
				return fmt.Errorf("two blocks are for %s at port %d", strings.Join(a.Zones, " "), a.Port)
			}
		}
	}
	return nil
}

// adopt has the forwarders go on where those of the same zones, at the same addresses, were: with what those know of upstreams and of their answers.
func (p *plan) adopt(old *plan) {
	for _, s := range p.blocks {
		if s.upstreams == nil {
			continue
		}
		for _, o := range old.blocks {
			if o.upstreams != nil && o.Port == s.Port && slices.Equal(o.Bind, s.Bind) && slices.Equal(o.Zones, s.Zones) {
				s.upstreams.Adopt(o.upstreams)
				break
			}
		}
	}
}

func newServed(o Options, b Block) (*served, error) {
	s := &served{Block: b, name: b.label()}
	for _, a := range o.Self {
		s.cluster = append(s.cluster, a.Addr())
	}
	if !slices.ContainsFunc(b.Bind, func(a netip.Addr) bool { return slices.Contains(s.cluster, a) }) {
		s.cluster = nil
	}
	var err error
	if b.Cluster != nil {
		if s.zone, err = newZone(b.Cluster, o); err != nil {
			return nil, err
		}
	}
	if s.rules, err = rules.New(b.Rules); err != nil {
		return nil, err
	}
	s.refusal = "no upstream is configured for this name"
	if s.zone != nil && len(s.zone.domains) > 0 {
		s.refusal = "no upstream resolver is configured: only names below " + s.zone.domains[0].name + " and the cluster's reverse names are answered"
	}
	if len(b.Forward) > 0 {
		s.upstreams, err = forward.New(forward.Options{Pools: b.Forward, Caching: b.Caching, Timeout: o.UpstreamTimeout, Rotate: b.Loadbalance, Self: o.Self,
			Zones: b.label(), Metrics: o.forwarding, Logger: o.Logger, Now: o.Now})
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// label is the block in metrics: what tells it from others.
func (b Block) label() string {
	out := strings.Join(b.Zones, " ")
	if b.Port != 0 && b.Port != model.DNSPort {
		out += fmt.Sprintf(" port %d", b.Port)
	}
	for _, a := range b.Bind {
		out += " on " + a.String()
	}
	return out
}

// find is the block with the deepest zone that a usual question is in, among those for the address that it came to.
func (p *plan) find(q *plain, at netip.AddrPort) *served {
	for i := range p.entries {
		e := &p.entries[i]
		if _, ok := q.below(e.wire, e.labels); ok && e.at(at) {
			return e.served
		}
	}
	return nil
}

// findName is find for any name, in presentation form.
func (p *plan) findName(name string, at netip.AddrPort) *served {
	for _, e := range p.entries {
		if mdns.IsSubDomain(e.name, name) && e.at(at) {
			return e.served
		}
	}
	return nil
}

// at reports whether the block is for questions at an address. The zero address, of a question that has not come over the network, fits all.
func (s *served) at(a netip.AddrPort) bool {
	if !a.IsValid() {
		return true
	}
	if s.Port != 0 && a.Port() != s.Port {
		return false
	}
	return len(s.Bind) == 0 || slices.Contains(s.Bind, a.Addr()) || len(s.cluster) > 0 && !slices.Contains(s.cluster, a.Addr())
}

// ports are where questions are to be taken.
func (p *plan) ports() (ports []uint16) {
	for _, s := range p.blocks {
		port := s.Port
		if port == 0 {
			port = model.DNSPort
		}
		if !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	return ports
}

// target takes a name apart as the block's cluster has it; of the kind kindOutside if it is none of its names.
func (s *served) target(name string) target {
	if s.zone == nil {
		return target{}
	}
	return s.zone.parse(name)
}

// fallsThrough reports whether a name that the cluster does not have is left to the upstreams.
func (s *served) fallsThrough(name string) bool {
	return s.upstreams != nil && s.zone != nil && slices.ContainsFunc(s.Cluster.Fallthrough, func(z string) bool { return mdns.IsSubDomain(z, name) })
}

// domain is the cluster's domain; nil if no block serves one.
func (p *plan) domain() *domain {
	for _, z := range p.zones {
		if len(z.domains) > 0 {
			return z.domains[0]
		}
	}
	return nil
}

// primary is the name of the cluster's domain; empty if no block serves one.
func (p *plan) primary() string {
	if d := p.domain(); d != nil {
		return d.name
	}
	return ""
}

// targetOf is what a name is to the cluster in whatever block has it.
func (p *plan) targetOf(name string) target {
	if s := p.findName(name, netip.AddrPort{}); s != nil {
		return s.target(name)
	}
	return target{}
}

func (p *plan) close() {
	for _, s := range p.blocks {
		if s.upstreams != nil {
			s.upstreams.Close(ended)
		}
	}
}

// ended is a context that has ended.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()
