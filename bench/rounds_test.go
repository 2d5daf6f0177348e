// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// Contenders take turns A B, B A, and so on; the first round does not count, and one with an error is taken again as a whole.
func TestTakeTurns(t *testing.T) {
	var order []string
	taken, err := takeTurns(t.Context(), 4, []string{"a", "b"}, func(name string) (int, error) {
		order = append(order, name)
		if len(order) == 3 {
			return 0, errors.New("once")
		}
		return len(order), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(taken["a"]) != 3 || len(taken["b"]) != 3 {
		t.Errorf("taken %v, want three rounds of each", taken)
	}
	if slices.Contains(taken["a"], 1) || slices.Contains(taken["b"], 2) {
		t.Errorf("taken %v: the first round is counted", taken)
	}
	// The hypervisor may void a round at any time, so only the beginning is certain to a point.
	if got := strings.Join(order[:5], " "); got != "a b b a b" {
		t.Errorf("order %s, want a b, b (void), a b", got)
	}
}

func TestTakeTurnsGivesUp(t *testing.T) {
	always := errors.New("always")
	calls := 0
	_, err := takeTurns(t.Context(), 3, []string{"a"}, func(string) (int, error) { calls++; return 0, always })
	if !errors.Is(err, always) || calls != mostVoid+1 {
		t.Errorf("%v after %d calls, want the error after %d", err, calls, mostVoid+1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := takeTurns(ctx, 3, []string{"a"}, func(string) (int, error) { cancel(); return 0, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
}
