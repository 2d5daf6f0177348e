// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
)

// storages is every resource that the server has, by group and path.
func (s *Server) storages(config *genericapiserver.Config) (map[schema.GroupVersion]map[string]rest.Storage, error) {
	options := config.RESTOptionsGetter
	all := map[schema.GroupVersion]map[string]rest.Storage{}
	add := func(gv schema.GroupVersion, resources map[string]rest.Storage, err error) error {
		if err != nil {
			return fmt.Errorf("make storage of %s: %w", gv, err)
		}
		if all[gv] == nil {
			all[gv] = map[string]rest.Storage{}
		}
		maps.Copy(all[gv], resources)
		return nil
	}
	builders := []struct {
		gv    schema.GroupVersion
		build func(*kinds, generic.RESTOptionsGetter) (map[string]rest.Storage, error)
	}{
		{corev1.SchemeGroupVersion, namespaceStorage},
		{corev1.SchemeGroupVersion, podStorage},
		{corev1.SchemeGroupVersion, plainStorage(nodes)},
		{corev1.SchemeGroupVersion, plainStorage(configMaps)},
		{corev1.SchemeGroupVersion, plainStorage(events)},
		{appsv1.SchemeGroupVersion, workloadStorage},
		{discoveryv1.SchemeGroupVersion, plainStorage(endpointSlices)},
		{coordinationv1.SchemeGroupVersion, plainStorage(leases)},
	}
	for _, b := range builders {
		resources, err := b.build(s.kinds, options)
		if err := add(b.gv, resources, err); err != nil {
			return nil, err
		}
	}
	resources, ranges, err := s.serviceStorage(s.kinds, options)
	if err := add(corev1.SchemeGroupVersion, resources, err); err != nil {
		return nil, err
	}
	all[networkingv1.SchemeGroupVersion] = ranges
	all[authorizationv1.SchemeGroupVersion] = map[string]rest.Storage{
		"selfsubjectaccessreviews": &selfReview{config.Authorization.Authorizer},
	}
	return all, nil
}

// plainStorage is the resource and, if it has one, its status.
func plainStorage[T object](r *resource[T]) func(*kinds, generic.RESTOptionsGetter) (map[string]rest.Storage, error) {
	return func(t *kinds, options generic.RESTOptionsGetter) (map[string]rest.Storage, error) {
		whole, status, err := r.storage(t, options)
		if err != nil {
			return nil, err
		}
		resources := map[string]rest.Storage{r.plural: whole}
		if status != nil {
			resources[r.plural+"/status"] = status
		}
		return resources, nil
	}
}
