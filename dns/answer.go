// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

// Schema is the version of Kubernetes' DNS-Based Service Discovery that is spoken, as dns-version tells it.
const Schema = "1.1.0"

// maxAliases is how many ExternalName Services in a row are followed.
const maxAliases = 8

// Answer is what is known about a question.
type Answer struct {
	// Outside is set when the name is in none of the cluster's zones; nothing else is set then.
	Outside bool
	// Rcode is a response code of the DNS: NOERROR, NXDOMAIN or SERVFAIL.
	Rcode int
	// Zone is the name of the zone the answer is from.
	Zone string
	// Answer and Extra are the records of the answer and of the additional section.
	Answer, Extra []Record
	// Authority is the zone's SOA record if there is nothing else to answer, for the resolver to know how long that holds.
	Authority []Record
	// Alias is a name outside the cluster's zones that the answer ends in, as a CNAME; the question goes on with it.
	Alias string
	// Code and Why explain an answer that is an error (RFC 8914); Why is empty otherwise.
	Code uint16
	Why  string
	// Generation is that of the snapshot the answer comes from.
	Generation uint64
	// Unsettled is set to the time a Service in the answer arrived when none of its slices has: see [Options.Settle].
	Unsettled time.Time
}

// String is the answer in lines: the response code, then the records.
func (a Answer) String() string {
	var b strings.Builder
	b.WriteString(mdns.RcodeToString[a.Rcode])
	if a.Why != "" {
		fmt.Fprintf(&b, " (%s)", a.Why)
	}
	b.WriteByte('\n')
	for _, r := range slices.Concat(a.Answer, a.Authority, a.Extra) {
		b.WriteString(r.String() + "\n")
	}
	return b.String()
}

// Answer answers a question for a name, fully qualified with a trailing dot in any case, and a type, class IN. It is pure and
// is the specification of the cluster's zones.
func (v *View) Answer(name string, qtype uint16) Answer {
	return v.answer(v.plan.targetOf(name), name, qtype)
}

func (v *View) answer(t target, name string, qtype uint16) Answer {
	if t.kind == kindOutside {
		return Answer{Outside: true, Generation: v.snap.Generation}
	}
	r := reply{View: v, zone: t.zone, Answer: Answer{Zone: t.origin, Generation: v.snap.Generation}, domain: t.domain, name: name, qtype: qtype}
	r.resolve(t)
	if r.negative() {
		r.Authority = []Record{r.soa(r.Zone)}
	}
	return r.Answer
}

// negative reports whether there is nothing of the type asked for at the name or at the end of its aliases (RFC 2308).
func (r *reply) negative() bool {
	if r.aliases > 0 && (r.Alias != "" || r.qtype == mdns.TypeCNAME || r.qtype == mdns.TypeANY) {
		return false
	}
	return r.Rcode != mdns.RcodeServerFailure && len(r.Answer.Answer) == r.aliases
}

// reply is an answer being made.
type reply struct {
	*View
	Answer
	zone    *zone
	domain  *domain // that the names in it are below
	name    string  // the owner of what is added next
	qtype   uint16
	exists  bool
	aliases int
}

// resolve adds what there is about a name. The name exists if anything of any type is there.
func (r *reply) resolve(t target) {
	switch t.kind {
	case kindBranch:
		r.exists = t.name.Namespace == "" || r.zone.has(t.name.Namespace)
	case kindApex:
		r.apex()
	case kindVersion:
		r.add(Record{Type: mdns.TypeTXT, Target: Schema})
	case kindServer:
		r.exists = true
		for _, a := range r.snap.DNS {
			r.addAddr(a)
		}
	case kindNamespace:
		r.exists = r.namespaces[t.name.Namespace] > 0 && r.zone.has(t.name.Namespace)
	case kindService, kindEndpoint, kindProtocol, kindPort:
		r.service(t)
	case kindPod:
		if r.podExists(t) {
			r.exists = true
			r.addAddr(t.addr)
		}
	case kindAddress:
		r.address(t)
	}
	switch {
	case r.Rcode != mdns.RcodeSuccess:
	case !r.exists:
		r.Rcode = mdns.RcodeNameError
	case r.qtype == mdns.TypeANY && len(r.Answer.Answer) == 0:
		r.Answer.Answer = append(r.Answer.Answer, Record{Name: r.name, Type: mdns.TypeHINFO, TTL: r.zone.ttl, Target: "RFC8482"})
	}
}

// add adds a record to the answer if its type is asked for; in any case its name exists.
func (r *reply) add(rec Record) {
	r.exists = true
	if rec.Type != r.qtype {
		return
	}
	rec.Name, rec.TTL = r.name, r.zone.ttl
	r.Answer.Answer = append(r.Answer.Answer, rec)
}

func (r *reply) addAddr(a netip.Addr) { r.add(Record{Type: addrType(a), Addr: a}) }

func addrType(a netip.Addr) uint16 {
	if a.Is4() {
		return mdns.TypeA
	}
	return mdns.TypeAAAA
}

// addExtra adds the addresses of a name to the additional section, once.
func (r *reply) addExtra(name string, addrs ...netip.Addr) {
	for _, a := range addrs {
		r.Extra = append(r.Extra, Record{Name: name, Type: addrType(a), TTL: r.zone.ttl, Addr: a})
	}
}

func (r *reply) apex() {
	r.exists = true
	switch r.qtype {
	case mdns.TypeSOA:
		r.Answer.Answer = append(r.Answer.Answer, r.soa(r.name))
	case mdns.TypeNS:
		r.add(Record{Type: mdns.TypeNS, Target: r.domain.server})
		r.addExtra(r.domain.server, r.snap.DNS...)
	}
}

// soa is the SOA record of a zone. Its serial is the snapshot's generation: dig shows which one answers.
func (r *reply) soa(name string) Record {
	return Record{Name: name, Type: mdns.TypeSOA, TTL: min(r.zone.ttl, r.zone.minimum), Target: r.domain.server,
		Serial: uint32(r.snap.Generation), Minimum: r.zone.minimum}
}

// service answers for the names of a Service and below it.
func (r *reply) service(t target) {
	svc, ok := r.snap.Services.Get(t.name)
	if !ok || !r.zone.has(t.name.Namespace) {
		return
	}
	if _, refused := r.refused[t.name]; refused {
		r.fail(mdns.ExtendedErrorCodeNotReady, "service "+t.name.String()+" could not be programmed on this node: see fairlead status")
		return
	}
	switch svc.Type {
	case model.ClusterIP:
		r.clusterIP(t, svc)
	case model.Headless:
		r.headless(t, svc)
	case model.ExternalName:
		r.externalName(t, svc)
		return
	}
	if svc.Slices == 0 && (svc.Type == model.Headless || t.kind == kindEndpoint || len(r.Answer.Answer) > 0) {
		r.Unsettled = svc.Arrived
	}
}

func (r *reply) fail(code uint16, why string) {
	r.Rcode, r.Code, r.Why = mdns.RcodeServerFailure, code, why
	r.Answer.Answer, r.Extra, r.Alias = nil, nil, ""
}

// clusterIP answers for a Service with virtual addresses (sections 2.3.1 and 2.3.2).
func (r *reply) clusterIP(t target, svc *model.Service) {
	if r.zone.IgnoreEmpty && !slices.ContainsFunc(svc.Endpoints, func(e model.Endpoint) bool { return e.Ready }) {
		return
	}
	vips := r.vips(svc)
	switch t.kind {
	case kindService:
		r.exists = true
		for _, a := range vips {
			r.addAddr(a)
		}
	case kindEndpoint:
		r.endpoint(t.label, svc)
		return
	}
	for _, p := range svc.Ports {
		if !t.matches(p) {
			continue
		}
		r.exists = true
		if t.kind == kindProtocol {
			return
		}
		target := r.domain.serviceName(svc.Name)
		if r.qtype == mdns.TypeSRV && len(r.Extra) == 0 {
			r.addExtra(target, vips...)
		}
		if r.hasPort(p.Port) {
			continue // one number in two protocols is one record: only the names of ports have the protocol (RFC 2181, section 5)
		}
		r.add(Record{Type: mdns.TypeSRV, Port: p.Port, Target: target})
	}
}

func (r *reply) hasPort(port uint16) bool {
	return slices.ContainsFunc(r.Answer.Answer, func(rec Record) bool { return rec.Type == mdns.TypeSRV && rec.Port == port })
}

// matches reports whether a port's SRV record is at the target's name or, for a protocol's name, below it. Unnamed ports have no name
// of their own, but the Service's name lists them too.
func (t target) matches(p model.Port) bool {
	switch t.kind {
	case kindService:
		return true
	case kindProtocol:
		return p.Name != "" && p.Protocol == t.proto
	case kindPort:
		return p.Name != "" && p.Name == t.label && p.Protocol == t.proto
	}
	return false
}

// vips are the virtual addresses that are the Service's to use: what another Service has is not this one's promise to make.
func (r *reply) vips(svc *model.Service) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(svc.ClusterIPs), func(a netip.Addr) bool { return !r.snap.Owns(a, svc) })
}

func (d *domain) serviceName(n model.Name) string {
	return n.Name + "." + n.Namespace + ".svc." + d.name
}

// headless answers for a Service that stands for its ready endpoints (sections 2.4.1 and 2.4.2). Without one, it does not exist.
func (r *reply) headless(t target, svc *model.Service) {
	switch t.kind {
	case kindService:
		for i := range svc.Endpoints {
			if e := &svc.Endpoints[i]; e.Ready {
				r.addAddr(e.Addr)
			}
		}
	case kindEndpoint:
		r.endpoint(t.label, svc)
		return
	}
	if t.kind == kindService && r.qtype != mdns.TypeSRV {
		return
	}
	type seen struct {
		port   uint16
		target string
	}
	given, addrs := make(map[seen]struct{}), make(map[netip.Addr]struct{})
	for i, p := range svc.Ports {
		if !t.matches(p) {
			continue
		}
		for _, b := range svc.Backends[i] {
			if !b.Ready {
				continue
			}
			r.exists = true
			if r.qtype != mdns.TypeSRV || t.kind == kindProtocol {
				return
			}
			target := r.zone.label(b.Endpoint) + "." + r.domain.serviceName(svc.Name)
			if len(target) >= maxName {
				continue
			}
			// The two addresses of a pod share a hostname, and its pair of port and name is one record.
			if _, dup := given[seen{b.Port, target}]; !dup {
				given[seen{b.Port, target}] = struct{}{}
				r.add(Record{Type: mdns.TypeSRV, Port: b.Port, Target: target})
			}
			if _, dup := addrs[b.Addr]; !dup {
				addrs[b.Addr] = struct{}{}
				r.addExtra(target, b.Addr)
			}
		}
	}
}

// endpoint answers for an endpoint's own name below its Service. The specification has such names below headless Services only; below the others they are
// an extension (section 3) that other cluster DNS servers taught people to use.
func (r *reply) endpoint(name string, svc *model.Service) {
	addr, _ := undash(name)
	for i := range svc.Endpoints {
		e := &svc.Endpoints[i]
		if own := r.zone.ownLabel(e); e.Ready && (own == "" && e.Addr == addr || own != "" && strings.EqualFold(own, name)) {
			r.addAddr(e.Addr)
		}
	}
}

// label is an endpoint's name below its Service.
func (z *zone) label(e *model.Endpoint) string {
	if own := z.ownLabel(e); own != "" {
		return strings.ToLower(own)
	}
	return dash(e.Addr)
}

// ownLabel is an endpoint's label unless that is made from its address.
func (z *zone) ownLabel(e *model.Endpoint) string {
	if e.Hostname == "" && z.EndpointPodNames && len(e.Pod.Name) <= maxLabel && strings.IndexByte(e.Pod.Name, '.') < 0 {
		return e.Pod.Name
	}
	return e.Hostname
}

// has reports whether names of a namespace are answered.
func (z *zone) has(namespace string) bool {
	return len(z.Namespaces) == 0 || slices.Contains(z.Namespaces, namespace)
}

// usual reports whether the names are those that the specification has, and all of them.
func (z *zone) usual() bool {
	return !z.EndpointPodNames && !z.IgnoreEmpty && len(z.Namespaces) == 0
}

// externalName answers for an alias (section 2.5) and goes on with what it stands for, as far as that is in the cluster.
func (r *reply) externalName(t target, svc *model.Service) {
	name := strings.ToLower(strings.TrimSuffix(svc.ExternalName, ".")) + "."
	if t.kind != kindService {
		return
	}
	r.exists = true
	if _, err := netip.ParseAddr(svc.ExternalName); err == nil || !validTarget(name) {
		return // an address or no name at all is allowed by the API, but there is nothing to point to
	}
	r.Answer.Answer = append(r.Answer.Answer, Record{Name: r.name, Type: mdns.TypeCNAME, TTL: r.zone.ttl, Target: name})
	if r.aliases++; r.qtype == mdns.TypeCNAME || r.qtype == mdns.TypeANY {
		return
	}
	if r.aliases > maxAliases {
		r.fail(mdns.ExtendedErrorCodeOther, "service "+t.name.String()+" is an alias in a circle or of too many others")
		return
	}
	next := r.zone.parse(name)
	if next.kind == kindOutside {
		r.Alias = name
		return
	}
	r.name, r.exists, r.Zone, r.domain = name, false, next.origin, next.domain
	r.resolve(next)
}

func validTarget(name string) bool {
	_, ok := mdns.IsDomainName(name)
	return ok && name != "." && !strings.ContainsAny(name, "\\*@\" ")
}

// podExists decides about a pod's name by its address (section 2.6).
func (r *reply) podExists(t target) bool {
	if !r.zone.has(t.name.Namespace) {
		return false
	}
	switch r.zone.Pods {
	case PodsInsecure:
		return true
	case PodsVerified:
		if namespaces, ok := r.pods[t.addr]; ok {
			return slices.Contains(namespaces, t.name.Namespace)
		}
		for name := range r.snap.HeadlessOf(t.addr) {
			if e := r.host(name, t.addr); e != nil && e.Pod.Namespace == t.name.Namespace {
				return true
			}
		}
	}
	return false
}

// host is the endpoint of a headless Service at an address.
func (v *View) host(svc model.Name, a netip.Addr) *model.Endpoint {
	s, ok := v.snap.Services.Get(svc)
	if !ok {
		return nil
	}
	i, ok := slices.BinarySearchFunc(s.Endpoints, a, func(e model.Endpoint, a netip.Addr) int { return e.Addr.Compare(a) })
	if !ok {
		return nil
	}
	return &s.Endpoints[i]
}

// address answers for a reverse name (sections 2.3.3 and 2.4.3). A pod has a name in every headless Service that has it as ready.
func (r *reply) address(t target) {
	if t.origin == reverseName(netip.PrefixFrom(t.addr, t.addr.BitLen())) {
		r.apex() // the range is so small that every address is a zone
	}
	if name, ok := r.snap.ServiceAt(t.addr); ok && r.zone.has(name.Namespace) {
		r.add(Record{Type: mdns.TypePTR, Target: r.domain.serviceName(name)})
		return
	}
	for name := range r.snap.HeadlessOf(t.addr) {
		if e := r.host(name, t.addr); e != nil && e.Ready && r.zone.has(name.Namespace) {
			if target := r.zone.label(e) + "." + r.domain.serviceName(name); len(target) < maxName {
				r.add(Record{Type: mdns.TypePTR, Target: target})
			}
		}
	}
}
