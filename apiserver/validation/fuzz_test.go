// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"encoding/json"
	"regexp"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/randfill"
)

// kind runs every function for a kind on two documents, as they are and with
// defaults, and hands on the errors.
type kind func(one, two []byte, each func(field.ErrorList))

func of[T any](create func(*T) field.ErrorList, updates ...func(obj, old *T) field.ErrorList) kind {
	return func(one, two []byte, each func(field.ErrorList)) {
		a, b := new(T), new(T)
		if json.Unmarshal(one, a) != nil || json.Unmarshal(two, b) != nil {
			return
		}
		for range 2 {
			if create != nil {
				each(create(a))
			}
			for _, update := range updates {
				each(update(a, b))
				each(update(b, a))
			}
			scheme.Default(any(a).(runtime.Object))
			scheme.Default(any(b).(runtime.Object))
		}
	}
}

var kinds = map[string]kind{
	"service":       of(Service, ServiceUpdate, ServiceStatusUpdate),
	"pod":           of(Pod, PodUpdate, PodStatusUpdate),
	"namespace":     of(Namespace, NamespaceUpdate, NamespaceStatusUpdate),
	"node":          of(Node, NodeUpdate),
	"configmap":     of(ConfigMap, ConfigMapUpdate),
	"event":         of(Event, EventUpdate),
	"lease":         of(Lease, LeaseUpdate),
	"endpointslice": of(EndpointSlice, EndpointSliceUpdate),
	"servicecidr":   of(ServiceCIDR, ServiceCIDRUpdate, ServiceCIDRStatusUpdate),
	"ipaddress":     of(IPAddress, IPAddressUpdate),
	"deployment":    of(Deployment, DeploymentUpdate, DeploymentStatusUpdate),
	"replicaset":    of(ReplicaSet, ReplicaSetUpdate, ReplicaSetStatusUpdate),
	"binding":       of(Binding),
	"scale":         of(Scale),
}

// fuzz: whatever is decoded from requests, nothing panics, and every error has
// a type, a path and a text.
func fuzz(f *testing.F, run kind, seeds ...string) {
	for _, one := range seeds {
		f.Add([]byte(one), []byte(seeds[0]))
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		run(one, two, func(errs field.ErrorList) {
			for _, err := range errs {
				if err == nil || err.Type == "" || err.Field == "" || err.Error() == "" {
					t.Errorf("error without words: %#v", err)
				}
			}
		})
	})
}

func FuzzService(f *testing.F) {
	fuzz(f, kinds["service"], baseService, `{"spec":{"ports":[{"port":-1,"targetPort":""}],"clusterIPs":["None","x",""],"ipFamilies":[""],"type":"ExternalName"}}`)
}

func FuzzPod(f *testing.F) {
	fuzz(f, kinds["pod"], basePod, ctr(`"env":[{"valueFrom":{"fieldRef":{"fieldPath":"metadata.labels['"}}}],"livenessProbe":{"httpGet":{"port":"x"}},"resources":{"limits":{"cpu":"1"}}`))
}

func FuzzDeployment(f *testing.F) {
	fuzz(f, kinds["deployment"], baseWorkload, `{"spec":{"strategy":{"rollingUpdate":{"maxSurge":"%"}},"selector":{"matchExpressions":[{}]}}}`)
}

func FuzzEndpointSlice(f *testing.F) {
	fuzz(f, kinds["endpointslice"], baseSlice, `{"endpoints":[{"addresses":[""],"hints":{}}],"ports":[{},{"name":null,"port":null}]}`)
}

func FuzzOthers(f *testing.F) {
	all := func(one, two []byte, each func(field.ErrorList)) {
		for _, run := range kinds {
			run(one, two, each)
		}
	}
	fuzz(f, all, `{"metadata":{"name":"10.0.0.1"},"spec":{"cidrs":["x"],"parentRef":{},"podCIDR":"a","taints":[{}],"finalizers":[""],"leaseDurationSeconds":0}}`,
		`{"data":{"":""},"binaryData":{"":null},"immutable":true,"eventTime":"2025-01-01T00:00:00Z","involvedObject":{}}`)
}

// TestAnything does the same with objects that a random number made, which
// reach deeper than documents do.
func TestAnything(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	filler := randfill.NewWithSeed(seed).NilChance(0.3).NumElements(0, 3).MaxDepth(14).
		SkipFieldsWithPattern(regexp.MustCompile("^ManagedFields$")) // random bytes are no JSON
	objects := map[string]func() metav1.Object{
		"service": func() metav1.Object { return &corev1.Service{} }, "pod": func() metav1.Object { return &corev1.Pod{} },
		"namespace": func() metav1.Object { return &corev1.Namespace{} }, "node": func() metav1.Object { return &corev1.Node{} },
		"configmap": func() metav1.Object { return &corev1.ConfigMap{} }, "event": func() metav1.Object { return &corev1.Event{} },
		"lease": func() metav1.Object { return &coordinationv1.Lease{} }, "endpointslice": func() metav1.Object { return &discoveryv1.EndpointSlice{} },
		"servicecidr": func() metav1.Object { return &networkingv1.ServiceCIDR{} }, "ipaddress": func() metav1.Object { return &networkingv1.IPAddress{} },
		"deployment": func() metav1.Object { return &appsv1.Deployment{} }, "replicaset": func() metav1.Object { return &appsv1.ReplicaSet{} },
		"binding": func() metav1.Object { return &corev1.Binding{} }, "scale": func() metav1.Object { return &autoscalingv1.Scale{} },
	}
	for name, run := range kinds {
		failed := 0
		for range 40 {
			docs := [2][]byte{}
			for i := range docs {
				obj := objects[name]()
				filler.Fill(obj)
				doc, err := json.Marshal(obj)
				if err != nil {
					t.Fatal(err)
				}
				docs[i] = doc
			}
			run(docs[0], docs[1], func(errs field.ErrorList) { failed += len(errs) })
		}
		if failed == 0 {
			t.Errorf("%s: nothing was wrong with random objects", name)
		}
	}
}
