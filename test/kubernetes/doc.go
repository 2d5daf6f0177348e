// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package kubernetes holds the scenarios on a Kubernetes cluster of real parts: kube-apiserver, kube-controller-manager,
// kube-scheduler, kubelets and containerd, with pods in containers. Package bed brings such a cluster up.
//
// They need root, what make deps installs and what make build-kubernetes builds. Run one of them with
//
//	cd test/kubernetes && go test -run TestWalk -v .
package kubernetes
