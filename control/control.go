// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package control is the controllers of the standalone control plane: what kube-controller-manager and
// kube-scheduler are to Kubernetes, for the kinds that Fairlead serves.
//
// The one way in is Run. It starts one set of shared informers and these controllers, one file each, all over
// the same skeleton (loop.go: a queue of keys and an idempotent sync):
//
//	endpointslice   selector Services → EndpointSlices
//	deployment      Deployments → ReplicaSets, rolling or at once
//	replicaset      ReplicaSets → Pods
//	scheduler       Pods without a node → binding, spread
//	podcidr         Nodes → their part of the pod network
//	nodelifecycle   node Leases → Node readiness, taints, pods marked not ready
//	eviction        NoExecute taints → Pods that do not tolerate them deleted
//	namespace       Terminating namespaces → emptied and finalized
//	gc              owner references → dependents of gone owners deleted, orphaned or waited for
//	podgc           Pods of gone nodes → deleted
//	servicecidr     ServiceCIDRs besides the cluster's own → ready, and kept while they are used
//	wellknown       the objects every cluster has: default/kubernetes, kube-system/kube-dns and their slices
//
// The invariant: every decision is a function of what the API holds, so a restart with nothing changed writes
// nothing, and no two controllers want different things of the same field. What must not be decided twice while an informer
// lags is guarded where it is decided: expectations (ReplicaSets), assumed bindings (scheduler), held prefixes
// (podcidr), tracked generations (endpointslice); everything else is guarded by resourceVersion.
//
// Contract: one Run per cluster at a time; there is no leader election, since the control plane is one process.
package control

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
)

// component is the name under which events are recorded and managed fields are kept.
const component = "fairlead-control"

// Options is what the controllers must be told.
type Options struct {
	// Config reaches the API server with full rights, usually the embedded server's loopback client.
	// Client-side rate limits in it are ignored.
	Config *rest.Config
	// ServiceCIDRs are the ranges of ClusterIPs, one per address family, the primary one first.
	ServiceCIDRs []netip.Prefix
	// PodCIDRs are the ranges that nodes get their parts from, one per address family, the primary one first.
	// Empty: nodes get none.
	PodCIDRs []netip.Prefix
	// NodeMask4 and NodeMask6 are the prefix lengths of a node's part. 0 means 24 and 64.
	NodeMask4, NodeMask6 int
	// APIAddr is where the Service default/kubernetes leads: an address of the API server that pods reach.
	APIAddr netip.AddrPort
	// DNSAddrs are the ClusterIPs of kube-system/kube-dns, the primary family first. Empty: the tenth address of
	// each service CIDR, as everywhere.
	DNSAddrs []netip.Addr
	// NodeGrace is how long a node may leave its Lease unrenewed. 0 means 40 s.
	NodeGrace time.Duration
	// Logger gets a line per change and nothing at idle.
	Logger *slog.Logger
}

func (o *Options) setDefaults() error {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.NodeMask4 == 0 {
		o.NodeMask4 = 24
	}
	if o.NodeMask6 == 0 {
		o.NodeMask6 = 64
	}
	if o.NodeGrace == 0 {
		o.NodeGrace = 40 * time.Second
	}
	if len(o.ServiceCIDRs) == 0 {
		return fmt.Errorf("check options: no service CIDR")
	}
	if len(o.DNSAddrs) == 0 {
		for _, p := range o.ServiceCIDRs {
			o.DNSAddrs = append(o.DNSAddrs, nth(p, 10))
		}
	}
	for i, a := range o.DNSAddrs {
		if i >= len(o.ServiceCIDRs) || !o.ServiceCIDRs[i].Contains(a) {
			return fmt.Errorf("check options: the DNS address %s is not in the service CIDR of its place", a)
		}
	}
	for _, p := range o.PodCIDRs {
		if mask := o.nodeMask(p); mask < p.Bits() || mask > p.Addr().BitLen() {
			return fmt.Errorf("check options: a node's /%d does not fit into pod CIDR %s", mask, p)
		}
	}
	if !o.APIAddr.IsValid() {
		return fmt.Errorf("check options: no address of the API server")
	}
	return nil
}

// nth is the n-th address of p after its first; it may lie outside.
func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// nodeMask is the prefix length of one node's part of p.
func (o *Options) nodeMask(p netip.Prefix) int {
	if p.Addr().Is4() {
		return o.NodeMask4
	}
	return o.NodeMask6
}

// Run starts the informers and all controllers and returns when ctx ends and they have stopped. It waits for an
// API server that is not yet there. An error means that the options cannot be used; once the controllers run,
// failures are logged and retried.
func Run(ctx context.Context, o Options) error {
	if err := o.setDefaults(); err != nil {
		return err
	}
	config := rest.CopyConfig(o.Config)
	config.QPS = -1 // the server's own limits are enough; a client-side one would only delay endpoints
	config.UserAgent = component
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make metadata client: %w", err)
	}
	kinds, err := servedKinds(ctx, client.Discovery(), o.Logger)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	h := newHub(o, client, objects, kinds)
	h.startAll()
	h.run(ctx)
	return nil
}

// hub is what the controllers share: clients, informers with their indexes, and the list of loops to run.
type hub struct {
	Options
	log     *slog.Logger
	client  kubernetes.Interface
	objects metadata.Interface // any kind by its resource; only metadata goes over the wire
	kinds   []kind
	events  record.EventRecorder
	record  record.EventBroadcaster

	factory informers.SharedInformerFactory
	pods    cache.SharedIndexInformer

	loops  []runner
	synced []cache.InformerSynced
}

func newHub(o Options, client kubernetes.Interface, objects metadata.Interface, kinds []kind) *hub {
	h := &hub{
		Options: o,
		log:     o.Logger,
		client:  client,
		objects: objects,
		kinds:   kinds,
		record:  record.NewBroadcaster(),
		factory: informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(slim)),
	}
	h.events = h.record.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component})
	h.pods = h.factory.Core().V1().Pods().Informer()
	h.index(h.pods, podIndexers)
	return h
}

// index adds indexes to an informer that has not started yet.
func (h *hub) index(informer cache.SharedIndexInformer, indexers cache.Indexers) {
	if err := informer.AddIndexers(indexers); err != nil { // only for a duplicate name: a mistake in this package
		panic(fmt.Sprintf("index informer: %v", err))
	}
}

// startAll makes every controller. None works before run.
func (h *hub) startAll() {
	newEndpointSlices(h)
	newReplicaSets(h)
	newDeployments(h)
	newScheduler(h)
	newPodCIDRs(h)
	newNodeLifecycle(h)
	newEvictions(h)
	newNamespaces(h)
	newCollector(h)
	newPodGC(h)
	newServiceCIDRs(h)
	newWellKnown(h)
}

// run fills the informers, then works until ctx ends.
func (h *hub) run(ctx context.Context) {
	h.record.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: h.client.CoreV1().Events("")})
	defer h.record.Shutdown()
	h.factory.Start(ctx.Done())
	defer h.factory.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), h.synced...) {
		return
	}
	h.log.Info("controllers started")
	var wg sync.WaitGroup
	for _, l := range h.loops {
		wg.Go(func() { l.run(ctx) })
	}
	wg.Wait()
}

// logr is the logger for libraries that want Kubernetes' logging interface.
func (h *hub) logr(controller string) logr.Logger {
	return logr.FromSlogHandler(h.log.With("controller", controller).Handler())
}

// slim drops what no controller reads and what would double the memory: the server keeps managed fields that an
// update leaves out.
func slim(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil {
		o.SetManagedFields(nil)
	}
	return obj, nil
}

// Indexes of the pod informer.
const (
	podsByNode  = "node"  // node name, "" for pods that wait for one
	podsByOwner = "owner" // UID of the controlling owner, orphansOf(namespace) for pods without one
	podsByLabel = "label" // namespace/key=value, one entry per label
)

var podIndexers = cache.Indexers{
	podsByNode: func(obj any) ([]string, error) {
		return []string{obj.(*corev1.Pod).Spec.NodeName}, nil
	},
	podsByOwner: byController,
	podsByLabel: func(obj any) ([]string, error) {
		pod := obj.(*corev1.Pod)
		keys := make([]string, 0, len(pod.Labels)+1)
		for k, v := range pod.Labels {
			keys = append(keys, labelKey(pod.Namespace, k, v))
		}
		return keys, nil
	},
}

// byController indexes objects of any kind by their controlling owner.
func byController(obj any) ([]string, error) {
	o, err := meta.Accessor(obj)
	if err != nil {
		return nil, err
	}
	if ref := metav1.GetControllerOf(o); ref != nil {
		return []string{string(ref.UID)}, nil
	}
	return []string{orphansOf(o.GetNamespace())}, nil
}

// orphansOf is the key of a namespace's objects without a controlling owner.
func orphansOf(namespace string) string { return "/" + namespace }

func labelKey(namespace, key, value string) string { return namespace + "/" + key + "=" + value }

// podsBy returns the pods under one key of an index. They are shared: never change them.
func (h *hub) podsBy(index, key string) []*corev1.Pod {
	objs, err := h.pods.GetIndexer().ByIndex(index, key)
	if err != nil { // only for an unknown index: a mistake in this package
		panic(fmt.Sprintf("list pods: %v", err))
	}
	pods := make([]*corev1.Pod, len(objs))
	for i, obj := range objs {
		pods[i] = obj.(*corev1.Pod)
	}
	return pods
}
