// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package dns is the cluster's DNS as one node serves it: authoritative for the cluster domain and the reverse zones of
// the cluster's own address ranges, a forwarder for everything else.
//
// The zone is never stored. An answer is computed from a [model.Snapshot] when it is asked for, by [View.Answer], which is pure
// and is the specification: it follows Kubernetes' DNS-Based Service Discovery 1.1.0. The server around it adds
// transport, and one rule (P1): an answer is a promise. The invariant of that rule is that an address given away was in the
// last snapshot handed to [Server.Publish], which means that every target of this node's kernel had
// acknowledged it, and in the last one handed to [Server.Announce], which means that it was not known to be gone. A
// name that has arrived but is not yet programmed waits, bounded and counted; it is not denied.
//
// A server is configured by blocks ([Block]): for the names below some zones, each says what rules rewrite or answer, which of them are a cluster's, and
// which upstreams have the rest (packages rules, forward). [Server.Reload] puts others in their place.
//
// Usual queries are answered on a fast path that neither allocates nor locks (fast.go), all others on a slow one (message.go, resolve.go), and both say the
// same: see docs/design/0007-answers-from-the-state.md. Queries lie in memory that outlives the process until they are answered (inbox.go).
//
// The way in is [New], then [Server.Announce] and [Server.Publish] from the agent's loop, and
// [Server.ServeSockets] with what [Server.Listen] or [Server.ListenInherited] opened. Announce and Publish may be called while serving; the query
// path takes no lock.
//
// Where this differs from what the specification leaves open: unnamed endpoints are named by their address with
// dashes; priorities are 0 and weights 100; SRV asked at a Service's own name lists all its ports; a
// Service whose virtual address belongs to another one has no address; names between a reverse zone and its
// addresses (such as 0.96.10.in-addr.arpa) are always said to exist; ANY is answered as RFC 8482 allows.
//
// To see what a server would say: [Dump] prints a whole zone in zone-file form, [Server.Lookup] asks one
// question without the network and tells the generation the answer came from; the serial of the zone's SOA is the same number.
package dns
