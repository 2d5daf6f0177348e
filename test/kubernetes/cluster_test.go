// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/test/kubernetes/bed"
	"github.com/fairlead/fairlead/testnet"
)

// interrupted ends with Ctrl-C: what is being brought up is removed, and the run ends.
var interrupted context.Context

func TestMain(m *testing.M) {
	bed.Init()
	flag.Parse()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	interrupted = ctx
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		_ = leave() // what is left is found by the next run
		os.Exit(130)
	}()
	code := m.Run()
	if err := leave(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// name is that of the scenarios' cluster. It is always the same, so that a run finds what a killed one left.
const name = "scenarios"

// current is the one cluster that is up: two cores carry no second.
var current struct {
	mu      sync.Mutex // held while a cluster comes up or goes down
	cluster *bed.Cluster
	options bed.Options
}

// leave ends the cluster. What is left of one that did not come up, its logs, goes too.
func leave() error {
	current.mu.Lock()
	defer current.mu.Unlock()
	return down()
}

func down() error {
	if current.cluster == nil {
		if os.Geteuid() != 0 {
			return nil // there never was one
		}
		return bed.Remove(name)
	}
	err := current.cluster.Down()
	current.cluster = nil
	return err
}

// The programs: what make build-kubernetes builds, and what make build does.
var programs, own = abs("bin"), abs("../../bin")

func abs(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		panic(err)
	}
	return path
}

// world is a cluster with the means to use it.
type world struct {
	*bed.Cluster
	t testing.TB
	// exec runs the program of examples/shop in a pod, and returns what it printed.
	exec func(pod string, args ...string) (string, error)
}

// enter is the cluster that a scenario asks for: the one that the last scenario had, if it is of the same kind.
func enter(t testing.TB, o bed.Options) *world {
	t.Helper()
	testnet.MustRoot(t)
	o.Name, o.Programs, o.Own = name, programs, own
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	current.mu.Lock()
	defer current.mu.Unlock()
	if current.cluster == nil || !alike(current.options, o) {
		if err := down(); err != nil {
			t.Fatal(err)
		}
		c, err := bed.Up(interrupted, o)
		if err != nil {
			t.Fatal(err)
		}
		current.cluster, current.options = c, o
	}
	w := &world{Cluster: current.cluster, t: t}
	w.exec = w.kubectlExec
	t.Cleanup(w.check)
	w.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: " + namespace + "}")
	return w
}

// alike reports whether a cluster of one kind will do for a scenario that asks for the other.
func alike(a, b bed.Options) bool {
	return a.Nodes == b.Nodes && a.Proxy == b.Proxy && a.DNS == b.DNS && a.Network == b.Network && slices.Equal(a.AgentArgs, b.AgentArgs) &&
		reflect.ValueOf(a.Install).Pointer() == reflect.ValueOf(b.Install).Pointer() && a.Taint == b.Taint && a.Bare == b.Bare && a.NoPodCIDRs == b.NoPodCIDRs
}

// check fails the test if a part of the cluster has ended that should not have. Of a test that has failed it tells what the agents say.
func (w *world) check() {
	for _, n := range w.Nodes {
		if w.t.Failed() && n.Agent != nil {
			said, _ := n.Output(interrupted, own+"/fairlead", "status", "--socket", "/var/lib/fairlead/agent/agent.sock")
			log, _ := n.Output(interrupted, "tail", "-n", "20", n.Agent.Log)
			w.t.Logf("%s\n%s", said, log)
		}
	}
	needs := []*bed.Process{w.Etcd, w.APIServer, w.ControllerManager, w.Scheduler}
	for _, n := range w.Nodes {
		needs = append(needs, n.Containerd, n.Kubelet, n.KubeProxy, n.Agent)
	}
	for _, p := range needs {
		if err := p.Gone(); err != nil {
			w.t.Error(err)
		}
	}
}

// namespace is where the scenarios' pods live.
const namespace = "shop"

// kubectl must succeed.
func (w *world) kubectl(args ...string) string {
	w.t.Helper()
	out, err := w.Kubectl(interrupted, "", args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) apply(manifest string) {
	w.t.Helper()
	if _, err := w.Kubectl(interrupted, manifest, "apply", "-f", "-"); err != nil {
		w.t.Fatal(err)
	}
}

// remove deletes what a scenario made, at once, and waits for it.
func (w *world) remove(kinds ...string) {
	w.t.Helper()
	w.kubectl("-n", namespace, "delete", strings.Join(kinds, ","), "--all", "--grace-period=1", "--timeout=120s")
}

// env tells the program of examples/shop who it is.
const env = `
          env:
            - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}`

// podOn is a pod that answers, on a given node.
func podOn(app, node string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s-%[2]s, namespace: %[3]s, labels: {app: %[1]s, on: %[2]s}}
spec:
      nodeName: %[2]s
      terminationGracePeriodSeconds: 1
      containers:
        - name: shop
          image: %[4]s
          imagePullPolicy: Never
          args: [serve]%[5]s
          ports: [{name: http, containerPort: 8080}, {name: ticks, containerPort: 7007, protocol: UDP}]
          readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
          resources: {requests: {cpu: 100m}}
`, app, node, namespace, bed.ImageShop, env)
}

// wait waits until all pods with a label are ready, and returns them by node.
func (w *world) wait(selector string) map[string]*corev1.Pod {
	w.t.Helper()
	w.kubectl("-n", namespace, "wait", "pod", "--selector="+selector, "--for=condition=Ready", "--timeout=120s")
	list, err := w.Kube.CoreV1().Pods(namespace).List(interrupted, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		w.t.Fatal(err)
	}
	pods := map[string]*corev1.Pod{}
	for _, p := range list.Items {
		pods[p.Spec.NodeName] = &p
	}
	return pods
}

// addr is a pod's address of a family.
func addr(t testing.TB, pod *corev1.Pod, is6 bool) netip.Addr {
	t.Helper()
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && a.Is6() == is6 {
			return a
		}
	}
	t.Fatalf("pod %s has no such address: %v", pod.Name, pod.Status.PodIPs)
	return netip.Addr{}
}

// answer is the line that the program of examples/shop sends back.
type answer struct {
	Pod, Node, Client, Server, Echo string
	Target, Kind, Error             string
}

// summary is what a load of the program of examples/shop came to.
type summary struct {
	Sent, OK, Failed int
	Kinds            map[string]int
	Pods             map[string]int
	Median           float64 `json:"median_ms"`
	P99              float64 `json:"p99_ms"`
	Max              float64 `json:"max_ms"`
	Late             float64 `json:"late_ms"`
	Seconds          float64
	Failures         []failure
}

type failure struct {
	Start time.Time
	Kind  string
	Error string
	Took  float64 `json:"took_ms"`
}

// String is the summary in a line, and the first failures.
func (s *summary) String() string {
	text := fmt.Sprintf("%d sent in %.1f s, %d failed %v, median %.2f ms, p99 %.2f ms, max %.1f ms, at most %.0f ms late",
		s.Sent, s.Seconds, s.Failed, s.Kinds, s.Median, s.P99, s.Max, s.Late)
	for _, f := range s.Failures[:min(5, len(s.Failures))] {
		text += fmt.Sprintf("\n  %s %s after %.1f ms: %s", f.Start.Format("15:04:05.000"), f.Kind, f.Took, f.Error)
	}
	return text
}

// lines decodes one JSON value per line.
func lines[T any](t testing.TB, text string) []T {
	t.Helper()
	var out []T
	for dec := json.NewDecoder(strings.NewReader(text)); dec.More(); {
		var v T
		if err := dec.Decode(&v); err != nil {
			t.Fatalf("decode %q: %v", text, err)
		}
		out = append(out, v)
	}
	return out
}

func (w *world) kubectlExec(pod string, args ...string) (string, error) {
	return w.Kubectl(interrupted, "", append([]string{"-n", namespace, "exec", pod, "--", "/bin/shop"}, args...)...)
}

// ask runs the program of examples/shop in a pod and returns its answers, one for each thing asked. What failed is in them.
func (w *world) ask(pod string, args ...string) []answer {
	w.t.Helper()
	out, err := w.exec(pod, args...)
	if err != nil && out == "" {
		w.t.Fatal(err)
	}
	return lines[answer](w.t, out)
}

// load is a run of the program of examples/shop in a pod that goes on until stop.
type load struct {
	w      *world
	marker string
	out    bytes.Buffer
	err    error
	ended  chan struct{}
}

var loads atomic.Int64

// How long an answer may take. On two processors that twenty streams keep busy it may be seconds late: that is not broken, and what is broken stays so. An
// answer of the DNS that takes longer than a resolver waits is lost.
const (
	patience    = 10 * time.Second
	dnsPatience = 5 * time.Second
)

// start starts a steady load on a URL from a pod. It is bounded, and ends with the test.
func (w *world) start(pod, url string, rate int) *load {
	w.t.Helper()
	return w.load(w.Control, url, func(marker string) []string {
		return w.KubectlCommand("-n", namespace, "exec", pod, "--", "/bin/shop", "get", "-plain", "-rate", strconv.Itoa(rate), "-timeout", patience.String(), "-duration", "14m", marker).Args
	})
}

// load runs on a machine what argv says for a URL that no other load has.
func (w *world) load(on *bed.Machine, url string, argv func(marker string) []string) *load {
	marker := fmt.Sprintf("%s?load=%d-%d", url, os.Getpid(), loads.Add(1))
	return w.run(on, marker, argv(marker))
}

// run runs a program on a machine that starts the program of examples/shop with an argument that no other load has.
func (w *world) run(on *bed.Machine, marker string, argv []string) *load {
	l := &load{w: w, marker: marker, ended: make(chan struct{})}
	cmd := on.Command(argv...)
	cmd.Stdout, cmd.Stderr = &l.out, &l.out
	go func() {
		defer close(l.ended)
		l.err = on.Run(interrupted, cmd)
	}()
	w.t.Cleanup(l.end)
	return l
}

// processes are the numbers of the load's processes. The pods' processes are processes of this machine.
func (l *load) processes() (pids []int) {
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		l.w.t.Error(err)
	}
	for _, e := range entries {
		argv, _ := os.ReadFile(e)
		if bytes.HasPrefix(argv, []byte("/bin/shop\x00")) && bytes.Contains(argv, []byte(l.marker+"\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(e)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// begun waits until the program runs.
func (l *load) begun() {
	l.w.t.Helper()
	eventually(l.w.t, bound, "start of the load "+l.marker, func() error {
		if len(l.processes()) == 0 {
			return errors.New("no process")
		}
		return nil
	})
}

// end tells the program to end and waits for it.
func (l *load) end() {
	for {
		for _, pid := range l.processes() {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
		select {
		case <-l.ended:
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// stop ends the load and returns what it came to.
func (l *load) stop() *summary {
	l.w.t.Helper()
	l.end()
	var exit *exec.ExitError
	if l.err != nil && !errors.As(l.err, &exit) {
		l.w.t.Fatal(l.err)
	}
	head, _, _ := strings.Cut(l.out.String(), "\n") // what follows is kubectl's word on the exit code
	s := lines[*summary](l.w.t, head)
	if len(s) != 1 {
		l.w.t.Fatalf("the load printed %q", l.out.String())
	}
	return s[0]
}

// eventually waits until try succeeds.
func eventually(t testing.TB, limit time.Duration, what string, try func() error) {
	t.Helper()
	if err := within(limit, what, try); err != nil {
		t.Fatal(err)
	}
}

// within waits until try succeeds, on any goroutine.
func within(limit time.Duration, what string, try func() error) error {
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
		}
	}
}
