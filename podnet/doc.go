// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package podnet is Fairlead's CNI plugin: it gives a pod its interface, its
// addresses and its routes. It implements ADD, DEL, CHECK, STATUS, GC and VERSION
// of CNI 1.1, for configurations of version 0.3.1 up to 1.1.0. [Main] is the whole
// program; [ListAttachments] tells the agent which pods are on its node.
//
// Every pod has a veth pair and nothing shared: no bridge, no broadcast, no
// neighbour discovery. Its end, usually eth0, has the pod's addresses as /32 and
// /128 and a default route by a link-local gateway (169.254.1.1, fe80::1) that
// nobody has: a permanent neighbour entry leads it to the node's end. The node's
// end, "fl" and eleven hexadecimal digits of a hash of container ID and interface
// name, has no address; the node has a route to each address of the pod and a
// permanent neighbour entry for it. So a packet needs no question before it can
// go, the node routes everything a pod sends, and the receiver sees the sender's
// own address.
//
// An address that somebody else on the node has, such as a pod of the plugin that
// was here before, is not given out: live.go finds them in the kernel. [Heal] does
// so when the agent starts, and frees what has leaked.
//
// Invariant: the lease comes before the interface and goes after it. Whenever the
// plugin dies, what is left is named by the lease file or by the interface's own
// name, and the next ADD, DEL or GC for it clears it away. All verbs can be
// repeated: ADD of what is complete changes nothing and gives the same result,
// DEL of what is not there is a success.
//
// ADD asks the node's agent whether the node can deliver for the pod (its routes,
// DNS, the services known by then), and does its work while the agent thinks. If
// the answer is no, it undoes everything and says "try again later" (code 11);
// without an agent it does not begin. It ends when the kernel's workers have done
// what it asked for: both ends can send, and the pod has its addresses. DEL tells
// the agent first that the pod goes, and does not insist.
//
// The node's forwarding sysctls are the agent's business, not the plugin's.
package podnet
