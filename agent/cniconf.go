// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/podnet"
)

// cniConfName sorts before other plugins' files: a container runtime takes the first.
const cniConfName = "10-fairlead.conflist"

// cniConf is the network configuration list (CNI 1.1, section 1) that a container runtime reads. The plugin is fairlead itself. A runtime
// that knows CNI 1.1 takes the highest of cniVersions; an older one, such as containerd 1.7, knows only cniVersion, and would refuse 1.1.0.
func cniConf(cfg *config.Agent, podCIDRs []netip.Prefix) ([]byte, error) {
	conf := map[string]any{
		"cniVersion":  "1.0.0",
		"cniVersions": []string{"1.0.0", "1.1.0"},
		"name":        "fairlead",
		"plugins": []map[string]any{{
			"type":     pluginName,
			"podCIDRs": podCIDRs,
			"dataDir":  cfg.Leases(),
			"agent":    cfg.Socket(),
		}},
	}
	text, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode CNI configuration: %w", err)
	}
	return append(text, '\n'), nil
}

// writeCNIConf puts the configuration in place in one step, so that a runtime never reads half of it. Its presence tells the
// runtime that the node can carry pods, which is why it is written last, and after the plugin that it names. The same text is not written again.
func writeCNIConf(cfg *config.Agent, podCIDRs []netip.Prefix) error {
	text, err := cniConf(cfg, podCIDRs)
	if err != nil {
		return err
	}
	if cfg.CNIBinDir != "" {
		if err := installPlugin(ownPlugin(), cfg.CNIBinDir); err != nil {
			return err
		}
	}
	path := filepath.Join(cfg.CNIConfDir, cniConfName)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := os.MkdirAll(cfg.CNIConfDir, 0o755); err != nil {
		return fmt.Errorf("make directory for CNI configuration: %w", err)
	}
	tmp := filepath.Join(cfg.CNIConfDir, "."+cniConfName+".new")
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return fmt.Errorf("write CNI configuration: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("put CNI configuration in place: %w", err)
	}
	return nil
}

// followRanges has the plugin go over to other ranges when the node has others: a Node that was deleted and made anew gets what is free then, and other
// nodes lead nothing of the old ranges here any more.
func (n *Node) followRanges(ctx context.Context) error {
	if n.cfg.Left.Has(model.Network) || n.WaitReady(ctx) != nil {
		return nil
	}
	for have := n.podCIDRs; ; {
		var now []netip.Prefix
		err := n.state.Wait(ctx, func(s *model.Snapshot) bool {
			if self := s.Node(); self != nil {
				now = self.PodCIDRs
			}
			return len(now) > 0 && !slices.Equal(now, have)
		})
		if err != nil {
			return nil
		}
		n.log.Warn("the node has other pod ranges; pods with addresses of the old ones are not reached by other nodes until they are made anew", "old", have, "new", now)
		n.healLeases(now)
		if err := writeCNIConf(n.cfg, now); err != nil {
			return err
		}
		have = now
	}
}

// healLeases adopts the pods that were here before the agent, and frees the addresses of those that have gone without a word. If it cannot, the plugin will
// when it needs to: nobody waits for it.
func (n *Node) healLeases(podCIDRs []netip.Prefix) {
	freed, err := podnet.Heal(n.cfg.Leases(), podCIDRs)
	if err != nil {
		n.log.Warn("cannot look for leaked pod addresses", "err", err)
	}
	for _, lease := range freed {
		n.log.Info("leaked pod address freed", "addrs", lease.Addrs, "pod", lease.PodNamespace+"/"+lease.PodName, "since", lease.AllocatedAt)
	}
}
