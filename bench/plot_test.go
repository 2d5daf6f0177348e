// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

func TestNumber(t *testing.T) {
	for _, row := range []struct {
		v    float64
		want string
	}{
		{0, "0"}, {1, "1"}, {10, "10"}, {999, "999"}, {1000, "1,000"}, {12345.6, "12,346"}, {1234567, "1,234,567"},
		{0.0012, "0.0012"}, {0.123456, "0.123"}, {1.23456, "1.23"}, {12.3456, "12.3"}, {123.456, "123"}, {-0.118, "-0.118"}, {-12345.6, "-12,346"},
	} {
		if got := number(row.v); got != row.want {
			t.Errorf("number(%v) = %q, want %q", row.v, got, row.want)
		}
	}
}

func TestDecades(t *testing.T) {
	for _, row := range []struct {
		values    []float64
		low, high int
	}{
		{[]float64{10, 1000, 10000}, 1, 4},
		{[]float64{0.4, 350}, -1, 3},
		{[]float64{5}, 0, 1},
		{[]float64{100}, 2, 3},
	} {
		if low, high := decades(row.values); low != row.low || high != row.high {
			t.Errorf("decades(%v) = %d, %d, want %d, %d", row.values, low, high, row.low, row.high)
		}
	}
}

// Whatever the values, a plot is well-formed and nothing of it lies outside.
func TestPlots(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		scale := []float64{0.01, 1, 1000, 1e6}[random.IntN(4)]
		var lines []series
		for _, name := range []string{"a <b>", "c & d"} {
			s := series{name: name}
			for _, x := range []float64{10, 1000, 10000} {
				s.points = append(s.points, [2]float64{x, scale * (0.001 + random.Float64())})
			}
			lines = append(lines, s)
		}
		checkPlot(t, logPlot("t < u", "x", "y", lines), 6, 0)
		checkPlot(t, barPlot("t", "y", []string{"1", "2", "3"}, lines), 0, 6)
	}
}

// checkPlot looks for circles and for bars, besides the ground and the legend's two.
func checkPlot(t *testing.T, svg string, circles, bars int) {
	t.Helper()
	count := map[string]int{}
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in %s", err, svg)
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		count[start.Name.Local]++
		for _, a := range start.Attr {
			limit := 0.0
			switch a.Name.Local {
			case "x", "cx", "x1", "x2":
				limit = plotWidth
			case "y", "cy", "y1", "y2":
				limit = plotHeight
			default:
				continue
			}
			if v, err := strconv.ParseFloat(a.Value, 64); err != nil || v < 0 || v > limit {
				t.Errorf("%s: %s=%q, want 0 to %v (%v)", start.Name.Local, a.Name.Local, a.Value, limit, err)
			}
		}
	}
	if count["circle"] != circles || count["rect"] != bars+3 {
		t.Errorf("%d circles and %d rectangles, want %d and %d", count["circle"], count["rect"], circles, bars+3)
	}
}
