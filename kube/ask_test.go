// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

func serveAPI(t *testing.T) (*api, *rest.Config) {
	t.Helper()
	a := newAPI(t)
	web := httptest.NewServer(a)
	t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	return a, &rest.Config{Host: web.URL}
}

// listenBriefly is a source for which a watch need not last long to be good.
func listenBriefly(t *testing.T, cfg *rest.Config) *listener {
	t.Helper()
	client, err := NewClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return listenWith(t, client, func(s *Source) {
		for _, w := range s.watches {
			w.asker.brief = 300 * time.Millisecond
		}
	})
}

// TestRefusals: what an API server may answer instead of a list is named while it lasts, once in the log, and costs nothing that was known; when it
// is over, the list comes.
func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(w http.ResponseWriter)
		says   string
	}{
		{"a missing rule", func(w http.ResponseWriter) {
			refuse(w, 403, metav1.StatusReasonForbidden, `services is forbidden: User "fairlead" cannot list resource "services" in API group "" at the cluster scope`)
		}, `the API server forbids listing services (services is forbidden: User "fairlead" cannot list resource "services" in API group "" at the cluster scope): add the verbs list and watch of resource services in API group "" to the agent's ClusterRole`},
		{"credentials that do not count", func(w http.ResponseWriter) { refuse(w, 401, metav1.StatusReasonUnauthorized, "Unauthorized") },
			"the API server does not accept this agent's credentials for listing services (Unauthorized)"},
		{"too many requests", func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "Too many requests, please try again later.", 429)
		}, "the API server has too many requests and wants to be asked for services later"},
		{"an internal error", func(w http.ResponseWriter) {
			refuse(w, 500, metav1.StatusReasonInternalError, "etcdserver: no leader")
		}, "the API server fails to list services: etcdserver: no leader"},
		{"unavailable", func(w http.ResponseWriter) { http.Error(w, "starting", 503) }, "the API server fails to list services"},
		{"a proxy's page", func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(502)
			fmt.Fprint(w, "<html>Bad Gateway</html>")
		}, "the API server fails to list services"},
		{"a broken answer", func(w http.ResponseWriter) { panic(http.ErrAbortHandler) }, "the connection broke while services were asked for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a, cfg := serveAPI(t)
			a.behave(func(w http.ResponseWriter, _ *http.Request, what string) bool {
				if strings.HasPrefix(what, "services ") {
					tt.answer(w)
					return true
				}
				return false
			})
			l := listenBriefly(t, cfg)
			l.wait("trouble", l.troubled(tt.says))
			a.until("third try", func() bool { return strings.Count(strings.Join(a.asked, "\n"), "services ") >= 3 })
			if got := l.Waiting(); len(got) == 0 || got[0] != "services" {
				t.Errorf("waits for %v", got)
			}
			if n := strings.Count(l.log.String(), "hears nothing new"); n != 1 {
				t.Errorf("logged %d times:\n%s", n, l.log)
			}
			a.behave(nil)
			l.wait("list", l.has("web"))
			l.wait("end of the trouble", l.fine)
			if !strings.Contains(l.log.String(), "this is over") {
				t.Errorf("the end is not logged:\n%s", l.log)
			}

			// The same in the middle of the work: nothing is lost, and what comes after it arrives.
			var refused atomic.Int32
			a.behave(func(w http.ResponseWriter, _ *http.Request, what string) bool {
				if strings.HasPrefix(what, "services ") {
					refused.Add(1)
					tt.answer(w)
					return true
				}
				return false
			})
			a.send("services", "", "")
			l.wait("trouble", l.troubled(tt.says))
			if !l.has("web")() {
				t.Error("what was known is gone")
			}
			a.behave(nil)
			a.send("services", "ADDED", fmt.Sprintf(webJSON, "new", 11))
			l.wait("new Service", l.has("web", "new"))
			if a.count("services list") > 0 {
				t.Errorf("asked for a plain list: %v", a.asked)
			}
		})
	}
}

// TestRetryAfter: an API server that wants to be left alone for a second is.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	a, cfg := serveAPI(t)
	var refused atomic.Pointer[time.Time]
	var early atomic.Int32
	a.behave(func(w http.ResponseWriter, _ *http.Request, what string) bool {
		if !strings.HasPrefix(what, "services ") {
			return false
		}
		now := time.Now()
		if was := refused.Swap(&now); was != nil && now.Sub(*was) < time.Second {
			early.Add(1)
		}
		w.Header().Set("Retry-After", "1")
		http.Error(w, "Too many requests, please try again later.", 429)
		return true
	})
	l := listenTo(t, cfg)
	a.until("third try", func() bool { return strings.Count(strings.Join(a.asked, "\n"), "services ") >= 3 })
	if early.Load() > 0 {
		t.Errorf("asked again within the second %d times", early.Load())
	}
	a.behave(nil)
	l.wait("list", l.has("web"))
}

// TestResume: a watch that ends, in whatever way, goes on where it was: nothing is listed again.
func TestResume(t *testing.T) {
	a, cfg := serveAPI(t)
	l := listenTo(t, cfg)
	l.wait("list", l.has("web"))
	a.send("services", "ADDED", fmt.Sprintf(webJSON, "second", 17))
	l.wait("event", l.has("web", "second"))
	var broken atomic.Int32
	a.behave(func(_ http.ResponseWriter, _ *http.Request, what string) bool {
		if strings.HasPrefix(what, "services ") && broken.Add(1) <= 3 {
			panic(http.ErrAbortHandler)
		}
		return false
	})
	a.send("services", "", "")
	a.send("services", "ADDED", fmt.Sprintf(webJSON, "third", 18))
	l.wait("event", l.has("web", "second", "third"))
	if n := a.count("services stream"); n != 1 {
		t.Errorf("listed %d times: %v", n, a.asked)
	}
	if a.count("services watch@17") != 4 {
		t.Errorf("not from where it was: %v", a.asked)
	}
}

// TestResumeAtOnce: so does one that ends before anything was heard by it, the list's own and those after it.
func TestResumeAtOnce(t *testing.T) {
	a, cfg := serveAPI(t)
	var begun atomic.Int32
	a.behave(func(w http.ResponseWriter, _ *http.Request, what string) bool {
		if !strings.HasPrefix(what, "services ") || begun.Add(1) > 4 {
			return false
		}
		if what == "services stream" {
			event(w, "ADDED", fmt.Sprintf(webJSON, "web", 10))
			event(w, "BOOKMARK", `{"kind":"Service","apiVersion":"v1","metadata":{"resourceVersion":"10","annotations":{"k8s.io/initial-events-end":"true"}}}`)
		}
		return true // and no more
	})
	l := listenTo(t, cfg)
	l.wait("list", l.has("web"))
	a.until("the watch that stays", func() bool { return begun.Load() > 4 })
	a.send("services", "ADDED", fmt.Sprintf(webJSON, "second", 11))
	l.wait("event", l.has("web", "second"))
	if a.count("services stream") != 1 || a.count("services list") != 0 {
		t.Errorf("listed again: %v", a.asked)
	}
}

// TestLasting: a watch that ends tells so where there is something to go on from; one that is stopped ends, whoever still listens, and leaves nothing running.
func TestLasting(t *testing.T) {
	for name, tt := range map[string]struct {
		listed bool
		events []watch.EventType
		want   string
	}{
		"a watch":                       {true, nil, "ERROR"},
		"a watch with an event":         {true, []watch.EventType{watch.Modified}, "MODIFIED ERROR"},
		"a list that breaks off":        {false, []watch.EventType{watch.Added}, "ADDED"},
		"a list that came to its end":   {false, []watch.EventType{watch.Added, watch.Bookmark}, "ADDED BOOKMARK ERROR"},
		"a list that has never come in": {false, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from := watch.NewFakeWithChanSize(len(tt.events), false)
				for _, e := range tt.events {
					from.Action(e, nil)
				}
				from.Stop()
				var got []string
				for e := range lasting(from, tt.listed).ResultChan() {
					got = append(got, string(e.Type))
					if e.Type == watch.Error && !apierrors.IsInternalError(apierrors.FromObject(e.Object)) {
						t.Errorf("it ends with %v", e.Object)
					}
				}
				if text := strings.Join(got, " "); text != tt.want {
					t.Errorf("%q, want %q", text, tt.want)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		from := watch.NewFakeWithChanSize(1, false)
		from.Action(watch.Modified, nil)
		w := lasting(from, true)
		synctest.Wait() // it holds the event, which nobody takes
		w.Stop()
		w.Stop()
		synctest.Wait()
		if e, open := <-w.ResultChan(); open {
			t.Errorf("%s after it was stopped", e.Type)
		}
	})
}

// TestGone: a watch that cannot go on where it was is listed again, and what is gone meanwhile is gone.
func TestGone(t *testing.T) {
	for name, gone := range map[string]func(w http.ResponseWriter){
		"as the answer": func(w http.ResponseWriter) {
			refuse(w, 410, metav1.StatusReasonExpired, "too old resource version: 10 (12)")
		},
		"in the watch": func(w http.ResponseWriter) {
			event(w, "ERROR", `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410,"message":"too old resource version: 10 (12)"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, cfg := serveAPI(t)
			l := listenTo(t, cfg)
			l.wait("list", l.has("web"))
			a.send("services", "ADDED", fmt.Sprintf(webJSON, "second", 11))
			l.wait("event", l.has("web", "second"))
			a.behave(func(w http.ResponseWriter, _ *http.Request, what string) bool {
				if what == "services watch" {
					gone(w)
					return true
				}
				return false
			})
			a.send("services", "", "")
			l.wait("new list", l.has("web"))
			if a.count("services stream") != 2 || a.count("services list") != 0 {
				t.Errorf("asked %v", a.asked)
			}
		})
	}
}

// TestNoStorm: an API server that says 410 to whatever it is asked, or ends each watch at once, is asked less and less often.
func TestNoStorm(t *testing.T) {
	for name, bad := range map[string]func(w http.ResponseWriter){
		"gone":      func(w http.ResponseWriter) { refuse(w, 410, metav1.StatusReasonExpired, "too old") },
		"bad":       func(w http.ResponseWriter) { refuse(w, 400, metav1.StatusReasonBadRequest, "what?") },
		"ends":      func(http.ResponseWriter) {},
		"nonsense":  func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") },
		"no object": func(w http.ResponseWriter) { event(w, "ADDED", `{"kind":"Pod","apiVersion":"v1"}`) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, cfg := serveAPI(t)
			a.behave(func(w http.ResponseWriter, _ *http.Request, what string) bool {
				if strings.HasPrefix(what, "services ") {
					bad(w)
					return true
				}
				return false
			})
			began := time.Now()
			l := listenBriefly(t, cfg)
			a.until("five tries", func() bool { return strings.Count(strings.Join(a.asked, "\n"), "services ") >= 5 })
			// The first two are for free; the pauses before the others come to 0.7 s at least.
			if took := time.Since(began); took < 700*time.Millisecond {
				t.Errorf("five tries in %v", took)
			}
			l.wait("trouble", l.troubled("services"))
			if n := strings.Count(l.log.String(), "\n"); n != 1 {
				t.Errorf("logged %d times:\n%s", n, l.log)
			}
			a.behave(nil)
			l.wait("list", l.has("web"))
			l.wait("end of the trouble", l.fine)
		})
	}
}

// TestLostBookmark: a list that streams in and never says that it is complete is given up for a plain one.
func TestLostBookmark(t *testing.T) {
	a, cfg := serveAPI(t)
	a.behave(func(w http.ResponseWriter, r *http.Request, what string) bool {
		if what != "services stream" {
			return false
		}
		event(w, "ADDED", fmt.Sprintf(webJSON, "web", 10))
		<-r.Context().Done()
		return true
	})
	client, err := NewClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := listenWith(t, client, func(s *Source) {
		for _, w := range s.watches {
			w.asker.slow = 100 * time.Millisecond
		}
	})
	l.wait("list", l.has("web"))
	if a.count("services list") != 1 {
		t.Errorf("asked %v", a.asked)
	}
	a.send("services", "ADDED", fmt.Sprintf(webJSON, "next", 11))
	l.wait("event", l.has("web", "next"))
}

// TestSlow: an API server that takes its time is waited for, and named.
func TestSlow(t *testing.T) {
	a, cfg := serveAPI(t)
	release := make(chan struct{})
	a.behave(func(_ http.ResponseWriter, r *http.Request, what string) bool {
		if what == "services stream" {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		return false
	})
	client, err := NewClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := listenWith(t, client, func(s *Source) { s.watches[0].asker.slow = 100 * time.Millisecond })
	l.wait("trouble", l.troubled("the API server has not answered the request to list services for 100ms, which goes on"))
	close(release)
	l.wait("list", l.has("web"))
	l.wait("end of the trouble", l.fine)
	if a.count("services") != 1 {
		t.Errorf("asked more than once: %v", a.asked)
	}
}

// TestNoRanges: of an API server that has no ServiceCIDRs, none are kept that were known before.
func TestNoRanges(t *testing.T) {
	_, cfg := serveAPI(t)
	client, err := NewClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := listenWith(t, client, func(s *Source) {
		s.builder.SetServiceCIDR("old", []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")})
	})
	l.wait("end of the range", func() bool { return l.has("web")() && len(l.Snapshot().ServiceCIDRs) == 0 })
}

// TestPause: the pauses grow, and not beyond their bound.
func TestPause(t *testing.T) {
	for failures, want := range map[int]time.Duration{0: 0, 1: 0, 2: 100 * time.Millisecond, 3: 200 * time.Millisecond, 7: 3200 * time.Millisecond, 8: pauseMost, 9: pauseMost, 1 << 40: pauseMost} {
		if got := pause(failures); got != want {
			t.Errorf("after %d failures %v, want %v", failures, got, want)
		}
	}
}
