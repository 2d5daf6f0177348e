// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead/fairlead/kube"
	"github.com/fairlead/fairlead/metrics"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nft"
)

// stage records what the loop does, in order, and fails where it is told to.
type stage struct {
	changed chan struct{}
	builder *model.Builder
	synced  bool
	done    []string
	fail    map[string]error
	// verified counts the looks at what others may have changed.
	verified int
	// suspended counts how often it was told that another agent writes.
	suspended int
	// rest is called when changes are over.
	rest func()
	// triggers are when the changes happened that were not asked for yet.
	triggers []kube.Trigger
	// answered are the changes of which the names were told that they are published.
	answered []kube.Trigger
	// turn is nil if there is no other agent.
	turn Turn
	// onApply runs while the dataplane is being written.
	onApply func()
	// mu is passed by whoever looks at the stage or changes it: the story and the loop wait for each other by the bubble's time, of which the race
	// detector knows nothing.
	mu sync.Mutex
}

func (s *stage) fence() {
	s.mu.Lock()
	defer s.mu.Unlock()
}

// sleep lets time pass, and settle waits until the loop has nothing to do: for the story.
func (s *stage) sleep(d time.Duration) {
	s.fence()
	time.Sleep(d)
	s.settle()
}

func (s *stage) settle() {
	s.fence()
	synctest.Wait()
	s.fence()
}

func newStage() *stage {
	return &stage{changed: make(chan struct{}, 1), builder: model.NewBuilder(model.Config{Self: "n1"}), synced: true, fail: map[string]error{}, rest: func() {}}
}

func (s *stage) Changed() <-chan struct{} { return s.changed }

func (s *stage) Triggers() []kube.Trigger {
	s.fence()
	defer s.fence()
	out := s.triggers
	s.triggers = nil
	return out
}

func (s *stage) Snapshot() *model.Snapshot {
	s.fence()
	defer s.fence()
	if !s.synced {
		return nil
	}
	return s.builder.Build()
}

func (s *stage) change() {
	s.builder.SetNode(model.Node{Name: fmt.Sprint(len(s.done), time.Now())})
	s.signal()
}

func (s *stage) signal() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *stage) do(what string, snap *model.Snapshot) error {
	s.fence()
	defer s.fence()
	s.done = append(s.done, fmt.Sprint(what, " ", snap.Generation))
	return s.fail[what]
}

func (s *stage) Announce(snap *model.Snapshot) { _ = s.do("announce", snap) }

func (s *stage) Publish(snap *model.Snapshot, refused ...model.Name) {
	_ = s.do("publish", snap)
	for _, n := range refused {
		s.done = append(s.done, "without "+n.String())
	}
	s.fence()
}

func (s *stage) Programmed(service model.Name, at time.Time) {
	s.answered = append(s.answered, kube.Trigger{Service: service, At: at})
	s.fence()
}

func (s *stage) Add(_ context.Context, snap *model.Snapshot) error   { return s.do("routes", snap) }
func (s *stage) Prune(_ context.Context, snap *model.Snapshot) error { return s.do("prune", snap) }

func (s *stage) Apply(_ context.Context, snap *model.Snapshot) error {
	if s.onApply != nil {
		s.onApply()
	}
	return s.do("dataplane", snap)
}

func (s *stage) Suspend() { s.suspended++ }

func (s *stage) Verify(context.Context) error {
	s.verified++
	s.fence()
	return s.fail["verify"]
}

// play runs a loop on the stage inside a bubble of its own time, until the story returns.
func play(t *testing.T, s *stage, story func(*testing.T, *State)) {
	t.Helper()
	playMeasured(t, s, func(t *testing.T, state *State, _ *metrics.Proxy) { story(t, state) })
}

// playMeasured lets the story see what is measured too.
func playMeasured(t *testing.T, s *stage, story func(*testing.T, *State, *metrics.Proxy)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s.changed = make(chan struct{}, 1)
		state, measured := NewState(), metrics.New(metrics.Options{})
		l := &Loop{Source: s, Routes: s, Dataplane: s, Names: s, Turn: s.turn, Rest: s.rest, State: state, Metrics: measured, Logger: slog.New(slog.DiscardHandler)}
		ended := make(chan struct{})
		go func() { l.Run(ctx); close(ended) }()
		story(t, state, measured)
		cancel()
		<-ended
	})
}

func (s *stage) expect(t *testing.T, want ...string) {
	t.Helper()
	s.settle()
	if !slices.Equal(s.done, want) {
		t.Fatalf("the loop did\n  %s\nwant\n  %s", strings.Join(s.done, ", "), strings.Join(want, ", "))
	}
	s.done = nil
}

func TestOrder(t *testing.T) {
	s := newStage()
	play(t, s, func(t *testing.T, state *State) {
		s.signal()
		s.expect(t, "announce 1", "routes 1", "dataplane 1", "publish 1", "prune 1")
		if p := state.Progress(); p.Acknowledged != 1 || p.Error != "" {
			t.Errorf("progress %+v", p)
		}
		s.signal() // nothing has changed
		s.expect(t)
	})
}

func TestNothingBeforeTheWatchesAreComplete(t *testing.T) {
	s := newStage()
	s.synced = false
	play(t, s, func(t *testing.T, _ *State) {
		s.signal()
		s.expect(t)
		s.synced = true
		s.signal()
		s.expect(t, "announce 1", "routes 1", "dataplane 1", "publish 1", "prune 1")
	})
}

// TestNeverPublishedUnacknowledged fails each target in turn: the snapshot must not reach DNS, and must be tried again by itself.
func TestNeverPublishedUnacknowledged(t *testing.T) {
	for _, target := range []string{"routes", "dataplane"} {
		t.Run(target, func(t *testing.T) {
			s := newStage()
			s.fail[target] = errors.New("the kernel says no")
			play(t, s, func(t *testing.T, state *State) {
				s.signal()
				s.settle()
				if slices.Contains(s.done, "publish 1") || state.Acknowledged() != nil {
					t.Fatalf("published although %s failed: %v", target, s.done)
				}
				if p := state.Progress(); p.Arrived != 1 || !strings.Contains(p.Error, "the kernel says no") || p.Failures != 1 {
					t.Errorf("progress %+v", p)
				}
				s.done = nil
				s.sleep(retryFirst)
				if len(s.done) == 0 {
					t.Fatal("not tried again")
				}
				delete(s.fail, target)
				s.done = nil
				s.sleep(2 * retryFirst)
				s.expect(t, "announce 1", "routes 1", "dataplane 1", "publish 1", "prune 1")
			})
		})
	}
}

// TestQuarantine: a Service that the kernel refuses holds back itself only, and is tried again.
func TestQuarantine(t *testing.T) {
	s := newStage()
	bad := model.Name{Namespace: "shop", Name: "bad"}
	s.fail["dataplane"] = &nft.QuarantineError{Services: []nft.Refusal{{Service: bad, Err: errors.New("too long")}}}
	play(t, s, func(t *testing.T, state *State) {
		s.signal()
		s.expect(t, "announce 1", "routes 1", "dataplane 1", "publish 1", "without shop/bad", "prune 1")
		if p := state.Progress(); p.Acknowledged != 1 || !strings.Contains(p.Error, "shop/bad") {
			t.Errorf("progress %+v", p)
		}
		delete(s.fail, "dataplane")
		s.sleep(retryFirst)
		s.expect(t, "announce 1", "routes 1", "dataplane 1", "publish 1", "prune 1")
	})
}

// TestQuarantinedByALook: a Service that the kernel refuses when what others have changed is mended is withheld like any other, and said once.
func TestQuarantinedByALook(t *testing.T) {
	s := newStage()
	bad := model.Name{Namespace: "shop", Name: "bad"}
	play(t, s, func(t *testing.T, state *State) {
		s.signal()
		s.expect(t, "announce 1", "routes 1", "dataplane 1", "publish 1", "prune 1")
		refused := &nft.QuarantineError{Services: []nft.Refusal{{Service: bad, Err: errors.New("too long")}}}
		s.fail["verify"], s.fail["dataplane"] = refused, refused
		s.sleep(verifyEvery + retryFirst)
		s.expect(t, "announce 1", "routes 1", "dataplane 1", "publish 1", "without shop/bad", "prune 1")
		if p := state.Progress(); !strings.Contains(p.Error, "shop/bad") {
			t.Errorf("progress %+v", p)
		}
		clear(s.fail)
		s.sleep(retryMost)
		s.expect(t, "announce 1", "routes 1", "dataplane 1", "publish 1", "prune 1")
	})
}

func TestFailedPruneIsTriedAgain(t *testing.T) {
	s := newStage()
	s.fail["prune"] = errors.New("busy")
	play(t, s, func(t *testing.T, state *State) {
		s.signal()
		s.expect(t, "announce 1", "routes 1", "dataplane 1", "publish 1", "prune 1")
		if state.Acknowledged() == nil {
			t.Error("a route that could not be removed held back what was added")
		}
		delete(s.fail, "prune")
		s.sleep(retryFirst)
		s.expect(t, "announce 1", "routes 1", "dataplane 1", "publish 1", "prune 1")
	})
}

func TestVerifiesWhatIsApplied(t *testing.T) {
	s := newStage()
	play(t, s, func(t *testing.T, _ *State) {
		s.sleep(2*verifyEvery + time.Second)
		if s.verified != 0 {
			t.Error("verified before anything was applied")
		}
		s.signal()
		s.sleep(2 * verifyEvery)
		if s.verified != 4 { // routes and dataplane
			t.Errorf("verified %d times in two periods", s.verified)
		}
	})
}

// What changes took is given back once, when they are over: not while they go on, and not at idle.
func TestRestsAfterChanges(t *testing.T) {
	s := newStage()
	rests := 0
	s.rest = func() { rests++ }
	play(t, s, func(t *testing.T, _ *State) {
		for i, step := range []struct {
			change bool
			rests  int // by the end of this period
		}{{false, 0}, {true, 0}, {false, 1}, {false, 1}, {true, 1}, {true, 1}, {true, 1}, {false, 2}, {false, 2}, {true, 2}, {false, 3}, {true, 3}, {true, 3}, {false, 4}} {
			s.sleep(verifyEvery / 2)
			if step.change {
				s.change()
			}
			s.sleep(verifyEvery / 2)
			if rests != step.rests {
				t.Fatalf("it rested %d times by the end of period %d, want %d", rests, i, step.rests)
			}
		}
		// What is told and changes nothing is no change.
		s.signal()
		s.sleep(3 * verifyEvery)
		if rests != 4 {
			t.Errorf("it rested %d times, want 4: nothing had changed", rests)
		}
	})
}

func TestRetriesSlowDown(t *testing.T) {
	s := newStage()
	s.fail["dataplane"] = errors.New("no")
	play(t, s, func(t *testing.T, _ *State) {
		s.signal()
		s.sleep(time.Minute)
		tries := 0
		for _, d := range s.done {
			if strings.HasPrefix(d, "dataplane") {
				tries++
			}
		}
		// 0.1, 0.2, 0.4 … 6.4 s, and then every 10 s.
		if tries < 8 || tries > 14 {
			t.Errorf("%d tries in a minute", tries)
		}
	})
}

// TestChangesWhileBusyComeAsOne: what arrives while the kernel is being written is applied once, in its last state.
func TestChangesWhileBusyComeAsOne(t *testing.T) {
	s := newStage()
	first := true
	s.onApply = func() {
		if first {
			first = false
			for range 5 {
				s.change()
				s.builder.Build()
				time.Sleep(time.Millisecond)
			}
		}
	}
	play(t, s, func(t *testing.T, _ *State) {
		s.signal()
		s.sleep(time.Second)
		s.expect(t, "announce 1", "routes 1", "dataplane 1", "publish 1", "prune 1",
			"announce 6", "routes 6", "dataplane 6", "publish 6", "prune 6")
	})
}

func TestWait(t *testing.T) {
	s := newStage()
	play(t, s, func(t *testing.T, state *State) {
		got := make(chan error, 2)
		wait := func(ctx context.Context, gen uint64) {
			got <- state.Wait(ctx, func(snap *model.Snapshot) bool { return snap.Generation >= gen })
		}
		go wait(t.Context(), 2)
		s.signal()
		s.settle()
		if len(got) != 0 {
			t.Fatal("Wait returned too early")
		}
		s.change()
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go wait(ctx, 99)
		if err := <-got; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait for what never comes: %v", err)
		}
	})
}

// TestProgrammingIsMeasuredWhenTheKernelHasIt: a change of endpoints counts from its trigger to the acknowledgement, once, and not when it fails.
func TestProgrammingIsMeasuredWhenTheKernelHasIt(t *testing.T) {
	s := newStage()
	playMeasured(t, s, func(t *testing.T, _ *State, m *metrics.Proxy) {
		const name = "kubeproxy_network_programming_duration_seconds"
		s.fail["dataplane"] = errors.New("no")
		early := time.Now().Add(-time.Second) // before this agent started
		s.sleep(3 * time.Second)
		shop := model.Name{Namespace: "shop", Name: "orders"}
		s.triggers = []kube.Trigger{{Service: shop, At: time.Now().Add(-2 * time.Second)}, {IPv6: true, At: time.Now()}, {At: early}}
		s.signal()
		s.settle()
		if n, _ := observed(t, m, name, "IPv4"); n != 0 {
			t.Errorf("%d observations of what failed", n)
		}
		if len(s.answered) != 0 {
			t.Errorf("the names were told of %v, which failed", s.answered)
		}
		delete(s.fail, "dataplane")
		s.sleep(retryFirst)
		if len(s.answered) != 3 || s.answered[0].Service != shop {
			t.Errorf("the names were told of %v", s.answered)
		}
		for family, least := range map[string]float64{"IPv4": 2.1, "IPv6": 0.1} {
			if n, sum := observed(t, m, name, family); n != 1 || sum < least || sum > least+1 {
				t.Errorf("%s: %d observations of %.2f s, want one of %.2f", family, n, sum, least)
			}
		}
		s.change()
		s.settle()
		if n, _ := observed(t, m, name, "IPv4"); n != 1 {
			t.Errorf("%d observations after a change without a trigger", n)
		}
	})
}

// TestWhatWaitsIsBounded: as long as nothing can be programmed, changes of endpoints wait to be measured; not more of them than anybody needs.
func TestWhatWaitsIsBounded(t *testing.T) {
	s := newStage()
	playMeasured(t, s, func(t *testing.T, _ *State, m *metrics.Proxy) {
		s.fail["dataplane"] = errors.New("no")
		s.sleep(time.Second)
		for i := range 10 {
			s.triggers = make([]kube.Trigger, mostTriggers/5)
			for j := range s.triggers {
				s.triggers[j] = kube.Trigger{Service: model.Name{Name: fmt.Sprint(i)}, At: time.Now()}
			}
			s.change()
			s.settle()
		}
		delete(s.fail, "dataplane")
		s.sleep(retryMost)
		if n := len(s.answered); n != mostTriggers || s.answered[0].Service.Name != "0" {
			t.Errorf("the names were told of %d changes, want the first %d", n, mostTriggers)
		}
	})
}

// TestNothingToProgram: a change of endpoints that changes nothing in the kernel is done with at once, and does not wait for one that does.
func TestNothingToProgram(t *testing.T) {
	s := newStage()
	playMeasured(t, s, func(t *testing.T, _ *State, m *metrics.Proxy) {
		s.change()
		s.settle()
		s.sleep(time.Second)
		done := len(s.done)
		s.triggers = []kube.Trigger{{At: time.Now()}}
		m.EndpointsChanged()
		s.signal()
		s.settle()
		if len(s.done) > done {
			t.Errorf("programmed %q", s.done[done:])
		}
		if _, _, pending := gathered(t, m, "kubeproxy_sync_proxy_rules_endpoint_changes_pending", ""); pending != 0 {
			t.Errorf("%v changes are pending", pending)
		}
		if n, sum := observed(t, m, "kubeproxy_network_programming_duration_seconds", "IPv4"); n != 1 || sum != 0 || len(s.answered) != 1 {
			t.Errorf("%d observations of %.2f s; the names were told of %v", n, sum, s.answered)
		}
	})
}

// observed is what a histogram has counted for an address family.
func observed(t *testing.T, m *metrics.Proxy, name, family string) (n uint64, sum float64) {
	t.Helper()
	n, sum, _ = gathered(t, m, name, family)
	return n, sum
}

// gathered is what a histogram has counted, or a gauge shows, that has a label of this value; with an empty one it may have any.
func gathered(t *testing.T, m *metrics.Proxy, name, label string) (n uint64, sum, gauge float64) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m.Collectors()...)
	all, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		for _, metric := range f.GetMetric() {
			values := []string{""}
			for _, l := range metric.GetLabel() {
				values = append(values, l.GetValue())
			}
			if f.GetName() == name && slices.Contains(values, label) {
				return metric.GetHistogram().GetSampleCount(), metric.GetHistogram().GetSampleSum(), metric.GetGauge().GetValue()
			}
		}
	}
	return 0, 0, 0
}

// turns is a holder that another agent has something to say at too.
type turns struct {
	asked int
	grant chan struct{}
	yield chan struct{}
}

func newTurns() *turns { return &turns{grant: make(chan struct{}), yield: make(chan struct{})} }

func (t *turns) Write(ctx context.Context) error {
	t.asked++
	select {
	case <-t.grant:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *turns) Yield() <-chan struct{} { return t.yield }

// TestYield: an agent that is asked to yield does nothing until it is its turn again; then it looks what has happened, and goes on with what is newest.
func TestYield(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s, other, state := newStage(), newTurns(), NewState()
		s.changed = make(chan struct{}, 1)
		l := &Loop{Source: s, Routes: s, Dataplane: s, Names: s, Turn: other, Rest: s.rest, State: state, Metrics: metrics.New(metrics.Options{}), Logger: slog.New(slog.DiscardHandler)}
		ended := make(chan struct{})
		go func() { l.Run(ctx); close(ended) }()
		s.change()
		s.settle()
		if len(s.done) > 0 {
			t.Fatalf("before its turn: %q", s.done)
		}
		s.change() // while it waits
		want := s.builder.Build()
		other.grant <- struct{}{}
		s.settle()
		if state.Acknowledged() != want {
			t.Fatalf("not the newest: %q", s.done)
		}
		other.yield <- struct{}{}
		done, verified := len(s.done), s.verified
		s.change()
		s.sleep(time.Hour)
		if s.suspended != 1 {
			t.Errorf("suspended %d times", s.suspended)
		}
		if len(s.done) > done || s.verified > verified || state.Acknowledged() != want {
			t.Errorf("after it yielded: %q", s.done[done:])
		}
		other.grant <- struct{}{}
		s.settle()
		if s.verified < verified+2 || state.Acknowledged() == want { // the routes, and the dataplane
			t.Errorf("when it is its turn again: %d looks, %q", s.verified-verified, s.done[done:])
		}
		other.yield <- struct{}{}
		cancel() // also while it waits
		<-ended
	})
}
