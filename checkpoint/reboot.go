// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/model"
)

// rebooted hands on what is still so after a start of the node.
//
// No pod outlives it. Without an API server the kubelet starts none but static ones, which are on the node's own network as a rule. So an address
// that a pod of this node had belongs to nobody, or soon to another pod, and connections to it would wait for a timeout. The node's own addresses are there, and
// where nobody listens the kernel says so at once; what a static pod serves must not be lost. Pods of other nodes are taken to be where they were.
//
// The node itself comes before slices, in a file.
type rebooted struct {
	model.Objects
	node  string
	addrs []netip.Addr
}

// SetNode implements model.Objects.
func (r *rebooted) SetNode(n model.Node) {
	if n.Name == r.node {
		r.addrs = n.Addrs
	}
	r.Objects.SetNode(n)
}

// SetPod implements model.Objects.
func (r *rebooted) SetPod(p model.Pod) {
	if p.HostNetwork {
		r.Objects.SetPod(p)
	}
}

// SetSlice implements model.Objects.
func (r *rebooted) SetSlice(s model.Slice) {
	s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e model.Endpoint) bool {
		return e.Node == r.node && e.Pod != (model.Name{}) && !slices.Contains(r.addrs, e.Addr)
	})
	r.Objects.SetSlice(s)
}
