// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"os"
	"strings"
	"testing"
)

// TestDocs: the table of docs/corefile.md is that of the code.
func TestDocs(t *testing.T) {
	const name = "../../docs/corefile.md"
	const begin, end = "<!-- table -->\n", "<!-- end of table -->\n"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	shown, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", name)
	}
	want := "\n" + Table() + "\n"
	if *update {
		if err := os.WriteFile(name, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		shown = want
	}
	if shown != want {
		t.Errorf("%s does not show the table of the code; run go test ./dns/corefile -run TestDocs -update", name)
	}
	for _, r := range table {
		if strings.ContainsAny(r.option+r.why, "|<>") {
			t.Errorf("%s %s cannot be shown in a table", r.plugin, r.option)
		}
	}
}

// TestTableIsWhole: each plugin that is read has a row, no row is there twice, and options stand behind their plugin.
func TestTableIsWhole(t *testing.T) {
	seen, last := map[string]bool{}, ""
	for _, r := range table {
		if key := r.plugin + " " + r.option; seen[key] {
			t.Errorf("%s is there twice", key)
		} else {
			seen[key] = true
		}
		if r.plugin != last && seen[r.plugin] {
			t.Errorf("%s is in two places", r.plugin)
		}
		last = r.plugin
		seen[r.plugin] = true
	}
	for _, p := range plugins {
		if r, ok := lookup(p.name, ""); !ok || r.fate == Refused || r.fate == NoEffect {
			t.Errorf("%s is read, but the table says %v", p.name, r.fate)
		}
	}
	// The plugins of CoreDNS 1.14.7, by its own list.
	for name := range strings.FieldsSeq("root metadata geoip cancel proxyproto quic grpc_server https https3 timeouts multisocket reload nsid bufsize bind debug trace ready health pprof shed prometheus errors log dnstap local dns64 any chaos loadbalance tsig rewrite autopath acl cache header dnssec tls minimal template transfer hosts route53 azure clouddns k8s_external kubernetes file auto secondary etcd loop forward grpc erratic whoami on sign view nomad") {
		if _, ok := lookup(name, ""); !ok {
			t.Errorf("%s has no row", name)
		}
	}
}
