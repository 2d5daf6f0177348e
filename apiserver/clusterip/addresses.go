// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	client "k8s.io/client-go/kubernetes/typed/networking/v1"
)

const (
	// ManagedBy is the value of the label ipaddress.kubernetes.io/managed-by
	// of the IPAddresses that are made here, the same as Kubernetes'. Others
	// are nobody's business but their makers'.
	ManagedBy = "ipallocator.k8s.io"

	// ServiceUID is the annotation with the UID of the Service that an
	// IPAddress was made for: a parentRef has only a name, and the Service
	// of that name may be another one by now.
	ServiceUID = "fairlead.github.io/service-uid"
)

// Addresses is the storage of IPAddresses, as far as it is needed. Its errors
// are the API's (k8s.io/apimachinery/pkg/api/errors).
type Addresses interface {
	// Create stores an IPAddress. The error is AlreadyExists when there is
	// one of that name, and only then.
	Create(ctx context.Context, address *networkingv1.IPAddress) error
	// Get reads one, from the storage and not from a cache. The error is
	// NotFound when there is none.
	Get(ctx context.Context, name string) (*networkingv1.IPAddress, error)
	// Delete removes the one with that name if it also has that UID. The
	// error is NotFound when there is none, Conflict when it is another.
	Delete(ctx context.Context, name string, uid types.UID) error
	// List reads all of them.
	List(ctx context.Context) ([]networkingv1.IPAddress, error)
}

// FromClient is the storage behind a client of the API.
func FromClient(c client.IPAddressInterface) Addresses { return clientAddresses{c} }

type clientAddresses struct{ client client.IPAddressInterface }

func (c clientAddresses) Create(ctx context.Context, address *networkingv1.IPAddress) error {
	_, err := c.client.Create(ctx, address, metav1.CreateOptions{})
	return err
}

func (c clientAddresses) Get(ctx context.Context, name string) (*networkingv1.IPAddress, error) {
	return c.client.Get(ctx, name, metav1.GetOptions{})
}

func (c clientAddresses) Delete(ctx context.Context, name string, uid types.UID) error {
	return c.client.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
}

func (c clientAddresses) List(ctx context.Context) ([]networkingv1.IPAddress, error) {
	list, err := c.client.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// lock is the IPAddress by which a Service holds an address.
func lock(addr netip.Addr, s *corev1.Service) *networkingv1.IPAddress {
	family := corev1.IPv6Protocol
	if addr.Is4() {
		family = corev1.IPv4Protocol
	}
	l := &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{
			Name: addr.String(),
			Labels: map[string]string{
				networkingv1.LabelIPAddressFamily: string(family),
				networkingv1.LabelManagedBy:       ManagedBy,
			},
		},
		Spec: networkingv1.IPAddressSpec{
			ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: s.Namespace, Name: s.Name},
		},
	}
	if s.UID != "" {
		l.Annotations = map[string]string{ServiceUID: string(s.UID)}
	}
	return l
}

// managed: made here.
func managed(l *networkingv1.IPAddress) bool {
	return l.Labels[networkingv1.LabelManagedBy] == ManagedBy
}

// ownedBy says whether the lock is that very Service's.
func ownedBy(l *networkingv1.IPAddress, s *corev1.Service) bool {
	ref := l.Spec.ParentRef
	if !managed(l) || ref == nil || ref.Group != "" || ref.Resource != "services" || ref.Namespace != s.Namespace || ref.Name != s.Name {
		return false
	}
	uid := l.Annotations[ServiceUID]
	return uid == "" || s.UID == "" || uid == string(s.UID)
}
