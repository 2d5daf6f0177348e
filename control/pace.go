// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"sync"
	"time"
)

// pace decides when a key that has changed is looked at: at once when it was quiet, and otherwise one interval
// after it was last looked at, together with everything that has changed until then. So the first change of a
// series is not delayed, none is delayed by more than the interval, and a series costs one look per interval.
type pace[K comparable] struct {
	interval time.Duration
	add      func(K)

	mu sync.Mutex
	at map[K]time.Time // of the last look, which may be yet to come
}

func newPace[K comparable](interval time.Duration, l *loop[K]) *pace[K] {
	return &pace[K]{interval: interval, add: l.add, at: map[K]time.Time{}}
}

// changed has the key looked at.
func (p *pace[K]) changed(key K) {
	now := time.Now()
	p.mu.Lock()
	at, known := p.at[key]
	wait := at.Sub(now) // until the look that has been arranged
	pending := known && wait > 0
	switch {
	case pending:
	case !known || -wait >= p.interval:
		p.at[key] = now
		wait = 0
	default:
		p.at[key] = at.Add(p.interval)
		wait += p.interval
	}
	p.mu.Unlock()
	switch {
	case pending: // it will see this change, too
	case wait == 0:
		p.add(key)
	default:
		// not the queue's own delay, which a retry that is due earlier would take the place of
		time.AfterFunc(wait, func() { p.add(key) })
	}
}

// forget drops a key that is gone.
func (p *pace[K]) forget(key K) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.at, key)
}
