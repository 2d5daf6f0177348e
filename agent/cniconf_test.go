// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/fairlead/fairlead/config"
)

// TestCNIConfVersion: a runtime that knows CNI 1.1 speaks it, and one that does not is given 1.0.0.
func TestCNIConfVersion(t *testing.T) {
	text, err := cniConf(&config.Agent{State: "/state"}, []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")})
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(text)
	if err != nil {
		t.Fatal(err)
	}
	if list.CNIVersion != "1.1.0" || list.Name != "fairlead" || len(list.Plugins) != 1 || list.Plugins[0].Network.Type != "fairlead" {
		t.Errorf("libcni reads version %s, name %s and %d plugins from\n%s", list.CNIVersion, list.Name, len(list.Plugins), text)
	}
	var old struct{ CNIVersion string }
	if err := json.Unmarshal(text, &old); err != nil || old.CNIVersion != "1.0.0" {
		t.Errorf("an older runtime reads version %q (%v)", old.CNIVersion, err)
	}
}
