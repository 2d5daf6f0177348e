// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// hostDir is where a container has parts of the node's file system.
const hostDir = "/host"

// WriteSysctl sets a net sysctl of the current namespace. key is the path under
// /proc/sys, with slashes because interface names may contain dots:
// "net/ipv4/conf/eth0.7/rp_filter". A value that is there already is not
// written again, so that it works on a read-only /proc/sys that is right.
//
// In a container /proc/sys is read-only, also where the network is the node's.
// Then the value is written below /host/proc/sys/net, which is the node's
// /proc/sys/net if the container has it mounted there. The network namespace
// is the calling thread's on either way.
func WriteSysctl(key, value string) error {
	path, err := sysctlPath(key)
	if err != nil {
		return err
	}
	if old, err := readProc(path); err == nil && old == value {
		return nil
	}
	err = writeProc(path, value)
	if errors.Is(err, unix.EROFS) {
		other := writeProc(hostDir+path, value)
		if !errors.Is(other, fs.ErrNotExist) {
			err = other
		} else {
			err = fmt.Errorf("%w; in a container, mount the node's /proc/sys/net at %s/proc/sys/net", err, hostDir)
		}
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", key, value, err)
	}
	return nil
}

// readProc reads a file of one short value. Package os would ask its poller about the file first: three system calls instead of eight, and the CNI plugin
// does this for every pod.
func readProc(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

func writeProc(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}

// ReadSysctl returns a net sysctl of the current namespace without the final
// newline. The error is fs.ErrNotExist for one the kernel does not have.
func ReadSysctl(key string) (string, error) {
	path, err := sysctlPath(key)
	if err != nil {
		return "", err
	}
	value, err := readProc(path)
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", key, err)
	}
	return value, nil
}

// sysctlPath refuses keys that are not per namespace or that climb out. The
// kernel resolves /proc/sys/net by the namespace of the thread that opens the
// file, which is what makes these functions work inside NetNS.Do.
func sysctlPath(key string) (string, error) {
	if !strings.HasPrefix(key, "net/") || filepath.Clean(key) != key {
		return "", fmt.Errorf("sysctl %q: want a clean path that starts with net/", key)
	}
	return "/proc/sys/" + key, nil
}
