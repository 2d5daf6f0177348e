// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package client is who asks: it tells a node's own pods, by name and with their resolvers' settings, from other pods, nodes and strangers, and
// holds what depends on it: limits, the completion of names, the suppression of AAAA, the heaviest askers and the log of queries.
//
// The invariant is that nothing of it changes what a client ends up with. A question that is completed or suppressed leads every resolver
// known here (glibc, musl, Go's, c-ares; Node uses the C library of its image, or c-ares without a search list) to the addresses it would have
// reached by itself; what is not sure to do so is left as it is.
//
// The way in is [NewTable] and [Table.Next] for every snapshot, [Table.Lookup] for every query, and [New] for what outlives snapshots:
// [Clients.Admit] before an answer, [Clients.Suppress] and [Complete] for it, [Clients.Count] after it. All of what a query calls may be called
// concurrently, takes no lock that another query could hold for long, and allocates nothing, but for Complete, which asks further questions.
package client
