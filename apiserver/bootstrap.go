// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
// and say that it is ready.
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
			return fmt.Errorf("make default objects: %w: %w", err, last)
		}
		shared.WaitForCacheSync(ctx.Done())
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
// ranges cannot change; when the server was started with others, the object
// keeps telling those it was made with.
func (s *Server) ensureServiceCIDR(ctx context.Context) error {
	cidrs := s.client.NetworkingV1().ServiceCIDRs()
	object, err := cidrs.Get(ctx, defaultServiceCIDR, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		object = &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: defaultServiceCIDR}}
		for _, cidr := range s.config.ServiceCIDRs {
			object.Spec.CIDRs = append(object.Spec.CIDRs, cidr.Masked().String())
		}
		object, err = cidrs.Create(ctx, object, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("make default service CIDR: %w", err)
	}
	for _, condition := range object.Status.Conditions {
		if condition.Type == networkingv1.ServiceCIDRConditionReady && condition.Status == metav1.ConditionTrue {
			return nil
		}
	}
	object.Status.Conditions = []metav1.Condition{{
		Type:               networkingv1.ServiceCIDRConditionReady,
		Status:             metav1.ConditionTrue,
		Reason:             "ReadyForAllocation",
		Message:            "Kubernetes Service CIDR is ready",
		LastTransitionTime: metav1.Now(),
	}}
	if _, err := cidrs.UpdateStatus(ctx, object, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("mark default service CIDR ready: %w", err)
	}
	return nil
}
