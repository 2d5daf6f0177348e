// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package testnet builds small networks for tests: hosts that are network
// namespaces of their own, cables between them, addresses, routes, and echo
// servers that say who they are and whom they saw.
//
// Nothing in it can reach the outside: hosts are unnamed namespaces without any
// link to the namespace of the test, and they are gone when the test ends, also
// when it fails. The way in is [New]:
//
//	w := testnet.New(t)
//	a, b := w.Host("a"), w.Host("b")
//	w.Cable(a, "eth0", b, "eth0")
//	a.Addr("eth0", "10.0.0.1/24")
//	b.Addr("eth0", "10.0.0.2/24")
//	server := b.Echo("tcp", "10.0.0.2:80")
//	got, err := a.Ask("tcp", "", server) // "b 10.0.0.1:40123"
//
// [New] also looks for leaks (descriptors, threads left in a namespace, child
// processes, mounts), so a test that uses it must not run in parallel with
// others of the same process.
package testnet
