// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/linux"
)

// ranges6 are those that pods have beside nodeCIDR's where they are dual-stack.
func ranges6(number int) []string { return []string{fmt.Sprintf("fd00:128:0:%d::/64", number)} }

// attachers are everything that attaches pods here, Fairlead first. Each has a node of its own.
func attachers(ctx context.Context, s *suite, dual bool) (all []*attacher, closeAll func(), err error) {
	var w *network
	closeAll = func() {
		for _, a := range all {
			a.close()
		}
		if w != nil {
			w.close()
		}
	}
	if w, err = newNetwork(ctx, s, fmt.Sprint("attach-", dual)); err != nil {
		return nil, closeAll, err
	}
	add := func(a *attacher, err error) error {
		if a != nil {
			all = append(all, a)
		}
		return err
	}
	further := func(number int) []string { return nil }
	if dual {
		further = ranges6
	}
	if err = add(w.attacher(ctx, s, 21, further(21))); err != nil {
		return all, closeAll, err
	}
	for _, make := range []func(*host) (*attacher, error){
		func(node *host) (*attacher, error) {
			return reference(s, "bridge", node, append([]string{nodeCIDR(22)}, further(22)...)...)
		},
		func(node *host) (*attacher, error) {
			return reference(s, "ptp", node, append([]string{nodeCIDR(23)}, further(23)...)...)
		},
		func(node *host) (*attacher, error) { return bareFloor(s, node, dual) },
	} {
		node, err := newHost()
		if err == nil {
			err = node.sysctls("net/ipv4/ip_forward", "1", "net/ipv6/conf/all/forwarding", "1")
		}
		if err == nil {
			err = add(make(node))
		}
		if err != nil {
			return all, closeAll, err
		}
	}
	return all, closeAll, nil
}

// emptyPods are namespaces to attach.
func emptyPods(n int) (pods []*linux.NetNS, closeAll func(), err error) {
	closeAll = func() {
		for _, p := range pods {
			p.Close()
		}
	}
	for range n {
		p, err := linux.NewNetNS()
		if err != nil {
			return pods, closeAll, err
		}
		pods = append(pods, p)
	}
	return pods, closeAll, nil
}

// attached is what one round took, in milliseconds.
type attached struct {
	add, del []float64 // of each pod
	all      float64   // from the start of the first ADD to the last result, of many at once
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// attachments measures ADD and DEL, one pod at a time and many at once.
func attachments(ctx context.Context, s *suite) error {
	for _, dual := range []bool{false, true} {
		if err := s.attachAll(ctx, dual); err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) attachAll(ctx context.Context, dual bool) error {
	family := "IPv4"
	if dual {
		family = "dual-stack"
	}
	all, closeAll, err := attachers(ctx, s, dual)
	defer closeAll()
	if err != nil {
		return err
	}
	var names []string
	byName := map[string]*attacher{}
	for _, a := range all {
		names, byName[a.name] = append(names, a.name), a
	}
	burst := pick(s, 200, 20)
	pods, closePods, err := emptyPods(burst)
	defer closePods()
	if err != nil {
		return err
	}
	progress("attaching one pod at a time, %s", family)
	quiet(ctx)
	one, err := takeTurns(ctx, pick(s, 8, 3), names, func(name string) (attached, error) {
		n := pick(s, enoughForTail, 5)
		if dual && name == ptpName {
			n = pick(s, 4, 1) // of some seconds each
		}
		return byName[name].oneByOne(ctx, n, pods[0])
	})
	if err != nil {
		return err
	}
	s.reportAttach(one, family+", one at a time", names[1:])
	progress("attaching %d pods at once, %s", burst, family)
	quiet(ctx)
	many, err := takeTurns(ctx, pick(s, 8, 3), names, func(name string) (attached, error) {
		return byName[name].atOnce(ctx, pods)
	})
	if err != nil {
		return err
	}
	s.reportAttach(many, fmt.Sprintf("%s, %d at once", family, burst), names[1:])
	for _, rival := range names[1:] {
		last := func(r attached) float64 { return r.all }
		s.compare(figure{Section: "attach", Figure: fmt.Sprintf("ADD, %s, %d at once, until the last has its result", family, burst), Unit: "ms"}, rival,
			each(many[names[0]], last), each(many[rival], last), timesLess, nil)
	}
	p50, p99 := each(many[names[0]], func(r attached) float64 { return quantile(r.add, 0.5) }), each(many[names[0]], func(r attached) float64 { return quantile(r.add, 0.99) })
	s.compare(figure{Section: "attach", Figure: fmt.Sprintf("ADD, %s, %d at once, p99 over p50", family, burst), Unit: "ms"}, "fairlead's p50", p99, p50, share, atMost(5))
	return nil
}

// oneByOne attaches a pod and detaches it, again and again.
func (a *attacher) oneByOne(ctx context.Context, n int, pod *linux.NetNS) (r attached, err error) {
	for i := range n {
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		_, add, err := a.run("ADD", i, pod.Path())
		if err != nil {
			return r, err
		}
		_, del, err := a.run("DEL", i, pod.Path())
		if err != nil {
			return r, err
		}
		r.add, r.del = append(r.add, millis(add)), append(r.del, millis(del))
	}
	return r, nil
}

// atOnce attaches all pods at once, and then detaches all at once.
func (a *attacher) atOnce(ctx context.Context, pods []*linux.NetNS) (r attached, err error) {
	verb := func(name string) (took []float64, all time.Duration, err error) {
		took = make([]float64, len(pods))
		errs := make([]error, len(pods))
		var running sync.WaitGroup
		begin := time.Now()
		for i, p := range pods {
			running.Go(func() {
				_, d, err := a.run(name, i, p.Path())
				took[i], errs[i] = millis(d), err
			})
		}
		running.Wait()
		all = time.Since(begin)
		for _, err := range errs {
			if err != nil {
				return nil, 0, err
			}
		}
		return took, all, ctx.Err()
	}
	var all time.Duration
	if r.add, all, err = verb("ADD"); err != nil {
		_, _, _ = verb("DEL") // so that the next round finds the node as this one did
		return r, err
	}
	r.all = millis(all)
	r.del, _, err = verb("DEL")
	return r, err
}

// ptpName is the reference plugin that waits for the detection of duplicate addresses.
const ptpName = "ptp + host-local"

// The goals of attaching a pod: times less than a rival, and for the floor the share of its time that is allowed.
var attachGoals = map[string]*goal{"bridge + host-local": atLeast(4), ptpName: atLeast(3), "floor": atLeast(0.5)}

// enoughForTail is how many pods a round must have for a 99th percentile.
const enoughForTail = 100

// reportAttach records quantiles; the 99th only where both have enough pods for one.
func (s *suite) reportAttach(taken map[string][]attached, when string, rivals []string) {
	for _, row := range []struct {
		verb string
		q    float64
		goal bool
		of   func(attached) []float64
	}{
		{"ADD", 0.5, true, func(r attached) []float64 { return r.add }},
		{"ADD", 0.99, false, func(r attached) []float64 { return r.add }},
		{"DEL", 0.5, false, func(r attached) []float64 { return r.del }},
		{"DEL", 0.99, false, func(r attached) []float64 { return r.del }},
	} {
		at := func(name string) []float64 {
			return each(taken[name], func(r attached) float64 { return quantile(row.of(r), row.q) })
		}
		few := func(name string) bool {
			return slices.ContainsFunc(taken[name], func(r attached) bool { return len(row.of(r)) < enoughForTail })
		}
		for _, rival := range rivals {
			if row.q > 0.5 && (few("fairlead") || few(rival)) {
				continue
			}
			var target *goal
			if row.goal {
				target = attachGoals[rival]
			}
			s.compare(figure{Section: "attach", Figure: fmt.Sprintf("%s, %s, p%.0f", row.verb, when, 100*row.q), Unit: "ms"}, rival, at("fairlead"), at(rival), timesLess, target)
		}
	}
}

// fullShare is how much of a range is held when it is called full.
const fullShare = 0.99

// fullRange measures ADD while nearly all addresses of the node are held, beside one with none held, in turns on the same node.
func fullRange(ctx context.Context, s *suite) error {
	w, err := newNetwork(ctx, s, "full")
	if err != nil {
		return err
	}
	defer w.close()
	a, err := w.attacher(ctx, s, 21, nil)
	defer a.close()
	if err != nil {
		return err
	}
	pods, closePods, err := emptyPods(1)
	defer closePods()
	if err != nil {
		return err
	}
	cidr := netip.MustParsePrefix(nodeCIDR(21))
	store, err := ipam.New(ipam.Config{Dir: a.leases, Ranges: []netip.Prefix{cidr}})
	if err != nil {
		return err
	}
	held := int(fullShare * float64(ipam.Size(cidr)))
	fill := func(full bool) error {
		for i := range held {
			id := fmt.Sprint("held-", i)
			if full {
				_, err = store.Allocate(ipam.Lease{ID: id, ContainerID: fmt.Sprintf("%064d", i), IfName: "eth0", NetNS: "/run/netns/cni-01234567-89ab-cdef-0123-456789abcdef",
					PodNamespace: "default", PodName: fmt.Sprint("held-5d4f8c7b9c-", i), PodUID: "01234567-89ab-cdef-0123-456789abcdef"})
			} else {
				_, err = store.Release(id)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	taken, err := takeTurns(ctx, pick(s, 9, 3), []string{"full", "empty"}, func(name string) (attached, error) {
		if err := fill(name == "full"); err != nil {
			return attached{}, err
		}
		return a.oneByOne(ctx, pick(s, 100, 5), pods[0])
	})
	if err != nil {
		return err
	}
	of := func(name string) []float64 {
		return each(taken[name], func(r attached) float64 { return quantile(r.add, 0.5) })
	}
	s.compare(figure{Section: "full", Figure: fmt.Sprintf("ADD with %d of %d addresses held, p50", held, ipam.Size(cidr)), Unit: "ms"}, "fairlead, none held",
		of("full"), of("empty"), share, atMost(1.1))
	return nil
}
