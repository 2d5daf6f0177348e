// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

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

// chrootEnv is set in the process that TestSysctlInContainer starts.
const chrootEnv = "FAIRLEAD_TEST_SYSCTL"

// TestSysctlInContainer: a container's /proc/sys is read-only; what is written comes to the node's, where that is mounted, and otherwise the
// error says so.
func TestSysctlInContainer(t *testing.T) {
	if mode := os.Getenv(chrootEnv); mode != "" {
		inContainer(t, mode == "mounted")
		return
	}
	testnet.MustRoot(t)
	for _, mode := range []string{"mounted", "not mounted"} {
		t.Run(mode, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestSysctlInContainer$", "-test.v")
			cmd.Env = append(os.Environ(), chrootEnv+"="+mode)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// inContainer changes this process's own mount namespace into what a container runtime makes.
func inContainer(t *testing.T, mounted bool) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const root = "/mnt"
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(unix.Mount("tmpfs", root, "tmpfs", 0, ""))
	must(os.Mkdir(root+"/proc", 0o755))
	must(unix.Mount("/proc", root+"/proc", "", unix.MS_BIND, ""))
	must(unix.Mount("/proc/sys", root+"/proc/sys", "", unix.MS_BIND, ""))
	must(unix.Mount("", root+"/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if mounted {
		must(os.MkdirAll(root+"/host/proc/sys/net", 0o755))
		must(unix.Mount("/proc/sys/net", root+"/host/proc/sys/net", "", unix.MS_BIND, ""))
	}
	must(unix.Chroot(root))
	must(os.Chdir("/"))
	err := linux.WriteSysctl("net/ipv4/ip_forward", "1")
	got, readErr := linux.ReadSysctl("net/ipv4/ip_forward")
	must(readErr)
	switch {
	case mounted && (err != nil || got != "1"):
		t.Errorf("ip_forward is %s, %v", got, err)
	case !mounted && (err == nil || got != "0" || !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "mount the node's /proc/sys/net at /host/proc/sys/net")):
		t.Errorf("ip_forward is %s, %v", got, err)
	}
	if err := linux.WriteSysctl("net/ipv4/ip_forward", got); err != nil {
		t.Errorf("a value that is there already: %v", err)
	}
}
