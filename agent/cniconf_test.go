// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

var podCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:0:1::/64")}

// TestWriteCNIConf writes what a container runtime can load, in one step, and the same text once.
func TestWriteCNIConf(t *testing.T) {
	dir := t.TempDir()
	cfg := &config.Agent{State: filepath.Join(dir, "state"), CNIConfDir: filepath.Join(dir, "net.d")}
	path := filepath.Join(cfg.CNIConfDir, cniConfName)
	stat := func() os.FileInfo {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	if err := writeCNIConf(cfg, podCIDRs); err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromFile(path)
	if err != nil || list.CNIVersion != "1.1.0" || list.Name != "fairlead" || len(list.Plugins) != 1 || list.Plugins[0].Network.Type != "fairlead" {
		t.Errorf("loaded %+v, %v", list, err)
	}
	// A runtime that does not know CNI 1.1 reads the one version, and no list of them.
	var old struct{ CNIVersion string }
	if err := json.Unmarshal(list.Bytes, &old); err != nil || old.CNIVersion != "1.0.0" {
		t.Errorf("an older runtime reads version %q (%v)", old.CNIVersion, err)
	}
	for _, want := range []string{`"10.244.1.0/24"`, `"fd00:244:0:1::/64"`, cfg.Leases(), cfg.Socket()} {
		if !strings.Contains(string(list.Bytes), want) {
			t.Errorf("no %s in %s", want, list.Bytes)
		}
	}
	first := stat()
	if err := writeCNIConf(cfg, podCIDRs); err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(first, stat()) {
		t.Error("wrote what was there already")
	}
	if err := writeCNIConf(cfg, podCIDRs[:1]); err != nil {
		t.Fatal(err)
	}
	if os.SameFile(first, stat()) {
		t.Error("a new range was written into the file that a runtime may be reading")
	}
	if entries, err := os.ReadDir(cfg.CNIConfDir); err != nil || len(entries) != 1 {
		t.Errorf("files %v, %v", entries, err)
	}
	// The configuration names a plugin, which is there before it.
	cfg.CNIConfDir, cfg.CNIBinDir = filepath.Join(dir, "later.d"), "/dev/null/bin"
	if err := writeCNIConf(cfg, podCIDRs); err == nil {
		t.Error("no error where there can be no plugin")
	}
	if _, err := os.Stat(cfg.CNIConfDir); err == nil {
		t.Error("there is a configuration without a plugin")
	}
	cfg.CNIBinDir = filepath.Join(dir, "bin")
	if err := writeCNIConf(cfg, podCIDRs); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(cfg.CNIBinDir, "fairlead")); err != nil {
		t.Error(err)
	}
	cfg.CNIConfDir, cfg.CNIBinDir = "/dev/null/net.d", ""
	if err := writeCNIConf(cfg, podCIDRs); err == nil || !strings.Contains(err.Error(), "make directory for CNI configuration") {
		t.Errorf("where there can be no directory: %v", err)
	}
}

// TestFollowRanges: a Node that is deleted and made anew with another range has the plugin give out addresses of that one; meanwhile, and without a range, it
// keeps what it has.
func TestFollowRanges(t *testing.T) {
	dir := t.TempDir()
	n := &Node{
		cfg: &config.Agent{State: filepath.Join(dir, "state"), CNIConfDir: filepath.Join(dir, "net.d")}, log: slog.New(slog.DiscardHandler),
		state: NewState(), ready: make(chan struct{}), podCIDRs: podCIDRs,
	}
	if err := writeCNIConf(n.cfg, podCIDRs); err != nil {
		t.Fatal(err)
	}
	close(n.ready)
	ctx, cancel := context.WithCancel(t.Context())
	followed := make(chan error)
	h := testnet.New(t).Host("node")
	go h.NS.Do(func() error { followed <- n.followRanges(ctx); return nil })
	b := model.NewBuilder(model.Config{Self: "n1"})
	given := func(want string) {
		t.Helper()
		n.state.acknowledge(b.Build(), 0)
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			text, err := os.ReadFile(filepath.Join(n.cfg.CNIConfDir, cniConfName))
			if err == nil && strings.Contains(string(text), want) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("no %s in %s (%v)", want, text, err)
			}
		}
	}
	b.SetNode(model.Node{Name: "n1", PodCIDRs: podCIDRs})
	given("10.244.1.0/24")
	b.DeleteNode("n1")
	given("10.244.1.0/24")
	b.SetNode(model.Node{Name: "n1"})
	given("10.244.1.0/24")
	b.SetNode(model.Node{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")}})
	given("10.244.9.0/24")
	b.SetNode(model.Node{Name: "n1", PodCIDRs: podCIDRs})
	given("10.244.1.0/24")
	cancel()
	if err := <-followed; err != nil {
		t.Error(err)
	}
	n.cfg.CNIConfDir = "/dev/null/net.d"
	n.podCIDRs = podCIDRs[:1]
	if err := h.NS.Do(func() error { return n.followRanges(t.Context()) }); err == nil || !strings.Contains(err.Error(), "CNI configuration") {
		t.Errorf("where there can be no file: %v", err)
	}
}

// TestHealLeases adopts what is on a node before its agent, and says when it cannot; the agent goes on either way.
func TestHealLeases(t *testing.T) {
	w := testnet.New(t)
	node, pod := w.Host("node"), w.Host("pod")
	w.Cable(node, "veth0", pod, "eth0")
	node.Addr("veth0", "10.244.1.1/24")
	pod.Addr("eth0", "10.244.1.7/24", "fd00:244:0:1::7/64")
	var said bytes.Buffer
	n := &Node{cfg: &config.Agent{State: t.TempDir()}, log: slog.New(slog.NewTextHandler(&said, nil))}
	for range 2 {
		node.Do(func() error { n.healLeases(podCIDRs); return nil })
	}
	leases, err := ipam.Read(n.cfg.Leases())
	var got []string
	for _, l := range leases {
		got = append(got, l.Addrs[0].String())
	}
	if err != nil || strings.Join(got, " ") != "10.244.1.1 10.244.1.7 fd00:244:0:1::7" || said.Len() > 0 {
		t.Errorf("leases %v, %v; it said %s", got, err, &said)
	}
	n.cfg.State = "/dev/null"
	node.Do(func() error { n.healLeases(podCIDRs); return nil })
	if !strings.Contains(said.String(), "cannot look for leaked pod addresses") || !strings.Contains(said.String(), "not a directory") {
		t.Errorf("where there can be no file it said %q", &said)
	}
}
