// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package queries

import (
	"io/fs"
	"slices"
	"strings"
	"testing"
)

// Worlds are written exactly as a snapshot prints itself, so that a dump can become one.
func TestWorldsPrintThemselves(t *testing.T) {
	names, err := fs.Glob(files, "worlds/*.txt")
	if err != nil || len(names) == 0 {
		t.Fatalf("worlds: %v, %v", names, err)
	}
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := World(string(text), "n1", nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := s.String(); got != string(text) {
			t.Errorf("%s prints itself as\n%s", name, got)
		}
	}
}

// sections are those of Kubernetes' DNS-Based Service Discovery 1.1.0 that ask for records, or allow some: the others are headings.
var sections = []string{"2.1", "2.2", "2.3.1", "2.3.2", "2.3.3", "2.4.1", "2.4.2", "2.4.3", "2.5", "2.6", "3"}

// Every section of the specification has rows that find something and rows that do not, in clusters of IPv4, of IPv6 and of both.
func TestEverySectionHasRows(t *testing.T) {
	groups, err := Groups()
	if err != nil {
		t.Fatal(err)
	}
	type kind struct {
		world, section string
		denied         bool
	}
	rows := make(map[kind]int)
	for _, g := range groups {
		for _, r := range g.Rows {
			if r.Section != "" && !slices.Contains(sections, r.Section) {
				t.Errorf("%v: the specification has no section %s with records", r, r.Section)
			}
			rows[kind{g.World, r.Section, r.Denied}]++
		}
	}
	for _, world := range []string{"v4", "v6", "dual"} {
		for _, section := range sections {
			for _, denied := range []bool{false, true} {
				if rows[kind{world, section, denied}] == 0 {
					t.Errorf("world %s has no row of section %s with denied=%t", world, section, denied)
				}
			}
		}
	}
}

// The ways in which pods may have names, in every kind of cluster.
func TestEveryModeOfPodNamesHasRows(t *testing.T) {
	groups, err := Groups()
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]bool)
	for _, g := range groups {
		for _, r := range g.Rows {
			if r.Section == "2.6" {
				have[g.World+" "+g.Settings["pods"]] = true
			}
		}
	}
	for _, world := range []string{"v4", "v6", "dual"} {
		for _, mode := range []string{"", "insecure", "verified"} {
			if !have[world+" "+mode] {
				t.Errorf("world %s has no row about names of pods with pods=%s", world, mode)
			}
		}
	}
}

// Every type of record that is served, every outcome and every length of name has a row.
func TestTableIsComplete(t *testing.T) {
	groups, err := Groups()
	if err != nil {
		t.Fatal(err)
	}
	found, outcomes := make(map[string]bool), make(map[string]bool)
	rows, longest := 0, 0
	for _, g := range groups {
		for _, r := range g.Rows {
			rows++
			if r.Rcode == "NOERROR" {
				longest = max(longest, len(r.Name)+1)
			}
			outcomes[r.Rcode] = true
			if r.Rcode == "NOERROR" && r.Denied {
				outcomes["NODATA"] = true
			}
			for _, a := range append(r.Answer, r.Extra...) {
				found[strings.Fields(a)[1]] = true
			}
		}
	}
	for _, kind := range []string{"A", "AAAA", "SRV", "PTR", "CNAME", "TXT", "SOA", "NS", "HINFO"} {
		if !found[kind] {
			t.Errorf("no row finds a record of type %s", kind)
		}
	}
	for _, o := range []string{"NOERROR", "NODATA", "NXDOMAIN", "REFUSED", "SERVFAIL"} {
		if !outcomes[o] {
			t.Errorf("no row ends in %s", o)
		}
	}
	if longest != 255 {
		t.Errorf("the longest name that is found has %d octets, want 255", longest)
	}
	t.Logf("%d rows", rows)
}

func TestBadTablesAreRefused(t *testing.T) {
	for _, line := range []string{"a. A", "a. | NOERROR", "a. A | NOERROR | | | x"} {
		if r, err := readRow(line); err == nil {
			t.Errorf("readRow(%q) = %v", line, r)
		}
	}
	for _, text := range []string{"service", "service a/b Nothing", "node n1 addrs [x", "  port http TCP 80"} {
		func() {
			defer func() {
				if recover() != nil {
					t.Errorf("World(%q) panics", text)
				}
			}()
			if _, err := World(text, "n1", nil); err == nil {
				t.Errorf("World(%q) is no error", text)
			}
		}()
	}
}
