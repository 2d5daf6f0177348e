// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestAskOneAgentAboutAnotherNode: who names a node and a socket must not take one node's state for another's.
func TestAskOneAgentAboutAnotherNode(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	for _, args := range []string{"status n2", "dump nft n2"} {
		words := append(strings.Fields(args), "--socket", socket)
		if _, err := execute(t, newRootCommand(), words...); err == nil || !strings.Contains(err.Error(), `"n2"`) || !strings.Contains(err.Error(), socket) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// TestAskNobody: an agent whose node nobody has named is not called "node ".
func TestAskNobody(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	if _, err := execute(t, newRootCommand(), "dump", "nft", "--socket", socket); err == nil || err.Error() != "dump nft: no agent runs at "+socket {
		t.Errorf("dump: %v", err)
	}
	out, err := execute(t, newRootCommand(), "status", "--socket", socket)
	if want := "the agent does not answer: no agent runs at " + socket + "\n"; err == nil || out != want {
		t.Errorf("status: %v, %q, want %q", err, out, want)
	}
}
