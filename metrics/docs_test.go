// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/dns/shortcut"
	"github.com/fairlead/fairlead/fastpath"
	"github.com/fairlead/fairlead/metrics"
	"github.com/fairlead/fairlead/socketlb"
)

// described lists the names and labels of an agent's metrics, sorted, each "NAME LABEL, LABEL".
func described(t *testing.T) []string {
	t.Helper()
	server, err := dns.New(dns.Options{Blocks: []dns.Block{{Zones: []string{"."}, Cluster: &dns.Cluster{Zones: []string{"cluster.local."}},
		Forward: []forward.Pool{{Zone: ".", Upstreams: []forward.Upstream{{Addr: netip.MustParseAddrPort("192.0.2.1:53")}}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range slices.Concat(metrics.New(metrics.Options{}).Collectors(), metrics.NewCheckpoint().Collectors(), server.Collectors(), fastpath.New(shortcut.New(), nil).Collectors(),
		socketlb.New(nil, nil).Collectors()) {
		ch := make(chan *prometheus.Desc)
		go func() { defer close(ch); c.Describe(ch) }()
		for d := range ch {
			out = append(out, parseDesc(t, d.String()))
		}
	}
	slices.Sort(out)
	return out
}

var descText = regexp.MustCompile(`^Desc\{fqName: "([^"]+)", help: ".*", constLabels: \{\}, variableLabels: \{([^}]*)\}\}$`)

func parseDesc(t *testing.T, s string) string {
	t.Helper()
	m := descText.FindStringSubmatch(s)
	if m == nil {
		t.Fatalf("cannot read %s", s)
	}
	labels := strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' })
	return strings.TrimSpace(m[1] + " " + strings.Join(labels, ", "))
}

// TestDocs: docs/metrics.md lists each metric of an agent once, with its labels, and none besides.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 6 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`") {
			continue
		}
		name, labels := strings.Trim(cells[1], " `"), strings.ReplaceAll(strings.TrimSpace(cells[3]), "`", "")
		listed = append(listed, strings.TrimSpace(name+" "+labels))
	}
	slices.Sort(listed)
	want := described(t)
	for _, m := range want {
		if !slices.Contains(listed, m) {
			t.Errorf("docs/metrics.md does not list %q", m)
		}
	}
	for i, m := range listed {
		if !slices.Contains(want, m) || i > 0 && listed[i-1] == m {
			t.Errorf("docs/metrics.md lists %q, which no agent has, or twice", m)
		}
	}
}

// TestPackageDoc: the package comment has a line for each of the package's metrics.
func TestPackageDoc(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	listed := regexp.MustCompile(`(?m)^//\t(\w+)  +(same|nearly|own): `).FindAllStringSubmatch(string(text), -1)
	names := make(map[string]bool)
	for _, m := range listed {
		names[m[1]] = true
		if own := strings.HasPrefix(m[1], "fairlead_"); own != (m[2] == "own") {
			t.Errorf("%s is called %s", m[1], m[2])
		}
	}
	for _, m := range described(t) {
		name, _, _ := strings.Cut(m, " ")
		if strings.HasPrefix(name, "coredns_") || strings.HasPrefix(name, "fairlead_dns_") {
			continue
		}
		if !names[name] {
			t.Errorf("the package comment does not list %s", name)
		}
		delete(names, name)
	}
	for name := range names {
		t.Errorf("the package comment lists %s, which is not there", name)
	}
}
