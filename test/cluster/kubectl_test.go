// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kubectls are the kubectl commands to try: the one of fairlead-server, and the
// machine's own where it has one.
func kubectls(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{"built in": {"fairlead-server", "kubectl"}}
	if path, err := exec.LookPath("kubectl"); err == nil {
		out[path] = []string{path}
	}
	return out
}

// TestKubectlColumns: lists have the columns that Kubernetes shows.
func TestKubectlColumns(t *testing.T) {
	w := shared(t)
	for name, kubectl := range kubectls(t) {
		for _, tc := range []struct{ kind, columns string }{
			{"services", "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE SELECTOR"},
			{"endpointslices", "NAME ADDRESSTYPE PORTS ENDPOINTS AGE"},
			{"pods", "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES"},
			{"nodes", "NAME STATUS ROLES AGE VERSION INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME"},
			{"deployments", "NAME READY UP-TO-DATE AVAILABLE AGE CONTAINERS IMAGES SELECTOR"},
			{"replicasets", "NAME DESIRED CURRENT READY AGE CONTAINERS IMAGES SELECTOR"},
			{"namespaces", "NAME STATUS AGE"},
		} {
			out := w.must(t, kubectl[0], append(slices.Clone(kubectl[1:]), "-n", namespace, "get", tc.kind, "-o", "wide")...)
			header, rows, _ := strings.Cut(out, "\n")
			if strings.Join(strings.Fields(header), " ") != tc.columns || strings.TrimSpace(rows) == "" {
				t.Errorf("%s: get %s -o wide: want columns %q\n%s", name, tc.kind, tc.columns, out)
			}
		}
		out := w.must(t, kubectl[0], append(slices.Clone(kubectl[1:]), "-n", namespace, "get", "svc,endpointslices,pods,nodes", "-o", "wide")...)
		for _, want := range []string{"service/orders", "80/TCP,9000/TCP", "pod/client-", "node/n1", "app=orders"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: get svc,endpointslices,pods,nodes lacks %q:\n%s", name, want, out)
			}
		}
		t.Logf("%s\n%s", name, out)
	}
}

// TestKubectlVerbs runs, in a namespace of their own, the commands that people
// use all day, and looks at what they print.
func TestKubectlVerbs(t *testing.T) {
	w := shared(t)
	const manifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: shop, image: host, command: [shop, serve], ports: [{name: http, containerPort: 8080}]}]
`
	for name, kubectl := range kubectls(t) {
		t.Run(strings.ReplaceAll(strings.Trim(name, "/"), "/", " "), func(t *testing.T) {
			w.run(t, "", kubectl[0], append(slices.Clone(kubectl[1:]), "delete", "namespace", "verbs", "--ignore-not-found")...)
			for _, step := range []struct {
				args, stdin, want string
			}{
				{"create namespace verbs", "", "namespace/verbs created"},
				{"-n verbs apply -f -", manifest, "deployment.apps/web created"},
				{"-n verbs apply -f -", manifest, "deployment.apps/web unchanged"},
				{"-n verbs apply -f - --server-side --force-conflicts", manifest, "serverside-applied"},
				{"-n verbs diff -f -", manifest, ""},
				{"-n verbs rollout status deployment web --timeout=60s", "", "successfully rolled out"},
				{"-n verbs wait pod -l app=web --for=condition=Ready --timeout=60s", "", "condition met"},
				{"-n verbs expose deployment web --port 80 --target-port http", "", "service/web exposed"},
				{"-n verbs get svc web -o jsonpath={.spec.clusterIP}", "", "10.96."},
				{"-n verbs get svc web -o yaml", "", "kind: Service"},
				{"-n verbs get pods -l app=web -o json", "", `"kind": "Pod"`},
				{"-n verbs get pods --field-selector spec.nodeName=nowhere", "", ""},
				{"-n verbs describe svc web", "", "Endpoints:"},
				{"-n verbs describe deployment web", "", "2 desired"},
				{"-n verbs scale deployment web --replicas 3", "", "scaled"},
				{"-n verbs rollout restart deployment web", "", "restarted"},
				{"-n verbs rollout status deployment web --timeout=60s", "", "successfully rolled out"},
				{"-n verbs label deployment web tier=front", "", "labeled"},
				{"-n verbs annotate deployment web note=hello", "", "annotated"},
				{"-n verbs patch deployment web --type json -p [{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":1}]", "", "patched"},
				{"-n verbs patch deployment web --type merge -p {\"spec\":{\"replicas\":2}}", "", "patched"},
				{"-n verbs edit deployment web", "", "deployment.apps/web edited"},
				{"-n verbs get deployment web -o jsonpath={.metadata.labels.edited}", "", "yes"},
				{"-n verbs create configmap settings --from-literal a=b", "", "configmap/settings created"},
				{"-n verbs get events", "", ""},
				{"-n verbs get all", "", "deployment.apps/web"},
				{"-n verbs delete service web", "", "deleted"},
				{"api-resources", "", "endpointslices"},
				{"api-versions", "", "discovery.k8s.io/v1"},
				{"explain service.spec.clusterIP", "", "DESCRIPTION"},
				{"version", "", "Server Version"},
				{"cluster-info", "", "https://127.0.0.1:"},
				{"get --raw /readyz", "", "ok"},
				{"delete namespace verbs", "", "deleted"},
			} {
				t.Setenv("KUBE_EDITOR", `sed -i s/"tier: front"/"edited: \"yes\""/`)
				r := w.run(t, step.stdin, kubectl[0], append(slices.Clone(kubectl[1:]), strings.Fields(step.args)...)...)
				if r.code != 0 || !strings.Contains(r.stdout, step.want) {
					t.Errorf("want %q\n%s", step.want, r)
				}
			}
			// A deleted namespace takes all with it.
			for _, list := range []func() (int, error){
				func() (int, error) {
					l, err := w.kube.CoreV1().Pods("verbs").List(t.Context(), metav1.ListOptions{})
					return len(l.Items), err
				},
				func() (int, error) {
					l, err := w.kube.AppsV1().Deployments("verbs").List(t.Context(), metav1.ListOptions{})
					return len(l.Items), err
				},
				func() (int, error) {
					l, err := w.kube.AppsV1().ReplicaSets("verbs").List(t.Context(), metav1.ListOptions{})
					return len(l.Items), err
				},
				func() (int, error) {
					l, err := w.kube.CoreV1().ConfigMaps("verbs").List(t.Context(), metav1.ListOptions{})
					return len(l.Items), err
				},
			} {
				if n, err := list(); err != nil || n != 0 {
					t.Errorf("%d objects left in the deleted namespace (%v)", n, err)
				}
			}
			if _, err := w.kube.CoreV1().Namespaces().Get(t.Context(), "verbs", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("the deleted namespace: %v", err)
			}
		})
	}
}

// TestKubectlWatch: a watch shows a change while it runs.
func TestKubectlWatch(t *testing.T) {
	w := shared(t)
	for name, kubectl := range kubectls(t) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		cmd := w.command(ctx, kubectl[0], append(slices.Clone(kubectl[1:]), "-n", namespace, "get", "services", "--watch", "-o", "name")...)
		var out lockedBuffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, name+": the watch's first list", func() error { return out.contains("service/orders") })
		w.kubectl(t, "-n", namespace, "create", "service", "clusterip", "watched", "--tcp=80:8080")
		eventually(t, 10*time.Second, name+": the watch's event", func() error { return out.contains("service/watched") })
		w.kubectl(t, "-n", namespace, "delete", "service", "watched")
		cancel()
		cmd.Wait()
	}
}

// lockedBuffer is a buffer that may be read while a command writes to it.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// contains returns an error with the text so far unless it has s in it.
func (b *lockedBuffer) contains(s string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if text := b.text.String(); !strings.Contains(text, s) {
		return fmt.Errorf("no %q in %q", s, text)
	}
	return nil
}

// TestKubeconfigIsPrivate: whoever reads it is the cluster's administrator.
func TestKubeconfigIsPrivate(t *testing.T) {
	w := shared(t)
	info, err := os.Stat(w.dir.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("kubeconfig has mode %o, want 600", mode)
	}
	text, err := os.ReadFile(w.dir.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`server: https://127\.0\.0\.1:\d+`).Match(text) {
		t.Error("kubeconfig does not name the loopback listener")
	}
	// Without its certificate nobody gets in.
	record, err := w.dir.ReadRecord()
	if err != nil {
		t.Fatal(err)
	}
	r := w.run(t, "", "/usr/bin/env", "curl", "-sk", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", record.Params.LocalURL()+"/api/v1/namespaces")
	if r.stdout != "401" && r.stdout != "403" {
		t.Errorf("anonymous request: status %s, want 401 or 403", r)
	}
}
