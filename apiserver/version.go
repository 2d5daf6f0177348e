// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"runtime/debug"
	"strings"

	apimachineryversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/util/compatibility"
	basecompatibility "k8s.io/component-base/compatibility"
	baseversion "k8s.io/component-base/version"
)

// version is the version of Kubernetes that the server is, for clients that
// adapt to it.
type version struct {
	basecompatibility.MutableEffectiveVersion
	git string
}

func newVersion() version {
	return version{compatibility.DefaultBuildEffectiveVersion(), libraryVersion()}
}

// Info names the library's release. What the library says of itself is a
// placeholder, which only Kubernetes' own build replaces.
func (v version) Info() *apimachineryversion.Info {
	info := v.MutableEffectiveVersion.Info()
	if info != nil {
		info.GitVersion = v.git
		info.GitCommit, info.GitTreeState = "", ""
	}
	return info
}

// libraryVersion is v1.y.z for a binary that is built with v0.y.z of the API
// server's library, and v1.y.0 if that is not recorded in it.
func libraryVersion() string {
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, module := range build.Deps {
			if rest, ok := strings.CutPrefix(module.Version, "v0."); ok && module.Path == "k8s.io/apiserver" {
				return "v1." + rest
			}
		}
	}
	return "v" + baseversion.DefaultKubeBinaryVersion + ".0"
}
