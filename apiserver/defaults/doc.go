// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package defaults fills what a manifest leaves out, with the values that
// Kubernetes' v1 APIs fill in, so that a manifest means the same in both.
//
// The one way in is [Register]. Its functions change only fields that are
// unset, so that applying them twice is applying them once: they run when a
// request is decoded and again when an object is read back from storage.
// What depends on the cluster (a Service's addresses and families) is the
// allocator's business, not a default.
package defaults
