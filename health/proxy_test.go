// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The expected bodies are written by hand from what kube-proxy v1.37.2 (pkg/proxy/healthcheck) sends.

// kubeProxyAddr is where kube-proxy serves /healthz and /livez.
const kubeProxyAddr = "0.0.0.0:10256"

var (
	noon   = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	date   = regexp.MustCompile(`Date: [^\r]+\r\n`)
	header = "Content-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
)

// response is what a server sends for a question, whole, without the date.
func response(t *testing.T, addr, method, path string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n", method, path)
	all, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(date.FindAll(all, -1)); n != 1 {
		t.Fatalf("%d dates in %q", n, all)
	}
	return string(date.ReplaceAll(all, nil))
}

// want is a whole response without the date.
func want(status, header, body string) string {
	return fmt.Sprintf("HTTP/1.1 %s\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, header, len(body), body)
}

// TestProxyAnswers asks over a real connection, in every state, and compares all that is sent.
func TestProxyAnswers(t *testing.T) {
	const (
		ok, bad = "200 OK", "503 Service Unavailable"
		family  = `{"lastUpdated":"2026-01-02T11:00:00Z","healthy":%[1]v}`
		status  = `"status":{"IPv4":` + family + `,"IPv6":` + family + `}`
		now     = `"currentTime":"2026-01-02T12:00:00Z"`
	)
	fine, stuck := fmt.Sprintf(status, true), fmt.Sprintf(status, false)
	hourAgo := noon.Add(-time.Hour)
	for _, tt := range []struct {
		name             string
		updated, pending time.Time
		eligible         bool
		healthz, livez   string // status
		body             string // of healthz; livez's is the same without nodeEligible
	}{
		{"starts", time.Time{}, time.Time{}, true, ok, ok,
			`{"lastUpdated":"2026-01-02T12:00:00Z",` + now + `,"nodeEligible":true,"healthy":true}`},
		{"starts slowly", time.Time{}, hourAgo, true, ok, ok,
			`{"lastUpdated":"2026-01-02T12:00:00Z",` + now + `,"nodeEligible":true,"healthy":true}`},
		{"nothing waits", hourAgo, time.Time{}, true, ok, ok,
			`{"lastUpdated":"2026-01-02T12:00:00Z",` + now + `,"nodeEligible":true,"healthy":true,` + fine + `}`},
		{"waits not too long", hourAgo, noon.Add(time.Nanosecond - time.Minute), true, ok, ok,
			`{"lastUpdated":"2026-01-02T12:00:00Z",` + now + `,"nodeEligible":true,"healthy":true,` + fine + `}`},
		{"waits too long", hourAgo, noon.Add(-time.Minute), true, bad, bad,
			`{"lastUpdated":"2026-01-02T11:00:00Z",` + now + `,"nodeEligible":true,"healthy":false,` + stuck + `}`},
		{"node is leaving", hourAgo, time.Time{}, false, bad, ok,
			`{"lastUpdated":"2026-01-02T11:00:00Z",` + now + `,"nodeEligible":false,"healthy":true,` + fine + `}`},
		{"everything at once", hourAgo, noon.Add(-time.Hour), false, bad, bad,
			`{"lastUpdated":"2026-01-02T11:00:00Z",` + now + `,"nodeEligible":false,"healthy":false,` + stuck + `}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var healthz, livez []int
			p := New(Options{
				Progress: func() (time.Time, time.Time) { return tt.updated, tt.pending },
				Eligible: func() bool { return tt.eligible },
				Now:      func() time.Time { return noon },
				Healthz:  func(code int) { healthz = append(healthz, code) },
				Livez:    func(code int) { livez = append(livez, code) },
			})
			srv := httptest.NewServer(p.Handler())
			defer srv.Close()
			addr := srv.Listener.Addr().String()

			if got, want := response(t, addr, "GET", "/healthz"), want(tt.healthz, header, tt.body); got != want {
				t.Errorf("healthz\ngot  %q\nwant %q", got, want)
			}
			body := regexp.MustCompile(`"nodeEligible":(true|false),`).ReplaceAllString(tt.body, "")
			if tt.livez == ok {
				body = `{"lastUpdated":"2026-01-02T12` + strings.TrimPrefix(strings.TrimPrefix(body, `{"lastUpdated":"2026-01-02T11`), `{"lastUpdated":"2026-01-02T12`)
			}
			if got, want := response(t, addr, "GET", "/livez"), want(tt.livez, header, body); got != want {
				t.Errorf("livez\ngot  %q\nwant %q", got, want)
			}
			if got := fmt.Sprint(healthz, livez); got != fmt.Sprintf("[%.3s] [%.3s]", tt.healthz, tt.livez) {
				t.Errorf("counted %s", got)
			}
			if p.Healthy() != (tt.livez == ok) {
				t.Errorf("Healthy() is %v", p.Healthy())
			}
		})
	}
}

// TestProxyMethodsAndPaths: any method is answered, other paths are not.
func TestProxyMethodsAndPaths(t *testing.T) {
	p := New(Options{Progress: func() (time.Time, time.Time) { return noon, time.Time{} }, Now: func() time.Time { return noon }})
	srv := httptest.NewServer(p.Handler())
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	const body = `{"lastUpdated":"2026-01-02T12:00:00Z","currentTime":"2026-01-02T12:00:00Z","nodeEligible":true,"healthy":true,` +
		`"status":{"IPv4":{"lastUpdated":"2026-01-02T12:00:00Z","healthy":true},"IPv6":{"lastUpdated":"2026-01-02T12:00:00Z","healthy":true}}}`
	for _, method := range []string{"GET", "POST"} {
		if got, want := response(t, addr, method, "/healthz?verbose"), want("200 OK", header, body); got != want {
			t.Errorf("%s\ngot  %q\nwant %q", method, got, want)
		}
	}
	if got := response(t, addr, "HEAD", "/healthz"); !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(got, "\r\n\r\n") {
		t.Errorf("HEAD: %q", got)
	}
	for _, path := range []string{"/", "/healthz/", "/readyz", "/metrics"} {
		if got := response(t, addr, "GET", path); !strings.HasPrefix(got, "HTTP/1.1 404 Not Found\r\n") {
			t.Errorf("%s: %q", path, got)
		}
	}
}

// TestProxyTime lets real code wait on a false clock: a change that waits makes the node unhealthy at the limit, and programming heals it.
func TestProxyTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var updated, pending time.Time
		p := New(Options{Progress: func() (time.Time, time.Time) { return updated, pending }})
		code := func() int {
			w := httptest.NewRecorder()
			p.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/livez", nil))
			return w.Code
		}
		updated = time.Now()
		time.Sleep(24 * time.Hour)
		if code() != 200 {
			t.Error("a day without changes is unhealthy")
		}
		pending = time.Now()
		time.Sleep(limit - 1)
		if code() != 200 {
			t.Error("unhealthy before the limit")
		}
		time.Sleep(1)
		if code() != 503 {
			t.Error("healthy at the limit")
		}
		updated, pending = time.Now(), time.Time{}
		if code() != 200 {
			t.Error("unhealthy after programming")
		}
	})
}

// wire is a network of the test's own: its listeners accept what the test dials.
type wire struct {
	mu     sync.Mutex
	taken  map[string]error // addresses that cannot be opened
	open   map[string]*wireListener
	opened []string
}

func newWire() *wire {
	return &wire{taken: make(map[string]error), open: make(map[string]*wireListener)}
}

func (w *wire) listen(_ context.Context, network, addr string) (net.Listener, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.taken[addr]; err != nil {
		return nil, err
	}
	if w.open[addr] != nil {
		return nil, errors.New("address already in use")
	}
	l := &wireListener{wire: w, addr: addr, conns: make(chan net.Conn), done: make(chan struct{}), fail: make(chan error)}
	w.open[addr] = l
	w.opened = append(w.opened, network+" "+addr)
	return l, nil
}

func (w *wire) set(addr string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.taken[addr] = err
}

func (w *wire) listener(addr string) *wireListener {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open[addr]
}

// get asks the server at addr; an error if there is none.
func (w *wire) get(addr, path string) (string, error) {
	l := w.listener(addr)
	if l == nil {
		return "", errors.New("connection refused")
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		a, b := net.Pipe()
		l.conns <- b
		return a, nil
	}}}
	resp, err := client.Get("http://node" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, body), err
}

type wireListener struct {
	wire  *wire
	addr  string
	conns chan net.Conn
	fail  chan error
	done  chan struct{}
	once  sync.Once
}

func (l *wireListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case err := <-l.fail:
		return nil, err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *wireListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.wire.mu.Lock()
		defer l.wire.mu.Unlock()
		delete(l.wire.open, l.addr)
	})
	return nil
}

func (l *wireListener) Addr() net.Addr { return &net.TCPAddr{} }

// TestProxyServe: a port that is taken, or lost, is named, logged once and opened when that is possible.
func TestProxyServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		w.set(kubeProxyAddr, errors.New("address already in use"))
		var log bytes.Buffer
		p := New(Options{Progress: func() (time.Time, time.Time) { return noon, time.Time{} }, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		p.port.listen = w.listen
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.Serve(ctx, kubeProxyAddr) }()

		synctest.Wait()
		if got := p.Problem(); got != "health is not served: address already in use" {
			t.Errorf("problem %q", got)
		}
		time.Sleep(time.Hour)
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines for one problem:\n%s", n, log.String())
		}
		w.set(kubeProxyAddr, nil)
		time.Sleep(retryAfter)
		synctest.Wait()
		if got, err := w.get(kubeProxyAddr, "/livez"); p.Problem() != "" || !strings.HasPrefix(got, "200 ") {
			t.Errorf("problem %q, answer %q, %v", p.Problem(), got, err)
		}
		w.listener(kubeProxyAddr).fail <- errors.New("interface gone")
		synctest.Wait()
		if got := p.Problem(); got != "health is not served: interface gone" {
			t.Errorf("problem %q", got)
		}
		time.Sleep(retryAfter)
		synctest.Wait()
		if got, _ := w.get(kubeProxyAddr, "/livez"); !strings.HasPrefix(got, "200 ") {
			t.Errorf("after the loss: %q", got)
		}
		cancel()
		<-done
		if w.listener(kubeProxyAddr) != nil {
			t.Error("still open after its context")
		}
	})
}

// TestProxyServeReal serves on a real port, and closes it.
func TestProxyServeReal(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := New(Options{Progress: func() (time.Time, time.Time) { return noon, time.Time{} }})
	p.port.listen = func(context.Context, string, string) (net.Listener, error) { return l, nil }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Serve(ctx, kubeProxyAddr) }()
	if got := response(t, l.Addr().String(), "GET", "/livez"); !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") {
		t.Errorf("%q", got)
	}
	cancel()
	<-done
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("still open after its context")
	}
}
