// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// RouteProtocol is the routing protocol number (rtm_protocol, as shown by `ip
// route show proto 170`) of every route and every neighbour entry that Fairlead
// makes. It is how Fairlead knows its own: a route with another number is never
// changed or removed. 170 is in the range that the kernel leaves to user space
// and is used by no routing daemon listed in iproute2's rt_protos.
const RouteProtocol = 170

// dumpTries bounds how often an interrupted dump is repeated: each try means
// that the table was changed while it was read, and a machine that changes
// routes faster than they can be read has other troubles.
const dumpTries = 8

// Dump calls list until the kernel answers without having been interrupted by a
// change of what it was listing, at most a few times. Use it around every
// netlink call that lists things: an interrupted list may lack entries.
func Dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 0; ; try++ {
		got, err := list()
		if try >= dumpTries || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return got, err
		}
	}
}

// probeAddrs are addresses that no network has (RFC 5737, RFC 3849), so that only
// a default route leads to them. Nothing is ever sent there: the kernel is only
// asked for the route.
var probeAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// DefaultMTU returns the MTU of the current namespace's default route, or of its
// interface: the smaller one if the two families differ, 0 if there is no default
// route.
func DefaultMTU() (int, error) {
	b, err := NewBatch()
	if err != nil {
		return 0, err
	}
	defer b.Close()
	ways := make([]Found, len(probeAddrs))
	for i, addr := range probeAddrs {
		b.RouteGet(addr, &ways[i])
	}
	if err := b.Send(); err != nil {
		return 0, fmt.Errorf("look up default route: %w", err)
	}
	mtu := 0
	for _, way := range ways {
		if way.Index == 0 {
			continue // none, or one that refuses
		}
		got := way.MTU
		if got == 0 {
			var link netlink.LinkAttrs
			b.LinkAt(way.Index, &link)
			if err := b.Send(); err != nil {
				return 0, fmt.Errorf("look up interface of default route: %w", err)
			}
			got = link.MTU
		}
		if mtu == 0 || got < mtu {
			mtu = got
		}
	}
	return mtu, nil
}
