// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"iter"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
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
	// Config is passed on into snapshots. Of pods, only those of its Self are watched.
	Config model.Config
	// Events hears of what arrives; nil: nobody does.
	Events Events
	Logger *slog.Logger
}

// Events is told of the objects that arrive, once the first lists are complete.
type Events interface {
	ServiceChanged()
	EndpointsChanged()
	// Queued is told after either.
	Queued()
}

// Trigger is when something happened that changed a Service's endpoints of an address family, as their controller says.
type Trigger struct {
	Service model.Name
	IPv6    bool
	At      time.Time
}

// Source is the API server's state as it arrives. Its methods may be called concurrently.
type Source struct {
	log     *slog.Logger
	events  Events
	client  *Client
	watches []*watched
	ranges  *watched      // not every API server has them, and nothing waits for them
	changed chan struct{} // holds at most one signal

	mu       sync.Mutex
	builder  *model.Builder
	unsynced int
	synced   time.Time
	triggers []Trigger
	flawed   map[string]string // objects of which something is left out, and what
}

// New prepares the watches; nothing is sent before Run.
func New(o Options) *Source {
	s := &Source{
		log:     o.Logger,
		events:  o.Events,
		changed: make(chan struct{}, 1),
		builder: model.NewBuilder(o.Config),
	}
	ownPods := fields.OneTermEqualSelector("spec.nodeName", o.Config.Self).String()
	add(s, o.Client.core, "services", metav1.ListOptions{}, &corev1.Service{}, s.builder.Services, s.setService, s.deleteService)
	add(s, o.Client.discovery, "endpointslices", metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName},
		&discoveryv1.EndpointSlice{}, s.builder.Slices, s.setSlice, s.deleteSlice)
	add(s, o.Client.core, "nodes", metav1.ListOptions{}, &corev1.Node{}, s.builder.Nodes,
		s.setNode, s.deleteNode)
	add(s, o.Client.core, "pods", metav1.ListOptions{FieldSelector: ownPods}, &corev1.Pod{}, s.builder.Pods,
		func(p *corev1.Pod) { s.builder.SetPod(pod(p)) }, s.builder.DeletePod)
	s.unsynced = len(s.watches)
	s.ranges = newWatched(s, o.Client.networking, "servicecidrs", metav1.ListOptions{}, &networkingv1.ServiceCIDR{}, s.builder.ServiceCIDRs,
		func(c *networkingv1.ServiceCIDR) { s.builder.SetServiceCIDR(c.Name, prefixes(c.Spec.CIDRs)) },
		func(n model.Name) { s.builder.DeleteServiceCIDR(n.Name) })
	s.client = o.Client
	return s
}

func (s *Source) setService(o *corev1.Service) {
	spec := service(o)
	if !s.synced.IsZero() {
		spec.Arrived = time.Now()
	}
	s.builder.SetService(spec)
	s.note("service", o, serviceFlaws(o))
	s.tell(Events.ServiceChanged)
}

func (s *Source) deleteService(n model.Name) {
	s.builder.DeleteService(n)
	s.forget("service", n)
	s.tell(Events.ServiceChanged)
}

func (s *Source) setNode(o *corev1.Node) {
	s.builder.SetNode(node(o))
	s.note("node", o, nodeFlaws(o))
}

func (s *Source) deleteNode(n model.Name) {
	s.builder.DeleteNode(n.Name)
	s.forget("node", n)
}

// tell tells of a change, unless it is of the first lists.
func (s *Source) tell(what func(Events)) {
	if s.events != nil && !s.synced.IsZero() {
		what(s.events)
		s.events.Queued()
	}
}

func (s *Source) setSlice(o *discoveryv1.EndpointSlice) {
	s.tell(Events.EndpointsChanged)
	sl, ok := slice(o)
	if !ok {
		s.builder.DeleteSlice(sl.Name)
		s.forget("endpointslice", sl.Name)
		return
	}
	s.builder.SetSlice(sl)
	s.note("endpointslice", o, sliceFlaws(o))
	if at, err := time.Parse(time.RFC3339Nano, o.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil && !s.synced.IsZero() {
		s.triggers = append(s.triggers, Trigger{Service: model.Name{Namespace: sl.Name.Namespace, Name: sl.Service}, IPv6: o.AddressType == discoveryv1.AddressTypeIPv6, At: at})
	}
}

func (s *Source) deleteSlice(n model.Name) {
	s.builder.DeleteSlice(n)
	s.forget("endpointslice", n)
	s.tell(Events.EndpointsChanged)
}

// Run watches until ctx ends.
func (s *Source) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, w := range s.watches {
		wg.Go(func() { w.reflector.RunWithContext(ctx) })
	}
	wg.Go(func() { s.watchRanges(ctx) })
	wg.Wait()
}

// watchRanges watches ServiceCIDRs, if the API server has them.
func (s *Source) watchRanges(ctx context.Context) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		served, err := s.client.servesServiceCIDRs(ctx)
		switch {
		case err == nil && served:
			s.ranges.reflector.RunWithContext(ctx)
			return
		case err == nil:
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// Changed gets a signal when something has arrived since the last call of Snapshot. It holds one signal at most: everything that
// arrives while the consumer is busy comes as one change.
func (s *Source) Changed() <-chan struct{} { return s.changed }

// Triggers returns when the changes of endpoints happened that arrived since it was asked last. A snapshot taken after it shows them.
func (s *Source) Triggers() []Trigger {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.triggers
	s.triggers = nil
	return t
}

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

// watched is one resource: the store that a reflector writes to. It keeps nothing itself; what a new list no longer has, the builder knows.
type watched struct {
	source    *Source
	resource  string
	reflector *cache.Reflector
	known     iter.Seq[model.Name] // what the builder has
	complete  bool
	set       func(any)
	delete    func(model.Name)
}

var _ cache.TransformingStore = (*watched)(nil)

func add[T runtime.Object](s *Source, client rest.Interface, resource string, filter metav1.ListOptions, kind T,
	known iter.Seq[model.Name], set func(T), del func(model.Name)) {
	s.watches = append(s.watches, newWatched(s, client, resource, filter, kind, known, set, del))
}

func newWatched[T runtime.Object](s *Source, client rest.Interface, resource string, filter metav1.ListOptions, kind T,
	known iter.Seq[model.Name], set func(T), del func(model.Name)) *watched {
	w := &watched{
		source:   s,
		resource: resource,
		known:    known,
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
	return w
}

// Add implements cache.ReflectorStore.
func (w *watched) Add(o any) error { return w.Update(o) }

// Update implements cache.ReflectorStore.
func (w *watched) Update(o any) error {
	w.source.mu.Lock()
	defer w.source.mu.Unlock()
	w.set(o)
	w.source.signal()
	return nil
}

// Delete implements cache.ReflectorStore.
func (w *watched) Delete(o any) error {
	w.source.mu.Lock()
	defer w.source.mu.Unlock()
	n := nameOf(o)
	w.delete(n)
	w.source.signal()
	return nil
}

// Replace implements cache.ReflectorStore: a complete list, at the start or after a broken watch.
func (w *watched) Replace(list []any, _ string) error {
	s := w.source
	s.mu.Lock()
	defer s.mu.Unlock()
	listed := make(map[model.Name]struct{}, len(list))
	for _, o := range list {
		listed[nameOf(o)] = struct{}{}
	}
	var gone []model.Name
	for n := range w.known {
		if _, ok := listed[n]; !ok {
			gone = append(gone, n)
		}
	}
	for _, n := range gone {
		w.delete(n)
	}
	for _, o := range list {
		w.set(o)
	}
	if !w.complete && w != s.ranges {
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
			m.SetAnnotations(kept(m.GetAnnotations()))
			m.SetOwnerReferences(nil)
		}
		return o, nil
	}
}

// kept is what is needed of an object's annotations.
func kept(all map[string]string) map[string]string {
	if at, ok := all[corev1.EndpointsLastChangeTriggerTime]; ok {
		return map[string]string{corev1.EndpointsLastChangeTriggerTime: at}
	}
	return nil
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
