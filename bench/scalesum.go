// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// The cluster of the calculation: what Kubernetes says it supports at most.
const (
	clusterNodes = 5000
	clusterPods  = 150_000
)

// largeCluster is its Services: most are small, and most pods are behind the few large ones.
var largeCluster = crowd{groups: []group{{9000, 5}, {900, 50}, {100, 600}}, nodes: clusterNodes, pods: clusterPods / clusterNodes}

// What happens in it.
const (
	// statusEvery is how often a kubelet writes a Node's status in which nothing has changed, in seconds: nodeStatusReportFrequency, 5 minutes by default.
	statusEvery = 300.
	// podLives is how long a pod lives, in seconds: everything is rolled out once a day.
	podLives = 86400.
	// slicesPerPod is how often a pod's replacement changes slices: the new one there, the new one ready, the old one ending, the old one gone.
	slicesPerPod = 4.
	// writesPerPod is how often the pods themselves change in it: bound, started, ready; told to end, ended, gone.
	writesPerPod = 6.
	// serviceLives is how long a Service lives, in seconds.
	serviceLives = 30 * 86400.
	// nodesPerDNS is how many nodes one replica of CoreDNS is for, by the cluster-proportional autoscaler's usual configuration.
	nodesPerDNS = 16
)

// load5000 is a row of the calculation.
type load5000 struct {
	What   string
	Writes float64 // a second
	// Events are watch events that all API servers together send, a second, and Bytes what these are; one of each for every watcher.
	Events, Bytes []float64
}

// reckon multiplies what was measured with what happens in the cluster.
func reckon(all []figure) (rows []load5000) {
	watched := func(what string, writes, share float64, bytesOf func(who string) float64) {
		row := load5000{What: what, Writes: writes}
		for _, who := range whoIs {
			each, n := bytesOf(who), writes*share*instances(who)
			if each < unheard {
				each, n = 0, 0 // it does not watch that
			}
			row.Events, row.Bytes = append(row.Events, n), append(row.Bytes, n*each)
		}
		rows = append(rows, row)
	}
	measured := func(what string) func(string) float64 {
		return func(who string) float64 { return lookUp(all, what, who, received) }
	}
	replaced := clusterPods / podLives
	watched("Nodes", clusterNodes/statusEvery, 1, measured(nodeStatusOf))
	watched("EndpointSlices", replaced*slicesPerPod, 1, func(who string) float64 { return sliceEvent(all, who, largeCluster.beside()) })
	watched("Services", float64(largeCluster.services())/serviceLives*2, 1, measured(serviceMade))
	watched("pods of the own node", replaced*writesPerPod, 1./clusterNodes, measured(podHere))
	watched("Leases", clusterNodes/10, 1, func(string) float64 { return 0 })
	watched("bookmarks and pings, by the minute", 1./60, 1, measured(idleMinute))
	return rows
}

// unheard is how many bytes at most pass for nothing: an event has more, and between two there may be a ping.
const unheard = 100

// sliceEvent is the size of an event of a slice with n endpoints, on the line through those of 10 and of 100.
func sliceEvent(all []figure, who string, n float64) float64 {
	small, large := lookUp(all, fmt.Sprintf(ofSlice, 10), who, received), lookUp(all, fmt.Sprintf(ofSlice, 100), who, received)
	return small + (large-small)*(n-10)/90
}

// instances is how many of a program there are in the cluster.
func instances(who string) float64 {
	if who == coreDNS.name {
		return (clusterNodes + nodesPerDNS - 1) / nodesPerDNS
	}
	return clusterNodes
}

// total is the sum of bytes of one watcher, a second.
func total(rows []load5000, who int) (sum float64) {
	for _, r := range rows {
		sum += r.Bytes[who]
	}
	return sum
}

// bytesOf is the bytes of one row for one watcher, a second.
func bytesOf(rows []load5000, what string, who int) float64 {
	for _, r := range rows {
		if r.What == what {
			return r.Bytes[who]
		}
	}
	return 0
}
