// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package sandbox runs the agent as a cluster would, in tests: the container that deploy/fairlead.yaml describes, out of the image that make image has
// built, by runc, in the network namespace of a node; with exactly the capabilities, the seccomp profile, the read-only root and the mounts of the manifest. Its
// API server asks Kubernetes' own RBAC authorizer, with the manifest's roles and with those that every cluster has.
//
// The package has tests only. Each privilege of the manifest has a subtest of its name which takes it away and waits for what fails then; so the list in
// docs/install.md is neither too short nor too long. The system calls of seccomp.json are measured by the same tests, under strace:
//
//	cd deploy && go test ./sandbox -run TestSeccomp -measure
package sandbox
