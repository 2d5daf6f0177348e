// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package ipam hands out the pod addresses of one node. It has two halves: [Pick]
// chooses an address, a pure function over what is held and what was freed when;
// [Store] keeps that in a small file which many short processes may use at once.
//
// Invariant: an address that is held is not handed out again before it is freed,
// whatever dies in between. A lease is written before its address is used and
// freed after it is no longer in use, so a crash leaks a lease at worst, and
// [Store.Reconcile] finds leaks. Of the addresses that are free, those never used
// come first, then the one that was freed longest ago, so that a late packet for
// a dead pod seldom finds a new one.
//
// A lease has one address of every range of the node, so IPv4 alone, IPv6 alone
// and dual-stack are one path. It is known by an ID that the caller derives from
// the attachment; asking again with the same ID gives the same lease.
//
// Who works on an attachment, its interface and its lease, has it to himself by
// [Store.Exclusive]; the file itself is locked only while it is read and written.
//
// The file is a log: a line per change, each with its checksum, now and then
// rewritten as a whole (new file, fsync, rename). Single lines are not synced to
// disk: they have to survive the death of every process, but not that of the
// machine, since no network namespace outlives it. The first line names the boot
// of the machine; leases of an earlier boot are free. A line cut short at the end
// of the file is a change that did not happen. Any other damage is reported, the
// file kept beside as leases.corrupt, and a new one made from the lines that are
// good and from what [Config.Live] finds in the kernel.
package ipam
