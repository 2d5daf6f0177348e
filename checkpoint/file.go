// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/model"
)

// A file is: magic, the version as a byte, a Header's fields, the records (encode.go) compressed, and the checksum (CRC-32C, big endian) of all before.
const (
	magic   = "FAIRLEAD"
	version = 1
	sumSize = 4
	// mostRecords bounds what the records of a file may come to, in bytes. A cluster of 10,000 Services and 100,000 endpoints has 9 MB.
	mostRecords = 1 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header says whose state it is, and of when.
type Header struct {
	// Node is the name of the node.
	Node string
	// Boot is the boot of the machine in which the file was written, see [BootID].
	Boot string
	// Saved is when it was written, to the second.
	Saved time.Time
	// Left are the roles that other programs had then: to whom the proxy was left, every Service is Unproxied.
	Left model.Roles
}

// The errors of Read, beside those of the file system.
var (
	// ErrCorrupt is of a file that is not what was written: empty, truncated, changed, of something else or of another node.
	ErrCorrupt = errors.New("cannot be used")
	// ErrNewer is of a file that a newer version of Fairlead has written.
	ErrNewer = errors.New("is of a newer version")
)

// errBusy is of a file that another agent, the one before or after this one, is writing.
var errBusy = errors.New("another agent writes it")

// BootID names the time since the machine's start: it is another one after each. It is what the kernel says, or empty if that cannot be read, which
// equals no file's.
func BootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(text))
}

// Write replaces the file at path by what each hands on, in one step, and returns its size in bytes. After an error the file that was there is
// there still. A directory that is missing is made.
func Write(path string, h Header, each func(model.Objects)) (size int64, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return 0, fmt.Errorf("write state: %w", err)
	}
	f, err := create(path + ".new")
	if err != nil {
		return 0, fmt.Errorf("write state: %w", err)
	}
	defer f.Close()
	counted := &counter{w: f}
	if err = encode(counted, h, each); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	} else {
		_ = os.Remove(f.Name())
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return 0, fmt.Errorf("write state to %s: %w", path, err)
	}
	return counted.n, nil
}

// create opens the file that will replace another, empty. One that a killed agent left is used again; while another agent has it, it is busy.
func create(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, errBusy)
		}
		mine, err := f.Stat()
		if err == nil {
			var there fs.FileInfo
			there, err = os.Stat(path)
			if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, there) {
				// Between opening and locking, the other one has renamed it: it is no longer the file of this name, and not to be touched.
				_ = f.Close()
				continue
			}
		}
		if err == nil {
			err = f.Truncate(0)
		}
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("empty %s: %w", path, err)
		}
		return f, nil
	}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// counter counts what passes, and sums it up.
type counter struct {
	w   io.Writer
	n   int64
	sum uint32
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.sum = crc32.Update(c.sum, castagnoli, b[:n])
	return n, err
}

// encode writes a whole file.
func encode(w *counter, h Header, each func(model.Objects)) error {
	head := append([]byte(magic), version)
	for _, s := range []string{h.Node, h.Boot} {
		head = append(binary.AppendUvarint(head, uint64(len(s))), s...)
	}
	head = append(binary.AppendVarint(head, h.Saved.Unix()), byte(h.Left))
	if _, err := w.Write(head); err != nil {
		return err
	}
	small, err := flate.NewWriter(w, flate.BestSpeed)
	if err != nil {
		return err
	}
	e := newEncoder(small)
	each(e)
	if err := e.finish(); err != nil {
		return err
	}
	if err := small.Close(); err != nil {
		return err
	}
	_, err = w.Write(binary.BigEndian.AppendUint32(nil, w.sum))
	return err
}

// Read hands the objects of the file at path on, if it is of this node, and returns its header. Of a file of before the last start of the machine,
// what the start has ended is left out: the pods of this node but for those on its own network, as pods and as endpoints.
//
// Without a file the error is [fs.ErrNotExist]. A file that is no good is ErrCorrupt, and put beside, under its name with .corrupt; one of a newer
// version is ErrNewer, and left as it is. After any error, what was handed on is worth nothing.
func Read(path, node, boot string, to model.Objects) (Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return Header{}, fmt.Errorf("read state: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return Header{}, fmt.Errorf("read state: %w", err)
	}
	h, err := read(f, size, node, boot, to)
	switch {
	case errors.Is(err, ErrCorrupt):
		err = fmt.Errorf("state on disk %s %w", path, err)
		if moved := os.Rename(path, path+".corrupt"); moved != nil {
			return h, fmt.Errorf("%w; it cannot be put beside either: %w", err, moved)
		}
		return h, fmt.Errorf("%w; it is now %s.corrupt", err, filepath.Base(path))
	case err != nil:
		return h, fmt.Errorf("state on disk %s %w", path, err)
	}
	return h, nil
}

// read reads a whole file. Its errors continue the sentence "the file …".
func read(f io.ReaderAt, size int64, node, boot string, to model.Objects) (Header, error) {
	corrupt := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
	}
	if size == 0 {
		return Header{}, corrupt("it is empty")
	}
	start := make([]byte, len(magic)+1)
	switch _, err := f.ReadAt(start, 0); {
	case errors.Is(err, io.EOF):
		return Header{}, corrupt("it is no state of Fairlead's")
	case err != nil:
		return Header{}, fmt.Errorf("cannot be read: %w", err)
	}
	switch v := start[len(magic)]; {
	case string(start[:len(magic)]) != magic:
		return Header{}, corrupt("it is no state of Fairlead's")
	case v > version:
		return Header{}, fmt.Errorf("%w: %d, where this one reads %d; it is left alone until there is something to replace it with", ErrNewer, v, version)
	case v == 0 || size < int64(len(start)+sumSize):
		return Header{}, corrupt("it ends within its first bytes")
	}
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, size-sumSize)); err != nil {
		return Header{}, fmt.Errorf("cannot be read: %w", err)
	}
	want := make([]byte, sumSize)
	if _, err := f.ReadAt(want, size-sumSize); err != nil && !errors.Is(err, io.EOF) {
		return Header{}, fmt.Errorf("cannot be read: %w", err)
	}
	if binary.BigEndian.Uint32(want) != sum.Sum32() {
		return Header{}, corrupt("its checksum is another one: it was truncated or changed")
	}
	d := newDecoder(io.NewSectionReader(f, int64(len(start)), size-sumSize-int64(len(start))))
	h := Header{Node: d.string(), Boot: d.string()}
	h.Saved, h.Left = time.Unix(d.signed(), 0), model.Roles(d.byte())
	switch {
	case d.err != nil:
		return h, corrupt("%w", d.err)
	case h.Node != node:
		return h, corrupt("it is of node %.80q, not of this one, %q", h.Node, node)
	}
	if boot == "" || h.Boot != boot {
		to = &rebooted{Objects: to, node: node}
	}
	if err := decode(io.LimitReader(flate.NewReader(d.r), mostRecords), to); err != nil {
		return h, corrupt("%w", err)
	}
	return h, nil
}
