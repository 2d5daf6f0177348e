// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
)

// mostVoid is how many rounds may be repeated.
const mostVoid = 4

// takeTurns measures every contender in every round, in the order A B, B A, A B, …, and returns the rounds that count: all but the first. A round
// with an error or in which the hypervisor took processor time away is repeated, a few times.
func takeTurns[T any](ctx context.Context, rounds int, names []string, measure func(name string) (T, error)) (map[string][]T, error) {
	taken := map[string][]T{}
	order := slices.Clone(names)
	void := 0
	for round := 0; round < rounds; {
		got := map[string]T{}
		stole, err := stolen(func() error {
			for _, name := range order {
				value, err := measure(name)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				got[name] = value
			}
			return nil
		})
		slices.Reverse(order)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil || stole {
			if void++; void > mostVoid {
				return nil, fmt.Errorf("%d rounds are void, the last: stolen %v, %w", void, stole, err)
			}
			progress("the round is void (processor time stolen: %v, error: %v); again", stole, err)
			continue
		}
		if round++; round == 1 {
			continue
		}
		for name, value := range got {
			taken[name] = append(taken[name], value)
		}
	}
	return taken, nil
}
