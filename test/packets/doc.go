// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package packets is the table of packets: worlds, packets in them, and what has to become of each, a line a packet.
//
// The table (packets.txt) has several judges, and they must agree: [model.Snapshot.Lookup], which is the specification; the real nftables
// rules with real packets, in namespaces; others may read it with [Table]. A bug report becomes a row. The table counts
// its own coverage: a test fails when an action has no row in some family and protocol.
//
// # The language
//
//	world NAME                                        what follows belongs to a new world
//	self n1                                           the node whose view it is
//	node NAME ADDRESS... pods PREFIX...               a node; it is ready
//	pod NAMESPACE/NAME ADDRESS...                     a pod of this node
//	dns ADDRESS...                                    the cluster DNS's virtual addresses
//	service NAMESPACE/NAME ADDRESS...                 a Service of type ClusterIP
//	port NAME PROTOCOL NUMBER                         a port of the last service
//	endpoint ADDRESS:PORT STATE NODE                  an endpoint of the last port; STATE is ready, serving, terminating, notready
//	no-slices                                         the last service's slices are not known yet
//	packet PROTOCOL SOURCE > ADDRESS:PORT = VERDICT   a packet and what becomes of it
//
// A source is an address. A verdict is "pass", "reject", "forward" with the candidates, or "local" with the candidates for when
// this node's socket is closed. A candidate (or pass) with "nat:" in front sees this node's address as its client; all
// others see the source itself. Text from "#" on is a comment.
package packets
