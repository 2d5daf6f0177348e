// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// ErrNoCgroup2 is returned by [Cgroup2Mount] when no cgroup v2 hierarchy is
// mounted.
var ErrNoCgroup2 = errors.New("no cgroup v2 hierarchy is mounted")

// Cgroup2Mount returns the directory where the cgroup v2 hierarchy is mounted:
// /sys/fs/cgroup on most machines, /sys/fs/cgroup/unified where v1 is used beside
// it. A mount of the hierarchy's root is preferred to one of a part of it.
func Cgroup2Mount() (string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	return cgroup2Mount(data)
}

// Cgroup2Root returns the directory of the machine's first cgroup (v2), which every process is below. A container has it only if it is given the
// node's /sys/fs/cgroup.
func Cgroup2Root() (string, error) {
	path, err := Cgroup2Mount()
	if err != nil {
		return "", err
	}
	return path, isFirstCgroup(path)
}

func isFirstCgroup(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("find cgroup v2: %w", err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Ino != 1 { // the number that the kernel gives the first directory
		return fmt.Errorf("find cgroup v2: %s is not the first one of the machine: the node's /sys/fs/cgroup has to be mounted there", path)
	}
	return nil
}

// cgroup2Mount parses mountinfo as described in proc_pid_mountinfo(5):
// "36 35 98:0 /root /mount/point options [optional fields] - type source options".
func cgroup2Mount(mountinfo []byte) (string, error) {
	part := ""
	lines := bufio.NewScanner(bytes.NewReader(mountinfo))
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 6 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		point := unescapeMount(fields[4])
		if fields[3] == "/" {
			return point, nil
		}
		if part == "" {
			part = point
		}
	}
	if part == "" {
		return "", fmt.Errorf("find cgroup v2: %w", ErrNoCgroup2)
	}
	return part, nil
}

// unescapeMount undoes the kernel's octal escapes for space, tab, newline and
// backslash.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
