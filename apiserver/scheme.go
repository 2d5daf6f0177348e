// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"reflect"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/recognizer"

	"github.com/fairlead/fairlead/apiserver/defaults"
)

// served lists the API groups, in the order of preference in discovery.
var served = []struct {
	gv  schema.GroupVersion
	add func(*runtime.Scheme) error
}{
	{corev1.SchemeGroupVersion, corev1.AddToScheme},
	{appsv1.SchemeGroupVersion, appsv1.AddToScheme},
	{discoveryv1.SchemeGroupVersion, discoveryv1.AddToScheme},
	{networkingv1.SchemeGroupVersion, networkingv1.AddToScheme},
	{coordinationv1.SchemeGroupVersion, coordinationv1.AddToScheme},
	{authorizationv1.SchemeGroupVersion, authorizationv1.AddToScheme},
	{autoscalingv1.SchemeGroupVersion, autoscalingv1.AddToScheme},
	{policyv1.SchemeGroupVersion, policyv1.AddToScheme},
}

// kinds is what the server knows about Go types. One Go type stands for both
// the external version of a kind and its internal one, so nothing is ever
// converted: Kubernetes' own split exists to serve several versions of a kind,
// and there is only v1 here.
type kinds struct {
	scheme *runtime.Scheme
	codecs serializer.CodecFactory
	// external knows only the v1 names; OpenAPI is generated from it, so that
	// the internal version's name does not leak to clients.
	external *runtime.Scheme
}

// newKinds builds the scheme with all kinds, their defaults and their field
// selectors.
func newKinds() (*kinds, error) {
	t := &kinds{scheme: runtime.NewScheme(), external: runtime.NewScheme()}
	unversioned := schema.GroupVersion{Version: "v1"}
	for _, s := range []*runtime.Scheme{t.scheme, t.external} {
		for _, group := range served {
			if err := group.add(s); err != nil {
				return nil, fmt.Errorf("register %s: %w", group.gv, err)
			}
		}
		metav1.AddToGroupVersion(s, unversioned)
		s.AddUnversionedTypes(unversioned, &metav1.Status{}, &metav1.APIVersions{},
			&metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{})
	}
	for _, group := range served {
		registerInternal(t.scheme, group.gv)
		if err := t.scheme.SetVersionPriority(group.gv); err != nil {
			return nil, fmt.Errorf("set version priority of %s: %w", group.gv, err)
		}
	}
	if err := defaults.Register(t.scheme); err != nil {
		return nil, fmt.Errorf("register defaults: %w", err)
	}
	if err := registerFieldLabels(t.scheme); err != nil {
		return nil, fmt.Errorf("register field labels: %w", err)
	}
	t.codecs = serializer.NewCodecFactory(t.scheme)
	return t, nil
}

// registerInternal gives every kind of gv its internal name too. The types of
// the meta package are left out: the library registers its own for them.
func registerInternal(s *runtime.Scheme, gv schema.GroupVersion) {
	internal := schema.GroupVersion{Group: gv.Group, Version: runtime.APIVersionInternal}
	meta := reflect.TypeFor[metav1.ObjectMeta]().PkgPath()
	for kind, t := range s.KnownTypes(gv) {
		if t.PkgPath() == meta {
			continue
		}
		s.AddKnownTypeWithName(internal.WithKind(kind), reflect.New(t).Interface().(runtime.Object))
	}
}

// storageCodec reads and writes objects in etcd: protobuf, in the v1 form.
func (t *kinds) storageCodec() (runtime.Codec, runtime.GroupVersioner, error) {
	info, ok := runtime.SerializerInfoForMediaType(t.codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		return nil, nil, fmt.Errorf("no serializer for %s", runtime.ContentTypeProtobuf)
	}
	var versions schema.GroupVersions
	for _, group := range served {
		versions = append(versions, group.gv)
	}
	encoder := t.codecs.EncoderForVersion(info.Serializer, versions)
	decoder := t.codecs.DecoderToVersion(
		recognizer.NewDecoder(info.Serializer, t.codecs.UniversalDeserializer()), runtime.InternalGroupVersioner)
	return runtime.NewCodec(encoder, decoder), versions, nil
}

// fieldLabels names, per kind, the field selectors beyond metadata.name and
// metadata.namespace. A selector on any other field is refused by the API with
// Kubernetes' own message.
var fieldLabels = map[schema.GroupVersionKind][]string{
	corev1.SchemeGroupVersion.WithKind("Pod"): {
		"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName",
		"spec.hostNetwork", "status.phase", "status.podIP", "status.podIPs", "status.nominatedNodeName",
	},
	corev1.SchemeGroupVersion.WithKind("Node"):      {"spec.unschedulable"},
	corev1.SchemeGroupVersion.WithKind("Namespace"): {"status.phase"},
	corev1.SchemeGroupVersion.WithKind("Service"):   {"spec.clusterIP", "spec.type"},
	corev1.SchemeGroupVersion.WithKind("Event"): {
		"involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
		"involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath",
		"reason", "reportingComponent", "source", "type",
	},
	appsv1.SchemeGroupVersion.WithKind("ReplicaSet"): {"status.replicas"},
}

// registerFieldLabels tells the scheme which field selectors each kind takes.
func registerFieldLabels(s *runtime.Scheme) error {
	for gvk, labels := range fieldLabels {
		allowed := map[string]bool{"metadata.name": true, "metadata.namespace": true}
		for _, label := range labels {
			allowed[label] = true
		}
		if gvk.Kind == "Node" || gvk.Kind == "Namespace" {
			delete(allowed, "metadata.namespace")
		}
		convert := func(label, value string) (string, string, error) {
			// A pod's host used to be selected by this name, and old
			// clients still do.
			if gvk.Kind == "Pod" && label == "spec.host" {
				label = "spec.nodeName"
			}
			if !allowed[label] {
				return "", "", fmt.Errorf("field label not supported: %s", label)
			}
			return label, value, nil
		}
		if err := s.AddFieldLabelConversionFunc(gvk, convert); err != nil {
			return fmt.Errorf("add field labels of %s: %w", strings.ToLower(gvk.Kind), err)
		}
	}
	return nil
}
