// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/fairlead/fairlead/status"
)

// fastDNS is the agent with the pods' fast path on, whose pods' questions are answered in the kernel, as a node of its own.
var fastDNS = resolver{name: "fairlead-fast", number: 29, program: "fairlead", world: true, to: clusterAt, command: agentCommand(podFastPath)}

// onFast begins the names of its figures.
const onFast = "on the fast path: "

// dnsFast measures what the fast path is for DNS. The kernel answers on the processor of the client, where it takes the question in, so that counts as the server's.
func dnsFast(ctx context.Context, s *suite) error {
	w, err := s.usualWorld(ctx, fastDNS)
	if err != nil {
		return err
	}
	if err := w.addNode(ctx, fastDNS.name, nodeAddr(fastDNS.number), nodeCIDR(fastDNS.number)); err != nil {
		return err
	}
	// Without a lease its pod would be deleted after some minutes.
	if err := w.keepNodes(ctx, fastDNS.name); err != nil {
		return err
	}
	if err := w.addPod(ctx, "client-of-fast", "client", fastDNS.name, (&rig{number: fastDNS.number}).podAddr()); err != nil {
		return err
	}
	all := []resolver{fastDNS}
	for _, r := range resolvers {
		switch r.name {
		case fairleadDNS.name, coreDNS.name, coreDNSCached.name, "gdnsd", "echo in C":
			all = append(all, r)
		}
	}
	nodes, missing, err := s.serveAll(ctx, all)
	if err != nil {
		return err
	}
	defer closeAll(nodes)
	names := s.present("fast", all, missing)
	fast := nodes[fastDNS.name]
	if err := fast.onFastPath(ctx); err != nil {
		return err
	}
	// What was asked before the fast path was there, the kernel has not heard; and it hears of what is asked again.
	for range 5 {
		if err := fast.askAll(ctx, s); err != nil {
			return err
		}
	}
	// More rounds than elsewhere: what is late here for a few tens of microseconds is late for milliseconds when anything else runs on the client's processor.
	turns := func(flags ...string) (map[string][]served, error) {
		quiet(ctx)
		return takeTurns(ctx, pick(s, 16, 3), names, func(name string) (served, error) { return s.ask(ctx, nodes[name], flags...) })
	}
	progress("asking as fast as answers come")
	taken, err := turns()
	if err != nil {
		return err
	}
	for _, rival := range names[1:] {
		s.compare(figure{Section: "fast", Figure: onFast + "server's CPU of an answer " + saturated, Unit: "µs"}, rival, each(taken[fastDNS.name], func(r served) float64 { return r.inKernel }),
			each(taken[rival], func(r served) float64 { return r.perAnswer }), timesLess, against(rival, coreDNSCached, atLeast(8)))
	}
	for _, rival := range names[1:] {
		s.compareFast("both processors' time of an answer "+saturated, "µs", rival, taken, timesLess, nil, func(r served) float64 { return r.both })
	}
	for _, rival := range names[1:] {
		var target *goal
		if rival == "gdnsd" {
			target = atLeast(0.8)
		}
		s.compareFast("answers per second "+saturated, "1/s", rival, taken, share, target, func(r served) float64 { return r.perSecond() })
	}
	half := halfOfCoreDNS(taken)
	for _, rate := range []float64{2000, half} {
		progress("asking %.0f times a second", rate)
		taken, err := turns("-rate", fmt.Sprint(rate), "-count", pick(s, 2*time.Second, time.Second).String())
		if err != nil {
			return err
		}
		at, target := fmt.Sprintf("at %.0f/s", rate), (*goal)(nil)
		if rate == half {
			at, target = at+", half of CoreDNS's most", atLeast(4)
		}
		for _, q := range []struct {
			name string
			of   func(served) float64
			goal *goal
		}{
			{"median", func(r served) float64 { return r.P50 }, nil},
			{"p99", func(r served) float64 { return r.P99 }, target},
			{"p99.9", func(r served) float64 { return r.P999 }, nil},
		} {
			for _, rival := range names[1:] {
				s.compareFast("time of an answer "+at+", "+q.name, "µs", rival, taken, timesLess, against(rival, coreDNSCached, q.goal), q.of)
			}
		}
	}
	if err := s.lookUpFast(ctx, nodes); err != nil {
		return err
	}
	return fast.answeredFast(ctx)
}

// lookUpFast measures names outside the cluster: those are not the kernel's, but the denials of a pod's search list are.
func (s *suite) lookUpFast(ctx context.Context, nodes map[string]*dnsNode) error {
	names := []string{fastDNS.name, fairleadDNS.name, coreDNS.name}
	flags := []string{"-workers", strconv.Itoa(lookupWorkers), "-names", strconv.Itoa(knownNames)}
	for _, name := range names {
		if _, err := s.lookUp(ctx, nodes[name], append(flags, "-n", strconv.Itoa(knownNames), "-warm", "0s", "-count", "1m")...); err != nil {
			return fmt.Errorf("look up the known names: %w", err)
		}
	}
	progress("looking up names outside the cluster again and again")
	taken, err := takeTurns(ctx, pick(s, 8, 3), names, func(name string) (looked, error) {
		return s.lookUp(ctx, nodes[name], append(flags, "-count", pick(s, 1500*time.Millisecond, 300*time.Millisecond).String())...)
	})
	if err != nil {
		return err
	}
	for _, rival := range names[1:] {
		of := func(name string) []float64 { return each(taken[name], func(r looked) float64 { return r.perSecond() }) }
		s.compare(figure{Section: "fast", Figure: onFast + "external lookups per second, switches off", Unit: "1/s"}, rival, of(fastDNS.name), of(rival), share, nil)
	}
	return nil
}

func (s *suite) compareFast(name, unit, rival string, taken map[string][]served, ratio string, target *goal, of func(served) float64) {
	s.compare(figure{Section: "fast", Figure: onFast + name, Unit: unit}, rival, each(taken[fastDNS.name], of), each(taken[rival], of), ratio, target)
}

// fastReport is what the agent of a node says of its fast path.
func (n *dnsNode) fastReport(ctx context.Context) (*status.FastPath, error) {
	r, err := status.Dial(filepath.Join(n.state, "agent.sock")).Report(ctx)
	if err != nil {
		return nil, err
	}
	if r.PodNetwork.FastPath == nil || r.PodNetwork.FastPath.Pods != 1 {
		return nil, fmt.Errorf("the fast path is not there: %+v, %q", r.PodNetwork.FastPath, r.Off)
	}
	return r.PodNetwork.FastPath, nil
}

// onFastPath waits until the fast path leads from the node's pod.
func (n *dnsNode) onFastPath(ctx context.Context) error {
	return n.process.until(ctx, 10*time.Second, 10*time.Millisecond, func() error {
		_, err := n.fastReport(ctx)
		return err
	})
}

// answeredFast is an error unless the kernel has answered.
func (n *dnsNode) answeredFast(ctx context.Context) error {
	f, err := n.fastReport(ctx)
	if err == nil && f.Answers < 1000 {
		err = fmt.Errorf("only %d questions were answered in the kernel", f.Answers)
	}
	return err
}
