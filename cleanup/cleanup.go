// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ErrRunning means that an agent works in this network namespace and would program everything again.
var ErrRunning = errors.New("an agent is running in this network namespace; end it first")

// Options say what is removed.
type Options struct {
	// KubeProxy adds what kube-proxy has left.
	KubeProxy bool
	// OnlyKubeProxy removes what kube-proxy has left and nothing else, which may be done while an agent is running.
	OnlyKubeProxy bool
	// DryRun finds what would be removed and leaves it.
	DryRun bool
	// Force removes also while an agent is running.
	Force bool
}

// Kinds of things that are removed.
const (
	Table       = "nftables table"
	Route       = "route"
	RoutingRule = "routing rule"
	Device      = "device"
	Rule        = "iptables rule"
	Chain       = "iptables chain"
)

// Removal is one thing that was removed.
type Removal struct {
	// Kind is one of the constants of this package.
	Kind string `json:"kind"`
	// Where says which table a rule or chain was in, after the family's program: "ip6tables-legacy nat".
	Where string `json:"where,omitempty"`
	// Name is as the usual tools print it.
	Name string `json:"name"`
}

// Report is what was done.
type Report struct {
	DryRun bool `json:"dryRun"`
	// Removed is what was removed, or would be.
	Removed []Removal `json:"removed"`
	// Notes are sentences about what was left, and why.
	Notes []string `json:"notes"`
}

func (r *Report) removed(kind, where, name string) {
	r.Removed = append(r.Removed, Removal{kind, where, name})
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// Run removes in the network namespace of the calling thread. The report is complete also when there is an error, which holds all that could not
// be removed; nothing that fails keeps the rest from being removed.
func Run(ctx context.Context, o Options) (*Report, error) {
	r := &Report{DryRun: o.DryRun, Removed: []Removal{}, Notes: []string{}}
	running, err := agentHere()
	if err != nil {
		return r, err
	}
	if running && !o.DryRun && !o.Force && !o.OnlyKubeProxy {
		return r, ErrRunning
	}
	var errs []error
	if !o.OnlyKubeProxy {
		errs = append(errs, own(r))
	}
	if o.KubeProxy || o.OnlyKubeProxy {
		errs = append(errs, kubeProxyTables(r), kubeProxyChains(ctx, r, programs{}))
	}
	return r, errors.Join(errs...)
}

// Print writes the report for people: a line each, but the chains of a table, of which there may be tens of thousands, on one.
func (r *Report) Print(w io.Writer) {
	verb := "removed"
	if r.DryRun {
		verb = "would remove"
	}
	for i := 0; i < len(r.Removed); {
		x := r.Removed[i]
		same := i + 1
		for x.Kind == Chain && same < len(r.Removed) && r.Removed[same].Kind == Chain && r.Removed[same].Where == x.Where {
			same++
		}
		where := ""
		if x.Where != "" {
			where = " of " + x.Where + ":"
		}
		switch n := same - i; n {
		case 1:
			fmt.Fprintf(w, "%s %s%s %s\n", verb, x.Kind, where, x.Name)
		default:
			fmt.Fprintf(w, "%s %d %ss%s %s\n", verb, n, x.Kind, where, chainNames(r.Removed[i:same]))
		}
		i = same
	}
	if len(r.Removed) == 0 {
		fmt.Fprintln(w, "nothing to remove")
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
}

// chainNames lists chains, those with a hash for a name by their beginnings.
func chainNames(chains []Removal) string {
	count := make(map[string]int)
	var names []string
	for _, c := range chains {
		name := c.Name
		if i := slices.IndexFunc(perService, func(p string) bool { return strings.HasPrefix(name, p) }); i >= 0 {
			name = perService[i] + "*"
		}
		if count[name]++; count[name] == 1 {
			names = append(names, name)
		}
	}
	for i, n := range names {
		if strings.HasSuffix(n, "*") {
			names[i] = fmt.Sprintf("%d %s", count[n], n)
		}
	}
	return strings.Join(names, ", ")
}
