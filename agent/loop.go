// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/fairlead/fairlead/model"
)

// Source is where snapshots come from.
type Source interface {
	Changed() <-chan struct{}
	Snapshot() *model.Snapshot
}

// Routes leads to the pods of other nodes. What is added must be there before a Service may point to it, and what is gone may be removed
// only after no Service does.
type Routes interface {
	Add(context.Context, *model.Snapshot) error
	Prune(context.Context, *model.Snapshot) error
}

// Dataplane carries Services' traffic. Apply returns when the kernel has taken the whole snapshot.
type Dataplane interface {
	Apply(context.Context, *model.Snapshot) error
}

// Names is the cluster DNS: told of a snapshot when it arrives and again when it can be relied on.
type Names interface {
	Announce(*model.Snapshot)
	Publish(*model.Snapshot)
}

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second
)

// Loop is the agent's one loop.
type Loop struct {
	Source    Source
	Routes    Routes
	Dataplane Dataplane
	Names     Names
	State     *State
	Logger    *slog.Logger
}

// Run applies every snapshot until ctx ends. It never gives up on an error: it says it once, keeps what works, and tries
// again, at once when something changes and otherwise after a growing pause.
func (l *Loop) Run(ctx context.Context) {
	var retry <-chan time.Time
	pause, failing := retryFirst, ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.Source.Changed():
		case <-retry:
		}
		retry = nil
		snap := l.Source.Snapshot()
		if snap == nil || snap == l.State.Acknowledged() && failing == "" {
			continue
		}
		err := l.apply(ctx, snap)
		l.State.applied(snap, err)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if failing != "" {
				l.Logger.Info("programming works again", "generation", snap.Generation)
			}
			pause, failing = retryFirst, ""
		default:
			if err.Error() != failing {
				l.Logger.Error("programming failed; what worked before goes on, trying again", "generation", snap.Generation, "err", err)
			}
			failing = err.Error()
			retry, pause = time.After(pause), min(2*pause, retryMost)
		}
	}
}

// apply is the order that promises rest on: additions go routes, dataplane, DNS; removals go the other way.
// DNS hears first of what is gone, because announcing is enough for that.
func (l *Loop) apply(ctx context.Context, snap *model.Snapshot) error {
	start := time.Now()
	l.Names.Announce(snap)
	if err := l.Routes.Add(ctx, snap); err != nil {
		return fmt.Errorf("add routes: %w", err)
	}
	if err := l.Dataplane.Apply(ctx, snap); err != nil {
		return fmt.Errorf("apply services: %w", err)
	}
	l.Names.Publish(snap)
	l.State.acknowledge(snap, time.Since(start))
	if err := l.Routes.Prune(ctx, snap); err != nil {
		return fmt.Errorf("remove routes: %w", err)
	}
	return nil
}
