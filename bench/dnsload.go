// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The world of everything but memory: 10,000 Services and 1,000 headless ones with ten pods each.
func (s *suite) usualShape() shape {
	return pick(s, shape{10000, 2, 1000, 10}, shape{1000, 2, 100, 10})
}

// served is what a round of questions to one server led to.
type served struct {
	dnsResult
	perAnswer float64 // the server's processor time of one answer, in microseconds
	inKernel  float64 // that, and what the client's processor takes packets in for, in microseconds
	both      float64 // the time of both processors, whoever for, in microseconds
	busy      float64 // the share of the time in which the server's processor did anything, whoever for
}

// The ways in which a load is measured.
const (
	saturated = "at saturation"
	byDNSPerf = "at saturation, dnsperf"
)

// dnsLoads measures what an answer costs, how many there can be, and how long they take.
func dnsLoads(ctx context.Context, s *suite) error {
	nodes, missing, err := s.serveAll(ctx, resolvers)
	if err != nil {
		return err
	}
	defer closeAll(nodes)
	names := s.present("load", resolvers, missing)
	turns := func(rounds int, measure func(*dnsNode) (served, error)) (map[string][]served, error) {
		quiet(ctx)
		return takeTurns(ctx, pick(s, rounds, 3), names, func(name string) (served, error) { return measure(nodes[name]) })
	}
	progress("asking as fast as answers come")
	fast, err := turns(8, func(n *dnsNode) (served, error) { return s.ask(ctx, n) })
	if err != nil {
		return err
	}
	s.reportCost(names, fast, saturated, atLeast(8))
	s.reportRate(names, fast, saturated)
	if tool, err := (resolver{program: "dnsperf"}).find(s.programs); err != nil {
		s.state(figure{Section: "load", Figure: "dnsperf is not measured with", Missing: err.Error()})
	} else {
		progress("asking with dnsperf")
		taken, err := turns(8, func(n *dnsNode) (served, error) { return s.askWithDNSPerf(ctx, tool, n) })
		if err != nil {
			return err
		}
		s.reportCost(names, taken, byDNSPerf, nil)
		s.reportRate(names, taken, byDNSPerf)
	}
	half := halfOfCoreDNS(fast)
	for _, rate := range []float64{2000, half} {
		progress("asking %.0f times a second", rate)
		rounds, lasts := 8, 2*time.Second
		if rate == half { // a goal is about the slowest answers, of which there are few, and which have most to do with the machine
			rounds, lasts = 12, 4*time.Second
		}
		taken, err := turns(rounds, func(n *dnsNode) (served, error) {
			return s.ask(ctx, n, "-rate", fmt.Sprint(rate), "-count", pick(s, lasts, time.Second).String())
		})
		if err != nil {
			return err
		}
		at := fmt.Sprintf("at %.0f/s", rate)
		s.reportCost(names, taken, at, nil)
		var target *goal
		if rate == half {
			at, target = fmt.Sprintf("at %.0f/s, half of CoreDNS's most", rate), atLeast(4)
		}
		s.reportLatency(names, taken, at, target)
	}
	return nil
}

// serveAll starts resolvers, all at once and all on one processor: those that nobody asks do next to nothing. Before anything is measured, each must
// give the right answer to every question. What is missing on this machine is named, with the reason.
func (s *suite) serveAll(ctx context.Context, all []resolver) (nodes map[string]*dnsNode, missing map[string]string, err error) {
	nodes, missing = map[string]*dnsNode{}, map[string]string{}
	defer func() {
		if err != nil {
			closeAll(nodes)
		}
	}()
	for _, r := range all {
		if _, err := r.find(s.programs); err != nil {
			missing[r.name] = err.Error()
			progress("without %s: %v", r.name, err)
			continue
		}
		n, err := s.usualNode(ctx, r)
		if err != nil {
			return nodes, nil, err
		}
		nodes[r.name] = n
		progress("starting %s", r.name)
		if err := n.run(ctx, s, serverCPU); err != nil {
			return nodes, nil, err
		}
		if err := n.askAll(ctx, s); err != nil {
			return nodes, nil, err
		}
	}
	return nodes, missing, nil
}

// present are the names of those that are not missing; of the others the section says so.
func (s *suite) present(section string, all []resolver, missing map[string]string) (names []string) {
	for _, r := range all {
		if why, ok := missing[r.name]; ok {
			s.state(figure{Section: section, Figure: r.name + " is not measured", Missing: why})
			continue
		}
		names = append(names, r.name)
	}
	return names
}

// halfOfCoreDNS is half of what the slower CoreDNS can do, so that neither has more than half a load.
func halfOfCoreDNS(taken map[string][]served) float64 {
	half := math.Inf(1)
	for _, rival := range []string{coreDNS.name, coreDNSCached.name} {
		half = min(half, math.Round(median(each(taken[rival], func(r served) float64 { return r.perSecond() }))/2))
	}
	return half
}

func closeAll(nodes map[string]*dnsNode) {
	for _, n := range nodes {
		n.close()
	}
}

// usualWorld is the world of the usual shape for a resolver: one for Fairlead, which is also what is in the zone files, and one for CoreDNS.
func (s *suite) usualWorld(ctx context.Context, r resolver) (*dnsWorld, error) {
	name := coreDNS.name
	if !r.world || r.program == fairleadDNS.program {
		name = fairlead.name
	}
	if w := s.dnsWorlds[name]; w != nil {
		return w, nil
	}
	w, err := s.namedWorld(ctx, name, s.usualShape())
	if err == nil {
		s.dnsWorlds[name] = w
	}
	return w, err
}

// usualNode makes a rig for a resolver, with the world of the usual shape.
func (s *suite) usualNode(ctx context.Context, r resolver) (*dnsNode, error) {
	w, err := s.usualWorld(ctx, r)
	if err != nil {
		return nil, err
	}
	return s.newDNSNode(ctx, r, w)
}

// ask asks from the client pod with further flags, and counts what that costs the server.
func (s *suite) ask(ctx context.Context, n *dnsNode, flags ...string) (served, error) {
	if err := n.process.gone(); err != nil {
		return served{}, err
	}
	return weigh(n.process.pid(), func() (dnsResult, error) {
		return runDNSLoad(ctx, s, n, append([]string{"-questions", n.drawn, "-count", pick(s, 1500*time.Millisecond, 500*time.Millisecond).String()}, flags...)...)
	})
}

// weigh runs a load and counts the processor time of a server and its children meanwhile.
func weigh(pid int, load func() (dnsResult, error)) (out served, err error) {
	before, err := cpuTime(pid)
	if err != nil {
		return out, err
	}
	serverBefore, clientBefore, softirqBefore, err := busyTimes()
	if err != nil {
		return out, err
	}
	begin := time.Now()
	if out.dnsResult, err = load(); err != nil {
		return out, err
	}
	took := time.Since(begin)
	after, err := cpuTime(pid)
	if err != nil {
		return out, err
	}
	serverAfter, clientAfter, softirqAfter, err := busyTimes()
	each := func(d time.Duration) float64 { return micros(d) / float64(out.All) }
	out.perAnswer = each(after - before)
	out.inKernel = out.perAnswer + each(softirqAfter-softirqBefore)
	out.both = each(serverAfter - serverBefore + clientAfter - clientBefore)
	out.busy = float64(serverAfter-serverBefore) / float64(took)
	return out, err
}

// busyTimes are those of the server's processor and of the client's, and that of the client's in softirqs.
func busyTimes() (server, client, softirq time.Duration, err error) {
	if server, _, err = busyTime(serverCPU); err != nil {
		return 0, 0, 0, err
	}
	client, softirq, err = busyTime(clientCPU)
	return server, client, softirq, err
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func runDNSLoad(ctx context.Context, s *suite, n *dnsNode, flags ...string) (r dnsResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, awaitLimit)
	defer cancel()
	argv := append([]string{s.programs.bench, "dnsload", "-to", n.addr.String()}, flags...)
	if n.echo {
		argv = append(argv, "-echo")
	}
	out, err := output(ctx, n.client, clientCPU, argv...)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("parse result of dnsload: %w", err)
	}
	return r, r.fault()
}

// dnsperf's way: this many clients, each a source port, in one thread, with so many questions on their way.
const dnsperfFlags = "-c 128 -T 1 -q 100"

func (s *suite) askWithDNSPerf(ctx context.Context, tool string, n *dnsNode) (served, error) {
	seconds := pick(s, "2", "1")
	argv := append([]string{tool, "-s", n.addr.Addr().String(), "-p", strconv.Itoa(dnsPort), "-d", s.dnsperfFile(n), "-l", seconds, "-t", "1"},
		strings.Fields(dnsperfFlags)...)
	return weigh(n.process.pid(), func() (dnsResult, error) {
		out, err := output(ctx, n.client, clientCPU, argv...)
		if err != nil {
			return dnsResult{}, err
		}
		r, err := parseDNSPerf(string(out), n.echo)
		if err != nil {
			return r, err
		}
		return r, r.fault()
	})
}

// dnsperfFile is the drawn questions as dnsperf reads them: name and type.
func (s *suite) dnsperfFile(n *dnsNode) string { return n.drawn + ".dnsperf" }

// saveForDNSPerf writes questions for dnsperf.
func saveForDNSPerf(path string, questions []question) error {
	var b strings.Builder
	for _, q := range questions {
		fmt.Fprintf(&b, "%s %s\n", q.name, typeNames[q.qtype])
	}
	if err := os.WriteFile(filepath.Clean(path), []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write questions for dnsperf: %w", err)
	}
	return nil
}

// parseDNSPerf reads the end of dnsperf's report. Answers that are not NOERROR are wrong here: every name asked for is there.
func parseDNSPerf(report string, echo bool) (r dnsResult, err error) {
	found := 0
	for line := range strings.Lines(report) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(value)
		if !ok || len(fields) == 0 {
			continue
		}
		number := func(out *int) {
			if *out, err = strconv.Atoi(fields[0]); err == nil {
				found++
			}
		}
		switch key {
		case "Queries completed":
			number(&r.All)
		case "Queries lost":
			number(&r.Lost)
		case "Run time (s)":
			if r.Seconds, err = strconv.ParseFloat(fields[0], 64); err == nil {
				found++
			}
		case "Response codes":
			for code := range strings.SplitSeq(value, ",") {
				words := strings.Fields(code)
				if len(words) < 2 {
					return r, fmt.Errorf("parse dnsperf's %q", line)
				}
				if n, err := strconv.Atoi(words[1]); words[0] != "NOERROR" && !echo {
					r.Wrong += n
					r.FirstWrong = "has the response code " + words[0]
				} else if err != nil {
					return r, fmt.Errorf("parse dnsperf's %q: %w", line, err)
				}
			}
		}
		if err != nil {
			return r, fmt.Errorf("parse dnsperf's %q: %w", line, err)
		}
	}
	if found != 3 {
		return r, errors.New("parse dnsperf's report: lines are missing")
	}
	r.Answers = r.All
	return r, nil
}

// against gives a goal to the one of two rivals that is better at what is measured.
func against(rival string, better resolver, target *goal) *goal {
	if rival == better.name {
		return target
	}
	return nil
}

func (s *suite) reportCost(names []string, taken map[string][]served, when string, target *goal) {
	cost := func(name string) []float64 { return each(taken[name], func(r served) float64 { return r.perAnswer }) }
	for _, rival := range names {
		if rival != fairlead.name {
			s.compare(figure{Section: "load", Figure: "server's CPU of an answer " + when, Unit: "µs"}, rival, cost(fairlead.name), cost(rival), timesLess,
				against(rival, coreDNSCached, target))
		}
	}
}

func (s *suite) reportRate(names []string, taken map[string][]served, when string) {
	rate := func(name string) []float64 { return each(taken[name], func(r served) float64 { return r.perSecond() }) }
	busy := func(name string) []float64 { return each(taken[name], func(r served) float64 { return 100 * r.busy }) }
	for _, rival := range names {
		if rival == fairlead.name {
			continue
		}
		var target *goal
		if rival == "gdnsd" && when == saturated {
			target = atLeast(0.8)
		}
		s.compare(figure{Section: "load", Figure: "answers per second " + when, Unit: "1/s"}, rival, rate(fairlead.name), rate(rival), share, target)
	}
	for _, rival := range names {
		if rival != fairlead.name {
			s.compare(figure{Section: "load", Figure: "server's processor busy " + when, Unit: "%"}, rival, busy(fairlead.name), busy(rival), share, nil)
		}
	}
}

func (s *suite) reportLatency(names []string, taken map[string][]served, when string, target *goal) {
	for _, q := range []struct {
		name string
		of   func(served) float64
		goal *goal
	}{
		{"median", func(r served) float64 { return r.P50 }, nil},
		{"p99", func(r served) float64 { return r.P99 }, target},
		{"p99.9", func(r served) float64 { return r.P999 }, nil},
	} {
		for _, rival := range names {
			if rival != fairlead.name {
				s.compare(figure{Section: "load", Figure: "time of an answer " + when + ", " + q.name, Unit: "µs"}, rival,
					each(taken[fairlead.name], q.of), each(taken[rival], q.of), timesLess, against(rival, coreDNSCached, q.goal))
			}
		}
	}
}
