// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package apiserver is the embedded Kubernetes API of the standalone control
// plane.
//
// It is the library that kube-apiserver is made of, with an etcd in the same
// process and the kinds that service communication needs. Lists, watches,
// resource versions, patches, server-side apply, discovery, OpenAPI and tables
// are therefore the real ones, and every Kubernetes client works unchanged.
// What is ours is small: which kinds there are and what is particular to each
// (this package), their defaults, validation and columns (the packages below),
// and who may do what.
//
// The way in is [New], then [Server.Run]. Everything that is stored is in the
// state directory's etcd; a server started on the same directory continues
// where the last one stopped, at whatever moment that was.
//
// Invariants:
//
//   - A ClusterIP belongs to at most one Service, and so does a node port. The
//     lock is an object of that name, for a ClusterIP an IPAddress, stored
//     before the Service is.
//   - Nothing is served without TLS, and nothing but health without a client
//     certificate of the cluster's own authority.
//   - A request that the server cannot honour is refused with a Status in
//     Kubernetes' form; no field is dropped in silence.
//
// A kind is declared by one value of type resource, in the file of its area:
// pod.go, service.go, namespace.go, node.go, workload.go, plain.go. To debug
// what a client sees, `kubectl get --raw /readyz?verbose` names what is not
// ready yet, and /metrics has the library's own counters.
package apiserver
