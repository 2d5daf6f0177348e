// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package nft brings a [model.Snapshot] into the kernel's nftables: the complete path of a Service's packets.
//
// There is one table, "inet fairlead". Its rules never change; what changes is elements of sets and maps, and the chains of ways. The way
// of the first packet of a connection (conntrack takes care of the others), in v4 words:
//
//	services4   { 10.96.0.20 . tcp . 80 : 7/16 }       a frontend's code: group 7, way 16     (nodeports4 { tcp . 30080 : 7/16 })
//	ways4       { 16 : goto pick4-3 }                  a chain for each number of endpoints, not for each Service
//	pick4-3     dnat to (7 . random mod 3) in endpoints4
//	endpoints4  { 7 . 1 : 10.244.1.5 . 8080 }
//
// A code's upper 18 bits are a group of endpoints, its lower 14 the way on: which chain. It travels in the packet's priority. All frontends of a
// Service's port share its groups, of which there are two at most in a family: for the traffic policies Cluster and Local.
//
// A pod's host ports are like a Service whose one endpoint is the pod: hostports4 { tcp . 8080 : 9/16 }, or with an address of the node in
// hostports-at4. They are looked up last, and only for what is sent to this node's own addresses.
//
// Where it matters who asks, a frontend's code is that of a junction: the chain split4 (a Local policy), guard4 (source ranges, in sources4) or onward4 (an
// endpoint that leaves). It looks its code up in inside4 or outside4 and goes on by ends4, which is ways4 without junctions.
//
// A way with affinity (stay4-3-10800s) draws a seat from seats4 { 7 . 1 : 7/2 }, makes or renews the client's pin in pins4 { 7 . 10.244.1.9 : 7/2 }, and looks the pin's seat
// up in seated4 { 7/2 : 10.244.1.5 . 8080 }. A seat that is empty makes the packet draw again, so pins of an endpoint that is gone need
// no removal. docs/design/0005-groups.md has the reasons for all this.
//
// A code of way 0 is a refusal: a TCP reset, or ICMP port unreachable; of way 1 a counted drop. An address of ranges4 (or in vips4, if it lies outside)
// that found nothing in services4 is refused too, unless it is in foreign4: another proxy's. Questions to the cluster
// DNS that find a socket of this node are taken out of conntrack before all of this, see [Target.AnswerDNS]. Behind the choice of
// a route, the source of some packets becomes this node's address; model.Snapshot.Masquerade says of which and why.
//
// A reset that answers the first packet of a connection which these rules have translated is dropped once for each client's port, which refused4 holds for a
// while, if the client is in retrying4: everybody or nobody. The client then begins again, and so do the rules (docs/design/0004).
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
// For the first packet of a connection to a Service: three look-ups, two more at a junction, and with affinity three more. For the first packet
// of any other connection: three, and for one to this node's own addresses eight. Behind the choice of a route, for the source, two to five for
// either. None for all that follow; but each packet's port is compared in raw, and one octet of it behind connection tracking.
//
// For a change: what changed. The values of services4 are numbers and not verdicts, because the kernel checks all verdicts of a table in each
// transaction that adds one (measured on 6.18: 14 µs for one change among 10 elements, 5 ms among 20,000; with numbers it is the same at every size).
// A group that loses an endpoint moves its last one into the hole, so no change touches more than a few elements.
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
// To see what it does: "fairlead dump", or "nft list table inet fairlead". The tool can read again what it has printed.
package nft
