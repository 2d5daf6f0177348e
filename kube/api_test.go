// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/model"
)

// patience bounds what a test waits for; nothing that works takes so long.
const patience = 30 * time.Second

func nothing(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("nothing is there")
}

// api is an API server that has one Service, x/web, and can be told to misbehave. It is plain HTTP underneath: what is under test is a client.
type api struct {
	t *testing.T
	// misbehave is asked first; it answers and returns true, or returns false.
	misbehave func(w http.ResponseWriter, r *http.Request, what string) bool
	// slice is an EndpointSlice that it has too, if not empty.
	slice string

	mu      sync.Mutex
	version int
	asked   []string // RESOURCE stream|list|watch@VERSION
	streams map[chan string]string
	note    chan struct{} // closed and made anew when asked has grown
}

func newAPI(t *testing.T) *api {
	return &api{t: t, version: 10, streams: make(map[chan string]string), note: make(chan struct{})}
}

const webJSON = `{"kind":"Service","apiVersion":"v1","metadata":{"name":%q,"namespace":"x","resourceVersion":"%d"},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":80}]}}`

var kinds = map[string][2]string{"services": {"Service", "v1"}, "endpointslices": {"EndpointSlice", "discovery.k8s.io/v1"}, "nodes": {"Node", "v1"}, "pods": {"Pod", "v1"}}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := path.Base(r.URL.Path)
	q := r.URL.Query()
	what := "list"
	switch {
	case q.Get("sendInitialEvents") == "true":
		what = "stream"
	case q.Get("watch") != "":
		what = "watch"
	}
	w.Header().Set("Content-Type", "application/json")
	kind, known := kinds[resource]
	if !known { // the discovery of networking.k8s.io/v1
		fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"networking.k8s.io/v1","resources":[]}`)
		return
	}
	a.mu.Lock()
	a.asked = append(a.asked, fmt.Sprintf("%s %s@%s", resource, what, q.Get("resourceVersion")))
	close(a.note)
	a.note = make(chan struct{})
	misbehave := a.misbehave
	a.mu.Unlock()
	if misbehave != nil && misbehave(w, r, resource+" "+what) {
		return
	}
	a.mu.Lock()
	version := a.version
	events := make(chan string, 100)
	a.streams[events] = resource
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.streams, events)
		a.mu.Unlock()
	}()
	if what == "list" {
		fmt.Fprintf(w, `{"kind":"%sList","apiVersion":%q,"metadata":{"resourceVersion":"%d"},"items":[%s]}`, kind[0], kind[1], version, a.first(resource, version))
		return
	}
	if what == "stream" {
		if object := a.first(resource, version); object != "" {
			event(w, "ADDED", object)
		}
		event(w, "BOOKMARK", fmt.Sprintf(`{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":"%d","annotations":{%q:"true"}}}`, kind[0], kind[1], version, metav1.InitialEventsAnnotationKey))
	}
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case e := <-events:
			if e == "" {
				return
			}
			fmt.Fprint(w, e)
			_ = http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// first is the object of a resource that is there from the beginning; empty if none is.
func (a *api) first(resource string, version int) string {
	switch resource {
	case "services":
		return fmt.Sprintf(webJSON, "web", version)
	case "endpointslices":
		return a.slice
	}
	return ""
}

func event(w http.ResponseWriter, kind, object string) {
	fmt.Fprintf(w, "{\"type\":%q,\"object\":%s}\n", kind, object)
	_ = http.NewResponseController(w).Flush()
}

// send makes every watch of a resource get an event; an empty one ends it. It waits for one to be there.
func (a *api) send(resource, kind, object string) {
	a.t.Helper()
	a.until("a watch of "+resource, func() bool {
		found := false
		for c, of := range a.streams {
			if of == resource {
				found = true
				if kind == "" {
					c <- ""
					delete(a.streams, c)
				} else {
					c <- fmt.Sprintf("{\"type\":%q,\"object\":%s}\n", kind, object)
				}
			}
		}
		return found
	})
}

// until waits for something to hold, which is asked under the lock.
func (a *api) until(what string, ok func() bool) {
	a.t.Helper()
	deadline := time.After(patience)
	for {
		a.mu.Lock()
		done, next := ok(), a.note
		asked := slices.Clone(a.asked)
		a.mu.Unlock()
		if done {
			return
		}
		select {
		case <-next:
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			a.t.Fatalf("no %s; asked %v", what, asked)
		}
	}
}

func (a *api) behave(misbehave func(w http.ResponseWriter, r *http.Request, what string) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.misbehave = misbehave
}

// demand has the API server refuse every request that does not show the credentials that were accepted last.
func (a *api) demand(shown func(*http.Request) string) (accept func(credentials string)) {
	return func(credentials string) {
		a.behave(func(w http.ResponseWriter, r *http.Request, _ string) bool {
			if shown(r) == credentials {
				return false
			}
			refuse(w, 401, metav1.StatusReasonUnauthorized, "Unauthorized")
			return true
		})
	}
}

// count is how often something was asked for, by the beginning of it.
func (a *api) count(what string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.asked {
		if strings.HasPrefix(s, what) {
			n++
		}
	}
	return n
}

// refuse answers with an API server's status.
func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message})
}

// journal is a log that tests can read while it is written.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// listener is a running source on a configuration.
type listener struct {
	*Source
	t   *testing.T
	log *journal
}

func listenTo(t *testing.T, cfg *rest.Config, servers ...string) *listener {
	t.Helper()
	client, err := NewClientFor(cfg, servers...)
	if err != nil {
		t.Fatal(err)
	}
	return listenWith(t, client)
}

func listenWith(t *testing.T, client *Client, edit ...func(*Source)) *listener {
	t.Helper()
	l := &listener{t: t, log: new(journal)}
	l.Source = New(Options{Client: client, Config: model.Config{Self: "n1"}, Logger: slog.New(slog.NewTextHandler(l.log, nil))})
	for _, f := range edit {
		f(l.Source)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return l
}

// wait is for something to hold; what arrives is waited for, and troubles are looked at now and then.
func (l *listener) wait(what string, ok func() bool) {
	l.t.Helper()
	for deadline := time.After(patience); !ok(); {
		select {
		case <-l.Changed():
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			l.t.Fatalf("no %s; troubles %q; waits for %v; log:\n%s", what, l.Troubles(), l.Waiting(), l.log)
		}
	}
}

// has reports whether there is a snapshot with just these Services of namespace x.
func (l *listener) has(names ...string) func() bool {
	return func() bool {
		s := l.Snapshot()
		if s == nil || s.Services.Len() != len(names) {
			return false
		}
		for _, n := range names {
			if _, ok := s.Services.Get(model.Name{Namespace: "x", Name: n}); !ok {
				return false
			}
		}
		return true
	}
}

// troubled reports whether a trouble says something.
func (l *listener) troubled(says string) func() bool {
	return func() bool { return strings.Contains(strings.Join(l.Troubles(), "\n"), says) }
}

func (l *listener) fine() bool { return len(l.Troubles()) == 0 }
