// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// view is an answer, aspect by aspect. Records are "OWNER CLASS TYPE DATA" in lower case, sorted, without TTL; the serial of an SOA is left out, because it counts
// other things everywhere.
type view struct {
	silent                        bool
	rcode                         string
	flags                         []string
	answer, authority, additional []string
	ttls                          []uint32 // of the answer and the additional section, sorted, each once
	negative                      []uint32 // TTL and minimum of the SOA in the authority section
	edns                          edns
	question                      string
	spelled                       string // all records as they are spelled
	size                          int
}

// edns is what an answer's OPT record says.
type edns struct {
	present bool
	version uint8
	size    uint16
	do      bool
	options string // their codes
}

// String is the OPT record for people.
func (e edns) String() string {
	if !e.present {
		return "none"
	}
	return fmt.Sprintf("version %d size %d do %t options [%s]", e.version, e.size, e.do, strings.TrimSpace(e.options))
}

func viewOf(s said) view {
	if s.silent {
		return view{silent: true}
	}
	m := s.msg
	v := view{rcode: cmp.Or(dns.RcodeToString[m.Rcode], fmt.Sprint(m.Rcode)), size: s.size}
	for i, set := range []bool{m.Authoritative, m.Truncated, m.RecursionDesired, m.RecursionAvailable, m.Zero, m.AuthenticatedData, m.CheckingDisabled} {
		if set {
			v.flags = append(v.flags, flagNames[i])
		}
	}
	for _, q := range m.Question {
		v.question += fmt.Sprintf("%s %d %d ", q.Name, q.Qclass, q.Qtype)
	}
	ttls := map[uint32]bool{}
	section := func(rrs []dns.RR, keep bool) (out []string) {
		for _, rr := range rrs {
			if opt, ok := rr.(*dns.OPT); ok {
				v.edns = edns{present: true, version: opt.Version(), size: opt.UDPSize(), do: opt.Do()}
				for _, o := range opt.Option {
					v.edns.options += fmt.Sprintf("%d ", o.Option())
				}
				continue
			}
			h := rr.Header()
			if keep {
				ttls[h.Ttl] = true
			}
			if soa, ok := rr.(*dns.SOA); ok {
				if !keep {
					v.negative = append(v.negative, h.Ttl, soa.Minttl)
				}
				out = append(out, fmt.Sprintf("%s IN SOA %s %s %d %d %d", h.Name, soa.Ns, soa.Mbox, soa.Refresh, soa.Retry, soa.Expire))
				continue
			}
			f := strings.SplitN(rr.String(), "\t", 5)
			out = append(out, strings.Join([]string{f[0], f[2], f[3], f[4]}, " "))
		}
		slices.Sort(out)
		v.spelled += strings.Join(out, "\n")
		for i, s := range out {
			out[i] = strings.ToLower(s)
		}
		slices.Sort(out)
		return out
	}
	v.answer = section(m.Answer, true)
	v.authority = section(m.Ns, false)
	v.additional = section(m.Extra, true)
	v.ttls = slices.Sorted(maps.Keys(ttls))
	return v
}

// differences are the aspects in which two answers differ, but for those that follow from others: with another response code everything is another, and
// where one has an answer and the other has none, one has an SOA record and the other has none.
func differences(a, b view) (out []string) {
	if a.silent || b.silent {
		if a.silent != b.silent {
			return []string{"silence"}
		}
		return nil
	}
	if a.rcode != b.rcode {
		out = append(out, "rcode")
	} else {
		out = append(out, recordDifferences(a, b)...)
	}
	if a.edns.present != b.edns.present {
		out = append(out, "EDNS")
	} else {
		if a.edns.size != b.edns.size || a.edns.version != b.edns.version {
			out = append(out, "EDNS size")
		}
		if a.edns.options != b.edns.options {
			out = append(out, "EDNS options")
		}
		if a.edns.do != b.edns.do {
			out = append(out, "EDNS DO")
		}
	}
	if a.question != b.question {
		out = append(out, "question")
	}
	return out
}

func recordDifferences(a, b view) (out []string) {
	answer := !slices.Equal(a.answer, b.answer)
	if answer {
		out = append(out, "answer")
	}
	alike := slices.Equal(weightless(a.answer), weightless(b.answer))
	for _, f := range flagNames {
		if a.has(f) != b.has(f) && (f != "tc" || alike) { // what does not fit depends on what it is
			out = append(out, "flag "+f)
		}
	}
	if answer && (len(a.answer) == 0 || len(b.answer) == 0) {
		return out
	}
	if !slices.Equal(a.ttls, b.ttls) || !slices.Equal(a.negative, b.negative) {
		out = append(out, "TTL")
	}
	if !slices.Equal(a.authority, b.authority) {
		out = append(out, "authority")
	}
	if !slices.Equal(a.additional, b.additional) {
		out = append(out, "additional")
	}
	if len(out) > 0 && out[0] == "answer" || a.spelled == b.spelled || slices.Contains(out, "authority") || slices.Contains(out, "additional") {
		return out
	}
	return append(out, "spelling")
}

var flagNames = []string{"aa", "tc", "rd", "ra", "z", "ad", "cd"}

// String is an answer for people.
func (v view) String() string {
	if v.silent {
		return "silence"
	}
	return fmt.Sprintf("%s %v answer %q authority %q additional %q TTL %v/%v EDNS %s, %d octets", v.rcode, v.flags, v.answer, v.authority, v.additional, v.ttls, v.negative, v.edns, v.size)
}

// comparison is two servers that are asked the same.
type comparison struct {
	world    *nameWorld
	mu       sync.Mutex
	asked    int
	same     int
	about    map[string]int
	known    map[string]int       // by the entry's name
	unknown  map[string]int       // by aspect and what it is about
	examples map[string][]example // of unknown ones
	first    map[string]example   // of each known one
}

type example struct {
	n                 int
	q                 *asked
	fairlead, coredns view
}

// dnsPair are the servers of a comparison and what they run on.
type dnsPair struct {
	w        *world
	nodes    [2]*host
	servers  [2]*process
	upstream *dns.Server
}

func (p *dnsPair) close() {
	for _, s := range p.servers {
		s.stop()
	}
	if p.upstream != nil {
		_ = p.upstream.Shutdown()
	}
	for _, n := range p.nodes {
		n.close()
	}
	p.w.close()
}

const (
	coreDNSName   = "coredns"
	coreDNSNumber = 14
	dnsIP6        = "fd00:96::a"
)

// corefile is kubeadm's (v1.37), with places for what is elsewhere in these worlds: where CoreDNS listens if not everywhere, how it finds the API server, the
// resolver for what is outside, and what of the cache is not kubeadm's.
const corefile = `.:53 {
    %s
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       %s
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . %s {
       max_concurrent 1000
    }
    cache 30%s
    loop
    reload
    loadbalance
}
`

// uncached keeps the cluster's own names out of the cache, as kubeadm does.
const uncached = ` {
       disable success cluster.local
       disable denial cluster.local
    }`

// compareDNS asks Fairlead and CoreDNS the same questions and reports how they differ. It is an error if they do in a way that docs/dns.md does not have.
func compareDNS(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("compare-dns", flag.ContinueOnError)
	root := flags.String("root", "..", "the repository, with bin/ and bench/bin/ built")
	services := flags.Int("services", 10_000, "number of Services")
	questions := flags.Int("questions", 100_000, "number of questions")
	read := flags.Bool("corefile", false, "have Fairlead read CoreDNS's Corefile, as one does who replaces it, instead of its own flags")
	seed := flags.Uint64("seed", 0, "of the Services and the questions; 0 for the time")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	fmt.Printf("%d Services, %d questions, -seed %d\n", *services, *questions, *seed)
	path, err := filepath.Abs(*root)
	if err != nil {
		return fmt.Errorf("find the repository: %w", err)
	}
	r := rand.New(rand.NewPCG(*seed, 0))
	nw := newNameWorld(r, *services)
	dir, err := os.MkdirTemp("", "fairlead-dns-")
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	defer os.RemoveAll(dir)
	pair, err := newDNSPair(ctx, path, dir, nw, *read)
	if err != nil {
		return err
	}
	defer pair.close()
	progress("asking")
	c := &comparison{world: nw, about: map[string]int{}, known: map[string]int{}, unknown: map[string]int{}, examples: map[string][]example{}, first: map[string]example{}}
	if err := c.run(ctx, pair, *seed, *questions); err != nil {
		return err
	}
	return c.report(os.Stdout)
}

// newDNSPair starts the API server with the Services, and then both servers, each on a node of its own.
func newDNSPair(ctx context.Context, root, dir string, nw *nameWorld, read bool) (_ *dnsPair, err error) {
	p := new(dnsPair)
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	bin := programsOf(root)
	progress("starting the API server")
	p.w, err = newWorld(ctx, bin, dir, "--service-cidr", serviceCIDR+","+serviceCIDR6, "--pod-cidr", podCIDR+","+podCIDR6)
	if err != nil {
		return p, err
	}
	for i, n := range []struct {
		name   string
		number int
	}{{fairlead.name, fairlead.number}, {coreDNSName, coreDNSNumber}} {
		if p.nodes[i], err = newHost(); err != nil {
			return p, err
		}
		if err := p.w.join(p.nodes[i], n.number); err != nil {
			return p, err
		}
		if err := p.w.addNode(ctx, n.name, nodeAddr(n.number), nodeCIDR(n.number)); err != nil {
			return p, err
		}
	}
	if err := p.w.keepNodes(ctx, fairlead.name, coreDNSName); err != nil {
		return p, err
	}
	if err := p.startUpstream(); err != nil {
		return p, err
	}
	progress("making %d Services", len(nw.services))
	if err := nw.create(ctx, p.w); err != nil {
		return p, err
	}
	progress("starting the servers")
	conf, plain := filepath.Join(dir, "Corefile"), filepath.Join(dir, "Corefile.plain")
	for path, apiServer := range map[string]string{conf: "kubeconfig " + p.w.kubeconfig, plain: ""} {
		if err := os.WriteFile(path, fmt.Appendf(nil, corefile, "", apiServer, fabricIP, uncached), 0o644); err != nil {
			return p, fmt.Errorf("write Corefile: %w", err)
		}
	}
	agent := []string{bin.fairlead, "agent", "--node", fairlead.name, "--dns-ip", dnsIP + "," + dnsIP6, "--kubeconfig", p.w.kubeconfig,
		"--state", filepath.Join(dir, "state"), "--service-cidr", serviceCIDR + "," + serviceCIDR6, "--pod-cidr", podCIDR + "," + podCIDR6}
	if read {
		agent = append(agent, "--dns-corefile", plain)
	} else {
		agent = append(agent, "--upstream", fabricIP)
	}
	for i, argv := range [][]string{agent, {bin.coreDNS, "-conf", conf}} {
		if p.servers[i], err = start(p.nodes[i], anyCPU, dir, filepath.Base(argv[0])+"-dns", argv...); err != nil {
			return p, err
		}
	}
	return p, p.await(ctx)
}

// await waits until both have everything.
func (p *dnsPair) await(ctx context.Context) error {
	first := &asked{name: "kubernetes.default.svc.cluster.local.", msg: new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA)}
	for i, s := range p.servers {
		c := p.asker(i)
		err := s.until(ctx, time.Minute, 100*time.Millisecond, func() error {
			got, err := c.ask(first)
			if err != nil {
				return err
			}
			if got.silent || len(got.msg.Answer) == 0 {
				return errors.New("it does not know the first Service yet")
			}
			return nil
		})
		c.close()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", []string{"fairlead", "coredns"}[i], err)
		}
	}
	// CoreDNS answers before it has everything, but says so.
	return p.servers[1].until(ctx, time.Minute, 100*time.Millisecond, func() error {
		get := http.Client{Transport: &http.Transport{DialContext: p.nodes[1].Dial, DisableKeepAlives: true}}
		resp, err := get.Get("http://127.0.0.1:8181/ready")
		if err != nil {
			return fmt.Errorf("ask whether it is ready: %w", err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("ready: %s", resp.Status)
		}
		return nil
	})
}

func (p *dnsPair) asker(i int) *asker {
	number := []int{fairlead.number, coreDNSNumber}[i]
	return newAsker(p.nodes[i], netip.AddrPortFrom(netip.MustParseAddr(nodeAddr(number)), 53))
}

// startUpstream answers for the rest of the world.
func (p *dnsPair) startUpstream() error {
	udp, err := p.w.fabric.ListenPacket("udp", net.JoinHostPort(fabricIP, "53"))
	if err != nil {
		return fmt.Errorf("listen as upstream: %w", err)
	}
	tcp, err := p.w.fabric.Listen("tcp", net.JoinHostPort(fabricIP, "53"))
	if err != nil {
		udp.Close()
		return fmt.Errorf("listen as upstream: %w", err)
	}
	handler := dns.HandlerFunc(answerUpstream)
	p.upstream = &dns.Server{PacketConn: udp, Handler: handler}
	go func() { _ = p.upstream.ActivateAndServe() }()
	go func() { _ = (&dns.Server{Listener: tcp, Handler: handler}).ActivateAndServe() }()
	return nil
}

// beyond is the world outside the cluster.
var beyond = func() map[string][]dns.RR {
	zone := map[string][]dns.RR{}
	text := `www.example.com. 300 IN A 192.0.2.1
www.example.com. 300 IN AAAA 2001:db8::1
www.example.com. 300 IN TXT "hello"
v6.example.com. 300 IN AAAA 2001:db8::6
alias.example.com. 300 IN CNAME www.example.com.
`
	for i := range 60 {
		text += fmt.Sprintf("large.example.com. 300 IN A 198.51.100.%d\n", i+1)
	}
	parser := dns.NewZoneParser(strings.NewReader(text), "", "")
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		zone[rr.Header().Name] = append(zone[rr.Header().Name], rr)
	}
	return zone
}()

func answerUpstream(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	soa := &dns.SOA{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60}, Ns: "a.root.", Mbox: "b.root.", Serial: 1, Refresh: 1, Retry: 1, Expire: 1, Minttl: 60}
	asked := q.Question[0]
	name := strings.ToLower(asked.Name)
	records, exists := beyond[name]
	switch {
	case name == "refused.example.com.":
		m.Rcode = dns.RcodeRefused
	case name == "servfail.example.com.":
		m.Rcode = dns.RcodeServerFailure
	case !exists:
		m.Rcode, m.Ns = dns.RcodeNameError, []dns.RR{soa}
	default:
		for owner := asked.Name; len(records) > 0; {
			next := ""
			for _, rr := range records {
				if alias, ok := rr.(*dns.CNAME); ok {
					next = alias.Target
				} else if rr.Header().Rrtype != asked.Qtype {
					continue
				}
				rr = dns.Copy(rr)
				rr.Header().Name = owner
				m.Answer = append(m.Answer, rr)
			}
			owner, records = next, beyond[next]
		}
		if !slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == asked.Qtype }) {
			m.Ns = []dns.RR{soa}
		}
	}
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(1232, opt.Do())
	}
	size := dns.MaxMsgSize
	if w.LocalAddr().Network() == "udp" {
		size = dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
	}
	m.Truncate(size)
	_ = w.WriteMsg(m)
}

// workers ask at a time. Each has its own questions, so that they do not depend on who is faster.
const workers = 8

func (c *comparison) run(ctx context.Context, p *dnsPair, seed uint64, questions int) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range workers {
		group.Go(func() error {
			r := rand.New(rand.NewPCG(seed, uint64(i+1)))
			both := [2]*asker{p.asker(0), p.asker(1)}
			defer both[0].close()
			defer both[1].close()
			for n := i; n < questions && ctx.Err() == nil; n += workers {
				q := c.world.ask(r)
				e, err := put(n, q, both)
				if err == nil {
					c.judge(e)
				}
				if err == nil && !q.tcp && (e.fairlead.has("tc") || e.coredns.has("tc")) {
					// What a client does then.
					whole := *q
					whole.tcp = true
					if e, err = put(n, &whole, both); err == nil {
						c.judge(e)
					}
				}
				if err != nil {
					return fmt.Errorf("question %d, %s: %w", n, q, errors.Join(err, p.servers[0].gone(), p.servers[1].gone()))
				}
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

// put asks both.
func put(n int, q *asked, both [2]*asker) (example, error) {
	var got [2]view
	for i, a := range both {
		s, err := a.ask(q)
		if err != nil {
			return example{}, err
		}
		got[i] = viewOf(s)
	}
	return example{n, q, got[0], got[1]}, nil
}

// judge finds what is known about each difference.
func (c *comparison) judge(e example) {
	differ := differences(e.fairlead, e.coredns)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	c.about[e.q.about]++
	if len(differ) == 0 {
		c.same++
	}
	for _, aspect := range differ {
		name := explain(c.world, aspect, e.q, e.fairlead, e.coredns)
		if name != "" {
			if c.known[name]++; c.known[name] == 1 {
				c.first[name] = e
			}
			continue
		}
		what := aspect + ": " + e.q.about
		if c.unknown[what]++; len(c.examples[what]) < 4 {
			c.examples[what] = append(c.examples[what], e)
		}
	}
}

// report prints what came of it; an unknown difference is an error.
func (c *comparison) report(out *os.File) error {
	fmt.Fprintf(out, "%d questions, %d answered alike in every aspect\n\nquestions about\n", c.asked, c.same)
	for _, k := range slices.Sorted(maps.Keys(c.about)) {
		fmt.Fprintf(out, "%8d %s\n", c.about[k], k)
	}
	fmt.Fprintf(out, "\nknown differences (docs/dns.md)\n")
	for _, d := range known {
		fmt.Fprintf(out, "%8d %s\n", c.known[d.key()], d.key())
		if e, ok := c.first[d.key()]; ok {
			fmt.Fprintf(out, "         such as %s\n           fairlead %s\n           coredns  %s\n", e.q, e.fairlead, e.coredns)
		}
	}
	if len(c.unknown) == 0 {
		fmt.Fprintln(out, "\nno other difference")
		return nil
	}
	total := 0
	fmt.Fprintf(out, "\nUNKNOWN differences\n")
	for _, k := range slices.Sorted(maps.Keys(c.unknown)) {
		total += c.unknown[k]
		fmt.Fprintf(out, "%8d %s\n", c.unknown[k], k)
		for _, e := range c.examples[k] {
			fmt.Fprintf(out, "         %d: %s\n           fairlead %s\n           coredns  %s\n", e.n, e.q, e.fairlead, e.coredns)
		}
	}
	return fmt.Errorf("%d differences that docs/dns.md does not have", total)
}
