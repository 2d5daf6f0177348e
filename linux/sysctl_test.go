// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

// TestSysctl writes in one namespace and looks that no other is changed.
func TestSysctl(t *testing.T) {
	w := testnet.New(t)
	a, b := w.Host("a"), w.Host("b")
	a.Do(func() error { return linux.WriteSysctl("net/ipv4/ip_forward", "1") })
	for _, c := range []struct {
		host *testnet.Host
		want string
	}{{a, "1"}, {b, "0"}} {
		c.host.Do(func() error {
			got, err := linux.ReadSysctl("net/ipv4/ip_forward")
			if got != c.want {
				t.Errorf("ip_forward of %s: %s", c.host.Name, got)
			}
			return err
		})
	}
	a.Do(func() error {
		err := linux.WriteSysctl("net/ipv4/conf/nosuch/rp_filter", "0")
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "net/ipv4/conf/nosuch/rp_filter=0") {
			t.Errorf("no such interface: %v", err)
		}
		if err := linux.WriteSysctl("net/ipv4/ip_forward", "many"); err == nil {
			t.Error("no error for a value that is no number")
		}
		return nil
	})
}

func TestSysctlKey(t *testing.T) {
	for _, key := range []string{"", "kernel/hostname", "net/../kernel/hostname", "/net/ipv4/ip_forward", "net.ipv4.ip_forward", "net//ipv4/ip_forward"} {
		if _, err := linux.ReadSysctl(key); err == nil {
			t.Errorf("read %q: no error", key)
		}
		if err := linux.WriteSysctl(key, "0"); err == nil {
			t.Errorf("write %q: no error", key)
		}
	}
}
