// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// maxLog is the size in bytes at which a log is turned: the full file becomes NAME.1 (over the one before) and a new one begins. So one
// log takes at most twice this on the disk.
const maxLog = 8 << 20

// logFile is a bounded log. Write may be called by one goroutine, Close by another.
type logFile struct {
	path string
	max  int64
	mu   sync.Mutex
	file *os.File
	size int64
}

var _ io.WriteCloser = (*logFile)(nil)

// openLog opens a log to append to, making its directory.
func openLog(path string, limit int64) (*logFile, error) {
	l := &logFile{path: path, max: limit}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write appends p and turns the file when it is full.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return 0, fs.ErrClosed
	}
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		l.file.Close()
		l.file = nil
		if err := os.Rename(l.path, l.path+".1"); err != nil {
			return 0, fmt.Errorf("turn log: %w", err)
		}
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}

// Close ends the log; the files stay.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// turnLog moves a log that has grown beyond limit aside. It is for files that other processes write to directly.
func turnLog(path string, limit int64) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() <= limit {
		return nil
	}
	if err != nil {
		return fmt.Errorf("turn log: %w", err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		return fmt.Errorf("turn log: %w", err)
	}
	return nil
}

// runLog is the log of one run of a container.
func runLog(podDir, name string, run int) string {
	return filepath.Join(podDir, name, strconv.Itoa(run)+".log")
}

// runLogs lists the existing files of one run's log, oldest first.
func runLogs(podDir, name string, run int) []string {
	var out []string
	path := runLog(podDir, name, run)
	for _, p := range []string{path + ".1", path} {
		if _, err := os.Stat(p); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// dropOldRuns removes the logs of all but the last two runs: the present one and the one before.
func dropOldRuns(podDir, name string, run int) {
	dir := filepath.Join(podDir, name)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		number, _, _ := strings.Cut(e.Name(), ".")
		if n, err := strconv.Atoi(number); err == nil && n < run-1 {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}
