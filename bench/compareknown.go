// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
)

// difference is one that is meant, with the reason that docs/dns.md gives.
type difference struct {
	aspect, name string
	fairlead     string // what Fairlead does
	coredns      string // what CoreDNS does
	reason       string
	match        func(x exchanged) bool
}

func (d difference) key() string { return d.aspect + ": " + d.name }

// exchanged is a question with both answers, for known differences to look at.
type exchanged struct {
	w    *nameWorld
	q    *asked
	f, c view
	name string // in lower case
}

// table is the known differences as docs/dns.md has them.
func table() string {
	var b strings.Builder
	b.WriteString("| of the answer | about | Fairlead | CoreDNS | why |\n|---|---|---|---|---|\n")
	for _, d := range known {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", d.aspect, d.name, d.fairlead, d.coredns, d.reason)
	}
	return b.String()
}

// explain finds the known difference that this one is; empty if there is none.
func explain(w *nameWorld, aspect string, q *asked, f, c view) string {
	x := exchanged{w, q, f, c, strings.ToLower(q.name)}
	for _, d := range known {
		if d.aspect == aspect && d.match(x) {
			return d.key()
		}
	}
	return ""
}

// service is the Service that a name is at or below, with the labels before it.
func (x exchanged) service() (s *named, before []string) {
	rest, ok := strings.CutSuffix(x.name, ".svc."+domain)
	if !ok {
		return nil, nil
	}
	labels := dns.SplitDomainName(rest)
	if len(labels) < 2 {
		return nil, nil
	}
	n := len(labels)
	return x.w.find(labels[n-1], labels[n-2]), labels[:n-2]
}

// find is a Service by its name.
func (w *nameWorld) find(namespace, name string) *named {
	return w.index[namespace+"/"+name]
}

func (x exchanged) reverse() bool { return strings.HasSuffix(x.name, ".arpa.") }

// inRanges reports whether a reverse name is in one of the cluster's ranges, or at its beginning.
func (x exchanged) inRanges() bool {
	for _, suffix := range []string{"96.10.in-addr.arpa.", "6.9.0.0.0.0.d.f.ip6.arpa.", "0.0.0.0.8.2.1.0.0.0.d.f.ip6.arpa."} {
		if strings.HasSuffix("."+x.name, "."+suffix) {
			return true
		}
	}
	var d int
	if rest, ok := strings.CutSuffix(x.name, ".10.in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		if _, err := fmt.Sscanf(labels[len(labels)-1], "%d", &d); err == nil {
			return d >= 128 && d <= 191
		}
	}
	return false
}

func (x exchanged) below(zone string) bool {
	return x.name == zone || strings.HasSuffix(x.name, "."+zone)
}

// alias is what an ExternalName Service that was asked for points to.
func (x exchanged) alias() string {
	if s, before := x.service(); s != nil && len(before) == 0 {
		return s.service.Spec.ExternalName
	}
	return ""
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

func (v view) has(flag string) bool { return slices.Contains(v.flags, flag) }

func (v view) without(flags ...string) []string {
	return slices.DeleteFunc(slices.Clone(v.flags), func(f string) bool { return slices.Contains(flags, f) })
}

// ofType are the records of a type.
func ofType(records []string, kind string) (out []string) {
	for _, r := range records {
		if f := strings.Fields(r); f[2] == kind {
			out = append(out, r)
		}
	}
	return out
}

// weightless are records without the weights of SRV records.
func weightless(records []string) []string {
	out := slices.Clone(records)
	for i, r := range out {
		if f := strings.Fields(r); f[2] == "srv" {
			f[4] = "*"
			out[i] = strings.Join(f, " ")
		}
	}
	slices.Sort(out)
	return out
}

// lax reports whether a name below a Service is one that CoreDNS reads as a port and a protocol although it is not spelled as one: without underscores, with one
// of the two empty, or with a wildcard's place left open.
func (x exchanged) lax() bool {
	s, before := x.service()
	if s == nil || len(before) != 2 {
		return false
	}
	port, proto := strings.TrimPrefix(before[0], "_"), strings.TrimPrefix(before[1], "_")
	spelled := before[0] != port && before[1] != proto && port != "" && proto != ""
	return !spelled
}

// refusedForm are the messages that are no queries.
var refusedForm = map[string]string{
	"opcode STATUS": "NOTIMP", "opcode NOTIFY": "NOTIMP", "opcode UPDATE": "NOTIMP", "two questions": "FORMERR", "no question": "FORMERR",
	"an answer in the query": "FORMERR", "two OPT records": "FORMERR", "type 0": "FORMERR",
}

// pointers are the targets of PTR records.
func pointers(records []string) (out []string) {
	for _, r := range ofType(records, "ptr") {
		out = append(out, strings.Fields(r)[3])
	}
	return out
}

// morePointers reports whether CoreDNS has all of Fairlead's pointers and some more, which lead to Services of a kind.
func (x exchanged) morePointers(kind func(*named) bool) bool {
	have, extra := pointers(x.f.answer), 0
	for _, p := range pointers(x.c.answer) {
		if slices.Contains(have, p) {
			continue
		}
		labels := dns.SplitDomainName(p)
		if s := x.w.find(labels[2], labels[1]); s == nil || !kind(s) {
			return false
		}
		extra++
	}
	return extra > 0 && len(have)+extra == len(pointers(x.c.answer))
}

// virtual Services have a ClusterIP.
func (s *named) virtual() bool { return s.service.Spec.ClusterIP != corev1.ClusterIPNone }

// twoNames reports whether an address has two names in the Service that was asked for.
func (x exchanged) twoNames() bool {
	s, _ := x.service()
	return s != nil && s.twoNames()
}

func (s *named) twoNames() bool {
	names := map[string]string{}
	for _, sl := range s.slices {
		for _, e := range sl.Endpoints {
			name := dashed(e.Addresses[0])
			if e.Hostname != nil {
				name = *e.Hostname
			}
			if old, ok := names[e.Addresses[0]]; ok && old != name {
				return true
			}
			names[e.Addresses[0]] = name
		}
	}
	return false
}

// upstreamSOA is the one that the world outside has.
func upstreamSOA(v view) bool {
	return slices.Equal(v.authority, []string{". in soa a.root. b.root. 1 1 1"})
}

// keptTTL reports whether TTLs are those of records from outside, that may have been kept for a while.
func keptTTL(ttls []uint32, most uint32) bool {
	return !slices.ContainsFunc(ttls, func(t uint32) bool { return t > most })
}

var known = []difference{
	// Response codes.
	{"rcode", "not a query", "FORMERR or NOTIMP", "answers the question anyway, or NOTIMP where Fairlead finds the form wrong",
		"Two questions, records that belong into answers, two OPT records (RFC 6891, section 6.1.1), NOTIFY and the like are no queries; answering them anyway helps only who forges.",
		func(x exchanged) bool { return refusedForm[x.q.odd] == x.f.rcode }},
	{"rcode", "classes", "REFUSED for every class but IN", "looks the name up as if the class were IN, or forwards it",
		"There are no records of other classes.",
		func(x exchanged) bool {
			return x.q.class != dns.ClassINET && x.q.class != dns.ClassCHAOS && x.f.rcode == "REFUSED" && slices.Contains([]string{"NOERROR", "NXDOMAIN", "SERVFAIL"}, x.c.rcode)
		}},
	{"rcode", "transfers", "REFUSED", "REFUSED for its own zones; forwards others as if they were any question", "Zones are not transferred, and not through others.",
		func(x exchanged) bool { return x.q.qtype == dns.TypeAXFR && x.f.rcode == "REFUSED" }},
	{"rcode", "CHAOS", "answers version.bind, version.server, id.server and hostname.bind itself and refuses the rest", "forwards them: without its plugin chaos, the upstream tells its own version",
		"The one who asks wants to know who answers.",
		func(x exchanged) bool {
			return x.q.class == dns.ClassCHAOS && (x.f.rcode == "REFUSED" || len(ofType(x.f.answer, "txt")) == 1)
		}},
	{"rcode", "names of pods", "NXDOMAIN", "answers for any address, as kubeadm's Corefile says (pods insecure)",
		"Names that are made for any address on demand are of use to attackers too; the plugin's own default is the same. `--dns-pods`, or `pods` in a Corefile that is read, switches them on.",
		func(x exchanged) bool {
			return x.below("pod."+domain) && x.f.rcode == "NXDOMAIN" && x.c.rcode == "NOERROR"
		}},
	{"rcode", "names of pods in namespaces that do not exist", "any namespace will do, where pods have names at all and need not be known (insecure)", "NXDOMAIN",
		"The specification wants no more (section 2.6), and namespaces are not watched.",
		func(x exchanged) bool {
			return strings.HasSuffix(x.name, ".nowhere.pod."+domain) && x.f.rcode == "NOERROR" && x.c.rcode == "NXDOMAIN" || x.name == "nowhere.pod."+domain
		}},
	{"rcode", "loosely spelled ports", "NXDOMAIN", "takes http.tcp, _._tcp and the like for a port and a protocol",
		"The specification has one spelling, _PORT._PROTOCOL; unnamed ports have no such name (section 2.3.2).",
		func(x exchanged) bool { return x.lax() && x.f.rcode == "NXDOMAIN" && x.c.rcode == "NOERROR" }},
	{"rcode", "names above ports", "exist (NODATA)", "NXDOMAIN",
		"_tcp.SERVICE is above _PORT._tcp.SERVICE, and what has names below it exists. A resolver that is told otherwise may deny the ports (RFC 8020).",
		func(x exchanged) bool {
			s, before := x.service()
			return s != nil && len(before) == 1 && strings.HasPrefix(before[0], "_") && x.f.rcode == "NOERROR" && x.c.rcode == "NXDOMAIN" && (len(x.f.answer) == 0 || x.q.qtype == dns.TypeANY)
		}},
	{"rcode", "other names above names", "exist (NODATA)", "NXDOMAIN for dns.DOMAIN, and for dns-version.DOMAIN, ns.dns.DOMAIN and namespaces when asked for types that they do not have",
		"They have names below them (RFC 8020).",
		func(x exchanged) bool {
			rest := x.name
			for _, zone := range []string{".svc." + domain, ".pod." + domain} {
				rest = strings.TrimSuffix(rest, zone)
			}
			namespace := rest != x.name && !strings.Contains(rest, ".")
			exists := []string{domain, "svc." + domain, "pod." + domain, "dns." + domain, "ns.dns." + domain, "dns-version." + domain}
			return (namespace || slices.Contains(exists, x.name)) && x.f.rcode == "NOERROR" && x.c.rcode == "NXDOMAIN"
		}},
	{"rcode", "namespaces without Services", "NXDOMAIN", "NODATA while the namespace exists",
		"There is nothing below them. Namespaces are not watched: that would be one more watch on every node, for this alone.",
		func(x exchanged) bool {
			rest, ok := strings.CutSuffix(x.name, ".svc."+domain)
			return ok && slices.Contains(x.w.empty, rest) && x.f.rcode == "NXDOMAIN" && x.c.rcode == "NOERROR" && len(x.c.answer) == 0
		}},
	{"rcode", "SOA of names that do not exist", "NXDOMAIN", "NODATA", "They do not exist.",
		func(x exchanged) bool {
			return x.q.qtype == dns.TypeSOA && x.f.rcode == "NXDOMAIN" && x.c.rcode == "NOERROR" && len(x.c.answer) == 0
		}},
	{"rcode", "aliases in a circle", "SERVFAIL, with the Service's name in the extended error", "NODATA",
		"The name is not without addresses; somebody has to mend it.",
		func(x exchanged) bool {
			return x.alias() != "" && x.f.rcode == "SERVFAIL" && x.c.rcode == "NOERROR" && len(x.c.answer) == 0
		}},
	{"rcode", "aliases of nothing", "NXDOMAIN, with the alias in the answer", "NOERROR: with the alias if it leads outside, with nothing at all if it leads to a Service that does not exist",
		"The response code is about the end of the aliases (RFC 6604, section 3).",
		func(x exchanged) bool {
			return x.alias() != "" && x.f.rcode == "NXDOMAIN" && x.c.rcode == "NOERROR" && len(ofType(x.f.answer, "cname")) == len(x.f.answer) && len(ofType(x.c.answer, "cname")) == len(x.c.answer)
		}},
	{"rcode", "aliases of an address", "exist (NODATA)", "NXDOMAIN for a Service whose externalName is an address",
		"The Service exists; there is nothing to point to.",
		func(x exchanged) bool {
			return isAddress(x.alias()) && x.f.rcode == "NOERROR" && len(ofType(x.f.answer, "hinfo")) == len(x.f.answer) && x.c.rcode == "NXDOMAIN"
		}},
	{"rcode", "reverse names in the cluster's ranges", "answers with authority, also that there is nothing", "forwards what it does not find (fallthrough), and every type but PTR",
		"Nobody outside knows the cluster's addresses better, and nobody there should learn which ones are asked for.",
		func(x exchanged) bool { return x.inRanges() && x.f.has("aa") && upstreamSOA(x.c) }},
	{"rcode", "in-addr.arpa and ip6.arpa themselves", "forwards them", "takes them for its own zones",
		"The cluster's ranges are a small part of them.",
		func(x exchanged) bool {
			return slices.Contains([]string{"in-addr.arpa.", "ip6.arpa."}, x.name) && !x.f.has("aa") && x.c.has("aa")
		}},
	{"rcode", "reverse names of pods behind ClusterIPs", "NXDOMAIN", "a name below every Service that has the pod",
		"The specification gives reverse names to ClusterIPs and to endpoints of headless Services (section 2.4.3); a pod behind several Services has no name of its own.",
		func(x exchanged) bool {
			return x.q.qtype == dns.TypePTR && x.f.rcode == "NXDOMAIN" && x.inRanges() && x.morePointers((*named).virtual)
		}},
	{"rcode", "addresses with two names", "NXDOMAIN for the one that is not answered", "both names, when a Service has one address with two hostnames",
		"An address is one endpoint. No controller makes such slices; who writes them by hand can give the second name a Service of its own.",
		func(x exchanged) bool { return x.twoNames() && x.f.rcode == "NXDOMAIN" && x.c.rcode == "NOERROR" }},

	// What is in the answer.
	{"answer", "reverse names of pods behind ClusterIPs", "only the names below headless Services", "also names below every other Service that has the pod",
		"The specification gives such names to headless Services (section 2.4.3).",
		func(x exchanged) bool { return x.q.qtype == dns.TypePTR && x.morePointers((*named).virtual) }},
	{"answer", "addresses with two names", "one of the names, when a Service has one address with two hostnames", "both names",
		"An address is one endpoint. No controller makes such slices; who writes them by hand can give the second name a Service of its own.",
		func(x exchanged) bool {
			return x.twoNames() && len(x.f.answer) < len(x.c.answer) ||
				x.morePointers(func(s *named) bool { return s.virtual() || s.twoNames() })
		}},
	{"answer", "ANY", "one record: the alias if there is one, else HINFO as RFC 8482 (section 4.2) has it", "NODATA, or NXDOMAIN for names that have no addresses",
		"NODATA would say that there is nothing of any type.",
		func(x exchanged) bool {
			return x.q.qtype == dns.TypeANY && len(x.f.answer) == 1 && len(x.c.answer) == 0
		}},
	{"answer", "weights of SRV records", "always 100", "100 divided by the number of records",
		"Only their proportion means anything (RFC 2782), and they are all alike.",
		func(x exchanged) bool { return slices.Equal(weightless(x.f.answer), weightless(x.c.answer)) }},
	{"answer", "addresses at the names of ports", "NODATA: they have SRV records only", "the Service's addresses",
		"They are not in the specification, and nobody can connect to a name with an underscore.",
		func(x exchanged) bool {
			s, before := x.service()
			return s != nil && len(before) == 2 && len(x.f.answer) == 0 && (x.q.qtype == dns.TypeA || x.q.qtype == dns.TypeAAAA) && len(x.c.answer) > 0
		}},
	{"answer", "SRV at the names of endpoints", "NODATA", "a record for each port",
		"They are not in the specification: SRV records are at the names of ports.",
		func(x exchanged) bool {
			s, before := x.service()
			return s != nil && len(before) == 1 && x.q.qtype == dns.TypeSRV && len(x.f.answer) == 0 && len(ofType(x.c.answer, "srv")) > 0
		}},
	{"answer", "aliases and other types", "the alias, and what is at its end", "NODATA for every type but A, AAAA, TXT and CNAME, and for aliases of Services without the type",
		"An alias answers every type (RFC 1034, section 3.6.2).",
		func(x exchanged) bool {
			return x.alias() != "" && len(ofType(x.f.answer, "cname")) > 0 && len(x.c.answer) == 0
		}},
	{"answer", "what is cut", "at most 1232 octets over UDP, then TC, with some of the records", "as many octets as the client takes, then TC, with some others",
		"Larger packets get lost (DNS Flag Day 2020). The records are in a random order, so that not all who are content with what there is take the same. What comes over TCP is compared in full.",
		func(x exchanged) bool {
			return !x.q.tcp && len(x.f.answer) > 0 && len(x.c.answer) > 0 && (x.f.has("tc") && x.f.size <= 1232 && (x.c.has("tc") || x.c.size > 512) || x.c.has("tc"))
		}},
	{"answer", "zones in the cluster's ranges", "each range is a zone with SOA and NS", "in-addr.arpa and ip6.arpa are",
		"The cluster's ranges are a small part of them.",
		func(x exchanged) bool {
			return x.inRanges() && (x.q.qtype == dns.TypeSOA || x.q.qtype == dns.TypeNS) && len(x.f.answer) == 1 && len(x.c.answer) == 0
		}},
	{"answer", "the name server's name", "ns.dns.DOMAIN, with the addresses of the Service kube-dns", "kube-dns.kube-system.svc.DOMAIN",
		"SOA and NS name one server.",
		func(x exchanged) bool { return x.q.qtype == dns.TypeNS }},

	// Times.
	{"TTL", "positive", "5 s, or what a Corefile that is read says", "30 s by kubeadm's Corefile, 28800 s for dns-version, and for reverse names what is left in the plugin cache",
		"Nobody should remember an address longer than it may take to go.",
		func(x exchanged) bool {
			return (slices.Equal(x.f.ttls, []uint32{5}) || slices.Equal(x.f.ttls, []uint32{30}) && x.reverse()) && (slices.Equal(x.c.ttls, []uint32{30}) || slices.Equal(x.c.ttls, []uint32{28800}) || x.reverse() && keptTTL(x.c.ttls, 30)) && len(x.f.negative)+len(x.c.negative) == 0
		}},
	{"TTL", "negative", "0 s", "30 s by kubeadm's Corefile",
		"A name must not be unknown any longer than it does not exist.",
		func(x exchanged) bool {
			return slices.Equal(x.f.negative, []uint32{0, 0}) && (slices.Equal(x.c.negative, []uint32{30, 30}) || x.reverse() && keptTTL(x.c.negative, 30)) && len(x.f.ttls)+len(x.c.ttls) == 0
		}},
	{"TTL", "the zone's SOA", "0 s", "30 s by kubeadm's Corefile", "It is the same record that comes with negative answers.",
		func(x exchanged) bool {
			return x.q.qtype == dns.TypeSOA && slices.Equal(x.f.ttls, []uint32{0}) && slices.Equal(x.c.ttls, []uint32{30})
		}},
	{"TTL", "from outside", "what is left of the upstream's", "at most 30 s, from the plugin cache",
		"The owner of a name knows best how long it holds.",
		func(x exchanged) bool {
			return keptTTL(x.f.ttls, 300) && keptTTL(x.c.ttls, 30) && keptTTL(x.f.negative, 60) && keptTTL(x.c.negative, 60) && x.f.has("ra") && (x.c.has("ra") || x.alias() != "")
		}},

	// Flags.
	{"flag ra", "recursion", "has RA set wherever it has an upstream", "has it set only in what it forwards",
		"The flag is about the server, not about the name (RFC 1035, section 4.1.1).",
		func(x exchanged) bool { return x.f.has("ra") }},
	{"flag aa", "authority of what was forwarded", "AA is not set", "is set in answers from the plugin cache",
		"Nobody here has authority over other zones.",
		func(x exchanged) bool { return x.c.has("aa") && x.c.has("ra") && !x.f.has("aa") }},
	{"flag aa", "reverse names in the cluster's ranges", "answers with authority", "forwards", "The cluster has the authority over its addresses.",
		func(x exchanged) bool { return x.inRanges() && x.f.has("aa") }},
	{"flag tc", "additional sections", "are left out when they do not fit", "TC is set when they do not fit",
		"They are not needed; TC would cost a connection (RFC 2181, section 9).",
		func(x exchanged) bool {
			return !x.q.tcp && !x.f.has("tc") && (len(x.f.answer) >= len(x.c.answer) || len(x.f.additional) < len(x.c.additional))
		}},
	{"flag cd", "not a query", "CD is not copied", "CD is copied", "A header alone says only whose it is.",
		func(x exchanged) bool { return refusedForm[x.q.odd] == x.f.rcode }},
	{"flag ad", "AD of the query", "is not copied", "is copied from some queries",
		"Nothing here is validated (RFC 6840, section 5.8).",
		func(x exchanged) bool { return !x.f.has("ad") }},

	// The other sections.
	{"authority", "reverse names in the cluster's ranges", "the SOA of the range", "the upstream's, or in-addr.arpa's and ip6.arpa's", "Each range is a zone.",
		func(x exchanged) bool { return x.inRanges() && x.f.has("aa") && len(x.c.authority) == 1 }},
	{"authority", "aliases without the type", "the SOA of the zone at their end", "nothing",
		"Without it nobody may remember that there is nothing (RFC 2308, section 2.2).",
		func(x exchanged) bool { return x.alias() != "" && upstreamSOA(x.f) && len(x.c.authority) == 0 }},
	{"additional", "additional sections", "are left out when they do not fit", "are cut", "Nobody has to have them (RFC 2181, section 9).",
		func(x exchanged) bool {
			return !x.q.tcp && (x.c.has("tc") || x.f.has("tc") || x.f.size <= 1232 && x.c.size > 1232 && len(x.f.additional) < len(x.c.additional))
		}},
	{"additional", "addresses with two names", "one of the names", "both names", "An address is one endpoint.",
		func(x exchanged) bool { return x.twoNames() && len(x.f.additional) < len(x.c.additional) }},

	{"additional", "the name server's name", "the addresses of ns.dns.DOMAIN", "the addresses of kube-dns.kube-system.svc.DOMAIN", "They are the same addresses.",
		func(x exchanged) bool {
			return x.q.qtype == dns.TypeNS && strings.ReplaceAll(strings.Join(x.f.additional, ";"), "ns.dns.", "kube-dns.kube-system.svc.") == strings.Join(x.c.additional, ";")
		}},

	// EDNS.
	{"EDNS size", "size", "says that it takes 1232 octets", "says what the client said",
		"It is the server's own limit (RFC 6891, section 6.2.3), and 1232 is what passes everywhere without fragments.",
		func(x exchanged) bool {
			return x.f.edns.size == 1232 && x.f.edns.version == 0 && (x.c.edns.size == x.q.msg.IsEdns0().UDPSize() || x.f.rcode == "BADSIG")
		}},
	{"EDNS options", "reasons", "an error has its reason (RFC 8914)", "none",
		"Somebody will look for it.",
		func(x exchanged) bool { return x.f.edns.options == "15 " && x.c.edns.options == "" }},
	{"EDNS options", "options that are not understood", "are left out of the answer", "are sent back as they came",
		"An option in an answer says that it was understood (RFC 6891, section 6.1.2).",
		func(x exchanged) bool {
			return len(x.q.msg.IsEdns0().Option) > 0 && (x.f.edns.options == "" || x.f.edns.options == "15 ") && x.c.edns.options != ""
		}},
	{"EDNS DO", "DO in BADVERS", "is copied", "is not", "RFC 3225 (section 3) wants it copied.",
		func(x exchanged) bool { return x.q.msg.IsEdns0().Version() != 0 && x.f.edns.do }},
	{"EDNS", "not a query", "is answered by a header alone", "by a whole message", "An answer to what is no query must not be larger than it.",
		func(x exchanged) bool { return refusedForm[x.q.odd] == x.f.rcode && !x.f.edns.present }},
	{"question", "not a query", "is answered by a header alone", "by a whole message", "An answer to what is no query must not be larger than it.",
		func(x exchanged) bool { return refusedForm[x.q.odd] == x.f.rcode && x.f.question == "" }},

	// Spelling.
	{"spelling", "upper and lower case", "the question's name is spelled as it was asked, all others in lower case", "the zone's name is spelled everywhere as in the question, and answers from the plugin cache as the one who asked first spelled them",
		"Names are compared without case; only the question's own name is (0x20) looked at.",
		func(x exchanged) bool { return x.f.spelled != x.c.spelled }},
}
