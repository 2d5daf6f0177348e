// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package lab is the one-machine cluster: the supervisor that makes the virtual nodes and keeps their processes running, and the node
// runner that turns Pod objects into process pods, as a kubelet and a container runtime do on a real node.
//
// A virtual node is a network namespace with its own agent process and control group, joined to the others by a bridge in
// the supervisor's own network namespace (the fabric). A process pod is one network namespace, wired by the node's CNI
// plugin through libcni exactly as a container runtime does it, and one process (package lab/pause) that holds the pod's
// other namespaces; the pod's commands come from the machine's own file system. It is for trying, testing and single-host
// use. It is no container runtime: there are no images, and a pod is not kept from the machine's files.
//
// The invariants: everything is inside the supervisor's private mount namespace, the cluster's network namespaces, its one
// control group and its state directory (see package cluster), so nothing is left on the machine when they are gone; and a
// process of a pod is told to stop only after the kernels of all nodes have stopped sending it new connections.
//
// The one way in is [Run], which `fairlead-server cluster` calls. What the package decides from values (which container to
// start next, what a pod's status is, what its resolv.conf says, when a probe counts) is in pure functions; the
// goroutines only carry facts to them and orders away from them. To debug, read logs/cluster.log in the state directory: a line
// per change, silent while nothing changes; `fairlead status` shows the supervisor's counters.
package lab
