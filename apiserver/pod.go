// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	storageerrors "k8s.io/apiserver/pkg/storage/errors"
	"k8s.io/apiserver/pkg/util/dryrun"
	"k8s.io/kubectl/pkg/util/qos"

	"github.com/fairlead/fairlead/apiserver/validation"
)

var pods = &resource[*corev1.Pod]{
	gv:         corev1.SchemeGroupVersion,
	plural:     "pods",
	singular:   "pod",
	short:      []string{"po"},
	categories: []string{"all"},
	newObject:  func() *corev1.Pod { return &corev1.Pod{} },
	newList:    func() runtime.Object { return &corev1.PodList{} },
	create: func(pod *corev1.Pod) {
		pod.Generation = 1
		pod.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: qos.GetPodQOS(pod)}
	},
	update: func(pod, old *corev1.Pod) {
		pod.Status = old.Status
		bumpGeneration(pod, old, !equality.Semantic.DeepEqual(pod.Spec, old.Spec))
	},
	validate:       validation.Pod,
	validateUpdate: validation.PodUpdate,
	updateStatus: func(pod, old *corev1.Pod) {
		pod.Spec = old.Spec
		pod.DeletionTimestamp = nil // the library restores the stored one
		pod.OwnerReferences = old.OwnerReferences
		pod.Status.QOSClass = old.Status.QOSClass
	},
	validateStatus: validation.PodStatusUpdate,
	selectable: func(pod *corev1.Pod, set fields.Set) {
		set["spec.nodeName"] = pod.Spec.NodeName
		set["spec.restartPolicy"] = string(pod.Spec.RestartPolicy)
		set["spec.schedulerName"] = pod.Spec.SchedulerName
		set["spec.serviceAccountName"] = pod.Spec.ServiceAccountName
		set["spec.hostNetwork"] = strconv.FormatBool(pod.Spec.HostNetwork)
		set["status.phase"] = string(pod.Status.Phase)
		set["status.podIP"] = pod.Status.PodIP
		if pod.Status.PodIP == "" && len(pod.Status.PodIPs) > 0 {
			set["status.podIP"] = pod.Status.PodIPs[0].IP
		}
		set["status.nominatedNodeName"] = pod.Status.NominatedNodeName
	},
	index: "spec.nodeName",
	grace: podGrace,
}

// podGrace sets how long a pod may take to end. A pod that runs nowhere has
// nothing to end and goes at once; any other is removed by its node, with a
// second deletion whose grace period is 0.
func podGrace(pod *corev1.Pod, options *metav1.DeleteOptions) {
	var seconds int64
	switch {
	case options.GracePeriodSeconds != nil:
		seconds = *options.GracePeriodSeconds
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		seconds = *pod.Spec.TerminationGracePeriodSeconds
	}
	ended := pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
	if pod.Spec.NodeName == "" || ended {
		seconds = 0
	}
	if seconds < 0 {
		seconds = 1
	}
	options.GracePeriodSeconds = &seconds
}

// podStorage is the pod, its status, and the two requests that are made of it:
// to run on a node, and to leave it.
func podStorage(t *kinds, options generic.RESTOptionsGetter) (map[string]rest.Storage, error) {
	whole, status, err := pods.storage(t, options)
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{
		"pods":          whole,
		"pods/status":   status,
		"pods/binding":  &bindingStore{whole.Store},
		"pods/eviction": &evictionStore{whole.Store},
	}, nil
}

// bindingStore assigns a pod to a node.
type bindingStore struct{ pods *genericregistry.Store }

var (
	_ rest.NamedCreater                   = (*bindingStore)(nil)
	_ rest.SubresourceObjectMetaPreserver = (*bindingStore)(nil)
)

// New returns an empty binding.
func (b *bindingStore) New() runtime.Object { return &corev1.Binding{} }

// Destroy does nothing: the storage belongs to the pods.
func (b *bindingStore) Destroy() {}

// PreserveRequestObjectMetaSystemFieldsOnSubresourceCreate keeps the UID of a
// binding, which names the pod that is meant.
func (b *bindingStore) PreserveRequestObjectMetaSystemFieldsOnSubresourceCreate() bool { return true }

// Create sets the pod's node and its PodScheduled condition in one write. It
// is a conflict if the pod has a node already, is ending, or is another pod of
// the same name.
func (b *bindingStore) Create(ctx context.Context, name string, obj runtime.Object,
	validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	binding, ok := obj.(*corev1.Binding)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a Binding object: %#v", obj))
	}
	if binding.Name != "" && name != binding.Name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if errs := validation.Binding(binding); len(errs) > 0 {
		return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Binding").GroupKind(), name, errs)
	}
	if validate != nil {
		if err := validate(ctx, binding); err != nil {
			return nil, err
		}
	}
	key, err := b.pods.KeyFunc(ctx, name)
	if err != nil {
		return nil, err
	}
	var preconditions *storage.Preconditions
	if binding.UID != "" || binding.ResourceVersion != "" {
		preconditions = &storage.Preconditions{}
		if binding.UID != "" {
			preconditions.UID = &binding.UID
		}
		if binding.ResourceVersion != "" {
			preconditions.ResourceVersion = &binding.ResourceVersion
		}
	}
	bind := func(obj runtime.Object) (runtime.Object, error) { return bindPod(obj.(*corev1.Pod), binding) }
	err = b.pods.Storage.GuaranteedUpdate(ctx, key, pods.newObject(), false, preconditions,
		storage.SimpleUpdate(bind), dryrun.IsDryRun(options.DryRun), nil)
	if err != nil {
		err = storageerrors.InterpretGetError(err, pods.groupResource(), name)
		err = storageerrors.InterpretUpdateError(err, pods.groupResource(), name)
		if _, ok := err.(*apierrors.StatusError); !ok {
			err = apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, name, err)
		}
		return nil, err
	}
	return &metav1.Status{Status: metav1.StatusSuccess, Code: 201}, nil
}

// bindPod is the pod as it is on its node.
func bindPod(pod *corev1.Pod, binding *corev1.Binding) (*corev1.Pod, error) {
	if pod.DeletionTimestamp != nil {
		return nil, fmt.Errorf("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	}
	if pod.Spec.NodeName != "" {
		return nil, fmt.Errorf("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	}
	if len(pod.Spec.SchedulingGates) > 0 {
		return nil, fmt.Errorf("pod %v has non-empty .spec.schedulingGates", pod.Name)
	}
	pod.Spec.NodeName = binding.Target.Name
	pod.Generation++
	if len(binding.Annotations) > 0 && pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	maps.Copy(pod.Annotations, binding.Annotations)
	setPodScheduled(&pod.Status)
	return pod, nil
}

// setPodScheduled sets the condition that says that the pod has a node.
func setPodScheduled(status *corev1.PodStatus) {
	scheduled := corev1.PodCondition{
		Type:               corev1.PodScheduled,
		Status:             corev1.ConditionTrue,
		LastTransitionTime: metav1.Now(),
	}
	for i := range status.Conditions {
		if status.Conditions[i].Type != corev1.PodScheduled {
			continue
		}
		if status.Conditions[i].Status == corev1.ConditionTrue {
			scheduled.LastTransitionTime = status.Conditions[i].LastTransitionTime
		}
		status.Conditions[i] = scheduled
		return
	}
	status.Conditions = append(status.Conditions, scheduled)
}

// evictionStore asks a pod to leave. There are no disruption budgets here, so
// it is a deletion.
type evictionStore struct{ pods *genericregistry.Store }

var (
	_ rest.NamedCreater             = (*evictionStore)(nil)
	_ rest.GroupVersionKindProvider = (*evictionStore)(nil)
)

// New returns an empty eviction.
func (e *evictionStore) New() runtime.Object { return &policyv1.Eviction{} }

// Destroy does nothing: the storage belongs to the pods.
func (e *evictionStore) Destroy() {}

// GroupVersionKind says that an eviction is of the policy group.
func (e *evictionStore) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return policyv1.SchemeGroupVersion.WithKind("Eviction")
}

// Create deletes the pod as the eviction's options say.
func (e *evictionStore) Create(ctx context.Context, name string, obj runtime.Object,
	validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	eviction, ok := obj.(*policyv1.Eviction)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not an Eviction object: %#v", obj))
	}
	if eviction.Name != "" && name != eviction.Name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	if validate != nil {
		if err := validate(ctx, eviction); err != nil {
			return nil, err
		}
	}
	how := eviction.DeleteOptions.DeepCopy()
	if how == nil {
		how = &metav1.DeleteOptions{}
	}
	if len(options.DryRun) > 0 {
		how.DryRun = options.DryRun
	}
	// The library takes the resource's name for messages from the request,
	// which is for the subresource.
	ctx = request.WithRequestInfo(ctx, &request.RequestInfo{Resource: pods.plural})
	if _, _, err := e.pods.Delete(ctx, name, rest.ValidateAllObjectFunc, how); err != nil {
		return nil, err
	}
	return &metav1.Status{Status: metav1.StatusSuccess, Code: 201}, nil
}
