// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// summary is a status as a line: phase, address, the four conditions, and each container.
func summary(st corev1.PodStatus) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", st.Phase, st.PodIP)
	for _, t := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		c := condition(&corev1.Pod{Status: st}, t)
		if c == nil {
			fmt.Fprintf(&b, " no%s", t)
			continue
		}
		fmt.Fprintf(&b, " %.1s", c.Status)
		if c.Reason != "" {
			fmt.Fprintf(&b, ":%s", c.Reason)
		}
	}
	for _, list := range [][]corev1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses} {
		for _, c := range list {
			fmt.Fprintf(&b, " | %s %d", c.Name, c.RestartCount)
			switch s := c.State; {
			case s.Waiting != nil:
				b.WriteString(" waiting:" + s.Waiting.Reason)
			case s.Running != nil:
				b.WriteString(" running")
			case s.Terminated != nil:
				fmt.Fprintf(&b, " terminated:%s:%d", s.Terminated.Reason, s.Terminated.ExitCode)
			}
			if l := c.LastTerminationState.Terminated; l != nil {
				fmt.Fprintf(&b, " last:%s:%d", l.Reason, l.ExitCode)
			}
			if c.Ready {
				b.WriteString(" ready")
			}
		}
	}
	return b.String()
}

func TestPodStatus(t *testing.T) {
	addr := netip.MustParseAddr("10.244.1.5")
	for _, tc := range []struct {
		name   string
		policy corev1.RestartPolicy
		cs     string
		change func(*corev1.Pod, *podState)
		want   string
	}{
		{name: "nothing yet", cs: "a", change: func(_ *corev1.Pod, s *podState) { s.sandbox, s.addrs = false, nil },
			want: "Pending  F T F:ContainersNotReady F:ContainersNotReady | a 0 waiting:ContainerCreating"},
		{name: "sandbox", cs: "i/init a",
			want: "Pending 10.244.1.5 T F:ContainersNotInitialized F:ContainersNotReady F:ContainersNotReady | i 0 waiting:PodInitializing | a 0 waiting:PodInitializing"},
		{name: "init done", cs: "i/init=0 a=run",
			want: "Running 10.244.1.5 T T F:ContainersNotReady F:ContainersNotReady | i 0 terminated:Error:0 ready | a 0 running"},
		{name: "ready", cs: "a=ready", want: "Running 10.244.1.5 T T T T | a 0 running ready"},
		{name: "one is not", cs: "a=ready b=up", want: "Running 10.244.1.5 T T F:ContainersNotReady F:ContainersNotReady | a 0 running ready | b 0 running"},
		{name: "a sidecar counts", cs: "s/side=up a=ready", want: "Running 10.244.1.5 T T F:ContainersNotReady F:ContainersNotReady | s 0 running | a 0 running ready"},
		{name: "crashed once: comes back at once", cs: "a=1", want: "Running 10.244.1.5 T T F:ContainersNotReady F:ContainersNotReady | a 0 terminated:Error:1"},
		{name: "crashed again", cs: "a=1x2", want: "Running 10.244.1.5 T T F:ContainersNotReady F:ContainersNotReady | a 0 waiting:CrashLoopBackOff last:Error:1"},
		{name: "command not found", cs: "a=128", change: func(_ *corev1.Pod, s *podState) { s.containers[0].exit.reason = reasonStartError },
			want: "Running 10.244.1.5 T T F:ContainersNotReady F:ContainersNotReady | a 0 waiting:RunContainerError last:StartError:128"},
		{name: "command not found, never again", policy: corev1.RestartPolicyNever, cs: "a=128", change: func(_ *corev1.Pod, s *podState) {
			s.containers[0].exit.reason, s.over = reasonStartError, true
		}, want: "Failed 10.244.1.5 T T F:PodFailed F:PodFailed | a 0 terminated:StartError:128"},
		{name: "succeeded", policy: corev1.RestartPolicyNever, cs: "a=0", change: func(_ *corev1.Pod, s *podState) { s.over = true },
			want: "Succeeded 10.244.1.5 T T F:PodCompleted F:PodCompleted | a 0 terminated:Error:0"},
		{name: "stopped while it ran", cs: "a=143", change: func(_ *corev1.Pod, s *podState) { s.over, s.stopping, s.sandbox = true, true, false },
			want: "Failed 10.244.1.5 F T F:PodFailed F:PodFailed | a 0 terminated:Error:143"},
		{name: "being stopped: still serving", cs: "a=ready", change: func(_ *corev1.Pod, s *podState) { s.stopping = true },
			want: "Running 10.244.1.5 T T T T | a 0 running ready"},
		{name: "a final phase stays", cs: "a=ready", change: func(p *corev1.Pod, _ *podState) { p.Status.Phase = corev1.PodFailed },
			want: "Failed 10.244.1.5 T T F:PodFailed F:PodFailed | a 0 running ready"},
		{name: "readiness gate", cs: "a=ready", change: func(p *corev1.Pod, _ *podState) {
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "x/y"}}
		}, want: "Running 10.244.1.5 T T T F:ReadinessGatesNotReady | a 0 running ready"},
		{name: "readiness gate open", cs: "a=ready", change: func(p *corev1.Pod, _ *podState) {
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "x/y"}}
			p.Status.Conditions = []corev1.PodCondition{{Type: "x/y", Status: corev1.ConditionTrue}}
		}, want: "Running 10.244.1.5 T T T T | a 0 running ready"},
		{name: "config error", cs: "a", change: func(_ *corev1.Pod, s *podState) { s.containers[0].reason = "CreateContainerConfigError" },
			want: "Pending 10.244.1.5 T T F:ContainersNotReady F:ContainersNotReady | a 0 waiting:CreateContainerConfigError"},
		{name: "host network", cs: "a=ready", change: func(p *corev1.Pod, _ *podState) { p.Spec.HostNetwork = true },
			want: "Running 172.30.0.11 T T T T | a 0 running ready"},
	} {
		pod := testPod("web")
		pod.Spec.RestartPolicy = tc.policy
		s := podState{containers: parse(t, tc.cs), addrs: []netip.Addr{addr}, host: []netip.Addr{netip.MustParseAddr("172.30.0.11")}, started: base, sandbox: true, now: base}
		for i := range s.containers {
			if s.containers[i].stage == ended {
				s.containers[i].exit.reason = reasonError
			}
		}
		if tc.change != nil {
			tc.change(pod, &s)
		}
		if got := summary(podStatus(pod, s)); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
	}
}

// TestConditionTimes: a condition's time changes with its value and only then, others' conditions stay, and equal states give equal statuses, so that
// nothing is written twice.
func TestConditionTimes(t *testing.T) {
	pod := testPod("web")
	scheduled := corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(base.Add(-time.Minute))}
	pod.Status.Conditions = []corev1.PodCondition{scheduled}
	s := podState{containers: parse(t, "a=up"), started: base, now: base}
	pod.Status = podStatus(pod, s)
	s.now = base.Add(time.Hour)
	if again := podStatus(pod, s); !sameStatus(pod.Status, again) {
		t.Errorf("an hour later the same state is another status:\n%+v\n%+v", pod.Status, again)
	}
	s.containers[0].ready = true
	ready := podStatus(pod, s)
	p := &corev1.Pod{Status: ready}
	if c := condition(p, corev1.PodReady); !c.LastTransitionTime.Time.Equal(s.now) {
		t.Errorf("Ready changed at %v, want %v", c.LastTransitionTime, s.now)
	}
	if c := condition(p, corev1.PodInitialized); !c.LastTransitionTime.Time.Equal(base) {
		t.Errorf("Initialized changed at %v, want %v", c.LastTransitionTime, base)
	}
	if c := condition(p, corev1.PodScheduled); c == nil || *c != scheduled {
		t.Errorf("PodScheduled is now %+v", c)
	}
}

// TestStatusPatch: the patch, put on the status it was made from, gives the wanted one; a lost address is taken out; and it names the pod's UID.
func TestStatusPatch(t *testing.T) {
	pod := testPod("web")
	s := podState{containers: parse(t, "a=ready"), addrs: []netip.Addr{netip.MustParseAddr("10.244.1.5")}, started: base, now: base, sandbox: true}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}
	states := []podState{s}
	for _, line := range []string{"a", "a=run", "a=1x2", "a=ready"} {
		n := s
		n.containers = parse(t, line)
		states = append(states, n)
	}
	states[1].sandbox, states[1].addrs = false, nil
	states[4].addrs = []netip.Addr{netip.MustParseAddr("10.244.1.9")}
	for i, s := range states {
		want := podStatus(pod, s)
		patch, err := statusPatch(pod, want)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(patch), `"uid":"uid-web"`) {
			t.Errorf("patch does not name the pod: %s", patch)
		}
		before, err := json.Marshal(pod)
		if err != nil {
			t.Fatal(err)
		}
		after, err := strategicpatch.StrategicMergePatch(before, patch, corev1.Pod{})
		if err != nil {
			t.Fatal(err)
		}
		var got corev1.Pod
		if err := json.Unmarshal(after, &got); err != nil {
			t.Fatal(err)
		}
		if a, b := summary(got.Status), summary(want); a != b || len(got.Status.PodIPs) != len(want.PodIPs) || len(got.Status.Conditions) != len(want.Conditions) {
			t.Errorf("state %d: patched to\n%s\nwant\n%s\npatch %s", i, a, b, patch)
		}
		pod.Status = got.Status
	}
}

func TestQOSClass(t *testing.T) {
	cpu := func(request, limit string) corev1.Container {
		r := corev1.ResourceRequirements{}
		for name, v := range map[string]string{"request": request, "limit": limit} {
			if v == "" {
				continue
			}
			list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(v), corev1.ResourceMemory: resource.MustParse(v)}
			if name == "limit" {
				r.Limits = list
			} else {
				r.Requests = list
			}
		}
		return corev1.Container{Name: "a", Resources: r}
	}
	for _, tc := range []struct {
		list []corev1.Container
		want corev1.PodQOSClass
	}{
		{[]corev1.Container{cpu("", "")}, corev1.PodQOSBestEffort},
		{[]corev1.Container{cpu("1", "")}, corev1.PodQOSBurstable},
		{[]corev1.Container{cpu("1", "2")}, corev1.PodQOSBurstable},
		{[]corev1.Container{cpu("2", "2")}, corev1.PodQOSGuaranteed},
		{[]corev1.Container{cpu("", "2")}, corev1.PodQOSGuaranteed},
		{[]corev1.Container{cpu("2", "2"), cpu("", "")}, corev1.PodQOSBurstable},
	} {
		if got := qosClass(testPod("web", tc.list...)); got != tc.want {
			t.Errorf("%+v: %s, want %s", tc.list, got, tc.want)
		}
	}
}

// TestRecall: what the API knows of earlier runs goes on being counted after a restart.
func TestRecall(t *testing.T) {
	pod := testPod("web", corev1.Container{Name: "a"}, corev1.Container{Name: "b"}, corev1.Container{Name: "c"})
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{
		{Name: "a", ContainerID: "process://x/a/3", RestartCount: 2, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(base)}}},
		{Name: "b", ContainerID: "process://x/b/1", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}},
			LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 3, Reason: "Error"}}},
		{Name: "c", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}},
	}}
	w := newWorker(&tools{log: quietLog()}, &host{}, pod)
	got := summary(podStatus(pod, podState{containers: w.containers, now: base}))
	want := "Running  F T F:ContainersNotReady F:ContainersNotReady | a 2 waiting:ContainerCreating last:Unknown:255 | b 0 waiting:ContainerCreating last:Error:3 | c 0 waiting:ContainerCreating"
	// A pod with a container that waits is pending, whatever it was.
	want = strings.Replace(want, "Running", "Pending", 1)
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	pod.Status.Phase = corev1.PodSucceeded
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{
		{Name: "a", ContainerID: "process://x/a/1", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed"}}},
	}
	w = newWorker(&tools{log: quietLog()}, &host{}, pod)
	if !w.over || w.containers[0].stage != ended {
		t.Errorf("a pod that had ended is taken up again: %+v", w.containers[0])
	}
}
