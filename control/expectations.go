// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// expectations remembers, per owner, the pods whose creation or deletion was asked for and that the informer has
// not shown yet. While any is left, the informer's list of the owner's pods must not be acted on.
//
// Names are chosen by us before the create is sent, so the pod's arrival can never be mistaken or missed; a
// deletion is settled when the informer no longer shows the pod as living. Neither needs a count or a timeout.
type expectations struct {
	mu      sync.Mutex
	created map[types.UID]map[string]time.Time // owner → name of the pod → when it was asked for
	deleted map[types.UID]map[types.UID]struct{}
}

func newExpectations() *expectations {
	return &expectations{
		created: map[types.UID]map[string]time.Time{},
		deleted: map[types.UID]map[types.UID]struct{}{},
	}
}

// create is called before a pod is created.
func (e *expectations) create(owner types.UID, name string, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.created[owner] == nil {
		e.created[owner] = map[string]time.Time{}
	}
	e.created[owner][name] = now
}

// seen is called when the informer has shown the pod (also when it has shown its end), or when the create failed.
func (e *expectations) seen(owner types.UID, name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.created[owner], name)
	if len(e.created[owner]) == 0 {
		delete(e.created, owner)
	}
}

// remove is called before a pod is deleted, undo when that failed.
func (e *expectations) remove(owner, pod types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.deleted[owner] == nil {
		e.deleted[owner] = map[types.UID]struct{}{}
	}
	e.deleted[owner][pod] = struct{}{}
}

func (e *expectations) undo(owner, pod types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.settle(owner, pod)
}

func (e *expectations) settle(owner, pod types.UID) {
	delete(e.deleted[owner], pod)
	if len(e.deleted[owner]) == 0 {
		delete(e.deleted, owner)
	}
}

// forget drops everything about an owner that is gone.
func (e *expectations) forget(owner types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.created, owner)
	delete(e.deleted, owner)
}

// pending says what is still out: the names of pods that have not arrived with the time they were asked for, and
// whether a deleted pod is still among the living, which is the UIDs that the informer shows as not terminating.
func (e *expectations) pending(owner types.UID, living map[types.UID]bool) (arrivals map[string]time.Time, departures bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for pod := range e.deleted[owner] {
		if !living[pod] {
			e.settle(owner, pod)
		}
	}
	arrivals = make(map[string]time.Time, len(e.created[owner]))
	for name, at := range e.created[owner] {
		arrivals[name] = at
	}
	return arrivals, len(e.deleted[owner]) > 0
}
