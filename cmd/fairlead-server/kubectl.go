// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"slices"
	"strings"

	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/component-base/cli"
	baseversion "k8s.io/component-base/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"

	"github.com/fairlead/fairlead/cluster"
)

func init() {
	commands = append(commands, command{
		name:    "kubectl",
		summary: "kubectl, for the one-machine cluster unless told otherwise",
		run:     runKubectl,
	})
}

// runKubectl is kubectl as a library.
func runKubectl(_ context.Context, args []string, io streams) error {
	if err := defaultKubeconfig(); err != nil {
		return err
	}
	nameVersion()
	std := genericiooptions.IOStreams{In: io.in, Out: io.out, ErrOut: io.err}
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().
		WithDiscoveryBurst(300).WithDiscoveryQPS(50).WithWarningPrinter(std)
	command := kubectl.NewDefaultKubectlCommandWithArgs(kubectl.KubectlOptions{
		PluginHandler: kubectl.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
		Arguments:     slices.Concat([]string{"kubectl"}, args),
		ConfigFlags:   flags,
		IOStreams:     std,
	})
	command.SetArgs(args)
	if err := cli.RunNoErrOutput(command); err != nil {
		// It prints the error as kubectl does and exits with kubectl's code.
		kubectlutil.CheckErr(err)
	}
	return nil
}

// nameVersion gives kubectl a version that it can read if the linker has given
// it none: kubectl's own placeholder makes `kubectl version` fail.
func nameVersion() {
	if strings.Contains(baseversion.Get().GitVersion, "$") {
		// Only the placeholder's numbers are accepted.
		_ = baseversion.SetDynamicVersion("v0.0.0-fairlead")
	}
}

// defaultKubeconfig makes the one-machine cluster's kubeconfig the default, if
// there is one and the user has not named another. A flag still wins.
func defaultKubeconfig() error {
	if os.Getenv("KUBECONFIG") != "" {
		return nil
	}
	path := os.Getenv("FAIRLEAD_STATE")
	if path == "" {
		path = cluster.DefaultDir
	}
	dir, err := cluster.Open(path)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir.Kubeconfig()); err != nil {
		return nil // kubectl's own default
	}
	return os.Setenv("KUBECONFIG", dir.Kubeconfig())
}
