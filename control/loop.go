// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const (
	retryFirst = 2 * time.Millisecond // after the first failure; an informer is rarely further behind than this
	retryMost  = 30 * time.Second     // the backoff doubles up to this
)

// errStale says that an informer has not yet shown what this process wrote itself: look again in a moment.
var errStale = errors.New("informer is behind our own writes")

// loop is the skeleton under every controller: a queue of keys and the function that brings one key to its
// desired state. A key that is added runs at once if a worker is free; added again while it runs, it runs once
// more afterwards. So the first change is never delayed and a burst of changes collapses, without any timer.
// The same key never runs twice at the same time.
type loop[K comparable] struct {
	log     *slog.Logger
	queue   workqueue.TypedRateLimitingInterface[K]
	workers int
	// sync reads the informers, writes what differs, and returns after how long to look again (0: only when
	// something changes). It must be idempotent: running it again with nothing changed writes nothing.
	sync func(ctx context.Context, key K) (again time.Duration, err error)

	mu      sync.Mutex
	failing map[K]string // last error logged per key, so that a standing failure is one line
}

// runner is what the hub needs of a loop, whatever its key.
type runner interface{ run(ctx context.Context) }

func newLoop[K comparable](h *hub, name string, workers int, sync func(context.Context, K) (time.Duration, error)) *loop[K] {
	l := &loop[K]{
		log:     h.log.With("controller", name),
		queue:   workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[K](retryFirst, retryMost)),
		workers: workers,
		sync:    sync,
		failing: map[K]string{},
	}
	h.loops = append(h.loops, l)
	return l
}

// add queues the key.
func (l *loop[K]) add(key K) { l.queue.Add(key) }

// addAfter queues the key once d has passed.
func (l *loop[K]) addAfter(key K, d time.Duration) { l.queue.AddAfter(key, d) }

// run works until ctx ends and every worker has returned.
func (l *loop[K]) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, l.queue.ShutDown)
	defer stop()
	var wg sync.WaitGroup
	for range l.workers {
		wg.Go(func() {
			for l.next(ctx) {
			}
		})
	}
	wg.Wait()
}

// next handles one key; false when the queue was shut down.
func (l *loop[K]) next(ctx context.Context) bool {
	key, down := l.queue.Get()
	if down {
		return false
	}
	defer l.queue.Done(key)
	if ctx.Err() != nil {
		return false
	}
	again, err := l.sync(ctx, key)
	if err != nil {
		l.report(ctx, key, err)
		l.queue.AddRateLimited(key)
		return true
	}
	l.recovered(key)
	l.queue.Forget(key)
	if again > 0 {
		l.queue.AddAfter(key, again)
	}
	return true
}

// report logs a failure once, and again only when its text changes. What the next try settles by itself is
// not worth a line: somebody else wrote first, or our own informer lags.
func (l *loop[K]) report(ctx context.Context, key K, err error) {
	if ctx.Err() != nil || errors.Is(err, errStale) || apierrors.IsConflict(err) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if text := err.Error(); l.failing[key] != text {
		l.failing[key] = text
		l.log.Warn("failed, will retry", "key", fmt.Sprint(key), "err", err)
	}
}

func (l *loop[K]) recovered(key K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, was := l.failing[key]; was {
		delete(l.failing, key)
		l.log.Info("works again", "key", fmt.Sprint(key))
	}
}

// watch calls f for every change an informer sees: old is nil for an object that appeared, cur is nil for one
// that is gone. The loops do not start before every watch has been told of everything that was there.
func watch[T any](h *hub, informer cache.SharedIndexInformer, f func(old, cur *T)) {
	reg, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { f(nil, obj.(*T)) },
		UpdateFunc: func(old, cur any) { f(old.(*T), cur.(*T)) },
		DeleteFunc: func(obj any) {
			if lost, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = lost.Obj
			}
			if old, ok := obj.(*T); ok {
				f(old, nil)
			}
		},
	})
	if err != nil { // only for an informer that has stopped, which would be a mistake in Run
		panic(fmt.Sprintf("watch %T: %v", *new(T), err))
	}
	h.synced = append(h.synced, reg.HasSynced)
}

// latest is cur, or old when the object is gone.
func latest[T any](old, cur *T) *T {
	if cur != nil {
		return cur
	}
	return old
}

// namespaceEnding says whether a create was refused because its namespace is being deleted, which no retry mends.
func namespaceEnding(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

// ignoreGone drops the error of a write whose object was deleted meanwhile.
func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
