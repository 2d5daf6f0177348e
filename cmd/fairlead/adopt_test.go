// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// adopted runs the command: its exit code, and what it printed.
func adopted(t *testing.T, args ...string) (int, string) {
	t.Helper()
	var out bytes.Buffer
	c := newRootCommand()
	c.SetArgs(append([]string{"adopt"}, args...))
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.ExecuteContext(t.Context())
	var exit exitError
	switch {
	case err == nil:
		return 0, out.String()
	case errors.As(err, &exit):
		return int(exit), out.String()
	}
	return -1, err.Error()
}

// kubeconfigOf is a kubeconfig for a server.
func kubeconfigOf(t *testing.T, url string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := "{apiVersion: v1, kind: Config, current-context: x, clusters: [{name: x, cluster: {server: '" + url + "'}}], contexts: [{name: x, context: {cluster: x}}]}"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What cannot be compared ends with code 2 and a sentence.
func TestAdoptCheckRefuses(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusForbidden) }))
	defer silent.Close()
	for _, row := range []struct{ args, want string }{
		{"check", "--node: the node's name is required"},
		{"check --node n1 --only all", `--only: "all" is neither proxy nor dns`},
		{"check --node n1 --ask here", `--ask: "here" is neither an address nor ADDR:PORT`},
		{"check --node n1 --rate 0", "--rate: 0 is not between"},
		{"check --node n1 --noodles", "unknown flag: --noodles"},
		{"check --node n1 --rate many", `invalid argument "many" for "--rate"`},
		{"check n1", `unknown command "n1"`},
		{"check --node n1 --kubeconfig /does/not/exist", "read kubeconfig"},
		{"check --node n1 --timeout 200ms --kubeconfig " + kubeconfigOf(t, silent.URL), "has not listed services, endpointslices, nodes, pods within 200ms"},
	} {
		if code, out := adopted(t, strings.Fields(row.args)...); code != 2 || !strings.Contains(out, row.want) {
			t.Errorf("%s: code %d, %s", row.args, code, out)
		}
	}
	t.Setenv("NODE_NAME", "from-environment")
	started := time.Now()
	if code, out := adopted(t, "check", "--timeout", "1ms", "--kubeconfig", kubeconfigOf(t, silent.URL)); code != 2 || strings.Contains(out, "--node") {
		t.Errorf("node from the environment: code %d, %s after %s", code, out, time.Since(started))
	}
}

func TestAdoptPlanPrints(t *testing.T) {
	objects := map[string]string{
		"/api/v1/nodes": `{"items":[{"metadata":{"name":"n1"},"status":{"nodeInfo":{"kubeletVersion":"v1.37.2","operatingSystem":"linux"}}}]}`,
		"/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy": `{}`,
		"/api/v1/namespaces/kube-system/configmaps/kube-proxy":       `{"data":{"config.conf":"mode: ipvs\n"}}`,
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		text, ok := objects[r.URL.Path]
		w.Header().Set("Content-Type", "application/json")
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			text = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`
		}
		w.Write([]byte(text))
	}))
	defer s.Close()
	config := kubeconfigOf(t, s.URL)
	if code, out := adopted(t, "plan", "--kubeconfig", config); code != 1 || !strings.Contains(out, "In the way, to be done first:\n- kube-proxy's mode ipvs") {
		t.Errorf("code %d: %s", code, out)
	}
	if code, out := adopted(t, "plan", "--json", "--kubeconfig", config); code != 1 || !strings.Contains(out, `"kube-proxy's mode ipvs`) {
		t.Errorf("as JSON: code %d: %s", code, out)
	}
	objects["/api/v1/namespaces/kube-system/configmaps/kube-proxy"] = `{"data":{"config.conf":"mode: nftables\n"}}`
	objects["/apis/apps/v1/namespaces/kube-system/deployments/coredns"] = `{}`
	objects["/api/v1/namespaces/kube-system/services/kube-dns"] = `{"spec":{"clusterIPs":["10.96.0.10"]}}`
	code, out := adopted(t, "plan", "--kubeconfig", config)
	if code != 0 || !strings.Contains(out, "\n6. remove what kube-proxy has left") || !strings.Contains(out, "\n9. end CoreDNS") {
		t.Errorf("code %d: %s", code, out)
	}
	// The commands and flags of this program's that it gives are there.
	seen := 0
	for line := range strings.Lines(out) {
		for _, words := range calls(line) {
			if seen++; wrong(words) != "" {
				t.Errorf("%q: %s", line, wrong(words))
			}
		}
	}
	if seen < 5 {
		t.Errorf("%d calls of this program in\n%s", seen, out)
	}
	if code, out := adopted(t, "plan", "--json", "--kubeconfig", config); code != 0 || !strings.Contains(out, `"kind": "kubeadm"`) {
		t.Errorf("code %d: %s", code, out)
	}
}

// A command that there is not is no success: scripts go on after one.
func TestAdoptWhat(t *testing.T) {
	if code, out := adopted(t, "chek", "--only", "proxy"); code == 0 {
		t.Errorf("adopt chek: code %d: %s", code, out)
	}
	if code, out := adopted(t, "chek"); code == 0 || !strings.Contains(out, `unknown command "chek"`) {
		t.Errorf("adopt chek: code %d: %s", code, out)
	}
	if code, out := adopted(t); code != 0 || !strings.Contains(out, "check") || !strings.Contains(out, "plan") {
		t.Errorf("adopt: code %d: %s", code, out)
	}
}
