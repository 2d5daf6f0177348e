// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"fmt"
	"strings"
	"testing"

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
			got := Judge(w.Snapshot, r.Protocol, r.Src, r.Dst)
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
	for _, what := range []any{model.Pass, model.Forward, model.Reject, model.Local, "nat"} {
		for _, proto := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
			for _, is4 := range []bool{true, false} {
				if proto == model.SCTP && (what == model.Local || what == "nat") {
					continue
				}
				if !have[fmt.Sprint(what, " ", proto, " ", is4)] {
					t.Errorf("no row: %v %s, IPv4 %t", what, proto, is4)
				}
			}
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
		"world w\ndance":                                "line 2: no such statement",
	} {
		if _, err := Parse(text); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}
