// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package clusterip gives Services their addresses.
//
// Its invariant: no address is ever given twice. Whoever wants one creates an
// IPAddress object (networking.k8s.io/v1) whose name is the address, so that
// the storage's uniqueness of names is the lock; there is no bitmap and no
// memory of what is free that could be wrong. The IPAddress exists before the
// Service that uses it is stored, and goes after it has left the storage.
//
// The way in is an [Allocator]: [Allocator.Allocate] for a new Service,
// [Allocator.Reconcile] for a changed one, [Allocator.Release] for a deleted
// one, and from time to time [Allocator.Repair], which mends what a crash
// between two writes has left. All are safe for concurrent use, by several
// API servers too.
//
// Free addresses are found by trying: a random one of the upper part of the
// range, a few times; only when those are all taken is the list read. The
// lowest part is left to addresses that users choose (KEP-3070), and the
// first address to the Service default/kubernetes. When the range is full,
// those follow that further ServiceCIDRs have added (KEP-1880). Families are
// filled in by Kubernetes' dual-stack rules (KEP-563), errors are the API's
// own.
package clusterip
