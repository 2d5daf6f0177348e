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
	err := newNetNS(t).Do(func() error { // on a thread of its own
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var all, some [2]unix.CapUserData
		if err := unix.Capget(&header, &all[0]); err != nil {
			return err
		}
		some = all
		some[unix.CAP_BPF/32].Effective &^= 1 << (unix.CAP_BPF % 32)
		if err := unix.Capset(&header, &some[0]); err != nil {
			return err
		}
		if linux.Capable(unix.CAP_BPF) || linux.Capable(unix.CAP_NET_ADMIN, unix.CAP_BPF) || !linux.Capable(unix.CAP_NET_ADMIN, unix.CAP_PERFMON) {
			t.Error("what was given up is there, or what was not is gone")
		}
		return unix.Capset(&header, &all[0])
	})
	if err != nil {
		t.Fatal(err)
	}
}
