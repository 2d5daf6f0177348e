// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// service is a Service manifest with one part of its spec to get wrong.
func service(name, spec string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + ", namespace: shop}\nspec: {" + spec + "}\n"
}

// TestWrongManifests: what the API refuses, it refuses in Kubernetes' own words,
// with the field, and stores nothing.
func TestWrongManifests(t *testing.T) {
	w := shared(t)
	taken := w.service(t, "orders").Spec.ClusterIP
	for _, tc := range []struct {
		name, manifest string
		want           []string
		serverSide     []string // instead, with --server-side, which checks against the schema first
	}{
		{"unknown field", service("wrong", "portz: [{port: 80}], ports: [{port: 80}]"), []string{"unknown field", "spec.portz"}, []string{".spec.portz: field not declared in schema"}},
		{"no ports", service("wrong", "selector: {a: b}"), []string{"spec.ports: Required value"}, nil},
		{"port 70000", service("wrong", "ports: [{port: 70000}]"), []string{"spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"}, nil},
		{"port 0", service("wrong", "ports: [{port: 0}]"), []string{"spec.ports[0].port", "must be between 1 and 65535"}, nil},
		{"port of words", service("wrong", "ports: [{port: http}]"), []string{"port"}, nil},
		{"targetPort 70000", service("wrong", "ports: [{port: 80, targetPort: 70000}]"), []string{"spec.ports[0].targetPort", "between 1 and 65535"}, nil},
		{"duplicate port names", service("wrong", "ports: [{name: a, port: 80}, {name: a, port: 81}]"), []string{`spec.ports[1].name: Duplicate value: "a"`}, nil},
		{"second port without a name", service("wrong", "ports: [{name: a, port: 80}, {port: 81}]"), []string{"spec.ports[1].name: Required value"}, nil},
		{"duplicate ports", service("wrong", "ports: [{name: a, port: 80}, {name: b, port: 80}]"), []string{"spec.ports[1]: Duplicate value"}, []string{".spec.ports: duplicate entries for key"}},
		{"unknown protocol", service("wrong", "ports: [{port: 80, protocol: QUIC}]"), []string{"spec.ports[0].protocol", "Unsupported value", "QUIC"}, nil},
		{"ClusterIP of words", service("wrong", "clusterIP: here, ports: [{port: 80}]"), []string{"spec.clusterIP", "here"}, nil},
		{"ClusterIP outside the range", service("wrong", "clusterIP: 192.0.2.1, ports: [{port: 80}]"), []string{"192.0.2.1", "spec.clusterIPs", "failed to allocate IP", "10.96.0.0/16"}, nil},
		{"taken ClusterIP", service("wrong", "clusterIP: "+taken+", ports: [{port: 80}]"), []string{taken, "already allocated"}, nil},
		{"name that DNS cannot carry", service("Wrong_Name", "ports: [{port: 80}]"), []string{"metadata.name", "Wrong_Name"}, nil},
		{"changed ClusterIP", service("orders", "clusterIP: 10.96.77.77, selector: {app: orders}, ports: [{name: http, port: 80}]"), []string{"may not change once set"}, nil},
		{"changed selector of a Deployment", strings.ReplaceAll(readExample(t, "client.yaml"), "{app: client}", "{app: clients}"), []string{"spec.selector", "field is immutable"}, nil},
		{"selector that is not the template's", `{apiVersion: apps/v1, kind: Deployment, metadata: {name: wrong, namespace: shop}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: host, command: ["true"]}]}}}}`, []string{"`selector` does not match template `labels`"}, nil},
		{"pod without containers", `{apiVersion: v1, kind: Pod, metadata: {name: wrong, namespace: shop}, spec: {containers: []}}`, []string{"spec.containers: Required value"}, nil},
		{"unknown type", service("wrong", "type: Anycast, ports: [{port: 80}]"), []string{"spec.type", "Unsupported value", "Anycast"}, nil},
		{"node port outside the range", service("wrong", "type: NodePort, ports: [{port: 80, nodePort: 80}]"), []string{"spec.ports[0].nodePort", "provided port is not in the valid range", "30000-32767"}, nil},
		{"affinity of a week", service("wrong", "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 604800}}, ports: [{port: 80}]"), []string{"timeoutSeconds", "must be greater than 0 and less than 86400"}, nil},
		{"source range of words", service("wrong", "type: LoadBalancer, loadBalancerSourceRanges: [office], ports: [{port: 80}]"), []string{"office"}, nil},
		{"unknown kind", `{apiVersion: batch/v1, kind: Job, metadata: {name: wrong, namespace: shop}}`, []string{"no matches for kind", "Job"}, nil},
		{"unknown namespace", `{apiVersion: v1, kind: ConfigMap, metadata: {name: wrong, namespace: nowhere}}`, []string{`namespaces "nowhere" not found`}, nil},
		{"not YAML", "a: b: c\n", []string{"error"}, nil},
	} {
		for _, mode := range []string{"apply -f -", "apply --server-side --force-conflicts -f -"} {
			r := w.run(t, tc.manifest, "fairlead-server", append([]string{"kubectl"}, strings.Fields(mode)...)...)
			if r.code == 0 {
				t.Errorf("%s: accepted\n%s", tc.name, r)
				continue
			}
			wants := tc.want
			if tc.serverSide != nil && strings.Contains(mode, "--server-side") {
				wants = tc.serverSide
			}
			for _, want := range wants {
				if !strings.Contains(r.stderr, want) {
					t.Errorf("%s: want %q\n%s", tc.name, want, r)
				}
			}
		}
	}
	for _, kind := range []string{"service", "deployment", "pod", "configmap"} {
		if r := w.run(t, "", "fairlead-server", "kubectl", "-n", namespace, "get", kind, "wrong"); r.code == 0 {
			t.Errorf("a refused object is stored: %s", r)
		}
	}
	if ip := w.service(t, "orders").Spec.ClusterIP; ip != taken {
		t.Errorf("the Service orders changed its address from %s to %s", taken, ip)
	}
}

// readExample returns a manifest of the example shop.
func readExample(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(), "examples/shop", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestPodCommandThatDoesNotExist: the pod's status says it.
func TestPodCommandThatDoesNotExist(t *testing.T) {
	w := shared(t)
	w.apply(t, `{apiVersion: v1, kind: Pod, metadata: {name: typo, namespace: shop}, spec: {containers: [{name: c, image: host, command: [no-such-program]}]}}`)
	t.Cleanup(func() { w.kubectl(t, "-n", namespace, "delete", "pod", "typo") })
	eventually(t, 30*time.Second, "the pod's status", func() error {
		p, err := w.kube.CoreV1().Pods(namespace).Get(t.Context(), "typo", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range p.Status.ContainerStatuses {
			for _, text := range []string{waiting(c.State), terminated(c.State), terminated(c.LastTerminationState)} {
				if strings.Contains(text, "no-such-program") {
					t.Logf("status: %s", text)
					return nil
				}
			}
		}
		return fmt.Errorf("no container status names the program: %+v", p.Status.ContainerStatuses)
	})
	out := w.kubectl(t, "-n", namespace, "describe", "pod", "typo")
	if !strings.Contains(out, "no-such-program") {
		t.Errorf("describe does not say what is wrong:\n%s", out)
	}
}

// waiting is the reason and message of a container that waits.
func waiting(s corev1.ContainerState) string {
	if s.Waiting == nil {
		return ""
	}
	return s.Waiting.Reason + ": " + s.Waiting.Message
}

// terminated is the reason and message of a container that ended.
func terminated(s corev1.ContainerState) string {
	if s.Terminated == nil {
		return ""
	}
	return s.Terminated.Reason + ": " + s.Terminated.Message
}

// sentence checks that a command failed with one line that says all of want.
func sentence(t *testing.T, what string, r result, want ...string) {
	t.Helper()
	text := strings.TrimSpace(r.stderr)
	last := text[strings.LastIndex(text, "\n")+1:]
	if r.code == 0 || last == "" || strings.Contains(text, "goroutine ") {
		t.Errorf("%s: want an exit code that is not 0, and a sentence\n%s", what, r)
	}
	for _, s := range want {
		if !strings.Contains(last, s) {
			t.Errorf("%s: the last line does not say %q\n%s", what, s, r)
		}
	}
}

// TestUpRefuses: what cannot start says why, with what to do, and leaves nothing
// half-made.
func TestUpRefuses(t *testing.T) {
	w := shared(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	busyPort := strconv.Itoa(busy.Addr().(*net.TCPAddr).Port)

	sentence(t, "second up", w.up(t), string(w.dir))
	sentence(t, "down of nothing, then exec", w.run(t, "", "fairlead", "exec", "--state", filepath.Join(stateRoot, "nothing"), "a/b", "--", "true"), "nothing")

	fresh := newWorld(t, "refused")
	for _, tc := range []struct {
		name string
		args []string
		want []string
	}{
		{"port taken", []string{"--api-port", busyPort}, []string{busyPort}},
		{"no nodes", []string{"--nodes", "0"}, []string{"--nodes"}},
		{"too many nodes", []string{"--nodes", "100000"}, []string{"--nodes"}},
		{"not a CIDR", []string{"--service-cidr", "banana"}, []string{"--service-cidr", "banana"}},
		{"host bits", []string{"--service-cidr", "10.96.0.1/16"}, []string{"--service-cidr", "10.96.0.0/16"}},
		{"overlap", []string{"--service-cidr", "10.244.0.0/16"}, []string{"--service-cidr", "--pod-cidr", "overlaps"}},
		{"no room", []string{"--nodes", "3", "--pod-cidr", "10.200.0.0/24"}, []string{"--pod-cidr"}},
		{"unknown flag", []string{"--noodles", "3"}, []string{"--noodles"}},
		{"argument", []string{"now"}, []string{"now"}},
	} {
		sentence(t, tc.name, fresh.up(t, tc.args...), tc.want...)
		if _, err := os.Stat(string(fresh.dir)); err == nil {
			t.Errorf("%s: the state directory was made", tc.name)
			os.RemoveAll(string(fresh.dir))
		}
		fresh.clean(t, tc.name)
	}

	// A state directory that is a file, or cannot be made.
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sentence(t, "state directory is a file", fresh.run(t, "", "fairlead", "up", "--detach", "--state", file, "--api-port", strconv.Itoa(fresh.port)), file)
	// The parameters of an existing cluster cannot be changed by up.
	old := newWorld(t, "shared")
	old.port = w.port
	sentence(t, "other parameters while it runs", old.up(t, "--nodes", "2"))

	// Not root. The copy is where everybody may run it.
	dir, err := os.MkdirTemp("", "fairlead-nobody")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("cp", binary("fairlead"), binary("fairlead-server"), dir).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v %s", err, out)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "fairlead"), "up", "--detach", "--state", filepath.Join(dir, "state"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.Dir = dir
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	sentence(t, "not root", result{args: cmd.Args, stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}, "root")
	if r := w.report(t, "n1"); r.Ready() != "" {
		t.Errorf("the running cluster suffered: %s", r.Ready())
	}
}

// TestAskRefuses: questions that have no answer get a sentence.
func TestAskRefuses(t *testing.T) {
	w := shared(t)
	from := namespace + "/" + w.clientOn(t, "n1")
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"exec", "shop/nobody", "--", "true"}, []string{"shop/nobody"}},
		{[]string{"exec", "nobody", "--", "true"}, []string{"NAMESPACE/POD"}},
		{[]string{"exec", from}, []string{""}},
		{[]string{"exec", from, "--", "no-such-program"}, []string{"no-such-program"}},
		{[]string{"logs", "shop/nobody"}, []string{"shop/nobody"}},
		{[]string{"explain", "shop/nobody", "orders:80"}, []string{"shop/nobody"}},
		{[]string{"explain", from, "orders"}, []string{"orders"}},
		{[]string{"explain", from, "orders:99999"}, []string{"99999"}},
		{[]string{"status", "n9"}, []string{"n9"}},
		{[]string{"nonsense"}, []string{"nonsense"}},
	} {
		sentence(t, strings.Join(tc.args, " "), w.run(t, "", "fairlead", tc.args...), tc.want...)
	}
	// exec passes the command's own exit code and output through.
	if r := w.exec(t, w.clientOn(t, "n1"), "sh", "-c", "echo out; echo err >&2; exit 7"); r.code != 7 || r.stdout != "out\n" || r.stderr != "err\n" {
		t.Errorf("exec: %s", r)
	}
	if r := w.run(t, "typed\n", "fairlead", "exec", from, "--", "cat"); r.code != 0 || r.stdout != "typed\n" {
		t.Errorf("exec with input: %s", r)
	}
	if r := w.run(t, "", "fairlead", "logs", from); r.code != 0 || !strings.Contains(r.stdout, "http ") {
		t.Errorf("logs: %s", r)
	}
}
