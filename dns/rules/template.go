// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"strconv"
	"strings"

	mdns "github.com/miekg/dns"
)

// Template answers questions with records that are made from their names.
type Template struct {
	// Class and Type are those asked for; ANY fits all.
	Class, Type uint16
	// Zones are the names below which this template is.
	Zones []string
	// Match are regular expressions, of which the first that fits a name counts; none: each name fits. A name that none fits is answered with
	// SERVFAIL, unless it falls through.
	Match []string
	// Fallthrough are the names below which what no expression fits is left to others.
	Fallthrough []string
	// Answer, Additional and Authority are records in zone-file form, as templates of package text/template with the fields Name, Zone, Type,
	// Class, Regex, Match (what the expression and its groups have matched) and Group (the same by number and by name), and the
	// function parseInt.
	Answer, Additional, Authority []string
	// Rcode is the response code; with SERVFAIL there is nothing else.
	Rcode int
	// Error is an extended error (RFC 8914) to add; nil: none.
	Error *mdns.EDNS0_EDE
}

// String has a line for the settings and one for each expression and record.
func (t Template) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "template %s %s %s", mdns.ClassToString[t.Class], mdns.Type(t.Type), strings.Join(t.Zones, " "))
	if t.Rcode != 0 {
		fmt.Fprintf(&b, ", rcode %s", mdns.RcodeToString[t.Rcode])
	}
	if len(t.Fallthrough) > 0 {
		fmt.Fprintf(&b, ", fall through %s", strings.Join(t.Fallthrough, " "))
	}
	if t.Error != nil {
		fmt.Fprintf(&b, ", error %d %q", t.Error.InfoCode, t.Error.ExtraText)
	}
	for _, s := range []struct {
		name  string
		texts []string
	}{{"match", t.Match}, {"answer", t.Answer}, {"additional", t.Additional}, {"authority", t.Authority}} {
		for _, text := range s.texts {
			fmt.Fprintf(&b, "\n  %s %q", s.name, text)
		}
	}
	return b.String()
}

// template is a [Template] made ready.
type template struct {
	Template
	zones, through                []string
	match                         []*matcher
	answers, additional, authorit []*record
}

func (t Template) compile() (template, error) {
	c := template{Template: t, zones: normals(t.Zones), through: normals(t.Fallthrough)}
	match := t.Match
	if len(match) == 0 {
		match = []string{".*"}
	}
	for _, m := range match {
		re, err := compileRegex(m)
		if err != nil {
			return c, err
		}
		c.match = append(c.match, newMatcher(re))
	}
	for _, s := range []struct {
		texts []string
		to    *[]*record
	}{{t.Answer, &c.answers}, {t.Additional, &c.additional}, {t.Authority, &c.authorit}} {
		for _, text := range s.texts {
			p, err := newRecord(text)
			if err != nil {
				return c, err
			}
			*s.to = append(*s.to, p)
		}
	}
	return c, nil
}

func (t *template) fits(name []byte, qtype, qclass uint16) (verdict, *matcher) {
	if t.Class != mdns.ClassANY && qclass != mdns.ClassANY && qclass != t.Class {
		return pass, nil
	}
	if t.Type != mdns.TypeANY && qtype != mdns.TypeANY && qtype != t.Type {
		return pass, nil
	}
	if match(t.zones, name) == "" {
		return pass, nil
	}
	for _, m := range t.match {
		if m.match(name) {
			return answer, m
		}
	}
	if match(t.through, name) == "" {
		return fail, nil
	}
	return pass, nil
}

// answer fills in the records for a name that one of the expressions fits.
func (t *template) answer(name string, m *matcher, q mdns.Question) (*Answer, error) {
	fail := &Answer{Rcode: mdns.RcodeServerFailure}
	if t.Rcode == mdns.RcodeServerFailure {
		return fail, nil
	}
	d := data{Zone: match(t.zones, []byte(name)), Name: name, Regex: m.text, Group: map[string]string{}}
	class, qtype := q.Qclass, q.Qtype
	if class == mdns.ClassANY {
		class = t.Class
	}
	if qtype == mdns.TypeANY {
		qtype = t.Type
	}
	d.Class, d.Type = mdns.ClassToString[class], mdns.TypeToString[qtype]
	d.Match = m.re.FindStringSubmatch(name)
	for i, s := range d.Match {
		d.Group[strconv.Itoa(i)] = s
	}
	for i, n := range m.re.SubexpNames() {
		if n != "" {
			d.Group[n] = d.Match[i]
		}
	}
	a := &Answer{Rcode: t.Rcode, Error: t.Error}
	for _, s := range []struct {
		from []*record
		to   *[]mdns.RR
	}{{t.answers, &a.Answer}, {t.additional, &a.Extra}, {t.authorit, &a.Ns}} {
		for _, p := range s.from {
			text, err := p.fill(&d)
			if err != nil {
				return fail, fmt.Errorf("fill in template for %q: %w", name, err)
			}
			rr, err := mdns.NewRR(text)
			if err == nil && rr == nil {
				err = fmt.Errorf("%q is no record", text)
			}
			if err != nil {
				return fail, fmt.Errorf("fill in template for %q: %w", name, err)
			}
			*s.to = append(*s.to, rr)
		}
	}
	if q.Qtype == mdns.TypeA || q.Qtype == mdns.TypeAAAA {
		for i, rr := range a.Answer {
			if rr.Header().Rrtype == mdns.TypeCNAME {
				a.Follow = append(a.Follow, i)
			}
		}
	}
	return a, nil
}
