// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/cleanup"
	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/status"
	"github.com/fairlead/fairlead/testnet"
)

// TestCleanup goes through the command's ways in a namespace with two tables: the agent's, and one of kube-proxy.
func TestCleanup(t *testing.T) {
	h := testnet.New(t).Host("node")
	socket := filepath.Join(t.TempDir(), "agent.sock")
	run := func(args ...string) (string, error) {
		return execute(t, newCleanupCommand(), append([]string{"--socket", socket}, args...)...)
	}
	h.Do(func() error {
		nft := func(args ...string) string {
			out, err := exec.Command("nft", args...).CombinedOutput()
			if err != nil {
				t.Fatalf("nft %v: %v: %s", args, err, out)
			}
			return string(out)
		}
		nft("add", "table", "inet", "fairlead")
		nft("add", "table", "ip", "kube-proxy")
		all := nft("list", "ruleset")

		agent, err := status.Listen(socket)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := run(); err == nil || out != "" || !strings.Contains(err.Error(), "an agent answers on "+socket+"; end it first, or use --force") {
			t.Errorf("with an agent: %q, %v", out, err)
		}
		out, err := run("--dry-run", "--kube-proxy")
		if want := "would remove nftables table inet fairlead\nwould remove nftables table ip kube-proxy\n"; out != want || err != nil {
			t.Errorf("dry run: %q, %v", out, err)
		}
		if got := nft("list", "ruleset"); got != all {
			t.Errorf("refused, and changed to\n%s", got)
		}
		if out, err = run("--force"); out != "removed nftables table inet fairlead\n" || err != nil {
			t.Errorf("forced: %q, %v", out, err)
		}
		agent.Close() // its socket stays, as that of a killed agent does

		if out, err = run(); out != "nothing to remove\n" || err != nil {
			t.Errorf("own: %q, %v", out, err)
		}
		for _, want := range []string{`{false [{nftables table  ip kube-proxy}] []}`, `{false [] []}`} {
			out, err := run("--kube-proxy", "--json")
			var report cleanup.Report
			if err := json.Unmarshal([]byte(out), &report); err != nil {
				t.Errorf("%v in %s", err, out)
			}
			if got := strings.ReplaceAll(strings.TrimSpace(out), " ", ""); err != nil || strings.Contains(got, "null") {
				t.Errorf("%v, %s", err, out)
			}
			if got := fmt.Sprint(report); got != want {
				t.Errorf("reported %s, want %s", got, want)
			}
		}
		if got := nft("list", "ruleset"); got != "" {
			t.Errorf("left\n%s", got)
		}
		return nil
	})
}

// TestCleanupAsksTheAgent: cleanup looks for an agent where one is that was given no other state directory.
func TestCleanupAsksTheAgent(t *testing.T) {
	agent := config.Agent{State: newAgentCommand().Flags().Lookup("state").DefValue}
	if got := newCleanupCommand().Flags().Lookup("socket").DefValue; got != agent.Socket() {
		t.Errorf("asks on %s, the agent answers on %s", got, agent.Socket())
	}
}
