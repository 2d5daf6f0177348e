// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cluster"
)

// cgroupMount is where every distribution mounts control groups: version 2 itself, or a directory with one hierarchy of version 1 in
// each of its directories.
var cgroupMount = "/sys/fs/cgroup"

// hierarchies are the directories that hold control groups, with version 2 beside version 1 if it is there: it has no controllers, but
// runc makes groups in it too.
func hierarchies() ([]string, error) {
	if isVersion2(cgroupMount) {
		return []string{cgroupMount}, nil
	}
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	var dirs []string
	for _, e := range entries {
		dir := filepath.Join(cgroupMount, e.Name())
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil || e.Type()&fs.ModeSymlink != 0 {
			continue
		}
		dirs = append(dirs, dir)
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("find control groups: none are mounted at %s", cgroupMount)
	}
	return dirs, nil
}

// makeGroup makes a control group, such as "a/b", in every hierarchy, ready to have groups below it.
func makeGroup(name string) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if dir != cgroupMount && isVersion2(dir) {
			continue // beside version 1, where the kubelet has its controllers from
		}
		for part := range strings.SplitSeq(name, "/") {
			if err := handDown(dir); err != nil {
				return err
			}
			child := filepath.Join(dir, part)
			if err := os.Mkdir(child, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make control group: %w", err)
			}
			if err := inheritCPUs(dir, child); err != nil {
				return err
			}
			dir = child
		}
	}
	return nil
}

func isVersion2(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "cgroup.controllers"))
	return err == nil
}

// handDown has a group of version 2 give its children every controller it has. At the top, where something else usually has done so
// already, it is not taken back: who else relies on it cannot be known.
func handDown(dir string) error {
	list, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil // version 1
	}
	for controller := range strings.FieldsSeq(string(list)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return fmt.Errorf("hand down controller %s of %s: %w", controller, dir, err)
		}
	}
	return nil
}

// inheritCPUs fills in what a group of version 1 must have before it takes processes.
func inheritCPUs(parent, child string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if isVersion2(child) {
			return nil // it does it by itself
		}
		value, err := os.ReadFile(filepath.Join(parent, file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(child, file), value, 0)
		}
		if err != nil {
			return fmt.Errorf("set up control group: %w", err)
		}
	}
	return nil
}

// enterGroup puts a process into a control group of processors, so that it takes part in them as part of its machine and not of this one.
func enterGroup(pid int, name string) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		group := filepath.Join(dir, name)
		if _, err := os.Stat(filepath.Join(group, "cpu.shares")); err != nil && dir != cgroupMount {
			continue
		}
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("enter control group: %w", err)
		}
	}
	return nil
}

// removeGroup removes a control group and those below it from every hierarchy. Their processes have been killed; the kernel
// may take an instant to notice.
func removeGroup(name string) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	var errs error
	for _, dir := range dirs {
		errs = errors.Join(errs, cluster.ControlGroup(filepath.Join(dir, name)).RemoveDirs())
	}
	return errs
}
