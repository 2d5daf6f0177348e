// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed" // of the page
	"regexp"
	"strings"
)

//go:embed benchmarks-dns.md.tmpl
var dnsTemplate string

var dnsChapter = &chapter{
	page: "benchmarks-dns", numbers: "dns", target: "bench-dns",
	experiments: []experiment{
		{"load", dnsLoads},
		{"fast", dnsFast},
		{"change", nameChanged},
		{"ready", podsReady},
		{"external", externalLookups},
		{"memory", dnsMemory},
	},
	needs: func(p programs) []string {
		return []string{p.fairlead, p.fairleadServer, p.kubeControllerManager, p.coreDNS}
	},
	versions: dnsVersions, template: dnsTemplate, plots: dnsPlots,
}

func dnsVersions(p programs) map[string]string {
	out := versionsOf(p, "gdnsd", "knot", "nsd", "unbound", "dnsperf", "gcc")
	out["CoreDNS"] = coreDNSVersion(p)
	out[manager] = firstLine(p.kubeControllerManager, "--version")
	return out
}

func coreDNSVersion(p programs) string {
	return strings.TrimPrefix(firstLine(p.coreDNS, "-version"), "CoreDNS-")
}

// atRate finds what a figure says of when it is true.
var atRate = regexp.MustCompile(`at [0-9]+/s`)

// dnsPlots draws what there are figures for.
func dnsPlots(figures []figure) map[string]string {
	out := map[string]string{}
	if groups, bars := costBars(figures); len(groups) > 0 {
		out["answers"] = barPlot("Server's processor time of an answer, one processor", "µs", groups, bars)
	}
	if groups, bars := latencyBars(figures); len(groups) > 0 {
		out["latency"] = barPlot("Time of an answer at half of CoreDNS's most", "µs", groups, bars)
	}
	return out
}

// costBars are the servers, with what an answer costs at saturation.
func costBars(figures []figure) (groups []string, bars []series) {
	bars = []series{{name: "µs of an answer " + saturated}}
	add := func(name string, value float64) {
		groups = append(groups, strings.Replace(name, " ", "\n", 1))
		bars[0].points = append(bars[0].points, [2]float64{float64(len(groups)), value})
	}
	for _, f := range figures {
		if f.Section != "load" || f.Figure != "server's CPU of an answer "+saturated {
			continue
		}
		if len(groups) == 0 {
			add("Fairlead", f.Value)
		}
		add(f.Rival, f.RivalValue)
	}
	return groups, bars
}

// latencyBars are quantiles, with the servers that one would choose from.
func latencyBars(figures []figure) (groups []string, bars []series) {
	bars = []series{{name: "Fairlead"}, {name: coreDNS.name}, {name: coreDNSCached.name}, {name: "gdnsd"}}
	for _, f := range figures {
		quantile, ok := strings.CutPrefix(atRate.ReplaceAllString(f.Figure, "at"), "time of an answer at, half of CoreDNS's most, ")
		if f.Section != "load" || !ok {
			continue
		}
		for i := range bars {
			if bars[i].name == f.Rival {
				bars[i].points = append(bars[i].points, [2]float64{0, f.RivalValue})
			}
		}
		if f.Rival == coreDNS.name {
			groups = append(groups, quantile)
			bars[0].points = append(bars[0].points, [2]float64{0, f.Value})
		}
	}
	for _, b := range bars {
		if len(b.points) != len(groups) {
			return nil, nil // a server was not measured
		}
	}
	return groups, bars
}
