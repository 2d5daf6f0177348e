// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// Plots are drawn here, as SVG: a few lines and words, not worth a dependency. They have a white ground of their own, so they read the same on any page.
const (
	plotWidth, plotHeight = 640, 360
	plotLeft, plotRight   = 76, 24
	plotTop, plotBottom   = 44, 56
)

// colours are told apart in print and with any colour vision (Okabe and Ito's palette).
var colours = []string{"#0072B2", "#D55E00", "#009E73", "#999999"}

// series is a line of a plot.
type series struct {
	name   string
	points [][2]float64
}

// drawing collects SVG.
type drawing struct{ strings.Builder }

func (d *drawing) begin(title string) {
	const tag = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]d %[2]d" width="%[1]d" height="%[2]d" font-family="sans-serif" font-size="12">`
	fmt.Fprintf(d, tag+"\n", plotWidth, plotHeight)
	fmt.Fprintf(d, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", plotWidth, plotHeight)
	d.text(plotLeft, 22, "start", "bold", title)
}

func (d *drawing) end() string {
	d.WriteString("</svg>\n")
	return d.String()
}

func (d *drawing) text(x, y float64, anchor, weight, s string) {
	fmt.Fprintf(d, `<text x="%.1f" y="%.1f" text-anchor="%s" font-weight="%s" fill="#222">%s</text>`+"\n", x, y, anchor, weight, html.EscapeString(s))
}

func (d *drawing) line(x1, y1, x2, y2 float64, colour string) {
	fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", x1, y1, x2, y2, colour)
}

// sideways writes the name of the vertical axis.
func (d *drawing) sideways(s string) {
	y := (plotTop + plotHeight - plotBottom) / 2
	fmt.Fprintf(d, `<text x="18" y="%d" text-anchor="middle" fill="#222" transform="rotate(-90 18 %[1]d)">%s</text>`+"\n", y, html.EscapeString(s))
}

// decades are the powers of ten that enclose the values.
func decades(values []float64) (low, high int) {
	least, most := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		least, most = min(least, v), max(most, v)
	}
	low, high = int(math.Floor(math.Log10(least))), int(math.Ceil(math.Log10(most)))
	return low, max(high, low+1)
}

// logPlot draws lines over two logarithmic axes. Values must be above zero.
func logPlot(title, xName, yName string, lines []series) string {
	var xs, ys []float64
	for _, s := range lines {
		for _, p := range s.points {
			xs, ys = append(xs, p[0]), append(ys, p[1])
		}
	}
	x0, x1 := decades(xs)
	y0, y1 := decades(ys)
	const inset = 30 // room for the numbers at the outermost points
	atX := func(v float64) float64 {
		return plotLeft + inset + (math.Log10(v)-float64(x0))/float64(x1-x0)*(plotWidth-plotLeft-plotRight-2*inset)
	}
	atY := func(v float64) float64 {
		return plotHeight - plotBottom - (math.Log10(v)-float64(y0))/float64(y1-y0)*(plotHeight-plotTop-plotBottom)
	}
	var d drawing
	d.begin(title)
	for e := x0; e <= x1; e++ {
		v := math.Pow10(e)
		d.line(atX(v), plotTop, atX(v), plotHeight-plotBottom, "#ddd")
		d.text(atX(v), plotHeight-plotBottom+16, "middle", "normal", number(v))
	}
	for e := y0; e <= y1; e++ {
		v := math.Pow10(e)
		d.line(plotLeft, atY(v), plotWidth-plotRight, atY(v), "#ddd")
		d.text(plotLeft-6, atY(v)+4, "end", "normal", number(v))
	}
	d.text((plotLeft+plotWidth-plotRight)/2, plotHeight-22, "middle", "normal", xName)
	d.sideways(yName)
	for i, s := range lines {
		colour := colours[i%len(colours)]
		var path []string
		for _, p := range s.points {
			path = append(path, fmt.Sprintf("%.1f,%.1f", atX(p[0]), atY(p[1])))
			fmt.Fprintf(&d, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`+"\n", atX(p[0]), atY(p[1]), colour)
			d.text(atX(p[0]), atY(p[1])-8, "middle", "normal", number(p[1]))
		}
		fmt.Fprintf(&d, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, " "), colour)
	}
	d.legend(lines)
	return d.end()
}

// legend names the lines under the plot.
func (d *drawing) legend(lines []series) {
	x := float64(plotLeft)
	for i, s := range lines {
		fmt.Fprintf(d, `<rect x="%.1f" y="%d" width="12" height="12" fill="%s"/>`+"\n", x, plotHeight-17, colours[i%len(colours)])
		d.text(x+18, plotHeight-7, "start", "normal", s.name)
		x += 40 + 7*float64(len(s.name))
	}
}

// barPlot draws groups of bars from zero. Every series has a value for each group, in their order; its points' second number is the value.
func barPlot(title, yName string, groups []string, bars []series) string {
	top := 0.0
	for _, s := range bars {
		for _, p := range s.points {
			top = max(top, p[1])
		}
	}
	step := math.Pow10(int(math.Floor(math.Log10(top))))
	if top/step < 3 {
		step /= 2
	}
	top = math.Ceil(top*1.05/step) * step
	height := float64(plotHeight - plotTop - plotBottom)
	atY := func(v float64) float64 { return plotHeight - plotBottom - v/top*height }
	var d drawing
	d.begin(title)
	for v := 0.0; v <= top; v += step {
		d.line(plotLeft, atY(v), plotWidth-plotRight, atY(v), "#ddd")
		d.text(plotLeft-6, atY(v)+4, "end", "normal", number(v))
	}
	d.sideways(yName)
	group := float64(plotWidth-plotLeft-plotRight) / float64(len(groups))
	width := group / float64(len(bars)+1)
	for i, name := range groups {
		left := plotLeft + float64(i)*group + width/2
		for j, s := range bars {
			v := s.points[i][1]
			x := left + float64(j)*width
			fmt.Fprintf(&d, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x+2, atY(v), width-4, v/top*height, colours[j%len(colours)])
			d.text(x+width/2, atY(v)-4, "middle", "normal", number(v))
		}
		for row, part := range strings.Split(name, "\n") {
			d.text(plotLeft+(float64(i)+0.5)*group, float64(plotHeight-plotBottom+16+13*row), "middle", "normal", part)
		}
	}
	d.legend(bars)
	return d.end()
}

// number writes a value for people: three digits that mean something, and spaces between thousands.
func number(v float64) string {
	a := math.Abs(v)
	switch {
	case v == math.Trunc(v) && a < 1000, a == 0:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case a < 0.01:
		return strconv.FormatFloat(v, 'g', 2, 64)
	case a < 1:
		return strconv.FormatFloat(v, 'f', 3, 64)
	case a < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case a < 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	digits := strconv.FormatFloat(math.Round(v), 'f', 0, 64)
	sign := ""
	if digits[0] == '-' {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}
