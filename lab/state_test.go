// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// base is the tests' now.
var base = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// parse reads a pod's containers from a line: NAME[/init|/side][=STATE], where STATE is - (waiting), run, up, ready, or ended with
// a code and optionally the number of ends in a row: 0, 1, 137x3. The last end is at base.
func parse(t *testing.T, line string) []container {
	t.Helper()
	var out []container
	for word := range strings.FieldsSeq(line) {
		head, state, _ := strings.Cut(word, "=")
		name, k, _ := strings.Cut(head, "/")
		c := container{spec: &corev1.Container{Name: name}}
		switch k {
		case "init":
			c.kind = initContainer
		case "side":
			c.kind = sidecar
		case "":
		default:
			t.Fatalf("kind %q", k)
		}
		switch state {
		case "", "-":
		case "run":
			c.stage, c.run = running, 1
		case "up":
			c.stage, c.run, c.up, c.ever = running, 1, true, true
		case "ready":
			c.stage, c.run, c.up, c.ever, c.ready = running, 1, true, true, true
		default:
			c.stage, c.run, c.crashes = ended, 1, 1
			if n, err := fmt.Sscanf(state, "%dx%d", &c.exit.code, &c.crashes); n < 1 {
				t.Fatalf("state %q: %v", state, err)
			}
			c.exit.at, c.ever = base, true
		}
		out = append(out, c)
	}
	return out
}

func TestNext(t *testing.T) {
	const always, onFailure, never = corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever
	for _, tc := range []struct {
		policy corev1.RestartPolicy
		cs     string
		start  string
		wake   time.Duration // after base
		end    bool
		phase  corev1.PodPhase
	}{
		{always, "a b", "a b", 0, false, corev1.PodPending},
		{always, "a=run b", "b", 0, false, corev1.PodPending},
		{always, "a=run b=ready", "", 0, false, corev1.PodRunning},
		{"", "a=ready", "", 0, false, corev1.PodRunning},

		// One init container after another, then the main ones.
		{always, "i/init j/init a", "i", 0, false, corev1.PodPending},
		{always, "i/init=run j/init a", "", 0, false, corev1.PodPending},
		{always, "i/init=0 j/init a", "j", 0, false, corev1.PodPending},
		{always, "i/init=0 j/init=0 a", "a", 0, false, corev1.PodPending},
		{always, "i/init=1 a", "i", 0, false, corev1.PodPending},
		{always, "i/init=1x2 a", "", 10 * time.Second, false, corev1.PodPending},
		{onFailure, "i/init=1x3 a", "", 20 * time.Second, false, corev1.PodPending},
		{never, "i/init=1 a", "", 0, true, corev1.PodFailed},
		{never, "i/init=0 a", "a", 0, false, corev1.PodPending},

		// A sidecar holds back what follows until it has been up once, and no longer.
		{always, "s/side a", "s", 0, false, corev1.PodPending},
		{always, "s/side=run a", "", 0, false, corev1.PodPending},
		{always, "s/side=up a", "a", 0, false, corev1.PodPending},
		{always, "s/side=1 a=ready", "s", 0, false, corev1.PodRunning},
		{always, "s/side=1x2 a=ready", "", 10 * time.Second, false, corev1.PodRunning},
		{always, "s/side=1x2 a", "a", 10 * time.Second, false, corev1.PodPending},
		{never, "s/side=0 a=ready", "s", 0, false, corev1.PodRunning},
		{never, "s/side=up i/init a", "i", 0, false, corev1.PodPending},
		{never, "s/side=up i/init=1 a", "", 0, true, corev1.PodFailed},

		// The restart policies.
		{always, "a=0", "a", 0, false, corev1.PodRunning},
		{always, "a=1", "a", 0, false, corev1.PodRunning},
		{always, "a=1x2", "", 10 * time.Second, false, corev1.PodRunning},
		{always, "a=0x2", "", 10 * time.Second, false, corev1.PodRunning},
		{always, "a=1x3 b=1x4", "", 20 * time.Second, false, corev1.PodRunning},
		{always, "a=1x99", "", 300 * time.Second, false, corev1.PodRunning},
		{onFailure, "a=0", "", 0, true, corev1.PodSucceeded},
		{onFailure, "a=1", "a", 0, false, corev1.PodRunning},
		{onFailure, "a=0 b=ready", "", 0, false, corev1.PodRunning},
		{onFailure, "a=0 b=1x2", "", 10 * time.Second, false, corev1.PodRunning},
		{never, "a=0", "", 0, true, corev1.PodSucceeded},
		{never, "a=1", "", 0, true, corev1.PodFailed},
		{never, "a=0 b=1", "", 0, true, corev1.PodFailed},
		{never, "a=0 b=ready", "", 0, false, corev1.PodRunning},
		{never, "s/side=up a=0", "", 0, true, corev1.PodSucceeded},
		{never, "s/side=up a=3", "", 0, true, corev1.PodFailed},
	} {
		cs := parse(t, tc.cs)
		p := next(tc.policy, cs, base)
		var start []string
		for _, i := range p.start {
			start = append(start, cs[i].spec.Name)
		}
		var wake time.Duration
		if !p.wake.IsZero() {
			wake = p.wake.Sub(base)
		}
		if got := strings.Join(start, " "); got != tc.start || wake != tc.wake || p.end != tc.end {
			t.Errorf("%s %q: start %q wake %v end %v, want %q %v %v", tc.policy, tc.cs, got, wake, p.end, tc.start, tc.wake, tc.end)
		}
		if got := phase(tc.policy, cs); got != tc.phase {
			t.Errorf("%s %q: phase %s, want %s", tc.policy, tc.cs, got, tc.phase)
		}
	}
}

// TestNextWorld drives random pods by random ends, and holds what must be so in every one of their histories.
func TestNextWorld(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	policies := []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}
	for range 300 {
		policy := policies[r.IntN(3)]
		var cs []container
		for i := range r.IntN(4) {
			cs = append(cs, container{spec: &corev1.Container{Name: fmt.Sprint("i", i)}, kind: initContainer + kind(r.IntN(2))})
		}
		for i := range 1 + r.IntN(3) {
			cs = append(cs, container{spec: &corev1.Container{Name: fmt.Sprint("m", i)}})
		}
		now, final := base, corev1.PodPhase("")
		for range 60 {
			p := next(policy, cs, now)
			if p.end {
				final = phase(policy, cs)
				if final != corev1.PodSucceeded && final != corev1.PodFailed {
					t.Fatalf("%s: a pod that is over is %s: %+v", policy, final, cs)
				}
				break
			}
			checkPlan(t, policy, cs, p)
			for _, i := range p.start {
				if cs[i].stage == ended {
					e := cs[i].exit
					cs[i].last = &e
				}
				cs[i].stage, cs[i].run = running, cs[i].run+1
				if r.IntN(3) > 0 {
					cs[i].up, cs[i].ever = true, true
				}
			}
			if len(p.start) == 0 && !p.wake.IsZero() && r.IntN(2) == 0 {
				now = p.wake
				continue
			}
			for i := range cs {
				switch c := &cs[i]; {
				case c.stage == running && r.IntN(4) == 0:
					c.stage, c.up = ended, false
					c.exit = exit{code: r.IntN(2), at: now}
					c.crashes++
				case c.stage == running && !c.up && r.IntN(2) == 0:
					c.up, c.ever = true, true
				}
			}
			now = now.Add(time.Duration(r.IntN(20)) * time.Second)
		}
		if policy == corev1.RestartPolicyAlways && final != "" {
			t.Fatalf("a pod that always restarts is over: %+v", cs)
		}
	}
}

// checkPlan holds one step against the rules of a pod's life, each told the slow way.
func checkPlan(t *testing.T, policy corev1.RestartPolicy, cs []container, p plan) {
	t.Helper()
	for _, i := range p.start {
		if cs[i].stage == running {
			t.Fatalf("%s is started twice", cs[i].spec.Name)
		}
		if cs[i].stage == ended && !cs[i].restarts(policy) {
			t.Fatalf("%s is started again under %s", cs[i].spec.Name, policy)
		}
		for j := range i {
			before := &cs[j]
			if before.kind == initContainer && !(before.stage == ended && before.exit.code == 0) {
				t.Fatalf("%s is started before %s is done", cs[i].spec.Name, before.spec.Name)
			}
			if before.kind == sidecar && !before.ever {
				t.Fatalf("%s is started before %s was up", cs[i].spec.Name, before.spec.Name)
			}
		}
	}
	idle := !slices.ContainsFunc(cs, func(c container) bool { return c.stage == running })
	if idle && len(p.start) == 0 && p.wake.IsZero() {
		t.Fatalf("%s: nothing runs and nothing will: %+v", policy, cs)
	}
}

func TestBackoff(t *testing.T) {
	var got []string
	for n := range 9 {
		got = append(got, crashDelay(n).String())
	}
	if want := "0s 0s 10s 20s 40s 1m20s 2m40s 5m0s 5m0s"; strings.Join(got, " ") != want {
		t.Errorf("crash delays %v, want %s", got, want)
	}
	for _, tc := range []struct {
		n    int
		want time.Duration
	}{{-1, 0}, {0, 0}, {1, time.Second}, {2, 2 * time.Second}, {4, 8 * time.Second}, {5, 10 * time.Second}, {1 << 40, 10 * time.Second}} {
		if got := backoff(tc.n, time.Second, 10*time.Second); got != tc.want {
			t.Errorf("backoff(%d) is %v, want %v", tc.n, got, tc.want)
		}
	}
}

func TestJudge(t *testing.T) {
	// A line is a probe and its tries: ok or no, and what each led to: + or - for a told verdict, and the wait until the next try.
	for _, tc := range []struct {
		name  string
		kind  probeKind
		probe corev1.Probe
		tries string
		want  string
	}{
		{"ready at once", readinessProbe, corev1.Probe{}, "ok ok", "+10s 10s"},
		{"ready soon: tries come fast, and do not count", readinessProbe, corev1.Probe{PeriodSeconds: 1, FailureThreshold: 2}, "no no no no ok ok", "100ms 200ms 400ms 800ms +1s 1s"},
		{"not ready for long: it is told once", readinessProbe, corev1.Probe{PeriodSeconds: 1, FailureThreshold: 2}, "no no no no no no no", "100ms 200ms 400ms 800ms -1s 1s 1s"},
		{"ready, then failing", readinessProbe, corev1.Probe{PeriodSeconds: 2}, "ok no no no no ok", "+2s 2s 2s -2s 2s +2s"},
		{"one failure is forgotten by a success", readinessProbe, corev1.Probe{FailureThreshold: 2}, "ok no ok no no", "+10s 10s 10s 10s -10s"},
		{"several successes are needed", readinessProbe, corev1.Probe{SuccessThreshold: 2}, "ok ok ok", "10s +10s 10s"},
		{"liveness is not hurried", livenessProbe, corev1.Probe{PeriodSeconds: 5}, "no no no no", "5s 5s -5s 5s"},
		{"liveness", livenessProbe, corev1.Probe{FailureThreshold: 1}, "ok no", "+10s -10s"},
		{"startup: the fast tries do not shorten the time that is allowed", startupProbe, corev1.Probe{PeriodSeconds: 1, FailureThreshold: 2}, "no no no no no", "100ms 200ms 400ms 800ms -1s"},
	} {
		j := newJudge(tc.kind, &tc.probe)
		at := base
		var got []string
		for try := range strings.FieldsSeq(tc.tries) {
			changed, wait := j.observe(try == "ok", at)
			mark := ""
			if changed && j.verdict {
				mark = "+"
			} else if changed {
				mark = "-"
			}
			got = append(got, mark+wait.String())
			at = at.Add(wait)
		}
		if s := strings.Join(got, " "); s != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, s, tc.want)
		}
	}
}
