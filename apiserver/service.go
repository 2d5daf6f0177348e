// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/fairlead/fairlead/apiserver/clusterip"
	"github.com/fairlead/fairlead/apiserver/nodeport"
	"github.com/fairlead/fairlead/apiserver/validation"
)

// repairPeriod is how often addresses and node ports are compared with their
// locks.
const repairPeriod = 10 * time.Minute

var services = &resource[*corev1.Service]{
	gv:         corev1.SchemeGroupVersion,
	plural:     "services",
	singular:   "service",
	short:      []string{"svc"},
	categories: []string{"all"},
	newObject:  func() *corev1.Service { return &corev1.Service{} },
	newList:    func() runtime.Object { return &corev1.ServiceList{} },
	create: func(svc *corev1.Service) {
		svc.Status = corev1.ServiceStatus{}
		dropPolicy(svc)
	},
	update: func(svc, old *corev1.Service) {
		svc.Status = old.Status
		dropTypeDependent(svc, old)
	},
	validate:       validation.Service,
	validateUpdate: validation.ServiceUpdate,
	warnings:       validation.ServiceWarnings,
	updateStatus:   func(svc, old *corev1.Service) { svc.Spec = old.Spec },
	validateStatus: validation.ServiceStatusUpdate,
	selectable: func(svc *corev1.Service, set fields.Set) {
		set["spec.clusterIP"] = svc.Spec.ClusterIP
		set["spec.type"] = string(svc.Spec.Type)
	},
	createOnUpdate: true,
}

// serviceStore gives Services their addresses and node ports, and takes them
// back.
//
// The library's hooks tell too early that an update has succeeded: before the
// write, which may yet meet a conflict and be tried again. So the hooks only
// allocate, and what becomes of it is settled when the verb is over.
type serviceStore struct {
	*store
	addresses *clusterip.Allocator
	ports     *nodeport.Allocator
	log       *slog.Logger
}

var (
	_ rest.StandardStorage    = (*serviceStore)(nil)
	_ rest.ShortNamesProvider = (*serviceStore)(nil)
	_ rest.CategoriesProvider = (*serviceStore)(nil)
)

// serviceStorage is the Service and its status, and, of another group, the
// ranges of ClusterIPs and the IPAddresses that are the locks on them. The
// locks on node ports are no part of the API.
func (s *Server) serviceStorage(t *kinds, options generic.RESTOptionsGetter) (of, ranges map[string]rest.Storage, err error) {
	locks, _, err := ipAddresses.storage(t, options)
	if err != nil {
		return nil, nil, err
	}
	cidrs, cidrStatus, err := serviceCIDRs.storage(t, options)
	if err != nil {
		return nil, nil, err
	}
	portLocks, _, err := nodePortLocks.storage(t, options)
	if err != nil {
		return nil, nil, err
	}
	whole, status, err := services.storage(t, options)
	if err != nil {
		return nil, nil, err
	}
	addresses, err := clusterip.New(addressStore{locks.Store}, s.config.ServiceCIDRs...)
	if err != nil {
		return nil, nil, fmt.Errorf("make ClusterIP allocator: %w", err)
	}
	ports, err := nodeport.New(portStore{portLocks.Store}, s.config.NodePorts)
	if err != nil {
		return nil, nil, fmt.Errorf("make node port allocator: %w", err)
	}
	s.services = &serviceStore{whole, addresses, ports, s.log}
	addresses.Lookup, ports.Lookup = s.services.lookup, s.services.lookup
	addresses.More = addedRanges{cidrs.Store}.read
	whole.BeginCreate = s.services.beginCreate
	whole.BeginUpdate = s.services.beginUpdate
	whole.AfterDelete = s.services.afterDelete
	return map[string]rest.Storage{"services": s.services, "services/status": status},
		map[string]rest.Storage{"ipaddresses": locks, "servicecidrs": cidrs, "servicecidrs/status": cidrStatus}, nil
}

// allocation is what a verb has allocated and not settled.
type allocation struct{ commit, release func() error }

// allocationKey is the key of the verb's *allocation in its context.
type allocationKey struct{}

// Create stores a Service with addresses.
func (s *serviceStore) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc,
	options *metav1.CreateOptions) (runtime.Object, error) {
	pending := &allocation{}
	out, err := s.store.Create(context.WithValue(ctx, allocationKey{}, pending), obj, validate, options)
	s.settle(pending, err == nil)
	return out, err
}

// Update changes a Service, and its addresses if its type or families change.
// Server-side apply creates by it, too.
func (s *serviceStore) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc,
	update rest.ValidateObjectUpdateFunc, force bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	pending := &allocation{}
	out, created, err := s.store.Update(context.WithValue(ctx, allocationKey{}, pending), name, info, create, update, force, options)
	s.settle(pending, err == nil)
	return out, created, err
}

// settle does what is left to do for a verb's allocation. What cannot be given
// back now, the next repair will give back.
func (s *serviceStore) settle(a *allocation, success bool) {
	do := a.release
	if success {
		do = a.commit
	}
	*a = allocation{}
	if do == nil {
		return
	}
	if err := do(); err != nil {
		s.log.Warn("addresses or node ports of a service not released", "err", err)
	}
}

// begin is where a verb's allocation is to be noted, nil when no verb of ours
// is running. What an earlier attempt has allocated was for nothing. It is
// given back before this one allocates, which may want the same.
func (s *serviceStore) begin(ctx context.Context) *allocation {
	pending, ok := ctx.Value(allocationKey{}).(*allocation)
	if ok {
		s.settle(pending, false)
	}
	return pending
}

// note keeps an allocation until the verb is over.
func (s *serviceStore) note(pending *allocation, a allocation) genericregistry.FinishFunc {
	if pending == nil {
		// Then the library's word must do.
		return func(_ context.Context, success bool) { s.settle(&a, success) }
	}
	*pending = a
	return func(context.Context, bool) {}
}

// beginCreate allocates the addresses and node ports of a new Service.
func (s *serviceStore) beginCreate(ctx context.Context, obj runtime.Object, options *metav1.CreateOptions) (genericregistry.FinishFunc, error) {
	svc, dry, pending := obj.(*corev1.Service), dryrun.IsDryRun(options.DryRun), s.begin(ctx)
	addresses, err := s.addresses.Allocate(ctx, svc, dry)
	if err != nil {
		return nil, err
	}
	ports, err := s.ports.Allocate(ctx, svc, dry)
	if err != nil {
		s.settle(&allocation{release: addresses}, false)
		return nil, err
	}
	return s.note(pending, allocation{release: both(ports, addresses)}), nil
}

// beginUpdate allocates what a changed Service needs in addition.
func (s *serviceStore) beginUpdate(ctx context.Context, obj, old runtime.Object, options *metav1.UpdateOptions) (genericregistry.FinishFunc, error) {
	svc, before, dry, pending := obj.(*corev1.Service), old.(*corev1.Service), dryrun.IsDryRun(options.DryRun), s.begin(ctx)
	var addresses, ports allocation
	var err error
	if addresses.commit, addresses.release, err = s.addresses.Reconcile(ctx, before, svc, dry); err != nil {
		return nil, err
	}
	if ports.commit, ports.release, err = s.ports.Reconcile(ctx, before, svc, dry); err != nil {
		s.settle(&addresses, false)
		return nil, err
	}
	return s.note(pending, allocation{both(ports.commit, addresses.commit), both(ports.release, addresses.release)}), nil
}

// both runs two functions whatever the first one says.
func both(f, g func() error) func() error { return func() error { return errors.Join(f(), g()) } }

// afterDelete gives back what a Service that is gone had.
func (s *serviceStore) afterDelete(obj runtime.Object, options *metav1.DeleteOptions) {
	if options != nil && dryrun.IsDryRun(options.DryRun) {
		return
	}
	svc, ctx := obj.(*corev1.Service), context.Background()
	if err := errors.Join(s.addresses.Release(ctx, svc), s.ports.Release(ctx, svc)); err != nil {
		s.log.Warn("addresses or node ports of a service not released", "service", svc.Namespace+"/"+svc.Name, "err", err)
	}
}

// lookup reads a Service from storage.
func (s *serviceStore) lookup(ctx context.Context, namespace, name string) (*corev1.Service, error) {
	obj, err := s.Get(request.WithNamespace(ctx, namespace), name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.Service), nil
}

// repair compares Services and locks now and then, until ctx ends, and says
// what it found.
func (s *serviceStore) repair(ctx context.Context) {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		obj, err := s.List(request.WithNamespace(ctx, metav1.NamespaceAll), &internalversion.ListOptions{})
		if err != nil {
			s.log.Warn("addresses and node ports of services not checked", "err", err)
			return
		}
		all := obj.(*corev1.ServiceList).Items
		addresses, err := s.addresses.Repair(ctx, all)
		report(ctx, s.log, "address", addresses, err)
		ports, err := s.ports.Repair(ctx, all)
		report(ctx, s.log, "node port", ports, err)
	}, repairPeriod)
}

// report says what a repair found.
func report[F interface {
	fmt.Stringer
	Mended() bool
}](ctx context.Context, log *slog.Logger, what string, findings []F, err error) {
	for _, f := range findings {
		log.Warn("service "+what+" was wrong", "finding", f.String(), "mended", f.Mended())
	}
	if err != nil && ctx.Err() == nil {
		log.Warn("service "+what+" not mended", "err", err)
	}
}
