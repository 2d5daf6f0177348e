// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestLogFile: a log never takes more than twice its bound, loses only its oldest part, and goes on where an earlier one ended.
func TestLogFile(t *testing.T) {
	dir := t.TempDir()
	path := runLog(dir, "main", 1)
	const limit = 100
	var all bytes.Buffer
	l, err := openLog(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		if i == 250 {
			l.Close()
			if _, err := l.Write([]byte("x")); err == nil {
				t.Error("a closed log takes bytes")
			}
			if l, err = openLog(path, limit); err != nil {
				t.Fatal(err)
			}
		}
		line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i%40))
		all.WriteString(line)
		if _, err := l.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		var kept []byte
		for _, f := range runLogs(dir, "main", 1) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) > limit {
				t.Fatalf("%s has %d bytes", f, len(b))
			}
			kept = append(kept, b...)
		}
		if !bytes.HasSuffix(all.Bytes(), kept) || !bytes.HasSuffix(kept, []byte(line)) {
			t.Fatalf("after line %d the log is %q", i, kept)
		}
	}
	l.Close()
	if err := l.Close(); err != nil {
		t.Error("closing twice:", err)
	}
	// One write that is larger than the bound is kept whole.
	l, err = openLog(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	big := bytes.Repeat([]byte("y"), 3*limit)
	if n, err := l.Write(big); n != len(big) || err != nil {
		t.Errorf("large write: %d %v", n, err)
	}
}

func TestRunLogs(t *testing.T) {
	dir := t.TempDir()
	if got := runLogs(dir, "main", 1); got != nil {
		t.Errorf("logs before the first run: %v", got)
	}
	for run := range 5 {
		dropOldRuns(dir, "main", run)
		l, err := openLog(runLog(dir, "main", run), 1)
		if err != nil {
			t.Fatal(err)
		}
		l.Write([]byte("a"))
		l.Write([]byte("b"))
		l.Close()
	}
	entries, err := os.ReadDir(filepath.Join(dir, "main"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"3.log", "3.log.1", "4.log", "4.log.1"}; !slices.Equal(names, want) {
		t.Errorf("kept %v, want %v", names, want)
	}
	if got := runLogs(dir, "main", 4); len(got) != 2 || !strings.HasSuffix(got[0], "4.log.1") || !strings.HasSuffix(got[1], "4.log") {
		t.Errorf("logs of run 4: %v", got)
	}
}

func TestTurnLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	if err := turnLog(path, 3); err != nil {
		t.Errorf("no file: %v", err)
	}
	for _, tc := range []struct {
		text   string
		turned bool
	}{{"abc", false}, {"abcd", true}} {
		if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := turnLog(path, 3); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path + ".1"); (err == nil) != tc.turned {
			t.Errorf("%q: turned %v, want %v", tc.text, err == nil, tc.turned)
		}
	}
}
