// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// A watch that ends, by itself or with an error, is opened again, also when that fails at first, and it is said each time.
func TestFollow(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watches := make(chan *watch.FakeWatcher)
	refused := 0
	open := func(ctx context.Context) (watch.Interface, error) {
		if refused > 0 {
			refused--
			return nil, errors.New("refused")
		}
		w := watch.NewFake()
		select {
		case watches <- w:
			return w, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	said := make(chan string)
	hear := func(e watch.Event) { said <- "heard " + e.Object.(*corev1.Pod).Name }
	broken := func(err error) { said <- "broken: " + err.Error() }
	first := make(chan error, 1)
	go func() { first <- follow(ctx, open, hear, broken) }()
	expect := func(want string) {
		t.Helper()
		if got := <-said; !strings.Contains(got, want) {
			t.Errorf("said %q, want %q", got, want)
		}
	}
	add := func(w *watch.FakeWatcher, name string) { w.Add(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}) }

	w := <-watches
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	add(w, "a")
	expect("heard a")
	refused = 2
	w.Stop()
	expect("broken: the server has ended")
	w = <-watches
	go add(w, "b")
	expect("heard b")
	go w.Error(&metav1.Status{Status: metav1.StatusFailure, Message: "too old"})
	expect("broken: too old")
	w = <-watches
	go add(w, "c")
	expect("heard c")
}

func TestFollowFirst(t *testing.T) {
	never := errors.New("never")
	err := follow(t.Context(), func(context.Context) (watch.Interface, error) { return nil, never }, nil, nil)
	if !errors.Is(err, never) {
		t.Errorf("%v, want that of opening", err)
	}
}
