// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fairlead/fairlead/linux"
)

// ControlGroup is the absolute path of a cgroup v2 directory.
type ControlGroup string

// ControlGroup returns the cluster's control group, which need not exist.
func (d Dir) ControlGroup() (ControlGroup, error) {
	mount, err := linux.Cgroup2Mount()
	if err != nil {
		return "", err
	}
	return ControlGroup(filepath.Join(mount, d.ControlGroupName())), nil
}

// Child is the group of that name below g.
func (g ControlGroup) Child(names ...string) ControlGroup {
	return ControlGroup(filepath.Join(append([]string{string(g)}, names...)...))
}

// Make creates the group and its parents; a group that is there already is fine.
func (g ControlGroup) Make() error {
	if err := os.MkdirAll(string(g), 0o755); err != nil {
		return fmt.Errorf("make control group: %w", err)
	}
	return nil
}

// Open returns the group's directory, to start processes in it. The caller closes it.
func (g ControlGroup) Open() (*os.File, error) {
	f, err := os.Open(string(g))
	if err != nil {
		return nil, fmt.Errorf("open control group: %w", err)
	}
	return f, nil
}

// Kill sends SIGKILL to every process in the group and the groups below it, in one step that no fork can outrun, and does not wait.
// A group that does not exist is fine.
func (g ControlGroup) Kill() error {
	err := os.WriteFile(filepath.Join(string(g), "cgroup.kill"), []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kill control group: %w", err)
	}
	return nil
}

// Leave moves the calling process from the group, or one below it, to the group's parent.
func (g ControlGroup) Leave() error {
	if err := os.WriteFile(filepath.Join(filepath.Dir(string(g)), "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("leave control group: %w", err)
	}
	return nil
}

// Populated says whether a process is left in the group or below it. A group that does not exist is empty.
func (g ControlGroup) Populated() bool {
	b, err := os.ReadFile(filepath.Join(string(g), "cgroup.events"))
	return err == nil && strings.Contains(string(b), "populated 1")
}

// Processes lists the process ids in the group itself, in the order the kernel gives them.
func (g ControlGroup) Processes() []string {
	b, err := os.ReadFile(filepath.Join(string(g), "cgroup.procs"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// Remove kills what is in the group and removes it with all groups below it. It waits, at most for the given time, until the killed
// processes are gone: their namespaces and sockets go with them.
func (g ControlGroup) Remove(wait time.Duration) error {
	if _, err := os.Stat(string(g)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := g.Kill(); err != nil {
		return err
	}
	deadline := time.Now().Add(wait)
	for pause := time.Millisecond; g.Populated(); pause = min(2*pause, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("remove control group %s: processes do not end after SIGKILL: %s", g, strings.Join(g.all(), " "))
		}
		time.Sleep(pause)
	}
	return g.RemoveDirs()
}

// RemoveDirs removes the directories of the group and of those below it, deepest first, once their processes have ended. The kernel may keep a
// directory busy for an instant after its last process was reaped. It does for groups of version 1 too.
func (g ControlGroup) RemoveDirs() error {
	var dirs []string
	err := filepath.WalkDir(string(g), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove control group: %w", err)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		for try := 0; ; try++ {
			err := os.Remove(dirs[i])
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if try == 200 {
				return fmt.Errorf("remove control group: %w", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}

// all lists the processes of the group and of those below it.
func (g ControlGroup) all() []string {
	var out []string
	filepath.WalkDir(string(g), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			out = append(out, ControlGroup(path).Processes()...)
		}
		return nil
	})
	return out
}
