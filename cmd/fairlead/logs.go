// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/cluster"
)

func newLogsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "logs NAMESPACE/POD",
		Short: "Print what a pod's container has written",
		Long: `Print what a container of a pod of this machine's cluster has written to its standard output and
standard error. Of one run the last 8 to 16 MiB are kept, and of one container the last two runs.`,
		Args: cobra.ExactArgs(1),
	}
	f := c.Flags()
	state := stateFlag(f)
	container := f.StringP("container", "c", "", "`name` of the container; default: the first one")
	previous := f.BoolP("previous", "p", false, "the run before the present one")
	follow := f.BoolP("follow", "f", false, "go on until the container ends")
	tail := f.Int("tail", -1, "only the last `N` lines; negative: all")
	c.RunE = func(c *cobra.Command, args []string) error {
		r := cluster.LogsRequest{Container: *container, Previous: *previous}
		var err error
		if r.Namespace, r.Pod, err = podArg(args); err != nil {
			return err
		}
		dir, err := cluster.Open(*state)
		if err != nil {
			return err
		}
		return runLogs(c.Context(), dir, r, *tail, *follow, c.OutOrStdout())
	}
	return c
}

func runLogs(ctx context.Context, dir cluster.Dir, r cluster.LogsRequest, tail int, follow bool, out io.Writer) error {
	logs, err := dir.Client().Logs(ctx, r)
	if err != nil {
		return explainClient(dir, err)
	}
	if len(logs.Files) == 0 {
		return errors.New("the container has written nothing yet")
	}
	var watch *fsnotify.Watcher
	if follow && logs.Running {
		// The watch begins before the first read, so that nothing is missed between the two.
		if watch, err = fsnotify.NewWatcher(); err != nil {
			return fmt.Errorf("follow log: %w", err)
		}
		defer watch.Close()
		if err := watch.Add(filepath.Dir(logs.Files[0])); err != nil {
			return fmt.Errorf("follow log: %w", err)
		}
	}
	text, last, err := readLogs(logs.Files)
	if err != nil {
		return err
	}
	defer last.Close()
	if _, err := out.Write(lastLines(text, tail)); err != nil {
		return err
	}
	if watch == nil {
		return nil
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Wait = true
		dir.Client().Logs(ctx, r)
	}()
	return followLog(ctx, last, watch, ended, out)
}

// readLogs reads the files of one run, oldest first, and returns the last one open at its end.
func readLogs(files []string) ([]byte, *os.File, error) {
	var text []byte
	for i, path := range files {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) && i < len(files)-1 {
			continue // turned in this very moment
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read log: %w", err)
		}
		b, err := io.ReadAll(f)
		if err != nil {
			f.Close()
			return nil, nil, fmt.Errorf("read log: %w", err)
		}
		text = append(text, b...)
		if i == len(files)-1 {
			return text, f, nil
		}
		f.Close()
	}
	return nil, nil, errors.New("read log: there is no file")
}

// lastLines returns the last n lines of text, or all of it when n is negative.
func lastLines(text []byte, n int) []byte {
	if n < 0 {
		return text
	}
	end := len(text)
	if end > 0 && text[end-1] == '\n' {
		end--
	}
	for i := 0; i < n; i++ {
		cut := bytes.LastIndexByte(text[:end], '\n')
		if cut < 0 {
			return text
		}
		end = cut
	}
	if n == 0 {
		return nil
	}
	return text[end+1:]
}

// followLog copies what is added to the file, and to the one that takes its place when it is turned, until ended.
func followLog(ctx context.Context, f *os.File, watch *fsnotify.Watcher, ended <-chan struct{}, out io.Writer) error {
	path := f.Name()
	for {
		if _, err := io.Copy(out, f); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			_, err := io.Copy(out, f)
			return err
		case err := <-watch.Errors:
			return fmt.Errorf("follow log: %w", err)
		case e := <-watch.Events:
			if e.Name != path || !e.Has(fsnotify.Create) {
				continue
			}
			if _, err := io.Copy(out, f); err != nil {
				return err
			}
			next, err := os.Open(path)
			if err != nil {
				return fmt.Errorf("follow log: %w", err)
			}
			defer next.Close()
			f = next
		}
	}
}
