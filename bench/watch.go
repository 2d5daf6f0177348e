// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"
)

// watchAgain is the pause before a watch that could not be opened is tried again.
const watchAgain = 100 * time.Millisecond

// follow gives the events of a watch to hear, until ctx ends. A server ends a watch whose reader is slow, or when it likes; then it is opened again, which
// begins with everything that is there, and broken is told, since what was measured meanwhile is of no use. Both are called from one goroutine.
func follow(ctx context.Context, open func(context.Context) (watch.Interface, error), hear func(watch.Event), broken func(error)) error {
	w, err := open(ctx)
	if err != nil {
		return err
	}
	go func() {
		for {
			why := errors.New("the server has ended a watch")
			for event := range w.ResultChan() {
				if event.Type == watch.Error {
					why = apierrors.FromObject(event.Object)
					break
				}
				hear(event)
			}
			w.Stop()
			if ctx.Err() != nil {
				return
			}
			broken(why)
			for w, err = open(ctx); err != nil; w, err = open(ctx) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(watchAgain):
				}
			}
		}
	}()
	return nil
}
