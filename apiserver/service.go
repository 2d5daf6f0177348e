// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/fairlead/fairlead/apiserver/clusterip"
	"github.com/fairlead/fairlead/apiserver/validation"
)

// repairPeriod is how often ClusterIPs are compared with their locks.
const repairPeriod = 10 * time.Minute

var services = &resource[*corev1.Service]{
	gv:         corev1.SchemeGroupVersion,
	plural:     "services",
	singular:   "service",
	short:      []string{"svc"},
	categories: []string{"all"},
	newObject:  func() *corev1.Service { return &corev1.Service{} },
	newList:    func() runtime.Object { return &corev1.ServiceList{} },
	create:     func(svc *corev1.Service) { svc.Status = corev1.ServiceStatus{} },
	update: func(svc, old *corev1.Service) {
		svc.Status = old.Status
	},
	validate:       validation.Service,
	validateUpdate: validation.ServiceUpdate,
	updateStatus:   func(svc, old *corev1.Service) { svc.Spec = old.Spec },
	validateStatus: validation.ServiceStatusUpdate,
	selectable: func(svc *corev1.Service, set fields.Set) {
		set["spec.clusterIP"] = svc.Spec.ClusterIP
		set["spec.type"] = string(svc.Spec.Type)
	},
}

// serviceStore gives Services their addresses, and takes them back.
//
// The library's hooks tell too early that an update has succeeded: before the
// write, which may yet meet a conflict and be tried again. So the hooks only
// allocate, and what becomes of it is settled when the verb is over.
type serviceStore struct {
	*store
	allocator *clusterip.Allocator
	log       *slog.Logger
}

var (
	_ rest.StandardStorage    = (*serviceStore)(nil)
	_ rest.ShortNamesProvider = (*serviceStore)(nil)
	_ rest.CategoriesProvider = (*serviceStore)(nil)
)

// serviceStorage is the Service and its status, and the IPAddresses that are
// the locks on ClusterIPs.
func (s *Server) serviceStorage(t *kinds, options generic.RESTOptionsGetter) (of, locksOf map[string]rest.Storage, err error) {
	locks, _, err := ipAddresses.storage(t, options)
	if err != nil {
		return nil, nil, err
	}
	whole, status, err := services.storage(t, options)
	if err != nil {
		return nil, nil, err
	}
	allocator, err := clusterip.New(addressStore{locks.Store}, s.config.ServiceCIDRs...)
	if err != nil {
		return nil, nil, fmt.Errorf("make ClusterIP allocator: %w", err)
	}
	s.services = &serviceStore{whole, allocator, s.log}
	allocator.Lookup = s.services.lookup
	whole.BeginCreate = s.services.beginCreate
	whole.BeginUpdate = s.services.beginUpdate
	whole.AfterDelete = s.services.afterDelete
	return map[string]rest.Storage{"services": s.services, "services/status": status},
		map[string]rest.Storage{"ipaddresses": locks}, nil
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

// settle does what is left to do for a verb's allocation. Addresses that
// cannot be given back now, the next repair will give back.
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
		s.log.Warn("cluster addresses not released", "err", err)
	}
}

// begin notes an allocation. An earlier attempt's was for nothing.
func (s *serviceStore) begin(ctx context.Context, a allocation) genericregistry.FinishFunc {
	pending, ok := ctx.Value(allocationKey{}).(*allocation)
	if !ok {
		// No verb of ours: then the library's word must do.
		return func(_ context.Context, success bool) { s.settle(&a, success) }
	}
	s.settle(pending, false)
	*pending = a
	return func(context.Context, bool) {}
}

// beginCreate allocates the addresses of a new Service.
func (s *serviceStore) beginCreate(ctx context.Context, obj runtime.Object, options *metav1.CreateOptions) (genericregistry.FinishFunc, error) {
	release, err := s.allocator.Allocate(ctx, obj.(*corev1.Service), dryrun.IsDryRun(options.DryRun))
	if err != nil {
		return nil, err
	}
	return s.begin(ctx, allocation{release: release}), nil
}

// beginUpdate allocates what a changed Service needs in addition.
func (s *serviceStore) beginUpdate(ctx context.Context, obj, old runtime.Object, options *metav1.UpdateOptions) (genericregistry.FinishFunc, error) {
	commit, release, err := s.allocator.Reconcile(ctx, old.(*corev1.Service), obj.(*corev1.Service), dryrun.IsDryRun(options.DryRun))
	if err != nil {
		return nil, err
	}
	return s.begin(ctx, allocation{commit, release}), nil
}

// afterDelete gives back the addresses of a Service that is gone.
func (s *serviceStore) afterDelete(obj runtime.Object, options *metav1.DeleteOptions) {
	if options != nil && dryrun.IsDryRun(options.DryRun) {
		return
	}
	svc := obj.(*corev1.Service)
	if err := s.allocator.Release(context.Background(), svc); err != nil {
		s.log.Warn("cluster addresses not released", "service", svc.Namespace+"/"+svc.Name, "err", err)
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
			s.log.Warn("cluster addresses not checked", "err", err)
			return
		}
		findings, err := s.allocator.Repair(ctx, obj.(*corev1.ServiceList).Items)
		for _, f := range findings {
			s.log.Warn("cluster address was wrong", "finding", f.String(), "mended", f.Mended())
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cluster addresses not mended", "err", err)
		}
	}, repairPeriod)
}

// addressStore is the IPAddresses as the allocator sees them, straight in
// storage.
type addressStore struct{ store *genericregistry.Store }

var _ clusterip.Addresses = addressStore{}

// inside makes a Service's request one for IPAddresses.
func inside(ctx context.Context) context.Context {
	ctx = request.WithNamespace(ctx, metav1.NamespaceNone)
	return request.WithRequestInfo(ctx, &request.RequestInfo{
		IsResourceRequest: true,
		APIGroup:          ipAddresses.gv.Group,
		APIVersion:        ipAddresses.gv.Version,
		Resource:          ipAddresses.plural,
	})
}

// Create stores a lock.
func (a addressStore) Create(ctx context.Context, address *networkingv1.IPAddress) error {
	_, err := a.store.Create(inside(ctx), address, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	return err
}

// Get reads a lock from storage.
func (a addressStore) Get(ctx context.Context, name string) (*networkingv1.IPAddress, error) {
	obj, err := a.store.Get(inside(ctx), name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*networkingv1.IPAddress), nil
}

// Delete removes a lock if it is the one meant.
func (a addressStore) Delete(ctx context.Context, name string, uid types.UID) error {
	options := &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
	_, _, err := a.store.Delete(inside(ctx), name, rest.ValidateAllObjectFunc, options)
	return err
}

// List reads all locks.
func (a addressStore) List(ctx context.Context) ([]networkingv1.IPAddress, error) {
	obj, err := a.store.List(inside(ctx), &internalversion.ListOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*networkingv1.IPAddressList).Items, nil
}
