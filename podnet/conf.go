// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/fairlead/fairlead/ipam"
)

// Conf is the plugin's part of a CNI network configuration list.
type Conf struct {
	types.PluginConf

	PodCIDRs []string `json:"podCIDRs"` // of the node; one, or one of each family; the first is the pods' primary one
	DataDir  string   `json:"dataDir"`  // absolute; where the lease file is
	MTU      int      `json:"mtu"`      // of the pods' interfaces, bytes; 0: that of the node's default route
	Agent    string   `json:"agent"`    // absolute path of the agent's socket; empty: nobody is asked

	// What GC is to leave, under both names that runtimes use: the specification had the second one first.
	Valid    json.RawMessage `json:"cni.dev/valid-attachments"`
	Attached json.RawMessage `json:"cni.dev/attachments"`
}

// Smallest MTUs by RFC 791 and RFC 8200, and the largest that a veth takes.
const (
	minMTU4 = 68
	minMTU6 = 1280
	maxMTU  = 65535
)

// cniErrorf makes an error with a code of the CNI specification, section 5.
func cniErrorf(code uint, format string, args ...any) error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// parseConf reads and checks everything but the ranges, which only ADD needs: a
// DEL must not fail because of what has become of them.
func parseConf(data []byte) (*Conf, error) {
	conf := &Conf{}
	if err := json.Unmarshal(data, conf); err != nil {
		return nil, cniErrorf(types.ErrDecodingFailure, "read network configuration: %v", err)
	}
	invalid := func(format string, args ...any) error {
		return cniErrorf(types.ErrInvalidNetworkConfig, "network configuration: "+format, args...)
	}
	switch {
	case !filepath.IsAbs(conf.DataDir):
		return nil, invalid("dataDir is %q, want an absolute path", conf.DataDir)
	case conf.Agent != "" && !filepath.IsAbs(conf.Agent):
		return nil, invalid("agent is %q, want the absolute path of a socket", conf.Agent)
	case conf.MTU != 0 && (conf.MTU < minMTU4 || conf.MTU > maxMTU):
		return nil, invalid("mtu is %d, want 0 or %d to %d", conf.MTU, minMTU4, maxMTU)
	}
	if err := version.ParsePrevResult(&conf.PluginConf); err != nil {
		return nil, cniErrorf(types.ErrDecodingFailure, "network configuration: prevResult: %v", err)
	}
	return conf, nil
}

// ranges parses podCIDRs.
func (c *Conf) ranges() ([]netip.Prefix, error) {
	if len(c.PodCIDRs) == 0 {
		return nil, cniErrorf(types.ErrInvalidNetworkConfig, "network configuration: podCIDRs is empty")
	}
	var ranges []netip.Prefix
	for _, text := range c.PodCIDRs {
		r, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, cniErrorf(types.ErrInvalidNetworkConfig, "network configuration: podCIDRs: %v", err)
		}
		if r.Addr().Is6() && c.MTU != 0 && c.MTU < minMTU6 {
			return nil, cniErrorf(types.ErrInvalidNetworkConfig, "network configuration: mtu is %d, want at least %d for IPv6", c.MTU, minMTU6)
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

// knownRanges returns those of podCIDRs that can be read: enough to tell this
// network from another one.
func (c *Conf) knownRanges() (known []netip.Prefix) {
	for _, text := range c.PodCIDRs {
		if r, err := netip.ParsePrefix(text); err == nil {
			known = append(known, r)
		}
	}
	return known
}

// store opens the leases. Without ranges it can only give back.
func (c *Conf) store(ranges []netip.Prefix) (*ipam.Store, error) {
	store, err := ipam.New(ipam.Config{
		Dir:    c.DataDir,
		Ranges: ranges,
		Live:   func() ([]ipam.Lease, error) { return liveLeases(c.knownRanges()) },
		Log:    slog.New(slog.NewTextHandler(os.Stderr, nil)), // the runtime logs what a plugin writes there
	})
	if err != nil {
		return nil, cniErrorf(types.ErrInvalidNetworkConfig, "network configuration: %v", err)
	}
	return store, nil
}

// prev returns the result of the plugins before this one, or nil.
func (c *Conf) prev() (*types100.Result, error) {
	if c.PrevResult == nil {
		return nil, nil
	}
	prev, err := types100.GetResult(c.PrevResult)
	if err != nil {
		return nil, cniErrorf(types.ErrDecodingFailure, "network configuration: prevResult: %v", err)
	}
	return prev, nil
}

// valid returns what GC is to leave. Nothing is left of an empty list, so one that is not there is refused.
func (c *Conf) valid() ([]types.GCAttachment, error) {
	text := c.Valid
	if text == nil {
		text = c.Attached
	}
	if text == nil {
		return nil, cniErrorf(types.ErrInvalidNetworkConfig, "network configuration: GC without cni.dev/valid-attachments, which says what to leave")
	}
	var list []types.GCAttachment
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, cniErrorf(types.ErrDecodingFailure, "network configuration: cni.dev/valid-attachments: %v", err)
	}
	return list, nil
}

// parseArgs takes the pod's identity out of CNI_ARGS, "KEY=VALUE;KEY=VALUE". Keys
// that other programs want are none of our business, so none is refused.
func parseArgs(args *skel.CmdArgs) ipam.Lease {
	lease := ipam.Lease{
		ID:          hostName(args.ContainerID, args.IfName),
		ContainerID: args.ContainerID,
		IfName:      args.IfName,
		NetNS:       args.Netns,
	}
	for pair := range strings.SplitSeq(args.Args, ";") {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "K8S_POD_NAMESPACE":
			lease.PodNamespace = value
		case "K8S_POD_NAME":
			lease.PodName = value
		case "K8S_POD_UID":
			lease.PodUID = value
		}
	}
	return lease
}
