// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// TestExamples: what the project shows as examples is not refused.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		docs := yaml.NewYAMLReader(bufio.NewReader(f))
		for n := 1; ; n++ {
			doc, err := docs.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			obj, kind, err := decoder.Decode(doc, nil, nil)
			if err != nil {
				t.Errorf("%s, document %d: %v", file, n, err)
				continue
			}
			scheme.Default(obj)
			if o := obj.(metav1.Object); o.GetNamespace() == "" && kind.Kind != "Namespace" {
				o.SetNamespace(metav1.NamespaceDefault)
			}
			var errs field.ErrorList
			switch o := obj.(type) {
			case *corev1.Service:
				if o.Spec.ClusterIP != "" {
					o.Spec.ClusterIPs = []string{o.Spec.ClusterIP} // as the allocator does
				}
				errs = Service(o)
			case *appsv1.Deployment:
				errs = Deployment(o)
			case *corev1.Pod:
				errs = Pod(o)
			case *corev1.Namespace:
				errs = Namespace(o)
			case *corev1.ConfigMap:
				errs = ConfigMap(o)
			default:
				t.Errorf("%s, document %d: nobody checks a %s", file, n, kind)
			}
			for _, err := range errs {
				t.Errorf("%s, document %d, %s: %v", file, n, kind.Kind, err)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
