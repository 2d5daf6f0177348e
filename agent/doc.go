// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package agent is what runs on every node: one loop that brings the API server's state into the kernel and then
// into the cluster DNS, in this order, so that a name is never answered before its address can be delivered.
//
//	receive → settle → announce → routes, dataplane → acknowledge → publish → prune
//
// The invariant: a snapshot is published only after every target has acknowledged it. When a target fails, DNS stays
// with the last published snapshot (names that are new since wait, names that are gone are gone), and the same snapshot, or a newer
// one, is tried again. The kernel keeps what it has when the agent ends, however it ends; the next start adopts it.
//
// The way in is [Run]; the loop itself is [Loop].
package agent
