// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// sample is a result of every experiment.
func sample() *suite {
	s := &suite{chapter: serviceChapter, out: json.NewEncoder(io.Discard)}
	for _, n := range []int{10, 1000, 10000} {
		x := float64(n)
		s.compare(figure{Section: "start", Figure: fmt.Sprintf("cold start after listing at %d Services", n), Unit: "ms", X: n}, proxy.name,
			[]float64{x / 100, x / 90}, []float64{x, 2 * x}, timesLess, atLeast(100))
		s.compare(figure{Section: "change", Figure: fmt.Sprintf("one endpoint change, from request to kernel, median at %d Services", n), Unit: "ms", X: n},
			proxy.name, []float64{1}, []float64{x}, timesLess, atLeast(1))
	}
	s.state(figure{Section: "start", Figure: "floor", Unit: "ms", Value: 3})
	s.contrast(figure{Section: "memory", Figure: "memory", Unit: "MiB", Value: 10}, proxy.name, 20, share, atMost(0.25))
	for _, rival := range []string{proxy.name, "direct", "bare"} {
		s.compare(figure{Section: "connect", Figure: "connections per second at 10 Services, 4 workers", Unit: "1/s", X: 10}, rival,
			[]float64{10000}, []float64{11000}, share, nil)
	}
	return s
}

// The page has every figure and every goal, shows no plot that is not written, and a later run of one section leaves the others.
func TestWriteDocs(t *testing.T) {
	dir := t.TempDir()
	s := sample()
	page := docsOf(t, dir, s)
	checkRows(t, page, s.figures)
	for _, f := range s.figures {
		if missed := "- " + f.Figure + ": against " + f.Rival; f.Met != nil && strings.Count(page, missed) != 1 {
			t.Errorf("%q is not there once", missed)
		}
	}
	checkPlots(t, dir, page, 3, "Fairlead", proxy.name) // those of start, change and connect

	const warning = "From a quick run"
	if strings.Contains(page, warning) {
		t.Error("the page says that it is of a quick run")
	}
	again := &suite{chapter: serviceChapter, quick: true, out: json.NewEncoder(io.Discard)}
	again.contrast(figure{Section: "memory", Figure: "memory", Unit: "MiB", Value: 5}, proxy.name, 20, share, atMost(0.25))
	page = docsOf(t, dir, again)
	if !strings.Contains(page, "| memory | 5 |") || strings.Contains(page, "| memory | 10 |") {
		t.Error("the section measured again is not the one of the second run")
	}
	if !strings.Contains(page, "cold start after listing at 10000 Services") {
		t.Error("the sections that were not measured again are gone")
	}
	// A quick run marks what it has measured, and a later one that is not leaves the mark there.
	final := &suite{chapter: serviceChapter, out: json.NewEncoder(io.Discard)}
	final.state(figure{Section: "start", Figure: "floor", Unit: "ms", Value: 2})
	for _, page := range []string{page, docsOf(t, dir, final)} {
		_, memory, _ := strings.Cut(page, "\n## Memory")
		if strings.Count(page, warning) != 1 || !strings.Contains(memory, warning) || strings.Count(page, "(quick run)") != 1 || !strings.Contains(page, "goal ≤ 0.25 (quick run)") {
			t.Errorf("what a quick run measured is not marked, or something else is:\n%s", page)
		}
	}
}

// The pages in docs are what their templates and the numbers beside them make.
func TestPagesAreOfTheirNumbers(t *testing.T) {
	const dir = "../docs"
	for _, c := range []*chapter{serviceChapter, dnsChapter, networkChapter, scaleChapter} {
		text, err := os.ReadFile(filepath.Join(dir, "benchmarks", c.numbers+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var r results
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatal(err)
		}
		page, err := c.write(r)
		if err != nil {
			t.Fatal(err)
		}
		if old, err := os.ReadFile(filepath.Join(dir, c.page+".md")); err != nil || string(old) != string(page) {
			t.Errorf("docs/%s.md is not what the template makes of docs/benchmarks/%s.json (%v)", c.page, c.numbers, err)
		}
		for name, svg := range c.plots(r.Figures) {
			if old, err := os.ReadFile(filepath.Join(dir, "benchmarks", name+".svg")); err != nil || string(old) != svg {
				t.Errorf("docs/benchmarks/%s.svg is not the plot of its numbers (%v)", name, err)
			}
		}
	}
}

// docsOf writes the docs of a suite and returns the page, in which there must be nothing that no page may have, and in whose tables rows must have as many
// cells as the head.
func docsOf(t *testing.T, dir string, s *suite) string {
	t.Helper()
	if err := s.writeDocs(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, s.chapter.page+".md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, bad := range []string{"NaN", "Inf", "<no value>", "%!", "\n\n\n"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q in it", bad)
		}
	}
	cells, rows := 0, 0
	for line := range strings.Lines(page) {
		n := strings.Count(line, "|")
		switch {
		case n == 0:
			cells = 0
		case cells == 0:
			cells = n
		case n != cells:
			t.Errorf("%d bars, want %d: %s", n, cells, line)
		default:
			rows++
		}
	}
	if rows < 10 {
		t.Errorf("%d rows", rows)
	}
	return page
}

// checkRows looks for a row of every figure, which says what is missing and why.
func checkRows(t *testing.T, page string, figures []figure) {
	t.Helper()
	for _, f := range figures {
		row := "| " + f.Figure + " | " + number(f.Value) + " | " + f.Rival + " |"
		if f.Missing != "" {
			row = "| " + f.Figure + ": " + f.Missing + " |"
		}
		if !strings.Contains(page, row) {
			t.Errorf("no row %q", row)
		}
	}
}

// checkPlots looks for the plots that a page shows, each of which must be written and have names in it.
func checkPlots(t *testing.T, dir, page string, want int, names ...string) {
	t.Helper()
	shown := regexp.MustCompile(`\]\((benchmarks/[a-z]+\.svg)\)`).FindAllStringSubmatch(page, -1)
	if len(shown) != want {
		t.Errorf("%d plots, want %d", len(shown), want)
	}
	for _, m := range shown {
		svg, err := os.ReadFile(filepath.Join(dir, m[1]))
		if err != nil {
			t.Error(err)
		}
		for _, name := range names {
			if !strings.Contains(string(svg), name) {
				t.Errorf("%s does not name %s", m[1], name)
			}
		}
	}
}

func TestLogTime(t *testing.T) {
	near := time.Date(2026, 5, 6, 0, 0, 0, 0, time.FixedZone("", 3600))
	for _, row := range []struct {
		line string
		want time.Time
	}{
		{`time=2026-05-06T07:08:09.123Z level=INFO msg="all watches complete"`, time.Date(2026, 5, 6, 7, 8, 9, 123e6, time.UTC)},
		{`time=2026-05-06T07:08:09.123+02:00 level=INFO msg=x`, time.Date(2026, 5, 6, 5, 8, 9, 123e6, time.UTC)},
		{`I0506 07:08:09.123456   77 shared_informer.go:356] "Caches are synced"`, time.Date(2026, 5, 6, 6, 8, 9, 123456e3, time.UTC)},
	} {
		if got, err := logTime(row.line, near); err != nil || !got.Equal(row.want) {
			t.Errorf("%s: %v, %v, want %v", row.line, got, err, row.want)
		}
	}
	for _, bad := range []string{"", "time=yesterday x", "panic: something that is long enough", "I0506"} {
		if got, err := logTime(bad, near); err == nil {
			t.Errorf("%q: %v, want an error", bad, got)
		}
	}
}
