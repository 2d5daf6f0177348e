// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"testing"

	"github.com/fairlead/fairlead/test/kubernetes/bed"
)

// TestEachRoleAlone: Fairlead does one of the three jobs beside the incumbents, and the walk works.
func TestEachRoleAlone(t *testing.T) {
	for _, c := range []struct {
		name    string
		options bed.Options
	}{
		{"proxy", bed.Options{Nodes: 2, Proxy: bed.Fairlead, DNS: bed.CoreDNS, Network: bed.Bridge}},
		{"dns", bed.Options{Nodes: 2, Proxy: bed.KubeProxy, DNS: bed.Fairlead, Network: bed.Bridge}},
		{"network", bed.Options{Nodes: 2, Proxy: bed.KubeProxy, DNS: bed.CoreDNS, Network: bed.Fairlead}},
	} {
		t.Run(c.name, func(t *testing.T) { walk(t, enter(t, c.options)) })
	}
}
