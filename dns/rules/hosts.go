// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	mdns "github.com/miekg/dns"
)

// Hosts are names and addresses in the manner of /etc/hosts. They are answered with A and AAAA and, for the addresses, PTR records. A
// name whose first label is * is that of all names with one more label that are not listed themselves.
type Hosts struct {
	// Zones are the names below which these hosts are, and are all there is: what is listed elsewhere is left out, and what is not listed
	// is answered with SERVFAIL, unless it falls through.
	Zones []string
	// Fallthrough are the names below which what is not listed is left to others.
	Fallthrough []string
	// Unsupported leaves questions of other types than A, AAAA and PTR below those names to others, too, even of what is listed.
	Unsupported bool
	// TTL of the records, in seconds.
	TTL uint32
	// NoReverse has no PTR records.
	NoReverse bool
	// File are the hosts of a file, Inline those of the configuration itself, which come second.
	File, Inline []Host
}

// Host is a line of a list of hosts.
type Host struct {
	Addr  netip.Addr
	Names []string
}

// ParseHosts reads lines in the manner of /etc/hosts: an address and its names, and comments that begin with #. What is not that is left
// out, as is the zone of an address.
func ParseHosts(text string) []Host {
	var out []Host
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		addr, _, _ := strings.Cut(f[0], "%")
		if a, err := netip.ParseAddr(addr); err == nil {
			out = append(out, Host{a.Unmap(), f[1:]})
		}
	}
	return out
}

// String has a line for the settings, and one for each host that the configuration itself lists; of a file it has the number of lines.
func (h *Hosts) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hosts %s ttl %ds", strings.Join(h.Zones, " "), h.TTL)
	if h.NoReverse {
		b.WriteString(", no reverse names")
	}
	if len(h.Fallthrough) > 0 {
		fmt.Fprintf(&b, ", fall through %s", strings.Join(h.Fallthrough, " "))
	}
	if h.Unsupported {
		b.WriteString(", other types fall through too")
	}
	if len(h.File) > 0 {
		fmt.Fprintf(&b, ", %d from a file", len(h.File))
	}
	for _, host := range h.Inline {
		fmt.Fprintf(&b, "\n  %s %s", host.Addr, strings.Join(host.Names, " "))
	}
	return b.String()
}

// addrs are the addresses of a name: of IPv4, and of IPv6.
type addrs [2][]netip.Addr

// list is a list of hosts made ready.
type list struct {
	names   map[string]*addrs
	wild    map[string]*addrs   // *.example.com. as example.com.
	reverse map[string][]string // by the reverse name
}

// hosts are [Hosts] made ready.
type hosts struct {
	*Hosts
	zones, through []string
	lists          [2]list // of the file, and inline
}

func (h *Hosts) compile() *hosts {
	c := &hosts{Hosts: h, zones: normals(h.Zones), through: normals(h.Fallthrough)}
	for i, from := range [][]Host{h.File, h.Inline} {
		l := list{map[string]*addrs{}, map[string]*addrs{}, map[string][]string{}}
		for _, host := range from {
			family := 0
			host.Addr = host.Addr.Unmap()
			if host.Addr.Is6() {
				family = 1
			}
			for _, name := range host.Names {
				name = normal(name)
				if match(c.zones, []byte(name)) == "" {
					continue
				}
				at, key := l.names, name
				parent, wild := strings.CutPrefix(name, "*.")
				if wild {
					at, key = l.wild, parent
				}
				if at[key] == nil {
					at[key] = new(addrs)
				}
				at[key][family] = append(at[key][family], host.Addr)
				if !wild && !h.NoReverse {
					if reverse, err := mdns.ReverseAddr(host.Addr.String()); err == nil {
						l.reverse[reverse] = append(l.reverse[reverse], name)
					}
				}
			}
		}
		c.lists[i] = l
	}
	return c
}

// of are a list's addresses of a name in a family. A name that is listed with addresses of that family hides the wildcard's.
func (l *list) of(name []byte, family int) []netip.Addr {
	if a := l.names[string(name)]; a != nil && a[family] != nil {
		return a[family]
	}
	if len(l.wild) == 0 {
		return nil
	}
	at := nextLabel(name)
	if at == len(name) {
		return nil
	}
	if a := l.wild[string(name[at:])]; a != nil {
		return a[family]
	}
	return nil
}

// nextLabel is where the second label of a name begins.
func nextLabel(name []byte) int {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\':
			i++
		case '.':
			return i + 1
		}
	}
	return len(name)
}

func (h *hosts) exists(name []byte, family int) bool {
	return len(h.lists[0].of(name, family)) > 0 || len(h.lists[1].of(name, family)) > 0
}

func (h *hosts) concerns(name []byte, qtype uint16) bool {
	if qtype == mdns.TypePTR {
		return h.lists[0].reverse[string(name)] != nil || h.lists[1].reverse[string(name)] != nil
	}
	if match(h.zones, name) == "" {
		return false
	}
	through := match(h.through, name) != ""
	if h.Unsupported && through && qtype != mdns.TypeA && qtype != mdns.TypeAAAA {
		return false
	}
	return !through || h.exists(name, 0) || h.exists(name, 1)
}

func (h *hosts) answer(name []byte, q mdns.Question) *Answer {
	if !h.concerns(name, q.Qtype) {
		return nil
	}
	a := &Answer{}
	header := mdns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: mdns.ClassINET, Ttl: h.TTL}
	for i := range h.lists {
		l := &h.lists[i]
		switch q.Qtype {
		case mdns.TypePTR:
			for _, n := range l.reverse[string(name)] {
				a.Answer = append(a.Answer, &mdns.PTR{Hdr: header, Ptr: n})
			}
		case mdns.TypeA:
			for _, addr := range l.of(name, 0) {
				a.Answer = append(a.Answer, &mdns.A{Hdr: header, A: net.IP(addr.AsSlice())})
			}
		case mdns.TypeAAAA:
			for _, addr := range l.of(name, 1) {
				a.Answer = append(a.Answer, &mdns.AAAA{Hdr: header, AAAA: net.IP(addr.AsSlice())})
			}
		}
	}
	if len(a.Answer) == 0 && !h.exists(name, 0) && !h.exists(name, 1) {
		a.Rcode = mdns.RcodeServerFailure // a denial would need an SOA, which a list of hosts has not
	}
	return a
}
