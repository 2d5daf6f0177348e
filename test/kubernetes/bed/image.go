// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
)

// Names of the images that every node has. No registry has them, and none is asked.
const (
	ImagePause   = "fairlead.test/pause:bed"
	ImageShop    = "fairlead.test/shop:bed" // the program of examples/shop, as /bin/shop
	imageCoreDNS = "fairlead.test/coredns:bed"
)

// image is a container image that is one static program.
type image struct {
	name    string
	program string // on this machine
	path    string // in the image, without the first slash
}

// Media types and layout of an image archive: github.com/opencontainers/image-spec, version 1.1.
const (
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// writeImages writes an archive of images that `ctr images import` takes.
func writeImages(file string, images ...image) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("write images: %w", err)
	}
	defer func() {
		if closed := f.Close(); err == nil {
			err = closed
		}
	}()
	a := &archive{w: tar.NewWriter(f), has: map[string]bool{}}
	a.add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	var manifests []descriptor
	for _, i := range images {
		layer, err := i.layer()
		if err != nil {
			return fmt.Errorf("make image %s: %w", i.name, err)
		}
		l := a.blob(typeLayer, layer)
		config := a.json(typeConfig, map[string]any{
			"architecture": runtime.GOARCH, "os": "linux",
			"config": map[string]any{"Entrypoint": []string{"/" + i.path}, "Env": []string{"PATH=/bin"}},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{l.Digest}},
		})
		m := a.json(typeManifest, map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": config, "layers": []descriptor{l}})
		m.Annotations = map[string]string{"io.containerd.image.name": i.name}
		manifests = append(manifests, m)
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": manifests})
	if err != nil {
		return fmt.Errorf("write images: %w", err)
	}
	a.add("index.json", index)
	if a.err == nil {
		a.err = a.w.Close()
	}
	if a.err != nil {
		return fmt.Errorf("write images: %w", a.err)
	}
	return nil
}

// layer is the image's file system, as a tar that is the same each time.
func (i image) layer() ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"bin/", "etc/", "tmp/"} {
		mode := int64(0o755)
		if dir == "tmp/" {
			mode = 0o1777
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: mode}); err != nil {
			return nil, err
		}
	}
	program, err := os.ReadFile(i.program)
	if err != nil {
		return nil, err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: i.path, Mode: 0o755, Size: int64(len(program))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// archive is a tar that is being written, until the first error.
type archive struct {
	w   *tar.Writer
	has map[string]bool
	err error
}

func (a *archive) add(name string, content []byte) {
	if a.err != nil || a.has[name] {
		return
	}
	a.has[name] = true
	if a.err = a.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}); a.err == nil {
		_, a.err = a.w.Write(content)
	}
}

func (a *archive) blob(kind string, content []byte) descriptor {
	sum := fmt.Sprintf("%x", sha256.Sum256(content))
	a.add("blobs/sha256/"+sum, content)
	return descriptor{MediaType: kind, Digest: "sha256:" + sum, Size: len(content)}
}

func (a *archive) json(kind string, v any) descriptor {
	text, err := json.Marshal(v)
	if err != nil && a.err == nil {
		a.err = err
	}
	return a.blob(kind, text)
}
