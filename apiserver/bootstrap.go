// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/informers"
)

// defaultServiceCIDR is the name of the ServiceCIDR that the server was
// started with, as in Kubernetes.
const defaultServiceCIDR = "kubernetes"

// systemNamespaces are in every cluster.
var systemNamespaces = []string{
	metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease,
}

// bootstrap is what a server does once it serves: make what every cluster has,
// and say that it is ready. A failure ends Run; were it returned, the library
// would end the process.
func (s *Server) bootstrap(shared informers.SharedInformerFactory) genericapiserver.PostStartHookFunc {
	return func(hook genericapiserver.PostStartHookContext) error {
		ctx, cancel := context.WithTimeout(hook, bootstrapTimeout)
		defer cancel()
		var last error
		err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
			last = s.ensureDefaults(ctx)
			return last == nil, nil
		})
		if err != nil {
			s.abort(fmt.Errorf("make default objects: %w: %w", err, last))
			return nil
		}
		shared.WaitForCacheSync(ctx.Done())
		if hook.Err() != nil {
			return nil
		}
		s.log.Info("api server ready", "addr", s.generic.ExternalAddress)
		close(s.ready)
		go s.services.repair(hook)
		return nil
	}
}

// ensureDefaults makes the system namespaces and the default ServiceCIDR.
func (s *Server) ensureDefaults(ctx context.Context) error {
	for _, name := range systemNamespaces {
		_, err := s.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
			_, err = s.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
		}
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("make namespace %s: %w", name, err)
		}
	}
	return s.ensureServiceCIDR(ctx)
}

// ensureServiceCIDR makes the default ServiceCIDR and marks it ready. Its
// ranges cannot change, so one that tells others than the server was started
// with is replaced.
func (s *Server) ensureServiceCIDR(ctx context.Context) error {
	var ranges []string
	for _, cidr := range s.config.ServiceCIDRs {
		ranges = append(ranges, cidr.Masked().String())
	}
	cidrs := s.client.NetworkingV1().ServiceCIDRs()
	object, err := cidrs.Get(ctx, defaultServiceCIDR, metav1.GetOptions{})
	if err == nil && !slices.Equal(object.Spec.CIDRs, ranges) {
		if err := cidrs.Delete(ctx, defaultServiceCIDR, metav1.DeleteOptions{}); err != nil {
			return fmt.Errorf("replace default service CIDR: %w", err)
		}
		s.log.Warn("service ranges have changed", "before", object.Spec.CIDRs, "now", ranges)
		err = apierrors.NewNotFound(serviceCIDRs.groupResource(), defaultServiceCIDR)
	}
	if apierrors.IsNotFound(err) {
		object = &networkingv1.ServiceCIDR{
			ObjectMeta: metav1.ObjectMeta{Name: defaultServiceCIDR},
			Spec:       networkingv1.ServiceCIDRSpec{CIDRs: ranges},
		}
		object, err = cidrs.Create(ctx, object, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("make default service CIDR: %w", err)
	}
	if apimeta.IsStatusConditionTrue(object.Status.Conditions, networkingv1.ServiceCIDRConditionReady) {
		return nil
	}
	apimeta.SetStatusCondition(&object.Status.Conditions, metav1.Condition{
		Type:    networkingv1.ServiceCIDRConditionReady,
		Status:  metav1.ConditionTrue,
		Reason:  "ReadyForAllocation",
		Message: "Kubernetes Service CIDR is ready",
	})
	if _, err := cidrs.UpdateStatus(ctx, object, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("mark default service CIDR ready: %w", err)
	}
	return nil
}
