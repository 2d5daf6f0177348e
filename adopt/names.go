// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/model"
)

// DNSOptions say how CoreDNS is compared with.
type DNSOptions struct {
	// Snapshot is what is known now; it is asked for anew before each look.
	Snapshot func() *model.Snapshot
	// Names are the settings of the answers that would be given here.
	Names dns.Options
	// Servers are asked, each one all questions. Empty: the endpoints of the cluster DNS's Service. Its virtual address would not do: where an agent runs, that
	// is the agent's own.
	Servers []netip.AddrPort
	// Most bounds how many questions each is asked; the rest is left out evenly. 0: none is left out.
	Most int
	// Rate is how many questions a second are asked, of all servers together; 500 if it is 0.
	Rate int
	// Looks and Pause are as in [ProxyOptions].
	Looks int
	Pause time.Duration
	// Progress hears of work that takes long.
	Progress func(string)
}

func (o *DNSOptions) defaults() {
	if o.Rate == 0 {
		o.Rate = 500
	}
	if o.Looks == 0 {
		o.Looks, o.Pause = 3, 2*time.Second
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
}

// asked is a question to one server.
type asked struct {
	name  string
	qtype uint16
	to    netip.AddrPort
}

func (q asked) String() string { return q.name + " " + mdns.TypeToString[q.qtype] }

// CheckDNS asks the cluster's DNS for names of all Services, for some that do not exist, and compares what it answers with what would be answered here: the response
// code and the records, but not their TTLs and the weights of SRV records, which differ always.
func CheckDNS(ctx context.Context, o DNSOptions) Part {
	o.defaults()
	part := Part{With: "CoreDNS", Of: "questions", Notes: []string{}}
	snap := o.Snapshot()
	servers := o.Servers
	if len(servers) == 0 {
		servers = dnsServers(snap)
	}
	if len(servers) == 0 {
		part.Failed = "the Service kube-system/kube-dns has no ready endpoint; say with --ask who is to be asked"
		return part
	}
	part.With = fmt.Sprintf("CoreDNS (%s)", joined(servers))
	view, err := dns.NewView(o.Names, snap)
	if err != nil {
		part.Failed = fmt.Sprintf("prepare answers: %v", err)
		return part
	}
	all := questions(view, snap, o.Names)
	part.All = len(all) * len(servers)
	if o.Most > 0 && len(all) > o.Most {
		some := make([]asked, o.Most)
		for i := range some {
			some[i] = all[i*len(all)/o.Most]
		}
		all = some
		part.Notes = append(part.Notes, fmt.Sprintf("each server was asked %d questions, evenly chosen; --all-names asks all", o.Most))
	}
	var ask []asked
	for _, q := range all {
		for _, to := range servers {
			ask = append(ask, asked{q.name, q.qtype, to})
		}
	}
	part.Looked = len(ask)
	c := &conversation{rate: o.Rate, progress: o.Progress, ttls: make(map[uint32]int)}
	var onPurpose, lasting []Difference
	for look := range o.Looks {
		if look > 0 {
			o.Progress(fmt.Sprintf("%d answers differ from CoreDNS's; asking again in %s whether they still do", len(lasting), o.Pause))
			select {
			case <-ctx.Done():
			case <-time.After(o.Pause):
			}
			snap = o.Snapshot()
			if view, err = dns.NewView(o.Names, snap); err != nil {
				part.Failed = fmt.Sprintf("prepare answers: %v", err)
				return part
			}
		}
		answers, silent := c.askAll(ctx, ask)
		if ctx.Err() != nil {
			part.Failed = ctx.Err().Error()
			return part
		}
		if silent == len(ask) && look == 0 {
			part.Failed = "no server answers: is it reached from this network namespace? --ask says who is asked"
			return part
		}
		lasting = nil
		var again []asked
		for i, q := range ask {
			switch d, differs := judge(view, snap, q, answers[i]); {
			case !differs:
			case d.Meant != "":
				onPurpose = append(onPurpose, d)
			default:
				lasting, again = append(lasting, d), append(again, q)
			}
		}
		if ask = again; len(ask) == 0 {
			break
		}
	}
	if len(c.ttls) > 0 {
		part.Notes = append(part.Notes, "TTLs are not compared: there "+c.seconds()+"; here those of --dns-corefile, else 5 s, and 0 for what does not exist")
	}
	part.add(append(onPurpose, lasting...))
	// Each question was put to each server.
	part.Same = part.Looked - len(part.Differences)
	return part
}

func joined[T fmt.Stringer](all []T) string {
	s := make([]string, len(all))
	for i, v := range all {
		s[i] = v.String()
	}
	return strings.Join(s, ", ")
}

// dnsServers are the endpoints of the cluster DNS.
func dnsServers(snap *model.Snapshot) (all []netip.AddrPort) {
	name := model.Name{Namespace: "kube-system", Name: "kube-dns"}
	if len(snap.DNS) > 0 {
		if n, ok := snap.ServiceAt(snap.DNS[0]); ok {
			name = n
		}
	}
	svc, ok := snap.Services.Get(name)
	if !ok {
		return nil
	}
	for i, p := range svc.Ports {
		if p.Port == model.DNSPort && p.Protocol == model.UDP {
			for _, b := range svc.Backends[i] {
				if b.Ready {
					all = append(all, b.AddrPort())
				}
			}
		}
	}
	return all
}

// nobody is a name that no object has.
const nobody = "fairlead-adopt-check"

// questions are those for all names of a snapshot, and for some that do not exist, in the order of their names.
func questions(view *dns.View, snap *model.Snapshot, o dns.Options) (all []asked) {
	for name, qtype := range view.Questions() {
		switch qtype {
		case mdns.TypeSOA, mdns.TypeNS:
			continue
		}
		if strings.HasPrefix(name, "ns.dns.") {
			continue
		}
		all = append(all, asked{name: name, qtype: qtype})
	}
	var domains []string
	for _, b := range o.Blocks {
		if b.Cluster != nil {
			for _, z := range b.Cluster.Zones {
				if !strings.HasSuffix(z, ".arpa.") {
					domains = append(domains, z)
				}
			}
		}
	}
	namespaces := make(map[string]struct{})
	for name := range snap.Services.All() {
		namespaces[name.Namespace] = struct{}{}
	}
	for _, d := range domains {
		for ns := range namespaces {
			all = append(all, asked{name: nobody + "." + ns + ".svc." + d, qtype: mdns.TypeA})
		}
		all = append(all, asked{name: "a." + nobody + ".svc." + d, qtype: mdns.TypeA}, asked{name: nobody + "." + d, qtype: mdns.TypeAAAA},
			asked{name: "10-0-0-1.default.pod." + d, qtype: mdns.TypeA})
	}
	slices.SortFunc(all, func(a, b asked) int { return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.qtype, b.qtype)) })
	return slices.Compact(all)
}

// conversation asks servers, not faster than it may.
type conversation struct {
	rate     int
	progress func(string)

	mu   sync.Mutex
	ttls map[uint32]int
}

// askers is how many questions are under way at a time.
const askers = 16

// askAll returns the answers, nil for those that did not come, and how many those are.
func (c *conversation) askAll(ctx context.Context, all []asked) (answers []*mdns.Msg, silent int) {
	answers = make([]*mdns.Msg, len(all))
	tick := time.NewTicker(time.Second / time.Duration(c.rate))
	defer tick.Stop()
	work := make(chan int)
	var wg sync.WaitGroup
	for range askers {
		wg.Go(func() {
			for i := range work {
				answers[i] = c.ask(ctx, all[i])
			}
		})
	}
	told := time.Now()
	for i := range all {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		work <- i
		if time.Since(told) > 2*time.Second {
			told = time.Now()
			c.progress(fmt.Sprintf("%d of %d questions asked", i, len(all)))
		}
	}
	close(work)
	wg.Wait()
	for _, a := range answers {
		if a == nil {
			silent++
		}
	}
	return answers, silent
}

const (
	answerLimit = 2 * time.Second
	askTries    = 2
)

// ask asks once more if there is no answer, and over TCP if it was cut.
func (c *conversation) ask(ctx context.Context, q asked) *mdns.Msg {
	m := new(mdns.Msg)
	m.SetQuestion(q.name, q.qtype)
	m.SetEdns0(mdns.DefaultMsgSize, false)
	network := "udp"
	for range askTries {
		client := mdns.Client{Net: network, Timeout: answerLimit}
		a, _, err := client.ExchangeContext(ctx, m, q.to.String())
		if err == nil && a.Truncated && network == "udp" {
			client.Net = "tcp"
			a, _, err = client.ExchangeContext(ctx, m, q.to.String())
		}
		if err == nil {
			c.mu.Lock()
			for _, r := range slices.Concat(a.Answer, a.Ns) {
				c.ttls[r.Header().Ttl]++
			}
			c.mu.Unlock()
			return a
		}
		if errors.Is(err, context.Canceled) {
			return nil
		}
	}
	return nil
}

// seconds are the TTLs that were seen, the shortest and the longest.
func (c *conversation) seconds() string {
	var all []uint32
	for ttl := range c.ttls {
		all = append(all, ttl)
	}
	lowest, highest := slices.Min(all), slices.Max(all)
	if lowest == highest {
		return fmt.Sprintf("%d s", lowest)
	}
	return fmt.Sprintf("%d to %d s", lowest, highest)
}

// said is an answer as far as it is compared: the response code, and the records of the name and type, sorted.
type said struct {
	rcode   int
	records []string
}

func (s said) String() string {
	if s.rcode < 0 {
		return noAnswer
	}
	code := mdns.RcodeToString[s.rcode]
	switch {
	case len(s.records) > 0 && s.rcode == mdns.RcodeSuccess:
		return Fate{Ways: s.records}.String()
	case s.rcode == mdns.RcodeSuccess:
		return "no such record"
	}
	return code
}

func saying(q asked, rcode int, records []mdns.RR) said {
	s := said{rcode: rcode}
	for _, rr := range records {
		h := rr.Header()
		if h.Rrtype != q.qtype && h.Rrtype != mdns.TypeCNAME || !strings.EqualFold(h.Name, q.name) {
			continue
		}
		switch r := rr.(type) {
		case *mdns.A:
			s.records = append(s.records, r.A.String())
		case *mdns.AAAA:
			s.records = append(s.records, r.AAAA.String())
		case *mdns.SRV:
			s.records = append(s.records, fmt.Sprintf("%s:%d", strings.ToLower(r.Target), r.Port))
		case *mdns.PTR:
			s.records = append(s.records, strings.ToLower(r.Ptr))
		case *mdns.CNAME:
			s.records = append(s.records, strings.ToLower(r.Target))
		case *mdns.TXT:
			s.records = append(s.records, strings.Join(r.Txt, ""))
		}
	}
	slices.Sort(s.records)
	s.records = slices.Compact(s.records)
	return s
}

// judge compares one answer.
func judge(view *dns.View, snap *model.Snapshot, q asked, answer *mdns.Msg) (Difference, bool) {
	a := view.Answer(q.name, q.qtype)
	var ours []mdns.RR
	for _, r := range a.Answer {
		ours = append(ours, r.RR())
	}
	here, there := saying(q, a.Rcode, ours), said{rcode: -1}
	if answer != nil {
		there = saying(q, answer.Rcode, answer.Answer)
	}
	if here.rcode == there.rcode && slices.Equal(here.records, there.records) {
		return Difference{}, false
	}
	return Difference{Of: q.String(), Who: q.to.String(), Here: here.String(), There: there.String(), Meant: dnsReason(snap, q, here, there)}, true
}

// dnsReason is why two answers differ on purpose, as docs/dns.md has it; empty if they should not.
func dnsReason(snap *model.Snapshot, q asked, here, there said) string {
	subset := !slices.ContainsFunc(here.records, func(r string) bool { return !slices.Contains(there.records, r) })
	switch {
	case there.rcode < 0:
		return ""
	case strings.HasPrefix(q.name, "10-0-0-1.default.pod.") && here.rcode == mdns.RcodeNameError && there.rcode == mdns.RcodeSuccess:
		return "pods have no names by their address, unless --dns-pods or a Corefile says so"
	case q.qtype == mdns.TypePTR && there.rcode == mdns.RcodeSuccess && subset:
		for _, r := range there.records {
			if !slices.Contains(here.records, r) && !behindClusterIP(snap, r) && !twoNames(snap, r, here.records) {
				return ""
			}
		}
		return "reverse names of endpoints are those below headless Services, and one for each address"
	case q.qtype == mdns.TypeCNAME && here.rcode == mdns.RcodeSuccess && len(here.records) == 0 && there.rcode == mdns.RcodeNameError:
		return "a Service whose externalName is an address exists, and has no records"
	}
	return ""
}

// behindClusterIP reports whether a name is an endpoint's below a Service that has an address of its own.
func behindClusterIP(snap *model.Snapshot, name string) bool {
	svc := above(snap, name)
	return svc != nil && svc.Type == model.ClusterIP
}

// twoNames reports whether a name is below the same Service as another that is answered.
func twoNames(snap *model.Snapshot, name string, others []string) bool {
	svc := above(snap, name)
	return svc != nil && slices.ContainsFunc(others, func(o string) bool { return above(snap, o) == svc })
}

// above is the Service that an endpoint's name is below: HOSTNAME.SERVICE.NAMESPACE.svc.DOMAIN.
func above(snap *model.Snapshot, name string) *model.Service {
	labels := mdns.SplitDomainName(name)
	if len(labels) < 4 || labels[3] != "svc" {
		return nil
	}
	svc, _ := snap.Services.Get(model.Name{Namespace: labels[2], Name: labels[1]})
	return svc
}
