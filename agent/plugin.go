// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// pluginName is what the CNI configuration calls the plugin, and so its file.
const pluginName = "fairlead"

// ownPlugin is the program that belongs into that directory: fairlead-cni, which starts sooner, if it is beside this one, or else this one.
func ownPlugin() string {
	if own, err := os.Executable(); err == nil {
		if _, err := os.Stat(own + "-cni"); err == nil {
			return own + "-cni"
		}
	}
	return "/proc/self/exe"
}

// installPlugin puts a program into the directory where the container runtime looks for CNI plugins, in one step: a runtime that starts a pod at that moment
// runs the old program or the new one, whole. The same program is not written again.
func installPlugin(program, dir string) error {
	src, err := os.Open(program)
	if err != nil {
		return fmt.Errorf("install CNI plugin: %w", err)
	}
	defer src.Close()
	path := filepath.Join(dir, pluginName)
	if same, err := hasContent(path, src); err != nil || same {
		return err
	}
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("install CNI plugin: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory for CNI plugins: %w", err)
	}
	// There is one writer, so a file of this name is what one that was killed has left.
	tmp := filepath.Join(dir, "."+pluginName+".new")
	if err := copyProgram(tmp, src); err != nil {
		return errors.Join(fmt.Errorf("install CNI plugin: %w", err), ignoreMissing(os.Remove(tmp)))
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("install CNI plugin: %w", err), os.Remove(tmp))
	}
	return nil
}

// copyProgram writes src to a new file, down to the disk: after a power cut the name must not lead to an empty program.
func copyProgram(path string, src io.Reader) error {
	if err := ignoreMissing(os.Remove(path)); err != nil {
		return err
	}
	dst, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Chmod(0o755), dst.Sync(), dst.Close())
}

// hasContent reports whether the file at path is a program with the bytes of src. What cannot be a program any more, such as a dangling link, is not.
func hasContent(path string, src *os.File) (bool, error) {
	want, err := src.Stat()
	if err != nil {
		return false, fmt.Errorf("install CNI plugin: %w", err)
	}
	have, err := os.Lstat(path)
	if err != nil || have.Size() != want.Size() || have.Mode() != 0o755 {
		return false, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return false, nil
	}
	defer f.Close()
	var a, b [1 << 16]byte
	for {
		n, errA := io.ReadFull(f, a[:])
		m, errB := io.ReadFull(src, b[:])
		if !bytes.Equal(a[:n], b[:m]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			return (errA == io.EOF || errA == io.ErrUnexpectedEOF) && errA == errB, nil
		}
	}
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
