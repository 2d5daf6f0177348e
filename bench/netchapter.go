// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed" // of the page
	"path/filepath"
	"strings"
)

//go:embed benchmarks-network.md.tmpl
var networkTemplate string

var networkChapter = &chapter{
	page: "benchmarks-network", numbers: "network", target: "bench-network",
	experiments: []experiment{
		{"attach", attachments},
		{"full", fullRange},
		{"traffic", traffic},
	},
	needs: func(p programs) []string {
		return []string{p.fairlead, p.fairleadCNI, p.fairleadServer, p.floor, filepath.Join(debianPlugins, "bridge"), filepath.Join(debianPlugins, "host-local")}
	},
	versions: func(p programs) map[string]string { return versionsOf(p, "containernetworking-plugins") },
	template: networkTemplate, plots: networkPlots,
}

// networkPlots draws what there are figures for.
func networkPlots(figures []figure) map[string]string {
	out := map[string]string{}
	bars := func(section string, groupOf func(string) (string, bool)) (groups []string, all []series) {
		at := map[string]int{}
		bar := func(name string, value float64) {
			if _, ok := at[name]; !ok {
				at[name] = len(all)
				all = append(all, series{name: name})
			}
			all[at[name]].points = append(all[at[name]].points, [2]float64{0, value})
		}
		for _, f := range figures {
			group, ok := groupOf(f.Figure)
			if f.Section != section || !ok {
				continue
			}
			if len(groups) == 0 || groups[len(groups)-1] != group {
				groups = append(groups, group)
				bar("Fairlead", f.Value)
			}
			bar(f.Rival, f.RivalValue)
		}
		for _, s := range all {
			if len(s.points) != len(groups) {
				return nil, nil // something was not measured
			}
		}
		return groups, all
	}
	one := func(what string) (string, bool) {
		quantile, ok := strings.CutPrefix(what, "ADD, IPv4, one at a time, ")
		return quantile, ok
	}
	if groups, all := bars("attach", one); len(groups) > 0 {
		out["attach"] = barPlot("ADD, from starting the plugin to its result, one at a time", "ms", groups, all)
	}
	hostGW := func(what string) (string, bool) {
		return "one TCP stream", what == "one TCP stream, "+fastPair
	}
	if groups, all := bars("traffic", hostGW); len(groups) > 0 {
		out["stream"] = barPlot("One TCP stream between pods on two nodes, plain routes; Fairlead on its fast path", "Gbit/s", groups, all)
	}
	return out
}
