// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

const ownedBy = "owned" // index of every informer: UIDs of all owners

// collector follows owner references: an object whose owners are all gone is deleted, an owner that is deleted in
// the foreground waits for its dependents, one that orphans them lets them go first.
//
// There is no graph of its own: the informers of the other controllers, indexed by owner, are the graph. Both
// ends of a reference are looked at when either changes, so it does not matter which informer lags.
type collector struct {
	*loop[ref]
	h         *hub
	informers map[schema.GroupVersionKind]*collected
}

// collected is one kind that takes part.
type collected struct {
	kind
	informer cache.SharedIndexInformer
}

// ref names one object of one kind.
type ref struct {
	kind schema.GroupVersionKind
	name cache.ObjectName
}

func (r ref) String() string { return r.kind.Kind + " " + r.name.String() }

// uncollected kinds are never owned and can be very many.
var uncollected = map[schema.GroupKind]bool{
	{Kind: "Event"}:                                 true,
	{Group: "events.k8s.io", Kind: "Event"}:         true,
	{Group: "networking.k8s.io", Kind: "IPAddress"}: true, // belongs to the allocator
}

func newCollector(h *hub) *collector {
	c := &collector{h: h, informers: map[schema.GroupVersionKind]*collected{}}
	c.loop = newLoop(h, "gc", 8, c.reconcile)
	for _, k := range h.kinds {
		if uncollected[k.gvk.GroupKind()] {
			continue
		}
		generic, err := h.factory.ForResource(k.resource)
		if err != nil {
			h.log.Warn("kind takes no part in garbage collection", "kind", k.gvk, "err", err)
			continue
		}
		of := &collected{k, generic.Informer()}
		h.index(of.informer, cache.Indexers{ownedBy: byOwners})
		c.informers[k.gvk] = of
		c.watch(of)
	}
	return c
}

// byOwners indexes objects by the UIDs of all their owners.
func byOwners(obj any) ([]string, error) {
	o, err := meta.Accessor(obj)
	if err != nil {
		return nil, err
	}
	var owners []string
	for _, r := range o.GetOwnerReferences() {
		owners = append(owners, string(r.UID))
	}
	return owners, nil
}

func (c *collector) watch(of *collected) {
	on := func(obj any, gone bool) {
		if lost, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = lost.Obj
		}
		o, err := meta.Accessor(obj)
		if err != nil {
			return
		}
		c.onChange(of.gvk, o, gone)
	}
	reg, err := of.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { on(obj, false) },
		UpdateFunc: func(_, obj any) { on(obj, false) },
		DeleteFunc: func(obj any) { on(obj, true) },
	})
	if err != nil { // only for an informer that has stopped, which would be a mistake in Run
		panic(fmt.Sprintf("watch %s: %v", of.gvk, err))
	}
	c.h.synced = append(c.h.synced, reg.HasSynced)
}

// onChange queues what a change can concern: the object itself, and when it is gone everything it owned and the
// owners that may be waiting for it.
func (c *collector) onChange(k schema.GroupVersionKind, o metav1.Object, gone bool) {
	if !gone {
		if len(o.GetOwnerReferences()) > 0 || deletingWith(o, metav1.FinalizerDeleteDependents) || deletingWith(o, metav1.FinalizerOrphanDependents) {
			c.add(ref{k, objectName(o)})
		}
		return
	}
	for _, d := range c.dependents(o.GetUID()) {
		c.add(d.ref())
	}
	for _, owner := range o.GetOwnerReferences() {
		if found, obj := c.cached(owner, o.GetNamespace()); obj != nil && deletingWith(obj, metav1.FinalizerDeleteDependents) {
			c.add(ref{found.gvk, objectName(obj)})
		}
	}
}

func objectName(o metav1.Object) cache.ObjectName {
	return cache.ObjectName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func deletingWith(o metav1.Object, finalizer string) bool {
	return o.GetDeletionTimestamp() != nil && slices.Contains(o.GetFinalizers(), finalizer)
}

// dependent is an object found through the owner index.
type dependent struct {
	of  *collected
	obj metav1.Object
}

func (d dependent) ref() ref { return ref{d.of.gvk, objectName(d.obj)} }

// dependents lists everything that names owner in its owner references.
func (c *collector) dependents(owner types.UID) []dependent {
	var out []dependent
	for _, of := range c.informers {
		objs, err := of.informer.GetIndexer().ByIndex(ownedBy, string(owner))
		if err != nil { // only for an unknown index: a mistake in this package
			panic(fmt.Sprintf("list dependents: %v", err))
		}
		for _, obj := range objs {
			if o, err := meta.Accessor(obj); err == nil {
				out = append(out, dependent{of, o})
			}
		}
	}
	return out
}

// cached finds an owner in the informers: nil if the kind is unknown, and a nil object if there is none or another
// of the same name.
func (c *collector) cached(owner metav1.OwnerReference, namespace string) (*collected, metav1.Object) {
	of := c.informers[schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind)]
	if of == nil {
		return nil, nil
	}
	obj, ok, err := of.informer.GetIndexer().GetByKey(of.nameIn(namespace, owner.Name).String())
	if err != nil || !ok {
		return of, nil
	}
	o, err := meta.Accessor(obj)
	if err != nil || o.GetUID() != owner.UID {
		return of, nil
	}
	return of, o
}

func (c *collector) reconcile(ctx context.Context, r ref) (time.Duration, error) {
	of := c.informers[r.kind]
	obj, ok, err := of.informer.GetIndexer().GetByKey(r.name.String())
	if err != nil || !ok {
		return 0, err
	}
	shown, err := meta.Accessor(obj)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", r, err)
	}
	switch {
	case deletingWith(shown, metav1.FinalizerOrphanDependents):
		return 0, c.orphan(ctx, of, shown)
	case deletingWith(shown, metav1.FinalizerDeleteDependents):
		return 0, c.waitForDependents(ctx, of, shown)
	case shown.GetDeletionTimestamp() != nil:
		return 0, nil // on its way out
	}
	return 0, c.collect(ctx, of, shown)
}

// orphan lets the dependents go, then their owner.
func (c *collector) orphan(ctx context.Context, of *collected, owner metav1.Object) error {
	var errs []error
	for _, d := range c.dependents(owner.GetUID()) {
		refs := withoutOwners(d.obj.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == owner.GetUID() })
		if err := c.h.setOwners(ctx, d.of.resource, d.obj, refs); ignoreGone(err) != nil {
			errs = append(errs, fmt.Errorf("orphan %s: %w", d.ref(), err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.dropFinalizer(ctx, of, owner, metav1.FinalizerOrphanDependents)
}

// waitForDependents deletes the dependents and lets the owner go when none is left that blocks it.
func (c *collector) waitForDependents(ctx context.Context, of *collected, owner metav1.Object) error {
	blocked := false
	for _, d := range c.dependents(owner.GetUID()) {
		for _, r := range d.obj.GetOwnerReferences() {
			blocked = blocked || r.UID == owner.GetUID() && r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion
		}
		if d.obj.GetDeletionTimestamp() == nil {
			c.add(d.ref())
		}
	}
	if blocked {
		return nil // the end of each dependent brings us back
	}
	return c.dropFinalizer(ctx, of, owner, metav1.FinalizerDeleteDependents)
}

func (c *collector) dropFinalizer(ctx context.Context, of *collected, o metav1.Object, finalizer string) error {
	rest := slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == finalizer })
	if err := c.h.setFinalizers(ctx, of.resource, o, rest); ignoreGone(err) != nil {
		return fmt.Errorf("finalize %s: %w", o.GetName(), err)
	}
	c.log.Info("let go", "kind", of.gvk.Kind, "object", objectName(o).String(), "after", finalizer)
	return nil
}

// standing is what an owner reference is worth.
type standing int

const (
	solid   standing = iota // the owner is there, or it cannot be told
	gone                    // there is no such owner
	leaving                 // the owner waits for its dependents to go first
)

// collect deletes an object when no owner is left, and otherwise drops its references to owners that are gone.
func (c *collector) collect(ctx context.Context, of *collected, shown metav1.Object) error {
	stands := map[types.UID]standing{}
	count := map[standing]int{}
	for _, r := range shown.GetOwnerReferences() {
		s, err := c.standing(ctx, shown, r)
		if err != nil {
			return err
		}
		stands[r.UID] = s
		count[s]++
	}
	switch {
	case count[gone]+count[leaving] == 0:
		return nil
	case count[solid] > 0:
		refs := withoutOwners(shown.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return stands[r.UID] != solid })
		if err := c.h.setOwners(ctx, of.resource, shown, refs); ignoreGone(err) != nil {
			return fmt.Errorf("drop references to gone owners: %w", err)
		}
		return nil
	}
	return c.delete(ctx, of, shown, count[leaving] > 0)
}

func (c *collector) delete(ctx context.Context, of *collected, o metav1.Object, foreground bool) error {
	policy := metav1.DeletePropagationBackground
	if foreground && len(c.dependents(o.GetUID())) > 0 {
		policy = metav1.DeletePropagationForeground // who waits for this one waits for its dependents too
	}
	for _, f := range o.GetFinalizers() { // what was asked for this object before stands
		switch f {
		case metav1.FinalizerOrphanDependents:
			policy = metav1.DeletePropagationOrphan
		case metav1.FinalizerDeleteDependents:
			policy = metav1.DeletePropagationForeground
		}
	}
	uid, version := o.GetUID(), o.GetResourceVersion()
	err := c.h.objects.Resource(of.resource).Namespace(o.GetNamespace()).Delete(ctx, o.GetName(), metav1.DeleteOptions{
		PropagationPolicy: &policy,
		// the version too: a reference to a new owner may have been added meanwhile
		Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version},
	})
	if ignoreGone(err) != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if err == nil {
		c.log.Info("deleted, its owner is gone", "kind", of.gvk.Kind, "object", objectName(o).String())
	}
	return nil
}

// standing asks the informers for an owner and, where they show none, the server: they may lag.
func (c *collector) standing(ctx context.Context, o metav1.Object, r metav1.OwnerReference) (standing, error) {
	owners, obj := c.cached(r, o.GetNamespace())
	switch {
	case owners == nil, owners.namespaced && o.GetNamespace() == "":
		return solid, nil // not a kind we know, or a reference that cannot be right: never delete on a guess
	case obj != nil && deletingWith(obj, metav1.FinalizerDeleteDependents):
		return leaving, nil
	case obj != nil:
		return solid, nil
	}
	name := owners.nameIn(o.GetNamespace(), r.Name)
	live, err := c.h.objects.Resource(owners.resource).Namespace(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return gone, nil
	case err != nil:
		return solid, fmt.Errorf("get owner %s %s: %w", r.Kind, r.Name, err)
	case live.UID != r.UID:
		return gone, nil
	case deletingWith(live, metav1.FinalizerDeleteDependents):
		return leaving, nil
	}
	return solid, nil
}
