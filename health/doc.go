// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package health answers those who ask whether this node should be sent traffic: load balancers, kubelets and people.
//
// Paths, status codes, headers and JSON are those of kube-proxy v1.37, byte for byte, because what asks is configured already:
//
//	[Proxy]  /healthz, /livez on one address (kube-proxy's is 0.0.0.0:10256): does programming keep up, may the node be used
//	[Ports]  every path on each Service's healthCheckNodePort: how many of its endpoints are on this node
//
// The invariant: an answer depends on what is programmed and not on what the API server said last, and a port that cannot be
// opened is named and tried again while all others answer.
//
// Three differences from kube-proxy, none of which an asker can see: addresses that come and go are followed, one port that moves to another
// Service is not closed in between, and of a port that opens on some addresses only, those answer.
//
// The way in is [New] and [Proxy.Serve], and [NewPorts] and [Ports.Set].
package health
