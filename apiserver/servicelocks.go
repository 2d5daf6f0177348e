// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/apiserver/clusterip"
	"github.com/fairlead/fairlead/apiserver/nodeport"
)

// nodePortLocks are the locks on node ports: Leases by their type, whose name
// is the number and whose holder the Service, under a key of their own. They
// are in no API group, so nobody but the allocator sees them.
var nodePortLocks = &resource[*coordinationv1.Lease]{
	gv:        corev1.SchemeGroupVersion,
	plural:    "nodeports",
	singular:  "nodeport",
	clustered: true,
	newObject: func() *coordinationv1.Lease { return &coordinationv1.Lease{} },
	newList:   func() runtime.Object { return &coordinationv1.LeaseList{} },
	validate:  func(*coordinationv1.Lease) field.ErrorList { return nil },
}

// inside makes a Service's request one for its locks.
func inside[T object](ctx context.Context, r *resource[T]) context.Context {
	ctx = request.WithNamespace(ctx, metav1.NamespaceNone)
	return request.WithRequestInfo(ctx, &request.RequestInfo{
		IsResourceRequest: true,
		APIGroup:          r.gv.Group,
		APIVersion:        r.gv.Version,
		Resource:          r.plural,
	})
}

// onlyThat deletes an object if it is the one meant.
func onlyThat(uid types.UID) *metav1.DeleteOptions {
	return &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
}

// addressStore is the IPAddresses as the allocator sees them, straight in
// storage.
type addressStore struct{ store *genericregistry.Store }

var _ clusterip.Addresses = addressStore{}

// Create stores a lock.
func (a addressStore) Create(ctx context.Context, address *networkingv1.IPAddress) error {
	_, err := a.store.Create(inside(ctx, ipAddresses), address, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	return err
}

// Get reads a lock from storage.
func (a addressStore) Get(ctx context.Context, name string) (*networkingv1.IPAddress, error) {
	obj, err := a.store.Get(inside(ctx, ipAddresses), name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*networkingv1.IPAddress), nil
}

// Delete removes a lock if it is the one meant.
func (a addressStore) Delete(ctx context.Context, name string, uid types.UID) error {
	_, _, err := a.store.Delete(inside(ctx, ipAddresses), name, rest.ValidateAllObjectFunc, onlyThat(uid))
	return err
}

// List reads all locks.
func (a addressStore) List(ctx context.Context) ([]networkingv1.IPAddress, error) {
	obj, err := a.store.List(inside(ctx, ipAddresses), &internalversion.ListOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*networkingv1.IPAddressList).Items, nil
}

// addedRanges is the ServiceCIDRs as the allocator sees them.
type addedRanges struct{ store *genericregistry.Store }

// read lists the ranges of the ServiceCIDRs that may be used, besides the one
// that the server was started with.
func (a addedRanges) read(ctx context.Context) (ranges []netip.Prefix, err error) {
	obj, err := a.store.List(inside(ctx, serviceCIDRs), &internalversion.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, c := range obj.(*networkingv1.ServiceCIDRList).Items {
		ready := apimeta.IsStatusConditionTrue(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady)
		if c.Name == defaultServiceCIDR || c.DeletionTimestamp != nil || !ready {
			continue
		}
		for _, cidr := range c.Spec.CIDRs {
			if prefix, err := netip.ParsePrefix(cidr); err == nil {
				ranges = append(ranges, prefix)
			}
		}
	}
	return ranges, nil
}

// portStore is the locks on node ports as their allocator sees them.
type portStore struct{ store *genericregistry.Store }

var _ nodeport.Locks = portStore{}

// Create stores a lock.
func (p portStore) Create(ctx context.Context, port int, owner nodeport.Owner) error {
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name:        strconv.Itoa(port),
			Annotations: map[string]string{clusterip.ServiceUID: string(owner.UID)},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(owner.Namespace + "/" + owner.Name)},
	}
	_, err := p.store.Create(inside(ctx, nodePortLocks), lease, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	return err
}

// Get reads a lock from storage.
func (p portStore) Get(ctx context.Context, port int) (*nodeport.Lock, error) {
	obj, err := p.store.Get(inside(ctx, nodePortLocks), strconv.Itoa(port), &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return portLock(obj.(*coordinationv1.Lease))
}

// Delete removes a lock if it is the one meant.
func (p portStore) Delete(ctx context.Context, port int, uid types.UID) error {
	_, _, err := p.store.Delete(inside(ctx, nodePortLocks), strconv.Itoa(port), rest.ValidateAllObjectFunc, onlyThat(uid))
	return err
}

// List reads all locks.
func (p portStore) List(ctx context.Context) ([]nodeport.Lock, error) {
	obj, err := p.store.List(inside(ctx, nodePortLocks), &internalversion.ListOptions{})
	if err != nil {
		return nil, err
	}
	leases := obj.(*coordinationv1.LeaseList).Items
	locks := make([]nodeport.Lock, len(leases))
	for i := range leases {
		lock, err := portLock(&leases[i])
		if err != nil {
			return nil, err
		}
		locks[i] = *lock
	}
	return locks, nil
}

// portLock reads a lock.
func portLock(lease *coordinationv1.Lease) (*nodeport.Lock, error) {
	port, err := strconv.Atoi(lease.Name)
	if err != nil {
		return nil, fmt.Errorf("read node port lock: %w", err)
	}
	lock := &nodeport.Lock{Port: port, UID: lease.UID, Created: lease.CreationTimestamp.Time}
	lock.Owner.Namespace, lock.Owner.Name, _ = strings.Cut(ptr.Deref(lease.Spec.HolderIdentity, ""), "/")
	lock.Owner.UID = types.UID(lease.Annotations[clusterip.ServiceUID])
	return lock, nil
}
