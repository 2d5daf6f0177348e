// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package cluster holds the scenarios: tests that use a whole one-machine
// cluster as a person would, through bin/fairlead, bin/fairlead-server and the
// example shop, and that state figures with their verdict.
//
// One cluster serves all scenarios; each leaves it as it found it. The few that
// are about a cluster's beginning and end start their own, and those that are
// about one agent (many Services, kills, strangers, bad objects) have it alone
// with an API server, in namespaces of a test network. They need root, and
// everything they do happens in namespaces of the cluster; what is left of a run
// that was killed is removed by the next one. Run one of them with
//
//	go test ./test/cluster -run TestWeights -v
package cluster
