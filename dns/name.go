// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

// kind is what a name stands for, by its form alone.
type kind uint8

const (
	kindOutside   kind = iota // in none of our zones
	kindNothing               // in a zone, of no form that can exist
	kindBranch                // exists only because of the names below it
	kindApex                  // a zone itself
	kindVersion               // dns-version.ZONE
	kindServer                // ns.dns.ZONE, the name of the cluster's name server
	kindNamespace             // NS.svc.ZONE
	kindService               // SVC.NS.svc.ZONE
	kindEndpoint              // LABEL.SVC.NS.svc.ZONE
	kindProtocol              // _PROTO.SVC.NS.svc.ZONE
	kindPort                  // _PORT._PROTO.SVC.NS.svc.ZONE
	kindPod                   // ADDRESS.NS.pod.ZONE
	kindAddress               // D.C.B.A.in-addr.arpa
)

// target is a name taken apart. All its strings are in lower case.
type target struct {
	kind   kind
	zone   *zone          // that it is in
	origin string         // the zone's name, with trailing dot
	domain *domain        // that the name is below; of a reverse name, the one that it leads to
	name   model.Name     // of the Service; for kindNamespace and kindPod, and kindBranch above pods, only the namespace
	label  string         // of the endpoint or the port
	proto  model.Protocol // of the port
	addr   netip.Addr     // of the pod, or that a reverse name stands for
}

const (
	suffix4 = ".in-addr.arpa."
	suffix6 = ".ip6.arpa."
)

// zone is the part of the name space that is the cluster's own.
type zone struct {
	*Cluster
	domains []*domain
	main    *domain   // that reverse names lead to: the first, or one of another block if there is none
	deepest []*domain // the same, those with more labels first
	reverse []netip.Prefix
	ttl     uint32
	minimum uint32
}

// domain is a name that the cluster's names are below.
type domain struct {
	name   string // "cluster.local."
	suffix string // ".cluster.local."
	server string // "ns.dns.cluster.local.", its name server

	wire, serverWire []byte // the name and the server in wire form
	labels           int    // of the name
}

func newZone(c *Cluster, o Options) (*zone, error) {
	z := &zone{Cluster: c, ttl: uint32(c.TTL.Seconds()), minimum: uint32(o.NegativeTTL.Seconds())}
	var reverse []string
	for _, name := range c.Zones {
		if name == "arpa." || strings.HasSuffix(name, ".arpa.") {
			reverse = append(reverse, name)
			continue
		}
		d, err := newDomain(name)
		if err != nil {
			return nil, fmt.Errorf("cluster domain %q: %w", name, err)
		}
		if slices.ContainsFunc(z.domains, func(other *domain) bool { return other.name == d.name }) {
			return nil, fmt.Errorf("cluster domain %q: is there twice", name)
		}
		z.domains = append(z.domains, d)
	}
	z.deepest = slices.SortedStableFunc(slices.Values(z.domains), func(a, b *domain) int { return b.labels - a.labels })
	if len(z.domains) > 0 {
		z.main = z.domains[0]
	}
	for _, p := range o.Reverse {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("reverse range %q: not a network", p)
		}
		p = p.Masked()
		z.reverse = append(z.reverse, partsOf(p, reverse)...)
	}
	return z, nil
}

// partsOf are the parts of a range that are in reverse zones: all of it, or as much as they have.
func partsOf(p netip.Prefix, zones []string) (parts []netip.Prefix) {
	for _, name := range zones {
		z, ok := rangeOf(name)
		switch {
		case name == "arpa.", ok && z.Bits() <= p.Bits() && z.Contains(p.Addr()):
			return []netip.Prefix{p}
		case ok && p.Contains(z.Addr()):
			parts = append(parts, z)
		}
	}
	return parts
}

// rangeOf is the range of the addresses that have their names in a reverse zone.
func rangeOf(zone string) (netip.Prefix, bool) {
	for _, form := range []struct {
		suffix      string
		most, width int
	}{{suffix4[1:], 4, 8}, {suffix6[1:], 32, 4}} {
		if below, ok := strings.CutSuffix(zone, form.suffix); ok {
			addr, depth, rest := reverseAddr(strings.TrimSuffix(below, "."), form.most, form.width)
			return netip.PrefixFrom(addr, depth*form.width), rest == ""
		}
	}
	return netip.Prefix{}, false
}

// width is how many bits a label of a reverse name has.
func width(a netip.Addr) int {
	if a.Is4() {
		return 8
	}
	return 4
}

// apex is the first of the networks that end between two labels and make up a range: each is a reverse zone.
func apex(p netip.Prefix) netip.Prefix {
	w := width(p.Addr())
	return netip.PrefixFrom(p.Addr(), (p.Bits()+w-1)/w*w)
}

func newDomain(name string) (*domain, error) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if err := checkDomain(name); err != nil {
		return nil, err
	}
	d := &domain{name: name + ".", suffix: "." + name + ".", server: "ns.dns." + name + ".", labels: 1 + strings.Count(name, ".")}
	d.wire, d.serverWire = wireName(d.name), wireName(d.server)
	return d, nil
}

// checkDomain allows what Kubernetes allows as a cluster domain: labels of letters, digits and dashes. The longest names
// below it that everybody needs are _PORT._PROTO.SERVICE.NAMESPACE.svc (at most 16+6+64+64+4 octets), which limits its length. With a hostname instead
// of the port a name may be too long to be one, and then is none.
func checkDomain(domain string) error {
	if domain == "" || len(domain) > 253-154 {
		return errors.New("want 1 to 99 characters")
	}
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("label %q is empty, too long or has a dash at an end", label)
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return fmt.Errorf("label %q has a character other than letters, digits and dashes", label)
		}
	}
	if domain == "arpa" || strings.HasSuffix(domain, ".arpa") {
		return errors.New("is for reverse names")
	}
	return nil
}

// parse takes a fully qualified name in presentation form apart.
func (z *zone) parse(name string) target {
	name = strings.ToLower(name)
	if strings.IndexByte(name, '\\') >= 0 {
		return z.parseEscaped(name)
	}
	for _, d := range z.deepest {
		if name == d.name {
			return target{kind: kindApex, zone: z, origin: d.name, domain: d}
		}
		if strings.HasSuffix(name, d.suffix) {
			t := z.parseForward(name[:len(name)-len(d.suffix)])
			t.zone, t.origin, t.domain = z, d.name, d
			return t
		}
	}
	switch {
	case strings.HasSuffix(name, suffix4):
		return z.parseReverse(name, suffix4, 4, 8)
	case strings.HasSuffix(name, suffix6):
		return z.parseReverse(name, suffix6, 32, 4)
	}
	return target{}
}

// parseEscaped is for names with unusual octets. Nothing of ours is called so; it remains whose name it is. The labels
// with escapes are never part of the zone's own name, and a dot in a label does not end it.
func (z *zone) parseEscaped(name string) target {
	labels := mdns.SplitDomainName(name)
	last := 0
	for i, l := range labels {
		if strings.IndexByte(l, '\\') >= 0 {
			last = i
		}
	}
	below := strings.Join(labels[last+1:], ".") + "."
	t := z.parse(below)
	if t.kind == kindOutside {
		// The reverse of 10.96.0.0/16 does not start at what is left when the odd label is below in-addr.arpa.
		return target{}
	}
	return target{kind: kindNothing, zone: z, origin: t.origin, domain: t.domain}
}

// cutLast splits off the last label.
func cutLast(s string) (before, last string) {
	if i := strings.LastIndexByte(s, '.'); i >= 0 {
		return s[:i], s[i+1:]
	}
	return "", s
}

func (z *zone) parseForward(rest string) target {
	before, top := cutLast(rest)
	switch top {
	case "svc":
		return parseService(before)
	case "pod":
		if z.Pods != PodsDisabled {
			return parsePod(before)
		}
	case "dns-version":
		if before == "" {
			return target{kind: kindVersion}
		}
	case "dns":
		switch before {
		case "":
			return target{kind: kindBranch}
		case "ns":
			return target{kind: kindServer}
		}
	}
	return target{kind: kindNothing}
}

func parseService(rest string) target {
	if rest == "" {
		return target{kind: kindBranch}
	}
	var t target
	rest, t.name.Namespace = cutLast(rest)
	if rest == "" {
		t.kind = kindNamespace
		return t
	}
	rest, t.name.Name = cutLast(rest)
	if rest == "" {
		t.kind = kindService
		return t
	}
	rest, t.label = cutLast(rest)
	proto, isProto := parseProtocol(t.label)
	switch {
	case isProto && rest == "":
		t.kind, t.proto = kindProtocol, proto
	case isProto && rest[0] == '_' && strings.IndexByte(rest, '.') < 0:
		t.kind, t.proto, t.label = kindPort, proto, rest[1:]
	case rest == "":
		t.kind = kindEndpoint
	default:
		t.kind = kindNothing
	}
	return t
}

func parseProtocol(label string) (model.Protocol, bool) {
	switch label {
	case "_tcp":
		return model.TCP, true
	case "_udp":
		return model.UDP, true
	case "_sctp":
		return model.SCTP, true
	}
	return 0, false
}

func protocolLabel(p model.Protocol) string { return "_" + strings.ToLower(p.String()) }

func parsePod(rest string) target {
	if rest == "" {
		return target{kind: kindBranch}
	}
	before, namespace := cutLast(rest)
	if before == "" {
		// Any namespace may have pods, and which ones exist is not known here.
		return target{kind: kindBranch, name: model.Name{Namespace: namespace}}
	}
	addr, ok := undash(before)
	if !ok {
		return target{kind: kindNothing}
	}
	return target{kind: kindPod, name: model.Name{Namespace: namespace}, addr: addr}
}

// dash is an address as a label: its text form with dashes for dots and colons. A label does not end in a dash (RFC 1123), so fd00:: is fd00--0.
func dash(a netip.Addr) string { return string(appendDash(nil, a)) }

// appendDash appends what [dash] says.
func appendDash(to []byte, a netip.Addr) []byte {
	begin := len(to)
	to = a.AppendTo(to)
	for i, c := range to[begin:] {
		if c == '.' || c == ':' {
			to[begin+i] = '-'
		}
	}
	if to[len(to)-1] == '-' {
		to = append(to, '0')
	}
	return to
}

// undash is the address that a label stands for, if it is the one label that [dash] makes of it.
func undash(label string) (netip.Addr, bool) {
	if a, ok := undash4(label); ok {
		return a, true
	}
	if len(label) < 2 || len(label) > 39 || strings.Trim(label, "0123456789abcdef-") != "" {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	if err != nil || dash(a) != label {
		return netip.Addr{}, false
	}
	return a, true
}

// undash4 is undash for four decimal numbers.
func undash4(label string) (netip.Addr, bool) {
	var octets [4]byte
	for i := range octets {
		number, rest, more := strings.Cut(label, "-")
		v, ok := parseDigits(number, 8)
		if !ok || more != (i < 3) {
			return netip.Addr{}, false
		}
		octets[i], label = byte(v), rest
	}
	return netip.AddrFrom4(octets), true
}

// parseReverse reads a name below in-addr.arpa (at most 4 labels of 8 bits) or ip6.arpa (32 of 4 bits) from the right, as
// far as it is a number, and finds the zone it is in: exactly the cluster's ranges are ours.
func (z *zone) parseReverse(name, suffix string, most, width int) target {
	addr, depth, rest := reverseAddr(name[:len(name)-len(suffix)], most, width)
	bits := depth * width
	for _, p := range z.reverse {
		apex := apex(p).Bits()
		if !p.Contains(addr) || bits < apex {
			continue
		}
		t := target{kind: kindBranch, zone: z, origin: reverseName(netip.PrefixFrom(addr, apex)), domain: z.main}
		switch {
		case rest != "":
			t.kind = kindNothing
		case depth == most:
			// The zone of a single address is its own apex too; the address is what matters.
			t.kind, t.addr = kindAddress, addr
		case bits == apex:
			t.kind = kindApex
		}
		return t
	}
	return target{}
}

// reverseAddr reads labels of a reverse name from the right, as far as they are numbers: the address that they begin, how many they are, and the rest.
func reverseAddr(labels string, most, width int) (addr netip.Addr, depth int, rest string) {
	var octets [16]byte
	for rest = labels; rest != "" && depth < most; depth++ {
		before, label := cutLast(rest)
		v, ok := parseDigits(label, width)
		if !ok {
			break
		}
		bit := depth * width
		octets[bit/8] |= byte(v << (8 - width - bit%8))
		rest = before
	}
	if most == 4 {
		return netip.AddrFrom4([4]byte(octets[:4])), depth, rest
	}
	return netip.AddrFrom16(octets), depth, rest
}

// parseDigits reads one label of a reverse name: a decimal octet without leading zeros, or one hexadecimal digit.
func parseDigits(label string, width int) (uint64, bool) {
	base, most := 16, 1
	if width == 8 {
		base, most = 10, 3
	}
	if label == "" || len(label) > most || (len(label) > 1 && label[0] == '0') || label[0] == '+' {
		return 0, false
	}
	v, err := strconv.ParseUint(label, base, width)
	return v, err == nil
}

// reverseName is the name of a reverse zone or, for a prefix of a single address, of the address.
func reverseName(p netip.Prefix) string {
	var b strings.Builder
	if p.Addr().Is4() {
		octets := p.Addr().As4()
		for i := p.Bits()/8 - 1; i >= 0; i-- {
			b.WriteString(strconv.Itoa(int(octets[i])))
			b.WriteByte('.')
		}
		return b.String() + suffix4[1:]
	}
	octets := p.Addr().As16()
	for i := p.Bits()/4 - 1; i >= 0; i-- {
		b.WriteByte("0123456789abcdef"[octets[i/2]>>(4*(1-i%2))&15])
		b.WriteByte('.')
	}
	return b.String() + suffix6[1:]
}
