// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command image packs programs of several platforms into one OCI image, without a container engine, and writes it as an archive in the OCI image
// layout, which containerd imports (ctr images import) and other tools read.
//
// The image is built from scratch: it holds the agent's program, the CNI plugin, the certificate authorities that DNS over TLS is checked with, and the licence.
// There is no shell and no other program. The same input gives the same bytes: files have the time that is given with -created, and nothing else of the machine gets in.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// run prints the digest of the image's index.
func run(args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("image", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var (
		out      = fs.String("o", "", "archive to write")
		name     = fs.String("name", "", "name of the image, with its tag")
		version  = fs.String("version", "", "version of the program, for the labels")
		revision = fs.String("revision", "", "commit that it was built from, for the labels")
		license  = fs.String("license", "", "file of the licence")
		created  = fs.Int64("created", 0, "time of all files, in seconds since 1970: that of the commit")
	)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: image -o ARCHIVE -name NAME:TAG [flags] OS/ARCH=PROGRAM...")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	img := Image{Name: *name, Version: *version, Revision: *revision, Created: time.Unix(*created, 0).UTC()}
	switch {
	case *out == "":
		return fmt.Errorf("-o is missing: name the archive to write")
	case fs.NArg() == 0:
		return fmt.Errorf("no program is given: want OS/ARCH=PROGRAM, such as linux/amd64=bin/fairlead")
	}
	for _, arg := range fs.Args() {
		platform, path, ok := strings.Cut(arg, "=")
		system, arch, ok2 := strings.Cut(platform, "/")
		if !ok || !ok2 {
			return fmt.Errorf("%q: want OS/ARCH=PROGRAM, such as linux/amd64=bin/fairlead", arg)
		}
		img.Programs = append(img.Programs, Program{OS: system, Arch: arch, Path: path})
	}
	if *license != "" {
		text, err := os.ReadFile(*license)
		if err != nil {
			return fmt.Errorf("read licence: %w", err)
		}
		img.License = text
	}
	digest, err := img.Write(*out)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s@%s\n", img.Name, digest)
	return nil
}
