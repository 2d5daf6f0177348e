// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Env is what a Corefile may look at besides itself. The zero value has no variables and no files.
type Env struct {
	// LookupEnv is the value of a variable such as {$UPSTREAM}.
	LookupEnv func(name string) (string, bool)
	// ReadFile and Glob are those of packages os and path/filepath: for files that are imported, lists of hosts, lists of resolvers and
	// certificate authorities.
	ReadFile func(name string) ([]byte, error)
	Glob     func(pattern string) ([]string, error)
	// ClusterDNS are the addresses of the cluster's DNS, which is this one: what is forwarded there is answered here.
	ClusterDNS []netip.Addr
}

// OS is the process's own environment and the machine's files.
func OS() Env { return Env{LookupEnv: os.LookupEnv, ReadFile: os.ReadFile, Glob: filepath.Glob} }

func (e Env) withDefaults() Env {
	if e.LookupEnv == nil {
		e.LookupEnv = func(string) (string, bool) { return "", false }
	}
	if e.ReadFile == nil {
		e.ReadFile = func(name string) ([]byte, error) {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
	}
	if e.Glob == nil {
		e.Glob = func(string) ([]string, error) { return nil, nil }
	}
	return e
}

// Load reads a Corefile, or the file of that name in a directory, such as the one that a ConfigMap is mounted at. What it names by a relative
// path is relative to its directory. The configuration is nil only if the file cannot be read.
func Load(name string, env Env) (*Config, error) {
	env = env.withDefaults()
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		name = filepath.Join(name, "Corefile")
	}
	text, err := env.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read Corefile: %w", err)
	}
	return Parse(name, text, env)
}

// read is a file that was read or a pattern that was looked for, and what came of it.
type read struct {
	name string
	text string
}

// read reads a file, and remembers that it did.
func (p *parser) read(name string) ([]byte, error) {
	text, err := p.env.ReadFile(name)
	r := read{name, string(text)}
	if err != nil {
		r.text = err.Error()
	}
	p.config.reads = append(p.config.reads, r)
	return text, err
}

func (p *parser) glob(pattern string) ([]string, error) {
	names, err := p.env.Glob(pattern)
	p.config.reads = append(p.config.reads, read{pattern, strings.Join(names, "\n")})
	return names, err
}

// locate says where a file is that is named in a file.
func locate(name, beside string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(filepath.Dir(beside), name)
}
