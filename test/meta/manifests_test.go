// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"bytes"
	"path"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// TestExampleManifests: the example's manifests are plain Kubernetes, field by
// field, and fit together: each Service selects pods, and each of its ports is
// one that all of them declare.
func TestExampleManifests(t *testing.T) {
	var services []*corev1.Service
	var deployments []*appsv1.Deployment
	walk(t, func(name string) {
		if path.Dir(name) != "examples/shop" || path.Ext(name) != ".yaml" {
			return
		}
		for doc := range bytes.SplitSeq(read(t, name), []byte("\n---\n")) {
			var kind struct{ Kind string }
			if err := yaml.Unmarshal(doc, &kind); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			var object any
			switch kind.Kind {
			case "Service":
				s := new(corev1.Service)
				services, object = append(services, s), s
			case "Deployment":
				d := new(appsv1.Deployment)
				deployments, object = append(deployments, d), d
			case "Namespace":
				object = new(corev1.Namespace)
			default:
				t.Errorf("%s: kind %q", name, kind.Kind)
				continue
			}
			if err := yaml.UnmarshalStrict(doc, object); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	if len(services) < 4 || len(deployments) < 6 {
		t.Fatalf("%d Services and %d Deployments", len(services), len(deployments))
	}
	for _, d := range deployments {
		if d.Namespace != "shop" || !labels.SelectorFromSet(d.Spec.Selector.MatchLabels).Matches(labels.Set(d.Spec.Template.Labels)) {
			t.Errorf("Deployment %s/%s does not select its own pods", d.Namespace, d.Name)
		}
	}
	for _, s := range services {
		selected := 0
		for _, d := range deployments {
			if !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(d.Spec.Template.Labels)) {
				continue
			}
			selected++
			for _, p := range s.Spec.Ports {
				if !declares(d.Spec.Template.Spec.Containers[0].Ports, p) {
					t.Errorf("Service %s port %s: Deployment %s does not declare %s", s.Name, p.Name, d.Name, p.TargetPort.String())
				}
			}
		}
		if want := map[bool]int{true: 2, false: 1}[s.Name == "orders"]; s.Namespace != "shop" || selected != want {
			t.Errorf("Service %s/%s selects %d Deployments, want %d", s.Namespace, s.Name, selected, want)
		}
	}
}

// declares reports whether a Service port's target is among a container's ports.
func declares(ports []corev1.ContainerPort, want corev1.ServicePort) bool {
	for _, p := range ports {
		protocol := p.Protocol == want.Protocol || (p.Protocol == "" && want.Protocol == "") || (p.Protocol == "TCP" && want.Protocol == "")
		if protocol && (want.TargetPort == intstr.FromInt32(p.ContainerPort) || want.TargetPort == intstr.FromString(p.Name)) {
			return true
		}
	}
	return false
}
