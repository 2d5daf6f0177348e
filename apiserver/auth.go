// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	apiserverconfig "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

const (
	groupNodes     = "system:nodes"
	userNodePrefix = "system:node:"
)

// healthPaths may be read by anyone who can connect.
var healthPaths = []string{"/livez", "/readyz", "/healthz"}

// newAuthenticator knows clients by their certificate: the common name is the
// user, the organizations are the groups. Without a certificate one may only
// ask for the server's health.
func newAuthenticator(ca dynamiccertificates.CAContentProvider) (authenticator.Request, error) {
	var conditions []apiserverconfig.AnonymousAuthCondition
	for _, path := range healthPaths {
		conditions = append(conditions, apiserverconfig.AnonymousAuthCondition{Path: path})
	}
	config := authenticatorfactory.DelegatingAuthenticatorConfig{
		Anonymous:                          &apiserverconfig.AnonymousAuthConfig{Enabled: true, Conditions: conditions},
		ClientCertificateCAContentProvider: ca,
	}
	request, _, err := config.New()
	if err != nil {
		return nil, fmt.Errorf("make authenticator: %w", err)
	}
	return request, nil
}

// nodeRule is something that nodes may do.
type nodeRule struct {
	group     string
	resources []string // with "/" and the subresource if it is for one
	verbs     []string
	namespace string // "" is any
	own       bool   // the object has to have the node's name
}

var read = []string{"get", "list", "watch"}

// nodeRules are what an agent, and the runner of a node's pods, need. What the
// rules cannot say, namely that a pod has to be the node's own, is checked by
// nodeRestriction, which sees the object.
var nodeRules = []nodeRule{
	{group: "", resources: []string{"services", "nodes", "pods", "namespaces", "configmaps"}, verbs: read},
	{group: "discovery.k8s.io", resources: []string{"endpointslices"}, verbs: read},
	{group: "networking.k8s.io", resources: []string{"servicecidrs", "ipaddresses"}, verbs: read},
	{group: "apps", resources: []string{"replicasets", "deployments"}, verbs: read},
	{group: "", resources: []string{"nodes"}, verbs: []string{"create"}},
	{group: "", resources: []string{"nodes", "nodes/status"}, verbs: []string{"update", "patch"}, own: true},
	{group: "", resources: []string{"pods/status"}, verbs: []string{"get", "update", "patch"}},
	{group: "", resources: []string{"pods"}, verbs: []string{"delete"}},
	{group: "", resources: []string{"events"}, verbs: []string{"create", "update", "patch"}},
	{group: "coordination.k8s.io", resources: []string{"leases"}, verbs: read, namespace: corev1.NamespaceNodeLease},
	{group: "coordination.k8s.io", resources: []string{"leases"}, verbs: []string{"create"}, namespace: corev1.NamespaceNodeLease},
	{group: "coordination.k8s.io", resources: []string{"leases"}, verbs: []string{"update", "patch", "delete"},
		namespace: corev1.NamespaceNodeLease, own: true},
}

// authorize decides on one request, by the user's groups: administrators may
// do everything, nodes what nodeRules say, and anyone with a certificate may
// read what kinds there are and ask what they may do themselves.
func authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	who := a.GetUser()
	if who == nil {
		return authorizer.DecisionDeny, "nobody asked", nil
	}
	groups := who.GetGroups()
	if slices.Contains(groups, user.SystemPrivilegedGroup) {
		return authorizer.DecisionAllow, "", nil
	}
	if !a.IsResourceRequest() {
		return authorizePath(a, groups)
	}
	if a.GetAPIGroup() == "authorization.k8s.io" && a.GetResource() == "selfsubjectaccessreviews" && a.GetVerb() == "create" &&
		slices.Contains(groups, user.AllAuthenticated) {
		return authorizer.DecisionAllow, "", nil
	}
	if !slices.Contains(groups, groupNodes) {
		return authorizer.DecisionDeny, "only " + user.SystemPrivilegedGroup + " and " + groupNodes + " have permissions in this cluster", nil
	}
	return authorizeNode(a)
}

// authorizePath decides on a request that is not for a resource.
func authorizePath(a authorizer.Attributes, groups []string) (authorizer.Decision, string, error) {
	under := func(roots ...string) bool {
		return slices.ContainsFunc(roots, func(root string) bool {
			return a.GetPath() == root || strings.HasPrefix(a.GetPath(), root+"/")
		})
	}
	if under(healthPaths...) {
		return authorizer.DecisionAllow, "", nil
	}
	if slices.Contains(groups, user.AllAuthenticated) && a.IsReadOnly() && under("/api", "/apis", "/openapi", "/version") {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionDeny, "only " + user.SystemPrivilegedGroup + " may use this path", nil
}

// authorizeNode decides on a node's request for a resource.
func authorizeNode(a authorizer.Attributes) (authorizer.Decision, string, error) {
	node, ok := strings.CutPrefix(a.GetUser().GetName(), userNodePrefix)
	if !ok || node == "" {
		return authorizer.DecisionDeny, "a member of " + groupNodes + " has to be named " + userNodePrefix + "NAME", nil
	}
	resource := a.GetResource()
	if sub := a.GetSubresource(); sub != "" {
		resource += "/" + sub
	}
	reason := "nodes have no such permission"
	for _, rule := range nodeRules {
		if rule.group != a.GetAPIGroup() || !slices.Contains(rule.resources, resource) || !slices.Contains(rule.verbs, a.GetVerb()) {
			continue
		}
		switch {
		case rule.namespace != "" && rule.namespace != a.GetNamespace():
			reason = "nodes may do this in the namespace " + rule.namespace + " only"
		case rule.own && a.GetName() != node:
			reason = "a node may change only the object of its own name"
		default:
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionDeny, reason, nil
}

// nodeRestriction refuses a node's writes to what is another node's.
type nodeRestriction struct{ *admission.Handler }

var _ admission.ValidationInterface = nodeRestriction{}

func newNodeRestriction() nodeRestriction {
	return nodeRestriction{admission.NewHandler(admission.Create, admission.Update, admission.Delete)}
}

// Validate looks at the objects that a node's request is about.
func (nodeRestriction) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	node, ok := strings.CutPrefix(a.GetUserInfo().GetName(), userNodePrefix)
	if !ok || !slices.Contains(a.GetUserInfo().GetGroups(), groupNodes) ||
		slices.Contains(a.GetUserInfo().GetGroups(), user.SystemPrivilegedGroup) {
		return nil
	}
	resource := a.GetResource().GroupResource()
	switch resource {
	case schema.GroupResource{Resource: "nodes"}, schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}:
		if a.GetName() != node {
			return refuseNode(a, node, "a node may write only the object of its own name")
		}
	case schema.GroupResource{Resource: "pods"}:
		if pod, ok := a.GetOldObject().(*corev1.Pod); ok && pod.Spec.NodeName != node {
			return refuseNode(a, node, fmt.Sprintf("the pod is on node %q", pod.Spec.NodeName))
		}
	}
	return nil
}

// refuseNode is the refusal of a node's request.
func refuseNode(a admission.Attributes, node, why string) error {
	return apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(), fmt.Errorf("node %q: %s", node, why))
}
