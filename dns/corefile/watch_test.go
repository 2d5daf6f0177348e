// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// outcome is what [Watch] gave.
type outcome struct {
	config *Config
	err    error
}

func startWatch(t *testing.T, name string) <-chan outcome {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, done := make(chan outcome, 10), make(chan error, 1)
	go func() { done <- Watch(ctx, name, OS(), func(c *Config, err error) { out <- outcome{c, err} }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return out
}

// await returns the first outcome that is as wanted. Others may come before, when a change is not done in one step.
func await(t *testing.T, out <-chan outcome, want string) outcome {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case o := <-out:
			got := ""
			if o.config != nil {
				got = o.config.String()
			}
			if o.err != nil {
				got = o.err.Error()
			}
			if strings.Contains(got, want) {
				return o
			}
			t.Logf("passed over %q", got)
		case <-timeout:
			t.Fatalf("%q did not come", want)
		}
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestWatch: a file is edited in place, replaced by another as editors do, broken, mended, removed and put back; and so is a file that it names.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "Corefile")
	write(t, name, "a {\nforward . 10.0.0.1\n}")
	out := startWatch(t, name)
	await(t, out, "forward . to 10.0.0.1:53")
	write(t, name, "a {\nforward . 10.0.0.2\n}")
	await(t, out, "forward . to 10.0.0.2:53")

	other := filepath.Join(dir, "Corefile.new")
	write(t, other, "a {\nforward . 10.0.0.3\n}")
	if err := os.Rename(other, name); err != nil {
		t.Fatal(err)
	}
	await(t, out, "forward . to 10.0.0.3:53")

	write(t, name, "a {\nfrobnicate\n}")
	if o := await(t, out, "frobnicate"); o.err == nil || o.config == nil || !strings.Contains(Explain(o.config), "Corefile:2: frobnicate: refused") {
		t.Errorf("%v", o)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if o := await(t, out, "no such file"); o.config != nil {
		t.Errorf("%v", o.config)
	}
	hosts := filepath.Join(dir, "lists", "hosts")
	write(t, name, "a {\nhosts lists/hosts a {\nfallthrough\n}\n}")
	await(t, out, "hosts a. ttl 3600s, fall through .\n")
	if err := os.Mkdir(filepath.Dir(hosts), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, hosts, "10.0.0.1 x.a\n")
	await(t, out, "1 from a file")
	write(t, hosts, "10.0.0.1 x.a\n10.0.0.2 y.a\n")
	await(t, out, "2 from a file")

	// What changes nothing is not reported: the next outcome is that of the change after it.
	replace := func(name, text string) {
		t.Helper()
		write(t, other, text)
		if err := os.Rename(other, name); err != nil {
			t.Fatal(err)
		}
	}
	replace(filepath.Join(dir, "unrelated"), "x")
	replace(name, "a {\nhosts lists/hosts a {\nfallthrough\n}\n}")
	replace(hosts, "10.0.0.1 x.a\n")
	if o := <-out; !strings.Contains(o.config.String(), "1 from a file") {
		t.Errorf("came %v", o.config)
	}
}

// TestWatchConfigMap: the kubelet swaps a symbolic link when a ConfigMap changes; files that were not in it come and go.
func TestWatchConfigMap(t *testing.T) {
	dir := t.TempDir()
	fill := func(version string, files map[string]string) {
		t.Helper()
		data := filepath.Join(dir, version)
		if err := os.Mkdir(data, 0o755); err != nil {
			t.Fatal(err)
		}
		for n, text := range files {
			write(t, filepath.Join(data, n), text)
		}
		tmp := filepath.Join(dir, "..data_tmp")
		if err := os.Symlink(version, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		for n := range files {
			if _, err := os.Lstat(filepath.Join(dir, n)); err != nil {
				if err := os.Symlink(filepath.Join("..data", n), filepath.Join(dir, n)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	fill("..1", map[string]string{"Corefile": "a {\nforward . 10.0.0.1\n}\nimport *.server\n"})
	out := startWatch(t, dir)
	await(t, out, "forward . to 10.0.0.1:53")
	fill("..2", map[string]string{"Corefile": "a {\nforward . 10.0.0.2\n}\nimport *.server\n"})
	if err := os.RemoveAll(filepath.Join(dir, "..1")); err != nil {
		t.Fatal(err)
	}
	await(t, out, "forward . to 10.0.0.2:53")
	fill("..3", map[string]string{"Corefile": "a {\nforward . 10.0.0.2\n}\nimport *.server\n", "b.server": "b {\nforward . 10.0.0.3\n}"})
	await(t, out, "b. port 53\n  forward . to 10.0.0.3:53")
	fill("..4", map[string]string{"Corefile": "a {\nforward . 10.0.0.4\n}\nimport *.server\n", "b.server": "b {\nbad\n}"})
	await(t, out, "b.server:2: bad: CoreDNS 1.14 has no such plugin")
}

// TestWatchLink: what a link leads to is watched where it is.
func TestWatchLink(t *testing.T) {
	dir, target := t.TempDir(), filepath.Join(t.TempDir(), "hosts")
	write(t, target, "10.0.0.1 x.a\n")
	if err := os.Symlink(target, filepath.Join(dir, "hosts")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "Corefile"), "a {\nhosts hosts a\n}")
	out := startWatch(t, dir)
	await(t, out, "1 from a file")
	write(t, target, "10.0.0.1 x.a\n10.0.0.2 y.a\n")
	await(t, out, "2 from a file")
}

func TestWatchNothing(t *testing.T) {
	dir := t.TempDir()
	out := startWatch(t, filepath.Join(dir, "not", "yet"))
	if o := <-out; o.err == nil || o.config != nil {
		t.Errorf("%v", o)
	}
	if err := os.Mkdir(filepath.Join(dir, "not"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "not", "yet"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "not", "yet", "Corefile"), "a {\nforward . 10.0.0.1\n}")
	await(t, out, "forward . to 10.0.0.1:53")
}
