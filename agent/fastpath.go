// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"

	"github.com/fairlead/fairlead/fastpath"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// ways are the routes, and the fast path that goes by them. It is told when they are there and no rule has changed yet.
type ways struct {
	*nodenet.Target
	fast *fastpath.Target
}

func (n *Node) ways() Routes {
	if n.fast == nil {
		return n.routes
	}
	return ways{n.routes, n.fast}
}

// Add implements Routes.
func (w ways) Add(ctx context.Context, s *model.Snapshot) error {
	err := w.Target.Add(ctx, s)
	if err == nil {
		w.fast.Apply(s, w.Links())
	}
	return err
}

// Verify implements Routes.
func (w ways) Verify(ctx context.Context) error {
	err := w.Target.Verify(ctx)
	w.fast.Verify(w.Links())
	return err
}
