// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"flag"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the expected texts")

// files is a world of files.
type files map[string]string

func (f files) read(name string) ([]byte, error) {
	if text, ok := f[name]; ok {
		return []byte(text), nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (f files) glob(pattern string) (out []string, err error) {
	for name := range f {
		if ok, err := filepath.Match(pattern, name); err != nil {
			return nil, err
		} else if ok {
			out = append(out, name)
		}
	}
	return out, nil
}

// env is the world of most tests.
func env() Env {
	f := files{
		"/etc/resolv.conf":                   "search example.com\nnameserver 10.0.0.53\nnameserver fd00::53\noptions ndots:5\n",
		"/etc/coredns/NodeHosts":             "10.1.0.1 node-1\n10.1.0.2 node-2 # two\n",
		"/etc/coredns/custom/a.override":     "log . {\n  class error\n}\n",
		"/etc/coredns/custom/b.override":     "template IN HINFO . {\n  rcode NOTIMP\n  fallthrough\n}\n",
		"/etc/coredns/custom/example.server": "example.org {\n  forward . 10.40.0.1\n}\n",
		"/etc/coredns/extra/more.conf":       "errors\n",
	}
	vars := map[string]string{"UPSTREAMS": "10.0.0.1", "EMPTY": ""}
	return Env{
		LookupEnv:  func(name string) (string, bool) { v, ok := vars[name]; return v, ok },
		ReadFile:   f.read,
		Glob:       f.glob,
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got\n%s", name, got)
	}
}

// TestCorefiles reads configurations that clusters have, and compares the blocks and what is said of each line.
func TestCorefiles(t *testing.T) {
	names, err := filepath.Glob("testdata/corefiles/*.Corefile")
	if err != nil || len(names) < 7 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Parse("/etc/coredns/Corefile", text, env())
			if err != nil {
				t.Error(err)
			}
			sensible(t, c)
			golden(t, strings.TrimSuffix(name, ".Corefile")+".golden", c.String()+"\n"+Explain(c))
		})
	}
}

// TestSettings: a row is directives, and a line of the block that comes of them.
func TestSettings(t *testing.T) {
	for _, r := range []struct{ text, want string }{
		{"forward . 10.0.0.1 10.0.0.2 10.0.0.1", "forward . to 10.0.0.1:53 10.0.0.2:53, random"},
		{"forward . ::ffff:10.0.0.1 [fd00::1]:5353", "forward . to 10.0.0.1:53 [fd00::1]:5353, random"},
		{"forward . 10.96.0.10:5353", "forward . to 10.96.0.10:5353, random"},
		{"forward . tls://10.0.0.1%a tls://10.0.0.2%b:54 tls://10.0.0.3", "forward . to tls://10.0.0.1:853%a tls://10.0.0.2:54%b tls://10.0.0.3:853, random"},
		{"forward . tls://[fd00::1%a] tls://[fd00::2]:54%b tls://[fd00::3%c]:54", "forward . to tls://[fd00::1]:853%a tls://[fd00::2]:54%b tls://[fd00::3]:54%c, random"},
		{"forward . 10.0.0.1 {\nhealth_check 0s\n}", "forward . to 10.0.0.1:53, random, never down"},
		{"forward . 10.0.0.1 {\nhealth_check 5s domain A\n}", "forward . to 10.0.0.1:53, random, probe every 5s a."},
		{"forward . 10.0.0.1\ncache {\nsuccess 16\n}", "cache, 5120000 octets, answers 5s to 0s, denials 5s to 0s"},
		{"forward . 10.0.0.1\ncache {\ndenial 16\n}", "cache, 5120000 octets, answers 5s to 0s, denials 5s to 0s"},
		{"forward . 10.0.0.1\ncache {\ndisable success\ndisable denial\n}", "cache, off"},
		{"kubernetes cluster.local\nforward . 10.0.0.1\ncache 30 cluster.local", "cache, off"},
		{"forward . 10.0.0.1\ncache {\nservfail 10ms\n}", "cache, answers 5s to 0s, denials 5s to 0s, failures up to 1s"},
	} {
		c, err := Parse("Corefile", []byte(". {\n"+r.text+"\n}"), env())
		if err != nil || !strings.Contains(c.String(), "\n  "+r.want+"\n") {
			t.Errorf("%s\nbecame\n%v, %v; want\n  %s", r.text, c, err, r.want)
		}
	}
}
