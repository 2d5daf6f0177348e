// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/fairlead/fairlead/model"
)

// Options of a Source.
type Options struct {
	Client *Client
	// Node is this node's name; only its pods are watched.
	Node string
	// DNS are the cluster DNS's virtual addresses, passed on into snapshots.
	DNS    []netip.Addr
	Logger *slog.Logger
}

// Source is the API server's state as it arrives. Its methods may be called concurrently.
type Source struct {
	log     *slog.Logger
	watches []*watched
	changed chan struct{} // holds at most one signal

	mu       sync.Mutex
	builder  *model.Builder
	unsynced int
	synced   time.Time
}

// New prepares the watches; nothing is sent before Run.
func New(o Options) *Source {
	s := &Source{
		log:     o.Logger,
		changed: make(chan struct{}, 1),
		builder: model.NewBuilder(o.Node, o.DNS),
	}
	ownPods := fields.OneTermEqualSelector("spec.nodeName", o.Node).String()
	add(s, o.Client.core, "services", metav1.ListOptions{}, &corev1.Service{}, s.setService, s.deleteService)
	add(s, o.Client.discovery, "endpointslices", metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName},
		&discoveryv1.EndpointSlice{}, s.setSlice, s.builder.DeleteSlice)
	add(s, o.Client.core, "nodes", metav1.ListOptions{}, &corev1.Node{},
		func(n *corev1.Node) { s.builder.SetNode(node(n)) }, func(n model.Name) { s.builder.DeleteNode(n.Name) })
	add(s, o.Client.core, "pods", metav1.ListOptions{FieldSelector: ownPods}, &corev1.Pod{},
		func(p *corev1.Pod) { s.builder.SetPod(pod(p)) }, s.builder.DeletePod)
	s.unsynced = len(s.watches)
	return s
}

func (s *Source) setService(o *corev1.Service) {
	spec, ours := service(o)
	if !ours {
		s.builder.DeleteService(spec.Name)
		return
	}
	if !s.synced.IsZero() {
		spec.Arrived = time.Now()
	}
	s.builder.SetService(spec)
}

func (s *Source) deleteService(n model.Name) { s.builder.DeleteService(n) }

func (s *Source) setSlice(o *discoveryv1.EndpointSlice) {
	sl, ok := slice(o)
	if !ok {
		s.builder.DeleteSlice(sl.Name)
		return
	}
	s.builder.SetSlice(sl)
}

// Run watches until ctx ends.
func (s *Source) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, w := range s.watches {
		wg.Go(func() { w.reflector.RunWithContext(ctx) })
	}
	wg.Wait()
}

// Changed gets a signal when something has arrived since the last call of Snapshot. It holds one signal at most: everything that
// arrives while the consumer is busy comes as one change.
func (s *Source) Changed() <-chan struct{} { return s.changed }

// Snapshot is everything that has arrived; nil until every watch has been complete once.
func (s *Source) Snapshot() *model.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsynced > 0 {
		return nil
	}
	return s.builder.Build()
}

// Waiting names the watches that have not been complete yet, in the order they are made.
func (s *Source) Waiting() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, w := range s.watches {
		if !w.complete {
			names = append(names, w.resource)
		}
	}
	return names
}

// watched is one resource: the store that a reflector writes to. It keeps names only, to know what a new list no longer has.
type watched struct {
	source    *Source
	resource  string
	reflector *cache.Reflector
	known     map[model.Name]struct{}
	complete  bool
	set       func(any)
	delete    func(model.Name)
}

var _ cache.TransformingStore = (*watched)(nil)

func add[T runtime.Object](s *Source, client rest.Interface, resource string, filter metav1.ListOptions, kind T,
	set func(T), del func(model.Name)) {
	w := &watched{
		source:   s,
		resource: resource,
		known:    make(map[model.Name]struct{}),
		set:      func(o any) { set(o.(T)) },
		delete:   del,
	}
	lw := cache.NewFilteredListWatchFromClient(client, resource, metav1.NamespaceAll, func(o *metav1.ListOptions) {
		o.FieldSelector, o.LabelSelector = filter.FieldSelector, filter.LabelSelector
	})
	w.reflector = cache.NewReflectorWithOptions(lw, kind, w, cache.ReflectorOptions{
		Name: resource,
		// A node that lost the API server should hear of changes soon after it is back; the default waits up to 30 s.
		Backoff: &wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 7, Cap: 5 * time.Second},
	})
	s.watches = append(s.watches, w)
}

// Add implements cache.ReflectorStore.
func (w *watched) Add(o any) error { return w.Update(o) }

// Update implements cache.ReflectorStore.
func (w *watched) Update(o any) error {
	w.source.mu.Lock()
	defer w.source.mu.Unlock()
	w.put(o)
	w.source.signal()
	return nil
}

// Delete implements cache.ReflectorStore.
func (w *watched) Delete(o any) error {
	w.source.mu.Lock()
	defer w.source.mu.Unlock()
	n := nameOf(o)
	delete(w.known, n)
	w.delete(n)
	w.source.signal()
	return nil
}

// Replace implements cache.ReflectorStore: a complete list, at the start or after a broken watch.
func (w *watched) Replace(list []any, _ string) error {
	s := w.source
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := w.known
	w.known = make(map[model.Name]struct{}, len(list))
	for _, o := range list {
		delete(gone, nameOf(o))
		w.put(o)
	}
	for n := range gone {
		w.delete(n)
	}
	if !w.complete {
		w.complete = true
		if s.unsynced--; s.unsynced == 0 {
			s.synced = time.Now()
			s.log.Info("all watches complete")
		}
	}
	s.signal()
	return nil
}

// Resync implements cache.ReflectorStore; nothing is ever resynced.
func (w *watched) Resync() error { return nil }

// Transformer drops what no conversion reads while a list is still streaming in, so that its peak stays near its end.
func (w *watched) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if m, ok := o.(metav1.Object); ok {
			m.SetManagedFields(nil)
			m.SetAnnotations(nil)
			m.SetOwnerReferences(nil)
		}
		return o, nil
	}
}

func (w *watched) put(o any) {
	w.known[nameOf(o)] = struct{}{}
	w.set(o)
}

func nameOf(o any) model.Name {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	m := o.(metav1.Object)
	return model.Name{Namespace: m.GetNamespace(), Name: m.GetName()}
}

func (s *Source) signal() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}
