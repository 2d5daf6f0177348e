// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package linux is the only place where Fairlead touches raw kernel
// interfaces that have no better home: network namespaces, net sysctls,
// connection tracking, batched rtnetlink requests and the list of kernel
// features the program needs.
//
// Invariant: no goroutine ever comes back to its caller on a thread that is in
// another network namespace than before. Code that has to run inside a
// namespace runs in [NetNS.Do], on a thread of its own; a thread that cannot be
// restored is thrown away, never returned to the scheduler.
//
// The functions that speak about "the current namespace" mean the namespace of
// the calling thread, which is the process's own one outside of [NetNS.Do].
//
// Everything here tries first and explains afterwards: errors carry the verb,
// the object and the kernel's errno, and [Check] turns a missing feature into
// one sentence on what to do.
package linux
