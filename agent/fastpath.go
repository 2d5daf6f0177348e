// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"runtime/debug"

	"github.com/fairlead/fairlead/fastpath"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// ways are the routes, and the fast path that goes by them. It is told of a change when the routes are there and no rule has changed yet; of the first state, when
// the rules are there too: it is they that have the kernel load connection tracking, which the fast path asks.
type ways struct {
	*nodenet.Target
	fast *fastpath.Target
	on   bool
}

func (n *Node) ways() Routes {
	if n.fast == nil {
		return n.routes
	}
	return &ways{Target: n.routes, fast: n.fast}
}

// Add implements Routes.
func (w *ways) Add(ctx context.Context, s *model.Snapshot) error {
	err := w.Target.Add(ctx, s)
	if err == nil && w.on {
		w.fast.Apply(s, w.Links())
	}
	return err
}

// Prune implements Routes.
func (w *ways) Prune(ctx context.Context, s *model.Snapshot) error {
	if !w.on {
		w.on = true
		w.fast.Apply(s, w.Links())
		debug.FreeOSMemory() // what the kernel's types took, megabytes
	}
	return w.Target.Prune(ctx, s)
}

// Verify implements Routes.
func (w *ways) Verify(ctx context.Context) error {
	err := w.Target.Verify(ctx)
	w.fast.Verify(w.Links())
	return err
}
