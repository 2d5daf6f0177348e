// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// suite is one run of the program.
type suite struct {
	chapter  *chapter
	programs programs
	quick    bool
	dir      string
	worlds   map[place]*world
	// dnsWorlds are those of the usual shape, by for whom.
	dnsWorlds map[string]*dnsWorld
	running   map[place]*running
	figures   []figure
	out       *json.Encoder
}

func newSuite(c *chapter, root string, quick bool) (*suite, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	if root, err = filepath.Abs(root); err != nil {
		return nil, fmt.Errorf("find the repository: %w", err)
	}
	s := &suite{
		chapter:   c,
		programs:  programsOf(root),
		quick:     quick,
		worlds:    map[place]*world{},
		dnsWorlds: map[string]*dnsWorld{},
		running:   map[place]*running{},
		out:       json.NewEncoder(os.Stdout),
	}
	s.programs.bench = self
	for _, path := range c.needs(s.programs) {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("find what to measure (make %s builds it): %w", c.target, err)
		}
	}
	// In memory where it can be, so that no figure depends on the disk.
	parent := ""
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		parent = "/dev/shm"
	}
	if s.dir, err = os.MkdirTemp(parent, "fairlead-bench-"); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	return s, nil
}

// pick is one value for a full run and another for a quick one.
func pick[T any](s *suite, full, quick T) T {
	if s.quick {
		return quick
	}
	return full
}

// place is where a contender is measured. Each has an API server of its own, all of the same program with the same objects: with one for
// two, what one contender does about a change would burden the other.
type place struct {
	contender string
	services  int
}

// world returns the world of a place, and makes it the first time.
func (s *suite) world(ctx context.Context, at place) (*world, error) {
	if w := s.worlds[at]; w != nil {
		return w, nil
	}
	progress("making %d Services with two endpoints each for %s", at.services, at.contender)
	w, err := newWorld(ctx, s.programs, filepath.Join(s.dir, fmt.Sprint(at.contender, "-", at.services)))
	if err != nil {
		return nil, err
	}
	s.worlds[at] = w
	if err := w.register(ctx); err != nil {
		return nil, err
	}
	return w, w.grow(ctx, at.services)
}

// forget ends a world that no further figure needs.
func (s *suite) forget(at place) {
	s.running[at].close()
	delete(s.running, at)
	s.worlds[at].close()
	delete(s.worlds, at)
}

// running is a contender that runs on its rig and has programmed everything.
type running struct {
	contender
	*rig
	eager   bool
	process *process
	monitor *monitor
}

func (r *running) close() {
	if r == nil {
		return
	}
	r.monitor.close()
	r.process.stop()
	r.rig.close()
}

// start returns the contender running at a place, as its makers ship it or eager: without the pause that they ship it with. It goes
// on running for further figures.
func (s *suite) start(ctx context.Context, c contender, services int, eager bool) (*running, error) {
	at := place{c.name, services}
	if r := s.running[at]; r != nil && r.eager == eager {
		return r, r.process.gone()
	}
	s.running[at].close()
	delete(s.running, at)
	w, err := s.world(ctx, at)
	if err != nil {
		return nil, err
	}
	progress("starting %s among %d Services", c.name, services)
	r := &running{contender: c, eager: eager}
	if r.rig, err = newRig(s.programs, w.dir, w, c.name, c.number); err != nil {
		return nil, err
	}
	s.running[at] = r
	if r.process, err = c.run(r.rig, eager, anyCPU); err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if _, err := awaitForwarding(bounded, r.client, w.vips(probes), r.process.gone); err != nil {
		return nil, fmt.Errorf("wait for %s among %d Services: %w; it said: %s", c.name, services, err, tail(r.process.log))
	}
	if _, err := cpuWhenIdle(bounded, r.process.pid()); err != nil {
		return nil, err
	}
	r.monitor, err = newMonitor(r.node)
	return r, err
}

// changeLimit is how long the kernel may take to have one change.
const changeLimit = 30 * time.Second

// await is the time at which the kernel told of an address that is expected.
func (r *running) await(ctx context.Context, told <-chan time.Time) (time.Time, error) {
	select {
	case at := <-told:
		return at, nil
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	case <-r.process.done:
		return time.Time{}, r.process.gone()
	case <-time.After(changeLimit):
		return time.Time{}, fmt.Errorf("%s did not bring a change to the kernel in %v; it said: %s", r.contender.name, changeLimit, tail(r.process.log))
	}
}

// forgetAll ends all worlds that are shared between figures.
func (s *suite) forgetAll() {
	for at := range s.worlds {
		s.forget(at)
	}
}

// close ends everything, and removes what is left, also after an error.
func (s *suite) close() {
	s.forgetAll()
	for _, w := range s.dnsWorlds {
		w.close()
	}
	if err := os.RemoveAll(s.dir); err != nil {
		progress("cannot remove %s: %v", s.dir, err)
	}
}
