// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"net/netip"
	"runtime/debug"

	"github.com/fairlead/fairlead/fastpath"
	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
	"github.com/fairlead/fairlead/podnet"
	"github.com/fairlead/fairlead/socketlb"
)

// ways are the routes, and the short cuts that go by them. These are told of a change when the routes are there and no rule has changed yet; of the first state, when
// the rules are there too: it is they that have the kernel load connection tracking, which the fast path asks.
type ways struct {
	*nodenet.Target
	fast    *fastpath.Target // nil: it is not asked for
	sockets *socketlb.Target // nil: it is not asked for
	on      bool
}

// Add implements Routes.
func (w *ways) Add(ctx context.Context, s *model.Snapshot) error {
	err := w.Target.Add(ctx, s)
	if err == nil && w.on {
		w.apply(s)
	}
	return err
}

func (w *ways) apply(s *model.Snapshot) {
	if w.fast != nil {
		w.fast.Apply(s, w.Links())
	}
	if w.sockets != nil {
		w.sockets.Apply(s)
	}
}

// Prune implements Routes.
func (w *ways) Prune(ctx context.Context, s *model.Snapshot) error {
	if !w.on {
		w.on = true
		w.apply(s)
		if w.fast != nil {
			debug.FreeOSMemory() // what the kernel's types took, megabytes
		}
	}
	return w.Target.Prune(ctx, s)
}

// Verify implements Routes.
func (w *ways) Verify(ctx context.Context) error {
	err := w.Target.Verify(ctx)
	if w.fast != nil {
		w.fast.Verify(w.Links())
	}
	if w.sockets != nil {
		w.sockets.Verify()
	}
	return err
}

// Suspend implements Routes.
func (w *ways) Suspend() {
	if w.sockets != nil {
		w.sockets.Suspend()
	}
}

// close takes the short cuts away.
func (w *ways) close() {
	if w.fast != nil {
		w.fast.Close()
	}
	if w.sockets != nil {
		w.sockets.Close()
	}
}

// namespaces are the network namespaces of this node's pods, by the pods' addresses, as the CNI plugin found them.
func (n *Node) namespaces() (map[netip.Addr]uint64, error) {
	leases, err := podnet.ListAttachments(n.cfg.Leases())
	if errors.As(err, new(*ipam.CorruptError)) {
		err = nil // the others are right, and the plugin mends the file
	}
	of := make(map[netip.Addr]uint64)
	for _, l := range leases {
		for _, a := range l.Addrs {
			of[a] = l.NetNSID
		}
	}
	return of, err
}
