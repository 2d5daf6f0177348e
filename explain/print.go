// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/fairlead/fairlead/model"
)

// Print writes the walk for a person to read, one step after another.
func (w *Walk) Print(out io.Writer) {
	fmt.Fprintf(out, "%s (%s on node %s) to %s, generation %d\n\n", w.Pod, join(w.Source), w.Node, w.Target, w.Generation)
	step := 0
	line := func(title, format string, args ...any) {
		step++
		fmt.Fprintf(out, "%2d  %-10s %s\n", step, title, fmt.Sprintf(format, args...))
	}
	if len(w.Search) > 0 {
		line("search", "%s", strings.Join(w.Search, ", "))
	}
	for _, q := range w.Questions {
		answer := q.RCode
		if len(q.Answers) > 0 {
			answer += " " + strings.Join(q.Answers, ", ")
		}
		line("dns", "%s %s at %s: %s (%.2f ms)%s", q.Name, q.Type, q.Server, answer, q.Millis, q.shared())
	}
	for _, way := range w.Ways {
		if way.Action == "pass" || way.Service == "" && way.HostPort == nil {
			line("address", "%s", way.passed())
			if way.Route != nil {
				line("route", "%s", way.Route)
			}
			way.printFast(line)
			continue
		}
		if h := way.HostPort; h != nil {
			line("host port", "%s/%s: %s, %s (%s)", way.Address, strings.ToLower(way.Protocol), way.Action, way.Why, h.Frontend)
		} else {
			line("service", "%s/%s is %s port %q: %s, %s", way.Address, strings.ToLower(way.Protocol), way.Service, way.PortName, way.Action, way.Why)
		}
		if way.Affinity > 0 {
			line("affinity", "the client keeps its endpoint until it has made no connection for %s", time.Duration(way.Affinity*float64(time.Second)))
		}
		line("kernel", "%s", way.kernel())
		for _, b := range way.Backends {
			line("endpoint", "%s", b.describe())
		}
		way.printFast(line)
	}
	if w.Probe != nil && w.Probe.Error == "" {
		line("probe", "%s", w.Probe)
		if w.Probe.Server.IsValid() {
			line("chosen", "%s", w.Probe.chosen())
		}
	}
	fmt.Fprintln(out)
	if len(w.Findings) == 0 {
		fmt.Fprintln(out, "The model, the DNS and the kernel agree.")
		return
	}
	for _, f := range w.Findings {
		fmt.Fprintf(out, "finding: %s\n", f)
	}
}

func (q *Question) shared() string {
	if q.InKernel {
		return "; the pod has it from the kernel, without asking"
	}
	return ""
}

func (w *Way) printFast(line func(title, format string, args ...any)) {
	if w.Led {
		line("socket", "the connection leads to an endpoint from when it is made; nothing of it is translated (read from the kernel)")
	}
	switch w.FastPath {
	case "whole":
		line("fast path", "all of the connection goes past netfilter on this node (read from the kernel)")
	case "established":
		line("fast path", "while it is established the connection goes past netfilter on this node, unless its source is replaced (read from the kernel)")
	}
}

func (w *Way) passed() string {
	if w.Service == "" {
		return fmt.Sprintf("%s: %s", w.Address, w.Why)
	}
	return fmt.Sprintf("%s is of %s: %s", w.Address, w.Service, w.Why)
}

func (w *Way) kernel() string {
	if !w.InKernel {
		return "no entry for this address and port (read from the kernel)"
	}
	n := 0
	for _, b := range w.Backends {
		if b.InKernel {
			n++
		}
	}
	key := fmt.Sprintf("%s . %s . %d", w.Address.Addr(), strings.ToLower(w.Protocol), w.Address.Port())
	if w.Kind == model.AtNodePort.String() || w.HostPort != nil && !strings.Contains(w.HostPort.Frontend, w.Address.String()) {
		key = fmt.Sprintf("%s . %d", strings.ToLower(w.Protocol), w.Address.Port())
	}
	return fmt.Sprintf("entry %s leads to chain %s with %d endpoints (read from the kernel)", key, w.Chain, n)
}

func (b *Endpoint) describe() string {
	mark := "out"
	if b.In {
		mark = "in "
	}
	s := fmt.Sprintf("%s %s %s", mark, b.Address, b.State)
	if b.Pod != "" {
		s += ", pod " + b.Pod
	}
	if b.Node != "" {
		s += " on " + b.Node
	}
	if b.Route != nil {
		s += ", " + b.Route.String()
	}
	if b.Source != "" {
		s += ", sees " + b.Source
	}
	return s
}

// String is the route as ip-route(8) users read it.
func (r *Route) String() string {
	s := "dev " + r.Dev
	if r.Via.IsValid() {
		s = "via " + r.Via.String() + " " + s
	}
	s = fmt.Sprintf("%s mtu %d", s, r.MTU)
	if r.Tunnel.IsValid() {
		s += " through the tunnel to " + r.Tunnel.String()
	}
	return s
}

func join[T fmt.Stringer](in []T) string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = v.String()
	}
	return strings.Join(out, ", ")
}

// String says what was done and how long it took.
func (p *Probe) String() string {
	verb := "connected to"
	if p.Silent {
		verb = "sent, neither answered nor refused, to"
	}
	return fmt.Sprintf("%s %s from %s in %.2f ms, name resolved in %.2f ms", verb, p.To, p.From, p.Connected, p.Resolved)
}

func (p *Probe) chosen() string {
	s := p.Server.String()
	if p.Pod != "" {
		s += ", pod " + p.Pod
	}
	if p.Node != "" {
		s += " on " + p.Node
	}
	kept := "kept"
	if p.Client != p.From {
		kept = "not kept"
	}
	sees := "which saw"
	if p.Silent {
		sees = "which would see"
	}
	return fmt.Sprintf("%s, %s %s (%s)", s, sees, p.Client, kept)
}
