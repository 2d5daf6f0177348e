// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command fairlead-cni is the CNI plugin and nothing else, so that a pod does not wait for a program to start that carries a Kubernetes client.
// It goes into the container runtime's plugin directory under the name fairlead, which is the type in the network configuration that the agent
// writes. The command fairlead does the same under that name, and takes longer.
package main

import "github.com/fairlead/fairlead/podnet"

func main() { podnet.Main() }
