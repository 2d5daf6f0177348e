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
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
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

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "serve":
			return serve(args[1:])
		case "load":
			return load(args[1:], os.Stdout)
		}
	}
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
	return writeDocs(*docs, s.figures, *quick)
}

// suite is one run of the program.
type suite struct {
	programs programs
	quick    bool
	dir      string
	worlds   map[int]*world
	running  map[string]*running
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
		worlds:  map[int]*world{},
		running: map[string]*running{},
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

// world returns the world with n Services, and makes it the first time.
func (s *suite) world(ctx context.Context, n int) (*world, error) {
	if w := s.worlds[n]; w != nil {
		return w, nil
	}
	w, err := newWorld(ctx, s.programs, filepath.Join(s.dir, fmt.Sprint(n)))
	if err != nil {
		return nil, err
	}
	s.worlds[n] = w
	if err := w.register(ctx); err != nil {
		return nil, err
	}
	progress("making %d Services with two endpoints each", n)
	return w, w.grow(ctx, n)
}

// forget ends a world that no further figure needs.
func (s *suite) forget(n int) {
	for key, r := range s.running {
		if r.rig.w == s.worlds[n] {
			r.close()
			delete(s.running, key)
		}
	}
	s.worlds[n].close()
	delete(s.worlds, n)
}

// running is a contender that runs on its rig and has programmed everything.
type running struct {
	contender
	*rig
	process *process
	monitor *monitor
}

func (r *running) close() {
	r.monitor.close()
	r.process.stop()
	r.rig.close()
}

// contender returns the contender running in the world with n Services, as its makers ship it or without the pause that they
// ship it with. It goes on running for further figures.
func (s *suite) contender(ctx context.Context, c contender, n int, eager bool) (*running, error) {
	key := fmt.Sprint(c.name, n, eager)
	if r := s.running[key]; r != nil {
		return r, r.process.gone()
	}
	w, err := s.world(ctx, n)
	if err != nil {
		return nil, err
	}
	for old, r := range s.running { // one of a kind in a world: they would share a node
		if r.contender.name == c.name && r.rig.w == w {
			r.close()
			delete(s.running, old)
		}
	}
	progress("starting %s among %d Services", c.name, n)
	r := &running{contender: c}
	if r.rig, err = newRig(s.programs, w.dir, w, c.name, c.number); err != nil {
		return nil, err
	}
	if r.process, err = c.run(r.rig, eager, serverCPU); err != nil {
		r.rig.close()
		return nil, err
	}
	s.running[key] = r
	bounded, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if _, err := awaitForwarding(bounded, r.client, w.vips(probes), r.process.gone); err != nil {
		return nil, fmt.Errorf("wait for %s among %d Services: %w; it said: %s", c.name, n, err, tail(r.process.log))
	}
	r.monitor, err = newMonitor(r.node)
	return r, err
}

// close ends everything, and removes what is left, also after an error.
func (s *suite) close() {
	for _, r := range s.running {
		r.close()
	}
	for _, w := range s.worlds {
		w.close()
	}
	if err := os.RemoveAll(s.dir); err != nil {
		progress("cannot remove %s: %v", s.dir, err)
	}
}
