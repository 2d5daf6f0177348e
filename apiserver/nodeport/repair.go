// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodeport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// Problem is what Repair found to be wrong with a number.
type Problem string

const (
	// Missing: a Service had no lock on its number. Mended.
	Missing Problem = "missing"
	// Orphaned: no Service has the number of a lock. Mended.
	Orphaned Problem = "orphaned"
	// Misowned: the lock on a Service's number was made for a Service that
	// does not have it. Mended.
	Misowned Problem = "misowned"
	// Conflict: several Services have one number. Somebody has to decide
	// which of them to delete.
	Conflict Problem = "conflict"
	// OutOfRange: a Service's number is not of the range, because that was
	// changed. It works on; a new Service would get one in range.
	OutOfRange Problem = "out of range"
)

// Finding is one thing that Repair found.
type Finding struct {
	Problem  Problem
	Port     int
	Services []types.NamespacedName // those that have the number, oldest first
}

// Mended says whether nothing is left to do.
func (f Finding) Mended() bool { return f.Problem != Conflict && f.Problem != OutOfRange }

// String is like "conflict 30080 shop/orders shop/catalog".
func (f Finding) String() string {
	words := []string{string(f.Problem), fmt.Sprint(f.Port)}
	for _, s := range f.Services {
		words = append(words, s.String())
	}
	return strings.Join(words, " ")
}

// Repair compares the Services with the locks and mends what is wrong: a lock
// is made for a Service that has lost it, and released when it is older than
// the grace and no Service has its number. services are all there are, read
// before the call. The findings are in the order of their numbers; the error
// joins those of single numbers, which do not keep it from mending others.
func (a *Allocator) Repair(ctx context.Context, services []corev1.Service) ([]Finding, error) {
	list, err := a.locks.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list node ports: %w", err)
	}
	holders, locks, all := map[int][]*corev1.Service{}, map[int]*Lock{}, map[int]bool{}
	for i := range services {
		for _, port := range held(&services[i]) {
			holders[port] = append(holders[port], &services[i])
			all[port] = true
		}
	}
	for i := range list {
		locks[list[i].Port] = &list[i]
		all[list[i].Port] = true
	}
	var findings []Finding
	var errs []error
	for _, port := range slices.Sorted(maps.Keys(all)) {
		found, err := a.repair(ctx, port, holders[port], locks[port])
		findings = append(findings, found...)
		if err != nil {
			errs = append(errs, fmt.Errorf("repair node port %d: %w", port, err))
		}
	}
	return findings, errors.Join(errs...)
}

// repair looks after one number, which has holders or a lock.
func (a *Allocator) repair(ctx context.Context, port int, holders []*corev1.Service, l *Lock) ([]Finding, error) {
	slices.SortFunc(holders, func(x, y *corev1.Service) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	var findings []Finding
	found := func(p Problem) {
		f := Finding{Problem: p, Port: port}
		for _, s := range holders {
			f.Services = append(f.Services, ownerOf(s).NamespacedName)
		}
		findings = append(findings, f)
	}
	if len(holders) > 0 && !a.ports.Contains(port) {
		found(OutOfRange)
	}
	if len(holders) > 1 {
		found(Conflict)
	}
	problem, err := a.mend(ctx, port, holders, l)
	if problem != "" && err == nil {
		found(problem)
	}
	return findings, err
}

// mend makes one of the holders the owner of the lock, or removes the lock
// when there are none, and says what had been wrong.
func (a *Allocator) mend(ctx context.Context, port int, holders []*corev1.Service, l *Lock) (Problem, error) {
	switch {
	case l == nil:
	case slices.ContainsFunc(holders, func(s *corev1.Service) bool { return ownerOf(s) == l.Owner }):
		return "", nil
	case time.Since(l.Created) <= a.Grace:
		// Of a Service that is being stored, perhaps.
		return "", nil
	}
	// Services may have come and gone since they were read.
	live := false
	if len(holders) > 0 {
		var err error
		if live, err = a.has(ctx, ownerOf(holders[0]), port, true); err != nil {
			return "", err
		}
	}
	problem := Missing
	if l != nil {
		if late, err := a.has(ctx, l.Owner, port, false); late || err != nil {
			return "", err
		}
		if err := a.locks.Delete(ctx, port, l.UID); err != nil && !apierrors.IsNotFound(err) {
			return "", err
		}
		if !live {
			return Orphaned, nil
		}
		problem = Misowned
	}
	if !live {
		return "", nil
	}
	// An error also when somebody else was faster: then the next pass will
	// find a conflict.
	return problem, a.locks.Create(ctx, port, ownerOf(holders[0]))
}

// has says whether the Service has the number in the storage. Without Lookup
// that is unknown, and what was known before must do.
func (a *Allocator) has(ctx context.Context, owner Owner, port int, before bool) (bool, error) {
	if a.Lookup == nil {
		return before, nil
	}
	stored, err := a.stored(ctx, owner)
	return slices.Contains(stored, port), err
}
