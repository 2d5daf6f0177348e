// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fairlead/fairlead/apiserver/validation"
)

// eventTTL is how long an event is kept, in seconds.
const eventTTL = 3600

// The kinds in this file have no behaviour of their own beyond validation.

var configMaps = &resource[*corev1.ConfigMap]{
	gv:             corev1.SchemeGroupVersion,
	plural:         "configmaps",
	singular:       "configmap",
	short:          []string{"cm"},
	newObject:      func() *corev1.ConfigMap { return &corev1.ConfigMap{} },
	newList:        func() runtime.Object { return &corev1.ConfigMapList{} },
	validate:       validation.ConfigMap,
	validateUpdate: validation.ConfigMapUpdate,
}

var events = &resource[*corev1.Event]{
	gv:             corev1.SchemeGroupVersion,
	plural:         "events",
	singular:       "event",
	short:          []string{"ev"},
	newObject:      func() *corev1.Event { return &corev1.Event{} },
	newList:        func() runtime.Object { return &corev1.EventList{} },
	validate:       validation.Event,
	validateUpdate: validation.EventUpdate,
	ttl:            eventTTL,
	createOnUpdate: true,
	selectable: func(event *corev1.Event, set fields.Set) {
		about := event.InvolvedObject
		set["involvedObject.kind"] = about.Kind
		set["involvedObject.namespace"] = about.Namespace
		set["involvedObject.name"] = about.Name
		set["involvedObject.uid"] = string(about.UID)
		set["involvedObject.apiVersion"] = about.APIVersion
		set["involvedObject.resourceVersion"] = about.ResourceVersion
		set["involvedObject.fieldPath"] = about.FieldPath
		set["reason"] = event.Reason
		set["reportingComponent"] = event.ReportingController
		set["source"] = event.Source.Component
		if event.Source.Component == "" {
			set["source"] = event.ReportingController
		}
		set["type"] = event.Type
	},
}

var leases = &resource[*coordinationv1.Lease]{
	gv:             coordinationv1.SchemeGroupVersion,
	plural:         "leases",
	singular:       "lease",
	newObject:      func() *coordinationv1.Lease { return &coordinationv1.Lease{} },
	newList:        func() runtime.Object { return &coordinationv1.LeaseList{} },
	validate:       validation.Lease,
	validateUpdate: validation.LeaseUpdate,
	createOnUpdate: true,
	versioned:      true,
}

var endpointSlices = &resource[*discoveryv1.EndpointSlice]{
	gv:        discoveryv1.SchemeGroupVersion,
	plural:    "endpointslices",
	singular:  "endpointslice",
	newObject: func() *discoveryv1.EndpointSlice { return &discoveryv1.EndpointSlice{} },
	newList:   func() runtime.Object { return &discoveryv1.EndpointSliceList{} },
	create:    func(slice *discoveryv1.EndpointSlice) { slice.Generation = 1 },
	update: func(slice, old *discoveryv1.EndpointSlice) {
		changed := !equality.Semantic.DeepEqual(slice.Endpoints, old.Endpoints) ||
			!equality.Semantic.DeepEqual(slice.Ports, old.Ports) ||
			slice.AddressType != old.AddressType ||
			!equality.Semantic.DeepEqual(slice.Labels, old.Labels)
		bumpGeneration(slice, old, changed)
	},
	validate:       validation.EndpointSlice,
	validateUpdate: validation.EndpointSliceUpdate,
}

var serviceCIDRs = &resource[*networkingv1.ServiceCIDR]{
	gv:        networkingv1.SchemeGroupVersion,
	plural:    "servicecidrs",
	singular:  "servicecidr",
	clustered: true,
	newObject: func() *networkingv1.ServiceCIDR { return &networkingv1.ServiceCIDR{} },
	newList:   func() runtime.Object { return &networkingv1.ServiceCIDRList{} },
	create: func(cidr *networkingv1.ServiceCIDR) {
		cidr.Generation = 1
		cidr.Status = networkingv1.ServiceCIDRStatus{}
	},
	update: func(cidr, old *networkingv1.ServiceCIDR) {
		cidr.Status = old.Status
		bumpGeneration(cidr, old, !equality.Semantic.DeepEqual(cidr.Spec, old.Spec))
	},
	validate:       validation.ServiceCIDR,
	validateUpdate: validation.ServiceCIDRUpdate,
	updateStatus:   func(cidr, old *networkingv1.ServiceCIDR) { cidr.Spec = old.Spec },
	validateStatus: validation.ServiceCIDRStatusUpdate,
}

var ipAddresses = &resource[*networkingv1.IPAddress]{
	gv:        networkingv1.SchemeGroupVersion,
	plural:    "ipaddresses",
	singular:  "ipaddress",
	short:     []string{"ip"},
	clustered: true,
	newObject: func() *networkingv1.IPAddress { return &networkingv1.IPAddress{} },
	newList:   func() runtime.Object { return &networkingv1.IPAddressList{} },
	create:    func(ip *networkingv1.IPAddress) { ip.Generation = 1 },
	update: func(ip, old *networkingv1.IPAddress) {
		bumpGeneration(ip, old, !equality.Semantic.DeepEqual(ip.Spec, old.Spec))
	},
	validate:       validation.IPAddress,
	validateUpdate: validation.IPAddressUpdate,
}

// bumpGeneration counts the changes of what an object is meant to be, so that
// a controller can say which of them it has seen.
func bumpGeneration(obj, old metav1.Object, changed bool) {
	obj.SetGeneration(old.GetGeneration())
	if changed {
		obj.SetGeneration(old.GetGeneration() + 1)
	}
}
