// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	storageerrors "k8s.io/apiserver/pkg/storage/errors"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/fairlead/fairlead/apiserver/validation"
)

var namespaces = &resource[*corev1.Namespace]{
	gv:        corev1.SchemeGroupVersion,
	plural:    "namespaces",
	singular:  "namespace",
	short:     []string{"ns"},
	clustered: true,
	newObject: func() *corev1.Namespace { return &corev1.Namespace{} },
	newList:   func() runtime.Object { return &corev1.NamespaceList{} },
	create: func(ns *corev1.Namespace) {
		ns.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
		if !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
			ns.Spec.Finalizers = append(ns.Spec.Finalizers, corev1.FinalizerKubernetes)
		}
		labelWithName(ns)
	},
	update: func(ns, old *corev1.Namespace) {
		ns.Spec.Finalizers = old.Spec.Finalizers
		ns.Status = old.Status
		labelWithName(ns)
	},
	validate:       validation.Namespace,
	validateUpdate: validation.NamespaceUpdate,
	updateStatus: func(ns, old *corev1.Namespace) {
		ns.Spec = old.Spec
	},
	validateStatus: validation.NamespaceStatusUpdate,
	selectable: func(ns *corev1.Namespace, set fields.Set) {
		set["status.phase"] = string(ns.Status.Phase)
	},
}

// labelWithName gives a namespace the label that selectors know it by.
func labelWithName(ns *corev1.Namespace) {
	if ns.Labels == nil {
		ns.Labels = map[string]string{}
	}
	ns.Labels[corev1.LabelMetadataName] = ns.Name
}

// namespaceStore deletes in two steps: first the namespace ends, so that
// nothing more is created in it, and it goes when its spec has no finalizers
// left, that is, when the namespace controller has emptied it.
type namespaceStore struct {
	namespaceVerbs
	store *store
}

// namespaceVerbs are the verbs that need nothing of their own. Deletion of a
// whole collection is not among them: every namespace at once is never meant.
type namespaceVerbs interface {
	rest.Lister
	rest.Creater
	rest.Patcher
	rest.Watcher
	rest.Scoper
	rest.ShortNamesProvider
	rest.CategoriesProvider
	rest.SingularNameProvider
	rest.ResetFieldsStrategy
	rest.StorageVersionProvider
	rest.StorageWithReadiness
}

var _ rest.GracefulDeleter = (*namespaceStore)(nil)

// namespaceStorage is the namespace, its status and its finalizers.
func namespaceStorage(t *kinds, options generic.RESTOptionsGetter) (map[string]rest.Storage, error) {
	whole, status, err := namespaces.storage(t, options)
	if err != nil {
		return nil, err
	}
	whole.ShouldDeleteDuringUpdate = finalized
	final := *whole.Store
	final.UpdateStrategy = finalizeStrategy{strategy[*corev1.Namespace]{ObjectTyper: t.scheme, resource: namespaces}}
	final.ResetFieldsStrategy = nil
	status.store.ShouldDeleteDuringUpdate = finalized
	return map[string]rest.Storage{
		"namespaces":          &namespaceStore{whole, whole},
		"namespaces/status":   status,
		"namespaces/finalize": &finalizeStore{&final},
	}, nil
}

// finalizeStore is the storage of the finalize subresource, which has no other
// verb than update.
type finalizeStore struct{ store *genericregistry.Store }

var _ rest.Updater = (*finalizeStore)(nil)

// New returns an empty namespace.
func (f *finalizeStore) New() runtime.Object { return f.store.New() }

// Destroy does nothing: the storage belongs to the namespaces.
func (f *finalizeStore) Destroy() {}

// Update writes the finalizers, and removes the namespace with the last of
// them.
func (f *finalizeStore) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc,
	update rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return f.store.Update(ctx, name, info, create, update, false, options)
}

// finalizeStrategy is strategy for writes to the finalize subresource.
type finalizeStrategy struct {
	strategy[*corev1.Namespace]
}

// PrepareForUpdate keeps the status.
func (finalizeStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*corev1.Namespace).Status = old.(*corev1.Namespace).Status
}

// finalized says that an update left nothing in the spec that keeps the
// namespace; the library looks at the metadata itself.
func finalized(_ context.Context, _ string, obj, _ runtime.Object) bool {
	return len(obj.(*corev1.Namespace).Spec.Finalizers) == 0
}

// Delete starts the end of a namespace, or completes it.
func (s *namespaceStore) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc,
	options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	obj, err := s.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, false, err
	}
	ns := obj.(*corev1.Namespace)
	if options == nil {
		options = metav1.NewDeleteOptions(0)
	}
	if options.Preconditions == nil {
		options.Preconditions = &metav1.Preconditions{}
	}
	if options.Preconditions.UID == nil {
		options.Preconditions.UID = &ns.UID
	} else if *options.Preconditions.UID != ns.UID {
		return nil, false, apierrors.NewConflict(namespaces.groupResource(), name,
			fmt.Errorf("precondition failed: UID in precondition: %v, UID in object meta: %v", *options.Preconditions.UID, ns.UID))
	}
	if ns.DeletionTimestamp.IsZero() {
		out, err := s.terminate(ctx, name, validate, options)
		return out, false, err
	}
	if len(ns.Spec.Finalizers) > 0 {
		return ns, false, nil
	}
	return s.store.Delete(ctx, name, validate, options)
}

// terminate sets the deletion timestamp and the phase, in one write.
func (s *namespaceStore) terminate(ctx context.Context, name string, validate rest.ValidateObjectFunc,
	options *metav1.DeleteOptions) (runtime.Object, error) {
	key, err := s.store.KeyFunc(ctx, name)
	if err != nil {
		return nil, err
	}
	preconditions := &storage.Preconditions{
		UID:             options.Preconditions.UID,
		ResourceVersion: options.Preconditions.ResourceVersion,
	}
	out := namespaces.newObject()
	err = s.store.Storage.GuaranteedUpdate(ctx, key, out, false, preconditions,
		storage.SimpleUpdate(func(existing runtime.Object) (runtime.Object, error) {
			ns := existing.(*corev1.Namespace)
			if validate != nil {
				if err := validate(ctx, ns); err != nil {
					return nil, err
				}
			}
			if ns.DeletionTimestamp.IsZero() {
				now := metav1.Now()
				ns.DeletionTimestamp = &now
			}
			ns.Status.Phase = corev1.NamespaceTerminating
			setDependentsFinalizer(ns, options)
			return ns, nil
		}), dryrun.IsDryRun(options.DryRun), nil)
	if err != nil {
		err = storageerrors.InterpretGetError(err, namespaces.groupResource(), name)
		return nil, storageerrors.InterpretUpdateError(err, namespaces.groupResource(), name)
	}
	return out, nil
}

// setDependentsFinalizer records in the finalizers what shall become of
// objects that the namespace owns.
func setDependentsFinalizer(ns *corev1.Namespace, options *metav1.DeleteOptions) {
	orphan := slices.Contains(ns.Finalizers, metav1.FinalizerOrphanDependents)
	foreground := slices.Contains(ns.Finalizers, metav1.FinalizerDeleteDependents)
	switch {
	case options.OrphanDependents != nil:
		orphan, foreground = *options.OrphanDependents, false
	case options.PropagationPolicy != nil:
		orphan = *options.PropagationPolicy == metav1.DeletePropagationOrphan
		foreground = *options.PropagationPolicy == metav1.DeletePropagationForeground
	}
	ns.Finalizers = slices.DeleteFunc(ns.Finalizers, func(f string) bool {
		return f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents
	})
	if orphan {
		ns.Finalizers = append(ns.Finalizers, metav1.FinalizerOrphanDependents)
	}
	if foreground {
		ns.Finalizers = append(ns.Finalizers, metav1.FinalizerDeleteDependents)
	}
}
