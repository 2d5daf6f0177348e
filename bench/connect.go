// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// loadTargets is how many addresses a client takes in turn: the same number at every size, so that the sizes differ in what the kernel
// has to search and in nothing else.
const loadTargets = 10

// path is a way from a client pod to a server.
type path struct {
	rig     *rig
	targets []netip.AddrPort
}

// ledNumber is of the node where connections are led.
const ledNumber = 14

// led makes a node among a world's Services whose agent has pods' connections to Services led at the socket, and all of pods' connections past netfilter. Its client is
// a pod that the agent's plugin attached.
// All of it is closed with the attacher, which may be nil.
func led(ctx context.Context, s *suite, w *world) (r *rig, a *attacher, err error) {
	defer func() {
		if a == nil {
			r.close()
		}
	}()
	r = &rig{name: fmt.Sprint(fairlead.name, "-", ledNumber), number: ledNumber, w: w}
	for _, h := range []**host{&r.node, &r.client, &r.remote} {
		if *h, err = newHost(); err != nil {
			return r, nil, err
		}
	}
	if err := r.layOut(s.programs, w.dir); err != nil {
		return r, nil, err
	}
	n := &network{world: w}
	a, err = n.attacherOn(ctx, s, r.node, r.number, nil, podFastPath, podSocketLB)
	a.closers = append([]func(){r.client.close, r.remote.close, r.server.stop}, a.closers...)
	if err != nil {
		return r, a, err
	}
	out, _, err := a.run("ADD", 1, r.client.Path())
	if err != nil {
		return r, a, err
	}
	pod, err := attachedTo(out)
	if err != nil {
		return r, a, err
	}
	if err := w.addPod(ctx, "led", "led", r.name, pod); err != nil {
		return r, a, err
	}
	return r, a, a.fast(ctx)
}

// connections measures TCP connections with one request and one answer, through Services' addresses and to endpoints' own. The direct path is that
// of Fairlead's node, with its rules and with connection tracking, which is what a pod there would have; "bare" is a node without any rules. At the socket, connections are led, and
// direct ones too go past netfilter.
func connections(ctx context.Context, s *suite) error {
	small, large := 10, pick(s, 10000, 1000)
	paths := map[string]path{}
	var names []string
	add := func(name string, p path) { names, paths[name] = append(names, name), p }
	for _, n := range []int{small, large} {
		for _, c := range []contender{fairlead, proxy} {
			r, err := s.start(ctx, c, n, true)
			if err != nil {
				return err
			}
			add(turn(c, n), path{r.rig, r.w.vips(loadTargets)})
			if c.name != fairlead.name {
				continue
			}
			add(fmt.Sprint("direct ", n), path{r.rig, r.w.endpointsOf(loadTargets)})
			progress("starting fairlead at the socket among %d Services", n)
			short, a, err := led(ctx, s, r.w)
			defer a.close()
			if err != nil {
				return fmt.Errorf("fairlead at the socket: %w", err)
			}
			if err := confine(a.agent.pid(), serverCPU); err != nil {
				return err
			}
			add(fmt.Sprint("led ", n), path{short, r.w.vips(loadTargets)})
			add(fmt.Sprint("led direct ", n), path{short, r.w.endpointsOf(loadTargets)})
		}
	}
	bare, err := newRig(s.programs, s.dir, nil, "bare", 13)
	if err != nil {
		return err
	}
	defer bare.close()
	add("bare", path{bare, paths[fmt.Sprint("direct ", small)].targets})
	for _, r := range s.running {
		for _, pid := range []int{r.process.pid(), r.rig.w.api.pid()} {
			if err := confine(pid, serverCPU); err != nil {
				return err
			}
		}
	}
	for _, workers := range []int{1, 4} {
		quiet(ctx)
		progress("connecting with %d workers", workers)
		taken, err := takeTurns(ctx, pick(s, 41, 3), names, func(name string) (loadResult, error) {
			return runLoad(ctx, s, paths[name], workers)
		})
		if err != nil {
			return err
		}
		reportLoad(s, taken, small, large, workers)
	}
	return nil
}

func reportLoad(s *suite, taken map[string][]loadResult, small, large, workers int) {
	rate := func(name string) []float64 { return each(taken[name], loadResult.perSecond) }
	with := fmt.Sprintf(", %d workers", workers)
	if workers == 1 {
		with = ", 1 worker"
	}
	for _, n := range []int{small, large} {
		at := fmt.Sprintf(" at %d Services", n)
		own, theirs, direct := turn(fairlead, n), turn(proxy, n), fmt.Sprint("direct ", n)
		f := figure{Section: "connect", Figure: "connections per second" + at + with, Unit: "1/s", X: n}
		s.compare(f, proxy.name, rate(own), rate(theirs), share, atLeast(1.05))
		s.compare(f, "direct", rate(own), rate(direct), share, atLeast(0.95))
		s.compare(f, "bare", rate(own), rate("bare"), share, nil)
		ledHere, ledDirect := fmt.Sprint("led ", n), fmt.Sprint("led direct ", n)
		f = figure{Section: "connect", Figure: "connections per second, led at the socket," + at + with, Unit: "1/s", X: n}
		s.compare(f, proxy.name, rate(ledHere), rate(theirs), share, atLeast(1.05))
		s.compare(f, "direct, fast path", rate(ledHere), rate(ledDirect), share, atLeast(0.95))
		s.compare(f, "direct", rate(ledHere), rate(direct), share, nil)
		s.compare(f, "bare", rate(ledHere), rate("bare"), share, nil)
		cpu := func(name string) []float64 { return each(taken[name], loadResult.cpu) }
		f = figure{Section: "connect", Figure: "client's CPU of a connection" + at + with, Unit: "µs", X: n}
		s.compare(f, proxy.name, cpu(own), cpu(theirs), timesLess, nil)
		s.compare(f, "direct", cpu(own), cpu(direct), timesLess, nil)
		if workers == 1 {
			p50 := func(name string) []float64 {
				return each(taken[name], func(r loadResult) float64 { return r.ConnectP50 })
			}
			p99 := func(name string) []float64 {
				return each(taken[name], func(r loadResult) float64 { return r.ConnectP99 })
			}
			s.compare(figure{Section: "connect", Figure: "time of connect(), median" + at, Unit: "µs", X: n}, proxy.name, p50(own), p50(theirs), timesLess, nil)
			s.compare(figure{Section: "connect", Figure: "time of connect(), median" + at, Unit: "µs", X: n}, "direct", p50(own), p50(direct), timesLess, nil)
			s.compare(figure{Section: "connect", Figure: "time of connect(), p99" + at, Unit: "µs", X: n}, proxy.name, p99(own), p99(theirs), timesLess, nil)
		}
	}
	s.compare(figure{Section: "connect", Figure: fmt.Sprintf("connections per second, led at the socket, at %d Services over those at %d", large, small) + with, Unit: "1/s"},
		fmt.Sprintf("led at %d", small), rate(fmt.Sprint("led ", large)), rate(fmt.Sprint("led ", small)), share, atLeast(0.99))
	s.compare(figure{Section: "connect", Figure: fmt.Sprintf("connections per second at %d Services over those at %d", large, small) + with, Unit: "1/s"},
		fmt.Sprintf("fairlead at %d", small), rate(turn(fairlead, large)), rate(turn(fairlead, small)), share, atLeast(0.99))
}

func runLoad(ctx context.Context, s *suite, p path, workers int) (r loadResult, err error) {
	count := pick(s, time.Second, 300*time.Millisecond)
	ctx, cancel := context.WithTimeout(ctx, count+10*time.Second)
	defer cancel()
	var targets []string
	for _, t := range p.targets {
		targets = append(targets, t.String())
	}
	out, err := output(ctx, p.rig.client, clientCPU, s.programs.bench, "load", "-workers", fmt.Sprint(workers), "-count", count.String(),
		"-to", strings.Join(targets, ","))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("parse result of load: %w", err)
	}
	if r.Errors > 0 || r.Connections == 0 {
		return r, errors.New("connections failed: " + string(out))
	}
	return r, nil
}
