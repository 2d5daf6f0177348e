// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package validation says what is wrong with an object, in the field paths
// and words that Kubernetes users know.
//
// There is one pair of functions per kind: the kind's name for a new object,
// and the name with Update for a change (the new object first). They are pure,
// expect defaults to be applied, never panic whatever was decoded from a
// request, and report every fault they find; an empty list means valid.
//
// What Kubernetes accepts and Fairlead cannot do yet is refused here, never
// ignored: such an error contains "not supported yet by Fairlead" and says
// what to do instead. A field of a pod that changes nothing for a process on
// the host (its image, its resources) is accepted and only kept.
package validation
