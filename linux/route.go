// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"errors"

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
