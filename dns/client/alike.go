// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"net/netip"
	"strconv"
	"strings"
	"sync"
)

// numbers are what pods are told apart by whose completed names are answered otherwise. They are never used again.
type numbers struct {
	mu sync.Mutex
	of map[string]uint32
}

var alike = numbers{of: make(map[string]uint32)}

func (n *numbers) number(p *Pod) uint32 {
	if len(p.search.suffixes) == 0 {
		return 0
	}
	key := strings.Join(p.search.suffixes, "") + strconv.Itoa(p.search.ndots) + strconv.FormatBool(p.IPv6)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.of[key] == 0 && len(n.of) < mostNumbers {
		n.of[key] = uint32(len(n.of) + 1)
	}
	return n.of[key]
}

// mostNumbers bounds the memory for search lists that pods had once. Pods with further ones have no number.
const mostNumbers = 4096

// Alike is the same number, and not 0, for pods that are given the same answers by [Complete] and [Clients.Suppress]; 0 for one whose names are not completed.
func (p *Pod) Alike() uint32 {
	if p == nil {
		return 0
	}
	return p.alike
}

// Alike is [Pod.Alike] of this node's pods, by their addresses, but for those of 0.
func (t *Table) Alike() map[netip.Addr]uint32 {
	m := make(map[netip.Addr]uint32)
	for p := range t.podOf {
		for _, a := range p.Addrs {
			if c := t.Lookup(a); c.Pod.Alike() != 0 {
				m[a] = c.Pod.alike
			}
		}
	}
	return m
}
