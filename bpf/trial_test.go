// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// TestTrial: what does not work is tried again on occasions further and further apart, and said once; what works is tried each time.
func TestTrial(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	var trial Trial
	if !trial.Due(false) || !trial.Due(true) {
		t.Error("at first it is not due")
	}
	trial.End(nil, log, "the thing", "nothing is lost")
	if out.Len() > 0 {
		t.Errorf("said that it works: %s", out.String())
	}
	broken := errors.New("broken")
	var gaps []int
	for range 12 {
		trial.End(broken, log, "the thing", "it is slower")
		if trial.Due(false) || trial.Off() != "broken" {
			t.Errorf("due without an occasion, or off because %q", trial.Off())
		}
		n := 1
		for !trial.Due(true) {
			n++
		}
		gaps = append(gaps, n)
	}
	for i, want := range []int{2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024} {
		if gaps[i] != want {
			t.Errorf("tried again after %d occasions in turn, want %d for the %dth", gaps[i], want, i+1)
		}
	}
	trial.End(errors.New("missing"), log, "the thing", "it is slower")
	trial.End(nil, log, "the thing", "it is slower")
	if trial.Off() != "" || !trial.Due(false) {
		t.Errorf("works, but is off: %q", trial.Off())
	}
	said := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, want := range []string{`the thing is off: it is slower" err=broken`, `err=missing`, "the thing works again"} {
		if len(said) != 3 || !strings.Contains(said[i], want) {
			t.Fatalf("said:\n%s", out.String())
		}
	}
}
