// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed" // of the page
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/template"

	"golang.org/x/sys/unix"
)

// results are what docs/benchmarks keeps as JSON: the last figures of each section, and on what they were measured.
type results struct {
	Machine  string            `json:"machine"`
	Kernel   string            `json:"kernel"`
	Versions map[string]string `json:"versions"`
	Figures  []figure          `json:"figures"`
}

// writeDocs writes the page, its plots and the numbers behind them. Sections that were not measured now keep what they had.
func (s *suite) writeDocs(dir string) error {
	path := filepath.Join(dir, "benchmarks", s.chapter.numbers+".json")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make folder of plots: %w", err)
	}
	var old results
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &old)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read earlier results: %w", err)
	}
	now := results{Machine: machine(), Kernel: kernel(), Versions: s.chapter.versions(s.programs), Figures: merge(s.chapter.experiments, old.Figures, s.figures)}
	if text, err = json.MarshalIndent(now, "", "  "); err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	files := map[string][]byte{path: append(text, '\n')}
	for name, svg := range s.chapter.plots(now.Figures) {
		files[filepath.Join(dir, "benchmarks", name+".svg")] = []byte(svg)
	}
	page, err := s.chapter.write(now)
	if err != nil {
		return err
	}
	files[filepath.Join(dir, s.chapter.page+".md")] = page
	for path, text := range files {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return fmt.Errorf("write results: %w", err)
		}
	}
	progress("wrote %s", filepath.Join(dir, s.chapter.page+".md"))
	return nil
}

// merge puts the sections that were measured now in the place of what they had, in the order of the experiments.
func merge(experiments []experiment, old, now []figure) (all []figure) {
	measured := map[string]bool{}
	for _, f := range now {
		measured[f.Section] = true
	}
	for _, e := range experiments {
		from := old
		if measured[e.name] {
			from = now
		}
		for _, f := range from {
			if f.Section == e.name {
				all = append(all, f)
			}
		}
	}
	return all
}

// machine is the processor and the memory, without the machine's name.
func machine() string {
	model := runtime.GOARCH
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	var memory unix.Sysinfo_t
	_ = unix.Sysinfo(&memory)
	return fmt.Sprintf("%d × %s, %d GiB of memory", runtime.NumCPU(), model, (memory.Totalram*uint64(memory.Unit)+1<<29)>>30)
}

// kernel is the version without a distributor's suffix.
func kernel() string {
	var name unix.Utsname
	_ = unix.Uname(&name)
	release, _, _ := strings.Cut(unix.ByteSliceToString(name.Release[:]), "-")
	return "Linux " + release
}

// firstLine is the first line of what a program says of its version.
func firstLine(argv ...string) string {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil && len(out) == 0 {
		return "unknown"
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return first
}

// versionsOf are those that every page has, and those of Debian's packages, if they are there.
func versionsOf(p programs, packages ...string) map[string]string {
	out := map[string]string{
		"Fairlead": strings.TrimPrefix(firstLine(p.fairlead, "--version"), "fairlead version "),
		"Go":       runtime.Version(),
	}
	for _, name := range packages {
		if version, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", name).Output(); err == nil && len(version) > 0 {
			out[name] = string(version)
		}
	}
	return out
}

func serviceVersions(p programs) map[string]string {
	out := versionsOf(p)
	out["kube-proxy"] = firstLine(p.kubeProxy, "--version")
	out["kube-controller-manager"] = firstLine(p.kubeControllerManager, "--version")
	out["nft"] = firstLine("nft", "--version")
	return out
}

// plots draws what there are figures for.
func plots(figures []figure) map[string]string {
	out := map[string]string{}
	lines := func(section, prefix string) []series {
		own, theirs := series{name: "Fairlead"}, series{name: proxy.name}
		for _, f := range figures {
			if f.Section == section && strings.HasPrefix(f.Figure, prefix) && f.X > 0 && f.Rival == proxy.name && f.Value > 0 {
				own.points = append(own.points, [2]float64{float64(f.X), f.Value})
				theirs.points = append(theirs.points, [2]float64{float64(f.X), f.RivalValue})
			}
		}
		return []series{own, theirs}
	}
	if l := lines("start", "cold start after listing"); len(l[0].points) > 1 {
		out["start"] = logPlot("Cold start, from all objects listed to every Service forwarding", "Services", "ms", l)
	}
	if l := lines("change", "one endpoint change, from request to kernel, median"); len(l[0].points) > 1 {
		out["change"] = logPlot("One endpoint change, from request to kernel, median", "Services", "ms", l)
	}
	if l := lines("change", "CPU of one endpoint change"); len(l[0].points) > 1 {
		out["cpu"] = logPlot("Processor time of one endpoint change", "Services", "ms", l)
	}
	if groups, bars := connectBars(figures); len(groups) > 0 {
		out["connect"] = barPlot("Connections per second, one processor for the clients", "1/s", groups, bars)
	}
	return out
}

// connectBars are the rates of all paths, by number of Services, with several workers.
func connectBars(figures []figure) (groups []string, bars []series) {
	bars = []series{{name: "Fairlead"}, {name: proxy.name}, {name: "direct"}, {name: "bare"}}
	for _, f := range figures {
		if f.Section != "connect" || !strings.HasPrefix(f.Figure, "connections per second at") || f.X == 0 || !strings.HasSuffix(f.Figure, "4 workers") {
			continue
		}
		point := [2]float64{float64(f.X), f.RivalValue}
		for i := range bars {
			if bars[i].name == f.Rival {
				bars[i].points = append(bars[i].points, point)
			}
		}
		if f.Rival == proxy.name {
			groups = append(groups, number(float64(f.X))+" Services")
			bars[0].points = append(bars[0].points, [2]float64{float64(f.X), f.Value})
		}
	}
	return groups, bars
}

//go:embed benchmarks.md.tmpl
var pageTemplate string

// tables has what the templates of all pages call.
//
//go:embed tables.md.tmpl
var tables string

// write makes the page of results.
func (c *chapter) write(r results) ([]byte, error) {
	own := template.FuncMap{}
	if c.funcs != nil {
		own = c.funcs(r.Figures)
	}
	t, err := template.New(c.page + ".md").Funcs(own).Funcs(template.FuncMap{
		"number": number,
		"plots":  func() map[string]string { return c.plots(r.Figures) },
		"of": func(section string) (out []figure) {
			for _, f := range r.Figures {
				if f.Section == section {
					out = append(out, f)
				}
			}
			return out
		},
		"goals": func(met bool) (out []figure) {
			for _, f := range r.Figures {
				if f.Met != nil && *f.Met == met {
					out = append(out, f)
				}
			}
			return out
		},
		"quick": func(all []figure) bool { return slices.ContainsFunc(all, func(f figure) bool { return f.Quick }) },
		"yes":   func(b *bool) bool { return b != nil && *b },
	}).Parse(tables)
	if err == nil {
		t, err = t.Parse(c.template)
	}
	if err != nil {
		return nil, fmt.Errorf("parse the page's template: %w", err)
	}
	var page strings.Builder
	if err := t.Execute(&page, r); err != nil {
		return nil, fmt.Errorf("write the page: %w", err)
	}
	return []byte(page.String()), nil
}
