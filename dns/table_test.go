// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/test/queries"
	"github.com/fairlead/fairlead/testnet"
)

// allZones are domains of a cluster and all reverse zones.
func allZones(domains ...string) (zones []string) {
	for _, d := range domains {
		zones = append(zones, d+".")
	}
	return append(zones, "in-addr.arpa.", "ip6.arpa.")
}

// block is for all names, with a cluster of some domains and with upstreams.
func block(domain string, upstreams ...netip.AddrPort) Block {
	b := Block{Zones: []string{"."}, Cluster: &Cluster{Zones: allZones(domain), TTL: DefaultTTL}, Loadbalance: true}
	if len(upstreams) > 0 {
		p := forward.Pool{Zone: ".", Policy: forward.Sequential}
		for _, u := range upstreams {
			p.Upstreams = append(p.Upstreams, forward.Upstream{Addr: u})
		}
		b.Forward = []forward.Pool{p}
	}
	return b
}

// optionsOf are the settings of a group of rows.
func optionsOf(t testing.TB, g queries.Group) Options {
	t.Helper()
	o := Options{Blocks: []Block{block("cluster.local")}}
	c := o.Blocks[0].Cluster
	for k, v := range g.Settings {
		switch k {
		case "dns":
		case "domain":
			c.Zones = allZones(strings.Split(v, ",")...)
		case "pods":
			mode, ok := map[string]PodNames{"disabled": PodsDisabled, "verified": PodsVerified, "insecure": PodsInsecure}[v]
			if !ok {
				t.Fatalf("pods=%s", v)
			}
			c.Pods = mode
		case "reverse":
			for s := range strings.SplitSeq(v, ",") {
				o.Reverse = append(o.Reverse, netip.MustParsePrefix(s))
			}
		default:
			t.Fatalf("unknown setting %s", k)
		}
	}
	return o
}

// outcome is what a judge found, in the form of a row.
type outcome struct {
	rcode                    string
	flags                    []string
	answer, authority, extra []string
}

// check compares an outcome with a row. TTLs are not part of rows: they are the same everywhere.
func (o outcome) check(t *testing.T, r queries.Row) {
	t.Helper()
	slices.Sort(o.answer)
	slices.Sort(o.extra)
	fail := func(what string, got, want any) { t.Errorf("%v: %s is %v, want %v", r, what, got, want) }
	if o.rcode != r.Rcode {
		fail("rcode", o.rcode, r.Rcode)
	}
	if o.flags != nil && !slices.Equal(o.flags, r.Flags) {
		fail("flags", o.flags, r.Flags)
	}
	if !slices.Equal(o.answer, r.Answer) {
		fail("answer", o.answer, r.Answer)
	}
	if !slices.Equal(o.extra, r.Extra) {
		fail("additional section", o.extra, r.Extra)
	}
	if denies := len(o.authority) == 1 && strings.Contains(o.authority[0], " SOA "); denies != r.Denied {
		fail("authority section", o.authority, map[bool]string{true: "an SOA record", false: "nothing"}[r.Denied])
	}
}

// words are records as rows have them: without TTL and class.
func words(rrs []mdns.RR) (out []string) {
	for _, rr := range rrs {
		if rr.Header().Rrtype == mdns.TypeOPT {
			continue
		}
		f := strings.Fields(rr.String())
		out = append(out, strings.Join(append([]string{f[0]}, f[3:]...), " "))
	}
	return out
}

func typeOf(t *testing.T, r queries.Row) uint16 {
	t.Helper()
	if kind, ok := mdns.StringToType[r.Type]; ok {
		return kind
	}
	var n uint16
	if _, err := fmt.Sscanf(r.Type, "TYPE%d", &n); err != nil {
		t.Fatalf("%v: unknown type", r)
	}
	return n
}

// eachGroup runs a judge on every group of the table.
func eachGroup(t *testing.T, judge func(t *testing.T, g queries.Group, o Options)) {
	groups, err := queries.Groups()
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range groups {
		t.Run(fmt.Sprintf("%d-%s", i, g.World), func(t *testing.T) { judge(t, g, optionsOf(t, g)) })
	}
}

func TestTablePure(t *testing.T) {
	eachGroup(t, func(t *testing.T, g queries.Group, o Options) {
		judgePure(t, g, g.Snapshot, o)
		judgePure(t, g, g.Doubled, o)
	})
}

func judgePure(t *testing.T, g queries.Group, world *model.Snapshot, o Options) {
	t.Helper()
	v, err := NewView(o, world)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range g.Rows {
		a := v.Answer(r.Name, typeOf(t, r))
		if a.Outside {
			if r.Rcode != "REFUSED" {
				t.Errorf("%v: is outside, want %s", r, r.Rcode)
			}
			continue
		}
		flags := []string{"aa", "rd"}
		if a.Rcode == mdns.RcodeServerFailure {
			flags = flags[1:]
		}
		outcome{mdns.RcodeToString[a.Rcode], flags, words(rrs(a.Answer)), words(rrs(a.Authority)), words(rrs(a.Extra))}.check(t, r)
		for _, rec := range slices.Concat(a.Answer, a.Extra) {
			if rec.Type != mdns.TypeSOA && rec.TTL != 5 {
				t.Errorf("%v: TTL of %v", r, rec)
			}
		}
	}
}

var started atomic.Int32

// listen opens sockets at loopback addresses. Instead of 127.0.0.1 it takes one that no other has, each time another one.
func listen(t testing.TB, s *Server, ips ...string) *Sockets {
	t.Helper()
	var addrs []netip.AddrPort
	for _, ip := range ips {
		if ip == "127.0.0.1" {
			// Of this process's own: the sockets share their port with whoever may, and other tests run beside this one.
			pid := os.Getpid()
			ip = fmt.Sprintf("127.%d.%d.%d", 1+pid>>8%250, pid%256, 1+started.Add(1)%250)
		}
		addrs = append(addrs, netip.AddrPortFrom(netip.MustParseAddr(ip), 0))
	}
	for try := 0; ; try++ {
		sockets, err := s.Listen(addrs)
		if err == nil {
			return sockets
		}
		// The port that was free for UDP was not for TCP: clients of tests before may have left theirs in the state TIME-WAIT.
		if try == 10 || !errors.Is(err, unix.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

// start serves on a loopback port until the test ends.
func start(t testing.TB, s *Server, ip string) netip.AddrPort {
	t.Helper()
	sockets := listen(t, s, ip)
	t.Cleanup(serve(t, s, sockets))
	return sockets.Addrs()[0]
}

// serve serves on sockets until stop is called, which waits for the end.
func serve(t testing.TB, s *Server, sockets *Sockets) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.ServeSockets(ctx, sockets) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
}

func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTableWire(t *testing.T) {
	for _, via := range []struct {
		network, ip string
		edns        bool
	}{{"udp", "127.0.0.1", false}, {"udp", "::1", true}, {"tcp", "127.0.0.1", true}, {"tcp", "::1", false}} {
		t.Run(fmt.Sprintf("%s-%s", via.network, via.ip), func(t *testing.T) {
			eachGroup(t, func(t *testing.T, g queries.Group, o Options) {
				s := newServer(t, o)
				s.Publish(g.Snapshot)
				addr := start(t, s, via.ip)
				client := &mdns.Client{Net: via.network, Timeout: 10 * time.Second}
				for _, r := range g.Rows {
					q := new(mdns.Msg).SetQuestion(r.Name, typeOf(t, r))
					edns := via.edns || len(r.Name) > 150 // whose answers may need more than 512 octets
					if edns {
						q.SetEdns0(4096, false)
					}
					m, _, err := client.Exchange(q, addr.String())
					if err != nil {
						t.Fatalf("%v: %v", r, err)
					}
					if m.Question[0].Name != r.Name {
						t.Errorf("%v: the question comes back as %s", r, m.Question[0].Name)
					}
					if (m.IsEdns0() != nil) != edns {
						t.Errorf("%v: OPT is %v", r, m.IsEdns0())
					}
					wireOutcome(m).check(t, r)
				}
			})
		})
	}
}

func wireOutcome(m *mdns.Msg) outcome {
	o := outcome{rcode: mdns.RcodeToString[m.Rcode], flags: []string{}, answer: words(m.Answer), authority: words(m.Ns), extra: words(m.Extra)}
	for _, f := range []struct {
		name string
		set  bool
	}{{"aa", m.Authoritative}, {"tc", m.Truncated}, {"rd", m.RecursionDesired}, {"ra", m.RecursionAvailable}, {"ad", m.AuthenticatedData}} {
		if f.set {
			o.flags = append(o.flags, f.name)
		}
	}
	return o
}

// dig is a client that none of us wrote. It asks all questions of a group on one line each.
func TestTableDig(t *testing.T) {
	path, err := exec.LookPath("dig")
	if err != nil {
		testnet.Skip(t, "needs dig (package bind9-dnsutils)")
	}
	for _, transport := range []string{"+notcp", "+tcp"} {
		t.Run(transport, func(t *testing.T) {
			eachGroup(t, func(t *testing.T, g queries.Group, o Options) {
				s := newServer(t, o)
				s.Publish(g.Snapshot)
				addr := start(t, s, "127.0.0.1")
				var batch bytes.Buffer
				var rows []queries.Row
				for _, r := range g.Rows {
					rows = append(rows, r)
					fmt.Fprintf(&batch, "-q %s -t %s\n", r.Name, r.Type)
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				// It reads few words from a line, so what is the same for all goes before.
				cmd := exec.CommandContext(ctx, path, "-r", "@"+addr.Addr().String(), "-p", fmt.Sprint(addr.Port()), transport,
					"+noidnin", "+noidnout", "+tries=1", "+timeout=10", "+nocookie",
					"+noall", "+comments", "+question", "+answer", "+authority", "+additional", "-f", "-")
				cmd.Stdin = &batch
				cmd.Env = append(cmd.Environ(), "LC_ALL=C")
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("dig: %v\n%s", err, out)
				}
				outcomes := readDig(string(out))
				if len(outcomes) != len(rows) {
					t.Fatalf("dig gives %d answers to %d questions:\n%s", len(outcomes), len(rows), out)
				}
				for i, r := range rows {
					outcomes[i].check(t, r)
				}
			})
		})
	}
}

// readDig reads what dig prints about each question.
func readDig(text string) (out []outcome) {
	var section *[]string
	for line := range strings.SplitSeq(text, "\n") {
		switch {
		case strings.HasPrefix(line, ";; ->>HEADER<<-"):
			_, rest, _ := strings.Cut(line, "status: ")
			status, _, _ := strings.Cut(rest, ",")
			out = append(out, outcome{rcode: status, flags: []string{}})
			section = nil
		case len(out) == 0:
		case strings.HasPrefix(line, ";; flags:"):
			flags, _, _ := strings.Cut(strings.TrimPrefix(line, ";; flags:"), ";")
			for _, f := range strings.Fields(flags) {
				if f != "qr" {
					out[len(out)-1].flags = append(out[len(out)-1].flags, f)
				}
			}
		case strings.HasPrefix(line, ";; ANSWER SECTION"):
			section = &out[len(out)-1].answer
		case strings.HasPrefix(line, ";; AUTHORITY SECTION"):
			section = &out[len(out)-1].authority
		case strings.HasPrefix(line, ";; ADDITIONAL SECTION"):
			section = &out[len(out)-1].extra
		case line == "" || line[0] == ';':
		case section != nil:
			f := strings.Fields(line)
			*section = append(*section, strings.Join(append([]string{f[0]}, f[3:]...), " "))
		}
	}
	return out
}
