// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// heldBy finds the names in a row's last column: of worlds, and of tests with their package.
var heldBy = regexp.MustCompile("`([^`]+)`")

// docs/services.md names worlds and tests that exist, and every world; and each of its rows names one.
func TestServicesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/services.md")
	if err != nil {
		t.Fatal(err)
	}
	named := make(map[string]bool)
	for _, w := range worlds(t) {
		named[w.Name] = false
	}
	tests := make(map[string]string) // the tests of a package, as text
	rows := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if !strings.HasPrefix(line, "| ") || strings.HasSuffix(cells[len(cells)-1], "held by |") {
			continue
		}
		rows++
		names := heldBy.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(names) == 0 {
			t.Errorf("nothing holds: %s", cells[0])
		}
		for _, m := range names {
			pkg, test, isTest := strings.Cut(m[1], ".")
			if !isTest {
				if _, ok := named[m[1]]; !ok {
					t.Errorf("no world %s", m[1])
				}
				named[m[1]] = true
				continue
			}
			if tests[pkg] == "" {
				tests[pkg] = testsOf(t, pkg)
			}
			if !strings.Contains(tests[pkg], "\nfunc "+test+"(t *testing.T) {\n") {
				t.Errorf("package %s has no %s", pkg, test)
			}
		}
	}
	if rows < 30 {
		t.Errorf("%d rows found", rows)
	}
	for w, ok := range named {
		if !ok {
			t.Errorf("no row names the world %s", w)
		}
	}
}

// testsOf are the test files of a package, which is where its name says or below test.
func testsOf(t *testing.T, pkg string) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range []string{"../../" + pkg, "../" + pkg} {
		files, err := filepath.Glob(dir + "/*_test.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(text)
		}
	}
	return all.String()
}
