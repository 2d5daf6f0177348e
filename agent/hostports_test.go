// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// What the agent does not listen on, because a part of its work is left to others or switched off, pods may have.
func TestOwnPorts(t *testing.T) {
	all := config.Agent{DNS: parseAddrs("10.96.0.10"), Healthz: netip.MustParseAddrPort("0.0.0.0:10256"), Metrics: netip.MustParseAddrPort("127.0.0.1:10249"), TunnelPort: 8472}
	for _, tt := range []struct {
		name string
		set  func(*config.Agent)
		want string
	}{
		{"everything", func(*config.Agent) {}, "9153/TCP 53/UDP 53/TCP 5353/UDP 5353/TCP 10256/TCP 10249/TCP 8472/UDP"},
		{"no DNS", func(c *config.Agent) { c.DNS = nil }, "10256/TCP 10249/TCP 8472/UDP"},
		{"no health checks", func(c *config.Agent) { c.Healthz = netip.AddrPort{} }, "9153/TCP 53/UDP 53/TCP 5353/UDP 5353/TCP 10249/TCP 8472/UDP"},
		{"no metrics", func(c *config.Agent) { c.Metrics = netip.AddrPort{} }, "9153/TCP 53/UDP 53/TCP 5353/UDP 5353/TCP 10256/TCP 8472/UDP"},
		{"no tunnel", func(c *config.Agent) { c.Tunnel = nodenet.Never }, "9153/TCP 53/UDP 53/TCP 5353/UDP 5353/TCP 10256/TCP 10249/TCP"},
		{"another's network", func(c *config.Agent) { c.Left = model.Network }, "9153/TCP 53/UDP 53/TCP 5353/UDP 5353/TCP 10256/TCP 10249/TCP"},
	} {
		cfg := all
		tt.set(&cfg)
		var got []string
		for _, p := range ownPorts(&cfg, []uint16{53, 5353}) {
			if p.Name == "" {
				t.Errorf("%s: %d has no name", tt.name, p.Port)
			}
			got = append(got, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
		if text := strings.Join(got, " "); text != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, text, tt.want)
		}
	}
}
