// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

// TestCapable: a thread has what it has in effect, of the first 32 capabilities and of the others, and nothing that it has given up.
func TestCapable(t *testing.T) {
	testnet.MustRoot(t)
	if !linux.Capable() || !linux.Capable(unix.CAP_NET_ADMIN, unix.CAP_BPF) {
		t.Error("root is not capable")
	}
	testnet.New(t).Host("any").Without(func() {
		if linux.Capable(unix.CAP_BPF) || linux.Capable(unix.CAP_NET_ADMIN, unix.CAP_BPF) || !linux.Capable(unix.CAP_NET_ADMIN, unix.CAP_PERFMON) {
			t.Error("what was given up is there, or what was not is gone")
		}
	}, unix.CAP_BPF)
}
