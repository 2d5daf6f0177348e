// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package packets is the table of packets: worlds, packets in them, and what has to become of each, a line a packet.
//
// The table (packets.txt) has several judges, and they must agree: [model.Snapshot.Lookup], which is the specification; the real nftables
// rules with real packets, in namespaces; others may read it with [Table]. A bug report becomes a row. The table counts
// its own coverage: a test fails when an action has no row in some family and protocol, or a kind of frontend none with some action or from
// somewhere. docs/services.md says which world is about what.
//
// # The language
//
//	world NAME                                        what follows belongs to a new world
//	self n1                                           the node whose view it is
//	node NAME ADDRESS... pods PREFIX... [zone ZONE]   a node; it is ready
//	own ADDRESS...                                    more addresses of this node, which its Node object does not name
//	pod NAMESPACE/NAME ADDRESS... [terminating]       a pod of this node; those that come first are older
//	  hostport PROTOCOL [ADDRESS:]PORT TARGET         a port of this node that the last pod asks for, and the pod's own that it leads to
//	own-port NAME PROTOCOL NUMBER                     a port that this node's agent itself listens on
//	dns ADDRESS...                                    the cluster DNS's virtual addresses
//	ranges PREFIX...                                  the ranges of virtual addresses
//	nodeport-addresses PREFIX...                      where this node serves node ports; without it: all its addresses but loopback
//	pod-ranges PREFIX...                              ranges of pods' addresses, beside the nodes'
//	keep-source PREFIX...                             ranges outside that pods reach under their own addresses
//	left proxy, left network                          what another program does on this node
//	pass-on                                           this node sends on what arrives for a pod that is ending
//	service NAMESPACE/NAME ADDRESS...                 a Service, with its ClusterIPs
//	  unproxied, no-slices, publish-not-ready         of the last service: somebody else's; its slices are not known yet; the field
//	  headless, external-name NAME                    its type, if it is not ClusterIP
//	  internal-local, external-local                  its traffic policies
//	  affinity DURATION                               its session affinity
//	  external ADDRESS..., balancer ADDRESS...        its externalIPs, and those of its load balancer
//	  sources PREFIX...                               its loadBalancerSourceRanges
//	  health-port NUMBER                              its healthCheckNodePort
//	port NAME PROTOCOL NUMBER [nodeport NUMBER]       a port of the last service
//	endpoint ADDRESS:PORT STATE NODE [pod=NAMESPACE/NAME] [zones=ZONE,...] [nodes=NODE,...]
//	                                                  an endpoint of the last port, in a slice of its own; STATE is ready, serving,
//	                                                  terminating, notready, published or published-ending (ready only because the
//	                                                  Service publishes what is not)
//	packet PROTOCOL SOURCE > ADDRESS:PORT = VERDICT   a packet and what becomes of it
//
// A source is an address. A verdict is "pass", "reject", "drop", "forward" with the candidates, or "local" with the candidates for when
// this node's socket is closed, or with the destination itself if that is another proxy's to carry. A candidate (or pass) with "nat:" in front sees this node's address as its client; all
// others see the source itself. Text from "#" on is a comment.
package packets
