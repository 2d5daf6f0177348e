// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/cluster"
)

// execute runs a command with arguments and returns what it printed.
func execute(t *testing.T, c *cobra.Command, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	c.SilenceUsage, c.SilenceErrors = true, true
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func stateDir(t *testing.T) cluster.Dir {
	t.Helper()
	d, err := cluster.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestCommandLines: what is wrong with a command line is said before anything is done.
func TestCommandLines(t *testing.T) {
	for _, tc := range []struct {
		c    *cobra.Command
		args string
		want string
	}{
		{newUpCommand(), "now", "now"},
		{newUpCommand(), "--noodles 3", "--noodles"},
		{newUpCommand(), "--nodes many", "--nodes"},
		{newUpCommand(), "--api-port 70000", "--api-port"},
		{newUpCommand(), "--service-cidr banana", `--service-cidr: "banana" is not a CIDR`},
		{newUpCommand(), "--pod-cidr 10.0.0.1/8", "--pod-cidr: 10.0.0.1/8 has host bits set; write 10.0.0.0/8"},
		{newUpCommand(), "--node-cidr 10.0.0.0/24,", "--node-cidr"},
		{newDownCommand(), "all", "all"},
		{newExecCommand(), "", "give one pod as NAMESPACE/POD, not 0 arguments"},
		{newExecCommand(), "web -- true", `"web" does not name a pod; write NAMESPACE/POD`},
		{newExecCommand(), "a/ -- true", "NAMESPACE/POD"},
		{newExecCommand(), "/b -- true", "NAMESPACE/POD"},
		{newExecCommand(), "a/b/c -- true", "NAMESPACE/POD"},
		{newExecCommand(), "a/b c/d -- true", "not 2 arguments"},
		{newExecCommand(), "a/b", "there is no command"},
		{newExecCommand(), "a/b --", "there is no command"},
		{newExecCommand(), "--node n1 a/b -- true", "not both"},
		{newExecCommand(), "--node n1 --", "there is no command"},
		{newExecCommand(), "--node n1 --container web -- true", "a node has no containers"},
		{newUpCommand(), "--state=", "open state directory: its path is empty"},
		{newDownCommand(), "--state= --purge", "open state directory: its path is empty"},
		{newLogsCommand(), "web", "NAMESPACE/POD"},
		{newLogsCommand(), "", "accepts 1 arg"},
		{newPauseCommand(), "", "node runner"},
	} {
		if out, err := execute(t, tc.c, strings.Fields(tc.args)...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %s: %v, want %q\n%s", tc.c.Name(), tc.args, err, tc.want, out)
		}
	}
}

// TestNothingRuns: asking where no cluster runs gets a sentence, and taking down nothing is fine.
func TestNothingRuns(t *testing.T) {
	d := stateDir(t)
	for _, c := range []*cobra.Command{newExecCommand(), newLogsCommand()} {
		args := []string{"--state", string(d), "a/b"}
		if c.Name() == "exec" {
			args = append(args, "--", "true")
		}
		if _, err := execute(t, c, args...); err == nil || !strings.Contains(err.Error(), "no cluster runs from "+string(d)) || !strings.Contains(err.Error(), "fairlead up") {
			t.Errorf("%s: %v", c.Name(), err)
		}
	}
	if os.Geteuid() != 0 {
		for _, c := range []*cobra.Command{newUpCommand(), newDownCommand()} {
			if _, err := execute(t, c, "--state", string(d)); err == nil || !strings.Contains(err.Error(), "root") {
				t.Errorf("%s as an ordinary user: %v", c.Name(), err)
			}
		}
		return
	}
	for _, flag := range []string{"--purge=false", "--purge"} {
		out, err := execute(t, newDownCommand(), "--state", string(d), flag)
		if err != nil || !strings.Contains(out, "There is no cluster in "+string(d)) {
			t.Errorf("down %s of nothing: %q %v", flag, out, err)
		}
		if _, err := os.Stat(string(d)); err == nil {
			t.Error("down made the directory")
		}
	}
}

// TestDownAtOnce: of two that take a cluster down and remove it, the later one finds nothing, which is fine.
func TestDownAtOnce(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: down refuses an ordinary user first")
	}
	d := stateDir(t)
	if _, err := d.Make(); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteRecord(cluster.Record{Params: cluster.DefaultParams()}); err != nil {
		t.Fatal(err)
	}
	first, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ended := make(chan error, 1)
	go func() {
		out, err := execute(t, newDownCommand(), "--state", string(d), "--purge")
		if err == nil && !strings.Contains(out, "There is no cluster in "+string(d)) {
			err = errors.New(out)
		}
		ended <- err
	}()
	time.Sleep(100 * time.Millisecond) // it waits for the lock, and by now it has read that there is a cluster
	if err := d.Purge(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the later one: %v", err)
	}
}

// TestUpRefusesBeforeMaking: what up cannot do it refuses with a sentence, and has made nothing.
func TestUpRefusesBeforeMaking(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: up refuses an ordinary user first")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := string(stateDir(t))
	for _, tc := range []struct {
		state, args, want string
	}{
		{file, "", file},
		{full, "", "thesis.tex"},
		{filepath.Join(fresh, strings.Repeat("long/", 20)), "", "too long"},
		{fresh, "--nodes 0", "--nodes 0: choose 1 to 100"},
		{fresh, "--cluster-domain A", "--cluster-domain"},
		{fresh, "--service-cidr 10.244.0.0/16", "overlaps --pod-cidr"},
		// The test program has no fairlead-server beside it.
		{fresh, "", "fairlead-server is not in "},
	} {
		_, err := execute(t, newUpCommand(), append(strings.Fields(tc.args), "--state", tc.state)...)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %s: %v, want %q", tc.state, tc.args, err, tc.want)
		}
		if _, err := os.Stat(fresh); err == nil {
			t.Fatalf("%s: the state directory was made", tc.args)
		}
	}
}

// TestSettle: an existing cluster's parameters are kept where the user gives none, and others are refused.
func TestSettle(t *testing.T) {
	d := stateDir(t)
	if _, err := d.Make(); err != nil {
		t.Fatal(err)
	}
	made := cluster.DefaultParams()
	made.Nodes, made.APIPort, made.Domain = 5, 7443, "c.example"
	if err := d.WriteRecord(cluster.Record{Params: made}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		given  string
		change func(*cluster.Params)
		port   uint16
		err    string
	}{
		{"", func(*cluster.Params) {}, 7443, ""},
		{"nodes", func(p *cluster.Params) { p.Nodes = 5 }, 7443, ""},
		{"api-port", func(p *cluster.Params) { p.APIPort = 8443 }, 8443, ""},
		{"nodes", func(p *cluster.Params) { p.Nodes = 3 }, 0, "was made with --nodes 5, not 3"},
		{"cluster-domain", func(*cluster.Params) {}, 0, "--cluster-domain c.example, not cluster.local"},
		{"nodes", func(p *cluster.Params) { p.Nodes = 0 }, 0, "--nodes 0"},
	} {
		u := up{dir: d, params: cluster.DefaultParams()}
		tc.change(&u.params)
		if tc.given != "" {
			u.given = []string{tc.given}
		}
		err := u.settle()
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v, want %q", tc.given, err, tc.err)
			}
			continue
		}
		want := made
		want.APIPort = tc.port
		if err != nil || !u.params.Equal(want) {
			t.Errorf("%s: %+v %v", tc.given, u.params, err)
		}
	}
	// Without a record a dual-stack cluster gets its second node network by itself.
	u := up{dir: stateDir(t), params: cluster.DefaultParams(), given: []string{"service-cidr", "pod-cidr"}}
	u.params.ServiceCIDRs, _ = cluster.ParseCIDRs("10.96.0.0/16,fd00:96::/112")
	u.params.PodCIDRs, _ = cluster.ParseCIDRs("10.244.0.0/16,fd00:244::/48")
	if err := u.settle(); err != nil || len(u.params.NodeCIDRs) != 2 {
		t.Errorf("dual-stack: %+v %v", u.params.NodeCIDRs, err)
	}
}

// TestListen: a taken port is a sentence with the way out, and the opened one is on the loopback address only.
func TestListen(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := busy.Addr().(*net.TCPAddr).Port
	u := up{params: cluster.Params{APIPort: uint16(port)}}
	if _, err := u.listen(); err == nil || !strings.Contains(err.Error(), strconv.Itoa(port)) || !strings.Contains(err.Error(), "--api-port") {
		t.Errorf("taken port: %v", err)
	}
	busy.Close()
	f, err := u.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := l.Addr().String(); got != fmt.Sprintf("127.0.0.1:%d", port) {
		t.Errorf("listening on %s", got)
	}
}

func TestLastLines(t *testing.T) {
	for _, tc := range []struct {
		text string
		n    int
		want string
	}{
		{"a\nb\nc\n", -1, "a\nb\nc\n"},
		{"a\nb\nc\n", 0, ""},
		{"a\nb\nc\n", 1, "c\n"},
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc\n", 3, "a\nb\nc\n"},
		{"a\nb\nc\n", 9, "a\nb\nc\n"},
		{"a\nb", 1, "b"},
		{"a\n\n", 1, "\n"},
		{"\n", 1, "\n"},
		{"", 1, ""},
		{"", 0, ""},
	} {
		if got := string(lastLines([]byte(tc.text), tc.n)); got != tc.want {
			t.Errorf("last %d of %q: %q, want %q", tc.n, tc.text, got, tc.want)
		}
	}
}

// TestFollowLog: what is added is printed, also across the turn of a full log, and the end comes with the container's.
func TestFollowLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "1.log")
	write := func(text string) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n")
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	if err := watch.Add(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	text, last, err := readLogs([]string{path + ".1", path})
	if err != nil || string(text) != "before\n" {
		t.Fatalf("%q %v", text, err)
	}
	defer last.Close()
	r, w := io.Pipe()
	ended, followed := make(chan struct{}), make(chan error, 1)
	go func() {
		followed <- followLog(context.Background(), last, watch, ended, w)
		w.Close()
	}()
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != want {
			t.Fatalf("followed %q %v, want %q", buf, err, want)
		}
	}
	write("one\n")
	expect("one\n")
	write("two\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write("three\n")
	expect("two\nthree\n")
	close(ended)
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q %v", rest, err)
	}
	if err := <-followed; err != nil {
		t.Error(err)
	}
	if _, _, err := readLogs([]string{filepath.Join(t.TempDir(), "no")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
