// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The rolling change: one Service of a thousand endpoints in slices of a hundred, as the controller packs them, replaced ten at a time.
const (
	rollingServices = 1000
	rollingSlices   = 10
	rollingPerSlice = 100
	rollingStep     = 10
	rollingPause    = 20 * time.Millisecond
)

// rolling is one contender's replacement of all endpoints.
type rolling struct {
	wall, lag, cpu time.Duration // lag is from the API's last answer
}

// rollingChange measures the replacement of 1,000 endpoints of one Service, in a hundred writes 20 ms apart, until the kernel has heard of each new one. Both
// contenders run as their makers ship them.
func rollingChange(ctx context.Context, s *suite) error {
	services := pick(s, rollingServices, 10)
	turns := map[string]*running{}
	rollers := map[string][]*discoveryv1.EndpointSlice{}
	for _, c := range []contender{fairlead, proxy} {
		r, err := s.start(ctx, c, services, false)
		if err != nil {
			return err
		}
		turns[c.name] = r
		if rollers[c.name], err = addRolling(ctx, r); err != nil {
			return err
		}
	}
	taken, err := takeTurns(ctx, pick(s, 6, 2), []string{fairlead.name, proxy.name}, func(name string) (rolling, error) {
		m, err := roll(ctx, turns[name], rollers[name])
		progress("%s: %v, of it %v after the last change, %v of CPU", name, m.wall.Round(time.Millisecond), m.lag.Round(time.Millisecond), m.cpu.Round(time.Millisecond))
		return m, err
	})
	if err != nil {
		return err
	}
	own, theirs := taken[fairlead.name], taken[proxy.name]
	at := fmt.Sprintf(" among %d Services", services)
	for _, row := range []struct {
		name string
		of   func(rolling) time.Duration
	}{
		{"1,000 endpoints replaced" + at, func(r rolling) time.Duration { return r.wall }},
		{"1,000 endpoints replaced, after the last write" + at, func(r rolling) time.Duration { return r.lag }},
		{"1,000 endpoints replaced, CPU" + at, func(r rolling) time.Duration { return r.cpu }},
	} {
		of := func(r rolling) float64 { return ms(row.of(r)) }
		s.compare(figure{Section: "rolling", Figure: row.name, Unit: "ms"}, proxy.name, each(own, of), each(theirs, of), timesLess, nil)
	}
	return nil
}

// addRolling makes the Service, and waits until the kernel has it.
func addRolling(ctx context.Context, r *running) ([]*discoveryv1.EndpointSlice, error) {
	last := r.monitor.expect(endpoint(r.w.endpoints.Load() + rollingSlices*rollingPerSlice))
	service, err := r.w.addService(ctx, "rolling", rollingPerSlice)
	if err != nil {
		return nil, err
	}
	slices := []*discoveryv1.EndpointSlice{service.slice}
	for i := 1; i < rollingSlices; i++ {
		slice, err := r.w.addSlice(ctx, "rolling", fmt.Sprint("rolling-", i+1), rollingPerSlice)
		if err != nil {
			return nil, err
		}
		slices = append(slices, slice)
	}
	if _, err := r.await(ctx, last); err != nil {
		return nil, err
	}
	_, err = cpuWhenIdle(ctx, r.process.pid())
	return slices, err
}

func roll(ctx context.Context, r *running, slices []*discoveryv1.EndpointSlice) (m rolling, err error) {
	quiet(ctx)
	before, err := cpuTime(r.process.pid())
	if err != nil {
		return m, err
	}
	var told []<-chan time.Time
	begin := time.Now()
	var answered time.Time
	for i, slice := range slices {
		for from := 0; from < len(slice.Endpoints); from += rollingStep {
			if from+i > 0 {
				time.Sleep(rollingPause)
			}
			changed := slices[i].DeepCopy()
			for j := from; j < from+rollingStep; j++ {
				addr := r.w.newEndpoint()
				told = append(told, r.monitor.expect(addr))
				changed.Endpoints[j].Addresses = []string{addr.String()}
			}
			slices[i], err = r.w.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Update(ctx, changed, metav1.UpdateOptions{})
			answered = time.Now()
			if err != nil {
				return m, fmt.Errorf("update slice %s: %w", changed.Name, err)
			}
		}
	}
	var end time.Time
	for _, c := range told {
		at, err := r.await(ctx, c)
		if err != nil {
			return m, err
		}
		if at.After(end) {
			end = at
		}
	}
	after, err := cpuWhenIdle(ctx, r.process.pid())
	if err != nil {
		return m, err
	}
	return rolling{end.Sub(begin), end.Sub(answered), after - before}, r.monitor.failed()
}
