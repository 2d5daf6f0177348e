// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/kube"
	"github.com/fairlead/fairlead/model"
)

// gate is an address that leads to one server or another, or to none, and counts what comes from there.
type gate struct {
	l     net.Listener
	bytes atomic.Int64

	mu    sync.Mutex
	to    string
	conns map[net.Conn]bool
}

func newGate(t *testing.T) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{l: l, conns: make(map[net.Conn]bool)}
	t.Cleanup(func() { l.Close(); g.lead("") })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go g.pass(c)
		}
	}()
	return g
}

// lead ends what there is, and leads to a server from now on; empty: to none.
func (g *gate) lead(to string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.to = strings.TrimPrefix(to, "https://")
	for c := range g.conns {
		c.Close()
	}
}

func (g *gate) pass(c net.Conn) {
	defer c.Close()
	g.mu.Lock()
	to := g.to
	g.conns[c] = true
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.conns, c)
		g.mu.Unlock()
	}()
	s, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer s.Close()
	go func() {
		io.Copy(s, c)
		s.Close()
	}()
	io.Copy(io.MultiWriter(c, writer(func(n int) { g.bytes.Add(int64(n)) })), s)
}

type writer func(int)

func (w writer) Write(b []byte) (int, error) { w(len(b)); return len(b), nil }

// TestWhatARestartCosts: a node's watches go on over a broken connection for the price of the handshakes, and after a restart of the API server, whose
// memory of changes begins anew, for at most one list of each kind.
func TestWhatARestartCosts(t *testing.T) {
	const services = 600
	dir := t.TempDir()
	first, err := start(dir)
	must(t, err)
	admin := first.admin(t)
	for i := range services {
		_, err := admin.CoreV1().Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%d", i)},
			Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
		must(t, err)
	}
	g := newGate(t)
	g.lead(first.url)
	client, err := kube.NewClientFor(first.config(t, "admin", "system:masters"), g.l.Addr().String())
	must(t, err)
	source := kube.New(kube.Options{Client: client, Config: model.Config{Self: "n1"}, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { source.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	arrives := func(name string) {
		t.Helper()
		deadline := time.After(patience)
		for {
			if snap := source.Snapshot(); snap != nil {
				if _, ok := snap.Services.Get(model.Name{Namespace: "default", Name: name}); ok {
					return
				}
			}
			select {
			case <-source.Changed():
			case <-deadline:
				t.Fatalf("no Service %s; troubles %q", name, source.Troubles())
			}
		}
	}
	create := func(i *instance, name string) {
		t.Helper()
		_, err := i.admin(t).CoreV1().Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
		must(t, err)
	}
	arrives("s599")
	create(first, "before")
	arrives("before")
	lists := g.bytes.Swap(0)

	g.lead(first.url) // ends the connections
	create(first, "broken")
	arrives("broken")
	broken := g.bytes.Swap(0)
	if broken > lists/3 { // mostly handshakes, whatever the cluster's size
		t.Errorf("a broken connection cost %d bytes, the first lists %d", broken, lists)
	}

	g.lead("")
	must(t, first.stop())
	second, err := start(dir)
	second.ends(t, err)
	g.lead(second.url)
	create(second, "restarted")
	arrives("restarted")
	restart := g.bytes.Swap(0)
	if restart > lists*3/2 {
		t.Errorf("a restart cost %d bytes, the first lists %d", restart, lists)
	}
	if n := source.Snapshot().Services.Len(); n < services+3 {
		t.Errorf("%d Services", n)
	}
	t.Logf("%d Services: the first lists %d bytes, a broken connection %d, a restart of the API server %d", services, lists, broken, restart)
}
