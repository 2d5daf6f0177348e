// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package nft brings a [model.Snapshot] into the kernel's nftables: the complete path of a Service's packets.
//
// There is one table, "inet fairlead". Its rules never change; what changes is elements of sets and maps. The way of the first packet
// of a connection (conntrack takes care of the others), in v4 words:
//
//	services4   { 10.96.0.20 . tcp . 80 : 3 }                     the number of endpoints
//	picks4      { 3 : goto pick4-3 }                              a chain for each number, not for each Service
//	pick4-3     dnat to (daddr . proto . dport . random mod 3) in endpoints4
//	endpoints4  { 10.96.0.20 . tcp . 80 . 1 : 10.244.1.5 . 8080 }
//
// An address in vips4 that found nothing in services4 is refused at once: a TCP reset, or ICMP port unreachable. Questions to the cluster
// DNS that find a socket of this node are taken out of conntrack before all of this, see [Target.AnswerDNS]. Behind the choice of
// a route, a pod that reached itself and a pod that leaves the cluster get this node's address; nobody else does.
//
// The invariant: after [Target.Apply], the table is a function of the snapshot (but for the order of a Service's endpoints, and for what is
// quarantined), however it came about, and [Dump] prints it. The way in is [New] and Apply; [Cleanup] takes the table away.
//
// # What must be true around it
//
// Forwarding is on, and pods' routes are there. For DNS on this node, the virtual address is local, best with a source address for the node's
// own processes ("ip route add local 10.96.0.10 dev lo src NODE-ADDRESS"): without one, their questions come from the
// virtual address itself, and are masqueraded when another node has to answer. The node's own processes need any route to the
// service range, which is only used to find out that they may send. Package nodenet sees to it.
//
// # Cost
//
// For a packet: one look-up for the first packet that is for a Service and two more until it is rewritten, two for the first packet
// of any other connection, none for all that follow; in raw, one comparison of the port. For a change: what changed. The
// values of services4 are numbers and not verdicts, because the kernel checks all verdicts of a table in each transaction that adds one
// (measured on 6.18: 14 µs for one change among 10 elements, 5 ms among 20,000; with numbers it is the same at every size).
// A Service that loses an endpoint moves its last one into the hole, so no change touches more than a few elements.
//
// # Caveats
//
// Messages are made and parsed here: only rule expressions come from github.com/google/nftables. Its connection cannot put a table's
// replacement and the elements in one transaction, asks for an acknowledgement of every message, which is what ends in ENOBUFS (its issues
// 103 and 350), and collects a reading of all elements several times over before it gives it away.
//
// A look-up and the next one of the same packet may see two generations of the elements. So a packet that finds no endpoint at its index
// takes the first. In kernels before 6.17 a look-up can, for an instant, miss an element that a transaction replaces.
//
// A UDP packet of a process of this node to a Service without endpoints is not rejected but sent to a closed port of loopback (see the chain
// refuse), and leaves a conntrack entry. It is removed like any other when the Service gets an endpoint.
//
// The kernel sends ICMP messages to one host at a limited rate (icmp_ratelimit), so that of many refused datagrams
// only the first few are answered, as with any closed port.
//
// To see what it does: "fairlead dump", or "nft list table inet fairlead", which it can print and read again.
package nft
