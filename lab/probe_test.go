// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestHandlers: what makes a single try of a probe or a hook a success.
func TestHandlers(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/code/", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/code/"))
		w.WriteHeader(code)
	})
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/code/500", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/query", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("a") != "b" {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "shop.example" || r.Header.Get("X-Probe") != "yes" || !strings.HasPrefix(r.UserAgent(), "kube-probe/") {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 10*maxProbeBody)) })
	plain, secure := httptest.NewServer(mux), httptest.NewUnstartedServer(mux)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer plain.Close()
	defer secure.Close()
	addr := func(s *httptest.Server) netip.AddrPort {
		return netip.MustParseAddrPort(s.Listener.Addr().String())
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := int32(closed.Addr().(*net.TCPAddr).Port)
	closed.Close()
	var dials atomic.Int32
	d := doer{
		spec: &corev1.Container{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: int32(addr(plain).Port())}}},
		addr: addr(plain).Addr(),
		dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
		exec: func(ctx context.Context, argv []string) (int, string, error) {
			switch argv[0] {
			case "slow":
				<-ctx.Done()
				return 137, "", nil
			case "missing":
				return 0, "", errors.New(`exec: "missing": executable file not found in $PATH`)
			}
			code, err := strconv.Atoi(argv[0])
			return code, "said " + argv[0], err
		},
	}
	get := func(path string, change ...func(*corev1.HTTPGetAction)) handler {
		a := &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("http")}
		for _, f := range change {
			f(a)
		}
		return handler{http: a}
	}
	tcp := func(port intstr.IntOrString) handler { return handler{tcp: &corev1.TCPSocketAction{Port: port}} }
	run := func(argv ...string) handler { return handler{exec: &corev1.ExecAction{Command: argv}} }
	for _, tc := range []struct {
		name string
		h    handler
		want string // of the error
	}{
		{"200", get("/code/200"), ""},
		{"without a slash", get("code/204"), ""},
		{"399", get("/code/399"), ""},
		{"400", get("/code/400"), "statuscode: 400"},
		{"503", get("/code/503"), "statuscode: 503"},
		{"query", get("/query?a=b"), ""},
		{"redirect on the host is followed", get("/here"), "statuscode: 500"},
		{"redirect away is a success", get("/away"), ""},
		{"redirect for ever", get("/loop"), ""},
		{"large answer", get("/large"), ""},
		{"headers", get("/headers", func(a *corev1.HTTPGetAction) {
			a.HTTPHeaders = []corev1.HTTPHeader{{Name: "host", Value: "shop.example"}, {Name: "X-Probe", Value: "yes"}}
		}), ""},
		{"https, certificate not looked at", get("/code/200", func(a *corev1.HTTPGetAction) {
			a.Scheme, a.Port = corev1.URISchemeHTTPS, intstr.FromInt32(int32(addr(secure).Port()))
		}), ""},
		{"http to https", get("/code/200", func(a *corev1.HTTPGetAction) { a.Port = intstr.FromInt32(int32(addr(secure).Port())) }), "statuscode: 400"},
		{"host", get("/code/200", func(a *corev1.HTTPGetAction) { a.Host = "127.0.0.1" }), ""},
		{"slow", get("/slow"), "deadline exceeded"},
		{"unknown port name", get("/", func(a *corev1.HTTPGetAction) { a.Port = intstr.FromString("ftp") }), `no port named "ftp"`},
		{"nobody listens", get("/", func(a *corev1.HTTPGetAction) { a.Port = intstr.FromInt32(nobody) }), "refused"},
		{"tcp", tcp(intstr.FromString("http")), ""},
		{"tcp, nobody listens", tcp(intstr.FromInt32(nobody)), "refused"},
		{"tcp, no port", tcp(intstr.FromInt32(0)), "port 0"},
		{"command", run("0"), ""},
		{"command that fails", run("3"), `command "3" exited with 3: said 3`},
		{"command that is slow", run("slow"), `command "slow" timed out`},
		{"command that is not there", run("missing"), "executable file not found"},
		{"sleep", handler{wait: &corev1.SleepAction{}}, ""},
		{"sleep beyond the time", handler{wait: &corev1.SleepAction{Seconds: 1000}}, "deadline exceeded"},
		{"nothing", handler{}, "no action"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if strings.Contains(tc.want, "deadline") || strings.Contains(tc.want, "timed out") {
			ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
		}
		err := d.do(ctx, tc.h)
		cancel()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	// Every try proves that a new connection is possible.
	dials.Store(0)
	for range 3 {
		d.do(t.Context(), get("/code/200"))
	}
	if n := dials.Load(); n != 3 {
		t.Errorf("%d connections for three tries", n)
	}
}

// TestRunProbe drives probes by a clock of their own: when tries are made, and what is told of them.
func TestRunProbe(t *testing.T) {
	for _, tc := range []struct {
		name  string
		kind  probeKind
		probe corev1.Probe
		good  func(time.Duration) bool // whether a try at that time succeeds
		tries []time.Duration
		told  string
	}{
		{"ready from the start", readinessProbe, corev1.Probe{PeriodSeconds: 10}, func(time.Duration) bool { return true },
			[]time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second}, "+0s"},
		{"ready after 350 ms, known after 700", readinessProbe, corev1.Probe{PeriodSeconds: 10}, func(d time.Duration) bool { return d > 350*time.Millisecond },
			[]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond, 10700 * time.Millisecond, 20700 * time.Millisecond, 30700 * time.Millisecond}, "+700ms"},
		{"the initial delay is kept", readinessProbe, corev1.Probe{PeriodSeconds: 10, InitialDelaySeconds: 15}, func(time.Duration) bool { return true },
			[]time.Duration{15 * time.Second, 25 * time.Second}, "+15s"},
		{"liveness lost", livenessProbe, corev1.Probe{PeriodSeconds: 5, FailureThreshold: 2}, func(d time.Duration) bool { return d < 12*time.Second },
			[]time.Duration{0, 5 * time.Second, 10 * time.Second, 15 * time.Second, 20 * time.Second, 25 * time.Second, 30 * time.Second}, "+0s -20s"},
	} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 34*time.Second)
			defer cancel()
			if len(tc.tries) == 2 {
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
			}
			var tries []time.Duration
			var told []string
			runProbe(ctx, tc.kind, &tc.probe, func(context.Context) error {
				at := time.Since(start)
				tries = append(tries, at)
				if !tc.good(at) {
					return errors.New("no")
				}
				return nil
			}, func(r probeResult) {
				told = append(told, map[bool]string{true: "+", false: "-"}[r.ok]+time.Since(start).String())
			})
			if got, want := len(tries), len(tc.tries); got != want {
				t.Fatalf("%s: tries at %v, want %v", tc.name, tries, tc.tries)
			}
			for i := range tries {
				if tries[i] != tc.tries[i] {
					t.Errorf("%s: tries at %v, want %v", tc.name, tries, tc.tries)
					break
				}
			}
			if got := strings.Join(told, " "); got != tc.told {
				t.Errorf("%s: told %q, want %q", tc.name, got, tc.told)
			}
		})
	}
}
