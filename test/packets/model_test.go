// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/fairlead/fairlead/model"
)

func worlds(t *testing.T) []World {
	t.Helper()
	ws, err := Table()
	if err != nil {
		t.Fatal(err)
	}
	return ws
}

// The first judge: the specification.
func TestModel(t *testing.T) {
	for _, w := range worlds(t) {
		for _, r := range w.Rows {
			got := w.Judge(r.Protocol, r.Src, r.Dst)
			if got.String() != r.String() {
				t.Errorf("packets.txt:%d:\n got %s\nwant %s", r.Line, got, r)
			}
		}
	}
}

// Every action has a row in both families, for TCP and UDP, and for SCTP where it can occur.
func TestTableIsComplete(t *testing.T) {
	have := make(map[string]bool)
	for _, w := range worlds(t) {
		for _, r := range w.Rows {
			have[fmt.Sprint(r.Action, " ", r.Protocol, " ", r.Dst.Addr().Is4())] = true
			for _, c := range r.Candidates {
				if c.NAT && r.Action == model.Forward {
					have[fmt.Sprint("nat ", r.Protocol, " ", r.Dst.Addr().Is4())] = true
				}
			}
		}
	}
	for _, what := range []any{model.Pass, model.Forward, model.Reject, model.Drop, model.Local, "nat"} {
		for _, proto := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
			for _, is4 := range []bool{true, false} {
				if proto == model.SCTP && what == model.Local {
					continue
				}
				if !have[fmt.Sprint(what, " ", proto, " ", is4)] {
					t.Errorf("no row: %v %s, IPv4 %t", what, proto, is4)
				}
			}
		}
	}
}

// What a row is about, as the model sees it: what the destination is to a Service, and where the packet comes from.
func about(w World, r Row) (kind, origin string) {
	kind = "nobody's"
	self := w.Snapshot.Node()
	own := func(a netip.Addr) bool {
		return slices.Contains(w.Own, a) || self != nil && slices.Contains(self.Addrs, a)
	}
	front := model.Frontend{Addr: r.Dst.Addr(), Protocol: r.Protocol, Port: r.Dst.Port()}
	_, virtual := w.Snapshot.VIPs.Get(front.Addr)
	virtual = virtual || w.Snapshot.InServiceCIDRs(front.Addr)
	if way, ok := w.Snapshot.Way(front); ok {
		kind = way.Kind.String()
	} else if !virtual && own(r.Dst.Addr()) {
		if _, way, ok := w.Snapshot.AtNode(front); ok {
			kind = way.Kind.String()
		}
	}
	switch {
	case own(r.Src):
		return kind, "the node"
	case slices.ContainsFunc(sorted(w.Snapshot.Pods), func(p *model.Pod) bool { return slices.Contains(p.Addrs, r.Src) }):
		return kind, "a pod"
	}
	for _, n := range w.Snapshot.Nodes.All() {
		if slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(r.Src) }) {
			return kind, "another node's pod"
		}
	}
	return kind, "outside"
}

func sorted[K, V comparable](t model.Table[K, V]) []V {
	return slices.Collect(func(yield func(V) bool) {
		for _, v := range t.All() {
			if !yield(v) {
				return
			}
		}
	})
}

// Every kind of frontend has rows with every action that it can have and from everywhere, in both families.
func TestEveryKindHasRows(t *testing.T) {
	have := make(map[string]bool)
	for _, w := range worlds(t) {
		for _, r := range w.Rows {
			kind, origin := about(w, r)
			for _, what := range []string{r.Action.String(), "from " + origin} {
				have[fmt.Sprint(kind, ": ", what, " ", r.Dst.Addr().Is4())] = true
			}
		}
	}
	everywhere := []string{"from the node", "from a pod", "from another node's pod", "from outside"}
	for _, k := range []struct {
		kind string
		what []string
	}{
		{model.AtClusterIP.String(), []string{"forward", "reject", "drop", "local"}},
		{model.AtBalancer.String(), []string{"forward", "reject", "drop"}},
		{model.AtExternalIP.String(), []string{"forward", "reject", "drop"}},
		{model.AtNodePort.String(), []string{"forward", "reject", "drop"}},
		{model.AtLeaving.String(), []string{"forward", "pass"}},
		{model.AtHostPort.String(), []string{"forward"}},
		{"nobody's", []string{"reject", "pass"}},
	} {
		for _, what := range append(k.what, everywhere...) {
			for _, is4 := range []bool{true, false} {
				if line := fmt.Sprint(k.kind, ": ", what, " ", is4); !have[line] {
					t.Errorf("no row: %s, IPv4 %t", line, is4)
				}
			}
		}
	}
}

// Every word of the language is used, and its documentation names it.
func TestEveryWordIsUsed(t *testing.T) {
	used := make(map[string]bool)
	for _, w := range strings.FieldsFunc(table, func(r rune) bool { return unicode.IsSpace(r) || r == '=' }) {
		used[w] = true
	}
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	words := []string{"world", "self", "own", "ranges", "nodeport-addresses", "pass-on", "node", "zone", "pod", "dns", "service", "port", "nodeport",
		"endpoint", "zones", "nodes", "packet", "hostport", "own-port", "left", "keep-source", "pod-ranges"}
	for _, w := range slices.Concat(words, slices.Collect(maps.Keys(policies)), slices.Collect(maps.Keys(states))) {
		if !used[w] {
			t.Errorf("%q is in no world", w)
		}
		if !strings.Contains(string(doc), w) {
			t.Errorf("%q is not explained", w)
		}
	}
}

// Worlds have names of their own, and a row is there once.
func TestNothingTwice(t *testing.T) {
	names := make(map[string]bool)
	for _, w := range worlds(t) {
		if names[w.Name] || len(w.Rows) == 0 {
			t.Errorf("world %s: there twice, or empty", w.Name)
		}
		names[w.Name] = true
		rows := make(map[string]int)
		for _, r := range w.Rows {
			key := fmt.Sprint(r.Protocol, r.Src, r.Dst)
			if rows[key] > 0 {
				t.Errorf("packets.txt:%d: the packet of line %d", r.Line, rows[key])
			}
			rows[key] = r.Line
		}
	}
}

func TestParseNamesTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"service a/b 10.0.0.1":                          "line 1: \"service\" before the first world",
		"world w\n\nnode n1 x":                          "line 3: ParseAddr(\"x\")",
		"world w\nnode n1 10.0.0.1 pods 10.0.0.1/99":    "line 2: netip.ParsePrefix",
		"world w\npod p 10.0.0.1":                       "line 2: \"p\" is no namespace/name",
		"world w\nservice a/b\nport x TCP 70000":        "line 3: port [x TCP 70000]",
		"world w\nservice a/b\nendpoint 1.1.1.1:1 up n": "line 3: state \"up\"",
		"world w\npacket TCP 1.1.1.1 > 2.2.2.2:1 = eat": "line 2: verdict \"eat\"",
		"world w\npacket TCP 1.1.1.1 to 2.2.2.2:1 = ok": "line 2: want packet",
		"world w\nservice a/b\nunproxied yes":           "line 3: want no more words",
		"world w\nunproxied":                            "line 2: no such statement",
		"world w\nservice a/b\naffinity soon":           "line 3: time: invalid duration",
		"world w\nservice a/b\nbalancer here":           "line 3: ParseAddr(\"here\")",
		"world w\nservice a/b\nsources 1.1.1.1":         "line 3: netip.ParsePrefix",
		"world w\nhostport TCP 80 80":                   "line 2: no such statement",
		"world w\npod a/b 1.1.1.1\nhostport TCP x 80":   "line 3: hostport [TCP x 80]: want",
		"world w\nown-port a TCP 70000":                 "line 2: own-port [a TCP 70000]: want",
		"world w\ndance":                                "line 2: no such statement",
	} {
		if _, err := Parse(text); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}
