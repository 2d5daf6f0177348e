// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/endpointslice"
	"k8s.io/endpointslice/metrics"
	sliceutil "k8s.io/endpointslice/util"
)

const (
	// sliceManager is the name under which Kubernetes' own controller manages slices; tools look for it.
	sliceManager = "endpointslice-controller.k8s.io"
	// endpointsPerSlice is Kubernetes' default, small enough that one change is a small write.
	endpointsPerSlice = 100

	// slicePace is how far apart the writes for one Service are at least, after the first. It is short enough for an
	// endpoint to be known before anybody notices, and saves writes when many pods of a Service change together.
	slicePace = 15 * time.Millisecond

	slicesByService = "service" // index of the slice informer: namespace/name of the Service
)

// endpointSlices keeps the EndpointSlices of Services that have a selector. What belongs into the slices and how
// it is packed is Kubernetes' own library; when that is asked is ours: at once on the first change, then at a pace.
type endpointSlices struct {
	*loop[cache.ObjectName]
	h        *hub
	pace     *pace[cache.ObjectName]
	services v1.ServiceLister
	slices   cache.SharedIndexInformer
	index    *selectorIndex
	lib      *endpointslice.Reconciler
	tracker  *sliceutil.EndpointSliceTracker
	triggers *sliceutil.TriggerTimeTracker
	klog     logr.Logger

	mu   sync.Mutex
	gone map[cache.ObjectName][]*discoveryv1.EndpointSlice // slices whose end was seen when the tracker did not know them
}

func newEndpointSlices(h *hub) *endpointSlices {
	metrics.RegisterMetrics()
	core := h.factory.Core().V1()
	e := &endpointSlices{
		h:        h,
		services: core.Services().Lister(),
		slices:   h.factory.Discovery().V1().EndpointSlices().Informer(),
		index:    newSelectorIndex(),
		tracker:  sliceutil.NewEndpointSliceTracker(),
		triggers: sliceutil.NewTriggerTimeTracker(),
		klog:     h.logr("endpointslice"),
		gone:     map[cache.ObjectName][]*discoveryv1.EndpointSlice{},
	}
	e.loop = newLoop(h, "endpointslice", 8, e.reconcile)
	e.pace = newPace(slicePace, e.loop)
	e.lib = endpointslice.NewReconciler(h.client, core.Nodes().Lister(), endpointsPerSlice, e.tracker, nil, h.events,
		sliceManager, endpointslice.WithPreferSameTrafficDistributionEnabled(true))
	h.index(e.slices, cache.Indexers{slicesByService: func(obj any) ([]string, error) {
		slice := obj.(*discoveryv1.EndpointSlice)
		return []string{serviceOf(slice).String()}, nil
	}})
	watch(h, core.Services().Informer(), e.onService)
	watch(h, h.pods, e.onPod)
	watch(h, core.Nodes().Informer(), e.onNode)
	watch(h, e.slices, e.onSlice)
	return e
}

// serviceOf is the Service that a slice belongs to, by its label.
func serviceOf(slice *discoveryv1.EndpointSlice) cache.ObjectName {
	return cache.ObjectName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
}

func (e *endpointSlices) onService(old, cur *corev1.Service) {
	name := cache.MetaObjectToName(latest(old, cur))
	if cur == nil {
		e.index.set(name, nil)
	} else {
		e.index.set(name, cur.Spec.Selector)
	}
	e.add(name)
}

func (e *endpointSlices) onPod(old, cur *corev1.Pod) {
	was, is := endpointFacts(old), endpointFacts(cur)
	if was.equal(is) {
		return
	}
	for _, pod := range []*corev1.Pod{old, cur} {
		if pod != nil {
			e.addServicesOf(pod)
		}
	}
}

func (e *endpointSlices) addServicesOf(pod *corev1.Pod) {
	for _, service := range e.index.matching(pod.Namespace, pod.Labels) {
		e.pace.changed(service)
	}
}

// onNode looks again at the Services with pods on a node that came, went or changed its zone.
func (e *endpointSlices) onNode(old, cur *corev1.Node) {
	if old != nil && cur != nil && old.Labels[corev1.LabelTopologyZone] == cur.Labels[corev1.LabelTopologyZone] {
		return
	}
	for _, pod := range e.h.podsBy(podsByNode, latest(old, cur).Name) {
		e.addServicesOf(pod)
	}
}

// onSlice mends what somebody else changed. Our own writes come back here too: the tracker knows them.
func (e *endpointSlices) onSlice(old, cur *discoveryv1.EndpointSlice) {
	slice := latest(old, cur)
	ours := e.lib.ManagedByController(slice)
	foreign := false
	switch {
	case cur == nil && ours && !e.tracker.Has(slice):
		// It may be one that is being created: the tracker is told when the server's answer is here, which somebody was faster than.
		e.mu.Lock()
		e.gone[serviceOf(slice)] = append(e.gone[serviceOf(slice)], slice)
		e.mu.Unlock()
		foreign = true
	case cur == nil:
		foreign = ours && !e.tracker.HandleDeletion(slice)
	case old == nil:
		foreign = ours && e.tracker.ShouldSync(slice)
	default:
		foreign = e.lib.ManagedByChanged(old, cur) || ours && e.tracker.ShouldSync(cur)
		if serviceOf(old) != serviceOf(cur) {
			e.add(serviceOf(old))
			foreign = true
		}
	}
	if foreign {
		e.add(serviceOf(slice))
	}
}

// settle tells the tracker of slices that have gone before it knew them: it would wait for them to be seen for ever.
func (e *endpointSlices) settle(name cache.ObjectName) {
	e.mu.Lock()
	gone := e.gone[name]
	delete(e.gone, name)
	e.mu.Unlock()
	for _, slice := range gone {
		e.tracker.HandleDeletion(slice)
	}
}

// reconcile brings the slices of one Service to what its pods say.
func (e *endpointSlices) reconcile(_ context.Context, name cache.ObjectName) (time.Duration, error) {
	e.settle(name)
	service, err := e.services.Services(name.Namespace).Get(name.Name)
	if apierrors.IsNotFound(err) {
		// the slices go with their owner; only our memory of them is left to clear
		e.pace.forget(name)
		e.triggers.DeleteService(name.Namespace, name.Name)
		e.lib.DeleteService(name.Namespace, name.Name)
		e.tracker.DeleteService(name.Namespace, name.Name)
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("get service: %w", err)
	}
	if len(service.Spec.Selector) == 0 || service.Spec.Type == corev1.ServiceTypeExternalName {
		return 0, nil // whoever made the Service gives it its endpoints
	}
	existing, err := e.existing(name)
	if err != nil {
		return 0, err
	}
	if e.tracker.StaleSlices(service, existing) {
		return 0, errStale
	}
	pods := e.selected(service)
	trigger := e.triggers.ComputeEndpointLastChangeTriggerTime(name.Namespace, service, pods)
	if err := e.lib.Reconcile(e.klog, service, pods, existing, trigger); err != nil {
		return 0, fmt.Errorf("reconcile slices: %w", err)
	}
	return 0, nil
}

// existing returns the slices of the Service that are ours and not on their way out.
func (e *endpointSlices) existing(name cache.ObjectName) ([]*discoveryv1.EndpointSlice, error) {
	objs, err := e.slices.GetIndexer().ByIndex(slicesByService, name.String())
	if err != nil {
		return nil, fmt.Errorf("list slices: %w", err)
	}
	var found []*discoveryv1.EndpointSlice
	for _, obj := range objs {
		slice := obj.(*discoveryv1.EndpointSlice)
		if e.lib.ManagedByController(slice) && slice.DeletionTimestamp == nil {
			// the library sorts ports and addresses in place, and these objects are everybody's
			found = append(found, slice.DeepCopy())
		}
	}
	return found, nil
}

// selected returns the pods that the Service selects. Of the selector's pairs the rarest is read from the index.
func (e *endpointSlices) selected(service *corev1.Service) []*corev1.Pod {
	var rarest []*corev1.Pod
	for i, k := range slices.Sorted(maps.Keys(service.Spec.Selector)) {
		pods := e.h.podsBy(podsByLabel, labelKey(service.Namespace, k, service.Spec.Selector[k]))
		if i == 0 || len(pods) < len(rarest) {
			rarest = pods
		}
		if len(rarest) == 0 {
			return nil
		}
	}
	return slices.DeleteFunc(rarest, func(pod *corev1.Pod) bool {
		return !selects(service.Spec.Selector, pod.Labels)
	})
}

// podFacts is everything about a pod that can change an EndpointSlice and can change while the pod lives.
type podFacts struct {
	exists                      bool
	labels                      map[string]string
	hostname, subdomain, node   string
	ips                         []string
	ready, terminating, dropped bool
}

// endpointFacts reads them. A nil pod has none.
func endpointFacts(pod *corev1.Pod) podFacts {
	if pod == nil {
		return podFacts{}
	}
	f := podFacts{
		exists:      true,
		labels:      pod.Labels,
		hostname:    pod.Spec.Hostname,
		subdomain:   pod.Spec.Subdomain,
		node:        pod.Spec.NodeName,
		ready:       sliceutil.IsPodReady(pod),
		terminating: pod.DeletionTimestamp != nil,
		dropped:     !sliceutil.ShouldPodBeInEndpoints(pod, true),
	}
	for _, ip := range pod.Status.PodIPs {
		f.ips = append(f.ips, ip.IP)
	}
	return f
}

func (f podFacts) equal(g podFacts) bool {
	return f.exists == g.exists && maps.Equal(f.labels, g.labels) && f.hostname == g.hostname && f.subdomain == g.subdomain &&
		f.node == g.node && slices.Equal(f.ips, g.ips) && f.ready == g.ready && f.terminating == g.terminating && f.dropped == g.dropped
}
