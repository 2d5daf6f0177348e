// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/fairlead/fairlead/apiserver/printers"
	"github.com/fairlead/fairlead/apiserver/validation"
)

var replicaSets = &resource[*appsv1.ReplicaSet]{
	gv:         appsv1.SchemeGroupVersion,
	plural:     "replicasets",
	singular:   "replicaset",
	short:      []string{"rs"},
	categories: []string{"all"},
	newObject:  func() *appsv1.ReplicaSet { return &appsv1.ReplicaSet{} },
	newList:    func() runtime.Object { return &appsv1.ReplicaSetList{} },
	create: func(rs *appsv1.ReplicaSet) {
		rs.Generation = 1
		rs.Status = appsv1.ReplicaSetStatus{}
	},
	update: func(rs, old *appsv1.ReplicaSet) {
		rs.Status = old.Status
		bumpGeneration(rs, old, !equality.Semantic.DeepEqual(rs.Spec, old.Spec))
	},
	validate:       validation.ReplicaSet,
	validateUpdate: validation.ReplicaSetUpdate,
	updateStatus:   func(rs, old *appsv1.ReplicaSet) { rs.Spec = old.Spec },
	validateStatus: validation.ReplicaSetStatusUpdate,
	selectable: func(rs *appsv1.ReplicaSet, set fields.Set) {
		set["status.replicas"] = strconv.Itoa(int(rs.Status.Replicas))
	},
}

var deployments = &resource[*appsv1.Deployment]{
	gv:         appsv1.SchemeGroupVersion,
	plural:     "deployments",
	singular:   "deployment",
	short:      []string{"deploy"},
	categories: []string{"all"},
	newObject:  func() *appsv1.Deployment { return &appsv1.Deployment{} },
	newList:    func() runtime.Object { return &appsv1.DeploymentList{} },
	create: func(d *appsv1.Deployment) {
		d.Generation = 1
		d.Status = appsv1.DeploymentStatus{}
	},
	update: func(d, old *appsv1.Deployment) {
		d.Status = old.Status
		bumpGeneration(d, old, !equality.Semantic.DeepEqual(d.Spec, old.Spec) ||
			!equality.Semantic.DeepEqual(d.Annotations, old.Annotations))
	},
	validate:       validation.Deployment,
	validateUpdate: validation.DeploymentUpdate,
	updateStatus: func(d, old *appsv1.Deployment) {
		d.Spec = old.Spec
		d.Labels = old.Labels
	},
	validateStatus: validation.DeploymentStatusUpdate,
}

// workloadStorage is the ReplicaSets and Deployments, each with its status and
// its scale.
func workloadStorage(t *kinds, options generic.RESTOptionsGetter) (map[string]rest.Storage, error) {
	sets, setStatus, err := replicaSets.storage(t, options)
	if err != nil {
		return nil, err
	}
	whole, status, err := deployments.storage(t, options)
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{
		"replicasets":        sets,
		"replicasets/status": setStatus,
		"replicasets/scale":  &scaleStore{sets.Store, replicaSets.groupResource(), replicaSetScale},
		"deployments":        whole,
		"deployments/status": status,
		"deployments/scale":  &scaleStore{whole.Store, deployments.groupResource(), deploymentScale},
	}, nil
}

// scalable is what the scale subresource reads and writes of a workload.
type scalable struct {
	meta     *metav1.ObjectMeta
	replicas **int32
	current  int32
	selector *metav1.LabelSelector
}

func replicaSetScale(obj runtime.Object) scalable {
	rs := obj.(*appsv1.ReplicaSet)
	return scalable{&rs.ObjectMeta, &rs.Spec.Replicas, rs.Status.Replicas, rs.Spec.Selector}
}

func deploymentScale(obj runtime.Object) scalable {
	d := obj.(*appsv1.Deployment)
	return scalable{&d.ObjectMeta, &d.Spec.Replicas, d.Status.Replicas, d.Spec.Selector}
}

// scaleStore shows the replicas of a workload as an object of its own, so that
// clients can scale what they do not know.
type scaleStore struct {
	store    *genericregistry.Store
	resource schema.GroupResource
	view     func(runtime.Object) scalable
}

var (
	_ rest.Patcher                  = (*scaleStore)(nil)
	_ rest.GroupVersionKindProvider = (*scaleStore)(nil)
	_ rest.TableConvertor           = (*scaleStore)(nil)
)

// replicasPath is where the workloads of apps/v1 keep their replicas.
var replicasPath = managedfields.ResourcePathMappings{
	appsv1.SchemeGroupVersion.String(): fieldpath.MakePathOrDie("spec", "replicas"),
}

// New returns an empty scale.
func (s *scaleStore) New() runtime.Object { return &autoscalingv1.Scale{} }

// Destroy does nothing: the storage belongs to the workload.
func (s *scaleStore) Destroy() {}

// GroupVersionKind says that a scale is of the autoscaling group.
func (s *scaleStore) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return autoscalingv1.SchemeGroupVersion.WithKind("Scale")
}

// ConvertToTable prints a scale.
func (s *scaleStore) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	gr := schema.GroupResource{Group: autoscalingv1.GroupName, Resource: "scales"}
	return printers.For(gr).ConvertToTable(ctx, obj, options)
}

// Get reads the scale of a workload.
func (s *scaleStore) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	obj, err := s.store.Get(ctx, name, options)
	if err != nil {
		return nil, err
	}
	return s.scale(obj)
}

// Update writes the replicas of a workload.
func (s *scaleStore) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc,
	update rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	// Admission judges the scale, which is what the request is about.
	validate := func(ctx context.Context, obj, old runtime.Object) error {
		if update == nil {
			return nil
		}
		before, err := s.scale(old)
		if err != nil {
			return err
		}
		after, err := s.scale(obj)
		if err != nil {
			return err
		}
		return update(ctx, after, before)
	}
	obj, _, err := s.store.Update(ctx, name, &scaleInfo{s, name, info}, create, validate, false, options)
	if err != nil {
		return nil, false, err
	}
	scale, err := s.scale(obj)
	return scale, false, err
}

// scale is the view of a workload, with the managed fields that concern the
// replicas.
func (s *scaleStore) scale(obj runtime.Object) (*autoscalingv1.Scale, error) {
	view := s.view(obj)
	selector, err := metav1.LabelSelectorAsSelector(view.selector)
	if err != nil {
		return nil, fmt.Errorf("read selector of %s: %w", view.meta.Name, err)
	}
	managed, err := managedfields.NewScaleHandler(view.meta.ManagedFields, appsv1.SchemeGroupVersion, replicasPath).ToSubresource()
	if err != nil {
		return nil, fmt.Errorf("read managed fields of %s: %w", view.meta.Name, err)
	}
	scale := &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Name:              view.meta.Name,
			Namespace:         view.meta.Namespace,
			UID:               view.meta.UID,
			ResourceVersion:   view.meta.ResourceVersion,
			CreationTimestamp: view.meta.CreationTimestamp,
			ManagedFields:     managed,
		},
		Status: autoscalingv1.ScaleStatus{Replicas: view.current, Selector: selector.String()},
	}
	if *view.replicas != nil {
		scale.Spec.Replicas = **view.replicas
	}
	return scale, nil
}

// scaleInfo turns an update of a scale into an update of its workload.
type scaleInfo struct {
	store *scaleStore
	name  string
	info  rest.UpdatedObjectInfo
}

// Preconditions are those of the scale: it has the workload's UID.
func (i *scaleInfo) Preconditions() *metav1.Preconditions { return i.info.Preconditions() }

// UpdatedObject is the workload with the replicas of the updated scale.
func (i *scaleInfo) UpdatedObject(ctx context.Context, old runtime.Object) (runtime.Object, error) {
	workload := old.DeepCopyObject()
	view := i.store.view(workload)
	handler := managedfields.NewScaleHandler(view.meta.ManagedFields, appsv1.SchemeGroupVersion, replicasPath)
	before, err := i.store.scale(workload)
	if err != nil {
		return nil, err
	}
	obj, err := i.info.UpdatedObject(ctx, before)
	if err != nil {
		return nil, err
	}
	scale, ok := obj.(*autoscalingv1.Scale)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected input object type to be Scale, but %T", obj))
	}
	if errs := validation.Scale(scale); len(errs) > 0 {
		return nil, apierrors.NewInvalid(autoscalingv1.SchemeGroupVersion.WithKind("Scale").GroupKind(), i.name, errs)
	}
	if scale.ResourceVersion != "" {
		// The library compares it with the stored one.
		view.meta.ResourceVersion = scale.ResourceVersion
	}
	replicas := scale.Spec.Replicas
	*view.replicas = &replicas
	if view.meta.ManagedFields, err = handler.ToParent(scale.ManagedFields); err != nil {
		return nil, fmt.Errorf("write managed fields of %s: %w", i.name, err)
	}
	return workload, nil
}
