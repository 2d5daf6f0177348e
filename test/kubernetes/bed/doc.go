// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package bed brings up a Kubernetes cluster of real parts on one machine: etcd, kube-apiserver, kube-controller-manager,
// kube-scheduler, and on every node containerd, runc and the kubelet. Service proxy, cluster DNS and pod network are each
// Fairlead's, the incumbent's or nobody's.
//
// The machines of a cluster (a fabric, a control plane, the nodes) are namespaces of network, mounts, processes, host name
// and IPC, each with a first process of ours. The fabric has the switch that joins the others. It forwards nothing and is
// joined to nothing else, so no packet leaves; the name server of all machines is there too, and denies every name but one.
// A machine sees the file system of this machine, but for /etc, /opt, /run, /sys, /var/lib and /var/log: what it
// writes there is its own and goes with it.
//
// Invariant: everything a cluster is lives in its machines, in its control groups and in its directory, and nowhere else.
// A machine ends when its first process is killed, with all its processes, mounts and interfaces; [Cluster.Down] does that
// to each, and removes the rest. The death of the program that made the cluster does it to each too, unless the cluster is
// detached; what then is left, directory and control groups, the next [Up] of the same name or [Remove] takes away.
//
// A program that uses the package calls [Init] first: the machines' first processes are the same program again. The way in
// is [Up].
package bed
