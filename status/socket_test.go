// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/explain"
	"github.com/fairlead/fairlead/model"
)

// agent is a scripted Agent.
type agent struct {
	report   Report
	gone     map[netip.Addr]bool
	attached []netip.Addr
	detached string
}

func (a *agent) Report() *Report { return &a.report }

func (a *agent) Attached(addrs []netip.Addr) { a.attached = append(a.attached, addrs...) }

func (a *agent) Detached(pod model.Name, addrs []netip.Addr) {
	a.detached = fmt.Sprint(pod, addrs)
}

func (a *agent) WaitReady(ctx context.Context) error {
	if a.report.Ready() == "" {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (a *agent) WaitGone(ctx context.Context, addr netip.Addr) error {
	if a.gone[addr] {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (a *agent) Explain(_ context.Context, pod model.Name, t explain.Target) (*explain.Walk, error) {
	if pod.Name != "client" {
		return nil, errors.New("explain: no such pod here")
	}
	return &explain.Walk{Pod: pod.String(), Target: t.String()}, nil
}

func (a *agent) Tracked(proto model.Protocol, from, to netip.AddrPort) (Translation, bool, error) {
	if from.Port() == 666 {
		return Translation{}, false, errors.New("cannot read")
	}
	return Translation{Server: netip.AddrPortFrom(to.Addr(), 8080), Client: from}, proto == model.UDP, nil
}

func (a *agent) Dump(what string) (string, error) {
	if what != "model" {
		return "", fmt.Errorf("there is no %q to dump", what)
	}
	return "the model\n", nil
}

func serve(t *testing.T, a Agent, path string) *Client {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- Serve(ctx, l, Handler(a, http.NotFoundHandler())) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return Dial(path)
}

func working() *agent {
	return &agent{
		report: Report{Node: "n1", Progress: Progress{Arrived: 3, Acknowledged: 3, At: time.Now()}},
		gone:   map[netip.Addr]bool{netip.MustParseAddr("10.244.0.5"): true},
	}
}

func TestSocket(t *testing.T) {
	c := serve(t, working(), filepath.Join(t.TempDir(), "run", "agent.sock"))
	r, err := c.Report(t.Context())
	if err != nil || r.Node != "n1" || r.Progress.Acknowledged != 3 {
		t.Fatalf("report %+v, %v", r, err)
	}
	for _, tt := range []struct{ path, query, want string }{
		{"/v1/ready", "", ""},
		{"/v1/deliver", "pod=x/y&timeout=1ms", ""},
		{"/v1/wait", "gone=10.244.0.5", ""},
		{"/v1/wait", "gone=::ffff:10.244.0.5", ""},
		{"/v1/wait", "gone=10.244.0.6&timeout=1ms", "error: a Service still sends new connections to one of [10.244.0.6]"},
		{"/v1/wait", "gone=10.244.0.5&gone=10.244.0.6&timeout=1ms", "error: a Service still sends new connections to one of [10.244.0.5 10.244.0.6]"},
		{"/v1/deliver", "addr=me", `error: addr: ParseAddr("me"): unable to parse IP`},
		{"/v1/detach", "pod=x/y&addr=10.244.0.5", "error: Method Not Allowed"},
		{"/v1/wait", "", "error: no address is given"},
		{"/v1/wait", "gone=me", `error: gone: ParseAddr("me"): unable to parse IP`},
		{"/v1/wait", "gone=10.244.0.6&timeout=soon", `error: timeout: "soon" is no duration`},
		{"/v1/wait", "gone=10.244.0.6&timeout=-1s", `error: timeout: "-1s" is no duration`},
		{"/v1/dump", "what=model", "the model\n"},
		{"/v1/dump", "what=moon", `error: there is no "moon" to dump`},
		{"/v1/explain", "pod=x/client&target=a", `error: parse target "a": want NAME:PORT, for example orders:80`},
		{"/v1/explain", "pod=client&target=a:1", "error: pod: want NAMESPACE/NAME"},
		{"/v1/explain", "pod=x/other&target=a:1", "error: explain: no such pod here"},
		{"/v1/tracked", "proto=tcp&from=10.0.0.1:1&to=10.0.0.2:2", "error: the connection is not tracked"},
		{"/v1/tracked", "proto=udp&from=10.0.0.1:666&to=10.0.0.2:2", "error: cannot read"},
		{"/v1/tracked", "proto=udp&from=10.0.0.1&to=10.0.0.2:2", "error: tracked: want proto, and from and to as ADDR:PORT"},
		{"/v1/tracked", "proto=x&from=10.0.0.1:1&to=10.0.0.2:2", "error: tracked: want proto, and from and to as ADDR:PORT"},
		{"/v1/nothing", "", "error: 404 page not found"},
	} {
		query, err := url.ParseQuery(tt.query)
		if err != nil {
			t.Fatal(err)
		}
		var text string
		if err := c.Get(t.Context(), tt.path, query, &text); err != nil {
			text = "error: " + err.Error()
		}
		if text != tt.want {
			t.Errorf("%s?%s: got %q, want %q", tt.path, tt.query, text, tt.want)
		}
	}
	var tr Translation
	if err := c.Get(t.Context(), "/v1/tracked", url.Values{"proto": {"udp"}, "from": {"10.0.0.1:1"}, "to": {"10.0.0.2:2"}}, &tr); err != nil || tr.Server.String() != "10.0.0.2:8080" {
		t.Errorf("tracked: %+v, %v", tr, err)
	}
	var walk explain.Walk
	if err := c.Get(t.Context(), "/v1/explain", url.Values{"pod": {"x/client"}, "target": {"a:1"}}, &walk); err != nil || walk.Target != "a:1" {
		t.Errorf("explain: %+v, %v", walk, err)
	}
}

// TestPluginsWords: what the CNI plugin says of a pod's addresses is taken in before it is answered.
func TestPluginsWords(t *testing.T) {
	a := working()
	h := Handler(a, http.NotFoundHandler())
	for _, tt := range []struct {
		method, target string
		code           int
		attached       string
		detached       string
	}{
		{"GET", "/v1/deliver?pod=x/y&addr=10.244.0.5&addr=fd00::5", 200, "[10.244.0.5 fd00::5]", ""},
		{"GET", "/v1/deliver?pod=x/y&addr=10.244.0.5&addr=five", 400, "[]", ""},
		{"GET", "/v1/deliver", 200, "[]", ""},
		{"POST", "/v1/detach?pod=x/y&addr=10.244.0.5", 200, "[]", "x/y [10.244.0.5]"},
		{"POST", "/v1/detach?pod=x/y&addr=10.244.0.5&addr=10.244.0.6&timeout=1ms", 504, "[]", "x/y [10.244.0.5 10.244.0.6]"},
		{"POST", "/v1/detach?pod=x&addr=10.244.0.5", 400, "[]", ""},
		{"POST", "/v1/detach?pod=x/y&addr=five", 400, "[]", ""},
		{"POST", "/v1/detach?pod=x/y", 400, "[]", "x/y []"},
		{"POST", "/v1/deliver?pod=x/y", 405, "[]", ""},
	} {
		a.attached, a.detached = nil, ""
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.target, nil))
		if got := fmt.Sprint(a.attached); w.Code != tt.code || got != tt.attached || a.detached != tt.detached {
			t.Errorf("%s %s: %d, attached %s, detached %q; want %d, %s, %q", tt.method, tt.target, w.Code, got, a.detached, tt.code, tt.attached, tt.detached)
		}
	}
}

func TestNotReady(t *testing.T) {
	for _, tt := range []struct {
		report Report
		want   string
	}{
		{Report{Server: "https://x", Waiting: []string{"services", "nodes"}}, "waiting for the API server at https://x to list services, nodes"},
		{Report{}, "the first snapshot is being programmed"},
		{Report{Progress: Progress{Error: "no nftables"}}, "nothing is programmed: no nftables"},
	} {
		c := serve(t, &agent{report: tt.report}, filepath.Join(t.TempDir(), "agent.sock"))
		for _, path := range []string{"/v1/ready", "/v1/deliver"} {
			var text string
			err := c.Get(t.Context(), path, url.Values{"timeout": {"1ms"}}, &text)
			if err == nil || err.Error() != tt.want {
				t.Errorf("%s: %v, want %s", path, err, tt.want)
			}
		}
	}
}

// TestKept: an agent that works from the state on disk is ready, and says what it works from.
func TestKept(t *testing.T) {
	a := working()
	a.report.Waiting, a.report.Server = []string{"services"}, "https://x at 192.0.2.1:6443"
	a.report.KeptOf = time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	c := serve(t, a, filepath.Join(t.TempDir(), "agent.sock"))
	var text string
	if err := c.Get(t.Context(), "/v1/ready", nil, &text); err != nil {
		t.Error(err)
	}
	r, err := c.Report(t.Context())
	if err != nil || !r.KeptOf.Equal(a.report.KeptOf) {
		t.Errorf("%v, %v", r, err)
	}
	var b strings.Builder
	r.Print(&b)
	if first, _, _ := strings.Cut(b.String(), "\n"); first != "node n1: ready, from the state on disk of 2026-05-06T07:08:09Z, the API server does not answer" {
		t.Error(first)
	}
}

// TestSocketPaths: a path longer than a socket address works, one left by a killed agent is taken over, one in use is not, and only the owner may connect.
func TestSocketPaths(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("d", 100), "agent.sock")
	old, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	old.Close() // as after a kill: the file stays
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	if Running(t.Context(), path) {
		t.Error("an agent that is gone runs")
	}
	c := serve(t, working(), path)
	if _, err := c.Report(t.Context()); err != nil {
		t.Error(err)
	}
	if !Running(t.Context(), path) {
		t.Error("an agent that answers does not run")
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another agent answers there") {
		t.Errorf("a second agent: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := Dial(filepath.Join(t.TempDir(), "none.sock")).Report(t.Context()); err == nil || !strings.Contains(err.Error(), "no agent runs at") {
		t.Errorf("an agent that is not there: %v", err)
	}
	late, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := c.Report(late); err == nil || !strings.Contains(err.Error(), "does not answer in time") {
		t.Errorf("an agent that is too slow: %v", err)
	}
}

func TestPrint(t *testing.T) {
	r := working().report
	r.Version, r.PID, r.Quarantined, r.Off = "v0", 7, []string{"shop/bad: refused"}, []string{"IPv6 is off"}
	r.Flawed = []string{"service shop/odd: port 0 is no port"}
	r.PassingOn = []string{"10.244.0.5:8080/TCP", "10.244.0.6:8080/TCP", "10.244.0.7:8080/TCP", "10.244.0.8:8080/TCP"}
	r.DNS.Addresses = []string{"10.96.0.10:53"}
	var b strings.Builder
	r.Print(&b)
	for _, want := range []string{"node n1: ready\n", "pid 7", "generation   3", "queries on 10.96.0.10:53", "quarantined  shop/bad: refused", "flawed       service shop/odd: port 0 is no port",
		"passing on   new connections for 4 ports of pods that are ending: 10.244.0.5:8080/TCP, 10.244.0.6:8080/TCP, 10.244.0.7:8080/TCP\n", "off          IPv6 is off"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("want %q in\n%s", want, b.String())
		}
	}
	r.Progress.Arrived = 5
	b.Reset()
	r.Print(&b)
	if !strings.Contains(b.String(), "behind: generation 5 arrived, 3 acknowledged") {
		t.Error(b.String())
	}
}

// slow is an agent that takes its time.
type slow struct {
	*agent
	begun, waits, end chan struct{}
}

func (s slow) Dump(string) (string, error) {
	close(s.begun)
	<-s.end
	return "late\n", nil
}

func (s slow) WaitGone(ctx context.Context, addr netip.Addr) error {
	close(s.waits)
	return s.agent.WaitGone(ctx, addr)
}

// TestEnd: what is being answered at the end is answered. Who waits for something gets no answer, rather than one that says that it has not come.
func TestEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	a := slow{working(), make(chan struct{}), make(chan struct{}), make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, Handler(a, http.NotFoundHandler())) }()
	var text string
	dumped, waited := make(chan error, 1), make(chan error, 1)
	go func() { dumped <- Dial(path).Get(t.Context(), "/v1/dump", url.Values{"what": {"model"}}, &text) }()
	go func() {
		waited <- Dial(path).Get(t.Context(), "/v1/wait", url.Values{"gone": {"10.244.0.9"}, "timeout": {"1m"}}, nil)
	}()
	<-a.begun
	<-a.waits
	cancel()
	if err := <-waited; err == nil || !strings.Contains(err.Error(), "no agent runs at") {
		t.Errorf("who waited: %v", err)
	}
	close(a.end)
	if err := <-dumped; err != nil || text != "late\n" {
		t.Errorf("who had asked: %q, %v", text, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if Running(t.Context(), path) {
		t.Error("the socket is still open")
	}
}

// Whom the agent has not taken yet when it ends is told that there is none.
func TestGetWhileEnding(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		raw, err := l.(*net.UnixListener).SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) {
				for {
					if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); err != unix.EINTR {
						return // somebody waits to be taken
					}
				}
			})
		}
		ended <- errors.Join(err, l.Close())
	}()
	if err := Dial(path).Get(t.Context(), "/v1/status", nil, nil); err == nil || !strings.Contains(err.Error(), "no agent runs at") {
		t.Errorf("it is told: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Who asks while the agent is being replaced is answered by the next one.
func TestGetWhileReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 1 {
			panic(http.ErrAbortHandler) // ends without an answer
		}
		_, _ = io.WriteString(w, "next")
	})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	var got string
	if err := Dial(path).Get(t.Context(), "/", nil, &got); err != nil || got != "next" || asked != 2 {
		t.Errorf("%q, %v, asked %d times", got, err, asked)
	}
}
