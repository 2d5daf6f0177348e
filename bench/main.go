// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is one of the programs in pods, which deal with signals in their own ways, or the measuring.
func run(args []string) error {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	switch name {
	case "serve":
		return serve(args[1:])
	case "load":
		return load(args[1:], os.Stdout)
	case "answer":
		return answer(args[1:])
	case "storm":
		return storm(args[1:], os.Stdout)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return measure(ctx, args)
}

// programs are the paths of what is measured, and of this program, which is also the client and the server in the pods.
type programs struct {
	bench, fairlead, fairleadServer, kubeProxy, kubeControllerManager string
}

// experiments in the order in which they run.
var experiments = []struct {
	name string
	run  func(context.Context, *suite) error
}{
	{"start", coldStarts},
	{"change", changes},
	{"rolling", rollingChange},
	{"memory", memories},
	{"connect", connections},
	{"slices", sliceWrites},
	{"replace", replacement},
}

// begun is when the program was started, for progress.
var begun = time.Now()

// progress says on standard error what is being done.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
}

func measure(ctx context.Context, args []string) error {
	var all []string
	for _, e := range experiments {
		all = append(all, e.name)
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	root := flags.String("root", "..", "the repository, with bin/ and bench/bin/ built")
	names := flags.String("run", strings.Join(all, ","), "figures to measure, with commas")
	quick := flags.Bool("quick", false, "small and short: shows that everything works, the numbers are not to be used")
	docs := flags.String("docs", "", "folder to write benchmarks.md and its plots to; what was not measured now is taken from the last time")
	limit := flags.Duration("limit", 45*time.Minute, "end after this time, whatever is left")
	if err := flags.Parse(args); err != nil {
		return err
	}
	wanted := strings.Split(*names, ",")
	for _, name := range wanted {
		if !slices.Contains(all, name) {
			return fmt.Errorf("there is no figure %q; there are %s", name, strings.Join(all, ", "))
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make network namespaces")
	}
	if runtime.NumCPU() <= serverCPU {
		return errors.New("needs two processors: one for clients, one for what they talk to")
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	s, err := newSuite(*root, *quick)
	if err != nil {
		return err
	}
	defer s.close()
	for _, e := range experiments {
		if !slices.Contains(wanted, e.name) {
			continue
		}
		progress("%s", e.name)
		if err := e.run(ctx, s); err != nil {
			return fmt.Errorf("measure %s: %w", e.name, err)
		}
	}
	if *docs == "" {
		return nil
	}
	return s.writeDocs(*docs)
}

// suite is one run of the program.
type suite struct {
	programs programs
	quick    bool
	dir      string
	worlds   map[place]*world
	running  map[place]*running
	figures  []figure
	out      *json.Encoder
}

func newSuite(root string, quick bool) (*suite, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	if root, err = filepath.Abs(root); err != nil {
		return nil, fmt.Errorf("find the repository: %w", err)
	}
	s := &suite{
		programs: programs{
			bench:                 self,
			fairlead:              filepath.Join(root, "bin", "fairlead"),
			fairleadServer:        filepath.Join(root, "bin", "fairlead-server"),
			kubeProxy:             filepath.Join(root, "bench", "bin", "kube-proxy"),
			kubeControllerManager: filepath.Join(root, "bench", "bin", "kube-controller-manager"),
		},
		quick:   quick,
		worlds:  map[place]*world{},
		running: map[place]*running{},
		out:     json.NewEncoder(os.Stdout),
	}
	for _, path := range []string{s.programs.fairlead, s.programs.fairleadServer, s.programs.kubeProxy, s.programs.kubeControllerManager} {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("find what to measure (make bench-service builds it): %w", err)
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
	if err := os.RemoveAll(s.dir); err != nil {
		progress("cannot remove %s: %v", s.dir, err)
	}
}
