// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	layout "github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/status"
	"github.com/fairlead/fairlead/testnet"
)

// namespace is where the example shop lives.
const namespace = "shop"

// world is one cluster on this machine and the means to use it.
type world struct {
	dir    layout.Dir
	port   int
	client layout.Client
	kube   kubernetes.Interface
}

// main is the cluster that the scenarios share, started by the first that asks.
var shop struct {
	once  sync.Once
	world *world
	err   error
}

// stateRoot holds the state directories of the scenarios' clusters. Its name is
// fixed, so that a run finds and removes what a killed one left.
var stateRoot = filepath.Join(os.TempDir(), "fairlead-scenarios")

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run() // every scenario says why it skips
	}
	if err := os.MkdirAll(stateRoot, 0o700); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// One run at a time: they share the state root.
	lock, err := os.OpenFile(stateRoot+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lock scenarios:", err)
		return 1
	}
	defer lock.Close()
	build := exec.Command("make", "-s", "build")
	build.Dir = root()
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "make build: %v\n%s", err, out)
		return 1
	}
	removeAll()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		fmt.Fprintln(os.Stderr, "interrupted: removing the scenarios' clusters")
		if err := removeAll(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(130)
	}()
	code := m.Run()
	if err := removeAll(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// removeAll removes every cluster of the scenarios, of this run or of one that
// was killed.
func removeAll() error {
	entries, _ := os.ReadDir(stateRoot)
	var errs error
	for _, e := range entries {
		dir := filepath.Join(stateRoot, e.Name())
		if out, err := exec.Command(binary("fairlead"), "down", "--state", dir, "--purge").CombinedOutput(); err != nil {
			errs = errors.Join(errs, fmt.Errorf("remove %s: %w\n%s", dir, err, out))
		}
		os.RemoveAll(dir)
	}
	os.Remove(stateRoot)
	return errs
}

// root is the repository's directory.
func root() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}

// binary is the path of a program of the project.
func binary(name string) string { return filepath.Join(root(), "bin", name) }

// newWorld names a cluster that is not started, with a free port for its API.
func newWorld(t testing.TB, name string) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		testnet.Skip(t, "needs root to make network namespaces")
	}
	dir, err := layout.Open(filepath.Join(stateRoot, name))
	if err != nil {
		t.Fatal(err)
	}
	return &world{dir: dir, port: freePort(t), client: dir.Client()}
}

// freePort finds a free TCP port on loopback, below those that the kernel gives
// to outgoing connections: a cluster that is down for a while must find it free.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(20_000+rand.IntN(12_000))))
		if err == nil {
			defer ln.Close()
			return ln.Addr().(*net.TCPAddr).Port
		}
	}
	t.Fatal("no free port")
	return 0
}

// up runs fairlead up --detach.
func (w *world) up(t testing.TB, args ...string) result {
	t.Helper()
	return w.run(t, "", "fairlead", append([]string{"up", "--detach", "--state", string(w.dir), "--api-port", strconv.Itoa(w.port)}, args...)...)
}

// connect makes the API client, once there is a kubeconfig.
func (w *world) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", w.dir.Kubeconfig())
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 1000, 1000
	w.kube, err = kubernetes.NewForConfig(config)
	return err
}

// shared returns the cluster with the shop in it, which the first scenario starts.
func shared(t testing.TB) *world {
	t.Helper()
	w := newWorld(t, "shared")
	shop.once.Do(func() {
		shop.err = errors.New("the shared cluster did not start; see the first scenario")
		begin := time.Now()
		if r := w.up(t); r.code != 0 {
			t.Fatalf("up: %s", r)
		}
		up := time.Since(begin)
		if err := w.connect(); err != nil {
			t.Fatal(err)
		}
		w.kubectl(t, "apply", "-f", filepath.Join(root(), "examples/shop"))
		w.rollout(t)
		t.Logf("cluster up after %.1f s, shop ready after %.1f s", up.Seconds(), time.Since(begin).Seconds())
		shop.world, shop.err = w, nil
	})
	if shop.err != nil {
		t.Fatal(shop.err)
	}
	return shop.world
}

// rollout waits until every Deployment of the shop is complete.
func (w *world) rollout(t testing.TB) {
	t.Helper()
	for _, d := range []string{"catalog", "orders-v1", "orders-v2", "front", "ticker", "client"} {
		w.kubectl(t, "-n", namespace, "rollout", "status", "deployment", d, "--timeout=90s")
	}
}

// result is what a command did.
type result struct {
	args           []string
	stdout, stderr string
	code           int
	took           time.Duration
}

// String shows the whole of it.
func (r result) String() string {
	return fmt.Sprintf("%s: exit code %d after %v\n%s%s", strings.Join(r.args, " "), r.code, r.took.Round(time.Millisecond), r.stdout, r.stderr)
}

// command prepares a program of the project (or, with a path, any other), set up
// to use this cluster.
func (w *world) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if !strings.Contains(name, "/") {
		name = binary(name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "FAIRLEAD_STATE="+string(w.dir), "KUBECONFIG="+w.dir.Kubeconfig())
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs a program with a bound in time.
func (w *world) run(t testing.TB, stdin, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := w.command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	begin := time.Now()
	err := cmd.Run()
	r := result{append([]string{filepath.Base(name)}, args...), stdout.String(), stderr.String(), cmd.ProcessState.ExitCode(), time.Since(begin)}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", r, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%s: did not end", r)
	}
	return r
}

// must is run for what must succeed; it returns the standard output.
func (w *world) must(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := w.run(t, "", name, args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.stdout
}

// kubectl runs the kubectl of fairlead-server, which must succeed.
func (w *world) kubectl(t testing.TB, args ...string) string {
	t.Helper()
	return w.must(t, "fairlead-server", append([]string{"kubectl"}, args...)...)
}

// apply applies a manifest, which must succeed.
func (w *world) apply(t testing.TB, manifest string) {
	t.Helper()
	if r := w.run(t, manifest, "fairlead-server", "kubectl", "apply", "-f", "-"); r.code != 0 {
		t.Fatal(r)
	}
}

// exec runs a command in a pod of the shop.
func (w *world) exec(t testing.TB, pod string, args ...string) result {
	t.Helper()
	return w.run(t, "", "fairlead", append([]string{"exec", namespace + "/" + pod, "--"}, args...)...)
}

// in runs a command in a pod of the shop, which must succeed.
func (w *world) in(t testing.TB, pod string, args ...string) string {
	t.Helper()
	r := w.exec(t, pod, args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.stdout
}

// onNode runs a command in a node's network namespace.
func (w *world) onNode(t testing.TB, node string, args ...string) result {
	t.Helper()
	return w.run(t, "", "fairlead", append([]string{"exec", "--node", node, "--"}, args...)...)
}

// pods returns the running pods of a namespace by label selector, in the order of
// their names.
func (w *world) pods(t testing.TB, selector string) []corev1.Pod {
	t.Helper()
	list, err := w.kube.CoreV1().Pods(namespace).List(context.Background(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		t.Fatal(err)
	}
	var out []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil && p.Status.PodIP != "" {
			out = append(out, p)
		}
	}
	return out
}

// clientOn returns the name of the client pod on a node.
func (w *world) clientOn(t testing.TB, node string) string {
	t.Helper()
	for _, p := range w.pods(t, "app=client") {
		if p.Spec.NodeName == node {
			return p.Name
		}
	}
	t.Fatalf("no client pod on node %s", node)
	return ""
}

// service returns a Service of the shop.
func (w *world) service(t testing.TB, name string) *corev1.Service {
	t.Helper()
	s, err := w.kube.CoreV1().Services(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// report asks a node's agent for its report.
func (w *world) report(t testing.TB, node string) *status.Report {
	t.Helper()
	r, err := status.Dial(w.dir.Node(node).AgentSocket()).Report(context.Background())
	if err != nil {
		t.Fatalf("report of %s: %v", node, err)
	}
	return r
}

// nodes are the names of the shared cluster's nodes.
var nodes = []string{"n1", "n2", "n3"}

// eventually waits until try succeeds.
func eventually(t testing.TB, limit time.Duration, what string, try func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// answer is the line that a pod of the shop sends back.
type answer struct {
	Pod, Node, Version, Client, Server string
	Kind, Error                        string
	Upstream                           []answer
}

// summary is what a load of the shop program came to.
type summary struct {
	Sent, OK, Failed      int
	Kinds                 map[string]int
	Pods, Versions, Nodes map[string]int
	Median                float64 `json:"median_ms"`
	P99                   float64 `json:"p99_ms"`
	Max                   float64 `json:"max_ms"`
	Late                  float64 `json:"late_ms"`
	Seconds               float64
	Failures              []failure
}

// failure is one request that failed.
type failure struct {
	Start time.Time
	Kind  string
	Error string
	Took  float64 `json:"took_ms"`
}

// String is the summary in a line.
func (s *summary) String() string {
	text := fmt.Sprintf("%d sent in %.1f s, %d failed %v, median %.2f ms, p99 %.2f ms, max %.2f ms, at most %.0f ms late",
		s.Sent, s.Seconds, s.Failed, s.Kinds, s.Median, s.P99, s.Max, s.Late)
	for i, f := range s.Failures {
		if i == 5 {
			text += "\n  ..."
			break
		}
		text += fmt.Sprintf("\n  %s %s after %.1f ms: %s", f.Start.Format("15:04:05.000"), f.Kind, f.Took, f.Error)
	}
	return text
}

// lines decodes one JSON value per line.
func lines[T any](t testing.TB, text string) []T {
	t.Helper()
	var out []T
	dec := json.NewDecoder(strings.NewReader(text))
	for dec.More() {
		var v T
		if err := dec.Decode(&v); err != nil {
			t.Fatalf("decode %q: %v", text, err)
		}
		out = append(out, v)
	}
	return out
}

// one decodes the only line.
func one[T any](t testing.TB, text string) T {
	t.Helper()
	all := lines[T](t, text)
	if len(all) != 1 {
		t.Fatalf("%d lines, want 1: %q", len(all), text)
	}
	return all[0]
}

// load is a shop command that runs in a pod in the background.
type load struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	done           chan struct{}
}

// start starts a shop command in a pod; the test's end stops it.
func (w *world) start(t testing.TB, pod string, args ...string) *load {
	t.Helper()
	l := &load{done: make(chan struct{})}
	l.cmd = w.command(context.Background(), "fairlead", append([]string{"exec", namespace + "/" + pod, "--", "shop"}, args...)...)
	l.cmd.Stdout, l.cmd.Stderr = &l.stdout, &l.stderr
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		l.cmd.Wait()
		close(l.done)
	}()
	t.Cleanup(func() {
		select {
		case <-l.done:
		default:
			l.cmd.Process.Kill()
			<-l.done
		}
	})
	return l
}

// wait returns the summary once the command has ended by itself.
func (l *load) wait(t testing.TB) *summary {
	t.Helper()
	select {
	case <-l.done:
	case <-time.After(5 * time.Minute):
		t.Fatalf("%v does not end", l.cmd.Args)
	}
	if l.stdout.Len() == 0 {
		t.Fatalf("%v printed nothing: %s", l.cmd.Args, l.stderr.String())
	}
	return one[*summary](t, l.stdout.String())
}

// stop ends the command, as SIGTERM would, and returns the summary so far.
func (l *load) stop(t testing.TB) *summary {
	t.Helper()
	l.cmd.Process.Signal(syscall.SIGTERM)
	return l.wait(t)
}

// host is the address of an address and port.
func host(hostport string) string {
	h, _, _ := net.SplitHostPort(hostport)
	return h
}
