// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/rules"
)

func (b *builder) readRoot(d *directive) error {
	b.options(d, nil)
	if err := expect(d.args, 1, 1); err != nil {
		return err
	}
	b.root = locate(d.args[0], d.name.File)
	return nil
}

func (b *builder) readBind(d *directive) error {
	b.options(d, map[string]func([]string) error{})
	if err := expect(d.args, 1, -1); err != nil {
		return err
	}
	for _, text := range d.args {
		a, err := netip.ParseAddr(text)
		switch {
		case strings.Contains(text, "__PILLAR__"):
			return fmt.Errorf("%s is to be replaced by an address", text)
		case err != nil:
			return b.argument(d, "INTERFACE", text)
		}
		if a = a.Unmap(); !slices.Contains(b.block.Bind, a) {
			b.block.Bind = append(b.block.Bind, a)
		}
	}
	return nil
}

func (b *builder) readKubernetes(d *directive) error {
	zones, err := b.namesOrZones(d.args)
	c := &dns.Cluster{Zones: zones, TTL: dns.DefaultTTL}
	b.block.Cluster = c // even if it is refused, so that what needs it is not refused too
	b.options(d, map[string]func([]string) error{
		"pods": func(args []string) error {
			modes := map[string]dns.PodNames{"disabled": dns.PodsDisabled, "insecure": dns.PodsInsecure, "verified": dns.PodsVerified}
			if len(args) == 1 {
				mode, ok := modes[args[0]]
				if c.Pods = mode; ok {
					if mode == dns.PodsVerified {
						d.differs(Differently, "verified are this node's pods and the endpoints of headless Services")
					}
					return nil
				}
			}
			return errors.New("expected disabled, insecure or verified")
		},
		"ttl": func(args []string) error {
			if len(args) > 0 {
				if n, err := strconv.Atoi(args[0]); err == nil && n >= 0 && n <= 3600 {
					c.TTL = time.Duration(n) * time.Second
					return nil
				}
			}
			return errors.New("expected seconds from 0 to 3600")
		},
		"endpoint_pod_names": on(&c.EndpointPodNames),
		"fallthrough":        fallthroughs(&c.Fallthrough),
		"ignore": func(args []string) error {
			if len(args) == 0 || args[0] != "empty_service" {
				return errors.New("expected empty_service")
			}
			c.IgnoreEmpty = true
			return nil
		},
		"namespaces": func(args []string) error {
			c.Namespaces = append(c.Namespaces, args...)
			return expect(args, 1, -1)
		},
		"noendpoints": func(args []string) error { return expect(args, 0, 0) },
	})
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(zones, func(z string) bool { return !isReverse(z) }) {
		return errors.New("expected a zone that is not a reverse one")
	}
	return nil
}

func (b *builder) readRewrite(d *directive) error {
	args := d.args
	if len(args) < 2 {
		for d.NextBlock() {
			args = append(args, d.Val())
		}
	}
	more := false
	if len(args) > 0 {
		switch strings.ToLower(args[0]) {
		case "continue":
			more = true
			args = args[1:]
		case "stop":
			args = args[1:]
		}
	}
	if len(args) == 0 {
		return errors.New("expected what to rewrite")
	}
	kind := strings.ToLower(args[0])
	if kind == "answer" {
		return errors.New("an answer is rewritten behind the name")
	}
	if err := b.argument(d, kind, kind); err != nil {
		return err
	}
	var rule rules.Rewrite
	var err error
	switch args = args[1:]; kind {
	case "name":
		rule, err = nameRewrite(args, more)
	case "type":
		r := rules.TypeRewrite{Continue: more}
		r.From, r.To, err = fromTo(mdns.StringToType, "type", args)
		rule = r
	case "class":
		r := rules.ClassRewrite{Continue: more}
		r.From, r.To, err = fromTo(mdns.StringToClass, "class", args)
		rule = r
	case "ttl":
		var on rules.On
		if on, args, err = readOn(args, 1); err == nil {
			r := rules.TTLRewrite{On: on, Continue: more}
			r.Min, r.Max, err = ttls(args[0])
			rule = r
		}
	case "rcode":
		var on rules.On
		if on, args, err = readOn(args, 2); err == nil {
			r := rules.RcodeRewrite{On: on, Continue: more}
			if r.From, err = rcode(args[0]); err == nil {
				r.To, err = rcode(args[1])
			}
			rule = r
		}
	}
	if err != nil {
		return err
	}
	return b.rule(rules.Rules{Rewrites: []rules.Rewrite{rule}})
}

// rule adds rules to the block, if they make sense.
func (b *builder) rule(r rules.Rules) error {
	if _, err := rules.New(r); err != nil {
		return errors.Unwrap(err) // the rule itself is in the note
	}
	b.block.Rules.Rewrites = append(b.block.Rules.Rewrites, r.Rewrites...)
	b.block.Rules.Templates = append(b.block.Rules.Templates, r.Templates...)
	return nil
}

// readOn reads which names a rule is about, in front of so many arguments: a kind and a pattern, or a name alone.
func readOn(args []string, rest int) (rules.On, []string, error) {
	if err := expect(args, 1+rest, 2+rest); err != nil {
		return rules.On{}, nil, err
	}
	if len(args) == 1+rest {
		return rules.On{Kind: rules.Exact, Pattern: args[0]}, args[1:], nil
	}
	kind, err := kindOf(args[0])
	return rules.On{Kind: kind, Pattern: args[1]}, args[2:], err
}

func kindOf(s string) (rules.Kind, error) {
	i := slices.Index(rules.Kinds, strings.ToLower(s))
	if i < 0 {
		return 0, fmt.Errorf("%q is none of %s", s, strings.Join(rules.Kinds, ", "))
	}
	return rules.Kind(i), nil
}

func nameRewrite(args []string, more bool) (rules.Rewrite, error) {
	if err := expect(args, 2, -1); err != nil {
		return nil, err
	}
	r := rules.NameRewrite{On: rules.On{Kind: rules.Exact, Pattern: args[0]}, To: args[1], Continue: more}
	if len(args) == 2 {
		return r, nil
	}
	kind, err := kindOf(args[0])
	r.On, r.To = rules.On{Kind: kind, Pattern: args[1]}, args[2]
	if err != nil || len(args) == 3 {
		return r, err
	}
	// The word answer stands before the first of the answer's rules, and may before the others.
	rest := args[3:]
	if rest[0] != "answer" {
		return nil, fmt.Errorf("expected answer, not %q", rest[0])
	}
	for len(rest) > 0 {
		if rest[0] == "answer" {
			rest = rest[1:]
		}
		switch {
		case len(rest) == 0:
			return nil, errors.New("expected auto, name or value after answer")
		case rest[0] == "auto":
			r.Auto = true
			rest = rest[1:]
		case (rest[0] == "name" || rest[0] == "value") && len(rest) > 2:
			r.Answers = append(r.Answers, rules.AnswerRewrite{Value: rest[0] == "value", From: rest[1], To: rest[2]})
			rest = rest[3:]
		case rest[0] == "name" || rest[0] == "value":
			return nil, fmt.Errorf("expected 2 arguments after answer %s", rest[0])
		default:
			return nil, fmt.Errorf("expected auto, name or value after answer, not %q", rest[0])
		}
	}
	return r, nil
}

// fromTo reads two types or classes.
func fromTo(of map[string]uint16, what string, args []string) (from, to uint16, err error) {
	if err := expect(args, 2, 2); err != nil {
		return 0, 0, err
	}
	for i, n := range []*uint16{&from, &to} {
		var ok bool
		if *n, ok = of[strings.ToUpper(args[i])]; !ok {
			return 0, 0, fmt.Errorf("%q is not a %s", args[i], what)
		}
	}
	return from, to, nil
}

// ttls reads a TTL, or a range of them of which either end may be left out.
func ttls(s string) (least, most uint32, err error) {
	parse := func(s string, none uint32) (uint32, error) {
		if s == "" {
			return none, nil
		}
		n, err := strconv.ParseUint(s, 10, 32)
		return uint32(n), err
	}
	from, to, ranged := strings.Cut(s, "-")
	if !ranged {
		to = from
	}
	least, err = parse(from, 0)
	most, err2 := parse(to, 1<<31-1)
	if err = errors.Join(err, err2); err != nil || from == "" && to == "" {
		return 0, 0, fmt.Errorf("%q is neither a TTL in seconds nor a range", s)
	}
	return least, most, nil
}

func rcode(s string) (int, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil && n <= 23 {
		return int(n), nil
	}
	if n, ok := mdns.StringToRcode[strings.ToUpper(s)]; ok {
		return n, nil
	}
	return 0, fmt.Errorf("%q is not a response code", s)
}

func (b *builder) readTemplate(d *directive) error {
	t := rules.Template{}
	some := func(to *[]string) func([]string) error {
		return func(args []string) error {
			*to = append(*to, args...)
			return expect(args, 1, -1)
		}
	}
	b.options(d, map[string]func([]string) error{
		"match":      some(&t.Match),
		"answer":     some(&t.Answer),
		"additional": some(&t.Additional),
		"authority":  some(&t.Authority),
		"rcode": func(args []string) (err error) {
			if err := expect(args, 1, 1); err != nil {
				return err
			}
			n, ok := mdns.StringToRcode[args[0]]
			if t.Rcode = n; !ok {
				return fmt.Errorf("%q is not a response code", args[0])
			}
			return nil
		},
		"ederror": func(args []string) error {
			if err := expect(args, 1, 2); err != nil {
				return err
			}
			code, err := strconv.ParseUint(args[0], 10, 16)
			t.Error = &mdns.EDNS0_EDE{InfoCode: uint16(code)}
			if len(args) == 2 {
				t.Error.ExtraText = args[1]
			}
			return err
		},
		"fallthrough": fallthroughs(&t.Fallthrough),
	})
	if err := expect(d.args, 2, -1); err != nil {
		return err
	}
	var ok bool
	if t.Class, ok = mdns.StringToClass[d.args[0]]; !ok {
		return fmt.Errorf("%q is not a class", d.args[0])
	}
	if t.Type, ok = mdns.StringToType[d.args[1]]; !ok {
		return fmt.Errorf("%q is not a type", d.args[1])
	}
	var err error
	if t.Zones, err = b.namesOrZones(d.args[2:]); err != nil {
		return err
	}
	return b.rule(rules.Rules{Templates: []rules.Template{t}})
}

func (b *builder) readHosts(d *directive) error {
	h := &rules.Hosts{TTL: 3600}
	read := map[string]func([]string) error{
		"fallthrough":             fallthroughs(&h.Fallthrough),
		"fallthrough_unsupported": on(&h.Unsupported),
		"no_reverse":              on(&h.NoReverse),
		"ttl": func(args []string) error {
			if len(args) > 0 {
				if n, err := strconv.Atoi(args[0]); err == nil && n > 0 && n <= 65535 {
					h.TTL = uint32(n)
					return nil
				}
			}
			return errors.New("expected seconds from 1 to 65535")
		},
		"reload": func(args []string) error {
			if err := expect(args, 1, 1); err != nil {
				return err
			}
			_, err := positive(args[0])
			return err
		},
	}
	for d.NextBlock() {
		if read[d.Val()] != nil {
			b.option(d, read)
			continue
		}
		t := token{File: d.File(), Line: d.Line(), Text: d.Val()}
		t.Text = strings.Join(append([]string{t.Text}, d.RemainingArgs()...), " ")
		hosts := rules.ParseHosts(t.Text)
		switch {
		case len(h.Fallthrough) > 0:
			b.refuse(t, "entries must stand before fallthrough")
		case len(hosts) == 0:
			b.note(t, t.Text, NoEffect, "it is not an address with names behind it")
		default:
			h.Inline = append(h.Inline, hosts...)
			b.note(t, "hosts "+t.Text, Honoured, "")
		}
	}
	if h.Unsupported && len(h.Fallthrough) == 0 {
		return errors.New("fallthrough_unsupported is nothing without fallthrough")
	}
	zones := d.args
	if len(d.args) == 0 {
		if err := b.argument(d, "without FILE", "without a file"); err != nil {
			return err
		}
	} else {
		zones = zones[1:]
		name := b.locate(d, d.args[0])
		text, err := b.read(name)
		if err != nil {
			d.differs(NoEffect, fmt.Sprintf("until the file is there: %v", err))
		}
		h.File = rules.ParseHosts(string(text))
	}
	var err error
	if h.Zones, err = b.namesOrZones(zones); err != nil {
		return err
	}
	b.block.Rules.Hosts = h
	return nil
}

func (b *builder) readAutopath(d *directive) error {
	b.options(d, map[string]func([]string) error{})
	if err := expect(d.args, 1, -1); err != nil {
		return err
	}
	from := d.args[len(d.args)-1]
	if from != "@kubernetes" {
		return b.argument(d, "FILE", from)
	}
	zones, err := b.namesOrZones(d.args[:len(d.args)-1])
	if err != nil {
		return err
	}
	c := b.block.Cluster
	if c == nil {
		return errors.New("it is nothing without kubernetes in the same server block")
	}
	if !slices.ContainsFunc(c.Zones, func(z string) bool { return allWithin([]string{z}, zones) }) {
		d.differs(NoEffect, "none of its zones is the cluster's")
		return nil
	}
	b.block.Autopath = true
	return nil
}

func (b *builder) readLoadbalance(d *directive) error {
	b.options(d, map[string]func([]string) error{})
	if len(d.args) > 0 {
		if err := b.argument(d, d.args[0], d.args[0]); err != nil {
			return err
		}
	}
	b.block.Loadbalance = true
	return expect(d.args, 0, 1)
}

func (b *builder) readErrors(d *directive) error {
	b.options(d, nil)
	if len(d.args) > 1 || len(d.args) == 1 && d.args[0] != "stdout" {
		return errors.New("expected nothing, or stdout")
	}
	b.block.Errors = true
	return nil
}

func (b *builder) readLog(d *directive) error {
	kinds := dns.Log{}
	b.options(d, map[string]func([]string) error{
		"class": func(args []string) error {
			for _, a := range args {
				switch a {
				case "all":
					kinds.Success, kinds.Denial, kinds.Error = true, true, true
				case "success":
					kinds.Success = true
				case "denial":
					kinds.Denial = true
				case "error":
					kinds.Error = true
				default:
					return fmt.Errorf("%q is none of all, success, denial and error", a)
				}
			}
			return expect(args, 1, -1)
		},
	})
	if kinds == (dns.Log{}) {
		kinds = dns.Log{Success: true, Denial: true, Error: true}
	}
	args := d.args
	if n := len(args); n > 1 && strings.Contains(args[n-1], "{") {
		if err := b.argument(d, "FORMAT", args[n-1]); err != nil {
			return err
		}
		args = args[:n-1]
	}
	if len(args) == 0 {
		args = []string{"."}
	}
	zones, err := names(args)
	for _, z := range zones {
		kinds.Zone = z
		b.block.Log = append(b.block.Log, kinds)
	}
	return err
}

// positive reads a duration that is not negative.
func positive(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err == nil && d < 0 {
		err = fmt.Errorf("%s is negative", s)
	}
	return d, err
}
