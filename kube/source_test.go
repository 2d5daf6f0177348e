// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/fairlead/fairlead/model"
)

// heard counts what a source tells.
type heard struct{ services, endpoints, queued int }

func (h *heard) ServiceChanged()   { h.services++ }
func (h *heard) EndpointsChanged() { h.endpoints++ }
func (h *heard) Queued()           { h.queued++ }

// feed plays a reflector's part for a source: whatever comes, it comes by the methods of the store that client-go calls.
type feed struct {
	t     *testing.T
	s     *Source
	whole bool // watches bring objects whole, as they do where the API server does not speak protobuf
	heard heard
	log   strings.Builder
}

func newFeed(t *testing.T) *feed { return newFeedKeeping(t, nil) }

// newFeedKeeping is a feed of a source that knows something already.
func newFeedKeeping(t *testing.T, kept *model.Builder) *feed {
	t.Helper()
	client, err := NewClientFor(&rest.Config{Host: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	f := &feed{t: t}
	f.s = New(Options{Client: client, Config: model.Config{Self: "n1", PassOn: true}, Kept: kept, Events: &f.heard, Logger: slog.New(slog.NewTextHandler(&f.log, nil))})
	return f
}

// store is what the reflector of a resource writes to.
func (f *feed) store(resource string) *watched {
	for _, w := range append(slices.Clone(f.s.watches), f.s.ranges) {
		if w.resource == resource {
			return w
		}
	}
	f.t.Fatalf("nobody watches %s", resource)
	return nil
}

// brought is an object as a watch brings it.
func (f *feed) brought(o runtime.Object) runtime.Object {
	if _, is := o.(*message); f.whole || is {
		return o
	}
	return sent(f.t, o)
}

// stream lists objects as client-go does it by a watch: into a store of its own, with the source's Transformer, which then replaces all.
func (f *feed) stream(resource string, list ...runtime.Object) {
	f.t.Helper()
	w := f.store(resource)
	temporary := cache.NewStore(cache.DeletionHandlingMetaNamespaceKeyFunc, cache.WithTransformer(w.Transformer()))
	for _, o := range list {
		if err := temporary.Add(f.brought(o)); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, o := range temporary.List() {
		if _, whole := o.(*shrunk); !whole {
			f.t.Errorf("%T is kept whole while %s stream in", o, resource)
		}
	}
	if err := w.Replace(temporary.List(), "1"); err != nil {
		f.t.Fatal(err)
	}
}

// page lists objects as client-go does it where lists cannot be streamed.
func (f *feed) page(resource string, list ...runtime.Object) {
	f.t.Helper()
	var all []any
	for _, o := range list {
		all = append(all, o)
	}
	if err := f.store(resource).Replace(all, "1"); err != nil {
		f.t.Fatal(err)
	}
}

// changed reports whether there is a signal, and takes it.
func (f *feed) changed() bool {
	select {
	case <-f.s.Changed():
		return true
	default:
		return false
	}
}

func (f *feed) services() string {
	snap := f.s.Snapshot()
	if snap == nil {
		return "nothing"
	}
	var out []string
	for n, svc := range snap.Services.All() {
		out = append(out, fmt.Sprintf("%s %v with %d", n.Name, svc.ClusterIPs, len(svc.Endpoints)))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func serviceAt(name, vip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: vip, Ports: []corev1.ServicePort{{Port: 80}}}}
}

// sliceOf is an EndpointSlice of a Service, named like it.
func sliceOf(service string, endpoints ...string) *discoveryv1.EndpointSlice {
	sl := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: service,
		Labels: map[string]string{discoveryv1.LabelServiceName: service}}}
	for _, a := range endpoints {
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return sl
}

// TestLists: the first lists give nothing before the last of them; a later one, streamed or not, brings what is new, takes what is gone, and leaves alone what is
// known. Only what differs is told.
func TestLists(t *testing.T) {
	for name, list := range map[string]func(*feed, string, ...runtime.Object){"streamed": (*feed).stream, "in pages": (*feed).page} {
		t.Run(name, func(t *testing.T) {
			f := newFeed(t)
			want := func(when, services string, told heard) {
				t.Helper()
				if got := f.services(); got != services {
					t.Errorf("%s: Services %s, want %s", when, got, services)
				}
				if f.heard != told {
					t.Errorf("%s: told %+v, want %+v", when, f.heard, told)
				}
				f.heard = heard{}
			}
			list(f, "services", serviceAt("a", "10.96.0.1"), serviceAt("b", "10.96.0.2"), serviceAt("c", "10.96.0.3"))
			list(f, "endpointslices", sliceOf("a", "10.244.0.2", "10.244.0.1"), sliceOf("b", "10.244.0.3"), sliceOf("c", "10.244.0.4"))
			list(f, "servicecidrs")
			list(f, "nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
			if got := f.s.Waiting(); !slices.Equal(got, []string{"pods"}) {
				t.Errorf("waits for %v", got)
			}
			want("before the last list", "nothing", heard{})
			list(f, "pods")
			want("at first", "a [10.96.0.1] with 2, b [10.96.0.2] with 1, c [10.96.0.3] with 1", heard{})
			if !f.changed() || len(f.s.Waiting()) > 0 {
				t.Errorf("no signal, or it waits for %v", f.s.Waiting())
			}
			before := f.s.Snapshot()

			list(f, "services", serviceAt("a", "10.96.0.1"), serviceAt("b", "10.96.0.2"), serviceAt("c", "10.96.0.3"))
			list(f, "endpointslices", sliceOf("a", "10.244.0.2", "10.244.0.1"), sliceOf("b", "10.244.0.3"), sliceOf("c", "10.244.0.4"))
			want("the same again", "a [10.96.0.1] with 2, b [10.96.0.2] with 1, c [10.96.0.3] with 1", heard{})
			if f.s.Snapshot() != before {
				t.Error("the same again makes another snapshot")
			}

			list(f, "services", serviceAt("a", "10.96.0.1"), serviceAt("b", "10.96.0.9"), serviceAt("d", "10.96.0.4"))
			want("one changed, one gone, one new", "a [10.96.0.1] with 2, b [10.96.0.9] with 1, d [10.96.0.4] with 0", heard{services: 3, queued: 3})
			list(f, "endpointslices", sliceOf("a", "10.244.0.1"), sliceOf("d", "10.244.0.5", "10.244.0.6"))
			want("and their slices", "a [10.96.0.1] with 1, b [10.96.0.9] with 0, d [10.96.0.4] with 2", heard{endpoints: 4, queued: 4})
			a, _ := f.s.Snapshot().Services.Get(model.Name{Namespace: "x", Name: "a"})
			d, _ := f.s.Snapshot().Services.Get(model.Name{Namespace: "x", Name: "d"})
			if !a.Arrived.IsZero() || d.Arrived.IsZero() {
				t.Errorf("a arrived %v, which was there; d %v, which was not", a.Arrived, d.Arrived)
			}
			if list(f, "nodes"); f.s.Snapshot().Node() != nil {
				t.Error("a node that is gone is still there")
			}
			if f.log.Len() == 0 || strings.Count(f.log.String(), "\n") != 1 {
				t.Errorf("logged, where only the first lists are worth a line:\n%s", &f.log)
			}
		})
	}
}

// TestListThatChanges: an object that changes while its list streams in is there as it was last, be it as it was known before.
func TestListThatChanges(t *testing.T) {
	f := newFeed(t)
	for _, resource := range []string{"endpointslices", "nodes", "pods"} {
		f.stream(resource)
	}
	f.stream("services", serviceAt("a", "10.96.0.1"), serviceAt("b", "10.96.0.2"))
	f.stream("services", serviceAt("a", "10.96.0.9"), serviceAt("b", "10.96.0.2"), serviceAt("a", "10.96.0.1"), serviceAt("b", "10.96.0.8"))
	if got := f.services(); got != "a [10.96.0.1] with 0, b [10.96.0.8] with 0" {
		t.Error(got)
	}
}

// TestRelisting: that lists come in again is said once, from the first object of the first to the end of the last; of the first lists nothing is.
func TestRelisting(t *testing.T) {
	f := newFeed(t)
	var told []bool
	f.s.relisting = func(on bool) { told = append(told, on) }
	want := func(when string, all ...bool) {
		t.Helper()
		if !slices.Equal(told, all) {
			t.Errorf("%s: told %v, want %v", when, told, all)
		}
		told = nil
	}
	for _, resource := range []string{"services", "endpointslices", "nodes", "pods"} {
		f.stream(resource)
	}
	want("at first")
	f.stream("services", serviceAt("a", "10.96.0.1"))
	want("again", true, false)
	// One list that breaks off and comes whole, with another within.
	services, slices := f.store("services"), f.store("endpointslices")
	services.shrink(serviceAt("a", "10.96.0.1"))
	want("begun", true)
	slices.shrink(sliceOf("a", "10.244.0.1"))
	services.shrink(serviceAt("a", "10.96.0.1"))
	if err := slices.Replace(nil, "1"); err != nil {
		t.Fatal(err)
	}
	want("one of two")
	f.stream("services", serviceAt("a", "10.96.0.1"))
	want("both", false)
	f.page("services", serviceAt("a", "10.96.0.1"))
	want("in pages", true, false)
	if err := services.Update(serviceAt("a", "10.96.0.2")); err != nil {
		t.Fatal(err)
	}
	want("a change")
}

// TestWatch: what a watch says after the lists is there at once and told, but for what says nothing new.
func TestWatch(t *testing.T) {
	f := newFeed(t)
	for _, resource := range []string{"services", "endpointslices", "nodes", "pods"} {
		f.stream(resource)
	}
	f.changed()
	services, endpoints := f.store("services"), f.store("endpointslices")
	fqdn := sliceOf("a")
	fqdn.AddressType = discoveryv1.AddressTypeFQDN
	for _, tt := range []struct {
		does string
		do   func(any) error
		o    any
		want string
		told heard
	}{
		{"add", services.Add, serviceAt("a", "10.96.0.1"), "a [10.96.0.1] with 0", heard{1, 0, 1}},
		{"add its endpoints", endpoints.Add, sliceOf("a", "10.244.0.1"), "a [10.96.0.1] with 1", heard{0, 1, 1}},
		{"say it again", services.Update, serviceAt("a", "10.96.0.1"), "a [10.96.0.1] with 1", heard{}},
		{"say that again", endpoints.Update, sliceOf("a", "10.244.0.1"), "a [10.96.0.1] with 1", heard{}},
		{"change", services.Update, serviceAt("a", "10.96.0.2"), "a [10.96.0.2] with 1", heard{1, 0, 1}},
		{"change its endpoints", endpoints.Update, sliceOf("a", "10.244.0.2", "10.244.0.3"), "a [10.96.0.2] with 2", heard{0, 1, 1}},
		{"make its endpoints names", endpoints.Update, fqdn, "a [10.96.0.2] with 0", heard{0, 1, 1}},
		{"delete", services.Delete, serviceAt("a", "10.96.0.2"), "", heard{1, 0, 1}},
		{"delete what was missed", endpoints.Delete, cache.DeletedFinalStateUnknown{Key: "x/a", Obj: sliceOf("a")}, "", heard{0, 1, 1}},
	} {
		f.heard = heard{}
		if err := tt.do(tt.o); err != nil || f.services() != tt.want || f.heard != tt.told || f.changed() != (tt.told != heard{}) {
			t.Errorf("%s: %v; Services %s, want %s; told %+v, want %+v", tt.does, err, f.services(), tt.want, f.heard, tt.told)
		}
	}
}

// TestLinger: an endpoint that was a pod of this node stays known for one to two seconds after pod and slice are gone, and each time something is about to be
// forgotten there is a signal. Then nothing ticks any more.
func TestLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed(t)
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p"}, Spec: corev1.PodSpec{NodeName: "n1"},
			Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.244.0.1"}}}}
		slice, node := sliceOf("a", "10.244.0.1", "10.244.0.2"), "n1"
		slice.Endpoints[0].NodeName, slice.Endpoints[0].TargetRef = &node, &corev1.ObjectReference{Kind: "Pod", Namespace: "x", Name: "p"}
		f.stream("services", serviceAt("a", "10.96.0.1"))
		f.stream("endpointslices", slice)
		f.stream("pods", pod)
		f.stream("nodes")
		want := func(when, services string, signal bool) {
			t.Helper()
			if got := f.changed(); got != signal {
				t.Errorf("%s: a signal: %t, want %t", when, got, signal)
			}
			if got := f.services(); got != services {
				t.Errorf("%s: Services %s, want %s", when, got, services)
			}
		}
		const both, one = "a [10.96.0.1] with 2", "a [10.96.0.1] with 1"
		want("at first", both, true)
		_ = f.store("pods").Delete(pod)
		want("pod gone", both, true)
		time.Sleep(time.Hour)
		want("slices behind", both, false)
		_ = f.store("endpointslices").Update(sliceOf("a", "10.244.0.2"))
		want("slice gone", both, true)
		for _, tt := range []struct {
			after    time.Duration
			services string
			signal   bool
		}{{tick - 1, both, false}, {1, both, true}, {tick - 1, both, false}, {1, one, true}, {time.Hour, one, false}} {
			time.Sleep(tt.after)
			synctest.Wait()
			want("later", tt.services, tt.signal)
		}
	})
}

// TestDetached: a pod that has been detached from its node is out of service at once, and stays so whatever is heard of it, until it has another address or its
// address is given out again.
func TestDetached(t *testing.T) {
	f := newFeed(t)
	pod := func(version, address string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p", Labels: map[string]string{"version": version}}, Spec: corev1.PodSpec{NodeName: "n1"},
			Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: address}}}}
	}
	slice := func(address string) *discoveryv1.EndpointSlice {
		sl, node := sliceOf("a", address), "n1"
		sl.Endpoints[0].NodeName, sl.Endpoints[0].TargetRef = &node, &corev1.ObjectReference{Kind: "Pod", Namespace: "x", Name: "p"}
		return sl
	}
	name, addrs := model.Name{Namespace: "x", Name: "p"}, []netip.Addr{netip.MustParseAddr("10.244.0.1")}
	f.stream("services", serviceAt("a", "10.96.0.1"))
	f.stream("endpointslices", slice("10.244.0.1"))
	f.stream("pods", pod("1", "10.244.0.1"))
	f.stream("nodes")
	for _, tt := range []struct {
		does string
		do   func()
		want string
	}{
		{"list", func() {}, "ready"},
		{"detach another pod", func() { f.s.Detached(model.Name{Namespace: "x", Name: "q"}, addrs) }, "ready"},
		{"detach", func() { f.s.Detached(name, addrs) }, "terminating"},
		{"change its object", func() { _ = f.store("pods").Update(pod("2", "10.244.0.1")) }, "terminating"},
		{"give out its address", func() { f.s.Attached(addrs) }, "ready"},
		{"detach again", func() { f.s.Detached(name, addrs) }, "terminating"},
		{"hear of its next address", func() { _ = f.store("pods").Update(pod("3", "10.244.0.2")) }, "terminating"},
		{"hear of it in slices", func() { _ = f.store("endpointslices").Update(slice("10.244.0.2")) }, "terminating ready"},
	} {
		f.changed()
		tt.do()
		if news := tt.does != "list" && tt.does != "detach another pod"; f.changed() != news {
			t.Errorf("%s: a signal: %t, want %t", tt.does, !news, news)
		}
		svc, _ := f.s.Snapshot().Services.Get(model.Name{Namespace: "x", Name: "a"})
		var states []string
		for i := range svc.Endpoints {
			states = append(states, svc.Endpoints[i].State())
		}
		if got := strings.Join(states, " "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.does, got, tt.want)
		}
	}
}

// asked keeps what an API server is asked for, and has nothing.
type asked chan *http.Request

func (a asked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case a <- r:
	default:
	}
	w.WriteHeader(http.StatusServiceUnavailable)
}

// TestWhichNodes: all Nodes are watched, but by an agent that is only the service proxy and knows the pods' ranges. Of pods it is always those of the node.
func TestWhichNodes(t *testing.T) {
	ranges, dns := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	for name, tt := range map[string]struct {
		config model.Config
		want   string
	}{
		"everything":           {model.Config{DNS: dns, PodCIDRs: ranges}, ""},
		"pod network only":     {model.Config{Left: model.Proxy, PodCIDRs: ranges}, ""},
		"DNS only":             {model.Config{Left: model.Proxy | model.Network, DNS: dns, PodCIDRs: ranges}, ""},
		"proxy and DNS":        {model.Config{Left: model.Network, DNS: dns, PodCIDRs: ranges}, ""},
		"proxy and network":    {model.Config{PodCIDRs: ranges}, ""},
		"proxy without ranges": {model.Config{Left: model.Network}, ""},
		"proxy only":           {model.Config{Left: model.Network, PodCIDRs: ranges}, "metadata.name=n1"},
	} {
		t.Run(name, func(t *testing.T) {
			all := make(asked, 100)
			web := httptest.NewServer(all)
			defer web.Close()
			client, err := NewClientFor(&rest.Config{Host: web.URL})
			if err != nil {
				t.Fatal(err)
			}
			tt.config.Self = "n1"
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			s := New(Options{Client: client, Config: tt.config, Logger: slog.New(slog.DiscardHandler)})
			go func() { s.Run(ctx); close(done) }()
			defer func() { cancel(); <-done }()
			want := map[string]string{"/api/v1/nodes": tt.want, "/api/v1/pods": "spec.nodeName=n1", "/api/v1/services": "", "/apis/discovery.k8s.io/v1/endpointslices": ""}
			for len(want) > 0 {
				r := <-all
				selector, waited := want[r.URL.Path]
				if got := r.URL.Query().Get("fieldSelector"); waited && got != selector {
					t.Errorf("%s: asked for %q, want %q", r.URL.Path, got, selector)
				}
				delete(want, r.URL.Path)
			}
		})
	}
}
