// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package queries

import (
	"embed"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/model"
)

//go:embed queries.txt worlds
var files embed.FS

// Group is some rows with the world they are about.
type Group struct {
	World    string
	Snapshot *model.Snapshot
	// Doubled is the same world with every endpoint in two slices, as while the slices are rewritten. It makes no difference to any row.
	Doubled *model.Snapshot
	// Settings are those after the world's name, such as pods=verified.
	Settings map[string]string
	Rows     []Row
}

// Row is a question and what has to come of it.
type Row struct {
	Line int
	// Section is that of the specification, such as "2.3.1", as the last comment with a number before the row names it; empty for rows about anything else.
	Section    string
	Name, Type string
	Rcode      string
	// Denied is set for NXDOMAIN and NODATA, which come with an SOA record.
	Denied bool
	// Flags are those of aa, tc, rd, ra, ad that are set in the answer to a query with RD.
	Flags []string
	// Answer and Extra are records as "OWNER TYPE DATA", sorted.
	Answer, Extra []string
}

// String is the row as an error message begins.
func (r Row) String() string { return fmt.Sprintf("queries.txt:%d: %s %s", r.Line, r.Name, r.Type) }

// heading is a comment that begins what is about something: a section of the specification, or ("The", "Odd", ...) none of it. Those in lower case go on with
// what they are below.
var heading = regexp.MustCompile(`^# (?:([0-9]+(?:\.[0-9]+)*)|\p{Lu}\S*) `)

// Groups reads the table.
func Groups() ([]Group, error) {
	text, err := files.ReadFile("queries.txt")
	if err != nil {
		return nil, fmt.Errorf("read table: %w", err)
	}
	var groups []Group
	section := ""
	for i, line := range strings.Split(string(text), "\n") {
		if m := heading.FindStringSubmatch(line); m != nil {
			section = m[1]
		}
		line, _, _ = strings.Cut(line, "#")
		switch line = strings.TrimSpace(line); {
		case line == "":
		case line[0] == '=':
			g, err := readGroup(strings.Fields(line[1:]))
			if err != nil {
				return nil, fmt.Errorf("queries.txt:%d: %w", i+1, err)
			}
			groups, section = append(groups, g), ""
		default:
			row, err := readRow(line)
			if err != nil || len(groups) == 0 {
				return nil, fmt.Errorf("queries.txt:%d: not a row: %w", i+1, err)
			}
			row.Line, row.Section = i+1, section
			g := &groups[len(groups)-1]
			g.Rows = append(g.Rows, row)
		}
	}
	return groups, nil
}

func readGroup(fields []string) (Group, error) {
	if len(fields) == 0 {
		return Group{}, fmt.Errorf("a group needs a world")
	}
	g := Group{World: fields[0], Settings: make(map[string]string)}
	for _, f := range fields[1:] {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return g, fmt.Errorf("setting %q: want name=value", f)
		}
		g.Settings[k] = v
	}
	text, err := files.ReadFile("worlds/" + g.World + ".txt")
	if err != nil {
		return g, fmt.Errorf("read world: %w", err)
	}
	var dns []netip.Addr
	for s := range strings.SplitSeq(g.Settings["dns"], ",") {
		if s == "" {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return g, fmt.Errorf("setting dns: %w", err)
		}
		dns = append(dns, a)
	}
	if g.Snapshot, err = World(string(text), "n1", dns); err != nil {
		return g, fmt.Errorf("world %s: %w", g.World, err)
	}
	if g.Doubled, err = read(string(text), "n1", dns, 2); err != nil {
		return g, fmt.Errorf("world %s, doubled: %w", g.World, err)
	}
	return g, nil
}

func readRow(line string) (Row, error) {
	parts := strings.Split(line, "|")
	if len(parts) < 2 || len(parts) > 4 {
		return Row{}, fmt.Errorf("want 2 to 4 parts between bars")
	}
	question, outcome := strings.Fields(parts[0]), strings.Fields(parts[1])
	if len(question) != 2 || len(outcome) == 0 {
		return Row{}, fmt.Errorf("want NAME TYPE | RCODE FLAGS")
	}
	r := Row{Name: question[0], Type: question[1], Rcode: outcome[0], Flags: outcome[1:]}
	r.Denied = r.Rcode == "NXDOMAIN" || r.Rcode == "NODATA"
	if r.Rcode == "NODATA" {
		r.Rcode = "NOERROR"
	}
	for i, section := range parts[2:] {
		for rec := range strings.SplitSeq(section, ";") {
			fields := strings.Fields(rec)
			if len(fields) == 0 {
				continue
			}
			if !strings.HasSuffix(fields[0], ".") {
				fields = append([]string{r.Name}, fields...)
			}
			text := strings.Join(fields, " ")
			if i == 0 {
				r.Answer = append(r.Answer, text)
			} else {
				r.Extra = append(r.Extra, text)
			}
		}
	}
	slices.Sort(r.Answer)
	slices.Sort(r.Extra)
	return r, nil
}

// World reads a snapshot from the form in which [model.Snapshot.String] prints it, as the node self sees it. Every endpoint of every port
// becomes a slice of its own.
func World(text, self string, dns []netip.Addr) (*model.Snapshot, error) {
	return read(text, self, dns, 1)
}

func read(text, self string, dns []netip.Addr, copies int) (*model.Snapshot, error) {
	w := world{b: model.NewBuilder(model.Config{Self: self, DNS: dns}), copies: copies}
	for i, line := range strings.Split(text, "\n") {
		if err := w.line(strings.Fields(line)); err != nil {
			return nil, fmt.Errorf("line %d: %q: %w", i+1, line, err)
		}
	}
	w.flush()
	return w.b.Build(), nil
}

type world struct {
	b      *model.Builder
	copies int // of every slice
	spec   *model.ServiceSpec
	noneOf bool // no slice is known
	slices []model.Slice
}

func (w *world) line(f []string) (err error) {
	if len(f) < 2 {
		if len(f) == 0 {
			return nil
		}
		return fmt.Errorf("too short")
	}
	switch f[0] {
	case "node":
		return w.node(f)
	case "pod":
		return w.pod(f)
	case "service":
		w.flush()
		return w.service(f)
	case "port":
		return w.port(f)
	}
	return w.endpoint(f)
}

// list reads the addresses or networks that fmt prints between brackets, and returns what follows.
func list[T any](f []string, parse func(string) (T, error)) (out []T, rest []string, err error) {
	for i, s := range f {
		last := strings.HasSuffix(s, "]")
		if s = strings.Trim(s, "[]"); s != "" {
			v, err := parse(s)
			if err != nil {
				return nil, nil, err
			}
			out = append(out, v)
		}
		if last {
			return out, f[i+1:], nil
		}
	}
	return nil, nil, fmt.Errorf("list without end")
}

func (w *world) node(f []string) (err error) {
	n := model.Node{Name: f[1]}
	rest := f[3:]
	if n.Addrs, rest, err = list(rest, netip.ParseAddr); err != nil {
		return err
	}
	if n.PodCIDRs, rest, err = list(rest[1:], netip.ParsePrefix); err != nil {
		return err
	}
	n.Ready = rest[1] == "true"
	w.b.SetNode(n)
	return nil
}

func (w *world) pod(f []string) (err error) {
	p := model.Pod{}
	p.Name.Namespace, p.Name.Name, _ = strings.Cut(f[1], "/")
	var rest []string
	if p.Addrs, rest, err = list(f[3:], netip.ParseAddr); err != nil {
		return err
	}
	if i := slices.Index(rest, "hostname"); i >= 0 && i+1 < len(rest) {
		p.Hostname, p.Subdomain, _ = strings.Cut(rest[i+1], ".")
	}
	p.Terminating = slices.Contains(rest, "terminating")
	w.b.SetPod(p)
	return nil
}

func (w *world) service(f []string) error {
	s := &model.ServiceSpec{}
	s.Name.Namespace, s.Name.Name, _ = strings.Cut(f[1], "/")
	rest := f[3:]
	if i := slices.Index(rest, "(no"); i >= 0 {
		w.noneOf, rest = true, rest[:i]
	}
	if i := slices.Index(rest, "publish"); i >= 0 {
		s.PublishNotReady, rest = true, rest[:i]
	}
	switch f[2] {
	case "ClusterIP":
		for _, a := range rest {
			addr, err := netip.ParseAddr(a)
			if err != nil {
				return err
			}
			s.ClusterIPs = append(s.ClusterIPs, addr)
		}
	case "Headless":
		s.Type = model.Headless
	case "ExternalName":
		s.Type, s.ExternalName = model.ExternalName, rest[0]
	default:
		return fmt.Errorf("type %q", f[2])
	}
	w.spec = s
	return nil
}

func (w *world) port(f []string) error {
	name, err := strconv.Unquote(f[1])
	if err != nil {
		return err
	}
	proto, ok := model.ParseProtocol(f[2])
	number, err := strconv.ParseUint(f[3], 10, 16)
	if !ok || err != nil {
		return fmt.Errorf("port %q/%q", f[2], f[3])
	}
	w.spec.Ports = append(w.spec.Ports, model.Port{Name: name, Protocol: proto, Port: uint16(number)})
	return nil
}

func (w *world) endpoint(f []string) error {
	sl := model.Slice{Service: w.spec.Name.Name, Name: model.Name{Namespace: w.spec.Name.Namespace,
		Name: w.spec.Name.Name + "-" + strconv.Itoa(len(w.slices))}}
	var e model.Endpoint
	if to, err := netip.ParseAddrPort(f[0]); err == nil {
		e.Addr = to.Addr()
		p := w.spec.Ports[len(w.spec.Ports)-1]
		sl.Ports = []model.Port{{Name: p.Name, Protocol: p.Protocol, Port: to.Port()}}
	} else if e.Addr, err = netip.ParseAddr(f[0]); err != nil {
		return err
	}
	for i, word := range f[1:] {
		next := ""
		if i+2 < len(f) {
			next = f[i+2]
		}
		switch strings.TrimSuffix(word, ",") {
		case "ready":
			e.Ready, e.Serving = f[i] != "not", f[i] != "not"
		case "serving":
			e.Serving = true
		case "terminating":
			e.Terminating = true
		case "pod":
			e.Pod.Namespace, e.Pod.Name, _ = strings.Cut(next, "/")
		case "node":
			e.Node = next
		case "hostname":
			e.Hostname = next
		}
	}
	sl.Endpoints = []model.Endpoint{e}
	w.slices = append(w.slices, sl)
	return nil
}

func (w *world) flush() {
	if w.spec == nil {
		return
	}
	w.b.SetService(*w.spec)
	if len(w.slices) == 0 && !w.noneOf && w.spec.Type != model.ExternalName {
		w.slices = []model.Slice{{Service: w.spec.Name.Name, Name: w.spec.Name}}
	}
	for _, s := range w.slices {
		for range w.copies {
			w.b.SetSlice(s)
			s.Name.Name += "-again"
		}
	}
	w.spec, w.slices, w.noneOf = nil, nil, false
}
