// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/fairlead/fairlead/kube"
	"github.com/fairlead/fairlead/metrics"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nft"
)

// Source is where snapshots come from. Triggers are when the changes of endpoints happened that the next snapshot shows.
type Source interface {
	Changed() <-chan struct{}
	Triggers() []kube.Trigger
	Snapshot() *model.Snapshot
}

// Routes leads to the pods of other nodes. What is added must be there before a Service may point to it, and what is gone may be removed
// only after no Service does. Verify mends what a device or somebody else has lost. Suspend ends, until Verify, what would be wrong if somebody else wrote and
// this process did not hear of it.
type Routes interface {
	Add(context.Context, *model.Snapshot) error
	Prune(context.Context, *model.Snapshot) error
	Verify(context.Context) error
	Suspend()
}

// Dataplane carries Services' traffic. Apply returns when the kernel has taken the whole snapshot, or all of it but the Services
// that an [nft.QuarantineError] names.
// Verify looks whether somebody else has changed what was applied, and mends it.
type Dataplane interface {
	Apply(context.Context, *model.Snapshot) error
	Verify(context.Context) error
}

// Names is the cluster DNS: told of a snapshot when it arrives and again when it can be relied on, but for the Services refused.
type Names interface {
	Announce(*model.Snapshot)
	Publish(snap *model.Snapshot, refused ...model.Name)
	// Programmed is told after Publish when the change of a Service's endpoints happened that it published.
	Programmed(service model.Name, at time.Time)
}

// Turn says whether this agent may write to the kernel, of which there is one at a time. Write returns when it may; Yield gets a value when another one
// wants to, which may once Write has been called again. nil: there is no other.
type Turn interface {
	Write(context.Context) error
	Yield() <-chan struct{}
}

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second

	// verifyEvery is how long a change by another program may stay. Looking costs one question to the kernel.
	verifyEvery = 30 * time.Second

	// mostTriggers is how many changes of endpoints wait to be measured while nothing can be programmed, which may be for days.
	mostTriggers = 10_000
)

// Loop is the agent's one loop.
type Loop struct {
	Source    Source
	Routes    Routes
	Dataplane Dataplane
	Names     Names
	Turn      Turn
	// Rest is called once after changes, when nothing has changed for verifyEvery at least: what they took can be given back.
	Rest    func()
	State   *State
	Metrics *metrics.Proxy
	Logger  *slog.Logger
}

// Run applies every snapshot until ctx ends. It never gives up on an error: it says it once, keeps what works, and tries
// again, at once when something changes and otherwise after a growing pause.
func (l *Loop) Run(ctx context.Context) {
	check := time.NewTicker(verifyEvery)
	defer check.Stop()
	var retry <-chan time.Time
	pause, failing := retryFirst, ""
	var triggers []kube.Trigger
	var yield <-chan struct{}
	first := true
	changes, restless := false, false // since the last check, and before it
	if l.Turn != nil {
		yield = l.Turn.Yield()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-yield:
			l.Routes.Suspend()
			// Nothing has come of it if this returns: the other one is gone, and may have written.
			if l.Turn.Write(ctx) != nil {
				return
			}
			l.verify(ctx)
			continue
		case <-check.C:
			if refused := l.verify(ctx); refused != nil && failing == "" {
				failing, retry = refused.Error(), time.After(pause) // names must hear of it
				l.Logger.Error("a Service cannot be programmed any more; trying again", "err", refused)
			}
			if restless && !changes {
				l.Rest()
			}
			changes, restless = false, changes
			continue
		case <-l.Source.Changed():
		case <-retry:
		}
		retry = nil
		round := l.Metrics.Begin()
		triggers = append(triggers, l.Source.Triggers()...)
		triggers = triggers[:min(len(triggers), mostTriggers)]
		snap := l.Source.Snapshot()
		if snap == nil {
			continue
		}
		if snap == l.State.Acknowledged() && failing == "" {
			// What happened changes nothing in the kernel: a slice of a Service that is gone, for one.
			round.Spare()
			l.observe(triggers)
			triggers = nil
			continue
		}
		if first && l.Turn != nil {
			if l.Turn.Write(ctx) != nil {
				return
			}
			snap = l.Source.Snapshot()
		}
		first, changes = false, true
		whole := l.State.Acknowledged() == nil
		l.State.begin()
		err := l.apply(ctx, snap)
		l.State.applied(snap, err)
		if l.State.Acknowledged() == snap {
			round.End(whole, nil)
			l.observe(triggers)
			triggers = nil
		} else {
			round.End(whole, err)
		}
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

// observe says of every change of endpoints that the kernel has it now, and that it is answered.
func (l *Loop) observe(triggers []kube.Trigger) {
	for _, t := range triggers {
		l.Metrics.Programmed(familyOf(t.IPv6), t.At)
		l.Names.Programmed(t.Service, t.At)
	}
}

// verify returns which Services the kernel refuses; nil: none.
func (l *Loop) verify(ctx context.Context) (refused error) {
	if l.State.Acknowledged() == nil {
		return nil
	}
	routes, services := l.Routes.Verify(ctx), l.Dataplane.Verify(ctx)
	var quarantine *nft.QuarantineError
	if errors.As(services, &quarantine) {
		refused, services = services, nil
	}
	if err := errors.Join(routes, services); err != nil && ctx.Err() == nil {
		l.Logger.Error("cannot verify what is programmed", "err", err)
	}
	return refused
}

// apply is the order that promises rest on: additions go routes, dataplane, DNS; removals go the other way.
// DNS hears first of what is gone, because announcing is enough for that.
func (l *Loop) apply(ctx context.Context, snap *model.Snapshot) error {
	start := time.Now()
	l.Names.Announce(snap)
	if err := l.Routes.Add(ctx, snap); err != nil {
		return fmt.Errorf("add routes: %w", err)
	}
	applied := l.Dataplane.Apply(ctx, snap)
	var quarantine *nft.QuarantineError
	if applied != nil && !errors.As(applied, &quarantine) {
		return fmt.Errorf("apply services: %w", applied)
	}
	l.Names.Publish(snap, refused(quarantine)...)
	l.State.acknowledge(snap, time.Since(start))
	if err := l.Routes.Prune(ctx, snap); err != nil {
		return fmt.Errorf("remove routes: %w", err)
	}
	return applied
}

func refused(q *nft.QuarantineError) (names []model.Name) {
	if q == nil {
		return nil
	}
	for _, r := range q.Services {
		names = append(names, r.Service)
	}
	return names
}
