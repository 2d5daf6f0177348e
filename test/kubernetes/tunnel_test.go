// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"testing"

	"github.com/fairlead/fairlead/test/kubernetes/bed"
)

// tunnelsCanBeAsked says that the agent has the flag --tunnel.
const tunnelsCanBeAsked = false

// TestWalkThroughTunnels is TestWalk with the nodes joined by VXLAN, as if they shared no link.
func TestWalkThroughTunnels(t *testing.T) {
	if !tunnelsCanBeAsked {
		t.Log("not with this agent")
		return
	}
	walk(t, enter(t, bed.Options{Nodes: 3, AgentArgs: []string{"--tunnel=always"}}))
}
