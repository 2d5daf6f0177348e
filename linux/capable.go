// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Capable reports whether the calling thread has all of some capabilities (unix.CAP_*), in effect. Without any it is true.
func Capable(all ...int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return false
	}
	return !slices.ContainsFunc(all, func(c int) bool { return have[c/32].Effective&(1<<(c%32)) == 0 })
}
