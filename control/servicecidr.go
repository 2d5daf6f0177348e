// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
)

const (
	// cidrFinalizer keeps a ServiceCIDR until no Service has an address of it; the name is Kubernetes'.
	cidrFinalizer = "networking.k8s.io/service-cidr-finalizer"
	// addressManager is in the label of the IPAddresses that are Services'.
	addressManager = "ipallocator.k8s.io"
	// cidrAgain is how soon a ServiceCIDR that is still in use is looked at again. To watch all addresses for
	// what happens once in a cluster's life would keep each of them in memory.
	cidrAgain = 2 * time.Second
)

// serviceCIDRs lets ranges be added to those of ClusterIPs, and taken away again when they are not used. The
// range that the cluster was made with is wellKnown's.
//
// The allocator uses a range that is ready and not being deleted, which it looks up after it has locked an address,
// too. Here the addresses are looked up after the deletion has been stored. So no address is given of a range
// that is thought to be unused.
type serviceCIDRs struct {
	*loop[string]
	h     *hub
	cidrs networkinglisters.ServiceCIDRLister
}

func newServiceCIDRs(h *hub) *serviceCIDRs {
	informer := h.factory.Networking().V1().ServiceCIDRs()
	c := &serviceCIDRs{h: h, cidrs: informer.Lister()}
	c.loop = newLoop(h, "servicecidr", 1, c.reconcile)
	watch(h, informer.Informer(), func(old, cur *networkingv1.ServiceCIDR) {
		if name := latest(old, cur).Name; name != defaultServiceCIDR {
			c.add(name)
		}
	})
	return c
}

func (c *serviceCIDRs) reconcile(ctx context.Context, name string) (time.Duration, error) {
	cidr, err := c.cidrs.Get(name)
	if err != nil {
		return 0, ignoreGone(err)
	}
	cidr = cidr.DeepCopy()
	if cidr.DeletionTimestamp != nil {
		return c.end(ctx, cidr)
	}
	// The finalizer comes first: a range that is ready may be used.
	if !slices.Contains(cidr.Finalizers, cidrFinalizer) {
		cidr.Finalizers = append(cidr.Finalizers, cidrFinalizer)
		if cidr, err = c.h.client.NetworkingV1().ServiceCIDRs().Update(ctx, cidr, metav1.UpdateOptions{}); err != nil {
			return 0, ignoreGone(fmt.Errorf("protect servicecidr: %w", err))
		}
	}
	return 0, c.say(ctx, cidr, metav1.ConditionTrue, "ReadyForAllocation", "Kubernetes Service CIDR is ready")
}

// end lets a ServiceCIDR go, or says why it cannot.
func (c *serviceCIDRs) end(ctx context.Context, cidr *networkingv1.ServiceCIDR) (time.Duration, error) {
	if !slices.Contains(cidr.Finalizers, cidrFinalizer) {
		return 0, nil
	}
	used, err := c.used(ctx, cidr)
	if err != nil {
		return 0, err
	}
	if used {
		return cidrAgain, c.say(ctx, cidr, metav1.ConditionFalse, networkingv1.ServiceCIDRReasonTerminating,
			"There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR")
	}
	cidr.Finalizers = slices.DeleteFunc(cidr.Finalizers, func(f string) bool { return f == cidrFinalizer })
	if _, err := c.h.client.NetworkingV1().ServiceCIDRs().Update(ctx, cidr, metav1.UpdateOptions{}); ignoreGone(err) != nil {
		return 0, fmt.Errorf("release servicecidr: %w", err)
	}
	c.log.Info("servicecidr ends", "servicecidr", cidr.Name, "cidrs", cidr.Spec.CIDRs)
	return 0, nil
}

// used says whether a Service has an address of the ranges that is of no other ServiceCIDR's. It asks the API
// and not an informer, which may show how it was before the deletion.
func (c *serviceCIDRs) used(ctx context.Context, cidr *networkingv1.ServiceCIDR) (bool, error) {
	all, err := c.h.client.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if err != nil {
		return false, fmt.Errorf("list servicecidrs: %w", err)
	}
	others := slices.Clone(c.h.ServiceCIDRs)
	for _, other := range all.Items {
		if other.UID != cidr.UID && other.DeletionTimestamp == nil {
			others = append(others, parsePrefixes(other.Spec.CIDRs)...)
		}
	}
	addresses, err := c.h.client.NetworkingV1().IPAddresses().List(ctx, metav1.ListOptions{
		LabelSelector: networkingv1.LabelManagedBy + "=" + addressManager,
	})
	if err != nil {
		return false, fmt.Errorf("list addresses: %w", err)
	}
	own := parsePrefixes(cidr.Spec.CIDRs)
	for _, a := range addresses.Items {
		addr, err := netip.ParseAddr(a.Name)
		contains := func(p netip.Prefix) bool { return p.Contains(addr) }
		if err == nil && slices.ContainsFunc(own, contains) && !slices.ContainsFunc(others, contains) {
			return true, nil
		}
	}
	return false, nil
}

// parsePrefixes leaves out what is none.
func parsePrefixes(texts []string) (out []netip.Prefix) {
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// say sets the Ready condition, if it is not like that.
func (c *serviceCIDRs) say(ctx context.Context, cidr *networkingv1.ServiceCIDR, status metav1.ConditionStatus, reason, message string) error {
	changed := meta.SetStatusCondition(&cidr.Status.Conditions, metav1.Condition{
		Type: networkingv1.ServiceCIDRConditionReady, Status: status, Reason: reason, Message: message,
	})
	if !changed {
		return nil
	}
	if _, err := c.h.client.NetworkingV1().ServiceCIDRs().UpdateStatus(ctx, cidr, metav1.UpdateOptions{}); ignoreGone(err) != nil {
		return fmt.Errorf("update servicecidr status: %w", err)
	}
	c.log.Info("servicecidr", "servicecidr", cidr.Name, "cidrs", cidr.Spec.CIDRs, "ready", status)
	return nil
}
