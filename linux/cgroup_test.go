// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCgroup2Mount(t *testing.T) {
	const (
		v1      = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n"
		unified = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
		part    = "77 31 0:38 /user.slice /run/user/cg rw,relatime shared:1 master:2 - cgroup2 none rw\n"
		odd     = `78 31 0:38 / /mnt/a\040b\134c rw - cgroup2 cgroup2 rw` + "\n"
		lies    = "79 31 0:40 / /mnt/x\\040-\\040cgroup2 rw - tmpfs cgroup2 rw\n"
	)
	for _, c := range []struct {
		name, info, want string
	}{
		{"unified", v1 + unified, "/sys/fs/cgroup/unified"},
		{"root before part", part + unified, "/sys/fs/cgroup/unified"},
		{"part only", v1 + part, "/run/user/cg"},
		{"escapes", odd, `/mnt/a b\c`},
		{"none", v1 + lies, ""},
		{"empty", "", ""},
		{"broken", "41 31\n - cgroup2\n\n", ""},
	} {
		got, err := cgroup2Mount([]byte(c.info))
		if got != c.want || (c.want == "") != errors.Is(err, ErrNoCgroup2) {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

// TestFirstCgroup: what a container has at the same path is told from the machine's.
func TestFirstCgroup(t *testing.T) {
	path, err := Cgroup2Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{filepath.Join(path, "nothing"), t.TempDir()} {
		if isFirstCgroup(other) == nil {
			t.Errorf("%s is said to be the first cgroup", other)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs to make a cgroup")
	}
	below, err := os.MkdirTemp(path, "fairlead-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(below)
	if isFirstCgroup(below) == nil {
		t.Errorf("%s is said to be the first cgroup", below)
	}
}

func TestUnescapeMount(t *testing.T) {
	for in, want := range map[string]string{`a\040b`: "a b", `a\`: `a\`, `a\9zz`: `a\9zz`, `\134040`: `\040`, `\777`: `\777`} {
		if got := unescapeMount(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs capabilities to give up")
	}
	for _, gone := range []int{-1, unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN} {
		err := onDoomedThread(func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var have [2]unix.CapUserData
			err := unix.Capget(&header, &have[0])
			if gone >= 0 {
				have[0].Effective &^= 1 << gone
				err = errors.Join(err, unix.Capset(&header, &have[0]))
			}
			if err != nil {
				t.Error(err)
			}
			return tryCapabilities()
		})
		if (err == nil) != (gone < 0) || err != nil && !errors.Is(err, unix.EPERM) {
			t.Errorf("without %d: %v", gone, err)
		}
	}
}
