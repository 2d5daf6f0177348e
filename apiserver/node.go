// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fairlead/fairlead/apiserver/validation"
)

// nodes keep the status that they are created with: a node registers itself
// whole, in one write.
var nodes = &resource[*corev1.Node]{
	gv:             corev1.SchemeGroupVersion,
	plural:         "nodes",
	singular:       "node",
	short:          []string{"no"},
	clustered:      true,
	newObject:      func() *corev1.Node { return &corev1.Node{} },
	newList:        func() runtime.Object { return &corev1.NodeList{} },
	update:         func(node, old *corev1.Node) { node.Status = old.Status },
	validate:       validation.Node,
	validateUpdate: validation.NodeUpdate,
	updateStatus:   func(node, old *corev1.Node) { node.Spec = old.Spec },
	validateStatus: validation.NodeUpdate,
	selectable: func(node *corev1.Node, set fields.Set) {
		set["spec.unschedulable"] = strconv.FormatBool(node.Spec.Unschedulable)
	},
}
