// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import (
	"hash/maphash"
	"iter"
	"slices"
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

// bucket is a few entries in no order, found by their hashes: at 10,000 entries of a table there are ten. It takes a third of a map's memory, and a
// lookup meets fewer cache lines.
type bucket[K comparable, V comparable] struct {
	entries []entry[K, V]
	hashes  []uint32
	first   [12]uint32 // where hashes are, unless there are more
}

type entry[K comparable, V comparable] struct {
	key   K
	value V
}

// find is the place of k, which has a hash in its bucket; negative if it is not there.
func (b *bucket[K, V]) find(h uint32, k K) int {
	if b == nil {
		return -1
	}
	for i, other := range b.hashes {
		if other == h && b.entries[i].key == k {
			return i
		}
	}
	return -1
}

// Len is the number of entries.
func (t Table[K, V]) Len() int { return t.len }

// Get is the value of k, and whether there is one.
func (t Table[K, V]) Get(k K) (v V, ok bool) {
	if t.buckets == nil {
		return v, false
	}
	i, h := place(k)
	b := t.buckets[i]
	if at := b.find(h, k); at >= 0 {
		return b.entries[at].value, true
	}
	return v, false
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
			for _, e := range b.entries {
				if !yield(e.key, e.value) {
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
			for i, n := range b.all() {
				c := Change[V]{New: n.value, HasNew: true}
				if at := a.find(b.hashes[i], n.key); at >= 0 {
					c.Old, c.HadOld = a.entries[at].value, true
				}
				if (!c.HadOld || c.Old != c.New) && !yield(n.key, c) {
					return
				}
			}
			for i, o := range a.all() {
				if b.find(a.hashes[i], o.key) < 0 && !yield(o.key, Change[V]{Old: o.value, HadOld: true}) {
					return
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

func (b *bucket[K, V]) all() []entry[K, V] {
	if b == nil {
		return nil
	}
	return b.entries
}

// place is the bucket of a key, and its hash in there.
func place[K comparable](k K) (bucket int, h uint32) {
	sum := maphash.Comparable(hashSeed, k)
	return int(sum % buckets), uint32(sum >> 32)
}

// withRoom is a list with room for one more. Buckets are many and small: where room doubles, a third of a table is room.
func withRoom[T any](list []T) []T {
	if len(list) < cap(list) {
		return list
	}
	return append(make([]T, 0, len(list)+2+len(list)/8), list...)
}

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
	i, h := place(k)
	at := e.table.bucket(i).find(h, k)
	if at >= 0 && e.table.buckets[i].entries[at].value == v {
		return
	}
	b := e.own(i)
	if at >= 0 {
		b.entries[at].value = v
		return
	}
	b.hashes, b.entries = append(withRoom(b.hashes), h), append(withRoom(b.entries), entry[K, V]{k, v})
	e.table.len++
}

func (e *editor[K, V]) delete(k K) {
	i, h := place(k)
	at := e.table.bucket(i).find(h, k)
	if at < 0 {
		return
	}
	b := e.own(i)
	last := len(b.entries) - 1
	b.hashes[at], b.entries[at] = b.hashes[last], b.entries[last]
	b.entries[last] = entry[K, V]{} // nothing stays alive for it
	b.hashes, b.entries = b.hashes[:last], b.entries[:last]
	e.table.len--
}

// own is a bucket that no snapshot has, in the order of the one that it is a copy of.
func (e *editor[K, V]) own(i int) *bucket[K, V] {
	if e.owned == nil {
		fresh := new([buckets]*bucket[K, V])
		if e.table.buckets != nil {
			*fresh = *e.table.buckets
		}
		e.table.buckets, e.owned = fresh, new([buckets]bool)
	}
	if !e.owned[i] {
		copied := new(bucket[K, V])
		copied.hashes = copied.first[:0]
		if was := e.table.buckets[i]; was != nil {
			copied.hashes, copied.entries = append(copied.hashes, was.hashes...), slices.Clone(was.entries)
		}
		e.table.buckets[i], e.owned[i] = copied, true
	}
	return e.table.buckets[i]
}

// Place is where a key is looked for in tables.
type Place struct{ bucket, hash uint32 }

// PlaceOf is the place of a key.
func PlaceOf[K comparable](k K) Place {
	i, h := place(k)
	return Place{uint32(i), h}
}

// Peek finds for each place the value of a key that has it, or the zero value; another key may have the same. It is for whoever is about to
// look up many keys: what [Table.Get] reads comes from memory for all of them at once here, and not for one after the other.
func (t Table[K, V]) Peek(places []Place, out []V) (read int) {
	clear(out)
	if t.buckets == nil {
		return 0
	}
	// Loads that no branch depends on, so that the processor need not wait for one before it begins the next.
	for _, p := range places {
		if b := t.buckets[p.bucket]; b != nil {
			read += len(b.entries) + int(b.first[0])
		}
	}
	for i, p := range places {
		b := t.buckets[p.bucket]
		if b == nil {
			continue
		}
		for j, h := range b.hashes {
			if h == p.hash {
				out[i] = b.entries[j].value
				break
			}
		}
	}
	return read
}
