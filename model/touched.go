// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package model

import "slices"

// Differ reports whether two tables have different content. It costs what differs.
func Differ[K, V comparable](a, b Table[K, V]) bool {
	if a == b {
		return false
	}
	for range Diff(a, b) {
		return true
	}
	return false
}

// Touched are the names of Services, and of pods' host ports, that two snapshots may decide differently about: those that differ, and those that have another
// frontend or other endpoints to choose from, though they are the same. Whether an address is a virtual one concerns those that have it, and so only Services that differ.
func Touched(from, to *Snapshot) map[Name]struct{} {
	touched := make(map[Name]struct{})
	add := func(names ...Name) {
		for _, n := range names {
			if n != (Name{}) {
				touched[n] = struct{}{}
			}
		}
	}
	for n := range Diff(from.Services, to.Services) {
		add(n)
	}
	for n := range Diff(from.HostPorts, to.HostPorts) {
		add(n)
	}
	for _, c := range Diff(from.Frontends, to.Frontends) {
		add(c.Old, c.New)
	}
	if Differ(from.HealthPorts, to.HealthPorts) { // pods have to give way there
		for n := range to.HostPorts.All() {
			add(n)
		}
	}
	if from.everyScope() != to.everyScope() {
		// This node has another zone: hints mean something else.
		for n, svc := range to.Services.All() {
			if svc.hasHints() {
				add(n)
			}
		}
	}
	return touched
}

// everyScope is what decisions about all Services rest on beside the Services.
func (s *Snapshot) everyScope() string {
	if self := s.Node(); self != nil {
		return s.Self + "/" + self.Zone
	}
	return ""
}

func (svc *Service) hasHints() bool {
	return slices.ContainsFunc(svc.Endpoints, func(e Endpoint) bool { return e.Hints != nil })
}
