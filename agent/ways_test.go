// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
	"github.com/fairlead/fairlead/socketlb"
	"github.com/fairlead/fairlead/testnet"
)

// TestWays: the short cuts come with the first state that is programmed, follow each change, go while another agent writes, and go for good when nobody follows.
func TestWays(t *testing.T) {
	testnet.MustRoot(t)
	node := testnet.New(t).Host("node")
	sockets := socketlb.New(func() (map[netip.Addr]uint64, error) { return nil, nil }, nil)
	t.Cleanup(sockets.Close)
	w := &ways{Target: nodenet.New(nodenet.Options{Mode: nodenet.Never}), sockets: sockets}
	b := model.NewBuilder(model.Config{Self: "n1"})
	b.SetNode(model.Node{Name: "n1"})
	service := func(name, vip string) {
		n := model.Name{Namespace: "default", Name: name}
		b.SetService(model.ServiceSpec{Name: n, ClusterIPs: []netip.Addr{netip.MustParseAddr(vip)}, Ports: []model.Port{{Protocol: model.TCP, Port: 80}}})
		b.SetSlice(model.Slice{Name: n, Service: name, Ports: []model.Port{{Protocol: model.TCP, Port: 80}}, Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("10.244.0.1"), Ready: true}}})
	}
	step := func(what string, do func() error, want int) {
		t.Helper()
		node.Do(do)
		if r := sockets.Report(); r.Off != "" || r.Services != want {
			t.Errorf("%s: %+v, want %d led", what, r, want)
		}
	}
	service("one", "10.96.0.1")
	snap := b.Build()
	step("routes before rules", func() error { return w.Add(t.Context(), snap) }, 0)
	step("rules", func() error { return w.Prune(t.Context(), snap) }, 1)
	service("two", "10.96.0.2")
	snap = b.Build()
	step("another Service", func() error { return w.Add(t.Context(), snap) }, 2)
	step("its rules", func() error { return w.Prune(t.Context(), snap) }, 2)
	step("another agent", func() error { w.Suspend(); return nil }, 0)
	step("this one again", func() error { return w.Verify(t.Context()) }, 2)
	step("the end", func() error { w.close(); return nil }, 0)
	step("after the end", func() error { return w.Verify(t.Context()) }, 0)
	(&ways{Target: nodenet.New(nodenet.Options{})}).close() // without any
}
