// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"

	mdns "github.com/miekg/dns"
)

// Kind says how a name is compared with a pattern. Names are compared as text in lower case, with their trailing dot.
type Kind uint8

// The kinds. All patterns but those of Regex are taken as names, so a dot is put after one that has none: a Prefix of "ftp-" is one of
// "ftp-.", which fits no more than whole first labels; and a Suffix need not begin where a label does.
const (
	Exact Kind = iota
	Prefix
	Suffix
	Substring
	Regex
)

// Kinds are the names of the kinds, in their order.
var Kinds = []string{"exact", "prefix", "suffix", "substring", "regex"}

// String is one of [Kinds].
func (k Kind) String() string { return Kinds[k] }

// On is what the name of a question must be for a rule to fit.
type On struct {
	Kind    Kind
	Pattern string
}

// String has the kind and the pattern.
func (o On) String() string { return o.Kind.String() + " " + strconv.Quote(o.Pattern) }

// Rewrite is one rule of rewriting: a [NameRewrite], [TypeRewrite], [ClassRewrite], [TTLRewrite] or [RcodeRewrite].
type Rewrite interface {
	fmt.Stringer
	compile() (rewrite, error)
}

// NameRewrite asks for another name.
type NameRewrite struct {
	On On
	// To is the other name; or, of Prefix, Suffix and Substring, what takes the pattern's place; or, of Regex, a name in which {1} stands
	// for what the first group has matched, and so on.
	To string
	// Auto gives the records of the answer that have the new name, as owner or within, the name that was asked for. Exact always does.
	Auto bool
	// Answers further change the records of the answer.
	Answers []AnswerRewrite
	// Continue lets the rules behind this one have a look at the outcome; otherwise it is the last.
	Continue bool
}

// AnswerRewrite changes names in the records of an answer.
type AnswerRewrite struct {
	// Value changes the name within a record of type CNAME, DNAME, MX, NAPTR, NS, PTR, SOA (the server) and SRV, instead of the owner's.
	Value bool
	// From is a regular expression, To as in [NameRewrite].
	From, To string
}

// TypeRewrite asks for another type. The question in the answer is the one that was asked.
type TypeRewrite struct {
	// From and To are types such as "ANY"; 0 fits nothing.
	From, To uint16
	Continue bool
}

// ClassRewrite asks in another class.
type ClassRewrite struct {
	From, To uint16
	Continue bool
}

// TTLRewrite bounds the TTLs, in seconds, of the records of an answer.
type TTLRewrite struct {
	On       On
	Min, Max uint32
	Continue bool
}

// RcodeRewrite changes a response code.
type RcodeRewrite struct {
	On       On
	From, To int
	Continue bool
}

// String is the rule as a Corefile has it.
func (r NameRewrite) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "rewrite%s name %v %q", then(r.Continue), r.On, r.To)
	if r.Auto {
		b.WriteString(" answer auto")
	}
	for _, a := range r.Answers {
		what := "name"
		if a.Value {
			what = "value"
		}
		fmt.Fprintf(&b, " answer %s %q %q", what, a.From, a.To)
	}
	return b.String()
}

// String is the rule as a Corefile has it.
func (r TypeRewrite) String() string {
	return fmt.Sprintf("rewrite%s type %s %s", then(r.Continue), mdns.Type(r.From), mdns.Type(r.To))
}

// String is the rule as a Corefile has it.
func (r ClassRewrite) String() string {
	return fmt.Sprintf("rewrite%s class %s %s", then(r.Continue), mdns.Class(r.From), mdns.Class(r.To))
}

// String is the rule as a Corefile has it.
func (r TTLRewrite) String() string {
	return fmt.Sprintf("rewrite%s ttl %v %d-%d", then(r.Continue), r.On, r.Min, r.Max)
}

// String is the rule as a Corefile has it.
func (r RcodeRewrite) String() string {
	return fmt.Sprintf("rewrite%s rcode %v %s %s", then(r.Continue), r.On, mdns.RcodeToString[r.From], mdns.RcodeToString[r.To])
}

func then(more bool) string {
	if more {
		return " continue"
	}
	return ""
}

// rewrite is a rule made ready.
type rewrite struct {
	more          bool
	name          *matcher // nil: any
	qtype, qclass uint16   // 0: any
	never         bool
	change        func(q *mdns.Question, name string) // nil: nothing
	auto          bool
	answers       []response
}

func (r *rewrite) fits(name []byte, qtype, qclass uint16) bool {
	return !r.never && (r.qtype == 0 || r.qtype == qtype) && (r.qclass == 0 || r.qclass == qclass) && (r.name == nil || r.name.match(name))
}

func (r NameRewrite) compile() (rewrite, error) {
	on, err := r.On.compile()
	w := rewrite{more: r.Continue, name: on, auto: r.Auto}
	if err != nil {
		return w, err
	}
	to := normal(r.To)
	switch r.On.Kind {
	case Exact:
		w.auto = true
		w.change = func(q *mdns.Question, _ string) { q.Name = to }
	case Prefix:
		w.change = func(q *mdns.Question, name string) { q.Name = to + name[len(on.text):] }
	case Suffix:
		// The way back is known beforehand, and is that of every name.
		if w.auto = false; r.Auto {
			back := suffixes{to, on.text}
			w.answers = append(w.answers, owners{back}, values{back})
		}
		w.change = func(q *mdns.Question, name string) { q.Name = name[:len(name)-len(on.text)] + to }
	case Substring:
		w.change = func(q *mdns.Question, name string) { q.Name = strings.ReplaceAll(name, on.text, to) }
	case Regex:
		if err := groups(on.re, r.To); err != nil {
			return w, err
		}
		w.change = func(q *mdns.Question, name string) { q.Name = expand(to, on.re.FindStringSubmatch(name)) }
	}
	for _, a := range r.Answers {
		re, err := compileRegex(a.From)
		if err != nil {
			return w, err
		}
		if err := groups(re, a.To); err != nil {
			return w, err
		}
		if r.Auto && !a.Value {
			return w, errors.New("the names of the answer are rewritten automatically or by a pattern, not both")
		}
		if m := (patterns{re, normal(a.To)}); a.Value {
			w.answers = append(w.answers, values{m})
		} else {
			w.answers = append(w.answers, owners{m})
		}
	}
	return w, nil
}

func (r TypeRewrite) compile() (rewrite, error) {
	return rewrite{more: r.Continue, qtype: r.From, never: r.From == 0 || r.To == 0,
		change: func(q *mdns.Question, _ string) { q.Qtype = r.To }}, nil
}

func (r ClassRewrite) compile() (rewrite, error) {
	return rewrite{more: r.Continue, qclass: r.From, never: r.From == 0 || r.To == 0,
		change: func(q *mdns.Question, _ string) { q.Qclass = r.To }}, nil
}

func (r TTLRewrite) compile() (rewrite, error) {
	on, err := r.On.compile()
	if r.Min > r.Max {
		err = fmt.Errorf("the TTL's minimum of %d s is above its maximum of %d s", r.Min, r.Max)
	}
	return rewrite{more: r.Continue, name: on, answers: []response{ttls{r.Min, r.Max}}}, err
}

func (r RcodeRewrite) compile() (rewrite, error) {
	on, err := r.On.compile()
	return rewrite{more: r.Continue, name: on, answers: []response{rcodes{r.From, r.To}}}, err
}

// Undo turns the answer to a rewritten question into one to the question that was asked.
type Undo struct {
	question mdns.Question
	answers  []response
}

// Rewrite is the question to ask in place of one, and what to do with the answer; nil: no rule fits. The error says that the outcome is
// not a name; the question is to be answered with SERVFAIL.
//
// The question in the answer is always the one that was asked; CoreDNS leaves it rewritten, and so unusable, if all rules that fit were of
// the kind that lets others follow and none changes answers.
func (s *Set) Rewrite(q mdns.Question) (mdns.Question, *Undo, error) {
	if s == nil {
		return q, nil, nil
	}
	var undo *Undo
	asked := q
	for i := range s.rewrites {
		w := &s.rewrites[i]
		name := canonical(q.Name)
		if !w.fits([]byte(name), q.Qtype, q.Qclass) {
			continue
		}
		if w.change != nil {
			w.change(&q, name)
		}
		if _, ok := mdns.IsDomainName(q.Name); !ok || len(q.Name) == 0 {
			return asked, nil, fmt.Errorf("%q was rewritten to %q, which is not a domain name", asked.Name, q.Name)
		}
		if undo == nil {
			undo = &Undo{question: asked}
		}
		if w.auto {
			back := names{q.Name, name}
			undo.answers = append(undo.answers, owners{back}, values{back})
		}
		undo.answers = append(undo.answers, w.answers...)
		if !w.more {
			break
		}
	}
	return q, undo, nil
}

// Apply changes a message, which must be nobody else's.
func (u *Undo) Apply(m *mdns.Msg) {
	m.Question = []mdns.Question{u.question}
	any := false
	for _, section := range [][]mdns.RR{m.Ns, m.Answer, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype == mdns.TypeOPT {
				continue // not a record: its TTL holds flags
			}
			any = true
			for i := len(u.answers) - 1; i >= 0; i-- {
				u.answers[i].apply(m, rr)
			}
		}
	}
	if any {
		return
	}
	for i := len(u.answers) - 1; i >= 0; i-- {
		if r, ok := u.answers[i].(rcodes); ok {
			r.apply(m, nil)
		}
	}
}

// response changes an answer, once for each of its records.
type response interface{ apply(m *mdns.Msg, rr mdns.RR) }

// mapping maps a name.
type mapping interface{ to(name string) string }

type (
	owners struct{ mapping }
	values struct{ mapping }
	ttls   struct{ min, max uint32 }
	rcodes struct{ from, to int }

	names    struct{ from, with string } // and those below it
	suffixes struct{ from, with string }
	patterns struct {
		re   *regexp.Regexp
		with string
	}
)

func (r owners) apply(_ *mdns.Msg, rr mdns.RR) { rr.Header().Name = r.to(rr.Header().Name) }

func (r values) apply(_ *mdns.Msg, rr mdns.RR) {
	if v := value(rr); v != nil && *v != "" {
		*v = r.to(*v)
	}
}

func (r ttls) apply(_ *mdns.Msg, rr mdns.RR) {
	h := rr.Header()
	h.Ttl = min(max(h.Ttl, r.min), r.max)
}

func (r rcodes) apply(m *mdns.Msg, _ mdns.RR) {
	if m.Rcode == r.from {
		m.Rcode = r.to
	}
}

// value is the name within a record; nil: it has none that is rewritten.
func value(rr mdns.RR) *string {
	switch rr := rr.(type) {
	case *mdns.CNAME:
		return &rr.Target
	case *mdns.DNAME:
		return &rr.Target
	case *mdns.MX:
		return &rr.Mx
	case *mdns.NAPTR:
		return &rr.Replacement
	case *mdns.NS:
		return &rr.Ns
	case *mdns.PTR:
		return &rr.Ptr
	case *mdns.SOA:
		return &rr.Ns
	case *mdns.SRV:
		return &rr.Target
	}
	return nil
}

func (m names) to(name string) string {
	if name == m.from {
		return m.with
	}
	if before, ok := strings.CutSuffix(name, "."+m.from); ok {
		return before + "." + m.with
	}
	return name
}

func (m suffixes) to(name string) string {
	if before, ok := strings.CutSuffix(name, m.from); ok {
		return before + m.with
	}
	return name
}

func (m patterns) to(name string) string {
	if g := m.re.FindStringSubmatch(name); g != nil {
		return expand(m.with, g)
	}
	return name
}

// expand puts what groups have matched in the place of {0}, {1} and so on: one after the other, so that what a group has matched may
// itself hold such a place.
func expand(to string, groups []string) string {
	for i, g := range groups {
		to = strings.ReplaceAll(to, "{"+strconv.Itoa(i)+"}", g)
	}
	return to
}

// groups reports whether a replacement uses more groups than an expression has.
func groups(re *regexp.Regexp, to string) error {
	used := 0
	for i := range 101 {
		if strings.Contains(to, "{"+strconv.Itoa(i)+"}") {
			used++
		}
	}
	if used > re.NumSubexp() {
		return fmt.Errorf("%q uses %d groups of a regular expression that has %d", to, used, re.NumSubexp())
	}
	return nil
}

// matcher is an [On] made ready. Of a regular expression it knows what every match begins with, ends with and has within, as far as that is
// literal: what lacks these is not searched.
type matcher struct {
	kind               Kind
	text               string
	re                 *regexp.Regexp
	head, within, tail []byte
}

func (o On) compile() (*matcher, error) {
	if o.Kind != Regex {
		return &matcher{kind: o.Kind, text: normal(o.Pattern)}, nil
	}
	re, err := compileRegex(o.Pattern)
	if err != nil {
		return nil, err
	}
	return newMatcher(re), nil
}

// compileRegex bounds the length, because what a long one takes to compile is not bounded.
func compileRegex(text string) (*regexp.Regexp, error) {
	if len(text) > 10_000 {
		return nil, fmt.Errorf("a regular expression of %d octets is longer than 10000", len(text))
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, fmt.Errorf("regular expression: %w", err)
	}
	return re, nil
}

func newMatcher(re *regexp.Regexp) *matcher {
	m := &matcher{kind: Regex, text: re.String(), re: re}
	tree, err := syntax.Parse(m.text, syntax.Perl)
	if err != nil {
		return m // cannot be: it was compiled
	}
	var parts []*syntax.Regexp
	var flatten func(*syntax.Regexp)
	flatten = func(x *syntax.Regexp) {
		switch x.Op {
		case syntax.OpConcat, syntax.OpCapture:
			for _, sub := range x.Sub {
				flatten(sub)
			}
		default:
			parts = append(parts, x)
		}
	}
	flatten(tree.Simplify())
	for i, p := range parts {
		if p.Op != syntax.OpLiteral || p.Flags&syntax.FoldCase != 0 {
			continue
		}
		literal := []byte(string(p.Rune))
		switch {
		case i == 1 && parts[0].Op == syntax.OpBeginText:
			m.head = literal
		case i == len(parts)-2 && parts[i+1].Op == syntax.OpEndText:
			m.tail = literal
		case len(literal) > len(m.within):
			m.within = literal
		}
	}
	return m
}

func (m *matcher) match(name []byte) bool {
	switch m.kind {
	case Exact:
		return string(name) == m.text
	case Prefix:
		return len(name) >= len(m.text) && string(name[:len(m.text)]) == m.text
	case Suffix:
		return len(name) >= len(m.text) && string(name[len(name)-len(m.text):]) == m.text
	case Substring:
		return bytes.Contains(name, []byte(m.text))
	}
	return bytes.HasPrefix(name, m.head) && bytes.HasSuffix(name, m.tail) && bytes.Contains(name, m.within) && m.re.Match(name)
}
