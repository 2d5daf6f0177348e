// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"strconv"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/nodenet"
	"github.com/fairlead/fairlead/test/kubernetes/bed"
)

// TestWalkThroughTunnels is TestWalk with the nodes joined by VXLAN, as if they shared no link.
func TestWalkThroughTunnels(t *testing.T) {
	w := enter(t, bed.Options{Nodes: 3, AgentArgs: []string{"--tunnel=always"}})
	walk(t, w)
	for _, n := range w.Nodes {
		sent, err := n.Output(interrupted, "cat", "/sys/class/net/"+nodenet.Device+"/statistics/tx_packets")
		if packets, parseErr := strconv.Atoi(strings.TrimSpace(sent)); err != nil || parseErr != nil || packets < 100 {
			t.Errorf("%s sent %q packets through the tunnel (%v)", n.Name, sent, err)
		}
	}
}
