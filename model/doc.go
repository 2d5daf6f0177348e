// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package model is the state of a cluster's services as one node sees it, and the decision for every packet.
//
// Its values are immutable: a [Builder] takes in what the API server says, one object at a time,
// and [Builder.Build] returns a [Snapshot] of the whole with a new generation. Snapshots share
// what did not change, so that building one and comparing two ([Diff]) costs what changed and not what
// exists. A pointer found in two snapshots points to the same, unchanged value.
//
// The way in is Build; the way out is [Snapshot.Lookup], which says what must happen to the first packet
// of a connection. Lookup is the specification: the nftables rules, the cluster DNS and explain are
// judged by it.
//
// The package does no input or output, takes no locks and imports only the standard library. Both address
// families go through the same code: an address is a [net/netip.Addr], always unmapped.
package model
