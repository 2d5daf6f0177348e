// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// Image is what is to be packed.
type Image struct {
	Name              string // with its tag
	Version, Revision string // for the labels
	Created           time.Time
	License           []byte
	Programs          []Program
}

// Program is the program of one platform. The CNI plugin is beside it, under its name with -cni.
type Program struct{ OS, Arch, Path string }

// machines are the ELF machines of the platforms there are images for.
var machines = map[string]elf.Machine{"linux/amd64": elf.EM_X86_64, "linux/arm64": elf.EM_AARCH64}

// The annotations by which an importer names what it imports: containerd's own, and that of the image layout.
const (
	containerdName = "io.containerd.image.name"
	refName        = "org.opencontainers.image.ref.name"
)

// Write writes the archive, and returns the digest of the index. An archive that was there is replaced in one step.
func (i *Image) Write(path string) (v1.Hash, error) {
	tag, err := name.NewTag(i.Name, name.WithDefaultTag(""))
	if err != nil || tag.TagStr() == "" {
		return v1.Hash{}, fmt.Errorf("name %q: want a name with a tag, such as localhost/fairlead:1.0", i.Name)
	}
	index, err := i.index()
	if err != nil {
		return v1.Hash{}, err
	}
	digest, err := index.Digest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("digest index: %w", err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return v1.Hash{}, fmt.Errorf("make directory for the layout: %w", err)
	}
	defer os.RemoveAll(dir)
	to, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err == nil {
		err = to.AppendIndex(index, layout.WithAnnotations(map[string]string{containerdName: i.Name, refName: i.Name}))
	}
	if err != nil {
		return v1.Hash{}, fmt.Errorf("write image layout: %w", err)
	}
	archive := filepath.Join(dir, "archive")
	if err := i.pack(archive, os.DirFS(filepath.Join(dir, "layout"))); err != nil {
		return v1.Hash{}, err
	}
	if err := os.Rename(archive, path); err != nil {
		return v1.Hash{}, fmt.Errorf("put archive in place: %w", err)
	}
	return digest, nil
}

// index is the image of all platforms.
func (i *Image) index() (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	seen := map[string]bool{}
	for _, p := range i.Programs {
		platform := p.OS + "/" + p.Arch
		if seen[platform] {
			return nil, fmt.Errorf("%s is given twice", platform)
		}
		seen[platform] = true
		img, err := i.image(p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", platform, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: p.OS, Architecture: p.Arch}},
		})
	}
	return mutate.Annotations(index, i.labels()).(v1.ImageIndex), nil
}

// labels are the keys of the OCI image specification that say what an image is.
func (i *Image) labels() map[string]string {
	const prefix = "org.opencontainers.image."
	return map[string]string{
		prefix + "title":       "Fairlead",
		prefix + "description": "Kubernetes service proxy, cluster DNS and pod network in one small program per node",
		prefix + "source":      "https://github.com/fairlead/fairlead",
		prefix + "licenses":    "Apache-2.0",
		prefix + "version":     i.Version,
		prefix + "revision":    i.Revision,
		prefix + "created":     i.Created.Format(time.RFC3339),
	}
}

// image is that of one platform: one layer with everything.
func (i *Image) image(p Program) (v1.Image, error) {
	for _, path := range []string{p.Path, p.Path + "-cni"} {
		if err := check(p, path); err != nil {
			return nil, err
		}
	}
	files, err := i.files(p)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil },
		tarball.WithCompressionLevel(gzip.DefaultCompression), tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	created := v1.Time{Time: i.Created}
	img, err = mutate.Append(img, mutate.Addendum{
		Layer: layer, MediaType: types.OCILayer, History: v1.History{Created: created, CreatedBy: "deploy/image"},
	})
	if err != nil {
		return nil, fmt.Errorf("add layer: %w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = p.OS, p.Arch, created
	config.Config = v1.Config{
		Entrypoint: []string{"/bin/fairlead"},
		Env:        []string{"PATH=/bin"}, // for kubectl exec … fairlead status
		WorkingDir: "/",
		Labels:     i.labels(),
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, fmt.Errorf("set configuration: %w", err)
	}
	return img, nil
}

// check refuses a program that would not run: for another machine, or in need of libraries that the image has not.
func check(p Program, path string) error {
	machine, ok := machines[p.OS+"/"+p.Arch]
	if !ok {
		return errors.New("no image is made for this platform; linux/amd64 and linux/arm64 are")
	}
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s is no program: %w", path, err)
	}
	defer f.Close()
	if f.Machine != machine {
		return fmt.Errorf("%s is a program for %v; build it with GOARCH=%s", path, f.Machine, p.Arch)
	}
	if slices.ContainsFunc(f.Progs, func(s *elf.Prog) bool { return s.Type == elf.PT_INTERP }) {
		return fmt.Errorf("%s is linked dynamically, and the image has no libraries; build it with CGO_ENABLED=0", path)
	}
	return nil
}

// files is the layer's tar archive.
func (i *Image) files(p Program) ([]byte, error) {
	program, err := os.ReadFile(p.Path)
	if err != nil {
		return nil, fmt.Errorf("read program: %w", err)
	}
	plugin, err := os.ReadFile(p.Path + "-cni")
	if err != nil {
		return nil, fmt.Errorf("read CNI plugin: %w", err)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range []struct {
		name string
		mode int64
		text []byte
	}{
		{"bin/", 0o755, nil},
		{"bin/fairlead", 0o755, program},
		{"bin/fairlead-cni", 0o755, plugin},
		{"etc/", 0o755, nil},
		{"etc/ssl/", 0o755, nil},
		{"etc/ssl/certs/", 0o755, nil},
		{"etc/ssl/certs/ca-certificates.crt", 0o644, authorities()},
		{"LICENSE", 0o644, i.License},
	} {
		if err := i.add(w, f.name, f.mode, f.text); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	return out.Bytes(), nil
}

// authorities are Mozilla's, as the Go project keeps them. Those that are trusted under a condition only are left out: the file has no place for it.
func authorities() []byte {
	var out []byte
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate})...)
		}
	}
	return out
}

// add adds a file, or a directory if the name ends in a slash.
func (i *Image) add(w *tar.Writer, name string, mode int64, text []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(text)), ModTime: i.Created, Format: tar.FormatUSTAR}
	if name[len(name)-1] == '/' {
		h.Typeflag = tar.TypeDir
	}
	if err := w.WriteHeader(h); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	return nil
}

// pack writes the files of the layout, in the order of their names, as one archive.
func (i *Image) pack(path string, files fs.FS) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	err = fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || name == ".":
			return err
		case d.IsDir():
			return i.add(w, name+"/", 0o755, nil)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		return i.add(w, name, 0o644, text)
	})
	if err := errors.Join(err, w.Close(), f.Close()); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}
