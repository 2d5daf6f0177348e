// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// WriteSysctl sets a net sysctl of the current namespace. key is the path under
// /proc/sys, with slashes because interface names may contain dots:
// "net/ipv4/conf/eth0.7/rp_filter". A value that is there already is not
// written again, so that it works on a read-only /proc/sys that is right.
func WriteSysctl(key, value string) error {
	path, err := sysctlPath(key)
	if err != nil {
		return err
	}
	old, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", key, value, err)
	}
	return nil
}

// ReadSysctl returns a net sysctl of the current namespace without the final
// newline. The error is fs.ErrNotExist for one the kernel does not have.
func ReadSysctl(key string) (string, error) {
	path, err := sysctlPath(key)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(data)), nil
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
