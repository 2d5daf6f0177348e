// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// called finds a call of this program in a line of shell, with what follows it up to the end of the command.
var called = regexp.MustCompile(`(?:^|[\s(/$])fairlead((?: +[^\s|;&>#)]+)+)`)

// release is a call of helm, for which the program's name is that of an installation.
var release = regexp.MustCompile(`helm [a-z]+ fairlead`)

// shell is what a page shows as commands: the lines of its blocks, and what it has between backticks.
func shell(page string) (lines []string) {
	for i, part := range strings.Split(page, "```") {
		if i%2 == 1 {
			lines = append(lines, strings.Split(strings.ReplaceAll(part, "\\\n", " "), "\n")...)
			continue
		}
		for _, span := range regexp.MustCompile("`[^`\n]+`").FindAllString(part, -1) {
			lines = append(lines, strings.Trim(span, "`"))
		}
	}
	return lines
}

// calls are the calls of this program in a line of shell, each as the words behind its name.
func calls(line string) (all [][]string) {
	line = strings.ReplaceAll(line, " -- fairlead ", "; fairlead ") // kubectl exec POD -- fairlead …
	for _, m := range called.FindAllStringSubmatch(release.ReplaceAllString(line, "helm"), -1) {
		all = append(all, strings.Fields(m[1]))
	}
	return all
}

// wrong says what is wrong with the words after the program's name; empty if nothing is.
func wrong(words []string) string {
	root := newRootCommand()
	root.InitDefaultHelpFlag()
	root.InitDefaultVersionFlag()
	c := root
	for len(words) > 0 && !strings.HasPrefix(words[0], "-") {
		i := slices.IndexFunc(c.Commands(), func(below *cobra.Command) bool { return below.Name() == words[0] })
		if i < 0 {
			if c == root {
				return "no such command: " + words[0]
			}
			break
		}
		c, words = c.Commands()[i], words[1:]
	}
	c.InitDefaultHelpFlag()
	for _, w := range words {
		name, _, _ := strings.Cut(strings.TrimLeft(w, "[-"), "=")
		name = strings.TrimRight(name, "],.")
		switch {
		case w == "--":
			return "" // what follows is another program's
		case strings.HasPrefix(strings.TrimLeft(w, "["), "--"):
			if c.Flags().Lookup(name) == nil && c.InheritedFlags().Lookup(name) == nil {
				return c.CommandPath() + " has no flag --" + name
			}
		case strings.HasPrefix(w, "-") && len(name) == 1:
			if c.Flags().ShorthandLookup(name) == nil {
				return c.CommandPath() + " has no flag -" + name
			}
		}
	}
	return ""
}

// TestDocsShowWhatThereIs: every command and every flag of this program that a page for users shows is there.
func TestDocsShowWhatThereIs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 5 {
		t.Fatalf("pages %v, %v", pages, err)
	}
	seen := map[string]int{}
	for _, page := range append(pages, "../../README.md", "../../ARCHITECTURE.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range shell(string(text)) {
			for _, words := range calls(line) {
				seen[words[0]]++
				if why := wrong(words); why != "" {
					t.Errorf("%s: %q: %s", filepath.Base(page), line, why)
				}
			}
		}
	}
	// The pages show each command that is there for users.
	for _, c := range newRootCommand().Commands() {
		if !c.Hidden && seen[c.Name()] == 0 {
			t.Errorf("no page shows fairlead %s", c.Name())
		}
	}
}

// TestWrong: the judge of the test above does not let everything pass.
func TestWrong(t *testing.T) {
	for line, want := range map[string]string{
		"fairlead status":                                              "",
		"sudo bin/fairlead status n1 --json":                           "",
		"fairlead --version":                                           "",
		"fairlead agent -v --node=n1":                                  "",
		"fairlead exec shop/POD -- shop --no-flag":                     "",
		"$(fairlead dump nft n1) --nothing":                            "",
		"fairlead adopt check --only proxy":                            "",
		"fairlead adopt plan --only proxy":                             "fairlead adopt plan has no flag --only",
		"fairlead status --wide":                                       "fairlead status has no flag --wide",
		"fairlead statuz":                                              "no such command: statuz",
		"fairlead agent -x":                                            "fairlead agent has no flag -x",
		"true && fairlead cleanup --kube-proxy --everything | tee log": "fairlead cleanup has no flag --everything",
		"nft list table inet fairlead":                                 "",
		"kubectl exec POD -- fairlead cleanup --everything":            "fairlead cleanup has no flag --everything",
		"helm upgrade fairlead deploy/chart --reuse-values":            "",
		"fairlead-server kubectl get pods":                             "",
	} {
		got := ""
		for _, words := range calls(line) {
			got += wrong(words)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
	if got := shell("a `b c` d\n```\ne\nf \\\n g\n```\n`h`"); !slices.Equal(got, []string{"b c", "", "e", "f   g", "", "h"}) {
		t.Errorf("%q", got)
	}
}
