// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dnsSample is a result of every experiment.
func dnsSample() *suite {
	s := testSuite()
	var names []string
	taken := map[string][]served{}
	for i, r := range resolvers {
		names = append(names, r.name)
		for _, noise := range []float64{1, 1.1} {
			v := float64(i+1) * noise
			taken[r.name] = append(taken[r.name], served{dnsResult{Answers: 1000, Seconds: v, P50: v, P99: 2 * v, P999: 3 * v}, v, v, 2 * v, 0.9})
		}
	}
	s.reportCost(names, taken, saturated, atLeast(8))
	s.reportRate(names, taken, saturated)
	s.reportCost(names, taken, "at 2000/s", nil)
	s.reportLatency(names, taken, "at 2000/s", nil)
	s.reportLatency(names, taken, "at 16000/s, half of CoreDNS's most", atLeast(4))
	s.state(figure{Section: "load", Figure: "dnsperf is not measured with", Missing: "it is not on this machine"})
	for _, when := range []string{saturated, "at 2000/s"} {
		s.compareFast("both processors' time of an answer "+when, "µs", coreDNS.name, map[string][]served{fastDNS.name: taken["gdnsd"], coreDNS.name: taken["NSD"]}, timesLess, nil,
			func(r served) float64 { return r.perAnswer })
	}
	round := []learned{{took: map[string][]float64{newService: {1}, newEndpoint: {2}, podReady: {3}}, atOnce: 0.5}}
	s.reportLearned(round, coreDNS.name, round)
	ready := map[string][]learned{}
	var stackNames []string
	for i, t := range stacks {
		stackNames = append(stackNames, t.name())
		ready[t.name()] = []learned{{took: map[string][]float64{podReadyAmong: {float64(1 + i)}}}}
	}
	s.reportReady(stackNames, ready)
	lookups := []looked{{lookedUp{Lookups: 10, All: 10, Queries: 80, Seconds: 1}, 100, 0.5}}
	s.reportLookups("switches off", lookups, lookups, lookups, lookups, nil)
	s.reportMemory(shape{10000, 10, 0, 0}, []held{{memory{RSS: mib, PSS: mib, Peak: mib}, 2 * mib}}, []held{{memory{RSS: mib, PSS: mib, Peak: mib}, 2 * mib}}, []float64{1}, mib)
	return s
}

// The page has a row of every figure, says what is missing and why, and shows the plots that are written.
func TestWriteDNSDocs(t *testing.T) {
	dir := t.TempDir()
	s := dnsSample()
	page := docsOf(t, dir, s)
	checkRows(t, page, s.figures)
	for _, e := range dnsChapter.experiments {
		if n := strings.Count(page, "\n## "); n != len(dnsChapter.experiments)+1 {
			t.Fatalf("%d sections, want one for each experiment and the goals", n)
		}
		found := false
		for _, f := range s.figures {
			found = found || f.Section == e.name
		}
		if !found {
			t.Errorf("no figure of %s", e.name)
		}
	}
	checkPlots(t, dir, page, 2, "Fairlead", "gdnsd", "CoreDNS") // those of cost and of latency
}

// Goals are against the CoreDNS that is better at what is measured, and against gdnsd, each once.
func TestDNSGoals(t *testing.T) {
	goals := map[string]string{}
	for _, f := range dnsSample().figures {
		if f.Goal != "" {
			goals[f.Figure] += f.Rival + " " + f.Goal + ";"
		}
	}
	for name, want := range map[string]string{
		"server's CPU of an answer at saturation":                                                        "CoreDNS cached ≥ 8;",
		"answers per second at saturation":                                                               "gdnsd ≥ 0.8;",
		"time of an answer at 16000/s, half of CoreDNS's most, p99":                                      "CoreDNS cached ≥ 4;",
		"pod of a headless Service ready, to the first right answer, p99":                                "CoreDNS ≥ 20;",
		"pod ready, at 100 a second, each with its own slice controller, to the first right answer, p99": "CoreDNS and kube-controller-manager ≥ 20;",
		"agent less one without DNS at 10,000 Services, 100,000 endpoints":                               "CoreDNS ≤ 0.1;",
		"heap of the package dns at 10,000 Services, 100,000 endpoints":                                  "CoreDNS ≤ 0.1;",
		"most memory during a relist over that before at 10,000 Services, 100,000 endpoints":             "fairlead before ≤ 1.15;",
	} {
		if goals[name] != want {
			t.Errorf("%s: %q, want %q", name, goals[name], want)
		}
		delete(goals, name)
	}
	if len(goals) != 0 {
		t.Errorf("further goals: %v", goals)
	}
}

// Without one of the servers of a plot there is none, rather than a wrong one.
func TestDNSPlotsOfParts(t *testing.T) {
	if got := dnsPlots(nil); len(got) != 0 {
		t.Errorf("plots of nothing: %d", len(got))
	}
	s := dnsSample()
	var without []figure
	for _, f := range s.figures {
		if f.Rival != "gdnsd" {
			without = append(without, f)
		}
	}
	got := dnsPlots(without)
	if _, ok := got["latency"]; ok {
		t.Error("latency is drawn without gdnsd's")
	}
	if _, ok := got["answers"]; !ok {
		t.Error("the others' cost is not drawn")
	}
}

// What a resolver reads is where it looks for it, and says what its name says.
func TestResolverFiles(t *testing.T) {
	questions := []question{mustQuestion(t, "one"+below, typeA, rcodeSuccess, "10.96.0.1")}
	numbers := map[int]string{}
	for _, r := range resolvers {
		dir := t.TempDir()
		if other := numbers[r.number]; other != "" && r.number != fairlead.number {
			t.Errorf("%s and %s have the same number", r.name, other)
		}
		numbers[r.number] = r.name
		n := &dnsNode{resolver: r, rig: &rig{name: r.name, number: r.number, w: &world{kubeconfig: "/kubeconfig"}}, questions: questions}
		flags, err := r.command(n, dir)
		if err != nil {
			t.Errorf("%s: %v", r.name, err)
			continue
		}
		var files strings.Builder
		err = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			files.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		written := files.String()
		for _, want := range map[string][]string{
			coreDNS.name:       {"/kubeconfig", "bind 192.168.78.1", "disable success cluster.local", "pods insecure", "forward . " + upstreamAt},
			coreDNSCached.name: {"/kubeconfig", "cache 30\n"},
			"gdnsd":            {"udp_threads => 1", "one.default.svc A 10.96.0.1"},
			"Knot":             {"udp-workers: 1", "one.default.svc A 10.96.0.1"},
			"NSD":              {"server-count: 1", "rrl-ratelimit: 0", "one.default.svc A 10.96.0.1"},
			"Unbound":          {"num-threads: 1", "one.default.svc A 10.96.0.1"},
		}[r.name] {
			if !strings.Contains(written, want) {
				t.Errorf("%s: no %q in\n%s", r.name, want, written)
			}
		}
		if strings.Contains(written, "DIR") || strings.Contains(written, "ZONE") {
			t.Errorf("%s: a place is not filled in:\n%s", r.name, written)
		}
		if r.world != (r.program == "fairlead" || r.program == "coredns") || len(flags) == 0 {
			t.Errorf("%s: %v", r.name, flags)
		}
	}
}
