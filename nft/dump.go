// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/model"
)

// Dump reads the whole table and prints what it means, a line a fact, in an order that does not depend on history: endpoints
// are sorted by address and their indexes are left out. Chains that are there but lead nowhere are left out too.
func Dump(o Options) (string, error) {
	c, err := dial(o.NetNS)
	if err != nil {
		return "", err
	}
	defer c.close()
	var sh *shape
	st := newState()
	_, err = c.settled(func() (err error) {
		if sh, err = c.readShape(); err != nil || !sh.exists {
			return err
		}
		if !sh.sound() {
			return nil
		}
		st, err = c.readState(sh)
		return err
	})
	if err != nil {
		return "", err
	}
	switch {
	case !sh.exists:
		return "no table\n", nil
	case !sh.sound() || st == nil:
		return fmt.Sprintf("table with %s, not %s, or with changed rules\n", cmp.Or(sh.layout, "no layout"), tableComment()), nil
	}
	return st.String(), nil
}

// String prints the state as [Dump] does.
func (s *state) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", tableComment())
	for _, line := range s.plainLines() {
		b.WriteString(line)
	}
	for _, a := range slices.SortedFunc(maps.Keys(s.vips), netip.Addr.Compare) {
		fmt.Fprintf(&b, "vip %s\n", a)
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.fronts), frontend.Compare) {
		fmt.Fprintf(&b, "service %s", k)
		s.print(&b, familyOf(k.Addr), s.fronts[k], "  ")
	}
	for _, x := range s.strays {
		fmt.Fprintf(&b, "stray %s %x\n", x.s.name(), x.key)
	}
	return b.String()
}

func (s *state) plainLines() []string {
	var lines []string
	for set, keys := range s.plains {
		for key := range keys {
			lines = append(lines, fmt.Sprintf("%s %s\n", kindNames[set.kind], plain{set, key}))
		}
	}
	slices.Sort(lines)
	return lines
}

func (p plain) String() string {
	f := p.s.f
	switch {
	case p.s.isInterval():
		return parsePrefixKey(f, p.key).String()
	case p.s.kind == dnsPorts:
		return fmt.Sprintf("%s %s", model.Protocol(p.key[f.size]), f.address([]byte(p.key)))
	}
	return f.address([]byte(p.key)).String()
}

// print writes what a code leads to, without the numbers, which depend on history.
func (s *state) print(b *strings.Builder, f *family, code uint32, indent string) {
	branch := func(k kind, word string) {
		fmt.Fprintf(b, "%s%s", indent, word)
		if next, ok := s.links[link{sets[k][f.index], code}]; ok && isEnd(next) {
			s.print(b, f, next, indent+"  ")
		} else {
			b.WriteString(" leads nowhere\n")
		}
	}
	switch low := code & lowMask; low {
	case wayRefuse:
		b.WriteString(" refused\n")
	case wayNoLocal:
		b.WriteString(" dropped: no endpoint here\n")
	case waySplit:
		b.WriteString(" by origin\n")
		branch(inside, "inside")
		branch(outside, "outside")
	case wayGuard:
		fmt.Fprintf(b, " only from %v\n", s.sources[numbered{f, code >> lowBits}])
		branch(inside, "inside")
		branch(outside, "outside")
	case wayOnward:
		b.WriteString(" leaving\n")
		branch(inside, "others")
	default:
		s.printGroup(b, numbered{f, code >> lowBits}, low, indent)
	}
}

// isEnd reports whether a code may be where a junction leads.
func isEnd(code uint32) bool {
	low := code & lowMask
	return low <= wayNoLocal || low >= firstWay
}

func (s *state) printGroup(b *strings.Builder, n numbered, low uint32, indent string) {
	w, ok := s.wayNumbers(n.f)[low]
	if !ok {
		fmt.Fprintf(b, " no chain %d\n", low)
		return
	}
	fmt.Fprintf(b, " endpoints %d", w.n)
	if w.affinity > 0 {
		fmt.Fprintf(b, " affinity %s", time.Duration(w.affinity)*time.Second)
	}
	b.WriteByte('\n')
	g := s.groups[n]
	if g == nil || len(g.dests) != int(w.n) {
		fmt.Fprintf(b, "%sendpoints are missing\n", indent)
	}
	if g == nil {
		return
	}
	for _, d := range slices.SortedFunc(slices.Values(g.dests), compareDests) {
		fmt.Fprintf(b, "%s%s\n", indent, d.addrPort(n.f))
	}
}
