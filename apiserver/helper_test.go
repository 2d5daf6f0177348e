// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/pki"
)

// patience bounds what a test waits for; nothing that works takes so long.
const patience = 30 * time.Second

// instance is a running server.
type instance struct {
	server *Server
	pki    *pki.PKI
	dir    string
	url    string
	cancel context.CancelFunc
	done   chan error
}

// testCIDRs are the ranges that test servers start with.
var testCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}

// start runs a server on a state directory.
func start(dir string, cidrs ...netip.Prefix) (*instance, error) {
	return startWith(dir, func(c *Config) {
		if len(cidrs) > 0 {
			c.ServiceCIDRs = cidrs
		}
	})
}

// startWith is start with more of the configuration changed.
func startWith(dir string, edit func(*Config)) (*instance, error) {
	authority, err := pki.Ensure(filepath.Join(dir, "pki"), pki.Options{})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	config := Config{
		StateDir:     dir,
		Listeners:    []net.Listener{listener},
		ServiceCIDRs: testCIDRs,
		PKI:          authority,
		Logger:       slog.New(slog.DiscardHandler),
	}
	edit(&config)
	server, err := New(ctx, config)
	if err != nil {
		cancel()
		return nil, err
	}
	i := &instance{
		server: server,
		pki:    authority,
		dir:    dir,
		url:    "https://" + listener.Addr().String(),
		cancel: cancel,
		done:   make(chan error, 1),
	}
	go func() { i.done <- server.Run(ctx) }()
	select {
	case <-server.Ready():
		return i, nil
	case err := <-i.done:
		cancel()
		return nil, fmt.Errorf("server ended before it was ready: %w", err)
	case <-time.After(patience):
		cancel()
		return nil, fmt.Errorf("server not ready after %v", patience)
	}
}

// stop ends the server and returns what Run returned.
func (i *instance) stop() error {
	i.cancel()
	select {
	case err := <-i.done:
		return err
	case <-time.After(patience):
		return fmt.Errorf("server did not end within %v", patience)
	}
}

// config is a client's configuration, by certificate.
func (i *instance) config(t testing.TB, cn string, orgs ...string) *restclient.Config {
	t.Helper()
	pair, err := i.pki.Client(cn, orgs...)
	if err != nil {
		t.Fatal(err)
	}
	return &restclient.Config{
		Host:            i.url,
		QPS:             -1,
		TLSClientConfig: restclient.TLSClientConfig{CAData: i.pki.CA, CertData: pair.Cert, KeyData: pair.Key},
	}
}

// client is a typed client, by certificate.
func (i *instance) client(t testing.TB, cn string, orgs ...string) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(i.config(t, cn, orgs...))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// admin is the administrator's client.
func (i *instance) admin(t testing.TB) kubernetes.Interface {
	t.Helper()
	return i.client(t, "admin", "system:masters")
}

// started starts a server of the test's own.
func started(t testing.TB, dir string, cidrs ...netip.Prefix) *instance {
	t.Helper()
	i, err := start(dir, cidrs...)
	return i.ends(t, err)
}

// ends stops the server, if it has started, with the test.
func (i *instance) ends(t testing.TB, err error) *instance {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.stop(); err != nil {
			t.Error(err)
		}
	})
	return i
}

// shared is one server for all tests that do not restart it; each test keeps
// to a namespace of its own.
var shared = sync.OnceValues(func() (*instance, error) {
	dir, err := os.MkdirTemp("", "fairlead-apiserver-")
	if err != nil {
		return nil, err
	}
	sharedDir = dir
	return start(dir)
})

var sharedDir string

// sharedServer is the shared server and a new namespace in it.
func sharedServer(t testing.TB) (*instance, string) {
	t.Helper()
	i, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return i, newNamespace(t, i)
}

// newNamespace makes a namespace for the test.
func newNamespace(t testing.TB, i *instance) string {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-", ".", "-").Replace(t.Name()))
	name = fmt.Sprintf("%.40s-%06x", name, rand.Uint32N(1<<24))
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := i.admin(t).CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestMain(m *testing.M) {
	flag.Parse()
	if !testing.Verbose() {
		klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	}
	code := m.Run()
	if sharedDir != "" {
		if i, err := shared(); err == nil {
			if err := i.stop(); err != nil {
				fmt.Fprintln(os.Stderr, "stop shared server:", err)
				code = 1
			}
		}
		os.RemoveAll(sharedDir)
	}
	os.Exit(code)
}

// must fails the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
