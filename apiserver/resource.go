// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/names"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/fairlead/fairlead/apiserver/printers"
)

// object is a pointer to a Kubernetes type.
type object interface {
	runtime.Object
	metav1.Object
}

// resource declares one kind of the API: everything its storage has to know.
// Functions that are nil do nothing.
type resource[T object] struct {
	gv         schema.GroupVersion
	plural     string
	singular   string
	short      []string
	categories []string
	clustered  bool // not in a namespace

	newObject func() T
	newList   func() runtime.Object

	// create normalises a new object before validation: what a client may
	// not set is cleared.
	create func(obj T)
	// update does the same before an update by a client, who may not write
	// the status. It keeps the generation.
	update   func(obj, old T)
	validate func(obj T) field.ErrorList
	// validateUpdate may be nil when validate says all there is to say.
	validateUpdate func(obj, old T) field.ErrorList

	// warnings are told to whoever writes an object, which is stored all the
	// same.
	warnings func(obj T) []string

	// updateStatus keeps everything but the status. A kind without it has no
	// status subresource.
	updateStatus   func(obj, old T)
	validateStatus func(obj, old T) field.ErrorList

	// selectable adds the values of the field selectors in fieldLabels.
	selectable func(obj T, set fields.Set)
	// index is the one selectable field that watches are sorted by, so that
	// a change wakes only the watchers of its value.
	index string
	// grace sets options.GracePeriodSeconds of a graceful deletion.
	grace func(obj T, options *metav1.DeleteOptions)
	// ttl is how long an object lives, in seconds; 0 is for ever.
	ttl uint64

	createOnUpdate bool // a PUT of a missing object creates it
	versioned      bool // a PUT must carry the resource version
}

// groupResource is the resource's name in storage and in messages.
func (r *resource[T]) groupResource() schema.GroupResource {
	return schema.GroupResource{Group: r.gv.Group, Resource: r.plural}
}

// store is the storage of one kind as the API installer wants it.
type store struct {
	*genericregistry.Store
	short, categories []string
}

var (
	_ rest.StandardStorage      = (*store)(nil)
	_ rest.ShortNamesProvider   = (*store)(nil)
	_ rest.CategoriesProvider   = (*store)(nil)
	_ rest.SingularNameProvider = (*store)(nil)
)

// ShortNames are the abbreviations that kubectl takes for the resource.
func (s *store) ShortNames() []string { return s.short }

// Categories are the groups of resources, such as all, that it belongs to.
func (s *store) Categories() []string { return s.categories }

// storage builds the kind's storage, and that of its status subresource when
// there is one. Hooks may be set on the returned store until the server starts.
func (r *resource[T]) storage(t *kinds, options generic.RESTOptionsGetter) (*store, *statusStore, error) {
	plain := strategy[T]{ObjectTyper: t.scheme, NameGenerator: names.SimpleNameGenerator, resource: r}
	var deletion rest.RESTDeleteStrategy = plain
	if r.grace != nil {
		deletion = gracefulStrategy[T]{plain}
	}
	s := &genericregistry.Store{
		NewFunc:                   func() runtime.Object { return r.newObject() },
		NewListFunc:               r.newList,
		DefaultQualifiedResource:  r.groupResource(),
		SingularQualifiedResource: schema.GroupResource{Group: r.gv.Group, Resource: r.singular},
		PredicateFunc:             r.predicate,
		CreateStrategy:            plain,
		UpdateStrategy:            plain,
		DeleteStrategy:            deletion,
		ResetFieldsStrategy:       plain,
		TableConvertor:            printers.For(r.groupResource()),
	}
	if r.ttl > 0 {
		s.TTLFunc = func(runtime.Object, uint64, bool) (uint64, error) { return r.ttl, nil }
	}
	storeOptions := &generic.StoreOptions{RESTOptions: options, AttrFunc: r.attributes}
	if r.index != "" {
		storeOptions.TriggerFunc = storage.IndexerFuncs{r.index: r.indexValue}
		storeOptions.Indexers = &cache.Indexers{storage.FieldIndex(r.index): func(obj any) ([]string, error) {
			return []string{r.indexValue(obj.(runtime.Object))}, nil
		}}
	}
	if err := s.CompleteWithOptions(storeOptions); err != nil {
		return nil, nil, fmt.Errorf("complete storage of %s: %w", r.groupResource(), err)
	}
	whole := &store{Store: s, short: r.short, categories: r.categories}
	if r.updateStatus == nil {
		return whole, nil, nil
	}
	narrow := *s
	status := statusStrategy[T]{plain}
	narrow.UpdateStrategy, narrow.ResetFieldsStrategy = status, status
	return whole, &statusStore{&narrow}, nil
}

// attributes is what label and field selectors are matched with.
func (r *resource[T]) attributes(obj runtime.Object) (labels.Set, fields.Set, error) {
	o, ok := obj.(T)
	if !ok {
		return nil, nil, fmt.Errorf("%T is not a %s", obj, r.singular)
	}
	set := make(fields.Set, 12)
	set["metadata.name"] = o.GetName()
	if !r.clustered {
		set["metadata.namespace"] = o.GetNamespace()
	}
	if r.selectable != nil {
		r.selectable(o, set)
	}
	return o.GetLabels(), set, nil
}

// indexValue is the value of the indexed field.
func (r *resource[T]) indexValue(obj runtime.Object) string {
	set := fields.Set{}
	r.selectable(obj.(T), set)
	return set[r.index]
}

// predicate pairs the selectors of a request with the kind's attributes.
func (r *resource[T]) predicate(label labels.Selector, selector fields.Selector) storage.SelectionPredicate {
	p := storage.SelectionPredicate{Label: label, Field: selector, GetAttrs: r.attributes}
	if r.index != "" {
		p.IndexFields = []string{r.index}
	}
	return p
}

// strategy is the library's view of a resource.
type strategy[T object] struct {
	runtime.ObjectTyper
	names.NameGenerator
	resource *resource[T]
}

var (
	_ rest.RESTCreateStrategy         = strategy[object]{}
	_ rest.RESTUpdateStrategy         = strategy[object]{}
	_ rest.RESTDeleteStrategy         = strategy[object]{}
	_ rest.ResetFieldsStrategy        = strategy[object]{}
	_ rest.RESTUpdateStrategy         = statusStrategy[object]{}
	_ rest.RESTGracefulDeleteStrategy = gracefulStrategy[object]{}
)

// NamespaceScoped says whether objects live in a namespace.
func (s strategy[T]) NamespaceScoped() bool { return !s.resource.clustered }

// AllowCreateOnUpdate says whether a PUT may create.
func (s strategy[T]) AllowCreateOnUpdate(context.Context) bool { return s.resource.createOnUpdate }

// AllowUnconditionalUpdate says whether a PUT without resource version wins.
func (s strategy[T]) AllowUnconditionalUpdate(context.Context) bool { return !s.resource.versioned }

// Canonicalize does nothing: objects are stored as they were validated.
func (s strategy[T]) Canonicalize(runtime.Object) {}

// PrepareForCreate clears what a client may not set.
func (s strategy[T]) PrepareForCreate(_ context.Context, obj runtime.Object) {
	if s.resource.create != nil {
		s.resource.create(obj.(T))
	}
}

// PrepareForUpdate keeps what a client may not change.
func (s strategy[T]) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	if s.resource.update != nil {
		s.resource.update(obj.(T), old.(T))
	}
}

// Validate names every field that is wrong.
func (s strategy[T]) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return s.resource.validate(obj.(T))
}

// ValidateUpdate names every field that is wrong or may not change.
func (s strategy[T]) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	if s.resource.validateUpdate == nil {
		return s.resource.validate(obj.(T))
	}
	return s.resource.validateUpdate(obj.(T), old.(T))
}

// WarningsOnCreate says what has no effect or is out of use.
func (s strategy[T]) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	if s.resource.warnings == nil {
		return nil
	}
	return s.resource.warnings(obj.(T))
}

// WarningsOnUpdate says the same of a changed object.
func (s strategy[T]) WarningsOnUpdate(ctx context.Context, obj, _ runtime.Object) []string {
	return s.WarningsOnCreate(ctx, obj)
}

// GetResetFields lists the fields that a write to the resource ignores, so
// that server-side apply does not give their ownership to the writer.
func (s strategy[T]) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	if s.resource.updateStatus == nil {
		return nil
	}
	return s.resource.reset(fieldpath.MakePathOrDie("status"))
}

// reset is a set of fields of the resource's only version.
func (r *resource[T]) reset(paths ...fieldpath.Path) map[fieldpath.APIVersion]*fieldpath.Set {
	return map[fieldpath.APIVersion]*fieldpath.Set{
		fieldpath.APIVersion(r.gv.String()): fieldpath.NewSet(paths...),
	}
}

// gracefulStrategy is strategy for a kind whose objects are told to end before
// they go.
type gracefulStrategy[T object] struct{ strategy[T] }

// CheckGracefulDelete sets the grace period and says that there is one.
func (s gracefulStrategy[T]) CheckGracefulDelete(_ context.Context, obj runtime.Object, options *metav1.DeleteOptions) bool {
	s.resource.grace(obj.(T), options)
	return true
}

// statusStrategy is strategy for writes to the status subresource.
type statusStrategy[T object] struct{ strategy[T] }

// PrepareForUpdate keeps everything but the status.
func (s statusStrategy[T]) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	s.resource.updateStatus(obj.(T), old.(T))
}

// ValidateUpdate names every field of the status that is wrong.
func (s statusStrategy[T]) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	if s.resource.validateStatus == nil {
		return nil
	}
	return s.resource.validateStatus(obj.(T), old.(T))
}

// WarningsOnUpdate has nothing to warn of: the writer of a status has not
// written the rest.
func (s statusStrategy[T]) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

// AllowCreateOnUpdate is false: a status needs its object.
func (s statusStrategy[T]) AllowCreateOnUpdate(context.Context) bool { return false }

// GetResetFields says that a write to the status ignores the spec.
func (s statusStrategy[T]) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return s.resource.reset(fieldpath.MakePathOrDie("spec"))
}

// statusStore is the storage of a status subresource.
type statusStore struct{ store *genericregistry.Store }

var (
	_ rest.Patcher             = (*statusStore)(nil)
	_ rest.ResetFieldsStrategy = (*statusStore)(nil)
	_ rest.TableConvertor      = (*statusStore)(nil)
)

// New returns an empty object of the kind.
func (s *statusStore) New() runtime.Object { return s.store.New() }

// Destroy does nothing: the storage belongs to the kind itself.
func (s *statusStore) Destroy() {}

// Get reads the whole object.
func (s *statusStore) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	return s.store.Get(ctx, name, options)
}

// Update writes the status.
func (s *statusStore) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc,
	update rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return s.store.Update(ctx, name, info, create, update, false, options)
}

// GetResetFields says what a write to the status ignores.
func (s *statusStore) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return s.store.GetResetFields()
}

// ConvertToTable prints the object as the kind is printed.
func (s *statusStore) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return s.store.ConvertToTable(ctx, obj, options)
}
