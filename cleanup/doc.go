// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package cleanup removes what a service proxy has left in a network namespace's kernel: Fairlead's own, and on request kube-proxy's.
//
// Fairlead's own is the nftables tables "inet fairlead" and "inet fairlead-tunnel", the routes and routing rules between nodes with the project's
// protocol number, the local delivery of the cluster DNS's addresses among them, and the tunnel's device. Pods' own interfaces and routes stay: they go with the pods.
//
// Of kube-proxy it is what its modes nftables (the tables "ip kube-proxy" and "ip6 kube-proxy") and iptables leave (its chains, and
// the jumps to them in the built-in chains), in both implementations of iptables, which keep their rules apart in the kernel. Chains that belong to the kubelet
// (KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, in old versions KUBE-MARK-DROP) stay; kube-proxy makes the first of them too,
// the same as the kubelet's, and its own cleanup leaves it as well. Of the mode ipvs the iptables chains go too, but not
// its virtual servers, IP sets and the interface kube-ipvs0.
//
// For iptables the programs iptables-save and iptables-restore are used, if they are installed: a rule in the kernel is a private format between the
// program and the kernel, different for each extension, and one that only its own program can name for deletion. They are called with --noflush, and a table changes
// in one step or not at all.
//
// The invariant: needs no state but the kernel's, touches nothing of others, and is fine with nothing to remove. The way in is [Run].
package cleanup
