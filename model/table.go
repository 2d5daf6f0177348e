// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"hash/maphash"
	"iter"
)

const buckets = 1024

// hashSeed is one for the process: two tables can be compared bucket by bucket.
var hashSeed = maphash.MakeSeed()

// Table is an immutable map. Tables made one from another share the buckets that did not change: at
// 20,000 entries a change copies twenty of them, and a comparison looks at 1,024 pointers.
// The zero Table is empty.
type Table[K comparable, V comparable] struct {
	buckets *[buckets]*bucket[K, V]
	len     int
}

type bucket[K comparable, V comparable] struct{ entries map[K]V }

// Len is the number of entries.
func (t Table[K, V]) Len() int { return t.len }

// Get is the value of k, and whether there is one.
func (t Table[K, V]) Get(k K) (v V, ok bool) {
	if t.buckets == nil {
		return v, false
	}
	b := t.buckets[slot(k)]
	if b == nil {
		return v, false
	}
	v, ok = b.entries[k]
	return v, ok
}

// All yields every entry, in no order.
func (t Table[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if t.buckets == nil {
			return
		}
		for _, b := range t.buckets {
			if b == nil {
				continue
			}
			for k, v := range b.entries {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// Change is what became of a key between two tables: with Old and New both set it has another value,
// without Old it is new, without New it is gone.
type Change[V comparable] struct {
	Old, New       V
	HadOld, HasNew bool
}

// Diff yields every key whose value differs between two tables, in no order. It costs what differs when one table
// was made from the other, and what they hold when they were not.
func Diff[K comparable, V comparable](from, to Table[K, V]) iter.Seq2[K, Change[V]] {
	return func(yield func(K, Change[V]) bool) {
		for i := range buckets {
			a, b := from.bucket(i), to.bucket(i)
			if a == b {
				continue
			}
			for k, n := range b.all() {
				if o, ok := a.all()[k]; !ok || o != n {
					if !yield(k, Change[V]{Old: o, New: n, HadOld: ok, HasNew: true}) {
						return
					}
				}
			}
			for k, o := range a.all() {
				if _, ok := b.all()[k]; !ok {
					if !yield(k, Change[V]{Old: o, HadOld: true}) {
						return
					}
				}
			}
		}
	}
}

func (t Table[K, V]) bucket(i int) *bucket[K, V] {
	if t.buckets == nil {
		return nil
	}
	return t.buckets[i]
}

func (b *bucket[K, V]) all() map[K]V {
	if b == nil {
		return nil
	}
	return b.entries
}

func slot[K comparable](k K) int { return int(maphash.Comparable(hashSeed, k) % buckets) }

// editor changes a table in place, copying each bucket the first time it is touched since the last freeze,
// so that a thousand changes between two snapshots copy no bucket twice.
type editor[K comparable, V comparable] struct {
	table Table[K, V]
	owned *[buckets]bool // nil: even the array of buckets is shared with a snapshot
}

// freeze returns the table as it is now; later edits do not show in it.
func (e *editor[K, V]) freeze() Table[K, V] {
	e.owned = nil
	return e.table
}

func (e *editor[K, V]) get(k K) (V, bool) { return e.table.Get(k) }

func (e *editor[K, V]) set(k K, v V) {
	old, had := e.table.Get(k)
	if had && old == v {
		return
	}
	e.own(slot(k)).entries[k] = v
	if !had {
		e.table.len++
	}
}

func (e *editor[K, V]) delete(k K) {
	if _, had := e.table.Get(k); !had {
		return
	}
	delete(e.own(slot(k)).entries, k)
	e.table.len--
}

func (e *editor[K, V]) own(i int) *bucket[K, V] {
	if e.owned == nil {
		fresh := new([buckets]*bucket[K, V])
		if e.table.buckets != nil {
			*fresh = *e.table.buckets
		}
		e.table.buckets, e.owned = fresh, new([buckets]bool)
	}
	if !e.owned[i] {
		copied := &bucket[K, V]{entries: make(map[K]V)}
		for k, v := range e.table.buckets[i].all() {
			copied.entries[k] = v
		}
		e.table.buckets[i], e.owned[i] = copied, true
	}
	return e.table.buckets[i]
}
