// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/fairlead/fairlead/cluster"
)

// runner keeps a worker for every pod that is bound to one of its nodes. It has one watch for the pods of all nodes.
type runner struct {
	*tools
	hosts map[string]*host
	pods  cache.SharedIndexInformer
	nodes cache.SharedIndexInformer

	mu      sync.Mutex
	workers map[types.UID]*worker
	ready   map[string]bool // whether a node's network takes pods
	ctx     context.Context // of the workers, once they may start
	wg      sync.WaitGroup
}

// newRunner makes a runner for the given nodes.
func newRunner(client kubernetes.Interface, hosts map[string]*host, a *agents, count *counters, log *slog.Logger) *runner {
	bound := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithTransform(slim),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermNotEqualSelector("spec.nodeName", "").String()
		}))
	all := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(slim))
	events := record.NewBroadcaster()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	for _, h := range hosts {
		h.creating = make(chan struct{}, 2*runtime.NumCPU())
	}
	return &runner{
		tools: &tools{
			client: client, log: log, agents: a, count: count,
			events: events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "fairlead"}),
		},
		hosts:   hosts,
		pods:    bound.Core().V1().Pods().Informer(),
		nodes:   all.Core().V1().Nodes().Informer(),
		workers: map[types.UID]*worker{},
		ready:   map[string]bool{},
	}
}

// slim drops what nobody here reads from the objects that are kept in memory.
func slim(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil)
	}
	return obj, nil
}

// start begins to watch and returns when the present state is known.
func (r *runner) start(ctx context.Context) error {
	if _, err := r.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { r.changed(obj) },
		UpdateFunc: func(_, obj any) { r.changed(obj) },
		DeleteFunc: func(obj any) { r.deleted(obj) },
	}); err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	go r.pods.Run(ctx.Done())
	go r.nodes.Run(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), r.pods.HasSynced, r.nodes.HasSynced) {
		return fmt.Errorf("list pods and nodes: %w", ctx.Err())
	}
	return nil
}

// watchNodes calls changed with the name of every Node object that is created, changed or deleted.
func (r *runner) watchNodes(changed func(name string)) error {
	tell := func(obj any) {
		if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = d.Obj
		}
		if n, ok := obj.(*corev1.Node); ok {
			changed(n.Name)
		}
	}
	_, err := r.nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: tell, UpdateFunc: func(_, obj any) { tell(obj) }, DeleteFunc: tell,
	})
	if err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	return nil
}

// forget publishes, before any agent has read the API, that the pods of an earlier run are not ready and have no address: their sandboxes
// are gone. Otherwise Services would lead to addresses that nobody has, or that another pod gets.
func (r *runner) forget(ctx context.Context) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	limit := make(chan struct{}, 8)
	for _, obj := range r.pods.GetStore().List() {
		pod := obj.(*corev1.Pod)
		h := r.hosts[pod.Spec.NodeName]
		if h == nil || !stale(pod) || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			w := newWorker(r.tools, h, pod)
			w.public.set(w.state())
			if err := w.public.flush(ctx); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// open lets the pods of a node start, because its network takes them now.
func (r *runner) open(ctx context.Context, node string) {
	r.mu.Lock()
	r.ctx = ctx
	r.ready[node] = true
	r.mu.Unlock()
	for _, obj := range r.pods.GetStore().List() {
		r.changed(obj)
	}
}

// hasten makes the pods of a node that wait for its network try again now.
func (r *runner) hasten(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		if w.host.name == node {
			go w.hasten()
		}
	}
}

// changed takes a new or changed pod. Pods of a node whose network is not up yet wait; there is nothing to run them with.
func (r *runner) changed(obj any) {
	pod := obj.(*corev1.Pod)
	h := r.hosts[pod.Spec.NodeName]
	if h == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx == nil || !r.ready[pod.Spec.NodeName] {
		return
	}
	if w := r.workers[pod.UID]; w != nil {
		w.update(pod)
		return
	}
	w := newWorker(r.tools, h, pod)
	r.workers[pod.UID] = w
	ctx := r.ctx
	r.wg.Go(func() {
		w.run(ctx)
		w.cancel()
		r.mu.Lock()
		delete(r.workers, pod.UID)
		r.mu.Unlock()
	})
}

// deleted takes the end of a pod's object.
func (r *runner) deleted(obj any) {
	if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = d.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	r.mu.Lock()
	w := r.workers[pod.UID]
	r.mu.Unlock()
	if w != nil {
		w.removed()
	}
	if h := r.hosts[pod.Spec.NodeName]; h != nil {
		go dropPodDir(h, pod.UID, w)
	}
}

// wait returns when all workers have ended.
func (r *runner) wait() { r.wg.Wait() }

// find returns the worker of a pod by name.
func (r *runner) find(namespace, name string) *worker {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		if w.host != nil && w.public.newest().Namespace == namespace && w.public.newest().Name == name {
			return w
		}
	}
	return nil
}

// status lists the pods that have workers, by name.
func (r *runner) status() []cluster.PodStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]cluster.PodStatus, 0, len(r.workers))
	for _, w := range r.workers {
		pod := w.public.newest()
		w.mu.Lock()
		shown, live := w.shown, w.live
		w.mu.Unlock()
		s := cluster.PodStatus{
			Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Node: w.host.name,
			Phase: string(phase(pod.Spec.RestartPolicy, shown.containers)), Addrs: shown.addrs,
		}
		if live != nil && live.proc != nil {
			s.Pause = live.proc.Pid
		}
		for i := range shown.containers {
			s.Restarts += max(0, shown.containers[i].run-1)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b cluster.PodStatus) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return out
}

// running returns a live run of a pod's container to run commands beside; an empty name means the first one that runs.
func (w *worker) running(name string) (*process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	known := false
	// From the end: the main containers come after the init containers, and the first of them is the one that is meant.
	var main, other *process
	for i := len(w.shown.containers) - 1; i >= 0; i-- {
		c, p := &w.shown.containers[i], w.started[i]
		if name != "" && c.spec.Name != name {
			continue
		}
		known = true
		switch {
		case p == nil:
		case c.kind == mainContainer:
			main = p
		default:
			other = p
		}
	}
	switch {
	case main != nil:
		return main, nil
	case other != nil:
		return other, nil
	case name != "" && !known:
		return nil, fmt.Errorf("pod has no container named %q", name)
	case name != "":
		return nil, fmt.Errorf("container %q does not run", name)
	}
	return nil, errors.New("no container of the pod runs")
}

// logsOf says where the output of a container's run is.
func (w *worker) logsOf(name string, previous bool) (cluster.Logs, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.shown.containers {
		c := &w.shown.containers[i]
		if name == "" && c.kind != mainContainer || name != "" && c.spec.Name != name {
			continue
		}
		run := c.run
		if previous {
			run--
		}
		dir := w.host.node.Pod(string(w.public.newest().UID))
		files := runLogs(dir, c.spec.Name, run)
		if len(files) == 0 && previous {
			return cluster.Logs{}, fmt.Errorf("container %q has no previous run", c.spec.Name)
		}
		if len(files) == 0 {
			return cluster.Logs{}, fmt.Errorf("container %q has not started yet", c.spec.Name)
		}
		return cluster.Logs{Files: files, Running: c.stage == running && !previous}, nil
	}
	if name == "" {
		return cluster.Logs{}, errors.New("pod has not started yet")
	}
	return cluster.Logs{}, fmt.Errorf("pod has no container named %q", name)
}

// dropPodDir removes the directory of a pod whose object is gone, after its worker (which may be nil) has ended.
func dropPodDir(h *host, uid types.UID, w *worker) {
	if w != nil {
		<-w.done
	}
	os.RemoveAll(h.node.Pod(string(uid)))
}

// dropOldPodDirs removes the directories of pods that went away while nobody looked.
func (r *runner) dropOldPodDirs() {
	known := map[string]bool{}
	for _, obj := range r.pods.GetStore().List() {
		known[string(obj.(*corev1.Pod).UID)] = true
	}
	for _, h := range r.hosts {
		entries, _ := os.ReadDir(h.node.Pods())
		for _, e := range entries {
			if !known[e.Name()] {
				os.RemoveAll(h.node.Pod(e.Name()))
			}
		}
	}
}
