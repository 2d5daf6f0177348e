// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/model"
)

// grace is how long the API server has to list everything before a source falls back on what was known before. Sockets that the agent before has left
// open are held for four seconds ([github.com/fairlead/fairlead/hold]): this is early enough for what waits in them to be answered.
const grace = 2 * time.Second

// rely waits for the first lists, and falls back on the state that was known before if they do not come.
func (s *Source) rely(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(grace):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsynced > 0 {
		s.relying = true
		s.log.Warn("the API server has not listed everything in time: what was known before counts until it does", "services", s.builder.Build().Services.Len())
		s.signal()
	}
}

// Relying reports whether snapshots have what was known before the start, because the first lists are not complete.
func (s *Source) Relying() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.relying && s.unsynced > 0
}

// Listed reports whether every watch has been complete once: what is known is then the API server's.
func (s *Source) Listed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unsynced == 0
}

// Save hands everything that is known to objects, nodes first. It holds nobody up: the source is locked for one object at a time, and objects that change
// meanwhile are handed on as they were or as they are, as two watches might bring them too.
func (s *Source) Save(to model.Objects) {
	s.mu.Lock()
	snap := s.builder.Build()
	ranges, sliced := maps.Collect(s.builder.Ranges), slices.Collect(s.builder.Sliced)
	s.mu.Unlock()

	for _, n := range snap.Nodes.All() {
		to.SetNode(*n)
	}
	for name, r := range ranges {
		to.SetServiceCIDR(name, r)
	}
	for _, p := range snap.Pods.All() {
		to.SetPod(*p)
	}
	for _, svc := range snap.Services.All() {
		to.SetService(svc.ServiceSpec)
	}
	for _, name := range sliced {
		for _, sl := range s.slicesOf(name) {
			to.SetSlice(sl)
		}
	}
}

func (s *Source) slicesOf(service model.Name) []model.Slice {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.builder.SlicesOf(service)
}

// apiService is the Service of the API servers themselves. Its endpoints are their real addresses, kept by them.
var apiService = model.Name{Namespace: "default", Name: "kubernetes"}

// apiServers are the addresses of the API servers as far as is known, in no order.
func (s *Source) apiServers() (addrs []netip.AddrPort) {
	for _, sl := range s.slicesOf(apiService) {
		for _, p := range sl.Ports {
			if p.Name != "https" || p.Protocol != model.TCP {
				continue
			}
			for _, e := range sl.Endpoints {
				if e.Ready {
					addrs = append(addrs, netip.AddrPortFrom(e.Addr, p.Port))
				}
			}
		}
	}
	return addrs
}
