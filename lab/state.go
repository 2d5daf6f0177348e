// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// kind is a container's part in its pod.
type kind int

const (
	mainContainer kind = iota
	initContainer
	sidecar // an init container that keeps running: restartPolicy Always
)

// stage is where a container is in its life.
type stage int

const (
	waiting stage = iota // no process, and the last start, if any, is not to be shown as the present state
	running
	ended
)

// container is all that is known about one container, as a value: what the decisions below are made from.
type container struct {
	spec *corev1.Container
	kind kind

	stage   stage
	run     int       // number of the present or last run, from 1; 0 before the first
	began   time.Time // of the present or last run
	up      bool      // the run has passed its startup probe and its postStart hook
	ready   bool      // the run's readiness probe agrees, or there is none
	ever    bool      // some run of this sandbox has been up; a sidecar holds back what follows only until then
	exit    exit      // of the last run, when stage is ended
	last    *exit     // of the run before the present one
	crashes int       // ends in a row that were followed, or are to be followed, by another start

	// reason and message say why a container is waiting that never got as far as a process.
	reason, message string
	// retry is when to try again after such a failure.
	retry time.Time
	tries int
}

// exit is how a run ended.
type exit struct {
	code    int
	signal  int
	reason  string // Completed, Error, StartError and so on
	message string
	began   time.Time
	at      time.Time
	run     int
}

// Restart delays as a kubelet has them: the first restart at once, then 10 s doubling to 5 minutes; a run of 10 minutes is forgiven.
const (
	crashBase    = 10 * time.Second
	crashMax     = 300 * time.Second
	crashForgive = 10 * time.Minute
)

// crashDelay is how long after its n-th end in a row a container waits for its next start.
func crashDelay(n int) time.Duration { return backoff(n-1, crashBase, crashMax) }

// backoff is 0 for n < 1, then base, doubling with n up to limit.
func backoff(n int, base, limit time.Duration) time.Duration {
	if n < 1 {
		return 0
	}
	d := base
	for ; n > 1 && d < limit; n-- {
		d *= 2
	}
	return min(d, limit)
}

// restarts says whether a container that ended is to be started again.
func (c *container) restarts(policy corev1.RestartPolicy) bool {
	switch c.kind {
	case sidecar:
		return true
	case initContainer:
		return c.exit.code != 0 && policy != corev1.RestartPolicyNever
	}
	return policy == corev1.RestartPolicyAlways || policy == "" ||
		policy == corev1.RestartPolicyOnFailure && c.exit.code != 0
}

// nextStart is when a container without a process may be started: the zero time for at once.
func (c *container) nextStart() time.Time {
	switch {
	case c.stage == ended:
		if d := crashDelay(c.crashes); d > 0 {
			return c.exit.at.Add(d)
		}
		return time.Time{}
	default:
		return c.retry
	}
}

// plan is what to do next for a pod whose sandbox is there.
type plan struct {
	start []int     // containers to start now, in this order
	wake  time.Time // when to plan again if nothing happens before; zero for never
	end   bool      // the pod is over: stop what is left (sidecars) and give the sandbox back
}

// next plans the pod's next steps: init containers one after another, each sidecar holding back what follows until it is up, then the main
// containers together; ended ones again as the restart policy says.
func next(policy corev1.RestartPolicy, cs []container, now time.Time) plan {
	var p plan
	try := func(i int) {
		at := cs[i].nextStart()
		if !at.After(now) {
			p.start = append(p.start, i)
		} else if p.wake.IsZero() || at.Before(p.wake) {
			p.wake = at
		}
	}
	for i := range cs {
		c := &cs[i]
		if c.kind == mainContainer {
			continue
		}
		switch {
		case c.stage == ended && !c.restarts(policy) && c.exit.code != 0:
			p.end = true // restartPolicy Never: the pod has failed
			return p
		case c.stage == ended && !c.restarts(policy):
			continue
		case c.stage != running:
			try(i)
		}
		if c.kind == sidecar && c.ever {
			continue
		}
		return p
	}
	over, mains := true, 0
	for i := range cs {
		c := &cs[i]
		if c.kind != mainContainer {
			continue
		}
		mains++
		if c.stage == ended && !c.restarts(policy) {
			continue
		}
		over = false
		if c.stage != running {
			try(i)
		}
	}
	if over && mains > 0 {
		return plan{end: true}
	}
	return p
}

// initialized says whether all init containers have done their part.
func initialized(cs []container) bool {
	for i := range cs {
		switch c := &cs[i]; {
		case c.kind == initContainer && !(c.stage == ended && c.exit.code == 0):
			return false
		case c.kind == sidecar && !c.ever:
			return false
		}
	}
	return true
}

// phase is the pod's phase as a kubelet computes it from the states of its containers.
func phase(policy corev1.RestartPolicy, cs []container) corev1.PodPhase {
	var waits, runs, ends, good int
	for i := range cs {
		c := &cs[i]
		if c.kind == initContainer && c.stage == ended && c.exit.code != 0 && policy == corev1.RestartPolicyNever {
			return corev1.PodFailed
		}
		if c.kind != mainContainer {
			continue
		}
		switch {
		case c.stage == running:
			runs++
		case c.stage == ended && c.exit.code == 0:
			ends, good = ends+1, good+1
		case c.stage == ended || c.last != nil:
			ends++
		default:
			waits++
		}
	}
	switch {
	case !initialized(cs) && runs == 0, waits > 0:
		return corev1.PodPending
	case runs > 0:
		return corev1.PodRunning
	case ends == 0:
		return corev1.PodPending
	case policy == corev1.RestartPolicyAlways || policy == "":
		return corev1.PodRunning
	case ends == good:
		return corev1.PodSucceeded
	case policy == corev1.RestartPolicyNever:
		return corev1.PodFailed
	}
	return corev1.PodRunning
}
