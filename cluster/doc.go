// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package cluster describes the one-machine cluster as values: its parameters, the layout of its state
// directory, its control group, and the client of its supervisor's control socket.
//
// The invariant: everything that a cluster leaves on the machine is either below its state directory or in the one
// control group whose name follows from the directory's path. So whoever knows the path can find, ask, stop and
// remove the cluster, even when every process of it was killed.
//
// The one way in is [Open], which gives the [Dir] that all other names hang from. The package is linked into the
// lean program, so it imports little; the supervisor itself lives in package lab.
package cluster
