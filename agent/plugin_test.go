// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestInstallPlugin: whatever is in the directory before, the program is there afterwards, and nothing else of it.
func TestInstallPlugin(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	text := bytes.Repeat([]byte("program "), 20_000)
	write(t, program, text, 0o755)
	for name, prepare := range map[string]func(t *testing.T, dir string){
		"no directory":             func(t *testing.T, dir string) { remove(t, dir) },
		"empty":                    func(*testing.T, string) {},
		"another program":          func(t *testing.T, dir string) { write(t, filepath.Join(dir, "fairlead"), []byte("old"), 0o755) },
		"one of the same size":     func(t *testing.T, dir string) { write(t, filepath.Join(dir, "fairlead"), flip(text), 0o755) },
		"the same, not executable": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "fairlead"), text, 0o644) },
		"half of it, left behind":  func(t *testing.T, dir string) { write(t, filepath.Join(dir, ".fairlead.new"), text[:999], 0o600) },
		"a dangling link": func(t *testing.T, dir string) {
			if err := os.Symlink("nowhere", filepath.Join(dir, "fairlead")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "bin")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "stranger"), []byte("stays"), 0o755)
			prepare(t, dir)
			if err := installPlugin(program, dir); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(dir, "fairlead"))
			if err != nil || !bytes.Equal(got, text) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			info, err := os.Lstat(filepath.Join(dir, "fairlead"))
			if err != nil || info.Mode() != 0o755 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			if _, err := os.Lstat(filepath.Join(dir, ".fairlead.new")); err == nil {
				t.Error("the temporary file is left")
			}
			if name != "no directory" {
				if got, err := os.ReadFile(filepath.Join(dir, "stranger")); string(got) != "stays" {
					t.Errorf("another plugin: %q, %v", got, err)
				}
			}
			before := inode(t, filepath.Join(dir, "fairlead"))
			if err := installPlugin(program, dir); err != nil {
				t.Fatal(err)
			}
			if inode(t, filepath.Join(dir, "fairlead")) != before {
				t.Error("the same program was written again")
			}
		})
	}
}

// TestInstallPluginWhileItRuns: a running program cannot be written to, but it can be replaced.
func TestInstallPluginWhileItRuns(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "fairlead"), old, 0o755)
	cmd := exec.Command(filepath.Join(dir, "fairlead"), "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if err := installPlugin("/proc/self/exe", dir); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the old program ended: %v", err)
	}
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if fileSize(t, filepath.Join(dir, "fairlead")) != fileSize(t, own) {
		t.Error("the plugin is not this program")
	}
}

// TestInstallPluginFails: what is in the way is named, and the old plugin stays.
func TestInstallPluginFails(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	write(t, program, []byte("program"), 0o755)
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, nil, 0o644)
	if err := installPlugin(program, filepath.Join(file, "bin")); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("below a file: %v", err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "fairlead", "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := installPlugin(program, dir); err == nil || !strings.Contains(err.Error(), "install CNI plugin") {
		t.Errorf("in place of a directory: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "fairlead", "full")); err != nil {
		t.Error(err)
	}
	if err := installPlugin(filepath.Join(dir, "nosuch"), t.TempDir()); err == nil {
		t.Error("no program: no error")
	}
}

func write(t *testing.T, path string, text []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, text, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func flip(text []byte) []byte {
	out := bytes.Clone(text)
	out[len(out)-1] ^= 1
	return out
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestOwnPlugin: the small program is the plugin where it is beside the agent's.
func TestOwnPlugin(t *testing.T) {
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if got := ownPlugin(); got != "/proc/self/exe" {
		t.Errorf("alone: %s", got)
	}
	write(t, own+"-cni", nil, 0o755)
	defer os.Remove(own + "-cni")
	if got := ownPlugin(); got != own+"-cni" {
		t.Errorf("beside the other: %s", got)
	}
}
