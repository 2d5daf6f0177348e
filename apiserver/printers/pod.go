// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package printers

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var podColumns = []metav1.TableColumnDefinition{
	nameColumn,
	column("Ready", "The aggregate readiness state of this pod for accepting traffic."),
	column("Status", "The aggregate status of the containers in this pod."),
	column("Restarts", "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted."),
	ageColumn,
	wide(column("IP", corev1.PodStatus{}.SwaggerDoc()["podIP"])),
	wide(column("Node", corev1.PodSpec{}.SwaggerDoc()["nodeName"])),
	wide(column("Nominated Node", corev1.PodStatus{}.SwaggerDoc()["nominatedNodeName"])),
	wide(column("Readiness Gates", corev1.PodSpec{}.SwaggerDoc()["readinessGates"])),
}

// podRow adds to the cells what kubectl hides pods by that have ended.
func podRow(obj runtime.Object) (metav1.TableRow, bool) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return metav1.TableRow{}, false
	}
	row := metav1.TableRow{Cells: podCells(p)}
	message := ""
	switch p.Status.Phase {
	case corev1.PodSucceeded:
		message = "The pod has completed successfully."
	case corev1.PodFailed:
		message = "The pod failed."
	default:
		return row, true
	}
	row.Conditions = []metav1.TableRowCondition{{
		Type: metav1.RowCompleted, Status: metav1.ConditionTrue, Reason: string(p.Status.Phase), Message: message,
	}}
	return row, true
}

func podCells(p *corev1.Pod) []any {
	s := summarize(p)
	ip := p.Status.PodIP
	if len(p.Status.PodIPs) > 0 {
		ip = p.Status.PodIPs[0].IP
	}
	return []any{
		p.Name, fmt.Sprintf("%d/%d", s.ready, s.containers), s.reason, s.restarts.String(), since(p.CreationTimestamp),
		or(ip, "<none>"), or(p.Spec.NodeName, "<none>"), or(p.Status.NominatedNodeName, "<none>"), gates(p),
	}
}

// gates is how many of the pod's readiness gates are open.
func gates(p *corev1.Pod) string {
	if len(p.Spec.ReadinessGates) == 0 {
		return "<none>"
	}
	open := 0
	for _, gate := range p.Spec.ReadinessGates {
		if condition(p, gate.ConditionType) {
			open++
		}
	}
	return fmt.Sprintf("%d/%d", open, len(p.Spec.ReadinessGates))
}

// condition says whether it is true of the pod.
func condition(p *corev1.Pod, t corev1.PodConditionType) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// restarts counts restarts and knows the end of the latest run.
type restarts struct {
	count int32
	last  metav1.Time
}

func (r *restarts) add(c *corev1.ContainerStatus) {
	r.count += c.RestartCount
	if t := c.LastTerminationState.Terminated; t != nil && r.last.Before(&t.FinishedAt) {
		r.last = t.FinishedAt
	}
}

// String is like "3 (5m ago)".
func (r restarts) String() string {
	if r.count == 0 || r.last.IsZero() {
		return strconv.Itoa(int(r.count))
	}
	return fmt.Sprintf("%d (%s ago)", r.count, since(r.last))
}

// summary is a pod in a few words.
type summary struct {
	ready, containers int
	reason            string
	restarts          restarts
}

// summarize looks for the container that says most about the state of the
// pod: while it is being prepared the first init container that has not ended
// well, then the first of the others that does not run, then the pod itself.
func summarize(p *corev1.Pod) summary {
	s := summary{containers: len(p.Spec.Containers), reason: or(p.Status.Reason, string(p.Status.Phase))}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			s.reason = corev1.PodReasonSchedulingGated
		}
	}
	if !s.initContainers(p) || condition(p, corev1.PodInitialized) {
		s.mainContainers(p)
	}
	if p.DeletionTimestamp != nil {
		switch {
		case p.Status.Reason == "NodeLost":
			s.reason = "Unknown"
		case p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed:
			s.reason = "Terminating"
		}
	}
	return s
}

// initContainers says whether the pod is still being prepared. The restarts
// of those that run beside the others count on, those of others only as long.
func (s *summary) initContainers(p *corev1.Pod) (initializing bool) {
	sidecars := map[string]bool{}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sidecars[c.Name] = true
			s.containers++
		}
	}
	var all, beside restarts
	for i := range p.Status.InitContainerStatuses {
		c := &p.Status.InitContainerStatuses[i]
		all.add(c)
		if sidecars[c.Name] {
			beside.add(c)
		}
		switch ended, waits := c.State.Terminated, c.State.Waiting; {
		case ended != nil && ended.ExitCode == 0:
			continue
		case sidecars[c.Name] && c.Started != nil && *c.Started:
			if c.Ready {
				s.ready++
			}
			continue
		case ended != nil:
			s.reason = "Init:" + endReason(ended)
		case waits != nil && waits.Reason != "" && waits.Reason != "PodInitializing":
			s.reason = "Init:" + waits.Reason
		default:
			s.reason = fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
		}
		s.restarts = all
		return true
	}
	s.restarts = beside
	return false
}

// endReason is why a container ended.
func endReason(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

// mainContainers looks at the containers that are the pod's purpose.
func (s *summary) mainContainers(p *corev1.Pod) {
	running := false
	for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &p.Status.ContainerStatuses[i]
		s.restarts.add(c)
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			s.reason = c.State.Waiting.Reason
		case c.State.Terminated != nil:
			s.reason = endReason(c.State.Terminated)
		case c.Ready && c.State.Running != nil:
			running = true
			s.ready++
		}
	}
	// One that is done says nothing about those that are not.
	if s.reason == "Completed" && running {
		s.reason = "NotReady"
		if condition(p, corev1.PodReady) {
			s.reason = "Running"
		}
	}
}
