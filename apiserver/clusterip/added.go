// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// A range that has been added may be taken away again. Who takes it away marks
// it first, and then looks whether one of its addresses is locked; an address
// of it is locked first, and then looked for the mark. So one of both sees the
// other, and neither has to wait.

// more are the ranges that have been added, as far as Services can have
// addresses of them.
func (a *Allocator) more(ctx context.Context) (spans []span, err error) {
	if a.More == nil {
		return nil, nil
	}
	prefixes, err := a.More(ctx)
	if err != nil {
		return nil, fmt.Errorf("read service ranges: %w", err)
	}
	for _, prefix := range prefixes {
		if s, err := newSpan(prefix); err == nil && a.span(s.family) != nil {
			spans = append(spans, s)
		}
	}
	return spans, nil
}

// added says whether an address is of one of those ranges.
func (a *Allocator) added(ctx context.Context, addr netip.Addr) (bool, error) {
	spans, err := a.more(ctx)
	return slices.ContainsFunc(spans, func(s span) bool { return s.holds(addr) }), err
}

// confirm looks, after an address of an added range has been locked, whether
// the range is still there. If not, the lock is given up.
func (a *Allocator) confirm(ctx context.Context, s *corev1.Service, addr netip.Addr) error {
	ok, err := a.added(ctx, addr)
	if ok {
		return nil
	}
	// What cannot be given back now, Repair will release.
	_ = a.later(ctx, s, []netip.Addr{addr}, false)()
	if err == nil {
		err = ErrMismatchedNetwork
	}
	return err
}
