// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodeport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/fairlead/fairlead/apiserver/validation"
)

// Why a number cannot be had; the API's errors contain these words.
var (
	// ErrAllocated: the number that was asked for is taken.
	ErrAllocated = errors.New("provided port is already allocated")
	// ErrNotInRange: the number that was asked for is not of the range.
	ErrNotInRange = errors.New("provided port is not in the valid range")
	// ErrFull: every number is taken.
	ErrFull = errors.New("range is full")
)

// DefaultRange is Kubernetes' default.
var DefaultRange = utilnet.PortRange{Base: 30000, Size: 2768}

const (
	// DefaultGrace is how old a lock must be to be released because no Service
	// has its number: longer than any request takes to store its Service.
	DefaultGrace = time.Minute

	// tries is how many random numbers are tried before the list of all is
	// read. With half of the range taken, one port in 256 reads it.
	tries = 8

	// undoTimeout bounds giving numbers back, which has to be done after the
	// request's own time is over, too.
	undoTimeout = 10 * time.Second

	// The size of the part that is left to chosen numbers: a thirty-second of
	// the range within these bounds, nothing in a range that is smaller.
	minChosen, maxChosen = 16, 128
)

// Allocator gives numbers of one range to Services. Its fields may be set
// before its first use.
type Allocator struct {
	// Lookup reads a Service from the storage, and not from a cache; the
	// error is NotFound when there is none. It is optional. With it, a number
	// is not given back, and Repair touches nothing, before the storage has
	// said that the Service does not have the number: a write that failed for
	// its writer may have been stored.
	Lookup func(ctx context.Context, namespace, name string) (*corev1.Service, error)

	// Grace is DefaultGrace unless set.
	Grace time.Duration

	locks  Locks
	ports  utilnet.PortRange
	split  int // the first number of the part for drawn ones
	random func(n int) int
}

// New makes an allocator of a range of port numbers.
func New(locks Locks, ports utilnet.PortRange) (*Allocator, error) {
	if ports.Size < 1 || ports.Base < 1 || ports.Base+ports.Size-1 > 65535 {
		return nil, fmt.Errorf("node port range %q is no range of ports", ports)
	}
	a := &Allocator{Grace: DefaultGrace, locks: locks, ports: ports, split: ports.Base, random: rand.IntN}
	if ports.Size > minChosen {
		a.split += min(max(ports.Size/32, minChosen), maxChosen)
	}
	return a, nil
}

// Allocate fills in the numbers of a new Service and locks them. The Service
// must have its namespace, name and UID, and defaults; it need not be valid.
// When it could not be stored, release gives the numbers back. After an error
// there is nothing to release and the Service may be half filled in. A dry run
// locks nothing, so that what it fills in may be different from what the real
// run will.
//
// Errors are the API's: Invalid for what the user chose, InternalError when
// the range is full, and the storage's own.
func (a *Allocator) Allocate(ctx context.Context, s *corev1.Service, dryRun bool) (release func() error, err error) {
	return a.take(ctx, s, nil, dryRun)
}

// Reconcile does the same for a change of a Service: of its type, its ports or
// its policy. What was allocated stays where the Service still needs it.
// Exactly one of the functions is to be called afterwards: commit when the
// change has been stored, which releases what the Service no longer has, or
// release.
func (a *Allocator) Reconcile(ctx context.Context, old, s *corev1.Service, dryRun bool) (commit, release func() error, err error) {
	normalize(s, old)
	if release, err = a.take(ctx, s, held(old), dryRun); err != nil {
		return nil, nil, err
	}
	if dryRun {
		return nothing, nothing, nil
	}
	kept := held(s)
	gone := slices.DeleteFunc(held(old), func(port int) bool { return slices.Contains(kept, port) })
	return a.later(ctx, ownerOf(old), gone, false), release, nil
}

// Release gives back the numbers of a Service that has been deleted.
func (a *Allocator) Release(ctx context.Context, s *corev1.Service) error {
	return a.later(ctx, ownerOf(s), held(s), false)()
}

func nothing() error { return nil }

// taking is what one change of a Service takes.
type taking struct {
	*Allocator
	service *corev1.Service
	owner   Owner
	dryRun  bool
	mine    map[int]bool // numbers that need no lock any more
	taken   []int        // those of them that have been locked for this change
}

// take locks what the Service chose and does not have, and then as many
// numbers as it is short of.
func (a *Allocator) take(ctx context.Context, s *corev1.Service, has []int, dryRun bool) (release func() error, err error) {
	t := &taking{Allocator: a, service: s, owner: ownerOf(s), dryRun: dryRun, mine: map[int]bool{}}
	for _, port := range has {
		t.mine[port] = true
	}
	if err := t.fill(ctx); err != nil {
		// What cannot be given back now, Repair will release.
		_ = a.later(ctx, t.owner, t.taken, false)()
		return nothing, err
	}
	return a.later(ctx, t.owner, t.taken, true), nil
}

func (t *taking) fill(ctx context.Context) error {
	s := t.service
	if validation.OnNodes(&s.Spec) {
		for i := range s.Spec.Ports {
			if number := s.Spec.Ports[i].NodePort; number != 0 {
				if err := t.choose(ctx, number, i); err != nil {
					return err
				}
			}
		}
	}
	if port := s.Spec.HealthCheckNodePort; validation.HealthChecked(&s.Spec) && port != 0 {
		if err := t.chooseHealthCheck(ctx, port); err != nil {
			return err
		}
	}
	for i := range s.Spec.Ports {
		port := &s.Spec.Ports[i]
		if !automatic(s) || port.NodePort != 0 {
			continue
		}
		if port.NodePort = sibling(s, port); port.NodePort != 0 {
			continue
		}
		number, err := t.next(ctx)
		if err != nil {
			return err
		}
		port.NodePort = int32(number)
	}
	if validation.HealthChecked(&s.Spec) && s.Spec.HealthCheckNodePort == 0 {
		number, err := t.next(ctx)
		if err != nil {
			return err
		}
		s.Spec.HealthCheckNodePort = int32(number)
	}
	return nil
}

// choose locks a number that the user wants for a port.
func (t *taking) choose(ctx context.Context, number int32, i int) error {
	why := ErrAllocated
	if s := t.service; !validation.HealthChecked(&s.Spec) || number != s.Spec.HealthCheckNodePort {
		if why = t.want(ctx, int(number)); why == nil {
			return nil
		}
	}
	return t.refuse(why, field.NewPath("spec", "ports").Index(i).Child("nodePort"), number, "")
}

// chooseHealthCheck locks a number that the user wants for health checks.
func (t *taking) chooseHealthCheck(ctx context.Context, number int32) error {
	why := t.want(ctx, int(number))
	if why == nil {
		return nil
	}
	return t.refuse(why, field.NewPath("spec", "healthCheckNodePort"), number, fmt.Sprintf("failed to allocate requested HealthCheck NodePort %d: ", number))
}

// refuse makes the API's Invalid of a number that cannot be had; the storage's
// own errors stay.
func (t *taking) refuse(why error, path *field.Path, number int32, words string) error {
	if !errors.Is(why, ErrAllocated) && !errors.Is(why, ErrNotInRange) {
		return why
	}
	errs := field.ErrorList{field.Invalid(path, number, words+why.Error())}
	return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), t.service.Name, errs)
}

// want locks one number unless the Service has it.
func (t *taking) want(ctx context.Context, number int) error {
	switch {
	case t.mine[number]:
		return nil
	case !t.ports.Contains(number):
		return fmt.Errorf("%w. The range of valid ports is %s", ErrNotInRange, t.ports)
	}
	ok, err := t.lock(ctx, number)
	if err == nil && !ok {
		err = ErrAllocated
	}
	return err
}

// lock takes a number if nobody has it. A dry run only looks.
func (t *taking) lock(ctx context.Context, number int) (bool, error) {
	if t.dryRun {
		_, err := t.locks.Get(ctx, number)
		if err != nil && !apierrors.IsNotFound(err) {
			return false, fmt.Errorf("look up node port %d: %w", number, err)
		}
		t.mine[number] = err != nil
		return err != nil, nil
	}
	err := t.locks.Create(ctx, number, t.owner)
	switch {
	case apierrors.IsAlreadyExists(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("lock node port %d: %w", number, err)
	}
	t.mine[number] = true
	t.taken = append(t.taken, number)
	return true, nil
}

// next locks a number that nobody has.
func (t *taking) next(ctx context.Context) (int, error) {
	end := t.ports.Base + t.ports.Size
	for range tries {
		number := t.split + t.random(end-t.split)
		if t.mine[number] {
			continue
		}
		if ok, err := t.lock(ctx, number); ok || err != nil {
			return number, err
		}
	}
	list, err := t.locks.List(ctx)
	if err != nil {
		return 0, fmt.Errorf("list node ports: %w", err)
	}
	taken := make(map[int]bool, len(list))
	for _, l := range list {
		taken[l.Port] = true
	}
	for _, part := range [...]struct{ from, to int }{{t.split, end}, {t.ports.Base, t.split}} {
		n := part.to - part.from
		if n == 0 {
			continue
		}
		for i, start := 0, t.random(n); i < n; i++ {
			number := part.from + (start+i)%n
			if taken[number] || t.mine[number] {
				continue
			}
			if ok, err := t.lock(ctx, number); ok || err != nil {
				return number, err
			}
		}
	}
	return 0, apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: %w", ErrFull))
}

// later makes a function that unlocks those of the numbers that are still the
// Service's. When it is unsure whether the Service was stored with them, the
// storage is asked before. The function may be called when the context is over.
func (a *Allocator) later(ctx context.Context, owner Owner, ports []int, unsure bool) func() error {
	if len(ports) == 0 {
		return nothing
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		var stored []int
		if unsure {
			var err error
			if stored, err = a.stored(ctx, owner); err != nil {
				// Repair will know.
				return fmt.Errorf("look up service %s before releasing node ports %v: %w", owner, ports, err)
			}
		}
		var errs []error
		for _, port := range ports {
			if !slices.Contains(stored, port) {
				errs = append(errs, a.unlock(ctx, port, owner))
			}
		}
		return errors.Join(errs...)
	}
}

// unlock releases a number if that very Service has it.
func (a *Allocator) unlock(ctx context.Context, port int, owner Owner) error {
	l, err := a.locks.Get(ctx, port)
	if err == nil && l.Owner == owner {
		err = a.locks.Delete(ctx, port, l.UID)
	}
	// Gone, or another's by now: there is nothing to release.
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("release node port %d: %w", port, err)
}

// stored are the numbers that the Service has in the storage, as far as can be
// known: none when there is no Lookup, or when another one has its name.
func (a *Allocator) stored(ctx context.Context, owner Owner) ([]int, error) {
	if a.Lookup == nil {
		return nil, nil
	}
	found, err := a.Lookup(ctx, owner.Namespace, owner.Name)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	case found.UID != owner.UID:
		return nil, nil
	}
	return held(found), nil
}
