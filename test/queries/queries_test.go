// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package queries

import (
	"io/fs"
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

// Every section of the specification has rows, and every type of record that is served has one that finds it.
func TestTableIsComplete(t *testing.T) {
	text, err := files.ReadFile("queries.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, section := range []string{"2.1", "2.2", "2.3.1", "2.3.2", "2.3.3", "2.4.1", "2.4.2", "2.4.3", "2.5", "2.6"} {
		if !strings.Contains(string(text), "\n# "+section+" ") {
			t.Errorf("no rows for section %s", section)
		}
	}
	groups, err := Groups()
	if err != nil {
		t.Fatal(err)
	}
	found, outcomes := make(map[string]bool), make(map[string]bool)
	rows := 0
	for _, g := range groups {
		for _, r := range g.Rows {
			rows++
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
