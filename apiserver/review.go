// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
)

// selfReview tells clients what they may do, before they try: kubectl auth
// can-i, and tools that hide what is not allowed.
type selfReview struct{ authorizer authorizer.Authorizer }

var (
	_ rest.Creater              = (*selfReview)(nil)
	_ rest.Scoper               = (*selfReview)(nil)
	_ rest.SingularNameProvider = (*selfReview)(nil)
)

// New returns an empty review.
func (r *selfReview) New() runtime.Object { return &authorizationv1.SelfSubjectAccessReview{} }

// Destroy does nothing: nothing is stored.
func (r *selfReview) Destroy() {}

// NamespaceScoped is false: the namespace asked about is in the review.
func (r *selfReview) NamespaceScoped() bool { return false }

// GetSingularName is the resource's name for one.
func (r *selfReview) GetSingularName() string { return "selfsubjectaccessreview" }

// Create answers a review. It stores nothing.
func (r *selfReview) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc,
	_ *metav1.CreateOptions) (runtime.Object, error) {
	review, ok := obj.(*authorizationv1.SelfSubjectAccessReview)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a SelfSubjectAccessReview: %#v", obj))
	}
	spec := review.Spec
	if (spec.ResourceAttributes == nil) == (spec.NonResourceAttributes == nil) {
		return nil, apierrors.NewBadRequest("exactly one of spec.resourceAttributes and spec.nonResourceAttributes must be set")
	}
	who, ok := request.UserFrom(ctx)
	if !ok {
		return nil, apierrors.NewBadRequest("no user present on request")
	}
	if validate != nil {
		if err := validate(ctx, obj.DeepCopyObject()); err != nil {
			return nil, err
		}
	}
	decision, reason, err := r.authorizer.Authorize(ctx, reviewed(who, spec))
	review.Status = authorizationv1.SubjectAccessReviewStatus{
		Allowed: decision == authorizer.DecisionAllow,
		Denied:  decision == authorizer.DecisionDeny,
		Reason:  reason,
	}
	if err != nil {
		review.Status.EvaluationError = err.Error()
	}
	return review, nil
}

// reviewed is the request that a review asks about.
func reviewed(who user.Info, spec authorizationv1.SelfSubjectAccessReviewSpec) authorizer.Attributes {
	if path := spec.NonResourceAttributes; path != nil {
		return authorizer.AttributesRecord{User: who, Verb: path.Verb, Path: path.Path}
	}
	r := spec.ResourceAttributes
	return authorizer.AttributesRecord{
		User:            who,
		Verb:            r.Verb,
		Namespace:       r.Namespace,
		APIGroup:        r.Group,
		APIVersion:      r.Version,
		Resource:        r.Resource,
		Subresource:     r.Subresource,
		Name:            r.Name,
		ResourceRequest: true,
	}
}
