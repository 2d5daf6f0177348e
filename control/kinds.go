// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/cache"
)

// kind is a kind of object that the server serves and that can be listed, watched and deleted.
type kind struct {
	resource   schema.GroupVersionResource
	gvk        schema.GroupVersionKind
	namespaced bool
}

// servedKinds asks the server which kinds it has, until it answers or ctx ends.
func servedKinds(ctx context.Context, d discovery.DiscoveryInterface, log *slog.Logger) ([]kind, error) {
	said := false
	for {
		lists, err := discovery.ServerPreferredResources(d)
		if err == nil {
			return kindsOf(lists)
		}
		if !said {
			log.Info("waiting for the API server", "err", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// kindsOf keeps of a discovery answer what the controllers can act on.
func kindsOf(lists []*metav1.APIResourceList) ([]kind, error) {
	var kinds []kind
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("read discovery: %w", err)
		}
		for _, r := range list.APIResources {
			usable := true
			for _, verb := range []string{"list", "watch", "delete"} {
				usable = usable && slices.Contains(r.Verbs, verb)
			}
			if !usable {
				continue
			}
			kinds = append(kinds, kind{gv.WithResource(r.Name), gv.WithKind(r.Kind), r.Namespaced})
		}
	}
	return kinds, nil
}

// nameIn is the name of an object of this kind as seen from a namespace.
func (k kind) nameIn(namespace, name string) cache.ObjectName {
	if !k.namespaced {
		return cache.ObjectName{Name: name}
	}
	return cache.ObjectName{Namespace: namespace, Name: name}
}
