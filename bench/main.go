// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/template"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is one of the programs in pods, which deal with signals in their own ways, or the measuring.
func run(args []string) error {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	switch name {
	case "serve":
		return serve(args[1:])
	case "load":
		return load(args[1:], os.Stdout)
	case "answer":
		return answer(args[1:])
	case "storm":
		return storm(args[1:], os.Stdout)
	case "dnsload":
		return dnsload(args[1:], os.Stdout)
	case "echo":
		return echo(args[1:])
	case "lookup":
		return lookup(args[1:], os.Stdout)
	case "dnsheap":
		return dnsheap(args[1:], os.Stdout)
	case "upstream":
		return upstream(args[1:])
	case "sink":
		return sink(args[1:])
	case "carry":
		return carry(args[1:], os.Stdout)
	}
	// What was made is to be removed also when nobody reads the figures any more.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGPIPE)
	defer stop()
	switch name {
	case "compare-dns":
		return compareDNS(ctx, args[1:])
	case "dns":
		return measure(ctx, dnsChapter, args[1:])
	case "network":
		return measure(ctx, networkChapter, args[1:])
	case "scale":
		return measure(ctx, scaleChapter, args[1:])
	}
	return measure(ctx, serviceChapter, args)
}

// programs are the paths of what is measured, and of this program, which is also the client and the server in the pods.
type programs struct {
	bench, fairlead, fairleadCNI, fairleadServer, kubeProxy, kubeControllerManager, coreDNS, floor string

	built string // the folder with the rivals that are built here
}

// programsOf are those that are built in the repository at root.
func programsOf(root string) programs {
	bin, built := filepath.Join(root, "bin"), filepath.Join(root, "bench", "bin")
	return programs{
		fairlead:              filepath.Join(bin, "fairlead"),
		fairleadCNI:           filepath.Join(bin, "fairlead-cni"),
		fairleadServer:        filepath.Join(bin, "fairlead-server"),
		kubeProxy:             filepath.Join(built, "kube-proxy"),
		kubeControllerManager: filepath.Join(built, "kube-controller-manager"),
		coreDNS:               filepath.Join(built, "coredns"),
		floor:                 filepath.Join(built, "floor"),
		built:                 built,
	}
}

// experiment is a section of a page.
type experiment struct {
	name string
	run  func(context.Context, *suite) error
}

// chapter is what one make target measures and writes a page about.
type chapter struct {
	page    string // of docs, without .md
	numbers string // in docs/benchmarks, without .json
	target  string
	// experiments in the order in which they run.
	experiments []experiment
	// needs are the programs that there must be.
	needs    func(programs) []string
	versions func(programs) map[string]string
	template string
	plots    func([]figure) map[string]string
	// funcs are what the template can call beside what all can; nil: nothing.
	funcs func([]figure) template.FuncMap
}

var serviceChapter = &chapter{
	page: "benchmarks", numbers: "results", target: "bench-service",
	experiments: []experiment{
		{"start", coldStarts},
		{"change", changes},
		{"rolling", rollingChange},
		{"memory", memories},
		{"footprint", footprint},
		{"connect", connections},
		{"slices", sliceWrites},
		{"replace", replacement},
	},
	needs: func(p programs) []string {
		return []string{p.fairlead, p.fairleadServer, p.kubeProxy, p.kubeControllerManager, p.coreDNS}
	},
	versions: serviceVersions, template: pageTemplate, plots: plots,
}

// begun is when the program was started, for progress.
var begun = time.Now()

// progress says on standard error what is being done.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
}

func measure(ctx context.Context, c *chapter, args []string) error {
	var all []string
	for _, e := range c.experiments {
		all = append(all, e.name)
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	root := flags.String("root", "..", "the repository, with bin/ and bench/bin/ built")
	names := flags.String("run", strings.Join(all, ","), "figures to measure, with commas")
	quick := flags.Bool("quick", false, "small and short: shows that everything works, the numbers are not to be used")
	docs := flags.String("docs", "", "folder to write the page and its plots to; what was not measured now is taken from the last time")
	limit := flags.Duration("limit", 90*time.Minute, "end after this time, whatever is left")
	if err := flags.Parse(args); err != nil {
		return err
	}
	wanted := strings.Split(*names, ",")
	for _, name := range wanted {
		if !slices.Contains(all, name) {
			return fmt.Errorf("there is no figure %q; there are %s", name, strings.Join(all, ", "))
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make network namespaces")
	}
	if runtime.NumCPU() <= serverCPU {
		return errors.New("needs two processors: one for clients, one for what they talk to")
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	s, err := newSuite(c, *root, *quick)
	if err != nil {
		return err
	}
	defer s.close()
	for _, e := range c.experiments {
		if !slices.Contains(wanted, e.name) {
			continue
		}
		progress("%s", e.name)
		if err := e.run(ctx, s); err != nil {
			return fmt.Errorf("measure %s: %w", e.name, err)
		}
	}
	if *docs == "" {
		return nil
	}
	return s.writeDocs(*docs)
}
