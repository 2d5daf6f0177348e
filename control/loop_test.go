// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
)

// logged is a logger that writes into the returned buffer.
func logged() (*slog.Logger, *syncBuffer) {
	b := &syncBuffer{}
	return slog.New(slog.NewTextHandler(b, nil)), b
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) lines() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), "\n")
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// runLoop runs f with a loop of one worker over sync, in a world with its own clock.
func runLoop(t *testing.T, workers int, sync func(context.Context, string) (time.Duration, error), f func(l *loop[string], log *syncBuffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log, buffer := logged()
		l := newLoop(&hub{log: log}, "test", workers, sync)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { l.run(ctx); close(done) }()
		f(l, buffer)
		cancel()
		<-done
	})
}

// guarded is a value that the test and the loop under test share.
type guarded[T any] struct {
	mu sync.Mutex
	v  T
}

func (g *guarded[T]) get() T {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.v
}

func (g *guarded[T]) set(v T) { g.change(func(T) T { return v }) }

func (g *guarded[T]) change(f func(T) T) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.v = f(g.v)
}

func inc(n int) int { return n + 1 }

func TestLoopFiresAtOnceAndCoalesces(t *testing.T) {
	var starts guarded[[]time.Time]
	sync := func(context.Context, string) (time.Duration, error) {
		starts.change(func(s []time.Time) []time.Time { return append(s, time.Now()) })
		time.Sleep(time.Second) // the work
		return 0, nil
	}
	runLoop(t, 4, sync, func(l *loop[string], _ *syncBuffer) {
		begin := time.Now()
		l.add("a")
		synctest.Wait()
		for range 100 {
			l.add("a") // while it runs
		}
		time.Sleep(time.Minute)
		got := starts.get()
		if len(got) != 2 || got[0] != begin || got[1] != begin.Add(time.Second) {
			t.Errorf("ran at %v, want at once and, for all 100 together, right after", got)
		}
	})
}

func TestLoopRunsAKeyOnceAtATime(t *testing.T) {
	var mu sync.Mutex
	running, most := map[string]int{}, 0
	sync := func(_ context.Context, key string) (time.Duration, error) {
		mu.Lock()
		running[key]++
		if running[key] > 1 {
			t.Errorf("%s runs twice", key)
		}
		most = max(most, len(running))
		mu.Unlock()
		time.Sleep(time.Second)
		mu.Lock()
		delete(running, key)
		mu.Unlock()
		return 0, nil
	}
	runLoop(t, 3, sync, func(l *loop[string], _ *syncBuffer) {
		for range 20 {
			for _, key := range []string{"a", "b", "c"} {
				l.add(key)
			}
			time.Sleep(300 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if most != 3 {
			t.Errorf("%d different keys ran together, want 3", most)
		}
	})
}

func TestLoopLooksAgain(t *testing.T) {
	var runs guarded[int]
	sync := func(context.Context, string) (time.Duration, error) {
		if runs.change(inc); runs.get() < 4 {
			return time.Hour, nil
		}
		return 0, nil
	}
	runLoop(t, 1, sync, func(l *loop[string], log *syncBuffer) {
		l.add("a")
		time.Sleep(24 * time.Hour)
		if runs.get() != 4 || log.lines() != 0 {
			t.Errorf("ran %d times, want 4; log: %s", runs.get(), log)
		}
	})
}

func TestLoopRetries(t *testing.T) {
	var runs guarded[int]
	var fail guarded[error]
	sync := func(context.Context, string) (time.Duration, error) {
		runs.change(inc)
		return 0, fail.get()
	}
	runLoop(t, 1, sync, func(l *loop[string], log *syncBuffer) {
		// what settles by itself is retried soon, and not worth a line
		for _, err := range []error{errStale, apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, "a", errors.New("changed"))} {
			fail.set(err)
			runs.set(0)
			l.add("a")
			time.Sleep(20 * time.Millisecond)
			if runs.get() < 3 || log.lines() != 0 {
				t.Errorf("%v: ran %d times in 20 ms; log: %s", err, runs.get(), log)
			}
			fail.set(nil)
			time.Sleep(time.Minute)
		}
		// a standing failure is retried for ever, ever slower, and said once
		fail.set(errors.New("disk is full"))
		runs.set(0)
		l.add("a")
		time.Sleep(time.Hour)
		if n := runs.get(); n < 100 || n > 200 {
			t.Errorf("ran %d times in an hour", n)
		}
		if log.lines() != 1 || !strings.Contains(log.String(), "disk is full") {
			t.Errorf("log: %s", log)
		}
		fail.set(nil)
		time.Sleep(time.Hour)
		if log.lines() != 2 || !strings.Contains(log.String(), "works again") {
			t.Errorf("log: %s", log)
		}
		runs.set(0)
		time.Sleep(time.Hour)
		if runs.get() != 0 {
			t.Errorf("ran %d times at idle", runs.get())
		}
	})
}

func TestLoopEnds(t *testing.T) {
	sync := func(ctx context.Context, _ string) (time.Duration, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	runLoop(t, 2, sync, func(l *loop[string], _ *syncBuffer) {
		l.add("a")
		l.add("b")
		l.add("c")
		synctest.Wait()
	})
}

func TestNamespaceEnding(t *testing.T) {
	err := apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "a", errors.New("it ends"))
	if namespaceEnding(err) {
		t.Error("any refusal counts as an ending namespace")
	}
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, cause(corev1.NamespaceTerminatingCause))
	if !namespaceEnding(err) {
		t.Error("an ending namespace is not seen")
	}
}

func TestLatest(t *testing.T) {
	a, b := testPod("a"), testPod("b")
	if latest(a, b) != b || latest(a, nil) != a || latest(nil, b) != b {
		t.Error("latest is wrong")
	}
	if got := cache.MetaObjectToName(a).String(); got != "shop/a" {
		t.Errorf("name of a pod is %s", got)
	}
}
