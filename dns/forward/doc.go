// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package forward asks upstream resolvers for the names that are not the cluster's, and remembers what they say.
package forward
