// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// start runs a server of the shop on loopback and returns its HTTP URL and its
// UDP address.
func start(t *testing.T, version string, upstreams ...string) (url, udp string) {
	t.Helper()
	env := map[string]string{"POD_NAME": "pod-" + version, "NODE_NAME": "n1", "POD_NAMESPACE": "shop"}
	s := newServer(version, upstreams, func(k string) string { return env[k] })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go s.serveUDP(pc)
	go func() { done <- s.serve(ctx, []net.Listener{ln}, 5*time.Second) }()
	t.Cleanup(func() {
		stop()
		pc.Close()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return "http://" + ln.Addr().String() + "/", pc.LocalAddr().String()
}

// shop runs one command line and returns what it printed.
func shop(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), args, &out)
	return out.String(), err
}

// decode reads one JSON value.
func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
	return v
}

func TestAnswerNamesPodAndClient(t *testing.T) {
	catalog, _ := start(t, "c1")
	orders, udp := start(t, "v2", catalog)
	front, _ := start(t, "f1", orders)

	out, err := shop(t, "get", front)
	if err != nil {
		t.Fatalf("get: %v\n%s", err, out)
	}
	a := decode[answer](t, out)
	if a.Pod != "pod-f1" || a.Node != "n1" || a.Namespace != "shop" || a.Version != "f1" {
		t.Errorf("answer %+v does not name its pod", a)
	}
	if client, err := netip.ParseAddrPort(a.Client); err != nil || client.Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("client %q (%v)", a.Client, err)
	}
	if got := "http://" + a.Server + "/"; got != front {
		t.Errorf("server %q, want %q", got, front)
	}
	if len(a.Upstream) != 1 || a.Upstream[0].Version != "v2" || len(a.Upstream[0].Upstream) != 1 || a.Upstream[0].Upstream[0].Version != "c1" {
		t.Errorf("chain %+v, want v2 then c1", a.Upstream)
	}

	out, err = shop(t, "get", front+"self")
	if a := decode[answer](t, out); err != nil || a.Version != "f1" || len(a.Upstream) != 0 {
		t.Errorf("self: %v, %s; want the front's own answer only", err, out)
	}

	out, err = shop(t, "udp", "-text", "hello", udp)
	if err != nil {
		t.Fatalf("udp: %v\n%s", err, out)
	}
	if a := decode[answer](t, out); a.Pod != "pod-v2" || a.Echo != "hello" || !strings.HasPrefix(a.Client, "127.0.0.1:") {
		t.Errorf("udp answer %+v", a)
	}
}

func TestPodNameDefaultsToHostName(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	s := newServer("", nil, func(k string) string { return map[string]string{"VERSION": "v9"}[k] })
	if s.self.Pod != host || s.self.Version != "v9" {
		t.Errorf("self %+v, want pod %q version v9", s.self, host)
	}
}

func TestUpstreamFailureIsSaid(t *testing.T) {
	front, _ := start(t, "f1", "http://"+closed(t, "tcp")+"/")
	out, err := shop(t, "get", front)
	if !errors.Is(err, errFailed) {
		t.Fatalf("get: %v, want a failure", err)
	}
	if f := decode[failure](t, out); f.Kind != "status" || !strings.Contains(f.Error, "502") || !strings.Contains(f.Error, "refused") {
		t.Errorf("failure %+v does not say why", f)
	}
}

// closed returns a loopback address on which nobody listens.
func closed(t *testing.T, network string) string {
	t.Helper()
	if network == "udp" {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		return pc.LocalAddr().String()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestShutdownFinishesRequests(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	slow, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	upstream := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-leave
		io.WriteString(w, "{}")
	})}
	go upstream.Serve(slow)
	t.Cleanup(func() { upstream.Close() })

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer("v1", []string{"http://" + slow.Addr().String() + "/"}, func(string) string { return "x" })
	ctx, term := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.serve(ctx, []net.Listener{ln}, 30*time.Second) }()

	answered := make(chan error, 1)
	go func() {
		_, err := fetch(t.Context(), http.DefaultClient, "http://"+ln.Addr().String()+"/")
		answered <- err
	}()
	<-entered
	term()
	// The listener closes although a request is still in hand.
	for {
		c, err := net.Dial("tcp", ln.Addr().String())
		if errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		if err == nil {
			c.Close()
		}
	}
	if !s.draining.Load() {
		t.Error("server does not report that it drains")
	}
	select {
	case err := <-served:
		t.Fatalf("serve returned %v with a request in hand", err)
	default:
	}
	close(leave)
	if err := <-answered; err != nil {
		t.Errorf("the request in hand failed: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

// A connection that was accepted before the shutdown gets its answer, even when
// its request arrives after it.
func TestShutdownAnswersWhoIsConnected(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer("v1", nil, func(string) string { return "x" })
	ctx, term := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.serve(ctx, []net.Listener{ln}, 30*time.Second) }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for s.owed.count() == 0 {
		time.Sleep(time.Millisecond)
	}
	term()
	for !s.draining.Load() {
		time.Sleep(time.Millisecond)
	}
	fmt.Fprint(c, "GET /self HTTP/1.1\r\nHost: x\r\n\r\n")
	text, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 200") || !strings.Contains(string(text), "Connection: close") {
		t.Errorf("answer %q, %v", text, err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if n := s.owed.count(); n != 0 {
		t.Errorf("%d connections still owed an answer", n)
	}
}

// held is a listener at which everybody waits until it is opened.
type held struct {
	*net.TCPListener
	opened chan struct{}
}

func (h held) Accept() (net.Conn, error) {
	<-h.opened
	return h.TCPListener.Accept()
}

// A connection that nobody has accepted when the shutdown begins gets its answer too.
func TestShutdownAnswersWhoWaits(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := held{ln.(*net.TCPListener), make(chan struct{})}
	s := newServer("v1", nil, func(string) string { return "x" })
	ctx, term := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.serve(ctx, []net.Listener{h}, 30*time.Second) }()
	var clients []net.Conn
	for range 5 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET /self HTTP/1.1\r\nHost: x\r\n\r\n")
		clients = append(clients, c)
	}
	term()
	for !s.draining.Load() {
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-served:
		t.Fatalf("serve returned %v while clients waited", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(h.opened)
	for _, c := range clients {
		if text, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 200") {
			t.Errorf("answer %q, %v", text, err)
		}
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestReady(t *testing.T) {
	s := newServer("v1", nil, func(string) string { return "x" })
	for _, want := range []int{http.StatusOK, http.StatusServiceUnavailable} {
		w := &recorder{header: http.Header{}, status: http.StatusOK}
		req, _ := http.NewRequest(http.MethodGet, "/ready", nil)
		s.ServeHTTP(w, req)
		if w.status != want {
			t.Errorf("ready: %d, want %d", w.status, want)
		}
		s.draining.Store(true)
	}
}

// recorder keeps the status of an answer.
type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r *recorder) WriteHeader(status int)      { r.status = status }

func TestSummaryCountsByPodAndVersion(t *testing.T) {
	v1, udp := start(t, "v1")
	v2, _ := start(t, "v2")
	for _, args := range [][]string{
		{"get", "-n", "40", "-c", "4", v1, v2},
		{"get", v1, v2, "-n", "40", "--fresh-conn"},
		{"get", "-n", "40", "-rate", "4000", v1, v2},
		{"get", "-n", "40", "-plain", v1 + "/self?x=y", v2},
	} {
		out, err := shop(t, args...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		s := decode[*summary](t, out)
		if s.Sent != 40 || s.OK != 40 || s.Failed != 0 || s.Versions["v1"] != 20 || s.Versions["v2"] != 20 || s.Pods["pod-v1"] != 20 || s.Nodes["n1"] != 40 {
			t.Errorf("%v: %+v", args, s)
		}
		if s.MedianMS <= 0 || s.MaxMS < s.MedianMS || s.P99MS > s.MaxMS {
			t.Errorf("%v: latencies %v %v %v", args, s.MedianMS, s.P99MS, s.MaxMS)
		}
	}
	out, err := shop(t, "udp", "-n", "30", "-c", "3", udp)
	if err != nil {
		t.Fatalf("udp: %v\n%s", err, out)
	}
	if s := decode[*summary](t, out); s.OK != 30 || s.Pods["pod-v1"] != 30 {
		t.Errorf("udp: %+v", s)
	}
}

func TestFailuresByKind(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	missing, _ := start(t, "v1", "http://"+closed(t, "tcp"))
	reset, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer reset.Close()
	go func() {
		for c, err := reset.Accept(); err == nil; c, err = reset.Accept() {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	for _, tc := range []struct {
		kind string
		args []string
	}{
		{"refused", []string{"get", "-n", "3", "http://" + closed(t, "tcp")}},
		{"refused", []string{"udp", "-n", "3", closed(t, "udp")}},
		{"timeout", []string{"udp", "-n", "3", "-timeout", "20ms", silent.LocalAddr().String()}},
		{"status", []string{"get", "-n", "3", missing}},
		{"status", []string{"get", "-n", "3", "-plain", missing}},
		{"refused", []string{"get", "-n", "3", "-plain", "http://" + closed(t, "tcp")}},
		{"reset", []string{"get", "-n", "3", "http://" + reset.Addr().String()}},
		{"reset", []string{"get", "-n", "3", "-plain", "http://" + reset.Addr().String()}},
	} {
		out, err := shop(t, tc.args...)
		if !errors.Is(err, errFailed) {
			t.Errorf("%v: %v, want a failure", tc.args, err)
			continue
		}
		s := decode[*summary](t, out)
		if s.Failed != 3 || s.Kinds[tc.kind] != 3 || len(s.Failures) != 3 {
			t.Errorf("%v: %s", tc.args, out)
		}
		for _, f := range s.Failures {
			if f.Start.IsZero() || f.Error == "" {
				t.Errorf("%v: failure %+v says too little", tc.args, f)
			}
		}
	}
}

func TestKindOf(t *testing.T) {
	for _, tc := range []struct {
		err  error
		kind string
	}{
		{&net.DNSError{IsNotFound: true}, "nxdomain"},
		{&net.DNSError{IsTimeout: true}, "timeout"},
		{&net.DNSError{Err: "server misbehaving"}, "dns"},
		{&net.OpError{Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "refused"},
		{fmt.Errorf("read: %w", io.EOF), "reset"},
		{syscall.ENETUNREACH, "unreachable"},
		{context.DeadlineExceeded, "timeout"},
		{statusError{502, ""}, "status"},
		{errors.New("?"), "other"},
	} {
		if got := kindOf(tc.err); got != tc.kind {
			t.Errorf("kindOf(%v) = %s, want %s", tc.err, got, tc.kind)
		}
	}
}

func TestLoadIsBounded(t *testing.T) {
	for _, tc := range []struct {
		l  load
		ok bool
	}{
		{load{count: 1, timeout: time.Second}, true},
		{load{duration: time.Second, timeout: time.Second}, true},
		{load{rate: 10, duration: time.Second, timeout: time.Second}, true},
		{load{rate: 10, timeout: time.Second}, false},
		{load{count: maxCount + 1, timeout: time.Second}, false},
		{load{count: -1, timeout: time.Second}, false},
		{load{duration: maxDuration + 1, timeout: time.Second}, false},
		{load{count: 1, workers: -1, timeout: time.Second}, false},
		{load{count: 1, rate: -1, timeout: time.Second}, false},
		{load{count: 1}, false},
	} {
		if err := tc.l.check(); (err == nil) != tc.ok {
			t.Errorf("check %+v: %v", tc.l, err)
		}
	}
}

func TestLoadKeepsItsBounds(t *testing.T) {
	var now, most, calls atomic.Int64
	l := load{count: 200, workers: 5, timeout: time.Second}
	s := shoot(t.Context(), l, func(context.Context, int) (answer, error) {
		most.Store(max(most.Load(), now.Add(1)))
		calls.Add(1)
		time.Sleep(time.Millisecond)
		now.Add(-1)
		return answer{}, nil
	})
	if most.Load() > 5 || calls.Load() != 200 || s.OK != 200 {
		t.Errorf("%d in flight, %d calls, %+v", most.Load(), calls.Load(), s)
	}
	// Cancelled, it stops starting requests and still sums up.
	ctx, stop := context.WithCancel(t.Context())
	s = shoot(ctx, load{count: maxCount, workers: 1, timeout: time.Second}, func(_ context.Context, i int) (answer, error) {
		if i == 10 {
			stop()
		}
		return answer{}, nil
	})
	if s.Sent < 11 || s.Sent > 12 {
		t.Errorf("%d requests after the stop at 11", s.Sent)
	}
}

func TestFailuresAreListedUpToABound(t *testing.T) {
	s := shoot(t.Context(), load{count: 3 * maxFailures, workers: 3, timeout: time.Second}, func(context.Context, int) (answer, error) {
		return answer{}, errors.New("no")
	})
	if s.Failed != 3*maxFailures || len(s.Failures) != maxFailures {
		t.Errorf("%d failed, %d listed", s.Failed, len(s.Failures))
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"nonsense"}, {"get"}, {"udp"}, {"watch-name"}, {"dns"}, {"dns", "-type", "X", "a"}, {"serve", "extra"}, {"get", "-n", "-1", "http://x"}} {
		if out, err := shop(t, args...); err == nil || errors.Is(err, errFailed) || out != "" {
			t.Errorf("%v: %v, printed %q; want an error and nothing printed", args, err, out)
		}
	}
}

// zone is a small DNS server on loopback: names it knows it answers with an
// address, others with NXDOMAIN, and "lost." names not at all.
type zone struct {
	addr  string
	known atomic.Pointer[map[string]netip.Addr]
	asked atomic.Int64
	lose  atomic.Int64 // of the next queries, how many get no answer
}

func startZone(t *testing.T, names map[string]netip.Addr) *zone {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	z := &zone{addr: pc.LocalAddr().String()}
	z.known.Store(&names)
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			z.asked.Add(1)
			if z.lose.Add(-1) >= 0 {
				continue
			}
			if msg := z.reply(buf[:n]); msg != nil {
				pc.WriteTo(msg, from)
			}
		}
	}()
	return z
}

// reply builds the answer to a query.
func (z *zone) reply(query []byte) []byte {
	var labels []string
	for off := 12; query[off] != 0; off += int(query[off]) + 1 {
		labels = append(labels, string(query[off+1:off+1+int(query[off])]))
	}
	name := strings.Join(labels, ".")
	if strings.HasPrefix(name, "lost.") {
		return nil
	}
	msg := slices.Clone(query)
	msg[2] |= 0x84
	addr, ok := (*z.known.Load())[name]
	if !ok {
		msg[3] = rcodeNXDomain
		return msg
	}
	if !addr.IsValid() {
		return msg // exists, without records
	}
	msg[7] = 1
	msg = append(msg, 0xc0, 12, 0, typeA, 0, 1, 0, 0, 0, 5, 0, 4)
	return append(msg, addr.AsSlice()...)
}

func TestDNSCounts(t *testing.T) {
	z := startZone(t, map[string]netip.Addr{"orders.shop": netip.MustParseAddr("10.96.0.7"), "empty.shop": {}})
	for _, tc := range []struct {
		name, kind string
	}{
		{"orders.shop", ""},
		{"orders.shop.", ""},
		{"nothing.shop", "nxdomain"},
		{"empty.shop", "dns"},
		{"lost.shop", "timeout"},
	} {
		out, err := shop(t, "dns", "-server", z.addr, "-n", "5", "-c", "5", "-timeout", "200ms", tc.name)
		s := decode[*summary](t, out)
		if tc.kind == "" {
			if err != nil || s.OK != 5 {
				t.Errorf("%s: %v, %s", tc.name, err, out)
			}
		} else if !errors.Is(err, errFailed) || s.Kinds[tc.kind] != 5 {
			t.Errorf("%s: %v, %s; want 5 of %s", tc.name, err, out, tc.kind)
		}
	}
}

func TestUnpackReply(t *testing.T) {
	query, err := packQuery(7, "orders.shop.svc.cluster.local.", typeA)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("10.96.0.7")
	z := &zone{}
	z.known.Store(&map[string]netip.Addr{"orders.shop.svc.cluster.local": addr})
	msg := z.reply(query)
	r, err := unpackReply(msg, 7)
	if err != nil || r.rcode != rcodeSuccess || r.records != 1 || !reflect.DeepEqual(r.addrs, []netip.Addr{addr}) {
		t.Errorf("reply %+v, %v", r, err)
	}
	if _, err := unpackReply(msg, 8); err == nil {
		t.Error("an answer to another question was taken")
	}
	if _, err := unpackReply(query, 7); err == nil {
		t.Error("a query was taken for an answer")
	}
	for n := range msg {
		if _, err := unpackReply(msg[:n], 7); err == nil {
			t.Errorf("%d of %d bytes were taken for an answer", n, len(msg))
		}
	}
	// Whatever arrives, reading it ends, without a panic.
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 20000 {
		m := slices.Clone(msg)
		for range 1 + rnd.IntN(6) {
			m[rnd.IntN(len(m))] = byte(rnd.Uint32())
		}
		unpackReply(m[:rnd.IntN(len(m)+1)], binary.BigEndian.Uint16(m))
	}
}

func TestPackQueryRefuses(t *testing.T) {
	for _, name := range []string{"", "a..b", strings.Repeat("x", 64) + ".y", strings.Repeat("abcdefg.", 40)} {
		if _, err := packQuery(1, name, typeA); err == nil {
			t.Errorf("packed %q", name)
		}
	}
}

func TestCandidates(t *testing.T) {
	c, err := readResolver(strings.NewReader("# pod\nnameserver 10.96.0.10\nnameserver 10.96.0.11\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.server != "10.96.0.10:53" || c.ndots != 5 {
		t.Errorf("resolver %+v", c)
	}
	for _, tc := range []struct{ name, want string }{
		{"orders", "orders.shop.svc.cluster.local orders.svc.cluster.local orders.cluster.local orders"},
		{"orders.shop", "orders.shop.shop.svc.cluster.local orders.shop.svc.cluster.local orders.shop.cluster.local orders.shop"},
		{"a.b.c.d.e.f", "a.b.c.d.e.f a.b.c.d.e.f.shop.svc.cluster.local a.b.c.d.e.f.svc.cluster.local a.b.c.d.e.f.cluster.local"},
		{"orders.shop.svc.cluster.local.", "orders.shop.svc.cluster.local"},
	} {
		if got := strings.Join(c.candidates(tc.name), " "); got != tc.want {
			t.Errorf("candidates(%s) = %s, want %s", tc.name, got, tc.want)
		}
	}
	if _, err := readResolver(strings.NewReader("search a b\n")); err == nil {
		t.Error("a resolv.conf without a nameserver was taken")
	}
}

func TestWatchSeesTheNameAppear(t *testing.T) {
	url, _ := start(t, "v1")
	_, port, _ := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/"))
	z := startZone(t, map[string]netip.Addr{})
	go func() {
		for z.asked.Load() < 20 {
			time.Sleep(time.Millisecond)
		}
		z.known.Store(&map[string]netip.Addr{"new.shop": netip.MustParseAddr("127.0.0.1")})
	}()
	c := resolver{server: z.addr, search: []string{"nowhere", "shop"}, ndots: 5}
	s := c.watch(t.Context(), "new", port, 10*time.Second, 0)
	if s.Outcome != "ok" || s.Addr != "127.0.0.1" || s.Pod != "pod-v1" || s.Missing < 19 || s.TakenBack != 0 || s.AskedAfter == 0 || s.FirstOK.Before(s.FirstAnswer) {
		t.Errorf("sighting %+v", s)
	}
}

func TestWatchAtARate(t *testing.T) {
	url, _ := start(t, "v1")
	_, port, _ := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/"))
	z := startZone(t, map[string]netip.Addr{})
	created := make(chan time.Time, 1)
	go func() {
		for z.asked.Load() < 100 {
			time.Sleep(time.Millisecond)
		}
		z.known.Store(&map[string]netip.Addr{"new.shop": netip.MustParseAddr("127.0.0.1")})
		created <- time.Now()
	}()
	c := resolver{server: z.addr, search: []string{"shop"}, ndots: 5}
	s := c.watch(t.Context(), "new", port, 10*time.Second, 5000)
	if s.Outcome != "ok" || s.Addr != "127.0.0.1" || s.Missing < 99 || s.TakenBack != 0 || s.AskedAfter == 0 || s.Lost != 0 {
		t.Errorf("sighting %+v", s)
	}
	if s.LastMissing.IsZero() || s.LastMissing.After(<-created) || s.FirstOK.Before(s.FirstAnswer) {
		t.Errorf("the last denial was of a query sent at %v, the first answer came at %v", s.LastMissing, s.FirstAnswer)
	}
}

// What is not answered within a second is lost, also if it was asked a moment before the end.
func TestWatchAtARateCountsWhatIsLost(t *testing.T) {
	url, _ := start(t, "v1")
	_, port, _ := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/"))
	z := startZone(t, map[string]netip.Addr{"new.shop": netip.MustParseAddr("127.0.0.1")})
	z.lose.Store(5)
	s := resolver{server: z.addr, search: []string{"shop"}, ndots: 5}.watch(t.Context(), "new", port, 10*time.Second, 5000)
	if s.Outcome != "ok" || s.Lost != 5 || s.Asked+s.AskedAfter == 0 {
		t.Errorf("sighting %+v, want 5 lost", s)
	}
}

func TestWatchSeesAnswersTakenBack(t *testing.T) {
	_, port, _ := net.SplitHostPort(closed(t, "tcp"))
	for _, rate := range []int{0, 5000} {
		z := startZone(t, map[string]netip.Addr{"new.shop": netip.MustParseAddr("127.0.0.1")})
		go func() {
			for z.asked.Load() < 3 {
				time.Sleep(time.Millisecond)
			}
			z.known.Store(&map[string]netip.Addr{})
		}()
		s := resolver{server: z.addr, search: []string{"shop"}, ndots: 5}.watch(t.Context(), "new", port, 10*time.Second, rate)
		if s.Outcome != "refused" || s.TakenBack == 0 {
			t.Errorf("rate %d: sighting %+v, want refused and an answer taken back", rate, s)
		}
	}
}

func TestWatchGivesUp(t *testing.T) {
	z := startZone(t, map[string]netip.Addr{})
	for _, rate := range []int{0, 1000} {
		s := resolver{server: z.addr, search: []string{"shop"}, ndots: 5}.watch(t.Context(), "never", "80", 50*time.Millisecond, rate)
		if s.Outcome != "timeout" || s.Asked == 0 || s.Error == "" {
			t.Errorf("sighting %+v", s)
		}
	}
}
