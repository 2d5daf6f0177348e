// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv("FAIRLEAD_CNI_TEST") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestArguments: who calls the plugin as if it were the program fairlead is told, and does not hear that all went well.
func TestArguments(t *testing.T) {
	for _, c := range []struct {
		args []string
		fine bool
		says string
	}{
		{nil, true, "CNI"},
		{[]string{"cleanup"}, false, `"cleanup" is for the program fairlead`},
		{[]string{"--version"}, false, "takes no arguments"},
	} {
		cmd := exec.Command(os.Args[0], c.args...)
		cmd.Env = []string{"FAIRLEAD_CNI_TEST=1"}
		out, err := cmd.CombinedOutput()
		if (err == nil) != c.fine || !strings.Contains(string(out), c.says) {
			t.Errorf("%v: %v, %q, want %q", c.args, err, out, c.says)
		}
	}
}
