// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	mdns "github.com/miekg/dns"
)

// Rules are what a [Set] is made of. The zero value is no rule at all.
type Rules struct {
	// Rewrites are tried in order.
	Rewrites []Rewrite
	// Templates are tried in order; the first that fits answers.
	Templates []Template
	// Hosts are asked for what no template answered; nil: there are none.
	Hosts *Hosts
}

// String has a line for each rule.
func (r Rules) String() string {
	var b strings.Builder
	for _, w := range r.Rewrites {
		fmt.Fprintln(&b, w)
	}
	for _, t := range r.Templates {
		fmt.Fprintln(&b, t)
	}
	if r.Hosts != nil {
		fmt.Fprintln(&b, r.Hosts)
	}
	return b.String()
}

// Set is rules made ready for use. A nil Set concerns nothing.
type Set struct {
	rewrites  []rewrite
	exact     map[string]bool // names of the rewrites that fit one name only
	patterns  []*rewrite      // the other rewrites
	templates []template
	hosts     *hosts
}

// New makes a set of rules; it is nil, which is as good, if there are none. Its error names the first rule that makes no sense.
func New(r Rules) (*Set, error) {
	if len(r.Rewrites) == 0 && len(r.Templates) == 0 && r.Hosts == nil {
		return nil, nil
	}
	s := &Set{exact: map[string]bool{}}
	for _, v := range r.Rewrites {
		w, err := v.compile()
		if err != nil {
			return nil, fmt.Errorf("%v: %w", v, err)
		}
		s.rewrites = append(s.rewrites, w)
	}
	for i := range s.rewrites {
		if w := &s.rewrites[i]; w.name != nil && w.name.kind == Exact {
			s.exact[w.name.text] = true
		} else {
			s.patterns = append(s.patterns, w)
		}
	}
	for _, v := range r.Templates {
		t, err := v.compile()
		if err != nil {
			return nil, fmt.Errorf("%v: %w", v, err)
		}
		s.templates = append(s.templates, t)
	}
	if r.Hosts != nil {
		s.hosts = r.Hosts.compile()
	}
	return s, nil
}

// buffers hold names in presentation form: at most 255 octets, of which each may take four.
var buffers = sync.Pool{New: func() any { return new([1024]byte) }}

// Concerns reports whether a rule has to do with a question: its name in wire form, in any case and uncompressed, its type and its
// class. It does not allocate. What is no name concerns nobody.
func (s *Set) Concerns(wire []byte, qtype, qclass uint16) bool {
	if s == nil {
		return false
	}
	b := buffers.Get().(*[1024]byte)
	defer buffers.Put(b)
	name, ok := appendName(b[:0], wire)
	return ok && s.concerns(name, qtype, qclass)
}

func (s *Set) concerns(name []byte, qtype, qclass uint16) bool {
	if len(s.exact) > 0 && s.exact[string(name)] {
		return true
	}
	for _, w := range s.patterns {
		if w.fits(name, qtype, qclass) {
			return true
		}
	}
	for i := range s.templates {
		if v, _ := s.templates[i].fits(name, qtype, qclass); v != pass {
			return true
		}
	}
	return s.hosts != nil && s.hosts.concerns(name, qtype)
}

// Answer is what a rule says to a question.
type Answer struct {
	// Rcode is the response code; with SERVFAIL there is nothing else.
	Rcode int
	// Answer, Ns and Extra are the records of the message's sections. They are the caller's to change.
	Answer, Ns, Extra []mdns.RR
	// Error is the extended error that a template adds (RFC 8914); nil: none.
	Error *mdns.EDNS0_EDE
	// Follow are the indices in Answer of aliases whose targets are to be looked up with the type asked for; what is found goes right
	// behind them.
	Follow []int
}

// Answer is what the templates or the hosts say to a question, as [Set.Rewrite] has left it; nil: nothing. An error is that of a
// template that could not be filled in, and comes with SERVFAIL.
func (s *Set) Answer(q mdns.Question) (*Answer, error) {
	if s == nil {
		return nil, nil
	}
	name := []byte(canonical(q.Name))
	for i := range s.templates {
		t := &s.templates[i]
		switch v, re := t.fits(name, q.Qtype, q.Qclass); v {
		case answer:
			return t.answer(string(name), re, q)
		case fail:
			return &Answer{Rcode: mdns.RcodeServerFailure}, nil
		}
	}
	if s.hosts == nil {
		return nil, nil
	}
	return s.hosts.answer(name, q), nil
}

// verdict is what a rule has to do with a question.
type verdict uint8

const (
	pass verdict = iota
	answer
	fail
)

// normal is a name of a configuration as rules compare it: with trailing dot and in lower case.
func normal(name string) string { return strings.ToLower(mdns.Fqdn(name)) }

func normals(names []string) []string {
	out := slices.Clone(names)
	for i := range out {
		out[i] = normal(out[i])
	}
	return out
}

// canonical is a name of a question as rules compare it: in lower case, escaped in the one way of [appendName].
func canonical(name string) string { return strings.ToLower(mdns.Name(name).String()) }

// match is the longest of the zones that a name is in; empty: none.
func match(zones []string, name []byte) string {
	longest := ""
	for _, z := range zones {
		if len(z) > len(longest) && within(name, z) {
			longest = z
		}
	}
	return longest
}

// within reports whether a name is a zone's or below it.
func within(name []byte, zone string) bool {
	if zone == "." {
		return true
	}
	at := len(name) - len(zone)
	if at < 0 || string(name[at:]) != zone {
		return false
	}
	if at == 0 {
		return true
	}
	slashes := 0
	for slashes < at-1 && name[at-2-slashes] == '\\' {
		slashes++
	}
	return name[at-1] == '.' && slashes%2 == 0
}

// plainly is how the octets of names that need no escape are written: letters in lower case.
var plainly = func() (p [256]byte) {
	for c := byte('!'); c <= '~'; c++ {
		if strings.IndexByte(`.'@;()"\`, c) < 0 {
			p[c] = c
		}
	}
	for c := byte('A'); c <= 'Z'; c++ {
		p[c] = c + 'a' - 'A'
	}
	return p
}()

// appendName writes a name in wire form as text, in lower case and with what is special escaped as package dns does.
func appendName(b, wire []byte) ([]byte, bool) {
	for i := 0; i < len(wire) && i < 255; {
		n := int(wire[i])
		i++
		switch {
		case n == 0 && i == 1:
			return append(b, '.'), true
		case n == 0:
			return b, true
		}
		if n > 63 || i+n > len(wire) {
			return nil, false
		}
		for _, c := range wire[i : i+n] {
			switch p := plainly[c]; {
			case p != 0:
				b = append(b, p)
			case c < ' ' || c > '~':
				b = append(b, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
			default:
				b = append(b, '\\', c)
			}
		}
		b = append(b, '.')
		i += n
	}
	return nil, false
}
