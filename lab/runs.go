// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Waits between tries to start a container that cannot even be configured.
const (
	configRetryFirst = time.Second
	configRetryMost  = 30 * time.Second
)

// startContainer starts the next run of a container. It returns false when there is no sandbox any more to start it in.
func (w *worker) startContainer(ctx context.Context, i int) bool {
	c := &w.containers[i]
	env, err := containerEnv(c.spec, podFacts{
		pod: w.pod, addrs: w.sandbox.addrs, host: w.host.addrs, params: w.host.params, path: w.host.path(), configs: w.configMap(ctx),
	})
	if err != nil {
		c.tries++
		c.retry = time.Now().Add(backoff(c.tries, configRetryFirst, configRetryMost))
		if c.message != err.Error() {
			w.containerEvent(corev1.EventTypeWarning, "Failed", "Error: %v", err)
		}
		c.reason, c.message = "CreateContainerConfigError", err.Error()
		return true
	}
	before := *c
	if c.stage == ended {
		e := c.exit
		c.last = &e
	}
	c.run++
	c.began, c.stage, c.up, c.ready = time.Now(), running, false, false
	c.reason, c.message, c.retry, c.tries = "", "", time.Time{}, 0
	dir := w.host.node.Pod(string(w.pod.UID))
	dropOldRuns(dir, c.spec.Name, c.run)
	spec, err := containerSpec(w.pod, c.spec, env, dir, c.run)
	var p *process
	if err == nil {
		p, err = w.sandbox.launch(spec)
	}
	if err != nil && w.sandbox.dies(err) {
		*c = before
		return false
	}
	if err != nil {
		w.notStarted(c, err)
		return true
	}
	w.procs[i] = p
	w.count.add("containers_started", 1)
	w.containerEvent(corev1.EventTypeNormal, "Started", "Started container %s", c.spec.Name)
	w.watch(i, p)
	return true
}

// notStarted records a run that did not get as far as a process.
func (w *worker) notStarted(c *container, err error) {
	c.stage = ended
	c.crashes++
	c.exit = exit{code: 128, reason: reasonStartError, message: err.Error(), began: c.began, at: time.Now(), run: c.run}
	w.count.add("container_start_errors", 1)
	w.log.Warn("container not started", "container", c.spec.Name, "err", err)
	w.containerEvent(corev1.EventTypeWarning, "Failed", "Error: %v", err)
}

// watch looks after a run that has just begun: its end, its postStart hook and its probes.
func (w *worker) watch(i int, p *process) {
	c := &w.containers[i]
	go func() {
		<-p.done
		w.post(func() { w.exited(i, p) })
	}()
	begin := func() {
		if c.spec.StartupProbe == nil {
			w.up(i, p)
			return
		}
		w.probe(i, p, startupProbe, c.spec.StartupProbe)
	}
	l := c.spec.Lifecycle
	if l == nil || l.PostStart == nil {
		begin()
		return
	}
	d := w.doer(i, p)
	go func() {
		err := d.do(p.ctx, hookHandler(l.PostStart))
		w.post(func() {
			if w.procs[i] != p {
				return
			}
			if err == nil {
				begin()
				return
			}
			w.containerEvent(corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: %v", err)
			w.stopOne(i, p, "postStart hook failed: "+err.Error())
		})
	}()
}

// up is told when a run has begun in earnest: after the postStart hook and the startup probe.
func (w *worker) up(i int, p *process) {
	c := &w.containers[i]
	c.up, c.ever = true, true
	c.ready = c.spec.ReadinessProbe == nil
	for _, k := range []struct {
		kind  probeKind
		probe *corev1.Probe
	}{{readinessProbe, c.spec.ReadinessProbe}, {livenessProbe, c.spec.LivenessProbe}} {
		if k.probe != nil {
			w.probe(i, p, k.kind, k.probe)
		}
	}
}

func (w *worker) doer(i int, p *process) doer {
	d := doer{spec: w.containers[i].spec, dial: w.host.netns.Dial, exec: p.exec}
	if len(p.sandbox.addrs) > 0 {
		d.addr = p.sandbox.addrs[0]
	}
	return d
}

func (w *worker) probe(i int, p *process, k probeKind, probe *corev1.Probe) {
	d := w.doer(i, p)
	h := handler{http: probe.HTTPGet, tcp: probe.TCPSocket, exec: probe.Exec}
	try := func(ctx context.Context) error { return d.do(ctx, h) }
	go runProbe(p.ctx, k, probe, try, func(r probeResult) {
		w.post(func() {
			if w.procs[i] == p {
				w.probed(i, p, probe, r)
			}
		})
	})
}

// probed acts on a probe's changed verdict.
func (w *worker) probed(i int, p *process, probe *corev1.Probe, r probeResult) {
	c := &w.containers[i]
	if !r.ok {
		w.count.add("probe_failures", 1)
		w.containerEvent(corev1.EventTypeWarning, "Unhealthy", "%s probe failed: %s", title(r.kind), r.text)
	}
	switch {
	case r.kind == readinessProbe:
		c.ready = r.ok
	case r.kind == startupProbe && r.ok && !c.up:
		w.up(i, p)
	case !r.ok && !w.stopping:
		allowed := grace(w.pod)
		if probe.TerminationGracePeriodSeconds != nil {
			allowed = time.Duration(*probe.TerminationGracePeriodSeconds) * time.Second
		}
		w.stopOneIn(i, p, "Container "+c.spec.Name+" failed "+string(r.kind)+" probe, will be restarted", allowed)
	}
}

func title(k probeKind) string {
	return map[probeKind]string{startupProbe: "Startup", readinessProbe: "Readiness", livenessProbe: "Liveness"}[k]
}

// stopOne ends one run that is at fault; the restart policy decides what comes after.
func (w *worker) stopOne(i int, p *process, why string) { w.stopOneIn(i, p, why, grace(w.pod)) }

func (w *worker) stopOneIn(i int, p *process, why string, allowed time.Duration) {
	if !p.why.CompareAndSwap(nil, &why) {
		return // it is being stopped already
	}
	w.log.Info("container stopped", "container", p.name, "why", why)
	w.containerEvent(corev1.EventTypeNormal, "Killing", "%s", why)
	go p.stopRun(w.preStop(i, p), closed, allowed, nil)
}

// preStop returns the function that runs a container's preStop hook.
func (w *worker) preStop(i int, p *process) func(context.Context) {
	l := w.containers[i].spec.Lifecycle
	if l == nil || l.PreStop == nil {
		return func(context.Context) {}
	}
	d := w.doer(i, p)
	return func(ctx context.Context) {
		if err := d.do(ctx, hookHandler(l.PreStop)); err != nil && p.ctx.Err() == nil {
			w.post(func() {
				w.containerEvent(corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: %v", err)
			})
		}
	}
}

func hookHandler(h *corev1.LifecycleHandler) handler {
	return handler{http: h.HTTPGet, tcp: h.TCPSocket, exec: h.Exec, wait: h.Sleep}
}

// exited takes the end of a run into the state. It may be told more than once.
func (w *worker) exited(i int, p *process) {
	if w.procs[i] != p {
		return
	}
	c := &w.containers[i]
	w.procs[i] = nil
	c.stage, c.up, c.ready, c.exit = ended, false, false, p.result
	if p.result.at.Sub(p.result.began) >= crashForgive {
		c.crashes = 0
	}
	if w.stopping || !c.restarts(w.pod.Spec.RestartPolicy) {
		return
	}
	c.crashes++
	w.count.add("container_restarts", 1)
	w.log.Info("container ended", "container", p.name, "code", p.result.code, "crashes", c.crashes)
	if d := crashDelay(c.crashes); d > 0 {
		w.containerEvent(corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s", p.name, w.pod.Name)
	}
}
