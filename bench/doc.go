// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command bench measures Fairlead beside what else does its work, on one machine, in one run, against the same API server. It has four chapters: the
// service proxy and the slices, beside kube-proxy and kube-controller-manager, for docs/benchmarks.md; DNS, beside CoreDNS and with other servers as
// yardsticks, for docs/benchmarks-dns.md; the pod network, beside the reference CNI plugins, for docs/benchmarks-network.md;
// and what a node costs the API server, for docs/scale.md.
//
// Everything happens in network namespaces that it makes itself and that have no way out. A world (world.go) is an API server with
// some number of Services, each with two endpoints; a rig (rig.go) is a node of it: the namespace of the node, in which one contender runs,
// a client pod behind it, and a namespace that has every endpoint address of the world. The figures are one file each:
//
//	start     coldstart.go   from starting the program to every Service forwarding
//	change    change.go      from the API's answer for one changed endpoint to the kernel having it
//	rolling   rolling.go     one Service's 1,000 endpoints, all replaced
//	memory    memory.go      memory of the process, objects in the kernel
//	footprint footprint.go   what an idle agent costs a node, beside the sum of those whose work it does
//	connect   connect.go     connections per second and time of connect()
//	slices    slices.go      from the API's answer for one changed pod to its EndpointSlice stored
//	replace   replace.go     connections that fail while all pods of a Service are replaced
//
// and those of DNS, whose servers (dnscontender.go) run on rigs too, in worlds of their own (dnsworld.go):
//
//	load      dnsload.go      cost and number of answers, and their time, as the client of dnsclient.go sees it, which checks every answer
//	change    dnschange.go    from the API's answer for a change to the first right answer
//	external  dnsexternal.go  names outside the cluster, looked up as glibc does (dnslookup.go)
//	memory    dnsmemory.go    memory of the process, and the most of it during a relist
//
// and those of the pod network, whose contenders (netplugin.go) each have nodes of their own:
//
//	attach   netattach.go    ADD and DEL, one pod at a time and many at once, with the least that attaching can be (floor/) as yardstick
//	full     netattach.go    ADD with nearly all addresses held
//	traffic  nettraffic.go   what pods on two nodes can send each other (netload.go), beside what the nodes can
//
// The last chapter has a world of the size of a large cluster (scaleworld.go), in which one watcher after the other runs (scale.go), and the sum for 5,000
// nodes (scalesum.go). Most of what it tells is bytes, which are the same each time, so it has no rounds.
//
// # How it measures
//
// Contenders take turns, in the order A B B A, and the first round does not count. A ratio is of one round; what is given is the median of the rounds'
// ratios, with the interval in which 95 % of the medians of resampled rounds lie (bootstrap), and a goal is judged at the bad end of that
// interval. A round with an error, or in which the hypervisor took more than 1 % of the processors, is repeated.
//
// Processor time and memory are the kernel's account of a process and of those it has started, also those that have ended: kube-proxy does its work through
// the nft tool, and the agent is started by the process that holds its sockets.
//
// Beside the figures, compare-dns (compare.go) asks Fairlead and CoreDNS the same questions and looks how the answers differ.
//
//	make compare-dns                           100,000 questions, two minutes
//	make bench-service                         everything about Services, an hour
//	make bench-dns                             everything about DNS, under 40 minutes
//	make bench-network                         everything about the pod network, under 20 minutes
//	make bench-scale                           everything about the API server's load, ten minutes
//	bench/bin/bench dns -quick -run load       one figure of DNS, small and short
//	bench/bin/bench -quick -run start,change   some figures, small and short: to see that it works, not for the numbers
package main
