// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

const (
	// After the second failure in a row, a request waits for pauseFirst, then for twice as long each time, up to pauseMost; each time for up to
	// as long again, at random, so that the nodes of a cluster do not come back at one moment. An API server that is back is found in ten seconds at most.
	pauseFirst = 100 * time.Millisecond
	pauseMost  = 5 * time.Second
	// obeyMost is how long an API server may send a node away for (Retry-After).
	obeyMost = time.Minute
	// brief is how long a watch must last to count as a success.
	brief = 5 * time.Second
	// patientFor is how many failures in a row are nothing to speak of, where they are of kinds that come with every restart of an API server.
	patientFor = 2
	// slow is how long a request may go unanswered, and a list that streams in may pause, before that is said, and the stream given up for a plain list.
	slow = 10 * time.Second
)

// asker lists and watches one resource for a reflector, and goes on asking where a reflector would begin anew: a reflector that hears of an error
// lists everything again, while a watch can go on where it ended.
type asker struct {
	client   rest.Interface
	resource string
	filter   metav1.ListOptions
	// slow and brief are the constants, but for tests.
	slow, brief time.Duration
	// tell is told what keeps the resource from being heard of; empty: nothing.
	tell func(problem string)

	received atomic.Uint64 // objects of lists that stream in
	listed   atomic.Uint64 // complete lists

	mu       sync.Mutex
	failures int       // in a row
	obey     time.Time // until when the API server wants to be left alone
	began    time.Time // when the last watch did; zero if it has been judged
	plainly  bool      // the next list must not stream
}

var (
	// errPlainly has a reflector list plainly.
	errPlainly = errors.New("the stream of the list did not come to its end")
	// errNoAnswer is of a connection that ended before there was one.
	errNoAnswer = errors.New("it ended without an answer")
)

// listWatch is what a reflector asks.
func (a *asker) listWatch() *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (list runtime.Object, err error) {
			err = a.persist(ctx, func() error {
				list, err = a.get(&o).Do(ctx).Get()
				return err
			})
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (w watch.Interface, err error) {
			streams := o.SendInitialEvents != nil && *o.SendInitialEvents
			if streams && a.mustBePlain() {
				return nil, errPlainly
			}
			o.Watch = true
			err = a.persist(ctx, func() error {
				w, err = a.get(&o).Watch(ctx)
				if _, answered := w.(*watch.StreamWatcher); err == nil && !answered {
					err = errNoAnswer // for which client-go returns a watch without events
				}
				return err
			})
			if err != nil {
				return nil, err
			}
			a.begins()
			w = lasting(w, !streams)
			if streams {
				a.guard(w)
			}
			return w, nil
		},
	}
}

// goesOn is a watch whose end says that it is to go on.
type goesOn struct {
	watch.Interface
	events  chan watch.Event
	stopped chan struct{}
	stop    func()
}

// lasting has a watch end with an internal error, after which a reflector watches on from where it was. Where a watch just ends within a second of its beginning
// and without an event, a reflector lists everything again, and so would every node while a load balancer's API servers come and go. listed says that the watch does not
// begin with the list: while that streams in there is nothing to go on from.
func lasting(w watch.Interface, listed bool) watch.Interface {
	l := &goesOn{Interface: w, events: make(chan watch.Event), stopped: make(chan struct{})}
	l.stop = sync.OnceFunc(func() { close(l.stopped) })
	send := func(e watch.Event) bool {
		select {
		case l.events <- e:
			return true
		case <-l.stopped:
			return false
		}
	}
	go func() {
		defer close(l.events)
		for e := range w.ResultChan() {
			if !send(e) {
				return
			}
			listed = listed || e.Type == watch.Bookmark
		}
		if listed {
			send(watch.Event{Type: watch.Error, Object: &ended})
		}
	}()
	return l
}

var ended = apierrors.NewInternalError(errors.New("the watch has ended")).ErrStatus

// ResultChan implements watch.Interface.
func (l *goesOn) ResultChan() <-chan watch.Event { return l.events }

// Stop implements watch.Interface.
func (l *goesOn) Stop() {
	l.stop()
	l.Interface.Stop()
}

func (a *asker) get(o *metav1.ListOptions) *rest.Request {
	o.FieldSelector, o.LabelSelector = a.filter.FieldSelector, a.filter.LabelSelector
	return a.client.Get().Resource(a.resource).VersionedParams(o, metav1.ParameterCodec).MaxRetries(0)
}

// persist asks until there is an answer that the reflector has to know.
func (a *asker) persist(ctx context.Context, ask func() error) error {
	for {
		if err := a.rest(ctx); err != nil {
			return err
		}
		late := time.AfterFunc(a.slow, func() {
			a.tell(fmt.Sprintf("the API server has not answered the request to list %s for %v, which goes on", a.resource, a.slow))
		})
		err := ask()
		late.Stop()
		switch {
		case err == nil:
			if a.few() {
				a.tell("")
			}
			return nil
		case ctx.Err() != nil:
			return err
		}
		a.failed(err)
		known := forReflector(err)
		if !known || !a.few() {
			a.tell(explain(err, a.resource, a.client.APIVersion().Group))
		}
		if known {
			return err
		}
	}
}

// few reports whether things go well enough for one success to count.
func (a *asker) few() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failures <= patientFor
}

// begins notes that a watch does. After failures, it has to last for a while before all is well.
func (a *asker) begins() {
	now := time.Now()
	a.mu.Lock()
	a.began = now
	a.mu.Unlock()
	if a.few() {
		return
	}
	time.AfterFunc(a.brief, func() {
		a.mu.Lock()
		lasts := a.began.Equal(now)
		if lasts {
			a.failures = 0
		}
		a.mu.Unlock()
		if lasts {
			a.tell("")
		}
	})
}

// forReflector reports whether an error is one that a reflector acts on: a version that is too old or too new, or a list that cannot be streamed.
func forReflector(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.IsBadRequest(err) || apierrors.IsInvalid(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) || apierrors.IsNotAcceptable(err)
}

// rest waits before a request for as long as the last ones have earned.
func (a *asker) rest(ctx context.Context) error {
	a.mu.Lock()
	short := !a.began.IsZero() && time.Since(a.began) < a.brief
	if short {
		a.failures++
	} else if !a.began.IsZero() {
		a.failures = 0
	}
	a.began = time.Time{}
	wait := max(pause(a.failures), time.Until(a.obey))
	a.mu.Unlock()
	if short && !a.few() {
		a.tell(fmt.Sprintf("watches of %s end as soon as they begin", a.resource))
	}
	if wait <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait + rand.N(wait)):
		return nil
	}
}

// pause is how long to wait after some failures in a row. One is forgiven: it is how a connection ends, and how an API server says that it does not
// stream lists.
func pause(failures int) time.Duration {
	if failures < 2 {
		return 0
	}
	return min(pauseFirst<<min(failures-2, 16), pauseMost)
}

func (a *asker) failed(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failures++
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		a.obey = time.Now().Add(min(time.Duration(seconds)*time.Second, obeyMost))
	}
}

// guard ends a list that streams in and comes to no end: whose last bookmark was lost, for one. The next is a plain one.
func (a *asker) guard(w watch.Interface) {
	listed, received := a.listed.Load(), a.received.Load()
	var check func()
	check = func() {
		switch now := a.received.Load(); {
		case a.listed.Load() != listed:
		case now != received:
			received = now
			time.AfterFunc(a.slow, check)
		default:
			a.mu.Lock()
			a.plainly = true
			a.mu.Unlock()
			w.Stop()
		}
	}
	time.AfterFunc(a.slow, check)
}

func (a *asker) mustBePlain() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	plainly := a.plainly
	a.plainly = false
	return plainly
}

// explain says what an answer means for who runs the cluster. It is empty for an answer that never came: why is known to who connects.
func explain(err error, resource, group string) string {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		var away *unreachableError
		if errors.As(err, &away) {
			return ""
		}
		return fmt.Sprintf("the connection broke while %s were asked for: %v", resource, err)
	}
	said := status.Status().Message
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("the API server forbids listing %s (%s): add the verbs list and watch of resource %s in API group %q to the agent's ClusterRole",
			resource, said, resource, group)
	case apierrors.IsUnauthorized(err):
		return fmt.Sprintf("the API server does not accept this agent's credentials for listing %s (%s): its token or certificate has expired, is not valid yet by the server's clock, or is of another cluster",
			resource, said)
	case apierrors.IsTooManyRequests(err):
		return fmt.Sprintf("the API server has too many requests and wants to be asked for %s later", resource)
	}
	return fmt.Sprintf("the API server fails to list %s: %s", resource, cmp.Or(strings.TrimSpace(said), err.Error()))
}
