// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/fairlead/fairlead/model"
)

const (
	// maxElements is how many elements a transaction holds before the next begins. A Service is never divided.
	maxElements = 4000
	// idleWays is how many unused ways may stay: a Service that scales to and fro would otherwise make and remove
	// them all the time.
	idleWays = 32
)

// commit sends a transaction and counts it.
func (t *Target) commit(b *batch, elements int) error {
	err := t.conn.commit(b)
	if err != nil {
		t.stats.Refused++
		return err
	}
	t.count(elements)
	return nil
}

// count keeps the books of a transaction that the kernel has done.
func (t *Target) count(elements int) {
	t.stats.Transactions++
	t.stats.Elements += uint64(elements)
	t.advance()
}

// advance follows the ruleset's generation over a transaction of our own.
func (t *Target) advance() {
	if t.gen != 0 {
		t.gen = max(t.gen+1, 1)
	}
}

// plan puts a Service into a transaction.
func (t *Target) plan(x *tx, snap *model.Snapshot, u *unit) {
	x.plan(snap, u)
	if t.poison != nil && t.poison(u.service) {
		x.put(sets[vips][0], nil, nil)
	}
}

// next begins a transaction of bounded size with what is common and the first units of a list, and returns how many those are.
func (t *Target) next(snap *model.Snapshot, list []*unit, common part) (x *tx, n int) {
	x = t.state.begin()
	x.setPlains(snap, common)
	x.dropStrays()
	for ; n < len(list) && x.elements < maxElements; n++ {
		t.plan(x, snap, list[n])
	}
	return x, n
}

// reread reads the table again after the kernel has refused something: somebody else may have changed it. A Service that is refused keeps all that it
// has, also what it is not to have any more.
func (t *Target) reread(snap *model.Snapshot, refused error) error {
	if _, err := t.read(snap, t.state.owned); err != nil {
		return err
	}
	t.gen = 0 // what else is wrong with the table is for Verify to find
	if t.state == nil {
		return fmt.Errorf("table %s was changed by another program: %w", Table, refused)
	}
	return nil
}

// write brings the units to the snapshot, in transactions of bounded size. When the kernel refuses one, the table is read again,
// in case somebody else has changed it; when that does not help, the Service at fault is found by halving.
func (t *Target) write(ctx context.Context, snap *model.Snapshot, list []*unit, common part) error {
	again := false
	if len(list) > maxElements {
		n, err := t.stream(ctx, snap, list, common)
		if err != nil {
			return err
		}
		if n > 0 {
			list, common = list[n:], 0
		}
	}
	for common != 0 || len(list) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		x, n := t.next(snap, list, common)
		err := t.finish(x)
		var refused *errRejected
		switch {
		case err == nil:
			t.release(list[:n])
		case !errors.As(err, &refused):
			return err
		case !again:
			again = true
			if err := t.reread(snap, refused); err != nil {
				return err
			}
			continue
		default:
			if err := t.isolate(snap, list[:n], common); err != nil {
				return err
			}
		}
		list, common = list[n:], 0
	}
	return nil
}

// stream writes as write does, but plans a transaction while the kernel does the one before. It returns how many units were
// written; if that is not all of them, the kernel has refused something, the table was read again, and the rest is for write.
func (t *Target) stream(ctx context.Context, snap *model.Snapshot, list []*unit, common part) (written int, err error) {
	type answer struct {
		err             error
		units, elements int
	}
	pending, planned := make(chan answer, 1), 0
	busy := false
	settle := func() error {
		if !busy {
			return nil
		}
		busy = false
		a := <-pending
		if a.err != nil {
			t.stats.Refused++
			return a.err
		}
		if a.elements > 0 {
			t.count(a.elements)
		}
		t.release(list[written : written+a.units])
		written += a.units
		return nil
	}
	for planned < len(list) && err == nil && ctx.Err() == nil {
		x, n := t.next(snap, list[planned:], common)
		b := newBatch()
		x.encode(b)
		if err = settle(); err != nil {
			break
		}
		busy = true
		go func() {
			a := answer{units: n, elements: x.elements}
			if a.elements > 0 {
				a.err = t.conn.commit(b)
			}
			pending <- a
		}()
		merge(t.stale, x.flows)
		x.done()
		planned, common = planned+n, 0
	}
	if err == nil {
		err = settle()
	}
	var refused *errRejected
	switch {
	case err == nil:
		return written, ctx.Err()
	case !errors.As(err, &refused):
		return written, err
	}
	return written, t.reread(snap, refused)
}

// exclude takes out the Services of which it is known that they cannot be programmed.
func (t *Target) exclude(snap *model.Snapshot, list []*unit) []*unit {
	return slices.DeleteFunc(list, func(u *unit) bool {
		err := t.state.check(snap, u.service)
		if err != nil {
			t.quarantined[u.service] = &quarantine{u, err}
		}
		return err != nil
	})
}

// finish commits a transaction and keeps the books.
func (t *Target) finish(x *tx) error {
	if x.elements == 0 {
		merge(t.stale, x.flows)
		x.done()
		return nil
	}
	b := newBatch()
	b.buf = append(t.scratch[:0], b.buf...)
	x.encode(b)
	err := t.commit(b, x.elements)
	if t.scratch = b.buf; cap(t.scratch) > 64<<10 {
		t.scratch = nil // most transactions are small
	}
	if err != nil {
		return err
	}
	merge(t.stale, x.flows)
	x.done()
	return nil
}

func (t *Target) release(list []*unit) {
	if len(t.quarantined) > 0 {
		for _, u := range list {
			delete(t.quarantined, u.service)
		}
	}
}

// isolate applies the units of a refused transaction in halves, until those that are at fault are alone.
func (t *Target) isolate(snap *model.Snapshot, list []*unit, common part) error {
	x, _ := t.next(snap, nil, common)
	if err := t.finish(x); err != nil {
		return fmt.Errorf("apply nodes and pods: %w", err)
	}
	if len(list) == 0 {
		return nil
	}
	x = t.state.begin()
	for _, u := range list {
		t.plan(x, snap, u)
	}
	err := t.finish(x)
	var refused *errRejected
	switch {
	case err == nil:
		t.release(list)
		return nil
	case !errors.As(err, &refused):
		return err
	case len(list) > 1:
		half := len(list) / 2
		if err := t.isolate(snap, list[:half], 0); err != nil {
			return err
		}
		return t.isolate(snap, list[half:], 0)
	case list[0].service == model.Name{}:
		return err
	}
	t.quarantined[list[0].service] = &quarantine{list[0], refused.cause}
	return nil
}

// collect removes ways that nothing leads to, if there are many.
func (t *Target) collect() error {
	type number struct {
		f *family
		n uint32
	}
	used := make(map[number]struct{})
	for k, code := range t.state.fronts {
		used[number{familyOf(k.Addr), code & lowMask}] = struct{}{}
	}
	for l, code := range t.state.links {
		used[number{l.s.f, code & lowMask}] = struct{}{}
	}
	x := t.state.begin()
	for w, n := range t.state.ways {
		if _, ok := used[number{w.f, n}]; !ok {
			x.dropWay(w)
		}
	}
	if len(x.ways) <= idleWays {
		return nil
	}
	return t.finish(x)
}
