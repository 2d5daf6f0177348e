// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"fmt"
	"math/rand"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"sigs.k8s.io/randfill"
)

// protobufs are a serializer of the kinds that a client knows, and the one that a client has, which decodes leanly.
func protobufs(t testing.TB) (scheme *runtime.Scheme, whole, less runtime.Serializer) {
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	info, ok := runtime.SerializerInfoForMediaType(leanly{serializer.NewCodecFactory(scheme).WithoutConversion()}.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		t.Fatal("no protobuf")
	}
	return scheme, protobuf.NewSerializer(scheme, scheme), info.Serializer
}

// encoded is an object as an API server sends it.
func encoded(t testing.TB, scheme *runtime.Scheme, s runtime.Serializer, o runtime.Object) []byte {
	kinds, _, err := scheme.ObjectKinds(o)
	if err != nil {
		t.Fatal(err)
	}
	o.GetObjectKind().SetGroupVersionKind(kinds[0])
	var data bytes.Buffer
	if err := s.Encode(o, &data); err != nil {
		t.Fatal(err)
	}
	return data.Bytes()
}

// without is an object without what is unread.
func without(o runtime.Object) runtime.Object {
	o = o.DeepCopyObject()
	meta := func(m *metav1.ObjectMeta) { m.ManagedFields = nil }
	node := func(n *corev1.Node) {
		meta(&n.ObjectMeta)
		s := &n.Status
		*s = corev1.NodeStatus{Phase: s.Phase, Conditions: s.Conditions, Addresses: s.Addresses}
		for i, c := range s.Conditions {
			s.Conditions[i] = corev1.NodeCondition{Type: c.Type, Status: c.Status}
		}
	}
	switch o := o.(type) {
	case *corev1.Service:
		meta(&o.ObjectMeta)
	case *discoveryv1.EndpointSlice:
		meta(&o.ObjectMeta)
	case *corev1.Pod:
		meta(&o.ObjectMeta)
	case *corev1.Node:
		node(o)
	case *corev1.NodeList:
		for i := range o.Items {
			node(&o.Items[i])
		}
	case *discoveryv1.EndpointSliceList:
		for i := range o.Items {
			meta(&o.Items[i].ObjectMeta)
		}
	}
	return o
}

// decoded is what a serializer makes of a message, also where it puts that off.
func decoded(t testing.TB, s runtime.Serializer, data []byte) (runtime.Object, *schema.GroupVersionKind, error) {
	o, kind, err := s.Decode(data, nil, nil)
	m, ok := o.(*message)
	if !ok {
		return o, kind, err
	}
	if o, err = m.decode(); err != nil {
		return nil, nil, err
	}
	meta := o.(metav1.Object)
	if meta.GetResourceVersion() != "" || meta.GetName() != m.GetName() || meta.GetNamespace() != m.GetNamespace() {
		t.Fatalf("object %s/%s of version %q is in a message %s/%s", meta.GetNamespace(), meta.GetName(), meta.GetResourceVersion(), m.GetNamespace(), m.GetName())
	}
	meta.SetResourceVersion(m.GetResourceVersion())
	return o, kind, nil
}

// TestLean: random objects of every kind, and lists of them, are decoded as they are without what is unread.
func TestLean(t *testing.T) {
	scheme, whole, less := protobufs(t)
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	filler := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, func(serializer.CodecFactory) []any {
		return []any{
			func(q *resource.Quantity, c randfill.Continue) {
				*q = *resource.NewQuantity(c.Int63n(1000), resource.DecimalSI)
			},
			func(f *metav1.FieldsV1, c randfill.Continue) { f.Raw = fmt.Appendf(nil, `{"f:%d":{}}`, c.Int()) },
		}
	}), rand.NewSource(seed), serializer.NewCodecFactory(scheme))
	for i := range 50 {
		for _, o := range []runtime.Object{&corev1.Service{}, &corev1.Node{}, &corev1.Pod{}, &corev1.Event{}, &corev1.NodeList{}, &discoveryv1.EndpointSlice{},
			&discoveryv1.EndpointSliceList{}, &networkingv1.ServiceCIDR{}} {
			filler.Fill(o)
			data := encoded(t, scheme, whole, o)
			before := bytes.Clone(data)
			got, _, err := decoded(t, less, data)
			if err != nil {
				t.Fatalf("%T, object %d: %v", o, i, err)
			}
			all, _, err := whole.Decode(before, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if want := without(all); !equality.Semantic.DeepEqual(got, want) {
				t.Fatalf("%T, object %d:\n%+v\nwant\n%+v", o, i, got, want)
			}
			if !bytes.Equal(data, before) {
				t.Fatalf("%T, object %d: decoding has changed the message", o, i)
			}
		}
	}
}

// FuzzLean: no message is too odd, and what an API server may send is decoded leanly to the same but for what is unread. (Of what it would not
// send, the decoders take some: an entry of a map that reaches into the next field, for one.)
func FuzzLean(f *testing.F) {
	scheme, whole, less := protobufs(f)
	for _, o := range []runtime.Object{kubeletsNode(1), &corev1.NodeList{Items: []corev1.Node{*kubeletsNode(1)}}, &corev1.Service{ObjectMeta: kubeletsNode(1).ObjectMeta}} {
		f.Add(encoded(f, scheme, whole, o))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		_, _, _ = decoded(t, less, data)
		if !bytes.Equal(data, before) {
			t.Fatal("decoding has changed the message")
		}
		o, _, err := whole.Decode(data, nil, nil)
		if err != nil {
			return
		}
		var sent bytes.Buffer
		if err := whole.Encode(o, &sent); err != nil {
			return
		}
		want, wantKind, err := whole.Decode(sent.Bytes(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, gotKind, err := decoded(t, less, sent.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if want = without(want); !equality.Semantic.DeepEqual(got, want) || *gotKind != *wantKind {
			t.Fatalf("%v\n%+v\nwant %v\n%+v", gotKind, got, wantKind, want)
		}
	})
}

// kubeletsNode is a Node as kubelets write it, with some images.
func kubeletsNode(images int) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "a"}, ResourceVersion: "1"},
		Spec: corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24", "fd00:244:0:1::/64"}},
		Status: corev1.NodeStatus{
			Capacity:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi")},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.30.0.11"}},
			NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: "v1.37.2", KernelVersion: "6.18.0"},
		}}
	for _, manager := range []string{"kubelet", "kube-controller-manager"} {
		n.ManagedFields = append(n.ManagedFields, metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1",
			FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: fmt.Appendf(nil, `{"f:status":{"f:images":{},%*s}}`, 20*images, "")}})
	}
	for i := range images {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{fmt.Sprintf("registry.example/app-%d@sha256:%064d", i, i), fmt.Sprintf("registry.example/app-%d:v1", i)}, SizeBytes: 1e8})
	}
	return n
}

// BenchmarkLean is what a Node costs that a watch brings: decoded whole, without what is unread, and not at all where the same has been taken in before.
func BenchmarkLean(b *testing.B) {
	scheme, whole, less := protobufs(b)
	data := encoded(b, scheme, whole, kubeletsNode(50))
	from := make(sums)
	for name, decode := range map[string]func() (runtime.Object, error){
		"whole": func() (runtime.Object, error) { return runtime.Decode(whole, data) },
		"lean": func() (runtime.Object, error) {
			m, err := runtime.Decode(less, data)
			if err != nil {
				return nil, err
			}
			return m.(*message).decode()
		},
		"again": func() (runtime.Object, error) {
			o, err := runtime.Decode(less, data)
			m := o.(*message)
			if sum := m.sum(); !from.has(m.name, sum) {
				from.set(m.name, sum)
			}
			return o, err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decode(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
