// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/status"
)

// cpuTime is the processor time that a process has used.
func cpuTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	const user, system, hz = 11, 12, 100 // fields 14 and 15 of the line; the kernel counts in hundredths of a second for everybody
	ticks := 0
	for _, i := range []int{user, system} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / hz
}

// statusJSON is what fairlead status --json prints for the lone node.
func (l *lone) statusJSON(t testing.TB) status.Report {
	t.Helper()
	out, err := exec.Command(binary("fairlead"), "status", "--json", "--socket", filepath.Join(l.dir, "agent", "agent.sock")).Output()
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	var reports []status.Report
	if err := json.Unmarshal(out, &reports); err != nil || len(reports) != 1 {
		t.Fatalf("status: %v\n%s", err, out)
	}
	return reports[0]
}

// metric is the value of a metric without labels; -1 if there is none.
func (l *lone) metric(t testing.TB, name string) float64 {
	t.Helper()
	var text string
	if err := l.ask("agent").Get(context.Background(), "/metrics", nil, &text); err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(text)
	if m == nil {
		return -1
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestTwentyThousandServices: one Service that the dataplane cannot take among 20,000 harms nobody but itself. It is named everywhere, tried again at
// leisure, and works as soon as it can.
func TestTwentyThousandServices(t *testing.T) {
	const count, seats = 20_000, 16_383
	l := newLone(t)
	l.answerAll()
	begin := time.Now()
	made := make([]*corev1.Service, count)
	slices := l.kube.DiscoveryV1().EndpointSlices("default")
	err := bulk(count, func(i int) error {
		svc, err := l.kube.CoreV1().Services("default").Create(context.Background(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%05d", i)},
			Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
		}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		made[i] = svc
		_, err = slices.Create(context.Background(), slice(svc, "", corev1.IPv4Protocol, farPort, []string{farPod(2 * i), farPod(2*i + 1)}), metav1.CreateOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	poisoned := l.service("poisoned", corev1.ServiceSpec{
		Ports:           []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		SessionAffinity: corev1.ServiceAffinityClientIP,
	})
	err = bulk(17, func(i int) error {
		var addrs []string
		for j := range 1000 {
			addrs = append(addrs, farPod(1000*i+j))
		}
		_, err := slices.Create(context.Background(), slice(poisoned, fmt.Sprint("-", i), corev1.IPv4Protocol, farPort, addrs), metav1.CreateOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d Services and their slices made in %.1f s", count+1, time.Since(begin).Seconds())

	begin = time.Now()
	l.startAgent()
	r := l.awaitReady("agent")
	now, peak := resident(t, r.PID)
	t.Logf("agent ready after %.2f s, using %.2f s of processor; %d Services, %d endpoints; %d transactions, %d elements; %.1f MiB resident, %.1f at most",
		time.Since(begin).Seconds(), cpuTime(t, r.PID).Seconds(), r.Services, r.Endpoints, r.Dataplane.Transactions, r.Dataplane.Elements, now, peak)
	if r.Services < count+1 {
		t.Errorf("the agent has acknowledged %d Services only", r.Services)
	}

	// All others work, those that come now too.
	sample := func(when string) {
		t.Helper()
		for range 200 {
			i := rand.IntN(count)
			got, err := l.pod.Ask("tcp", "", at(made[i], true))
			if err != nil || host(got.Name) != farPod(2*i) && host(got.Name) != farPod(2*i+1) || got.Client.Addr().String() != podAddr {
				t.Errorf("%s: %s answered by %v, %v", when, made[i].Name, got, err)
			}
		}
	}
	sample("after the start")
	late := l.service("late", corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}})
	l.endpoints(late, farPort, farPod(7))
	eventually(t, 10*time.Second, "a Service that came later", func() error {
		_, err := l.pod.Ask("tcp", "", at(late, true))
		return err
	})

	// The poisoned one is named.
	named := func(lines []string) bool {
		return len(lines) == 1 && strings.Contains(lines[0], "default/poisoned") && strings.Contains(lines[0], fmt.Sprint(seats))
	}
	if r := l.statusJSON(t); !named(r.Quarantined) {
		t.Errorf("status names as quarantined: %q", r.Quarantined)
	}
	if v := l.metric(t, "fairlead_quarantined_services"); v != 1 {
		t.Errorf("fairlead_quarantined_services is %v, want 1", v)
	}
	eventually(t, 10*time.Second, "an Event about the poisoned Service", func() error {
		events, err := l.kube.CoreV1().Events("default").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.InvolvedObject.Name == poisoned.Name && e.InvolvedObject.UID == poisoned.UID && e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, fmt.Sprint(seats)) {
				return nil
			}
		}
		return fmt.Errorf("none of %d", len(events.Items))
	})

	// Calm, the retries included: their pause has grown to its longest, and at least one falls into the time that is measured.
	eventually(t, 30*time.Second, "retries at their slowest", func() error {
		r, err := l.report()
		if err == nil && r.Progress.Failures < 8 {
			err = fmt.Errorf("%d retries", r.Progress.Failures)
		}
		return err
	})
	before, err := l.report()
	l.ok(err)
	const idle = 20 * time.Second
	used := cpuTime(t, r.PID)
	time.Sleep(idle)
	used = cpuTime(t, r.PID) - used
	after, err := l.report()
	l.ok(err)
	share := 100 * used.Seconds() / idle.Seconds()
	t.Logf("idle for %v: %.2f %% of a processor, %d retries", idle, share, after.Progress.Applies-before.Progress.Applies)
	if share >= 1 {
		t.Errorf("the idle agent used %.2f %% of a processor", share)
	}
	if after.Progress.Applies == before.Progress.Applies {
		t.Error("the poisoned Service was not tried again")
	}
	if n := after.Dataplane.Transactions - before.Dataplane.Transactions; n != 0 {
		t.Errorf("the idle agent wrote %d transactions", n)
	}

	// Mended.
	if _, err := l.pod.Ask("tcp", "", at(poisoned, true)); err == nil {
		t.Error("the poisoned Service works")
	}
	poisoned, err = l.kube.CoreV1().Services("default").Get(context.Background(), poisoned.Name, metav1.GetOptions{})
	l.ok(err)
	poisoned.Spec.SessionAffinity, poisoned.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
	_, err = l.kube.CoreV1().Services("default").Update(context.Background(), poisoned, metav1.UpdateOptions{})
	l.ok(err)
	begin = time.Now()
	eventually(t, 20*time.Second, "the mended Service", func() error {
		_, err := l.pod.Ask("tcp", "", at(poisoned, true))
		return err
	})
	t.Logf("mended after %.2f s", time.Since(begin).Seconds())
	eventually(t, 5*time.Second, "nothing quarantined", func() error {
		if r := l.statusJSON(t); len(r.Quarantined) > 0 || r.Progress.Error != "" {
			return fmt.Errorf("%q %s", r.Quarantined, r.Progress.Error)
		}
		return nil
	})
	if v := l.metric(t, "fairlead_quarantined_services"); v != 0 {
		t.Errorf("fairlead_quarantined_services is %v, want 0", v)
	}
	sample("at the end")
}
