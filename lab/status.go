// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podState is what a pod's status is made from.
type podState struct {
	containers []container
	addrs      []netip.Addr // the pod's, when it has a sandbox
	host       []netip.Addr // the node's
	started    time.Time    // when the node took the pod on
	sandbox    bool         // the pod's namespaces and network are there
	over       bool         // the pod is not to run again: its phase is final
	stopping   bool         // the pod is being deleted: its containers are asked to end
	now        time.Time
}

// podStatus computes the status to publish. pod is the object as the API has it: conditions that others own are kept, and the time of
// a condition changes only with its value.
func podStatus(pod *corev1.Pod, s podState) corev1.PodStatus {
	st := corev1.PodStatus{
		ObservedGeneration: pod.Generation,
		Phase:              phase(pod.Spec.RestartPolicy, s.containers),
		NominatedNodeName:  pod.Status.NominatedNodeName,
		HostIP:             first(s.host),
		QOSClass:           pod.Status.QOSClass,
		StartTime:          &metav1.Time{Time: s.started.Truncate(time.Second)},
	}
	if st.QOSClass == "" {
		st.QOSClass = qosClass(pod)
	}
	for _, a := range s.host {
		st.HostIPs = append(st.HostIPs, corev1.HostIP{IP: a.String()})
	}
	if pod.Spec.HostNetwork && s.sandbox {
		s.addrs = s.host
	}
	st.PodIP = first(s.addrs)
	for _, a := range s.addrs {
		st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if s.over && st.Phase != corev1.PodSucceeded && st.Phase != corev1.PodFailed {
		st.Phase = finalPhase(s.containers)
	}
	if final := pod.Status.Phase; final == corev1.PodSucceeded || final == corev1.PodFailed {
		st.Phase = final // a final phase never changes
	}
	for i := range s.containers {
		c := containerStatus(pod, &s.containers[i], s)
		if s.containers[i].kind == mainContainer {
			st.ContainerStatuses = append(st.ContainerStatuses, c)
		} else {
			st.InitContainerStatuses = append(st.InitContainerStatuses, c)
		}
	}
	st.Conditions = conditions(pod, s, st.Phase)
	return st
}

func first(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return ""
	}
	return addrs[0].String()
}

// finalPhase is the phase of a pod that was stopped: it failed unless all its main containers ended well.
func finalPhase(cs []container) corev1.PodPhase {
	for i := range cs {
		if c := &cs[i]; c.kind == mainContainer && (c.stage != ended || c.exit.code != 0) {
			return corev1.PodFailed
		}
	}
	return corev1.PodSucceeded
}

// containerID is the identifier of one run of a container.
func containerID(pod *corev1.Pod, name string, run int) string {
	if run == 0 {
		return ""
	}
	return fmt.Sprintf("process://%s/%s/%d", pod.UID, name, run)
}

func containerStatus(pod *corev1.Pod, c *container, s podState) corev1.ContainerStatus {
	started := c.stage == running && c.up
	st := corev1.ContainerStatus{
		Name:         c.spec.Name,
		Image:        c.spec.Image,
		ImageID:      "process://host",
		ContainerID:  containerID(pod, c.spec.Name, c.run),
		RestartCount: int32(max(0, c.run-1)),
		Started:      &started,
		Ready:        started && c.ready,
	}
	if c.kind == initContainer {
		st.Ready = c.stage == ended && c.exit.code == 0
	}
	if c.last != nil {
		st.LastTerminationState.Terminated = terminated(pod, c, *c.last)
	}
	switch {
	case c.stage == running:
		st.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.began.Truncate(time.Second))}
	case c.stage == ended && !s.over && !s.stopping && c.restarts(pod.Spec.RestartPolicy) && crashDelay(c.crashes) > 0,
		c.stage == ended && c.exit.reason == reasonStartError && !s.over && !s.stopping && c.restarts(pod.Spec.RestartPolicy):
		st.LastTerminationState.Terminated = terminated(pod, c, c.exit)
		st.State.Waiting = backoffState(pod, c)
	case c.stage == ended:
		st.State.Terminated = terminated(pod, c, c.exit)
	default:
		w := &corev1.ContainerStateWaiting{Reason: c.reason, Message: c.message}
		if w.Reason == "" {
			w.Reason = "ContainerCreating"
			if c.kind != mainContainer || !initialized(s.containers) {
				w.Reason = "PodInitializing"
			}
		}
		st.State.Waiting = w
	}
	return st
}

// Reasons of a run's end.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonStartError = "StartError"
)

// backoffState is the waiting state between a run's end and the next start. A command that could not even be started keeps its own
// reason, because "it crashes" would send the reader after the wrong thing.
func backoffState(pod *corev1.Pod, c *container) *corev1.ContainerStateWaiting {
	delay := crashDelay(c.crashes)
	if c.exit.reason == reasonStartError {
		return &corev1.ContainerStateWaiting{Reason: "RunContainerError", Message: c.exit.message}
	}
	return &corev1.ContainerStateWaiting{
		Reason: "CrashLoopBackOff",
		Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
			delay, c.spec.Name, pod.Name, pod.Namespace, pod.UID),
	}
}

func terminated(pod *corev1.Pod, c *container, e exit) *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{
		ExitCode:    int32(e.code),
		Signal:      int32(e.signal),
		Reason:      e.reason,
		Message:     e.message,
		StartedAt:   metav1.NewTime(e.began.Truncate(time.Second)),
		FinishedAt:  metav1.NewTime(e.at.Truncate(time.Second)),
		ContainerID: containerID(pod, c.spec.Name, e.run),
	}
}

// conditions returns the pod's conditions: the node's own ones as they are now, and all others as the API has them.
func conditions(pod *corev1.Pod, s podState, ph corev1.PodPhase) []corev1.PodCondition {
	final := ph == corev1.PodSucceeded || ph == corev1.PodFailed
	ready := containersReady(s, ph)
	all := podReady(pod, ready)
	ready.Type, all.Type = corev1.ContainersReady, corev1.PodReady
	init := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if !initialized(s.containers) && !final {
		init.Status, init.Reason = corev1.ConditionFalse, "ContainersNotInitialized"
		init.Message = "containers with incomplete status: [" + strings.Join(names(s.containers, func(c *container) bool {
			return c.kind == initContainer && !(c.stage == ended && c.exit.code == 0) || c.kind == sidecar && !c.ever
		}), " ") + "]"
	}
	sandbox := corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse}
	if s.sandbox {
		sandbox.Status = corev1.ConditionTrue
	}
	own := []corev1.PodCondition{sandbox, init, all, ready}
	var out []corev1.PodCondition
	for _, o := range own {
		o.ObservedGeneration = pod.Generation
		o.LastTransitionTime = metav1.NewTime(s.now.Truncate(time.Second))
		if old := condition(pod, o.Type); old != nil && old.Status == o.Status {
			o.LastTransitionTime = old.LastTransitionTime
		}
		out = append(out, o)
	}
	for _, c := range pod.Status.Conditions {
		if condition(&corev1.Pod{Status: corev1.PodStatus{Conditions: own}}, c.Type) == nil {
			out = append(out, c)
		}
	}
	return out
}

func condition(pod *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == t {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// names lists the containers that f holds for.
func names(cs []container, f func(*container) bool) []string {
	var out []string
	for i := range cs {
		if f(&cs[i]) {
			out = append(out, cs[i].spec.Name)
		}
	}
	return out
}

func containersReady(s podState, ph corev1.PodPhase) corev1.PodCondition {
	c := corev1.PodCondition{Status: corev1.ConditionFalse}
	switch ph {
	case corev1.PodSucceeded:
		c.Reason = "PodCompleted"
		return c
	case corev1.PodFailed:
		c.Reason = "PodFailed"
		return c
	}
	unready := names(s.containers, func(c *container) bool {
		return c.kind != initContainer && !(c.stage == running && c.up && c.ready)
	})
	if len(unready) == 0 && len(s.containers) > 0 {
		c.Status = corev1.ConditionTrue
		return c
	}
	c.Reason = "ContainersNotReady"
	c.Message = "containers with unready status: [" + strings.Join(unready, " ") + "]"
	return c
}

// podReady is the condition Ready: the containers', and every readiness gate's.
func podReady(pod *corev1.Pod, containers corev1.PodCondition) corev1.PodCondition {
	if containers.Status != corev1.ConditionTrue {
		return containers
	}
	for _, g := range pod.Spec.ReadinessGates {
		if c := condition(pod, g.ConditionType); c == nil || c.Status != corev1.ConditionTrue {
			return corev1.PodCondition{
				Status:  corev1.ConditionFalse,
				Reason:  "ReadinessGatesNotReady",
				Message: fmt.Sprintf("corresponding condition of pod readiness gate %q is not True.", g.ConditionType),
			}
		}
	}
	return containers
}

// qosClass is the pod's quality of service class by the rules of Kubernetes, for an API server that did not set it.
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	any, guaranteed := false, true
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			r := list[i].Resources
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				limit, hasLimit := r.Limits[name]
				request, hasRequest := r.Requests[name]
				any = any || hasLimit || hasRequest
				if !hasLimit || hasRequest && request.Cmp(limit) != 0 {
					guaranteed = false
				}
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// sameStatus says whether publishing b over a would change anything.
func sameStatus(a, b corev1.PodStatus) bool { return equality.Semantic.DeepEqual(a, b) }
