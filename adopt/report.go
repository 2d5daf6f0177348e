// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Difference is something that the two would do in different ways.
type Difference struct {
	// Of is a frontend such as 10.96.0.1:443/TCP, or a question such as "db.shop.svc.cluster.local. A".
	Of string `json:"of"`
	// Service is whose it is, if that is known.
	Service string `json:"service,omitempty"`
	// Who says for which clients, or which server of several answers so; empty: all.
	Who string `json:"who,omitempty"`
	// Here is what Fairlead does, There what kube-proxy or CoreDNS does.
	Here  string `json:"here"`
	There string `json:"there"`
	// Meant is why they differ on purpose; empty if they should not.
	Meant string `json:"meant,omitempty"`
}

// Part is one half of a check.
type Part struct {
	// With is who is compared with: "kube-proxy (nftables)".
	With string `json:"with"`
	// Of says what is compared: "frontends", "questions".
	Of string `json:"of"`
	// Looked is how many of them, out of All.
	Looked int `json:"looked"`
	All    int `json:"all"`
	// Same is how many have no difference at all.
	Same int `json:"same"`
	// Differences are in the order of what they are of.
	Differences []Difference `json:"differences"`
	// Notes are sentences about what was not compared, or is the same for all.
	Notes []string `json:"notes"`
	// Failed is why the comparison could not be made; empty if it could.
	Failed string `json:"failed,omitempty"`
}

// Report is what a check has found.
type Report struct {
	Node     string `json:"node"`
	Services int    `json:"services"`
	Parts    []Part `json:"parts"`
}

// Unmeant counts the differences that should not be.
func (p *Part) Unmeant() (n int) {
	for _, d := range p.Differences {
		if d.Meant == "" {
			n++
		}
	}
	return n
}

// add puts the differences in order and counts what they are of.
func (p *Part) add(differences []Difference) {
	p.Differences = append([]Difference{}, differences...)
	slices.SortStableFunc(p.Differences, func(a, b Difference) int {
		return cmp.Or(strings.Compare(a.Of, b.Of), strings.Compare(a.Who, b.Who))
	})
	of := make(map[string]struct{})
	for _, d := range p.Differences {
		of[d.Of] = struct{}{}
	}
	p.Same = p.Looked - len(of)
}

// Code is a program's exit code: 0 if all differences are meant, 1 if not, 2 if something could not be compared.
func (r *Report) Code() int {
	code := 0
	for i := range r.Parts {
		switch p := &r.Parts[i]; {
		case p.Failed != "":
			return 2
		case p.Unmeant() > 0:
			code = 1
		}
	}
	return code
}

// Print writes the result first, then the differences that should not be, then the others by their reasons.
func (r *Report) Print(w io.Writer) {
	fmt.Fprintf(w, "node %s, %d Services\n", r.Node, r.Services)
	for i := range r.Parts {
		p := &r.Parts[i]
		if p.Failed != "" {
			fmt.Fprintf(w, "  %s: not compared: %s\n", p.With, p.Failed)
			continue
		}
		some := ""
		if p.Looked < p.All {
			some = fmt.Sprintf(" of %d", p.All)
		}
		verdict := "ready to switch"
		if n := p.Unmeant(); n > 0 {
			verdict = "LOOK FIRST"
		}
		fmt.Fprintf(w, "  %s: %d%s %s: %d same, %d differences meant, %d not meant: %s\n",
			p.With, p.Looked, some, p.Of, p.Same, len(p.Differences)-p.Unmeant(), p.Unmeant(), verdict)
	}
	for i := range r.Parts {
		r.Parts[i].print(w)
	}
}

// shown bounds how many differences with one reason are printed; JSON has all.
const shown = 20

func (p *Part) print(w io.Writer) {
	reasons := []string{""}
	by := make(map[string][]Difference)
	for _, d := range p.Differences {
		if by[d.Meant] == nil && d.Meant != "" {
			reasons = append(reasons, d.Meant)
		}
		by[d.Meant] = append(by[d.Meant], d)
	}
	for _, reason := range reasons {
		list := by[reason]
		if len(list) == 0 {
			continue
		}
		if reason == "" {
			fmt.Fprintf(w, "\n%s, not meant:\n", p.With)
		} else {
			fmt.Fprintf(w, "\n%s, meant: %s\n", p.With, reason)
		}
		for i, d := range list {
			if i == shown {
				fmt.Fprintf(w, "  … and %d more (--json has all)\n", len(list)-shown)
				break
			}
			fmt.Fprintf(w, "  %s\n", d)
		}
	}
	for _, n := range p.Notes {
		fmt.Fprintf(w, "\n%s: %s\n", p.With, n)
	}
}

// String is the difference in a line.
func (d Difference) String() string {
	var b strings.Builder
	b.WriteString(d.Of)
	if d.Service != "" {
		fmt.Fprintf(&b, " (%s)", d.Service)
	}
	if d.Who != "" {
		fmt.Fprintf(&b, ", %s", d.Who)
	}
	fmt.Fprintf(&b, ": here %s; there %s", d.Here, d.There)
	return b.String()
}
