// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
)

// tools is what all pods of all nodes share.
type tools struct {
	client kubernetes.Interface
	log    *slog.Logger
	events record.EventRecorder
	agents *agents
	count  *counters
}

// worker drives one pod from its binding to the node until its object is gone. Its fields without a note belong to its one goroutine; other
// goroutines hand it functions to run through its inbox.
type worker struct {
	*tools
	host *host
	log  *slog.Logger

	poke   chan struct{}
	inbox  chan func()
	done   chan struct{} // closed when the worker has ended
	public *publisher    // safe for all
	starts context.Context
	cancel context.CancelFunc // gives up a start that is in progress; safe for all

	mu      sync.Mutex
	gone    bool       // guarded by mu: the object has been deleted from the API
	shown   podState   // guarded by mu: what the control socket tells
	live    *sandbox   // guarded by mu: the sandbox that commands may be run in
	started []*process // guarded by mu: the present run of each container

	pod        *corev1.Pod
	sandbox    *sandbox
	attempt    int
	failures   int       // to make a sandbox, in a row
	retry      time.Time // when to try again to make a sandbox
	containers []container
	procs      []*process
	taken      time.Time
	over       bool
	stopping   bool
}

// newWorker takes a pod on. Nothing happens before run.
func newWorker(t *tools, h *host, pod *corev1.Pod) *worker {
	w := &worker{
		tools: t, host: h, pod: pod,
		log:   t.log.With("node", h.name, "pod", pod.Namespace+"/"+pod.Name),
		poke:  make(chan struct{}, 1),
		inbox: make(chan func()),
		done:  make(chan struct{}),
		taken: time.Now(),
	}
	if pod.Status.StartTime != nil {
		w.taken = pod.Status.StartTime.Time
	}
	w.public = newPublisher(t.client, pod, w.log)
	w.starts, w.cancel = context.WithCancel(context.Background())
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		k := initContainer
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			k = sidecar
		}
		w.containers = append(w.containers, container{spec: c, kind: k})
	}
	for i := range pod.Spec.Containers {
		w.containers = append(w.containers, container{spec: &pod.Spec.Containers[i]})
	}
	for i := range w.containers {
		w.containers[i].recall(pod)
	}
	w.procs = make([]*process, len(w.containers))
	w.started = make([]*process, len(w.containers))
	w.over = pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	return w
}

// recall takes over what the API knows of a container's runs from before the cluster was restarted.
func (c *container) recall(pod *corev1.Pod) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			s := &list[i]
			if s.Name != c.spec.Name || s.ContainerID == "" {
				continue
			}
			c.run = int(s.RestartCount) + 1
			lost := exit{run: c.run, code: 255, reason: "Unknown", message: "the node was restarted; the process is gone", at: time.Now()}
			if r := s.State.Running; r != nil {
				lost.began = r.StartedAt.Time
			}
			t := s.State.Terminated
			if t == nil && s.State.Running == nil {
				t = s.LastTerminationState.Terminated
			}
			if t != nil {
				lost = exit{run: c.run, code: int(t.ExitCode), signal: int(t.Signal), reason: t.Reason, message: t.Message,
					began: t.StartedAt.Time, at: t.FinishedAt.Time}
			}
			c.last = &lost
			if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
				c.stage, c.exit, c.last = ended, lost, nil
				if t := s.LastTerminationState.Terminated; t != nil {
					c.last = &exit{run: c.run - 1, code: int(t.ExitCode), signal: int(t.Signal), reason: t.Reason, message: t.Message,
						began: t.StartedAt.Time, at: t.FinishedAt.Time}
				}
			}
		}
	}
}

// update takes a newer version of the object. It may be called from any goroutine.
func (w *worker) update(pod *corev1.Pod) {
	w.public.seen(pod)
	if pod.DeletionTimestamp != nil {
		w.cancel()
	}
	poke(w.poke)
}

// removed says that the object is gone. It may be called from any goroutine.
func (w *worker) removed() {
	w.mu.Lock()
	w.gone = true
	w.mu.Unlock()
	w.cancel()
	poke(w.poke)
}

func (w *worker) isGone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gone
}

// hasten tries again at once to make a sandbox, because what was in the way may be gone.
func (w *worker) hasten() {
	w.post(func() { w.failures, w.retry = 0, time.Time{} })
}

// post runs f in the worker's goroutine, unless the worker has ended.
func (w *worker) post(f func()) {
	select {
	case w.inbox <- f:
	case <-w.done:
	}
}

// run drives the pod until its object is gone, or until ctx ends: then the processes are stopped and the object stays.
func (w *worker) run(ctx context.Context) {
	publishing, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { w.public.run(publishing) })
	defer close(w.done)
	defer wg.Wait()
	defer stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		w.pod = w.public.newest()
		if ctx.Err() != nil || w.isGone() || w.pod.DeletionTimestamp != nil {
			w.terminate(ctx)
			stop()
			wg.Wait()
			if ctx.Err() == nil && !w.isGone() {
				w.public.remove(ctx)
			}
			return
		}
		wake := w.step(ctx)
		w.publish()
		if wake.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(0, time.Until(wake)))
		}
		w.wait(ctx, timer.C)
	}
}

// wait returns after something has happened.
func (w *worker) wait(ctx context.Context, timer <-chan time.Time) {
	var dead chan struct{}
	if w.sandbox != nil {
		dead = w.sandbox.dead
	}
	select {
	case <-ctx.Done():
	case <-w.poke:
	case <-timer:
	case f := <-w.inbox:
		f()
	case <-dead:
		w.lost(ctx)
	}
}

// state is the present state as the status needs it.
func (w *worker) state() podState {
	s := podState{
		containers: w.containers, host: w.host.addrs, started: w.taken, now: time.Now(),
		sandbox: w.sandbox != nil, over: w.over, stopping: w.stopping,
	}
	if w.sandbox != nil {
		s.addrs = w.sandbox.addrs
	} else if w.over || w.stopping {
		// A pod that has ended keeps showing the address it had.
		for _, ip := range w.pod.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				s.addrs = append(s.addrs, a)
			}
		}
	}
	return s
}

func (w *worker) publish() {
	s := w.state()
	w.mu.Lock()
	w.shown = s
	w.shown.containers = append([]container(nil), s.containers...)
	w.live = w.sandbox
	copy(w.started, w.procs)
	w.mu.Unlock()
	w.public.set(s)
}

// step does what is next and returns when to come back at the latest; zero is when something happens.
func (w *worker) step(ctx context.Context) time.Time {
	if w.over {
		w.drop(ctx)
		return time.Time{}
	}
	if err := unsupported(w.pod); err != nil {
		w.refuse(err)
		return time.Time{}
	}
	if w.sandbox == nil {
		if wait := time.Until(w.retry); wait > 0 {
			return w.retry
		}
		if stale(w.pod) {
			w.publish() // the address of a sandbox that is gone must not be used while the new one is made
		}
		if err := w.create(ctx); err != nil {
			return w.retry
		}
	}
	p := next(w.pod.Spec.RestartPolicy, w.containers, time.Now())
	for _, i := range p.start {
		if !w.startContainer(ctx, i) {
			w.lost(ctx)
			poke(w.poke)
			return time.Time{}
		}
	}
	switch {
	case p.end:
		w.end(ctx)
		return time.Time{}
	case len(p.start) > 0:
		// What was started, or failed to, decides anew.
		poke(w.poke)
	}
	return p.wake
}

// stale says whether the API shows a pod that runs, which it cannot without a sandbox.
func stale(pod *corev1.Pod) bool {
	if pod.Status.PodIP != "" {
		return true
	}
	c := condition(pod, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// refuse shows why a pod is not started.
func (w *worker) refuse(err error) {
	if w.containers[0].message == err.Error() {
		return
	}
	for i := range w.containers {
		w.containers[i].reason, w.containers[i].message = "CreateContainerConfigError", err.Error()
	}
	w.events.Event(w.pod, corev1.EventTypeWarning, "Failed", "Error: "+err.Error())
	w.log.Warn("pod refused", "err", err)
}

// Waits between tries to make a sandbox.
const (
	sandboxRetryFirst = 500 * time.Millisecond
	sandboxRetryMost  = 30 * time.Second
	sandboxTimeout    = 60 * time.Second
)

// create makes the pod's sandbox.
func (w *worker) create(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sandboxTimeout)
	defer cancel()
	defer context.AfterFunc(w.starts, cancel)()
	select {
	case w.host.creating <- struct{}{}:
		defer func() { <-w.host.creating }()
	case <-ctx.Done():
		return ctx.Err()
	}
	w.attempt++
	began := time.Now()
	s, err := w.host.newSandbox(ctx, w.pod, w.attempt)
	if err != nil {
		w.failures++
		w.retry = time.Now().Add(backoff(w.failures, sandboxRetryFirst, sandboxRetryMost))
		if w.starts.Err() == nil {
			w.failed(err)
		}
		return err
	}
	w.sandbox, w.failures, w.retry = s, 0, time.Time{}
	w.count.add("sandboxes_created", 1)
	w.log.Info("sandbox created", "addrs", joinAddrs(s.addrs), "took", time.Since(began).Round(time.Millisecond).String())
	for i := range w.containers {
		c := &w.containers[i]
		if c.stage == ended {
			e := c.exit
			c.last = &e
		}
		c.stage, c.ever, c.up, c.ready = waiting, false, false, false
		c.reason, c.message, c.retry, c.tries = "", "", time.Time{}, 0
	}
	return nil
}

// failed shows that there is no sandbox yet, and why.
func (w *worker) failed(err error) {
	w.count.add("sandbox_failures", 1)
	w.log.Warn("sandbox not created", "err", err, "failures", w.failures)
	if errors.Is(err, errNoCNI) {
		w.events.Event(w.pod, corev1.EventTypeWarning, "NetworkNotReady", "network is not ready: "+err.Error())
		return
	}
	w.events.Event(w.pod, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error())
}

// lost is told when the sandbox's first process has ended without being asked: everything in the pod is dead, and the pod is made anew.
func (w *worker) lost(ctx context.Context) {
	w.log.Warn("sandbox lost")
	w.count.add("sandboxes_lost", 1)
	w.events.Event(w.pod, corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	w.drop(ctx)
}

// drop ends all runs at once and removes the sandbox, if there is one.
func (w *worker) drop(ctx context.Context) {
	if w.sandbox == nil {
		return
	}
	for i, p := range w.procs {
		if p != nil {
			p.kill()
			<-p.done
			w.exited(i, p)
		}
	}
	w.removeSandbox(ctx)
}

func (w *worker) removeSandbox(ctx context.Context) {
	s := w.sandbox
	if s == nil {
		return
	}
	w.mu.Lock()
	w.live = nil
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := s.remove(ctx); err != nil {
		w.log.Warn("sandbox not removed cleanly", "err", err)
	}
	if w.stopping || w.over {
		w.pod = withAddrs(w.pod, s.addrs)
	}
	w.sandbox = nil
}

// withAddrs returns the pod with the given addresses in its status.
func withAddrs(pod *corev1.Pod, addrs []netip.Addr) *corev1.Pod {
	pod = pod.DeepCopy()
	pod.Status.PodIPs = nil
	for _, a := range addrs {
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	return pod
}

// end closes a pod whose containers have done what they were to do.
func (w *worker) end(ctx context.Context) {
	w.stopping = true
	w.stopAll(ctx, grace(w.pod), closed)
	w.over = true
	w.removeSandbox(ctx)
	w.log.Info("pod ended", "phase", phase(w.pod.Spec.RestartPolicy, w.containers))
}

// closed is a channel that has happened.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// grace is how long a pod's containers may take to end.
func grace(pod *corev1.Pod) time.Duration {
	seconds := int64(30)
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		seconds = *pod.Spec.TerminationGracePeriodSeconds
	}
	if pod.DeletionGracePeriodSeconds != nil {
		seconds = *pod.DeletionGracePeriodSeconds
	}
	return time.Duration(seconds) * time.Second
}

// downGrace is how long containers may take to end when the whole cluster is taken down.
const downGrace = 2 * time.Second

// terminate stops the pod: because its object is being deleted, is gone already, or because the cluster goes down.
func (w *worker) terminate(ctx context.Context) {
	w.stopping = true
	w.publish()
	allowed, hold := grace(w.pod), closed
	switch {
	case w.isGone():
		allowed = 0
	case ctx.Err() != nil:
		allowed = min(allowed, downGrace)
	case w.sandbox != nil && !w.sandbox.shared && allowed > 0:
		hold = make(chan struct{})
		addrs := w.sandbox.addrs
		go func() {
			w.agents.waitGone(ctx, addrs)
			close(hold)
		}()
	}
	began := time.Now()
	w.stopAll(ctx, allowed, hold)
	w.over = !w.isGone() && ctx.Err() == nil
	w.removeSandbox(ctx)
	w.publish()
	w.log.Info("pod stopped", "took", time.Since(began).Round(time.Millisecond).String())
}

// stopAll ends all runs: the main containers first, then the sidecars, the last one first. Meanwhile it goes on to take the news, so that the status
// follows, and cuts the grace short when the object goes away or says so.
func (w *worker) stopAll(ctx context.Context, allowed time.Duration, hold <-chan struct{}) {
	var mains, sides []func(time.Duration, <-chan struct{})
	for i, p := range w.procs {
		if p == nil {
			continue
		}
		hook := w.preStop(i, p)
		stop := func(d time.Duration, now <-chan struct{}) { p.stopRun(hook, hold, d, now) }
		if w.containers[i].kind == sidecar {
			sides = append([]func(time.Duration, <-chan struct{}){stop}, sides...)
		} else {
			mains = append(mains, stop)
		}
	}
	now, finished := make(chan struct{}), make(chan struct{})
	began := time.Now()
	go func() {
		defer close(finished)
		var wg sync.WaitGroup
		for _, stop := range mains {
			wg.Go(func() { stop(allowed, now) })
		}
		wg.Wait()
		for _, stop := range sides {
			stop(max(allowed-time.Since(began), 2*time.Second), now)
		}
	}()
	w.attend(ctx, allowed, now, finished)
	for i, p := range w.procs {
		if p != nil {
			w.exited(i, p)
		}
	}
}

// attend serves the inbox until finished is closed, and closes now as soon as there is no more grace.
func (w *worker) attend(ctx context.Context, allowed time.Duration, now chan<- struct{}, finished <-chan struct{}) {
	hurried := false
	hurry := func() {
		if !hurried {
			hurried = true
			close(now)
		}
	}
	down := ctx.Done()
	for {
		if w.isGone() || allowed == 0 {
			hurry()
		}
		select {
		case <-finished:
			return
		case f := <-w.inbox:
			f()
			w.publish()
		case <-down:
			down = nil
			time.AfterFunc(downGrace, func() { w.removed() })
		case <-w.poke:
			pod := w.public.newest()
			if g := pod.DeletionGracePeriodSeconds; g != nil && time.Duration(*g)*time.Second < allowed {
				allowed = time.Duration(*g) * time.Second
				time.AfterFunc(allowed, func() { w.post(hurry) })
			}
		}
	}
}

// containerEvent records an event about one of the pod's containers.
func (w *worker) containerEvent(kind, reason, format string, args ...any) {
	w.events.Event(w.pod, kind, reason, fmt.Sprintf(format, args...))
}

// configMap reads a ConfigMap of the pod's namespace.
func (w *worker) configMap(ctx context.Context) func(string) (*corev1.ConfigMap, error) {
	return func(name string) (*corev1.ConfigMap, error) {
		ctx, cancel := context.WithTimeout(ctx, publishTimeout)
		defer cancel()
		return w.client.CoreV1().ConfigMaps(w.pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	}
}
