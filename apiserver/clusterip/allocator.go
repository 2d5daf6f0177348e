// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Why an address cannot be had; the API's errors contain these words.
var (
	// ErrAllocated: another Service has the address that was asked for.
	ErrAllocated = errors.New("provided IP is already allocated")
	// ErrMismatchedNetwork: the address that was asked for is of another network.
	ErrMismatchedNetwork = errors.New("the provided network does not match the current range")
	// ErrNotInRange: the address names the network or all of its hosts.
	ErrNotInRange = errors.New("the provided IP is not in the valid range")
	// ErrFull: every address is taken.
	ErrFull = errors.New("range is full")
)

const (
	// DefaultGrace is how old an IPAddress must be to be released because no
	// Service has it: longer than any request takes to store its Service.
	DefaultGrace = time.Minute

	// tries is how many random addresses are tried before the list of all is
	// read. With half of the range taken, one Service in 256 reads it.
	tries = 8

	// undoTimeout bounds giving addresses back, which has to be done after
	// the request's own time is over, too.
	undoTimeout = 10 * time.Second
)

// Allocator gives addresses of one or two ranges to Services. Its fields may
// be set before its first use.
type Allocator struct {
	// Lookup reads a Service from the storage, and not from a cache; the
	// error is NotFound when there is none. It is optional. With it, an
	// address is not given back, and Repair touches nothing, before the
	// storage has said that the Service does not have the address: a write
	// that failed for its writer may have been stored.
	Lookup func(ctx context.Context, namespace, name string) (*corev1.Service, error)

	// More reads, from the storage and not from a cache, the ranges that
	// have been added to those of New. It is optional, and asked when a range
	// is full or an address of none is chosen.
	More func(ctx context.Context) ([]netip.Prefix, error)

	// Grace is DefaultGrace unless set.
	Grace time.Duration

	addresses Addresses
	spans     []span // the first is of the default family
	random    func(n uint64) uint64
}

// New makes an allocator of one range, or of two of different families, of
// which the first is the default. A range needs room for at least two
// Services.
func New(addresses Addresses, ranges ...netip.Prefix) (*Allocator, error) {
	if len(ranges) < 1 || len(ranges) > 2 {
		return nil, fmt.Errorf("need one or two service ranges, got %d", len(ranges))
	}
	a := &Allocator{Grace: DefaultGrace, addresses: addresses, random: rand.Uint64N}
	for _, prefix := range ranges {
		s, err := newSpan(prefix)
		if err != nil {
			return nil, err
		}
		if a.span(s.family) != nil {
			return nil, fmt.Errorf("service ranges %s and %s are of one family", ranges[0], ranges[1])
		}
		a.spans = append(a.spans, s)
	}
	return a, nil
}

// KubernetesAddresses are the addresses of the Service default/kubernetes,
// the first of each range.
func (a *Allocator) KubernetesAddresses() []netip.Addr {
	var addrs []netip.Addr
	for _, s := range a.spans {
		addrs = append(addrs, s.kubernetes())
	}
	return addrs
}

// span is the range of a family, nil when the cluster has none.
func (a *Allocator) span(family corev1.IPFamily) *span {
	for i := range a.spans {
		if a.spans[i].family == family {
			return &a.spans[i]
		}
	}
	return nil
}

// Allocate fills in the addresses, families and family policy of a new Service
// and locks the addresses. The Service must have its namespace, name and UID,
// and defaults; it need not be valid. When it could not be stored, release
// gives the addresses back. After an error there is nothing to release and the
// Service may be half filled in. A dry run locks nothing, so that what it fills
// in may be different from what the real run will.
//
// Errors are the API's: Invalid for what the user chose, InternalError when
// the range is full, and the storage's own.
func (a *Allocator) Allocate(ctx context.Context, s *corev1.Service, dryRun bool) (release func() error, err error) {
	Normalize(s, nil)
	if !addressed(s) {
		return nothing, nil
	}
	if err := a.fillFamilies(s, nil); err != nil {
		return nothing, err
	}
	return a.take(ctx, s, 0, dryRun)
}

// Reconcile does the same for a change of a Service: of type from or to
// ExternalName, from one family to two and back. What was allocated stays;
// that a client may not exchange it is for validation to say. Exactly one of
// the functions is to be called afterwards: commit when the change has been
// stored, which releases what the Service no longer has, or release.
func (a *Allocator) Reconcile(ctx context.Context, old, s *corev1.Service, dryRun bool) (commit, release func() error, err error) {
	Normalize(s, old)
	if s.UID == "" {
		s.UID = old.UID // a client may leave it out
	}
	release = nothing
	if addressed(s) && !settled(s, old) {
		if err := a.fillFamilies(s, old); err != nil {
			return nothing, nothing, err
		}
		kept := 0
		if addressed(old) {
			kept = len(old.Spec.ClusterIPs)
		}
		if release, err = a.take(ctx, s, kept, dryRun); err != nil {
			return nothing, nothing, err
		}
	}
	if dryRun {
		return nothing, nothing, nil
	}
	var gone []netip.Addr
	for _, addr := range held(old) {
		if !slices.Contains(held(s), addr) {
			gone = append(gone, addr)
		}
	}
	return a.later(ctx, old, gone, false), release, nil
}

// Release gives back the addresses of a Service that has been deleted.
func (a *Allocator) Release(ctx context.Context, s *corev1.Service) error {
	return a.later(ctx, s, held(s), false)()
}

func nothing() error { return nil }

// take locks the Service's addresses from index first on and fills in those
// that it has not chosen.
func (a *Allocator) take(ctx context.Context, s *corev1.Service, first int, dryRun bool) (release func() error, err error) {
	spec := &s.Spec
	if headless(s) {
		return nothing, nil
	}
	lockIt := a.lock
	if dryRun {
		lockIt = a.unlocked
	}
	var taken []netip.Addr
	for i, family := range spec.IPFamilies {
		if i < first {
			continue
		}
		chosen := i < len(spec.ClusterIPs)
		var addr netip.Addr
		if chosen {
			addr, err = a.choose(ctx, s, spec.ClusterIPs[i], lockIt)
		} else {
			addr, err = a.next(ctx, s, family, lockIt)
		}
		if err != nil {
			// What cannot be given back now, Repair will release.
			_ = a.later(ctx, s, taken, false)()
			return nothing, err
		}
		if !dryRun {
			taken = append(taken, addr)
		}
		if !chosen {
			spec.ClusterIPs = append(slices.Clip(spec.ClusterIPs), addr.String())
		}
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	return a.later(ctx, s, taken, true), nil
}

// choose locks an address that the user wants.
func (a *Allocator) choose(ctx context.Context, s *corev1.Service, ip string, lockIt locker) (netip.Addr, error) {
	addr := netip.MustParseAddr(ip) // fillFamilies has checked it
	why, added := a.choosable(addr, s), false
	if errors.Is(why, ErrMismatchedNetwork) {
		var err error
		if added, err = a.added(ctx, addr); err != nil {
			return netip.Addr{}, err
		}
	}
	if why == nil || added {
		why = lockIt(ctx, addr, s)
		if why == nil && added {
			why = a.confirm(ctx, s, addr)
		}
		switch {
		case why == nil:
			return addr, nil
		case apierrors.IsAlreadyExists(why):
			why = ErrAllocated
		case !errors.Is(why, ErrMismatchedNetwork):
			return netip.Addr{}, fmt.Errorf("lock address %s: %w", addr, why)
		}
	}
	return netip.Addr{}, invalid(s, field.Invalid(clusterIPsPath, s.Spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %s: %v", addr, why)))
}

// choosable says whether a Service may have the address if it is free.
func (a *Allocator) choosable(addr netip.Addr, s *corev1.Service) error {
	in := a.span(familyOf(addr))
	switch {
	case in == nil:
		return ErrMismatchedNetwork
	case !in.prefix.Contains(addr):
		return fmt.Errorf("%w. The range of valid IPs is %s", ErrMismatchedNetwork, in.prefix)
	case !in.holds(addr):
		return fmt.Errorf("%w. The range of valid IPs is %s", ErrNotInRange, in.prefix)
	case addr == in.kubernetes() && (s.Namespace != metav1.NamespaceDefault || s.Name != "kubernetes"):
		return ErrAllocated
	}
	return nil
}

// next locks an address of a family that nobody has, in the first range that
// has one.
func (a *Allocator) next(ctx context.Context, s *corev1.Service, family corev1.IPFamily, lockIt locker) (netip.Addr, error) {
	addr, err := a.draw(ctx, s, *a.span(family), lockIt)
	if !errors.Is(err, ErrFull) {
		return addr, err
	}
	added, err := a.more(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, from := range added {
		if from.family != family {
			continue
		}
		addr, err := a.draw(ctx, s, from, lockIt)
		if err == nil {
			err = a.confirm(ctx, s, addr)
		}
		if !errors.Is(err, ErrFull) && !errors.Is(err, ErrMismatchedNetwork) {
			return addr, err
		}
	}
	return netip.Addr{}, apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP for Service %q: %w", s.Name, ErrFull))
}

// draw locks an address of one range.
func (a *Allocator) draw(ctx context.Context, s *corev1.Service, from span, lockIt locker) (netip.Addr, error) {
	attempt := func(addr netip.Addr) (bool, error) {
		err := lockIt(ctx, addr, s)
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return false, fmt.Errorf("lock address %s: %w", addr, err)
		}
		return err == nil, nil
	}
	for range tries {
		addr := from.draw(a.random)
		if ok, err := attempt(addr); ok || err != nil {
			return addr, err
		}
	}
	list, err := a.addresses.List(ctx)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses: %w", err)
	}
	taken := make(map[netip.Addr]bool, len(list))
	for i := range list {
		if addr, err := netip.ParseAddr(list[i].Name); err == nil {
			taken[addr] = true
		}
	}
	for {
		addr, ok := from.free(taken, a.random)
		if !ok {
			return netip.Addr{}, ErrFull
		}
		if ok, err := attempt(addr); ok || err != nil {
			return addr, err
		}
		taken[addr] = true // by somebody who was faster
	}
}

// locker takes an address for a Service; AlreadyExists when it is taken.
type locker func(ctx context.Context, addr netip.Addr, s *corev1.Service) error

// lock is the locker of real runs.
func (a *Allocator) lock(ctx context.Context, addr netip.Addr, s *corev1.Service) error {
	return a.addresses.Create(ctx, lock(addr, s))
}

// unlocked is the locker of dry runs: it only looks.
func (a *Allocator) unlocked(ctx context.Context, addr netip.Addr, _ *corev1.Service) error {
	switch _, err := a.addresses.Get(ctx, addr.String()); {
	case err == nil:
		return apierrors.NewAlreadyExists(ipAddresses, addr.String())
	case apierrors.IsNotFound(err):
		return nil
	default:
		return err
	}
}

// later makes a function that unlocks those of the addresses that are still
// the Service's. When it is unsure whether the Service was stored with them,
// the storage is asked before. The function may be called when the context is
// over.
func (a *Allocator) later(ctx context.Context, s *corev1.Service, addrs []netip.Addr, unsure bool) func() error {
	if len(addrs) == 0 {
		return nothing
	}
	s = s.DeepCopy()
	return func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if unsure {
			stored, err := a.stored(ctx, s)
			if err != nil {
				// Repair will know.
				return fmt.Errorf("look up service %s/%s before releasing %v: %w", s.Namespace, s.Name, addrs, err)
			}
			addrs = slices.DeleteFunc(slices.Clone(addrs), func(addr netip.Addr) bool { return slices.Contains(stored, addr) })
		}
		var errs []error
		for _, addr := range addrs {
			errs = append(errs, a.unlock(ctx, addr, s))
		}
		return errors.Join(errs...)
	}
}

// unlock releases an address if that very Service has it.
func (a *Allocator) unlock(ctx context.Context, addr netip.Addr, s *corev1.Service) error {
	l, err := a.addresses.Get(ctx, addr.String())
	if err == nil && ownedBy(l, s) {
		err = a.addresses.Delete(ctx, l.Name, l.UID)
	}
	// Gone, or another's by now: there is nothing to release.
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("release address %s: %w", addr, err)
}

// stored are the addresses that the Service has in the storage, as far as can
// be known: none when there is no Lookup, or when another one has its name.
func (a *Allocator) stored(ctx context.Context, s *corev1.Service) ([]netip.Addr, error) {
	if a.Lookup == nil {
		return nil, nil
	}
	found, err := a.Lookup(ctx, s.Namespace, s.Name)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	case s.UID != "" && found.UID != s.UID:
		return nil, nil
	}
	return held(found), nil
}

// held are the addresses that a Service says it has.
func held(s *corev1.Service) (addrs []netip.Addr) {
	if !addressed(s) {
		return nil
	}
	for _, ip := range s.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}
