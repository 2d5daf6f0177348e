// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// incumbents are the programs whose work one agent does. The reference CNI plugins belong to them too, but do not stay after a pod is attached; tunnels between nodes
// and a cache of DNS on the node would be two more programs, which are not counted.
const incumbents = "kube-proxy + CoreDNS"

// idle is what programs cost a node while nothing happens.
type idle struct {
	memory
	cpu    time.Duration // in a minute
	wakeup float64       // times a second that the kernel gave one of their threads a processor
}

// plus is both together.
func (i idle) plus(o idle) idle {
	return idle{memory{i.RSS + o.RSS, i.PSS + o.PSS, i.Own + o.Own, i.Peak + o.Peak}, i.cpu + o.cpu, i.wakeup + o.wakeup}
}

// footprint measures an idle agent in all its roles beside the sum of the programs whose work that is.
func footprint(ctx context.Context, s *suite) error {
	for _, services := range pick(s, []int{10, 10000}, []int{10}) {
		own, err := s.idleAgent(ctx, services)
		if err != nil {
			return err
		}
		theirs, err := s.idleIncumbents(ctx, services)
		if err != nil {
			return err
		}
		at := fmt.Sprintf(", idle, among %s Services", number(float64(services)))
		s.contrast(figure{Section: "footprint", Figure: "proportional memory" + at, Unit: "MiB", Value: own.PSS / mib}, incumbents, theirs.PSS/mib, share, atMost(1./3))
		s.contrast(figure{Section: "footprint", Figure: "resident memory" + at, Unit: "MiB", Value: own.RSS / mib}, incumbents, theirs.RSS/mib, share, nil)
		s.contrast(figure{Section: "footprint", Figure: "processor time a minute" + at, Unit: "ms", Value: own.cpu.Seconds() * 1000}, incumbents,
			theirs.cpu.Seconds()*1000, share, atMost(0.1))
		s.contrast(figure{Section: "footprint", Figure: "wake-ups a second" + at, Value: own.wakeup}, incumbents, theirs.wakeup, share, nil)
	}
	return nil
}

func (s *suite) idleAgent(ctx context.Context, services int) (idle, error) {
	r, err := s.start(ctx, fairlead, services, false)
	if err != nil {
		return idle{}, err
	}
	return s.whileIdle(ctx, r.process.pid())
}

// idleIncumbents runs CoreDNS, as kubeadm configures it, beside kube-proxy on its node.
func (s *suite) idleIncumbents(ctx context.Context, services int) (both idle, err error) {
	r, err := s.start(ctx, proxy, services, false)
	if err != nil {
		return both, err
	}
	dir, err := os.MkdirTemp(s.dir, "coredns-")
	if err != nil {
		return both, fmt.Errorf("make directory for CoreDNS: %w", err)
	}
	argv, err := coreDNSOn(r.rig, dir)
	if err != nil {
		return both, err
	}
	names, err := start(r.node, anyCPU, dir, "coredns", argv...)
	if err != nil {
		return both, err
	}
	defer names.stop()
	for _, p := range []*process{names, r.process} {
		one, err := s.whileIdle(ctx, p.pid())
		if err != nil {
			return both, fmt.Errorf("%w; it said: %s", err, tail(p.log))
		}
		both = both.plus(one)
	}
	return both, names.gone()
}

// whileIdle waits until a process has settled and looks at it for a while in which nothing happens.
func (s *suite) whileIdle(ctx context.Context, pid int) (i idle, err error) {
	if err := s.rest(ctx); err != nil {
		return i, err
	}
	if i.memory, err = settled(ctx, pid); err != nil {
		return i, err
	}
	if _, err := cpuWhenIdle(ctx, pid); err != nil {
		return i, err
	}
	watch := pick(s, time.Minute, 3*time.Second)
	progress("watching process %d for %v", pid, watch)
	before, err := cpuTime(pid)
	if err != nil {
		return i, err
	}
	woken, err := wakeups(pid)
	if err != nil {
		return i, err
	}
	select {
	case <-ctx.Done():
		return i, ctx.Err()
	case <-time.After(watch):
	}
	after, err := cpuTime(pid)
	if err != nil {
		return i, err
	}
	again, err := wakeups(pid)
	i.cpu = time.Duration(float64(after-before) * float64(time.Minute) / float64(watch))
	i.wakeup = float64(again-woken) / watch.Seconds()
	return i, err
}

// wakeups is how often the threads of a process, and of those it has started, were given a processor.
func wakeups(pid int) (sum int, err error) {
	err = ofFamily(pid, func(member int) error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", member))
		if err != nil {
			return fmt.Errorf("list threads of %d: %w", member, err)
		}
		for _, path := range threads {
			text, err := os.ReadFile(path)
			if gone(err) {
				continue // the thread ended meanwhile
			}
			if err != nil {
				return fmt.Errorf("read switches of %d: %w", member, err)
			}
			n, err := parseWakeups(text)
			if err != nil {
				return err
			}
			sum += n
		}
		return nil
	})
	return sum, err
}

// parseWakeups reads both kinds of context switches from proc_pid_status(5).
func parseWakeups(status []byte) (sum int, err error) {
	lines := 0
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(string(line), ":")
		if key != "voluntary_ctxt_switches" && key != "nonvoluntary_ctxt_switches" {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(value))
		if err != nil {
			return 0, fmt.Errorf("parse context switches: %w", err)
		}
		lines++
		sum += n
	}
	if lines != 2 {
		return 0, fmt.Errorf("parse context switches: %d lines, want 2", lines)
	}
	return sum, nil
}
