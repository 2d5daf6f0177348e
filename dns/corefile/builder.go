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

	"github.com/coredns/caddy/caddyfile"
	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns"
)

// builder makes blocks of server blocks.
type builder struct {
	*parser
	served []served

	// Of the server block at hand:
	keys    map[listener]token
	block   dns.Block
	zones   []string // of all its keys
	root    string
	stanzas []stanza
	cached  bool
	disable map[string]bool // kinds of answers that are not to be kept
}

// listener is where a zone is served; no address is all of them.
type listener struct {
	zone string
	port uint16
	addr netip.Addr
}

// served is a listener and the key of the server block that has it.
type served struct {
	listener
	by token
}

// directive is one directive with its arguments. Its options are still to be read.
type directive struct {
	caddyfile.Dispenser
	name token
	args []string
	fate Fate // by its arguments
	why  []string
}

// plugin is how the directives of a name are read, and whether there may be but one in a server block.
type plugin struct {
	name string
	once bool
	read func(*builder, *directive) error
}

// plugins read the directives that are honoured in some way, in the order in which they must be read: what is cached depends on what is
// forwarded, and that on what is the cluster's.
var plugins = []plugin{
	{"root", false, (*builder).readRoot},
	{"bind", false, (*builder).readBind},
	{"kubernetes", true, (*builder).readKubernetes},
	{"forward", false, (*builder).readForward},
	{"cache", true, (*builder).readCache},
	{"rewrite", false, (*builder).readRewrite},
	{"template", false, (*builder).readTemplate},
	{"hosts", true, (*builder).readHosts},
	{"autopath", false, (*builder).readAutopath},
	{"loadbalance", false, (*builder).readLoadbalance},
	{"errors", true, (*builder).readErrors},
	{"log", false, (*builder).readLog},
}

// server adds the blocks of a server block to the configuration: one for each port that its zones are served at.
func (b *builder) server(s server) {
	b.block, b.keys = dns.Block{}, map[listener]token{}
	b.zones, b.root, b.stanzas, b.cached, b.disable = nil, "", nil, false, map[string]bool{}
	ports := map[uint16][]string{}
	for _, key := range s.keys {
		b.key(key, ports)
	}
	for _, p := range plugins {
		if p.name == "cache" {
			b.pools()
		}
		seen := false
		for _, tokens := range s.directives {
			if tokens[0].Text != p.name {
				continue
			}
			if seen && p.once {
				b.refuse(tokens[0], "it is there twice in this server block")
				continue
			}
			seen = true
			b.directive(tokens, p.read)
		}
	}
	for _, tokens := range s.directives {
		if !slices.ContainsFunc(plugins, func(p plugin) bool { return p.name == tokens[0].Text }) {
			b.directive(tokens, nil)
		}
	}
	b.finishCache()
	listens := b.block.Bind
	if len(listens) == 0 {
		listens = []netip.Addr{{}}
	}
	for _, key := range s.keys {
		_, port, _, _ := split(key.Text)
		zones := ports[port]
		if len(zones) == 0 {
			continue // refused, or with an earlier key of the same port
		}
		delete(ports, port)
		for _, z := range zones {
			for _, a := range listens {
				b.serve(listener{z, port, a}, b.keys[listener{zone: z, port: port}])
			}
		}
		block := b.block
		block.Zones, block.Port = zones, port
		b.config.Blocks = append(b.config.Blocks, block)
	}
}

// servicePort serves at port 53 what is served nowhere but at one other port: that is the port of CoreDNS's pods, to which the Service of the
// cluster's DNS leads from its own.
func (b *builder) servicePort(servers []server) {
	blocks := b.config.Blocks
	if len(blocks) == 0 || blocks[0].Port == 53 || slices.ContainsFunc(blocks, func(o dns.Block) bool { return o.Port != blocks[0].Port }) {
		return
	}
	r, _ := lookup("(server block)", "one port for all")
	b.note(servers[0].keys[0], fmt.Sprintf("port %d", blocks[0].Port), r.fate, r.why)
	for i := range blocks {
		blocks[i].Port = 53
	}
}

// key reads a zone of a server block.
func (b *builder) key(t token, ports map[uint16][]string) {
	zones, port, scheme, err := split(t.Text)
	switch {
	case err != nil:
		b.refuse(t, "%v", err)
		return
	case scheme != "" && scheme != "dns":
		r, _ := lookup("(server block)", "other schemes")
		b.refuse(t, "%s", r.why)
		return
	}
	for _, z := range zones {
		b.keys[listener{zone: z, port: port}] = t
	}
	ports[port] = append(ports[port], zones...)
	b.zones = append(b.zones, zones...)
	b.note(t, t.Text, Honoured, "")
}

// serve notices zones that are served twice at one place.
func (b *builder) serve(l listener, by token) {
	for _, o := range b.served {
		if o.zone == l.zone && o.port == l.port && (o.addr == l.addr || !o.addr.IsValid() || !l.addr.IsValid()) {
			b.refuse(by, "%s at port %d is served already, by the server block of %s:%d", l.zone, l.port, o.by.File, o.by.Line)
			return
		}
	}
	b.served = append(b.served, served{l, by})
}

// directive reads one directive and notes what becomes of it and of its options.
func (b *builder) directive(tokens []token, read func(*builder, *directive) error) {
	d := &directive{Dispenser: caddyfile.NewDispenserTokens(b.file, tokens), name: tokens[0]}
	d.Dispenser.Next()
	d.args = d.RemainingArgs()
	plugin := d.name.Text
	what := strings.Join(append([]string{plugin}, d.args...), " ")
	r, ok := lookup(plugin, "")
	switch {
	case !ok:
		b.note(d.name, what, Refused, "CoreDNS 1.14 has no such plugin of its own, and Fairlead nothing that does its work; remove it, or forward its zone to a CoreDNS that has it")
		return
	case r.fate == Refused:
		b.note(d.name, what, Refused, r.why)
		return
	case read == nil:
		b.note(d.name, what, r.fate, r.why)
		b.options(d, nil)
	default:
		switch err := read(b, d); {
		case err == nil && d.fate > r.fate:
			b.note(d.name, what, d.fate, strings.Join(d.why, "; "))
		case err == nil:
			b.note(d.name, what, r.fate, r.why)
		default:
			b.note(d.name, what, Refused, err.Error())
		}
	}
	if d.Next() {
		b.refuse(token{File: d.File(), Line: d.Line(), Text: d.Val()}, "it belongs to no option of %s; a { must stand on the line of what it belongs to", plugin)
	}
}

// options reads the block of a directive, each option by the function of its name. Options that have none need not be read.
func (b *builder) options(d *directive, read map[string]func(args []string) error) {
	for d.NextBlock() {
		b.option(d, read)
	}
}

func (b *builder) option(d *directive, read map[string]func(args []string) error) {
	t := token{File: d.File(), Line: d.Line(), Text: d.Val()}
	name := t.Text
	args := d.RemainingArgs()
	t.Text = strings.Join(append([]string{d.name.Text, name}, args...), " ")
	r, ok := lookup(d.name.Text, name)
	if !ok {
		if plugin, _ := lookup(d.name.Text, ""); plugin.fate == NoEffect {
			r, ok = plugin, true
		}
	}
	switch {
	case !ok || read != nil && read[name] == nil && r.fate != NoEffect && r.fate != Refused:
		b.refuse(t, "%s has no such option in CoreDNS 1.14", d.name.Text)
	case r.fate == Refused:
		b.refuse(t, "%s", r.why)
	default:
		if f := read[name]; f != nil {
			if err := f(args); err != nil {
				b.refuse(t, "%v", err)
				return
			}
		}
		b.note(t, t.Text, r.fate, r.why)
	}
}

// argument settles what becomes of an argument that has a row of its own in the table; its error is why it is refused.
func (b *builder) argument(d *directive, option, text string) error {
	r, ok := lookup(d.name.Text, option)
	switch {
	case !ok || option == "":
		return fmt.Errorf("%q is unknown", option)
	case r.fate == Refused:
		return errors.New(text + ": " + r.why)
	case r.fate != Honoured:
		d.differs(r.fate, r.why)
	}
	return nil
}

// differs says that a directive has another fate, by its arguments, than the table has for it.
func (d *directive) differs(fate Fate, why string) {
	if d.fate = max(d.fate, fate); !slices.Contains(d.why, why) {
		d.why = append(d.why, why)
	}
}

// expect is an error unless there are so many arguments.
func expect(args []string, least, most int) error {
	switch {
	case len(args) >= least && (len(args) <= most || most < 0):
		return nil
	case least == most:
		return fmt.Errorf("expected %d arguments", least)
	case most < 0:
		return fmt.Errorf("expected %d arguments or more", least)
	}
	return fmt.Errorf("expected %d to %d arguments", least, most)
}

// on reads an option without arguments.
func on(set *bool) func([]string) error {
	return func(args []string) error {
		*set = true
		return expect(args, 0, 0)
	}
}

// split reads a name as CoreDNS has them: with a scheme before and a port behind, or a range of addresses, which is the reverse zones that
// make it up. The port is 53 if there is none.
func split(s string) (zones []string, port uint16, scheme string, err error) {
	text, port := s, uint16(53)
	if before, after, ok := strings.Cut(s, "://"); ok {
		scheme, s = before, after
	}
	if i := strings.LastIndexByte(s, ':'); i == len(s)-1 && i >= 0 {
		return nil, 0, scheme, fmt.Errorf("%q has no port after its colon", text)
	} else if i >= 0 {
		if n, err := strconv.Atoi(s[i+1:]); err == nil {
			if n < 1 || n > 65535 {
				return nil, 0, scheme, fmt.Errorf("port %d is not one of 1 to 65535", n)
			}
			port, s = uint16(n), s[:i]
		}
	}
	if strings.Contains(s, "__PILLAR__") {
		return nil, 0, scheme, fmt.Errorf("%q is to be replaced by a zone", s)
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return reverse(p), port, scheme, nil
	}
	name := strings.ToLower(mdns.Fqdn(s))
	// A \ at the end makes of the dot a part of a label.
	if _, ok := mdns.IsDomainName(name); !ok || !mdns.IsFqdn(name) || strings.Contains(name, "/") {
		return nil, 0, scheme, fmt.Errorf("%q is not a domain name", s)
	}
	return []string{name}, port, scheme, nil
}

// reverse are the reverse zones that make up a range: one if it ends at a label, else up to 128.
func reverse(p netip.Prefix) []string {
	p = p.Masked()
	width := 8
	if p.Addr().Is6() {
		width = 4
	}
	var out []string
	depth := (p.Bits() + width - 1) / width
	for a := p.Addr(); p.Contains(a); {
		name, _ := mdns.ReverseAddr(a.String())
		for range a.BitLen()/width - depth {
			_, name, _ = strings.Cut(name, ".")
		}
		out = append(out, name)
		// The next one differs in the last bit that counts.
		octets, bit := a.AsSlice(), depth*width-1
		for ; bit >= 0; bit-- {
			mask := byte(1) << (7 - bit%8)
			octets[bit/8] ^= mask
			if octets[bit/8]&mask != 0 {
				break
			}
		}
		if bit < 0 {
			break
		}
		a, _ = netip.AddrFromSlice(octets)
	}
	return out
}

// isReverse reports whether a zone has reverse names, as the cluster's zones have it.
func isReverse(zone string) bool { return within(zone, "arpa.") }

// names are the zones that arguments name.
func names(args []string) ([]string, error) {
	var out []string
	for _, a := range args {
		zones, _, _, err := split(a)
		if err != nil {
			return nil, err
		}
		out = append(out, zones...)
	}
	return out, nil
}

// namesOrZones are those that arguments name, or those of the server block if there are none.
func (b *builder) namesOrZones(args []string) ([]string, error) {
	if len(args) == 0 {
		return slices.Clone(b.zones), nil
	}
	return names(args)
}

// fallthroughs reads the option of that name: all names, if none is given.
func fallthroughs(to *[]string) func([]string) error {
	return func(args []string) (err error) {
		if len(args) == 0 {
			args = []string{"."}
		}
		*to, err = names(args)
		return err
	}
}

// within reports whether a name is another or below it. Both are in lower case with trailing dot.
func within(name, zone string) bool { return mdns.IsSubDomain(zone, name) }

// allWithin reports whether each of some names is one of some zones or below one.
func allWithin(names, zones []string) bool {
	for _, n := range names {
		if !slices.ContainsFunc(zones, func(z string) bool { return within(n, z) }) {
			return false
		}
	}
	return true
}

// locate says where a file is that an argument names.
func (b *builder) locate(d *directive, name string) string {
	if b.root != "" {
		return locate(name, b.root+"/Corefile")
	}
	return locate(name, d.name.File)
}
