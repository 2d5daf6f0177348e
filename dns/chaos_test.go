// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"strings"
	"testing"

	mdns "github.com/miekg/dns"
)

func TestChaos(t *testing.T) {
	for _, tc := range []struct{ name, version, node, want string }{
		{"version.bind.", "v1.2.3", "n1", "fairlead v1.2.3"},
		{"version.server.", "v1.2.3", "n1", "fairlead v1.2.3"},
		{"VERSION.Bind.", "v1.2.3", "n1", "fairlead v1.2.3"},
		{"version.bind.", "", "n1", "fairlead"},
		{"id.server.", "v1.2.3", "n1", "n1"},
		{"hostname.bind.", "v1.2.3", "worker-7.example", "worker-7.example"},
		{"Id.Server.", "v1.2.3", "n1", "n1"},
		{"id.server.", "v1.2.3", "", ""},
		// What has no answer: other names of that class, and the same words elsewhere.
		{"authors.bind.", "v1.2.3", "n1", ""},
		{"bind.", "v1.2.3", "n1", ""},
		{"server.", "v1.2.3", "n1", ""},
		{".", "v1.2.3", "n1", ""},
		{"", "v1.2.3", "n1", ""},
		{"version.bind", "v1.2.3", "n1", ""},
		{"x.version.bind.", "v1.2.3", "n1", ""},
		{"version.bind.cluster.local.", "v1.2.3", "n1", ""},
	} {
		if txt, ok := chaos(tc.name, tc.version, tc.node); txt != tc.want || ok != (tc.want != "") {
			t.Errorf("chaos(%q, %q, %q) = %q, %t, want %q", tc.name, tc.version, tc.node, txt, ok, tc.want)
		}
	}
}

// Whatever the version is called, the answer is one character string that goes over the wire as it is.
func TestChaosFits(t *testing.T) {
	for _, version := range []string{"v1.2.3-14-gabcdef-dirty", strings.Repeat("v", 250), strings.Repeat("v", 300)} {
		txt, ok := chaos("version.bind.", version, "n1")
		if !ok {
			t.Fatalf("version %q has no answer", version)
		}
		m := &mdns.Msg{Answer: []mdns.RR{&mdns.TXT{
			Hdr: mdns.RR_Header{Name: "version.bind.", Rrtype: mdns.TypeTXT, Class: mdns.ClassCHAOS},
			Txt: []string{txt},
		}}}
		wire, err := m.Pack()
		if err != nil {
			t.Fatalf("pack %q: %v", txt, err)
		}
		var back mdns.Msg
		if err := back.Unpack(wire); err != nil {
			t.Fatal(err)
		}
		if got := back.Answer[0].(*mdns.TXT).Txt; len(got) != 1 || got[0] != txt || !strings.HasPrefix("fairlead "+version, txt) {
			t.Errorf("version %q comes back as %q", version, got)
		}
	}
}
