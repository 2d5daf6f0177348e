// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDoctor(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "Corefile"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) (string, error) {
		var out strings.Builder
		c := newRootCommand()
		c.SetOut(&out)
		c.SetArgs(append([]string{"doctor"}, args...))
		err := c.Execute()
		return out.String(), err
	}
	write(".:53 {\n    kubernetes cluster.local\n    loop\n}\n")
	if out, err := run("--corefile", dir); err != nil || !strings.Contains(out, "Corefile:2: kubernetes cluster.local: honoured") {
		t.Errorf("a right Corefile: %v, printed\n%s", err, out)
	}
	write(".:53 {\n    kubernetes cluster.local\n    dnssec\n}\n")
	var exit exitError
	out, err := run("--corefile", dir, "--json")
	if !errors.As(err, &exit) || exit != 1 {
		t.Errorf("a Corefile with dnssec: %v", err)
	}
	var findings []finding
	if err := json.Unmarshal([]byte(out), &findings); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	refused := 0
	for _, f := range findings {
		if f.Fate == "refused" && f.Line == 3 && f.Why != "" && strings.HasSuffix(f.File, "Corefile") {
			refused++
		}
	}
	if refused != 1 {
		t.Errorf("the findings are %v", findings)
	}
	for _, args := range [][]string{nil, {"--corefile", dir + "/nothing"}, {"--corefile", dir, "--dns-ip", "x"}, {"more"}} {
		if out, err := run(args...); err == nil || errors.As(err, &exit) || out != "" {
			t.Errorf("%v: %v, printed %q", args, err, out)
		}
	}
}
