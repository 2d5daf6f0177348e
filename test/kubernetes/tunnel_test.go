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
		if sent := tunnelPackets(n); sent < 100 {
			t.Errorf("%s sent %d packets through the tunnel", n.Name, sent)
		}
	}
}

// tunnelPackets is how many packets a node has sent through its tunnel; 0 if it has none.
func tunnelPackets(n *bed.Node) int {
	text, err := n.Output(interrupted, "cat", "/sys/class/net/"+nodenet.Device+"/statistics/tx_packets")
	sent, parseErr := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || parseErr != nil {
		return 0
	}
	return sent
}
