// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"sync"
	"time"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/status"
)

// State is what the loop has achieved, for everyone who asks: status, the CNI plugin, a node's pod runner.
type State struct {
	mu       sync.Mutex
	acked    *model.Snapshot
	ackedAt  time.Time
	took     time.Duration
	arrived  uint64
	err      error
	applies  uint64
	failures uint64
	// pendingSince is when the loop began with what is not acknowledged yet; zero if all is.
	pendingSince time.Time
	next         chan struct{} // closed at the next acknowledgement
}

// NewState has acknowledged nothing.
func NewState() *State { return &State{next: make(chan struct{})} }

// Acknowledged is the newest snapshot that every target has taken; nil before the first.
func (s *State) Acknowledged() *model.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked
}

// Progress returns the numbers of now.
func (s *State) Progress() status.Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := status.Progress{Arrived: s.arrived, At: s.ackedAt, Took: s.took.Seconds(), Applies: s.applies, Failures: s.failures}
	if s.acked != nil {
		p.Acknowledged = s.acked.Generation
	}
	if s.err != nil {
		p.Error = s.err.Error()
	}
	return p
}

// Pending returns when a snapshot was last acknowledged, and since when one is waiting for it; zero if none is.
func (s *State) Pending() (acknowledged, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ackedAt, s.pendingSince
}

// Wait returns once an acknowledged snapshot satisfies ok, or with the context's error.
func (s *State) Wait(ctx context.Context, ok func(*model.Snapshot) bool) error {
	for {
		s.mu.Lock()
		snap, next := s.acked, s.next
		s.mu.Unlock()
		if snap != nil && ok(snap) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-next:
		}
	}
}

func (s *State) acknowledge(snap *model.Snapshot, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked, s.ackedAt, s.took = snap, time.Now(), took
	close(s.next)
	s.next = make(chan struct{})
}

func (s *State) applied(snap *model.Snapshot, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrived, s.err = snap.Generation, err
	s.applies++
	if err != nil {
		s.failures++
	}
	if s.acked == snap {
		s.pendingSince = time.Time{}
	}
}

// begin says that the loop has taken up a snapshot.
func (s *State) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pendingSince.IsZero() {
		s.pendingSince = time.Now()
	}
}
