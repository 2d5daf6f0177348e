// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/runtime-spec/specs-go"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/deploy"
)

// archive is what make image writes.
const archive = "../../bin/fairlead-image.tar"

// image is the content of the archive for this machine: a root directory and the configuration.
type image struct {
	root       string
	entrypoint []string
	env        []string
}

// unpack does what a container runtime does with an image that it imports.
func unpack(t *testing.T) *image {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatalf("%v; run make image", err)
	}
	defer f.Close()
	if err := extract(f, filepath.Join(dir, "layout")); err != nil {
		t.Fatal(err)
	}
	index, err := layout.ImageIndexFromPath(filepath.Join(dir, "layout"))
	if err != nil {
		t.Fatal(err)
	}
	top, err := index.IndexManifest()
	if err != nil || len(top.Manifests) != 1 {
		t.Fatalf("index: %v", err)
	}
	platforms, err := index.ImageIndex(top.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := platforms.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range manifest.Manifests {
		if m.Platform.Architecture != runtime.GOARCH {
			continue
		}
		img, err := platforms.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		c, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		out := &image{root: filepath.Join(dir, "root"), entrypoint: c.Config.Entrypoint, env: c.Config.Env}
		r := mutate.Extract(img)
		defer r.Close()
		if err := extract(r, out.root); err != nil {
			t.Fatal(err)
		}
		return out
	}
	t.Fatalf("the image has no %s", runtime.GOARCH)
	return nil
}

func extract(r io.Reader, dir string) error {
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var text []byte
			if text, err = io.ReadAll(in); err == nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, os.FileMode(h.Mode)))
			}
		}
		if err != nil {
			return err
		}
	}
}

// objects are those of a manifest that the tests look at.
type objects struct {
	daemonSet  appsv1.DaemonSet
	role       rbacv1.ClusterRole
	configMaps map[string]corev1.ConfigMap
}

// rendered is the chart with these values.
func rendered(t *testing.T, values map[string]any) *objects {
	t.Helper()
	text, err := deploy.Render("kube-system", values)
	if err != nil {
		t.Fatal(err)
	}
	o := &objects{configMaps: map[string]corev1.ConfigMap{}}
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			t.Fatal(err)
		}
		var into any
		var cm corev1.ConfigMap
		switch kind.Kind {
		case "DaemonSet":
			into = &o.daemonSet
		case "ClusterRole":
			into = &o.role
		case "ConfigMap":
			into = &cm
		default:
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(doc), into); err != nil {
			t.Fatal(err)
		}
		if cm.Name != "" {
			o.configMaps[cm.Name] = cm
		}
	}
	return o
}

// values are those of the test cluster.
func values() map[string]any {
	return map[string]any{
		"apiServer":    apiAddr.String(),
		"serviceCIDRs": []any{"10.96.0.0/16"},
		"podCIDRs":     []any{"10.244.0.0/16"},
		"dns":          map[string]any{"ips": []any{dnsAddr.String()}},
	}
}

// container is a pod's container as the kubelet and the container runtime would start it.
type container struct {
	c    *cluster
	id   string
	spec *specs.Spec
	dir  string // the bundle
	out  *lines
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	kill func()        // tells it to end
}

// started counts the containers.
var started atomic.Int64

// container makes the runtime's configuration of the DaemonSet's only container.
func (c *cluster) container(img *image, o *objects) *container {
	c.t.Helper()
	k := &container{c: c, id: fmt.Sprintf("fairlead-test-%d-%d", os.Getpid(), started.Add(1)), dir: c.t.TempDir(), out: newLines(), done: make(chan struct{})}
	pod := &o.daemonSet.Spec.Template.Spec
	from := pod.Containers[0]
	// What runc suggests is close to what container runtimes ask for: the same masked and read-only paths, and the same namespaces.
	cmd := exec.Command("runc", "spec")
	cmd.Dir = k.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("runc spec: %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(k.dir, "config.json"))
	c.ok(err)
	k.spec = new(specs.Spec)
	c.ok(json.Unmarshal(text, k.spec))
	if !slices.Contains(k.spec.Linux.ReadonlyPaths, "/proc/sys") {
		c.t.Fatal("/proc/sys would not be read-only, as it is with container runtimes")
	}
	security := from.SecurityContext
	k.spec.Root = &specs.Root{Path: c.rootOf(img), Readonly: *security.ReadOnlyRootFilesystem}
	k.spec.Hostname = ""
	var caps []string
	for _, name := range security.Capabilities.Add {
		caps = append(caps, "CAP_"+string(name))
	}
	if len(security.Capabilities.Drop) != 1 || security.Capabilities.Drop[0] != "ALL" {
		c.t.Fatalf("capabilities dropped: %v, want ALL", security.Capabilities.Drop)
	}
	p := k.spec.Process
	p.Terminal, p.NoNewPrivileges, p.Rlimits = false, !*security.AllowPrivilegeEscalation, nil
	p.User = specs.User{UID: uint32(*security.RunAsUser), GID: uint32(*security.RunAsGroup)}
	p.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	p.Env = append(slices.Clone(img.env), "NODE_NAME="+nodeName, "KUBERNETES_SERVICE_HOST="+apiAddr.Addr().String(), fmt.Sprintf("KUBERNETES_SERVICE_PORT=%d", apiAddr.Port()))
	p.Args = slices.Clone(img.entrypoint)
	for _, arg := range from.Args {
		p.Args = append(p.Args, strings.ReplaceAll(arg, "$(NODE_NAME)", nodeName))
	}
	if !pod.HostNetwork || pod.HostPID || pod.HostIPC {
		c.t.Fatal("the pod is to have the node's network namespace and no other of the node's")
	}
	k.spec.Linux.Namespaces = slices.DeleteFunc(k.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
		return n.Type == specs.NetworkNamespace || n.Type == specs.UTSNamespace
	})
	k.spec.Linux.Namespaces = append(k.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: c.node.NS.Path()})
	k.spec.Linux.Resources = nil
	k.spec.Linux.CgroupsPath = "/" + k.id
	c.ok(json.Unmarshal(deploy.Seccomp, &k.spec.Linux.Seccomp))
	k.mounts(pod, o)
	return k
}

// rootOf makes a root directory of its own, in which runc may make the places where something is mounted.
func (c *cluster) rootOf(img *image) string {
	root := c.t.TempDir()
	c.ok(filepath.WalkDir(img.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(root, strings.TrimPrefix(path, img.root))
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		return os.Link(path, to)
	}))
	return root
}

// mounts are those of the pod, and those that the kubelet adds.
func (k *container) mounts(pod *corev1.PodSpec, o *objects) {
	c := k.c
	add := func(source, at string, readOnly bool) {
		mode := "rw"
		if readOnly {
			mode = "ro"
		}
		k.spec.Mounts = append(k.spec.Mounts, specs.Mount{Source: source, Destination: at, Type: "bind", Options: []string{"rbind", "rprivate", mode}})
	}
	for _, m := range pod.Containers[0].VolumeMounts {
		i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			c.t.Fatalf("no volume %s", m.Name)
		}
		var source string
		switch v := pod.Volumes[i]; {
		case v.ConfigMap != nil:
			source = filepath.Join(c.dir, "configmap", v.ConfigMap.Name)
			c.ok(os.MkdirAll(source, 0o755))
			for name, text := range o.configMaps[v.ConfigMap.Name].Data {
				c.ok(os.WriteFile(filepath.Join(source, name), []byte(text), 0o644))
			}
		case v.HostPath.Path == "/proc/sys/net" || v.HostPath.Path == "/sys/fs/cgroup":
			source = v.HostPath.Path
		default:
			source = c.hostPath(v.HostPath.Path)
			c.ok(os.MkdirAll(source, 0o755))
		}
		add(source, m.MountPath, m.ReadOnly)
	}
	account := filepath.Join(c.dir, "serviceaccount")
	c.ok(os.MkdirAll(account, 0o755))
	c.ok(os.WriteFile(filepath.Join(account, "token"), []byte(token), 0o600))
	c.ok(os.WriteFile(filepath.Join(account, "ca.crt"), c.pki.CA, 0o644))
	add(account, "/var/run/secrets/kubernetes.io/serviceaccount", true)
	resolv := filepath.Join(c.dir, "resolv.conf")
	c.ok(os.WriteFile(resolv, []byte("nameserver "+otherAddr.String()+"\n"), 0o644))
	add(resolv, "/etc/resolv.conf", true)
}

// hostPath is the directory that stands for one of the node's.
func (c *cluster) hostPath(path string) string { return filepath.Join(c.dir, "host", path) }

// start runs the container, and ends it with the test at the latest.
func (k *container) start() *container {
	k.c.t.Helper()
	k.save()
	k.cmd = k.runc("run", "--bundle", k.dir, k.id)
	k.cmd.Stdout, k.cmd.Stderr = k.out, k.out
	k.c.ok(k.cmd.Start())
	k.await()
	return k
}

func (k *container) save() {
	text, err := json.Marshal(k.spec)
	k.c.ok(err)
	k.c.ok(os.WriteFile(filepath.Join(k.dir, "config.json"), text, 0o644))
}

func (k *container) await() {
	k.kill = func() { _ = k.cmd.Process.Signal(syscall.SIGTERM) } // runc passes it on
	go func() { _ = k.cmd.Wait(); close(k.done) }()
	k.c.t.Cleanup(func() {
		k.stop()
		if k.c.t.Failed() {
			k.c.t.Logf("%s:\n%s", k.id, k.out)
		}
	})
}

func (k *container) runc(args ...string) *exec.Cmd {
	return exec.Command("runc", append([]string{"--root", filepath.Join(k.c.dir, "runc")}, args...)...)
}

// stop ends the container as a kubelet does, and takes away what is left of it.
func (k *container) stop() {
	select {
	case <-k.done:
	default:
		k.kill()
		select {
		case <-k.done:
		case <-time.After(10 * time.Second):
			k.c.t.Errorf("%s does not end", k.id)
		}
	}
	_ = k.runc("delete", "--force", k.id).Run()
}

// exec runs the program in the container, as kubectl exec does.
func (k *container) exec(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := k.runc(append([]string{"exec", k.id, "fairlead"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	err := cmd.Wait()
	return out.String(), err
}

// probe is the startup probe of the manifest.
func (k *container) probe(o *objects) (string, error) {
	ctx, cancel := context.WithTimeout(k.c.t.Context(), patience)
	defer cancel()
	return k.exec(ctx, o.daemonSet.Spec.Template.Spec.Containers[0].StartupProbe.Exec.Command[1:]...)
}

// mustGetReady waits for the startup probe.
func (k *container) mustGetReady(o *objects) {
	k.c.t.Helper()
	// The container may not be there yet.
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		out, err := k.probe(o)
		if err == nil {
			return
		}
		if time.Since(start) > patience {
			k.c.t.Fatalf("not ready: %v\n%s", err, out)
		}
	}
}
