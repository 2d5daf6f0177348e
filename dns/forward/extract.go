// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"
)

const (
	// maxChain bounds the aliases that lead from a name to its records, however many messages they come in.
	maxChain = 16
	// maxProofs bounds the records looked at for a proof, which consists of a few.
	maxProofs = 32
)

var errReferral = errors.New("it refers to other servers: it is no resolver")

// chain follows a question from its name through aliases to its records, taking from each message only what belongs to it.
type chain struct {
	found
	qtype uint16
	do    bool
	end   string // the name reached, in lower case
	seen  []string
	// ours tells whether a name is for the upstream of the message at hand to tell: one of a stub domain is not asked about the rest of the world.
	ours func(name string) bool
}

func newChain(name string, qtype uint16, do bool) *chain {
	return &chain{found: found{ttl: 1<<31 - 1, ad: true}, qtype: qtype, do: do, end: name, seen: []string{name}}
}

// follow takes what belongs to the question from an upstream's message, and reports whether that completes the answer. If not, the name to
// ask for next is the chain's end.
func (c *chain) follow(m *mdns.Msg) (complete bool, err error) {
	c.ad = c.ad && m.AuthenticatedData
	before := len(c.answer)
	for {
		if c.take(m.Answer, c.end, c.qtype) {
			c.rcode = mdns.RcodeSuccess
			c.proofs(m.Ns)
			c.additional(m.Extra)
			return true, nil
		}
		if c.qtype == mdns.TypeCNAME || c.qtype == mdns.TypeANY {
			break
		}
		target, ok := c.alias(m.Answer)
		if !ok {
			break
		}
		if err := c.reach(target); err != nil {
			return false, err
		}
		c.end = target
		if !c.ours(target) {
			c.crossed = true
			return false, nil
		}
	}
	return c.deny(m, len(c.answer) > before)
}

// attempt is follow that leaves the chain as it is if it fails.
func (c *chain) attempt(m *mdns.Msg) (complete bool, err error) {
	next := *c
	next.answer, next.seen = slices.Clone(c.answer), slices.Clone(c.seen)
	if complete, err = next.follow(m); err == nil {
		*c = next
	}
	return complete, err
}

// reach takes note of an alias's target, unless the aliases go round or on and on.
func (c *chain) reach(target string) error {
	if slices.Contains(c.seen, target) {
		return fmt.Errorf("the aliases of %s lead back to %s", c.seen[0], target)
	}
	if c.seen = append(c.seen, target); len(c.seen) > maxChain {
		return fmt.Errorf("%s has more than %d aliases, one after the other", c.seen[0], maxChain)
	}
	return nil
}

// take keeps the records of a name and type, and their signatures if those are wanted.
func (c *chain) take(rrs []mdns.RR, name string, rrtype uint16) bool {
	before := len(c.answer)
	for _, rr := range rrs {
		if h := rr.Header(); mine(rr, name) && (h.Rrtype == rrtype || rrtype == mdns.TypeANY) {
			c.answer = append(c.answer, c.own(rr, name))
		}
	}
	if len(c.answer) == before {
		return false
	}
	if rrtype != mdns.TypeANY {
		c.signatures(&c.answer, rrs, name, rrtype)
	}
	return true
}

func (c *chain) signatures(to *[]mdns.RR, from []mdns.RR, name string, covered uint16) {
	if !c.do || covered == mdns.TypeRRSIG {
		return
	}
	for _, rr := range from {
		if sig, ok := rr.(*mdns.RRSIG); ok && sig.TypeCovered == covered && mine(rr, name) {
			*to = append(*to, c.own(rr, name))
		}
	}
}

// mine reports whether a record is in class IN, of a name in lower case, no pseudo-record, and not empty, as in updates only.
func mine(rr mdns.RR, name string) bool {
	h := rr.Header()
	switch h.Rrtype {
	case mdns.TypeOPT, mdns.TypeTSIG, mdns.TypeTKEY, mdns.TypeSIG:
		return false
	}
	if h.Rdlength == 0 {
		return false
	}
	return h.Class == mdns.ClassINET && len(h.Name) == len(name) && strings.EqualFold(h.Name, name)
}

// own is a record under the name as it is spelled here, and counts its TTL in. TTLs with the highest bit are zero (RFC 2181, section 8).
func (c *chain) own(rr mdns.RR, name string) mdns.RR {
	h := rr.Header()
	h.Name = name
	if h.Ttl > 1<<31-1 {
		h.Ttl = 0
	}
	c.ttl = min(c.ttl, h.Ttl)
	return rr
}

// alias keeps the alias of the chain's end, if it has one, and gives its target in lower case. A DNAME above it implies one, whether the upstream
// says so or not (RFC 6672).
func (c *chain) alias(rrs []mdns.RR) (string, bool) {
	for _, rr := range rrs {
		d, ok := rr.(*mdns.DNAME)
		if !ok {
			continue
		}
		owner := strings.ToLower(d.Hdr.Name)
		if owner == c.end || !mdns.IsSubDomain(owner, c.end) || !mine(rr, owner) || !c.ours(owner) {
			continue
		}
		target := strings.TrimSuffix(c.end, owner) + d.Target
		if owner == "." {
			target = c.end + strings.TrimPrefix(d.Target, ".")
		} else if d.Target == "." {
			target = strings.TrimSuffix(c.end, owner)
		}
		if _, ok := mdns.IsDomainName(target); !ok {
			continue
		}
		c.answer = append(c.answer, c.own(rr, owner))
		c.signatures(&c.answer, rrs, owner, mdns.TypeDNAME)
		c.answer = append(c.answer, &mdns.CNAME{Hdr: mdns.RR_Header{Name: c.end, Rrtype: mdns.TypeCNAME, Class: mdns.ClassINET, Ttl: d.Hdr.Ttl}, Target: target})
		return strings.ToLower(target), true
	}
	for _, rr := range rrs {
		if alias, ok := rr.(*mdns.CNAME); ok && mine(rr, c.end) {
			c.answer = append(c.answer, c.own(rr, c.end))
			c.signatures(&c.answer, rrs, c.end, mdns.TypeCNAME)
			return strings.ToLower(alias.Target), true
		}
	}
	return "", false
}

// deny reads a message that has no records for the chain's end: a denial, with its SOA if that is of a zone that the end is in; or half a
// chain; or the word of a server that is no resolver.
func (c *chain) deny(m *mdns.Msg, aliases bool) (bool, error) {
	c.rcode = m.Rcode
	for _, rr := range m.Ns {
		soa, ok := rr.(*mdns.SOA)
		zone := strings.ToLower(rr.Header().Name)
		if !ok || !mine(soa, zone) || !mdns.IsSubDomain(zone, c.end) {
			continue
		}
		soa.Hdr.Ttl = min(soa.Hdr.Ttl, soa.Minttl) // RFC 2308, section 5
		c.ns = append(c.ns, c.own(soa, zone))
		c.signatures(&c.ns, m.Ns, zone, mdns.TypeSOA)
		c.proofs(m.Ns)
		c.denial, c.keep = true, true
		return true, nil
	}
	if c.rcode == mdns.RcodeSuccess {
		if aliases {
			return false, nil
		}
		if !m.Authoritative && slices.ContainsFunc(m.Ns, func(rr mdns.RR) bool { return rr.Header().Rrtype == mdns.TypeNS }) {
			return false, errReferral
		}
	}
	c.denial = true
	return true, nil
}

// proofs keeps the signed records that prove a denial, or that a wildcard was rightly used, of a zone that a name of the chain is in. Without
// its signature such a record proves nothing.
func (c *chain) proofs(rrs []mdns.RR) {
	if !c.do {
		return
	}
	seen := 0
	for _, rr := range rrs {
		h := rr.Header()
		if h.Rrtype != mdns.TypeNSEC && h.Rrtype != mdns.TypeNSEC3 {
			continue
		}
		if seen++; seen > maxProofs {
			return
		}
		name := strings.ToLower(h.Name)
		if mine(rr, name) && slices.ContainsFunc(rrs, func(other mdns.RR) bool { return c.signs(other, name, h.Rrtype) }) {
			c.ns = append(c.ns, c.own(rr, name))
			c.signatures(&c.ns, rrs, name, h.Rrtype)
		}
	}
}

func (c *chain) signs(rr mdns.RR, name string, covered uint16) bool {
	sig, ok := rr.(*mdns.RRSIG)
	return ok && sig.TypeCovered == covered && mine(rr, name) && mdns.IsSubDomain(sig.SignerName, name) &&
		slices.ContainsFunc(c.seen, func(n string) bool { return mdns.IsSubDomain(sig.SignerName, n) })
}

// additional keeps the addresses of names that the answer points to, if this upstream is the one to ask for them too: it could as well lie
// when asked. Whatever else is there is dropped.
func (c *chain) additional(rrs []mdns.RR) {
	var targets []string
	for _, rr := range c.answer {
		target := ""
		switch rr := rr.(type) {
		case *mdns.SRV:
			target = rr.Target
		case *mdns.MX:
			target = rr.Mx
		case *mdns.NS:
			target = rr.Ns
		case *mdns.SVCB:
			target = rr.Target
		case *mdns.HTTPS:
			target = rr.Target
		}
		if target = strings.ToLower(target); target != "" && !slices.Contains(targets, target) && len(targets) < 32 && c.ours(target) {
			targets = append(targets, target)
		}
	}
	for _, target := range targets {
		for _, rrtype := range []uint16{mdns.TypeA, mdns.TypeAAAA} {
			before := len(c.extra)
			for _, rr := range rrs {
				if rr.Header().Rrtype == rrtype && mine(rr, target) {
					c.extra = append(c.extra, c.own(rr, target))
				}
			}
			if len(c.extra) > before {
				c.signatures(&c.extra, rrs, target, rrtype)
			}
		}
	}
}

// splice completes the answer with one about the chain's end that is complete itself.
func (c *chain) splice(r *Reply) error {
	m := r.Msg()
	for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		c.ttl = min(c.ttl, rr.Header().Ttl)
		if alias, ok := rr.(*mdns.CNAME); ok && c.qtype != mdns.TypeCNAME {
			if err := c.reach(strings.ToLower(alias.Target)); err != nil {
				return err
			}
		}
	}
	c.answer, c.ns, c.extra = append(c.answer, m.Answer...), append(c.ns, m.Ns...), append(c.extra, m.Extra...)
	c.rcode, c.ad, c.denial, c.crossed = int(r.e.rcode), c.ad && r.e.ad, r.e.denial, c.crossed || r.e.crossed
	c.keep = c.denial && len(m.Ns) > 0
	return nil
}
