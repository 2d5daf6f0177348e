// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"maps"
	"sync"

	"k8s.io/client-go/tools/cache"
)

// selectorIndex answers which Services select a pod at the cost of the pod's labels, not of the number of
// Services: each selector is filed under one of its pairs, and a pod looks only under its own.
type selectorIndex struct {
	mu        sync.RWMutex
	selectors map[cache.ObjectName]map[string]string
	byPair    map[string]map[cache.ObjectName]struct{} // labelKey of the filing pair
}

func newSelectorIndex() *selectorIndex {
	return &selectorIndex{
		selectors: map[cache.ObjectName]map[string]string{},
		byPair:    map[string]map[cache.ObjectName]struct{}{},
	}
}

// filed is the pair a selector is filed under: any will do as long as it is always the same one.
func filed(namespace string, selector map[string]string) string {
	first := ""
	for k, v := range selector {
		if pair := labelKey(namespace, k, v); first == "" || pair < first {
			first = pair
		}
	}
	return first
}

// set stores the selector of a Service; an empty one selects nothing.
func (x *selectorIndex) set(service cache.ObjectName, selector map[string]string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	old, known := x.selectors[service]
	if known && maps.Equal(old, selector) {
		return
	}
	if known {
		pair := filed(service.Namespace, old)
		delete(x.byPair[pair], service)
		if len(x.byPair[pair]) == 0 {
			delete(x.byPair, pair)
		}
		delete(x.selectors, service)
	}
	if len(selector) == 0 {
		return
	}
	x.selectors[service] = maps.Clone(selector)
	pair := filed(service.Namespace, selector)
	if x.byPair[pair] == nil {
		x.byPair[pair] = map[cache.ObjectName]struct{}{}
	}
	x.byPair[pair][service] = struct{}{}
}

// matching returns the Services of the namespace whose selector these labels satisfy, in no order.
func (x *selectorIndex) matching(namespace string, labels map[string]string) []cache.ObjectName {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var found []cache.ObjectName
	for k, v := range labels {
		for service := range x.byPair[labelKey(namespace, k, v)] {
			if selects(x.selectors[service], labels) {
				found = append(found, service)
			}
		}
	}
	return found
}

// selects says whether labels have every pair of the selector. An empty selector selects nothing.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return len(selector) > 0
}
