// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command fairlead-cni is the CNI plugin and nothing else, so that a pod does not wait for a program to start that carries a Kubernetes client.
// It goes into the container runtime's plugin directory under the name fairlead, which is the type in the network configuration that the agent
// writes. The command fairlead does the same under that name, and takes longer.
package main

import (
	"fmt"
	"os"

	"github.com/fairlead/fairlead/podnet"
)

func main() {
	// A runtime gives none, and a person who takes this for fairlead must not believe that something was done.
	if len(os.Args) > 1 {
		fmt.Fprintf(os.Stderr, "fairlead-cni: this is the CNI plugin alone, which takes no arguments; %q is for the program fairlead\n", os.Args[1])
		os.Exit(2)
	}
	podnet.Main()
}
