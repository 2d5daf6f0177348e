// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/model"
)

// Options of a Source.
type Options struct {
	Client *Client
	// Config is passed on into snapshots. Of pods, only those of its Self are watched.
	Config model.Config
	// Kept is what was known before the start, made with the same Config; it is the source's from then on. It is compared with the first lists, and is what
	// counts if they do not come. nil: nothing was known.
	Kept *model.Builder
	// Events hears of what arrives; nil: nobody does.
	Events Events
	// Relisting hears when lists begin to come in again after a watch was too old, and when all of them have: for as long as that takes there is much that is
	// looked at once. nil: nobody does.
	Relisting func(bool)
	Logger    *slog.Logger
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
	kept     bool // there was something known before
	relying  bool // it counts, until the first lists are complete
	troubles map[string]trouble
	synced   time.Time
	triggers []Trigger
	flawed   map[string]string // objects of which something is left out, and what
	ticking  bool              // a tick of the builder is due

	relisting func(bool)
	lists     int // that come in again
}

// New prepares the watches; nothing is sent before Run.
func New(o Options) *Source {
	s := &Source{
		log:      o.Logger,
		events:   o.Events,
		client:   o.Client,
		changed:  make(chan struct{}, 1),
		builder:  o.Kept,
		kept:     o.Kept != nil,
		troubles: make(map[string]trouble),

		relisting: o.Relisting,
	}
	if !s.kept {
		s.builder = model.NewBuilder(o.Config)
	}
	if o.Client.servers.known == nil {
		o.Client.servers.known = s.apiServers
	}
	o.Client.servers.changed = s.connection
	ownPods := fields.OneTermEqualSelector("spec.nodeName", o.Config.Self).String()
	add(s, o.Client.core, "services", metav1.ListOptions{}, s.builder.Services, s.setService, s.deleteService)
	add(s, o.Client.discovery, "endpointslices", metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName}, s.builder.Slices, s.setSlice, s.deleteSlice)
	add(s, o.Client.core, "nodes", metav1.ListOptions{FieldSelector: nodesOf(o.Config)}, s.builder.Nodes, s.setNode, s.deleteNode)
	add(s, o.Client.core, "pods", metav1.ListOptions{FieldSelector: ownPods}, s.builder.Pods, s.setPod, s.deletePod)
	s.unsynced = len(s.watches)
	s.ranges = newWatched(s, o.Client.networking, "servicecidrs", metav1.ListOptions{}, s.builder.ServiceCIDRs,
		func(c *networkingv1.ServiceCIDR) func() {
			name, ranges := c.Name, prefixes(c.Spec.CIDRs)
			return func() { s.builder.SetServiceCIDR(name, ranges) }
		},
		func(n model.Name) { s.builder.DeleteServiceCIDR(n.Name) })
	return s
}

// nodesOf selects the Nodes to watch. A Node is the largest object there is, and each is written every few minutes and told to everybody who watches it: in a
// large cluster that is most of what an agent costs the API server. The others' addresses and ranges are what routes lead to, who may ask the DNS, and which
// clients come from inside the cluster; an agent that is only the service proxy, and was told the pods' ranges, needs none of it.
func nodesOf(c model.Config) string {
	if c.Left.Has(model.Network) && len(c.DNS) == 0 && len(c.PodCIDRs) > 0 {
		return fields.OneTermEqualSelector(metav1.ObjectNameField, c.Self).String()
	}
	return ""
}

// setService, setNode, setPod and setSlice shrink an object at once, so that it need not be kept, and return what is to be done about it; nil: nothing, as it is
// known already, which most are after a broken watch.
func (s *Source) setService(o *corev1.Service) func() {
	spec, flaws := service(o), serviceFlaws(o).String()
	if s.has(func() bool { return s.builder.HasService(spec) && s.noted("service", spec.Name, flaws) }) {
		return nil
	}
	return func() {
		if !s.synced.IsZero() {
			spec.Arrived = time.Now()
		}
		s.builder.SetService(spec)
		s.note("service", spec.Name, flaws)
		s.tell(Events.ServiceChanged)
	}
}

// has asks the builder.
func (s *Source) has(question func() bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return question()
}

func (s *Source) deleteService(n model.Name) {
	s.builder.DeleteService(n)
	s.forget("service", n)
	s.tell(Events.ServiceChanged)
}

func (s *Source) setNode(o *corev1.Node) func() {
	n, flaws := node(o), nodeFlaws(o).String()
	return func() {
		s.builder.SetNode(n)
		s.note("node", model.Name{Name: n.Name}, flaws)
	}
}

func (s *Source) deleteNode(n model.Name) {
	s.builder.DeleteNode(n.Name)
	s.forget("node", n)
}

func (s *Source) setPod(o *corev1.Pod) func() {
	p, flaws := pod(o), podFlaws(o).String()
	return func() {
		s.builder.SetPod(p)
		s.note("pod", p.Name, flaws)
	}
}

func (s *Source) deletePod(n model.Name) {
	s.builder.DeletePod(n)
	s.forget("pod", n)
}

// tell tells of a change, unless it is of the first lists.
func (s *Source) tell(what func(Events)) {
	if s.events != nil && !s.synced.IsZero() {
		what(s.events)
		s.events.Queued()
	}
}

func (s *Source) setSlice(o *discoveryv1.EndpointSlice) func() {
	sl, ok := slice(o)
	name := sl.Name
	if !ok {
		return func() { s.deleteSlice(name) }
	}
	flaws := sliceFlaws(o).String()
	if s.has(func() bool { return s.builder.HasSlice(sl) && s.noted("endpointslice", name, flaws) }) {
		return nil
	}
	trigger := Trigger{Service: model.Name{Namespace: name.Namespace, Name: sl.Service}, IPv6: o.AddressType == discoveryv1.AddressTypeIPv6}
	trigger.At, _ = time.Parse(time.RFC3339Nano, o.Annotations[corev1.EndpointsLastChangeTriggerTime])
	return func() {
		s.tell(Events.EndpointsChanged)
		s.builder.SetSlice(sl)
		s.note("endpointslice", name, flaws)
		if !trigger.At.IsZero() && !s.synced.IsZero() {
			s.triggers = append(s.triggers, trigger)
		}
	}
}

func (s *Source) deleteSlice(n model.Name) {
	s.builder.DeleteSlice(n)
	s.forget("endpointslice", n)
	s.tell(Events.EndpointsChanged)
}

// Run watches until ctx ends.
func (s *Source) Run(ctx context.Context) {
	ctx = klog.NewContext(ctx, logr.Discard()) // what a reflector logs again and again, the askers name once
	var wg sync.WaitGroup
	for _, w := range s.watches {
		wg.Go(func() { w.reflector.RunWithContext(ctx) })
	}
	wg.Go(func() { s.watchRanges(ctx) })
	if s.kept {
		wg.Go(func() { s.rely(ctx) })
	}
	wg.Wait()
}

// watchRanges watches ServiceCIDRs, if the API server has them.
func (s *Source) watchRanges(ctx context.Context) {
	for pause := pauseFirst; ; pause = min(2*pause, pauseMost) {
		served, err := s.client.servesServiceCIDRs(ctx)
		switch {
		case err == nil && served:
			s.ranges.reflector.RunWithContext(ctx)
			return
		case err == nil:
			_ = s.ranges.Replace(nil, "") // none, whatever was known before
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause + rand.N(pause)):
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

// Snapshot is everything that has arrived; nil until every watch has been complete once, or until what was known before has to do.
func (s *Source) Snapshot() *model.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsynced > 0 && !s.relying {
		return nil
	}
	snap := s.builder.Build()
	if !s.ticking && s.builder.Lingers() {
		s.ticking = true
		time.AfterFunc(tick, s.tick)
	}
	return snap
}

// Attached takes in that these addresses are being given to a pod of this node, and Detached that a pod has them no more: the one who attaches pods knows both
// before the API server does.
func (s *Source) Attached(addrs []netip.Addr) { s.each(addrs, s.builder.Attached) }

// Detached is the opposite of Attached.
func (s *Source) Detached(pod model.Name, addrs []netip.Addr) {
	s.each(addrs, func(a netip.Addr) bool { return s.builder.Detached(pod, a) })
}

// each signals only what is news: that an address is given out nearly never is.
func (s *Source) each(addrs []netip.Addr, news func(netip.Addr) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range addrs {
		if news(a) {
			s.signal()
		}
	}
}

// tick is between the builder's ticks while endpoints linger, so for one to two seconds: slices reach the slowest of the nodes within that, and a client that
// has a pod's own address does not meet another in its place for long.
const tick = time.Second

func (s *Source) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ticking = false
	s.builder.Tick()
	s.signal()
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
	asker     *asker
	reflector *cache.Reflector
	known     iter.Seq[model.Name] // what the builder has
	from      sums                 // the messages that it has it from; the reflector's
	complete  bool
	again     bool // a list comes in again
	// set shrinks an object, and returns what is to be done about it while the source is locked; nil: nothing.
	set    func(runtime.Object) func()
	delete func(model.Name)
}

// shrunk is an object as it is taken in: its name, and what is to be done about it while the source is locked; nil: nothing.
type shrunk struct {
	named
	set func()
}

var _ cache.TransformingStore = (*watched)(nil)

func add[T runtime.Object](s *Source, client rest.Interface, resource string, filter metav1.ListOptions,
	known iter.Seq[model.Name], set func(T) func(), del func(model.Name)) {
	s.watches = append(s.watches, newWatched(s, client, resource, filter, known, set, del))
}

func newWatched[T runtime.Object](s *Source, client rest.Interface, resource string, filter metav1.ListOptions,
	known iter.Seq[model.Name], set func(T) func(), del func(model.Name)) *watched {
	w := &watched{
		source:   s,
		resource: resource,
		known:    known,
		from:     make(sums),
		set: func(o runtime.Object) func() {
			if o, ok := o.(T); ok {
				return set(o)
			}
			return nil // an API server that sends another kind: its object is nothing that could be known here
		},
		delete: del,
	}
	w.asker = &asker{client: client, resource: resource, filter: filter, slow: slow, brief: brief, tell: func(problem string) { s.trouble(resource, problem) }}
	// It is told of no type, because what watches bring are messages, and what lists do are not.
	w.reflector = cache.NewReflectorWithOptions(w.asker.listWatch(), nil, w, cache.ReflectorOptions{
		Name: resource,
		// The asker does the waiting.
		Backoff: &wait.Backoff{Duration: time.Millisecond, Factor: 1, Steps: 1},
	})
	// The end of a watch comes as an internal error (see lasting). The watch goes on where it was, and is not begun anew.
	w.reflector.MaxInternalErrorRetryDuration = time.Hour
	return w
}

// Add implements cache.ReflectorStore.
func (w *watched) Add(o any) error { return w.Update(o) }

// Update implements cache.ReflectorStore.
func (w *watched) Update(o any) error {
	s := w.read(o)
	if s.set == nil {
		return nil
	}
	w.source.mu.Lock()
	defer w.source.mu.Unlock()
	s.set()
	w.source.signal()
	return nil
}

// Delete implements cache.ReflectorStore.
func (w *watched) Delete(o any) error {
	w.source.mu.Lock()
	defer w.source.mu.Unlock()
	w.remove(nameOf(o))
	w.source.signal()
	return nil
}

func (w *watched) remove(n model.Name) {
	w.delete(n)
	w.from.set(n, 0)
}

// Replace implements cache.ReflectorStore: a complete list, at the start or after a broken watch.
func (w *watched) Replace(list []any, _ string) error {
	s := w.source
	w.asker.listed.Add(1)
	for i, o := range list {
		// The objects of a list that did not stream in are whole.
		if _, ok := o.(*shrunk); !ok {
			list[i] = w.shrink(o)
		}
	}
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
		w.remove(n)
	}
	for _, o := range list {
		if set := o.(*shrunk).set; set != nil {
			set()
		}
	}
	w.relisted()
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

// Transformer shrinks each object while a list is still streaming in, so that the list is never whole in memory.
func (w *watched) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { return w.shrink(o), nil }
}

func (w *watched) shrink(o any) *shrunk {
	w.asker.received.Add(1)
	w.relists()
	return w.read(o)
}

// read makes of an object what is to be done about it. A message is decoded only if the builder has something else. Nothing is kept of the object: there may be
// a whole list of it.
func (w *watched) read(o any) *shrunk {
	s := &shrunk{named: named{&noMeta, nameOf(o)}}
	object, _ := o.(runtime.Object)
	var sum uint64
	if m, ok := o.(*message); ok {
		if sum = m.sum(); w.from.has(s.name, sum) {
			return s
		}
		var err error
		if object, err = m.decode(); err != nil {
			flaw := fmt.Sprintf("all of it: %v", err)
			// What was known goes on, and it is to be looked at whatever comes next.
			s.set = func() {
				w.source.note(strings.TrimSuffix(w.resource, "s"), s.name, flaw)
				w.from.set(s.name, 0)
			}
			return s
		}
	}
	set := w.set(object)
	if set == nil {
		w.from.set(s.name, sum)
		return s
	}
	s.set = func() {
		set()
		w.from.set(s.name, sum)
	}
	return s
}

// relists says that a list comes in, if it is not one of the first.
func (w *watched) relists() {
	s := w.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.again || s.synced.IsZero() {
		return
	}
	w.again = true
	if s.lists++; s.lists == 1 && s.relisting != nil {
		s.relisting(true)
	}
}

// relisted says that a list has come in. The caller holds the lock.
func (w *watched) relisted() {
	s := w.source
	if !w.again {
		return
	}
	w.again = false
	if s.lists--; s.lists == 0 && s.relisting != nil {
		s.relisting(false)
	}
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
