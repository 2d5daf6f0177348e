// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command pause is the first process of every pod of the test cluster: it holds the pod's namespaces, and ends when told to.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
