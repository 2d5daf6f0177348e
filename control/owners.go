// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

var (
	podResource        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	replicaSetResource = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}
	deploymentKind     = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
	replicaSetKind     = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "ReplicaSet"}
)

// controlledBy says whether owner is the controlling owner of obj.
func controlledBy(obj metav1.Object, owner types.UID) bool {
	ref := metav1.GetControllerOf(obj)
	return ref != nil && ref.UID == owner
}

// claim is what to do with an object that an owner's selector or an owner's reference connects to the owner.
type claim int

const (
	leave   claim = iota // not this owner's
	own                  // this owner's, and it stays so
	adopt                // nobody's, and the selector matches: take it
	release              // this owner's, but the selector no longer matches: let go
)

// claimOf decides it, as Kubernetes' controllers do: an owner on its way out takes and releases nothing, and
// objects on their way out are not taken.
func claimOf(obj metav1.Object, owner metav1.Object, matches bool) claim {
	ref := metav1.GetControllerOf(obj)
	ending := owner.GetDeletionTimestamp() != nil
	switch {
	case ref != nil && ref.UID != owner.GetUID():
		return leave
	case ref != nil && (matches || ending):
		if matches {
			return own
		}
		return leave
	case ref != nil:
		return release
	case matches && !ending && obj.GetDeletionTimestamp() == nil:
		return adopt
	}
	return leave
}

// adoptObject makes owner the controlling owner of obj, releaseObject undoes it.
func (h *hub) adoptObject(ctx context.Context, r schema.GroupVersionResource, obj, owner metav1.Object, kind schema.GroupVersionKind) error {
	refs := append(slices.Clone(obj.GetOwnerReferences()), *metav1.NewControllerRef(owner, kind))
	if err := h.setOwners(ctx, r, obj, refs); err != nil {
		return fmt.Errorf("adopt %s %s: %w", r.Resource, obj.GetName(), err)
	}
	h.log.Info("adopted", "kind", r.Resource, "object", obj.GetNamespace()+"/"+obj.GetName(), "owner", owner.GetName())
	return nil
}

func (h *hub) releaseObject(ctx context.Context, r schema.GroupVersionResource, obj, owner metav1.Object) error {
	refs := withoutOwners(obj.GetOwnerReferences(), func(ref metav1.OwnerReference) bool { return ref.UID == owner.GetUID() })
	if err := h.setOwners(ctx, r, obj, refs); ignoreGone(err) != nil {
		return fmt.Errorf("release %s %s: %w", r.Resource, obj.GetName(), err)
	}
	h.log.Info("released", "kind", r.Resource, "object", obj.GetNamespace()+"/"+obj.GetName(), "owner", owner.GetName())
	return nil
}

// withoutOwners is refs without those that drop chooses; refs itself is not changed.
func withoutOwners(refs []metav1.OwnerReference, drop func(metav1.OwnerReference) bool) []metav1.OwnerReference {
	return slices.DeleteFunc(slices.Clone(refs), drop)
}

// setOwners replaces an object's owner references, if the object is still the one that was read.
func (h *hub) setOwners(ctx context.Context, r schema.GroupVersionResource, obj metav1.Object, refs []metav1.OwnerReference) error {
	if refs == nil {
		refs = []metav1.OwnerReference{}
	}
	return h.patchMeta(ctx, r, obj, map[string]any{"ownerReferences": refs})
}

// setFinalizers replaces an object's finalizers, if the object is still the one that was read.
func (h *hub) setFinalizers(ctx context.Context, r schema.GroupVersionResource, obj metav1.Object, finalizers []string) error {
	if finalizers == nil {
		finalizers = []string{}
	}
	return h.patchMeta(ctx, r, obj, map[string]any{"finalizers": finalizers})
}

// patchMeta sets fields of an object's metadata, under the precondition that nobody changed the object since.
func (h *hub) patchMeta(ctx context.Context, r schema.GroupVersionResource, obj metav1.Object, fields map[string]any) error {
	fields["uid"] = obj.GetUID()
	fields["resourceVersion"] = obj.GetResourceVersion()
	patch, err := json.Marshal(map[string]any{"metadata": fields})
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	_, err = h.objects.Resource(r).Namespace(obj.GetNamespace()).Patch(ctx, obj.GetName(), types.MergePatchType, patch,
		metav1.PatchOptions{FieldManager: component})
	return err
}
