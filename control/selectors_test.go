// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"k8s.io/client-go/tools/cache"
)

func TestSelects(t *testing.T) {
	labels := map[string]string{"app": "web", "tier": ""}
	for _, c := range []struct {
		selector map[string]string
		want     bool
	}{
		{nil, false}, // nothing, not everything
		{map[string]string{}, false},
		{map[string]string{"app": "web"}, true},
		{map[string]string{"app": "web", "tier": ""}, true},
		{map[string]string{"tier": ""}, true},
		{map[string]string{"zone": ""}, false}, // an absent label is not an empty one
		{map[string]string{"app": "api"}, false},
	} {
		if got := selects(c.selector, labels); got != c.want {
			t.Errorf("%v: got %v", c.selector, got)
		}
	}
}

// TestSelectorIndex changes selectors at random and compares with looking at all of them.
func TestSelectorIndex(t *testing.T) {
	rnd := newRand(t)
	pairs := func(n int) map[string]string {
		out := map[string]string{}
		for range rnd.IntN(n + 1) {
			out["k"+strconv.Itoa(rnd.IntN(4))] = "v" + strconv.Itoa(rnd.IntN(3))
		}
		return out
	}
	x := newSelectorIndex()
	all := map[cache.ObjectName]map[string]string{}
	for range 3000 {
		name := cache.ObjectName{Namespace: "ns" + strconv.Itoa(rnd.IntN(3)), Name: "s" + strconv.Itoa(rnd.IntN(30))}
		if rnd.IntN(3) == 0 {
			x.set(name, nil)
			delete(all, name)
		} else {
			selector := pairs(3)
			x.set(name, selector)
			all[name] = selector
		}
		namespace, labels := "ns"+strconv.Itoa(rnd.IntN(3)), pairs(5)
		var want []cache.ObjectName
		for service, selector := range all {
			if service.Namespace == namespace && selects(selector, labels) {
				want = append(want, service)
			}
		}
		got := x.matching(namespace, labels)
		byName := func(a, b cache.ObjectName) int { return cmp.Compare(a.Name, b.Name) }
		slices.SortFunc(got, byName)
		slices.SortFunc(want, byName)
		if !slices.Equal(got, want) {
			t.Fatalf("%v in %s: got %v, want %v", labels, namespace, got, want)
		}
	}
	for name := range all {
		x.set(name, nil)
	}
	if len(x.selectors)+len(x.byPair) != 0 {
		t.Errorf("left over: %v", fmt.Sprint(x.selectors, x.byPair))
	}
}
