// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// runner is the boundary to the iptables programs.
type runner interface {
	// installed reports whether a program can be called.
	installed(program string) bool
	// run calls a program and returns what it printed.
	run(ctx context.Context, input, program string, args ...string) (string, error)
}

// programs are those of this machine. They work in the network namespace of the calling thread, as everything here.
type programs struct{}

func (programs) installed(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

func (programs) run(ctx context.Context, input, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// variants are the two implementations of iptables: in nf_tables, and the kernel's older tables. A node may have rules in both.
var variants = []string{"nft", "legacy"}

// iptables removes kube-proxy's chains from every table of both variants and families.
func iptables(ctx context.Context, r *Report, run runner) error {
	var errs []error
	for _, variant := range variants {
		for _, family := range []string{"iptables", "ip6tables"} {
			name := family + "-" + variant
			program, err := find(ctx, run, family, variant)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			var handled map[string]bool
			if program != "" {
				handled, err = cleanTables(ctx, r, run, program, name)
				errs = append(errs, err)
			}
			if variant == "nft" {
				errs = append(errs, unhandled(family, handled))
			} else if program == "" {
				unreadable(r, family)
			}
		}
	}
	return errors.Join(errs...)
}

// find returns the program of a family and variant without its ending -save or -restore; "" if there is none. The plain name is one of
// the two variants, and on some machines the only name.
func find(ctx context.Context, run runner, family, variant string) (string, error) {
	both := func(program string) bool { return run.installed(program+"-save") && run.installed(program+"-restore") }
	if program := family + "-" + variant; both(program) {
		return program, nil
	}
	if !both(family) {
		return "", nil
	}
	version, err := run.run(ctx, "", family+"-save", "--version")
	if err != nil {
		return "", err
	}
	if strings.Contains(version, "nf_tables") == (variant == "nft") {
		return family, nil
	}
	return "", nil
}

// unreadable says which of the older tables there are, if no program can read them.
func unreadable(r *Report, family string) {
	file := map[string]string{"iptables": "ip_tables_names", "ip6tables": "ip6_tables_names"}[family]
	names, err := os.ReadFile("/proc/thread-self/net/" + file)
	if err == nil && len(bytes.TrimSpace(names)) > 0 {
		r.note("%s-legacy has tables here (%s), which may hold rules of kube-proxy, but that program is not installed",
			family, strings.Join(strings.Fields(string(names)), ", "))
	}
}

// unhandled looks into the kernel for chains of kube-proxy that iptables-nft did not show: because it is not installed, or because the table holds
// what iptables cannot express.
func unhandled(family string, handled map[string]bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netfilter socket: %w", err)
	}
	number := map[string]nftables.TableFamily{"iptables": nftables.TableFamilyIPv4, "ip6tables": nftables.TableFamilyIPv6}[family]
	chains, err := c.ListChainsOfTableFamily(number)
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	var left []string
	for _, chain := range chains {
		if KubeProxys(chain.Table.Name, chain.Name) && !handled[chain.Table.Name+" "+chain.Name] {
			left = append(left, chain.Table.Name+" "+chain.Name)
		}
	}
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("remove kube-proxy's chains of %[1]s-nft (%[2]d, %[3]s among them): %[1]s-nft-save is not installed or cannot read the table",
		family, len(left), left[0])
}

// cleanTables goes through all tables that there are; the call that lists them makes none. It returns what it knows of, each "TABLE CHAIN".
func cleanTables(ctx context.Context, r *Report, run runner, program, name string) (handled map[string]bool, err error) {
	text, err := run.run(ctx, "", program+"-save")
	if err != nil {
		return nil, err
	}
	handled = make(map[string]bool)
	var errs []error
	for _, t := range parse(text) {
		p := t.plan()
		if len(p.chains) == 0 {
			continue
		}
		for _, chain := range p.chains {
			handled[t.name+" "+chain] = true
		}
		where := name + " " + t.name
		if !r.DryRun {
			if _, err := run.run(ctx, p.input(), program+"-restore", "--noflush", "-w", "5"); err != nil {
				errs = append(errs, fmt.Errorf("remove chains of %s: %w", where, err))
				continue
			}
		}
		for _, rule := range p.jumps {
			r.removed(Rule, where, rule)
		}
		for _, chain := range p.chains {
			if rule, used := p.used[chain]; used {
				r.note("chain %s of %s is emptied but stays, because of another program's rule %q", chain, where, rule)
				continue
			}
			r.removed(Chain, where, chain)
		}
	}
	return handled, errors.Join(errs...)
}

// table is one that iptables-save printed.
type table struct {
	name   string
	chains []string
	rules  []string // as printed: -A CHAIN ...
}

func parse(text string) (tables []table) {
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if name, ok := strings.CutPrefix(line, "*"); ok {
			tables = append(tables, table{name: name})
			continue
		}
		if len(tables) == 0 {
			continue
		}
		t := &tables[len(tables)-1]
		if rest, ok := strings.CutPrefix(line, ":"); ok {
			chain, _, _ := strings.Cut(rest, " ")
			t.chains = append(t.chains, chain)
		} else if strings.HasPrefix(line, "-A ") {
			t.rules = append(t.rules, line)
		}
	}
	return tables
}

// plan is what is to be done to a table.
type plan struct {
	table string
	// chains are kube-proxy's, in the order of their names.
	chains []string
	// jumps are its rules in the chains of others, as iptables-save prints them.
	jumps []string
	// used has the chains that another program's rule leads to, with the rule.
	used map[string]string
}

func (t table) plan() plan {
	p := plan{table: t.name, used: make(map[string]string)}
	for _, c := range t.chains {
		if KubeProxys(t.name, c) {
			p.chains = append(p.chains, c)
		}
	}
	slices.Sort(p.chains)
	for _, rule := range t.rules {
		words := Words(rule)
		chain, target := words[1], after(words, "-j", "-g")
		if !KubeProxys(t.name, target) || KubeProxys(t.name, chain) {
			continue
		}
		if slices.Contains(builtIn, chain) && slices.Contains(jumpComments, after(words, "--comment")) {
			p.jumps = append(p.jumps, rule)
		} else {
			p.used[target] = rule
		}
	}
	return p
}

// input is the plan for iptables-restore --noflush: naming a chain empties it, so that none leads to another when they are removed.
func (p plan) input() string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", p.table)
	for _, c := range p.chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c)
	}
	for _, rule := range p.jumps {
		fmt.Fprintf(&b, "-D%s\n", strings.TrimPrefix(rule, "-A"))
	}
	for _, c := range p.chains {
		if _, used := p.used[c]; !used {
			fmt.Fprintf(&b, "-X %s\n", c)
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// after returns the word that follows the last of the options; "" if there is none.
func after(words []string, options ...string) string {
	for i := len(words) - 2; i >= 0; i-- {
		if slices.Contains(options, words[i]) {
			return words[i+1]
		}
	}
	return ""
}

// Words cuts a rule into words as iptables-restore does: quotes hold words together, and a backslash in quotes protects what follows.
func Words(rule string) (words []string) {
	var word strings.Builder
	open, quoted, escaped := false, false, false
	for _, c := range rule {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted, open = !quoted, true
		case c == ' ' && !quoted:
			if open {
				words = append(words, word.String())
				word.Reset()
				open = false
			}
		default:
			word.WriteRune(c)
			open = true
		}
	}
	if open {
		words = append(words, word.String())
	}
	return words
}
