// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"

	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// ownPorts are those that this agent listens on at addresses of the node, for the DNS at the given numbers, and the kernel for its tunnel. No pod gets
// them as host ports.
func ownPorts(cfg *config.Agent, dns []uint16) []model.Port {
	var ports []model.Port
	if len(cfg.DNS) > 0 {
		ports = append(ports, model.Port{Name: "metrics", Protocol: model.TCP, Port: metricsPort})
		for _, n := range dns {
			ports = append(ports, model.Port{Name: "DNS", Protocol: model.UDP, Port: n}, model.Port{Name: "DNS", Protocol: model.TCP, Port: n})
		}
	}
	if cfg.Healthz.IsValid() {
		ports = append(ports, model.Port{Name: "healthz", Protocol: model.TCP, Port: cfg.Healthz.Port()})
	}
	if cfg.Metrics.IsValid() {
		ports = append(ports, model.Port{Name: "metrics", Protocol: model.TCP, Port: cfg.Metrics.Port()})
	}
	if !cfg.Left.Has(model.Network) && cfg.Tunnel != nodenet.Never {
		ports = append(ports, model.Port{Name: "tunnel", Protocol: model.UDP, Port: cfg.TunnelPort})
	}
	return ports
}

// hostPortDisputes names the host ports that pods ask for and that others have, at some addresses or all.
func hostPortDisputes(snap *model.Snapshot) (out []string) {
	for _, svc := range snap.HostPorts.All() {
		for _, r := range snap.Rivals(svc) {
			out = append(out, fmt.Sprintf("%s: %s belongs to %s", svc.Name, r.At, r.By))
		}
	}
	return out
}
