// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/apiserver"
	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/pki"
)

// api is the API server that the tests of this process share, started by the first that asks.
var api struct {
	once   sync.Once
	client kubernetes.Interface
	err    error
}

// client returns a client of a real API server in this process. It ends with the process.
func client(t *testing.T) kubernetes.Interface {
	t.Helper()
	api.once.Do(func() {
		klog.SetSlogLogger(quietLog())
		api.client, api.err = startServer()
	})
	if api.err != nil {
		t.Fatal(api.err)
	}
	return api.client
}

func startServer() (kubernetes.Interface, error) {
	dir := filepath.Join(stateRoot, "api")
	authority, err := pki.Ensure(filepath.Join(dir, "pki"), pki.Options{})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server, err := apiserver.New(context.Background(), apiserver.Config{
		StateDir: dir, Listeners: []net.Listener{listener}, PKI: authority, Logger: quietLog(),
		ServiceCIDRs: cluster.DefaultParams().ServiceCIDRs,
	})
	if err != nil {
		return nil, err
	}
	go server.Run(context.Background())
	<-server.Ready()
	pair, err := authority.Client("admin", "system:masters")
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(&rest.Config{Host: "https://" + listener.Addr().String(), QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: authority.CA, CertData: pair.Cert, KeyData: pair.Key}})
}

// fakeAgent is a node's agent as far as the runner asks it: it acknowledges the end of an address when the test lets it.
type fakeAgent struct {
	asked chan string   // gets every address that was asked for
	let   chan struct{} // one value per answer
}

// serveAgent listens where the node's agent would.
func serveAgent(t *testing.T, path string) *fakeAgent {
	t.Helper()
	a := &fakeAgent{asked: make(chan string, 100), let: make(chan struct{}, 100)}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asked <- r.URL.Query().Get("gone")
		select {
		case <-a.let:
		case <-r.Context().Done():
		}
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return a
}

// scene is one node with a runner and a namespace for one test's pods.
type scene struct {
	t         *testing.T
	client    kubernetes.Interface
	namespace string
	host      *host
	runner    *runner
	agent     *fakeAgent
	count     *counters
	stop      func()
}

// newScene starts a runner for one node, with a real API server, the real CNI plugin, and an agent that is the test.
func newScene(t *testing.T) *scene {
	t.Helper()
	h := newHost(t)
	h.configure(t)
	c := client(t)
	ns, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Every scene has a node name of its own: they share the API server.
	h.name = ns.Name
	s := &scene{t: t, client: c, namespace: ns.Name, host: h}
	if err := os.MkdirAll(string(h.dir.Node(h.name)), 0o700); err != nil {
		t.Fatal(err)
	}
	s.agent = serveAgent(t, h.dir.Node(h.name).AgentSocket())
	s.run()
	t.Cleanup(func() { s.stop() })
	return s
}

// run starts the runner; stop ends it as a supervisor does that goes down.
func (s *scene) run() {
	s.t.Helper()
	log := quietLog()
	if os.Getenv("FAIRLEAD_LAB_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	s.count = newCounters()
	hosts := map[string]*host{s.host.name: s.host}
	s.runner = newRunner(s.client, hosts, newAgents(s.host.dir, []string{s.host.name}, s.count), s.count, log)
	watch, stopWatch := context.WithCancel(context.Background())
	work, stopWork := context.WithCancel(context.Background())
	if err := s.runner.start(watch); err != nil {
		s.t.Fatal(err)
	}
	if err := s.runner.forget(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	if err := s.host.network.forget(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.runner.open(work, s.host.name)
	s.stop = sync.OnceFunc(func() {
		stopWork()
		s.runner.wait()
		stopWatch()
	})
}

// create stores a pod that is bound to the node.
func (s *scene) create(name string, spec corev1.PodSpec) *corev1.Pod {
	s.t.Helper()
	spec.NodeName = s.host.name
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			list[i].Image = "host"
		}
	}
	p, err := s.client.CoreV1().Pods(s.namespace).Create(s.t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *scene) get(name string) *corev1.Pod {
	s.t.Helper()
	p, err := s.client.CoreV1().Pods(s.namespace).Get(s.t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// await waits until the pod's status is as the line says; its address, if any, is written IP.
func (s *scene) await(name, want string) *corev1.Pod {
	s.t.Helper()
	var p *corev1.Pod
	eventually(s.t, func() string {
		p = s.get(name)
		if p == nil {
			return "pod " + name + " is gone"
		}
		line := summary(p.Status)
		if p.Status.PodIP != "" {
			line = strings.Replace(line, p.Status.PodIP, "IP", 1)
		}
		if line == want {
			return ""
		}
		return name + ":\n got " + line + "\nwant " + want
	})
	return p
}

// awaitGone waits until the object is gone.
func (s *scene) awaitGone(name string) {
	s.t.Helper()
	eventually(s.t, func() string {
		if p := s.get(name); p != nil {
			return "pod is still there: " + summary(p.Status)
		}
		return ""
	})
}

func (s *scene) delete(name string, grace int64) {
	s.t.Helper()
	err := s.client.CoreV1().Pods(s.namespace).Delete(s.t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &grace})
	if err != nil {
		s.t.Fatal(err)
	}
}

// log returns what a run of a container has written.
func (s *scene) log(p *corev1.Pod, container string, run int) string {
	s.t.Helper()
	b, err := os.ReadFile(runLog(s.host.node.Pod(string(p.UID)), container, run))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// awaitLog waits until container a's first run has written want. A test that sends SIGTERM to a shell has it say so once its trap is set.
func (s *scene) awaitLog(p *corev1.Pod, want string) {
	s.t.Helper()
	eventually(s.t, func() string {
		if got := s.log(p, "a", 1); got != want {
			return fmt.Sprintf("log %q, want %q", got, want)
		}
		return ""
	})
}

// server is a container that answers HTTP: this program, see serveHTTP.
func server(name string, probes func(*corev1.Container)) corev1.Container {
	own, _ := os.Executable()
	c := corev1.Container{
		Name: name, Command: []string{own}, Env: []corev1.EnvVar{{Name: serving, Value: ":8080"}},
		Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
	}
	if probes != nil {
		probes(&c)
	}
	return c
}

func httpProbe(path string) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("http")}}, PeriodSeconds: 1, FailureThreshold: 1}
}

func execProbe(script string) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", script}}}, PeriodSeconds: 1, FailureThreshold: 1}
}

// TestPods: from the manifest to the status, through real processes.
func TestPods(t *testing.T) {
	s := newScene(t)
	const ready = "T T T T"
	const unready = "T T F:ContainersNotReady F:ContainersNotReady"
	always := corev1.ContainerRestartPolicyAlways
	one := func(c corev1.Container) corev1.PodSpec { return corev1.PodSpec{Containers: []corev1.Container{c}} }
	withPolicy := func(p corev1.RestartPolicy, spec corev1.PodSpec) corev1.PodSpec {
		spec.RestartPolicy = p
		return spec
	}
	for _, tc := range []struct {
		name string
		spec corev1.PodSpec
		want string
		log  string // of container a's first run
	}{
		{"runs", one(shell("a", "echo on; exec sleep 1000")), "Running IP " + ready + " | a 0 running ready", "on\n"},
		{"two", corev1.PodSpec{Containers: []corev1.Container{shell("a", "exec sleep 1000"), shell("b", "exec sleep 1000")}},
			"Running IP " + ready + " | a 0 running ready | b 0 running ready", ""},
		{"succeeds", withPolicy(corev1.RestartPolicyNever, one(shell("a", "echo done"))), "Succeeded IP F T F:PodCompleted F:PodCompleted | a 0 terminated:Completed:0", "done\n"},
		{"fails", withPolicy(corev1.RestartPolicyNever, one(shell("a", "exit 7"))), "Failed IP F T F:PodFailed F:PodFailed | a 0 terminated:Error:7", ""},
		{"tries-again", withPolicy(corev1.RestartPolicyOnFailure, one(shell("a", "exit 7"))), "Running IP " + unready + " | a 1 waiting:CrashLoopBackOff last:Error:7", ""},
		{"crashes", one(shell("a", "exit 0")), "Running IP " + unready + " | a 1 waiting:CrashLoopBackOff last:Completed:0", ""},
		{"typo", one(corev1.Container{Name: "a", Command: []string{"no-such-program"}}), "Running IP " + unready + " | a 1 waiting:RunContainerError last:StartError:128",
			"exec: \"no-such-program\": executable file not found in $PATH\n"},
		{"typo-once", withPolicy(corev1.RestartPolicyNever, one(corev1.Container{Name: "a", Command: []string{"no-such-program"}})),
			"Failed IP F T F:PodFailed F:PodFailed | a 0 terminated:StartError:128", ""},
		{"no-command", one(corev1.Container{Name: "a"}), "Running IP " + unready + " | a 1 waiting:RunContainerError last:StartError:128", ""},
		{"no-config", one(corev1.Container{Name: "a", Command: []string{"true"}, EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}}}}}),
			"Pending IP " + unready + " | a 0 waiting:CreateContainerConfigError", ""},
		{"init", corev1.PodSpec{InitContainers: []corev1.Container{shell("i", "hostname test-was-here"), shell("j", "test $(hostname) = test-was-here")},
			Containers: []corev1.Container{shell("a", "hostname; exec sleep 1000")}},
			"Running IP " + ready + " | i 0 terminated:Completed:0 ready | j 0 terminated:Completed:0 ready | a 0 running ready", "test-was-here\n"},
		{"init-fails", withPolicy(corev1.RestartPolicyNever, corev1.PodSpec{InitContainers: []corev1.Container{shell("i", "exit 3")}, Containers: []corev1.Container{shell("a", "true")}}),
			"Failed IP F T F:PodFailed F:PodFailed | i 0 terminated:Error:3 | a 0 waiting:PodInitializing", ""},
		{"sidecar", withPolicy(corev1.RestartPolicyNever, corev1.PodSpec{
			InitContainers: []corev1.Container{func() corev1.Container {
				c := shell("s", "trap 'exit 0' TERM; hostname traps; while :; do sleep 0.01; done")
				c.RestartPolicy = &always
				return c
			}()},
			Containers: []corev1.Container{shell("a", "while [ $(hostname) != traps ]; do sleep 0.01; done")}}),
			"Succeeded IP F T F:PodCompleted F:PodCompleted | s 0 terminated:Completed:0 | a 0 terminated:Completed:0", ""},
		{"http-ready", one(server("a", func(c *corev1.Container) { c.ReadinessProbe = httpProbe("/ok") })), "Running IP " + ready + " | a 0 running ready", ""},
		{"http-unready", one(server("a", func(c *corev1.Container) { c.ReadinessProbe = httpProbe("/bad") })), "Running IP " + unready + " | a 0 running", ""},
		{"http-startup", one(server("a", func(c *corev1.Container) {
			c.StartupProbe, c.LivenessProbe = httpProbe("/ok"), httpProbe("/ok")
			c.StartupProbe.FailureThreshold = 30
		})), "Running IP " + ready + " | a 0 running ready", ""},
		{"tcp-ready", one(server("a", func(c *corev1.Container) {
			c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}}}
		})), "Running IP " + ready + " | a 0 running ready", ""},
		{"exec-unready", one(func() corev1.Container {
			c := shell("a", "exec sleep 1000")
			c.ReadinessProbe = execProbe("echo no; exit 1")
			return c
		}()), "Running IP " + unready + " | a 0 running", ""},
		{"dies-by-liveness", withPolicy(corev1.RestartPolicyNever, one(func() corev1.Container {
			c := shell("a", "exec sleep 1000")
			c.LivenessProbe = execProbe("exit 1")
			return c
		}())), "Failed IP F T F:PodFailed F:PodFailed | a 0 terminated:Error:143", ""},
		{"env", one(corev1.Container{Name: "a", Command: []string{"sh", "-c", "echo $(WHO) $NODE; exec sleep 1000"}, WorkingDir: "/etc", Env: []corev1.EnvVar{
			{Name: "WHO", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
			{Name: "NODE", Value: "x"}}}), "Running IP " + ready + " | a 0 running ready", "env x\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			one := *s
			one.t = t
			one.create(tc.name, tc.spec)
			p := one.await(tc.name, tc.want)
			if tc.log != "" {
				one.awaitLog(p, tc.log)
			}
			if want := "process://" + string(p.UID) + "/"; p.Status.ContainerStatuses[0].ContainerID != "" && !strings.HasPrefix(p.Status.ContainerStatuses[0].ContainerID, want) {
				t.Errorf("container ID %s", p.Status.ContainerStatuses[0].ContainerID)
			}
			one.delete(tc.name, 0)
			one.awaitGone(tc.name)
		})
	}
}

// TestHooks: postStart comes before the container counts as started, preStop before SIGTERM, and one that fails says so. The API server refuses hooks as
// yet, so the worker is given a pod that has them.
func TestHooks(t *testing.T) {
	s := newScene(t)
	hook := func(script string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", script}}}
	}
	const waits = "while [ $(hostname) != hooked ]; do sleep 0.01; done; trap 'hostname; exit 0' TERM; echo started; while :; do sleep 0.01; done"
	for _, tc := range []struct {
		name  string
		c     corev1.Container
		life  corev1.Lifecycle
		want  string
		log   string
		event string
	}{
		{"post-start", shell("a", waits), corev1.Lifecycle{PostStart: hook("hostname hooked")}, "Running IP T T T T | a 0 running ready", "started\nhooked\n", ""},
		{"pre-stop", shell("a", "hostname hooked; "+waits), corev1.Lifecycle{PreStop: hook("hostname stopping")}, "Running IP T T T T | a 0 running ready", "started\nstopping\n", ""},
		{"both-sleep", shell("a", "hostname hooked; "+waits), corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{}}, PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{}}},
			"Running IP T T T T | a 0 running ready", "started\nhooked\n", ""},
		{"pre-stop-fails", shell("a", "hostname hooked; "+waits), corev1.Lifecycle{PreStop: hook("exit 4")}, "Running IP T T T T | a 0 running ready", "started\nhooked\n", "FailedPreStopHook"},
		{"post-start-fails", shell("a", "exec sleep 1000"), corev1.Lifecycle{PostStart: hook("exit 5")}, "Running IP T T F:ContainersNotReady F:ContainersNotReady | a 1 waiting:CrashLoopBackOff last:Error:143", "", "FailedPostStartHook"},
	} {
		p := s.createElsewhere(tc.name, corev1.PodSpec{Containers: []corev1.Container{tc.c}})
		p.Spec.Containers[0].Lifecycle = &tc.life
		w := newWorker(s.runner.tools, s.host, p)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			w.run(context.Background())
		}()
		s.await(tc.name, tc.want)
		if tc.log != "" {
			s.awaitLog(p, "started\n")
		}
		s.agent.let <- struct{}{}
		s.delete(tc.name, 30)
		w.update(s.get(tc.name))
		log := runLog(s.host.node.Pod(string(p.UID)), "a", 1)
		<-ended
		if b, err := os.ReadFile(log); tc.log != "" && string(b) != tc.log {
			t.Errorf("%s: log %q %v, want %q", tc.name, b, err, tc.log)
		}
		s.awaitGone(tc.name)
		if tc.event != "" {
			s.awaitEvent(tc.name, tc.event)
		}
	}
}

// createElsewhere stores a pod that no runner takes.
func (s *scene) createElsewhere(name string, spec corev1.PodSpec) *corev1.Pod {
	own := *s.host
	own.name = s.host.name + "-elsewhere"
	other := *s
	other.host = &own
	return other.create(name, spec)
}

// awaitEvent waits for an event about a pod.
func (s *scene) awaitEvent(name, reason string) {
	s.t.Helper()
	eventually(s.t, func() string {
		list, err := s.client.CoreV1().Events(s.namespace).List(s.t.Context(), metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		var have []string
		for _, e := range list.Items {
			if e.InvolvedObject.Name == name && e.Reason == reason {
				return ""
			}
			have = append(have, e.InvolvedObject.Name+" "+e.Reason)
		}
		return fmt.Sprintf("no event %s among %v", reason, have)
	})
}

// TestStopWaitsForKernels: SIGTERM comes only after the node's agent has acknowledged that no Service leads to the pod any more; the pod serves until
// then; and its object goes last.
func TestStopWaitsForKernels(t *testing.T) {
	s := newScene(t)
	s.create("web", corev1.PodSpec{Containers: []corev1.Container{shell("a", "trap 'echo term; exit 0' TERM; echo on; while :; do sleep 0.01; done")}})
	p := s.await("web", "Running IP T T T T | a 0 running ready")
	s.awaitLog(p, "on\n")
	s.delete("web", 30)
	if got := <-s.agent.asked; got != p.Status.PodIP {
		t.Errorf("the agent was asked for %s, not %s", got, p.Status.PodIP)
	}
	w := s.runner.find(s.namespace, "web")
	proc, err := w.running("a")
	if err != nil {
		t.Fatal(err)
	}
	// The container goes on meanwhile.
	if code, out, err := proc.exec(t.Context(), []string{"echo", "served"}); code != 0 || out != "served\n" || err != nil {
		t.Errorf("exec while it waits: %d %q %v", code, out, err)
	}
	if log := s.log(p, "a", 1); strings.Contains(log, "term") {
		t.Errorf("SIGTERM came before the acknowledgement: %q", log)
	}
	if p := s.get("web"); p == nil || p.DeletionTimestamp == nil || p.Status.PodIP == "" {
		t.Errorf("pod while it waits: %+v", p)
	}
	s.agent.let <- struct{}{}
	<-proc.done
	if proc.result.code != 0 {
		t.Errorf("ended with %+v", proc.result)
	}
	s.awaitGone("web")
	if n := s.count.snapshot()["pod_stop_waits_acknowledged"]; n != 1 {
		t.Errorf("%d acknowledgements counted", n)
	}
	if _, err := os.Stat(string(s.host.podGroup(p))); err == nil {
		t.Error("control group is left")
	}
	eventually(t, func() string {
		if _, err := os.Stat(s.host.node.Pod(string(p.UID))); err == nil {
			return "pod directory is left"
		}
		return ""
	})
}

// TestStopIsBounded: an agent that never answers, or is not there, does not keep a pod from ending.
func TestStopIsBounded(t *testing.T) {
	s := newScene(t)
	s.create("web", corev1.PodSpec{Containers: []corev1.Container{shell("a", "exec sleep 1000")}})
	s.await("web", "Running IP T T T T | a 0 running ready")
	s.delete("web", 30)
	s.awaitGone("web")
	if n := s.count.snapshot()["pod_stop_wait_timeouts"]; n != 1 {
		t.Errorf("%d timeouts counted", n)
	}
	os.Remove(s.host.dir.Node(s.host.name).AgentSocket())
	for _, idle := range s.runner.agents.nodes {
		idle.CloseIdleConnections()
	}
	s.create("web", corev1.PodSpec{Containers: []corev1.Container{shell("a", "exec sleep 1000")}})
	s.await("web", "Running IP T T T T | a 0 running ready")
	s.delete("web", 30)
	s.awaitGone("web")
	if n := s.count.snapshot()["pod_stop_wait_agent_down"]; n != 1 {
		t.Errorf("%d agents counted as down", n)
	}
}

// TestStopByForce: a shorter grace period, or none, cuts an end short that is under way.
func TestStopByForce(t *testing.T) {
	s := newScene(t)
	deaf := shell("a", "trap '' TERM; echo on; while :; do sleep 1; done")
	for _, grace := range []int64{1, 0} {
		s.create("web", corev1.PodSpec{Containers: []corev1.Container{deaf}})
		p := s.await("web", "Running IP T T T T | a 0 running ready")
		s.awaitLog(p, "on\n")
		s.agent.let <- struct{}{}
		s.delete("web", 3600)
		<-s.agent.asked
		s.delete("web", grace)
		s.awaitGone("web")
		eventually(t, func() string {
			if _, err := os.Stat(string(s.host.podGroup(p))); err == nil {
				return "control group is left"
			}
			return ""
		})
	}
}

// TestSandboxLost: a pod whose first process was killed is made anew, with another address.
func TestSandboxLost(t *testing.T) {
	s := newScene(t)
	s.create("web", corev1.PodSpec{Containers: []corev1.Container{shell("a", "exec sleep 1000")}})
	before := s.await("web", "Running IP T T T T | a 0 running ready")
	w := s.runner.find(s.namespace, "web")
	w.mu.Lock()
	w.live.proc.Kill()
	w.mu.Unlock()
	after := s.await("web", "Running IP T T T T | a 1 running last:Error:137 ready")
	if before.Status.PodIP == after.Status.PodIP {
		t.Errorf("the new sandbox has the old address %s", after.Status.PodIP)
	}
	s.delete("web", 0)
	s.awaitGone("web")
}

// TestConfigMapComesLater: a container that waits for a ConfigMap starts when it is there, and that is no restart.
func TestConfigMapComesLater(t *testing.T) {
	s := newScene(t)
	s.create("web", corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Command: []string{"sh", "-c", "echo $(key); exec sleep 1000"},
		EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "late"}}}}}}})
	p := s.await("web", "Pending IP T T F:ContainersNotReady F:ContainersNotReady | a 0 waiting:CreateContainerConfigError")
	if m := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(m, `configmaps "late" not found`) {
		t.Errorf("message %q", m)
	}
	_, err := s.client.CoreV1().ConfigMaps(s.namespace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}, Data: map[string]string{"key": "came"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p = s.await("web", "Running IP T T T T | a 0 running ready")
	eventually(t, func() string { return strings.TrimPrefix(s.log(p, "a", 1), "came\n") })
	s.delete("web", 0)
	s.awaitGone("web")
}

// TestRestartOfTheNode: pods of an earlier run are first taken out of service, then made anew; those that had ended stay as they were.
func TestRestartOfTheNode(t *testing.T) {
	s := newScene(t)
	s.create("web", corev1.PodSpec{Containers: []corev1.Container{shell("a", "exec sleep 1000")}})
	s.create("done", corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{shell("a", "true")}})
	before := s.await("web", "Running IP T T T T | a 0 running ready")
	done := s.await("done", "Succeeded IP F T F:PodCompleted F:PodCompleted | a 0 terminated:Completed:0")
	s.stop()
	if p := s.get("web"); p == nil || p.Status.PodIP != before.Status.PodIP {
		t.Fatalf("the end of the node changed the pod: %+v", p)
	}
	if left := s.host.group.Child("pods", string(before.UID)).Processes(); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	watch, err := s.client.CoreV1().Pods(s.namespace).Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=web", ResourceVersion: before.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	s.run()
	first := (<-watch.ResultChan()).Object.(*corev1.Pod)
	if got := summary(first.Status); got != "Running  F T F:ContainersNotReady F:ContainersNotReady | a 0 waiting:ContainerCreating last:Unknown:255" {
		t.Errorf("first news after the restart: %s", got)
	}
	after := s.await("web", "Running IP T T T T | a 1 running last:Unknown:255 ready")
	if !after.Status.StartTime.Equal(before.Status.StartTime) || after.Status.PodIP == before.Status.PodIP {
		t.Errorf("started %v, address %s; before %v %s", after.Status.StartTime, after.Status.PodIP, before.Status.StartTime, before.Status.PodIP)
	}
	if p := s.get("done"); p.ResourceVersion != done.ResourceVersion {
		t.Errorf("a pod that had ended was written to: %s", summary(p.Status))
	}
	s.delete("web", 0)
	s.delete("done", 0)
	s.awaitGone("web")
	s.awaitGone("done")
}

// TestSilentWhenIdle: a pod that does not change is not written to.
func TestSilentWhenIdle(t *testing.T) {
	s := newScene(t)
	s.create("web", corev1.PodSpec{Containers: []corev1.Container{server("a", func(c *corev1.Container) {
		c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = httpProbe("/ok"), httpProbe("/ok"), httpProbe("/ok")
		c.StartupProbe.FailureThreshold = 30
	})}})
	p := s.await("web", "Running IP T T T T | a 0 running ready")
	w := s.runner.find(s.namespace, "web")
	// News of the object that change nothing for the node, as many as you like.
	for i := range 5 {
		patch, _ := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{"n": fmt.Sprint(i)}}})
		var err error
		if p, err = s.client.CoreV1().Pods(s.namespace).Patch(t.Context(), "web", "application/merge-patch+json", patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() string {
		if w.public.newest().ResourceVersion != p.ResourceVersion {
			return "the worker has not seen the last version"
		}
		return ""
	})
	if err := w.public.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := s.get("web"); now.ResourceVersion != p.ResourceVersion {
		t.Errorf("the status was written again: %s", summary(now.Status))
	}
	s.delete("web", 0)
	s.awaitGone("web")
}

// TestFind: commands and logs find the container that is meant.
func TestFind(t *testing.T) {
	s := newScene(t)
	always := corev1.ContainerRestartPolicyAlways
	side := shell("s", "echo side; exec sleep 1000")
	side.RestartPolicy = &always
	s.create("web", corev1.PodSpec{InitContainers: []corev1.Container{shell("i", "echo init"), side},
		Containers: []corev1.Container{shell("a", "echo a; exec sleep 1000"), shell("b", "echo b; exec sleep 1000")}})
	s.await("web", "Running IP T T T T | i 0 terminated:Completed:0 ready | s 0 running ready | a 0 running ready | b 0 running ready")
	w := s.runner.find(s.namespace, "web")
	for _, tc := range []struct {
		container string
		previous  bool
		runs      string // the container that a command is run in
		log       string
		err       string
	}{
		{"", false, "a", "a\n", ""},
		{"a", false, "a", "a\n", ""},
		{"b", false, "b", "b\n", ""},
		{"s", false, "s", "side\n", ""},
		{"i", false, "", "init\n", ""},
		{"x", false, "", "", `no container named "x"`},
		{"a", true, "a", "", "no previous run"},
	} {
		p, err := w.running(tc.container)
		if (err == nil) != (tc.runs != "") || err == nil && p.name != tc.runs {
			t.Errorf("running(%q): %v %v, want %q", tc.container, p, err, tc.runs)
		}
		logs, err := w.logsOf(tc.container, tc.previous)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("logs of %q: %v, want %q", tc.container, err, tc.err)
			}
			continue
		}
		if err != nil || len(logs.Files) != 1 {
			t.Fatalf("logs of %q: %v %v", tc.container, logs, err)
		}
		eventually(t, func() string {
			b, _ := os.ReadFile(logs.Files[0])
			return strings.TrimPrefix(string(b), tc.log)
		})
	}
	status := s.runner.status()
	if len(status) != 1 || status[0].Pause == 0 || status[0].Phase != "Running" || len(status[0].Addrs) != 1 || !netip.MustParsePrefix("10.244.1.0/24").Contains(status[0].Addrs[0]) {
		t.Errorf("status %+v", status)
	}
	if s.runner.find(s.namespace, "nobody") != nil {
		t.Error("a pod was found that is not there")
	}
	s.delete("web", 0)
	s.awaitGone("web")
}

// TestAPINode: the Node object and its Lease say what is so, and are written only when that changes.
func TestAPINode(t *testing.T) {
	h := newHost(t)
	c := client(t)
	h.name = "node-a"
	n := newAPINode(c, h, "v1.2.3", quietLog())
	get := func() *corev1.Node {
		node, err := c.CoreV1().Nodes().Get(t.Context(), h.name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return node
	}
	for range 2 { // registering again is fine
		if _, err := n.register(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	node := get()
	if node.Labels[corev1.LabelHostname] != "node-a" || node.Status.NodeInfo.KubeletVersion != "v1.2.3" || node.Status.Capacity.Pods().Value() != maxPods {
		t.Errorf("node %+v", node)
	}
	if a := node.Status.Addresses; len(a) != 2 || a[0].Address != "172.30.0.11" || a[0].Type != corev1.NodeInternalIP {
		t.Errorf("addresses %+v", a)
	}
	if c := nodeCondition(node, corev1.NodeReady); c == nil || c.Status != corev1.ConditionFalse || !strings.Contains(c.Message, "cni plugin not initialized") {
		t.Errorf("Ready is %+v", c)
	}
	for _, ready := range []bool{true, false, true} {
		n.set(ready, map[bool]string{false: "it rains"}[ready])
		if err := n.publish(t.Context(), get); err != nil {
			t.Fatal(err)
		}
		node = get()
		if c := nodeCondition(node, corev1.NodeReady); (c.Status == corev1.ConditionTrue) != ready {
			t.Errorf("Ready is %+v, want %v", c, ready)
		}
		if err := n.publish(t.Context(), get); err != nil {
			t.Fatal(err)
		}
		if again := get(); again.ResourceVersion != node.ResourceVersion {
			t.Error("the node was written although nothing had changed")
		}
		if node.Status.NodeInfo.KubeletVersion != "v1.2.3" {
			t.Error("the node's description was lost")
		}
	}
	var times []time.Time
	for range 2 {
		if err := n.renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		lease, err := c.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), h.name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		times = append(times, lease.Spec.RenewTime.Time)
	}
	if !times[1].After(times[0]) {
		t.Errorf("renewed at %v, then at %v", times[0], times[1])
	}
	if err := c.CoreV1().Nodes().Delete(t.Context(), h.name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := n.publish(t.Context(), func() *corev1.Node { return nil }); err != nil {
		t.Fatal(err)
	}
	if c := nodeCondition(get(), corev1.NodeReady); c.Status != corev1.ConditionTrue {
		t.Errorf("after it was deleted, the node came back as %+v", c)
	}
}
