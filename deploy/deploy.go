// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package deploy is how Fairlead gets onto a Kubernetes cluster: the Helm chart, and the plain manifest that is made from it.
//
// It is a module of its own, so that what reads charts and packs images never becomes part of the agent. Its commands are image, which packs the programs into an
// OCI archive, and manifest, which writes fairlead.yaml; both are called by the Makefile. The way in is [Render].
package deploy

import (
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
)

// chartFiles are the files of the chart, below the directory chart.
//
//go:embed all:chart
var chartFiles embed.FS

// Seccomp is the profile seccomp.json.
//
//go:embed seccomp.json
var Seccomp []byte

// Placeholder stands in the plain manifest for the API server's address, which nobody can know before.
const Placeholder = "API-SERVER:6443"

// header begins the plain manifest.
const header = `# Fairlead, whole: service proxy, cluster DNS and pod network, in place of kube-proxy, CoreDNS and any other CNI plugin.
#
# Made from deploy/chart with its default values by make manifest. What has to fit your cluster: the API server's own address (` + Placeholder + `), the
# cluster's ranges and the ClusterIP of kube-dns. docs/install.md says how to find them, and what every line is for.
#
#   sed 's/` + Placeholder + `/192.0.2.1:6443/' deploy/fairlead.yaml | kubectl apply --server-side -f -
`

// Plain is the manifest for those who do not use helm: of the chart's own values and [Placeholder], but for the values that are given.
func Plain(values map[string]any) (string, error) {
	with := map[string]any{"apiServer": Placeholder}
	maps.Copy(with, values)
	text, err := render(with, chartutil.ReleaseOptions{Name: "fairlead", Namespace: "kube-system"}, "manifest")
	if len(values) == 0 {
		text = header + text
	}
	return text, err
}

// Render is what helm template prints for these values: objects in YAML, in the order in which they are to be applied. Wrong values are an error that
// names them.
func Render(namespace string, values map[string]any) (string, error) {
	return render(values, chartutil.ReleaseOptions{Name: "fairlead", Namespace: namespace, Revision: 1, IsInstall: true}, "Helm")
}

func render(values map[string]any, release chartutil.ReleaseOptions, service string) (string, error) {
	var files []*loader.BufferedFile
	err := fs.WalkDir(chartFiles, "chart", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := chartFiles.ReadFile(name)
		files = append(files, &loader.BufferedFile{Name: strings.TrimPrefix(name, "chart/"), Data: data})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read chart: %w", err)
	}
	chart, err := loader.LoadFiles(files)
	if err != nil {
		return "", fmt.Errorf("load chart: %w", err)
	}
	all, err := chartutil.ToRenderValues(chart, values, release, chartutil.DefaultCapabilities)
	if err != nil {
		return "", fmt.Errorf("check values: %w", err)
	}
	all["Release"].(map[string]any)["Service"] = service
	texts, err := engine.Render(chart, all)
	if err != nil {
		return "", fmt.Errorf("render chart: %w", err)
	}
	var out []string
	for _, name := range []string{"rbac.yaml", "dns.yaml", "daemonset.yaml"} {
		text, ok := texts["fairlead/templates/"+name]
		if !ok {
			return "", fmt.Errorf("render chart: it has no %s", name)
		}
		if text = strings.TrimSpace(text); text != "" {
			out = append(out, "---\n"+text+"\n")
		}
	}
	return strings.Join(out, ""), nil
}
