// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead/fairlead/cleanup"
	"github.com/fairlead/fairlead/model"
)

// iptables is what iptables-save printed, and follows packets as the kernel does. Of the rules in the chains that are everybody's, those only that lead to
// kube-proxy's chains count.
type iptables struct {
	is4    bool
	chains map[string]*rules // by table and chain: "nat KUBE-SERVICES"
}

// rules are a chain's.
type rules struct {
	name string
	all  []*rule
	// at has the rules for one address, protocol and port; other has those that are for many. Chains of ten thousand Services are searched for each packet.
	at    map[model.Frontend][]int
	other []int
}

// rule is a rule that was taken apart.
type rule struct {
	text             string
	chain, comment   string
	src, dst         prefixMatch
	proto            model.Protocol // 0: any
	port             uint16         // 0: any
	srcType, dstType typeMatch
	mark             *markMatch
	never            bool          // it is for clients that were here before, or packets that are not the first
	drawn            bool          // it is taken at random
	affinity         time.Duration // for which a client is remembered
	target           string
	jumps            bool // -j, not -g
	to               netip.AddrPort
	set              *markSet
	strange          string // what is not understood of it
}

type prefixMatch struct {
	prefix netip.Prefix
	not    bool
}

func (m prefixMatch) ok(a netip.Addr) bool {
	return !m.prefix.IsValid() || m.prefix.Contains(a) != m.not
}

// typeMatch is about whether an address is the node's own.
type typeMatch struct{ local, not bool }

func (m typeMatch) ok(local bool) bool { return !m.local || local != m.not }

type markMatch struct {
	value, mask uint32
	not         bool
}

type markSet struct{ value, mask uint32 }

// newIPTables takes the rules apart that matter; nil if there is no chain of kube-proxy's.
func newIPTables(s cleanup.Saved) *iptables {
	t := &iptables{is4: !s.IPv6, chains: make(map[string]*rules)}
	found := false
	for _, table := range s.Tables {
		if table.Name != "nat" && table.Name != "filter" {
			continue
		}
		for _, c := range table.Chains {
			t.chains[table.Name+" "+c] = &rules{name: c, at: make(map[model.Frontend][]int)}
			found = found || table.Name == "nat" && c == "KUBE-SERVICES"
		}
		for _, text := range table.Rules {
			r := newRule(text)
			c := t.chains[table.Name+" "+r.chain]
			if c == nil || !cleanup.KubeProxys(table.Name, r.chain) && !cleanup.KubeProxys(table.Name, r.target) {
				continue
			}
			c.add(r)
		}
	}
	if !found {
		return nil
	}
	return t
}

func (c *rules) add(r *rule) {
	i := len(c.all)
	c.all = append(c.all, r)
	if f, ok := r.frontend(); ok {
		c.at[f] = append(c.at[f], i)
	} else {
		c.other = append(c.other, i)
	}
}

// frontend is the one destination that a rule is for.
func (r *rule) frontend() (model.Frontend, bool) {
	p := r.dst.prefix
	return model.Frontend{Addr: p.Addr(), Protocol: r.proto, Port: r.port},
		p.IsValid() && !r.dst.not && p.IsSingleIP() && r.proto != 0 && r.port != 0
}

// candidates are the rules that may match, in their order.
func (c *rules) candidates(p *trip) []int {
	at := c.at[model.Frontend{Addr: p.to.Addr(), Protocol: p.Protocol, Port: p.to.Port()}]
	switch {
	case len(at) == 0:
		return c.other
	case len(c.other) == 0:
		return at
	}
	both := slices.Concat(at, c.other)
	slices.Sort(both)
	return both
}

// newRule takes a line of iptables-save apart.
func newRule(text string) *rule {
	r := &rule{text: text}
	words := cleanup.Words(text)
	not, seconds, checks := false, 0, false
	for i := 0; i < len(words); i++ {
		word := words[i]
		value := func() string {
			if i+1 < len(words) {
				i++
				return words[i]
			}
			r.strange = word + " without a value"
			return ""
		}
		switch word {
		case "!":
			not = true
			continue
		case "-A":
			r.chain = value()
		case "--comment":
			r.comment = value()
		case "-m", "--mode", "--name", "--mask", "--reject-with", "--nfacct-name":
			value()
		case "--reap", "--rsource", "--set", "--random-fully":
		case "-s":
			r.src = r.prefix(value(), not)
		case "-d":
			r.dst = r.prefix(value(), not)
		case "-p":
			name := value()
			proto, ok := model.ParseProtocol(strings.ToUpper(name))
			if !ok || not {
				r.strange = "-p " + name
			}
			r.proto = proto
		case "--dport":
			n, err := strconv.ParseUint(value(), 10, 16)
			if err != nil || not {
				r.strange = "--dport " + words[i]
			}
			r.port = uint16(n)
		case "--src-type", "--dst-type":
			if v := value(); v != "LOCAL" {
				r.strange = word + " " + v
			}
			if word == "--src-type" {
				r.srcType = typeMatch{true, not}
			} else {
				r.dstType = typeMatch{true, not}
			}
		case "--ctstate":
			r.never = r.never || slices.Contains(strings.Split(value(), ","), "NEW") == not
		case "--mark":
			v, m, ok := number(value())
			r.mark = &markMatch{v, m, not}
			if !ok {
				r.strange = "--mark " + words[i]
			}
		case "--probability":
			value()
			r.drawn = true
		case "--rcheck":
			checks = true
		case "--seconds":
			seconds, _ = strconv.Atoi(value())
		case "-j", "-g":
			r.target, r.jumps = value(), word == "-j"
		case "--to-destination":
			to, err := netip.ParseAddrPort(value())
			if err != nil {
				r.strange = "--to-destination " + words[i]
			}
			r.to = to
		case "--set-xmark", "--or-mark", "--xor-mark":
			v, m, ok := number(value())
			switch word {
			case "--or-mark":
				m = v
			case "--xor-mark":
				m = 0
			}
			r.set = &markSet{v, m}
			if !ok {
				r.strange = word + " " + words[i]
			}
		default:
			if r.strange == "" {
				r.strange = word
			}
		}
		not = false
	}
	if checks {
		r.never, r.affinity = true, time.Duration(seconds)*time.Second
	}
	return r
}

func (r *rule) prefix(s string, not bool) prefixMatch {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil {
			r.strange = s
			return prefixMatch{}
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	return prefixMatch{p, not}
}

// number reads a mark, with a mask or for all bits.
func number(s string) (value, mask uint32, ok bool) {
	v, m, masked := strings.Cut(s, "/")
	if !masked {
		m = "0xffffffff"
	}
	a, err := strconv.ParseUint(v, 0, 32)
	b, errMask := strconv.ParseUint(m, 0, 32)
	return uint32(a), uint32(b), err == nil && errMask == nil
}

// matches reports whether a rule is for the packet, but for what it draws.
func (r *rule) matches(p *trip) bool {
	if !r.src.ok(p.Src.Addr()) || !r.dst.ok(p.to.Addr()) || r.proto != 0 && r.proto != p.Protocol || r.port != 0 && r.port != p.to.Port() ||
		!r.srcType.ok(p.FromNode) || !r.dstType.ok(p.local()) {
		return false
	}
	return r.mark == nil || (p.mark&r.mark.mask == r.mark.value) != r.mark.not
}

func (t *iptables) through(p *trip) (end, error) {
	hooks := []string{"nat PREROUTING", "filter FORWARD", "filter INPUT"}
	if p.FromNode {
		hooks = []string{"nat OUTPUT", "filter OUTPUT", "filter INPUT"}
	}
	for _, hook := range hooks {
		if hook == "filter FORWARD" && p.local() || hook == "filter INPUT" && !p.local() {
			continue
		}
		table, _, _ := strings.Cut(hook, " ")
		c := t.chains[hook]
		if c == nil {
			continue
		}
		if e, _, err := t.walk(table, c, p, 0); e != "" || err != nil {
			return e, err
		}
	}
	return "", nil
}

// walk follows a chain: how the trip ends, or whether the table is done with it.
func (t *iptables) walk(table string, c *rules, p *trip, depth int) (e end, done bool, err error) {
	if depth > maxDepth {
		return "", false, fmt.Errorf("chain %s: chains lead to each other in a circle", c.name)
	}
	for _, i := range c.candidates(p) {
		r := c.all[i]
		if !r.matches(p) {
			continue
		}
		if r.strange != "" {
			return "", false, fmt.Errorf("chain %s: %q is not understood in %q", c.name, r.strange, r.text)
		}
		if r.affinity > 0 {
			p.affinity = r.affinity
		}
		if r.never || r.drawn && p.choose(2) == 1 {
			continue
		}
		switch r.target {
		case "":
		case "RETURN":
			return "", false, nil
		case "ACCEPT":
			return "", true, nil
		case "DROP":
			return noAnswer, true, nil
		case "REJECT":
			return refused, true, nil
		case "DNAT":
			p.to, p.translated = r.to, true
			return "", true, nil
		case "MARK":
			if r.set == nil {
				return "", false, fmt.Errorf("chain %s: %q is not understood", c.name, r.text)
			}
			p.mark = p.mark&^r.set.mask ^ r.set.value
		default:
			to := t.chains[table+" "+r.target]
			if to == nil {
				return "", false, fmt.Errorf("chain %s: target %s is not understood in %q", c.name, r.target, r.text)
			}
			if e, done, err = t.walk(table, to, p, depth+1); e != "" || done || err != nil {
				return e, done, err
			}
			if !r.jumps {
				return "", false, nil
			}
		}
	}
	return "", false, nil
}

// frontends are what kube-proxy's chains have rules about.
func (t *iptables) frontends(add func(model.Frontend, string)) {
	anywhere := netip.IPv6Unspecified()
	if t.is4 {
		anywhere = netip.IPv4Unspecified()
	}
	for _, name := range []string{"nat KUBE-SERVICES", "filter KUBE-SERVICES", "filter KUBE-EXTERNAL-SERVICES", "filter KUBE-PROXY-FIREWALL", "nat KUBE-NODEPORTS"} {
		c := t.chains[name]
		if c == nil {
			continue
		}
		for _, r := range c.all {
			f, ok := r.frontend()
			if !ok && r.proto != 0 && r.port != 0 && (!r.dst.prefix.IsValid() || name == "nat KUBE-NODEPORTS") {
				f, ok = model.Frontend{Addr: anywhere, Protocol: r.proto, Port: r.port}, true
			}
			if ok {
				add(f, r.comment)
			}
		}
	}
}
