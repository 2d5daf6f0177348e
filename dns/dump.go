// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

// Dump prints the zones of a snapshot in zone-file form, a record a line, sorted: first the cluster domain's, then the reverse zones'.
func Dump(s *model.Snapshot, o Options) (string, error) {
	v, err := NewView(o, s)
	if err != nil {
		return "", err
	}
	return v.Dump(), nil
}

// Dump prints every record of the view in zone-file form, a record a line, sorted. Not in it are the names of pods, which are made from
// the question, and the SRV records at the Services' own names, which repeat those at the ports' names.
func (v *View) Dump() string {
	seen := make(map[question]struct{})
	var lines []Record
	for q := range v.questions() {
		if _, dup := seen[q]; dup {
			continue
		}
		seen[q] = struct{}{}
		for _, r := range v.Answer(q.name, q.qtype).Answer {
			if r.Name == q.name {
				lines = append(lines, r)
			}
		}
	}
	text := make(map[Record]string, len(lines))
	for _, r := range lines {
		text[r] = r.String()
	}
	slices.SortFunc(lines, func(a, b Record) int {
		return cmp.Or(compareNames(a.Name, b.Name), cmp.Compare(rank(a), rank(b)), a.Addr.Compare(b.Addr), cmp.Compare(text[a], text[b]))
	})
	var b strings.Builder
	for _, r := range lines {
		b.WriteString(text[r] + "\n")
	}
	return b.String()
}

// rank orders the records of a name by type, with the SOA first, as zone files have it.
func rank(r Record) uint16 {
	if r.Type == mdns.TypeSOA {
		return 0
	}
	return r.Type
}

// compareNames puts the reverse zones last, a zone's own name before what is below it and related names together (the canonical order of RFC 4034).
func compareNames(a, b string) int {
	reverse := func(s string) int {
		if strings.HasSuffix(s, ".arpa.") {
			return 1
		}
		return 0
	}
	if c := cmp.Compare(reverse(a), reverse(b)); c != 0 {
		return c
	}
	for a != "" || b != "" {
		var x, y string
		a, x = cutLast(strings.TrimSuffix(a, "."))
		b, y = cutLast(strings.TrimSuffix(b, "."))
		if x != y {
			return cmp.Compare(x, y)
		}
	}
	return 0
}

// Questions yields every question that a record of the cluster's zones answers, by name and type, each once and in no order, and those for the addresses of
// the family that a Service does not have. Not among them are the names of pods.
func (v *View) Questions() iter.Seq2[string, uint16] {
	return func(yield func(string, uint16) bool) {
		seen := make(map[question]struct{})
		for q := range v.questions() {
			if _, dup := seen[q]; dup {
				continue
			}
			seen[q] = struct{}{}
			if !yield(q.name, q.qtype) {
				return
			}
		}
	}
}

type question struct {
	name  string
	qtype uint16
}

// questions yields every question that a record of the zones answers, some more than once.
func (v *View) questions() iter.Seq[question] {
	return func(yield func(question) bool) {
		for _, z := range v.plan.zones {
			for _, q := range z.fixedQuestions() {
				if !yield(q) {
					return
				}
			}
			for _, svc := range v.snap.Services.All() {
				for _, q := range z.serviceQuestions(svc) {
					if !yield(q) {
						return
					}
				}
			}
		}
	}
}

// fixedQuestions are those that do not come from Services: the zones' own.
func (z *zone) fixedQuestions() []question {
	var qs []question
	for _, d := range z.domains {
		qs = append(qs, question{d.name, mdns.TypeSOA}, question{d.name, mdns.TypeNS}, question{"dns-version." + d.name, mdns.TypeTXT},
			question{d.server, mdns.TypeA}, question{d.server, mdns.TypeAAAA})
	}
	for _, p := range z.reverse {
		apex := apex(p)
		// A range that does not end between two labels is several zones.
		for ; p.Contains(apex.Addr()); apex = after(apex) {
			name := reverseName(apex)
			qs = append(qs, question{name, mdns.TypeSOA}, question{name, mdns.TypeNS})
			if after(apex).Addr().Compare(apex.Addr()) <= 0 {
				break
			}
		}
	}
	return qs
}

// after is the network of the same size that follows; after the last one of all it is the first again.
func after(p netip.Prefix) netip.Prefix {
	b := p.Addr().AsSlice()
	for bit := p.Bits() - 1; bit >= 0; bit-- {
		b[bit/8] ^= 0x80 >> (bit % 8)
		if b[bit/8]&(0x80>>(bit%8)) != 0 {
			break
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, p.Bits())
}

func (z *zone) serviceQuestions(svc *model.Service) []question {
	var qs []question
	for _, d := range z.domains {
		name := d.serviceName(svc.Name)
		if svc.Type == model.ExternalName {
			qs = append(qs, question{name, mdns.TypeCNAME})
			continue
		}
		qs = append(qs, question{name, mdns.TypeA}, question{name, mdns.TypeAAAA})
		for _, p := range svc.Ports {
			if p.Name != "" {
				qs = append(qs, question{"_" + p.Name + "." + protocolLabel(p.Protocol) + "." + name, mdns.TypeSRV})
			}
		}
		for i := range svc.Endpoints {
			e := &svc.Endpoints[i]
			qs = append(qs, question{z.label(e) + "." + name, addrType(e.Addr)})
		}
	}
	addrs := svc.ClusterIPs
	if svc.Type == model.Headless {
		for i := range svc.Endpoints {
			addrs = append(addrs, svc.Endpoints[i].Addr)
		}
	}
	for _, a := range addrs {
		if contains(z.reverse, a) {
			qs = append(qs, question{reverseName(netip.PrefixFrom(a, a.BitLen())), mdns.TypePTR})
		}
	}
	return qs
}
