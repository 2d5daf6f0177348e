// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/fairlead/fairlead/config"
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
