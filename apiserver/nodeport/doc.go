// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package nodeport gives Services their ports on the nodes: those of types
// NodePort and LoadBalancer, and the ports of health checks.
//
// Its invariant: no number ever belongs to two Services. It is kept as package
// clusterip keeps its own: whoever wants a number stores a lock whose name is
// the number, so that the storage's uniqueness of names decides. The lock is
// stored before the Service that has the number and goes after the Service
// has left the storage. There is nothing to rebuild at a start and nothing in
// memory that could be wrong, so a crash at any moment and several servers on
// one etcd are safe. Kubernetes keeps one bitmap for all numbers instead, for
// which every allocation waits for every other and from which a number does
// not say whose it is.
//
// A number belongs to a Service for all protocols. Ports of one Service that
// differ only in the protocol get the same one, so that DNS on TCP and UDP is
// at one place.
//
// The way in is an [Allocator], used as that of package clusterip is:
// [Allocator.Allocate] for a new Service, [Allocator.Reconcile] for a changed
// one, [Allocator.Release] for a deleted one, and from time to time
// [Allocator.Repair]. All are safe for concurrent use.
//
// Numbers are found by trying random ones of the upper part of the range; the
// lowest part is left to those that users choose (KEP-3668).
package nodeport
