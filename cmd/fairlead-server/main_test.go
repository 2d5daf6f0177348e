// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fairlead/fairlead/pki"
)

// patience bounds what a test waits for.
const patience = 60 * time.Second

// asProgram makes the test binary be the program itself.
const asProgram = "FAIRLEAD_SERVER_TEST_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program is the program with arguments and nothing of the environment that
// would lead it elsewhere.
func program(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "KUBECONFIG=")
	return cmd
}

// record is what a running process has written so far.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// running is an API server in a process of its own.
type running struct {
	cmd    *exec.Cmd
	log    *record
	state  string
	client kubernetes.Interface
}

// serverOn starts the server on a state directory and waits until it answers.
// A listener, if there is one, is inherited.
func serverOn(t testing.TB, state string, listeners ...*net.TCPListener) *running {
	t.Helper()
	args := []string{"apiserver", "--state", state}
	r := &running{log: new(record), state: state}
	if len(listeners) == 0 {
		r.cmd = program(context.Background(), append(args, "--listen", "127.0.0.1:0")...)
	} else {
		r.cmd = program(context.Background(), append(args, "--listen-fds", string(rune('0'+len(listeners))))...)
		for _, l := range listeners {
			file, err := l.File()
			must(t, err)
			defer file.Close()
			r.cmd.ExtraFiles = append(r.cmd.ExtraFiles, file)
		}
	}
	r.start(t)
	kubeconfig := filepath.Join(state, "kubeconfig")
	if len(listeners) > 0 {
		authority, err := pki.Ensure(filepath.Join(state, "pki"), pki.Options{})
		must(t, err)
		admin, err := authority.Client("admin", "system:masters")
		must(t, err)
		must(t, pki.WriteKubeconfig(kubeconfig, pki.Kubeconfig{
			Server: "https://" + listeners[0].Addr().String(), CA: authority.CA, Client: admin}))
	}
	r.await(t, kubeconfig)
	return r
}

// start starts the server, and ends it with the test.
func (r *running) start(t testing.TB) {
	t.Helper()
	r.cmd.Stderr = r.log
	must(t, r.cmd.Start())
	t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			r.cmd.Process.Kill()
			r.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("server:\n%s", r.log)
		}
	})
}

// await waits until the server answers on the address in the kubeconfig, which
// it writes itself, before it listens, when it has no inherited sockets.
func (r *running) await(t testing.TB, kubeconfig string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err == nil {
			config.Timeout, config.QPS = patience, -1
			r.client, err = kubernetes.NewForConfig(config)
			must(t, err)
			_, err = r.client.CoreV1().Namespaces().Get(t.Context(), metav1.NamespaceDefault, metav1.GetOptions{})
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server does not answer: %v\n%s", err, r.log)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// stop sends a signal and waits for the end.
func (r *running) stop(t testing.TB, signal os.Signal) error {
	t.Helper()
	must(t, r.cmd.Process.Signal(signal))
	done := make(chan error, 1)
	go func() { done <- r.cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		t.Fatal("the server does not end")
		return nil
	}
}

// TestUsage checks what is said about wrong arguments, and the exit codes.
func TestUsage(t *testing.T) {
	state := t.TempDir()
	for _, row := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 2, "Usage: fairlead-server COMMAND"},
		{[]string{"help"}, 0, "apiserver  "},
		{[]string{"bake"}, 2, `there is no command "bake"`},
		{[]string{"apiserver", "-h"}, 0, "-listen-fds"},
		{[]string{"apiserver", "--no-such-flag"}, 2, "no-such-flag"},
		{[]string{"apiserver", "extra"}, 2, `takes no argument "extra"`},
		{[]string{"apiserver", "--state", state}, 1, "exactly one of --listen-fds and --listen"},
		{[]string{"apiserver", "--state", state, "--listen", "127.0.0.1:0", "--listen-fds", "1"}, 1, "exactly one of --listen-fds and --listen"},
		{[]string{"apiserver", "--state", state, "--listen", "127.0.0.1:99999"}, 1, "listen: "},
		{[]string{"apiserver", "--state", state, "--listen-fds", "1"}, 1, "inherited file descriptor 3"},
		{[]string{"apiserver", "--state", state, "--service-cidr", "10.96.0.1/16"}, 2, "did you mean 10.96.0.0/16?"},
		{[]string{"apiserver", "--state", state, "--service-cidr", "10.96.0.0/16,10.97.0.0/16", "--listen", "127.0.0.1:0"}, 1, "different families"},
		{[]string{"apiserver", "--state", state, "--pod-cidr", "many"}, 2, "pod-cidr"},
		{[]string{"apiserver", "--state", state, "--advertise-address", "here"}, 2, "advertise-address"},
		{[]string{"apiserver", "--state", "/dev/null/x", "--listen", "127.0.0.1:0"}, 1, "create pki directory"},
		{[]string{"kubectl", "frobnicate"}, 1, `unknown command "frobnicate"`},
	} {
		t.Run(strings.Join(row.args, " "), func(t *testing.T) {
			out, err := program(t.Context(), row.args...).CombinedOutput()
			code := 0
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if code != row.code || !strings.Contains(string(out), row.want) {
				t.Errorf("exit code %d, want %d with %q:\n%s", code, row.code, row.want, out)
			}
		})
	}
}

// TestLife kills a server, which loses nothing, and ends another, which ends
// cleanly, all with the same inherited sockets: no connection is refused in
// between, it only waits.
func TestLife(t *testing.T) {
	state := t.TempDir()
	var listeners []*net.TCPListener
	for range 2 {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
		must(t, err)
		defer l.Close()
		listeners = append(listeners, l)
	}
	first := serverOn(t, state, listeners...)
	svc, err := first.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	for deadline := time.Now().Add(patience); err != nil && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		svc, err = first.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	}
	must(t, err)
	if svc.Spec.ClusterIP != "10.96.0.1" {
		t.Errorf("default/kubernetes is %s", svc.Spec.ClusterIP)
	}
	if err := first.stop(t, syscall.SIGKILL); err == nil {
		t.Error("killed, but no error")
	}

	// A client that comes now waits for the next server.
	waiting := make(chan error, 1)
	go func() {
		_, err := first.client.CoreV1().Services("default").Get(context.Background(), "kubernetes", metav1.GetOptions{})
		waiting <- err
	}()
	second := serverOn(t, state, listeners...)
	select {
	case err := <-waiting:
		if err != nil && !strings.Contains(err.Error(), "connection reset") && !strings.Contains(err.Error(), "EOF") {
			t.Errorf("a client that came between two servers: %v", err)
		}
	case <-time.After(patience):
		t.Error("a client that came between two servers waits for ever")
	}
	again, err := second.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	must(t, err)
	if again.UID != svc.UID {
		t.Error("another default/kubernetes")
	}
	if out, err := program(t.Context(), "apiserver", "--state", state, "--listen", "127.0.0.1:0").CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "in use by another API server") {
		t.Errorf("a second server on the state directory: %v\n%s", err, out)
	}
	running := second.log.String()
	if err := second.stop(t, syscall.SIGTERM); err != nil {
		t.Errorf("told to end: %v\n%s", err, second.log)
	}
	// While it ends, the library says of each request that is cut off that it is an error.
	if strings.Contains(running, "level=ERROR") || strings.Contains(second.log.String(), "panic") {
		t.Errorf("it complains:\n%s", second.log)
	}
}

// TestWithoutControllers: with --controllers=false the API is served and nobody else writes to it, not even by the time at which a server that was
// started later has its controllers.
func TestWithoutControllers(t *testing.T) {
	state := t.TempDir()
	without := &running{log: new(record), state: state}
	without.cmd = program(context.Background(), "apiserver", "--state", state, "--listen", "127.0.0.1:0", "--controllers=false")
	without.start(t)
	without.await(t, filepath.Join(state, "kubeconfig"))
	with := serverOn(t, t.TempDir())
	const started = "controllers started"
	for deadline := time.Now().Add(patience); !strings.Contains(with.log.String(), started); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no controllers:\n%s", with.log)
		}
	}
	if services, err := without.client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); err != nil || len(services.Items) > 0 {
		t.Errorf("%v, %v: want no Service, since nobody made one", services, err)
	}
	if err := without.stop(t, syscall.SIGTERM); err != nil {
		t.Errorf("told to end: %v\n%s", err, without.log)
	}
	if strings.Contains(without.log.String(), started) {
		t.Errorf("it has controllers:\n%s", without.log)
	}
}

// TestKilledWhileWriting kills the server in the middle of many writes. What it
// had confirmed is there afterwards, no address is given twice, then or by the
// next server, and every address has its lock.
func TestKilledWhileWriting(t *testing.T) {
	state := t.TempDir()
	first := serverOn(t, state)
	services := first.client.CoreV1().Services("default")
	create := func(services corev1client.ServiceInterface, name string) (*corev1.Service, error) {
		return services.Create(context.Background(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
		}, metav1.CreateOptions{})
	}
	var mu sync.Mutex
	confirmed := map[string]string{} // address to name
	var writers sync.WaitGroup
	enough := make(chan struct{})
	for w := range 8 {
		writers.Go(func() {
			for n := 0; ; n++ {
				svc, err := create(services, fmt.Sprintf("s%d-%d", w, n))
				if err != nil {
					return // it is dead
				}
				mu.Lock()
				confirmed[svc.Spec.ClusterIP] = svc.Name
				if len(confirmed) == 100 {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	<-enough
	first.stop(t, syscall.SIGKILL)
	writers.Wait()

	second := serverOn(t, state)
	for n := range 50 {
		_, err := create(second.client.CoreV1().Services("default"), fmt.Sprint("again-", n))
		must(t, err)
	}
	list, err := second.client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	must(t, err)
	locks, err := second.client.NetworkingV1().IPAddresses().List(t.Context(), metav1.ListOptions{})
	must(t, err)
	locked := map[string]string{}
	for _, lock := range locks.Items {
		locked[lock.Name] = lock.Spec.ParentRef.Name
	}
	has := map[string]string{}
	for _, svc := range list.Items {
		ip := svc.Spec.ClusterIP
		if other, twice := has[ip]; twice {
			t.Errorf("%s is given to %s and %s", ip, other, svc.Name)
		}
		if locked[ip] != svc.Name {
			t.Errorf("%s of %s is locked for %q", ip, svc.Name, locked[ip])
		}
		has[ip] = svc.Name
	}
	for ip, name := range confirmed {
		if has[ip] != name {
			t.Errorf("%s was confirmed with %s, which is %q's", name, ip, has[ip])
		}
	}
	t.Logf("%d services confirmed before the kill, %d found, %d locks", len(confirmed), len(list.Items), len(locks.Items))
}

// TestPrefixes checks how ranges are read.
func TestPrefixes(t *testing.T) {
	for _, row := range []struct {
		text string
		want []string
	}{
		{"10.96.0.0/16", []string{"10.96.0.0/16"}},
		{"10.96.0.0/16,fd00:96::/112", []string{"10.96.0.0/16", "fd00:96::/112"}},
		{"", nil}, {"10.96.0.0", nil}, {"10.96.0.0/33", nil}, {"10.96.1.0/16", nil}, {"10.96.0.0/16,", nil},
	} {
		var got []netip.Prefix
		err := prefixes(&got)(row.text)
		if (err == nil) != (row.want != nil) {
			t.Errorf("%q: %v", row.text, err)
			continue
		}
		var text []string
		for _, p := range got {
			text = append(text, p.String())
		}
		if err == nil && !slices.Equal(text, row.want) {
			t.Errorf("%q: %v", row.text, text)
		}
	}
}
