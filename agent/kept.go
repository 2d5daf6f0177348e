// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/fairlead/fairlead/checkpoint"
	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/metrics"
	"github.com/fairlead/fairlead/model"
)

const (
	// keepSettle is how long a change may wait for others to be written with it, and keepEvery the least time between two writes; keepShare is the
	// part of the time that writing may take at most: in a large cluster that never rests, a write of a fifth of a second comes every twenty seconds. What a
	// node that loses its power does not find again is what changed since the last one.
	keepSettle = 500 * time.Millisecond
	keepEvery  = 10 * time.Second
	keepShare  = 0.01
	// keepFirst is the pause after the first lists: a start has more urgent things to do.
	keepFirst = 2 * time.Second
)

// kept is the state on disk.
type kept struct {
	path, node, boot string
	left             model.Roles
	log              *slog.Logger
	metrics          *metrics.Checkpoint

	mu     sync.Mutex
	at     time.Time // of the file that is there; zero if there is none
	failed string    // why it cannot be read or written; empty if it can
}

func newKept(cfg *config.Agent, log *slog.Logger) *kept {
	return &kept{path: cfg.Checkpoint(), node: cfg.Node, left: cfg.Left, boot: checkpoint.BootID(), log: log, metrics: metrics.NewCheckpoint()}
}

// read is what was known before the start; nil if nothing was, or if it cannot be read, which is said.
func (k *kept) read(view model.Config) *model.Builder {
	b := model.NewBuilder(view)
	h, err := checkpoint.Read(k.path, k.node, k.boot, b)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		k.failed = fmt.Sprintf("the start was without a state on disk: %v", err)
		k.log.Warn("starts without a state on disk", "err", err)
		return nil
	}
	if h.Left.Has(model.Proxy) && !view.Left.Has(model.Proxy) {
		k.log.Info("state on disk is of when another program was the service proxy: the start is without it", "saved", h.Saved)
		return nil
	}
	k.at = h.Saved
	k.metrics.Found(h.Saved)
	if h.Boot != k.boot {
		k.log.Info("state on disk is of before the last start of this node: its own pods are left out of it", "saved", h.Saved)
	}
	return b
}

// saved is when the state on disk was written; zero if there is none.
func (k *kept) saved() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.at
}

// problem says why the state on disk cannot be relied on; empty if it can.
func (k *kept) problem() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed
}

// write replaces the state on disk. It says once that it cannot, and that it can again.
func (k *kept) write(objects func(model.Objects)) error {
	began := time.Now()
	size, err := checkpoint.Write(k.path, checkpoint.Header{Node: k.node, Boot: k.boot, Saved: began, Left: k.left}, objects)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.metrics.Failed()
		if text := fmt.Sprintf("the state is not kept on disk: %v", err); text != k.failed {
			k.failed = text
			k.log.Error("cannot write the state to disk, trying again", "err", err)
		}
		return err
	}
	k.metrics.Wrote(began, size)
	if k.failed != "" {
		k.log.Info("state on disk is written", "bytes", size)
	}
	k.at, k.failed = began, ""
	return nil
}

// known is where the state comes from, see [kube.Source].
type known interface {
	// Listed reports whether it is the API server's.
	Listed() bool
	Save(model.Objects)
}

// follow writes the state to disk when it has changed, and at the end. It is never in the loop's way: it takes what the source has, an object at a
// time. What is known only from the disk is not written to it again.
func (k *kept) follow(ctx context.Context, state *State, source known) {
	var last *model.Snapshot
	pause, next := keepFirst, time.Time{}
	for {
		if state.Wait(ctx, func(s *model.Snapshot) bool { return s != last && source.Listed() }) == nil {
			select {
			case <-ctx.Done():
			case <-time.After(max(pause, time.Until(next))):
			}
		}
		began := time.Now()
		if now := state.Acknowledged(); now != nil && now != last && source.Listed() && k.write(source.Save) == nil {
			last = now
		}
		if ctx.Err() != nil {
			return
		}
		pause, next = keepSettle, began.Add(max(keepEvery, time.Duration(float64(time.Since(began))/keepShare)))
	}
}
