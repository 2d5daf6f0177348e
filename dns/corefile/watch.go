// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long after a change files are read again: a change seldom comes alone.
const settle = 50 * time.Millisecond

// Watch reads a Corefile as [Load] does and gives f what it has read, and again each time that the Corefile, or another file that it was read
// with, says something else: edited in place, replaced, or swapped below a mounted ConfigMap. It is for f to keep what it has if there is
// an error; the configuration is nil if the file could not be read. Watch returns when the context ends, with nil, or when files cannot be
// watched at all.
func Watch(ctx context.Context, name string, env Env, f func(*Config, error)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", name, err)
	}
	defer w.Close()
	var last []read
	look := func() {
		// What is to be watched is known when it has been read, and may have changed until it is watched: then it is read once more.
		for {
			c, err := Load(name, env)
			now := []read{{name, fmt.Sprint(err)}}
			if c != nil {
				now = c.reads
			}
			added := watchAll(w, name, now)
			if !slices.Equal(now, last) {
				last = now
				f(c, err)
			}
			if !added {
				return
			}
		}
	}
	look()
	var settled <-chan time.Time // nil: nothing has changed
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.Events:
			if !ok {
				return fmt.Errorf("watch %s: the watcher ended", name)
			}
			if settled == nil {
				settled = time.After(settle)
			}
		case <-w.Errors: // events were lost
			settled = time.After(settle)
		case <-settled:
			settled = nil
			look()
		}
	}
}

// watchAll watches the directories of what was read, and reports whether one of them was not watched before. A directory that is not there
// is waited for in the one above.
func watchAll(w *fsnotify.Watcher, name string, reads []read) (added bool) {
	watched := w.WatchList()
	names := []string{name, filepath.Join(name, "Corefile")}
	for _, r := range reads {
		names = append(names, r.name)
	}
	for _, n := range names {
		dirs := []string{filepath.Dir(n)}
		if target, err := filepath.EvalSymlinks(n); err == nil {
			dirs = append(dirs, filepath.Dir(target))
		}
		for _, dir := range dirs {
			for !slices.Contains(watched, dir) {
				if err := w.Add(dir); err == nil {
					watched, added = append(watched, dir), true
					break
				}
				up := filepath.Dir(dir)
				if up == dir {
					break
				}
				dir = up
			}
		}
	}
	return added
}
