// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

var ipAddresses = networkingv1.Resource("ipaddresses")

// Problem is what Repair found to be wrong with an address.
type Problem string

const (
	// Missing: a Service had no IPAddress for its address. Mended.
	Missing Problem = "missing"
	// Orphaned: no Service has the address of an IPAddress. Mended.
	Orphaned Problem = "orphaned"
	// Misowned: the IPAddress of a Service's address was made for a Service
	// that does not have it. Mended.
	Misowned Problem = "misowned"
	// Conflict: several Services have one address. Somebody has to decide
	// which of them to delete.
	Conflict Problem = "conflict"
	// OutOfRange: a Service's address is in none of the ranges, because they
	// were changed. It works on; a new Service would get one in range.
	OutOfRange Problem = "out of range"
)

// Finding is one thing that Repair found.
type Finding struct {
	Problem  Problem
	Address  netip.Addr
	Services []types.NamespacedName // those that have the address, oldest first
}

// Mended says whether nothing is left to do.
func (f Finding) Mended() bool { return f.Problem != Conflict && f.Problem != OutOfRange }

// String is like "conflict 10.96.0.9 shop/orders shop/catalog".
func (f Finding) String() string {
	words := []string{string(f.Problem), f.Address.String()}
	for _, s := range f.Services {
		words = append(words, s.String())
	}
	return strings.Join(words, " ")
}

// Repair compares the Services with the IPAddresses and mends what is wrong:
// an IPAddress is made for a Service that has lost it, and released when it is
// older than the grace and no Service has it. services are all there are, read
// before the call. The findings are in the order of their addresses; the error
// joins those of single addresses, which do not keep it from mending others.
// IPAddresses that others made are left alone.
func (a *Allocator) Repair(ctx context.Context, services []corev1.Service) ([]Finding, error) {
	added, err := a.more(ctx)
	if err != nil {
		return nil, err
	}
	list, err := a.addresses.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	holders := map[netip.Addr][]*corev1.Service{}
	for i := range services {
		for _, addr := range held(&services[i]) {
			holders[addr] = append(holders[addr], &services[i])
		}
	}
	locks := map[netip.Addr]*networkingv1.IPAddress{}
	for i := range list {
		if addr, err := netip.ParseAddr(list[i].Name); err == nil {
			locks[addr] = &list[i]
		}
	}
	all := map[netip.Addr]bool{}
	for addr := range holders {
		all[addr] = true
	}
	for addr, l := range locks {
		if managed(l) {
			all[addr] = true
		}
	}
	var findings []Finding
	var errs []error
	for _, addr := range sortedAddrs(all) {
		found, err := a.repair(ctx, addr, added, holders[addr], locks[addr])
		findings = append(findings, found...)
		if err != nil {
			errs = append(errs, fmt.Errorf("repair address %s: %w", addr, err))
		}
	}
	return findings, errors.Join(errs...)
}

// repair looks after one address, which has holders or a lock of ours.
func (a *Allocator) repair(ctx context.Context, addr netip.Addr, added []span, holders []*corev1.Service, l *networkingv1.IPAddress) ([]Finding, error) {
	slices.SortFunc(holders, func(x, y *corev1.Service) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	finding := func(p Problem) Finding {
		f := Finding{Problem: p, Address: addr}
		for _, s := range holders {
			f.Services = append(f.Services, types.NamespacedName{Namespace: s.Namespace, Name: s.Name})
		}
		return f
	}
	var findings []Finding
	if len(holders) > 0 {
		if !slices.ContainsFunc(slices.Concat(a.spans, added), func(s span) bool { return s.prefix.Contains(addr) }) {
			findings = append(findings, finding(OutOfRange))
		}
	}
	if len(holders) > 1 {
		findings = append(findings, finding(Conflict))
	}
	problem, err := a.mend(ctx, addr, holders, l)
	if problem != "" && err == nil {
		findings = append(findings, finding(problem))
	}
	return findings, err
}

// mend makes one of the holders the owner of the lock, or removes the lock
// when there are none, and says what had been wrong.
func (a *Allocator) mend(ctx context.Context, addr netip.Addr, holders []*corev1.Service, l *networkingv1.IPAddress) (Problem, error) {
	switch {
	case l == nil:
	case slices.ContainsFunc(holders, func(s *corev1.Service) bool { return ownedBy(l, s) }):
		return "", nil
	case time.Since(l.CreationTimestamp.Time) <= a.Grace:
		// Of a Service that is being stored, perhaps.
		return "", nil
	case !managed(l):
		return "", fmt.Errorf("service %s/%s has it, but somebody else made an IPAddress of that name", holders[0].Namespace, holders[0].Name)
	}
	// Services may have come and gone since they were read.
	live := false
	if len(holders) > 0 {
		var err error
		if live, err = a.holds(ctx, holders[0], addr); err != nil {
			return "", err
		}
	}
	problem := Missing
	if l != nil {
		if late, err := a.ownerHolds(ctx, l, addr); late || err != nil {
			return "", err
		}
		if err := a.addresses.Delete(ctx, l.Name, l.UID); err != nil && !apierrors.IsNotFound(err) {
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
	if err := a.addresses.Create(ctx, lock(addr, holders[0])); err != nil {
		// Also when somebody else was faster: then the next pass will find
		// a conflict.
		return "", err
	}
	return problem, nil
}

// holds says whether the Service still has the address. Without Lookup, what
// was read before must do.
func (a *Allocator) holds(ctx context.Context, s *corev1.Service, addr netip.Addr) (bool, error) {
	if a.Lookup == nil {
		return true, nil
	}
	stored, err := a.stored(ctx, s)
	return slices.Contains(stored, addr), err
}

// ownerHolds says whether the Service that the lock was made for has the
// address by now.
func (a *Allocator) ownerHolds(ctx context.Context, l *networkingv1.IPAddress, addr netip.Addr) (bool, error) {
	ref := l.Spec.ParentRef
	if ref == nil {
		return false, nil
	}
	owner := &corev1.Service{}
	owner.Namespace, owner.Name, owner.UID = ref.Namespace, ref.Name, types.UID(l.Annotations[ServiceUID])
	stored, err := a.stored(ctx, owner) // none without Lookup
	return slices.Contains(stored, addr), err
}

func sortedAddrs(set map[netip.Addr]bool) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(set))
	for addr := range set {
		addrs = append(addrs, addr)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}
