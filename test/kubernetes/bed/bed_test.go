// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/testnet"
)

// makerVariable has the test's own program make a machine in a directory, say its first process's number, and wait.
const makerVariable = "FAIRLEAD_BED_MAKER"

func TestMain(m *testing.M) {
	Init()
	if dir := os.Getenv(makerVariable); dir != "" {
		machine, err := newMachine("doomed", dir, os.Getenv(makerVariable+"_DETACH") != "")
		if err == nil {
			err = machine.boot(context.Background(), initSpec{Hostname: "doomed", Dir: dir})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(machine.pid, machine.birth)
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestImages: every blob is what its digest says, and each image's layer has its program.
func TestImages(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"one": "first program", "two": "second program"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "images.tar")
	images := []image{{"x.test/a:1", filepath.Join(dir, "one"), "bin/a"}, {"x.test/b:2", filepath.Join(dir, "two"), "bin/b"}, {"x.test/c:3", filepath.Join(dir, "one"), "bin/a"}}
	if err := writeImages(file, images...); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(first)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d descriptor, v any) []byte {
		content, ok := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if !ok || len(content) != d.Size || fmt.Sprintf("sha256:%x", sha256.Sum256(content)) != d.Digest {
			t.Fatalf("blob %+v is not what it says (there: %v)", d, ok)
		}
		if v != nil {
			if err := json.Unmarshal(content, v); err != nil {
				t.Fatal(err)
			}
		}
		return content
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != len(images) {
		t.Fatalf("%d images, want %d", len(index.Manifests), len(images))
	}
	for i, m := range index.Manifests {
		want := images[i]
		if got := m.Annotations["io.containerd.image.name"]; got != want.name {
			t.Errorf("image %d is called %s, want %s", i, got, want.name)
		}
		var manifest struct {
			Config descriptor
			Layers []descriptor
		}
		blob(m, &manifest)
		var config struct {
			Config struct{ Entrypoint []string }
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
		blob(manifest.Config, &config)
		if len(manifest.Layers) != 1 || !slices.Equal(config.RootFS.DiffIDs, []string{manifest.Layers[0].Digest}) {
			t.Errorf("%s: layers %+v, the configuration says %v", want.name, manifest.Layers, config.RootFS.DiffIDs)
		}
		if !slices.Equal(config.Config.Entrypoint, []string{"/" + want.path}) {
			t.Errorf("%s: entrypoint %v", want.name, config.Config.Entrypoint)
		}
		program, err := os.ReadFile(want.program)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for r := tar.NewReader(bytes.NewReader(blob(manifest.Layers[0], nil))); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Name == want.path {
				text, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				found = bytes.Equal(text, program) && h.Mode == 0o755
			}
		}
		if !found {
			t.Errorf("%s: its layer has no program %s", want.name, want.path)
		}
	}
	if err := writeImages(file, images...); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(file); err != nil || !bytes.Equal(again, first) {
		t.Errorf("the same images make another archive (%v)", err)
	}
	if err := writeImages(file, image{"x", filepath.Join(dir, "none"), "bin/x"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an image of a program that is not there: %v", err)
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		options Options
		want    string
	}{
		{Options{Name: "a", Nodes: 1}, ""},
		{Options{Name: "a9", Nodes: 9, Proxy: KubeProxy, DNS: CoreDNS, Network: Bridge}, ""},
		{Options{Name: "a", Nodes: 3, Proxy: None, DNS: None, Network: None}, ""},
		{Options{Name: "", Nodes: 1}, `cluster name "": want lower-case letters and digits, at most 20`},
		{Options{Name: "../x", Nodes: 1}, `cluster name "../x": want lower-case letters and digits, at most 20`},
		{Options{Name: strings.Repeat("x", 21), Nodes: 1}, `cluster name "xxxxxxxxxxxxxxxxxxxxx": want lower-case letters and digits, at most 20`},
		{Options{Name: "a", Nodes: 0}, "0 nodes: want 1 to 9"},
		{Options{Name: "a", Nodes: 10}, "10 nodes: want 1 to 9"},
		{Options{Name: "a", Nodes: 1, Proxy: CoreDNS}, `proxy "coredns": want fairlead, kube-proxy or none`},
		{Options{Name: "a", Nodes: 1, DNS: "bind"}, `dns "bind": want fairlead, coredns or none`},
		{Options{Name: "a", Nodes: 1, Network: KubeProxy}, `network "kube-proxy": want fairlead, bridge or none`},
	} {
		text := ""
		if err := c.options.check(); err != nil {
			text = err.Error()
		}
		if text != c.want {
			t.Errorf("%+v: %q, want %q", c.options, text, c.want)
		}
		if text == "" && (c.options.Proxy == "" || c.options.Install == nil || c.options.Log == nil) {
			t.Errorf("%+v: defaults are missing", c.options)
		}
	}
	for _, f := range []func(string) error{Remove, func(name string) error { _, err := Open(name); return err }} {
		if err := f("../../etc"); err == nil || !strings.Contains(err.Error(), "that is no name of one") {
			t.Errorf("a name that leads elsewhere: %v", err)
		}
	}
}

// TestAddrs: the machines' addresses are in the fabric's networks and all different.
func TestAddrs(t *testing.T) {
	seen := map[netip.Addr]bool{}
	hosts := []int{gatewayHost, controlHost}
	for i := range 9 {
		hosts = append(hosts, nodeHost+i)
	}
	for _, host := range hosts {
		for i, a := range addrsOf(host) {
			if p := []netip.Prefix{fabric4, fabric6}[i]; !p.Contains(a) || seen[a] {
				t.Errorf("host %d: %s is not in %s, or not its own", host, a, p)
			}
			seen[a] = true
		}
	}
}

func TestBridgeConf(t *testing.T) {
	text, err := bridgeConf([]netip.Prefix{netip.MustParsePrefix("10.1.2.0/24"), netip.MustParsePrefix("fd00:1::/64")})
	if err != nil {
		t.Fatal(err)
	}
	var conf struct {
		CNIVersion string
		Plugins    []struct {
			Type string
			IPAM struct {
				Ranges [][]struct{ Subnet string }
				Routes []struct{ Dst string }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &conf); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(conf); got != "{0.4.0 [{bridge {[[{10.1.2.0/24}] [{fd00:1::/64}]] [{0.0.0.0/0} {::/0}]}} {portmap {[] []}}]}" {
		t.Error(got)
	}
}

// TestRoles: the repository's manifest says what agents may ask of the API server, and says it of the user that they are here.
func TestRoles(t *testing.T) {
	text, err := os.ReadFile("../../../deploy/fairlead.yaml")
	if err != nil {
		t.Fatal(err)
	}
	objects := strings.Split(roles(string(text)), "---\n")[1:]
	if len(objects) != 2 || !strings.Contains(objects[0], "\nkind: ClusterRole\n") || !strings.Contains(objects[1], "\nkind: ClusterRoleBinding\n") {
		t.Fatalf("want a role and its binding: %q", objects)
	}
	_, subject, _ := strings.Cut(objects[1], "\nsubjects:\n")
	var name, namespace string
	if _, err := fmt.Sscanf(strings.Join(strings.Fields(subject), " "), "- kind: ServiceAccount name: %s namespace: %s", &name, &namespace); err != nil {
		t.Fatalf("the roles are given to %q: %v", subject, err)
	}
	if user := "system:serviceaccount:" + namespace + ":" + name; user != fairleadUser {
		t.Errorf("the roles are those of %s, the agents are %s", user, fairleadUser)
	}
}

// TestHierarchies: control groups of version 1, of 2, and of 1 with a 2 beside it.
func TestHierarchies(t *testing.T) {
	mount := cgroupMount
	defer func() { cgroupMount = mount }()
	for _, c := range []struct {
		files []string
		want  []string
	}{
		{[]string{"cgroup.controllers", "cgroup.procs", "other/cgroup.controllers"}, []string{"."}},
		{[]string{"cpu/cgroup.procs", "memory/cgroup.procs", "unified/cgroup.procs", "unified/cgroup.controllers"}, []string{"cpu", "memory", "unified"}},
		{[]string{"readme"}, nil},
	} {
		cgroupMount = t.TempDir()
		for _, f := range c.files {
			f = filepath.Join(cgroupMount, f)
			if err := errors.Join(os.MkdirAll(filepath.Dir(f), 0o755), os.WriteFile(f, nil, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		got, err := hierarchies()
		if (err != nil) != (c.want == nil) {
			t.Errorf("%v: %v", c.files, err)
		}
		for i := range got {
			got[i], _ = filepath.Rel(cgroupMount, got[i])
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.files, got, c.want)
		}
	}
	// Version 2: what there is is handed down, level by level.
	cgroupMount = t.TempDir()
	if err := os.WriteFile(filepath.Join(cgroupMount, "cgroup.controllers"), []byte("memory\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := makeGroup("a/b"); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(cgroupMount, "cgroup.subtree_control")); err != nil || string(text) != "+memory" {
		t.Errorf("the root hands down %q (%v)", text, err)
	}
	if _, err := os.Stat(filepath.Join(cgroupMount, "a", "b")); err != nil {
		t.Error(err)
	}
}

// TestGroups makes and removes a group with groups below it in the real hierarchies.
func TestGroups(t *testing.T) {
	testnet.MustRoot(t)
	name := "fairlead-bed-test" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() { removeGroup(name) })
	for range 2 { // what is there already is fine
		if err := makeGroup(name + "/n1"); err != nil {
			t.Fatal(err)
		}
	}
	dirs, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	if err := enterGroup(cmd.Process.Pid, name+"/n1"); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, dir := range dirs {
		procs, err := os.ReadFile(filepath.Join(dir, name, "n1", "cgroup.procs"))
		if err != nil || strings.TrimSpace(string(procs)) != strconv.Itoa(cmd.Process.Pid) {
			continue // a hierarchy without processors
		}
		seen++
	}
	if seen == 0 {
		t.Error("no hierarchy has processors")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for range 2 {
		if err := removeGroup(name); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s/%s is still there (%v)", dir, name, err)
		}
	}
}

// TestBirth: the time is that of the process, whatever it is called.
func TestBirth(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "a) R 1 (b")
	if err := os.Symlink(sleep, link); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(link, "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	own, err := birth(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	other, err := birth(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	a, errA := strconv.Atoi(own)
	b, errB := strconv.Atoi(other)
	if errA != nil || errB != nil || a > b {
		t.Errorf("this process started at %q, its child at %q", own, other)
	}
	if _, err := birth(1 << 30); err == nil {
		t.Error("a process that is not there was born")
	}
}

func mountsOfThisMachine(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestMachine: a machine has its own files, settings and network, and what it does is not seen outside; its end is that of all its
// processes.
func TestMachine(t *testing.T) {
	testnet.MustRoot(t)
	before := mountsOfThisMachine(t)
	panics, err := os.ReadFile("/proc/sys/kernel/panic")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m, err := newMachine("island", dir, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.kill() })
	if err := m.makeSwitch(); err != nil {
		t.Fatal(err)
	}
	gateway := addrsOf(gatewayHost)
	if err := m.boot(t.Context(), initSpec{Hostname: "island", Dir: dir, Keep: []string{"kept"}, DNS: gateway,
		Files: map[string]string{"resolv.conf": "nameserver 172.30.0.1\n"}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ script, want string }{
		{"hostname", "island\n"},
		{"cat /etc/resolv.conf", "nameserver 172.30.0.1\n"},
		{"cat /proc/sys/kernel/panic", "10\n"},
		{"echo hello >/etc/fairlead-bed-test && cat /etc/fairlead-bed-test", "hello\n"},
		{"echo kept >/var/lib/kept/file && mkdir /var/lib/lost && ls /var/lib", "kept\nlost\n"},
		{"ls /sys/class/net", "lo\nswitch\n"},
		{"ls /run", "lock\nnetns\n"},
		{"test -d /sys/fs/cgroup && cat /proc/sys/net/ipv4/ip_forward", "0\n"},
	} {
		if out, err := m.Output(t.Context(), "sh", "-c", c.script); err != nil || out != c.want {
			t.Errorf("%s: %q, want %q (%v)", c.script, out, c.want, err)
		}
	}
	if _, err := os.Stat("/etc/fairlead-bed-test"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what the machine wrote is seen outside (%v)", err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "kept", "file")); err != nil || string(text) != "kept\n" {
		t.Errorf("what it keeps: %q, %v", text, err)
	}
	if now, err := os.ReadFile("/proc/sys/kernel/panic"); err != nil || !bytes.Equal(now, panics) {
		t.Errorf("kernel.panic was %q and is %q (%v)", panics, now, err)
	}
	if out, err := m.Output(t.Context(), "sh", "-c", "echo no >&2; exit 3"); err == nil || !strings.HasSuffix(err.Error(), "exit status 3: no") {
		t.Errorf("a program that fails: %q, %v", out, err)
	}

	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{{"outside.test.", dns.TypeA, "172.30.0.1"}, {"OUTSIDE.test.", dns.TypeAAAA, "fd00:30::1"}, {"outside.test.", dns.TypeMX, ""}, {"example.com.", dns.TypeA, "NXDOMAIN"}} {
		for _, network := range []string{"udp", "tcp"} {
			err := m.NS.Do(func() error {
				answer, _, err := (&dns.Client{Net: network}).Exchange(new(dns.Msg).SetQuestion(c.name, c.kind), "172.30.0.1:53")
				if err != nil {
					return err
				}
				got := ""
				if answer.Rcode != dns.RcodeSuccess {
					got = dns.RcodeToString[answer.Rcode]
				}
				for _, rr := range answer.Answer {
					got += dns.Field(rr, 1)
				}
				if got != c.want {
					t.Errorf("%s %s over %s: %q, want %q", c.name, dns.TypeToString[c.kind], network, got, c.want)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	}

	p, err := m.Start("sleeper", "sh", "-c", "echo asleep; setsid sleep 1000 & sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := until(t.Context(), 10*time.Second, "log", func(context.Context) error {
		if text, err := os.ReadFile(p.Log); err != nil || string(text) != "asleep\n" {
			return fmt.Errorf("it says %q, %w", text, err)
		}
		return nil
	}, p); err != nil {
		t.Fatal(err)
	}
	again, err := openMachine("island", dir, m.pid, m.birth)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := again.Output(t.Context(), "hostname"); err != nil || out != "island\n" {
		t.Errorf("opened by its number: %q, %v", out, err)
	}
	again.close()
	if _, err := openMachine("island", dir, m.pid, "1"); !errors.Is(err, errDown) {
		t.Errorf("opened by the number of another process: %v", err)
	}
	if err := m.kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Gone(); err == nil {
		select {
		case <-p.ended:
		case <-time.After(10 * time.Second):
			t.Error("a program outlives its machine")
		}
	}
	if _, err := openMachine("island", dir, m.pid, m.birth); !errors.Is(err, errDown) {
		t.Errorf("opened after its end: %v", err)
	}
	if after := mountsOfThisMachine(t); after != before {
		t.Errorf("mounts were\n%sand are\n%s", before, after)
	}
}

// TestMakerDies: a machine ends with the process that made it, unless it is detached; then another process can end it.
func TestMakerDies(t *testing.T) {
	testnet.MustRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, detach := range []string{"", "1"} {
		dir := t.TempDir()
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), makerVariable+"="+dir, makerVariable+"_DETACH="+detach)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var pid int
		var born string
		if _, err := fmt.Fscan(out, &pid, &born); err != nil {
			t.Fatal(err)
		}
		m, err := openMachine("doomed", dir, pid, born)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Process.Kill()
		cmd.Wait()
		poll := []unix.PollFd{{Fd: int32(m.pidfd.Fd()), Events: unix.POLLIN}}
		wait := 10_000
		if detach != "" {
			wait = 200 // it must not happen, so there is nothing to wait for
		}
		n, err := unix.Poll(poll, wait)
		if err != nil || (n == 1) != (detach == "") {
			t.Errorf("detached %q: its maker is dead, and it: %d (%v)", detach, n, err)
		}
		if err := m.kill(); err != nil {
			t.Error(err)
		}
	}
}

// TestRemoveLeftOvers: what a killed run leaves is found by name, and taken away.
func TestRemoveLeftOvers(t *testing.T) {
	testnet.MustRoot(t)
	old := root
	root = t.TempDir()
	defer func() { root = old }()
	dir := filepath.Join(root, "left")
	if err := os.MkdirAll(filepath.Join(dir, "n1"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := &Cluster{dir: dir, Options: Options{Name: "left", Nodes: 1}}
	var err error
	m, err := newMachine("n1", filepath.Join(dir, "n1"), true)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes = []*Node{{Machine: m, number: 1}}
	if err := m.boot(t.Context(), initSpec{Hostname: "n1", Dir: m.dir}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.save(), makeGroup(c.group())); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("left"); !errors.Is(err, errDown) {
		t.Errorf("open half a cluster: %v", err)
	}
	l, err := lock("left")
	if err != nil {
		t.Fatal(err)
	}
	if err := Remove("left"); err == nil || !strings.Contains(err.Error(), "another process makes or uses it") {
		t.Errorf("remove a cluster that is in use: %v", err)
	}
	l.Close()
	for range 2 {
		if err := Remove("left"); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-m.gone:
	case <-time.After(10 * time.Second):
		t.Error("its machine lives")
	}
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there (%v)", root, err)
	}
}

// TestUpFails: when a step fails, nothing is left, and the error says what to do.
func TestUpFails(t *testing.T) {
	testnet.MustRoot(t)
	old := root
	root = t.TempDir()
	defer func() { root = old }()
	before := mountsOfThisMachine(t)
	_, err := Up(t.Context(), Options{Name: "fails", Nodes: 2, Programs: t.TempDir(), Own: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "make build-kubernetes makes it") {
		t.Errorf("without programs: %v", err)
	}
	// Programs that end at once, in place of the real ones.
	programs := t.TempDir()
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "pause", "manifest", "shop", "fairlead", "fairlead-cni"} {
		if err := os.WriteFile(filepath.Join(programs, name), []byte("#!/bin/sh\necho I am no "+name+"\nexit 7\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err = Up(t.Context(), Options{Name: "fails", Nodes: 2, Programs: programs, Own: programs})
	if err == nil || !strings.Contains(err.Error(), " has ended (exit status 7); it said:\nI am no ") {
		t.Errorf("with programs that end: %v", err)
	}
	var left []string
	if err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			path, err = filepath.Rel(root, path)
			left = append(left, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if path != "fails.lock" && filepath.Base(filepath.Dir(path)) != "logs" {
			t.Errorf("%s is left", path)
		}
	}
	if !slices.Contains(left, "fails/control/logs/kube-apiserver.log") {
		t.Errorf("the logs are not there: %v", left)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Up(ctx, Options{Name: "fails", Nodes: 2, Programs: programs, Own: programs}); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after an end before its time, %s is left (%v)", root, err)
	}
	if after := mountsOfThisMachine(t); after != before {
		t.Errorf("mounts were\n%sand are\n%s", before, after)
	}
	dirs, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "fairlead-bed-fails")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("control group: %v", err)
		}
	}
	if err := Remove("fails"); err != nil {
		t.Error(err)
	}
}
