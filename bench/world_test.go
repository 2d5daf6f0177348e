// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"testing"
)

// The first and the last Service are among those that are picked, and none is picked twice.
func TestSpread(t *testing.T) {
	for _, row := range []struct {
		services, n int
		want        string
	}{{0, 3, "[]"}, {1, 3, "[0]"}, {3, 5, "[0 1 2]"}, {10, 1, "[0]"}, {10, 4, "[0 3 6 9]"}, {1000, 3, "[0 499 999]"}} {
		var w world
		for i := range row.services {
			w.services = append(w.services, virtual{name: fmt.Sprint(i)})
		}
		got := []string{}
		for _, s := range w.spread(row.n) {
			got = append(got, s.name)
		}
		if fmt.Sprint(got) != row.want {
			t.Errorf("%d of %d: %v, want %s", row.n, row.services, got, row.want)
		}
	}
}
