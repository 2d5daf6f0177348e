// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package openapi holds the OpenAPI definitions of every type the embedded
// API serves. The definitions are generated from the types' own comments by
// kube-openapi's generator and committed, so that a build needs no generator.
//
// The one way in is [GetOpenAPIDefinitions], which the API server passes to
// its OpenAPI v2, OpenAPI v3 and server-side-apply machinery. Run
// `go generate ./apiserver/openapi` after changing the version of k8s.io/api.
package openapi

//go:generate go tool openapi-gen --output-dir . --output-pkg github.com/fairlead/fairlead/apiserver/openapi --output-file zz_generated.openapi.go --report-filename /dev/null --go-header-file header.txt k8s.io/api/core/v1 k8s.io/api/apps/v1 k8s.io/api/discovery/v1 k8s.io/api/networking/v1 k8s.io/api/coordination/v1 k8s.io/api/autoscaling/v1 k8s.io/api/policy/v1 k8s.io/api/authorization/v1 k8s.io/apimachinery/pkg/apis/meta/v1 k8s.io/apimachinery/pkg/runtime k8s.io/apimachinery/pkg/util/intstr k8s.io/apimachinery/pkg/api/resource k8s.io/apimachinery/pkg/version
