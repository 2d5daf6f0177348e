// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"debug/elf"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/fairlead/fairlead/testnet"
)

// What make image builds and writes.
const (
	built   = "../../bin/linux-"
	archive = "../../bin/fairlead-image.tar"
)

// sample is an image of the real programs.
func sample() *Image {
	return &Image{
		Name: "localhost/fairlead:test", Version: "v1.2.3", Revision: "0123", Created: time.Unix(1_700_000_000, 0).UTC(), License: []byte("text"),
		Programs: []Program{{"linux", "amd64", built + "amd64/fairlead"}, {"linux", "arm64", built + "arm64/fairlead"}},
	}
}

// TestReproducible: the same input gives the same bytes, whatever the time, the place and the files' own times; another input gives others.
func TestReproducible(t *testing.T) {
	i := sample()
	first := filepath.Join(t.TempDir(), "a.tar")
	digest, err := i.Write(first)
	if err != nil {
		t.Fatal(err)
	}
	again := sample()
	for n, p := range again.Programs {
		again.Programs[n].Path = filepath.Join(t.TempDir(), p.Arch)
		for _, which := range []string{"", "-cni"} {
			text, err := os.ReadFile(p.Path + which)
			if err != nil {
				t.Fatal(err)
			}
			to := again.Programs[n].Path + which
			if err := os.WriteFile(to, text, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(to, time.Unix(1, 0), time.Unix(2, 0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	second := filepath.Join(t.TempDir(), "b.tar")
	other, err := again.Write(second)
	if err != nil || other != digest {
		t.Errorf("%v and %v, %v", digest, other, err)
	}
	a, errA := os.ReadFile(first)
	b, errB := os.ReadFile(second)
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("the archives differ: %v, %v", errA, errB)
	}
	small := []Program{{"linux", "amd64", program(t, elf.EM_X86_64)}}
	for name, edit := range map[string]func(*Image){
		"version": func(i *Image) { i.Version = "v1.2.4" },
		"commit":  func(i *Image) { i.Revision = "4567" },
		"time":    func(i *Image) { i.Created = i.Created.Add(time.Second) },
		"licence": func(i *Image) { i.License = nil },
	} {
		changed, before := sample(), sample()
		changed.Programs, before.Programs = small, small
		edit(changed)
		x, errX := changed.index()
		y, errY := before.index()
		if errX != nil || errY != nil {
			t.Fatal(errX, errY)
		}
		dx, _ := x.Digest()
		dy, _ := y.Digest()
		if dx == dy {
			t.Errorf("another %s: the same digest", name)
		}
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(first), ".image-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// program writes the smallest program there is, which does nothing.
func program(t *testing.T, machine elf.Machine) string {
	t.Helper()
	var text bytes.Buffer
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64, Phentsize: 56, Shentsize: 64}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	if err := binary.Write(&text, binary.LittleEndian, h); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	for _, name := range []string{path, path + "-cni"} {
		if err := os.WriteFile(name, text.Bytes(), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// TestRefused: what cannot become an image is refused with a sentence, and the archive that was there stays.
func TestRefused(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out.tar")
	if err := os.WriteFile(out, []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	good := "linux/amd64=" + built + "amd64/fairlead"
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing", nil, "-o is missing"},
		{"no program", []string{"-o", out, "-name", "a:b"}, "want OS/ARCH=PROGRAM"},
		{"no platform", []string{"-o", out, "-name", "a:b", "bin/fairlead"}, `"bin/fairlead": want OS/ARCH=PROGRAM`},
		{"no tag", []string{"-o", out, "-name", "localhost/fairlead", good}, "want a name with a tag"},
		{"no name", []string{"-o", out, good}, "want a name with a tag"},
		{"a bad name", []string{"-o", out, "-name", "Local Host:1", good}, "want a name with a tag"},
		{"twice", []string{"-o", out, "-name", "a:b", good, good}, "linux/amd64 is given twice"},
		{"another platform", []string{"-o", out, "-name", "a:b", "linux/s390x=" + shell}, "no image is made for this platform"},
		{"the other machine", []string{"-o", out, "-name", "a:b", "linux/arm64=" + built + "amd64/fairlead"}, "build it with GOARCH=arm64"},
		{"no ELF", []string{"-o", out, "-name", "a:b", "linux/amd64=image_test.go"}, "is no program"},
		{"not there", []string{"-o", out, "-name", "a:b", "linux/amd64=nosuch"}, "no such file"},
		{"dynamic", []string{"-o", out, "-name", "a:b", "linux/amd64=" + shell}, "is linked dynamically"},
		{"no licence", []string{"-o", out, "-name", "a:b", "-license", "nosuch", good}, "read licence"},
		{"no place", []string{"-o", filepath.Join(out, "below"), "-name", "a:b", good}, "not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := run(c.args, io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	if text, err := os.ReadFile(out); err != nil || string(text) != "before" {
		t.Errorf("the archive that was there: %q, %v", text, err)
	}
}

// TestArchive looks at what make image has written.
func TestArchive(t *testing.T) {
	index, name := open(t)
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for _, m := range manifest.Manifests {
		platforms = append(platforms, m.Platform.String())
		img, err := index.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		look(t, m.Platform, img)
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(platforms, want) {
		t.Errorf("platforms %v, want %v", platforms, want)
	}
	text, err := os.ReadFile("../fairlead.yaml")
	if err != nil || !strings.Contains(string(text), `image: "`+name+`"`) {
		t.Errorf("the manifest does not name the image %s, %v", name, err)
	}
}

// open reads the archive as an image layout, and returns the index of all platforms and its name.
func open(t *testing.T) (v1.ImageIndex, string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatalf("%v; run make image", err)
	}
	defer f.Close()
	dir := t.TempDir()
	in := tar.NewReader(f)
	for {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var text []byte
			text, err = io.ReadAll(in)
			err = errors.Join(err, os.WriteFile(path, text, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := top.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("%v, %v", manifest, err)
	}
	index, err := top.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return index, manifest.Manifests[0].Annotations[refName]
}

// look looks at the image of one platform: there are the two programs, and nothing else that could be started.
func look(t *testing.T, platform *v1.Platform, img v1.Image) {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Architecture != platform.Architecture || config.OS != platform.OS {
		t.Errorf("%v: the configuration says %s/%s", platform, config.OS, config.Architecture)
	}
	if len(config.Config.Labels["org.opencontainers.image.version"]) == 0 || len(config.Config.Labels["org.opencontainers.image.revision"]) == 0 {
		t.Errorf("%v: labels %v", platform, config.Config.Labels)
	}
	if !slices.Equal(config.Config.Entrypoint, []string{"/bin/fairlead"}) {
		t.Errorf("%v: entrypoint %v", platform, config.Config.Entrypoint)
	}
	files := map[string][]byte{}
	r := mutate.Extract(img)
	defer r.Close()
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != config.Created.Unix() {
			t.Errorf("%v: %s belongs to %d:%d and is of %v", platform, h.Name, h.Uid, h.Gid, h.ModTime)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if h.Mode&0o111 != 0 && h.Name != "bin/fairlead" && h.Name != "bin/fairlead-cni" {
			t.Errorf("%v: %s can be executed", platform, h.Name)
		}
		if files[h.Name], err = io.ReadAll(in); err != nil {
			t.Fatal(err)
		}
	}
	if len(files) != 4 || len(files["LICENSE"]) < 10_000 {
		t.Errorf("%v: %d files", platform, len(files))
	}
	for _, name := range []string{"fairlead", "fairlead-cni"} {
		program, err := os.ReadFile(built + platform.Architecture + "/" + name)
		if err != nil || !bytes.Equal(files["bin/"+name], program) {
			t.Errorf("%v: %s is not what was built: %v", platform, name, err)
		}
	}
	roots := 0
	for rest := files["etc/ssl/certs/ca-certificates.crt"]; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			t.Errorf("%v: %v", platform, err)
		}
		roots++
	}
	if roots < 100 {
		t.Errorf("%v: %d certificate authorities", platform, roots)
	}
}

// TestContainerd imports the archive into a containerd of its own, which checks every digest, and starts nothing.
func TestContainerd(t *testing.T) {
	testnet.MustRoot(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "config.toml")
	socket := filepath.Join(dir, "containerd.sock")
	// Nothing of it may touch the machine: no CRI, and no directory outside of this one.
	text := `version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "` + socket + `"
[ttrpc]
  address = "` + socket + `.ttrpc"
`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	daemon := exec.Command("containerd", "--config", config, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"))
	daemon.Stdout, daemon.Stderr = &log, &log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	defer func() {
		_ = daemon.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = daemon.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	ctr := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("ctr", append([]string{"--address", socket, "--namespace", "k8s.io"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("ctr %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if exec.Command("ctr", "--address", socket, "version").Run() == nil {
			break
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("containerd ended: %v", err)
		default:
		}
		if time.Since(start) > time.Minute {
			t.Fatal("containerd does not answer")
		}
	}
	ctr("images", "import", "--all-platforms", archive)
	index, name := open(t)
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	list := ctr("images", "list")
	for _, want := range []string{name, digest.String(), "linux/amd64", "linux/arm64"} {
		if !strings.Contains(list, want) {
			t.Errorf("%s is not there:\n%s", want, list)
		}
	}
	if check := ctr("images", "check"); !strings.Contains(check, "complete") {
		t.Errorf("the image is not complete:\n%s", check)
	}
}
